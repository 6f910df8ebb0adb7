"""A small evaluation with nothing but fakes in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rsd_fast.evaluate import figures
from rsd_fast.evaluate.config import EvalConfig, StudyConfig
from rsd_fast.evaluate.policies import Policies
from rsd_fast.evaluate.records import EpisodeRow, Records
from rsd_fast.evaluate.runner import open_records, run_episodes
from rsd_fast.evaluate.study import run as write_study
from tests.evaluate.fakes import FakePolicy, FakeSuite

Run = Callable[..., Records]

TIMES = {"vision_ms": 2.0, "prefill_ms": 10.0, "draft_ms": 1.0, "pass_ms": 4.5, "tail_ms": 0.5}


def fast_and_slow() -> Policies:
    """Mode `rsd` takes one pass and always succeeds; `sequential` takes three and is too slow from state 3 on."""
    modes = {"sequential": FakePolicy(0.25), "rsd": FakePolicy(1.0, passes=1, drafted=2)}
    return Policies(dict(modes), {"checkpoint": "fake"})


@pytest.fixture
def all_figures() -> None:
    """Asks for every figure of a report."""


@pytest.fixture(autouse=True)
def only_the_overview(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a report's time; tests of other things draw one."""
    if "all_figures" not in request.fixturenames:
        monkeypatch.setattr(figures, "PANELS", {})
        monkeypatch.setattr(figures, "draw_pareto", lambda *_: None)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def run(tmp_path: Path, marks: Path) -> Run:
    """Runs an evaluation on the fake suite and returns what it recorded."""

    def run(suite: FakeSuite | None = None, policies: Policies | None = None, **settings: object) -> Records:
        defaults = EvalConfig(suite="fake", trials=2, workers=1, out=tmp_path / "out", step_timeout=60)
        config = replace(defaults, **settings)  # type: ignore[arg-type]
        suite = suite or FakeSuite(marks)
        tasks = [task for task in suite.tasks if task.name in (config.tasks or ("Push",))]
        run_episodes(config, suite, tasks, policies or fast_and_slow(), open_records(config))
        return Records.open(config.out)

    return run


@pytest.fixture
def make_row() -> Callable[..., EpisodeRow]:
    """A row of results; keyword arguments replace what is in it."""

    def make(**changes: object) -> EpisodeRow:
        row = EpisodeRow(
            suite="fake",
            task="Push",
            instruction="push the block",
            mode="sequential",
            init_state=0,
            seed=0,
            outcome="success",
            error=None,
            steps=7,
            cap=40,
            passes=[3, 3],
            accepted_layers=[0.0, 0.0],
            kept_rates=[[], []],
            match_rates=[[], []],
            codes="00",
            ms=[10.0, 20.0],
            ms_stages={"vision": [4.0, 8.0], "passes": [6.0, 12.0]},
            simulator_seconds=1.0,
            settings={
                **{"mode": "sequential", "checkpoint": "fake", "device": "cpu", "dtype": "float32", "chunk": 4},
                **{"replan": 4, "batch": 1, "image_size": 16, "settling_steps": 0, "notes": []},
            },
            machine={"cores": 2, "workers": 1, "threads": 1},
            versions={"rsd_fast": "0"},
        )
        return replace(row, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Times of another geometry, as a bench leaves them."""
    path = tmp_path / "stages.json"
    path.write_text(json.dumps({**TIMES, "original": {**TIMES, "pass_ms": 5.5}, "stack": "fused"}))
    return path


def study(out: Path, *folders: Path, **options: object) -> str:
    """The page of a study."""
    write_study(StudyConfig(folders, out=out, **options))  # type: ignore[arg-type]
    return out.read_text()
