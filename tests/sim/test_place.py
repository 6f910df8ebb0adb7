"""A recorded scene, drawn later: the same picture as at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rsd_fast.sim.libero_env import LiberoEnv
from rsd_fast.sim.robosuite_suite import RobosuiteEnv
from rsd_fast.sim.suites import Observation, TaskEnv, get_suite
from tests.sim.libero_setup import ACTIONS, IMAGE, libero, sample_task

Scene = tuple[Observation, np.ndarray, np.ndarray]
STOVE = "libero_goal"  # its sample task has one


@pytest.fixture(scope="module")
def kitchen() -> Iterator[LiberoEnv]:
    with libero():
        env = get_suite(STOVE).make_env(sample_task(STOVE), image_size=IMAGE)
        yield env
        env.close()


def play(env: TaskEnv, steps: int) -> list[Scene]:
    """What is seen and kept at some steps of an episode, the first one included."""
    observation, _ = env.reset(seed=3)
    scenes = []
    for action in ACTIONS[:steps]:
        scenes.append((observation, env.snapshot(), env.fixtures()))
        observation, *_ = env.step(action)
    return scenes


def differences(env: TaskEnv, scenes: list[Scene], dtype: Any) -> list[float]:
    """The share of pixels that another episode's simulator draws differently."""
    env.reset(seed=4)
    shares = []
    for seen, snapshot, fixtures in scenes:
        env.place(snapshot.astype(dtype), fixtures)
        drawn = env.observe()
        for camera in ("full_image", "wrist_image"):
            shares.append((drawn[camera] != seen[camera]).any(2).mean())
    return shares


def test_pictures_of_robosuite_are_the_same_pixel_for_pixel(seeing: RobosuiteEnv):
    scenes = play(seeing, 4)
    assert differences(seeing, scenes, np.float64) == [0.0] * 8
    # Demonstrations keep float32: an edge that falls between two pixels may go to the other.
    assert max(differences(seeing, scenes, np.float32)) < 0.02


def test_pictures_of_libero_are_the_same_pixel_for_pixel(kitchen: LiberoEnv):
    scenes = play(kitchen, 3)
    assert differences(kitchen, scenes, np.float64) == [0.0] * 6
    assert max(differences(kitchen, scenes, np.float32)) < 0.02


def test_a_burning_stove_is_drawn_burning(kitchen: LiberoEnv):
    snapshot, fixtures = play(kitchen, 1)[0][1:]
    stove = next(each for name, each in kitchen.simulator.fixtures_dict.items() if "stove" in name)
    address = kitchen.simulator.sim.model.get_joint_qpos_addr(stove.joints[0])
    pictures = []
    for angle in (0.0, 1.0, 0.0):
        snapshot[1 + address] = angle
        kitchen.place(snapshot, fixtures)
        pictures.append(kitchen.frame())
        assert stove.object_properties["vis_site_names"]["burner"][1] == (angle > 0)
    assert np.array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any(2).mean() > 0.005


def test_a_snapshot_of_another_model_is_refused(seeing: RobosuiteEnv):
    snapshot, fixtures = play(seeing, 1)[0][1:]
    with pytest.raises(ValueError, match=r"snapshot \(10,\) .*expected \(32,\) .*Lift: .*another version"):
        seeing.place(snapshot[:10], fixtures)
    with pytest.raises(ValueError, match=r"fixtures \(1, 7\), expected .*\(2, 7\)"):
        seeing.place(snapshot, fixtures[:1])
