"""A grid of settings as one evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_fast.cli import main
from rsd_fast.evaluate import runner
from rsd_fast.evaluate.config import EvalConfig
from rsd_fast.evaluate.grid import SweepConfig
from rsd_fast.evaluate.policies import Policies
from rsd_fast.evaluate.records import Records
from rsd_fast.evaluate.runner import open_records, run_episodes
from rsd_fast.evaluate.sweep import run
from tests.evaluate.fakes import FakePolicy, FakeSuite


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, marks: Path) -> list[EvalConfig]:
    """Sends the runner to the fake suite; collects what it was asked for."""
    asked: list[EvalConfig] = []

    def run_fake(config: EvalConfig) -> int:
        asked.append(config)
        by_mode = {c.label: FakePolicy(1.0, passes=3 if c.mode == "sequential" else 1) for c in config.choices}
        suite, policies = FakeSuite(marks), Policies(dict(by_mode), {"checkpoint": "fake"})
        run_episodes(config, suite, [suite.tasks[0]], policies, open_records(config))
        return 0

    monkeypatch.setattr(runner, "run", run_fake)
    return asked


def test_the_grid_is_every_combination_and_each_mode_says_its_place() -> None:
    config = SweepConfig(modes=("sequential,jacobi",), rules=("exact", "typical(0.1)"), granularities=("layer",))
    assert config.labels[:3] == (
        *("sequential", "jacobi"),
        "rsd:draft=coarse,granularity=layer,rule=exact,theta=0.5",
    )
    assert len(config.labels) == 2 + 2 * 4
    chosen = {(c.settings.rule, c.settings.theta) for c in config.choices if c.mode == "rsd"}
    assert chosen == {(rule, theta) for rule in ("exact", "typical(0.1)") for theta in (0.5, 0.7, 0.9, 1.0)}
    (evaluation,) = config.evaluations()
    assert type(evaluation) is EvalConfig
    assert [choice.label for choice in evaluation.choices] == list(config.labels)


def test_the_baseline_takes_every_adaptive_depth_too() -> None:
    config = SweepConfig(tolerances=(0.01, 0.1), rules=("exact",), granularities=("element",), thetas=(1.0,))
    assert config.labels == (
        "sequential:tolerance=0.01",
        "sequential:tolerance=0.1",
        "rsd:draft=coarse,granularity=element,rule=exact,theta=1,tolerance=0.01",
        "rsd:draft=coarse,granularity=element,rule=exact,theta=1,tolerance=0.1",
    )
    assert config.choices[0].settings.tolerance == 0.01


def test_replan_intervals_run_apart_and_are_reported_together(
    ran: list[EvalConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"rules": ("exact",), "granularities": ("layer",), "thetas": (0.5, 1.0), "workers": 1}
    config = SweepConfig(suite="fake", trials=1, replans=(4, 2), out=tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert run(config) == 0
    assert [(part.replan, part.out.name) for part in ran] == [(4, "replan_4"), (2, "replan_2")]
    text = (config.out / "report.md").read_text()
    assert "| Push | sequential:replan=4 | 1/1 |" in text
    assert "| Push | rsd:draft=coarse,granularity=layer,rule=exact,theta=0.5,replan=2 | 1/1 |" in text
    assert "latency of `sequential:replan=4`, the baseline" in text
    assert "## Success against latency: what no other mode beats in both" in text
    before = {part.out: Records.open(part.out).file.read_bytes() for part in ran}
    assert run(config) == 0  # nothing is left to do
    assert {part.out: Records.open(part.out).file.read_bytes() for part in ran} == before


def test_one_replan_interval_needs_no_folder_of_its_own(ran: list[EvalConfig], tmp_path: Path) -> None:
    config = SweepConfig(suite="fake", trials=1, replans=(2,), out=tmp_path, workers=1, rules=("exact",), thetas=(1.0,))
    run(config)
    assert [(part.replan, part.out) for part in ran] == [(2, tmp_path)]
    assert len(Records.open(tmp_path).rows) == 3


def test_a_dry_run_lists_the_grid_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--dry-run", "--tasks", "Lift", "--trials", "4", "--out", str(tmp_path / "out")]
    assert main([*words, "--replans", "8", "4", "--granularities", "element"]) == 0
    shown = capsys.readouterr().out
    assert "rsd:draft=coarse,granularity=element,rule=distance(1),theta=0.7" in shown
    assert "13 modes x 1 tasks x 4 states x 2 replan intervals (8, 4) = 104 episodes, of which 0 are done" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--thetas", "1", "1"], "got --thetas [1.0, 1.0], expected at least one, and none twice"),
        (["--rules"], "got --rules [], expected at least one"),
        (["--replans", "0"], "got --replans [0], expected at least 1"),
        (["--modes", "fast"], "got mode 'fast'"),
    ],
)
def test_grids_that_make_no_sense_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", *words])
    assert message in " ".join("".join(capsys.readouterr()).replace("│", " ").split())
