"""Experts of the `robosuite` suite: one pick-and-place policy, and what each task asks of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..robosuite_suite import RobosuiteEnv
from . import skills
from .skills import Command, Hand, Point


@dataclass(frozen=True)
class Job:
    """What a task asks for, read from a robosuite environment.

    Attributes:
        thing: the object to take (robosuite's model).
        body: its body id.
        target: where the object's centre is to go, or None (lifting it is all).
        grasp_height: of the hand above the object's centre.
        symmetry: angle after which the object looks the same to the fingers; 0: any angle will do.
        clearance: height of travel above the target.
        placed: how near the object's centre counts as there, to the side and in height.
    """

    thing: Any
    body: int
    target: Callable[[], Point] | None
    grasp_height: float
    symmetry: float
    clearance: float
    placed: tuple[float, float] = (0.0, 0.0)


class PickAndPlace:
    """Reach, grasp, lift, carry, release; which of them is decided anew each step from the state."""

    def __init__(self, simulator: Any, job: Job) -> None:
        self.simulator, self.job = simulator, job

    def act(self) -> Command:
        """The command for the state the simulator is in, in [-1, 1]."""
        job, hand = self.job, Hand.of(self.simulator)
        thing = np.array(self.simulator.sim.data.body_xpos[job.body])
        rotation = skills.top_grasp(hand, self.yaw(), job.symmetry) if job.symmetry else upright(hand)
        grip = skills.above(thing, job.grasp_height)
        if self.is_placed(thing):
            return skills.release(hand, rotation)
        if not self.holds():
            if skills.at_grasp(hand, grip, rotation):
                return skills.grasp(hand, grip, rotation)
            return skills.reach(hand, grip, rotation, clearance=0.10)
        if job.target is None:
            return skills.lift(hand, hand.position[2] + 0.1, rotation)
        return skills.carry(hand, thing, job.target(), rotation, job.clearance)

    def holds(self) -> bool:
        """Whether both fingers touch the object."""
        gripper = self.simulator.robots[0].gripper
        return bool(self.simulator._check_grasp(gripper=gripper, object_geoms=self.job.thing))

    def is_placed(self, thing: Point) -> bool:
        """Whether the object is where it should be, so that letting go is right."""
        if self.job.target is None:
            return False
        aside, above = self.job.placed
        gap = thing - self.job.target()
        return bool(np.linalg.norm(gap[:2]) < aside and gap[2] < above)

    def yaw(self) -> float:
        """The object's turn about the vertical."""
        turn = self.simulator.sim.data.body_xmat[self.job.body].reshape(3, 3)
        return float(np.arctan2(turn[1, 0], turn[0, 0]))


def upright(hand: Hand) -> np.ndarray:
    """The hand pointing down, its finger axis along y, as it starts and as it fits into the bins."""
    return skills.top_grasp(hand, np.pi / 2, np.pi)


def lift_job(simulator: Any) -> Job:
    """Cube off the table."""
    return Job(simulator.cube, simulator.cube_body_id, None, 0.0, np.pi / 2, 0.0)


def stack_job(simulator: Any) -> Job:
    """Red cube on the green one; their half heights are 2 and 2.5 cm."""

    def target() -> Point:
        return skills.above(simulator.sim.data.body_xpos[simulator.cubeB_body_id], 0.046)

    return Job(
        simulator.cubeA,
        simulator.cubeA_body_id,
        target,
        0.0,
        np.pi / 2,
        clearance=0.08,
        placed=(0.010, 0.005),
    )


def can_job(simulator: Any) -> Job:
    """Can into its bin, over the bins' wall; the near side of the bin, since its middle is out of reach."""

    def target() -> Point:
        return simulator.target_bin_placements[simulator.object_id] + np.array([-0.03, -0.05, 0.11])

    can = simulator.objects[simulator.object_id]
    body = simulator.obj_body_id[can.name]
    return Job(can, body, target, 0.02, symmetry=0.0, clearance=0.13, placed=(0.025, 0.02))


JOBS = {"Lift": lift_job, "Stack": stack_job, "PickPlaceCan": can_job}


def make_expert(env: RobosuiteEnv) -> PickAndPlace:
    """The expert of `env`'s task; it reads the simulator at each `act`."""
    return PickAndPlace(env.simulator, JOBS[env.task.name](env.simulator))
