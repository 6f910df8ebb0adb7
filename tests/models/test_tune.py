"""`rsd-fast tune`: what is measured, that it goes on where it was stopped, and what it says without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from rsd_fast.cli import main
from rsd_fast.kernels.transformer.plans import cache_path, read_table
from rsd_fast.kernels.transformer.tuning import Attention, Product
from rsd_fast.models import tune
from rsd_fast.models.tune_config import TuneConfig

GPU = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, shared_memory_per_block_optin=232448)


def test_without_a_gpu_it_says_so_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rsd-fast: torch") and "sees no NVIDIA GPU" in line and "run it there" in line


def test_an_unknown_model_says_so_in_one_line(capsys):
    assert main(["tune", "openvla-8b"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "openvla-8b" in line


def test_the_shapes_are_those_of_the_model():
    work = tune.work_of(tune.model_config("openvla-7b"), (24, 64), (1, 2))
    assert Product("swiglu", 64, 11008, 4096) in work and Product("add", 24, 4096, 11008) in work
    assert Product("linear", 128, 12288, 4096) in work  # two chunks of 64 queries
    prefills = sorted({item.rows for item in work if item.rows > 200})
    assert prefills == [640, 1280] and Attention("pass", 24, 560, 32, 128) in work
    with pytest.raises(ValueError, match=r"got queries \[0\]"):
        tune.work_of(tune.model_config("nano"), (0,), (1,))


@pytest.fixture
def fake_gpu(monkeypatch, tmp_path: Path) -> list[tuple[str, int]]:
    """A GPU on which cuBLAS always wins; returns what was measured."""
    measured: list[tuple[str, int]] = []

    def sweep(work, choices):
        if len(measured) == 3 and not tmp_path.joinpath("again").exists():
            tmp_path.joinpath("again").touch()
            raise KeyboardInterrupt
        measured.append((work.key, work.rows))
        for i, choice in enumerate(choices):
            kind = choice if isinstance(choice, str) else vars(choice)
            yield {"key": work.key, "rows": work.rows, "choice": kind, "us": 10.0 + i, "gbps": 5.0, "note": ""}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)
    monkeypatch.setattr(tune, "compile_in_pool", lambda jobs: None)
    monkeypatch.setattr(tune, "sweep", sweep)
    return measured


def test_it_goes_on_where_it_was_stopped_and_writes_the_gpu_s_table(fake_gpu, capsys):
    config = TuneConfig(model="nano", queries=(24,), quick=True)
    path = cache_path(GPU.name, GPU.major, GPU.minor)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config)
    assert not path.exists() and len(json.loads(path.with_suffix(".partial.json").read_text())["rows"]) > 3
    tune.run(config)
    assert len(fake_gpu) == len(set(fake_gpu)) == 10  # four products of pass and prefill, and two kinds of attention
    table = read_table(path)
    assert table["swiglu 704x256"]["24"] == "cublas" and len(table["pass attention 4x64"]["24"]) == 5
    assert not path.with_suffix(".partial.json").exists()
    shown = capsys.readouterr().out
    assert "swiglu 704x256" in shown and "cublas" in shown
