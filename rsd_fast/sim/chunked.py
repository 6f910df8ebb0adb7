"""Whole chunks as one step of an environment, so that pictures are drawn once a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from .suites import Observation, TaskEnv, action_space, observation_space


class ChunkedEnv(gymnasium.Env[Observation, np.ndarray]):
    """Executes `chunk` actions open loop, up to the end of the episode, and observes once.

    An episode is driven by one of many workers, so what goes wrong inside the simulator must not take the
    others down: it ends the episode with `info["error"]`. A step after the end does nothing
    (`info["steps"]` stays).

    `info`: `steps` so far, `success`; `error` where the simulator failed; `frames`, where `recording` is set:
    a list of pictures, one a step.

    Args:
        make: builds the environment at the first reset; what it raises is raised.
        chunk: actions a step.
        image_size: of the observations.

    Attributes:
        init_state: the evaluation state that the next reset takes, None: a random start. An attribute because
            a vector environment resets all its members with the same options.
        recording: whether `info` carries frames.
    """

    def __init__(self, make: Callable[[], TaskEnv], chunk: int, image_size: int) -> None:
        if chunk < 1:
            raise ValueError(f"got chunk {chunk}, expected at least 1 action")
        self._make = make
        self._env: TaskEnv | None = None
        self._single = action_space()
        self.observation_space = observation_space(image_size)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (chunk, *(self._single.shape or ())), np.float32)
        self.init_state: int | None = None
        self.recording = False
        self._over = True
        self._info: dict[str, Any] = {}
        self._last: Observation = blank(self.observation_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode at `init_state`, or at a random start drawn from `seed`."""
        super().reset(seed=seed)
        if self._env is None:
            self._env = self._make()
        self._over, self._info = False, {"success": False, "steps": 0}
        try:
            self._last, _ = self._env.reset(seed=seed, options={"init_state": self.init_state})
        except Exception as error:
            self._fail(error)
        return self._last, dict(self._info)

    def step(
        self, action: Float[np.ndarray, "chunk 7"]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Up to `chunk` control steps."""
        if self._over or self._env is None:
            return self._last, 0.0, True, False, dict(self._info)
        reward, terminated, truncated = 0.0, False, False
        frames: list[np.ndarray] = []
        try:
            for single in action:
                reward, terminated, truncated, info = self._env.advance(single)
                self._info.update(info)
                if self.recording:
                    frames.append(self._env.frame())
                if terminated or truncated:
                    break
            self._last = self._env.observe()
        except Exception as error:
            self._fail(error)
            terminated = True
        self._over = self._over or terminated or truncated
        return self._last, reward, terminated, truncated, {**self._info, "frames": frames}

    def close(self) -> None:
        """Frees the simulator."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _fail(self, error: Exception) -> None:
        self._over, self._last = True, blank(self.observation_space)
        self._info["error"] = f"{type(error).__name__}: {error}"


def blank(space: gymnasium.Space[Any]) -> Observation:
    """An observation of zeros."""
    assert isinstance(space, gymnasium.spaces.Dict)
    return {name: np.zeros(part.shape or (), part.dtype) for name, part in space.spaces.items()}
