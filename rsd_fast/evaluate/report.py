"""Rows -> what people read: a table on the terminal, report.md, summary.json, plots and videos."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import tables
from .config import ReportConfig
from .exports import write_tables
from .figures import save_figures
from .plots import FEW, pretty
from .records import EpisodeRow, Records, mode_order, read_header, read_rows, write_text
from .statistics import Summary, summarise
from .videos import write_videos

SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.md"
MANY = 12  # tasks whose rows a terminal need not show
IN_REPORT = ("report", "pareto_latency", "pareto_passes")  # the other plots are panels of the first
FILE_WIDTH = 120  # columns where stdout is no terminal


def run(config: ReportConfig) -> int:
    """`rsd-fast report`. Returns the exit status.

    Raises:
        FileNotFoundError: a folder without rows.
        ValueError: rows that do not belong together, or an unknown baseline.
    """
    write_report(config)
    return 0


def write_report(config: ReportConfig) -> Summary:
    """Merges the rows of `config.folders`, writes all files and prints the table; raises as `run` does."""
    if not config.folders:
        raise ValueError("got no folder, expected at least one that `rsd-fast eval --out` wrote")
    of_folders = {folder: read_rows(folder) for folder in config.folders}
    found = [row for rows in of_folders.values() for row in rows]
    policies = {row.policy: str(row.settings["checkpoint"]) for row in found if row.device}
    if len(policies) > 1:
        told = ", ".join(f"{name} ({policy})" if name != policy else name for policy, name in policies.items())
        raise ValueError(f"got episodes of {told}, expected one policy: report each alone, or use rsd-fast study")
    records = Records.of_rows(found, config.folders[0])
    out = config.out or config.folders[0]
    rows = in_order(records, config.folders)
    if not rows:
        raise ValueError(f"got no episodes in {records.file}, expected at least one")
    summary = summarise(rows, mode_order(records, config.folders), config.baseline)
    write_text(out / SUMMARY_FILE, json.dumps({"rows": tables.results(summary), **summary.as_dict()}, indent=2) + "\n")
    figures = save_figures(summary, out)
    write_tables(summary, out)
    videos = write_videos(rows, summary.modes, config.folders, out)
    said = [*notes(rows), *(note for folder, own in of_folders.items() for note in unfinished(folder, own))]
    files = [path.relative_to(out) for path in (*figures, *videos)]
    write_text(out / REPORT_FILE, report_text(summary, rows, files, said))
    print_report(summary, rows, out, said)
    return summary


def in_order(records: Records, folders: Sequence[Path] = ()) -> list[EpisodeRow]:
    """Rows by suite and task (as the runs listed them), init state and mode.

    `folders` are those that the rows were merged from; default that of the records.
    """
    listed = [task["name"] for folder in folders or [records.folder] for task in read_header(folder).get("tasks", [])]
    rows = records.rows.values()
    suites = list(dict.fromkeys(row.suite for row in rows))
    places = {name: place for place, name in enumerate(dict.fromkeys([*listed, *sorted(row.task for row in rows)]))}
    modes = mode_order(records, folders)

    def place(row: EpisodeRow) -> tuple[int, ...]:
        return suites.index(row.suite), places[row.task], row.init_state, row.seed, modes.index(row.mode)

    return sorted(rows, key=place)


def report_text(summary: Summary, rows: list[EpisodeRow], files: list[Path], said: Sequence[str]) -> str:
    """report.md with the notes `said`; over several suites the first tables are of those, single tasks come last."""
    several = len(summary.suites) > 1
    first = tables.totals(summary) if several else None
    one_task = [group for group in summary.groups if group.task] if several else []
    sections = [
        f"# {', '.join(summary.suites)}: {title(summary)}",
        *(f"**{note}**" for note in said),
        conditions(rows),
        explanation(summary),
        tables.markdown(tables.results(summary, first)),
    ]
    parts = {
        "Errors": tables.errors(rows),
        "Success, paired": tables.comparisons(summary, first),
        "Success against latency: what no other mode beats in both": tables.pareto(summary),
        "Passes": tables.passes(summary),
        "By phase of the episode": tables.by_phase(summary),
        "Layers of the draft": tables.layers(summary, first),
        "Latency by stage, means [ms]": tables.stages(summary),
        "Latency, percentiles [ms]": tables.latency(summary),
        "By task": tables.results(summary, one_task),
        "Success by task, paired": tables.comparisons(summary, one_task),
        "Names of the tasks": tables.tasks(summary),
    }
    sections += [f"## {title}\n\n{tables.markdown(part)}" for title, part in parts.items() if part]
    sections += [f"![{path.stem}]({path})" for path in files if path.suffix == ".png" and path.stem in IN_REPORT]
    sections.append("Tables as CSV (numbers) and LaTeX: `tables/`. Each panel as PNG and SVG: `plots/`.")
    videos = [f"- [{path.stem}]({path})" for path in files if path.suffix == ".mp4"]
    if videos:
        sections.append("## Videos\n\n" + "\n".join(videos))
    return "\n\n".join(sections) + "\n"


def title(summary: Summary) -> str:
    """The modes, as long as they are few."""
    return ", ".join(summary.modes) if len(summary.modes) <= FEW else f"{len(summary.modes)} modes"


def conditions(rows: list[EpisodeRow]) -> str:
    """What the numbers were made with; several values where rows differ."""
    of_suites = dict.fromkeys((row.suite, row.cap) for row in rows)
    one_each = len(of_suites) == len({row.suite for row in rows})
    of_tasks = dict.fromkeys((row.task, row.cap) for row in rows)
    caps = ", ".join(f"{name} {cap}" for name, cap in (of_suites if one_each else of_tasks))
    facts: dict[str, Any] = {
        "policy": _distinct(_checkpoint(row) for row in rows),
        "device": _distinct(f"{row.settings['device']}, {row.settings['dtype']}" for row in rows),
        "chunk": _distinct(
            f"{row.settings['chunk']} actions, {row.settings['replan']} executed before looking again" for row in rows
        ),
        "chunks decoded in one call, at most": _distinct(row.settings["batch"] for row in rows),
        "cameras": _distinct(f"{row.settings['image_size']} px" for row in rows),
        "control steps, at most": caps,
        "settling steps": _distinct(row.settings["settling_steps"] for row in rows),
        "machine": _distinct(", ".join(f"{value} {name}" for name, value in row.machine.items()) for row in rows),
        "versions": _distinct(", ".join(f"{name} {value}" for name, value in row.versions.items()) for row in rows),
        "commit": _distinct(row.commit or "none" for row in rows),
    }
    modes = {f"`{row.mode}`": _mode(row) for row in rows}
    return "\n".join(f"- {name}: {value}" for name, value in (facts | modes).items())


def notes(rows: list[EpisodeRow]) -> list[str]:
    """What every report has to say: notes of the suite, and that there are several devices."""
    return [*dict.fromkeys(note for row in rows for note in row.settings.get("notes", [])), *devices_note(rows)]


def unfinished(folder: Path, rows: Sequence[EpisodeRow]) -> list[str]:
    """A sentence where episodes of a folder are missing.

    How many a mode should have, the header of its run says; without one, all its tasks should have as many as one has.
    """
    header = read_header(folder)
    listed = {(task["suite"], task["name"]) for task in header.get("tasks", []) if "suite" in task}
    trials = header.get("config", {}).get("trials", 0)
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for row in rows:
        if row.device:
            counts.setdefault(row.mode, Counter())[row.suite, row.task] += 1
    total = 0
    for mode, own in counts.items():
        of_run = mode in header.get("modes", [])
        total += max(trials if of_run else 0, *own.values()) * len(own.keys() | (listed if of_run else set()))
    missing = total - sum(own.total() for own in counts.values())
    if missing <= 0:
        return []
    return [
        f"{folder.name}: {missing} of {total} episodes are missing. If the run was stopped, those are the ones that "
        "took longest, failures among them, and what is left looks better than it is"
    ]


def devices_note(rows: list[EpisodeRow]) -> list[str]:
    """A sentence where episodes are of several devices."""
    suites: dict[str, set[str]] = {}
    for row in rows:
        if row.device:
            suites.setdefault(row.device, set()).add(row.suite)
    if len(suites) < 2:
        return []
    told = "; ".join(f"{device} ({', '.join(sorted(own))})" for device, own in suites.items())
    return [
        f"Episodes of several devices: {told}. Pairs are within one; an episode that several have counts once, as the "
        "first has it; there is no latency over several"
    ]


def explanation(summary: Summary) -> str:
    """How to read the table."""
    return (
        "Success: of the episodes that ended in success or failure, with the Wilson interval at 95 %. `passes`: runs "
        "of the main model a chunk, a mean over chunks; `layers kept`: layers that the draft got right in the first, a "
        "mean over elements. `ms`: latency of a chunk, from the observation to the actions, while simulators run on "
        "the same machine; `ms/action`: its median by the executed actions. `speedup`: median latency of "
        f"`{summary.baseline}`, the baseline, in the same stack, by that of the mode; an action's, where modes differ "
        "in the replan interval."
    )


def print_report(summary: Summary, rows: list[EpisodeRow], out: Path, said: Sequence[str]) -> None:
    """The table, paired tests, the notes `said` and errors on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    many = len(summary.modes) > FEW
    if many or len(summary.tasks) > MANY:
        console.print(terminal_table(shortened(tables.results(summary, tables.totals(summary))), None))
    else:
        caption = f"speedup and pairs: against {summary.baseline}" if len(summary.modes) > 1 else None
        console.print(terminal_table(tables.results(summary), caption))
    if not many:
        print_pairs(console, tables.comparisons(summary))
    elif front := tables.pareto(summary):
        console.print(f"Against {summary.baseline}. In success and latency at once no other mode beats:", markup=False)
        console.print(terminal_table(shortened(front), None))
    for note in said:
        console.print(note, markup=False)
    for row in tables.errors(rows):
        where = f"{row['task']} {row['init state']} {row['mode']}"
        console.print(f"error, not counted: {where}: {row['error']}", markup=False)
    console.print(f"{out / REPORT_FILE}", markup=False, soft_wrap=True)


