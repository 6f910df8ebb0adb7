"""Tiny demonstrations whose images show the action: a policy that looks can learn them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

SIZE = 32
QUICK = {"device": "cpu", "batch": 16, "warmup": 2, "ema": 0.9, "eval_samples": 24, "workers": 1}
SEEING = {"shift": 1, "jitter": 0.05, "proprio_noise": 0.0, "proprio_dropout": 0.0}


def write_demos(
    folder: Path,
    task: str = "Lift",
    demos: int = 8,
    frames: int = 12,
    size: int = SIZE,
    upright: bool = True,
    every: int = 1,
) -> Path:
    """Each demonstration goes one constant way, and its images' colour says which; every `every`-th step has one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}_demo.hdf5"
    rng = np.random.default_rng(len(task))
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": f"do the {task} task"})
        data.attrs["env_args"] = json.dumps({"suite": "robosuite"})
        data.attrs["settings"] = json.dumps({"image_size": size, "push": 0.6, "slips": 0.35, "seed": 0})
        data.attrs["num_demos"] = demos
        if every > 1:
            data.attrs["picture_every"] = every
        if upright:
            data.attrs["image_convention"] = "upright"
        for index in range(demos):
            write_demo(data.create_group(f"demo_{index}"), rng, index, frames, size, every)
    return path


def write_demo(group: h5py.Group, rng: np.random.Generator, index: int, frames: int, size: int, every: int) -> None:
    way = np.array([-1.0, 1.0])[[index % 2, index // 2 % 2, index // 4 % 2]]
    actions = np.zeros((frames, 7), np.float32)
    actions[:, :3] = 0.8 * way + 0.02 * rng.standard_normal((frames, 3))
    actions[:, 6] = way[0]
    images = np.zeros((len(range(0, frames, every)), size, size, 3), np.uint8)
    images[:] = (128 + 100 * way).astype(np.uint8)
    images[:, :2] = 255  # a white stripe at the top tells upright from turned
    group["actions"] = actions
    group["obs/agentview_rgb"] = images
    group["obs/eye_in_hand_rgb"] = images
    group["obs/ee_states"] = rng.standard_normal((frames, 6)).astype(np.float32)
    group["obs/gripper_states"] = rng.standard_normal((frames, 2)).astype(np.float32)
