"""Shares of successes with Wilson intervals, and pairs of them with exact McNemar tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

from scipy.stats import binomtest


@dataclass(frozen=True)
class Share:
    """Successes among episodes that ended in success or failure.

    Attributes:
        rate, low, high: None without such an episode; low and high are the Wilson interval at 95 %.
    """

    successes: int
    episodes: int
    rate: float | None
    low: float | None
    high: float | None

    @property
    def bars(self) -> tuple[float, float, float] | None:
        """Rate, and how far the interval reaches below and above it; None without an episode."""
        if self.rate is None or self.low is None or self.high is None:
            return None
        return self.rate, max(0.0, self.rate - self.low), max(0.0, self.high - self.rate)


@dataclass(frozen=True)
class PairedTest:
    """A mode against the baseline, over episodes that both ended in success or failure.

    Attributes:
        pairs: such episodes.
        gained: succeeded with the mode only; `lost`: with the baseline only.
        difference: of the success rates, over the pairs.
        p_value: exact McNemar test, two-sided.
        both: succeeded with both.
        low, high: interval of the difference at 95 %, see `paired_interval`; None without a pair.
    """

    baseline: str
    pairs: int
    gained: int
    lost: int
    difference: float | None
    p_value: float
    both: int = 0
    low: float | None = None
    high: float | None = None


@cache
def wilson(successes: int, episodes: int) -> Share:
    """Share of successes with its Wilson score interval at 95 % (Wilson, 1927)."""
    if episodes == 0:
        return Share(0, 0, None, None, None)
    interval = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    return Share(successes, episodes, successes / episodes, float(interval.low), float(interval.high))


@cache
def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact McNemar test: are pairs that differ as likely one way as the other?"""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


@cache
def paired_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Interval at 95 % of the difference of two paired shares (Newcombe, 1998, method 10): Wilson's, put together."""
    pairs = both + gained + lost + neither
    one, other = wilson(both + gained, pairs).bars, wilson(both + lost, pairs).bars
    assert one is not None and other is not None
    (rate, below, above), (base, base_below, base_above) = one, other
    spread = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess: float = both * neither - gained * lost
    if excess > 0:
        excess = max(excess - pairs / 2, 0)
    phi = excess / sqrt(spread) if spread else 0.0
    low = sqrt(max(0.0, below**2 - 2 * phi * below * base_above + base_above**2))
    high = sqrt(max(0.0, above**2 - 2 * phi * above * base_below + base_below**2))
    return rate - base - low, rate - base + high


def paired_test(baseline: str, pairs: int, both: int, gained: int, lost: int) -> PairedTest:
    """The test of so many pairs."""
    if not pairs:
        return PairedTest(baseline, 0, 0, 0, None, 1.0)
    low, high = paired_interval(both, gained, lost, pairs - both - gained - lost)
    return PairedTest(baseline, pairs, gained, lost, (gained - lost) / pairs, mcnemar(gained, lost), both, low, high)


def together(tests: Sequence[PairedTest]) -> PairedTest:
    """The pairs of several tests against one baseline as those of one; at least one test."""
    pairs, both = sum(test.pairs for test in tests), sum(test.both for test in tests)
    gained, lost = sum(test.gained for test in tests), sum(test.lost for test in tests)
    return paired_test(tests[0].baseline, pairs, both, gained, lost)
