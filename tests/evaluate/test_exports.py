"""Tables as files for a paper."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rsd_fast.evaluate.exports import escape, latex, write_tables
from rsd_fast.evaluate.records import EpisodeRow
from rsd_fast.evaluate.statistics import Summary, summarise

MakeRow = Callable[..., EpisodeRow]


@pytest.fixture
def summary(make_row: MakeRow) -> Summary:
    """Two suites, two modes; the second is faster and fails once."""
    fast = {"passes": [1, 2], "accepted_layers": [2.0, 1.5], "kept_rates": [[1.0, 1.0], [1.0, 0.5]]}
    fast |= {"match_rates": [[1.0, 1.0], [1.0, 0.75]], "ms": [5.0, 10.0], "ms_stages": {"vision": [1.0, 2.0]}}
    rows = []
    for suite in ("one_suite", "other"):
        for state in range(2):
            rows.append(make_row(suite=suite, init_state=state))
            outcome = "failure" if (suite, state) == ("other", 1) else "success"
            rows.append(make_row(suite=suite, init_state=state, mode="rsd:theta=0.9", outcome=outcome, **fast))
    return summarise(rows, ["sequential", "rsd:theta=0.9"])


def test_csv_has_full_numbers_by_task_suite_and_over_all(summary: Summary, tmp_path: Path) -> None:
    write_tables(summary, tmp_path)
    with (tmp_path / "tables" / "results.csv").open() as file:
        rows = {(row["suite"], row["task"], row["mode"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * 2 + 2 * 2 + 2
    total = rows["all", "all", "rsd:theta=0.9"]
    assert (total["successes"], total["episodes"], float(total["success"])) == ("3", "4", 0.75)
    assert float(total["ms_per_action_p50"]) == 7.5 / 4
    assert float(total["speedup"]) == 2.0
    assert (total["only_mode"], total["only_baseline"], float(total["difference"])) == ("0", "1", -0.25)
    assert rows["all", "all", "sequential"]["difference"] == ""
    assert rows["other", "all", "rsd:theta=0.9"]["success"] == "0.5"
    with (tmp_path / "tables" / "layers.csv").open() as file:
        layers = [row for row in csv.DictReader(file) if row["suite"] == "all"]
    assert [(row["layer"], float(row["agreed"]), float(row["kept"])) for row in layers] == [
        ("0", 1.0, 1.0),
        ("1", 0.875, 0.75),
    ]


def test_latex_tables_are_whole_and_need_no_package(summary: Summary, tmp_path: Path) -> None:
    paths = [path for path in write_tables(summary, tmp_path) if path.suffix == ".tex"]
    assert {path.stem for path in paths} == {
        *("results", "totals", "paired", "passes", "phases", "layers", "stages", "latency", "pareto")
    }
    for path in paths:
        text = path.read_text()
        (alignment,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
        body = text[text.index(r"\toprule" + "\n") : text.index(r"\bottomrule" + "\n")]
        cells = [line.count(" & ") + 1 for line in body.splitlines() if line.endswith(r"\\")]
        assert set(cells) == {len(alignment)}, path
        assert text.count("{") == text.count("}")
        assert not re.findall(r"(?<!\\)[%_#]", text.replace(r"\%", "").replace("tab:", ""))
        for rule in ("toprule", "midrule", "bottomrule"):
            assert rf"\providecommand{{\{rule}}}{{\hline}}" in text
    results = (tmp_path / "tables" / "results.tex").read_text()
    assert r"one\_suite & Push & sequential & 2/2 & 34--100\,\% & 3.00" in results
    totals = (tmp_path / "tables" / "totals.tex").read_text()
    assert "Push" not in totals
    assert r"other & all & sequential & 2/2" in totals
    assert r" &  & rsd:theta=0.9 & 2/2" in results  # suite and task are not said twice
    assert "speedup over sequential. 8 episodes in all" in results


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("84-98 %", r"84--98\,\%"),
        ("-7.5 points", r"$-$7.5 points"),
        ("libero_10 & {more}", r"libero\_10 \& \{more\}"),
        ("rsd:rule=typical(0.1)", "rsd:rule=typical(0.1)"),
        ("a\\b", r"a\textbackslash{}b"),
    ],
)
def test_latex_shows_the_text(text: str, told: str) -> None:
    assert escape(text) == told


def test_a_cell_that_a_row_lacks_is_empty() -> None:
    text = latex([{"mode": "a", "layer 0": "1"}, {"mode": "b", "layer 0": "1", "layer 1": "2"}], "Two rows.", "tab:x")
    assert "a & 1 &  \\\\" in text
