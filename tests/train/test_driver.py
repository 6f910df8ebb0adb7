"""Stretches in which a policy acts: who acts when, and what a demonstration keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsd_fast.sim.robosuite_suite import SUITE, RobosuiteEnv
from rsd_fast.sim.suites import get_task
from rsd_fast.train import demos
from rsd_fast.train.config import DemosConfig
from rsd_fast.train.driver import CHUNKS, FIRST, QUIET, Driver
from rsd_fast.train.hdf5 import settings

CHUNK = 8


class Pusher:
    """Moves to the left, a little further with every chunk."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []

    def generate_action(self, observation: Any, instruction: str) -> tuple[np.ndarray, dict[str, Any]]:
        self.asked.append((observation, instruction))
        return np.tile([0.0, 0.01 * len(self.asked), 0, 0, 0, 0, -1], (CHUNK, 1)), {}


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    env = SUITE.make_env(get_task(SUITE, "Lift"), render=False)
    yield env
    env.close()


def run_lengths(acts: list[bool]) -> list[tuple[bool, int]]:
    edges = [0, *(i for i in range(1, len(acts)) if acts[i] != acts[i - 1]), len(acts)]
    return [(acts[a], b - a) for a, b in pairwise(edges)]


@pytest.mark.parametrize("seed", range(4))
def test_stretches_are_whole_chunks_with_quiet_between(seed: int):
    engine = Pusher()
    driver = Driver(engine, "lift", np.random.default_rng(seed))  # type: ignore[arg-type]
    steps = [driver.next(dict) for _ in range(2000)]
    runs = run_lengths([step is not None for step in steps])
    if not runs[0][0]:
        assert runs.pop(0)[1] <= FIRST[1]
    assert len(runs) > 10
    for acts, length in runs[:-1]:
        if acts:
            assert length % CHUNK == 0 and CHUNKS[0] <= length // CHUNK <= CHUNKS[1]
        else:
            assert QUIET[0] <= length <= QUIET[1]
    assert {instruction for _, instruction in engine.asked} == {"lift"}


def test_a_demonstration_keeps_the_experts_commands_and_says_who_acted(
    env: RobosuiteEnv, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rsd_fast.train.driver.FIRST", (4, 4))  # the expert alone is done after 28 steps
    engine = Pusher()
    driver = Driver(engine, "lift the cube", np.random.default_rng(3))  # type: ignore[arg-type]
    found = demos.demonstrate(env, SUITE.make_expert, 1, 0.0, 0.0, False, driver)
    assert found is not None and engine.asked
    drove = found.pushed.astype(bool)
    assert drove.sum() >= CHUNK and not drove.all()
    assert (found.executed[drove, 6] == -1).all() and (found.executed[drove, 1] > 0).all()
    assert np.array_equal(found.executed[~drove], found.actions[~drove])
    assert not np.array_equal(found.executed[drove], found.actions[drove])


def test_without_a_policy_nothing_is_said_of_one(tmp_path: Path):
    assert settings(DemosConfig(out=tmp_path)).keys() == {"image_size", "push", "slips", "seed"}
    assert settings(DemosConfig(out=tmp_path, policy="mine"))["policy"] == "mine"


def test_the_workers_ask_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rsd_fast.train.driver.FIRST", (4, 4))
    engine, loaded = Pusher(), []
    monkeypatch.setattr("rsd_fast.train.driver.load_driver", lambda *names: loaded.append(names) or engine)
    monkeypatch.setattr(
        demos, "environment", lambda suite, task, size: SUITE.make_env(get_task(SUITE, task), render=False)
    )
    config = DemosConfig(render=False, push=0.0, slips=0.0, policy="mine", device="cpu")
    job = demos.Job(get_task(SUITE, "Lift"), 1, config, tmp_path)
    assert demos.record(job)
    assert loaded == [("mine", "cpu")] and engine.asked and job.part.exists()
