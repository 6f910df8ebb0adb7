"""`rsd-fast demos`: demonstrations of the scripted experts, in parallel and resumable.

Every episode that a worker finishes becomes a file of its own, so a run that is stopped goes on where it was;
the last step gathers them into one HDF5 file a task. Which episodes end up there depends on the seed alone,
not on the number of workers.
"""

from __future__ import annotations

import json
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..progress import progress_bar
from ..sim.experts.disturbance import Disturbance
from ..sim.suites import Task, TaskEnv, get_suite, get_task
from .hdf5 import Demonstration, gather, read_task_file_seeds, settings, write_part

if TYPE_CHECKING:
    from .config import DemosConfig

WAVES = 4  # how often failed episodes are replaced by new ones before giving up


@dataclass(frozen=True)
class Job:
    """One episode: everything a worker needs to know."""

    suite: str
    task: str
    seed: int
    image_size: int
    push: float
    slips: float
    folder: Path

    @property
    def part(self) -> Path:
        """Where a successful episode goes."""
        return self.folder / f"demo_{self.seed:06d}.hdf5"

    @property
    def failed(self) -> Path:
        """What marks an episode in which the expert failed."""
        return self.folder / f"demo_{self.seed:06d}.failed"


def run(config: DemosConfig) -> list[Path]:
    """Writes `config.episodes` successful demonstrations of each task.

    Returns:
        the files, one a task.

    Raises:
        ValueError: an unknown suite or task, or files made with other settings.
        RuntimeError: the expert of a task fails too often.
    """
    suite = get_suite(config.suite)
    tasks = [get_task(suite, name) for name in config.tasks or [task.name for task in suite.tasks]]
    files = {task.name: config.out / suite.name / f"{task.name}_demo.hdf5" for task in tasks}
    missing = [task for task in tasks if not is_complete(files[task.name], config)]
    # Spawned: GL contexts do not survive a fork.
    with (
        ProcessPoolExecutor(config.workers, get_context("spawn"), end_on_interrupt) as pool,
        progress_bar("demonstrations", config.episodes * len(missing)) as advance,
    ):
        try:
            for task in missing:
                jobs = record_task(task, config, files[task.name].with_suffix(".parts"), pool, advance)
                gather([job.part for job in jobs], files[task.name], task, config)
                shutil.rmtree(jobs[0].folder)
        except BaseException:  # the pool would first play everything that is waiting
            pool.shutdown(cancel_futures=True)
            raise
    return list(files.values())


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


def record_task(
    task: Task, config: DemosConfig, folder: Path, pool: ProcessPoolExecutor, advance: Any
) -> list[Job]:
    """Records until enough episodes succeeded; returns their jobs, in the order of their seeds."""
    open_parts(folder, config)
    done: list[Job] = []
    first = config.seed
    for _ in range(WAVES):
        seeds = range(first, first + config.episodes - len(done))
        made_with = (config.image_size, config.push, config.slips, folder)
        jobs = [Job(task.suite, task.name, seed, *made_with) for seed in seeds]
        done += [job for job, success in zip(jobs, run_jobs(jobs, pool, advance), strict=True) if success]
        first = seeds.stop
        if len(done) == config.episodes:
            return done
    raise RuntimeError(
        f"{task.name}: the expert succeeded in {len(done)} of {first - config.seed} episodes, expected "
        f"{config.episodes}; try a smaller --push than {config.push}"
    )


def run_jobs(jobs: list[Job], pool: ProcessPoolExecutor, advance: Any) -> list[bool]:
    """Whether each job succeeded; those with a result on disk are not run again."""
    futures = {}
    for job in jobs:
        if job.part.exists():
            advance(1)
        elif not job.failed.exists():
            futures[pool.submit(record, job)] = job
    for future in as_completed(futures):
        advance(int(future.result()))
    return [job.part.exists() for job in jobs]


_ENVS: dict[tuple[str, str, int], TaskEnv] = {}  # of this worker; building one takes seconds


def record(job: Job) -> bool:
    """Runs one episode and writes its file; whether the expert succeeded."""
    suite = get_suite(job.suite)
    key = (job.suite, job.task, job.image_size)
    if key not in _ENVS:
        for env in _ENVS.values():
            env.close()
        _ENVS.clear()
        _ENVS[key] = suite.make_env(get_task(suite, job.task), image_size=job.image_size)
    env = _ENVS[key]
    demonstration = demonstrate(env, suite.make_expert, job.seed, job.push, job.slips)
    if demonstration is None:
        job.failed.touch()
        return False
    write_part(job.part, demonstration)
    return True


def demonstrate(env: TaskEnv, make_expert: Any, seed: int, push: float, slips: float) -> Demonstration | None:
    """One episode from the random start of `seed`, pushed about by `Disturbance`; None where it failed.

    The command that is kept is the expert's own, also in steps in which another one was executed.
    """
    observation, _ = env.reset(seed=seed)
    expert, disturbance = make_expert(env), Disturbance(np.random.default_rng(seed), push, slips=slips)
    observations, commands, executed, pushed = [], [], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        command = expert.act()
        action = np.clip(command + disturbance.next(), -1.0, 1.0)
        observations.append(observation)
        commands.append(np.clip(command, -1.0, 1.0))
        executed.append(action)
        pushed.append(disturbance.active)
        observation, _, terminated, truncated, _ = env.step(action)
    if not terminated:
        return None
    return Demonstration(
        seed=seed,
        actions=np.asarray(commands, np.float32),
        executed=np.asarray(executed, np.float32),
        pushed=np.asarray(pushed, np.uint8),
        full_images=np.stack([seen["full_image"] for seen in observations]),
        wrist_images=np.stack([seen["wrist_image"] for seen in observations]),
        states=np.stack([seen["state"] for seen in observations]),
    )
