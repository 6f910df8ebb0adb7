"""Rows -> what people read: a table on the terminal, report.md, summary.json, plots and videos."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from .config import ReportConfig
from .records import Records, mode_order
from .statistics import Group, Share, Summary, summarise


def run(config: ReportConfig) -> int:
    """`rsd-fast report`. Returns the exit status."""
    write_report(config)
    return 0


def write_report(config: ReportConfig) -> Summary:
    """Merges the rows of `config.folders`, writes all files and prints the table.

    Raises:
        FileNotFoundError: a folder without rows.
        ValueError: rows that do not belong together, or an unknown baseline.
    """
    if not config.folders:
        raise ValueError("got no folder, expected what `rsd-fast eval` was given as --out")
    records = Records.merge(config.folders)
    out = config.out or config.folders[0]
    out.mkdir(parents=True, exist_ok=True)
    rows = sorted(records.rows.values(), key=lambda row: row.key)
    summary = summarise(rows, mode_order(records), config.baseline)
    flat = [flat_row(group, summary) for group in summary.groups]
    (out / "summary.json").write_text(json.dumps({"rows": flat, **summary.as_dict()}, indent=2) + "\n")
    Console().print(terminal_table(flat, summary))
    return summary


def flat_row(group: Group, summary: Summary) -> dict[str, Any]:
    """One line of the table."""
    return {
        "task": group.task or "all",
        "mode": group.mode,
        "success": fraction(group.success),
        "95 %": interval(group.success),
        "errors": group.errors,
        "passes": number(group.passes, 2),
        "accepted layers": number(group.accepted_layers, 2),
        "ms a chunk p50": number(group.ms_p50, 1),
        "p99": number(group.ms_p99, 1),
        "ms an action": number(group.ms_per_action, 2),
        f"speedup over {summary.baseline}": number(group.speedup, 2),
    }


def terminal_table(flat: list[dict[str, Any]], summary: Summary) -> Table:
    """The same for a terminal."""
    table = Table(title=f"baseline: {summary.baseline}")
    for name in flat[0]:
        table.add_column(name, justify="left" if name in ("task", "mode") else "right")
    for row in flat:
        table.add_row(*(str(value) for value in row.values()), end_section=row["mode"] == summary.modes[-1])
    return table


def fraction(share: Share) -> str:
    """`19/20`."""
    return f"{share.successes}/{share.episodes}"


def interval(share: Share) -> str:
    """`76-99 %`."""
    return "" if share.low is None or share.high is None else f"{100 * share.low:.0f}-{100 * share.high:.0f} %"


def number(value: float | None, digits: int) -> float | str:
    """Rounded, or nothing."""
    return "" if value is None else round(value, digits)
