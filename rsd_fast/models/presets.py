"""Named sizes."""

from __future__ import annotations

from dataclasses import replace

from rsd_fast.codec import CodecConfig
from rsd_fast.images import PUBLISHED
from rsd_fast.models.backbone import BackboneConfig
from rsd_fast.models.draft import DraftConfig
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.main import MainConfig
from rsd_fast.models.openvla import FEATURIZERS
from rsd_fast.models.prompt import PromptConfig
from rsd_fast.models.vision import VisionConfig

MAIN_PRESETS: dict[str, MainConfig] = {
    # Some 7 M parameters: trains in minutes on one GPU, decodes a chunk in tens of milliseconds on two CPU cores.
    "nano": MainConfig(),
    # Some 20 M parameters, for many tasks in one policy: half as deep again in vision, where dozens of objects must
    # be told apart at 128 px, and wider and deeper behind, where the instruction meets the picture. Still
    # 64 patches a camera, so that a step costs three times nano's, not ten.
    "small": MainConfig(
        vision=VisionConfig(width=256, depth=6, heads=4, mlp_width=1024, stem_widths=(32, 64, 128)),
        backbone=BackboneConfig(width=384, depth=8, heads=6, mlp_width=1024),
    ),
    # For tests: the same classes at toy size.
    "tiny": MainConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=1, heads=2, mlp_width=64, stem_widths=(8, 16)),
        backbone=BackboneConfig(width=32, depth=2, heads=2, mlp_width=64),
        vocab_size=300,
        max_tokens=12,
    ),
}


# OpenVLA-OFT's geometry: two cameras, proprio, attention in both directions. Their weights come with `from_openvla`;
# `rsd-fast train main` does not train them.
OPENVLA_PRESETS: dict[str, MainConfig] = {
    # 7.5 B parameters. A prefix has 2 x 256 patches, proprio, and 47 tokens of text.
    "openvla-7b": MainConfig(
        vision=replace(
            FEATURIZERS["vit_large_patch14_reg4_dinov2.lvd142m"], fused=FEATURIZERS["vit_so400m_patch14_siglip_224"]
        ),
        backbone=BackboneConfig(width=4096, depth=32, heads=32, mlp_width=11008, rms_eps=1e-6),
        vocab_size=32064,
        max_tokens=47,
        prompt=PromptConfig(),
        images=PUBLISHED,
    ),
    # For tests: the same format at toy size.
    "openvla-tiny": MainConfig(
        vision=replace(FEATURIZERS["vit_tiny_patch14_reg4_dinov2"], fused=FEATURIZERS["vit_tiny_patch14_siglip"]),
        backbone=BackboneConfig(width=64, depth=2, heads=2, mlp_width=96, rms_eps=1e-6),
        vocab_size=448,
        max_tokens=47,
        prompt=PromptConfig(end=3, pad=4),
        images=PUBLISHED,
    ),
}


def main_preset(name: str, codec: CodecConfig, steps: int, vocab_size: int | None = None) -> MainConfig:
    """A named main model for chunks of `steps` steps in a codec's codes.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    presets = MAIN_PRESETS | OPENVLA_PRESETS
    if name not in presets:
        raise ValueError(f"got preset {name!r}, expected one of {sorted(presets)}")
    preset = presets[name]
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
