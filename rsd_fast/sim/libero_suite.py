"""Suites `libero_spatial`, `_object`, `_goal`, `_10` and `_90`, with the protocol of OpenVLA-OFT's evaluation.

Benchmark: Liu et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning", 2023. Protocol: Kim, Finn
and Liang, "Fine-Tuning Vision-Language-Action Models: Optimizing Speed and Success", 2025.
"""

from __future__ import annotations

import re
import runpy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .libero_assets import assets_notes, find_assets
from .libero_env import SETTLING_STEPS, LiberoEnv
from .libero_package import TASK_MAP, package_folder, package_version
from .suites import Task, TaskEnv

SCENE = re.compile(r"^[A-Z_]+_SCENE\d+_")


@dataclass(frozen=True)
class LiberoSuite:
    """See `rsd_fast.sim.suites.Suite`."""

    name: str
    max_steps: int
    init_states: int = 50
    settling_steps: int = SETTLING_STEPS
    image_size: int = 256

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """In the benchmark's order; read from the installed package, of which nothing is imported.

        Raises:
            ImportError: LIBERO is not installed.
        """
        names = runpy.run_path(str(package_folder() / TASK_MAP))["libero_task_map"][self.name]
        return tuple(Task(self.name, name, instruction(name), self.max_steps) for name in names)

    def prepare(self) -> tuple[str, ...]:
        """See `Suite`."""
        return assets_notes(find_assets())

    def status(self) -> str:
        """See `Suite`."""
        assets = find_assets(download=False)
        notes = "".join(f", {note.partition(':')[0]}" for note in assets_notes(assets))
        return f"{len(self.tasks)} tasks ({package_version()}, assets at {assets}{notes})"

    def make_env(self, task: Task, *, image_size: int = 256, render: bool = True) -> LiberoEnv:
        """See `Suite` and `LiberoEnv`."""
        package = package_folder()
        states = package / "init_files" / self.name / f"{task.name}.pruned_init"
        return LiberoEnv(
            task,
            package / "bddl_files" / self.name / f"{task.name}.bddl",
            partial(load_states, states),
            image_size,
            render,
        )

    def make_expert(self, env: TaskEnv) -> Any:
        """See `Suite`; raises NotImplementedError where a goal of the task has no scripted expert."""
        from .experts.libero_experts import make_expert

        assert isinstance(env, LiberoEnv)
        return make_expert(env)


LIBERO_SPATIAL = LiberoSuite("libero_spatial", 220)
LIBERO_OBJECT = LiberoSuite("libero_object", 280)
LIBERO_GOAL = LiberoSuite("libero_goal", 300)
LIBERO_10 = LiberoSuite("libero_10", 520)
LIBERO_90 = LiberoSuite("libero_90", 400)


def instruction(name: str) -> str:
    """The words of a task's name, without its scene.

    They are what LIBERO calls the task's language, what the public data sets hold and what policies are evaluated
    with. The `:language` of a BDDL file often differs ("Pick the akita black bowl ...").
    """
    return SCENE.sub("", name).replace("_", " ")


def load_states(file: Path) -> Float[np.ndarray, "50 N"]:
    """The initial states of a task, float64; nothing but a numpy array is unpickled."""
    import torch
    from numpy._core.multiarray import _reconstruct

    named = [(_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*named, np.ndarray, np.dtype, np.dtypes.Float64DType]):
        states: np.ndarray = torch.load(file, weights_only=True)
    return states
