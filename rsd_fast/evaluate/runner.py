"""`rsd-fast eval`: closed-loop episodes of a suite, in every mode, to rows, report and videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rsd_fast.sim.chunked import blank
from rsd_fast.sim.libero_assets import ASSETS_VARIABLE
from rsd_fast.sim.suites import Suite, Task, get_suite, get_task, init_states, observation_space

from .config import EvalConfig, ReportConfig
from .environment import commit, versions
from .episodes import RunContext, WorkItem, picture_size, plan, protocol
from .films import film_path, has_film, save_film
from .live import Live
from .place import Place, this_machine
from .policies import Deciders, expert_settings, load_policies, set_threads
from .records import Records, read_header, write_header
from .report import write_report
from .scheduler import Scheduler, Usage
from .statistics import Summary


def run(config: EvalConfig) -> int:
    """Runs what is missing in `config.out`, and reports.

    Returns:
        the exit status: 1 if episodes ended in errors that no retry mended.

    Raises:
        ValueError: unknown names, settings that do not fit, or results of other settings in the folder.
        FileNotFoundError: no such checkpoint, or assets of the suite are missing.
        ImportError: a package of the suite is missing.
        RuntimeError: no simulator can be built, or no GPU where one is asked for.
        KeyboardInterrupt: after Ctrl-C, when the report of what there is has been written.
    """
    suite = get_suite(config.suite)
    with assets_at(config.assets):
        tasks = [get_task(suite, name) for name in config.tasks or [task.name for task in suite.tasks]]
        init_states(suite, config.trials)
        records = open_records(config)
        with workplace(config) as (policies, place):
            summary = run_episodes(config, suite, tasks, policies, records, place)
    return 1 if any(group.errors for group in summary.groups) else 0


def run_episodes(
    config: EvalConfig,
    suite: Suite,
    tasks: list[Task],
    policies: Deciders,
    records: Records,
    place: Place | None = None,
) -> Summary:
    """The same, with everything loaded; `place` is this machine by default."""
    if config.replan and config.replan > policies.chunk:
        raise ValueError(f"got --replan {config.replan}, expected at most the {policies.chunk} actions of a chunk")
    place = place or this_machine(config, policies)
    context = make_context(config, suite, policies, suite.prepare(), place)
    for mode, settings in context.settings.items():
        records.check_settings(mode, settings)
    items = [item for item in plan(config, tasks) if not is_done(item, records)]
    header = make_header(config, context, tasks)
    write_header(config.out, header)
    try:
        if items:
            seen = blank(observation_space(picture_size(config, suite, policies)))
            policies.warm_up(seen, tasks[0].instruction)
            usage = run_items(config, suite, policies, context, items, records, place)
            write_header(config.out, {**header, "sessions": [*header["sessions"], usage.describe()]})
    finally:  # also after Ctrl-C: what there is makes a valid result
        summary = write_report(ReportConfig(folders=(config.out,))) if records.rows else None
    assert summary is not None
    return summary


def run_items(
    config: EvalConfig,
    suite: Suite,
    policies: Deciders,
    context: RunContext,
    items: list[WorkItem],
    records: Records,
    place: Place,
) -> Usage:
    """Runs episodes and records each as it ends."""
    replan = config.replan or policies.chunk
    size = picture_size(config, suite, policies)
    scheduler = Scheduler(
        policies,
        context,
        partial(place.make_simulator, suite, replan, size, config.step_timeout),
        workers=min(place.simulators, len(items)),
        batch=config.batch,
        replan=replan,
        retries=config.retries,
        ready=place.ready,
    )
    with Live(len(items)) as live, closing(scheduler.run(items)) as episodes:
        for item, row, film in episodes:
            if item.film and row.outcome != "error":
                save_film(film_path(records.folder, row), film)
            records.add(row)
            live.ended(item, row, again=row.outcome == "error" and item.attempt < config.retries)
        live.usage(scheduler.usage)
    return scheduler.usage


@contextmanager
def workplace(config: EvalConfig) -> Iterator[tuple[Deciders, Place | None]]:
    """The policies, and where the simulators run: here, or on a Ray cluster.

    Raises:
        ImportError: Ray is not installed.
    """
    if config.ray is None:
        set_threads(config)
        yield load_policies(config), None
        return
    if find_spec("ray") is None:
        raise ImportError("got --ray, but Ray is not installed: pip install 'rsd-fast[ray]'")
    from .ray_runner import on_ray

    with on_ray(config) as both:
        yield both


@contextmanager
def assets_at(folder: Path | None) -> Iterator[None]:
    """LIBERO's assets for this process and those it starts; None leaves them where they are."""
    before = os.environ.get(ASSETS_VARIABLE)
    if folder is not None:
        os.environ[ASSETS_VARIABLE] = str(folder.expanduser().resolve())
    try:
        yield
    finally:
        if before is not None:
            os.environ[ASSETS_VARIABLE] = before
        elif folder is not None:
            del os.environ[ASSETS_VARIABLE]


def open_records(config: EvalConfig) -> Records:
    """The rows that `config.out` has.

    Raises:
        ValueError: there are some, and `--no-resume` was given.
    """
    records = Records.open(config.out)
    if records.rows and not config.resume:
        raise ValueError(f"got --no-resume, but {config.out} has {len(records.rows)} episodes; choose another --out")
    return records


def is_done(item: WorkItem, records: Records) -> bool:
    """Whether an episode needs no run: it has ended, and where it is to be filmed, it was."""
    if not records.is_done(item.key):
        return False
    return not item.film or has_film(film_path(records.folder, records.rows[item.key]))


def make_context(
    config: EvalConfig, suite: Suite, policies: Deciders, notes: Sequence[str], place: Place
) -> RunContext:
    """What all rows have in common."""
    own = protocol(config, suite, policies, notes)
    settings = {
        choice.label: expert_settings(policies.chunk) if choice.is_expert else policies.settings(choice.label)
        for choice in config.choices
    }
    return RunContext(
        settings={mode: {**decoding, **own} for mode, decoding in settings.items()},
        machine=place.machine,
        versions=versions(),
        commit=commit(),
    )


def make_header(config: EvalConfig, context: RunContext, tasks: list[Task]) -> dict[str, Any]:
    """Everything that defines a run, JSON-able; `sessions` are the finished ones before it."""
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    return {
        "modes": [choice.label for choice in config.choices],
        "tasks": [asdict(task) for task in tasks],
        "config": asked,
        **asdict(context),
        "sessions": read_header(config.out).get("sessions", []),
    }
