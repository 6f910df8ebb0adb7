"""Simulators as actors of a Ray cluster; the same interface as `rsd_fast.sim.vector`.

What an actor answers depends on what it is asked alone, the start of an episode and all actions since, and not on what
it was asked before. So Ray may ask again: an actor that comes back on another node, without a past, plays the episode
up to where it was, and its answer is the same to the bit. Nobody else notices.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from jaxtyping import Float
from ray.exceptions import GetTimeoutError, RayError

from .chunked import ChunkedEnv
from .suites import Observation, Suite
from .vector import Reply, SimulatorCrash, prepare_process

# How often Ray asks an actor again whose process or node is gone, before it counts as crashed. A node that dies costs
# several: it takes Ray a while to notice.
RETRIES = 5
# What an actor holds of a node: next to nothing, so that those of a lost node find room on the others, but not nothing,
# or they would come to nodes that are to have no work.
CPUS = 0.001


@dataclass(frozen=True)
class Told:
    """What the runner needs of an answer; the observation stays in the object store. See `Reply`."""

    state: Float[np.ndarray, "8"]
    over: bool
    info: dict[str, Any]


class SimulatorActor:
    """A `ChunkedEnv` in an actor's process.

    Args:
        suite, chunk, image_size: see `ChunkedEnv`.
        environment: variables that simulators read.
    """

    def __init__(self, suite: Suite, chunk: int, image_size: int, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        prepare_process(None)
        self.env = ChunkedEnv(suite, chunk, image_size)
        self.played = (0, 0)  # episode, and how many chunks of it

    def play(
        self, episode: int, options: dict[str, Any], chunks: Sequence[Float[np.ndarray, "chunk 7"]]
    ) -> tuple[Observation, Told]:
        """The observation after `chunks`, of which only the last is new where nothing was lost.

        Args:
            episode: its number, from 1 on.
            options: how it begins, see `ChunkedEnv.reset`.
            chunks: all that was executed of it.
        """
        over = False
        if self.played != (episode, len(chunks) - 1):
            observation, info = self.env.reset(options=options)
            for chunk in chunks[:-1]:
                self.env.step(chunk)
        if chunks:
            observation, _, terminated, truncated, info = self.env.step(chunks[-1])
            over = terminated or truncated
        self.played = (episode, len(chunks))
        return observation, Told(observation["state"], over or "error" in info, info)


class RaySimulator:
    """A `SimulatorActor` from the runner's side; see `rsd_fast.sim.vector.Simulator`.

    Actors are spread over the nodes; where a node is lost, its simulators go on on the others.

    Args:
        suite, chunk, image_size, timeout: see `Simulator`.
        environment: variables that simulators read.
    """

    def __init__(
        self,
        suite: Suite,
        chunk: int,
        image_size: int,
        timeout: float,
        environment: Mapping[str, str],
    ) -> None:
        self.task: str | None = None
        self.timeout = timeout
        remote: Any = ray.remote(SimulatorActor)
        wanted = remote.options(num_cpus=CPUS, max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD")
        self._actor = wanted.remote(suite, chunk, image_size, environment)
        self._episode, self._sent = 0, 0.0
        self._options: dict[str, Any] = {}
        self._chunks: list[np.ndarray] = []
        self._observation: Any = None
        self.told: Any = None  # reference to the answer to the pending command

    @property
    def deadline(self) -> float:
        """When the pending command counts as hung, on the monotonic clock."""
        return self._sent + self.timeout

    def reset(self, task: str, init_state: int, film: bool = False, expert: bool = False) -> None:
        """See `Simulator`."""
        self.task = task
        self._episode += 1
        self._options = {"task": task, "init_state": init_state, "film": film, "expert": expert}
        self._chunks = []
        self._play()

    def step(self, actions: Float[np.ndarray, "chunk 7"]) -> None:
        """See `Simulator`."""
        self._chunks.append(actions)
        self._play()

    def collect(self) -> Reply:
        """See `Simulator`; the observation is a reference, unless the episode is filmed."""
        try:
            told: Told = ray.get(self.told, timeout=max(0.0, self.deadline - time.monotonic()))
            observation = ray.get(self._observation) if self._options["film"] else self._observation
        except GetTimeoutError as error:
            raise SimulatorCrash(f"the simulator did not answer within {self.timeout:g} s") from error
        except RayError as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise SimulatorCrash(f"the simulator's actor died ({type(error).__name__}: {said})") from error
        return Reply(observation, told.state, told.over, told.info, time.monotonic() - self._sent)

    def close(self) -> None:
        """Ends the actor, whatever it is doing."""
        ray.kill(self._actor)

    def _play(self) -> None:
        self._sent = time.monotonic()
        play = self._actor.play.options(num_returns=2)
        self._observation, self.told = play.remote(self._episode, self._options, list(self._chunks))


def ready_actors(busy: Sequence[RaySimulator], block: bool) -> list[RaySimulator]:
    """As `rsd_fast.sim.vector.ready_simulators`."""
    if not busy:
        return []
    answers = [simulator.told for simulator in busy]
    if block:
        ray.wait(answers, timeout=max(0.0, min(simulator.deadline for simulator in busy) - time.monotonic()))
    done, _ = ray.wait(answers, num_returns=len(answers), timeout=0)
    now = time.monotonic()
    return [simulator for simulator in busy if simulator.told in done or simulator.deadline <= now]
