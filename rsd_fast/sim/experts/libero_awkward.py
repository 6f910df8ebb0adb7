"""Things that cannot be taken just anywhere: a moka pot is too wide but has a knob, a mug has a handle.

`Take` is pick and place with a grasp that is a function of where the thing is now. Metres, radians, world frame.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from . import skills
from .libero_objects import half_turn
from .libero_poses import KEEN, NEAR, UP, about, come, corners, keen, level, raking
from .libero_scene import OPENED, ROOM, Goal, Kind, Scene
from .skills import CLOSE, OPEN, Command, Hand, Point, Rotation

TOLERANCE, DRIFT = 0.007, 0.015  # of the hand when it begins to close, and until it has
FREE = 0.04  # distance of the hand from where it takes a thing
STANDS = 0.02  # metres a second of what stands
INWARDS = np.array([0.0, 1.0, 0.0])  # of an oven
GRIPPED = 0.010  # of the hand from the end of a handle


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
        """See `Job`: the goal is reached and the hand is free; contacts alone come and go."""
        if not self.scene.holds(self.goal) or self.scene.grasped(self.thing):
            return False
        hand = Hand.of(self.scene.simulator)
        around = self.EMPTY < hand.gap < OPENED
        return not (around and np.linalg.norm(hand.position - self.grip(hand)[0]) < FREE)

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
        """Over everything on the way, then down a funnel; fingers that may still hold it open first."""
        if hand.gap < OPENED and np.linalg.norm(hand.position - position) < FREE:
            return skills.move(hand, hand.position, hand.rotation, OPEN)
        aside = float(np.linalg.norm((position - hand.position)[:2]))
        over = max(position[2] + self.FAR, self.scene.highest(hand.position, position, [self.thing]) + ROOM)
        if aside > 0.04 and hand.position[2] < over - 0.03:
            return skills.move(hand, np.array([*hand.position[:2], over]), rotation, OPEN)
        height = skills.funnel(skills.misalignment(hand, position, rotation), over - position[2])
        if hand.gap < OPENED:  # closed fingers stay above
            height = max(height, 0.05)
        goal = skills.above(position, height)
        return skills.move(hand, keen(hand, goal), rotation, OPEN, self.speed)

    def carry(self, hand: Hand, rotation: Rotation) -> Command:
        """The thing over its target, over everything on the way, then down."""
        at, goal = self.scene.position(self.thing), self.target()
        over = self.scene.highest(at, goal, [self.thing]) + self.scene.below(self.thing) + ROOM
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
        self.knob = int(max(np.flatnonzero(scene.parts(self.thing)), key=lambda geom: scene.data.geom_xpos[geom][2]))
        self.height = float(generator.uniform(0.003, 0.006))
        self.yaw = np.pi / 2 + float(generator.uniform(-0.25, 0.25))
        pots = [other[1] for other in scene.goals() if other[0] == "on" and other[2] == goal[2]]
        pots.sort(key=lambda name: scene.position(name)[0])
        slot = pots.index(self.thing) - (len(pots) - 1) / 2
        self.offset = np.array([slot * self.APART, generator.uniform(-0.01, 0.01), 0.0])

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """See `Take`."""
        knob = np.array(self.scene.data.geom_xpos[self.knob])
        return skills.above(knob, self.height), skills.top_grasp(hand, self.yaw, np.pi)

    def target(self) -> Point:
        """See `Take`."""
        below = self.scene.below(self.thing)
        return self.scene.position(self.place) + self.offset + UP * (below + 0.015)  # lower than it gets


class Mug(Take):
    """By the rim, opposite the handle, onto something flat."""

    INSET: ClassVar[dict[str, float]] = {"white_yellow_mug": 0.010}  # of the hand from the outside; walls differ

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        super().__init__(scene, goal, generator)
        self.inset = self.INSET.get(category(scene, self.thing), 0.005)
        self.skew = float(generator.uniform(-0.35, 0.35))
        self.depth = float(generator.uniform(0.022, 0.028))

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """See `Take`."""
        away = about(UP, self.skew) @ -handle_of(self.scene, self.thing)
        points = self.scene.points(self.scene.parts(self.thing))
        center = middle_of(self.scene, self.thing)
        reach = float(((points - center) @ away).max())
        place = center + away * (reach - self.inset)
        place[2] = points[:, 2].max() - self.depth
        return place, skills.top_grasp(hand, float(np.arctan2(away[1], away[0])), np.pi)

    def is_placed(self) -> bool:
        """See `Take`: once it stands; it hangs askew, and rocks when it is let go at the first touch."""
        stands = self.scene.speed(self.thing) < STANDS or not self.scene.squeezing()
        return self.scene.holds(self.goal) and stands

    def carry(self, hand: Hand, rotation: Rotation) -> Command:
        """See `Take`; as the hand is turned already: one that follows the mug turns the mug that it follows."""
        x = hand.rotation[:, 0]
        return super().carry(hand, skills.top_grasp(hand, float(np.arctan2(x[1], x[0])), np.pi))

    def target(self) -> Point:
        """See `Take`."""
        return self.scene.position(self.place) + UP * (self.scene.below(self.thing) - 0.005)


class Book(Take):
    """A book that stands, across its back, into a slot along y: it is turned on the way."""

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        super().__init__(scene, goal, generator)
        self.block = int(np.flatnonzero(scene.parts(self.thing))[0])
        self.thin = int(np.argmin(scene.model.geom_size[self.block]))
        self.depth = float(generator.uniform(0.020, 0.026))
        self.slot = scene.simulator.object_sites_dict[goal[2]].parent_name

    def middle(self) -> Point:
        """Of the book."""
        return np.array(self.scene.data.geom_xpos[self.block])

    def yaw(self) -> float:
        """Of the direction through its covers."""
        across = self.scene.data.geom_xmat[self.block].reshape(3, 3)[:, self.thin]
        return float(np.arctan2(across[1], across[0]))

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """See `Take`."""
        place = np.array([*self.middle()[:2], self.scene.top(self.thing) - self.depth])
        return place, skills.top_grasp(hand, self.yaw(), np.pi)

    def carry(self, hand: Hand, rotation: Rotation) -> Command:
        """Over the walls, turned as it goes, then down."""
        scene, at = self.scene, self.middle()
        left = half_turn(-self.yaw())  # to turn
        below = at[2] - scene.bottom(self.thing)
        gap = scene.position(self.place) - at
        aside = float(np.linalg.norm(gap[:2])) + 0.06 * max(0.0, abs(left) - 0.06)
        low = scene.position(self.place)[2]
        over = scene.top(self.slot) + below + ROOM
        height = low + skills.funnel(aside, over - low, tip=0.009, slope=60.0)
        if aside > 0.06 and at[2] < over - 0.02:
            gap[:2] = 0.0
        step = np.array([gap[0], gap[1], height - at[2]])
        goal = hand.position + step * (KEEN if np.linalg.norm(gap[:2]) < NEAR else 1.0)
        turn = about(UP, left) @ skills.top_grasp(hand, float(np.arctan2(*hand.rotation[[1, 0], 0])), np.pi)
        return skills.move(hand, goal, turn, CLOSE, self.speed if aside > 0.03 else 0.5)


class IntoMicrowave(Take):
    """A mug by its handle, with a hand that leans so that it stays before the front.

    The mug stands with its handle away from the oven. What is left sticking out goes in with the door.
    """

    DEEP: ClassVar[float] = 0.034  # of the mug's origin behind the front

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        super().__init__(scene, goal, generator)
        self.tilt = np.radians(generator.uniform(40, 46))
        self.aside = float(generator.uniform(0.006, 0.014))
        self.oven = goal[2].removesuffix("_heating_region")

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """See `Take`."""
        scene, handle = self.scene, handle_of(self.scene, self.thing)
        points = scene.points(scene.parts(self.thing))
        end = float((points @ handle).max())
        tip = points[points @ handle > end - 0.02]
        low, high = corners(tip)
        place = (low + high) / 2
        place = place + handle * (end - GRIPPED - place @ handle)
        place[2] = low[2] + 0.65 * (high - low)[2]
        return place, raking(-handle, self.tilt, -1.0)

    def target(self) -> Point:
        """See `Take`: a little above the floor, on the side away from the door, which the hand would meet."""
        scene = self.scene
        low, high = self.opening()
        below = scene.below(self.thing)
        beyond = scene.points(scene.parts(self.thing))[:, 0].max() - scene.position(self.thing)[0]
        return np.array([high[0] - beyond - self.aside, low[1] + self.DEEP, low[2] + below + 0.012])

    def opening(self) -> tuple[Point, Point]:
        """Corners of the room inside."""
        scene = self.scene
        low, high = scene.boxes(scene.parts(self.oven) & (scene.model.geom_bodyid == scene.root(self.oven)))
        floor, roof = int(np.argmin(high[:, 2])), int(np.argmax(low[:, 2]))
        lowest = np.array([low[roof][0], low[floor][1], high[floor][2]])
        return lowest, np.array([high[roof][0], high[floor][1], low[roof][2]])

    def is_placed(self) -> bool:
        """See `Take`: deep enough, too."""
        deep = self.scene.position(self.thing)[1] > self.opening()[0][1] + self.DEEP - 0.012
        return self.scene.holds(self.goal) and deep

    def done(self) -> bool:
        """See `Job`: the hand is out as well."""
        out = Hand.of(self.scene.simulator).position[1] < self.opening()[0][1] - 0.06
        return super().done() and out

    def leave(self, hand: Hand, rotation: Rotation) -> Command:
        """Backwards, the way that it came."""
        away = rotation[:, 2] * -0.1 if hand.gap > OPENED else np.zeros(3)
        return skills.move(hand, hand.position + away, rotation, OPEN)

    def reach(self, hand: Hand, position: Point, rotation: Rotation) -> Command:
        """See `Take`; along the hand's own axis."""
        return come(hand, position, rotation, 0.12, self.speed)

    def carry(self, hand: Hand, rotation: Rotation) -> Command:
        """Up and before the opening, then straight in."""
        rotation = raking(INWARDS, self.tilt, -1.0)
        at, goal = self.scene.position(self.thing), self.target()
        gap = goal - at
        off = float(np.hypot(gap[0], gap[2]))
        goal[1] -= skills.funnel(off, self.DEEP + 0.12, tip=0.015, slope=8.0)
        return skills.move(hand, hand.position + goal - at, rotation, CLOSE, self.speed)


