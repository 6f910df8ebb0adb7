"""Named sizes."""

from __future__ import annotations

from dataclasses import replace

from rsd_fast.codec import CodecConfig
from rsd_fast.models.backbone import BackboneConfig
from rsd_fast.models.draft import DraftConfig
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.main import MainConfig
from rsd_fast.models.vision import VisionConfig

MAIN_PRESETS: dict[str, MainConfig] = {
    # Some 7 M parameters: trains in minutes on one GPU, decodes a chunk in tens of milliseconds on two CPU cores.
    "nano": MainConfig(),
    # For tests: the same classes at toy size.
    "tiny": MainConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=1, heads=2, mlp_width=64, stem_widths=(8, 16)),
        backbone=BackboneConfig(width=32, depth=2, heads=2, mlp_width=64),
        vocab_size=300,
        max_tokens=12,
    ),
}


def main_preset(name: str, codec: CodecConfig, steps: int, vocab_size: int | None = None) -> MainConfig:
    """A named main model for chunks of `steps` steps in a codec's codes.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in MAIN_PRESETS:
        raise ValueError(f"got preset {name!r}, expected one of {sorted(MAIN_PRESETS)}")
    preset = MAIN_PRESETS[name]
    return replace(
        preset, head=HeadConfig.of_codec(codec, steps), vocab_size=vocab_size or preset.vocab_size
    )


def draft_preset(kind: str, main: MainConfig) -> DraftConfig:
    """The draft of a kind for a main model: every layer but the last, a trunk of three quarters of main's width."""
    width = 3 * main.backbone.width // 4
    heads = max(width // 64, 1)
    layers = max(main.head.layers - 1, 1) if main.head.layers <= 4 else 3  # the original: 3 of 8
    return DraftConfig(
        kind=kind,
        prefix_width=main.backbone.width,
        width=width // heads * heads,
        heads=heads,
        layers=layers,
        head=main.head,
    )
