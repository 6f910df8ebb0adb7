"""Rows -> numbers: success with Wilson intervals, exact McNemar tests, latency percentiles, ratios to the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from .records import EpisodeRow

PHASES = 3  # of an episode: approach, middle, end


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


@dataclass(frozen=True)
class PairedTest:
    """A mode against the baseline, over episodes that both ended in success or failure.

    Attributes:
        pairs: such episodes.
        gained: succeeded with the mode only; `lost`: with the baseline only.
        difference: of the success rates, over the pairs.
        p_value: exact McNemar test, two-sided.
    """

    baseline: str
    pairs: int
    gained: int
    lost: int
    difference: float | None
    p_value: float


@dataclass(frozen=True)
class Group:
    """One mode, in one task or over all of them; means and percentiles are over chunks.

    Attributes:
        task: None for all tasks.
        passes, accepted_layers: means a chunk.
        passes_share: share of chunks by their passes.
        passes_by_phase: mean passes in the first, second and last third of the episodes.
        kept_rates, match_rates: means by drafted layer, see `EpisodeRow`; empty without a draft.
        ms_p50, ms_p90, ms_p99: latency a chunk [ms].
        ms_per_action: ms_p50 by the actions that a chunk executes [ms].
        ms_stages: means by stage [ms].
        speedup: the baseline's ms_p50 by this mode's.
        paired: None for the baseline itself.
    """

    mode: str
    task: str | None
    success: Share
    errors: int
    chunks: int
    passes: float | None
    accepted_layers: float | None
    passes_share: dict[int, float]
    passes_by_phase: list[float | None]
    kept_rates: list[float]
    match_rates: list[float]
    ms_p50: float | None
    ms_p90: float | None
    ms_p99: float | None
    ms_per_action: float | None
    ms_stages: dict[str, float]
    speedup: float | None
    paired: PairedTest | None


@dataclass(frozen=True)
class Summary:
    """All groups of a run: each mode of each task, then each mode over all tasks."""

    baseline: str
    modes: list[str]
    tasks: list[str]
    groups: list[Group]

    def group(self, mode: str, task: str | None = None) -> Group | None:
        """The group of a mode, over all tasks by default; None where it has no episode."""
        return next((group for group in self.groups if (group.mode, group.task) == (mode, task)), None)

    @property
    def over_all(self) -> list[Group]:
        """The groups over all tasks, one a mode."""
        return [group for group in self.groups if group.task is None]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def wilson(successes: int, episodes: int) -> Share:
    """Share of successes with its Wilson score interval at 95 % (Wilson, 1927)."""
    if episodes == 0:
        return Share(0, 0, None, None, None)
    interval = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    return Share(successes, episodes, successes / episodes, float(interval.low), float(interval.high))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact McNemar test: are pairs that differ as likely one way as the other?"""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def compare(rows: Iterable[EpisodeRow], baseline_rows: Iterable[EpisodeRow], baseline: str) -> PairedTest:
    """Pairs two modes by task, initial state and seed; errors on either side drop the pair."""
    won = {row.pair: row.outcome == "success" for row in rows if row.outcome != "error"}
    base = {row.pair: row.outcome == "success" for row in baseline_rows if row.outcome != "error"}
    counts = Counter((won[pair], base[pair]) for pair in won.keys() & base.keys())
    pairs, gained, lost = sum(counts.values()), counts[True, False], counts[False, True]
    return PairedTest(baseline, pairs, gained, lost, (gained - lost) / pairs if pairs else None, mcnemar(gained, lost))


def summarise(rows: Sequence[EpisodeRow], modes: Sequence[str], baseline: str | None = None) -> Summary:
    """Statistics of `rows`, with ratios to `baseline` (default: the first of `modes`).

    Raises:
        ValueError: no rows, or a baseline that has none.
    """
    if not rows:
        raise ValueError("got no episodes, expected at least one")
    baseline = baseline or modes[0]
    if baseline not in modes:
        raise ValueError(f"got baseline {baseline!r}, expected one of {list(modes)}")
    tasks = list(dict.fromkeys(row.task for row in rows))
    groups = []
    for task in (*tasks, None):
        members = {mode: [row for row in rows if row.mode == mode and task in (None, row.task)] for mode in modes}
        groups += [_group(mode, task, members, baseline) for mode in modes if members[mode]]
    return Summary(baseline, list(modes), tasks, groups)


def _group(mode: str, task: str | None, members: dict[str, list[EpisodeRow]], baseline: str) -> Group:
    rows, base = members[mode], members[baseline]
    outcomes = Counter(row.outcome for row in rows)
    p50, base_p50 = _percentile(rows, 50), _percentile(base, 50)
    return Group(
        mode=mode,
        task=task,
        success=wilson(outcomes["success"], outcomes["success"] + outcomes["failure"]),
        errors=outcomes["error"],
        chunks=sum(len(row.ms) for row in rows),
        passes=_mean([value for row in rows for value in row.passes]),
        accepted_layers=_mean([value for row in rows for value in row.accepted_layers]),
        passes_share=_shares([value for row in rows for value in row.passes]),
        passes_by_phase=_by_phase([row.passes for row in rows]),
        kept_rates=_by_layer([rates for row in rows for rates in row.kept_rates]),
        match_rates=_by_layer([rates for row in rows for rates in row.match_rates]),
        ms_p50=p50,
        ms_p90=_percentile(rows, 90),
        ms_p99=_percentile(rows, 99),
        ms_per_action=p50 / rows[0].settings["replan"] if p50 is not None else None,
        ms_stages=_stages(rows),
        speedup=base_p50 / p50 if p50 and base_p50 else None,
        paired=None if mode == baseline else compare(rows, base, baseline),
    )


def _percentile(rows: Sequence[EpisodeRow], percent: float) -> float | None:
    values = [value for row in rows for value in row.ms]
    return float(np.percentile(values, percent)) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _shares(values: Sequence[int]) -> dict[int, float]:
    return {value: count / len(values) for value, count in sorted(Counter(values).items())}


def _by_phase(episodes: Sequence[Sequence[int]]) -> list[float | None]:
    thirds: list[list[int]] = [[] for _ in range(PHASES)]
    for chunks in episodes:
        for position, value in enumerate(chunks):
            thirds[PHASES * position // len(chunks)].append(value)
    return [_mean(values) for values in thirds]


def _by_layer(rates: Sequence[Sequence[float]]) -> list[float]:
    """Means over chunks; all chunks of a mode have the same drafted layers."""
    return np.mean(rates, axis=0).tolist() if rates and rates[0] else []


def _stages(rows: Sequence[EpisodeRow]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row.ms_stages)
    return {name: float(np.mean([ms for row in rows for ms in row.ms_stages.get(name, [])])) for name in names}
