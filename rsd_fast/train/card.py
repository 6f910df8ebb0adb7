"""The model card of a policy folder: data, accuracy, errors, success, and the commands that made it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py

from rsd_fast.acceptance import Acceptance
from rsd_fast.train.config import AllTraining
from rsd_fast.train.markdown import table
from rsd_fast.train.named import settings_of
from rsd_fast.train.read import find_files

UNKNOWN = "SUITE"  # public files do not name theirs
NO_SUCCESS = (
    "Not measured yet: run the evaluation below, then `rsd-fast train all` again with `--success <its summary.json>` "
    "(complete parts are not trained again)."
)


def write_card(config: AllTraining, metrics: Mapping[str, Any]) -> Path:
    """Writes `<out>/README.md` from the metrics of `train all`.

    Metrics may have a `note`, Markdown: what else there is to say of the data, as where a part had other ones.

    Raises:
        FileNotFoundError: `config.success` is given and not there.
        ValueError: it is not a table.
    """
    offline = metrics["offline"]
    sections = [
        _front(config),
        "## Data\n\n" + _data(metrics["data"]) + (f"\n\n{metrics['note']}" if "note" in metrics else ""),
        "## Training\n\n" + table(_training(metrics)),
        "## Codec\n\nError on held-out actions after each layer.\n\n" + table(metrics["codec"]["layers"]),
        "## Accuracy by layer\n\n" + _layers_text() + "\n\n" + table(_by_layer(offline)),
        f"## Error of the action\n\n{offline['samples']} held-out chunks, physical units; greedy, RSD as the engine "
        f"verifies where a folder recommends nothing else (`{Acceptance.rule}`, {Acceptance.granularity}s, "
        f"theta {Acceptance.theta:g}), baselines of one pass "
        "from heads of their own on the same backbone. The held-out demonstrations also chose the best weights, so "
        "these errors are a little flattering.\n\n" + table(offline["table"]),
        "## Success in the simulator\n\n" + success_table(config.success),
        "## Commands\n\n```\n" + "\n".join(commands(config, metrics["data"])) + "\n```",
    ]
    path = config.out / "README.md"
    path.write_text("\n\n".join(sections) + "\n")
    return path


def success_table(path: Path | None) -> str:
    """The closed-loop table: a JSON list of flat rows, or an object with such a list under `rows`.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is something else.
    """
    if path is None:
        return NO_SUCCESS
    if not path.is_file():
        raise FileNotFoundError(f"no summary at {path}; `rsd-fast eval --out FOLDER` writes FOLDER/summary.json")
    summary = json.loads(path.read_text())
    rows = summary.get("rows") if isinstance(summary, dict) else summary
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"got {path} without rows, expected the summary.json of an `rsd-fast eval`")
    return table(rows)


def describe_demos(demos: Path) -> dict[str, Any]:
    """How the demonstrations were made, as far as their files tell.

    Returns:
        `recordings`: every combination of `suite`, `settings`, `episodes` a task, and `folder` below `demos`.
    """
    recordings: list[dict[str, Any]] = []
    for path in find_files(demos):
        with h5py.File(path) as file:
            attributes = file["data"].attrs
            suite = json.loads(attributes.get("env_args", "{}")).get("suite")
            made_with = json.loads(attributes.get("settings", "{}"))
            episodes = int(attributes.get("num_demos", len(file["data"])))
        below = path.parent.parent if path.parent.name == suite else path.parent  # files lie in a folder of the suite
        folder = below.relative_to(demos).as_posix() if below.is_relative_to(demos) else "."
        found = {"suite": suite or UNKNOWN, "episodes": episodes, "settings": made_with, "folder": folder}
        if found not in recordings:
            recordings.append(found)
    return {"recordings": recordings}


def command_line(command: str, config: Any) -> str:
    """The shell command of a configuration: only what differs from the defaults, or from the settings it names."""
    words = ["rsd-fast", *command.split()]
    usual = settings_of(config)
    for field in fields(config):
        value = getattr(config, field.name)
        said = field.name in ("demos", "out") or (field.name == "config" and value is not None)
        if value == usual[field.name] and not said:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def commands(config: AllTraining, data: Mapping[str, Any]) -> list[str]:
    """What makes the policy and judges it, from nothing."""
    recordings = data["recordings"]
    suites = dict.fromkeys(made["suite"] for made in recordings)
    return [
        *_recordings(config, recordings),
        command_line("train all", config),
        *(f"rsd-fast eval --suite {suite} --checkpoint {config.out} --modes sequential rsd" for suite in suites),
    ]


def _recordings(config: AllTraining, recordings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commands of this package's recordings: a loop where several differ in the seed that their folders end in."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for made in recordings:
        if made["settings"]:
            alike.setdefault("\n".join(_recording(config, _of_any_seed(made))), []).append(made)
    lines: list[str] = []
    for looped, found in alike.items():
        if len(found) == 1:
            lines += _recording(config, found[0])
        else:
            seeds = " ".join(map(str, sorted(made["settings"]["seed"] for made in found)))
            lines += [f"for seed in {seeds}; do", *(f"    {line}" for line in looped.splitlines()), "done"]
    return lines


def _of_any_seed(made: Mapping[str, Any]) -> dict[str, Any]:
    """A recording with a shell variable for its seed, in the name of its folder too, if that ends in it."""
    folder, settings = made["folder"], dict(made["settings"])
    if folder.endswith(seed := str(settings.get("seed"))):
        folder, settings["seed"] = folder.removesuffix(seed) + "$seed", "$seed"
    return {**made, "folder": folder, "settings": settings}


def _recording(config: AllTraining, made: Mapping[str, Any]) -> list[str]:
    """The commands that make a folder of demonstrations: pictures at once, or drawn later where not of every step."""
    settings = dict(made["settings"])
    out = config.demos.parent if config.demos.name == made["suite"] else config.demos / made["folder"]
    drawing = {name: settings.pop(name) for name in ("image_size", "every") if name in settings}
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in settings.items()]
    command = f"rsd-fast demos --suite {made['suite']} --episodes {made['episodes']} {' '.join(flags)}"
    size = f"--image-size {drawing['image_size']}"
    if "every" not in drawing:
        return [f"{command} {size} --out {out}"]
    recorded = f"recorded/{made['folder']}" if made["folder"] != "." else "recorded"
    return [
        f"{command} --no-render --out {recorded}",
        f"rsd-fast render {recorded}/{made['suite']} {size} --every {drawing['every']} --out {out}",
    ]


def _front(config: AllTraining) -> str:
    return (
        "---\nlicense: apache-2.0\nlibrary_name: rsd_fast\ntags: [robotics, vision-language-action, "
        "speculative-decoding]\n---\n\n"
        f"# {config.out.name}\n\n"
        f"A policy for `rsd_fast`: main model of preset `{config.preset}` on the RFSQ codec "
        f"`{config.codec}`, chunks of {config.chunk} steps, with a regression and a coarse draft model. "
        "Trained from scratch. It knows the tasks below, these cameras and this robot, and nothing else."
    )


def _data(data: Mapping[str, Any]) -> str:
    rows = [{"instruction": name, **counts} for name, counts in data["demonstrations"].items()]
    return f"Demonstrations, {data['frames']} frames; held-out ones are never trained on.\n\n" + table(rows)


def _training(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "part": name,
            "parameters": metrics["parameters"][name],
            "steps": outcome["steps"],
            "minutes": outcome["minutes"],
            "ended by": outcome["ended"],
            "best step": outcome["best"]["step"],
        }
        for name, outcome in metrics["training"].items()
    ]


def _layers_text() -> str:
    return (
        "Held out. `accuracy`: equal to the nearest code of the data (main: with teacher forcing). `match` and "
        "`within one`: against the codes that main decodes sequentially. `agreed`: stood when main verified the draft "
        "in the first pass of RSD."
    )


def _by_layer(offline: Mapping[str, Any]) -> list[dict[str, Any]]:
    measured = {("main", "accuracy"): offline["main"]["accuracy"]}
    for kind, measures in offline["drafts"].items():
        measured |= {(f"{kind} draft", name): values for name, values in measures.items()}
    return [
        {"model": model, "measure": name.replace("_", " ")} | {f"layer {i}": value for i, value in enumerate(values)}
        for (model, name), values in measured.items()
    ]
