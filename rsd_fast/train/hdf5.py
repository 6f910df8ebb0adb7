"""Demonstration files in LIBERO's own layout (robomimic style), one HDF5 file a task.

    data                    attrs: problem_info (language_instruction), env_args, num_demos, total, settings
      demo_0                attrs: num_samples, seed, success
        actions             [N, 7] float32, what the expert commanded
        executed_actions    [N, 7] float32, what was executed; ours only
        pushed              [N] uint8, 1 where the two differ; ours only
        states              [N, 1 + nq + nv] float32, the simulator's flattened state: time, positions, velocities
        fixtures            [K, 7] float64, poses of the bodies that stand still; ours only
        dones, rewards      [N] uint8, 1 at the last step
        robot_states        [N, 9] float32: two finger joints, hand position, hand quaternion (xyzw)
        obs
          agentview_rgb, eye_in_hand_rgb   [N, S, S, 3] uint8
          ee_states [N, 6], ee_pos [N, 3], ee_ori [N, 3], gripper_states [N, 2]

LIBERO's public files hold pictures as the simulator gives them, turned by 180 degrees. Ours are upright, and
say so: attribute `image_convention` = "upright" of `data`.

LIBERO's `states` are float64 and have velocities, and each demonstration of its files names the XML model that they
belong to. Ours are what the pictures of the step show, without velocities (0); the model is the task's own, with its
fixtures at `fixtures`.

A file recorded without pictures (`rsd-fast demos --no-render`) has no `agentview_rgb` and `eye_in_hand_rgb`, and not
what follows from the rest: `dones`, `rewards`, `robot_states`, `ee_pos`, `ee_ori`. `rsd-fast render` adds them all.

With `rsd-fast render --every K` pictures are those of the steps 0, K, 2 K, ... only; `data` says so in its attribute
`picture_every`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    from ..sim.suites import Task
    from .config import DemosConfig

SMALL = 512  # bytes, below which compression costs more than it saves


@dataclass(frozen=True)
class Demonstration:
    """One successful episode, step by step; see the module's text. `proprio`: hand position, axis-angle, fingers."""

    seed: int
    actions: Float[np.ndarray, "N 7"]
    executed: Float[np.ndarray, "N 7"]
    pushed: UInt8[np.ndarray, " N"]
    proprio: Float[np.ndarray, "N 8"]
    states: Float[np.ndarray, "N M"]
    fixtures: Float[np.ndarray, "K 7"]
    full_images: UInt8[np.ndarray, "N S S 3"] | None = None
    wrist_images: UInt8[np.ndarray, "N S S 3"] | None = None

    def numbers(self) -> dict[str, np.ndarray]:
        """What cannot be told from the rest, by its name in a file."""
        return {
            "actions": self.actions,
            "executed_actions": self.executed,
            "pushed": self.pushed,
            "states": self.states,
            "fixtures": self.fixtures,
            "obs/ee_states": self.proprio[:, :6],
            "obs/gripper_states": self.proprio[:, 6:],
        }

    def derived(self) -> dict[str, np.ndarray]:
        """What LIBERO's files say a second time."""
        ends = np.zeros(len(self.actions), np.uint8)
        ends[-1] = 1
        position, turn, fingers = np.split(self.proprio, [3, 6], axis=1)
        quaternion = Rotation.from_rotvec(turn).as_quat().astype(np.float32)
        return {
            "dones": ends,
            "rewards": ends,
            "robot_states": np.concatenate([fingers, position, quaternion], axis=1),
            "obs/ee_pos": position,
            "obs/ee_ori": turn,
        }


def write_part(path: Path, demo: Demonstration) -> None:
    """Writes one episode; the file is there whole or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with h5py.File(unfinished, "w", libver="latest") as file:
        write_demonstration(file.create_group("demo"), demo)
    unfinished.rename(path)


def write_demonstration(group: h5py.Group, demo: Demonstration) -> None:
    """Fills the group of one episode."""
    group.attrs.update(num_samples=len(demo.actions), seed=demo.seed, success=True)
    pictures = {"agentview_rgb": demo.full_images, "eye_in_hand_rgb": demo.wrist_images}
    drawn = {name: images for name, images in pictures.items() if images is not None}
    for name, values in (demo.numbers() | (demo.derived() if drawn else {})).items():
        write_numbers(group, name, values)
    for name, images in drawn.items():
        chunks = (min(16, len(images)), *images.shape[1:])
        group.create_dataset(f"obs/{name}", data=images, chunks=chunks, compression="lzf")


def write_numbers(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Compressed where that pays."""
    packed = {"chunks": values.shape, "compression": "gzip", "compression_opts": 9, "shuffle": True}
    group.create_dataset(name, data=values, **(packed if values.nbytes > SMALL else {}))


def read_numbers(group: h5py.Group) -> Demonstration:
    """The episode of a group, without its pictures.

    Raises:
        KeyError: it has no states to draw pictures of.
    """
    proprio = np.concatenate([group["obs/ee_states"][()], group["obs/gripper_states"][()]], 1)
    return Demonstration(
        seed=int(group.attrs["seed"]),
        actions=group["actions"][()],
        executed=group["executed_actions"][()],
        pushed=group["pushed"][()],
        proprio=proprio,
        states=group["states"][()],
        fixtures=group["fixtures"][()],
    )


def gather(parts: Sequence[Path], path: Path, task: Task, config: DemosConfig) -> None:
    """Copies single episodes into one file, there whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    with h5py.File(unfinished, "w", libver="latest") as file:
        data = file.create_group("data")
        total = 0
        for index, part in enumerate(parts):
            with h5py.File(part) as source:
                source.copy("demo", data, name=f"demo_{index}")
            total += int(data[f"demo_{index}"].attrs["num_samples"])
        data.attrs.update(
            num_demos=len(parts),
            total=total,
            **describe(task, settings(config)),
        )
    unfinished.rename(path)


def describe(task: Task, made_with: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a task's file."""
    size = {"image_size": made_with["image_size"]} if "image_size" in made_with else {}
    every = {"picture_every": made_with["every"]} if "every" in made_with else {}
    return {
        **every,
        "problem_info": json.dumps({"problem_name": task.name, "language_instruction": task.instruction}),
        "env_args": json.dumps({"env_name": task.name, "suite": task.suite, **size}),
        "image_convention": "upright",
        "settings": json.dumps(made_with),
    }


def settings(config: DemosConfig) -> dict[str, Any]:
    """What decides the content of an episode, beside its task."""
    size = {"image_size": config.image_size} if config.render else {}
    policy = {"policy": config.policy} if config.policy else {}
    return {**size, "push": config.push, "slips": config.slips, **policy, "seed": config.seed}


def read_task_file_seeds(path: Path, config: DemosConfig) -> list[int]:
    """The seeds of a file's episodes.

    Raises:
        ValueError: the file cannot be read, or was made with other settings.
    """
    try:
        with h5py.File(path) as file:
            data = file["data"]
            made_with = json.loads(data.attrs["settings"])
            seeds = [
                int(data[f"demo_{index}"].attrs["seed"]) for index in range(int(data.attrs["num_demos"]))
            ]
    except (OSError, KeyError) as error:
        raise ValueError(f"got an unreadable demonstration file {path} ({error}); delete it") from error
    if made_with != settings(config):
        raise ValueError(
            f"got {path} made with {made_with}, expected {settings(config)}; delete it or use them"
        )
    return seeds
