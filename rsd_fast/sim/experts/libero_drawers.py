"""Drawers: opened by the handle, filled from above, pushed shut.

Metres, radians, world frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import skills
from .libero_awkward import Take
from .libero_objects import shape_of
from .libero_poses import FAR, UP, about, come, corners, leaning, level, raking, turned
from .libero_scene import OPENED, Goal, Job, Scene
from .skills import CLOSE, OPEN, Command, Hand, Point, Rotation

WIDE, SHUT = 0.155, 0.12  # how far a drawer is pulled, and less than that counts as not open enough
BESIDE, OVER = 0.015, 0.05  # room that the fingers keep beside and over a drawer
SKIM = 0.015  # above the table beneath it
RESTING = 0.01  # metres a second


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


def drawer_of(scene: Scene, region: str) -> bool:
    """Whether a region is the inside of a drawer."""
    joints = getattr(scene.simulator.object_sites_dict.get(region), "joints", None) or [""]
    return "_level" in joints[0]


class OpenDrawer:
    """Takes a drawer by its handle and pulls; not again once the thing that it was opened for is inside."""

    THICKNESS = 0.028  # gap of fingers that hold the handle, at most

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator, purpose: Goal | None = None) -> None:
        self.scene, self.goal, self.purpose = scene, goal, purpose
        self.drawer = Drawer(scene, goal[1])
        self.tilt = np.radians(generator.uniform(70, 90))
        self.side = generator.uniform(-0.012, 0.012)

    def done(self) -> bool:
        """See `Job`: it is open wide enough, and the hand is off the handle."""
        if self.purpose is not None and self.scene.holds(self.purpose):
            return True
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


class IntoDrawer(Take):
    """Into an open drawer that may stand out over the thing, which is round and taken by the rim.

    The hand leans over from the front, so that it stays clear of the cabinet and of a drawer overhead. The thing comes
    out from beneath before it goes up.
    """

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        super().__init__(scene, goal, generator)
        self.drawer, self.floor = Drawer(scene, goal[2]), scene.bottom(goal[1])
        overhead = corners(scene.points(self.drawer.geoms))[0][2] > scene.top(self.thing)
        tilt = generator.uniform(32, 42) if overhead else generator.uniform(16, 24)
        self.tilt, self.skew = np.radians(tilt), np.radians(generator.uniform(-15, 15))
        self.side, self.cabinet = 1.0, scene.simulator.object_sites_dict[goal[2]].parent_name

    def grip(self, hand: Hand) -> tuple[Point, Rotation]:
        """See `Take`: by the rim, on the side of the arm, which reaches no farther stretched."""
        scene, out = self.scene, self.drawer.out
        along = np.cross(out, UP)
        if not scene.squeezing():
            self.side = 1.0 if (scene.base - scene.position(self.thing)) @ along > 0 else -1.0
        heading = about(UP, self.skew) @ -out
        towards = self.side * (about(UP, self.skew) @ along)
        points, shape = scene.points(scene.parts(self.thing)), shape_of(scene, self.thing)
        low, high = corners(points)
        middle = (low + high) / 2
        place = middle + towards * (float(((points - middle) @ towards).max()) - shape.inset)
        place[2] = high[2] - shape.depth
        return place, raking(heading, self.tilt)

    def target(self) -> Point:
        """See `Take`: the middle of the drawer, clear of the handles of those above it until the rim is below them."""
        scene, out, below = self.scene, self.drawer.out, self.scene.below(self.thing)
        low, _ = corners(scene.points(self.drawer.geoms))
        goal = np.array([*scene.position(self.place)[:2], low[2] + 0.025 + below])
        others = scene.parts(self.cabinet) & ~self.drawer.geoms
        ends = np.stack(scene.boxes(others))  # [2, N, 3]
        above = (ends[1, :, 2] > low[2] + 0.04) & (ends[0, :, 2] < scene.top(self.thing))
        front = (ends @ out)[:, above].max()
        points = scene.points(scene.parts(self.thing))
        radius = float(np.ptp(points @ out)) / 2
        return goal + out * max(0.0, front + radius + 0.004 - float(goal @ out))

    def is_placed(self) -> bool:
        """See `Take`: low enough, too, so that it comes to stand flat and the drawer can be closed."""
        scene = self.scene
        if not scene.holds(self.goal):
            return False
        if not scene.squeezing():  # it is being let go
            return True
        low, _ = corners(scene.points(self.drawer.geoms))
        rests = scene.touching(scene.parts(self.thing), self.drawer.geoms) and scene.speed(self.thing) < RESTING
        return rests or scene.bottom(self.thing) < low[2] + 0.03

    def leave(self, hand: Hand, rotation: Rotation) -> Command:
        """Lets go, then backs off along the hand's axis."""
        away = rotation[:, 2] * -0.1 if hand.gap > OPENED else np.zeros(3)
        return skills.move(hand, hand.position + away, rotation, OPEN)

    def reach(self, hand: Hand, position: Point, rotation: Rotation) -> Command:
        """Along the hand's axis; up and out first where the drawer is in the way."""
        low, high = corners(self.scene.points(self.drawer.geoms))
        inside = (hand.position > low - BESIDE)[:2].all() and (hand.position < high + BESIDE)[:2].all()
        if inside and low[2] < hand.position[2] < high[2] + OVER:
            away = UP * 0.05 + self.drawer.out * (0.05 if hand.position[2] > high[2] else 0.0)
            return skills.move(hand, hand.position + away, rotation, OPEN)
        return come(hand, position, rotation, 0.12, self.speed)

    def carry(self, hand: Hand, rotation: Rotation) -> Command:
        """See `Take`; a little above the table while the drawer is overhead."""
        way = self.way_out()
        if not way.any():
            return super().carry(hand, rotation)
        height = self.floor + SKIM - self.scene.bottom(self.thing)
        return skills.move(hand, hand.position + way + UP * height, rotation, CLOSE)

    def way_out(self) -> Point:
        """The shortest way to the side from beneath the drawer; zeros where nothing is overhead."""
        low, high = corners(self.scene.points(self.drawer.geoms))
        least, most = corners(self.scene.points(self.scene.parts(self.thing)))
        back, forth = low - most - BESIDE, high - least + BESIDE
        if (back > 0)[:2].any() or (forth < 0)[:2].any() or least[2] > low[2]:
            return np.zeros(3)
        ways = [step[axis] * np.eye(3)[axis] for step in (back, forth) for axis in (0, 1)]
        return min(ways, key=lambda way: float(np.abs(way).sum()))


