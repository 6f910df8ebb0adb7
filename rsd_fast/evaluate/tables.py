"""Statistics as flat tables: the terminal, Markdown and summary.json show the same cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .intervals import PairedTest, Share
from .records import EpisodeRow
from .statistics import Group, Summary, front

Rows = list[dict[str, str]]


def results(summary: Summary, groups: Sequence[Group] | None = None) -> Rows:
    """One row a task and mode, then one a mode over all tasks; of every suite, where there are several.

    `groups` chooses the rows.
    """
    return [
        where(summary, group)
        | {
            "success": fraction(group.success, group.errors),
            "95 %": interval(group.success),
            "passes": number(group.passes, 2),
            "layers kept": number(group.accepted_layers, 2),
            "ms p50": number(group.ms_p50, 1),
            "ms p99": number(group.ms_p99, 1),
            "ms/action": number(group.action_ms, 2),
            "speedup": number(group.speedup, 2, "x"),
        }
        for group in (shown(summary) if groups is None else groups)
    ]


def shown(summary: Summary) -> list[Group]:
    """The groups of a table: those over all tasks only where there are several."""
    return [group for group in summary.groups if group.task or len(summary.tasks) > 1]


def totals(summary: Summary) -> list[Group]:
    """The groups of a short table: each suite, where there are several, and everything."""
    return [group for group in summary.groups if group.task is None]


def where(summary: Summary, group: Group) -> dict[str, str]:
    """First cells of a group's row; the suite only where there are several. Names of tasks are short ones."""
    suite = {"suite": group.suite or "all"} if len(summary.suites) > 1 else {}
    task = summary.short[group.suite or "", group.task] if group.task else group.place
    return {**suite, "task": task, "mode": group.mode}


def tasks(summary: Summary) -> Rows:
    """Short names of tasks and the whole ones, where they differ."""
    several = len(summary.suites) > 1
    return [
        ({"suite": suite} if several else {}) | {"task": short, "name": task}
        for (suite, task), short in summary.short.items()
        if short != task
    ]


def comparisons(summary: Summary, groups: Sequence[Group] | None = None) -> Rows:
    """Paired differences of success to the baseline; `groups` chooses the rows."""
    groups = shown(summary) if groups is None else groups
    tests: list[tuple[Group, PairedTest]] = [(group, group.paired) for group in groups if group.paired]
    return [
        where(summary, group)
        | {
            "against": test.baseline,
            "pairs": str(test.pairs),
            "only this mode succeeded": str(test.gained),
            "only the baseline": str(test.lost),
            "difference": points(test.difference),
            "difference, 95 %": span(test),
            "McNemar p": f"{test.p_value:.3g}",
        }
        for group, test in tests
    ]


def stages(summary: Summary) -> Rows:
    """Mean latency of a chunk by stage, their sum, and what it is of that of the baseline."""
    base = {(group.suite, group.task): group for group in summary.groups if group.mode == summary.baseline}
    rows = []
    for group in totals(summary):
        row = _totals_place(summary, group) | {name: number(ms, 1) for name, ms in group.ms_stages.items()}
        reference = base.get((group.suite, group.task))
        share = group.ms_mean / reference.ms_mean if group.ms_mean and reference and reference.ms_mean else None
        rows.append(row | {"sum": number(group.ms_mean, 1), f"of {summary.baseline}": percent(share)})
    return rows


def latency(summary: Summary) -> Rows:
    """Percentiles of the latency of a chunk and of an action, and the speedup of the medians."""
    return [
        _totals_place(summary, group)
        | {
            f"{unit} {name}": number(value, digits)
            for unit, digits in (("chunk", 1), ("action", 2))
            for name, ms in (("p50", group.ms_p50), ("p90", group.ms_p90), ("p99", group.ms_p99))
            for value in [ms if unit == "chunk" else group.ms_per_action(ms)]
        }
        | {f"speedup over {summary.baseline}": number(group.speedup, 2, "x")}
        for group in totals(summary)
    ]


