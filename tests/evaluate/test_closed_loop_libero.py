"""The shipped LIBERO policy in LIBERO, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_fast.cli import main
from rsd_fast.evaluate.records import Records
from rsd_fast.sim.libero_assets import ASSETS_VARIABLE
from tests.sim.libero_setup import libero

TASK = "pick_up_the_cream_cheese_and_place_it_in_the_basket"


def test_shipped_policy_fills_the_basket_in_both_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with libero() as assets:
        monkeypatch.delenv(ASSETS_VARIABLE, raising=False)
        command = ["eval", "--suite", "libero_object", "--tasks", TASK, "--trials", "2", "--modes", "sequential,rsd"]
        assert (
            main([*command, "--assets", str(assets), "--workers", "1", "--device", "cpu", "--out", str(tmp_path)]) == 0
        )
    rows = list(Records.open(tmp_path).rows.values())
    assert len(rows) == 4 and {row.settings["checkpoint"] for row in rows} == {"libero-nano"}
    assert sum(row.outcome == "success" for row in rows) >= 3
    assert len({row.settings["weights"] for row in rows}) == 1
    assert {row.mode for row in rows if "draft_weights" in row.settings} == {"rsd"}
    rsd = [passes for row in rows if row.mode == "rsd" for passes in row.passes]
    assert sum(rsd) / len(rsd) < 2
