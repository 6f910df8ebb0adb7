"""The reference of `accept_`: literal tables, a slow loop, exact distributions, and what it refuses."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from scipy.stats import chisquare

from rsd_fast.kernels.accept import AcceptParams, ActionDecoder, RoundState, accept_
from tests.kernels.accept_cases import INTEGER_BUFFERS, Case, cases, loop_accept, random_case

GREEDY = AcceptParams(3, "element", "distance", 1, 0.0, "main", "middle", False, 0.0)


def toy_case(main: list[list[int]], draft: list[list[int]], params: AcceptParams, slack: int = 0) -> Case:
    """One sample: main's choices and the draft, [L][elements]; V = 5, code v of layer l is worth v / 10^l."""
    choices = torch.tensor(main)
    layers, elements = choices.shape
    logits = -(torch.arange(5.0) - choices[..., None]).abs()[None, :, None]  # one level further: 1 less
    state = RoundState.new(1, layers, 1, elements)
    proposal = torch.tensor(draft, dtype=torch.int32).reshape(1, len(draft), 1, elements)
    state.begin_(proposal, len(draft), 2)
    codebook = (torch.arange(5.0) / 10.0 ** torch.arange(layers)[:, None])[:, None].expand(layers, elements, 5)
    actions = torch.full((1, 1, elements), torch.nan)
    table = torch.full((layers, elements), slack, dtype=torch.int32)
    return Case(logits, state, codebook.contiguous(), table, params, actions=actions)


# One element, L = 3: main's choices, draft of the two lowest layers, slack -> codes, frontier, kept.
WALKS = [
    ([1, 2, 3], [1, 2], 0, [1, 2, 3], 3, [1, 1]),  # all of it stands, main adds the last layer
    ([1, 3, 3], [1, 4], 0, [1, 3, 2], 2, [1, 0]),  # wrong in layer 1: main's code there, above it the middle
    ([1, 3, 3], [0, 3], 0, [1, 2, 2], 1, [0, 0]),  # wrong in layer 0: what agrees above does not count
    ([1, 2, 3], [0, 3], 1, [0, 3, 3], 3, [1, 1]),  # within one level is near enough
    ([1, 3, 3], [3, 3], 1, [1, 2, 2], 1, [0, 0]),
    ([1, 3, 3], [], 0, [1, 2, 2], 1, []),  # no draft: one layer a pass
    ([2, 3, 3], [], 0, [2, 3, 3], 1, []),  # what stood there was right: main's guesses are of the right cell
    ([1, 3, 3], [-1, 3], 4, [1, 2, 2], 1, [0, 0]),  # no level: never near
    ([1, 4, 3], [1, 5], 4, [1, 4, 2], 2, [1, 0]),
]


@pytest.mark.parametrize(("main", "draft", "slack", "codes", "frontier", "kept"), WALKS)
@pytest.mark.parametrize("granularity", ["element", "layer"])
def test_one_element_walks(granularity, main, draft, slack, codes, frontier, kept):
    params = replace(GREEDY, granularity=granularity)
    case = toy_case([[m] for m in main], [[c] for c in draft], params, slack)
    if not draft:
        case.state.begin_(None, 0, 2)
    after = case.run("reference")
    assert after.state.codes.flatten().tolist() == codes
    assert after.state.frontier.flatten().tolist() == [frontier]
    assert after.state.kept[0].tolist() == kept + [-1] * (3 - len(kept))
    assert after.state.finished.tolist() == [int(frontier == 3)]
    assert after.state.passes.tolist() == [1]
    assert after.state.drafted.tolist() == [2]
    value = sum(code / 10**layer for layer, code in enumerate(codes))
    assert after.state.latents.flatten().tolist() == pytest.approx([value])
    if frontier == 3:
        assert after.actions.flatten().tolist() == pytest.approx([value])
    else:
        assert after.actions.isnan().all()


@pytest.mark.parametrize(("redraft", "guesses"), [("main", [3, 3]), ("middle", [2, 2]), ("none", [3, 3])])
@pytest.mark.parametrize("granularity", ["element", "layer"])
def test_what_is_proposed_above_a_code_that_changed(granularity, redraft, guesses):
    case = toy_case([[1], [3], [3]], [[0], [3]], replace(GREEDY, granularity=granularity, redraft=redraft))
    after = case.run("reference")
    assert after.state.codes.flatten().tolist() == [1, *guesses]
    assert after.state.drafted.tolist() == [0 if redraft == "none" else 2]


