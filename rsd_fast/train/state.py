"""The state of a run on disk: one safetensors file, there whole or not at all. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

STATE_FILE = "last.safetensors"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: steps taken.
        seconds: spent.
        ended: why the run is over (`steps`, `minutes`, `patience`); None while it is not.
        without_progress: evaluations since the best one.
        best_metrics: held-out metrics of the best weights so far, with their step.
    """

    step: int = 0
    seconds: float = 0.0
    ended: str | None = None
    without_progress: int = 0
    best_metrics: dict[str, Any] = field(default_factory=dict)


def save_state(
    folder: Path,
    settings: dict[str, Any],
    progress: Progress,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> None:
    """Replaces the saved state."""
    tensors: dict[str, Tensor] = {}
    for part, values in (("model", model.state_dict()), ("average", average.state_dict()), ("best", best)):
        tensors |= {f"{part}/{name}": value for name, value in values.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in slots.items()}
    on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"progress": json.dumps(asdict(progress)), "settings": json.dumps(settings, sort_keys=True)}
    unfinished = folder / f"{STATE_FILE}.tmp"
    save_file(on_host, unfinished, metadata)
    os.replace(unfinished, folder / STATE_FILE)


def load_state(
    folder: Path,
    settings: dict[str, Any],
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> tuple[Progress, dict[str, Tensor]]:
    """Reads the saved state into the model, its average and the optimiser; returns progress and best weights.

    Raises:
        ValueError: the state was made with other settings.
    """
    path = folder / STATE_FILE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        _require_same(json.loads(metadata["settings"]), json.loads(json.dumps(settings)), path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}, "optimizer": {}}
        for key in file.keys():  # noqa: SIM118  # safe_open is no dictionary
            part, name = key.split("/", 1)
            parts[part][name] = file.get_tensor(key)
    model.load_state_dict(parts["model"])
    average.load_state_dict(parts["average"])
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        index, name = key.split("/", 1)
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    best = {name: value.to(device) for name, value in parts["best"].items()}
    return Progress(**json.loads(metadata["progress"])), best


def fingerprint(part: Path) -> str:
    """Tells the weights of a part (`<policy>/main`) from others; a run that builds on it names it in its settings."""
    return hashlib.sha256((part / "model.safetensors").read_bytes()).hexdigest()[:12]


def _require_same(saved: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    names = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
    if names:
        listed = ", ".join(f"{name} {saved.get(name)} (now {wanted.get(name)})" for name in names)
        raise ValueError(
            f"{path} was made with {listed}; use the same settings to go on, or --no-resume to start again"
        )
