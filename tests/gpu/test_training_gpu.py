"""A training step as a CUDA graph draws and learns what an eager one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rsd_fast.codec import RFSQCodec
from rsd_fast.train import codec, draft, main
from rsd_fast.train.config import CodecTraining, DraftTraining, Head, MainTraining
from rsd_fast.train.dataset import DemoData, load_data
from rsd_fast.train.loop import Run
from tests.train.demo_files import QUICK, SEEING, write_demos

pytestmark = pytest.mark.gpu

STEPS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> MainTraining:
    folder = tmp_path_factory.mktemp("training")
    write_demos(folder / "demos", "Lift")
    settings = {"preset": "tiny", "chunk": 4, "held_out": 0.25, **QUICK, **SEEING, "device": "cuda"}
    return MainTraining(demos=folder / "demos", out=folder / "policy", **settings)


@pytest.fixture(scope="module")
def data(config: MainTraining) -> DemoData:
    data = load_data(config)
    codec.run(CodecTraining(demos=config.demos, out=config.out, held_out=config.held_out), data)
    return data


def losses(config: MainTraining, data: DemoData, folder: Path) -> torch.Tensor:
    fitted = RFSQCodec.from_pretrained(config.out / "codec").eval().requires_grad_(False).to(data.device)
    objective = main.objective(main.build_main(config, fitted, data), fitted, data, config)
    run = Run(objective, config, folder, {})
    seen = torch.stack([run.step(step, step / STEPS, step) for step in range(STEPS)])
    assert (run.graph is not None) == config.cuda_graph
    assert not torch.equal(*(next(iter(model.parameters())) for model in (run.model, run.average)))
    return seen


TWO = ("hierarchical", "parallel")


@pytest.mark.parametrize("heads", [TWO, (*TWO, "regression", "conditioned_queries")])
def test_a_captured_step_learns_what_an_eager_one_does(
    config: MainTraining, data: DemoData, tmp_path: Path, heads: tuple[Head, ...]
):
    config = replace(config, heads=heads)
    eager = losses(config, data, tmp_path / "eager")
    captured = losses(replace(config, cuda_graph=True), data, tmp_path / "captured")
    # The same draws in every step; gradients are summed in no fixed order.
    assert torch.allclose(eager, captured, rtol=0.02)
    assert captured[-1, 0] < captured[0, 0]


@pytest.mark.parametrize("kind", ["regression", "coarse"])
def test_a_draft_is_captured_with_main_s_own_decoding(config: MainTraining, data: DemoData, kind: str):
    graphed = replace(config, cuda_graph=True, steps=STEPS, eval_every=STEPS, resume=False)
    assert main.run(graphed, data).ended == "steps"
    own = {"kind": kind, "steps": STEPS, "eval_every": STEPS, "cuda_graph": True, "held_out": config.held_out}
    settings = {**QUICK, **SEEING, **own, "device": "cuda"}
    assert draft.run(DraftTraining(demos=config.demos, out=config.out, **settings), data).steps == STEPS
