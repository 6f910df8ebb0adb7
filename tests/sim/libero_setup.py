"""Where the tests find LIBERO and its assets, and the tasks that stand for their suites."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rsd_fast.sim.libero_assets import ASSETS_VARIABLE, has_assets
from rsd_fast.sim.libero_package import package_folder
from rsd_fast.sim.suites import Task, get_suite

SAMPLE = {  # one a suite: a bowl in a drawer, a scene without fixtures, a stove, a microwave that is open, a cabinet
    "libero_spatial": 4,
    "libero_object": 0,
    "libero_goal": 7,
    "libero_10": 9,
    "libero_90": 0,
}
IMAGE = 64
STATE = 7
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (8, 7))


def sample_task(suite: str) -> Task:
    return get_suite(suite).tasks[SAMPLE[suite]]


@contextmanager
def libero() -> Iterator[Path]:
    """The assets, which the variable names for the block.

    Where LIBERO or its assets are missing, tests are skipped, but not in CI (`CI=true`): there they fail.
    """
    named = os.environ.get(ASSETS_VARIABLE)
    assets = Path(named or Path(__file__).parents[3] / "shared" / "libero-assets").resolve()
    try:
        package_folder()
        missing = "" if has_assets(assets) else f"no LIBERO assets in {assets}; {ASSETS_VARIABLE} can name them"
    except ImportError as error:
        missing = str(error)
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ASSETS_VARIABLE, str(assets))
        yield assets
