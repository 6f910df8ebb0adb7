"""Whether a setting pays, from its numbers and stated thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .geometry import Milliseconds
from .intervals import PairedTest
from .statistics import Group, Summary
from .tables import points

Kind = Literal["baseline", "no pairs", "slow", "pays", "costs success", "open"]
Stand = Literal["pays", "buys success with time", "open", "loses success", "does not pay"]  # against another mode

LEAST_SPEEDUP = 1.10  # of the mean latency
MOST_LOSS = 0.01  # of success, paired
ALPHA = 0.05  # of the exact McNemar test
LEAST_PAIRS = 0.5  # of those of the setting that has most, to be recommended
TARGET_LOSS, TARGET_PASSES = 0.01, 1.3  # of the recommended setting

THRESHOLDS = (
    f"A setting *pays* if its mean latency is at least {LEAST_SPEEDUP:g} times shorter than the baseline's and its "
    f"paired success is lower by at most {100 * MOST_LOSS:g} point. It *costs success* if the loss is larger and the "
    f"exact McNemar test says p < {ALPHA:g}; at a larger loss that the test does not show, the question is *open*. "
    "Recommended is the fastest of the settings of RSD that pay; those with fewer than half of the pairs of the "
    "setting that has most are left out. A difference within chance is no difference: read the intervals."
)


@dataclass(frozen=True)
class Verdict:
    """What holds of a setting; `text` says why."""

    kind: Kind
    text: str

    @property
    def pays(self) -> bool:
        """Whether it does."""
        return self.kind == "pays"


def judge(group: Group, summary: Summary) -> Verdict:
    """A mode against the baseline in the same task, suite or over everything."""
    base = summary.group(summary.baseline, group.task, group.suite)
    if group.mode == summary.baseline:
        return Verdict("baseline", "baseline")
    speedup = mean_speedup(group, base) if base else None
    difference = group.paired.difference if group.paired else None
    if difference is None or group.paired is None:
        return Verdict("no pairs", "no pairs")
    if speedup is None:
        return Verdict("no pairs", "no latency to compare")
    if speedup < LEAST_SPEEDUP:
        return Verdict("slow", f"does not pay: {speedup:.2f}x")
    if difference >= -MOST_LOSS:
        return Verdict("pays", "pays")
    if group.paired.p_value < ALPHA:
        return Verdict("costs success", f"costs success: {points(difference)}, p = {group.paired.p_value:.2g}")
    return Verdict("open", f"open: {points(difference)}, p = {group.paired.p_value:.2g}")


def judge_rival(test: PairedTest, speedup: float) -> Stand:
    """RSD against another mode: `test` and `speedup` are RSD's over it."""
    difference, shown = test.difference or 0.0, test.p_value < ALPHA
    if speedup >= LEAST_SPEEDUP:
        return "pays" if difference >= -MOST_LOSS else "loses success" if shown else "open"
    if difference <= MOST_LOSS:
        return "does not pay"
    return "buys success with time" if shown else "open"


def mean_speedup(group: Group, base: Group) -> float | None:
    """Mean latency of an action, the baseline's by the mode's; with equal replan intervals that is a chunk's."""
    own, other = group.action_ms_mean, base.action_ms_mean
    return other / own if own and other else None


def recommend(summary: Summary) -> Group | None:
    """The setting of RSD that `THRESHOLDS` recommends; None if none pays.

    Not the one with the highest success: among many settings that is the luckiest, and not the best.
    """
    rsd = [(group, group.paired) for group in drafted(summary) if group.paired]
    most = max((test.pairs for _, test in rsd), default=0)
    paying = [group for group, test in rsd if test.pairs >= LEAST_PAIRS * most and judge(group, summary).pays]
    return least(paying, lambda group: group.action_ms_mean) if paying else None


def drafted(summary: Summary) -> list[Group]:
    """The settings of RSD, over everything; none of them where RSD is the baseline."""
    groups = [group for group in summary.over_all if summary.settings[group.mode].get("mode") == "rsd"]
    return [group for group in groups if group.mode != summary.baseline]


def judge_target(test: PairedTest, passes: float) -> tuple[str, str]:
    """Whether a setting loses as little and takes as few passes as it should, in words: success, passes."""
    assert test.difference is not None and test.low is not None and test.high is not None
    if test.low >= -TARGET_LOSS:
        success = "met, the whole interval"
    elif test.difference >= -TARGET_LOSS:
        success = f"met by the estimate; the interval does not exclude a loss of {-100 * test.low:.1f} points"
    elif test.high >= -TARGET_LOSS:
        success = "missed by the estimate; the interval does not exclude that it is met"
    else:
        success = "missed"
    return success, "met" if round(passes, 2) <= TARGET_PASSES else "missed"


def break_even(times: Milliseconds, passes: float) -> float:
    """Passes of RSD that take as long as `passes` without a draft."""
    return passes - times["draft"] / (times["pass"] + times["tail"])


def least(groups: Sequence[Group], cost: Callable[[Group], float | None]) -> Group:
    """The group with the lowest cost; those without one come last."""
    return min(groups, key=lambda group: cost(group) or float("inf"))