def passes(summary: Summary) -> Rows:
    """Share of chunks by passes, and their mean."""
    groups = totals(summary)
    counts = sorted({count for group in groups for count in group.passes_share})
    return [
        _totals_place(summary, group)
        | {plural(count, "pass"): percent(group.passes_share.get(count, 0.0)) for count in counts}
        | {"mean": number(group.passes, 2)}
        for group in groups
    ]


def by_phase(summary: Summary) -> Rows:
    """Passes and accepted layers by phase of the episode."""
    return [
        _totals_place(summary, group)
        | {"phase": name, "chunks": str(phase.chunks), "passes": number(phase.passes, 2)}
        | {"layers kept": number(phase.accepted_layers, 2)}
        | {f"layer {layer}": percent(rate) for layer, rate in enumerate(phase.kept_rates)}
        for group in totals(summary)
        for name, phase in group.phases.items()
    ]


def layers(summary: Summary, groups: Sequence[Group] | None = None) -> Rows:
    """By drafted layer: how often the draft agreed with main, and how often its code was kept; `groups` chooses."""
    return [
        where(summary, group)
        | {"share of elements": name}
        | {f"layer {layer}": percent(rate) for layer, rate in enumerate(rates)}
        for group in (shown(summary) if groups is None else groups)
        for name, rates in (("draft agreed", group.match_rates), ("draft kept", group.kept_rates))
        if rates
    ]


def pareto(summary: Summary) -> Rows:
    """Modes that no other beats in success and in median latency at once, the fastest first."""
    return [
        {
            "mode": group.mode,
            "success": fraction(group.success, group.errors),
            "95 %": interval(group.success),
            "passes": number(group.passes, 2),
            "ms p50": number(group.ms_p50, 1),
            f"speedup over {summary.baseline}": number(group.speedup, 2, "x"),
        }
        for group in front(summary.over_all, "action_ms")
    ]


def errors(rows: Sequence[EpisodeRow]) -> Rows:
    """Episodes that ended in an error."""
    several = len({row.suite for row in rows}) > 1
    return [
        ({"suite": row.suite} if several else {})
        | {"task": row.task, "mode": row.mode, "init state": str(row.init_state), "error": row.error or ""}
        for row in rows
        if row.outcome == "error"
    ]


def markdown(rows: Rows, text: Collection[str] = ()) -> str:
    """A Markdown table; text columns (and those in `text`) to the left, numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if is_text(name) or name in text else "---:" for name in columns) + "|",
        *("| " + " | ".join(row.get(name, "").replace("|", "\\|") for name in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def is_text(column: str) -> bool:
    """Whether a column reads from the left."""
    return column in TEXT


TEXT = frozenset(
    (
        *("suite", "task", "name", "mode", "against", "error", "share of elements", "phase", "policy", "device"),
        *("code", "verdict"),
    )
)


def fraction(share: Share, errors: int = 0) -> str:
    """`47/50`, and the errors that are not in it."""
    text = f"{share.successes}/{share.episodes}"
    return f"{text} + {plural(errors, 'error')}" if errors else text


def interval(share: Share) -> str:
    """`84-98 %`."""
    return "" if share.low is None or share.high is None else f"{100 * share.low:.0f}-{100 * share.high:.0f} %"


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Empty for None."""
    return "" if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None) -> str:
    """A share as percent; empty for None."""
    return "" if value is None else f"{100 * value:.1f} %"


def points(difference: float | None) -> str:
    """A difference of two shares; empty for None."""
    return "" if difference is None else f"{100 * difference:+.1f} points"


def span(test: PairedTest) -> str:
    """Interval of a paired difference, `-2.1 to +0.4`; empty without a pair."""
    return "" if test.low is None or test.high is None else f"{100 * test.low:+.1f} to {100 * test.high:+.1f}"


def plural(count: int, noun: str) -> str:
    """`1 pass`, `2 passes`."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{ending}"


def _totals_place(summary: Summary, group: Group) -> dict[str, str]:
    place = where(summary, group)
    del place["task"]
    return place
