"""The report on benchmarks, from a small result file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.report import main, markdown, read_rows


def benchmark(provider: str, batch: int, us: float, device: str = "cpu", **info: Any) -> dict[str, Any]:
    extra = {"op": "accept", "shape": "L3 T8 D7 V5", "batch": batch, "device": device, "provider": provider}
    stats = {"median": us * 1e-6, "q1": us * 0.9e-6, "q3": us * 1.2e-6}
    extra |= {"baseline": "torch", "bytes": 4000} | info
    return {"name": f"test[{provider}]", "stats": stats, "extra_info": extra}


@pytest.fixture
def data() -> dict[str, Any]:
    gpu = {"gpu": "NVIDIA H200", "cuda": "13.0", "triton": "3.9.0"}
    return {
        "machine_info": {
            "cpu": {"brand_raw": "A CPU"},
            "torch": "2.13",
            "threads": 2,
            "copy_gbps": {"cpu": 10.0},
            "gpu": gpu,
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-01",
        "benchmarks": [
            benchmark("torch", 1, 400.0),
            benchmark("cpu", 1, 40.0),
            benchmark("cpu", 256, 600.0),
            benchmark("triton", 1, 20.0, device="cuda", device_us=2.0),
            benchmark("torch", 1, 200.0, device="cuda", device_us=30.0),
        ],
    }


def cells(table: str, *keys: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith("| L3") and all(f"| {k} |" in line for k in keys)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_says_time_bandwidth_ceiling_and_ratio(data):
    table = markdown(read_rows(data), data)
    row = cells(table, "1", "cpu", "40.0")
    # 4000 bytes in 40 us are 0.1 GB/s, 1 % of 10 GB/s
    assert row == ["L3 T8 D7 V5", "1", "cpu", "cpu", "40.0", "36.0 - 48.0", "", "0.10", "1.0%", "10.0"]


def test_a_gpus_own_time_counts_where_it_was_taken(data):
    row = cells(markdown(read_rows(data), data), "cuda", "triton")
    assert row[4:] == ["20.0", "18.0 - 24.0", "2.0", "2.00", "", "15.0"]


def test_no_baseline_no_ratio(data):
    assert cells(markdown(read_rows(data), data), "256")[-1] == ""


def test_the_head_says_what_was_measured_on_what(data):
    head = markdown(read_rows(data), data)
    for part in ("commit 0123456789ab with local changes", "A CPU, 2 threads, torch 2.13", "NVIDIA H200, CUDA 13.0"):
        assert part in head


def test_rows_of_other_benchmarks_are_refused(data):
    del data["benchmarks"][0]["extra_info"]["bytes"]
    with pytest.raises(ValueError, match=r"test\[torch\]: got no \['bytes'\] in extra_info"):
        read_rows(data)


def test_the_command_writes_a_table_and_a_plot_per_shape_and_device(data, tmp_path, capsys):
    results, out = tmp_path / "results.json", tmp_path / "out"
    results.write_text(json.dumps(data))
    main([str(results), "--out", str(out)])
    plots = {"accept_L3_T8_D7_V5_cpu.png", "accept_L3_T8_D7_V5_cuda.png"}
    assert {path.name for path in out.iterdir()} == plots | {"report.md"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    assert capsys.readouterr().out.count("\n") == 3
