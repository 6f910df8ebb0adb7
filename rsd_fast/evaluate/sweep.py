"""`rsd-fast sweep`: an evaluation whose modes are a grid of settings."""

from __future__ import annotations

from rsd_fast.acceptance import parse_rule
from rsd_fast.sim.suites import get_suite, get_task, init_states

from . import runner
from .config import EvalConfig, ReportConfig
from .grid import SweepConfig
from .records import Records
from .report import write_report
from .tables import plural


def run(config: SweepConfig) -> int:
    """Runs what is missing of the grid, and reports; or says what it would run.

    Returns:
        the exit status: 1 if episodes ended in errors that no retry mended.

    Raises:
        as `runner.run` does.
    """
    parts = config.evaluations()
    if config.dry_run:
        print(describe(parts))
        return 0
    if len(parts) == 1:
        return runner.run(parts[0])
    status = 0
    try:
        for part in parts:
            status = max(status, runner.run(part))
    finally:  # also after Ctrl-C
        begun = tuple(part.out for part in parts if Records.open(part.out).rows)
        if begun:
            write_report(ReportConfig(folders=begun, out=config.out))
    return status


def describe(parts: list[EvalConfig]) -> str:
    """The grid, and how many episodes it is.

    Raises:
        ValueError: an unknown suite, task or rule, or more states than the suite has.
    """
    first = parts[0]
    for rule in {choice.settings.rule for choice in first.choices} - {None}:
        parse_rule(str(rule))
    suite = get_suite(first.suite)
    tasks = [get_task(suite, name).name for name in first.tasks or [task.name for task in suite.tasks]]
    states = len(init_states(suite, first.trials))
    modes = [choice.label for choice in first.choices]
    done = sum(_done(part, modes, tasks) for part in parts)
    replans = [str(part.replan or "whole chunks") for part in parts]
    total = len(modes) * len(tasks) * states * len(parts)
    return "\n".join(
        [
            *(f"{number:4d}  {mode}" for number, mode in enumerate(modes, 1)),
            f"{len(modes)} modes x {len(tasks)} tasks x {states} states x {plural(len(parts), 'replan interval')} "
            f"({', '.join(replans)}) = {total} episodes, of which {done} are done",
        ]
    )


def _done(part: EvalConfig, modes: list[str], tasks: list[str]) -> int:
    rows = Records.open(part.out).rows.values()
    return sum(
        row.outcome != "error"
        and row.mode in modes
        and row.task in tasks
        and row.init_state < part.trials
        and (row.suite, row.seed) == (part.suite, part.seed)
        for row in rows
    )
