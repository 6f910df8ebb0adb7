"""A main model without networks: exact integer arithmetic, so that any difference in bits is a difference in logic."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rsd_fast.codec import CodecConfig, RFSQCodec


class HashMain:
    """Logits of layer l are a pseudo-random function of the sample's seed and of all codes below l.

    Harder than any network: one changed code below changes everything above.
    """

    def __init__(self, codec: CodecConfig, steps: int, seeds: Int[Tensor, "B"], peak: float = 3.0) -> None:
        shape = (codec.layers, steps, codec.latent_dims)
        generator = torch.Generator().manual_seed(7)
        self.weights = torch.randint(1, 1 << 20, shape, generator=generator)
        self.noise = peak * torch.randn(997, *shape, codec.levels, generator=generator)
        self.seeds = seeds
        self.passes = 0

    def __call__(self, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B L T D V"]:
        self.passes += 1
        mixed = (codes.long() + 1) * self.weights
        below = mixed.sum((2, 3)).cumsum(1) - mixed.sum((2, 3))  # exclusive over layers
        index = (below * 31 + self.seeds[:, None] * 7919) % 997  # [B, L]
        layers = torch.arange(codes.shape[1])
        return self.noise[index, layers]


def toy_codec(layers: int = 3, levels: int = 5, dims: int = 7) -> RFSQCodec:
    """A redundant codec without statistics."""
    return RFSQCodec(CodecConfig(layers, levels, dims, dims, 2.0 if levels > 2 else 1.0, "none"))
