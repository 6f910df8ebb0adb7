"""Statistics as flat tables: the terminal, Markdown and summary.json show the same cells."""

from __future__ import annotations

from collections.abc import Sequence

from .records import EpisodeRow
from .statistics import Group, PairedTest, Share, Summary

Rows = list[dict[str, str]]


def results(summary: Summary) -> Rows:
    """One row a task and mode, then one a mode over all tasks."""
    return [
        {
            "task": group.task or "all",
            "mode": group.mode,
            "success": _fraction(group.success, group.errors),
            "95 %": _interval(group.success),
            "passes": _number(group.passes, 2),
            "layers kept": _number(group.accepted_layers, 2),
            "ms p50": _number(group.ms_p50, 1),
            "ms p99": _number(group.ms_p99, 1),
            "ms/action": _number(group.ms_per_action, 2),
            "speedup": _number(group.speedup, 2, "x"),
        }
        for group in shown(summary)
    ]


def shown(summary: Summary) -> list[Group]:
    """The groups of a table: those over all tasks only where there are several."""
    return [group for group in summary.groups if group.task or len(summary.tasks) > 1]


def comparisons(summary: Summary) -> Rows:
    """Paired differences of success to the baseline."""
    tests: list[tuple[Group, PairedTest]] = [(group, group.paired) for group in shown(summary) if group.paired]
    return [
        {
            "task": group.task or "all",
            "mode": group.mode,
            "against": test.baseline,
            "pairs": str(test.pairs),
            "only this mode succeeded": str(test.gained),
            "only the baseline": str(test.lost),
            "difference": "" if test.difference is None else f"{100 * test.difference:+.1f} points",
            "McNemar p": f"{test.p_value:.3g}",
        }
        for group, test in tests
    ]


def stages(summary: Summary) -> Rows:
    """Mean latency of a chunk by stage."""
    return [
        {"mode": group.mode}
        | {name: _number(ms, 1) for name, ms in group.ms_stages.items()}
        | {"p50": _number(group.ms_p50, 1), "p90": _number(group.ms_p90, 1), "p99": _number(group.ms_p99, 1)}
        for group in summary.over_all
    ]


def passes(summary: Summary) -> Rows:
    """Share of chunks by passes, and mean passes by phase of the episode."""
    counts = sorted({count for group in summary.over_all for count in group.passes_share})
    return [
        {"mode": group.mode}
        | {_plural(count, "pass"): f"{100 * group.passes_share.get(count, 0.0):.1f} %" for count in counts}
        | {
            f"mean, {name} third": _number(value, 2)
            for name, value in zip(("first", "second", "last"), group.passes_by_phase, strict=True)
        }
        for group in summary.over_all
    ]


def layers(summary: Summary) -> Rows:
    """By drafted layer: how often the draft agreed with main, and how often its code was kept."""
    return [
        {"task": group.task or "all", "mode": group.mode, "share of elements": name}
        | {f"layer {layer}": f"{100 * rate:.1f} %" for layer, rate in enumerate(rates)}
        for group in shown(summary)
        for name, rates in (("draft agreed", group.match_rates), ("draft kept", group.kept_rates))
        if rates
    ]


def errors(rows: Sequence[EpisodeRow]) -> Rows:
    """Episodes that ended in an error."""
    return [
        {"task": row.task, "mode": row.mode, "init state": str(row.init_state), "error": row.error or ""}
        for row in rows
        if row.outcome == "error"
    ]


def markdown(rows: Rows) -> str:
    """A Markdown table; text columns to the left, numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if is_text(name) else "---:" for name in columns) + "|",
        *("| " + " | ".join(row.get(name, "").replace("|", "\\|") for name in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def is_text(column: str) -> bool:
    """Whether a column reads from the left."""
    return column in ("task", "mode", "against", "error", "share of elements")


def _fraction(share: Share, errors: int) -> str:
    text = f"{share.successes}/{share.episodes}"
    return f"{text} + {_plural(errors, 'error')}" if errors else text


def _interval(share: Share) -> str:
    return "" if share.low is None or share.high is None else f"{100 * share.low:.0f}-{100 * share.high:.0f} %"


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def _plural(count: int, noun: str) -> str:
    ending = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{ending}"
