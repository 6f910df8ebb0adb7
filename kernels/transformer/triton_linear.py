"""Matrix products for few rows: every weight is read once, as fast as memory gives it.

At 8 to 128 rows a product is bound by its weights. A program takes `BLOCK_N` outputs (with SwiGLU, as many gates and
the ups of the same columns) and a share of K; the rows are few and come from the L2 cache. Where there are fewer
columns than multiprocessors, K is split: every part writes float32 sums of its own, which the kernel that follows adds
up in a fixed order (`rms_norm` takes them as `delta`). There are no atomics: the same bits in every run.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .plans import Tile
from .triton_launch import early, fetch_ahead


def linear_triton(
    x: Float[Tensor, "n K"], weight: Float[Tensor, "N K"], tile: Tile, ahead: int | None = None
) -> Float[Tensor, "*S n N"]:
    """`x @ weight.T` in `x.dtype`; with a split of more than one, its parts, float32 `[split, n, N]`."""
    return _launch(x, weight, tile, len(weight), False, ahead)


def swiglu_linear_triton(
    x: Float[Tensor, "n K"], gate_up: Float[Tensor, "two_mlp K"], tile: Tile, ahead: int | None = None
) -> Float[Tensor, "n mlp"]:
    """See `swiglu_linear_reference`; gates and ups meet in float32 and are written once."""
    if tile.split != 1:
        raise ValueError(f"got split {tile.split}, expected 1: a gate is not the sum of its parts' gates")
    return _launch(x, gate_up, tile, len(gate_up) // 2, True, ahead)


def _launch(x: Tensor, weight: Tensor, tile: Tile, columns: int, swiglu: bool, ahead: int | None) -> Tensor:
    rows, inner = x.shape
    shape = (rows, columns) if tile.split == 1 else (tile.split, rows, columns)
    out = torch.empty(shape, dtype=x.dtype if tile.split == 1 else torch.float32, device=x.device)
    grid = (triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n), tile.split)
    fetched = ahead_bytes(ahead or 0, columns * (2 if swiglu else 1), inner, tile)
    fixed = constants(rows, columns, inner, tile, swiglu)
    linear_kernel[grid](x, weight, out, rows, x.stride(0), fetched, **fixed, **early(ahead))
    return out


def ahead_bytes(ahead: int, rows: int, inner: int, tile: Tile) -> int:
    """Of what every program reads of every row of weights, the bytes to fetch first: `ahead` in all, in whole lines."""
    share = inner // tile.block_k // tile.split * tile.block_k * 2
    return min(ahead // (rows * tile.split) // 128 * 128, share)


def constants(rows: int, columns: int, inner: int, tile: Tile, swiglu: bool) -> dict[str, int | bool]:
    """What the kernel is compiled for."""
    return {
        "N": columns,
        "K": inner,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SPLIT": tile.split,
        "SWIGLU": swiglu,
        "SWAP": tile.swap,
        "EVEN_M": rows % tile.block_m == 0,
        "EVEN_N": columns % tile.block_n == 0,
        "EVEN_K": inner % tile.block_k == 0,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit(do_not_specialize=["rows", "ahead"])
def linear_kernel(
    x,
    weight,
    out,
    rows,
    stride_x,
    ahead,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    SWIGLU: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """One tile of one part.

    With `SWAP` the weights are the left factor: the tensor cores take 64 of them at a time, and as few rows as there
    are.
    """
    tiles_m = tl.cdiv(rows, BLOCK_M)
    i_m = tl.program_id(0) % tiles_m  # neighbours share their weights
    i_n = tl.program_id(0) // tiles_m
    part = tl.program_id(1)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    CHUNKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    first = part * CHUNKS // SPLIT
    last = (part + 1) * CHUNKS // SPLIT
    in_m, in_n = o_m < rows, o_n < N
    p_x = x + o_m.to(tl.int64)[:, None] * stride_x + o_k[None]
    p_w = weight + o_n.to(tl.int64)[:, None] * K + o_k[None]
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        if ahead > 0:
            p_first = weight + tl.minimum(o_n, N - 1).to(tl.int64) * K + first * BLOCK_K
            fetch_ahead(p_first, ahead)
            if SWIGLU:
                fetch_ahead(p_first + N * K, ahead)
        tl.extra.cuda.gdc_wait()
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        other = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for chunk in range(first, last):
        k = chunk * BLOCK_K
        if EVEN_K:
            rows_in, columns_in = in_m[:, None], in_n[:, None]
        else:
            rows_in, columns_in = in_m[:, None] & (k + o_k < K)[None], in_n[:, None] & (k + o_k < K)[None]
        b_x = tl.load(p_x + k) if EVEN_M and EVEN_K else tl.load(p_x + k, mask=rows_in, other=0.0)
        b_w = tl.load(p_w + k) if EVEN_N and EVEN_K else tl.load(p_w + k, mask=columns_in, other=0.0)
        if SWAP:
            acc = tl.dot(b_w, tl.trans(b_x), acc, input_precision="ieee")
        else:
            acc = tl.dot(b_x, tl.trans(b_w), acc, input_precision="ieee")
        if SWIGLU:
            p_u = p_w + N * K + k
            b_u = tl.load(p_u) if EVEN_N and EVEN_K else tl.load(p_u, mask=columns_in, other=0.0)
            if SWAP:
                other = tl.dot(b_u, tl.trans(b_x), other, input_precision="ieee")
            else:
                other = tl.dot(b_x, tl.trans(b_u), other, input_precision="ieee")
    if SWIGLU:
        acc = acc / (1 + tl.exp(-acc)) * other
    p_out = out + part.to(tl.int64) * rows * N
    if SWAP:
        acc = tl.trans(acc)
    tl.store(
        p_out + o_m.to(tl.int64)[:, None] * N + o_n[None],
        acc.to(out.dtype.element_ty),
        mask=in_m[:, None] & in_n[None],
    )
