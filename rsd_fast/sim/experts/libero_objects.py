"""Where to take LIBERO's objects: bowls and mugs by the rim, everything else across its narrowest side.

A grasp is chosen from the geometry as it is now, so a bottle that fell over is taken as it lies. Metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from .libero_scene import Points, Scene
from .skills import Point, Rotation

WIDEST = 0.076  # of what fits between the fingers
FINGER, HAND, ARM = 0.048, 0.105, 0.06  # half the room to the side of open fingers, of the hand, of the wrist
RIM = 0.012  # height of the part of a bowl or mug that counts as its rim
REACH = (0.44, 0.70)  # of an arm that points down, from its base, with ease
HOME_YAW = np.pi / 2  # of the finger axis as the arm starts
LEAN = -0.06  # decides which way the hand turns where both would cost the same
FAR, SHY = np.pi / 4, 3.0  # further turns to the other side cost more: two ways of far turns are too much to learn


@dataclass(frozen=True)
class Shape:
    """How to take a kind of object.

    Attributes:
        rim: whether by the rim, one finger inside; otherwise across.
        depth: of the fingertips below the top (of the rim: where it is taken), at most.
        inset: of the hand from the outer edge of the rim.
    """

    rim: bool = False
    depth: float = 0.035
    inset: float = 0.0


ACROSS = Shape()
SHAPES = {  # by LIBERO's category; the others are taken across
    "akita_black_bowl": Shape(rim=True, depth=0.020, inset=0.008),
    "white_bowl": Shape(rim=True, depth=0.020, inset=0.008),
    "glazed_rim_porcelain_ramekin": Shape(rim=True, depth=0.020, inset=0.008),
    "porcelain_mug": Shape(rim=True, depth=0.025, inset=0.005),
    "white_yellow_mug": Shape(rim=True, depth=0.025, inset=0.005),
    "red_coffee_mug": Shape(rim=True, depth=0.025, inset=0.005),
    "plate": Shape(rim=True, depth=0.010, inset=0.006),
}


def shape_of(scene: Scene, name: str) -> Shape:
    """How to take the object `name`."""
    return SHAPES.get(scene.simulator.get_object(name).category_name, ACROSS)


@dataclass(frozen=True)
class Grasp:
    """A way to take an object, chosen when the object was at `origin`, turned by `turn`.

    Attributes:
        offset: of the hand from the object's origin, in the object's frame.
        rotation: of the hand, in the world.
        cost: the lower, the freer the way of the fingers and the less wrist and arm strain.
    """

    offset: Point
    rotation: Rotation
    origin: Point
    turn: Rotation
    cost: float

    def position(self, scene: Scene, name: str) -> Point:
        """Of the hand, with the object where it is now."""
        return scene.position(name) + scene.rotation(name) @ self.offset

    def is_stale(self, scene: Scene, name: str, moved: float = 0.015, turned: float = 0.2) -> bool:
        """Whether the object is no longer where or how it was, so that another grasp may be better."""
        cosine = (np.trace(self.turn.T @ scene.rotation(name)) - 1) / 2
        return bool(np.linalg.norm(scene.position(name) - self.origin) > moved or cosine < np.cos(turned))


def choose_grasp(
    scene: Scene, name: str, ahead: Point, whim: Float[np.ndarray, "N"], support: str | None = None
) -> Grasp | None:
    """The cheapest grasp; None while the object is too wide whichever way one takes it.

    Args:
        ahead: where the object's origin will have to go.
        whim: added to the costs of as many directions, so that not all episodes are alike.
        support: what the object is put on or into: it is in nobody's way there.
    """
    return min(candidates(scene, name, ahead, whim, support), key=lambda grasp: grasp.cost, default=None)


def candidates(
    scene: Scene, name: str, ahead: Point, whim: Float[np.ndarray, "N"], support: str | None = None
) -> list[Grasp]:
    """Every grasp from above that fits between the fingers."""
    shape, own = shape_of(scene, name), scene.parts(name)
    mine, others = scene.points(own), ~own & ~scene.robot
    low, high = mine.min(0), mine.max(0)
    middle, way = (low + high) / 2, ahead - scene.position(name)
    here = _around(scene, others, middle, low[2])
    strangers = others & ~scene.parts(support) if support else others
    there = _around(scene, strangers, middle + way, low[2] + way[2])
    out = scene.overhang(name)
    found = []
    for extra, angle in zip(whim, np.linspace(0, 2 * np.pi, len(whim), endpoint=False), strict=True):
        if not shape.rim and angle >= np.pi:
            continue
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        width, center = _extent(mine, middle, along)
        length, _ = _extent(mine, middle, across)
        if shape.rim:
            places = [_on_rim(mine, along, shape)]
        elif width < WIDEST:
            top = high[2] - min(shape.depth, (high[2] - low[2]) / 2)
            height = max(top, low[2] + 0.012)
            slides = (0.0,) if length < 0.07 else (0.0, 0.012, -0.012, 0.022, -0.022)
            places = [np.array([*(center + across * slide), height]) for slide in slides]
        else:
            continue
        for place in places:
            yaw = half_turn(angle - HOME_YAW)
            slid = abs(float((place[:2] - center) @ across))
            cost = extra + 0.8 * abs(yaw - LEAN) + SHY * max(0.0, yaw - FAR)
            cost += _awkward(scene, place) + _awkward(scene, place + way)
            cost += _in_fingers_way(here, place, along, shape.rim)
            cost += _in_hands_way(here, place, along) + _in_hands_way(there, place + way, along)
            cost += _handle(mine, place, along) if shape.rim else 0.0
            cost -= 0.0 if out is None else float(along @ out[:2])
            cost += 0.0 if shape.rim else 8 * slid + 30 * max(0.0, width - 0.06)
            found.append(_grasp(scene, name, place, HOME_YAW + yaw, cost))
    return found


def _grasp(scene: Scene, name: str, place: Point, yaw: float, cost: float) -> Grasp:
    origin, turn = scene.position(name), scene.rotation(name)
    return Grasp(turn.T @ (place - origin), pointing_down(yaw), origin, turn, cost)


def _extent(points: Points, middle: Point, along: np.ndarray) -> tuple[float, np.ndarray]:
    """Width of `points` along a horizontal direction, and the middle of it."""
    reach = (points - middle)[:, :2] @ along
    return float(reach.max() - reach.min()), middle[:2] + along * (reach.max() + reach.min()) / 2


def _on_rim(points: Points, along: np.ndarray, shape: Shape) -> Point:
    """Where a finger on each side of the rim is, in a direction from its centre; a handle is not part of the rim."""
    ring = points[points[:, 2] > points[:, 2].max() - RIM]
    width, center = _extent(ring, (ring.min(0) + ring.max(0)) / 2, along)
    place = center + along * (width / 2 - shape.inset)
    near = points[np.linalg.norm(points[:, :2] - place, axis=1) < 0.022]
    top = near[:, 2].max() if len(near) else points[:, 2].max()
    return np.array([*place, top - shape.depth])


def _handle(points: Points, place: Point, along: np.ndarray) -> float:
    """What of the object itself is outside the rim where the outer finger would be."""
    aside, across, above = _seen_from(points, place, along)
    return float(3 * min(((aside > 0.014) & (np.abs(across) < 0.02) & (above > -0.01)).sum(), 3))


def _around(scene: Scene, geoms: Bool[np.ndarray, "G"], middle: Point, low: float) -> Points:
    """Points on what stands near an object's place and higher than its foot there."""
    points = scene.points(geoms & scene.solid, edge=6)
    near = np.linalg.norm((points - middle)[:, :2], axis=1) < 0.22
    return points[near & (points[:, 2] > low + 0.01)]


