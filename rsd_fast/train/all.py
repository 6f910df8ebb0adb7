"""`rsd-fast train all`: codec, main model, both drafts, the offline evaluation and the model card."""

from __future__ import annotations

import json
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

C = TypeVar("C", bound=OptimizerOptions)


def run(config: AllTraining, data: DemoData | None = None) -> dict[str, Any]:
    """Trains a whole policy folder; parts that are complete in `<out>-training` are not trained again.

    Args:
        config: settings.
        data: the demonstrations, where they are loaded already.

    Returns:
        the metrics, which also go to `<out>/metrics.json`.
    """
    data = load_data(config) if data is None else data
    if config.preset in MAIN_PRESETS:  # before any training; an unknown name is main's to refuse
        require_image_size(data, MAIN_PRESETS[config.preset].vision.image_size)
    own = {"steps": CodecTraining.steps, "batch": CodecTraining.batch, "weight_decay": CodecTraining.weight_decay}
    own["learning_rate"] = CodecTraining.learning_rate
    reconstruction = codec_training.run(part(CodecTraining, config, preset=config.codec_preset, **own), data)
    minutes = config.minutes
    main_minutes = None if minutes is None else minutes * (1 - len(DRAFTS) * config.draft_share)
    draft_minutes = None if minutes is None else minutes * config.draft_share
    outcomes = {"main": main_training.run(part(MainTraining, config, minutes=main_minutes), data)}
    for kind in sorted(DRAFTS):
        settings = part(DraftTraining, config, kind=kind, steps=config.draft_steps, minutes=draft_minutes)
        outcomes[f"draft-{kind}"] = draft_training.run(settings, data)
    metrics = measure(config, data, reconstruction, outcomes)
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_card(config, metrics)
    return metrics


def part(settings: type[C], config: AllTraining, **changes: Any) -> C:
    """The settings of one part: the shared fields, with changes."""
    names = {field.name for field in fields(settings)} & {field.name for field in fields(config)}
    return settings(**{name: getattr(config, name) for name in names} | changes)


def measure(
    config: AllTraining, data: DemoData, reconstruction: dict[str, Any], outcomes: dict[str, Outcome]
) -> dict[str, Any]:
    """Everything the model card tells, measured on the exported (bfloat16) weights and all held-out frames."""
    policy = load_policy(config.out, draft=None)
    codec, main = policy.codec.to(data.device), policy.main.to(data.device)
    drafts = {kind: load_draft(str(config.out / f"draft-{kind}"), kind).to(data.device).eval() for kind in DRAFTS}
    with half_precision(data.device):
        report = evaluate_offline(main, drafts, codec, data, data.frames(False, config.chunk))
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
