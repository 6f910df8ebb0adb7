"""Whether a setting pays, from its numbers and stated thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .geometry import Milliseconds
from .statistics import Group, PairedTest, Summary
from .tables import points

Kind = Literal["baseline", "no pairs", "slow", "pays", "costs success", "open"]

LEAST_SPEEDUP = 1.10  # of the mean latency
MOST_LOSS = 0.01  # of success, paired
ALPHA = 0.05  # of the exact McNemar test

THRESHOLDS = (
    f"A setting *pays* if its mean latency is at least {LEAST_SPEEDUP:g} times shorter than the baseline's and its "
    f"paired success is lower by at most {100 * MOST_LOSS:g} point. It *costs success* if the loss is larger and the "
    f"exact McNemar test says p < {ALPHA:g}; at a larger loss that the test does not show, the question is *open*. "
    "Recommended is, of those that pay, the one with the highest success, then the fewest passes. A difference within "
    "chance is no difference: read the intervals."
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
    if speedup is None or difference is None or group.paired is None:
        return Verdict("no pairs", "no pairs")
    if speedup < LEAST_SPEEDUP:
        return Verdict("slow", f"does not pay: {speedup:.2f}x")
    if difference >= -MOST_LOSS:
        return Verdict("pays", "pays")
    if group.paired.p_value < ALPHA:
        return Verdict("costs success", f"costs success: {points(difference)}, p = {group.paired.p_value:.2g}")
    return Verdict("open", f"open: {points(difference)}, p = {group.paired.p_value:.2g}")


def judge_rival(test: PairedTest, speedup: float) -> str:
    """RSD against another mode that pays."""
    difference = test.difference or 0.0
    if speedup >= LEAST_SPEEDUP and difference >= -MOST_LOSS:
        return "RSD pays against it too"
    if difference > MOST_LOSS and test.p_value < ALPHA:
        return "RSD buys success with time"
    return "RSD does not pay against it"


def mean_speedup(group: Group, base: Group) -> float | None:
    """Mean latency of an action, the baseline's by the mode's; with equal replan intervals that is a chunk's."""
    own, other = group.action_ms_mean, base.action_ms_mean
    return other / own if own and other else None


def recommend(summary: Summary) -> Group | None:
    """Of the settings of RSD that pay: the highest success, then the fewest passes; None if none does."""
    rsd = [group for group in summary.over_all if summary.settings[group.mode].get("mode") == "rsd"]
    paying = [group for group in rsd if judge(group, summary).pays]
    return min(paying, key=lambda group: (-(group.success.rate or 0.0), group.passes or 0.0), default=None)


def break_even(times: Milliseconds, passes: float) -> float:
    """Passes of RSD that take as long as `passes` without a draft."""
    return passes - times["draft"] / (times["pass"] + times["tail"])


def least(groups: Sequence[Group], cost: Callable[[Group], float | None]) -> Group:
    """The group with the lowest cost; those without one come last."""
    return min(groups, key=lambda group: cost(group) or float("inf"))
