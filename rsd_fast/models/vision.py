"""The vision tower: a compact ViT with timm's parameter names (Dosovitskiy et al., 2020).

Feature maps are those of the **second-to-last** block, without the final norm, patch tokens only, as OpenVLA reads
its featurisers; at small sizes that leaves no block unused, because the last block is simply not built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn


@dataclass(frozen=True)
class VisionConfig:
    """A ViT.

    Attributes:
        image_size: pixels a side.
        patch_size: pixels a patch side.
        width: feature width.
        depth: blocks that run.
        heads: attention heads.
        mlp_width: hidden width of the MLPs.
        stem_widths: channels of stride-2 3x3 convolutions that replace the one patchifying convolution; empty for the
            plain ViT. Early convolutions let a small tower trained from scratch localise (Xiao et al., 2021).
    """

    image_size: int = 128
    patch_size: int = 16
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp_width: int = 768
    stem_widths: tuple[int, ...] = (24, 48, 96)

    def __post_init__(self) -> None:
        """Raises ValueError where the sizes do not fit together."""
        object.__setattr__(self, "stem_widths", tuple(self.stem_widths))
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.stem_widths and 2 ** (len(self.stem_widths) + 1) != self.patch_size:
            raise ValueError(
                f"got {len(self.stem_widths)} stem widths for patch_size {self.patch_size}, "
                "expected one fewer than its logarithm to base 2"
            )

    @property
    def patches(self) -> int:
        """Patch tokens an image."""
        return (self.image_size // self.patch_size) ** 2


class PatchEmbed(nn.Module):
    """Image -> patch tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        channels = 3
        for width in config.stem_widths:
            stem += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            channels = width
        self.stem = nn.Sequential(*stem)
        patch = 2 if stem else config.patch_size
        self.proj = nn.Conv2d(channels, config.width, patch, stride=patch)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b patches width"]:
        """Row-major patches."""
        return self.proj(self.stem(images)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Full self-attention over the patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Scaled dot product, no mask."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Token-wise."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.mlp_width)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Residual attention, residual MLP."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Pixels -> patch features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.patches, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b patches width"]:
        """Images normalised to [-1, 1]."""
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class VisionTower(nn.Module):
    """Several cameras through one featuriser; their patches are concatenated in camera order."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.featurizer = VisionTransformer(config)

    def forward(self, images: UInt8[Tensor, "B cameras H W 3"]) -> Float[Tensor, "B tokens width"]:
        """Raw pixels -> `cameras * patches` feature tokens."""
        batch, cameras = images.shape[:2]
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).to(self.featurizer.pos_embed.dtype) / 127.5 - 1
        return self.featurizer(pixels).reshape(batch, cameras * self.config.patches, self.config.width)