class CloseDrawer:
    """Pushes a drawer's handle with closed fingers, in a hand that leans so that the fingertips are in front."""

    def __init__(self, scene: Scene, goal: Goal, generator: np.random.Generator) -> None:
        self.scene, self.goal, self.drawer = scene, goal, Drawer(scene, goal[1])
        self.tilt = np.radians(generator.uniform(28, 36))
        self.side = generator.uniform(-0.015, 0.015)

    def done(self) -> bool:
        """See `Job`."""
        return self.scene.holds(self.goal)

    def act(self, hand: Hand) -> Command:
        """See `Job`."""
        out = self.drawer.out
        rotation = raking(-out, self.tilt)
        press = self.drawer.handle() + out * 0.03 + np.cross(out, UP) * self.side
        gap = hand.position - press
        off = gap - out * (gap @ out)
        if np.linalg.norm(off) < 0.02 and gap @ out < 0.06 and turned(hand, rotation) < 0.3:
            return skills.move(hand, hand.position - off - out * 0.06, rotation, CLOSE)
        start = press + out * 0.01
        height = skills.funnel(skills.misalignment(hand, start, rotation), FAR)
        return skills.move(hand, skills.above(start, height), rotation, CLOSE)


def make_into_drawer(scene: Scene, goal: Goal, generator: np.random.Generator) -> Sequence[Job]:
    """Open the drawer, then put the thing inside."""
    return [OpenDrawer(scene, ("open", goal[2]), generator, purpose=goal), IntoDrawer(scene, goal, generator)]
