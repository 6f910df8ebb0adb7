"""`rsd-fast train main`: the main model, on perturbed prefixes.

The hierarchical head learns every layer in one pass, with teacher forcing: it reads a *perturbed* prefix, in which some
codes are valid neighbours of the nearest ones, and predicts the nearest code given that prefix. So it refines any valid
coarse code, not only its own. The parallel head, the baseline, learns from the same batches on the same backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rsd_fast.codec import PerturbedCodes, RFSQCodec
from rsd_fast.models.checkpoints import save_half
from rsd_fast.models.inputs import PolicyInputs
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
    """What main's loss reads."""

    inputs: PolicyInputs
    perturbed: PerturbedCodes
    nearest: Int[Tensor, "B L T D"]


class Sampler:
    """Draws augmented observations and the latents of their chunks."""

    def __init__(self, data: DemoData, codec: RFSQCodec, main: MainModel, batch: int, options: AugmentOptions) -> None:
        assert main.tokenizer is not None
        self.data, self.codec, self.batch, self.options = data, codec, batch, options
        self.normalizer = main.proprio_normalizer
        self.chunk = main.config.head.steps
        self.tokens = data.tokenize(main.tokenizer)
        self.frames = data.frames(True, self.chunk)

    def draw(self, generator: torch.Generator) -> tuple[PolicyInputs, Float[Tensor, "B T D"]]:
        """A batch of the training split."""
        rows = torch.randint(len(self.frames), (self.batch,), device=self.frames.device, generator=generator)
        frames = self.frames[rows]
        actions = self.data.chunks(frames, self.chunk, self.codec.config.gripper_dims)
        inputs = augment(self.data.inputs(frames, self.tokens), self.normalizer, self.options, generator)
        return inputs, self.codec.actions_to_latents(actions)


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
    main = MainModel(main_preset(config.preset, codec.config, config.chunk, tokenizer.vocab_size))
    main.tokenizer = tokenizer
    main.proprio_normalizer.fit(data.proprio[data.in_training])
    return main.to(data.device)


def objective(
    main: MainModel, codec: RFSQCodec, data: DemoData, config: MainTraining
) -> Objective[MainModel, MainBatch]:
    """Cross-entropy of both heads; the best weights are those with the smallest sequential action error."""
    sampler = Sampler(data, codec, main, config.batch, config)
    held_out = data.held_out_sample(config.eval_samples, config.chunk)

    def batch(generator: torch.Generator) -> MainBatch:
        inputs, latents = sampler.draw(generator)
        perturbed = codec.encode(latents, config.perturb, generator, check_finite=False)
        return MainBatch(inputs, perturbed, codec.encode(latents, check_finite=False).targets)

    def loss(model: MainModel, batch: MainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        prefix = model.prefill(batch.inputs)
        logits = model.decode(prefix, batch.perturbed.prefix)
        hierarchical = cross_entropy(logits, batch.perturbed.targets, config.label_smoothing)
        if not config.parallel_weight:
            return hierarchical, {"hierarchical": hierarchical}
        logits = model.decode(prefix, batch.nearest, head="parallel")
        parallel = cross_entropy(logits, batch.nearest, config.label_smoothing)
        total = hierarchical + config.parallel_weight * parallel
        return total, {"hierarchical": hierarchical, "parallel": parallel}

    def evaluate(model: MainModel) -> dict[str, Any]:
        report = evaluate_offline(model, {}, codec, data, held_out, decodings=("sequential", "parallel"))
        errors = {row["decoding"]: row["mae"] for row in report["table"]}
        accuracy = {f"accuracy_{layer}": value for layer, value in enumerate(report["main"]["accuracy"])}
        return {"action_mae": errors["sequential"], "action_mae_parallel": errors["parallel"], **accuracy}

    return Objective("main", main, batch, loss, evaluate, "action_mae")


def cross_entropy(
    logits: Float[Tensor, "*b V"], targets: Int[Tensor, "*b"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean over all codes, in float32."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.long().flatten(), label_smoothing=label_smoothing
    )
