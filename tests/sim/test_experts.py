"""The scripted experts: they succeed, recover, and command what a policy can learn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rsd_fast.sim.experts import skills
from rsd_fast.sim.experts.disturbance import FORCE_CLOSED, FORCE_OPEN, Disturbance
from rsd_fast.sim.robosuite_suite import SUITE, RobosuiteEnv
from tests.sim.conftest import TASKS

# ---- whole episodes


def play(
    env: RobosuiteEnv, seed: int, change=lambda step, command: command, steps: int = 1000
) -> tuple[bool, list[np.ndarray]]:
    """One episode; `change` says what is executed instead of the expert's command. Success and the hand's path."""
    env.reset(seed=seed)
    expert = SUITE.make_expert(env)
    path, over, success = [], False, False
    while not over and env.steps < steps:
        command = expert.act()
        assert command.shape == (7,) and np.abs(command).max() <= 1.0
        _, success, truncated, _ = env.advance(np.clip(change(env.steps, command), -1, 1))
        over = success or truncated
        path.append(skills.Hand.of(env.simulator).position)
    return success, path


@pytest.mark.parametrize("task", TASKS)
def test_experts_succeed_and_their_episodes_are_reproducible(physics, task: str):
    success, path = play(physics(task), seed=20)
    assert success
    assert play(physics(task), seed=21)[0]
    _, again = play(physics(task), seed=20, steps=25)
    assert np.array_equal(path[:25], again)


@pytest.mark.parametrize("task", TASKS)
def test_experts_recover_from_a_push(physics, task: str):
    aside = np.array([0.9, -0.9, 0.3, 0, 0, 0.3, 0])
    success, pushed = play(physics(task), 22, lambda step, command: command + aside * (8 <= step < 14))
    _, quiet = play(physics(task), 22, steps=14)
    assert np.linalg.norm(pushed[13] - quiet[13]) > 0.03
    assert success


def test_an_expert_that_loses_what_it_holds_takes_it_again(physics):
    env = physics("Stack")
    let_go: list[int] = []

    def drop(step: int, command: np.ndarray) -> np.ndarray:
        holding = SUITE.make_expert(env).holds()
        if let_go or (holding and env.simulator.sim.data.body_xpos[env.simulator.cubeA_body_id][2] > 0.88):
            let_go.append(step)
        return np.append(command[:6], skills.OPEN) if 0 < len(let_go) <= 6 else command

    assert play(env, 23, drop)[0]
    assert len(let_go) > 12  # it was dropped, and the episode went on


# ---- pushes


@given(st.integers(0, 2**20), st.sampled_from([0.1, 0.6, 1.0]))
@settings(max_examples=20)
def test_pushes_are_short_bounded_and_the_same_for_a_seed(seed: int, size: float):
    offsets, active = zip(*pushes(seed, size, 300), strict=True)
    again, _ = zip(*pushes(seed, size, 300), strict=True)
    assert np.array_equal(offsets, again)
    values = np.array(offsets)
    assert np.abs(values[:, :3]).max() <= size and np.abs(values[:, 3:6]).max() <= size / 2
    assert not values[~np.array(active)].any()
    lengths = runs(active)
    assert all(3 <= length <= 12 for value, length in lengths[1:-1] if value)
    assert all(16 <= length <= 48 for value, length in lengths[1:-1] if not value)
    assert any(value for value, _ in lengths)


def test_a_slip_opens_the_fingers_and_shuts_them_on_nothing():
    values = np.array([offset for offset, _ in pushes(3, 0.6, 3000)])
    grips = runs(values[:, 6])
    opened = [i for i, (value, _) in enumerate(grips) if value == FORCE_OPEN]
    assert len(opened) > 10
    for i in opened[:-1]:
        assert grips[i + 1][0] == FORCE_CLOSED
        assert all(3 <= length <= 6 for _, length in grips[i : i + 2])
    assert not values[values[:, 6] != 0, :6].any()  # a slip does not push
    assert (np.abs(values[:, :3]).max(1) > 0).any()  # and there are pushes too


def pushes(seed: int, size: float, steps: int) -> list[tuple[np.ndarray, bool]]:
    disturbance = Disturbance(np.random.default_rng(seed), size)
    return [(disturbance.next().copy(), disturbance.active) for _ in range(steps)]


def runs(values) -> list[tuple[bool, int]]:
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(values[start], end - start) for start, end in pairwise(edges)]


def test_no_pushes_leave_the_expert_alone():
    assert not any(offset.any() or active for offset, active in pushes(0, 0.0, 200))
    with pytest.raises(ValueError, match="got disturbance size -1"):
        Disturbance(np.random.default_rng(0), -1)


# ---- skills

coordinates = st.floats(-1.5, 1.5)
points = st.builds(lambda *xyz: np.array(xyz), coordinates, coordinates, coordinates)
rotations = st.integers(0, 2**20).map(lambda seed: Rotation.random(random_state=seed).as_matrix())
hands = st.builds(skills.Hand, points, rotations, st.floats(0, 0.08))


@given(hands, points, rotations, points)
@settings(max_examples=100)
def test_every_skill_commands_within_the_range(hand, position, rotation, held):
    for command in (
        skills.reach(hand, position, rotation, 0.1),
        skills.grasp(hand, position, rotation),
        skills.lift(hand, 1.0, rotation),
        skills.carry(hand, held, position, rotation, 0.1),
        skills.release(hand, rotation),
    ):
        assert command.shape == (7,) and np.isfinite(command).all()
        assert np.abs(command).max() <= 1.0 + 1e-9
        assert command[6] in (skills.OPEN, skills.CLOSE)


@given(hands, points)
@settings(max_examples=100)
def test_a_move_goes_straight_to_its_goal_and_rests_there(hand, goal):
    step = skills.move(hand, goal, hand.rotation, skills.OPEN)[:3]
    gap = goal - hand.position
    assert np.linalg.norm(np.cross(step, gap)) <= 1e-6 * max(1.0, np.linalg.norm(gap))
    assert step @ gap >= 0
    at_goal = skills.move(hand, hand.position, hand.rotation, skills.OPEN)
    assert np.abs(at_goal[:6]).max() < 1e-6


@given(hands, st.floats(-np.pi, np.pi), st.sampled_from([np.pi / 2, np.pi]))
@settings(max_examples=100)
def test_a_top_grasp_points_down_and_turns_no_more_than_it_must(hand, yaw, symmetry):
    grasp = skills.top_grasp(hand, yaw, symmetry)
    assert np.allclose(grasp @ grasp.T, np.eye(3)) and np.linalg.det(grasp) == pytest.approx(1)
    assert np.allclose(grasp[:, 2], [0, 0, -1])
    finger = np.arctan2(grasp[1, 0], grasp[0, 0])
    assert abs((finger - yaw + symmetry / 2) % symmetry - symmetry / 2) < 1e-6  # one of the object's poses
    current = np.arctan2(hand.rotation[1, 0], hand.rotation[0, 0])
    assert abs((finger - current + np.pi) % (2 * np.pi) - np.pi) <= symmetry / 2 + 1e-6


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_funnel_rises_with_the_error_and_stays_below_the_clearance(error, more):
    assert 0 <= skills.funnel(error, 0.1) <= skills.funnel(error + more, 0.1) <= 0.1
    assert skills.funnel(0.0, 0.1) == 0
