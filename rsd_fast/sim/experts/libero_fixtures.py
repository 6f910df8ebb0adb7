"""Drawers, doors, knobs and things that are pushed: what LIBERO asks for besides picking and placing.

Fixtures are taken where a camera sees something to take: a drawer by its handle, a stove by the bar of its knob. A
hand that points `tilt` away from straight down towards a `heading` leans over it. Metres, radians, world frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation as Rotations

from . import skills
from .libero_objects import Grasp, pointing_down, shape_of
from .libero_place import KEEN, NEAR, Manner, Place
from .libero_scene import Goal, Job, Kind, Points, Scene
from .skills import CLOSE, OPEN, Command, Hand, Point, Rotation

UP = np.array([0.0, 0.0, 1.0])
FAR = 0.10  # of the hand before it comes near, along its own axis
OPENED = 0.06  # gap of fingers that count as open
ROOM, SKIM = 0.015, 0.015  # to the sides of an overhead drawer, and above the table beneath it
BESIDE, OVER = 0.015, 0.05  # room that the fingers keep beside and over a drawer
WIDE, SHUT = 0.155, 0.12  # how far a drawer is pulled, and less than that counts as not open enough


Maker = Callable[[Scene, Goal, np.random.Generator], Job]


def one(job: Maker) -> Callable[[Scene, Goal, np.random.Generator], list[Job]]:
    """A maker of a single job, for a `Kind`."""
    return lambda scene, goal, generator: [job(scene, goal, generator)]


def level(direction: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The horizontal direction, of length 1."""
    flat = np.array([direction[0], direction[1], 0.0])
    return flat / np.linalg.norm(flat)


def leaning(heading: Float[np.ndarray, "3"], tilt: float) -> Rotation:
    """The hand leaning towards `heading`, its finger axis in the plane of the lean: one finger above, one below.

    The finger axis is the one that needs the smaller turn from the pose in which the arm starts.
    """
    side = 1.0 if heading[1] > 0 else -1.0
    z = heading * np.sin(tilt) - UP * np.cos(tilt)
    x = side * (heading * np.cos(tilt) + UP * np.sin(tilt))
    return np.stack([x, np.cross(z, x), z], axis=1)


def raking(heading: Float[np.ndarray, "3"], tilt: float, side: float = 1.0) -> Rotation:
    """The hand leaning towards `heading`, its finger axis across: fingers side by side."""
    z = heading * np.sin(tilt) - UP * np.cos(tilt)
    x = side * np.cross(heading, UP)
    return np.stack([x, np.cross(z, x), z], axis=1)


def about(axis: Float[np.ndarray, "3"], angle: float) -> Rotation:
    """The turn by `angle` about an axis of length 1."""
    return np.asarray(Rotations.from_rotvec(angle * axis).as_matrix())


def corners(points: Points) -> tuple[Point, Point]:
    """Lowest and highest corner of the box around some points."""
    return points.min(0), points.max(0)


def turned(hand: Hand, rotation: Rotation) -> float:
    """The angle that the hand is away from `rotation`."""
    return float(np.linalg.norm(skills.rotation_vector(rotation @ hand.rotation.T)))


def come(hand: Hand, position: Point, rotation: Rotation, far: float = FAR, speed: float = 1.0) -> Command:
    """Down a funnel along the hand's own axis, with open fingers."""
    axis, gap = rotation[:, 2], position - hand.position
    aside = float(np.linalg.norm(gap - axis * (gap @ axis))) + 0.04 * max(0.0, turned(hand, rotation) - 0.06)
    goal = position - axis * skills.funnel(aside, far)
    if aside < NEAR:  # friction swallows small commands
        goal = goal + (KEEN - 1) * (goal - hand.position)
    return skills.move(hand, goal, rotation, OPEN, speed)


