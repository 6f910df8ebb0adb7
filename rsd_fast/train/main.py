"""`rsd-fast train main`: the main model, on perturbed prefixes.

The hierarchical head learns every layer in one pass, with teacher forcing: it reads a *perturbed* prefix, in which some
codes are valid neighbours of the nearest ones, and predicts the nearest code given that prefix. So it refines any valid
coarse code, not only its own. The other heads, baselines of one pass, learn from the same batches on the same backbone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rsd_fast.codec import PerturbedCodes, RFSQCodec
from rsd_fast.models.checkpoints import save_half
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.main import MainModel
from rsd_fast.models.presets import MAIN_PRESETS, main_preset
from rsd_fast.models.tokenizer import InstructionTokenizer
from rsd_fast.train.augment import augment
from rsd_fast.train.config import AugmentOptions, MainTraining
from rsd_fast.train.dataset import DemoData, load_data, require_image_size
from rsd_fast.train.loop import Objective, Outcome, fit
from rsd_fast.train.offline import evaluate_offline
from rsd_fast.train.parts import load_codec
from rsd_fast.train.state import fingerprint


@dataclass
class MainBatch:
    """What main's loss reads; `actions` are normalised."""

    inputs: PolicyInputs
    perturbed: PerturbedCodes
    nearest: Int[Tensor, "B L T D"]
    actions: Float[Tensor, "B T A"]


class Sampler:
    """Draws augmented observations and their chunks."""

    def __init__(self, data: DemoData, main: MainModel, batch: int, options: AugmentOptions) -> None:
        assert main.tokenizer is not None
        self.data, self.batch, self.options = data, batch, options
        self.normalizer = main.proprio_normalizer
        self.chunk = main.config.head.steps
        self.tokens = data.tokenize(main.tokenizer)
        self.frames = data.frames(True, self.chunk)

    def draw(self, generator: torch.Generator) -> tuple[PolicyInputs, Float[Tensor, "B T A"]]:
        """A batch of the training split; actions in physical units."""
        rows = torch.randint(len(self.frames), (self.batch,), device=self.frames.device, generator=generator)
        frames = self.frames[rows]
        actions = self.data.chunks(frames, self.chunk)
        inputs = augment(self.data.inputs(frames, self.tokens), self.normalizer, self.options, generator)
        return inputs, actions


def run(config: MainTraining, data: DemoData | None = None) -> Outcome:
    """Trains the main model and writes `<out>/main` in bfloat16, with its tokenizer.

    Args:
        config: settings.
        data: the demonstrations, where they are loaded already.

    Raises:
        FileNotFoundError: there is no codec in `<out>`, or there are no demonstrations.
        ValueError: the demonstrations do not fit the model.
    """
    codec = load_codec(config.out)
    data = load_data(config) if data is None else data
    codec = codec.to(data.device)
    main = build_main(config, codec, data)
    settings = config.settings(frames=len(data.last), codec=fingerprint(config.out / "codec"))
    outcome = fit(objective(main, codec, data, config), config, config.work / "main", settings)
    save_half(main, config.out / "main")
    return outcome


def build_main(config: MainTraining, codec: RFSQCodec, data: DemoData) -> MainModel:
    """A fresh main model with its tokenizer and the training split's proprioception statistics."""
    preset = MAIN_PRESETS.get(config.preset)
    if preset is None:
        raise ValueError(f"got preset {config.preset!r}, expected one of {sorted(MAIN_PRESETS)}")
    require_image_size(data, preset.vision.image_size)
    tokenizer = InstructionTokenizer.train(data.instructions, preset.vocab_size, preset.max_tokens)
    torch.manual_seed(config.seed)
    sized = main_preset(config.preset, codec.config, config.chunk, tokenizer.vocab_size)
    main = MainModel(replace(sized, heads=config.heads))
    main.tokenizer = tokenizer
    main.proprio_normalizer.fit(data.proprio[data.in_training])
    return main.to(data.device)


def objective(
    main: MainModel, codec: RFSQCodec, data: DemoData, config: MainTraining
) -> Objective[MainModel, MainBatch]:
    """The loss of every head; the best weights are those with the smallest sequential action error."""
    sampler = Sampler(data, main, config.batch, config)
    held_out = data.held_out_sample(config.eval_samples, config.chunk)
    weights = loss_weights(config)

    def batch(generator: torch.Generator) -> MainBatch:
        inputs, actions = sampler.draw(generator)
        latents = codec.actions_to_latents(actions)
        perturbed = codec.encode(latents, config.perturb, generator, check_finite=False)
        nearest = codec.encode(latents, check_finite=False).targets
        return MainBatch(inputs, perturbed, nearest, codec.normalizer.normalize(actions))

    def loss(model: MainModel, batch: MainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        prefix = model.prefill(batch.inputs)
        prefix.riders = model.run_together(prefix, {head: codes_read(head, batch) for head in weights})
        parts = {head: head_loss(model, head, prefix, batch, config.label_smoothing) for head in weights}
        total = torch.stack([weight * parts[head] for head, weight in weights.items()]).sum()
        return total, parts

    def evaluate(model: MainModel) -> dict[str, Any]:
        decodings = ("sequential", *(name for name in ("parallel", "regression") if name in model.heads))
        report = evaluate_offline(model, {}, codec, data, held_out, decodings=decodings)
        errors = {f"action_mae_{row['decoding']}": row["mae"] for row in report["table"]}
        metrics = {"action_mae": errors.pop("action_mae_sequential"), **errors}
        metrics |= {f"accuracy_{layer}": value for layer, value in enumerate(report["main"]["accuracy"])}
        if "conditioned_queries" in model.heads:
            metrics["accuracy_conditioned"] = report["main"]["conditioned"]
        return metrics

    return Objective("main", main, batch, loss, evaluate, "action_mae")


def loss_weights(config: MainTraining) -> dict[str, float]:
    """By head, those that are not 0; the hierarchical head's is 1."""
    own = {"hierarchical": 1.0, "parallel": config.parallel_weight}
    weights: dict[str, float] = {head: own.get(head, config.baseline_weight) for head in config.heads}
    return {head: weight for head, weight in weights.items() if weight > 0}


def codes_read(head: str, batch: MainBatch) -> Int[Tensor, "B L T D"]:
    """What a head's queries are made of; some read nothing."""
    return batch.nearest if head == "parallel" else batch.perturbed.prefix


def head_loss(
    model: MainModel, head: str, prefix: Prefix, batch: MainBatch, label_smoothing: float
) -> Float[Tensor, ""]:
    """What a head learns: codes by cross-entropy, the regression by L1 to the normalised actions.

    The hierarchical head and the conditioned one read perturbed codes; their targets are the nearest codes given
    those. Of the conditioned head only the last layer is its own.
    """
    if head == "regression":
        return F.l1_loss(model.actions(prefix, head), batch.actions)
    logits = model.decode(prefix, codes_read(head, batch), head)
    targets = batch.nearest if head == "parallel" else batch.perturbed.targets
    if head == "conditioned_queries":
        logits, targets = logits[:, -1], targets[:, -1]
    return cross_entropy(logits, targets, label_smoothing)


def cross_entropy(
    logits: Float[Tensor, "*b V"], targets: Int[Tensor, "*b"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean over all codes, in float32."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.long().flatten(), label_smoothing=label_smoothing
    )
