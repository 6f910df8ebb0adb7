"""The example script in OpenVLA's style, with a policy of random weights."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsd_fast.models.tokenizer import InstructionTokenizer
from tests.policies import tiny_policy
from tests.sim.libero_setup import libero

SCRIPT = Path(__file__).parents[2] / "examples" / "eval_openvla_style.py"
INSTRUCTION = "pick up the salad dressing and place it in the basket"


@pytest.fixture(scope="module", autouse=True)
def assets() -> Iterator[Path]:
    with libero() as folder:
        yield folder


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_an_episode(tmp_path: Path):
    """As a user runs it: a process of its own, nobody at the keyboard."""
    policy = tiny_policy("coarse")
    size = policy.main.config
    policy.main.tokenizer = InstructionTokenizer.train([INSTRUCTION], size.vocab_size, size.max_tokens)
    policy.codec.save_pretrained(tmp_path / "codec")
    policy.main.save_pretrained(tmp_path / "main")
    policy.draft.save_pretrained(tmp_path / "draft-coarse")
    command = [sys.executable, str(SCRIPT), "--checkpoint", str(tmp_path), "--task-suite-name", "libero_object"]
    command += ["--tasks", "2", "--num-trials-per-task", "1", "--max-steps", "6", "--env-img-res", "64"]
    command += ["--num-steps-wait", "2", "--device", "cpu"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()[-2:]
    assert first == f"{INSTRUCTION}: episode 0, success False, so far 0.0%"
    assert last.startswith("success 0.0% of 1, ") and last.endswith(" ms")


def test_its_caps_are_those_of_the_suites(script: dict):
    from rsd_fast.sim.suites import SUITES, get_suite

    caps = {name: get_suite(name).max_steps for name in SUITES if name.startswith("libero_")}
    assert script["TASK_MAX_STEPS"] == caps


@pytest.mark.parametrize(
    ("policy_says", "command"), [(1.0, -1.0), (0.996, -1.0), (0.51, -1.0), (0.49, 1.0), (0.0, 1.0)]
)
def test_openvla_s_gripper_is_one_for_open(script: dict, policy_says: float, command: float):
    action = np.array([0.1, -0.2, 0.3, 0, 0, 0.4, policy_says], np.float32)
    before = action.copy()
    assert np.array_equal(script["process_action"](action, "openvla"), np.append(action[:6], np.float32(command)))
    assert np.array_equal(script["process_action"](action, "simulator"), before)
    assert np.array_equal(action, before)
