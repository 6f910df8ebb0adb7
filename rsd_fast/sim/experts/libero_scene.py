"""A LIBERO simulator as the experts see it: names of the task file turned into positions, points and predicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from .skills import Command, Hand, Point, Rotation

Goal = tuple[str, ...]  # a predicate and its arguments, as LIBERO parses them: ("on", "akita_black_bowl_1", "plate_1")
Points = Float[np.ndarray, "N 3"]
Boxes = tuple[Points, Points]  # lowest and highest corners, world frame

PRESSED = 0.003  # by which fingers want to be nearer together than they are
OPENED = 0.06  # gap of fingers that count as open
ROOM = 0.025  # between what travels and what it passes over
HAND_WIDTH = 0.05  # half the room that the hand needs to the side where it travels


class Job(Protocol):
    """One thing to do. Both methods read the simulator anew at each call."""

    def done(self) -> bool:
        """Whether there is nothing left to do here, the hand included: it holds nothing that belongs to the job."""
        ...

    def act(self, hand: Hand) -> Command:
        """The command for the state the simulator is in, in [-1, 1]."""
        ...


class Scene:
    """Names of one task's objects, fixtures and sites, and where they are now. Metres, world frame."""

    def __init__(self, simulator: Any) -> None:
        import mujoco  # not before a GL library has been chosen (rsd_fast/sim/gl.py)

        self.simulator = simulator
        self.geom_types: Any = mujoco.mjtGeom
        self.model: Any = simulator.sim.model._model
        self.data: Any = simulator.sim.data._data
        model = self.model
        self.solid: Bool[np.ndarray, "G"] = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        self.solid &= model.geom_type != self.geom_types.mjGEOM_PLANE
        self.parts, self.shape = cache(self._parts), cache(self._shape)
        self.robot = np.isin(model.geom_bodyid, self._robot_bodies())
        important = simulator.robots[0].gripper.important_geoms
        named = [important["left_finger"], important["right_finger"]]
        self.fingers = [np.isin(np.arange(model.ngeom), [model.geom(geom).id for geom in finger]) for finger in named]
        self.base: Point = np.array(self.data.body("robot0_base").xpos)

    def goals(self) -> list[Goal]:
        """What the task asks for, in the order of its file."""
        return [tuple(goal) for goal in self.simulator.parsed_problem["goal_state"]]

    def holds(self, goal: Goal) -> bool:
        """LIBERO's own verdict on one predicate."""
        return bool(self.simulator._eval_predicate(list(goal)))

    def is_body(self, name: str) -> bool:
        """Whether `name` is an object or a fixture; the others are sites."""
        return name in self.simulator.obj_body_id

    def root(self, name: str) -> int:
        """The body of an object or a fixture."""
        return int(self.simulator.obj_body_id[name])

    def position(self, name: str) -> Point:
        """Origin of an object, a fixture or a site."""
        if self.is_body(name):
            return np.array(self.data.xpos[self.root(name)])
        return np.array(self.simulator.sim.data.get_site_xpos(name))

    def rotation(self, name: str) -> Rotation:
        """Axes of an object, a fixture or a site, as columns."""
        if self.is_body(name):
            return np.array(self.data.xmat[self.root(name)]).reshape(3, 3)
        return np.array(self.simulator.sim.data.get_site_xmat(name)).reshape(3, 3)

    def size(self, site: str) -> Point:
        """Half the edges of a site."""
        return np.array(self.simulator.object_sites_dict[site].size)

    def speed(self, name: str) -> float:
        """Of an object's origin, metres a second."""
        return float(np.linalg.norm(self.data.cvel[self.root(name), 3:]))

    def _parts(self, name: str) -> Bool[np.ndarray, "G"]:
        """Which geoms collide and belong to the object or fixture `name`."""
        return np.isin(self.model.geom_bodyid, self._below([self.root(name)])) & self.solid

    def points(self, geoms: Bool[np.ndarray, "G"], edge: int = 2) -> Points:
        """Points on some geoms: `edge` along each edge of a box, corners of a mesh, rings of a cylinder."""
        owner, local = self.shape(tuple(np.flatnonzero(geoms)), edge)
        return np.einsum("nij,nj->ni", self.data.geom_xmat[owner].reshape(-1, 3, 3), local) + self.data.geom_xpos[owner]

    def top(self, name: str) -> float:
        """Height of the highest point."""
        return float(self.points(self.parts(name))[:, 2].max())

    def bottom(self, name: str) -> float:
        """Height of the lowest point."""
        return float(self.points(self.parts(name))[:, 2].min())

    def below(self, name: str) -> float:
        """Height of an object's origin above its lowest point."""
        return float(self.position(name)[2]) - self.bottom(name)

    def touching(self, first: Bool[np.ndarray, "G"], second: Bool[np.ndarray, "G"]) -> bool:
        """Whether two sets of geoms are in contact."""
        pairs = self.data.contact.geom
        sides = first[pairs[:, 0]] & second[pairs[:, 1]], second[pairs[:, 0]] & first[pairs[:, 1]]
        return bool(sides[0].any() or sides[1].any())

    def grasped(self, name: str) -> bool:
        """Whether both fingers touch the object."""
        own = self.parts(name)
        return all(self.touching(own, finger) for finger in self.fingers)

    def closing(self) -> bool:
        """Whether the fingers are on their way together, or pressing on something between them."""
        robot = self.simulator.robots[0]
        wanted = self.data.ctrl[robot._ref_joint_gripper_actuator_indexes]
        return bool(wanted[0] - wanted[1] < Hand.of(self.simulator).gap - PRESSED)

    def squeezing(self) -> bool:
        """Whether the fingers press together with all their force; it takes them some steps to."""
        return bool(self.simulator.robots[0].gripper.current_action[0] < -0.9)

    def airborne(self, name: str) -> bool:
        """Whether an object touches nothing but the robot."""
        own = self.parts(name)
        return not self.touching(own, ~own & ~self.robot)

    def boxes(self, geoms: Bool[np.ndarray, "G"]) -> Boxes:
        """Axis-parallel boxes around each of some geoms."""
        turn = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        center, half = self.model.geom_aabb[geoms, :3], self.model.geom_aabb[geoms, 3:]
        middle = self.data.geom_xpos[geoms] + np.einsum("gij,gj->gi", turn, center)
        reach = np.einsum("gij,gj->gi", np.abs(turn), half)
        return middle - reach, middle + reach

    def highest(self, start: Point, end: Point, leave_out: Iterable[str] = (), width: float = HAND_WIDTH) -> float:
        """Height of the highest thing within `width` of the straight way between two points, the robot left out."""
        geoms = self.solid & ~self.robot
        for name in leave_out:
            geoms &= ~self.parts(name)
        low, high = self.boxes(geoms)
        way = start[:2] + np.linspace(0, 1, 12)[:, None, None] * (end - start)[:2]  # [12, 1, 2]
        beneath = ((way > low[:, :2] - width) & (way < high[:, :2] + width)).all(-1).any(0)
        return float(high[beneath, 2].max(initial=-np.inf))

    def overhang(self, name: str, room: float = 0.04) -> Point | None:
        """The horizontal direction out from under what hangs over an object, less than `room` above it, if anything."""
        own, points = self.parts(name), self.points(self.parts(name))
        geoms = self.solid & ~self.robot & ~own
        turn = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        half = self.model.geom_aabb[geoms, 3:]
        middle = self.data.geom_xpos[geoms] + np.einsum("gij,gj->gi", turn, self.model.geom_aabb[geoms, :3])
        start = np.einsum("gij,gni->gnj", turn, points - middle[:, None])  # in the frame of each geom's box
        up = turn[:, None, 2]
        steady = np.where(np.abs(up) < 1e-9, 1e-9, up)
        ends = np.stack([(-half[:, None] - start) / steady, (half[:, None] - start) / steady])
        enter, leave = ends.min(0).max(-1), ends.max(0).min(-1)  # of a ray upwards from each point
        under = ((enter > 0) & (enter < leave) & (enter < room)).any(0)
        if not under.any():
            return None
        way = ((points.min(0) + points.max(0)) / 2 - points[under].mean(0)) * [1, 1, 0]
        return np.asarray(way / max(float(np.linalg.norm(way)), 1e-9))

    def _robot_bodies(self) -> list[int]:
        names = [self.model.body(body).name for body in range(self.model.nbody)]
        return self._below([i for i, name in enumerate(names) if name.startswith(("robot0", "gripper0", "mount0"))])

    def _below(self, roots: list[int]) -> list[int]:
        """Bodies and what hangs on them; a parent comes before its children."""
        found = set(roots)
        for body in range(1, self.model.nbody):
            if self.model.body_parentid[body] in found:
                found.add(body)
        return sorted(found)

    def _shape(self, geoms: tuple[int, ...], edge: int) -> tuple[Int[np.ndarray, "N"], Points]:
        """Points on some geoms that move with them: whose each is, and where in its frame."""
        found = [self._outline(geom, edge) for geom in geoms]
        owner = np.repeat(np.array(geoms, int), [len(points) for points in found])
        return owner, np.concatenate([np.zeros((0, 3)), *found])

    def _outline(self, geom: int, edge: int) -> Points:
        kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
        types = self.geom_types
        if kind == types.mjGEOM_BOX:
            line = np.linspace(-1, 1, edge)
            return np.stack(np.meshgrid(line, line, line), -1).reshape(-1, 3) * size
        if kind == types.mjGEOM_MESH:
            mesh = self.model.geom_dataid[geom]
            start, count = self.model.mesh_vertadr[mesh], self.model.mesh_vertnum[mesh]
            return np.asarray(self.model.mesh_vert[start : start + count][:: max(1, count // 400)])
        if kind == types.mjGEOM_SPHERE:
            return np.concatenate([np.eye(3), -np.eye(3)]) * size[0]
        turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)  # of a cylinder or a capsule
        ring = np.stack([np.cos(turns), np.sin(turns)], 1) * size[0]
        return np.concatenate([np.insert(ring, 2, height, axis=1) for height in (-size[1], size[1])])


@dataclass(frozen=True)
class Kind:
    """Goals of one kind.

    Attributes:
        fits: whether a goal of the scene is one.
        make: the jobs that reach it, in their order. The generator is the episode's.
        order: of two goals, the one with the lower order is reached first; 0 opens and turns on, 1 moves objects,
            2 closes.
    """

    fits: Callable[[Scene, Goal], bool]
    make: Callable[[Scene, Goal, np.random.Generator], Sequence[Job]]
    order: int = 1
