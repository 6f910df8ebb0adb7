"""What a suite of tasks is, and the suites there are.

A new suite is one new file with a `Suite` and one line in `SUITES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

Observation = dict[str, np.ndarray]  # full_image, wrist_image: uint8 [S, S, 3], upright; state: float32 [8]
Action = Float[np.ndarray, "7"]  # OSC_POSE deltas xyz, axis-angle; gripper -1 open, +1 close
Image = UInt8[np.ndarray, "S S 3"]


@dataclass(frozen=True)
class Task:
    """One task: `max_steps` is the step cap of an episode at 20 Hz."""

    suite: str
    name: str
    instruction: str
    max_steps: int


class TaskEnv(gymnasium.Env[Observation, np.ndarray]):
    """A task as a gymnasium environment whose cameras can be left out.

    `step` is `advance` and then `observe`. Two cameras in software GL cost ten times the physics, so whoever
    runs a whole chunk open loop advances step by step and observes once.
    """

    task: Task
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 -- gymnasium's own declaration
    render_mode = "rgb_array"

    def advance(self, action: Action) -> tuple[float, bool, bool, dict[str, Any]]:
        """One control step: reward (0 or 1), terminated (success), truncated (step cap), info."""
        raise NotImplementedError

    def observe(self) -> Observation:
        """Both cameras and the state."""
        raise NotImplementedError

    def proprio(self) -> Float[np.ndarray, "8"]:
        """The state alone, float32: nothing is drawn."""
        raise NotImplementedError

    def frame(self) -> Image:
        """The third-person camera alone, for videos."""
        raise NotImplementedError

    def snapshot(self) -> Float[np.ndarray, " M"]:
        """What pictures taken now show: the simulator's flattened state, float64.

        That is the time [s], joint positions and joint velocities; pictures do not show velocities, they are left 0.
        """
        raise NotImplementedError

    def fixtures(self) -> Float[np.ndarray, "K 7"]:
        """Poses of the bodies that nothing moves during an episode: position [m], quaternion (w first); float64."""
        raise NotImplementedError

    def place(self, snapshot: Float[np.ndarray, " M"], fixtures: Float[np.ndarray, "K 7"]) -> None:
        """Shows a recorded scene: what `observe` draws next.

        For pictures of a recorded episode, after any `reset`; to go on with the physics, reset again.

        Raises:
            ValueError: they are of another model.
        """
        raise NotImplementedError

    def render(self) -> Image:
        """As in gymnasium: `frame`."""
        return self.frame()

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As in gymnasium."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info


def observation_space(image_size: int) -> gymnasium.Space[Any]:  # gymnasium's Dict is typed as a space of spaces
    """Of every task: two cameras of `image_size` pixels a side and the 8 numbers of LIBERO's proprio, in a Dict."""
    image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    state = gymnasium.spaces.Box(-np.inf, np.inf, (8,), np.float32)
    return gymnasium.spaces.Dict({"full_image": image, "wrist_image": image, "state": state})


def action_space() -> gymnasium.spaces.Box:
    """Of every task; see `Action`."""
    return gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)


class Suite(Protocol):
    """A family of tasks that share an environment."""

    name: str
    tasks: tuple[Task, ...]
    init_states: int  # evaluation states a task has, 0 .. init_states - 1; no demonstration starts in one
    settling_steps: int  # control steps without an action that a reset makes; part of the protocol
    image_size: int  # pixels a side of the pictures, where nobody asks for another size

    def prepare(self) -> tuple[str, ...]:
        """Finds what environments will need, and downloads it where that is usual.

        Call it once before processes with simulators start: they would do it one by one, and against the clock.

        Returns:
            What every report on the suite has to say; usually nothing.

        Raises:
            ImportError, FileNotFoundError: something is missing; says how to get it.
        """
        ...

    def status(self) -> str:
        """Versions and places, for `rsd-fast info`; downloads nothing and raises what `prepare` does."""
        ...

    def make_env(self, task: Task, *, image_size: int = 128, render: bool = True) -> TaskEnv:
        """The environment of `task`; without `render`, images are black and neither EGL nor OSMesa is needed."""
        ...

    def make_expert(self, env: TaskEnv) -> Any:
        """The scripted expert of `env`'s task (`rsd_fast.sim.experts`)."""
        ...


@dataclass(frozen=True)
class Entry:
    """Where a suite lives, and the extra that brings what it needs."""

    module: str
    attribute: str = "SUITE"
    extra: str = field(default="sim")


SUITES: dict[str, Entry] = {
    "robosuite": Entry("rsd_fast.sim.robosuite_suite"),
    "libero_spatial": Entry("rsd_fast.sim.libero_suite", "LIBERO_SPATIAL", extra="libero"),
    "libero_object": Entry("rsd_fast.sim.libero_suite", "LIBERO_OBJECT", extra="libero"),
    "libero_goal": Entry("rsd_fast.sim.libero_suite", "LIBERO_GOAL", extra="libero"),
    "libero_10": Entry("rsd_fast.sim.libero_suite", "LIBERO_10", extra="libero"),
    "libero_90": Entry("rsd_fast.sim.libero_suite", "LIBERO_90", extra="libero"),
}


def get_suite(name: str) -> Suite:
    """The suite called `name`; its simulator is imported by the first environment, not here.

    Raises:
        ValueError: no such suite; lists those there are.
    """
    if name not in SUITES:
        raise ValueError(f"got suite {name!r}, expected one of {sorted(SUITES)}")
    entry = SUITES[name]
    suite: Suite = getattr(import_module(entry.module), entry.attribute)
    return suite


def get_task(suite: Suite, name: str) -> Task:
    """The task called `name`.

    Raises:
        ValueError: no such task; lists those there are.
    """
    for task in suite.tasks:
        if task.name == name:
            return task
    raise ValueError(
        f"got task {name!r}, expected one of {[task.name for task in suite.tasks]} ({suite.name})"
    )


def init_states(suite: Suite, count: int) -> range:
    """The first `count` evaluation states of each task.

    Raises:
        ValueError: more than the suite has.
    """
    if not 1 <= count <= suite.init_states:
        raise ValueError(
            f"got {count} episodes a task, expected 1 to the {suite.init_states} of {suite.name}"
        )
    return range(count)
