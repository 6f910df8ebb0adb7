"""Whole chunks as one step of an environment, so that pictures are drawn once a chunk."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from rsd_fast.nvtx import nvtx_range

from .suites import Observation, Suite, TaskEnv, action_space, get_task, observation_space


class ChunkedEnv(gymnasium.Env[Observation, np.ndarray]):
    """Episodes of a suite's tasks, one after another; a step executes `chunk` actions open loop and observes once.

    A step stops early at the end of the episode. The simulator of a task is built by the first reset to it and kept
    until another task is asked for. It is driven from another process, so what goes wrong in a simulator is not raised:
    the episode ends, and `info["error"]` says why.

    Where an episode is the scripted expert's, what a step is given only says how many control steps it has: the expert
    acts at each of them, here, because it needs the simulator's state. No picture is drawn, unless a film is wanted.

    `info`: `steps` so far, `success`, `built` (whether there is a simulator); `error` where it failed; `frames`,
    uint8 `[n, S, S, 3]`, where pictures of every step were asked for.

    Args:
        suite: whose tasks are run.
        chunk: actions a step.
        image_size: pixels a side of the observations.
    """

    def __init__(self, suite: Suite, chunk: int, image_size: int) -> None:
        if chunk < 1:
            raise ValueError(f"got chunk {chunk}, expected at least 1 action")
        self.suite, self.image_size = suite, image_size
        self.observation_space = observation_space(image_size)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (chunk, *(action_space().shape or ())), np.float32)
        self._env: TaskEnv | None = None
        self._draws = False  # whether it draws pictures
        self._expert: Any = None  # acts in the running episode
        self._film = False
        self._info: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode.

        Args:
            seed: of a random start, where no init state is asked for.
            options: `task`, a name; `init_state`, an evaluation state; `film`, whether to picture every step; `expert`,
                whether the suite's scripted expert acts.
        """
        super().reset(seed=seed)
        options = options or {}
        self._film, expert = bool(options.get("film")), bool(options.get("expert"))
        self._info = {"success": False, "steps": 0}
        try:
            env = self._require(options["task"], draws=self._film or not expert)
            observation, _ = env.reset(seed=seed, options={"init_state": options.get("init_state")})
            self._expert = self.suite.make_expert(env) if expert else None
        except Exception as error:
            observation = self._failed(error)
        return observation, self._info | {"built": self._env is not None}

    def step(self, action: Float[np.ndarray, "chunk 7"]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Up to `chunk` control steps of an episode that `reset` began."""
        reward, terminated, truncated = 0.0, False, False
        frames: list[np.ndarray] = []
        try:
            assert self._env is not None, "step before reset"
            for single in action:
                with nvtx_range("env/step"):
                    command = single if self._expert is None else self._expert.act()
                    reward, terminated, truncated, info = self._env.advance(command)
                self._info |= {"success": info["success"], "steps": info["steps"]}
                if self._film:
                    frames.append(self._env.frame())
                if terminated or truncated:
                    break
            with nvtx_range("env/render"):
                observation = self._env.observe()
        except Exception as error:
            observation, terminated = self._failed(error), True
        filmed = {"frames": np.stack(frames)} if frames else {}
        return observation, reward, terminated, truncated, self._info | filmed

    def close(self) -> None:
        """Frees the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = self._expert = None

    def _require(self, task: str, draws: bool) -> TaskEnv:
        if self._env is None or self._env.task.name != task or (draws and not self._draws):
            self.close()
            wanted = get_task(self.suite, task)
            self._env = self.suite.make_env(wanted, image_size=self.image_size, render=draws)
            self._draws = draws
        return self._env

    def _failed(self, error: Exception) -> Observation:
        self._info["error"] = f"{type(error).__name__}: {error}"
        return blank(self.observation_space)


def blank(space: gymnasium.Space[Any]) -> Observation:
    """An observation of zeros."""
    assert isinstance(space, gymnasium.spaces.Dict)
    return {name: np.zeros(part.shape or (), part.dtype) for name, part in space.spaces.items()}
