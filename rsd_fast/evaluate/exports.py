"""A report's tables as files for a paper: numbers as CSV, cells as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import tables
from .records import write_text
from .statistics import Group, Summary

Numbers = list[dict[str, Any]]

# With the package booktabs its rules are used, without it plain lines.
RULES = r"\providecommand{\toprule}{\hline}\providecommand{\midrule}{\hline}\providecommand{\bottomrule}{\hline}"
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
}


def write_tables(summary: Summary, folder: Path) -> list[Path]:
    """Writes `tables/NAME.csv` and `tables/NAME.tex` of all tables that have rows; returns the paths.

    CSV has full numbers in columns of their own, shares from 0 to 1 and times in ms; LaTeX has the cells of report.md.
    """
    written = []
    numbers, cells = all_numbers(summary), all_cells(summary)
    for name, rows in numbers.items():
        if rows:
            written.append(folder / "tables" / f"{name}.csv")
            write_text(written[-1], csv_text(rows))
    for name, (caption, table) in cells.items():
        if table:
            written.append(folder / "tables" / f"{name}.tex")
            write_text(written[-1], latex(table, f"{caption} {_counted(summary)}", f"tab:{name}"))
    return written


def all_cells(summary: Summary) -> dict[str, tuple[str, tables.Rows]]:
    """Caption and rows of every table, by name of its file."""
    base = summary.baseline
    captions = {
        "results": f"Success, passes of the main model a chunk, latency [ms] and speedup over {base}.",
        "totals": f"Over all tasks: success, passes a chunk, latency [ms] and speedup over {base}.",
        "paired": f"Paired difference of success to {base}, exact McNemar test.",
        "passes": "Chunks by passes of the main model.",
        "phases": "Passes and kept layers of the draft by phase of the episode.",
        "layers": "Elements whose drafted code agreed with main, and was kept, in the first pass.",
        "stages": "Mean latency of a chunk by stage [ms].",
        "latency": f"Latency of a chunk and of an action [ms]; speedup of the median over {base}.",
        "pareto": "Settings that no other beats in success and latency at once.",
    }
    rows = {
        "results": tables.results(summary),
        "totals": tables.results(summary, tables.totals(summary)),
        "paired": tables.comparisons(summary),
        "passes": tables.passes(summary),
        "phases": tables.by_phase(summary),
        "layers": tables.layers(summary),
        "stages": tables.stages(summary),
        "latency": tables.latency(summary),
        "pareto": tables.pareto(summary),
    }
    return {name: (caption, rows[name]) for name, caption in captions.items()}


def all_numbers(summary: Summary) -> dict[str, Numbers]:
    """Rows of every CSV, by name of the file. `all` in suite or task: over all of them."""
    groups = summary.groups
    return {
        "results": [_place(group) | _scalars(group, summary) for group in groups],
        "passes": [
            _place(group) | {"passes": passes, "share": share}
            for group in groups
            for passes, share in group.passes_share.items()
        ],
        "phases": [
            _place(group)
            | {"phase": name, "chunks": phase.chunks, "passes": phase.passes, "accepted_layers": phase.accepted_layers}
            | {f"kept_{layer}": rate for layer, rate in enumerate(phase.kept_rates)}
            for group in groups
            for name, phase in group.phases.items()
        ],
        "layers": [
            _place(group) | {"layer": layer, "agreed": agreed, "kept": kept}
            for group in groups
            for layer, (agreed, kept) in enumerate(zip(group.match_rates, group.kept_rates, strict=True))
        ],
        "stages": [
            _place(group) | {"stage": stage, "ms_mean": ms} for group in groups for stage, ms in group.ms_stages.items()
        ],
    }


def csv_text(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as CSV; the columns are their keys, in order of appearance; empty where a row has no value."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(rows: tables.Rows, caption: str, label: str) -> str:
    r"""Rows as a LaTeX table to be `\input`; needs no package, and looks better with booktabs.

    A line separates tasks. In columns that read from the left a repeated suite or task is left out.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    blocks = [name for name in ("suite", "task") if name in columns]
    lines, last = [], None
    for row in rows:
        block = tuple(row[name] for name in blocks)
        if last not in (None, block):
            lines.append(r"\midrule")
        said = blocks if block == last else []
        lines.append(" & ".join("" if name in said else escape(row.get(name, "")) for name in columns) + r" \\")
        last = block
    head = " & ".join(escape(name) for name in columns) + r" \\"
    alignment = "".join("l" if tables.is_text(name) else "r" for name in columns)
    return "\n".join(
        [
            RULES,
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text as LaTeX shows it; a range of numbers gets its dash, a number its minus."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<=\d)-(?=\d)", "--", escaped)
    return re.sub(r"^([-+])(?=\d)", r"$\1$", escaped).replace(r" \%", r"\,\%")


def _counted(summary: Summary) -> str:
    episodes = sum(group.success.episodes for group in summary.over_all)
    return f"{tables.plural(episodes, 'episode')} in all; intervals at 95 %."


def _place(group: Group) -> dict[str, Any]:
    return {"suite": group.suite or "all", "task": group.place, "mode": group.mode}


def _scalars(group: Group, summary: Summary) -> dict[str, Any]:
    paired = group.paired
    return {
        "successes": group.success.successes,
        "episodes": group.success.episodes,
        "success": group.success.rate,
        "success_low": group.success.low,
        "success_high": group.success.high,
        "errors": group.errors,
        "chunks": group.chunks,
        "passes": group.passes,
        "passes_won": group.passes_won,
        "accepted_layers": group.accepted_layers,
        "ms_mean": group.ms_mean,
        "ms_p50": group.ms_p50,
        "ms_p90": group.ms_p90,
        "ms_p99": group.ms_p99,
        "ms_per_action_p50": group.action_ms,
        "ms_per_action_p90": group.ms_per_action(group.ms_p90),
        "ms_per_action_p99": group.ms_per_action(group.ms_p99),
        "baseline": summary.baseline,
        "speedup": group.speedup,
        "pairs": paired.pairs if paired else None,
        "only_mode": paired.gained if paired else None,
        "only_baseline": paired.lost if paired else None,
        "difference": paired.difference if paired else None,
        "mcnemar_p": paired.p_value if paired else None,
    }
