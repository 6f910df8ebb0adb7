"""Rows -> numbers: success, paired comparisons, latency percentiles, ratios to the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from .intervals import PairedTest, Share, paired_test, wilson
from .names import short_tasks
from .phases import PHASES, THIRDS, phases
from .records import EpisodeRow

Cost = Literal["ms_p50", "ms_mean", "action_ms", "action_ms_mean", "passes"]  # of a group


@dataclass(frozen=True)
class Phase:
    """Means over the chunks of a mode in one phase of the episodes, see `phases`.

    Attributes:
        kept_rates: by drafted layer; empty without a draft.
    """

    chunks: int
    passes: float
    accepted_layers: float
    kept_rates: list[float]


@dataclass(frozen=True)
class Group:
    """One mode, in one task, in one suite, or over everything; means and percentiles are over chunks.

    An episode that several devices have counts once, as the first of them has it. Latencies of several devices do not
    make one: there are none then, and `speedup` is None where the baseline's are of another device.

    Attributes:
        task: None for all tasks.
        suite: None for all suites.
        passes, accepted_layers: means a chunk; `passes_won` is over successful episodes.
        passes_share: share of chunks by their passes.
        phases: by name of the phase, in the order of an episode.
        kept_rates, match_rates: means by drafted layer, see `EpisodeRow`; empty without a draft.
        ms_p50, ms_p90, ms_p99, ms_mean: latency a chunk [ms].
        replan: actions that a chunk executes; latency by it is that an action.
        ms_stages: means by stage [ms].
        speedup: the baseline's median latency an action by this mode's; with equal replan intervals, a chunk's.
        paired: None for the baseline itself.
    """

    mode: str
    task: str | None
    suite: str | None
    success: Share
    errors: int
    chunks: int
    passes: float | None
    passes_won: float | None
    accepted_layers: float | None
    passes_share: dict[int, float]
    phases: dict[str, Phase]
    kept_rates: list[float]
    match_rates: list[float]
    ms_p50: float | None
    ms_p90: float | None
    ms_p99: float | None
    ms_mean: float | None
    replan: int
    ms_stages: dict[str, float]
    speedup: float | None
    paired: PairedTest | None

    @property
    def place(self) -> str:
        """Name of its task, or of what it is over."""
        return self.task or "all"

    @property
    def action_ms(self) -> float | None:
        """Median latency of an action [ms]."""
        return self.ms_per_action(self.ms_p50)

    @property
    def action_ms_mean(self) -> float | None:
        """Mean latency of an action [ms]."""
        return self.ms_per_action(self.ms_mean)

    def ms_per_action(self, ms: float | None) -> float | None:
        """A latency of a chunk as one of an action [ms]."""
        return None if ms is None else ms / self.replan


@dataclass(frozen=True)
class Summary:
    """All groups: each mode in each task; where there are several suites, in each suite; then over everything.

    Attributes:
        tasks: suite and name.
        settings: by mode, of its rows; equal in all of them within a suite.
    """

    baseline: str
    modes: list[str]
    tasks: list[tuple[str, str]]
    groups: list[Group]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def group(self, mode: str, task: str | None = None, suite: str | None = None) -> Group | None:
        """The group of a mode, over everything by default; None where it has no episode.

        A task without a suite is the first of that name.
        """
        found = (g for g in self.groups if (g.mode, g.task) == (mode, task) and (suite or task or g.suite is None))
        return next((group for group in found if suite in (None, group.suite)), None)

    @property
    def suites(self) -> list[str]:
        """Of the tasks."""
        return list(dict.fromkeys(suite for suite, _ in self.tasks))

    @cached_property
    def short(self) -> dict[tuple[str, str], str]:
        """Names of tasks that fit a table."""
        return short_tasks(self.tasks)

    @property
    def over_all(self) -> list[Group]:
        """The groups over everything, one a mode."""
        return [group for group in self.groups if group.task is None and group.suite is None]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def passes_interval(rows: Iterable[EpisodeRow]) -> tuple[float, float] | None:
    """Normal interval at 95 % of the mean passes a chunk, episodes being the draws; None with fewer than two."""
    counts = np.array([(sum(row.passes), len(row.passes)) for row in rows if row.passes], float)
    if len(counts) < 2:
        return None
    mean = counts[:, 0].sum() / counts[:, 1].sum()
    rest = counts[:, 0] - mean * counts[:, 1]  # of a ratio, to first order
    error = float(np.sqrt((rest**2).sum() * len(counts) / (len(counts) - 1)) / counts[:, 1].sum())
    return mean - 1.96 * error, mean + 1.96 * error


def compare(
    rows: Iterable[EpisodeRow], baseline_rows: Iterable[EpisodeRow], baseline: str, *, across: bool = False
) -> PairedTest:
    """Pairs two modes by task, initial state and seed; errors on either side drop the pair.

    Both of a pair are of one device and its floats; a pair that several have counts once, as the first has it. With
    `across` devices may differ, as they do beside the expert, who has none.
    """
    won, base = (
        {(row.device, row.pair): row.outcome == "success" for row in side if row.outcome != "error"}
        for side in (rows, baseline_rows)
    )
    if across or any(all(not device for device, _ in side) for side in (won, base)):
        won, base = ({("", pair): side[_, pair] for _, pair in reversed(side)} for side in (won, base))
    found: dict[tuple[str, str, int, int], tuple[bool, bool]] = {}
    for key, outcome in won.items():
        if key in base:
            found.setdefault(key[1], (outcome, base[key]))
    counts = Counter(found.values())
    return paired_test(baseline, len(found), counts[True, True], counts[True, False], counts[False, True])


def summarise(
    rows: Sequence[EpisodeRow], modes: Sequence[str], baseline: str | None = None, *, one_clock: bool = False
) -> Summary:
    """Statistics of `rows`, with ratios to `baseline` (default: the first of `modes`).

    Args:
        rows: in the order in which devices count, where an episode has several.
        modes: the names of the table, in order; those without a row are in no group.
        baseline: default the first mode.
        one_clock: latencies compare whatever the device, as replayed ones do.

    Raises:
        ValueError: no rows, or a baseline that is not among the modes.
    """
    if not rows:
        raise ValueError("got no episodes, expected at least one")
    baseline = baseline or modes[0]
    if baseline not in modes:
        raise ValueError(f"got baseline {baseline!r}, expected one of {list(modes)}")
    tasks = list(dict.fromkeys((row.suite, row.task) for row in rows))
    suites = list(dict.fromkeys(row.suite for row in rows))
    places: list[tuple[str | None, str | None]] = []
    for suite in suites:
        places += [place for place in tasks if place[0] == suite]
        places += [(suite, None)] if len(suites) > 1 else []
    groups = []
    for suite_or_all, task in (*places, (None, None)):
        members: dict[str, list[EpisodeRow]] = {mode: [] for mode in modes}
        for row in rows:
            if suite_or_all in (None, row.suite) and task in (None, row.task):
                members[row.mode].append(row)
        groups += [_group(mode, task, suite_or_all, members, baseline, one_clock) for mode in modes if members[mode]]
    settings = {row.mode: row.settings for row in reversed(rows)}
    return Summary(baseline, list(modes), tasks, groups, {mode: settings[mode] for mode in modes if mode in settings})


def front(groups: Sequence[Group], cost: Cost) -> list[Group]:
    """The Pareto front of success rate against `cost`: groups that no other beats in one without losing in the other.

    By their point estimates, the cheapest first; groups without a success rate or a cost have no part in it.
    """
    known = [(getattr(g, cost), -(g.success.rate or 0.0), g) for g in groups if g.success.rate is not None]
    ordered = sorted((point for point in known if point[0] is not None), key=lambda point: point[:2])
    found: list[Group] = []
    best = 1.0
    for _, negative_rate, group in ordered:
        if negative_rate < best:
            best = negative_rate
            found.append(group)
    return found


def _group(
    mode: str,
    task: str | None,
    suite: str | None,
    members: dict[str, list[EpisodeRow]],
    baseline: str,
    one_clock: bool,
) -> Group:
    everything, base = members[mode], members[baseline]
    rows = _once(everything)
    outcomes = Counter(row.outcome for row in rows)
    replan = rows[0].settings["replan"]
    devices = {row.device for row in everything}
    timed = rows if one_clock else everything if len(devices) == 1 else []
    base_timed = _once(base) if one_clock else [row for row in base if {row.device} == devices]
    p50, base_p50 = _percentile(timed, 50), _percentile(base_timed, 50)
    base_ms = base_p50 / base_timed[0].settings["replan"] * replan if base_p50 else None
    return Group(
        mode=mode,
        task=task,
        suite=suite,
        success=wilson(outcomes["success"], outcomes["success"] + outcomes["failure"]),
        errors=outcomes["error"],
        chunks=sum(len(row.ms) for row in rows),
        passes=_mean([value for row in rows for value in row.passes]),
        passes_won=_mean([value for row in rows if row.outcome == "success" for value in row.passes]),
        accepted_layers=_mean([value for row in rows for value in row.accepted_layers]),
        passes_share=_shares([value for row in rows for value in row.passes]),
        phases=_by_phase(rows),
        kept_rates=_by_layer([rates for row in rows for rates in row.kept_rates]),
        match_rates=_by_layer([rates for row in rows for rates in row.match_rates]),
        ms_p50=p50,
        ms_p90=_percentile(timed, 90),
        ms_p99=_percentile(timed, 99),
        ms_mean=_mean([value for row in timed for value in row.ms]),
        replan=replan,
        ms_stages=_stages(timed),
        speedup=base_ms / p50 if p50 and base_ms else None,
        paired=None if mode == baseline else compare(everything, base, baseline),
    )


def _once(rows: Sequence[EpisodeRow]) -> list[EpisodeRow]:
    """One row an episode: the first that did not end in an error, or the first."""
    found: dict[tuple[str, str, int, int], EpisodeRow] = {}
    for row in rows:
        if row.pair not in found or (found[row.pair].outcome == "error" and row.outcome != "error"):
            found[row.pair] = row
    return list(found.values())


def _percentile(rows: Sequence[EpisodeRow], percent: float) -> float | None:
    values = [value for row in rows for value in row.ms]
    return float(np.percentile(values, percent)) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _shares(values: Sequence[int]) -> dict[int, float]:
    return {value: count / len(values) for value, count in sorted(Counter(values).items())}


def _by_phase(rows: Sequence[EpisodeRow]) -> dict[str, Phase]:
    names = (*PHASES, *THIRDS)
    of_chunk = np.array([names.index(name) for row in rows for name in phases(row)], int)
    passes = np.array([value for row in rows for value in row.passes], float)
    accepted = np.array([value for row in rows for value in row.accepted_layers], float)
    kept = _table([rates for row in rows for rates in row.kept_rates])
    found = {}
    for place, name in enumerate(names):
        if (own := of_chunk == place).any():
            means = float(passes[own].mean()), float(accepted[own].mean())
            found[name] = Phase(int(own.sum()), *means, _layer_means(kept[own]))
    return found


def _by_layer(rates: Sequence[Sequence[float]]) -> list[float]:
    """Means over the chunks that drafted the layer."""
    return _layer_means(_table(rates))


def _table(rates: Sequence[Sequence[float]]) -> Float[np.ndarray, "chunks layers"]:
    """Rates by chunk and layer; NaN where a chunk did not draft the layer."""
    depth = max(map(len, rates), default=0)
    even = all(len(own) == depth for own in rates)  # as a rule; padding takes ten times as long
    padded = rates if even else [[*own, *[np.nan] * (depth - len(own))] for own in rates]
    return np.array(padded, float).reshape(len(rates), depth)


def _layer_means(table: Float[np.ndarray, "chunks layers"]) -> list[float]:
    drafted = ~np.isnan(table)
    return [float(table[own, layer].mean()) for layer, own in enumerate(drafted.T) if own.any()]


def _stages(rows: Sequence[EpisodeRow]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row.ms_stages)
    found = {name: _mean([ms for row in rows for ms in row.ms_stages.get(name, [])]) for name in names}
    return {name: ms for name, ms in found.items() if ms is not None}
