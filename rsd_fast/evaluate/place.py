"""Where the simulators of an evaluation run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rsd_fast.sim.suites import Suite
from rsd_fast.sim.vector import Simulator, ready_simulators

from .config import EvalConfig, usable_cores
from .policies import Deciders
from .scheduler import AnySimulator


@dataclass(frozen=True)
class Place:
    """Where episodes run.

    Attributes:
        make_simulator: from the suite, the actions of a step, the pixels of a picture and the seconds of a timeout.
        simulators: how many at once.
        machine: for the rows; what latency depends on beside the settings.
        ready: see `Scheduler`.
    """

    make_simulator: Callable[[Suite, int, int, float], AnySimulator]
    simulators: int
    machine: dict[str, Any]
    ready: Callable[[list[Any], bool], list[Any]] = ready_simulators


def this_machine(config: EvalConfig, policies: Deciders) -> Place:
    """Simulators in processes of their own, which draw on the policy's GPU."""
    machine = {"cores": usable_cores(), "workers": config.simulators, "threads": torch.get_num_threads()}
    return Place(partial(Simulator, gpu=policies.gpu), config.simulators, machine)
