"""Knobs, doors and things that are pushed, and the kinds of goals that ask for them and for drawers.

Metres, radians, world frame.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import skills
from .libero_awkward import category
from .libero_drawers import CloseDrawer, OpenDrawer, drawer_of, make_into_drawer
from .libero_place import target_body
from .libero_poses import FAR, UP, about, level, raking, turned
from .libero_scene import Goal, Job, Kind, Scene
from .skills import CLOSE, OPEN, Command, Hand

TWIST = 0.8  # of the hand ahead of the knob

Maker = Callable[[Scene, Goal, np.random.Generator], Job]


def one(job: Maker) -> Callable[[Scene, Goal, np.random.Generator], list[Job]]:
    """A maker of a single job, for a `Kind`."""
    return lambda scene, goal, generator: [job(scene, goal, generator)]


class TurnOn:
    """Takes the bar of a stove's knob from above and twists it."""

    THICKNESS = 0.034  # gap of fingers that hold the bar, at most

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal = scene, goal
        model = scene.model
        self.body = model.body(f"{goal[1]}_button").id
        self.geoms = (model.geom_bodyid == self.body) & scene.solid
        self.bar = int(max(np.flatnonzero(self.geoms), key=lambda geom: scene.data.geom_xpos[geom][2]))
        self.off = generator.uniform(-0.006, 0.006)
        self.depth = generator.uniform(0.020, 0.028)

    def yaw(self) -> float:
        """Of the bar: of its longest edge that is level."""
        axes = self.scene.data.geom_xmat[self.bar].reshape(3, 3)
        lengths = np.linalg.norm(axes[:2], axis=0) * self.scene.model.geom_size[self.bar]
        along = axes[:, int(np.argmax(lengths))]
        return float(np.arctan2(along[1], along[0]))

    def done(self) -> bool:
        """See `Job`: it is on, and the hand is off the knob."""
        hand = Hand.of(self.scene.simulator)
        return self.scene.holds(self.goal) and hand.position[2] > self.top() + 0.04

    def top(self) -> float:
        """Height of the bar."""
        return float(self.scene.points(self.geoms)[:, 2].max())

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        rotation = skills.top_grasp(hand, self.yaw() + np.pi / 2, np.pi)
        if self.scene.holds(self.goal):
            return skills.release(hand, rotation)
        center = np.array(self.scene.data.geom_xpos[self.bar])
        grip = np.array([*(center[:2] + self.off * rotation[:2, 1]), self.top() - self.depth])
        if np.linalg.norm(hand.position - grip) < 0.016 and turned(hand, rotation) < 0.4:
            if hand.gap < self.THICKNESS:
                return skills.move(hand, grip, about(UP, TWIST) @ rotation, CLOSE)
            return skills.grasp(hand, grip, rotation)
        return skills.reach(hand, grip, rotation, FAR)


class Push:
    """Rakes a round thing over the table with open fingers, which it comes to lie between."""

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal, self.thing, self.region = scene, goal, goal[1], goal[2]
        self.tilt = np.radians(generator.uniform(26, 36))
        self.aim = np.array([generator.uniform(0.0, 0.015), generator.uniform(0.0, 0.015), 0.0])
        self.low = generator.uniform(0.012, 0.016)
        points = scene.points(scene.parts(self.thing))
        self.radius = float(np.ptp(points[:, 0]) / 2)

    def done(self) -> bool:
        """See `Job`."""
        return self.scene.holds(self.goal)

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        at, goal = self.scene.position(self.thing), self.scene.position(self.region) + self.aim
        ahead = level(goal - at)
        rotation = raking(-ahead, self.tilt, 1.0 if ahead[1] > 0 else -1.0)
        floor = self.scene.bottom(self.thing) + self.low
        behind = self.radius + 0.008  # the fingers are to the sides, where the rim curves away
        start = np.array([*(at - ahead * behind)[:2], floor])
        offset = hand.position - at
        along, aside = float(offset @ ahead), float(offset @ np.cross(UP, ahead))
        lowered = hand.position[2] < floor + 0.012
        if lowered and along < -0.03 and abs(aside) < 0.03 and turned(hand, rotation) < 0.35:
            press = np.array([*(at - ahead * (self.radius - 0.06))[:2], floor - 0.006])
            return skills.move(hand, press, rotation, OPEN, 0.8)
        if hand.position[2] < floor + 0.05 and along > -self.radius:
            return skills.move(hand, skills.above(hand.position, 0.08), rotation, OPEN)
        return skills.reach(hand, start, rotation, FAR)


class CloseDoor:
    """Pushes a door with a vertical hinge at its outside, with closed fingers, all along its arc."""

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal = scene, goal
        model = scene.model
        bodies = scene.parts(goal[1])
        self.joint = next(j for j in range(model.njnt) if model.jnt_bodyid[j] in set(model.geom_bodyid[bodies]))
        geoms = np.flatnonzero((model.geom_bodyid == model.jnt_bodyid[self.joint]) & scene.solid)
        self.panel = int(max(geoms, key=lambda geom: float(np.prod(model.geom_aabb[geom][3:]))))
        self.radius = generator.uniform(0.14, 0.18)
        self.tilt = np.radians(generator.uniform(0, 8))
        self.low = generator.uniform(0.045, 0.06)

    def done(self) -> bool:
        """See `Job`."""
        return self.scene.holds(self.goal)

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        scene = self.scene
        hinge, panel = np.array(scene.data.xanchor[self.joint]), np.array(scene.data.geom_xpos[self.panel])
        along = level(panel - hinge)
        ahead = np.cross(UP, along)  # the way it closes
        half = np.sort(scene.model.geom_size[self.panel])
        outside = float((panel - hinge) @ ahead) - half[0] - 0.012
        top = panel[2] + half[1]
        press = hinge + along * self.radius + ahead * outside
        press[2] = top - self.low
        rotation = raking(ahead, self.tilt, -1.0)
        gap = hand.position - press
        if gap @ ahead < 0.02 and abs(gap @ along) < 0.06 and abs(gap[2]) < 0.03 and turned(hand, rotation) < 0.5:
            return skills.move(hand, press + ahead * 0.06, rotation, CLOSE)
        start = press - ahead * 0.03
        over = max(top + 0.05, scene.highest(hand.position, start) + 0.05)
        if np.linalg.norm((hand.position - start)[:2]) > 0.05 and hand.position[2] < over - 0.03:
            return skills.move(hand, np.array([*hand.position[:2], over]), rotation, CLOSE)
        height = skills.funnel(skills.misalignment(hand, start, rotation), over - start[2])
        return skills.move(hand, skills.above(start, height), rotation, CLOSE)


def is_pushed(scene: Scene, goal: Goal) -> bool:
    """A plate onto some part of the table."""
    return goal[0] == "on" and category(scene, goal[1]) == "plate" and target_body(scene, goal[2]) is None


KINDS = (
    Kind(lambda scene, goal: goal[0] == "open" and drawer_of(scene, goal[1]), one(OpenDrawer), order=0),
    Kind(lambda scene, goal: goal[0] == "turnon", one(TurnOn), order=0),
    Kind(is_pushed, one(Push)),
    Kind(lambda scene, goal: goal[0] == "in" and drawer_of(scene, goal[2]), make_into_drawer),
    Kind(lambda scene, goal: goal[0] == "close" and drawer_of(scene, goal[1]), one(CloseDrawer), order=2),
    Kind(lambda scene, goal: goal[0] == "close" and scene.is_body(goal[1]), one(CloseDoor), order=2),
)
