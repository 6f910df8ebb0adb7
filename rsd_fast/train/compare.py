"""`rsd-fast train compare`: a small policy a codec, all on the same demonstrations, and one table of their errors.

What a codec loses by itself (`train sweep`) does not tell how well a model predicts its codes, nor how often a guess
stands. This trains codec, main model and one draft of each variant, and measures on held-out chunks.
"""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rsd_fast.acceptance import Acceptance, exact
from rsd_fast.codec import RFSQCodec
from rsd_fast.decoding import ChunkDecoder
from rsd_fast.models.checkpoints import load_policy
from rsd_fast.models.draft import DRAFTS, load_draft
from rsd_fast.models.main import MainModel
from rsd_fast.models.presets import MAIN_PRESETS
from rsd_fast.train import codec as codec_training
from rsd_fast.train import draft as draft_training
from rsd_fast.train import main as main_training
from rsd_fast.train.all import codec_settings, part
from rsd_fast.train.config import AllTraining, CodecComparison, DraftTraining, MainTraining
from rsd_fast.train.dataset import DemoData, load_data, require_image_size
from rsd_fast.train.loop import half_precision
from rsd_fast.train.markdown import table
from rsd_fast.train.named import named_training
from rsd_fast.train.offline import alone_with, chunks_of, evaluate_offline, rsd_with
from rsd_fast.train.variants import Variant, parse_variant

# What the original engine does with the layers it drafts; the last digit as everywhere, so that only the rule differs.
ORIGINAL_RULE = Acceptance(exact(), "layer", theta=0.7, keep="draft")
HOW_TO_READ = (
    "Mean absolute error of the action on held-out chunks, physical units, all after the same minutes of training: a "
    "good codec has a small error with RSD at few passes of its layers, and its sequential error by layers kept says "
    "how many layers pay. Accuracy and agreement compare only between codecs of the same levels; differences of a few "
    "per cent are within the noise of a seed."
)


def run(config: CodecComparison, data: DemoData | None = None) -> list[dict[str, Any]]:
    """Trains and measures every variant; complete parts in `<out>/<variant>-training` are not trained again.

    Args:
        config: settings.
        data: the demonstrations, where they are loaded already.

    Returns:
        a row a variant, which also go to `<out>/compare.json` (everything) and `<out>/compare.md` (the table), after
        each variant.

    Raises:
        ValueError: a variant is no codec, or two have one name; before anything is trained.
        RuntimeError: variants failed; the message names them, the rows of the others are written.
    """
    variants = [parse_variant(text) for text in config.variants]
    settings = [variant_settings(config, variant) for variant in variants]
    if len({each.out for each in settings}) < len(settings):
        raise ValueError(f"got variants {list(config.variants)}, expected none twice")
    data = load_data(settings[0]) if data is None else data
    if settings[0].preset in MAIN_PRESETS:
        require_image_size(data, MAIN_PRESETS[settings[0].preset].vision.image_size)
    config.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    for variant, own in zip(variants, settings, strict=True):
        try:
            rows.append({"variant": variant.text, "policy": str(own.out)} | train_variant(own, config.draft, data))
        except Exception as error:  # named at the end; the other variants go on
            traceback.print_exc()
            failed[variant.text] = error
        write(config, rows, {name: f"{type(error).__name__}: {error}" for name, error in failed.items()})
        gc.collect()  # captured graphs and their memory lie in cycles
        if data.device.type == "cuda":
            torch.cuda.empty_cache()
    print(table([flat(row) for row in rows]))
    if failed:
        causes = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise RuntimeError(
            f"{len(failed)} of {len(variants)} variants failed ({causes}); the others are in {config.out}"
        )
    return rows


def variant_settings(config: CodecComparison, variant: Variant) -> AllTraining:
    """What `train all` would be told for a variant."""
    named = named_training(config.config)
    return replace(
        named,
        demos=config.demos,
        out=config.out / variant.name,
        codec=variant.codec,
        minutes=config.minutes,
        device=config.device,
        compile=config.compile,
        cuda_graph=named.cuda_graph if config.cuda_graph is None else config.cuda_graph,
        **variant.training,
    )


def train_variant(config: AllTraining, kind: str, data: DemoData) -> dict[str, Any]:
    """Codec, main and a draft of one variant, trained and measured.

    Returns:
        `codec` (the report of `reconstruction`), `training` (steps, minutes and the best held-out metrics of each part)
        and what `measure` returns.
    """
    assert config.minutes is not None
    reconstruction = codec_training.run(codec_settings(config), data)
    share = len(DRAFTS) * config.draft_share  # one draft has the time of all
    minutes = {"main": (1 - share) * config.minutes, "draft": share * config.minutes}
    outcomes = {"main": main_training.run(part(MainTraining, config, minutes=minutes["main"]), data)}
    changes: dict[str, Any] = {"kind": kind, "steps": config.draft_steps, "minutes": minutes["draft"], "compile": False}
    outcomes["draft"] = draft_training.run(part(DraftTraining, config, **changes), data)
    training = {name: asdict(outcome) for name, outcome in outcomes.items()}
    return {"perturb": config.perturb, "codec": reconstruction, "training": training} | measure(config, kind, data)


