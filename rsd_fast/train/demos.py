"""`rsd-fast demos`: demonstrations of the scripted experts, in parallel and resumable.

Every episode that a worker finishes becomes a file of its own, so a run that is stopped goes on where it was;
when a task has enough, they are gathered into one HDF5 file. Which episodes end up there depends on the seed alone,
not on the number of workers.

All tasks share one queue, so no worker waits for the last episodes of a task.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..progress import progress_bar
from ..sim.experts.disturbance import Disturbance
from ..sim.suites import Observation, Task, TaskEnv, get_suite, get_task
from .hdf5 import Demonstration, gather, read_task_file_seeds, settings, write_part
from .markdown import table

if TYPE_CHECKING:
    from .config import DemosConfig
    from .driver import Driver

TRIES = 4  # episodes played for one that is wanted, at most


@dataclass(frozen=True)
class Job:
    """One episode: everything a worker needs to know."""

    task: Task
    seed: int
    config: DemosConfig
    folder: Path

    @property
    def part(self) -> Path:
        """Where a successful episode goes."""
        return self.folder / f"demo_{self.seed:06d}.hdf5"

    @property
    def failed(self) -> Path:
        """What marks an episode in which the expert failed."""
        return self.folder / f"demo_{self.seed:06d}.failed"


@dataclass
class Recording:
    """A task on the way to its demonstrations: `jobs` are all that were given out, `playing` how many are under way."""

    task: Task
    config: DemosConfig
    file: Path
    jobs: list[Job] = field(default_factory=list)
    playing: int = 0

    @property
    def folder(self) -> Path:
        """Of finished episodes."""
        return self.file.with_suffix(".parts")

    @property
    def successful(self) -> list[Job]:
        """In the order of their seeds."""
        return [job for job in self.jobs if job.part.exists()]

    def next_job(self) -> Job | None:
        """The episode of the next seed; None where too many have failed."""
        config = self.config
        if len(self.jobs) == TRIES * config.episodes:
            return None
        self.jobs.append(Job(self.task, config.seed + len(self.jobs), config, self.folder))
        return self.jobs[-1]

    def finish(self) -> None:
        """Makes the task's file."""
        gather([job.part for job in self.successful], self.file, self.task, self.config)
        shutil.rmtree(self.folder)


def run(config: DemosConfig) -> list[Path]:
    """Writes `config.episodes` successful demonstrations of each task, and says how many episodes that took.

    Returns:
        the files, one a task.

    Raises:
        ValueError: an unknown suite or task, or files made with other settings.
        RuntimeError: the experts of some tasks fail too often; the other tasks have their files.
    """
    suite = get_suite(config.suite)
    tasks = [get_task(suite, name) for name in config.tasks or [task.name for task in suite.tasks]]
    files = [config.out / suite.name / f"{task.name}_demo.hdf5" for task in tasks]
    recordings = [
        Recording(task, config, file) for task, file in zip(tasks, files, strict=True) if not is_complete(file, config)
    ]
    if recordings:
        suite.prepare()
    for recording in recordings:
        open_parts(recording.folder, config)
    # Spawned: GL contexts do not survive a fork.
    with (
        ProcessPoolExecutor(config.workers, get_context("spawn"), end_on_interrupt) as pool,
        progress_bar("demonstrations", config.episodes * len(recordings)) as advance,
    ):
        try:
            record_all(recordings, pool, advance)
        except BaseException:  # the pool would first play everything that is waiting
            pool.shutdown(cancel_futures=True)
            raise
    written = {task.name: file for task, file in zip(tasks, files, strict=True) if file.exists()}
    if written:
        print(table([first_tries(name, file, config) for name, file in written.items()]))
    short = [recording for recording in recordings if not recording.file.exists()]
    if short:
        counts = (
            f"{r.task.name}: the expert succeeded in {len(r.successful)} of {len(r.jobs)} episodes" for r in short
        )
        raise RuntimeError(f"{', '.join(counts)}, expected {config.episodes}; try a smaller --push than {config.push}")
    return files


def first_tries(name: str, file: Path, config: DemosConfig) -> dict[str, str | int]:
    """How often a task's expert succeeds at its first try: a row of the table."""
    seeds = read_task_file_seeds(file, config)
    played = max(seeds) - config.seed + 1  # each that failed was replaced by the next seed
    return {"task": name, "succeeded": len(seeds), "episodes": played, "share": f"{len(seeds) / played:.1%}"}


