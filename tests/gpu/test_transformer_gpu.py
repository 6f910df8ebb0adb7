"""The kernels of a Llama layer, and the fused backbone, on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsd_fast.kernels.registry import BACKENDS, pick
from rsd_fast.kernels.transformer import (
    AttentionTile,
    Plans,
    Tile,
    attention,
    code_queries,
    linear,
    rms_norm,
    rotary_cache_,
    swiglu,
    swiglu_linear,
)
from rsd_fast.kernels.transformer.reference import (
    attention_reference,
    code_queries_reference,
    linear_reference,
    rms_norm_reference,
    rotary_cache_reference_,
    swiglu_linear_reference,
    swiglu_reference,
)
from rsd_fast.models.backbone import Backbone, BackboneConfig
from rsd_fast.models.fused_backbone import FusedBackbone, fuse_backbone
from tests.kernels.transformer_cases import TILES, assert_near, attention_case, code_case, normal

pytestmark = pytest.mark.gpu

OLDER = torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HALF = DTYPES[:2]
GPU_TILES = (*TILES, Tile(64, 128, 64, stages=3), Tile(64, 128, 64, stages=3, swap=True), Tile(128, 64, 64, warps=8))
MODEL = BackboneConfig(width=512, depth=4, heads=4, mlp_width=1376)
PREFIX, QUERIES = 77, 24
# A table that sends every product of MODEL at few rows through the Triton kernels.
TRITON_PLANS = Plans(
    (
        {
            "linear 1536x512": {"64": {"block_m": 32, "block_n": 64, "block_k": 64}},
            "add 512x512": {"64": {"block_m": 32, "block_n": 64, "block_k": 64, "split": 4, "swap": True}},
            "swiglu 1376x512": {"64": {"block_m": 32, "block_n": 64, "block_k": 64}},
            "add 512x1376": {"64": {"block_m": 32, "block_n": 64, "block_k": 64, "split": 3}},
        },
    )
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_triton_is_what_runs_on_a_gpu():
    for op in ("rms_norm", "swiglu", "rotary_cache", "attention", "linear", "swiglu_linear"):
        assert op in BACKENDS and pick(op, "cuda").name == "triton"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [None, 0, 1, 4])
@pytest.mark.parametrize("shape", [(3, 48), (2, 5, 1000), (64, 4096)])
def test_rms_norm(shape, parts, dtype, generator):
    x, weight = normal(generator, *shape, dtype=dtype).cuda(), normal(generator, shape[-1], dtype=dtype).cuda()
    delta = None
    if parts is not None:
        kind = torch.float32 if parts else dtype
        delta = normal(generator, *((parts,) if parts else ()), *shape, dtype=kind).cuda()
    summed, normed = rms_norm(x, weight, 1e-5, delta)
    wanted, _ = rms_norm_reference(x.float(), weight.float(), 1e-5, delta)
    assert_near(summed, wanted, dtype, 4)
    _, wanted = rms_norm_reference(summed.float(), weight.float(), 1e-5)
    assert_near(normed, wanted, dtype, shape[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 34), (64, 22016)])
def test_swiglu(shape, dtype, generator):
    gate_up = normal(generator, *shape, dtype=dtype, scale=4).cuda()
    assert_near(swiglu(gate_up), swiglu_reference(gate_up.float()), dtype, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "head_dim"), [(11, 32), (1, 64), (130, 128)])
def test_rotary_cache(tokens, head_dim, dtype):
    case = attention_case(0, tokens=tokens, head_dim=head_dim, dtype=dtype).to("cuda")
    cache = torch.full((2, 2, 2, tokens + 3, head_dim), torch.nan, dtype=dtype, device="cuda")
    rotary_cache_(case.qkv, case.cos, case.sin, *(side[:, :, :tokens] for side in cache))
    wanted = torch.empty(2, 2, 2, tokens, head_dim, device="cuda")
    rotary_cache_reference_(case.qkv.float(), case.cos, case.sin, *wanted)
    assert torch.isnan(cache[..., tokens:, :]).all()
    assert_near(cache[..., :tokens, :], wanted, dtype, 4)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("tile", GPU_TILES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(8, 64, 128), (17, 40, 200), (70, 130, 48), (64, 512, 1376)])
def test_linear(rows, columns, inner, tile, dtype, generator):
    x = normal(generator, rows, inner, dtype=dtype).cuda()
    weight = normal(generator, columns, inner, dtype=dtype, scale=inner**-0.5).cuda()
    got = linear(x, weight, tile)
    if tile.split > 1:
        assert got.dtype == torch.float32 and len(got) == tile.split
        got = got.sum(0).to(dtype)
    assert_near(got, linear_reference(x.double(), weight.double()), dtype, inner)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("tile", [tile for tile in GPU_TILES if tile.split == 1], ids=str)
@pytest.mark.parametrize(("rows", "columns", "inner"), [(8, 64, 128), (17, 40, 200), (64, 1376, 512)])
def test_swiglu_linear(rows, columns, inner, tile, dtype, generator):
    x = normal(generator, rows, inner, dtype=dtype).cuda()
    weight = normal(generator, 2 * columns, inner, dtype=dtype, scale=inner**-0.5).cuda()
    wanted = swiglu_linear_reference(x.float(), weight.float())
    assert_near(swiglu_linear(x, weight, tile), wanted, dtype, 4 * inner)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("tile", [(16, 64, 1), (32, 64, 3), (64, 32, 2), (32, 128, 1)], ids=str)
@pytest.mark.parametrize(("tokens", "cached", "head_dim"), [(24, 545, 128), (64, 77, 64), (8, 1, 32), (33, 130, 128)])
def test_a_pass(tokens, cached, head_dim, tile, dtype):
    case = attention_case(1, tokens=tokens, cached=cached, head_dim=head_dim, dtype=dtype).to("cuda")
    got = attention(*case.arguments(), tile=AttentionTile(*tile))
    assert_attends(got, case.arguments())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tile", [(64, 64), (128, 64)], ids=str)
@pytest.mark.parametrize(("tokens", "head_dim"), [(545, 128), (70, 64)])
def test_a_prefill(tokens, head_dim, tile, causal, dtype):
    case = attention_case(2, tokens=tokens, cached=tokens, head_dim=head_dim, new=False, causal=causal, dtype=dtype)
    case = case.to("cuda")
    assert_attends(attention(*case.arguments(), tile=AttentionTile(*tile)), case.arguments())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(2, 3, 8, 7, 5, 256), (1, 8, 8, 16, 7, 4096), (3, 1, 2, 3, 5, 16)], ids=str)
def test_code_queries(sizes, dtype, generator):
    codes, table, base, levels = code_case(sizes, dtype, generator)
    codes, table, base = codes.cuda(), table.cuda(), base.cuda()
    wanted = code_queries_reference(codes, table.double(), base.double(), levels)
    assert_near(code_queries(codes, table, base, levels), wanted, dtype, 200)


def assert_attends(got: Tensor, arguments: tuple) -> None:
    """At most twice as far from float32 as torch's own attention on the same inputs in the same dtype."""
    wide = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    wanted = attention_reference(*wide)
    near = F.cosine_similarity(got.double().flatten(), wanted.double().flatten(), 0)
    rounded = (attention_reference(*arguments).float() - wanted).abs().max()
    assert torch.isfinite(got).all() and near > 0.9999
    assert (got.float() - wanted).abs().max() <= 4 * rounded


