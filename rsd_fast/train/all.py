"""`rsd-fast train all`: codec, main model, both drafts, the offline evaluation and the model card."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields
from typing import Any, TypeVar

from rich.console import Console
from torch import nn

from rsd_fast.models.checkpoints import load_policy
from rsd_fast.models.draft import DRAFTS, load_draft
from rsd_fast.models.presets import MAIN_PRESETS
from rsd_fast.train import codec as codec_training
from rsd_fast.train import draft as draft_training
from rsd_fast.train import main as main_training
from rsd_fast.train.card import describe_demos, write_card
from rsd_fast.train.config import AllTraining, CodecTraining, DraftTraining, MainTraining, OptimizerOptions
from rsd_fast.train.dataset import DemoData, load_data, require_image_size
from rsd_fast.train.loop import Outcome, half_precision
from rsd_fast.train.offline import evaluate_offline, offline_table
from rsd_fast.train.variants import codec_config

MEASURE_SHARE = 0.04  # of the minutes: the table of errors at the end
LEAST = 0.05  # minutes of a draft, however late it is

C = TypeVar("C", bound=OptimizerOptions)


def run(config: AllTraining, data: DemoData | None = None) -> dict[str, Any]:
    """Trains a whole policy folder; parts that are complete in `<out>-training` are not trained again.

    Args:
        config: settings.
        data: the demonstrations, where they are loaded already.

    Returns:
        the metrics, which also go to `<out>/metrics.json`.
    """
    codec_config(config.codec)  # a wrong text, before the demonstrations are read
    data = load_data(config) if data is None else data
    if config.preset in MAIN_PRESETS:  # before any training; an unknown name is main's to refuse
        require_image_size(data, MAIN_PRESETS[config.preset].vision.image_size)
    clock = Clock(config.minutes)
    reconstruction = codec_training.run(codec_settings(config), data)
    share = 1 - len(DRAFTS) * config.draft_share - MEASURE_SHARE
    outcomes = {"main": main_training.run(part(MainTraining, config, minutes=clock.share(share)), data)}
    for index, kind in enumerate(sorted(DRAFTS)):
        # Of what is left, so that what came before cannot make the whole late.
        left = (len(DRAFTS) - index) * config.draft_share
        minutes = clock.share_of_rest(config.draft_share / (left + MEASURE_SHARE))
        changes: dict[str, Any] = {"kind": kind, "steps": config.draft_steps, "minutes": minutes}
        settings = part(DraftTraining, config, **changes)
        outcomes[f"draft-{kind}"] = draft_training.run(settings, data)
    metrics = measure(config, data, reconstruction, outcomes)
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_card(config, metrics)
    return metrics


def codec_settings(config: AllTraining) -> CodecTraining:
    """The settings of the codec, which trains for steps and rates of its own."""
    own = {"steps": CodecTraining.steps, "batch": CodecTraining.batch, "weight_decay": CodecTraining.weight_decay}
    own |= {"learning_rate": CodecTraining.learning_rate, "cuda_graph": False}
    return part(CodecTraining, config, **own)


class Clock:
    """The minutes of the whole command, if they are limited; reading the demonstrations comes before."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes, self.start = minutes, time.monotonic()

    def share(self, part: float) -> float | None:
        """A part of all minutes."""
        return None if self.minutes is None else part * self.minutes

    def share_of_rest(self, part: float) -> float | None:
        """A part of those that are left, at least some seconds."""
        if self.minutes is None:
            return None
        return max(part * (self.minutes - (time.monotonic() - self.start) / 60), LEAST)


def part(settings: type[C], config: AllTraining, **changes: Any) -> C:
    """The settings of one part: the shared fields, with changes."""
    names = {field.name for field in fields(settings)} & {field.name for field in fields(config)}
    return settings(**{name: getattr(config, name) for name in names} | changes)


def measure(
    config: AllTraining, data: DemoData, reconstruction: dict[str, Any], outcomes: dict[str, Outcome]
) -> dict[str, Any]:
    """Everything the model card tells, measured on the exported (bfloat16) weights and held-out frames."""
    policy = load_policy(config.out, draft=None)
    codec, main = policy.codec.to(data.device), policy.main.to(data.device)
    drafts = {kind: load_draft(str(config.out / f"draft-{kind}"), kind).to(data.device).eval() for kind in DRAFTS}
    with half_precision(data.device):
        report = evaluate_offline(main, drafts, codec, data, data.held_out_sample(config.final_samples, config.chunk))
    Console(stderr=True).print(offline_table(report))
    counts = {name: {"training": seen, "held_out": held} for name, (seen, held) in data.counts.items()}
    parts: dict[str, nn.Module] = {"main": main, **{f"draft-{kind}": draft for kind, draft in drafts.items()}}
    return {
        "data": {**describe_demos(config.demos), "demonstrations": counts, "frames": len(data.last)},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in parts.items()},
        "training": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "codec": reconstruction,
        "offline": report,
    }