# Two elements, L = 3, granularity layer; main chooses [1, 1], [3, 3], [4, 4].
LAYERS = [
    # draft of layers 0 and 1, need, keep -> codes, frontier, kept, agreed
    ([[1, 1], [3, 3]], 2, "main", [[1, 1], [3, 3], [4, 4]], 3, [2, 2], [2, 2]),
    ([[1, 1], [3, 4]], 2, "main", [[1, 1], [3, 3], [4, 2]], 2, [2, 0], [2, 1]),  # one of two is not enough
    ([[1, 1], [3, 4]], 1, "main", [[1, 1], [3, 3], [4, 2]], 3, [2, 1], [2, 1]),  # it is: the other takes main's
    ([[1, 1], [3, 4]], 1, "draft", [[1, 1], [3, 4], [4, 4]], 3, [2, 2], [2, 1]),  # or keeps the draft's
    ([[0, 1], [3, 3]], 1, "main", [[1, 1], [2, 3], [2, 4]], 3, [1, 2], [1, 2]),  # what refined the 0 goes
    ([[0, 0], [3, 3]], 1, "draft", [[1, 1], [2, 2], [2, 2]], 1, [0, 0], [0, 2]),  # the layer below comes first
    ([[1, 9], [3, 3]], 1, "draft", [[1, 1], [3, 2], [4, 2]], 3, [1, 2], [1, 2]),  # no level is never kept
]


@pytest.mark.parametrize(("draft", "need", "keep", "codes", "frontier", "kept", "agreed"), LAYERS)
def test_layers_are_accepted_whole(draft, need, keep, codes, frontier, kept, agreed):
    params = replace(GREEDY, granularity="layer", need=need, keep=keep)
    after = toy_case([[1, 1], [3, 3], [4, 4]], draft, params).run("reference")
    assert after.state.codes[0, :, 0].tolist() == codes
    assert after.state.frontier.flatten().tolist() == [frontier] * 2
    assert after.state.kept[0].tolist() == [*kept, -1]
    assert after.state.agreed[0].tolist() == [*agreed, -1]


@pytest.mark.parametrize(("log_tau", "frontier"), [(-0.5, 1), (-1.0, 3), (-2.0, 3)])
def test_typical_is_a_ratio_of_probabilities(log_tau, frontier):
    params = replace(GREEDY, rule="typical", log_tau=log_tau)  # every draft code is one level off: log ratio -1
    after = toy_case([[1], [2], [3]], [[2], [3]], params).run("reference")
    assert after.state.frontier.item() == frontier


@pytest.mark.parametrize(("need", "finished"), [(1, 1), (2, 1), (3, 0)])
def test_an_element_sample_finishes_with_a_share_and_guesses_the_rest(need, finished):
    main, draft = [[1, 1, 1], [3, 3, 3], [4, 4, 4]], [[1, 1, 0], [3, 3, 3]]
    after = toy_case(main, draft, replace(GREEDY, need=need)).run("reference")
    assert after.state.frontier.flatten().tolist() == [3, 3, 1]
    assert after.state.finished.tolist() == [finished]
    assert after.actions.isnan().all() != finished
    assert after.state.codes[0, :, 0].tolist() == [[1, 1, 1], [3, 3, 2], [4, 4, 2]]  # the middle of the new cell


def test_all_takes_every_layer_below_stop():
    params = replace(GREEDY, granularity="all", stop=2)
    after = toy_case([[1, 1], [2, 2], [3, 3]], [[4, 4]], params).run("reference")
    assert after.state.codes[0, :, 0].tolist() == [[1, 1], [2, 2], [2, 2]]  # layer 2 keeps the neutral code
    assert after.state.frontier.tolist() == [[[2, 2]]]
    assert after.state.finished.tolist() == [1]


def test_no_redraft_leaves_nothing_to_keep():
    after = toy_case([[1], [2], [3]], [[0], [2]], replace(GREEDY, redraft="none")).run("reference")
    assert after.state.drafted.tolist() == [0]


def test_the_expected_last_digit_only_where_the_layers_below_stood():
    case = toy_case([[1, 1], [2, 2], [2, 2]], [[1, 1], [2, 2]], replace(GREEDY, need=2, expected=True))
    case.logits[0, 2] = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf])  # the mean of levels 0 .. 3, the argmax 0
    stood = case.run("reference")
    assert stood.state.latents.flatten().tolist() == pytest.approx([1.215, 1.215])
    assert stood.state.codes[0, 2].tolist() == [[0, 0]]
    layer = replace(case, params=replace(case.params, granularity="layer", need=1))
    layer.state.codes[0, 1, 0, 1] = 4  # corrected in this pass: main's last digit was about another code
    corrected = replace(layer, params=replace(layer.params, redraft="main")).run("reference")
    assert corrected.state.latents.flatten().tolist() == pytest.approx([1.215, 1.2])


