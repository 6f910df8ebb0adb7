"""Settings by name: files of the shipped models, and flags on top of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_fast.cli import main, parse
from rsd_fast.models.presets import MAIN_PRESETS
from rsd_fast.train.card import command_line
from rsd_fast.train.named import config_names, named_training


def test_every_shipped_file_is_good_and_says_what_it_is():
    assert config_names() == ["libero-nano", "libero-small", "robosuite-nano"]
    for name in config_names():
        settings = named_training(name)
        assert settings.config == name and settings.out.name == name
        assert settings.preset in MAIN_PRESETS


def test_flags_come_on_top():
    settings = parse(["train", "all", "--config", "libero-small", "--minutes", "3", "--demos", "here"])
    assert (settings.preset, settings.minutes, settings.demos) == ("small", 3.0, Path("here"))
    assert parse(["train", "all", "--config=libero-nano"]).preset == "nano"
    assert parse(["train", "all"]) == named_training(None)


def test_a_file_of_one_s_own(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "tiny"  # quick\nminutes = 1\ncompile = true\n')
    settings = named_training(str(path))
    assert (settings.preset, settings.minutes, settings.compile) == ("tiny", 1, True)


def test_heads_are_a_list_in_a_file_and_words_on_the_command_line():
    assert named_training("libero-nano").heads == ("hierarchical", "parallel", "regression", "conditioned_queries")
    assert named_training("robosuite-nano").heads == named_training(None).heads == ("hierarchical", "parallel")
    words = ["train", "all", "--config", "libero-nano", "--heads", "hierarchical", "regression"]
    assert parse(words).heads == ("hierarchical", "regression")
    assert "--heads hierarchical regression" in command_line("train all", parse(words))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("presett = 'tiny'", "unknown setting 'presett'"),
        ("preset = 3", "got preset 3 in .*, expected str"),
        ("batch = 1.5", "got batch 1.5 in .*, expected int"),
        ("heads = 'hierarchical'", "got heads 'hierarchical' in .*, expected list"),
        ("heads = ['parallel']", "got heads .'parallel'., expected 'hierarchical'"),
        ("compile = 1", "got compile 1 in .*, expected bool"),
        ("steps = true", "got steps True in .*, expected int"),
        ("batch = 0", "got batch 0, expected at least 1"),
        ("preset", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        named_training(str(path))
    assert main(["train", "all", "--config", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"got --config big, expected one of \['libero-nano', .*or a TOML file"):
        named_training("big")


def test_a_card_s_command_says_what_differs_from_the_named_settings():
    settings = parse(["train", "all", "--config", "libero-nano", "--minutes", "3"])
    assert command_line("train all", settings) == (
        "rsd-fast train all --demos demos --out checkpoints/libero-nano --minutes 3.0 --config libero-nano"
    )
