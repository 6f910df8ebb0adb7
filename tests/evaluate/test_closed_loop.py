"""The shipped policy in the real simulator, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from rsd_fast.cli import main
from rsd_fast.evaluate.records import Records


def test_shipped_policy_lifts_the_cube_in_both_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--tasks", "Lift", "--trials", "2", "--modes", "sequential,rsd", "--video", "1"]
    command += ["--workers", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(command) == 0
    rows = {(row.mode, row.init_state): row for row in Records.open(tmp_path).rows.values()}
    assert len(rows) == 4
    assert sum(row.outcome == "success" for row in rows.values()) >= 3
    for state in range(2):
        sequential, rsd = rows["sequential", state], rows["rsd", state]
        assert set(sequential.passes) == {3}
        assert sum(rsd.passes) / len(rsd.passes) < 2
        assert rsd.settings["weights"] == sequential.settings["weights"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["mode"] for row in summary["rows"]] == ["sequential", "rsd"]
    (video,) = (tmp_path / "videos").iterdir()
    with av.open(str(video)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == max(rows[mode, 0].steps for mode in ("sequential", "rsd")) + 20

    before = (tmp_path / "episodes.jsonl").read_bytes()
    assert main(command) == 0  # nothing is left to do
    assert (tmp_path / "episodes.jsonl").read_bytes() == before
    assert "Lift" in capsys.readouterr().out
