"""Drives several simulators and one policy: whoever is ready works.

    queue of episodes -> simulators (processes) -> observations -> policy -> actions -> simulators ... -> rows
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from rsd_fast.sim.suites import Observation
from rsd_fast.sim.vector import Reply, SimulatorCrash, ready_simulators

from .actions import simulator_actions
from .episodes import Episode, Film, RunContext, WorkItem
from .policies import Deciders
from .records import EpisodeRow

Ended = tuple[WorkItem, EpisodeRow, Film]


class AnySimulator(Protocol):
    """What is asked of a simulator, wherever it is: see `rsd_fast.sim.vector.Simulator`."""

    task: str | None

    def reset(self, task: str, init_state: int, film: bool = False, expert: bool = False) -> None:
        """Begins an episode."""
        ...

    def step(self, actions: Float[np.ndarray, "chunk 7"]) -> None:
        """Executes a chunk."""
        ...

    def collect(self) -> Reply:
        """The answer to the last command."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


@dataclass
class Usage:
    """Seconds since the start, and seconds that the policy and the simulators (all together) worked."""

    workers: int
    episodes: int = 0
    policy: float = 0.0
    simulators: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def describe(self) -> dict[str, float]:
        """JSON-able: seconds, and shares of them; those of the simulators are means."""
        wall = max(time.monotonic() - self.started, 1e-9)
        return {
            "episodes": self.episodes,
            "seconds": round(wall, 1),
            "policy_busy": round(self.policy / wall, 3),
            "simulators": self.workers,
            "simulators_busy": round(self.simulators / wall / self.workers, 3),
        }


@dataclass(eq=False)
class Slot:
    """A place for a simulator and the episode that it runs."""

    simulator: AnySimulator | None = None
    episode: Episode | None = None
    observation: Observation | None = None  # waits for the policy

    @property
    def busy(self) -> bool:
        """Whether its simulator works."""
        return self.episode is not None and self.observation is None