@pytest.mark.parametrize("granularity", ["element", "layer"])
def test_a_code_that_changed_is_read_as_a_mean_and_the_middle_above_it_adds_nothing(granularity):
    params = replace(GREEDY, granularity=granularity, need=1, expected=True)
    case = toy_case([[1, 1], [2, 2], [2, 2]], [[1, 1], [2, 4]], params)
    case.logits[0, 1] = torch.tensor([-torch.inf, -torch.inf, 0.1, 0.1, 0.0])
    weights = torch.tensor([0.1, 0.1, 0.0]).softmax(0)
    after = case.run("reference")
    assert after.state.codes[0, :, 0, 1].tolist() == [1, 2, 2]
    mean = float(weights @ torch.tensor([0.2, 0.3, 0.4]))
    assert after.state.latents.flatten().tolist()[1] == pytest.approx(1 + mean)
    assert after.state.latents.flatten().tolist()[0] == pytest.approx(1.22, abs=0.02)
    assert after.state.finished.tolist() == [1]


@given(cases(dtypes=(torch.float32, torch.bfloat16, torch.float16)))
@settings(max_examples=150)
def test_the_slow_loop_agrees(case):
    assert_same(case.run("reference"), loop_accept(case))


@given(cases())
@settings(max_examples=60)
def test_a_finished_sample_and_untouched_layers_keep_their_bits(case):
    before, after = case.state, case.run("reference").state
    done = before.finished != 0
    for field in fields(RoundState):
        assert torch.equal(getattr(after, field.name)[done], getattr(before, field.name)[done]), field.name
    assert torch.equal(after.codes[:, case.params.stop :], before.codes[:, case.params.stop :])
    layer = torch.arange(before.codes.shape[1])[:, None, None]
    final = layer < before.frontier[:, None]
    assert torch.equal(after.codes[final], before.codes[final])


@given(cases())
@settings(max_examples=60)
def test_every_unfinished_frontier_moves(case):
    before, after = case.state, case.run("reference").state
    may_move = (before.finished == 0)[:, None, None] & (before.frontier < case.params.stop)
    assert (after.frontier[may_move] > before.frontier[may_move]).all()
    assert (after.frontier >= before.frontier).all()
    live = before.finished == 0
    assert torch.equal(after.passes, before.passes + live)


@given(cases(dtypes=(torch.float32, torch.bfloat16)))
@settings(max_examples=60)
def test_a_row_of_a_batch_is_the_row_alone(case):
    together = case.run("reference")
    for b in range(case.logits.shape[0]):
        alone = case.row(b).run("reference")
        for field in fields(RoundState):
            one, other = getattr(together.state, field.name)[b : b + 1], getattr(alone.state, field.name)
            assert torch.equal(one, other), field.name


@pytest.mark.parametrize("with_probs", [True, False])
def test_samples_follow_mains_own_distribution(with_probs):
    """A toy main of 3 layers, V = 3, whose every layer depends on all below; 27 outcomes, chi-square."""
    generator = torch.Generator().manual_seed(3)
    batch, temperature = 40_000, 0.8
    tables = [2 * torch.randn(3**layer, 3, generator=generator) for layer in range(3)]
    q_tables = [torch.randn(3**layer, 3, generator=generator).softmax(-1) for layer in range(2)]

    def prefix(codes):  # index of the codes below each layer, [B, 3]
        first, second = codes[:, 0].long(), codes[:, 1].long()
        return torch.stack([torch.zeros_like(first), first, first * 3 + second], 1)

    def main(codes):
        index = prefix(codes.view(batch, 3))
        return torch.stack([tables[layer][index[:, layer]] for layer in range(3)], 1).view(batch, 3, 1, 1, 3)

    draft, q = torch.zeros(batch, 3, dtype=torch.int32), torch.zeros(batch, 3, 3)
    for layer in range(2):
        q[:, layer] = q_tables[layer][prefix(draft)[:, layer]]
        draft[:, layer] = torch.multinomial(q[:, layer], 1, generator=generator)[:, 0].int()
    state = RoundState.new(batch, 3, 1, 1)
    state.begin_(draft[:, :2].reshape(batch, 2, 1, 1), 2, 1)
    params = AcceptParams(3, "layer", "distance", 1, 0.0, "main", "middle", False, temperature)
    uniforms = torch.rand(batch, 3, 1, 1, 2, generator=generator)
    probs = q.view(batch, 3, 1, 1, 3) if with_probs else None
    slack = torch.zeros(3, 1, dtype=torch.int32)
    while not state.finished.all():
        accept_(
            main(state.codes),
            state,
            torch.zeros(3, 1, 3),
            slack,
            params,
            uniforms=uniforms,
            draft_probs=probs,
            backend="reference",
        )
    assert int(state.passes.max()) <= 3
    assert (state.passes == 1).any()

    p = [(table.double() / temperature).softmax(-1) for table in tables]
    exact = p[0][0][:, None, None] * p[1][:, :, None] * p[2].view(3, 3, 3)
    codes = state.codes.view(batch, 3).long()
    seen = torch.bincount(codes[:, 0] * 9 + codes[:, 1] * 3 + codes[:, 2], minlength=27)
    assert chisquare(seen.numpy(), (exact.flatten() * batch).numpy()).pvalue > 1e-3


