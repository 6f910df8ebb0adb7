"""A suite and policies without a simulator and networks; what goes wrong in it, and when, is written down."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsd_fast.sim.suites import Task, TaskEnv, action_space, observation_space

TASKS = (Task("fake", "Push", "push the block", 40), Task("fake", "Pull", "pull the block", 40))
SETTINGS = {"mode": "sequential", "rule": "exact", "granularity": "element", "theta": 1.0, "keep": "main"}


@dataclass(frozen=True)
class FakeSuite:
    """Episodes at `init_state` k succeed once the block has moved 8 + k steps of speed 1.

    Attributes:
        folder: where environments leave marks: one file an episode that began, one a process.
        trouble: what happens in the first chunk of an episode, by task and init state: `die`, `hang` or `raise`;
            `unbuildable` by task alone.
        times: how often it happens.
        pause: seconds that a step takes.
    """

    folder: Path
    trouble: Mapping[tuple[str, int], str] = field(default_factory=dict)
    times: int = 1
    pause: float = 0.0
    name: str = "fake"
    tasks: tuple[Task, ...] = TASKS
    init_states: int = 50
    settling_steps: int = 0
    image_size: int = 16
    notes: tuple[str, ...] = ()

    def prepare(self) -> tuple[str, ...]:
        return self.notes

    def status(self) -> str:
        return "made up"

    def make_env(self, task: Task, *, image_size: int = 128, render: bool = True) -> TaskEnv:
        (self.folder / f"process_{os.getpid()}").touch()
        if self.trouble.get((task.name, -1)) == "unbuildable":
            raise ImportError("got no fake, expected version 1.0: pip install fake")
        return FakeEnv(self, task, image_size)

    def make_expert(self, env: TaskEnv) -> Any:
        raise NotImplementedError


class FakeEnv(TaskEnv):
    def __init__(self, suite: FakeSuite, task: Task, image_size: int) -> None:
        self.suite, self.task, self.image_size = suite, task, image_size
        self.observation_space, self.action_space = observation_space(image_size), action_space()
        self.steps, self.init_state, self.moved, self.gripper = 0, 0, 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        assert options is not None
        self.steps, self.init_state, self.moved = 0, options["init_state"], 0.0
        begun = list(self.suite.folder.glob(f"begun_{self.task.name}_{self.init_state}_*"))
        (self.suite.folder / f"begun_{self.task.name}_{self.init_state}_{time.time_ns()}").touch()
        self.trouble = self.suite.trouble.get((self.task.name, self.init_state))
        if len(begun) >= self.suite.times:
            self.trouble = None
        return self.observe(), {}

    def advance(self, action: Any) -> tuple[float, bool, bool, dict[str, Any]]:
        if self.trouble == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.trouble == "hang":
            time.sleep(600)
        elif self.trouble == "raise":
            raise FloatingPointError("the block has left the universe")
        assert self.steps < self.task.max_steps, "stepped after the end"
        time.sleep(self.suite.pause)
        self.steps += 1
        self.moved += float(action[0])
        self.gripper = float(action[6])
        success = self.moved >= 8 + self.init_state - 1e-6
        return float(success), success, not success and self.steps == self.task.max_steps, self.info(success)

    def observe(self) -> dict[str, np.ndarray]:
        return {
            "full_image": self.frame(),
            "wrist_image": self.frame(),
            "state": np.array([self.init_state, self.steps, self.moved, 0, 0, 0, self.gripper, 0], np.float32),
        }

    def frame(self) -> np.ndarray:
        return np.full((self.image_size, self.image_size, 3), self.steps, np.uint8)

    def info(self, success: bool) -> dict[str, Any]:
        return {"success": success, "steps": self.steps}


@dataclass
class FakePolicy:
    """Moves at `speed`; codes tell what it saw. Counts its calls."""

    speed: float = 1.0
    passes: int = 3
    drafted: int = 0
    calls: list[int] = field(default_factory=list)  # chunks a call
    chunk: int = 4

    def generate_actions(self, observations: Sequence[Any], instructions: Sequence[str]) -> Any:
        self.calls.append(len(observations))
        assert all(isinstance(text, str) for text in instructions)
        actions = np.zeros((len(observations), self.chunk, 7), np.float32)
        actions[:, :, 0] = self.speed
        infos = []
        for observation in observations:
            rates = [1.0] * self.drafted
            codes = observation["state"].astype(np.int32).reshape(1, 1, -1)
            infos.append(
                {
                    "passes": self.passes,
                    "accepted_layers": float(self.drafted),
                    "kept_rates": rates,
                    "match_rates": rates,
                    "codes": codes,
                    "ms": {"vision": 0.0, "passes": 0.0, "total": 0.0},
                    "batch": len(observations),
                }
            )
        return actions, infos

    def describe(self) -> dict[str, Any]:
        numbers = {"temperature": 0.0, "stop": 3, "chunk": self.chunk, "speed": self.speed}
        return {**SETTINGS, **numbers, "device": "cpu", "dtype": "float32", "versions": {}}

    def reseed(self, seed: int) -> None:
        assert seed >= 0
