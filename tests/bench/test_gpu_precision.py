"""Half precision against float32, tried out on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu_precision import main
from tests.train.demo_files import write_demos


def test_rows_say_how_far_actions_are_apart(tmp_path: Path):
    write_demos(tmp_path / "demos", size=128)
    words = ["--demos", str(tmp_path / "demos"), "--frames", "4", "--device", "cpu"]
    main([*words, "--modes", "sequential", "parallel", "--out", str(tmp_path / "out" / "precision.json")])
    rows = json.loads((tmp_path / "out" / "precision.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["sequential", "parallel"]
    for row in rows:
        assert 0 < row["action_mae"] < 0.05 < row["expert_mae"]
        assert row["expert_mae_half"] == pytest.approx(row["expert_mae"], abs=row["action_mae"])
        assert 0.5 < row["codes_equal"] <= 1
