"""The scheduler's own parts, without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

from rsd_fast.evaluate.scheduler import Scheduler
from rsd_fast.sim.vector import SimulatorCrash

WORKERS = 3


def scheduler(make_simulator: Callable[[], Any]) -> Scheduler:
    return Scheduler(Mock(), Mock(), make_simulator, workers=WORKERS, batch=1, replan=1, retries=0)


def test_simulators_start_side_by_side() -> None:
    together = threading.Barrier(WORKERS)

    def start() -> Mock:
        together.wait(timeout=20)  # breaks unless all are starting at once
        return Mock()

    running = scheduler(start)
    assert running._start_simulators(running.slots) == {}
    assert len({id(slot.simulator) for slot in running.slots if slot.simulator}) == WORKERS


def test_one_that_does_not_start_leaves_the_others() -> None:
    lock, left = threading.Lock(), [SimulatorCrash("died"), Mock(), Mock()]

    def start() -> Any:
        with lock:
            made = left.pop()
        if isinstance(made, SimulatorCrash):
            raise made
        return made

    running = scheduler(start)
    failed = running._start_simulators(running.slots)
    assert sorted(map(str, failed.values())) == ["died"]
    assert sum(slot.simulator is not None for slot in running.slots) == WORKERS - 1
    assert [id(slot) in failed for slot in running.slots] == [slot.simulator is None for slot in running.slots]
