"""The vision tower on a GPU: the same parameters, fewer and larger kernels, two featurisers side by side.

What differs from `rsd_fast.models.vision`, which stays the reference:

- Pixels become the rows of one matrix product: normalisation and patches are one kernel for both featurisers.
- A residual sum, LayerScale and the next LayerNorm are one kernel; GELU works in place.
- The two featurisers run on two streams. Their matrix products have some 500 rows, and none of them fills the GPU.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rsd_fast.kernels.vision import add_layer_norm_, gelu_, normalized_patches
from rsd_fast.models.vision import Block, LayerScale, VisionConfig, VisionTower, VisionTransformer

COLUMN_MULTIPLE = 64  # columns of the patch matrix: rows start on 128 bytes, and tiles have no ragged edge


class FusedTransformer:
    """One featuriser. It reads the parameters of the `VisionTransformer` it is made from, which must not move.

    Only the patch embedding is laid out anew: as a matrix over pixels in the order in which they lie in memory.
    """

    def __init__(self, reference: VisionTransformer) -> None:
        config = reference.config
        if config.stem_widths:
            raise ValueError(f"got stem_widths {config.stem_widths}, expected a plain ViT: one patchifying convolution")
        self.config = config
        self.reference = reference
        self.blocks = cast(list[Block], list(reference.blocks))
        projection = reference.patch_embed.proj
        weight = projection.weight.detach().permute(0, 2, 3, 1).flatten(1)  # [width, row, column, channel]
        self.patch_weight = F.pad(weight, (0, patch_columns(config) - weight.shape[1]))
        first = [getattr(reference, name)[0] for name in ("cls_token", "reg_token") if hasattr(reference, name)]
        self.extra = sum(len(token) for token in first)
        # What the tokens start from: class and register tokens as they are, patches their position.
        self.start = torch.cat([*first, reference.pos_embed[0]]).detach()

    def embed(self, patches: Float[Tensor, "b patches columns"]) -> Float[Tensor, "b n width"]:
        """Normalised patches -> tokens."""
        x = self.start.repeat(len(patches), 1, 1)  # written to: a view would change it
        x[:, self.extra :] += F.linear(patches, self.patch_weight, self.reference.patch_embed.proj.bias)
        return x

    def attention(self, block: Block, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """The attention branch, without its norm and LayerScale."""
        batch, tokens, width = x.shape
        heads = block.attn.heads
        query, key, value = block.attn.qkv(x).view(batch, tokens, 3, heads, width // heads).unbind(2)
        attended = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value)))
        return block.attn.proj(attended.transpose(1, 2).reshape(batch, tokens, width))

    def mlp(self, block: Block, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        """The perceptron branch, without its norm and LayerScale."""
        hidden = block.mlp.fc1(x)
        gelu_(hidden)
        return block.mlp.fc2(hidden)

    def run(self, patches: Float[Tensor, "b patches columns"], out: Float[Tensor, "b patches width"]) -> None:
        """Normalised patches -> features, written to `out`."""
        x = self.embed(patches)
        branch: Tensor | None = None
        scale: Tensor | None = None
        for block in self.blocks:
            branch = self.attention(block, _add_norm(x, branch, scale, block.norm1))
            scale = _scale(block.ls1)
            branch = self.mlp(block, _add_norm(x, branch, scale, block.norm2))
            scale = _scale(block.ls2)
        assert branch is not None  # a ViT has blocks
        x, branch = x[:, self.extra :], branch[:, self.extra :]
        if scale is None:
            torch.add(x, branch, out=out)
        else:
            torch.addcmul(x, branch, scale, out=out)


class FusedVisionTower(VisionTower):
    """`VisionTower` on fused kernels; it takes over the modules of the one it is made from.

    Parameters keep their names and are not copied. With gradients it runs as a plain `VisionTower`.

    Args:
        tower: without a convolutional stem, on its device and in its dtype.
        streams: two featurisers run side by side on two CUDA streams; off, one after the other. Same bits.

    Raises:
        ValueError: a tower with a stem.
    """

    def __init__(self, tower: VisionTower, streams: bool = True) -> None:
        nn.Module.__init__(self)
        self.config, self.streams = tower.config, streams
        self.featurizer, self.fused_featurizer = tower.featurizer, tower.fused_featurizer
        self.train(tower.training)
        self.pack()

    def pack(self) -> None:
        """Lays out what is laid out anew, from the weights as they are now."""
        weight = self.featurizer.pos_embed
        parts = [part for part in (self.featurizer, self.fused_featurizer) if part is not None]
        self.fused = [FusedTransformer(part) for part in parts]
        tables = [normalization_table(part.config) for part in parts]
        self.gain, self.offset = (torch.tensor(rows, device=weight.device) for rows in zip(*tables, strict=True))
        aside = self.streams and weight.device.type == "cuda" and len(parts) > 1
        self._side = torch.cuda.Stream(weight.device) if aside else None

    def _apply(self, fn: Any, recurse: bool = True) -> FusedVisionTower:
        super()._apply(fn, recurse)
        self.pack()
        return self

    def forward(self, images: UInt8[Tensor, "B cameras H W 3"]) -> Float[Tensor, "B tokens features"]:
        """Raw pixels -> `cameras * patches` feature tokens."""
        if torch.is_grad_enabled():
            return super().forward(images)
        batch, cameras = images.shape[:2]
        config, dtype = self.config, self.featurizer.pos_embed.dtype
        rows = normalized_patches(
            images.flatten(0, 1), self.gain, self.offset, config.patch_size, patch_columns(config), dtype
        )
        features = torch.empty(batch * cameras, config.patches, config.features, dtype=dtype, device=rows.device)
        outs = features.split([part.config.width for part in self.fused], -1)
        if self._side is None:
            for part, patches, out in zip(self.fused, rows, outs, strict=True):
                part.run(patches, out)
        else:
            # Fork and join by events, which a capture turns into edges of its graph. What both streams touch is
            # allocated before the fork and freed after the join, so that no stream gets the other's memory.
            here = torch.cuda.current_stream()
            self._side.wait_stream(here)
            with torch.cuda.stream(self._side):
                self.fused[1].run(rows[1], outs[1])
            self.fused[0].run(rows[0], outs[0])
            here.wait_stream(self._side)
        return features.view(batch, cameras * config.patches, config.features)


def fuse_vision(tower: VisionTower) -> VisionTower:
    """The fused tower where it serves (an NVIDIA GPU, half precision, no stem), or the same one."""
    if isinstance(tower, FusedVisionTower):  # its weights may have got another place or dtype
        tower.pack()
        return tower
    weight = tower.featurizer.pos_embed
    if weight.device.type != "cuda" or weight.dtype not in (torch.bfloat16, torch.float16):
        return tower
    return FusedVisionTower(tower) if can_fuse(tower.config) else tower


def can_fuse(config: VisionConfig) -> bool:
    """Whether `FusedVisionTower` runs such a tower: plain ViTs of one patch size, without a convolutional stem."""
    parts = [config, *([config.fused] if config.fused else [])]
    return all(not part.stem_widths and part.patch_size == config.patch_size for part in parts)


def patch_columns(config: VisionConfig) -> int:
    """Columns of the patch matrix: the numbers of a patch, rounded up."""
    return -(-3 * config.patch_size**2 // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def normalization_table(config: VisionConfig) -> tuple[list[float], list[float]]:
    """Per channel gain and offset of a byte; without statistics pixels go to [-1, 1]."""
    means, stds = (config.mean, config.std) if config.mean else ((0.5,) * 3, (0.5,) * 3)
    return [1 / (255 * std) for std in stds], [-mean / std for mean, std in zip(means, stds, strict=True)]


def _add_norm(x: Tensor, branch: Tensor | None, scale: Tensor | None, norm: nn.LayerNorm) -> Tensor:
    return add_layer_norm_(x, branch, scale, norm.weight, norm.bias, norm.eps)


def _scale(module: nn.Module) -> Tensor | None:
    return module.scale_factor if isinstance(module, LayerScale) else None