def category(scene: Scene, name: str) -> str:
    """What kind of object `name` is, by LIBERO's word."""
    return str(scene.simulator.get_object(name).category_name) if scene.is_body(name) else ""


def middle_of(scene: Scene, mug: str) -> Point:
    """The middle of a mug without its handle: of its rim."""
    points = scene.points(scene.parts(mug))
    low, high = corners(points[points[:, 2] > points[:, 2].max() - 0.004])
    return (low + high) / 2


def handle_of(scene: Scene, mug: str) -> Point:
    """The horizontal direction from the middle of a mug to its handle."""
    points = scene.points(scene.parts(mug))
    gaps = points - middle_of(scene, mug)
    farthest = gaps[np.argsort(-np.linalg.norm(gaps[:, :2], axis=1))[:8]]
    return level(farthest.mean(0))


def on_plate(scene: Scene, goal: Goal) -> bool:
    """A mug onto something."""
    return goal[0] == "on" and category(scene, goal[1]) in ("porcelain_mug", "white_yellow_mug")


KINDS = (
    Kind(lambda scene, goal: goal[0] == "on" and category(scene, goal[1]) == "moka_pot", lambda *a: [MokaPot(*a)]),
    Kind(lambda scene, goal: goal[0] == "in" and goal[2].endswith("_heating_region"), lambda *a: [IntoMicrowave(*a)]),
    Kind(lambda scene, goal: goal[0] == "in" and category(scene, goal[1]) == "black_book", lambda *a: [Book(*a)]),
    Kind(on_plate, lambda *a: [Mug(*a)]),
)
