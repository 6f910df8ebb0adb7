"""The backbone: a prefix encoded once and queries run against it are one joint forward pass, and it is a Llama."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rsd_fast.models.backbone import Backbone, BackboneConfig, rotary_table

CONFIG = BackboneConfig(width=32, depth=3, heads=2, mlp_width=48)
PREFIX, QUERIES, BATCH = 11, 6, 3
# A row of padding in the middle and at the end, as instructions of different lengths leave it.
MASK = torch.ones(BATCH, PREFIX, dtype=torch.bool)
MASK[1, 7:] = False
MASK[2, 10:] = False
SEES = torch.arange(QUERIES)[:, None] // 2 >= torch.arange(QUERIES)[None] // 2


def made(config: BackboneConfig = CONFIG) -> tuple[Backbone, Tensor, Tensor]:
    torch.manual_seed(0)
    backbone = Backbone(config).eval()
    return backbone, torch.randn(BATCH, PREFIX, config.width), torch.randn(BATCH, QUERIES, config.width)


def joint(backbone: Backbone, prefix: Tensor, queries: Tensor, prefix_sees: Tensor) -> Tensor:
    """All tokens at once, under one mask."""
    sees = torch.zeros(BATCH, PREFIX + QUERIES, PREFIX + QUERIES, dtype=torch.bool)
    sees[:, :PREFIX, :PREFIX] = prefix_sees & MASK[:, None]
    sees[:, PREFIX:, :PREFIX] = MASK[:, None]
    sees[:, PREFIX:, PREFIX:] = SEES
    x = torch.cat([prefix, queries], 1)
    rotary = rotary_table(backbone.config, torch.arange(PREFIX + QUERIES))
    for layer in backbone.layers:
        x, _, _ = layer(x, rotary, sees[:, None])
    return backbone.norm(x)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("room", [0, QUERIES, QUERIES + 5])
@torch.no_grad()
def test_decoding_against_a_prefix_is_a_joint_forward_pass(causal: bool, room: int):
    backbone, prefix, queries = made(BackboneConfig(32, 3, 2, 48, causal=causal))
    keys, values, hidden = backbone.prefill(prefix, MASK, room)
    assert len(keys) == 3 and keys[0].shape == values[0].shape == (BATCH, 2, PREFIX + room, 16)
    decoded = backbone.decode(queries, keys, values, MASK, SEES)
    again = backbone.decode(queries, keys, values, MASK, SEES)
    prefix_sees = torch.ones(PREFIX, PREFIX, dtype=torch.bool)
    whole = joint(backbone, prefix, queries, prefix_sees.tril() if causal else prefix_sees)
    assert torch.allclose(decoded, whole[:, PREFIX:], atol=1e-5)
    assert torch.equal(decoded, again)  # a pass leaves the prefix as it was
    assert torch.allclose(hidden[MASK], whole[:, :PREFIX][MASK], atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing_to_the_bit():
    backbone, prefix, queries = made()
    changed = torch.where(MASK[..., None], prefix, 7.0)
    results = []
    for x in (prefix, changed):
        keys, values, hidden = backbone.prefill(x, MASK)
        results.append((hidden[MASK], backbone.decode(queries, keys, values, MASK, SEES)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@torch.no_grad()
def test_the_position_of_the_queries_can_stay_where_padding_was_left_out():
    """An instruction cut to its words decodes as the padded one, if its queries keep their position."""
    backbone, prefix, queries = made()
    keep = slice(0, 7)
    rows = slice(1, 2)
    keys, values, _ = backbone.prefill(prefix[rows], MASK[rows])
    padded = backbone.decode(queries[rows], keys, values, MASK[rows], SEES)
    keys, values, _ = backbone.prefill(prefix[rows, keep], MASK[rows, keep])
    cut = backbone.decode(queries[rows], keys, values, MASK[rows, keep], SEES, start=PREFIX)
    moved = backbone.decode(queries[rows], keys, values, MASK[rows, keep], SEES)
    assert torch.allclose(cut, padded, atol=1e-5)
    assert not torch.allclose(moved, padded, atol=1e-3)


@torch.no_grad()
def test_it_is_transformers_llama_with_the_same_weights():
    from transformers import LlamaConfig, LlamaModel

    backbone, prefix, _ = made(BackboneConfig(32, 3, 2, 48, causal=True))
    config = LlamaConfig(
        vocab_size=1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=backbone.config.rms_eps,
    )
    llama = LlamaModel(config).eval()
    loaded = llama.load_state_dict(backbone.state_dict(), strict=False)
    assert loaded.missing_keys == ["embed_tokens.weight"] and not loaded.unexpected_keys
    theirs = llama(inputs_embeds=prefix, attention_mask=MASK.long()).last_hidden_state
    _, _, ours = backbone.prefill(prefix, MASK)
    assert torch.allclose(ours[MASK], theirs[MASK], atol=1e-4)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width 30 is not an even multiple of heads 4"):
        BackboneConfig(width=30, heads=4)