class OpenDrawer:
    """Takes a drawer by its handle and pulls."""

    THICKNESS = 0.028  # gap of fingers that hold the handle, at most

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal = scene, goal
        drawer = Drawer(scene, goal[1])
        self.drawer = drawer
        self.tilt = np.radians(generator.uniform(70, 90))
        self.side = generator.uniform(-0.012, 0.012)

    def done(self) -> bool:
        """See `Job`: it is open wide enough, and the hand is off the handle."""
        return self.drawer.opening() > SHUT and not self.near(Hand.of(self.scene.simulator), 0.06)

    def near(self, hand: Hand, distance: float) -> bool:
        """Whether the hand is at the handle."""
        return bool(np.linalg.norm(hand.position - self.drawer.handle()) < distance)

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        out, handle = self.drawer.out, self.drawer.handle()
        rotation = leaning(-out, self.tilt)
        grip = handle + np.cross(out, UP) * self.side
        if self.drawer.opening() > WIDE:
            return self.leave(hand, rotation)
        if skills.at_grasp(hand, grip, rotation, 0.013):
            if hand.gap < self.THICKNESS:
                return skills.move(hand, grip + out * 0.06, rotation, CLOSE)
            return skills.grasp(hand, grip, rotation)
        return come(hand, grip, rotation)

    def leave(self, hand: Hand, rotation: Rotation) -> Command:
        """Opens the fingers, then backs off."""
        away = self.drawer.out * 0.1 + UP * 0.05 if hand.gap > OPENED else 0.0
        return skills.move(hand, hand.position + away, rotation, OPEN)


class Drawer:
    """A drawer's joint and handle, by the name of its region."""

    def __init__(self, scene: Scene, region: str) -> None:
        self.scene, self.region = scene, region
        site = scene.simulator.object_sites_dict[region]
        self.joint = scene.model.joint(site.joints[0]).id
        self.body = int(scene.model.jnt_bodyid[self.joint])
        self.out = -level(scene.data.xaxis[self.joint])  # negative is open
        self.geoms = (scene.model.geom_bodyid == self.body) & scene.solid
        self.bar = int(max(np.flatnonzero(self.geoms), key=lambda geom: scene.data.geom_xpos[geom] @ self.out))

    def handle(self) -> Point:
        """The middle of its bar."""
        return np.array(self.scene.data.geom_xpos[self.bar])

    def opening(self) -> float:
        """How far it is pulled out."""
        return -float(self.scene.data.qpos[self.scene.model.jnt_qposadr[self.joint]])



class TurnOn:
    """Takes the bar of a stove's knob from above and twists it."""

    THICKNESS = 0.034  # gap of fingers that hold the bar, at most

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal = scene, goal
        model = scene.model
        self.body = model.body(f"{goal[1]}_button").id
        geoms = np.flatnonzero((model.geom_bodyid == self.body) & scene.solid)
        self.bar = int(max(geoms, key=lambda geom: scene.data.geom_xpos[geom][2]))
        self.long = int(np.argmax(model.geom_size[self.bar][:2]))
        self.off = generator.uniform(-0.006, 0.006)
        self.depth = generator.uniform(0.020, 0.028)

    def yaw(self) -> float:
        """Of the bar."""
        along = self.scene.data.geom_xmat[self.bar].reshape(3, 3)
        axis = along[:, int(np.argmax(np.abs(along[:2]).sum(0) * self.scene.model.geom_size[self.bar]))]
        return float(np.arctan2(axis[1], axis[0]))

    def done(self) -> bool:
        """See `Job`: it is on, and the hand is off the knob."""
        hand = Hand.of(self.scene.simulator)
        return self.scene.holds(self.goal) and hand.position[2] > self.top() + 0.04

    def top(self) -> float:
        """Height of the bar."""
        geoms = (self.scene.model.geom_bodyid == self.body) & self.scene.solid
        return float(self.scene.points(geoms)[:, 2].max())

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        rotation = skills.top_grasp(hand, self.yaw() + np.pi / 2, np.pi)
        if self.scene.holds(self.goal):
            return skills.release(hand, rotation)
        center = np.array(self.scene.data.geom_xpos[self.bar])
        grip = np.array([*(center[:2] + self.off * rotation[:2, 1]), self.top() - self.depth])
        if np.linalg.norm(hand.position - grip) < 0.016 and turned(hand, rotation) < 0.4:
            if hand.gap < self.THICKNESS:
                twist = skills.top_grasp(hand, self.yaw() + np.pi / 2, np.pi)
                ahead = pointing_down(float(np.arctan2(twist[1, 0], twist[0, 0])) + 0.8)
                return skills.move(hand, grip, ahead, CLOSE)
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


