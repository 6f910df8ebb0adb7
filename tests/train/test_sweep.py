"""`rsd-fast train sweep`: every codec's errors, from demonstrations with or without pictures."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from rsd_fast.train.config import CodecSweep
from rsd_fast.train.sweep import run
from tests.train.demo_files import write_demos


def test_more_layers_lose_less_and_redundancy_gives_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    demos = write_demos(tmp_path / "demos", demos=4)
    with h5py.File(demos, "r+") as file:
        for demo in file["data"].values():  # recorded without pictures
            del demo["obs"]
    sweep = CodecSweep(demos=demos, out=tmp_path / "out", layers=4, levels=(5, 7), redundancy=(1.0, 2.0, 5.0))
    rows = run(sweep)
    # 5 levels overlap by 4 at most.
    assert [(row["levels"], row["redundancy"]) for row in rows] == [(5, 1.0), (5, 2.0), (7, 1.0), (7, 2.0), (7, 5.0)]
    for row in rows:
        assert row["mae 4"] <= row["mae 1"]
    assert rows[1]["choices"] > 0.9 > rows[0]["choices"]
    assert rows[2]["mae 2"] < rows[3]["mae 2"]  # a finer second layer
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == {"actions": 48, "rows": rows}
    assert "| levels | redundancy |" in capsys.readouterr().out


def test_a_sweep_of_nothing_is_an_error(tmp_path: Path):
    demos = write_demos(tmp_path, demos=2)
    with pytest.raises(ValueError, match="expected a redundancy from"):
        run(CodecSweep(demos=demos, out=tmp_path, levels=(3,), redundancy=(3.0,)))
