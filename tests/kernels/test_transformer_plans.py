"""Tables of tiles: what is looked up, what is measured, and what a broken file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rsd_fast.kernels.transformer import AttentionTile, Plans, Tile, attention, linear, rms_norm, swiglu
from rsd_fast.kernels.transformer.plans import TABLES, cache_path, entry_of, read_table, write_table
from rsd_fast.kernels.transformer.tuning import best_of
from tests.kernels.transformer_cases import attention_case

SMALL, LARGE = Tile(32, 128, 64, split=4), Tile(64, 128, 64, swap=True)
TABLE = {"add 8x4": {"24": entry_of(SMALL), "64": entry_of(LARGE), "640": "cublas-add"}}


def test_the_entry_of_the_fewest_rows_that_are_enough_serves():
    plans = Plans((TABLE,))
    found = [plans.linear("add", rows, 8, 4) for rows in (1, 24, 25, 64, 65, 640)]
    assert found == [SMALL, SMALL, LARGE, LARGE, "cublas-add", "cublas-add"]


def test_what_no_table_knows_runs_with_cublas():
    plans = Plans((TABLE,))
    assert plans.linear("linear", 8, 8, 4) == plans.linear("swiglu", 8, 8, 4) == "cublas"
    assert plans.linear("add", 8, 4, 4) == "cublas"
    assert plans.linear("add", 641, 8, 4) == "cublas-add"  # many rows: added where the sum stands
    assert plans.attention("pass", 24, 2, 32) == AttentionTile.default(24)


def test_the_first_table_goes_first():
    assert Plans(({"add 8x4": {"64": "cublas"}}, TABLE)).linear("add", 24, 8, 4) == "cublas"


def test_without_a_gpu_there_are_no_tables():
    assert Plans.of("cpu").tables == ()


def test_the_package_s_tables_can_be_read():
    for path in TABLES.glob("*.json"):
        assert read_table(path)


def test_a_table_survives_a_file(tmp_path: Path):
    path = tmp_path / "folder" / "table.json"
    write_table(path, TABLE)
    assert read_table(path) == TABLE
    assert not list(path.parent.glob("*.tmp"))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"add 8x4": {"24": {"block": 3}}}', '{"add 8x4": {"many": "cublas"}}', '{"add 8x4": {"8": "blas"}}'],
)
def test_a_file_that_is_no_table_says_so(tmp_path: Path, text: str):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"table\.json is no table of tiles .*; delete it, or make it anew"):
        read_table(path)


def test_a_gpu_has_a_table_of_its_own(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path("NVIDIA H200", 9, 0) == tmp_path / "rsd_fast" / "tiles" / "nvidia-h200-sm_90.json"


def test_the_fastest_candidate_is_chosen():
    def row(choice, us):
        return {"key": "add 8x4", "rows": 24, "choice": choice, "us": us}

    rows = [row("cublas", 3.0), row(entry_of(SMALL), 2.0), row(entry_of(LARGE), None), row("cublas-add", 2.5)]
    assert best_of(rows) == {"add 8x4": {"24": entry_of(SMALL)}}
    assert json.loads(json.dumps(best_of(rows))) == best_of(rows)


def test_inputs_that_do_not_fit_are_refused():
    x = torch.zeros(3, 8)
    with pytest.raises(TypeError, match=r"x is torch\.int64, expected one of"):
        rms_norm(x.long(), x[0], 1e-5)
    with pytest.raises(ValueError, match=r"weight has shape \[3\], expected \[8\]"):
        rms_norm(x, torch.zeros(3), 1e-5)
    with pytest.raises(ValueError, match=r"delta has shape \[2, 8\], expected \[3, 8\]"):
        rms_norm(x, x[0], 1e-5, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="gate_up is 7 wide, expected an even width"):
        swiglu(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"strides \(1, 3\), expected it to be contiguous"):
        linear(torch.zeros(8, 3).T, torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"got x \[3, 8\] and weight \[4, 7\]"):
        linear(x, torch.zeros(4, 7))
    case = attention_case(0)
    case.key_mask = case.key_mask.long()
    with pytest.raises(ValueError, match=r"key_mask is torch\.int64 .*expected contiguous torch\.bool \[2, 19\]"):
        attention(*case.arguments())
    case = attention_case(0)
    case.cos = case.cos[:, :3]
    with pytest.raises(ValueError, match=r"cos is torch\.float32 \[5, 3\], expected contiguous float32 \[5, 16\]"):
        attention(*case.arguments())
