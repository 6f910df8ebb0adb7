"""The public calls: checks, then the backend that the registry picks. Inference only; no gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..registry import pick

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def normalized_patches(
    images: UInt8[Tensor, "n H W 3"],
    gain: Float[Tensor, "featurizers 3"],
    offset: Float[Tensor, "featurizers 3"],
    patch: int,
    columns: int,
    dtype: torch.dtype,
    *,
    backend: str = "auto",
) -> Float[Tensor, "featurizers n patches columns"]:
    """Patches as rows of a matrix, normalised for one or more featurisers: `gain * pixel + offset` per channel.

    A convolution whose stride is its kernel is then one matrix product. Columns are ordered row of the patch, column
    of the patch, channel, as the pixels lie; those beyond `3 * patch**2` are zeros, so that rows can be aligned.

    Args:
        images: contiguous, sides multiples of `patch`.
        gain: float32, `1 / (255 std)` for pixels normalised as `(x / 255 - mean) / std`.
        offset: float32, `-mean / std`.
        patch: pixels a patch side.
        columns: of the result, at least `3 * patch**2`.
        dtype: of the result.
        backend: `auto`, or one of the registry's.

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: a wrong dtype.
    """
    _check_dtype("images", images.dtype, (torch.uint8,))
    _check_dtype("the result", dtype, DTYPES)
    if images.ndim != 4 or images.shape[3] != 3 or not images.is_contiguous():
        raise ValueError(f"got images {tuple(images.shape)}, expected contiguous [n, H, W, 3]")
    if images.shape[1] % patch or images.shape[2] % patch or columns < 3 * patch * patch:
        raise ValueError(f"got images {tuple(images.shape)} and {columns} columns, expected patches of {patch} pixels")
    for name, table in (("gain", gain), ("offset", offset)):
        _check_dtype(name, table.dtype, (torch.float32,))
        if table.shape != (len(gain), 3) or not table.is_contiguous():
            raise ValueError(f"{name}: got shape {tuple(table.shape)}, expected contiguous ({len(gain)}, 3)")
    return pick("normalized_patches", images.device, backend).run(images, gain, offset, patch, columns, dtype)


def add_layer_norm_(
    x: Float[Tensor, "*rows width"],
    branch: Float[Tensor, "*rows width"] | None,
    scale: Float[Tensor, " width"] | None,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float,
    *,
    backend: str = "auto",
) -> Float[Tensor, "*rows width"]:
    """`x += scale * branch`, then the LayerNorm of what x now holds.

    The sum is taken in float32 and rounded once to x's dtype; statistics are those of the rounded sum.

    Args:
        x: the residual stream, contiguous; updated in place.
        branch: contiguous, of x's shape and dtype. None: x stays as it is.
        scale: LayerScale, one factor a channel; None: 1.
        weight: of the norm.
        bias: of the norm.
        eps: added to the variance.
        backend: `auto`, or one of the registry's.

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: a wrong dtype.
    """
    _check_dtype("x", x.dtype, DTYPES)
    _check_contiguous("x", x)
    if branch is not None:
        _check_contiguous("branch", branch)
        if branch.shape != x.shape or branch.dtype != x.dtype:
            raise ValueError(f"got branch {tuple(branch.shape)} {branch.dtype}, expected {tuple(x.shape)} {x.dtype}")
    for name, vector in (("scale", scale), ("weight", weight), ("bias", bias)):
        if vector is not None and (vector.shape != x.shape[-1:] or not vector.is_contiguous()):
            raise ValueError(f"{name}: got shape {tuple(vector.shape)}, expected contiguous ({x.shape[-1]},)")
    return pick("add_layer_norm_", x.device, backend).run(x, branch, scale, weight, bias, eps)


def gelu_(x: Float[Tensor, "*rows width"], *, backend: str = "auto") -> None:
    """The exact GELU (erf), in place; x is contiguous.

    Raises:
        ValueError: x is not contiguous.
        TypeError: a wrong dtype.
    """
    _check_dtype("x", x.dtype, DTYPES)
    _check_contiguous("x", x)
    pick("gelu_", x.device, backend).run(x)


def _check_dtype(name: str, got: torch.dtype, expected: tuple[torch.dtype, ...]) -> None:
    if got not in expected:
        raise TypeError(f"{name}: got dtype {got}, expected one of {list(expected)}")


def _check_contiguous(name: str, x: Tensor) -> None:
    if x.ndim == 0 or not x.is_contiguous():
        raise ValueError(f"{name}: got shape {tuple(x.shape)} with strides {x.stride()}, expected contiguous rows")
