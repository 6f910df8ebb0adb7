"""Hands that lean, and how they come near.

A hand that points `tilt` away from straight down towards a `heading` leans over it. Metres, radians, world frame.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation as Rotations

from . import skills
from .libero_scene import Points
from .skills import OPEN, Command, Hand, Point, Rotation

UP = np.array([0.0, 0.0, 1.0])
FAR = 0.10  # of the hand before it comes near, along its own axis
NEAREST, FARTHEST = 0.36, 0.82  # from the base of a hand that points down
HAND_LENGTH = 0.21  # from the wrist to the fingertips
NEAR, KEEN = 0.02, 2.0  # where commands are larger, and how much


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


def come(
    hand: Hand, position: Point, rotation: Rotation, far: float = FAR, speed: float = 1.0, gripper: float = OPEN
) -> Command:
    """Down a funnel along the hand's own axis."""
    axis, gap = rotation[:, 2], position - hand.position
    aside = float(np.linalg.norm(gap - axis * (gap @ axis))) + 0.04 * max(0.0, turned(hand, rotation) - 0.06)
    goal = position - axis * skills.funnel(aside, far)
    if aside < NEAR:  # friction swallows small commands
        goal = goal + (KEEN - 1) * (goal - hand.position)
    return skills.move(hand, goal, rotation, gripper, speed)


def keen(hand: Hand, goal: Point) -> Point:
    """A point further away than a goal that is near, since friction swallows small commands."""
    gap = (goal - hand.position) * [1, 1, 0]
    return goal + (KEEN - 1) * gap if np.linalg.norm(gap) < NEAR else goal


def stretched(base: Point, place: Point) -> Rotation:
    """The turn of a hand that points down, so that it gets to a place too far away for that."""
    out = level(place - base)
    angle = float(np.clip(((place - base) @ out - FARTHEST) / HAND_LENGTH, 0.0, np.radians(40)))
    return about(np.cross(out, UP), angle)


def rise(hand: Hand, base: Point, height: float, rotation: Rotation, gripper: float) -> Command:
    """Straight up to a height; outwards too where the arm is folded so far that the hand cannot go up."""
    out = level(hand.position - base)
    step = out * 0.03 if (hand.position - base) @ out < NEAREST else np.zeros(3)
    return skills.move(hand, np.array([*(hand.position + step)[:2], height]), rotation, gripper)
