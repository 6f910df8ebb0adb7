"""Numbers against published ones and against small cases that can be counted by hand."""

from collections.abc import Callable

import pytest

from rsd_fast.evaluate.intervals import mcnemar, paired_interval, wilson
from rsd_fast.evaluate.records import EpisodeRow
from rsd_fast.evaluate.statistics import compare, passes_interval, summarise

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


@pytest.mark.parametrize(
    ("both", "gained", "lost", "neither", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10, its first example; then its mirror image
        (36, 12, 2, 0, 0.0569, 0.3404),
        (36, 2, 12, 0, -0.3404, -0.0569),
    ],
)
def test_the_interval_of_a_paired_difference_agrees_with_the_published_one(
    both: int, gained: int, lost: int, neither: int, low: float, high: float
) -> None:
    assert paired_interval(both, gained, lost, neither) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_mean_passes_takes_episodes_for_draws(make_row: MakeRow) -> None:
    even = [make_row(init_state=state, passes=[1, 2]) for state in range(10)]
    assert passes_interval(even) == (1.5, 1.5)
    odd = [make_row(init_state=state, passes=[1 + state % 2] * 2) for state in range(10)]
    found = passes_interval(odd)  # ten draws of 1 or 2: 0.5 * sqrt(10 / 9) / sqrt(10) = 1 / 6
    assert found == pytest.approx((1.5 - 1.96 / 6, 1.5 + 1.96 / 6))
    assert passes_interval(even[:1]) is None


def test_passes_of_successes_are_told_apart(make_row: MakeRow) -> None:
    rows = [make_row(passes=[3, 3]), make_row(init_state=1, outcome="failure", passes=[1, 1])]
    group = summarise(rows, ["sequential"]).over_all[0]
    assert (group.passes, group.passes_won) == (2.0, 3.0)


def test_pairs_are_of_one_device_and_latencies_of_several_make_none(make_row: MakeRow) -> None:
    gpu = {**make_row().settings, "device": "gpu"}
    rows = [
        *(make_row(init_state=0), make_row(init_state=0, mode="rsd", outcome="failure")),
        *(make_row(init_state=0, settings=gpu, ms=[1.0, 1.0]), make_row(init_state=0, mode="rsd", settings=gpu)),
        *(make_row(init_state=1), make_row(init_state=1, mode="rsd", settings=gpu)),  # no pair
        *(make_row(init_state=2, settings=gpu), make_row(init_state=2, mode="rsd", settings=gpu, ms=[1.0, 1.0])),
    ]
    summary = summarise(rows, ["sequential", "rsd"])
    base, rsd = summary.group("sequential"), summary.group("rsd")
    assert base is not None and rsd is not None and rsd.paired is not None
    assert (base.success.episodes, base.ms_p50, base.speedup, base.chunks) == (3, None, None, 6)
    assert (rsd.success.successes, rsd.success.episodes) == (2, 3)  # of state 0 the first, which failed
    assert (rsd.paired.pairs, rsd.paired.lost) == (2, 1)
    one_clock = summarise(rows, ["sequential", "rsd"], one_clock=True).group("rsd")
    assert one_clock is not None and one_clock.ms_mean is not None
    across = compare([row for row in rows if row.mode == "rsd"], [rows[0], rows[4]], "sequential", across=True)
    assert across.pairs == 2


def test_the_expert_has_no_device_and_pairs_with_any(make_row: MakeRow) -> None:
    expert = {**make_row().settings, "mode": "expert", "device": "simulator"}
    test = compare([make_row(mode="expert", settings=expert)], [make_row(outcome="failure")], "sequential")
    assert (test.pairs, test.gained) == (1, 1)


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