def drawer_of(scene: Scene, region: str) -> bool:
    """Whether a region is the inside of a drawer."""
    joints = getattr(scene.simulator.object_sites_dict.get(region), "joints", None)
    return bool(joints) and "_level" in joints[0]


class IntoDrawer(Place):
    """Place, into an open drawer that may stand out over the thing, which is round and taken by the rim.

    The hand leans over from the front, so that it stays clear of the cabinet, and takes the side that is not beneath
    the drawer. The thing comes out from beneath before it goes up.
    """

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        super().__init__(scene, goal, Manner.draw(generator))
        self.drawer, self.floor = Drawer(scene, goal[2]), scene.bottom(goal[1])
        self.tilt, self.skew = np.radians(generator.uniform(32, 42)), np.radians(generator.uniform(-15, 15))

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        if self.grasp is None or (not self.is_held(hand) and self.grasp.is_stale(self.scene, self.thing)):
            self.grasp = self.lean()
        return super().act(hand)

    def lean(self) -> Grasp:
        """By the rim, on the side away from the drawer's middle."""
        scene, thing, out = self.scene, self.thing, self.drawer.out
        along = np.cross(out, UP)
        origin, turn = scene.position(thing), scene.rotation(thing)
        side = 1.0 if (origin - self.drawer.handle()) @ along > 0 else -1.0
        heading = about(UP, self.skew) @ -out
        rotation = raking(heading, self.tilt, 1.0 if heading[1] < 0 else -1.0)
        towards = side * (about(UP, self.skew) @ along)
        points, shape = scene.points(scene.parts(thing)), shape_of(scene, thing)
        low, high = corners(points)
        middle = (low + high) / 2
        reach = float(((points - middle) @ towards).max())
        place = middle + towards * (reach - shape.inset)
        place[2] = high[2] - shape.depth
        return Grasp(offset=turn.T @ (place - origin), rotation=rotation, origin=origin, turn=turn, cost=0.0)

    def reach(self, hand: Hand, grip: Point) -> Command:
        """Along the hand's axis; up and out first where the drawer is in the way."""
        assert self.grasp is not None
        low, high = corners(self.scene.points(self.drawer.geoms))
        inside = (hand.position > low - BESIDE)[:2].all() and (hand.position < high + BESIDE)[:2].all()
        if inside and low[2] < hand.position[2] < high[2] + OVER:
            away = UP * 0.05 + self.drawer.out * (0.05 if hand.position[2] > high[2] else 0.0)
            return skills.move(hand, hand.position + away, self.grasp.rotation, OPEN)
        return come(hand, grip, self.grasp.rotation, 0.12, self.manner.speed)

    def carry(self, hand: Hand) -> Command:
        """See `Place`; a little above the table while the drawer is overhead."""
        way = self.way_out()
        if not way.any():
            return super().carry(hand)
        height = self.floor + SKIM - self.scene.bottom(self.thing)
        return skills.move(hand, hand.position + way + UP * height, hand.rotation, CLOSE)

    def way_out(self) -> Point:
        """The shortest way to the side from beneath the drawer; zeros where nothing is overhead."""
        low, high = corners(self.scene.points(self.drawer.geoms))
        least, most = corners(self.scene.points(self.scene.parts(self.thing)))
        back, forth = low - most - ROOM, high - least + ROOM
        if (back > 0)[:2].any() or (forth < 0)[:2].any() or least[2] > low[2]:
            return np.zeros(3)
        ways = [step[axis] * np.eye(3)[axis] for step in (back, forth) for axis in (0, 1)]
        return min(ways, key=lambda way: float(np.abs(way).sum()))


def make_into_drawer(scene: Scene, goal: Goal, generator: np.random.Generator) -> Sequence[Job]:
    """Open the drawer, then put the thing inside."""
    return [OpenDrawer(scene, ("open", goal[2]), generator), IntoDrawer(scene, goal, generator)]


KINDS = (
    Kind(lambda scene, goal: goal[0] == "open" and drawer_of(scene, goal[1]), one(OpenDrawer), order=0),
    Kind(lambda scene, goal: goal[0] == "turnon", one(TurnOn), order=0),
    Kind(lambda scene, goal: goal[0] == "on" and goal[1].startswith("plate"), one(Push)),
    Kind(lambda scene, goal: goal[0] == "in" and drawer_of(scene, goal[2]), make_into_drawer),
)
