"""`rsd-fast train sweep`: what codecs of other layers, levels and redundancies lose on the demonstrations' actions.

Reads actions only, so demonstrations without pictures do, and takes seconds on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import h5py
import torch
from jaxtyping import Float
from torch import Tensor

from rsd_fast.codec import CodecConfig, RFSQCodec
from rsd_fast.train.codec import reconstruction
from rsd_fast.train.config import CodecSweep
from rsd_fast.train.markdown import table
from rsd_fast.train.read import find_files


def run(config: CodecSweep) -> list[dict[str, Any]]:
    """Fits a codec of every combination, prints its errors layer by layer and writes them to `<out>/sweep.json`.

    Returns:
        a row a codec: `levels`, `redundancy`, `normalization`; `choices`, the share of first codes that have a valid
        neighbour, where a draft that is off by one can still be right; and `mae 1`, `mae 2` ..., the mean absolute
        error of an action by layers kept. Physical units; what normalisation clips is an error too.

    Raises:
        FileNotFoundError: there are no demonstrations.
        ValueError: they hold no actions, or no combination is a codec.
    """
    actions = read_actions(config)
    rows = [measure(each, actions) for each in combinations(config, actions.shape[1])]
    if not rows:
        raise ValueError(
            f"got levels {config.levels} and redundancy {config.redundancy}, expected a redundancy from (V - 1) / V "
            "to V - 1"
        )
    print(table(rows))
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "sweep.json").write_text(json.dumps({"actions": len(actions), "rows": rows}, indent=2) + "\n")
    return rows


def read_actions(config: CodecSweep) -> Float[Tensor, "n A"]:
    """The commands of all demonstrations."""
    parts = []
    for path in find_files(config.demos):
        try:
            with h5py.File(path) as file:
                parts += [torch.from_numpy(demo["actions"][()]).float() for demo in file["data"].values()]
        except (OSError, KeyError) as error:
            raise ValueError(f"got {path}, which holds no actions ({error})") from error
    return torch.cat(parts)


def combinations(config: CodecSweep, action_dims: int) -> Iterator[CodecConfig]:
    """Those that are codecs: redundancy has a range that depends on the levels."""
    for normalization, levels, redundancy in product(config.normalization, config.levels, config.redundancy):
        if (levels - 1) / levels <= redundancy <= levels - 1:
            yield CodecConfig(config.layers, levels, action_dims, action_dims, redundancy, normalization)


@torch.no_grad()
def measure(config: CodecConfig, actions: Float[Tensor, "n A"]) -> dict[str, Any]:
    """A row; see `run`."""
    codec = RFSQCodec(config)
    moving = torch.ones(config.action_dims, dtype=torch.bool)
    moving[list(config.gripper_dims)] = False
    codec.normalizer.fit(actions, moving)
    latents = codec.actions_to_latents(actions[:, None])
    if config.normalization == "scale":
        codec.fit_scale(latents.flatten(0, 1))
    perturbed = codec.encode(latents, 1.0, torch.Generator().manual_seed(0))
    changed = perturbed.prefix[:, 0] != perturbed.targets[:, 0]
    errors = {f"mae {row['layers']}": row["mae"] for row in reconstruction(codec, actions)["layers"]}
    kept = {"levels": config.levels, "redundancy": config.redundancy, "normalization": config.normalization}
    return kept | {"choices": changed[..., moving].float().mean().item()} | errors
