"""From records of several suites, policies and devices to where RSD pays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rsd_fast.evaluate.config import ReportConfig, StudyConfig
from rsd_fast.evaluate.intervals import PairedTest
from rsd_fast.evaluate.records import EpisodeRow, Records
from rsd_fast.evaluate.report import write_report
from rsd_fast.evaluate.study_data import read_policies
from rsd_fast.evaluate.verdict import judge_target
from tests.evaluate.conftest import study

MakeRow = Callable[..., EpisodeRow]

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
    assert "| cpu, float32 | 21 | 0 | 21 | -100.0 points |" in text  # states 8 and 9 again
    assert "| together | 51 | 30 | 51 | -41.2 points |" in text
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


def test_thousands_of_rows_take_seconds(make_row: MakeRow, tmp_path: Path, stages: Path) -> None:
    modes = {"sequential": ([3, 3], 1)} | {f"rsd:theta={n}": ([1, 2], 1) for n in range(9)}
    folder = write(make_row, tmp_path / "many", modes, GPU, states=range(100))
    begun = time.process_time()
    study(tmp_path / "study.md", folder, stages=stages)
    assert time.process_time() - begun < 10  # 3,000 rows; about one on an idle core
