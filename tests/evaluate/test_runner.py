"""Whole evaluations on the fake suite: what is recorded, whatever happens to workers and to the runner itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rsd_fast.evaluate.records import Records
from tests.evaluate.conftest import Run, fast_and_slow
from tests.evaluate.fakes import FakeSuite

ROOT = Path(__file__).parents[2]


def told(records: Records) -> dict[tuple[object, ...], tuple[object, ...]]:
    """What must not depend on how an evaluation went along."""
    rows = records.rows.values()
    return {row.key: (row.outcome, row.steps, row.passes, row.accepted_layers, row.codes, row.error) for row in rows}


def test_every_mode_runs_the_same_episodes_and_rows_say_what_happened(run: Run) -> None:
    records = run(trials=4)
    rows = {(row.mode, row.init_state): row for row in records.rows.values()}
    assert set(rows) == {(mode, state) for mode in ("sequential", "rsd") for state in range(4)}
    assert [rows["rsd", state].outcome for state in range(4)] == ["success"] * 4
    assert [rows["rsd", state].steps for state in range(4)] == [8, 9, 10, 11]
    # At a quarter of the speed, 8 + k steps of speed 1 fit into the cap of 40 up to k = 2.
    assert [rows["sequential", state].outcome for state in range(4)] == ["success"] * 3 + ["failure"]
    row = rows["rsd", 1]
    assert (row.passes, row.accepted_layers, row.kept_rates) == ([1, 1, 1], [2.0] * 3, [[1.0, 1.0]] * 3)
    assert len(row.ms) == len(row.ms_stages["inputs"]) == 3
    assert row.ms[0] == pytest.approx(sum(values[0] for values in row.ms_stages.values()), abs=0.01)
    assert row.cap == 40
    assert {"replan": 4, "image_size": 16, "settling_steps": 0, "checkpoint": "fake"}.items() <= row.settings.items()
    assert {"rsd_fast", "torch", "numpy", "mujoco", "robosuite"} <= set(row.versions)


def test_codes_do_not_depend_on_workers_or_batching(run: Run, tmp_path: Path) -> None:
    alone = run(tasks=("Push", "Pull"), trials=3, out=tmp_path / "alone")
    policies = fast_and_slow()
    together = run(policies=policies, tasks=("Push", "Pull"), trials=3, workers=3, batch=4, out=tmp_path / "together")
    assert told(alone) == told(together)
    assert len({row.codes for row in alone.rows.values()}) == 6  # per mode and state; tasks look alike here
    assert max(policies.by_mode["rsd"].calls) <= 4  # type: ignore[attr-defined]


def test_a_chunk_is_cut_at_replan(run: Run) -> None:
    records = run(trials=1, modes=("rsd",), replan=2)
    (row,) = records.rows.values()
    assert (row.steps, len(row.passes), row.settings["replan"]) == (8, 4, 2)
    with pytest.raises(ValueError, match="got --replan 5, expected at most the 4 actions of a chunk"):
        run(trials=1, replan=5)


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ("die", r"the simulator's process died \(SIGKILL\)"),
        ("hang", "the simulator did not answer within 3 s"),
        ("raise", "FloatingPointError: the block has left the universe"),
    ],
)
def test_a_broken_simulator_costs_one_episode_which_is_tried_again(
    run: Run, marks: Path, trouble: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = run(FakeSuite(marks, {("Push", 1): trouble}), modes=("rsd",), trials=3, step_timeout=3.0)
    assert [row.outcome for row in records.rows.values()] == ["success"] * 3
    lines = records.file.read_text().splitlines()
    assert len(lines) == 4  # the error, and the second try
    shown = capsys.readouterr()
    assert f"Push 1 rsd: error, trying again: {error}".replace("\\", "") in shown.err
    assert "3/3" in shown.out


def test_a_worker_killed_in_the_middle_changes_nothing(run: Run, tmp_path: Path, marks: Path) -> None:
    out = tmp_path / "killed"

    def kill_one() -> None:
        wait_until(lambda: len(Records.open(out).rows) >= 2)
        os.kill(int(next(marks.glob("process_*")).name.split("_")[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    killed = run(FakeSuite(marks, pause=0.02), tasks=("Push", "Pull"), trials=3, workers=2, out=out)
    killer.join()
    lines = killed.file.read_text().splitlines()
    assert len(lines) == 13 and sum("the simulator's process died (SIGKILL)" in line for line in lines) == 1
    assert told(killed) == told(run(FakeSuite(marks), tasks=("Push", "Pull"), trials=3, out=tmp_path / "undisturbed"))


def test_an_error_that_stays_is_shown_and_not_counted(
    run: Run, marks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = FakeSuite(marks, {("Push", 1): "raise"}, times=3)
    records = run(suite, modes=("rsd",), trials=3, retries=1)
    assert sorted(row.outcome for row in records.rows.values()) == ["error", "success", "success"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "2/2 + 1 error" in shown
    assert "error, not counted: Push 1 rsd: FloatingPointError" in shown
    assert "| Push | rsd | 1 | FloatingPointError: the block has left the universe |" in (
        records.folder / "report.md"
    ).read_text()
    # The same command tries again; the trouble happens once more, and then no more.
    assert [row.outcome for row in run(suite, modes=("rsd",), trials=3, retries=1).rows.values()].count("success") == 3


def test_what_cannot_be_built_stops_the_run_with_its_reason(run: Run, marks: Path) -> None:
    suite = FakeSuite(marks, {("Push", -1): "unbuildable"})
    with pytest.raises(RuntimeError, match=r"Push cannot be built: ImportError: got no fake, expected version 1\.0"):
        run(suite)


def test_a_second_run_does_only_what_is_missing(run: Run, marks: Path) -> None:
    first = run(trials=2)
    policies = fast_and_slow()
    second = run(policies=policies, trials=3)
    assert len(second.rows) == 6
    assert told(first).items() <= told(second).items()
    begun = [path.name.split("_")[2] for path in marks.glob("begun_*")]
    assert sorted(begun) == ["0", "0", "1", "1", "2", "2"]
    with pytest.raises(ValueError, match=r"--no-resume, but .* has 6 episodes"):
        run(trials=3, resume=False)


def test_a_worker_stays_on_the_task_that_it_has_built(run: Run, marks: Path) -> None:
    run(tasks=("Push", "Pull"), trials=3, workers=2)
    began = sorted(marks.glob("begun_*"), key=lambda path: int(path.name.split("_")[3]))
    assert {path.name.split("_")[1] for path in began[:2]} == {"Push", "Pull"}
    assert len(list(marks.glob("process_*"))) == 2


def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(run: Run, tmp_path: Path, marks: Path) -> None:
    out = tmp_path / "killed"
    process = start_fake(out, marks, pause=0.01)
    wait_until(lambda: len(Records.open(out).rows) >= 3)
    process.kill()
    process.wait()
    survivors = len(Records.open(out).rows)
    assert 3 <= survivors < 12
    workers = [int(path.name.split("_")[1]) for path in marks.glob("process_*")]
    wait_until(lambda: not any(alive(pid) for pid in workers))
    assert start_fake(out, marks, pause=0.0).wait(60) == 0
    undisturbed = run(FakeSuite(marks), tasks=("Push", "Pull"), trials=3, out=tmp_path / "undisturbed")
    assert told(Records.open(out)) == told(undisturbed)
    rerun = len(list(marks.glob("begun_*"))) - 12 - len(undisturbed.rows)
    assert 0 <= rerun <= 2  # only what ran


def test_ctrl_c_leaves_a_report_and_says_how_to_go_on(tmp_path: Path, marks: Path) -> None:
    out = tmp_path / "stopped"
    process = start_fake(out, marks, pause=0.02)
    wait_until(lambda: len(Records.open(out).rows) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody gets it
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().splitlines()[-1].startswith("rsd-fast: stopped; this goes on where it was: ")
    assert "Traceback" not in errors
    assert "sequential" in shown
    assert all((out / name).exists() for name in ("report.md", "summary.json", "report.png", "report.svg"))
    assert start_fake(out, marks, pause=0.0).wait(60) == 0
    assert len(Records.open(out).rows) == 12


def start_fake(out: Path, marks: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evaluate.run_fake", str(out), str(marks), str(pause)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie waits for its parent, which a container may not have

