"""Policies small enough for tests: the package's own classes at toy size, with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rsd_fast.codec import CodecConfig, RFSQCodec
from rsd_fast.models.checkpoints import PolicyParts
from rsd_fast.models.draft import make_draft
from rsd_fast.models.heads_baseline import BASELINE_HEADS
from rsd_fast.models.main import MainModel
from rsd_fast.models.presets import draft_preset, main_preset
from rsd_fast.models.tokenizer import InstructionTokenizer

STEPS = 4
IMAGE = 32
INSTRUCTIONS = ("lift the red cube", "stack the cubes", "put the can away")


def tiny_codec(config: CodecConfig | None = None) -> RFSQCodec:
    """With statistics of its own: actions have units."""
    torch.manual_seed(0)
    config = config or CodecConfig()
    codec = RFSQCodec(config)
    reach = torch.linspace(0.05, 0.5, config.action_dims)
    codec.normalizer.set_statistics(-0.5 * reach, reach, torch.arange(config.action_dims) < 6)
    if config.normalization == "scale":
        codec.fit_scale(torch.ones(1, config.latent_dims))
    return codec.eval()


def tiny_policy(draft: str | None = "regression", codec: CodecConfig | None = None, seed: int = 0) -> PolicyParts:
    """The `tiny` preset."""
    made = tiny_codec(codec)
    torch.manual_seed(seed)
    config = main_preset("tiny", made.config, STEPS)
    main = MainModel(config).eval()
    main.tokenizer = InstructionTokenizer.train(INSTRUCTIONS, config.vocab_size, config.max_tokens)
    main.proprio_normalizer.set_statistics(-torch.ones(8), torch.ones(8))
    return PolicyParts(made, main, make_draft(draft_preset(draft, config)).eval() if draft else None)


def four_heads(parts: PolicyParts, seed: int = 1) -> PolicyParts:
    """The same policy with the heads of `heads_baseline` too; what was there keeps its weights."""
    torch.manual_seed(seed)
    main = MainModel(replace(parts.main.config, heads=("hierarchical", "parallel", *BASELINE_HEADS))).eval()
    main.load_state_dict(parts.main.state_dict(), strict=False)
    main.tokenizer = parts.main.tokenizer
    return replace(parts, main=main)


def observation(seed: int = 0, size: int = IMAGE) -> dict[str, Any]:
    """Noise with the shape of an observation."""
    rng = np.random.default_rng(seed)
    return {
        "full_image": rng.integers(0, 256, (size, size, 3), np.uint8),
        "wrist_image": rng.integers(0, 256, (size, size, 3), np.uint8),
        "state": rng.uniform(-1, 1, 8).astype(np.float32),
    }
