"""The vision ops in Triton, one kernel each. Everything is upcast to fp32 right after its load."""

# mypy: disallow-incomplete-defs=False
# (what a Triton program computes with has no Python type)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GELU_BLOCK = 1024  # elements a program: 8 a thread, 16 bytes in bf16
GELU_WARPS = 4


@triton.jit
def patches_kernel(
    images, gain, offset, out, rows,
    GRID_Y: tl.constexpr, GRID_X: tl.constexpr, PATCH: tl.constexpr, COLUMNS: tl.constexpr,
    FEATURIZERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program a patch: its bytes are read once and written once a featuriser."""
    row = tl.program_id(0)
    image, y, x = row // (GRID_Y * GRID_X), row // GRID_X % GRID_Y, row % GRID_X
    k = tl.arange(0, BLOCK)
    inside = k < 3 * PATCH * PATCH
    line = (image * GRID_Y * PATCH + y * PATCH + k // (3 * PATCH)) * GRID_X * PATCH + x * PATCH
    pixel = tl.load(images + line * 3 + k % (3 * PATCH), mask=inside, other=0).to(tl.float32)
    channel = k % 3
    for f in tl.static_range(FEATURIZERS):
        factor = tl.load(gain + 3 * f + channel, mask=inside, other=0.0)
        shift = tl.load(offset + 3 * f + channel, mask=inside, other=0.0)
        value = pixel * factor + shift
        at = out + (f * rows + row).to(tl.int64) * COLUMNS + k
        tl.store(at, value.to(out.dtype.element_ty), mask=k < COLUMNS)


@triton.jit
def add_layer_norm_kernel(
    x, branch, scale, weight, bias, out, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program a row, which stays in registers between the sum and the norm."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < WIDTH
    # All loads before the first reduction: one latency.
    total = tl.load(x + row * WIDTH + i, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    if branch is not None:
        added = tl.load(branch + row * WIDTH + i, mask=inside, other=0.0).to(tl.float32)
        if scale is not None:
            added *= tl.load(scale + i, mask=inside, other=0.0).to(tl.float32)
        rounded = (total + added).to(x.dtype.element_ty)
        tl.store(x + row * WIDTH + i, rounded, mask=inside)
        total = rounded.to(tl.float32)
    mean = tl.sum(total, 0) / WIDTH
    centered = tl.where(inside, total - mean, 0.0)
    variance = tl.sum(centered * centered, 0) / WIDTH
    y = centered * (1.0 / tl.sqrt_rn(variance + eps)) * w + b
    tl.store(out + row * WIDTH + i, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gelu_kernel(x, count, BLOCK: tl.constexpr):
    """A program a block of elements."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count, other=0.0).to(tl.float32)
    value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    tl.store(x + i, value.to(x.dtype.element_ty), mask=i < count)


def normalized_patches_triton(
    images: Tensor, gain: Tensor, offset: Tensor, patch: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """See `rsd_fast.kernels.vision.op.normalized_patches`."""
    n, height, width, _ = images.shape
    grid_y, grid_x = height // patch, width // patch
    rows = n * grid_y * grid_x
    out = torch.empty(len(gain), n, grid_y * grid_x, columns, dtype=dtype, device=images.device)
    if rows:
        patches_kernel[(rows,)](
            images,
            gain,
            offset,
            out,
            rows,
            grid_y,
            grid_x,
            patch,
            columns,
            len(gain),
            triton.next_power_of_2(columns),
            num_warps=4,
        )
    return out


def norm_warps(width: int) -> int:
    """At least 8 elements a thread, at most 8 warps."""
    return min(max(triton.next_power_of_2(width) // 256, 1), 8)


def add_layer_norm_triton_(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """See `rsd_fast.kernels.vision.op.add_layer_norm_`."""
    width = x.shape[-1]
    out = torch.empty_like(x)
    if x.numel():
        add_layer_norm_kernel[(x.numel() // width,)](
            x,
            branch,
            scale,
            weight,
            bias,
            out,
            eps,
            width,
            triton.next_power_of_2(width),
            num_warps=norm_warps(width),
        )
    return out


def gelu_triton_(x: Tensor) -> None:
    """See `rsd_fast.kernels.vision.op.gelu_`."""
    if x.numel():
        gelu_kernel[(triton.cdiv(x.numel(), GELU_BLOCK),)](x, x.numel(), GELU_BLOCK, num_warps=GELU_WARPS)
