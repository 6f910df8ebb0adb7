"""Experts of the LIBERO suites: a task's goal predicates become jobs, and the first job that is not done is done.

How to add a skill: write a class with `done` and `act` (see `Job`) that reads a `Scene`, and a `Kind` that says which
goals it is for, in a module of its own; add the kind to `KINDS`, before the more general ones. A kind may make several
jobs of one goal (open the drawer, then put the bowl inside). Each job says for itself when it is done, from the state
alone: a drawer that is pushed shut again is opened again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from ..libero_env import LiberoEnv
from . import libero_awkward, libero_fixtures
from .libero_place import make_place
from .libero_scene import Goal, Job, Kind, Scene
from .skills import OPEN, Command, Hand

PLACE = Kind(lambda scene, goal: goal[0] in ("on", "in"), make_place)
KINDS: tuple[Kind, ...] = (*libero_awkward.KINDS, *libero_fixtures.KINDS, PLACE)


class Expert:
    """Does the first job that is not done; once all are, it holds still with open fingers."""

    def __init__(self, scene: Scene, jobs: Sequence[Job]) -> None:
        self.scene, self.jobs = scene, jobs

    def act(self) -> Command:
        """The command for the state the simulator is in, in [-1, 1]."""
        hand = Hand.of(self.scene.simulator)
        for job in self.jobs:
            if not job.done():
                return np.clip(job.act(hand), -1.0, 1.0)
        return np.array([0.0] * 6 + [OPEN])


def make_expert(env: LiberoEnv) -> Expert:
    """The expert of `env`'s task, from the state it is in now; make a new one after each reset.

    What it chooses among equals depends on that state alone, so an episode's expert is that of its seed.

    Raises:
        NotImplementedError: the task has a goal of no known kind.
    """
    scene = Scene(env.simulator)
    generator = np.random.default_rng(zlib.crc32(scene.data.qpos.tobytes()))
    chosen = [(kind_of(scene, goal), goal) for goal in scene.goals()]
    chosen.sort(key=lambda pair: pair[0].order)
    return Expert(scene, [job for kind, goal in chosen for job in kind.make(scene, goal, generator)])


def kind_of(scene: Scene, goal: Goal) -> Kind:
    """The first kind that fits.

    Raises:
        NotImplementedError: none does.
    """
    for kind in KINDS:
        if kind.fits(scene, goal):
            return kind
    raise NotImplementedError(f"got goal {' '.join(goal)}, expected one with a scripted expert")
