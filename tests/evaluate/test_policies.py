"""What the runner makes of a checkpoint: the language of its gripper, the size of its pictures, its GPU."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_fast.evaluate.actions import simulator_actions
from rsd_fast.evaluate.config import EvalConfig
from rsd_fast.evaluate.episodes import picture_size
from rsd_fast.evaluate.policies import Policies, load_policies
from rsd_fast.evaluate.statistics import summarise
from rsd_fast.models.convert import run as convert
from rsd_fast.models.convert_config import ConvertConfig
from rsd_fast.sim.suites import get_suite
from tests.evaluate.conftest import Run
from tests.evaluate.fakes import FakePolicy, FakeSuite
from tests.models.original_files import parts, write_everything
from tests.policies import four_heads, tiny_policy

SCRIPT = Path(__file__).parents[2] / "examples" / "eval_openvla_style.py"
PROCESS = runpy.run_path(str(SCRIPT))["process_action"]


@given(st.lists(st.floats(-2, 2, width=32), min_size=7, max_size=7))
def test_actions_are_those_of_the_example_script(numbers: list[float]) -> None:
    action = np.array(numbers, np.float32)
    for gripper in ("simulator", "openvla"):
        ours = simulator_actions(np.stack([action, action]), gripper)
        assert np.array_equal(ours, np.stack([np.clip(PROCESS(action, gripper), -1, 1)] * 2))
    assert np.array_equal(action, np.array(numbers, np.float32))


def test_a_checkpoint_converted_from_openvla_speaks_openvla_s_language(tmp_path: Path) -> None:
    files, out = write_everything(tmp_path / "files"), tmp_path / "policy"
    convert(ConvertConfig(checkpoint=str(files / "oft"), out=out, **parts(files)))
    config = EvalConfig(checkpoint=str(out), modes=("rsd:draft=original",), device="cpu")
    policies, suite = load_policies(config), get_suite("robosuite")
    assert policies.settings(config.modes[0])["gripper"] == policies.gripper == "openvla"
    assert picture_size(config, suite, policies) == 256
    assert picture_size(replace(config, image_size=64), suite, policies) == 64
    assert load_policies(replace(config, gripper="simulator")).gripper == "simulator"


def test_a_checkpoint_of_ours_speaks_the_simulator_s() -> None:
    config = EvalConfig(modes=("sequential",), device="cpu")
    policies = load_policies(config)
    assert (policies.gripper, policies.gpu) == ("simulator", None)
    assert picture_size(config, get_suite("robosuite"), policies) == 128


@pytest.mark.parametrize("batch", [1, 3])
def test_every_mode_of_a_checkpoint_with_all_heads_runs_and_is_recorded(run: Run, tmp_path: Path, batch: int) -> None:
    policy = four_heads(tiny_policy("regression"))
    policy.codec.save_pretrained(tmp_path / "policy" / "codec")
    policy.main.save_pretrained(tmp_path / "policy" / "main")
    for draft in ("regression", "coarse"):
        tiny_policy(draft).draft.save_pretrained(tmp_path / "policy" / f"draft-{draft}")
    one_pass = ("parallel", "regression", "conditioned", "conditioned:draft=regression")
    modes = ("sequential", "rsd", *one_pass, "draft")
    config = EvalConfig(checkpoint=str(tmp_path / "policy"), modes=modes, device="cpu", batch=batch)
    records = run(policies=load_policies(config), modes=modes, batch=batch, trials=2)
    rows = {row.mode: row for row in records.rows.values() if row.init_state == 0}
    assert rows.keys() == set(modes) and all(row.outcome != "error" for row in records.rows.values())
    for mode in one_pass:
        assert set(rows[mode].passes) == {1} and set(rows[mode].accepted_layers) == {0.0}
        assert all(rates == [] for rates in rows[mode].kept_rates)
        draft = {"conditioned": "coarse", "conditioned:draft=regression": "regression"}.get(mode)
        assert rows[mode].settings["draft"] == draft
    assert len({rows[mode].codes for mode in one_pass}) == len(one_pass)
    assert set(rows["draft"].passes) == {0}
    summary = summarise(list(records.rows.values()), list(modes))
    assert [group.passes for group in summary.over_all][2:] == [1.0] * 4 + [0.0]


def test_the_expert_alone_needs_no_checkpoint() -> None:
    assert load_policies(EvalConfig(modes=("expert",), checkpoint="nowhere")).by_mode == {}


def test_the_gripper_is_mapped_on_its_way_to_the_simulator(run: Run, tmp_path: Path) -> None:
    for gripper, command in (("openvla", 1.0), ("simulator", 0.0)):
        marks = tmp_path / gripper
        marks.mkdir()
        policies = Policies({"rsd": FakePolicy(1.0)}, {"checkpoint": "fake"}, gripper=gripper)
        records = run(FakeSuite(marks), policies=policies, modes=("rsd",), trials=1, out=tmp_path / f"out-{gripper}")
        (row,) = records.rows.values()
        assert row.settings["gripper"] == gripper
        assert row.aperture[-1] == pytest.approx(abs(command))
