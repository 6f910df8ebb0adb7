"""The vision tower: a compact ViT with timm's parameter names (Dosovitskiy et al., 2020).

One class covers our own small tower and the two featurisers of OpenVLA: DINOv2 with registers (Darcet et al., 2023),
which has a class token, register tokens and LayerScale, and SigLIP (Zhai et al., 2023), which has none of them.

Feature maps are those of the **second-to-last** block, without the final norm, patch tokens only, as OpenVLA reads
its featurisers. The last block, the final norm and SigLIP's attention pooling are therefore not built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rsd_fast.models.attention import for_short


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
        class_token: whether a class token runs along; its feature is not read.
        register_tokens: learned tokens that run along; their features are not read.
        layer_scale: whether each residual branch is scaled per channel (Touvron et al., 2021).
        mean: of the pixels in [0, 1], per channel, subtracted; empty for pixels in [-1, 1].
        std: of the pixels in [0, 1], per channel, divided by.
        fused: a second featuriser that sees the same images with its own `mean` and `std`; its features are
            concatenated to the first one's. It has as many patches.
    """

    image_size: int = 128
    patch_size: int = 16
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp_width: int = 768
    stem_widths: tuple[int, ...] = (24, 48, 96)
    class_token: bool = False
    register_tokens: int = 0
    layer_scale: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fused: VisionConfig | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where the sizes do not fit together."""
        for name in ("stem_widths", "mean", "std"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.fused, dict):
            object.__setattr__(self, "fused", VisionConfig(**self.fused))
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.stem_widths and 2 ** (len(self.stem_widths) + 1) != self.patch_size:
            raise ValueError(
                f"got {len(self.stem_widths)} stem widths for patch_size {self.patch_size}, "
                "expected one fewer than its logarithm to base 2"
            )
        if len(self.mean) not in (0, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"got mean {self.mean} and std {self.std}, expected one number a colour channel")
        if self.fused is not None:
            own, other = ((c.image_size, c.patches) for c in (self, self.fused))
            if own != other or self.fused.fused is not None:
                raise ValueError(f"got a fused featuriser {self.fused}, expected one of (image_size, patches) {own}")

    @property
    def patches(self) -> int:
        """Patch tokens an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def features(self) -> int:
        """Width of the tower's output: of all featurisers together."""
        return self.width + (self.fused.width if self.fused else 0)


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
        with for_short(x):
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


class LayerScale(nn.Module):
    """One factor a channel; OpenVLA's checkpoints call timm's `gamma` `scale_factor`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Token-wise."""
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """Residual attention, residual MLP."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Pixels -> patch features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        # Patches only: the class and register tokens have no position (timm's `no_embed_class`).
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.patches, config.width))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.register_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.register_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b patches width"]:
        """Normalised images; see `normalize_pixels`."""
        x = self.patch_embed(images) + self.pos_embed
        first = [getattr(self, name) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        if first:
            x = torch.cat([token.expand(len(x), -1, -1) for token in first] + [x], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, -self.config.patches :]


def normalize_pixels(
    images: UInt8[Tensor, "b H W 3"], config: VisionConfig, dtype: torch.dtype
) -> Float[Tensor, "b 3 H W"]:
    """Bytes -> `(x / 255 - mean) / std` per channel in float32, then `dtype`; channels first."""
    if not config.mean:
        return images.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
    # Channel by channel, with plain numbers: a tensor made here would be a copy to the device in every call.
    channels = images.float().unbind(-1)
    normalized = [(x / 255 - mean) / std for x, mean, std in zip(channels, config.mean, config.std, strict=True)]
    return torch.stack(normalized, 1).to(dtype)


class VisionTower(nn.Module):
    """Several cameras through one featuriser, or two side by side; patches are concatenated in camera order."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.featurizer = VisionTransformer(config)
        self.fused_featurizer = VisionTransformer(config.fused) if config.fused else None

    def forward(self, images: UInt8[Tensor, "B cameras H W 3"]) -> Float[Tensor, "B tokens features"]:
        """Raw pixels -> `cameras * patches` feature tokens."""
        batch, cameras = images.shape[:2]
        flat, dtype = images.flatten(0, 1), self.featurizer.pos_embed.dtype
        features = self.featurizer(normalize_pixels(flat, self.config, dtype))
        if self.fused_featurizer is not None:
            pixels = normalize_pixels(flat, self.fused_featurizer.config, dtype)
            features = torch.cat([features, self.fused_featurizer(pixels)], -1)
        return features.reshape(batch, cameras * self.config.patches, self.config.features)
