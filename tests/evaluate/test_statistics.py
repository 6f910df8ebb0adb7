"""Numbers against published ones and against small cases that can be counted by hand."""

from collections.abc import Callable

import pytest

from rsd_fast.evaluate.records import EpisodeRow
from rsd_fast.evaluate.statistics import compare, mcnemar, summarise, wilson

MakeRow = Callable[..., EpisodeRow]


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_published_intervals(successes: int, episodes: int, low: float, high: float) -> None:
    share = wilson(successes, episodes)
    assert share.rate == successes / episodes
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_no_episodes_has_no_rate() -> None:
    assert wilson(0, 0).rate is None


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 22 / 1024), (0, 6, 2 / 64), (3, 0, 0.25)],  # binomial tails by hand
)
def test_mcnemar_is_exact(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_pairs_are_same_task_state_and_seed_and_errors_drop_them(make_row: MakeRow) -> None:
    outcomes = {  # state: baseline, mode
        0: ("success", "success"),
        1: ("failure", "success"),
        2: ("success", "failure"),
        3: ("failure", "success"),
        4: ("error", "success"),
        5: ("success", "error"),
    }
    base = [make_row(init_state=state, outcome=pair[0]) for state, pair in outcomes.items()]
    mode = [make_row(init_state=state, outcome=pair[1], mode="rsd") for state, pair in outcomes.items()]
    mode += [make_row(init_state=0, seed=1, mode="rsd"), make_row(task="Pull", mode="rsd")]  # no partners
    test = compare(mode, base, "sequential")
    assert (test.pairs, test.gained, test.lost, test.difference) == (4, 2, 1, 0.25)
    assert test.p_value == 1.0


def test_an_error_is_no_failure(make_row: MakeRow) -> None:
    nothing = {"passes": [], "accepted_layers": [], "kept_rates": [], "match_rates": [], "ms": [], "ms_stages": {}}
    rows = [
        make_row(init_state=0),
        make_row(init_state=1, outcome="failure"),
        make_row(init_state=2, outcome="error", error="died", **nothing),
    ]
    group = summarise(rows, ["sequential"]).over_all[0]
    assert (group.success.successes, group.success.episodes, group.errors) == (1, 2, 1)
    assert group.chunks == 4


def test_means_and_percentiles_are_over_chunks(make_row: MakeRow) -> None:
    rows = [
        make_row(
            passes=[3] * 6,
            accepted_layers=[0.0] * 6,
            kept_rates=[[]] * 6,
            match_rates=[[]] * 6,
            ms=[40.0] * 6,
            ms_stages={"vision": [10.0] * 6},
        ),
        make_row(
            mode="rsd",
            passes=[1, 1, 1, 2, 3, 4],
            accepted_layers=[2.0, 1.0, 2.0, 1.0, 2.0, 1.0],
            kept_rates=[[1.0, 0.5]] * 6,
            match_rates=[[1.0, 0.75]] * 6,
            ms=[10.0, 20.0, 20.0, 20.0, 20.0, 30.0],
            ms_stages={"vision": [10.0] * 5 + [16.0]},
        ),
    ]
    summary = summarise(rows, ["sequential", "rsd"])
    group = summary.group("rsd")
    assert group is not None
    assert (group.passes, group.accepted_layers, group.ms_p50, group.action_ms) == (2.0, 1.5, 20.0, 5.0)
    assert group.passes_share == {1: 0.5, 2: 1 / 6, 3: 1 / 6, 4: 1 / 6}
    assert {name: phase.passes for name, phase in group.phases.items()} == {
        "first third": 1.0,
        "second third": 1.5,
        "last third": 3.5,
    }
    assert group.ms_per_action(group.ms_p99) == pytest.approx(29.5 / 4)
    assert (group.kept_rates, group.match_rates) == ([1.0, 0.5], [1.0, 0.75])
    assert group.ms_stages == {"vision": 11.0}
    assert group.speedup == 2.0
    assert group.paired is not None and group.paired.baseline == "sequential"


def test_the_baseline_can_be_chosen_and_must_exist(make_row: MakeRow) -> None:
    rows = [make_row(), make_row(mode="rsd", ms=[5.0, 5.0])]
    group = summarise(rows, ["sequential", "rsd"], "rsd").group("sequential")
    assert group is not None and group.speedup == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="got baseline 'fast', expected one of"):
        summarise(rows, ["sequential", "rsd"], "fast")
    with pytest.raises(ValueError, match="no episodes"):
        summarise([], ["sequential"])
