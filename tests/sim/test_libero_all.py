"""Every task of the four LIBERO suites builds, takes an initial state, steps and draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsd_fast.sim.suites import get_suite
from tests.sim.libero_setup import IMAGE, libero

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@pytest.fixture(scope="module")
def assets() -> Iterator[Path]:
    with libero() as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
@pytest.mark.parametrize("suite", SUITES)
def test_every_task(assets: Path, suite: str, index: int):
    family = get_suite(suite)
    env = family.make_env(family.tasks[index], image_size=IMAGE)
    try:
        start, _ = env.reset(options={"init_state": 49})
        step, reward, terminated, truncated, info = env.step(np.array([0.5, 0, 0, 0, 0, 0, -1]))
        assert np.isfinite(env.simulator.sim.data.qpos).all()
    finally:
        env.close()
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False, "steps": 1})
    for camera in ("full_image", "wrist_image"):
        assert start[camera].std() > 5 and not np.array_equal(start[camera], step[camera])
    assert step["state"][0] > start["state"][0]  # the hand moved along x
