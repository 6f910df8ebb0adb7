"""Rows of the OpenVLA bench as tables, and in the marked places of a page."""

from __future__ import annotations

import json

from bench.openvla_report import fill, main, read, section_table

TIMES = {"ms": 2.0, "p10": 1.9, "p90": 2.2, "wall_ms": 2.1, "count": 9, "floor_ms": 1.0, "bound": "flops"}
ROWS = [
    {"section": "machine", "work": "machine", "variant": "", "gpu": "none", "copy_gbps": 10.04},
    {"section": "vision", "work": "vision", "variant": "plain, graph", **TIMES, "ms": 5.0, "floor_share": 0.2},
    {"section": "vision", "work": "vision", "variant": "fused, graph", **TIMES, "floor_share": 0.5},
    {"section": "chunk", "work": "chunk", "variant": "fused, graph", **TIMES, "floor_share": 0.5, "passes": 2},
    {"section": "compile", "work": "pass", "variant": "torch.compile", "note": "not run: out of time"},
    {"section": "accuracy", "work": "vision", "variant": "fused against fp32", "cosine": 0.9995},
    {"section": "accuracy", "work": "vision, replay", "variant": "fused", "bit_identical": True},
]
PAGE = "# Page\n\n<!-- rows:vision,compile -->\nold\n<!-- end -->\n\nkept\n<!-- rows:accuracy -->\n<!-- end -->\n"


def test_a_table_is_sorted_by_time_and_compares_with_the_fused_stack():
    lines = section_table(ROWS, ("vision",)).splitlines()
    assert lines[2].startswith("| vision | fused, graph | 2.000 | 1.900 - 2.200 | 2.100 | 1.000 | flops | 50% | 1.00 |")
    assert lines[3].endswith("| 20% | 2.50 |")
    assert "| chunk, 2 passes |" in section_table(ROWS, ("chunk",))
    assert "copy_gbps: 10.0" in section_table(ROWS, ("machine",))


def test_a_page_keeps_everything_but_its_tables():
    page = fill(PAGE, ROWS)
    assert page.startswith("# Page\n") and "\nkept\n" in page and "old" not in page
    assert "fused, graph" in page and "not run: out of time" in page
    assert "| 0.9995 |" in page and "| true |" in page
    assert fill(page, ROWS) == page


def test_the_command_line(tmp_path, capsys):
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    page.write_text(PAGE)
    main([str(rows), "--into", str(page)])
    assert page.read_text() == fill(PAGE, read(rows))
    main([str(rows)])
    assert "## vision" in capsys.readouterr().out
