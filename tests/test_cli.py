"""The command line: help, one line for what is wrong, and no heavy imports before there is work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsd_fast.cli import COMMANDS, main


@pytest.mark.parametrize("command", ["", "train", *COMMANDS])
def test_help_explains(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: rsd-fast {command}".rstrip() in shown
    assert len(shown.splitlines()) > 8
    assert "Union type" not in shown


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"• {name.split()[0]} " in shown for name in COMMANDS)


def test_eval_help_tells_how_to_compare_modes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    shown = capsys.readouterr().out
    assert "--modes sequential,rsd" in shown
    assert "never counted as a failure" in " ".join(shown.split())


def test_parsing_loads_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys; from rsd_fast.cli import parse; parse(['eval', '--trials', '2']); "
        "print([name for name in ('torch', 'gymnasium', 'mujoco', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_help_that_nobody_reads_to_its_end_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from rsd_fast.cli import main; raise SystemExit(main(['eval', '--help']))"
    with os.fdopen(writing, "w") as closed:
        run = subprocess.run([sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "--suite", "fake"], "got suite 'fake', expected one of ["),
        (["eval", "--tasks", "Fly"], "got task 'Fly', expected one of ['Lift', 'Stack', 'PickPlaceCan']"),
        (["eval", "--checkpoint", "nowhere"], "no checkpoint at 'nowhere': expected a folder, a hub id"),
        (["eval", "--trials", "51"], "got 51 episodes a task, expected 1 to the 50 of robosuite"),
        (["eval", "--rule", "sometimes"], "got rule 'sometimes', expected exact, distance(LEVELS) or typical(TAU)"),
        (["eval", "--modes", "rsd:draft=none"], "got draft 'none', expected one of ['coarse', 'regression']"),
        (["eval", "--modes", "rsd:granularity=atom"], "granularity"),
        (["report", "nowhere"], "no nowhere/episodes.jsonl: expected a folder that `rsd-fast eval --out` wrote"),
        (["train", "main", "--out", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert shown.startswith("rsd-fast: ")
    assert message in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "--modes", "fast"], "got mode 'fast', expected one of ['sequential', 'rsd', 'jacobi', 'parallel', "),
        (["eval", "--trials", "0"], "got --trials 0, expected at least 1"),
        (["eval", "--draft", "none"], "Expected one of ('regression', 'coarse', 'original')"),
        (["fly"], "demos"),
        (["train", "codec", "--steps", "0"], "got steps 0, expected at least 1"),
    ],
)
def test_mistakes_in_the_command_itself_name_the_choices(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    shown = "".join(capsys.readouterr())
    assert "Traceback" not in shown
    assert message in " ".join(shown.replace("│", " ").split())


def test_the_traceback_is_there_for_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSD_FAST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="got suite 'fake'"):
        main(["eval", "--suite", "fake"])


def test_info_is_json_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"software", "gpu", "kernels", "rendering", "suites", "checkpoints"} <= set(told)
    assert "accept on cpu" in told["kernels"]
    assert "Lift" in told["suites"]["robosuite"]
    assert "draft-regression" in told["checkpoints"]["robosuite-nano"]


def test_info_is_a_table_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("torch", "accept on cpu", "egl", "robosuite-nano"))
