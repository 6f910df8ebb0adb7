"""Codecs written as text: "redundant:levels=7,redundancy=1.6", a preset and what differs from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rsd_fast.codec import PRESETS, CodecConfig, codec_preset

AUTOENCODER = PRESETS["original"]  # whose width and latents `autoencoder=on` takes
CHANGES: dict[str, Callable[[str], Any]] = {
    "layers": int,
    "levels": int,
    "redundancy": float,
    "normalization": str,
    "latent_dims": int,
    "autoencoder": {"on": True, "off": False}.__getitem__,
}
TRAINING: dict[str, Callable[[str], Any]] = {"perturb": float}


@dataclass(frozen=True)
class Variant:
    """A codec of a comparison.

    Attributes:
        text: as it was written.
        codec: its part that says what the codec is.
        training: changes of main's training.
    """

    text: str
    codec: str
    training: dict[str, Any]

    @property
    def name(self) -> str:
        """A folder's name: "redundant:levels=7" -> "redundant-levels-7"."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.text.strip())


def parse_variant(text: str) -> Variant:
    """`PRESET[:SETTING=VALUE,...]` -> Variant; besides the codec's settings, `perturb` of main's training.

    Raises:
        ValueError: it says something else; the message lists what is known.
    """
    preset, changes = _split(text, CHANGES | TRAINING)
    codec_words = [f"{name}={value}" for name, value in changes.items() if name in CHANGES]
    codec = ":".join([preset, ",".join(codec_words)]) if codec_words else preset
    codec_config(codec)
    training = {name: _value(text, name, value) for name, value in changes.items() if name in TRAINING}
    if not 0.0 <= training.get("perturb", 0.0) <= 1.0:
        raise ValueError(f"got perturb {training['perturb']} in {text!r}, expected a probability")
    return Variant(text, codec, training)


def codec_config(text: str, action_dims: int = 7) -> CodecConfig:
    """`PRESET[:SETTING=VALUE,...]` -> the codec's configuration for actions of so many dimensions.

    Raises:
        ValueError: it says something else, or no codec can be so; the message lists what is known.
    """
    preset, words = _split(text, CHANGES)
    changes = {name: _value(text, name, value) for name, value in words.items()}
    usual = codec_preset(preset)
    wanted = changes.pop("autoencoder", usual.autoencoder_width > 0)
    if not wanted:
        changes = {"autoencoder_width": 0, "latent_dims": action_dims} | changes
    elif not usual.autoencoder_width:
        changes = {"autoencoder_width": AUTOENCODER.autoencoder_width, "latent_dims": AUTOENCODER.latent_dims} | changes
    try:
        return codec_preset(preset, action_dims=action_dims, **changes)
    except ValueError as error:
        raise ValueError(f"{error} in codec {text!r}") from error


def _split(text: str, known: dict[str, Callable[[str], Any]]) -> tuple[str, dict[str, str]]:
    preset, colon, rest = text.strip().partition(":")
    if preset not in PRESETS:
        raise ValueError(f"got codec {text!r}, expected one of {sorted(PRESETS)}, alone or with :SETTING=VALUE,...")
    changes: dict[str, str] = {}
    for word in rest.split(",") if colon else ():
        name, equals, value = (piece.strip() for piece in word.partition("="))
        if not equals or name not in known or name in changes:
            raise ValueError(f"got {word!r} in codec {text!r}, expected SETTING=VALUE with {sorted(known)}, none twice")
        changes[name] = value
    return preset, changes


def _value(text: str, name: str, value: str) -> Any:
    expected = {"int": "a whole number", "float": "a number"}
    convert = (CHANGES | TRAINING)[name]
    try:
        return convert(value)
    except (ValueError, KeyError) as error:
        kind = expected.get(getattr(convert, "__name__", ""), "on or off")
        raise ValueError(f"got {name}={value} in codec {text!r}, expected {kind}") from error
