"""The parts of a policy folder that a later training builds on."""

from __future__ import annotations

from pathlib import Path

from rsd_fast.codec import RFSQCodec
from rsd_fast.models.checkpoints import load_policy
from rsd_fast.models.main import MainModel


def load_codec(policy: Path) -> RFSQCodec:
    """The codec of a policy folder, in evaluation mode, frozen.

    Raises:
        FileNotFoundError: it is not there yet.
    """
    folder = policy / "codec"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no codec in {folder}; train it first: rsd-fast train codec --out {policy}")
    return RFSQCodec.from_pretrained(folder).eval().requires_grad_(False)


def load_main(policy: Path) -> tuple[RFSQCodec, MainModel]:
    """Codec and main model of a policy folder, in evaluation mode, frozen.

    Raises:
        FileNotFoundError: one is not there yet.
        ValueError: they do not fit together.
    """
    load_codec(policy)
    folder = policy / "main"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no main model in {folder}; train it first: rsd-fast train main --out {policy}")
    parts = load_policy(policy, draft=None)
    # In float32, whatever the file holds: autocast wants full-precision parameters.
    return parts.codec.requires_grad_(False), parts.main.float().requires_grad_(False)
