"""Run by `test_accept_triton.py` in a process with TRITON_INTERPRET=1; not collected by its name."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings

from rsd_fast.kernels.accept import AcceptParams, RoundState
from tests.kernels.accept_cases import Case, cases, random_case
from tests.kernels.test_accept_reference import assert_same

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/kernels/test_accept_triton.py"
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
]

GREEDY = AcceptParams(3, "element", "distance", 1, 0.0, "main", "middle", False, 0.0)
SIZES = ((2, 4, 3, 5, 7), (3, 2, 5, 1, 2), (1, 3, 1, 7, 20), (2, 5, 2, 2, 17), (1, 1, 1, 1, 1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def assert_agrees(case: Case) -> None:
    assert_same(case.run("triton"), case.run("reference"))


def case_of(sizes: tuple[int, int, int, int, int], **changes) -> tuple[AcceptParams, tuple[int, ...]]:
    elements = sizes[2] * sizes[3]
    return replace(GREEDY, stop=sizes[1], **{"need": max(1, elements - 1), **changes}), sizes


@pytest.mark.parametrize("mid_round", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["distance", "typical"])
@pytest.mark.parametrize("granularity", ["element", "layer", "all"])
def test_every_rule_granularity_and_dtype(granularity, rule, dtype, mid_round):
    for seed, sizes in enumerate(SIZES):
        params, _ = case_of(sizes, granularity=granularity, rule=rule, log_tau=-0.5, expected=seed % 2 == 0)
        assert_agrees(random_case(params, sizes, seed, dtype=dtype, ties=True, broken=0.1, mid_round=mid_round))


@pytest.mark.parametrize("keep", ["main", "draft"])
@pytest.mark.parametrize("redraft", ["none", "main", "middle"])
@pytest.mark.parametrize("hidden", [0, 5, 20])
def test_keep_redraft_and_decoders(keep, redraft, hidden):
    for dims in (5, 16):  # below and from 16 terms on the decoder multiplies in two ways
        params, sizes = case_of((3, 3, 2, dims, 5), granularity="layer", keep=keep, redraft=redraft, need=3)
        assert_agrees(random_case(params, sizes, dims, hidden=hidden, ties=True))


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("granularity", ["element", "layer", "all"])
def test_stopping_early(stop, granularity):
    params = replace(GREEDY, stop=stop, granularity=granularity, need=4)
    for seed in range(3):
        assert_agrees(random_case(params, (4, 4, 2, 3, 5), seed, mid_round=seed == 2))


@pytest.mark.parametrize("mid_round", [False, True])
@pytest.mark.parametrize("with_probs", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.7])
def test_sampling(temperature, with_probs, mid_round):
    for seed, sizes in enumerate(SIZES[:3]):
        elements = sizes[2] * sizes[3]
        params, _ = case_of(sizes, granularity="layer", temperature=temperature, need=elements)
        assert_agrees(random_case(params, sizes, seed, with_probs=with_probs, mid_round=mid_round))


def strided(logits: torch.Tensor, kind: str) -> torch.Tensor:
    """The same values in another layout."""
    if kind == "levels apart":
        return torch.stack([logits, logits + 1], -1)[..., 0]
    if kind == "layers last":
        return logits.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    if kind == "batch last":
        return logits.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    padded = torch.full((*logits.shape[:4], logits.shape[4] + 3), math.inf, dtype=logits.dtype)
    padded[..., 2:-1] = logits
    return padded[..., 2:-1]


@pytest.mark.parametrize("kind", ["levels apart", "layers last", "batch last", "padded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["distance", "typical"])
def test_any_strides(kind, dtype, rule):
    params, sizes = case_of((2, 3, 3, 4, 5), rule=rule, log_tau=-0.5, expected=True)
    case = random_case(params, sizes, 1, dtype=dtype)
    other = replace(case, logits=strided(case.logits, kind))
    assert not other.logits.is_contiguous() and torch.equal(other.logits, case.logits)
    assert_same(other.run("triton"), case.run("reference"))


def test_equal_logits_of_one_stride_zero():
    params, sizes = case_of((2, 3, 2, 3, 5))
    case = random_case(params, sizes, 2)
    assert_agrees(replace(case, logits=case.logits[:, :, :1, :1].expand(sizes)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["distance", "typical"])
def test_rows_without_a_number(value, rule):
    params, sizes = case_of((2, 3, 2, 3, 5), rule=rule, log_tau=-0.5)
    case = random_case(params, sizes, 3)
    case.logits.fill_(value)
    assert_agrees(case)


@pytest.mark.parametrize("code", [-(2**31), -1, 5, 2**31 - 1])
@pytest.mark.parametrize("granularity", ["element", "layer"])
@pytest.mark.parametrize("rule", ["distance", "typical"])
def test_drafts_that_are_no_level(code, granularity, rule):
    params, sizes = case_of((2, 3, 2, 3, 5), granularity=granularity, rule=rule, keep="draft", need=0)
    case = random_case(params, sizes, 4, slack=2)
    case.state.codes[:, :2] = code
    assert_agrees(case)


@given(cases(dtypes=DTYPES))
@settings(max_examples=60)
def test_calls_of_every_kind(case):
    if case.logits.shape[0] > 0:
        assert_agrees(case)


def test_a_finished_sample_is_not_touched():
    params, sizes = case_of((3, 3, 2, 3, 5))
    case = random_case(params, sizes, 5, mid_round=True)
    case.state.finished.fill_(1)
    after = case.run("triton")
    for field in fields(RoundState):
        assert torch.equal(getattr(after.state, field.name), getattr(case.state, field.name)), field.name
    assert after.actions.isnan().all()


def test_an_interpreted_kernel_is_not_compiled():
    from rsd_fast.kernels.compile_check import SHIPPED, compile_accept

    with pytest.raises(RuntimeError, match="got TRITON_INTERPRET=1"):
        compile_accept(SHIPPED[0], "layer", 80)
