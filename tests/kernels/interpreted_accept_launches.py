"""Launches of the accept kernel, run by `test_accept_launches_triton.py` in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from rsd_fast.kernels.accept import RoundState
from rsd_fast.kernels.accept.triton import accept_triton_
from rsd_fast.kernels.accept.triton_launch import Launch, largest_pack
from tests.kernels.accept_cases import Case, random_case
from tests.kernels.interpreted_accept import DTYPES, case_of, pytestmark, strided  # noqa: F401 -- the mark is used
from tests.kernels.test_accept_reference import assert_same


def launched(case: Case, launch: Launch) -> Case:
    """As `Case.run`, with a launch of one's own."""
    return case.after(accept_triton_, launch=launch)


LAUNCHES = [  # samples, pack, eager, warps, unroll
    Launch(2, 1, False, 1, 1),
    Launch(1, 2, False, 1, 3),
    Launch(4, 2, False, 1, 2),
    Launch(2, 4, False, 1, 1),
    Launch(8, 4, False, 1, 3),
    Launch(2, 2, True, 1, 1),
    Launch(4, 4, True, 1, 3),
    Launch(4, 2, True, 1, 3, late=True),
]
# B is no multiple of a program's samples; elements fill their power of two, or leave some of it.
BLOCKED = ((5, 3, 2, 2, 5), (3, 4, 3, 4, 7), (7, 2, 2, 6, 3))


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
@pytest.mark.parametrize("mid_round", [False, True])
@pytest.mark.parametrize("granularity", ["element", "layer", "all"])
def test_samples_of_a_program_do_not_mix(granularity, mid_round, launch):
    """Finished and unfinished samples, first and later passes, drafts of every length in one program."""
    for seed, sizes in enumerate(BLOCKED):
        rule, hidden = ("distance", "typical")[seed % 2], (0, 5, 0)[seed]
        params, _ = case_of(sizes, granularity=granularity, rule=rule, log_tau=-0.5, expected=seed == 1, need=3)
        case = random_case(params, sizes, seed, dtype=DTYPES[seed], ties=True, hidden=hidden, mid_round=mid_round)
        if launch.pack <= largest_pack(case.logits):
            assert_same(launched(case, launch), case.run("reference"))


@pytest.mark.parametrize("keep", ["main", "draft"])
@pytest.mark.parametrize("hidden", [0, 5, 20])
@pytest.mark.parametrize("dims", [6, 16])
def test_the_decoder_of_several_samples(dims, hidden, keep):
    params, sizes = case_of((5, 3, 2, dims, 5), granularity="layer", keep=keep, need=3)
    case = random_case(params, sizes, dims, hidden=hidden, ties=True, mid_round=True)
    case.state.codes[:2], case.state.frontier[:2] = -1, 0  # no levels, and none of them final
    assert_same(launched(case, Launch(4, 2, False, 1, 1)), case.run("reference"))


def test_sampling_in_a_program_of_several():
    params, sizes = case_of((5, 3, 2, 3, 5), granularity="layer", temperature=0.7, need=6)
    case = random_case(params, sizes, 1, with_probs=True, mid_round=True)
    assert_same(launched(case, Launch(4, 1, False, 1, 1)), case.run("reference"))


def test_more_layers_than_a_word_holds():
    params, sizes = case_of((3, 16, 1, 2, 9), granularity="layer", keep="draft", need=1)
    case = random_case(params, sizes, 2, ties=True, mid_round=True)
    assert_same(launched(case, Launch(2, 2, False, 1, 1)), case.run("reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["distance", "typical"])
def test_every_pack_reads_the_same(rule, dtype):
    """Words of two and four elements, single logits, and single logits of another layout: bit for bit."""
    params, sizes = case_of((3, 3, 2, 6, 7), rule=rule, log_tau=-0.5, expected=True)
    case = random_case(params, sizes, 3, dtype=dtype, ties=True, broken=0.2)
    wanted = launched(case, Launch(1, 1, False, 1, 1))
    others = [launched(case, Launch(2, pack, False, 1, 1)) for pack in (2, 4) if pack <= largest_pack(case.logits)]
    others += [launched(replace(case, logits=strided(case.logits, "layers last")), Launch(2, 1, True, 1, 1))]
    assert len(others) == (2 if dtype is torch.float32 else 3)
    for other in others:
        for field in fields(RoundState):
            got = getattr(other.state, field.name)
            torch.testing.assert_close(got, getattr(wanted.state, field.name), rtol=0, atol=0, equal_nan=True)


def test_launches_that_do_not_fit():
    params, sizes = case_of((2, 3, 2, 6, 7))
    case = random_case(params, sizes, 4)
    with pytest.raises(ValueError, match="got pack 4, expected at most 2"):
        launched(case, Launch(1, 4, False, 1, 1))
    with pytest.raises(ValueError, match="got 4 warps, expected at most 1"):
        launched(case, Launch(1, 1, False, 4, 1))
