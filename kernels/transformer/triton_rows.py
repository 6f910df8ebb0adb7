"""Token-wise kernels: RMSNorm with what is to be added first, SwiGLU, rotary embedding into the cache, code queries."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from .triton_launch import early, started

ROPE_TOKENS = 8  # of a program
CODE_NUMBERS = 8192  # of embeddings that a program has in registers


def rms_norm_triton(
    x: Float[Tensor, "*n width"],
    weight: Float[Tensor, " width"],
    eps: float,
    delta: Float[Tensor, "*S_n width"] | None = None,
    ahead: int | None = None,
) -> tuple[Float[Tensor, "*n width"], Float[Tensor, "*n width"]]:
    """See `rms_norm_reference`; contiguous tensors, one row a program."""
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    parts = 0 if delta is None else delta.numel() // max(x.numel(), 1)
    summed, normed = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(width)
    rms_norm_kernel[(rows,)](
        x,
        delta,
        weight,
        summed,
        normed,
        rows,
        eps,
        width,
        parts,
        block,
        **early(ahead),
        num_warps=min(max(block // 512, 1), 8),
    )
    return summed, normed


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x,
    delta,
    weight,
    summed,
    normed,
    rows,
    eps,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """One row. The parts of `delta` are added in their order: the same bits in every run."""
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * WIDTH
    o = tl.arange(0, BLOCK)
    inside = o < WIDTH
    w = tl.load(weight + o, mask=inside, other=0.0).to(tl.float32)
    started(EARLY)
    value = tl.load(x + row + o, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        added = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(PARTS):
            added += tl.load(delta + part * rows.to(tl.int64) * WIDTH + row + o, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + added).to(dtype)
        tl.store(summed + row + o, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    tl.store(normed + row + o, (value * scale * w).to(dtype), mask=inside)


def swiglu_triton(gate_up: Float[Tensor, "*n two_mlp"], ahead: int | None = None) -> Float[Tensor, "*n mlp"]:
    """See `swiglu_reference`; a contiguous tensor."""
    mlp = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], mlp)
    block = min(1024, triton.next_power_of_2(mlp))
    grid = (out.numel() // mlp, triton.cdiv(mlp, block))
    swiglu_kernel[grid](gate_up, out, mlp, block, **early(ahead), num_warps=4)
    return out


@triton.jit
def swiglu_kernel(gate_up, out, MLP: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr = False):
    """A part of one row."""
    started(EARLY)
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < MLP
    gate = tl.load(gate_up + row * 2 * MLP + o, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * MLP + MLP + o, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * MLP + o, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def rotary_cache_triton_(
    qkv: Float[Tensor, "B n three_width"],
    cos: Float[Tensor, "n half"],
    sin: Float[Tensor, "n half"],
    keys: Float[Tensor, "B H n D"],
    values: Float[Tensor, "B H n D"],
    ahead: int | None = None,
) -> None:
    """See `rotary_cache_reference_`; a cached token is contiguous, and so are rows of `qkv` and the tables."""
    batch, heads, tokens, head_dim = keys.shape
    rotary_cache_kernel[(triton.cdiv(tokens, ROPE_TOKENS), heads, batch)](
        qkv,
        cos,
        sin,
        keys,
        values,
        tokens,
        qkv.stride(0),
        qkv.stride(1),
        keys.stride(0),
        keys.stride(1),
        HEADS=heads,
        HALF=head_dim // 2,
        TOKENS=ROPE_TOKENS,
        **early(ahead),
        num_warps=4,
    )


@triton.jit
def rotary_cache_kernel(
    qkv,
    cos,
    sin,
    keys,
    values,
    tokens,
    stride_b,
    stride_n,
    stride_kb,
    stride_kh,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Some tokens of one head; keys and values have the same strides."""
    started(EARLY)
    D: tl.constexpr = 2 * HALF
    o_n = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1)
    i_b = tl.program_id(2).to(tl.int64)
    o_h = tl.arange(0, HALF)
    inside = (o_n < tokens)[:, None]
    p_key = qkv + i_b * stride_b + o_n[:, None] * stride_n + (HEADS + head) * D + o_h[None]
    p_value = p_key + HEADS * D
    low = tl.load(p_key, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(p_key + HALF, mask=inside, other=0.0).to(tl.float32)
    value_low = tl.load(p_value, mask=inside, other=0.0)
    value_high = tl.load(p_value + HALF, mask=inside, other=0.0)
    c = tl.load(cos + o_n[:, None] * HALF + o_h[None], mask=inside, other=0.0)
    s = tl.load(sin + o_n[:, None] * HALF + o_h[None], mask=inside, other=0.0)
    to = i_b * stride_kb + head.to(tl.int64) * stride_kh + o_n[:, None] * D + o_h[None]
    dtype: tl.constexpr = keys.dtype.element_ty
    tl.store(keys + to, (low * c - high * s).to(dtype), mask=inside)
    tl.store(keys + to + HALF, (high * c + low * s).to(dtype), mask=inside)
    tl.store(values + to, value_low, mask=inside)
    tl.store(values + to + HALF, value_high, mask=inside)


def code_queries_triton(
    codes: Int32[Tensor, "B L T D"],
    table: Float[Tensor, "rows width"],
    base: Float[Tensor, "L T width"],
    levels: int,
    ahead: int | None = None,
) -> Float[Tensor, "B Q width"]:
    """See `code_queries_reference`; contiguous tensors."""
    batch, layers, steps, dims = codes.shape
    width = table.shape[1]
    out = table.new_empty(batch, layers * steps, width)
    block = min(triton.next_power_of_2(width), max(CODE_NUMBERS // code_rows(layers, dims), 16))
    grid = (layers * steps, triton.cdiv(width, block), batch)
    code_queries_kernel[grid](
        codes, table, base, out, layers, steps, dims, levels, width, code_rows(layers, dims), block, **early(ahead)
    )
    return out


def code_rows(layers: int, dims: int) -> int:
    """Codes of a step that a query can depend on, as a power of two."""
    return max(triton.next_power_of_2((layers - 1) * dims), 1)


@triton.jit
def code_queries_kernel(
    codes,
    table,
    base,
    out,
    L: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Some columns of one query: all embeddings at once. Layers that it does not see add zeros."""
    query = tl.program_id(0)
    layer, step = query // T, query % T
    i_b = tl.program_id(2).to(tl.int64)
    o_r = tl.arange(0, ROWS)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < WIDTH
    total = tl.load(base + query * WIDTH + o, mask=inside, other=0.0).to(tl.float32)
    started(EARLY)
    if L > 1:
        below = o_r < layer * D
        code = tl.load(codes + ((i_b * L + o_r // D) * T + step) * D + o_r % D, mask=below, other=0)
        row = (o_r * LEVELS + code).to(tl.int64)
        embedded = tl.load(
            table + row[:, None] * WIDTH + o[None], mask=below[:, None] & inside[None], other=0.0
        )
        total += tl.sum(embedded.to(tl.float32), 0)
    to = out + (i_b * (L * T) + query) * WIDTH + o
    tl.store(to, total.to(out.dtype.element_ty), mask=inside)
