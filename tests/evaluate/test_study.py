"""From records to where RSD pays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rsd_fast.cli import main
from rsd_fast.evaluate.config import ReportConfig, StudyConfig
from rsd_fast.evaluate.geometry import read_geometry, replay
from rsd_fast.evaluate.intervals import PairedTest
from rsd_fast.evaluate.records import EpisodeRow, Records, write_header
from rsd_fast.evaluate.report import write_report
from rsd_fast.evaluate.statistics import summarise
from rsd_fast.evaluate.study import run
from rsd_fast.evaluate.study_data import read_policies
from rsd_fast.evaluate.verdict import break_even, judge, judge_rival, judge_target, recommend

MakeRow = Callable[..., EpisodeRow]

TIMES = {"vision_ms": 2.0, "prefill_ms": 10.0, "draft_ms": 1.0, "pass_ms": 4.5, "tail_ms": 0.5}


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    path = tmp_path / "stages.json"
    path.write_text(json.dumps({**TIMES, "original": {**TIMES, "pass_ms": 5.5}, "stack": "fused"}))
    return path


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


SUITES = {"one": ("pick_up_the_red_bowl_and_place_it", "pick_up_the_blue_bowl_and_place_it"), "other": ("Push",)}
GPU = {"device": "GPU 3000", "dtype": "bfloat16", "weights": "w1", "checkpoint": "a/nano", "layers": 3, "levels": 5}
CPU = {**GPU, "device": "cpu", "dtype": "float32", "checkpoint": "b/nano"}


def write(
    make_row: MakeRow,
    folder: Path,
    modes: dict[str, tuple[list[int], int]],
    settings: dict[str, object],
    **rest: object,
) -> Path:
    """20 states a task of `SUITES` (or of `suites`): passes of two chunks, and how many of the first states fail."""
    records = Records.open(folder)
    suites = rest.pop("suites", tuple(SUITES))
    states = rest.pop("states", range(20))
    for suite in suites:  # type: ignore[attr-defined]
        for task in SUITES[suite]:
            for mode, (passes, lost) in modes.items():
                name, _, own = mode.partition(":")
                decoding = {"mode": name, "theta": 0.95, "rule": "typical(0.1)", "stop": settings["layers"]}
                decoding |= dict(item.split("=") for item in own.split(",") if item)
                rates = [[1.0, 0.5]] * 2 if name == "rsd" else [[], []]
                for state in states:  # type: ignore[attr-defined]
                    row = make_row(suite=suite, task=task, mode=mode, init_state=state, passes=passes, **rest)
                    outcome = "failure" if state < lost else "success"
                    every = {**row.settings, **settings, **decoding}
                    records._keep(replace(row, outcome=outcome, settings=every, kept_rates=rates, match_rates=rates))
    text = "".join(json.dumps(vars(row)) + "\n" for row in records.rows.values())
    folder.mkdir(parents=True)
    records.file.write_text(text)
    return folder


MODES = {
    "rsd": ([1, 2], 1),
    "regression": ([1, 1], 6),
    "sequential": ([3, 3], 1),
    "parallel": ([1, 1], 1),
    "draft": ([0, 0], 12),
}


def study(out: Path, *folders: Path, **options: object) -> str:
    """The page."""
    run(StudyConfig(folders, out=out, **options))  # type: ignore[arg-type]
    return out.read_text()


def test_one_policy_over_suites_has_a_table_for_each_and_one_for_all(
    make_row: MakeRow, tmp_path: Path, stages: Path
) -> None:
    settings = {**GPU, "checkpoint": "/home/somebody/nano"}
    folders = [write(make_row, tmp_path / suite, MODES, settings, suites=(suite,)) for suite in SUITES]
    text = study(tmp_path / "study.md", *folders, stages=stages)
    assert "- policy: nano (weights w1)\n" in text and "/home" not in text
    assert "| sequential | 57/60 |" in text  # the baseline, though no header says so and rsd came first
    assert "| rsd | 57/60 | 86-98 % | 60 | 57 | 57 | +0.0 points | -6.3 to +6.3 | 1 | 1.50 |" in text
    for suite, episodes in (("one", 40), ("other", 20)):
        own = text[text.index(f"\n### {suite}\n") :].split("\n### ")[1]
        assert f"| rsd | {episodes - episodes // 20}/{episodes} |" in own
        assert own.rstrip().endswith("|")
    assert "| one | red | 19/20 | 19/20 | 0 | 0 | 1.50 |" in text
    assert "| rsd | 38/40 (83-99 %) | 19/20 (76-99 %) | 57/60 (86-98 %) |" in text


def test_the_target_is_checked_with_its_interval(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    folder = write(make_row, tmp_path / "gpu", {**MODES, "rsd:theta=0.5": ([1, 1], 3)}, GPU)
    text = study(tmp_path / "study.md", folder, stages=stages)
    target = text[text.index("### The target") : text.index("### RSD against")]
    assert "`rsd` (recommended above), over 2 suites" in target
    assert "- success: +0.0 points, 95 % -6.3 to +6.3, McNemar p = 1, 60 pairs: **met by the estimate; " in target
    assert "does not exclude a loss of 6.3 points**" in target
    assert "- passes: 1.50 (1.50 to 1.50) of 3, 1.50 in successful episodes: **missed**" in target
    assert "both parts are met by: no setting" in target
    assert "chosen on these episodes, among 2" in target
    assert "| other | 20 | 19 | 19 | +0.0 points |" in target
    asked = study(tmp_path / "study.md", folder, stages=stages, setting="rsd:theta=0.5")
    assert "`rsd:theta=0.5` (the setting asked for), over 2 suites" in asked
    assert "- passes: 1.00 (1.00 to 1.00) of 3, 1.00 in successful episodes: **met**" in asked
    assert "chosen on these episodes" not in asked
    with pytest.raises(ValueError, match=r"got setting 'rsd:theta=0.1', expected one of \['rsd', 'rsd:theta=0.5'\]"):
        study(tmp_path / "study.md", folder, stages=stages, setting="rsd:theta=0.1")


@pytest.mark.parametrize(
    ("low", "difference", "high", "passes", "told"),
    [
        (-0.005, 0.0, 0.005, 1.2, ("met, the whole interval", "met")),
        (-0.03, -0.01, 0.02, 1.304, ("met by the estimate", "met")),
        (-0.04, -0.02, 0.01, 1.31, ("missed by the estimate", "missed")),
        (-0.08, -0.05, -0.02, 1.0, ("missed", "met")),
    ],
)
def test_a_target_is_met_or_missed_and_says_how_sure(
    low: float, difference: float, high: float, passes: float, told: tuple[str, str]
) -> None:
    test = PairedTest("sequential", 100, 0, 0, difference, 1.0, 90, low, high)
    success, cost = judge_target(test, passes)
    assert success.startswith(told[0]) and (success == "missed") == (told[0] == "missed")
    assert cost == told[1]


def test_rsd_is_held_against_every_other_mode_in_pairs(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    text = study(tmp_path / "study.md", write(make_row, tmp_path / "gpu", MODES, GPU), stages=stages)
    table = text[text.index("### RSD against") : text.index("### Where it pays")]
    assert "| regression | L1 regression | 60 | 57 | 42 | +25.0 points |" in table
    assert "| parallel | parallel head | 60 | 57 | 57 | +0.0 points |" in table
    assert "buys success with time |" in table
    assert (
        "At the other geometry, `rsd` pays against `sequential`; buys success with time against `regression`, `draft`; "
        "does not pay against `parallel`." in text
    )
    assert "As measured on GPU 3000, bfloat16, `rsd` buys success with time against" in text


def test_devices_are_told_apart_and_never_paired(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    """The CPU has two states of the GPU and five of its own, slower, and all of them fail in rsd."""
    gpu = write(make_row, tmp_path / "gpu", {"sequential": ([3, 3], 0), "rsd": ([1, 1], 0)}, GPU, states=range(10))
    cpu = write(
        *(make_row, tmp_path / "cpu", {"sequential": ([3, 3], 0), "rsd": ([1, 1], 99)}, CPU),
        states=range(8, 15),
        ms=[500.0, 500.0],
    )
    only_one = write(make_row, tmp_path / "one", {"parallel": ([1, 1], 0)}, CPU, states=range(5))
    (policy,) = read_policies(StudyConfig((gpu, cpu, only_one), stages=stages))
    group, base = policy.measured.group("rsd"), policy.measured.group("sequential")
    assert group is not None and base is not None and group.paired is not None
    assert (base.success.episodes, group.success.successes, group.success.episodes) == (45, 30, 45)
    assert (group.paired.pairs, group.paired.lost) == (45, 15)  # of states 8 and 9 the GPU's
    assert (group.ms_mean, group.speedup, group.ms_stages) == (None, None, {})
    parallel = policy.measured.group("parallel")
    assert parallel is not None and parallel.paired is not None and parallel.paired.pairs == 0
    text = study(tmp_path / "study.md", gpu, cpu, only_one, stages=stages)
    assert "**Episodes of several devices: GPU 3000, bfloat16 (one, other); cpu, float32 (one, other)." in text
    assert "| GPU 3000, bfloat16 | sequential | 3.00 | 15.00 |" in text
    assert "| cpu, float32 | sequential | 3.00 | 500.00 |" in text
    assert "- policy: a/nano (weights w1)" in text
    with pytest.raises(ValueError, match=r"got episodes of nano on .*'cpu, float32'.* give --stages"):
        study(tmp_path / "study.md", gpu, cpu)


def test_names_of_one_setting_become_one_and_batches_are_told(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    first = write(make_row, tmp_path / "a", {"sequential": ([3, 3], 0), "rsd": ([1, 1], 0)}, {**GPU, "batch": 8})
    more = {"rsd:theta=0.95": ([1, 1], 0), "sequential": ([3, 3], 0)}
    second = write(make_row, tmp_path / "b", more, {**GPU, "batch": 4}, states=range(20, 25))
    rows = [json.loads(line) for line in (second / "episodes.jsonl").read_text().splitlines()]
    for row in rows:
        row["settings"]["theta"] = 0.95
    (second / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = study(tmp_path / "study.md", first, second, stages=stages)
    assert "| rsd | 75/75 |" in text
    assert "rsd:theta=0.95" not in text
    assert "up to 4 or 8 chunks were decoded in one call" in text
    assert "the calls differ in size" in text


def test_the_expert_beside_a_policy_has_success_and_no_latency(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    folder = write(make_row, tmp_path / "a", MODES, GPU)
    nothing = {"ms": [], "ms_stages": {}, "accepted_layers": [], "kept_rates": [], "match_rates": [], "passes": []}
    settings = {**make_row().settings, "mode": "expert", "device": "simulator"}
    for state in range(20):
        Records.open(folder).add(make_row(suite="other", mode="expert", init_state=state, settings=settings, **nothing))
    text = study(tmp_path / "study.md", folder, stages=stages)
    assert "| expert | 20/20 | 84-100 % | 20 | 20 | 19 | +5.0 points |" in text
    assert "no latency to compare |" in text


def test_two_policies_are_compared_by_their_names(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    ours = write(make_row, tmp_path / "ours", MODES, GPU)
    original = {**GPU, "weights": "w2", "checkpoint": "c/nano", "layers": 8, "levels": 7}
    theirs = write(make_row, tmp_path / "theirs", {"sequential": ([8, 8], 2), "rsd": ([7, 8], 2)}, original)
    text = study(tmp_path / "study.md", ours, theirs, stages=stages)
    assert "\n## nano (w1)\n" in text and "\n## nano (w2)\n" in text
    between = text[text.index("## Between policies") :]
    assert "Differences and speedups are to `sequential` of nano (w1)" in between
    assert (
        "| nano (w1) | L 3, V 5: 12 queries | sequential | 57/60 | 86-98 % |  |  |  |  | 3.00 | 4.50 | 27.0 | 1.00x |"
        in between
    )
    row = "| nano (w2) | L 8, V 7: 32 queries | sequential | 54/60 | 80-95 % | 60 | -5.0 points |"
    assert row in between
    assert "| 8.00 | 5.50 | 60.0 | 0.45x |" in between  # 2 + 10 + 8 * 6
    with pytest.raises(ValueError, match=r"got episodes of a/nano \(w1\), c/nano \(w2\), expected one policy"):
        write_report(ReportConfig((ours, theirs), out=tmp_path / "report"))


def test_the_recommended_setting_is_not_the_luckiest_nor_one_of_few_pairs(
    make_row: MakeRow, tmp_path: Path, stages: Path
) -> None:
    modes = {"sequential": ([3, 3], 5), "rsd:theta=1": ([2, 2], 0), "rsd:theta=0.9": ([1, 2], 5)}
    folder = write(make_row, tmp_path / "a", modes, GPU)
    few = write(make_row, tmp_path / "b", {"rsd:theta=0.5": ([1, 1], 5)}, GPU, states=range(6), suites=("one",))
    (policy,) = read_policies(StudyConfig((folder, few), stages=stages))
    assert policy.recommended is not None and policy.recommended.mode == "rsd:theta=0.9"


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


def test_thousands_of_rows_take_seconds(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    modes = {"sequential": ([3, 3], 1)} | {f"rsd:theta={n}": ([1, 2], 1) for n in range(9)}
    folder = write(make_row, tmp_path / "many", modes, GPU, states=range(100))
    begun = time.process_time()
    study(tmp_path / "study.md", folder, stages=stages)
    assert time.process_time() - begun < 10  # 3,000 rows; about one on an idle core
