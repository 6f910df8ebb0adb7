"""Taking an object and putting it on or into something: most of what LIBERO asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import skills
from .libero_objects import Grasp, choose_grasp
from .libero_poses import keen, rise, stretched
from .libero_scene import OPENED, ROOM, Goal, Scene
from .skills import CLOSE, OPEN, Command, Hand, Point

DIRECTIONS = 24  # that a grasp is chosen from
WHIM, DESPERATION = 0.05, 1.5  # largest random addition to a grasp's cost: at first, and once another way is due
PATIENCE, STILL, BACK = 16, 0.0015, 0.06  # steps; metres a step that count as not moving; metres
HOVER = 0.09  # height of the hand above the grasp while it lines up, at least
ON_TARGET = 0.012  # of what is held, to the side, when it goes down
TOLERANCE, DRIFT = 0.006, 0.015  # of the hand when it begins to close, and until it has
EMPTY = 0.003  # gap of fingers that hold nothing


@dataclass(frozen=True)
class Manner:
    """What differs between the episodes of one task: seeded, small."""

    speed: float
    hover: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Manner:
        """The manner of one episode."""
        return cls(float(generator.uniform(0.85, 1.0)), HOVER + float(generator.uniform(-0.01, 0.02)))


def make_place(scene: Scene, goal: Goal, generator: np.random.Generator) -> list[Place]:
    """The job of `("on" or "in", thing, target)`; see `Kind`."""
    return [Place(scene, goal, generator)]


class Place:
    """Reach, grasp, lift, carry, let go; which of them is decided anew each step from the state.

    Only the grasp is remembered: it is chosen anew when the object is no longer where it was, and after PATIENCE steps
    in which the hand got nowhere: then the hand backs off upwards, and another way is as good as the best one.
    """

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal, self.generator = scene, goal, generator
        self.manner = Manner.draw(generator)
        self.whim = generator.uniform(0, WHIM, DIRECTIONS)
        self.thing, self.target = goal[1], goal[2]
        self.support = target_body(scene, self.target)
        self.grasp: Grasp | None = None
        self.stuck, self.last = 0, np.zeros(3)
        self.back_to: float | None = None  # height, while backing off

    def done(self) -> bool:
        """See `Job`."""
        return self.scene.holds(self.goal) and not self.scene.grasped(self.thing)

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        scene, thing = self.scene, self.thing
        if self.is_placed():
            return skills.release(hand, hand.rotation if self.grasp is None else self.grasp.rotation)
        held = self.is_held(hand)
        if self.grasp is None or (not held and self.grasp.is_stale(scene, thing)):
            self.grasp = choose_grasp(scene, thing, self.resting_place(), self.whim, self.support)
        if self.grasp is None:
            return skills.release(hand, hand.rotation)
        grip, rotation = self.grasp.position(scene, thing), self.grasp.rotation
        if held:
            self.stuck = 0
            return self.carry(hand)
        if self.gets_nowhere(hand) or self.back_to is not None:
            return self.back_off(hand)
        tolerance = DRIFT if scene.closing() else TOLERANCE
        if skills.at_grasp(hand, grip, rotation, tolerance) and hand.gap > EMPTY:
            return skills.move(hand, keen(hand, grip), rotation, CLOSE, speed=0.6)
        return self.reach(hand, grip)

    def gets_nowhere(self, hand: Hand) -> bool:
        """Whether the hand has not moved for a while, or pressed for some steps on something else than the object."""
        moved = float(np.linalg.norm(hand.position - self.last))
        self.last = hand.position
        if self.scene.squeezing() and hand.gap > EMPTY:
            self.stuck += PATIENCE // 4
        else:
            self.stuck = self.stuck + 1 if moved < STILL and not self.scene.closing() else 0
        return self.stuck >= PATIENCE

    def back_off(self, hand: Hand) -> Command:
        """Up, with open fingers; from there the object is taken another way."""
        assert self.grasp is not None
        if self.back_to is None:
            self.back_to = hand.position[2] + BACK
        if (hand.position[2] > self.back_to - 0.01 and hand.gap > OPENED) or self.stuck > 2 * PATIENCE:
            self.stuck, self.back_to, self.grasp = 0, None, None
            self.whim = self.generator.uniform(0, DESPERATION, DIRECTIONS)
            return skills.release(hand, hand.rotation)
        return rise(hand, self.scene.base, self.back_to, self.grasp.rotation, OPEN)

    def is_held(self, hand: Hand) -> bool:
        """Whether both fingers touch the object, or it hangs between them: on the way contacts come and go."""
        scene, thing = self.scene, self.thing
        if not scene.squeezing():
            return False
        if scene.grasped(thing):
            return True
        if self.grasp is None or hand.gap > OPENED or not scene.airborne(thing):
            return False
        return bool(np.linalg.norm(self.grasp.position(scene, thing) - hand.position) < 0.015)

    def reach(self, hand: Hand, grip: Point) -> Command:
        """Over everything on the way, then down a funnel; with closed fingers only down to where they open."""
        assert self.grasp is not None
        rotation, aside = self.grasp.rotation, float(np.linalg.norm((grip - hand.position)[:2]))
        over = max(grip[2] + self.manner.hover, self.scene.highest(hand.position, grip) + ROOM)
        if aside > 0.03 and hand.position[2] < over - 0.03:
            return rise(hand, self.scene.base, over, rotation, OPEN)
        height = skills.funnel(skills.misalignment(hand, grip, rotation), over - grip[2])
        if hand.gap < OPENED:
            height = max(height, 0.05)
        return skills.move(hand, keen(hand, skills.above(grip, height)), rotation, OPEN, self.manner.speed)

    def carry(self, hand: Hand) -> Command:
        """The object over its target, over everything on the way, then down."""
        assert self.grasp is not None
        scene, at = self.scene, self.scene.position(self.thing)
        if (out := scene.overhang(self.thing)) is not None:
            return skills.move(hand, hand.position + 0.03 * out + [0, 0, 0.03], self.grasp.rotation, CLOSE)
        goal = self.place(hand)
        rotation = stretched(scene.base, hand.position + goal - at) @ self.grasp.rotation
        over = scene.highest(at, goal, leave_out=[self.thing]) + scene.below(self.thing) + ROOM
        aside = float(np.linalg.norm((goal - at)[:2]))
        height = goal[2] + skills.funnel(aside, max(0.0, over - goal[2]), tip=ON_TARGET)
        if aside > 0.03 and at[2] < height - 0.01:
            return rise(hand, scene.base, hand.position[2] + (height + 0.01 - at[2]), rotation, CLOSE)
        wanted = hand.position + np.array([*goal[:2], height]) - at
        return skills.move(hand, keen(hand, wanted), rotation, CLOSE, 1.0 if aside > 0.02 else 0.6)

    def place(self, hand: Hand) -> Point:
        """Where the object's origin is to go before it is let go."""
        scene, thing = self.scene, self.thing
        if self.support is not None and self.support.startswith("basket"):
            # Deep, but the hand stays out of it.
            reach = hand.position[2] - scene.bottom(thing)
            floor = scene.position(self.support)[2]
            bottom = max(floor + 0.03, scene.top(self.support) + 0.01 - (reach + 0.045))
            return np.array([*scene.position(self.support)[:2], bottom + scene.below(thing)])
        return self.resting_place()

    def resting_place(self) -> Point:
        """Where the object's origin is when it stands on its target."""
        return skills.above(self.scene.position(self.target), self.scene.below(self.thing))

    def is_placed(self) -> bool:
        """Whether the object is where it should be, so that letting go is right."""
        scene, thing = self.scene, self.thing
        if scene.holds(self.goal):
            return True
        gap = scene.position(thing) - self.place(Hand.of(scene.simulator))
        if np.linalg.norm(gap[:2]) > 0.015:
            return False
        resting = self.support is not None and scene.touching(scene.parts(thing), scene.parts(self.support))
        return bool(gap[2] < 0.006 or (resting and scene.speed(thing) < 0.02))


def target_body(scene: Scene, target: str) -> str | None:
    """The object or fixture that a target is or belongs to; None for a place on the table."""
    if scene.is_body(target):
        return target
    parent = getattr(scene.simulator.object_sites_dict[target], "parent_name", None)
    return parent if parent is not None and scene.is_body(parent) else None
