"""Simulators in processes of their own: the scenes they show, and how their end is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rsd_fast.sim.suites import Suite, get_suite
from rsd_fast.sim.vector import Simulator, SimulatorCrash, ready_simulators
from tests.evaluate.fakes import FakeSuite


@contextmanager
def simulator(suite: Suite, timeout: float = 60.0) -> Iterator[Simulator]:
    made = Simulator(suite, 4, 16, timeout)
    try:
        yield made
    finally:
        made.close()


def test_an_episode_stops_at_its_end_and_film_has_a_frame_a_step(marks: Path) -> None:
    with simulator(FakeSuite(marks)) as one:
        one.reset("Push", 2, film=True)
        reply = one.collect()
        assert reply.info["built"] and not reply.over
        assert reply.observation["state"][:3].tolist() == [2.0, 0.0, 0.0]
        shown = []
        while not reply.over:
            one.step(np.full((4, 7), 1.0, np.float32))
            reply = one.collect()
            shown += [frame.flat[0] for frame in reply.info["frames"]]
        assert (reply.info["success"], reply.info["steps"]) == (True, 10)
        assert shown == list(range(1, 11))
        one.reset("Pull", 0)  # the same process, another task
        assert not one.collect().over


def test_whoever_is_ready_is_collected_while_others_work(marks: Path) -> None:
    with simulator(FakeSuite(marks, {("Push", 0): "hang"})) as slow, simulator(FakeSuite(marks)) as quick:
        for one in (slow, quick):
            one.reset("Push", 0 if one is slow else 1)
            one.collect()
            one.step(np.ones((4, 7), np.float32))
        assert ready_simulators([slow, quick], block=True) == [quick]
        assert quick.collect().info["steps"] == 4
        assert ready_simulators([slow], block=False) == []


def test_a_killed_process_is_told_from_a_hung_one(marks: Path) -> None:
    with simulator(FakeSuite(marks)) as one:
        one.reset("Push", 0)
        one.collect()
        os.kill(one.pid, signal.SIGKILL)
        with pytest.raises(SimulatorCrash, match=r"died \(SIGKILL\)"):
            one.step(np.ones((4, 7), np.float32))
            one.collect()
    with simulator(FakeSuite(marks), timeout=1.0) as one:
        one.reset("Push", 1)
        one.collect()
        os.kill(one.pid, signal.SIGSTOP)
        one.step(np.ones((4, 7), np.float32))
        assert ready_simulators([one], block=True) == [one]
        with pytest.raises(SimulatorCrash, match="did not answer within 1 s"):
            one.collect()


def test_an_init_state_is_the_same_scene_in_every_process() -> None:
    suite = get_suite("robosuite")
    with simulator(suite, 120.0) as fresh, simulator(suite, 120.0) as used:
        fresh.reset("Lift", 3)
        used.reset("Lift", 0)
        used.collect()
        used.step(np.ones((4, 7), np.float32))
        used.collect()
        used.reset("Lift", 3)
        seen = []
        for one in (fresh, used):
            assert "error" not in one.collect().info
            one.step(np.zeros((4, 7), np.float32))
            seen.append(one.collect().observation)
    for name, value in seen[0].items():
        np.testing.assert_array_equal(value, seen[1][name], name)


def test_open_cameras_do_not_complain_at_the_interpreters_exit() -> None:
    code = (
        "from rsd_fast.sim.suites import get_suite\n"
        "suite = get_suite('robosuite')\n"
        "env = suite.make_env(suite.tasks[0], image_size=64)\n"
        "env.reset(options={'init_state': 0})\n"
        "print(env.frame().shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip()) == (0, "(64, 64, 3)")
    assert "Traceback" not in ended.stderr
    assert "EGL" not in ended.stderr
