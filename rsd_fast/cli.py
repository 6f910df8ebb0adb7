"""The command `rsd-fast`. Parsing loads no torch and no simulator: a command's code is imported when it runs."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from rsd_fast.evaluate.config import EvalConfig, InfoConfig, ProfileConfig, ReportConfig, StudyConfig
from rsd_fast.evaluate.grid import SweepConfig
from rsd_fast.models.convert_config import ConvertConfig
from rsd_fast.models.tune_config import TuneConfig
from rsd_fast.train.config import (
    AllTraining,
    CodecComparison,
    CodecSweep,
    CodecTraining,
    DemosConfig,
    DraftTraining,
    MainTraining,
    RenderConfig,
)
from rsd_fast.train.named import named_in, named_training

DESCRIPTION = """Residual speculative decoding for robot policies.

A first look, with the policy that comes with the package: rsd-fast eval --trials 2 --video 1 --out results/look

A policy of your own: rsd-fast demos, then rsd-fast train all, then rsd-fast eval --checkpoint FOLDER.

Errors are one line; RSD_FAST_TRACEBACK=1 shows where they come from."""


@dataclass(frozen=True)
class Command:
    """A subcommand: its settings, whose documentation is its help, and the function that takes them.

    Attributes:
        run: "module:function"; returns an exit status or anything else, which counts as success.
        resumes: whether the same command goes on after it was stopped.
    """

    config: type
    run: str
    resumes: bool = False


COMMANDS: dict[str, Command] = {
    "demos": Command(DemosConfig, "rsd_fast.train.demos:run", resumes=True),
    "render": Command(RenderConfig, "rsd_fast.train.render:run", resumes=True),
    "train codec": Command(CodecTraining, "rsd_fast.train.codec:run", resumes=True),
    "train sweep": Command(CodecSweep, "rsd_fast.train.sweep:run"),
    "train compare": Command(CodecComparison, "rsd_fast.train.compare:run", resumes=True),
    "train main": Command(MainTraining, "rsd_fast.train.main:run", resumes=True),
    "train draft": Command(DraftTraining, "rsd_fast.train.draft:run", resumes=True),
    "train all": Command(AllTraining, "rsd_fast.train.all:run", resumes=True),
    "convert": Command(ConvertConfig, "rsd_fast.models.convert:run"),
    "tune": Command(TuneConfig, "rsd_fast.models.tune:run", resumes=True),
    "eval": Command(EvalConfig, "rsd_fast.evaluate.runner:run", resumes=True),
    "sweep": Command(SweepConfig, "rsd_fast.evaluate.sweep:run", resumes=True),
    "report": Command(ReportConfig, "rsd_fast.evaluate.report:run"),
    "study": Command(StudyConfig, "rsd_fast.evaluate.study:run"),
    "profile": Command(ProfileConfig, "rsd_fast.evaluate.profiling:run"),
    "info": Command(InfoConfig, "rsd_fast.evaluate.info:run"),
}


GROUPS = {"train": "Train a policy part by part, or all of it."}

# What a wrong setting, a missing file, package or GPU raises. Anything else is a bug and keeps its traceback.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        the exit status: 0; 1, episodes of an evaluation ended in errors; 2, one line on stderr says what is wrong;
        130, stopped by Ctrl-C; 141, nobody read the help to its end.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = parse(words)
    except BrokenPipeError:  # `--help | head`; nor shall the interpreter's last flush fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ValueError as error:  # of a file of settings
        print(f"rsd-fast: {error}", file=sys.stderr)
        return 2
    command = next(command for command in COMMANDS.values() if type(config) is command.config)
    module, _, name = command.run.partition(":")
    return guarded(lambda: getattr(import_module(module), name)(config), ["rsd-fast", *words], command.resumes)


def guarded(run: Callable[[], Any], command_line: Sequence[str], resumes: bool) -> int:
    """Runs a command; what goes wrong becomes one line and an exit status, see `main`."""
    try:
        status = run()
    except KeyboardInterrupt:
        hint = f"; this goes on where it was: {shlex.join(command_line)}" if resumes else ""
        print(f"rsd-fast: stopped{hint}", file=sys.stderr)
        return 130
    except EXPECTED as error:
        if os.environ.get("RSD_FAST_TRACEBACK") == "1":
            raise
        print(f"rsd-fast: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


def parse(words: Sequence[str]) -> Any:
    """The settings that `words` ask for; tyro prints help and mistakes, and exits.

    Raises:
        ValueError: a file of settings is wrong.
    """
    overview = not any(word in names.split() for word in words for names in COMMANDS)
    named = named_in(words) if list(words[:2]) == ["train", "all"] else None
    settings = _union(COMMANDS, overview, {AllTraining: named_training(named)})
    return tyro.cli(settings, args=list(words), prog="rsd-fast", description=DESCRIPTION)


def _union(commands: Mapping[str, Command], overview: bool, defaults: Mapping[type, Any]) -> Any:
    """Commands as tyro takes them, a union of types; "train codec" is a member of the union "train".

    With `overview`, of a command's help only the first paragraph. `defaults`: settings that are not their class's own.
    """
    members: dict[str, Any] = {}
    for name, command in commands.items():
        group, _, _rest = name.partition(" ")
        if group in members:
            continue
        if group in GROUPS:
            inner = {key.removeprefix(f"{group} "): it for key, it in commands.items() if key.startswith(f"{group} ")}
            members[group] = Annotated[_union(inner, overview, defaults), subcommand(group, description=GROUPS[group])]
        else:
            text = inspect.getdoc(command.config) or ""
            description = text.partition("\n\n")[0] if overview else text
            own = {"default": defaults[command.config]} if command.config in defaults else {}
            members[name] = Annotated[command.config, subcommand(name, description=description, **own)]
    return Union[tuple(members.values())]  # noqa: UP007
