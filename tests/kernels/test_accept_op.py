"""The torch.library op under `accept_`: what torch's own checker, its compiler and its aliasing rules say."""

from __future__ import annotations

from dataclasses import astuple, fields, replace

import pytest
import torch
from torch import Tensor

from rsd_fast.kernels.accept import AcceptParams, RoundState, accept_
from tests.kernels.accept_cases import Case, copy_state, random_case

OP = torch.ops.rsd_fast.accept_.default
LAYER = AcceptParams(3, "layer", "distance", 5, 0.0, "main", "middle", False, 0.0)
CASES = {
    "layer": random_case(LAYER, (2, 3, 3, 2, 5), seed=0, dtype=torch.bfloat16),
    "element": random_case(replace(LAYER, granularity="element", expected=True), (2, 3, 3, 2, 5), seed=1, hidden=0),
    "sampled": random_case(replace(LAYER, need=6, temperature=1.0), (2, 3, 3, 2, 5), seed=2, with_probs=True),
    "nothing": random_case(LAYER, (0, 3, 3, 2, 5), seed=3),
}
CASES["bare"] = replace(CASES["layer"], decoder=None, actions=None)


def flat(case: Case, backend: str) -> tuple:
    """The op's arguments, on a copy of what it writes."""
    state = copy_state(case.state)
    decoder = (None,) * 6 if case.decoder is None else case.decoder.tensors()
    actions = None if case.actions is None else torch.zeros_like(case.actions)
    buffers = [getattr(state, field.name) for field in fields(RoundState)]
    inputs = (case.codebook, case.slack, case.uniforms, case.draft_probs)
    return (case.logits, *buffers, *inputs, *decoder, actions, *astuple(case.params), backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, backend):
    results = torch.library.opcheck(OP, flat(CASES[name], backend))
    assert set(results.values()) == {"SUCCESS"}, results


@pytest.mark.parametrize("name", ["layer", "element", "sampled", "bare"])
def test_compiles_whole_and_stays_in_place(name):
    case = CASES[name]

    def step(logits: Tensor, state: RoundState, actions: Tensor | None) -> Tensor:
        accept_(
            logits * 1.0,
            state,
            case.codebook,
            case.slack,
            case.params,
            uniforms=case.uniforms,
            draft_probs=case.draft_probs,
            decoder=case.decoder,
            actions=actions,
        )
        return state.codes.sum() + state.finished.sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    state, actions = copy_state(case.state), None if case.actions is None else case.actions.clone()
    total = compiled(case.logits, state, actions)
    wanted = case.run("cpu")
    for field in fields(RoundState):
        assert torch.equal(getattr(state, field.name), getattr(wanted.state, field.name)), field.name
    assert int(total) == int(wanted.state.codes.sum() + wanted.state.finished.sum())
    if actions is not None:
        assert torch.equal(actions.nan_to_num(), wanted.actions.nan_to_num())


def test_writes_its_state_and_nothing_else():
    case = CASES["sampled"]
    arguments = flat(case, "cpu")
    before = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    OP(*arguments)
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in OP._schema.arguments]
    assert sum(written) == len(fields(RoundState)) + 1
    for name, old, new, may in zip((a.name for a in OP._schema.arguments), before, arguments, written, strict=True):
        if isinstance(old, Tensor):
            assert may or torch.equal(old, new), name
            assert old.shape == new.shape and old.dtype == new.dtype


def test_logits_that_ask_for_gradients_are_read_all_the_same():
    case = replace(CASES["layer"], logits=CASES["layer"].logits.float().requires_grad_())
    for backend in ("reference", "cpu"):
        after = case.run(backend)
        assert after.state.passes.tolist() == [1, 1]
        assert not after.state.latents.requires_grad