def measure(config: AllTraining, kind: str, data: DemoData) -> dict[str, Any]:
    """The exported (bfloat16) weights on held-out chunks.

    Returns:
        `draft`: its kind; `offline`: the report of `evaluate_offline` with the engine's own rule; `original_rule`: the
        row of RSD and the draft's agreement by layer under `ORIGINAL_RULE`; `by_depth`: MAE of sequential decoding by
        layers kept, 1 to L, the last kept layer with its expected digit.
    """
    policy = load_policy(config.out, draft=None)
    codec, main = policy.codec.to(data.device), policy.main.to(data.device)
    drafts = {kind: load_draft(str(config.out / f"draft-{kind}"), kind).to(data.device).eval()}
    frames = data.held_out_sample(config.final_samples, config.chunk)
    with half_precision(data.device):
        report = evaluate_offline(main, drafts, codec, data, frames)
        original = evaluate_offline(main, drafts, codec, data, frames, decodings=(), acceptance=ORIGINAL_RULE)
        by_depth = sequential_by_depth(main, codec, data, frames)
    under_original = row_of(original, rsd_with(kind)) | {"agreed": original["drafts"][kind]["agreed"]}
    return {"draft": kind, "offline": report, "original_rule": under_original, "by_depth": by_depth}


@torch.no_grad()
def sequential_by_depth(main: MainModel, codec: RFSQCodec, data: DemoData, frames: Int[Tensor, " n"]) -> list[float]:
    """MAE of the action, physical units, when sequential decoding stops after 1, 2, ... L layers."""
    decoders = [
        ChunkDecoder(codec, Acceptance(), "sequential", steps=main.config.head.steps, stop=stop)
        for stop in range(1, codec.config.layers + 1)
    ]
    totals = torch.zeros(len(decoders), dtype=torch.float64, device=data.device)
    for inputs, wanted in chunks_of(main, data, frames):
        prefix = main.prefill(inputs)
        for index, decoder in enumerate(decoders):
            actions, _ = decoder.run(partial(main.decode, prefix), len(wanted))
            totals[index] += len(wanted) * (actions - wanted).abs().double().mean()
    return (totals / len(frames)).tolist()


def row_of(report: Mapping[str, Any], decoding: str) -> dict[str, Any]:
    """A decoding's row of an offline report; empty where the model has no head for it."""
    return next((dict(row) for row in report["table"] if row["decoding"] == decoding), {})


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's line of the table; what is by layer is one cell, coarse to fine."""
    offline, kind = row["offline"], row["draft"]
    rsd, training = row_of(offline, rsd_with(kind)), row["training"]
    return {
        "variant": f"`{row['variant']}`",
        "L x V, rho": "{layers} x {levels}, {redundancy:g}".format(**row["codec"]["codec"]),
        "codec alone": row["codec"]["layers"][-1]["mae"],
        "sequential": row_of(offline, "sequential")["mae"],
        "RSD": rsd["mae"],
        "RSD passes": f"{rsd['passes']:.2f}",
        "original rule": row["original_rule"]["mae"],
        "its passes": f"{row['original_rule']['passes']:.2f}",
        "parallel": row_of(offline, "parallel").get("mae", ""),
        "draft alone": row_of(offline, alone_with(kind))["mae"],
        "sequential by layers kept": _cells(row["by_depth"], 4),
        "accuracy by layer": _cells(offline["main"]["accuracy"], 2),
        "draft agreed by layer": _cells(offline["drafts"][kind]["agreed"], 2),
        "steps, main + draft": f"{training['main']['steps']} + {training['draft']['steps']}",
        "minutes": f"{training['main']['minutes'] + training['draft']['minutes']:.2f}",
    }


def _cells(values: list[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def write(config: CodecComparison, rows: list[dict[str, Any]], failed: Mapping[str, str]) -> None:
    """`compare.json` and `compare.md`, of the variants so far."""
    (config.out / "compare.json").write_text(json.dumps({"rows": rows, "failed": failed}, indent=2) + "\n")
    title = f"# Codecs compared, {config.minutes:g} minutes of training each"
    text = [title, HOW_TO_READ, table([flat(row) for row in rows]) if rows else "No variant is complete."]
    text += [f"Failed: `{name}` ({cause})" for name, cause in failed.items()]
    (config.out / "compare.md").write_text("\n\n".join(text) + "\n")
