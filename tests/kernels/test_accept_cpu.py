"""The C++ backend of `accept_` against the reference: the same bits, except where an exponential is summed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rsd_fast.kernels.accept import AcceptParams
from tests.kernels.accept_cases import INTEGER_BUFFERS, Case, cases, random_case

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYER = AcceptParams(4, "layer", "distance", 5, 0.0, "main", "middle", False, 0.0)
INT32 = torch.iinfo(torch.int32)


def assert_same(got: Case, wanted: Case) -> None:
    for name in INTEGER_BUFFERS:
        assert torch.equal(getattr(got.state, name), getattr(wanted.state, name)), name
    if got.params.expected:
        torch.testing.assert_close(got.state.latents, wanted.state.latents, rtol=1e-6, atol=2e-6)
    else:
        assert torch.equal(got.state.latents, wanted.state.latents)
    if got.actions is not None:
        torch.testing.assert_close(got.actions, wanted.actions, rtol=1e-5, atol=2e-5, equal_nan=True)


def with_strides(logits: Tensor, kind: str) -> Tensor:
    """The same numbers, laid out as heads lay them out, or as nobody would."""
    if kind == "steps first":  # [B, T, L, D, V] in memory
        return logits.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "levels first":
        return logits.movedim(-1, 1).contiguous().movedim(1, -1)
    if kind == "dims first":
        return logits.movedim(3, 1).contiguous().movedim(1, 3)
    if kind == "padded":  # a slice of a larger vocabulary, and of every other step
        batch, layers, steps, dims, levels = logits.shape
        wide = torch.full((batch, layers, 2 * steps, dims, levels + 3), torch.nan, dtype=logits.dtype)
        view = wide[:, :, ::2, :, 1 : levels + 1]
        view.copy_(logits)
        return view
    if kind == "one for all":  # stride 0
        return logits[:1].expand_as(logits) if logits.shape[0] else logits
    return logits


LAYOUTS = ["contiguous", "steps first", "levels first", "dims first", "padded", "one for all"]


@given(cases(dtypes=FLOATS), st.sampled_from(LAYOUTS))
@settings(max_examples=300)
def test_same_as_the_reference(case, layout):
    case = replace(case, logits=with_strides(case.logits, layout))
    assert_same(case.run("cpu"), case.run("reference"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("granularity", ["element", "layer", "all"])
@pytest.mark.parametrize("sizes", [(3, 8, 8, 16, 7), (2, 3, 8, 7, 5), (1, 16, 64, 32, 32)])
def test_shapes_of_real_heads(sizes, granularity, dtype, layout):
    if sizes[1] == 16 and (layout, dtype) != ("contiguous", torch.bfloat16):
        sizes = (1, 16, 9, 32, 32)  # the largest shape once, many odd ones
    elements = sizes[2] * sizes[3]
    params = replace(LAYER, stop=sizes[1] - 1, granularity=granularity, need=elements // 2)
    case = random_case(params, sizes, seed=sizes[1], dtype=dtype, broken=0.02, hidden=64)
    case = replace(case, logits=with_strides(case.logits, layout))
    assert_same(case.run("cpu"), case.run("reference"))


@given(cases(dtypes=FLOATS), st.sampled_from([0.1, 1.0]), st.integers(0, 99))
@settings(max_examples=100)
def test_broken_logits_also_where_codes_are_sampled(case, share, seed):
    generator = torch.Generator().manual_seed(seed)
    for value in (torch.nan, -torch.inf):
        case.logits[torch.rand(case.logits.shape, generator=generator) < share / 2] = value
    assert_same(case.run("cpu"), case.run("reference"))


@given(cases(), st.sampled_from([INT32.min, INT32.min + 1, -1, 99, INT32.max]), st.integers(-2, 99))
@example(random_case(LAYER, (2, 4, 3, 2, 5), seed=0), INT32.min, 99)
@settings(max_examples=100)
def test_no_draft_is_hostile_enough(case, code, drafted):
    """Codes that are no level, and counts beyond all layers, in the first pass."""
    state = case.state
    state.codes[torch.rand(state.codes.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = code
    for buffer in (state.frontier, state.passes, state.finished):
        buffer.zero_()
    state.drafted.fill_(drafted)
    after = case.run("cpu")
    assert_same(after, case.run("reference"))
    decoded = after.state.codes[:, : case.params.stop]
    assert ((decoded >= 0) & (decoded < case.logits.shape[-1])).all()


def test_negative_slack_accepts_nothing():
    case = random_case(LAYER, (2, 4, 3, 2, 5), seed=0)
    case.slack.fill_(-1)
    assert_same(case.run("cpu"), case.run("reference"))
    assert (case.run("cpu").state.kept <= 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_of_many_samples_on_several_threads(temperature):
    """Every pass of the round; the first is large enough for two threads."""
    params = replace(LAYER, need=8 * 7 if temperature else 40, temperature=temperature, keep="draft", redraft="main")
    one = other = random_case(params, (150, 4, 8, 7, 16), seed=0, dtype=torch.bfloat16, with_probs=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            one, other = one.run("cpu"), other.run("reference")
            assert_same(one, other)
    finally:
        torch.set_num_threads(threads)
    assert one.state.finished.all()


def test_no_samples_no_work():
    case = random_case(LAYER, (0, 4, 3, 2, 5), seed=0)
    assert_same(case.run("cpu"), case)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_16_bit_logit_is_read_right(dtype):
    """All bit patterns (fp32: the same upper halves), two to a row: the argmax says which of them is larger."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    numbers = (bits << 16).view(torch.float32) if dtype is torch.float32 else bits.to(torch.int16).view(dtype)
    rows = torch.stack([numbers, numbers[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]], -1)
    params = AcceptParams(1, "all", "distance", 0, 0.0, "main", "none", False, 0.0)
    case = random_case(params, (1, 1, 256, 256, 2), seed=0, hidden=0)
    case = replace(case, logits=rows.view(1, 1, 256, 256, 2))
    assert_same(case.run("cpu"), case.run("reference"))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_the_action_decoder_over_the_range_of_mish(scale):
    case = random_case(replace(LAYER, granularity="all"), (5, 4, 13, 16, 7), seed=0, hidden=64)
    case.codebook.mul_(scale)
    got, wanted = case.run("cpu"), case.run("reference")
    size = float(wanted.actions.abs().max())
    torch.testing.assert_close(got.actions / size, wanted.actions / size, rtol=1e-5, atol=2e-6)


def test_without_decoder_actions_are_latents_and_without_actions_none_are_written():
    params = replace(LAYER, granularity="all")
    case = replace(random_case(params, (2, 4, 3, 2, 5), seed=0, hidden=0), decoder=None)
    after = case.run("cpu")
    assert torch.equal(after.actions, after.state.latents)
    assert replace(case, actions=None).run("cpu").actions is None