class Scheduler:
    """Runs episodes to their end.

    Args:
        policies: decide.
        context: goes into every row.
        make_simulator: starts a simulator.
        workers: simulators at once.
        batch: chunks that the policy decodes in one call at most.
        replan: actions of a chunk that are executed.
        retries: how often an episode that ended in an error is tried again.
        ready: those of some simulators to collect from; see `rsd_fast.sim.vector.ready_simulators`.
    """

    def __init__(
        self,
        policies: Deciders,
        context: RunContext,
        make_simulator: Callable[[], AnySimulator],
        *,
        workers: int,
        batch: int,
        replan: int,
        retries: int,
        ready: Callable[[list[Any], bool], list[Any]] = ready_simulators,
    ) -> None:
        self.policies, self.context, self.make_simulator, self.ready = policies, context, make_simulator, ready
        self.batch, self.replan, self.retries = batch, replan, retries
        self.slots = [Slot() for _ in range(workers)]
        self.usage = Usage(workers)
        self._queue: list[WorkItem] = []
        self._waiting: deque[Slot] = deque()  # with an observation, the oldest first
        self._ever_built = False

    def run(self, items: Sequence[WorkItem]) -> Generator[Ended, None, None]:
        """Yields every episode as it ends; one that is tried again is yielded as often.

        Raises:
            RuntimeError: no simulator can be built at all; why.
        """
        self._queue, self.usage = list(items), Usage(len(self.slots))
        try:
            while self._queue or any(slot.episode for slot in self.slots):
                yield from self._begin_episodes()
                yield from self._collect()
                yield from self._decide()
        finally:
            self.close()

    def close(self) -> None:
        """Ends all simulators."""
        for slot in self.slots:
            self._drop(slot)

    # ---- simulators

    def _begin_episodes(self) -> Iterator[Ended]:
        free = [slot for slot in self.slots if slot.episode is None][: len(self._queue)]
        failed = self._start_simulators([slot for slot in free if slot.simulator is None])
        for slot in free:
            item = self._take(slot)
            slot.episode = Episode(item)
            try:
                if slot.simulator is None:
                    raise failed[id(slot)]
                slot.simulator.reset(item.task.name, item.init_state, item.film, item.is_expert)
            except SimulatorCrash as error:
                yield self._fail(slot, error)

    def _start_simulators(self, slots: list[Slot]) -> dict[int, SimulatorCrash]:
        """Side by side, as a process takes seconds; why those did not start that did not."""
        if not slots:
            return {}
        with ThreadPoolExecutor(len(slots)) as pool:
            starting = [(slot, pool.submit(self.make_simulator)) for slot in slots]
        failed = {}
        for slot, future in starting:
            try:
                slot.simulator = future.result()
            except SimulatorCrash as error:
                failed[id(slot)] = error
        return failed

    def _take(self, slot: Slot) -> WorkItem:
        """The next episode of the task that the slot has built; else of the task that the fewest are busy with."""
        built = slot.simulator.task if slot.simulator else None
        position = next((i for i, item in enumerate(self._queue) if item.task.name == built), None)
        if position is None:
            running = Counter(other.episode.item.task.name for other in self.slots if other.episode)
            position = min(range(len(self._queue)), key=lambda i: (running[self._queue[i].task.name], i))
        return self._queue.pop(position)

    def _collect(self) -> Iterator[Ended]:
        busy = {id(slot.simulator): slot for slot in self.slots if slot.busy}
        simulators = [slot.simulator for slot in busy.values() if slot.simulator]
        for simulator in self.ready(simulators, not self._waiting):
            slot = busy[id(simulator)]
            try:
                reply = simulator.collect()
            except SimulatorCrash as error:
                yield self._fail(slot, error)
            else:
                yield from self._observe(slot, reply)

    def _observe(self, slot: Slot, reply: Reply) -> Iterator[Ended]:
        assert slot.episode is not None
        self.usage.simulators += reply.seconds
        slot.episode.observe(reply)
        if "error" in reply.info:
            if not reply.info.get("built", True) and not self._ever_built:  # no use in trying again
                raise RuntimeError(f"{slot.episode.item.task.name} cannot be built: {reply.info['error']}")
            yield self._fail(slot, None)
            return
        self._ever_built = True
        if reply.over:
            episode, slot.episode = slot.episode, None
            self.usage.episodes += 1
            yield episode.item, episode.row(self.context), episode.film
            return
        if slot.episode.item.film:
            slot.episode.look(reply.observation["wrist_image"])
        if slot.episode.item.is_expert:
            yield from self._step(slot, np.zeros((self.replan, 7), np.float32))  # the simulator acts by itself
        else:
            slot.observation = reply.observation
            self._waiting.append(slot)

    def _step(self, slot: Slot, actions: Float[np.ndarray, "replan 7"]) -> Iterator[Ended]:
        assert slot.simulator is not None
        try:
            slot.simulator.step(actions)
        except SimulatorCrash as error:
            yield self._fail(slot, error)

    def _fail(self, slot: Slot, error: SimulatorCrash | None) -> Ended:
        """Ends an episode in an error and its process with it: what it broke inside is not known."""
        episode = slot.episode
        assert episode is not None
        self._drop(slot)
        item, row = episode.item, episode.row(self.context, None if error is None else str(error))
        if item.attempt < self.retries:
            self._queue.append(replace(item, attempt=item.attempt + 1))
        elif not self._ever_built:
            raise RuntimeError(f"{item.task.name} cannot be built: {row.error}")
        return item, row, episode.film

    def _drop(self, slot: Slot) -> None:
        if slot.simulator is not None:
            slot.simulator.close()
        slot.simulator = slot.episode = slot.observation = None

    # ---- policy

    def _decide(self) -> Iterator[Ended]:
        """One call: the oldest observation, and others that wait for the same mode."""
        if not self._waiting:
            return
        mode = _episode(self._waiting[0]).item.mode
        slots = [slot for slot in self._waiting if _episode(slot).item.mode == mode][: self.batch]
        for slot in slots:
            self._waiting.remove(slot)
        observations = [slot.observation for slot in slots if slot.observation is not None]
        instructions = [_episode(slot).item.task.instruction for slot in slots]
        start = time.monotonic()
        seeds = [_episode(slot).next_seed for slot in slots]
        actions, infos = self.policies.decode(mode, observations, instructions, seeds)
        self.usage.policy += time.monotonic() - start
        for slot, chunk, info in zip(slots, actions, infos, strict=True):
            _episode(slot).infos.append(info)
            slot.observation = None
            yield from self._step(slot, simulator_actions(chunk[: self.replan], self.policies.gripper))


def _episode(slot: Slot) -> Episode:
    assert slot.episode is not None
    return slot.episode
