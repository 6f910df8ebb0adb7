"""Files that an evaluation leaves: tables, figure, videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rsd_fast.evaluate.config import ReportConfig
from rsd_fast.evaluate.films import file_name, film_path, load_film
from rsd_fast.evaluate.records import EpisodeRow, Records, write_header
from rsd_fast.evaluate.report import write_report
from rsd_fast.evaluate.videos import HOLD
from rsd_fast.train.card import success_table
from tests.evaluate.conftest import Run
from tests.evaluate.fakes import FakeSuite

MakeRow = Callable[..., EpisodeRow]


@pytest.fixture
def folder(tmp_path: Path, make_row: MakeRow) -> Path:
    """Two modes, two tasks, one error."""
    records = Records.open(tmp_path / "results")
    write_header(records.folder, {"modes": ["sequential", "rsd"], "tasks": [{"name": "Push"}, {"name": "Pull"}]})
    for task in ("Pull", "Push"):
        for state in range(4):
            records.add(make_row(task=task, init_state=state, outcome="failure" if state == 3 else "success"))
            fast = {"passes": [1, 1], "accepted_layers": [2.0, 1.5], "kept_rates": [[1.0, 1.0], [1.0, 0.5]]}
            fast |= {"match_rates": [[1.0, 1.0], [1.0, 0.75]], "ms": [5.0, 10.0]}
            error = {"outcome": "error", "error": "the simulator's process died (SIGKILL)"} if state == 0 else {}
            records.add(make_row(task=task, init_state=state, mode="rsd", **fast, **error))
    return records.folder


def test_report_has_the_numbers_with_their_baseline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(ReportConfig(folders=(folder,)))
    text = (folder / "report.md").read_text()
    assert "| Push | sequential | 3/4 | 30-95 % | 3.00 | 0.00 | 15.0 | 20.0 | 3.75 | 1.00x |" in text
    assert "| Push | rsd | 3/3 + 1 error | 44-100 % | 1.00 | 1.75 | 7.5 |" in text
    assert "| all | rsd | sequential | 6 | 2 | 0 | +33.3 points | -12.3 to +70.0 | 0.5 |" in text
    assert "| Pull | rsd | 0 | the simulator's process died (SIGKILL) |" in text
    assert text.index("| Push | sequential |") < text.index("| Pull | sequential |")  # as the run listed them
    assert "`speedup`: median latency of `sequential`" in text
    shown = " ".join(capsys.readouterr().out.split())
    assert "speedup and pairs: against sequential" in shown
    assert "rsd against sequential, pairs: 6; success +33.3 points, only rsd 2, only sequential 0; exact" in shown
    assert "error, not counted: Push 0 rsd: the simulator's process died (SIGKILL)" in shown


def test_summary_has_flat_rows_that_a_model_card_takes(folder: Path) -> None:
    write_report(ReportConfig(folders=(folder,)))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["baseline"] == "sequential"
    assert [(row["task"], row["mode"]) for row in summary["rows"]][-2:] == [("all", "sequential"), ("all", "rsd")]
    assert summary["groups"][-1]["speedup"] == 2.0
    card = success_table(folder / "summary.json").splitlines()
    assert card[0].startswith("| task | mode | success | 95 % | passes |")
    assert len(card) == 2 + 6


def test_figure_is_drawn_as_png_and_svg(folder: Path) -> None:
    write_report(ReportConfig(folders=(folder,)))
    picture = np.asarray(Image.open(folder / "report.png").convert("RGB"))
    assert min(picture.shape[:2]) > 800
    assert len(np.unique(picture.astype(int) @ (1 << 16, 1 << 8, 1))) > 100  # colours
    svg = (folder / "report.svg").read_text()
    for words in ("Success (Wilson interval, 95 %)", "sequential", "rsd", "Push", "Pull", "vision", "layer 1"):
        assert words in svg
    write_report(ReportConfig(folders=(folder,)))
    assert (folder / "report.svg").read_text() == svg


def test_a_report_over_suites_has_rows_for_each_and_for_all(folder: Path, tmp_path: Path, make_row: MakeRow) -> None:
    other = Records.open(tmp_path / "other")
    write_header(other.folder, {"modes": ["sequential", "rsd"], "tasks": [{"name": "Push"}]})
    for state in range(2):  # a task of the same name is another task
        other.add(make_row(suite="other", init_state=state, cap=99))
        other.add(make_row(suite="other", init_state=state, cap=99, mode="rsd", ms=[40.0, 40.0]))
    summary = write_report(ReportConfig(folders=(folder, other.folder), out=tmp_path / "both"))
    text = (tmp_path / "both" / "report.md").read_text()
    assert text.startswith("# fake, other: sequential, rsd\n")
    assert "- control steps, at most: fake 40, other 99\n" in text
    assert "| fake | Push | sequential | 3/4 |" in text
    assert "| fake | all | sequential | 6/8 |" in text
    assert "| other | Push | sequential | 2/2 |" in text
    assert "| other | all | rsd | 2/2 | 34-100 % | 3.00 | 0.00 | 40.0 | 40.0 | 10.00 | 0.38x |" in text
    assert "| all | all | sequential | 8/10 |" in text
    assert "| all | all | rsd | sequential | 8 | 2 | 0 |" in text
    assert "| other | rsd | first third | 2 | 3.00 |" in text
    assert [group.mode for group in summary.over_all] == ["sequential", "rsd"]
    both = summary.group("sequential", suite="other")
    assert both is not None and both.success.episodes == 2


def test_over_suites_tasks_come_last_and_have_short_names(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    for suite in ("libero_object", "libero_goal"):
        for thing in ("alphabet_soup", "butter"):
            for mode in ("sequential", "rsd"):
                records.add(make_row(suite=suite, task=f"pick_up_the_{thing}_and_place_it_in_the_basket", mode=mode))
    write_report(ReportConfig(folders=(tmp_path,)))
    text = (tmp_path / "report.md").read_text()
    first, by_task = text.split("## By task\n")
    assert "| libero_goal | all | rsd | 2/2 |" in first and "alphabet" not in first
    assert "| libero_goal | alphabet soup | rsd | 1/1 |" in by_task
    assert "| libero_goal | butter | pick_up_the_butter_and_place_it_in_the_basket |" in by_task
    results = (tmp_path / "tables" / "results.csv").read_text()
    assert "pick_up_the_butter_and_place_it_in_the_basket" in results  # whole, to be joined with other data


def test_a_run_that_was_stopped_says_what_is_missing(
    tmp_path: Path, make_row: MakeRow, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Records.open(tmp_path / "run")
    for state in range(4):
        records.add(make_row(init_state=state))
    records.add(make_row(task="Pull", init_state=0))
    records.add(make_row(mode="rsd"))  # of an earlier run, and all that was asked for
    note = "run: 3 of 9 episodes are missing. If the run was stopped, those are the ones that took longest"
    write_report(ReportConfig(folders=(tmp_path / "run",)))
    assert f"**{note}" in (tmp_path / "run" / "report.md").read_text()
    assert note in " ".join(capsys.readouterr().out.split())
    tasks = [{"suite": "fake", "name": name} for name in ("Push", "Pull", "Lift")]
    write_header(tmp_path / "run", {"modes": ["sequential"], "tasks": tasks, "config": {"trials": 5}})
    write_report(ReportConfig(folders=(tmp_path / "run",)))
    assert "**run: 10 of 16 episodes are missing." in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.usefixtures("all_figures")
def test_long_names_of_tasks_have_a_line_each_in_the_figure(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    for thing in ("the_middle_drawer_of_the_cabinet", "the_top_drawer_and_put_the_bowl_inside"):
        for mode in ("sequential", "rsd"):
            records.add(make_row(task=f"open_{thing}", mode=mode))
    write_report(ReportConfig(folders=(tmp_path,)))
    svg = (tmp_path / "plots" / "success.svg").read_text()
    assert "middle drawer of cabinet" in svg and "top drawer and put bowl inside" in svg


def test_devices_are_named_and_their_latencies_not_mixed(tmp_path: Path, make_row: MakeRow) -> None:
    gpu = {**make_row().settings, "device": "GPU 3000", "dtype": "bfloat16"}
    for suite, settings, ms in (("one", gpu, 1.0), ("other", make_row().settings, 50.0)):
        for mode in ("sequential", "rsd"):
            Records.open(tmp_path / suite).add(make_row(suite=suite, mode=mode, settings=settings, ms=[ms, ms]))
    write_report(ReportConfig(folders=(tmp_path / "one", tmp_path / "other"), out=tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**Episodes of several devices: GPU 3000, bfloat16 (one); cpu, float32 (other)." in text
    assert "| one | all | rsd | 1/1 | 21-100 % | 3.00 | 0.00 | 1.0 | 1.0 | 0.25 | 1.00x |" in text
    assert "| all | all | rsd | 2/2 | 34-100 % | 3.00 | 0.00 |  |  |  |  |" in text
    assert "| all | all | rsd | sequential | 2 |" in text


@pytest.mark.usefixtures("all_figures")
def test_every_panel_is_a_figure_of_its_own_for_a_paper(folder: Path) -> None:
    write_report(ReportConfig(folders=(folder,)))
    names = {"success", "passes", "latency", "phases", "acceptance", "pareto_latency", "pareto_passes"}
    found = {path.name for path in (folder / "plots").iterdir()}
    assert found == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    pareto = (folder / "plots" / "pareto_latency.svg").read_text()
    assert all(words in pareto for words in ("Pareto front", "sequential", "median latency of a chunk [ms]"))
    text = (folder / "report.md").read_text()
    assert "![pareto_latency](plots/pareto_latency.png)" in text
    front = text[text.index("## Success against latency") : text.index("## Passes")]
    assert "| rsd | 6/6 + 2 errors |" in front
    assert "sequential |" not in front.split("|---", 1)[1]  # slower, and no better


@pytest.mark.usefixtures("all_figures")
def test_many_modes_become_shades_with_numbers(
    tmp_path: Path, make_row: MakeRow, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Records.open(tmp_path)
    modes = ["sequential", *(f"rsd:rule=exact,theta={theta}" for theta in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1))]
    for number, mode in enumerate(modes):
        of_mode = {"mode": mode.partition(":")[0], "rule": "exact", "theta": number / 7}
        settings = {**make_row().settings, **of_mode}
        rates = [[0.25 + number / 100]] * 2
        records.add(make_row(mode=mode, settings=settings, passes=[1, 2], kept_rates=rates, match_rates=rates))
    write_header(tmp_path, {"modes": modes})
    write_report(ReportConfig(folders=(tmp_path,)))
    assert (tmp_path / "report.md").read_text().startswith("# fake: 8 modes\n")
    shown = capsys.readouterr().out
    assert "In success and latency at once no other mode beats:" in shown
    assert shown.count("McNemar") == 0  # eight sentences that nobody reads
    overview = (tmp_path / "report.svg").read_text().replace("\u00a0", " ")
    assert all(words in overview for words in ("rsd exact, \u03b8 0.5", "2.00", "30 %", "Latency", "layer 0"))
    pareto = (tmp_path / "plots" / "pareto_passes.svg").read_text()
    assert all(words in pareto for words in ("rule exact", "passes a chunk (mean)", "\u03b8 1"))


def test_shards_make_one_report_elsewhere(folder: Path, tmp_path: Path, make_row: MakeRow) -> None:
    shard = Records.open(tmp_path / "shard")
    shard.add(make_row(init_state=9))
    out = tmp_path / "both"
    write_report(ReportConfig(folders=(folder, shard.folder), out=out, baseline="rsd"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["baseline"] == "rsd"
    assert {row["success"] for row in summary["rows"] if row["task"] == "Push"} == {"4/5", "3/3 + 1 error"}


def test_video_shows_the_filmed_episodes_of_all_modes_to_the_end(run: Run, marks: Path) -> None:
    records = run(FakeSuite(marks), trials=2, video=1)
    out = records.folder
    (path,) = (out / "videos").iterdir()
    assert path.name == "fake_Push_init000_seed0_sequential_rsd.mp4"
    rows = {row.mode: row for row in records.rows.values() if row.init_state == 0}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 20
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == rows["sequential"].steps + HOLD == 32 + HOLD
    # The fake's pictures are as bright as the step: the left panel goes on, the right one (8 steps) stays.
    left, right = (slice(200, 300), slice(60, 200)), (slice(200, 300), slice(460, 600))
    assert [frames[-1][part].mean().round() for part in (left, right)] == pytest.approx([32, 8], abs=3)
    film = load_film(film_path(out, rows["rsd"]))
    assert (len(film.frames), len(film.wrist), film.chunks) == (8, 2, [0, 4])
    assert f"[{path.stem}](videos/{path.name})" in (out / "report.md").read_text()


def test_names_of_files_fit_a_file_system_and_stay_apart(make_row: MakeRow) -> None:
    modes = ["sequential", "rsd:theta=1,rule=exact"]
    assert file_name(make_row(), modes) == "fake_Push_init000_seed0_sequential_rsd-theta1-ruleexact"
    long = [file_name(make_row(task="put_the_bowl_" * 20, init_state=state), modes) for state in range(2)]
    assert max(map(len, long)) <= 200
    assert long[0] != long[1]


def test_filming_later_adds_the_video_and_changes_no_result(run: Run, marks: Path) -> None:
    before = run(FakeSuite(marks), trials=2)
    after = run(FakeSuite(marks), trials=2, video=1)
    assert len(list((after.folder / "videos").iterdir())) == 1
    assert {key: row.codes for key, row in before.rows.items()} == {key: row.codes for key, row in after.rows.items()}
