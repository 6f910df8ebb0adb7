"""Simulators in processes of their own, with gymnasium's vector environments.

A vector environment of many members steps them in lockstep: all wait for the slowest, and one that dies takes the
others with it. So each process is a vector environment of one member, and whoever drives several collects those that
are ready: `ready_simulators`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker
from jaxtyping import Float

from .chunked import ChunkedEnv
from .gl import draw_on
from .suites import Observation, Suite


class SimulatorCrash(RuntimeError):
    """The process of a simulator is gone, or does not answer in time."""


@dataclass(frozen=True)
class Reply:
    """What a simulator answered: see `ChunkedEnv` for `info`.

    Attributes:
        observation: for a policy; what an episode is followed by is beside it, because an observation that a policy
            elsewhere will see may stay elsewhere.
        state: the observation's, of the robot.
        over: whether the episode has ended.
        seconds: from the command to the answer.
    """

    observation: Observation
    state: Float[np.ndarray, "8"]
    over: bool
    info: dict[str, Any]
    seconds: float


class Simulator:
    """One process with a `ChunkedEnv`; commands return at once, `collect` takes the answer.

    Args:
        suite: whose tasks it runs; anything that pickles.
        chunk: actions a step.
        image_size: pixels a side of the observations.
        timeout: seconds that a command may take before the process counts as hung; building a task is one.
        gpu: draws there where EGL can (see `rsd_fast.sim.gl.draw_on`); None leaves the choice to MuJoCo.

    Raises:
        SimulatorCrash: the process dies at once.
    """

    def __init__(self, suite: Suite, chunk: int, image_size: int, timeout: float, gpu: int | None = None) -> None:
        self.task: str | None = None  # of the last episode, whose environment is built
        self.timeout = timeout
        self._sent = 0.0
        try:
            self._envs = AsyncVectorEnv(
                [partial(ChunkedEnv, suite, chunk, image_size)],
                autoreset_mode=AutoresetMode.DISABLED,
                context="spawn",  # GL contexts and CUDA do not survive a fork
                shared_memory=True,
                worker=partial(_serve, gpu),
            )
        except (EOFError, OSError) as error:
            raise SimulatorCrash(f"the simulator's process died at its start ({error!r})") from error

    @property
    def pipe(self) -> Connection:
        """Readable when the answer is there, and when the process has died."""
        return self._envs.parent_pipes[0]

    @property
    def pid(self) -> int:
        """Of the process."""
        pid = self._envs.processes[0].pid
        assert pid is not None
        return pid

    @property
    def deadline(self) -> float:
        """When the pending command counts as hung, on the monotonic clock."""
        return self._sent + self.timeout

    def reset(self, task: str, init_state: int, film: bool = False, expert: bool = False) -> None:
        """Begins an episode; see `ChunkedEnv.reset`.

        Raises:
            SimulatorCrash: the process is gone.
        """
        self.task = task
        options = {"task": task, "init_state": init_state, "film": film, "expert": expert}
        self._send(partial(self._envs.reset_async, options=options))

    def step(self, actions: Float[np.ndarray, "chunk 7"]) -> None:
        """Executes a chunk.

        Raises:
            SimulatorCrash: the process is gone.
        """
        self._send(partial(self._envs.step_async, actions[None]))

    def collect(self) -> Reply:
        """The answer to the last command; waits for it until the deadline.

        Raises:
            SimulatorCrash: the process is gone, or hangs.
        """
        try:
            answered = self.pipe.poll(max(0.0, self.deadline - time.monotonic()))
            observations, over, infos = self._receive() if answered else (None, True, {})
        except (EOFError, OSError) as error:
            raise self._crash() from error
        except Exception as error:  # gymnasium raises here what escaped in the process, and ends it
            raise SimulatorCrash(f"{type(error).__name__}: {error}") from error
        if observations is None:
            raise SimulatorCrash(f"the simulator did not answer within {self.timeout:g} s")
        info = {name: values[0] for name, values in infos.items() if not name.startswith("_")}
        observation = {name: values[0] for name, values in observations.items()}
        return Reply(
            observation=observation,
            state=observation["state"],
            over=over or "error" in info,
            info=info,
            seconds=time.monotonic() - self._sent,
        )

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        process = self._envs.processes[0]
        process.kill()  # SIGTERM does not end a process that is stopped, or stuck in a driver
        process.join()
        self._envs._state = AsyncState.DEFAULT  # nobody waits for an answer any more
        self._envs.close(terminate=True)

    def _send(self, command: Any) -> None:
        self._sent = time.monotonic()
        try:
            command()
        except OSError as error:
            raise self._crash() from error

    def _receive(self) -> tuple[dict[str, np.ndarray], bool, dict[str, Any]]:
        if self._envs._state is AsyncState.WAITING_RESET:
            observations, infos = self._envs.reset_wait()
            return observations, False, infos
        observations, _, terminated, truncated, infos = self._envs.step_wait()
        return observations, bool(terminated[0] or truncated[0]), infos

    def _crash(self) -> SimulatorCrash:
        process = self._envs.processes[0]
        process.join(1.0)
        how = process.exitcode
        signalled = signal.Signals(-how).name if how is not None and how < 0 else f"exit status {how}"
        return SimulatorCrash(f"the simulator's process died ({signalled})")


def ready_simulators(busy: Sequence[Simulator], block: bool) -> list[Simulator]:
    """Those of `busy` to collect from: with an answer, dead, or past their deadline.

    Args:
        busy: simulators with a pending command.
        block: wait until there is one.
    """
    if not busy:
        return []
    patience = max(0.0, min(simulator.deadline for simulator in busy) - time.monotonic()) if block else 0.0
    readable = wait([simulator.pipe for simulator in busy], patience)
    now = time.monotonic()
    return [simulator for simulator in busy if simulator.pipe in readable or simulator.deadline <= now]


def prepare_process(gpu: int | None) -> None:
    """What the process of a simulator needs before anything is drawn; see `Simulator` for `gpu`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; its runner decides what it means
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer starts a thread a core otherwise
    if gpu is not None:
        draw_on(gpu)


def _serve(gpu: int | None, *arguments: Any) -> None:
    """Gymnasium's worker, in the process of a simulator."""
    prepare_process(gpu)
    with suppress(EOFError, OSError):  # the runner is gone, and with it whoever would want to know
        _async_worker(*arguments)
