"""`rsd-fast train draft`: a draft model on main's hidden states, with main frozen.

Its targets are the data and main's own sequential predictions: what counts in the end is whether main keeps a guess.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rich.console import Console
from torch import Tensor

from rsd_fast.codec import RFSQCodec
from rsd_fast.models.checkpoints import save_half
from rsd_fast.models.draft import DraftModel, RegressionDraft, make_draft
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.main import MainModel
from rsd_fast.models.presets import draft_preset
from rsd_fast.train.config import DraftTraining
from rsd_fast.train.dataset import DemoData, load_data, require_image_size
from rsd_fast.train.loop import Objective, Outcome, fit, half_precision
from rsd_fast.train.main import Sampler, cross_entropy
from rsd_fast.train.offline import (
    BATCH,
    alone_with,
    conditioned_with,
    evaluate_offline,
    offline_table,
    rsd_with,
)
from rsd_fast.train.parts import load_main
from rsd_fast.train.regions import compile_regions
from rsd_fast.train.state import fingerprint


@dataclass
class Consultation:
    """Main's view of a batch: what a draft reads, and what main itself decodes sequentially."""

    hidden: Float[Tensor, "B P width"]
    mask: Bool[Tensor, "B P"]
    codes: Int[Tensor, "B L T D"]
    probs: Float[Tensor, "B L T D V"]
    latents: Float[Tensor, "B T D"]


@dataclass
class DraftBatch:
    """What a draft's loss reads: main's view, and what the data says."""

    main: Consultation
    latents: Float[Tensor, "B T D"]
    codes: Int[Tensor, "B L T D"]


def run(config: DraftTraining, data: DemoData | None = None) -> Outcome:
    """Trains one draft model, writes `<out>/draft-<kind>` in bfloat16 and shows the offline table.

    Args:
        config: settings.
        data: the demonstrations, where they are loaded already.

    Raises:
        FileNotFoundError: codec, main model or demonstrations are missing.
        ValueError: the demonstrations do not fit the main model.
    """
    codec, main = load_main(config.out)
    data = load_data(config) if data is None else data
    require_image_size(data, main.config.vision.image_size)
    codec, main = codec.to(data.device), main.to(data.device)
    torch.manual_seed(config.seed)
    draft = make_draft(draft_preset(config.kind, main.config)).to(data.device)
    settings = config.settings(frames=len(data.last), main=fingerprint(config.out / "main"))
    name = f"draft-{config.kind}"
    outcome = fit(objective(draft, main, codec, data, config), config, config.work / name, settings)
    save_half(draft, config.out / name)
    frames = data.held_out_sample(config.eval_samples, main.config.head.steps)
    with half_precision(data.device):
        report = evaluate_offline(main, {config.kind: draft}, codec, data, frames)
    Console(stderr=True).print(offline_table(report))
    return outcome


def objective(
    draft: DraftModel, main: MainModel, codec: RFSQCodec, data: DemoData, config: DraftTraining
) -> Objective[DraftModel, DraftBatch]:
    """Regression: L1 to latents; coarse: cross-entropy to the data's codes and to main's distributions.

    Main's distributions, and not its choices alone: they say where it hesitates, and between what. The smallest
    held-out loss is the best.
    """
    sampler = Sampler(data, main, config.batch, config)
    held_out = data.held_out_sample(config.eval_samples, sampler.chunk)
    asked = main
    if config.compile:
        asked = copy.deepcopy(main)  # evaluations ask in batches of other sizes
        compile_regions(asked)

    def as_batch(model: MainModel, inputs: PolicyInputs, actions: Float[Tensor, "B T A"]) -> DraftBatch:
        latents = codec.actions_to_latents(actions)
        return DraftBatch(consult(model, codec, inputs), latents, codec.encode(latents, check_finite=False).targets)

    def batch(generator: torch.Generator) -> DraftBatch:
        return as_batch(asked, *sampler.draw(generator))

    def loss(model: DraftModel, batch: DraftBatch) -> tuple[Tensor, dict[str, Tensor]]:
        guess = model(batch.main.hidden, batch.main.mask).float()
        if isinstance(model, RegressionDraft):
            to_data, to_main = F.l1_loss(guess, batch.latents), F.l1_loss(guess, batch.main.latents)
        else:
            layers = guess.shape[1]
            to_data = cross_entropy(guess, batch.codes[:, :layers])
            to_main = soft_cross_entropy(guess, batch.main.probs[:, :layers])
        return torch.lerp(to_data, to_main, config.main_weight), {"to_data": to_data, "to_main": to_main}

    def evaluate(model: DraftModel) -> dict[str, Any]:
        total = 0.0
        for part in held_out.split(BATCH):
            wanted = data.chunks(part, sampler.chunk)
            seen = as_batch(main, data.inputs(part, sampler.tokens), wanted)
            total += len(part) * loss(model, seen)[0].item()
        report = evaluate_offline(main, {config.kind: model}, codec, data, held_out, decodings=("sequential",))
        rows = {row["decoding"]: row for row in report["table"]}
        speculative, alone = rows[rsd_with(config.kind)], rows[alone_with(config.kind)]
        conditioned = rows.get(conditioned_with(config.kind))
        by_layer = {
            f"{measure}_{layer}": value
            for measure, values in report["drafts"][config.kind].items()
            for layer, value in enumerate(values)
        }
        return {
            "loss": total / len(held_out),
            "action_mae_sequential": rows["sequential"]["mae"],
            "action_mae_rsd": speculative["mae"],
            **({"action_mae_conditioned": conditioned["mae"]} if conditioned else {}),
            "action_mae_alone": alone["mae"],
            "passes": speculative["passes"],
            **by_layer,
        }

    return Objective(f"draft-{config.kind}", draft, batch, loss, evaluate, "loss")


def consult(main: MainModel, codec: RFSQCodec, inputs: PolicyInputs) -> Consultation:
    """Prefill and greedy sequential decoding, with the expected last digit, and no look at the device in between."""
    prefix = main.prefill(inputs)
    head = main.config.head
    shape = (len(inputs), head.layers, head.steps, head.latent_dims)
    codes = torch.full(shape, head.levels // 2, dtype=torch.int32, device=prefix.hidden.device)
    probs = []
    for layer in range(head.layers):
        logits = main.decode(prefix, codes)[:, layer].float()
        codes[:, layer] = logits.argmax(-1).to(torch.int32)
        probs.append(F.softmax(logits, -1))
    # From the last layer's likeliest level to the mean over its levels.
    shift = probs[-1] - F.one_hot(codes[:, -1].long(), head.levels)
    latents = codec.decode(codes) + (shift * codec.codebook[-1]).sum(-1)
    return Consultation(prefix.hidden, prefix.mask, codes, torch.stack(probs, 1), latents)


def soft_cross_entropy(logits: Float[Tensor, "*b V"], probs: Float[Tensor, "*b V"]) -> Float[Tensor, ""]:
    """Mean over all codes, in float32, against distributions."""
    return -(probs * F.log_softmax(logits.float(), -1)).sum(-1).mean()
