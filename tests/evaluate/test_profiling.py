"""`rsd-fast profile` without a GPU: rounds, torch's trace, the command lines for Nsight."""

from __future__ import annotations

import json

import pytest

from rsd_fast.evaluate.config import ProfileConfig
from rsd_fast.evaluate.profiling import NSIGHT, run


def test_rounds_are_traced_and_the_nsight_commands_told(tmp_path, capsys, monkeypatch):
    for name in NSIGHT:
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "new" / "trace.json"
    run(ProfileConfig(device="cpu", mode="jacobi", rounds=2, warmup=1, out=out))
    told = capsys.readouterr().out
    assert "2 rounds, jacobi, runtime eager, device cpu" in told
    assert "nsys profile --capture-range=cudaProfilerApi" in told and "--cuda-graph-trace=node" in told
    assert "ncu --profile-from-start off" in told
    names = {event.get("name") for event in json.loads(out.read_text())["traceEvents"]}
    assert "aten::scaled_dot_product_attention" in names


def test_under_nsight_there_is_no_second_profiler(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(NSIGHT[0], "1")
    out = tmp_path / "trace.json"
    run(ProfileConfig(device="cpu", rounds=1, warmup=0, out=out))
    assert not out.exists() and "nsys profile" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rounds", "batch"])
def test_numbers_that_make_no_sense(name):
    with pytest.raises(ValueError, match=f"got --{name} 0, expected at least 1"):
        ProfileConfig(**{name: 0})
