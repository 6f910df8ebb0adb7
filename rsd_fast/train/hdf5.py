"""Demonstration files in LIBERO's own layout (robomimic style), one HDF5 file a task.

    data                    attrs: problem_info (language_instruction), env_args, num_demos, total, settings
      demo_0                attrs: num_samples, seed, success
        actions             [N, 7] float32, what the expert commanded
        executed_actions    [N, 7] float32, what was executed; ours only
        pushed              [N] uint8, 1 where the two differ; ours only
        dones, rewards      [N] uint8, 1 at the last step
        robot_states        [N, 9] float32: two finger joints, hand position, hand quaternion (xyzw)
        obs
          agentview_rgb, eye_in_hand_rgb   [N, S, S, 3] uint8
          ee_states [N, 6], ee_pos [N, 3], ee_ori [N, 3], gripper_states [N, 2]

LIBERO's public files hold pictures as the simulator gives them, turned by 180 degrees. Ours are upright, and
say so: attribute `image_convention` = "upright" of `data`.
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


@dataclass(frozen=True)
class Demonstration:
    """One successful episode, step by step."""

    seed: int
    actions: Float[np.ndarray, "N 7"]
    executed: Float[np.ndarray, "N 7"]
    pushed: UInt8[np.ndarray, " N"]
    full_images: UInt8[np.ndarray, "N S S 3"]
    wrist_images: UInt8[np.ndarray, "N S S 3"]
    states: Float[np.ndarray, "N 8"]


def write_part(path: Path, demo: Demonstration) -> None:
    """Writes one episode; the file is there whole or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with h5py.File(unfinished, "w") as file:
        write_demonstration(file.create_group("demo"), demo)
    unfinished.rename(path)


def write_demonstration(group: h5py.Group, demo: Demonstration) -> None:
    """Fills the group of one episode."""
    count = len(demo.actions)
    group.attrs.update(num_samples=count, seed=demo.seed, success=True)
    ends = np.zeros(count, np.uint8)
    ends[-1] = 1
    position, turn, fingers = np.split(demo.states, [3, 6], axis=1)
    quaternion = Rotation.from_rotvec(turn).as_quat().astype(np.float32)
    steps = {
        "actions": demo.actions,
        "executed_actions": demo.executed,
        "pushed": demo.pushed,
        "dones": ends,
        "rewards": ends,
        "robot_states": np.concatenate([fingers, position, quaternion], axis=1),
        "obs/ee_states": np.concatenate([position, turn], axis=1),
        "obs/ee_pos": position,
        "obs/ee_ori": turn,
        "obs/gripper_states": fingers,
    }
    for name, values in steps.items():
        group.create_dataset(name, data=values)
    images = {"agentview_rgb": demo.full_images, "eye_in_hand_rgb": demo.wrist_images}
    for name, pictures in images.items():
        chunks = (min(16, count), *pictures.shape[1:])
        group.create_dataset(f"obs/{name}", data=pictures, chunks=chunks, compression="lzf")


def gather(parts: Sequence[Path], path: Path, task: Task, config: DemosConfig) -> None:
    """Copies single episodes into one file, there whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    with h5py.File(unfinished, "w") as file:
        data = file.create_group("data")
        total = 0
        for index, part in enumerate(parts):
            with h5py.File(part) as source:
                source.copy("demo", data, name=f"demo_{index}")
            total += int(data[f"demo_{index}"].attrs["num_samples"])
        data.attrs.update(
            num_demos=len(parts),
            total=total,
            problem_info=json.dumps({"problem_name": task.name, "language_instruction": task.instruction}),
            env_args=json.dumps(
                {"env_name": task.name, "suite": task.suite, "image_size": config.image_size}
            ),
            image_convention="upright",
            settings=json.dumps(settings(config)),
        )
    unfinished.rename(path)


def settings(config: DemosConfig) -> dict[str, Any]:
    """What decides the content of an episode, beside its task."""
    return {"image_size": config.image_size, "push": config.push, "slips": config.slips, "seed": config.seed}


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
