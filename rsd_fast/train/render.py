"""`rsd-fast render`: the pictures of demonstrations that were recorded without them, in parallel and resumable.

Every task gets its file at once, whole but for the pictures, for which room is left; then workers write each episode's
pictures where they belong. So nothing is gathered at the end, and every worker draws until the last episode is taken.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import UInt8

from ..progress import progress_bar
from ..sim.suites import Task, TaskEnv, get_suite, get_task
from .demos import end_on_interrupt, environment
from .hdf5 import describe, read_numbers
from .read import CAMERAS, find_files

if TYPE_CHECKING:
    from .config import RenderConfig

FREE, TAKEN, DONE = range(3)
POLL = 0.5  # seconds


@dataclass(frozen=True)
class Target:
    """A task's file on the way from `source`: `drawing` until its last picture is there."""

    source: Path
    file: Path
    image_size: int
    every: int = 1

    @property
    def drawing(self) -> Path:
        """The unfinished file."""
        return self.file.with_suffix(".drawing")

    @property
    def log(self) -> Path:
        """A line a demonstration that is drawn."""
        return self.file.with_suffix(".drawn")

    def made_with(self) -> dict[str, Any]:
        """Settings of the file: those of its source, and the pictures' own."""
        recorded = content(self.source)["settings"]
        recorded.pop("every", None)
        every = {"every": self.every} if self.every > 1 else {}
        return {"image_size": self.image_size} | recorded | {"image_size": self.image_size, **every}

    def drawn(self) -> set[str]:
        """Demonstrations whose pictures are there."""
        return set(self.log.read_text().splitlines()) if self.log.exists() else set()


@dataclass(frozen=True)
class Episode:
    """One demonstration to draw; `task` is its target's number."""

    task: int
    key: str
    frames: int


def run(config: RenderConfig) -> list[Path]:
    """Writes `<out>/<suite>/<task>_demo.hdf5` with pictures for every file of `config.demos`.

    Returns:
        the files, one a task.

    Raises:
        FileNotFoundError: there are no demonstrations.
        ValueError: they hold no simulator states, are of an unknown task, or `out` has others already.
    """
    plan = [plan_target(source, config) for source in find_files(config.demos)]
    if len({target.file for target, _ in plan}) < len(plan):
        raise ValueError(f"got several files of one task in {config.demos}, expected one a task")
    missing = [(target, keys) for target, keys in plan if not is_complete(target)]
    if missing:
        draw_missing(missing, config)
    return [target.file for target, _ in plan]


def draw_missing(missing: Sequence[tuple[Target, dict[str, int]]], config: RenderConfig) -> None:
    """Draws what is not drawn yet, and gives the files their names."""
    for suite in {target.file.parent.name for target, _ in missing}:
        get_suite(suite).prepare()
    targets = [target for target, _ in missing]
    episodes = [Episode(task, *each) for task, (_, keys) in enumerate(missing) for each in keys.items()]
    context = get_context("spawn")  # GL contexts do not survive a fork
    state, whereabouts = context.Array("b", len(episodes)), context.Array("i", [-1] * config.workers)
    with (
        ProcessPoolExecutor(config.workers, context, start_worker, (state, whereabouts)) as pool,
        progress_bar("drawing demonstrations", len(episodes)) as advance,
    ):
        try:
            list(pool.map(prepare, targets))
            drawn = [target.drawn() for target in targets]
            state[:] = [DONE if each.key in drawn[each.task] else FREE for each in episodes]
            futures = [pool.submit(draw_all, worker, targets, episodes) for worker in range(config.workers)]
            watch(futures, state, advance)
        except BaseException:  # workers end after the episode at hand
            with state.get_lock():
                state[:] = [max(each, TAKEN) for each in state[:]]
            pool.shutdown(cancel_futures=True)
            raise
    for target in targets:
        target.drawing.rename(target.file)
        target.log.unlink()


def plan_target(source: Path, config: RenderConfig) -> tuple[Target, dict[str, int]]:
    """Where the pictures of a file go, and how many steps its demonstrations have.

    Raises:
        ValueError: the file cannot be drawn.
    """
    try:
        with h5py.File(source) as file:
            data = file["data"]
            task = task_of(data)
            frames = {}
            for index in range(int(data.attrs["num_demos"])):
                demo = data[f"demo_{index}"]
                frames[f"demo_{index}"] = len(demo["states"])
                demo["fixtures"]  # only ours have them
    except (OSError, KeyError) as error:
        raise ValueError(
            f"got {source}, which cannot be drawn ({error}); expected a file of `rsd-fast demos`, whose "
            "demonstrations hold `states` and `fixtures`"
        ) from error
    file = config.out / task.suite / f"{task.name}_demo.hdf5"
    target = Target(source, file, config.image_size, config.every)
    if target.file.resolve() == source.resolve():
        raise ValueError(f"got --out {config.out}, which would overwrite {source}; choose another folder")
    return target, frames


def task_of(data: h5py.Group) -> Task:
    """The task of a demonstration file."""
    described = json.loads(data.attrs["env_args"])
    return get_task(get_suite(described["suite"]), described["env_name"])


def is_complete(target: Target) -> bool:
    """Whether the target has its pictures already.

    Raises:
        ValueError: what is there belongs to other demonstrations or another size.
    """
    expected = content(target.source) | {"settings": target.made_with()}
    for path in (target.file, target.drawing):
        if path.exists() and (found := content(path)) != expected:
            raise ValueError(f"got {path} with {found}, expected {expected}; delete it or choose another --out")
    return target.file.exists()