@pytest.mark.parametrize("split", [1, 2])
def test_a_token_that_sees_nothing_gets_zeros(split):
    case = attention_case(4, tokens=4, cached=20, dtype=torch.bfloat16).to("cuda")
    case.key_mask[0] = False
    case.new_mask[1] = False
    got = attention(*case.arguments(), tile=AttentionTile(16, 32, split=split))
    assert torch.equal(got[0, 1], torch.zeros(64, device="cuda", dtype=got.dtype)) and torch.isfinite(got).all()


# ---- the backbone


def backbones(config: BackboneConfig = MODEL, plans: Plans | None = TRITON_PLANS) -> tuple[Backbone, FusedBackbone]:
    torch.manual_seed(0)
    plain, again = Backbone(config).cuda().eval(), Backbone(config).cuda().eval()
    again.load_state_dict(plain.state_dict())
    for parameter in again.parameters():
        parameter.data = parameter.data.bfloat16()
    plain.load_state_dict(again.state_dict())  # float32, of the same weights
    return plain, FusedBackbone(again, PREFIX + 2 * QUERIES, plans)


def tensors(width: int = MODEL.width, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(batch, PREFIX, dtype=torch.bool, device="cuda")
    mask[-1, 30:40] = False
    layer = torch.arange(QUERIES, device="cuda") // 8
    prefix, queries = (torch.randn(batch, n, width, device="cuda").bfloat16() for n in (PREFIX, QUERIES))
    return prefix, mask, queries, layer[:, None] >= layer[None]


def cosine(got: Tensor, wanted: Tensor) -> float:
    return F.cosine_similarity(got.double().flatten(), wanted.double().flatten(), 0).item()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("plans", [TRITON_PLANS, Plans(), None], ids=["triton", "cublas", "package"])
@torch.inference_mode()
def test_every_stage_is_near_the_plain_backbone_in_float32(plans, causal):
    plain, fused = backbones(BackboneConfig(**{**vars(MODEL), "causal": causal}), plans)
    prefix, mask, queries, sees = tensors()
    keys, values, hidden = fused.prefill(prefix, mask)
    wide_keys, wide_values, wide = plain.prefill(prefix.float(), mask)
    assert cosine(hidden[mask], wide[mask]) > 0.9995
    for got, own in zip(keys + values, wide_keys + wide_values, strict=True):
        assert cosine(got.transpose(1, 2)[mask], own.transpose(1, 2)[mask]) > 0.9995
    wanted = plain.decode(queries.float(), wide_keys, wide_values, mask, sees)
    assert cosine(fused.decode(queries, keys, values, mask, sees), wanted) > 0.9995
    done = fused.joint(prefix, mask, queries, sees)
    assert cosine(done.hidden[mask], wide[mask]) > 0.9995 and cosine(done.queries, wanted) > 0.9995


def replay(run: Callable[[], Tensor]) -> Tensor:
    """The result of the second replay, into poisoned memory."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    graph.replay()
    result.fill_(torch.nan)
    graph.replay()
    return result.clone()


@pytest.mark.parametrize("plans", [TRITON_PLANS, Plans()], ids=["triton", "cublas"])
@torch.inference_mode()
def test_replays_and_repetitions_are_the_ungraphed_kernels_to_the_bit(plans):
    _, fused = backbones(plans=plans)
    prefix, mask, queries, sees = tensors()
    keys, values, _ = fused.prefill(prefix, mask)
    stages = {
        "prefill": lambda: fused.prefill(prefix, mask)[2],
        "pass": lambda: fused.decode(queries, keys, values, mask, sees),
        "joint": lambda: fused.joint(prefix, mask, queries, sees).queries,
    }
    for name, run in stages.items():
        wanted = run()
        assert all(torch.equal(run(), wanted) for _ in range(5)), name
        assert torch.equal(replay(run), wanted), name


@pytest.mark.skipif(OLDER, reason="kernels start early from sm_90 on")
@pytest.mark.parametrize("ahead", [0, 2**20])
@pytest.mark.parametrize("plans", [TRITON_PLANS, Plans()], ids=["triton", "cublas"])
@torch.inference_mode()
def test_kernels_that_start_early_change_no_bit(plans, ahead):
    _, fused = backbones(plans=plans)
    early = FusedBackbone(fused, fused.positions, plans, ahead)
    prefix, mask, queries, sees = tensors()
    keys, values, hidden = fused.prefill(prefix, mask)
    wanted = fused.decode(queries, keys, values, mask, sees)
    for _ in range(20):
        assert torch.equal(early.prefill(prefix, mask)[2], hidden)
        assert torch.equal(early.decode(queries, keys, values, mask, sees), wanted)
    assert torch.equal(replay(lambda: early.decode(queries, keys, values, mask, sees)), wanted)
    assert torch.equal(replay(lambda: early.prefill(prefix, mask)[2]), hidden)


@torch.inference_mode()
def test_codes_above_change_nothing_below_to_the_bit():
    """Layers of queries see lower ones only: changing the last eight queries changes no earlier row."""
    _, fused = backbones()
    prefix, mask, queries, sees = tensors()
    keys, values, _ = fused.prefill(prefix, mask)
    before = fused.decode(queries, keys, values, mask, sees)
    changed = queries.clone()
    changed[:, 16:] += 1
    after = fused.decode(changed, keys, values, mask, sees)
    assert torch.equal(after[:, :16], before[:, :16]) and not torch.equal(after[:, 16:], before[:, 16:])


def test_packing_stores_nothing_twice():
    plain = Backbone(MODEL).cuda().bfloat16()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    fused = fuse_backbone(plain, 200)
    assert isinstance(fused, FusedBackbone)
    assert torch.cuda.memory_allocated() - before < 2**20
    assert fuse_backbone(fused, 200) is fused