def test_a_point_mass_draft_changes_no_sample():
    """Same uniforms, any deterministic draft: the codes of sequential sampling."""
    params = AcceptParams(4, "layer", "distance", 6, 0.0, "main", "middle", False, 1.0)
    case = random_case(params, (50, 4, 2, 3, 4), seed=1)
    torch.manual_seed(0)
    weights = torch.randint(1, 99, (4, 2, 3))
    noise = torch.randn(97, 4, 2, 3, 4)

    def decode(drafted: int, redraft: str) -> torch.Tensor:
        state = RoundState.new(50, 4, 2, 3)
        draft = torch.randint(0, 4, (50, 4, 2, 3), dtype=torch.int32)
        state.begin_(draft[:, :drafted], drafted, 2)
        for _ in range(4):
            sums = ((state.codes + 1) * weights).sum((2, 3))
            logits = noise[(sums.cumsum(1) - sums) % 97, torch.arange(4)]
            accept_(
                logits,
                state,
                case.codebook,
                case.slack,
                replace(params, redraft=redraft),
                uniforms=case.uniforms,
                backend="reference",
            )
        assert state.finished.all()
        return state.codes

    sequential = decode(0, redraft="none")
    for drafted in (1, 3):
        assert torch.equal(decode(drafted, redraft="main"), sequential)


def test_begin_resets_everything_in_place():
    case = random_case(GREEDY, (2, 3, 2, 1, 5), seed=0)
    state = case.run("reference").state
    pointers = [getattr(state, field.name).data_ptr() for field in fields(RoundState)]
    draft = torch.ones(2, 2, 2, 1, dtype=torch.int32)
    state.begin_(draft, 1, 2)
    fresh = RoundState.new(2, 3, 2, 1)
    fresh.codes.fill_(2)[:, :2] = 1
    fresh.drafted.fill_(1)
    for field, pointer in zip(fields(RoundState), pointers, strict=True):
        assert torch.equal(getattr(state, field.name), getattr(fresh, field.name)), field.name
        assert getattr(state, field.name).data_ptr() == pointer


def test_state_and_parameters_refuse_what_has_no_meaning():
    state = RoundState.new(2, 3, 4, 1)
    with pytest.raises(ValueError, match=r"draft_codes of shape \(2, 4, 4, 1\), expected \(2, up to 3, 4, 1\)"):
        state.begin_(torch.zeros(2, 4, 4, 1, dtype=torch.int32), 1, 2)
    with pytest.raises(ValueError, match="got drafted 2, expected 0 to the 1 layers"):
        state.begin_(torch.zeros(2, 1, 4, 1, dtype=torch.int32), 2, 2)
    with pytest.raises(ValueError, match="got sizes B 1, L 0"):
        RoundState.new(1, 0, 1, 1)
    for wrong, message in (
        ({"stop": 0}, "stop 0"),
        ({"granularity": "chunk"}, "granularity 'chunk', expected one of"),
        ({"rule": "exact"}, "rule 'exact', expected one of"),
        ({"keep": "both"}, "keep 'both', expected one of"),
        ({"redraft": "both"}, "redraft 'both', expected one of"),
        ({"need": -1}, "need -1"),
        ({"log_tau": 0.1}, "log_tau 0.1"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": 1.0}, "granularity 'element'"),
        ({"temperature": 1.0, "granularity": "layer", "expected": True}, "expected=True"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(GREEDY, **wrong)
    one = torch.ones(1)
    with pytest.raises(ValueError, match="got no b1, w2, b2"):
        ActionDecoder(torch.ones(1, 1), None, None, None, one, one)


def assert_same(got: Case, wanted: Case) -> None:
    """Integers to the bit; floats to 1e-6 of the sizes involved (the loop works in double precision)."""
    assert_same_state(got, wanted)
    torch.testing.assert_close(got.actions, wanted.actions, rtol=1e-5, atol=4e-5, equal_nan=True)


def assert_same_state(got: Case, wanted: Case) -> None:
    """All but the actions."""
    for name in INTEGER_BUFFERS:
        assert torch.equal(getattr(got.state, name), getattr(wanted.state, name)), name
    if got.params.expected:
        torch.testing.assert_close(got.state.latents, wanted.state.latents, rtol=1e-6, atol=4e-6)
    else:
        assert torch.equal(got.state.latents, wanted.state.latents)
