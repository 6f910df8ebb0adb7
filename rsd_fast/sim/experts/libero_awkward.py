"""Things that cannot be taken just anywhere: a moka pot is too wide but has a knob, a mug has a handle.

`Take` is pick and place with a grasp that is a function of where the thing is now. Metres, radians, world frame.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from . import skills
from .libero_scene import Goal, Kind, Scene
from .skills import CLOSE, OPEN, Command, Hand, Point, Rotation

OPENED = 0.06  # gap of fingers that count as open
TOLERANCE, DRIFT = 0.007, 0.015  # of the hand when it begins to close, and until it has
NEAR, KEEN = 0.02, 2.0  # where commands are larger, and how much
ROOM = 0.025  # between what travels and what it passes over
UP = np.array([0.0, 0.0, 1.0])


class Take:
    """Reach, grasp, carry, let go; which of them is decided anew each step from the state."""

    FAR: ClassVar[float] = 0.10  # of the hand before it comes near
    EMPTY: ClassVar[float] = 0.003  # gap of fingers that hold nothing

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal, self.generator = scene, goal, generator
        self.thing, self.place = goal[1], goal[2]
        self.speed = float(generator.uniform(0.85, 1.0))

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """Where and how the hand takes the thing as it is now."""
        raise NotImplementedError

    def target(self) -> Point:
        """Where the thing's origin is to go."""
        raise NotImplementedError

    def done(self) -> bool:
        """See `Job`: the goal is reached and the hand is free."""
        return self.scene.holds(self.goal) and not self.scene.grasped(self.thing)

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        position, rotation = self.grip(hand)
        if self.is_placed():
            return self.leave(hand, rotation)
        if self.is_held(hand, position):
            return self.carry(hand, rotation)
        tolerance = DRIFT if self.scene.closing() else TOLERANCE
        if skills.at_grasp(hand, position, rotation, tolerance) and hand.gap > self.EMPTY:
            return skills.grasp(hand, position, rotation)
        return self.reach(hand, position, rotation)

    def is_placed(self) -> bool:
        """Whether letting go is right."""
        return self.scene.holds(self.goal)

    def leave(self, hand: Hand, rotation: Rotation) -> Command:
        """Lets go."""
        return skills.release(hand, rotation, OPENED)

    def is_held(self, hand: Hand, position: Point) -> bool:
        """Whether both fingers press on the thing, or it hangs between them: contacts come and go."""
        if not self.scene.squeezing() or hand.gap > OPENED:
            return False
        near = bool(np.linalg.norm(hand.position - position) < 0.03)
        return near and (self.scene.grasped(self.thing) or (hand.gap > self.EMPTY and self.scene.airborne(self.thing)))

    def reach(self, hand: Hand, position: Point, rotation: Rotation) -> Command:
        """Over everything on the way, then down a funnel."""
        aside = float(np.linalg.norm((position - hand.position)[:2]))
        over = max(position[2] + self.FAR, self.scene.highest(hand.position, position, [self.thing]) + ROOM)
        if aside > 0.04 and hand.position[2] < over - 0.03:
            return skills.move(hand, np.array([*hand.position[:2], over]), rotation, OPEN)
        goal = skills.above(position, skills.funnel(skills.misalignment(hand, position, rotation), over - position[2]))
        if aside < NEAR:  # friction swallows small commands
            goal[:2] += (KEEN - 1) * (goal - hand.position)[:2]
        return skills.move(hand, goal, rotation, OPEN, self.speed)

    def carry(self, hand: Hand, rotation: Rotation) -> Command:
        """The thing over its target, over everything on the way, then down."""
        at, goal = self.scene.position(self.thing), self.target()
        below = at[2] - self.scene.bottom(self.thing)
        over = self.scene.highest(at, goal, [self.thing]) + below + ROOM
        aside = float(np.linalg.norm((goal - at)[:2]))
        height = goal[2] + skills.funnel(aside, max(0.0, over - goal[2]), tip=0.012)
        if aside > 0.03 and at[2] < height - 0.01:
            return skills.move(hand, skills.above(hand.position, height + 0.01 - at[2]), rotation, CLOSE)
        step = np.array([*goal[:2], height]) - at
        return skills.move(hand, hand.position + step, rotation, CLOSE, self.speed if aside > 0.02 else 0.5)


class MokaPot(Take):
    """By the knob of its lid. Several share a stove: they stand side by side along x, across their handles."""

    APART: ClassVar[float] = 0.094  # between two of them: one is 8 cm wide

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        super().__init__(scene, goal, generator)
        model = scene.model
        geoms = np.flatnonzero(scene.parts(self.thing))
        self.knob = int(max(geoms, key=lambda geom: scene.data.geom_xpos[geom][2]))
        self.height = float(generator.uniform(-0.001, 0.002))
        self.yaw = float(generator.uniform(-0.25, 0.25))
        pots = [other[1] for other in scene.goals() if other[0] == "on" and other[2] == goal[2]]
        pots.sort(key=lambda name: scene.position(name)[0])
        slot = pots.index(self.thing) - (len(pots) - 1) / 2
        self.offset = np.array([slot * self.APART, generator.uniform(-0.01, 0.01), 0.0])
        self.half = float(model.geom_size[self.knob][2])

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """See `Take`."""
        knob = np.array(self.scene.data.geom_xpos[self.knob])
        return skills.above(knob, 0.004 + self.height), skills.top_grasp(hand, np.pi / 2 + self.yaw, np.pi)

    def target(self) -> Point:
        """See `Take`; a little into the stove, so that it gets there."""
        below = self.scene.position(self.thing)[2] - self.scene.bottom(self.thing)
        return self.scene.position(self.place) + self.offset + UP * (below + 0.015)


def category(scene: Scene, name: str) -> str:
    """What kind of object `name` is, by LIBERO's word."""
    return str(scene.simulator.get_object(name).category_name) if scene.is_body(name) else ""


KINDS = (Kind(lambda scene, goal: goal[0] == "on" and category(scene, goal[1]) == "moka_pot", lambda *a: [MokaPot(*a)]),)
