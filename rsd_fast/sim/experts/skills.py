"""Skills of a two-finger arm under OSC_POSE, as functions of the current state alone.

No skill keeps a clock or a phase: what the hand does next follows from where everything is now. So an expert
that is pushed away recovers by itself, and a policy that sees the same state can learn the same command.
Distances in metres, angles in radians; a command is in [-1, 1], where 1 asks for 5 cm or 0.5 rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

Point = Float[np.ndarray, "3"]
Rotation = Float[np.ndarray, "3 3"]
Command = Float[np.ndarray, "7"]

OPEN, CLOSE = -1.0, 1.0
METRES, RADIANS = 0.05, 0.5  # what a command of 1 asks for
GAIN, TURN_GAIN, MAX_TURN = 1.6, 1.2, 0.6


@dataclass(frozen=True)
class Hand:
    """Where the gripper is: its site, the rotation of the hand (x: the finger axis) and the fingers' gap."""

    position: Point
    rotation: Rotation
    gap: float

    @classmethod
    def of(cls, simulator: Any) -> Hand:
        """The hand of the first robot of a robosuite environment."""
        robot, data = simulator.robots[0], simulator.sim.data
        fingers = [data.qpos[index] for index in robot._ref_gripper_joint_pos_indexes]
        return cls(
            np.array(data.site_xpos[robot.eef_site_id]),
            np.array(robot.controller.ee_ori_mat),
            float(abs(fingers[0]) + abs(fingers[1])),
        )


def move(hand: Hand, position: Point, rotation: Rotation, gripper: float, speed: float = 1.0) -> Command:
    """A proportional step towards a pose: the direction is kept where the speed is limited."""
    step = GAIN * (position - hand.position) / METRES
    step *= min(1.0, speed / max(np.abs(step).max(), 1e-9))
    turn = np.clip(TURN_GAIN * rotation_vector(rotation @ hand.rotation.T) / RADIANS, -MAX_TURN, MAX_TURN)
    return np.concatenate([step, turn, [gripper]])


def reach(hand: Hand, position: Point, rotation: Rotation, clearance: float) -> Command:
    """Down a funnel: high above while far to the side or turned wrongly, lower as the hand lines up."""
    height = funnel(misalignment(hand, position, rotation), clearance)
    return move(hand, above(position, height), rotation, OPEN)


def at_grasp(hand: Hand, position: Point, rotation: Rotation, tolerance: float = 0.008) -> bool:
    """Whether closing the fingers now would hold what is at `position`."""
    turned = np.linalg.norm(rotation_vector(rotation @ hand.rotation.T))
    return bool(np.linalg.norm(hand.position - position) < tolerance and turned < 0.12)


def grasp(hand: Hand, position: Point, rotation: Rotation) -> Command:
    """Closes the fingers in place."""
    return move(hand, position, rotation, CLOSE, speed=0.3)


def lift(hand: Hand, height: float, rotation: Rotation) -> Command:
    """Straight up to `height`, holding."""
    return move(hand, np.array([*hand.position[:2], height]), rotation, CLOSE)


def carry(hand: Hand, held: Point, target: Point, rotation: Rotation, clearance: float) -> Command:
    """Brings what is held at `held` over `target`, at `clearance` above it, and down as it lines up."""
    aside = float(np.linalg.norm((target - held)[:2]))
    goal = above(target, funnel(aside, clearance))
    lag = goal[2] - held[2]
    if aside > 0.03 and lag > 0.03:  # not yet high enough to travel
        goal = np.array([held[0], held[1], goal[2]])
    return move(hand, hand.position + goal - held, rotation, CLOSE, speed=1.0 if aside > 0.02 else 0.6)


def release(hand: Hand, rotation: Rotation, open_gap: float = 0.07) -> Command:
    """Opens the fingers in place, then backs off upwards."""
    backing_off = 0.1 if hand.gap > open_gap else 0.0
    return move(hand, above(hand.position, backing_off), rotation, OPEN)


def above(point: Point, height: float) -> Point:
    """The point `height` above `point`."""
    return point + np.array([0.0, 0.0, height])


def funnel(error: float, clearance: float, tip: float = 0.008, slope: float = 4.0) -> float:
    """Height above the goal that `error` (metres to the side) asks for."""
    return float(np.clip(slope * (error - tip), 0.0, clearance))


def misalignment(hand: Hand, position: Point, rotation: Rotation) -> float:
    """Metres to the side, with an angle counted as the way a fingertip has to go."""
    aside = float(np.linalg.norm((position - hand.position)[:2]))
    return aside + 0.04 * max(0.0, float(np.linalg.norm(rotation_vector(rotation @ hand.rotation.T))) - 0.06)


def top_grasp(hand: Hand, yaw: float, symmetry: float) -> Rotation:
    """The hand pointing down, its finger axis along `yaw` in the nearest of the object's symmetric poses."""
    current = np.arctan2(hand.rotation[1, 0], hand.rotation[0, 0])
    angle = current + (yaw - current + symmetry / 2) % symmetry - symmetry / 2
    x, z = np.array([np.cos(angle), np.sin(angle), 0.0]), np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def rotation_vector(rotation: Rotation) -> Point:
    """Axis times angle of a rotation matrix."""
    from scipy.spatial.transform import Rotation as Rotations

    return np.asarray(Rotations.from_matrix(rotation).as_rotvec())
