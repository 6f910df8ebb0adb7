from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rsd_fast.train.config import OptimizerOptions
from rsd_fast.train.loop import Objective, Run, fit, make_optimizer, rate, share_done
from rsd_fast.train.metrics import MetricsLog
from tests.train.demo_files import QUICK


class Killed(Exception):
    """What a test raises where a kill would strike."""


def options(**changes) -> OptimizerOptions:
    return OptimizerOptions(**{**QUICK, "steps": 30, "eval_every": 10, "learning_rate": 0.05, **changes})


def line(kill_at: int | None = None, score=None) -> Objective:
    """Fits y = 3 x; `kill_at` counts batches, `score` replaces the held-out metric."""
    torch.manual_seed(0)
    model, drawn = nn.Linear(1, 1), [0]

    def batch(generator: torch.Generator) -> torch.Tensor:
        drawn[0] += 1
        if kill_at is not None and drawn[0] > kill_at:
            raise Killed
        return torch.randn(8, 1, generator=generator)

    def loss(model: nn.Linear, x: torch.Tensor):
        total = (model(x) - 3 * x).square().mean()
        return total, {"squared": total}

    def evaluate(model: nn.Linear) -> dict[str, float]:
        return {"error": abs(model.weight.item() - 3) if score is None else next(score)}

    return Objective("line", model, batch, loss, evaluate, "error")


def test_training_improves_and_leaves_the_best_average(tmp_path: Path):
    objective = line()
    before = abs(objective.model.weight.item() - 3)
    outcome = fit(objective, options(steps=100), tmp_path, {})
    assert outcome.ended == "steps" and outcome.steps == 100
    assert abs(objective.model.weight.item() - 3) == pytest.approx(outcome.best["error"])
    assert outcome.best["error"] < before / 2


@pytest.mark.parametrize("kill_at", [12, 25])
def test_a_killed_run_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path: Path, kill_at: int):
    unbroken = line()
    fit(unbroken, options(), tmp_path / "unbroken", {"seed": 0})
    with pytest.raises(Killed):
        fit(line(kill_at), options(), tmp_path / "killed", {"seed": 0})
    resumed = line()
    fit(resumed, options(), tmp_path / "killed", {"seed": 0})
    assert torch.equal(unbroken.model.weight, resumed.model.weight)
    logs = [MetricsLog(tmp_path / name).rows() for name in ("unbroken", "killed")]
    assert [{**row, "seconds": 0} for row in logs[0]] == [{**row, "seconds": 0} for row in logs[1]]


def test_a_complete_run_is_not_run_again(tmp_path: Path):
    first = fit(line(), options(), tmp_path, {})
    again = line(kill_at=0)
    assert fit(again, options(), tmp_path, {}) == first


def test_other_settings_are_not_mixed_in(tmp_path: Path):
    fit(line(), options(), tmp_path, {"batch": 8})
    with pytest.raises(ValueError, match=r"batch 8 \(now 16\).*--no-resume"):
        fit(line(), options(), tmp_path, {"batch": 16})
    assert fit(line(), options(resume=False), tmp_path, {"batch": 16}).steps == 30


def test_a_kill_while_saving_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Killed):
        fit(line(15), options(), tmp_path, {})
    state = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors.tmp").write_bytes(b"cut short")
    fit(line(), options(), tmp_path, {})
    assert (tmp_path / "last.safetensors").read_bytes() != state
    assert not (tmp_path / "last.safetensors.tmp").exists()


def test_early_stopping_keeps_the_best(tmp_path: Path):
    scores = iter([0.5, 0.2, 0.4, 0.3, 0.25, 0.1])
    outcome = fit(line(score=scores), options(steps=1000, patience=3), tmp_path, {})
    assert (outcome.ended, outcome.steps, outcome.best["step"], outcome.best["error"]) == ("patience", 50, 20, 0.2)


def test_a_run_ends_at_its_deadline_with_a_low_learning_rate(tmp_path: Path):
    outcome = fit(line(), options(steps=10**9, minutes=0.01, patience=10**6), tmp_path, {})
    assert outcome.ended == "minutes"
    assert 0.01 <= outcome.minutes < 0.05
    last = [row for row in MetricsLog(tmp_path).rows() if row["split"] == "train"][-1]
    assert last["learning_rate"] < 0.05 * 0.05


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path):
    objective = line()
    objective.loss = lambda model, x: (model(x).mean() * math.nan, {})
    with pytest.raises(FloatingPointError, match="learning-rate"):
        fit(objective, options(), tmp_path, {})


def test_rate_rises_and_falls():
    assert rate(0, 0.0, 9) == pytest.approx(0.1)
    assert rate(9, 0.0, 9) == 1.0
    assert rate(10**6, 1.0, 9) == pytest.approx(0.01)
    assert share_done(10, 30.0, options(minutes=1.0)) == 0.5


def test_only_matrices_decay():
    model = nn.ModuleDict({"table": nn.Embedding(3, 4), "linear": nn.Linear(4, 2), "norm": nn.LayerNorm(4)})
    decayed, others = make_optimizer(model, options(weight_decay=0.1), torch.device("cpu")).param_groups
    assert decayed["weight_decay"] == 0.1 and [p.shape for p in decayed["params"]] == [(2, 4)]
    assert others["weight_decay"] == 0.0 and len(others["params"]) == 4


def test_metrics_survive_a_line_cut_short(tmp_path: Path):
    log = MetricsLog(tmp_path)
    log.write("train", 10, 1.0, {"loss": 0.5})
    log.write("train", 20, 2.0, {"loss": 0.4})
    with log.path.open("a") as file:
        file.write('{"split": "tra')
    log.keep_until(10)
    assert [json.loads(row)["step"] for row in log.path.read_text().splitlines()] == [10]
    log.plot("title")
    assert log.picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("learning_rate", 0.0), ("ema", 1.0), ("minutes", 0.0), ("held_out", 1)]
)
def test_settings_are_checked(name: str, value: float):
    with pytest.raises(ValueError, match=f"got {name}"):
        replace(options(), **{name: value})


def test_a_graph_without_a_gpu_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="--no-cuda-graph"):
        fit(line(), options(cuda_graph=True), tmp_path, {})


class Clock:
    """Moves on a little whenever it is read, and by 10 s in an evaluation."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.now += 10
        return {"error": 1.0}


def test_the_last_evaluation_is_part_of_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock, objective = Clock(), line()
    monkeypatch.setattr("rsd_fast.train.loop.time", clock)
    objective.evaluate = clock.evaluate
    outcome = fit(objective, options(steps=10**9, minutes=1.0, eval_every=400, patience=10**6), tmp_path, {})
    rows = [row for row in MetricsLog(tmp_path).rows() if row["split"] == "held_out"]
    assert len(rows) >= 2  # the first one tells what the last will take
    assert 59 < 60 * outcome.minutes < 61


def test_a_step_does_not_read_the_learning_rate_s_past(tmp_path: Path):
    """As a tensor, which a graph reads, or as a number: the same steps."""
    ends = []
    for tensor in (False, True):
        objective = line()
        run = Run(objective, options(), tmp_path, {})
        for group in run.optimizer.param_groups:
            group["lr"] = torch.tensor(1.0) if tensor else 1.0
        for step in range(5):
            run.step(step, step / 5, step)
        ends.append(objective.model.weight.item())
    assert ends[0] == ends[1]
