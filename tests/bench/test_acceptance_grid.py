"""Acceptance settings on demonstrations, tried out on a few frames."""

from __future__ import annotations

import json
from pathlib import Path

from bench.acceptance_grid import GRANULARITIES, RULES, THETAS, main
from tests.train.demo_files import write_demos


def test_every_setting_has_a_row_and_strictness_is_nearness(tmp_path: Path):
    write_demos(tmp_path / "demos", size=128)
    out = tmp_path / "grid.json"
    main([str(tmp_path / "demos"), "--checkpoint", "robosuite-nano", "--chunks", "6", "--out", str(out)])
    first, *rest = json.loads(out.read_text())["rows"]
    rows = {row["setting"]: row for row in rest}
    assert first["setting"] == "sequential" and len(rows) == len(RULES) * len(GRANULARITIES) * len(THETAS)
    same = rows["exact, layer, 1"]  # is sequential decoding, whatever the draft
    assert same["to_sequential"] == same["far_chunks"] == 0
    assert same["mae"] == first["mae"]
    for name, row in rows.items():
        assert 1 <= row["passes"] <= first["passes"], name
    for granularity in GRANULARITIES:
        passes = [rows[f"exact, {granularity}, {theta:g}"]["passes"] for theta in THETAS]
        assert passes == sorted(passes, reverse=True)
