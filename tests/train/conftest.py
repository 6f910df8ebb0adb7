"""Demonstrations and settings that every test of training starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_fast.train.config import CodecTraining, MainTraining
from rsd_fast.train.dataset import DemoData, load_data
from tests.train.demo_files import QUICK, SEEING, write_demos


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    write_demos(folder, "Lift")
    write_demos(folder, "Stack")
    return folder


@pytest.fixture(scope="session")
def data(demos: Path) -> DemoData:
    return load_data(CodecTraining(demos=demos, device="cpu", held_out=0.25))


@pytest.fixture
def main_config(demos: Path, tmp_path: Path) -> MainTraining:
    settings = {"preset": "tiny", "chunk": 4, "held_out": 0.25, "steps": 8, "eval_every": 4, **QUICK, **SEEING}
    return MainTraining(demos=demos, out=tmp_path / "policy", **settings)
