"""From records to where RSD pays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rsd_fast.cli import main
from rsd_fast.evaluate.config import StudyConfig
from rsd_fast.evaluate.geometry import read_geometry, replay
from rsd_fast.evaluate.intervals import PairedTest
from rsd_fast.evaluate.records import EpisodeRow, Records, write_header
from rsd_fast.evaluate.statistics import summarise
from rsd_fast.evaluate.study import run
from rsd_fast.evaluate.study_data import read_policies
from rsd_fast.evaluate.verdict import break_even, judge, judge_rival, recommend
from tests.evaluate.conftest import TIMES, study

MakeRow = Callable[..., EpisodeRow]


@pytest.fixture
def folder(tmp_path: Path, make_row: MakeRow) -> Path:
    """30 states. `good` loses none, `bad` loses nine, `slow` is no faster, `parallel` loses one."""
    records = Records.open(tmp_path / "nano")
    settings = {**make_row().settings, "checkpoint": "models/nano", "layers": 3, "notes": ["made up"]}
    modes = {  # passes of two chunks, share of states that fail
        "sequential": ([3, 3], 0),
        "rsd:rule=good": ([1, 2], 0),
        "rsd:rule=bad": ([1, 1], 9),
        "rsd:rule=slow": ([3, 3], 0),
        "parallel": ([1, 1], 1),
    }
    write_header(records.folder, {"modes": list(modes)})
    for mode, (passes, lost) in modes.items():
        of_mode = {**settings, "mode": mode.partition(":")[0], "rule": mode.partition("=")[2]}
        rates = [[1.0, 0.5]] * 2 if mode.startswith("rsd") else [[], []]
        for state in range(30):
            outcome = "failure" if state < lost else "success"
            own = {"passes": passes, "kept_rates": rates, "match_rates": rates, "settings": of_mode}
            records.add(make_row(mode=mode, init_state=state, outcome=outcome, **own))
    return records.folder


def test_passes_are_replayed_at_the_other_geometry(make_row: MakeRow, stages: Path) -> None:
    rsd = {**make_row().settings, "mode": "rsd"}
    rows = [make_row(passes=[3, 3]), make_row(mode="rsd", passes=[1, 2], settings=rsd)]
    told = replay(rows, read_geometry(stages))
    assert told[0].ms == [27.0, 27.0]  # 2 + 10 + 3 * 5, no draft
    assert told[1].ms == [18.0, 23.0]  # 2 + 10 + 1 + 5, and a pass more
    assert told[1].ms_stages["tail"] == [0.5, 1.0]
    group = summarise(told, ["sequential", "rsd"]).group("rsd")
    assert group is not None and group.ms_mean == 20.5


def test_a_parallel_chunk_takes_what_it_was_measured_to_take(make_row: MakeRow, tmp_path: Path) -> None:
    path = tmp_path / "with_parallel.json"
    path.write_text(json.dumps({**TIMES, "parallel_ms": 12.5}))
    rows = [
        make_row(passes=[1, 1], settings={**make_row().settings, "mode": mode})
        for mode in ("parallel", "regression", "sequential", "conditioned")
    ]
    rows.append(make_row(passes=[0, 0], settings={**make_row().settings, "mode": "draft"}))
    parallel, regression, other, conditioned, draft = replay(rows, read_geometry(path))
    assert parallel.ms == regression.ms == [12.5, 12.5]
    assert other.ms == [17.0, 17.0]
    assert conditioned.ms == [18.0, 18.0]  # and its draft
    assert draft.ms == [13.0, 13.0]  # and nothing behind it


def test_the_original_code_has_times_of_its_own(stages: Path) -> None:
    assert read_geometry(stages, layers=3)["pass"] == 4.5
    assert read_geometry(stages, layers=8)["pass"] == 5.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**TIMES, "draft_ms": None}, r"got \{'draft_ms': None\} .* expected milliseconds above 0"),
        ({"vision_ms": 1}, "'prefill_ms': None"),
        ({**TIMES, "pass_ms": -1}, "'pass_ms': -1"),
        ([1, 2], "got list .* expected an object with"),
    ],
)
def test_times_that_are_missing_are_named(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "stages.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_geometry(tmp_path / "stages.json")


def test_verdicts_follow_from_the_stated_thresholds(folder: Path, stages: Path) -> None:
    (policy,) = read_policies(StudyConfig((folder,), stages=stages))
    summary = policy.judged
    told = {group.mode: judge(group, summary).text for group in summary.over_all}
    assert told == {
        "sequential": "baseline",
        "rsd:rule=good": "pays",
        "rsd:rule=bad": "costs success: -30.0 points, p = 0.0039",
        "rsd:rule=slow": "does not pay: 0.96x",
        "parallel": "open: -3.3 points, p = 1",
    }
    best = recommend(summary)
    assert best is not None and best.mode == "rsd:rule=good"
    assert break_even(read_geometry(stages), 3) == 2.8


@pytest.mark.parametrize(
    ("difference", "p_value", "speedup", "told"),
    [
        (0.0, 1.0, 1.2, "pays"),
        (0.05, 0.01, 0.9, "buys success with time"),
        (0.05, 0.2, 0.9, "open"),
        (-0.05, 0.2, 1.2, "open"),
        (-0.05, 0.01, 1.2, "loses success"),
        (0.0, 1.0, 0.9, "does not pay"),
    ],
)
def test_every_other_mode_is_judged_too(difference: float, p_value: float, speedup: float, told: str) -> None:
    assert judge_rival(PairedTest("parallel", 100, 0, 0, difference, p_value), speedup) == told


def test_the_page_says_where_it_pays_and_with_which_setting(
    folder: Path, stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "docs" / "study.md"
    assert main(["study", str(folder), "--stages", str(stages), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text()
    assert "**made up**" in text
    assert "replayed at the geometry of `stages.json`" in text
    assert "at least 1.1 times shorter" in text
    assert (
        "- **nano**: RSD pays in 1 of 3 settings (1 cost success, 1 not fast enough). Recommended: `rsd:rule=good`: "
        "success 30/30 against 30/30" in text
    )
    assert "20.5 ms a chunk against 27.0 (1.32x)" in text
    assert "Break-even: below 2.80 passes RSD is faster than the 3 of `sequential`" in text
    assert "- `rsd:rule=slow`: does not pay: 0.96x." in text
    assert "| rsd:rule=bad | first third | 30 | 1.00 | 0.00 | 100.0 % | 50.0 % |" in text
    assert "| rsd:rule=good | 1.50 | 20.50 | 20.50 | 23.00 | 1.32x | pays |" in text
    for name in ("passes", "latency"):
        assert f"](images/study_nano_{name}.png)" in text
        assert (out.parent / "images" / f"study_nano_{name}.svg").exists()


def test_policies_are_apart_and_compared_by_their_baselines(folder: Path, tmp_path: Path, make_row: MakeRow) -> None:
    other = Records.open(tmp_path / "other")
    settings = {**make_row().settings, "checkpoint": "models/original", "layers": 8}
    for state in range(30):
        other.add(make_row(init_state=state, outcome="failure" if state < 3 else "success", settings=settings))
    out = tmp_path / "study.md"
    run(StudyConfig((folder, other.folder), out=out))
    text = out.read_text()
    assert "- **original**: no setting of RSD was run." in text
    assert text.index("\n## nano\n") < text.index("\n## original\n") < text.index("\n## Between policies\n")
    row = "| original | L 8: 32 queries | sequential | 27/30 | 74-97 % | 30 | -10.0 points | -25.6 to +3.1 | 0.25 | 3.0"
    assert row in text
    assert "Latencies in the verdicts: as measured." in text


def test_a_study_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no folder"):
        run(StudyConfig(()))
    with pytest.raises(FileNotFoundError, match=r"no .*episodes\.jsonl"):
        run(StudyConfig((tmp_path,)))


@pytest.mark.parametrize("shape", ["list", "held", "named"])
def test_codecs_are_shown_whatever_their_keys(folder: Path, tmp_path: Path, stages: Path, shape: str) -> None:
    rows = [
        {"name": "ours", "levels": 5, "mae": {"full": 0.00123456, "kept": [0.5, 0.25]}, "scaled": True, "note": None},
        {"name": "original", "levels": 7, "passes": 2.5},
    ]
    shapes = {"list": rows, "held": {"seconds": 3, "rows": rows}, "named": {row["name"]: row for row in rows}}
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(shapes[shape]))
    text = study(tmp_path / "study.md", folder, stages=stages, codecs=path)
    part = text[text.index("## What the codec teaches") :]
    assert "2 variants of the codec, from `compare.json`" in part
    assert "name | levels | mae full | mae kept 0 | mae kept 1 | scaled | note | passes |" in part
    assert "ours | 5 | 0.001235 | 0.5 | 0.25 | yes |  |  |" in part
    assert "original | 7 |  |  |  |  |  | 2.5 |" in part
    assert ("- seconds: 3" in part) == (shape == "held")


def test_a_table_of_codecs_in_markdown_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "compare.md"
    path.write_text("# Codecs\n\nHow to read.\n\n## By suite\n\n| variant | mae |\n|---|---|\n| ours | 0.1 |\n")
    part = study(tmp_path / "study.md", folder, codecs=path).split("## What the codec teaches")[1]
    assert "# Codecs" not in part
    assert part.endswith("How to read.\n\n### By suite\n\n| variant | mae |\n|---|---|\n| ours | 0.1 |\n")


WIDE = json.dumps([{"name": "ours", "everything": list(range(30))}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(("[", "is no JSON"), ("[]", "got no rows"), ("[1]", "got no rows")),
        (WIDE, r"got 31 columns .* such as the compare.md that is written beside it"),
    ],
)
def test_a_file_without_codecs_is_refused(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        study(tmp_path / "study.md", folder, codecs=path)
