"""Attention of new tokens over a cache and over one another, straight from the packed projection.

Queries are turned (rotary embedding) in registers, as two half-width tiles whose scores add up; so are the new tokens'
keys, which are never written. One program takes `BLOCK_Q` queries of one head and a share of the keys, tile by tile
with a running maximum (Dao et al., 2022); where the keys are split, a second kernel puts the parts together in a fixed
order (flash decoding without atomics: the same bits in every run).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from .plans import AttentionTile
from .reference import mask_words
from .triton_launch import early, started

COMBINE_WIDTH = 512
WORD = 32  # keys in a word of a packed mask


def pack_mask_triton(mask: Bool[Tensor, "B P"], ahead: int | None = None) -> Int32[Tensor, "B words"]:
    """See `pack_mask_reference`."""
    batch, keys = mask.shape
    words = torch.empty(batch, mask_words(keys), dtype=torch.int32, device=mask.device)
    pack_mask_kernel[words.shape](mask.view(torch.uint8), words, keys, words.shape[1], **early(ahead), num_warps=1)
    return words


@triton.jit(do_not_specialize=["keys", "words"])
def pack_mask_kernel(mask, packed, keys, words, EARLY: tl.constexpr = False):
    """One word of one sample."""
    started(EARLY)
    i_b = tl.program_id(0).to(tl.int64)
    bit = tl.arange(0, 32)
    at = tl.program_id(1) * 32 + bit
    seen = tl.load(mask + i_b * keys + at, mask=at < keys, other=0)
    word = tl.sum(tl.where(seen != 0, 1, 0).to(tl.int32) << bit, 0)
    tl.store(packed + i_b * words + tl.program_id(1), word)


def attention_triton(
    qkv: Float[Tensor, "B n three_width"],
    cos: Float[Tensor, "n half"],
    sin: Float[Tensor, "n half"],
    keys: Float[Tensor, "B H P D"],
    values: Float[Tensor, "B H P D"],
    key_mask: Bool[Tensor, "B P"] | Int32[Tensor, "B words"] | None = None,
    new_mask: Bool[Tensor, "n n"] | None = None,
    causal: bool = False,
    tile: AttentionTile | None = None,
    out: Float[Tensor, "B n width"] | None = None,
    ahead: int | None = None,
) -> Float[Tensor, "B n width"]:
    """See `attention_reference`. Keys and values have the same strides, and a token of a head is contiguous."""
    batch, heads, cached, head_dim = keys.shape
    tokens, width = qkv.shape[1], heads * head_dim
    tile = tile or AttentionTile.default(tokens)
    if key_mask is not None and key_mask.dtype == torch.bool:
        key_mask = pack_mask_triton(key_mask, ahead)
    # The new tokens' keys are a part of their own: nothing waits for them.
    split = tile.split + 1 if tile.split > 1 and new_mask is not None else tile.split
    out = qkv.new_empty(batch, tokens, width) if out is None else out
    target, stats = out, None
    if split > 1:
        target = torch.empty(split, batch, tokens, width, dtype=torch.float32, device=qkv.device)
        stats = torch.empty(split, batch, tokens, heads, 2, dtype=torch.float32, device=qkv.device)
    attention_kernel[(triton.cdiv(tokens, tile.block_q), heads, batch * split)](
        qkv,
        cos,
        sin,
        keys,
        values,
        key_mask,
        None if new_mask is None else new_mask.view(torch.uint8),
        target,
        stats,
        tokens,
        cached,
        qkv.stride(0),
        qkv.stride(1),
        keys.stride(0),
        keys.stride(1),
        target.stride(-3),
        **constants(heads, head_dim, tile, causal),
        **early(ahead),
    )
    if split > 1:
        block = min(COMBINE_WIDTH, triton.next_power_of_2(width))
        combine_kernel[(batch * tokens, triton.cdiv(width, block))](
            target,
            stats,
            out,
            batch * tokens,
            tokens,
            out.stride(0),
            heads,
            head_dim,
            split,
            block,
            **early(ahead),
            num_warps=4,
        )
    return out


def constants(heads: int, head_dim: int, tile: AttentionTile, causal: bool) -> dict[str, int | float | bool]:
    """What the kernel is compiled for."""
    return {
        "SCALE": head_dim**-0.5 * 1.4426950408889634,  # exp2 is what the hardware has
        "HEADS": heads,
        "HALF": head_dim // 2,
        "BLOCK_Q": tile.block_q,
        "BLOCK_K": tile.block_k,
        "SPLIT": tile.split,
        "CAUSAL": causal,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit
def turned(p_row, cos, sin, inside, HALF: tl.constexpr, SCALE: tl.constexpr):
    """Two halves of rows, turned, scaled and rounded as they would be in a cache."""
    low = tl.load(p_row, mask=inside, other=0.0)
    high = tl.load(p_row + HALF, mask=inside, other=0.0)
    c = tl.load(cos, mask=inside, other=0.0)
    s = tl.load(sin, mask=inside, other=0.0)
    dtype: tl.constexpr = low.dtype
    low, high = low.to(tl.float32) * SCALE, high.to(tl.float32) * SCALE
    return (low * c - high * s).to(dtype), (high * c + low * s).to(dtype)


@triton.jit
def seen_keys(words, first, BLOCK_K: tl.constexpr):
    """Which of `BLOCK_K` keys from `first` on may be seen: a word serves 32 of them and is one load for all threads."""
    o = tl.arange(0, BLOCK_K)
    word = tl.load(words + first // 32)
    for i in tl.static_range(1, BLOCK_K // 32):
        word = tl.where(o >= i * 32, tl.load(words + first // 32 + i), word)
    return ((word >> (o % 32)) & 1) != 0


@triton.jit
def step(acc, top, total, q_low, q_high, k_low, k_high, b_v, seen):
    """One tile of keys: `acc`, the running maximum and the running sum."""
    scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
    scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision="ieee")
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(weights, 1)
    acc = tl.dot(weights.to(b_v.dtype), b_v, acc * fade[:, None], input_precision="ieee")
    return acc, higher, total


@triton.jit(do_not_specialize=["tokens", "cached"])
def attention_kernel(
    qkv,
    cos,
    sin,
    keys,
    values,
    key_mask,
    new_mask,
    out,
    stats,
    tokens,
    cached,
    stride_b,
    stride_n,
    stride_kb,
    stride_kh,
    stride_out,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    CAUSAL: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """`BLOCK_Q` queries of one head over one share of the keys; the new tokens' keys come after the cache's."""
    started(EARLY)
    D: tl.constexpr = 2 * HALF
    o_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    PARTS: tl.constexpr = SPLIT + 1 if SPLIT > 1 and new_mask is not None else SPLIT
    part = tl.program_id(2) % PARTS
    i_b = (tl.program_id(2) // PARTS).to(tl.int64)
    o_h = tl.arange(0, HALF)
    o_d = tl.arange(0, D)
    in_q = (o_q < tokens)[:, None]
    rows = qkv + i_b * stride_b + head * D
    p_q = rows + o_q.to(tl.int64)[:, None] * stride_n + o_h[None]
    at_q = o_q[:, None] * HALF + o_h[None]
    q_low, q_high = turned(p_q, cos + at_q, sin + at_q, in_q, HALF, SCALE)

    tiles = tl.cdiv(cached, BLOCK_K)
    first = part * tiles // SPLIT
    last = tl.minimum((part + 1) * tiles // SPLIT, tiles)  # none in the part of the new tokens
    if CAUSAL:
        last = tl.minimum(last, tl.cdiv((tl.program_id(0) + 1) * BLOCK_Q, BLOCK_K))

    acc = tl.zeros((BLOCK_Q, D), tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    p_k = keys + i_b * stride_kb + head.to(tl.int64) * stride_kh
    p_v = values + i_b * stride_kb + head.to(tl.int64) * stride_kh
    p_words = key_mask
    if key_mask is not None:
        p_words += i_b * (tl.cdiv(cached, 128) * 4)
    for i_k in range(first, last):
        o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
        in_k = o_k < cached
        k_low = tl.load(p_k + o_k[:, None] * D + o_h[None], mask=in_k[:, None], other=0.0)
        k_high = tl.load(p_k + o_k[:, None] * D + HALF + o_h[None], mask=in_k[:, None], other=0.0)
        b_v = tl.load(p_v + o_k[:, None] * D + o_d[None], mask=in_k[:, None], other=0.0)
        # What lies behind the last key is no bit of the mask.
        seen = (in_k if key_mask is None else seen_keys(p_words, i_k * BLOCK_K, BLOCK_K))[None]
        if CAUSAL:
            seen = seen & (o_k[None] <= o_q[:, None])
        acc, top, total = step(acc, top, total, q_low, q_high, k_low, k_high, b_v, seen)
    if new_mask is not None:
        new_tiles = tl.cdiv(tokens, BLOCK_K) if PARTS == SPLIT or part == SPLIT else 0
        for i_k in range(0, new_tiles):
            o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
            in_k = (o_k < tokens)[:, None]
            p_new = rows + HEADS * D + o_k.to(tl.int64)[:, None] * stride_n
            at_k = o_k[:, None] * HALF + o_h[None]
            k_low, k_high = turned(p_new + o_h[None], cos + at_k, sin + at_k, in_k, HALF, 1.0)
            b_v = tl.load(p_new + HEADS * D + o_d[None], mask=in_k, other=0.0)
            pairs = in_q & (o_k < tokens)[None]
            seen = tl.load(new_mask + o_q[:, None] * tokens + o_k[None], mask=pairs, other=0) != 0
            acc, top, total = step(acc, top, total, q_low, q_high, k_low, k_high, b_v, seen & pairs)

    to = i_b * stride_out + o_q.to(tl.int64)[:, None] * (HEADS * D) + head * D + o_d[None]
    if PARTS == 1:
        acc = acc / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(out + to, acc.to(out.dtype.element_ty), mask=in_q)
    else:
        batch_rows = (tl.num_programs(2) // PARTS).to(tl.int64) * tokens
        tl.store(out + part * batch_rows * (HEADS * D) + to, acc, mask=in_q)
        p_stats = stats + ((part * batch_rows + i_b * tokens + o_q) * HEADS + head) * 2
        tl.store(p_stats, top, mask=o_q < tokens)
        tl.store(p_stats + 1, total, mask=o_q < tokens)


@triton.jit(do_not_specialize=["rows", "tokens"])
def combine_kernel(
    parts,
    stats,
    out,
    rows,
    tokens,
    stride_out,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Some columns of one row: the parts, each scaled to the highest maximum, in their order."""
    started(EARLY)
    WIDTH: tl.constexpr = HEADS * D
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < WIDTH
    p_stats = stats + (row * HEADS + o // D) * 2
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for part in tl.static_range(SPLIT):
        top = tl.load(p_stats + part * rows.to(tl.int64) * HEADS * 2, mask=inside, other=float("-inf"))
        highest = tl.maximum(highest, top)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    acc = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        p_part = p_stats + part * rows.to(tl.int64) * HEADS * 2
        scale = tl.exp2(tl.load(p_part, mask=inside, other=float("-inf")) - highest)
        total += scale * tl.load(p_part + 1, mask=inside, other=0.0)
        acc += scale * tl.load(parts + (part * rows.to(tl.int64) + row) * WIDTH + o, mask=inside, other=0.0)
    acc = acc / tl.where(total == 0, 1.0, total)
    tl.store(out + row // tokens * stride_out + row % tokens * WIDTH + o, acc.to(out.dtype.element_ty), mask=inside)
