"""Rows on disk: kills, retries, shards."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from rsd_fast.evaluate.records import EpisodeRow, Records, mode_order, passes_trace, read_rows, write_header

MakeRow = Callable[..., EpisodeRow]
RULES = (("exact", 0.75), ("typical(0.1)", 0.9))


def test_rows_come_back_as_they_were(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [make_row(init_state=state, kept_rates=[[0.5, 0.25], [1.0, 1.0]], ms=[0.125, 3.5]) for state in range(3)]
    records = Records.open(tmp_path / "new")
    for row in rows:
        records.add(row)
    assert list(Records.open(tmp_path / "new").rows.values()) == rows


def test_a_last_line_that_a_kill_cut_short_is_dropped_and_does_not_spoil_the_next(
    tmp_path: Path, make_row: MakeRow
) -> None:
    records = Records.open(tmp_path)
    for state in range(2):
        records.add(make_row(init_state=state))
    whole = records.file.read_bytes()
    records.file.write_bytes(whole[:-20])
    again = Records.open(tmp_path)
    assert [row.init_state for row in again.rows.values()] == [0]
    again.add(make_row(init_state=1))
    assert records.file.read_bytes() == whole


def test_packed_rows_are_read_and_unpacked_by_a_run_that_goes_on(tmp_path: Path, make_row: MakeRow) -> None:
    rows = [make_row(init_state=state) for state in range(3)]
    records = Records.open(tmp_path)
    records.add(rows[0])
    records.add(rows[1])
    records.packed.write_bytes(lzma.compress(records.file.read_bytes()))
    records.file.unlink()
    assert read_rows(tmp_path) == rows[:2]
    Records.open(tmp_path).add(rows[2])
    assert (records.file.exists(), records.packed.exists()) == (True, False)
    assert read_rows(tmp_path) == rows


def test_rows_that_cannot_be_unpacked_are_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl.xz").write_bytes(b"rows")
    with pytest.raises(ValueError, match=r"episodes.jsonl.xz cannot be unpacked .*; expected what `xz episodes.jsonl`"):
        Records.open(tmp_path)


def test_a_line_that_is_no_row_is_an_error_that_says_where(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    records.add(make_row())
    with records.file.open("a") as file:
        file.write('{"task": "Push"}\n')
    with pytest.raises(ValueError, match=r"episodes.jsonl:2 is no row of results"):
        Records.open(tmp_path)


def test_of_two_rows_for_an_episode_the_last_counts(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    records.add(make_row(outcome="error", error="died"))
    assert not records.is_done(make_row().key)
    records.add(make_row())
    again = Records.open(tmp_path)
    assert again.is_done(make_row().key)
    assert len(again.rows) == 1


def test_rows_of_other_settings_are_refused_and_the_difference_is_named(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    row = make_row()
    records.add(row)
    records.check_settings("sequential", row.settings)
    records.check_settings("rsd", {"batch": 7})  # another mode may differ
    with pytest.raises(ValueError, match=r"with batch 1, now got batch 8; choose another --out"):
        records.check_settings("sequential", {**row.settings, "batch": 8})


def test_settings_that_mean_nothing_to_a_mode_do_not_matter(tmp_path: Path, make_row: MakeRow) -> None:
    before, now = ({**make_row().settings, "rule": rule, "theta": theta} for rule, theta in RULES)
    records = Records.open(tmp_path)
    records.add(make_row(settings={**before, "mode": "sequential"}))
    records.check_settings("sequential", {**now, "mode": "sequential"})
    records.add(make_row(mode="rsd", settings={**before, "mode": "rsd"}))
    with pytest.raises(ValueError, match=r"with rule 'exact', theta 0.75, now got rule 'typical\(0.1\)', theta 0.9;"):
        records.check_settings("rsd", {**now, "mode": "rsd"})


def test_shards_are_merged_and_an_error_never_replaces_a_result(tmp_path: Path, make_row: MakeRow) -> None:
    shards = [tmp_path / "a", tmp_path / "b"]
    Records.open(shards[0]).add(make_row(init_state=0))
    second = Records.open(shards[1])
    second.add(make_row(init_state=0, outcome="error", error="died"))
    second.add(make_row(init_state=1))
    merged = Records.merge(shards)
    assert [(row.init_state, row.outcome) for row in merged.rows.values()] == [(0, "success"), (1, "success")]
    Records.open(tmp_path / "c").add(make_row(init_state=2, settings={"batch": 8}))
    with pytest.raises(ValueError, match="batch 8"):
        Records.merge([*shards, tmp_path / "c"])
    with pytest.raises(FileNotFoundError, match="rsd-fast eval"):
        Records.merge([tmp_path / "nothing"])


def test_modes_keep_the_order_in_which_they_were_asked_for(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    for mode in ("rsd", "jacobi", "sequential"):
        records.add(make_row(mode=mode))
    write_header(tmp_path, {"modes": ["sequential", "rsd"]})
    assert mode_order(records) == ["sequential", "rsd", "jacobi"]


def test_rows_of_older_versions_load(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    records.add(make_row(aperture=[0.1], height=[0.2]))
    values = json.loads(records.file.read_text())
    del values["aperture"], values["height"]
    records.file.write_text(json.dumps(values) + "\n")
    assert list(Records.open(tmp_path).rows.values()) == [make_row()]


def test_suites_of_one_mode_may_differ_in_settings(tmp_path: Path, make_row: MakeRow) -> None:
    settings = make_row().settings
    Records.open(tmp_path / "a").add(make_row())
    Records.open(tmp_path / "b").add(make_row(suite="other", settings={**settings, "settling_steps": 10}))
    assert len(Records.merge([tmp_path / "a", tmp_path / "b"]).rows) == 2


def test_replan_intervals_make_modes_of_their_own(tmp_path: Path, make_row: MakeRow) -> None:
    folders = [tmp_path / "long", tmp_path / "short"]
    for folder, replan in zip(folders, (4, 2), strict=True):
        write_header(folder, {"modes": ["sequential", "rsd:theta=1"]})
        for mode in ("rsd:theta=1", "sequential"):
            Records.open(folder).add(make_row(mode=mode, settings={**make_row().settings, "replan": replan}))
    merged = Records.merge(folders)
    assert mode_order(merged, folders) == [
        *("sequential:replan=4", "sequential:replan=2", "rsd:theta=1,replan=4", "rsd:theta=1,replan=2")
    ]
    assert mode_order(Records.merge(folders[:1])) == ["sequential", "rsd:theta=1"]


def test_the_passes_of_a_mode_come_episode_after_episode_without_errors(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    records.add(make_row(mode="rsd", init_state=1, passes=[2, 1]))
    records.add(make_row(mode="rsd", init_state=0, passes=[1, 1, 3]))
    records.add(make_row(mode="rsd", init_state=2, passes=[7], outcome="error", error="died"))
    records.add(make_row())
    assert passes_trace(tmp_path, "rsd") == [1, 1, 3, 2, 1]
    with pytest.raises(ValueError, match=r"got mode 'jacobi', expected one of \['rsd', 'sequential'\]"):
        passes_trace(tmp_path, "jacobi")


def test_equal_weights_may_lie_anywhere(tmp_path: Path, make_row: MakeRow) -> None:
    settings = {**make_row().settings, "weights": "w1"}
    Records.open(tmp_path / "a").add(make_row(settings={**settings, "checkpoint": "here/nano"}))
    Records.open(tmp_path / "b").add(make_row(init_state=1, settings={**settings, "checkpoint": "there/nano"}))
    assert len(Records.merge([tmp_path / "a", tmp_path / "b"]).rows) == 2
    Records.open(tmp_path / "c").add(make_row(init_state=2, settings={**settings, "weights": "w2"}))
    with pytest.raises(ValueError, match=r"weights 'w1', now got .*weights 'w2'"):
        Records.merge([tmp_path / "a", tmp_path / "c"])


def test_one_name_is_one_way_of_decoding_over_all_suites(tmp_path: Path, make_row: MakeRow) -> None:
    rsd = {**make_row().settings, "mode": "rsd", "rule": "exact"}
    Records.open(tmp_path / "a").add(make_row(mode="rsd", settings=rsd))
    Records.open(tmp_path / "b").add(make_row(mode="rsd", suite="other", settings={**rsd, "rule": "typical(0.1)"}))
    with pytest.raises(
        ValueError, match=r"got mode 'rsd' with .*rule exact.* in fake, .*rule typical\(0.1\).* in other"
    ):
        Records.merge([tmp_path / "a", tmp_path / "b"])
    # What means nothing to a mode may differ.
    Records.open(tmp_path / "a").add(make_row(settings={**rsd, "mode": "parallel"}, mode="parallel"))
    other = {**rsd, "mode": "parallel", "rule": "typical(0.1)"}
    Records.open(tmp_path / "c").add(make_row(settings=other, mode="parallel", suite="other"))
    assert len(Records.merge([tmp_path / "a", tmp_path / "c"]).rows) == 3


def test_without_a_list_sequential_comes_first(tmp_path: Path, make_row: MakeRow) -> None:
    records = Records.open(tmp_path)
    for mode in ("draft", "jacobi", "rsd", "sequential"):
        records.add(make_row(mode=mode, settings={**make_row().settings, "mode": mode}))
    assert mode_order(records) == ["sequential", "rsd", "jacobi", "draft"]