def content(path: Path) -> dict[str, Any]:
    """What tells files of one task apart."""
    with h5py.File(path) as file:
        attributes = file["data"].attrs
        made_with = json.loads(attributes["settings"])
        return {
            "settings": made_with,
            "demonstrations": int(attributes["num_demos"]),
            "frames": int(attributes["total"]),
        }


def prepare(target: Target) -> None:
    """Makes the unfinished file, where there is none yet: everything but the pictures, and room for them."""
    if target.drawing.exists():
        return
    target.file.parent.mkdir(parents=True, exist_ok=True)
    target.log.unlink(missing_ok=True)
    unfinished = target.file.with_suffix(".tmp")
    with h5py.File(target.source) as source, h5py.File(unfinished, "w", libver="latest") as file:
        data = file.create_group("data")
        data.attrs.update({name: value for name, value in source["data"].attrs.items() if name != "picture_every"})
        data.attrs.update(describe(task_of(source["data"]), target.made_with()))
        for index in range(int(data.attrs["num_demos"])):
            copy_numbers(source["data"][f"demo_{index}"], data.create_group(f"demo_{index}"), target)
    unfinished.rename(target.drawing)


def copy_numbers(source: h5py.Group, group: h5py.Group, target: Target) -> None:
    """Everything of a demonstration but its pictures, and room for them, nowhere yet written."""
    group.attrs.update(source.attrs)
    demo = read_numbers(source)
    group.create_group("obs")
    for name in demo.numbers():
        source.copy(name, group, name=name)
    for name, values in demo.derived().items():
        group[name] = values
    shape = (len(demo.actions[:: target.every]), target.image_size, target.image_size, 3)
    plain = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plain.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plain.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    for camera in CAMERAS:
        h5py.h5d.create(
            group["obs"].id, camera.encode(), h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple(shape), dcpl=plain
        )


def watch(futures: Sequence[Future[None]], state: Any, advance: Any) -> None:
    """Shows progress until all workers are done; raises what one of them raised."""
    shown = 0
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=POLL)
        for future in done:
            future.result()
        drawn = sum(each == DONE for each in state[:])
        advance(drawn - shown)
        shown = drawn


# ---- in a worker

_SHARED: dict[str, Any] = {}  # the episodes' state and the workers' tasks, which all processes see
_READY: list[TaskEnv] = []  # the simulator that has been reset


def start_worker(state: Any, whereabouts: Any) -> None:
    """Of every process."""
    end_on_interrupt()
    _SHARED.update(state=state, whereabouts=whereabouts)


def draw_all(worker: int, targets: Sequence[Target], episodes: Sequence[Episode]) -> None:
    """Draws episodes until none is left."""
    while (number := take(worker, episodes)) is not None:
        draw(targets[episodes[number].task], episodes[number])
        _SHARED["state"][number] = DONE


def take(worker: int, episodes: Sequence[Episode]) -> int | None:
    """The next episode of the worker's own task, whose simulator it has; else one where most is left to each worker."""
    state, whereabouts = _SHARED["state"], _SHARED["whereabouts"]
    with state.get_lock():
        free: dict[int, list[int]] = defaultdict(list)
        for number, (episode, taken) in enumerate(zip(episodes, state[:], strict=True)):
            if taken == FREE:
                free[episode.task].append(number)
        if not free:
            return None
        task = whereabouts[worker]
        if task not in free:
            others = [each for index, each in enumerate(whereabouts[:]) if index != worker]
            left = {task: sum(episodes[number].frames for number in numbers) for task, numbers in free.items()}
            task = max(free, key=lambda task: left[task] / (1 + others.count(task)))
        number = free[task][0]
        state[number], whereabouts[worker] = TAKEN, task
        return number


def draw(target: Target, episode: Episode) -> None:
    """Draws a demonstration and writes its pictures in place."""
    with h5py.File(target.source) as source:
        task = task_of(source["data"])
        demo = read_numbers(source["data"][episode.key])
    env = environment(task.suite, task.name, target.image_size)
    if not _READY or _READY[0] is not env:
        env.reset(seed=0)  # a simulator just built shows marks that a reset hides
        _READY[:] = [env]
    size = target.image_size
    states = demo.states[:: target.every]
    images = np.zeros((2, len(states), size, size, 3), np.uint8)
    for index, snapshot in enumerate(states):
        env.place(snapshot, demo.fixtures)
        seen = env.observe()
        images[0, index], images[1, index] = seen["full_image"], seen["wrist_image"]
    with h5py.File(target.drawing) as file:
        offsets = [file["data"][episode.key]["obs"][camera].id.get_offset() for camera in CAMERAS]
    write_at(target.drawing, dict(zip(offsets, images, strict=True)))
    with target.log.open("a") as log:
        log.write(f"{episode.key}\n")


def write_at(path: Path, parts: dict[int, UInt8[np.ndarray, "N S S 3"]]) -> None:
    """Writes arrays at byte offsets of a file; other processes may write elsewhere in it meanwhile."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for offset, images in parts.items():
            left = memoryview(images.data).cast("B")
            while left:
                written = os.pwrite(descriptor, left, offset)
                left, offset = left[written:], offset + written
    finally:
        os.close(descriptor)
