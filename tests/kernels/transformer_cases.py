"""Inputs for the ops of a Llama layer, at odd shapes, and how near a fast path has to come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_fast.kernels.transformer import Tile

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}

TILES = (
    Tile(16, 32, 32),
    Tile(32, 16, 64, split=3, swap=True),
    Tile(64, 64, 32, split=2),
    Tile(16, 64, 16, split=5, stages=2),
)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=generator)).to(dtype)


def assert_near(got: Tensor, wanted: Tensor, dtype: torch.dtype, terms: int = 1) -> None:
    """Within one rounding of the output, plus what a float32 sum of `terms` in another order differs by.

    `wanted` is the reference in float64 or float32, of inputs that were rounded to `dtype`.
    """
    assert got.shape == wanted.shape and torch.isfinite(got).all()
    wanted = wanted.double()
    scale = wanted.abs().clamp_min(wanted.square().mean().sqrt().item())
    worst = ((got.double() - wanted).abs() / scale).max().item() if got.numel() else 0.0
    assert worst <= 1.01 * ROUNDING[dtype] + 3e-7 * terms**0.5, worst


@dataclass
class AttentionCase:
    """Arguments of `attention`, and the cosine tables' positions."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor
    key_mask: Tensor | None
    new_mask: Tensor | None
    causal: bool

    def arguments(self) -> tuple:
        return self.qkv, self.cos, self.sin, self.keys, self.values, self.key_mask, self.new_mask, self.causal

    def to(self, device: str) -> AttentionCase:
        return AttentionCase(*(x.to(device) if isinstance(x, Tensor) else x for x in self.arguments()))

    def float(self) -> AttentionCase:
        wide = (x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in self.arguments())
        return AttentionCase(*wide)


def attention_case(
    seed: int,
    *,
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 32,
    tokens: int = 5,
    cached: int = 19,
    masked: bool = True,
    new: bool = True,
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AttentionCase:
    """With a mask the second sample has padding in the middle and at the end."""
    generator = torch.Generator().manual_seed(seed)
    width = heads * head_dim
    angles = torch.randn(tokens, head_dim // 2, generator=generator) * 3
    key_mask = None
    if masked:
        key_mask = torch.ones(batch, cached, dtype=torch.bool)
        key_mask[-1, cached // 3 : cached // 2] = False
        key_mask[-1, cached - cached // 4 :] = False
    block = torch.arange(tokens) // max(tokens // 3, 1)
    return AttentionCase(
        normal(generator, batch, tokens, 3 * width, dtype=dtype),
        angles.cos(),
        angles.sin(),
        normal(generator, batch, heads, cached, head_dim, dtype=dtype),
        normal(generator, batch, heads, cached, head_dim, dtype=dtype),
        key_mask,
        block[:, None] >= block[None] if new else None,
        causal,
    )


def code_case(
    sizes: tuple[int, int, int, int, int, int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Arguments of `code_queries`, of B, L, T, D, V, width."""
    batch, layers, steps, dims, levels, width = sizes
    codes = torch.randint(0, levels, (batch, layers, steps, dims), generator=generator, dtype=torch.int32)
    table = normal(generator, max((layers - 1) * dims, 1) * levels, width, dtype=dtype)
    return codes, table, normal(generator, layers, steps, width, dtype=dtype), levels
