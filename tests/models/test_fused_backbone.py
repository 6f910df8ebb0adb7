"""The fused backbone is the plain one: with the references of its kernels, in float32, on the CPU."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from rsd_fast.kernels.transformer import Plans
from rsd_fast.models.backbone import Backbone, BackboneConfig
from rsd_fast.models.fused_backbone import FusedBackbone, fuse_backbone

CONFIG = BackboneConfig(width=64, depth=3, heads=2, mlp_width=48)
PREFIX, QUERIES, BATCH = 11, 6, 3
MASK = torch.ones(BATCH, PREFIX, dtype=torch.bool)
MASK[1, 4:7] = False
MASK[2, 10:] = False
SEES = torch.arange(QUERIES)[:, None] // 2 >= torch.arange(QUERIES)[None] // 2
# Every way a product can go.
WAYS = Plans(
    (
        {
            "add 64x64": {"1000": "cublas-add"},
            "add 64x48": {"20": "cublas", "1000": {"block_m": 16, "block_n": 16, "block_k": 16, "split": 3}},
            "swiglu 48x64": {"20": {"block_m": 16, "block_n": 16, "block_k": 16}},
        },
    )
)


def made(config: BackboneConfig = CONFIG, plans: Plans | None = None) -> tuple[Backbone, FusedBackbone, Tensor, Tensor]:
    torch.manual_seed(0)
    backbone, again = Backbone(config).eval(), Backbone(config).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.2)
    again.load_state_dict(backbone.state_dict())
    fused = FusedBackbone(again, PREFIX + QUERIES + 5, plans)
    return backbone, fused, torch.randn(BATCH, PREFIX, config.width), torch.randn(BATCH, QUERIES, config.width)


def near(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("plans", [None, WAYS], ids=["cublas", "mixed"])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_it_computes_what_the_plain_backbone_does(causal, plans):
    plain, fused, prefix, queries = made(BackboneConfig(64, 3, 2, 48, causal=causal), plans)
    before = prefix.clone(), queries.clone()
    keys, values, hidden = fused.prefill(prefix, MASK, room=QUERIES)
    wanted_keys, wanted_values, wanted = plain.prefill(prefix, MASK)
    assert near(hidden[MASK], wanted[MASK])
    for got, own in zip(keys + values, wanted_keys + wanted_values, strict=True):
        assert near(got.transpose(1, 2)[MASK], own.transpose(1, 2)[MASK])
    for start in (None, PREFIX + 5):
        wanted = plain.decode(queries, wanted_keys, wanted_values, MASK, SEES, start)
        assert near(fused.decode(queries, keys, values, MASK, SEES, start), wanted)
    assert torch.equal(prefix, before[0]) and torch.equal(queries, before[1])  # arguments stay as they were


def test_packing_again_moves_nothing():
    """Another engine packs the backbone that it shares; graphs that were captured before hold the addresses."""
    _, fused, _, _ = made()

    def addresses() -> list[int]:
        packed = [getattr(layer, field.name) for layer in fused.packed for field in fields(layer)]
        return [tensor.data_ptr() for tensor in (fused.cos, fused.sin, *packed, *fused.parameters())]

    before = addresses()
    fused.pack()
    fused.to("cpu")
    assert addresses() == before


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("start", [None, PREFIX + 3])
@torch.no_grad()
def test_riding_along_is_prefill_then_decode(causal, start):
    plain, fused, prefix, queries = made(BackboneConfig(64, 3, 2, 48, causal=causal))
    keys, _, hidden = plain.prefill(prefix, MASK)
    for backbone in (plain, fused):
        done = backbone.joint(prefix, MASK, queries, SEES, start)
        keys, values, hidden = backbone.prefill(prefix, MASK)
        assert near(done.hidden[MASK], hidden[MASK])
        assert near(done.queries, backbone.decode(queries, keys, values, MASK, SEES, start))
        assert all(near(got, own) for got, own in zip(done.keys, keys, strict=True))
    assert near(fused.joint(prefix, MASK, queries, SEES, start).queries, done.queries)


def test_nothing_is_stored_twice_and_names_stay():
    plain, fused, _, _ = made()
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True))
    for layer, packed in zip(fused.layers, fused.packed, strict=True):
        attend, mlp = layer.self_attn, layer.mlp
        assert attend.q_proj.weight.data_ptr() == packed.qkv.data_ptr()
        assert attend.v_proj.weight.data_ptr() == packed.qkv[128:].data_ptr()
        assert mlp.up_proj.weight.data_ptr() == packed.gate_up[48:].data_ptr()
    fused.load_state_dict(made()[0].state_dict())
    assert torch.equal(fused.packed[0].qkv[64:128], fused.layers[0].self_attn.k_proj.weight)
    pointer = fused.packed[0].qkv.data_ptr()
    fused.pack()
    assert fused.packed[0].qkv.data_ptr() == pointer


@torch.no_grad()
def test_weights_that_move_are_packed_anew():
    plain, fused, prefix, _ = made()
    fused.double().float()
    assert fused.cos.dtype == torch.float32
    assert near(fused.prefill(prefix, MASK)[2][MASK], plain.prefill(prefix, MASK)[2][MASK])
    for parameter in fused.parameters():
        parameter.data = parameter.data * 0.5
    fused.pack()
    assert torch.equal(fused.packed[1].gate_up[:48], fused.layers[1].mlp.gate_proj.weight)


def test_with_gradients_it_is_the_plain_backbone():
    plain, fused, prefix, queries = made()
    keys, values, hidden = fused.prefill(prefix, MASK)
    fused.decode(queries, keys, values, MASK, SEES).sum().backward()
    assert fused.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert torch.equal(hidden, plain.prefill(prefix, MASK)[2])


def test_positions_behind_the_table_are_refused():
    _, fused, _, queries = made()
    with torch.no_grad(), pytest.raises(ValueError, match="got 6 tokens from position 30, expected at most 22"):
        fused.decode(queries, [], [], MASK, SEES, 30)


def test_on_a_cpu_the_backbone_stays_plain():
    plain, _, _, _ = made()
    assert fuse_backbone(plain, 20) is plain


@torch.no_grad()
def test_one_that_was_fused_is_packed_anew_after_its_weights_were_cast():
    plain, fused, prefix, queries = made()
    for model in (plain, fused):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
    for positions in (PREFIX, fused.positions + 1):
        again = fuse_backbone(fused, positions)
        assert isinstance(again, FusedBackbone) and again.positions >= positions
        keys, values, _ = again.prefill(prefix, MASK)
        wanted = plain.decode(queries, *plain.prefill(prefix, MASK)[:2], MASK, SEES)
        assert near(again.decode(queries, keys, values, MASK, SEES), wanted)
