"""Settings in TOML files: those of the shipped models by name, others by path."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rsd_fast.train.config import AllTraining

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

FOLDER = Path(__file__).parent / "configs"
FLAG = "--config"


def config_names() -> list[str]:
    """The shipped models that have settings."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def named_training(config: str | None) -> AllTraining:
    """The settings of a file; flags of the command line come on top of them.

    Args:
        config: a name, or the path of a TOML file whose keys are fields of `AllTraining`; None for the defaults.

    Raises:
        ValueError: there is no such file, or it is not TOML, or has an unknown key or an impossible value.
    """
    if config is None:
        return AllTraining()
    path = FOLDER / f"{config}.toml" if config in config_names() else Path(config)
    if not path.is_file():
        raise ValueError(f"got {FLAG} {config}, expected one of {config_names()} or a TOML file")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"got {path}, which is not TOML ({error})") from error
    kinds = {field.name: _kind(str(field.type)) for field in fields(AllTraining)}
    for name, value in values.items():
        if name not in kinds or name == "config":
            raise ValueError(f"got unknown setting {name!r} in {path}, expected some of {sorted(kinds)}")
        if not isinstance(value, kinds[name]) or isinstance(value, bool) != (kinds[name] == (bool,)):
            raise ValueError(f"got {name} {value!r} in {path}, expected {kinds[name][0].__name__}")
    made: dict[str, Any] = {name: Path(value) for name, value in values.items() if name in ("demos", "out", "success")}
    made |= {name: tuple(value) for name, value in values.items() if kinds[name] == (list,)}
    return AllTraining(config=config, **values | made)


def named_in(words: Sequence[str]) -> str | None:
    """What the words of a command line say behind `--config`; None where they say nothing."""
    for index, word in enumerate(words):
        if word.startswith(f"{FLAG}="):
            return word.removeprefix(f"{FLAG}=")
        if word == FLAG and index + 1 < len(words):
            return words[index + 1]
    return None


def _kind(annotation: str) -> tuple[type, ...]:
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,)}
    if annotation.startswith("tuple"):
        return (list,)
    return kinds.get(annotation.removesuffix(" | None"), (str,))


def settings_of(config: Any) -> dict[str, Any]:
    """What a command would do without flags: the named settings where a name is given, else the defaults."""
    if isinstance(config, AllTraining) and config.config is not None:
        return vars(named_training(config.config))
    return {field.name: field.default for field in fields(config)}
