"""One simulator a task for the whole session: building one takes a second, and a reset forgets what was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rsd_fast.sim.robosuite_suite import SUITE, RobosuiteEnv
from rsd_fast.sim.suites import get_task

TASKS = [task.name for task in SUITE.tasks]
IMAGE = 96


@pytest.fixture(scope="session")
def physics() -> Iterator[Callable[[str], RobosuiteEnv]]:
    """The environment of a task, without cameras."""
    made: dict[str, RobosuiteEnv] = {}

    def get(name: str) -> RobosuiteEnv:
        if name not in made:
            made[name] = SUITE.make_env(get_task(SUITE, name), image_size=IMAGE, render=False)
        return made[name]

    yield get
    for env in made.values():
        env.close()


@pytest.fixture(scope="session")
def seeing() -> Iterator[RobosuiteEnv]:
    """Task Lift, with cameras."""
    env = SUITE.make_env(get_task(SUITE, "Lift"), image_size=IMAGE)
    yield env
    env.close()