def _seen_from(points: Points, place: Point, along: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far points are from the fingertips along the finger axis, across it, and above them."""
    flat = (points - place)[:, :2]
    return flat @ along, flat @ np.array([-along[1], along[0]]), points[:, 2] - place[2]


def _in_fingers_way(others: Points, place: Point, along: np.ndarray, rim: bool) -> float:
    """What stands where the open fingers would come down."""
    aside, across, above = _seen_from(others, place, along)
    fingers = (np.abs(np.abs(aside) - FINGER) < 0.016) & (np.abs(across) < 0.016) & (above > -0.008)
    if rim:
        fingers &= aside > 0  # the other one is inside
    return float(3 * min(fingers.sum(), 3))


def _in_hands_way(others: Points, place: Point, along: np.ndarray) -> float:
    """What stands where hand and wrist would be."""
    aside, across, above = _seen_from(others, place, along)
    hand = (np.abs(aside) < HAND) & (np.abs(across) < 0.04) & (above > 0.045)
    arm = (np.abs(aside) < ARM) & (np.abs(across) < 0.06) & (above > 0.10)
    return float(2 * min(hand.sum(), 5) + min(arm.sum(), 3))


def _awkward(scene: Scene, place: Point) -> float:
    """How hard it is for the arm to point down there: nearly stretched or folded it is slow and drifts."""
    away = float(np.linalg.norm((place - scene.base)[:2]))
    return 40 * max(0.0, away - REACH[1]) + 80 * max(0.0, REACH[0] - away)


def pointing_down(yaw: float) -> Rotation:
    """The hand pointing down, its finger axis along `yaw`."""
    x, z = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def half_turn(angle: float) -> float:
    """The same finger axis in [-pi/2, pi/2)."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
