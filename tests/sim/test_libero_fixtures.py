"""Experts of LIBERO's fixtures: drawers, knobs, doors, what is pushed and what is awkward to take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_fast.sim.experts.disturbance import Disturbance
from rsd_fast.sim.experts.libero_experts import make_expert
from rsd_fast.sim.experts.libero_poses import come, leaning, raking
from rsd_fast.sim.experts.skills import Hand
from rsd_fast.sim.suites import get_suite
from tests.sim.libero_setup import libero

QUICK = [("libero_goal", 0), ("libero_goal", 5)]
TASKS = [
    ("libero_goal", 3),
    ("libero_goal", 7),
    ("libero_10", 2),
    ("libero_10", 3),
    ("libero_10", 4),
    ("libero_10", 5),
    ("libero_10", 8),
    ("libero_10", 9),
]


@pytest.fixture(scope="module")
def assets() -> Iterator[Path]:
    with libero() as folder:
        yield folder


def successes(suite: str, index: int, seeds: range, push: float) -> list[int]:
    """The seeds of the random starts from which the expert reaches the goal within the step cap."""
    family = get_suite(suite)
    env = family.make_env(family.tasks[index], render=False)
    reached = []
    try:
        for seed in seeds:
            env.reset(seed=seed)
            expert, disturbance = make_expert(env), Disturbance(np.random.default_rng(seed), push)
            success = truncated = False
            while not (success or truncated):
                command = expert.act()
                assert command.shape == (7,) and np.abs(command).max() <= 1.0
                _, success, truncated, _ = env.advance(np.clip(command + disturbance.next(), -1, 1))
            reached += [seed] if success else []
    finally:
        env.close()
    return reached


@pytest.mark.parametrize(("suite", "index"), QUICK)
def test_a_drawer_is_pulled_and_a_plate_pushed_through_disturbances(assets: Path, suite: str, index: int):
    assert successes(suite, index, range(100, 101), push=0.6) == [100]


@pytest.mark.slow
@pytest.mark.parametrize(("push", "least"), [(0.0, 9), (0.6, 7)])
@pytest.mark.parametrize(("suite", "index"), QUICK + TASKS)
def test_nine_episodes_in_ten_succeed_and_most_that_are_disturbed(
    assets: Path, suite: str, index: int, push: float, least: int
):
    assert len(successes(suite, index, range(200, 210), push)) >= least


# ---- poses

headings = st.floats(-np.pi, np.pi).map(lambda angle: np.array([np.cos(angle), np.sin(angle), 0.0]))
tilts = st.floats(0.0, np.pi / 2)
coordinates = st.floats(-1.5, 1.5)
points = st.builds(lambda *xyz: np.array(xyz), coordinates, coordinates, coordinates)


@given(headings, tilts)
@settings(max_examples=100)
def test_a_leaning_hand_points_where_it_should(heading: np.ndarray, tilt: float):
    for pose in (leaning(heading, tilt), raking(heading, tilt), raking(heading, tilt, -1.0)):
        assert np.allclose(pose.T @ pose, np.eye(3)) and np.linalg.det(pose) == pytest.approx(1)
        assert pose[:, 2] @ heading == pytest.approx(np.sin(tilt), abs=1e-9)
        assert -pose[2, 2] == pytest.approx(np.cos(tilt), abs=1e-9)
    assert raking(heading, tilt)[2, 0] == pytest.approx(0)  # fingers side by side
    assert leaning(heading, tilt)[:, 0] @ np.cross(heading, [0, 0, 1]) == pytest.approx(0, abs=1e-9)


@given(points, headings, tilts, points)
@settings(max_examples=100)
def test_a_hand_comes_along_its_own_axis(position: np.ndarray, heading: np.ndarray, tilt: float, where: np.ndarray):
    rotation = raking(heading, tilt)
    there = Hand(position, rotation, 0.08)
    assert np.abs(come(there, position, rotation)[:6]).max() < 1e-6  # it rests where it should be
    behind = Hand(position - 0.05 * rotation[:, 2], rotation, 0.08)
    step = come(behind, position, rotation)[:3]
    assert np.linalg.norm(np.cross(step, rotation[:, 2])) < 1e-6 and step @ rotation[:, 2] > 0
    assert np.abs(come(Hand(where, rotation, 0.08), position, rotation)).max() <= 1.0 + 1e-9
