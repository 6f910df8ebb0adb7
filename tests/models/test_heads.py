"""The heads inside a main model: which codes a layer's logits depend on, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rsd_fast.codec import CodecConfig, codec_preset
from rsd_fast.models.heads import HeadConfig, HierarchicalHead
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.main import MainModel
from rsd_fast.observation import build_inputs
from tests.policies import INSTRUCTIONS, STEPS, observation, tiny_policy

CODECS = {"redundant": CodecConfig(), "original": codec_preset("original")}
MAINS = {name: tiny_policy(None, config).main for name, config in CODECS.items()}


def inputs_of(main: MainModel, batch: int) -> PolicyInputs:
    observations = [observation(seed) for seed in range(batch)]
    return build_inputs(observations, [INSTRUCTIONS[row % 3] for row in range(batch)], main.config, main.tokenizer)


@torch.inference_mode()
def prefix_of(main: MainModel, batch: int, in_place: bool = True) -> Prefix:
    return main.prefill(inputs_of(main, batch), in_place=in_place)


PREFIXES = {(name, batch): prefix_of(main, batch) for name, main in MAINS.items() for batch in (1, 3, 16)}


def random_codes(main: MainModel, batch: int, seed: int) -> Tensor:
    head = main.config.head
    shape = (batch, head.layers, head.steps, head.latent_dims)
    return torch.randint(0, head.levels, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


@given(
    st.sampled_from(list(CODECS)),
    st.sampled_from([1, 3, 16]),
    st.integers(0, 7),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 20),
)
@settings(max_examples=60)
@torch.inference_mode()
def test_logits_of_a_layer_do_not_change_by_a_bit_when_its_own_or_higher_codes_do(name, batch, layer, seed, other):
    main, prefix = MAINS[name], PREFIXES[name, batch]
    layer %= main.config.head.layers
    codes = random_codes(main, batch, seed)
    changed = torch.cat([codes[:, :layer], random_codes(main, batch, other)[:, layer:]], 1)
    before, after = main.decode(prefix, codes), main.decode(prefix, changed)
    assert before.shape == (batch, *codes.shape[1:], main.config.head.levels)
    assert torch.equal(before[:, : layer + 1], after[:, : layer + 1])
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("name", CODECS)
@torch.inference_mode()
def test_every_lower_code_counts_at_every_step_above(name: str):
    main, prefix = MAINS[name], PREFIXES[name, 1]
    head = main.config.head
    codes = random_codes(main, 1, 0)
    before = main.decode(prefix, codes)
    for layer in range(head.layers - 1):
        for step, dim in ((0, 0), (head.steps - 1, head.latent_dims - 1)):
            changed = codes.clone()
            changed[0, layer, step, dim] = (changed[0, layer, step, dim] + 1) % head.levels
            moved = (main.decode(prefix, changed) - before).abs().amax((-1, -2))[0]  # [L, T]
            assert (moved[: layer + 1] == 0).all() and (moved[layer + 1 :] > 0).all()


@torch.inference_mode()
def test_the_parallel_head_reads_no_codes():
    main, prefix = MAINS["redundant"], PREFIXES["redundant", 3]
    logits = [main.decode(prefix, random_codes(main, 3, seed), "parallel") for seed in range(2)]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], main.decode(prefix, random_codes(main, 3, 0)))


@pytest.mark.parametrize("head", ["hierarchical", "parallel"])
@torch.inference_mode()
def test_a_row_is_the_row_alone_but_for_rounding_and_depends_on_its_own_observation(head: str):
    main, prefix = MAINS["redundant"], PREFIXES["redundant", 3]
    codes = random_codes(main, 3, 5)
    together = main.decode(prefix, codes, head)
    for row in range(3):
        inputs = inputs_of(main, 3)[row : row + 1]
        alone = main.decode(main.prefill(inputs), codes[row : row + 1], head)
        assert torch.allclose(alone[0], together[row], atol=1e-4)
    same_codes = main.decode(prefix, codes[:1].expand(3, -1, -1, -1), head)
    assert not torch.allclose(same_codes[0], same_codes[1], atol=1e-2)


def test_layers_and_steps_are_ordered_layer_first_and_causal_across_layers():
    mask = HierarchicalHead(HeadConfig(steps=2, layers=3, latent_dims=1, levels=2), 8).query_mask()
    layer = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(mask, layer[:, None] >= layer[None])


def test_one_layer_needs_no_codes_at_all():
    main = tiny_policy(None, CodecConfig(layers=1)).main
    prefix = prefix_of(main, 2)
    with torch.inference_mode():
        logits = main.decode(prefix, random_codes(main, 2, 0))
    assert logits.shape == (2, 1, STEPS, 7, 5)