def shortened(rows: tables.Rows) -> tables.Rows:
    """Rows over all tasks with names of modes and columns that fit a terminal."""
    return [
        {name: cell for name, cell in row.items() if name != "task"} | {"mode": pretty(row["mode"])} for row in rows
    ]


def print_pairs(console: Console, pairs: tables.Rows) -> None:
    """The paired tests over everything, a sentence each."""
    for row in pairs:
        if all(row[name] == pairs[-1][name] for name in ("suite", "task") if name in row):
            console.print(
                f"{row['mode']} against {row['against']}, pairs: {row['pairs']}; success {row['difference']}, only "
                f"{row['mode']} {row['only this mode succeeded']}, only {row['against']} {row['only the baseline']}; "
                f"exact McNemar p = {row['McNemar p']}",
                markup=False,
            )


def terminal_table(rows: tables.Rows, caption: str | None) -> Table:
    """Rows as a rich table, a rule after each task."""
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    for name in rows[0]:
        number = not tables.is_text(name)
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*row.values(), end_section=after is not None and _block(after) != _block(row))
    return table


def _block(row: dict[str, str]) -> tuple[str, str]:
    return row.get("suite", ""), row.get("task", "")


def _mode(row: EpisodeRow) -> str:
    """The settings that mean something to it."""
    told = {name: value for name, value in row.decoding if value is not None and name != "replan"}
    if (stop := told.get("stop")) and (layers := row.settings.get("layers")):
        told["stop"] = f"{stop} of {layers} layers"
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _checkpoint(row: EpisodeRow) -> str:
    """Its name, not where it lay on some machine; and what tells it from others of that name."""
    name = str(row.settings["checkpoint"])
    name = Path(name).name if Path(name).is_absolute() else name
    return f"{name} (weights {row.settings['weights']})" if "weights" in row.settings else name


def _distinct(values: Any) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values))
