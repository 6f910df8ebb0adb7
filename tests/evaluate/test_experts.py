"""The scripted experts through the runner, against a plain loop: episode by episode the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsd_fast.cli import main
from rsd_fast.evaluate.records import Records
from rsd_fast.sim.libero_assets import ASSETS_VARIABLE
from rsd_fast.sim.suites import Suite, get_suite, get_task
from tests.sim.libero_setup import libero, sample_task

Told = dict[tuple[str, int], tuple[str, int]]


def plain_loop(suite: Suite, names: list[str], trials: int) -> Told:
    """Outcome and steps by task and initial state."""
    told = {}
    for name in names:
        env = suite.make_env(get_task(suite, name), image_size=64, render=False)
        for state in range(trials):
            env.reset(options={"init_state": state})
            expert = suite.make_expert(env)
            steps, success, over = 0, False, False
            while not over:
                _, success, truncated, _ = env.advance(expert.act())
                steps, over = steps + 1, success or truncated
            told[name, state] = ("success" if success else "failure", steps)
        env.close()
    return told


def through_the_runner(out: Path, suite: str, names: list[str], trials: int, *more: str) -> Told:
    command = ["eval", "--suite", suite, "--modes", "expert", "--trials", str(trials), "--out", str(out)]
    assert main([*command, "--tasks", *names, *more]) == 0
    rows = Records.open(out).rows.values()
    for row in rows:
        assert (row.mode, row.passes, row.ms, row.settings["mode"]) == ("expert", [], [], "expert")
    return {(row.task, row.init_state): (row.outcome, row.steps) for row in rows}


def test_robosuite(tmp_path: Path) -> None:
    suite, names = get_suite("robosuite"), ["Lift", "Stack"]
    seen = through_the_runner(tmp_path, "robosuite", names, 2, "--replan", "5", "--workers", "2")
    assert seen == plain_loop(suite, names, 2)
    assert {outcome for outcome, _ in seen.values()} == {"success"}


@pytest.fixture
def assets() -> Iterator[Path]:
    with libero() as folder:
        yield folder


def test_libero_spatial(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = get_suite("libero_spatial")
    names = [sample_task(suite.name).name]
    expected = plain_loop(suite, names, 2)
    monkeypatch.delenv(ASSETS_VARIABLE)
    assert through_the_runner(tmp_path, suite.name, names, 2, "--assets", str(assets), "--workers", "1") == expected
    assert ASSETS_VARIABLE not in os.environ  # what was said to one run is not said to the next
    assert sum(outcome == "success" for outcome, _ in expected.values()) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_task_of_libero_spatial(assets: Path, tmp_path: Path) -> None:
    suite = get_suite("libero_spatial")
    names = [task.name for task in suite.tasks]
    seen = through_the_runner(tmp_path, suite.name, names, 3, "--workers", "2")
    assert seen == plain_loop(suite, names, 3)


def test_the_expert_beside_a_policy_is_filmed_and_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--tasks", "Lift", "--trials", "1", "--modes", "rsd,expert", "--video", "1", "--workers", "1"]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path)]) == 0
    rows = {row.mode: row for row in Records.open(tmp_path).rows.values()}
    assert rows["rsd"].settings["gripper"] == "simulator"  # of a policy that learned from this package's data
    assert rows["rsd"].ms and not rows["expert"].ms
    assert rows["expert"].outcome == "success"
    assert len(list((tmp_path / "videos").iterdir())) == 1
    assert "expert against rsd, pairs: 1" in " ".join(capsys.readouterr().out.split())
