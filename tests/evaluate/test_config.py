"""What a user writes as modes and settings."""

from pathlib import Path
from typing import get_args

import pytest

from rsd_fast.decoding import DRAFTED, Mode
from rsd_fast.evaluate import config
from rsd_fast.evaluate.config import MODES, DecodeSettings, EvalConfig, parse_mode, split_modes


@pytest.mark.parametrize(
    ("words", "modes"),
    [
        (["sequential,rsd"], ["sequential", "rsd"]),
        (["sequential", "rsd"], ["sequential", "rsd"]),
        (["sequential", "rsd:theta=1,rule=exact"], ["sequential", "rsd:theta=1,rule=exact"]),
        (["rsd:theta=1,rule=distance(1),jacobi", "parallel"], ["rsd:theta=1,rule=distance(1)", "jacobi", "parallel"]),
        (["sequential,", "rsd"], ["sequential", "rsd"]),
    ],
)
def test_modes_come_in_one_word_or_several(words: list[str], modes: list[str]) -> None:
    assert split_modes(words) == tuple(modes)
    assert [choice.label for choice in EvalConfig(modes=tuple(words)).choices] == modes


def test_a_mode_changes_only_what_it_names() -> None:
    choice = parse_mode("rsd:theta=1,rule=exact,stop=2", DecodeSettings(temperature=0.5))
    assert (choice.mode, choice.settings) == ("rsd", DecodeSettings(theta=1.0, rule="exact", stop=2, temperature=0.5))
    assert choice.draft == "coarse"
    for word, told in (("on", True), ("off", False)):
        assert parse_mode(f"sequential:expected_last={word}", DecodeSettings()).settings.expected_last is told
    for mode in ("sequential", "parallel", "regression"):
        assert parse_mode(mode, DecodeSettings()).draft is None
    for mode in ("rsd", "conditioned", "draft"):
        assert parse_mode(f"{mode}:draft=regression", DecodeSettings()).draft == "regression"


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (["fast"], r"got mode 'fast', expected one of \['sequential', 'rsd', .*'regression', 'draft', 'expert'\]"),
        (["expert:theta=1"], "got 'expert:theta=1', expected 'expert': it decodes nothing"),
        (["rsd:tau=1"], r"got 'tau=1' .* expected NAME=VALUE with one of \['draft', "),
        (["rsd:theta=much"], "got 'much' for theta .* expected a number"),
        (["rsd:expected_last=maybe"], "got 'maybe' for expected_last .* expected on or off"),
        (["sequential,theta=1"], "got setting 'theta=1' without a mode"),
        (["rsd", "rsd"], "none twice"),
        ([], "at least one"),
    ],
)
def test_wrong_modes_are_refused_with_the_choices(modes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalConfig(modes=tuple(modes))


@pytest.mark.parametrize("setting", ["trials", "batch", "workers", "threads", "replan", "image_size", "step_timeout"])
def test_settings_below_one_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"--{setting.replace('_', '-')} 0"):
        EvalConfig(**{setting: 0})


def test_assets_are_for_libero_alone() -> None:
    assert EvalConfig(suite="libero_goal", assets=Path("assets")).assets == Path("assets")
    with pytest.raises(ValueError, match="got --assets with suite 'robosuite', expected one of LIBERO's"):
        EvalConfig(assets=Path("assets"))


def test_the_modes_are_those_of_the_engine() -> None:
    assert get_args(Mode) == MODES and DRAFTED == config.DRAFTED


@pytest.mark.parametrize(("suite", "policy"), [("robosuite", "robosuite-nano"), ("libero_10", "libero-nano")])
def test_a_suite_has_a_shipped_policy(suite: str, policy: str):
    assert EvalConfig(suite=suite).policy == policy
    assert EvalConfig(suite=suite, checkpoint="mine").policy == "mine"
