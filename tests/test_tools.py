"""Shell scripts of tools/, with a command line that only notes what it is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rsd_fast.cli import parse

ROOT = Path(__file__).parents[1]
SUITES = ["libero_goal", "libero_spatial", "libero_object", "libero_10"]


def run_script(folder: Path, **variables: str) -> list[list[str]]:
    told = folder / "told"
    stub = folder / "bin" / "rsd-fast"
    stub.parent.mkdir()
    stub.write_text(f'#!/usr/bin/env bash\nprintf "%s\\t" "$@" >> {told}\necho >> {told}\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}", "WORKERS": "2", **variables}
    subprocess.run([ROOT / "tools" / "libero_policy.sh", "made"], cwd=folder, env=environment, check=True)
    return [line.split("\t")[:-1] for line in told.read_text().splitlines()]


@pytest.mark.parametrize("policy", [None, "first round"])
def test_a_libero_policy_from_nothing(tmp_path: Path, policy: str | None) -> None:
    lines = run_script(tmp_path, **({"POLICY": policy} if policy else {}))
    steps = ["demos", "render"] * 4 + ["train"] + ["eval"] * 4 + ["report", "train"]
    assert [line[0] for line in lines] == steps
    settings = [parse(line) for line in lines]  # every line is one that the real command takes
    recorded = [each for each, step in zip(settings, steps, strict=True) if step == "demos"]
    assert [each.suite for each in recorded] == SUITES
    assert [each.episodes for each in recorded] == [64, 80, 64, 80]
    assert {each.policy for each in recorded} == {policy}
    assert [each.suite for each in settings if hasattr(each, "trials")] == SUITES
    assert settings[-1].success == Path("made/results/all/summary.json")
