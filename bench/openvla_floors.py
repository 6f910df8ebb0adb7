"""The least a stage can take: its bytes at the copy bandwidth, its products at the GEMM rate, whichever is longer.

Both rates are measured in the same run. Bytes are weights, and keys and values, once; activations are left out, since
they fit into the L2 cache. A multiply-add is two operations. Norms and activations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rsd_fast.models.backbone import BackboneConfig
from rsd_fast.models.main import MainModel
from rsd_fast.models.vision import VisionConfig, VisionTower


@dataclass(frozen=True)
class Rates:
    """Of this machine.

    Attributes:
        copy: bytes a second, read and written, of a large device copy.
        gemm: operations a second of a large square product.
    """

    copy: float
    gemm: float


@dataclass(frozen=True)
class Cost:
    """What a stage has to do."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: float) -> Cost:
        return Cost(self.flops * count, self.bytes * count)

    def floor_ms(self, rates: Rates) -> float:
        return 1e3 * max(self.flops / rates.gemm, self.bytes / rates.copy)

    def bound(self, rates: Rates) -> str:
        return "flops" if self.flops / rates.gemm > self.bytes / rates.copy else "bytes"


def weight_bytes(*modules: nn.Module | None) -> int:
    return sum(p.numel() * p.element_size() for m in modules if m is not None for p in m.parameters())


def vit_flops(config: VisionConfig, images: int) -> float:
    """`depth` blocks of `2 (4 w^2 + 2 w mlp)` a token and `4 n w` for attention; the patch embedding."""
    tokens = config.patches + int(config.class_token) + config.register_tokens
    width = config.width
    token = 2 * (4 * width * width + 2 * width * config.mlp_width) + 4 * tokens * width
    embedding = 2 * 3 * config.patch_size**2 * width * config.patches
    return images * (config.depth * tokens * token + embedding)


def vision_cost(tower: VisionTower, images: int) -> Cost:
    config = tower.config
    flops = sum(vit_flops(part, images) for part in (config, config.fused) if part is not None)
    return Cost(flops, weight_bytes(tower))


def layer_flops(config: BackboneConfig, tokens: int, keys: int) -> float:
    """`2 (4 w^2 + 3 w mlp)` a token, and `4 w` for every key it attends to; all layers."""
    width = config.width
    return config.depth * tokens * (2 * (4 * width**2 + 3 * width * config.mlp_width) + 4 * keys * width)


def prefill_cost(main: MainModel, tokens: int) -> Cost:
    """Projector, then the backbone over `tokens` tokens."""
    patches = main.config.cameras * main.config.vision.patches
    projector = sum(2 * patches * m.weight.numel() for m in main.projector.modules() if isinstance(m, nn.Linear))
    flops = projector + layer_flops(main.config.backbone, tokens, tokens)
    return Cost(flops, weight_bytes(main.projector, main.backbone))


def pass_cost(main: MainModel, head: str, prefix: int, queries: int) -> Cost:
    """The backbone over the queries, whose keys are the prefix and themselves; the head's read-out."""
    backbone = main.config.backbone
    size = next(main.parameters()).element_size()
    cache = 2 * backbone.depth * prefix * backbone.width * size
    module = main.heads[head]
    readout = module.readout
    assert isinstance(readout, torch.Tensor)
    moved = weight_bytes(main.backbone) + cache + readout.numel() * size
    return Cost(layer_flops(backbone, queries, prefix + queries), moved)


def draft_cost(draft: nn.Module, prefix: int) -> Cost:
    """Weights once; the keys and values that a query draft makes of the prefix."""
    flops = 0.0
    for module in draft.modules():
        if isinstance(module, nn.MultiheadAttention) and module.kdim != module.embed_dim:
            flops += 2 * prefix * 2 * module.kdim * module.embed_dim
    return Cost(flops, weight_bytes(draft))
