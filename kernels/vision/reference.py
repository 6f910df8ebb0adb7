"""The vision ops in plain PyTorch: they define the meaning. float32 inside, rounded once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def normalized_patches_reference(
    images: UInt8[Tensor, "n H W 3"],
    gain: Float[Tensor, "featurizers 3"],
    offset: Float[Tensor, "featurizers 3"],
    patch: int,
    columns: int,
    dtype: torch.dtype,
) -> Float[Tensor, "featurizers n patches columns"]:
    """See `rsd_fast.kernels.vision.op.normalized_patches`."""
    n, height, width, _ = images.shape
    pixels = images.view(n, height // patch, patch, width // patch, patch, 3).transpose(2, 3)
    rows = pixels.reshape(n, -1, patch * patch, 3).float()
    normalized = rows * gain[:, None, None, None] + offset[:, None, None, None]
    return F.pad(normalized.flatten(-2), (0, columns - 3 * patch * patch)).to(dtype)


def add_layer_norm_reference_(
    x: Float[Tensor, "*rows width"],
    branch: Float[Tensor, "*rows width"] | None,
    scale: Float[Tensor, " width"] | None,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
) -> Float[Tensor, "*rows width"]:
    """See `rsd_fast.kernels.vision.op.add_layer_norm_`."""
    if branch is not None:
        added = branch.float() if scale is None else branch.float() * scale.float()
        x.copy_(x.float() + added)
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def gelu_reference_(x: Float[Tensor, "*rows width"]) -> None:
    """See `rsd_fast.kernels.vision.op.gelu_`."""
    x.copy_(F.gelu(x.float()))