def end_on_interrupt() -> None:
    """Ctrl-C reaches the workers too, and ends them: as an exception it would only end the episode at hand."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell's background job ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_complete(file: Path, config: DemosConfig) -> bool:
    """Whether `file` has the demonstrations that are asked for already.

    Raises:
        ValueError: it was made with other settings.
    """
    if not file.exists():
        return False
    found = read_task_file_seeds(file, config)
    if len(found) != config.episodes:
        raise ValueError(
            f"got {len(found)} demonstrations in {file}, expected {config.episodes}; delete the file or "
            "choose another folder to make them anew"
        )
    return True


def open_parts(folder: Path, config: DemosConfig) -> None:
    """Makes the folder of finished episodes, or goes on with the one that is there.

    Raises:
        ValueError: its episodes were made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "settings.json"
    if note.exists() and json.loads(note.read_text()) != settings(config):
        raise ValueError(
            f"got unfinished demonstrations in {folder} made with {note.read_text()}, expected {settings(config)}; "
            "delete the folder or use them"
        )
    note.write_text(json.dumps(settings(config)))


def record_all(recordings: Sequence[Recording], pool: ProcessPoolExecutor, advance: Callable[[int], None]) -> None:
    """Plays episodes of all tasks, a new one for each that failed; a task that has enough gets its file at once."""
    playing: dict[Future[bool], Recording] = {}

    def give_out(recording: Recording) -> None:
        """The next episode; those with a result on disk are not played again."""
        while (job := recording.next_job()) is not None:
            if job.part.exists():
                return advance(1)
            if not job.failed.exists():
                playing[pool.submit(record, job)] = recording
                recording.playing += 1
                return None

    for recording in recordings:
        for _ in range(recording.config.episodes):
            give_out(recording)
        finish_if_done(recording)
    while playing:
        for future in wait(playing, return_when=FIRST_COMPLETED).done:
            recording = playing.pop(future)
            recording.playing -= 1
            if future.result():
                advance(1)
            else:
                give_out(recording)
            finish_if_done(recording)


def finish_if_done(recording: Recording) -> None:
    """Makes the file of a task that plays no more episodes and has enough."""
    if recording.playing == 0 and len(recording.successful) == recording.config.episodes:
        recording.finish()


_ENVS: dict[tuple[str, str, int | None], TaskEnv] = {}  # of this worker; building one takes seconds


def record(job: Job) -> bool:
    """Runs one episode and writes its file; whether the expert succeeded."""
    task, config = job.task, job.config
    env = environment(task.suite, task.name, config.image_size if config.render or config.policy else None)
    driver = None
    if config.policy:
        from .driver import Driver, load_driver  # torch, which the expert alone does not need

        generator = np.random.default_rng((job.seed, 1))
        driver = Driver(load_driver(config.policy, config.device), task.instruction, generator)
    make_expert = get_suite(task.suite).make_expert
    demonstration = demonstrate(env, make_expert, job.seed, config.push, config.slips, config.render, driver)
    if demonstration is None:
        job.failed.touch()
        return False
    write_part(job.part, demonstration)
    return True


def environment(suite: str, task: str, image_size: int | None) -> TaskEnv:
    """This worker's simulator of a task; without an image size, one that draws nothing."""
    key = (suite, task, image_size)
    if key not in _ENVS:
        for env in _ENVS.values():
            env.close()
        _ENVS.clear()
        found = get_suite(suite)
        options = {"render": False} if image_size is None else {"image_size": image_size}
        _ENVS[key] = found.make_env(get_task(found, task), **options)
    return _ENVS[key]


def demonstrate(
    env: TaskEnv,
    make_expert: Any,
    seed: int,
    push: float,
    slips: float,
    pictures: bool = True,
    driver: Driver | None = None,
) -> Demonstration | None:
    """One episode from the random start of `seed`, pushed about by `Disturbance`; None where it failed.

    The command that is kept is the expert's own, also in steps in which another one was executed: a push, or the action
    of the `driver`, during whose stretches there are no pushes.
    """
    env.reset(seed=seed)
    expert, disturbance = make_expert(env), Disturbance(np.random.default_rng(seed), push, slips=slips)
    observations: list[Observation] = []
    snapshots, commands, executed, pushed = [], [], [], []

    def observe() -> Observation:
        """What the driver sees; drawn for it alone where pictures are not kept."""
        return observations[-1] if pictures else env.observe()

    terminated = truncated = False
    while not (terminated or truncated):
        command = expert.act()
        observations.append(env.observe() if pictures else {"state": env.proprio()})
        driven = driver.next(observe) if driver else None
        action = np.clip(command + disturbance.next() if driven is None else driven, -1.0, 1.0)
        snapshots.append(env.snapshot())
        commands.append(np.clip(command, -1.0, 1.0))
        executed.append(action)
        pushed.append(disturbance.active or driven is not None)
        _, terminated, truncated, _ = env.advance(action)
    if not terminated:
        return None
    images = {f"{name}s": [seen[name] for seen in observations] for name in ("full_image", "wrist_image") if pictures}
    return Demonstration(
        seed=seed,
        actions=np.asarray(commands, np.float32),
        executed=np.asarray(executed, np.float32),
        pushed=np.asarray(pushed, np.uint8),
        proprio=np.stack([seen["state"] for seen in observations]),
        states=np.asarray(snapshots, np.float32),
        fixtures=env.fixtures(),
        **{name: np.stack(frames) for name, frames in images.items()},
    )
