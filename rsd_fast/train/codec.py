"""`rsd-fast train codec`: statistics, scales, and where the preset has one, the action autoencoder."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rsd_fast.codec import RFSQCodec
from rsd_fast.train.config import CodecTraining
from rsd_fast.train.dataset import DemoData, load_data
from rsd_fast.train.loop import Objective, fit
from rsd_fast.train.variants import codec_config


def run(config: CodecTraining, data: DemoData | None = None) -> dict[str, Any]:
    """Fits the codec to the training split and writes `<out>/codec`.

    Args:
        config: settings.
        data: the demonstrations, where they are loaded already.

    Returns:
        the report of `reconstruction`, which also goes to `<out>-training/codec/report.json`.
    """
    codec_config(config.codec)  # a wrong text, before the demonstrations are read
    data = load_data(config) if data is None else data
    torch.manual_seed(config.seed)
    codec = RFSQCodec(codec_config(config.codec, data.actions.shape[1])).to(data.device)
    trained, held_out = data.actions[data.in_training], data.actions[~data.in_training]
    moving = torch.ones(codec.config.action_dims, dtype=torch.bool)
    moving[list(codec.config.gripper_dims)] = False
    codec.normalizer.fit(trained, moving, config.quantile)
    folder = config.work / "codec"
    folder.mkdir(parents=True, exist_ok=True)
    if codec.encoder is not None:
        fit(_autoencoding(codec, trained, held_out, config), config, folder, config.settings(frames=len(data.last)))
    if codec.config.normalization == "scale":
        with torch.no_grad():
            codec.fit_scale(codec.actions_to_latents(trained))
    codec.save_pretrained(config.out / "codec")
    report = reconstruction(codec, held_out)
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    Console(stderr=True).print(_table(report))
    return report


def _autoencoding(
    codec: RFSQCodec, trained: Float[Tensor, "n A"], held_out: Float[Tensor, "m A"], config: CodecTraining
) -> Objective[RFSQCodec, Float[Tensor, "b 1 A"]]:
    def batch(generator: torch.Generator) -> Float[Tensor, "b 1 A"]:
        rows = torch.randint(len(trained), (config.batch,), device=trained.device, generator=generator)
        return codec.normalizer.normalize(trained[rows])[:, None]

    def loss(model: RFSQCodec, wanted: Float[Tensor, "b 1 A"]) -> tuple[Tensor, dict[str, Tensor]]:
        assert model.encoder is not None and model.decoder is not None
        latents = model.encoder(wanted)
        # The decoder sees quantised latents; gradients pass as if they were not (straight through).
        rounded = model.decode(model.encode(latents.detach(), check_finite=False).targets)
        decoded = model.decoder(latents + (rounded - latents).detach())
        l1, l2 = F.l1_loss(decoded, wanted), F.mse_loss(decoded, wanted)
        return l1 + l2, {"l1": l1, "l2": l2}

    def evaluate(model: RFSQCodec) -> dict[str, Any]:
        return {"action_mae": reconstruction(model, held_out)["layers"][-1]["mae"]}

    return Objective("codec", codec, batch, loss, evaluate, "action_mae")


@torch.no_grad()
def reconstruction(codec: RFSQCodec, actions: Float[Tensor, "n A"]) -> dict[str, Any]:
    """What the codec loses on some actions, after every layer.

    Returns:
        the codec's configuration, and a row a layer: mean and largest error in physical units (what normalisation clips
        is an error too), the largest error of a latent, and the codec's own bound on it.
    """
    wanted = actions[:, None]
    latents = codec.actions_to_latents(wanted)
    codes = codec.encode(latents).targets
    rows = []
    for stop in range(1, codec.config.layers + 1):
        error = (codec.decode_actions(codes, stop) - wanted).abs()
        latent_error = (codec.decode(codes, stop) - latents).abs()
        rows.append(
            {
                "layers": stop,
                "mae": error.mean().item(),
                "max": error.max().item(),
                "latent_max": latent_error.max().item(),
                "latent_bound": codec.remaining_bound(stop).max().item(),
            }
        )
    return {"codec": asdict(codec.config), "actions": len(actions), "layers": rows}


def _table(report: dict[str, Any]) -> Table:
    table = Table(title=f"codec: error on {report['actions']} held-out actions")
    for heading in ("layers", "MAE", "largest", "largest, latents", "bound, latents"):
        table.add_column(heading, justify="right")
    for row in report["layers"]:
        table.add_row(str(row["layers"]), *(f"{row[key]:.4f}" for key in ("mae", "max", "latent_max", "latent_bound")))
    return table
