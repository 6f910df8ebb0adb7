"""What the ops of a Llama layer mean, in plain PyTorch: float32 inside, rounded once to the dtype of the inputs.

Sizes: B samples, n tokens, H heads of width D, width = H * D, P cached tokens. `qkv` is the output of one projection:
all queries, then all keys, then all values, heads side by side. Rotary tables hold one half of the head (Llama's
half-split layout turns both halves by the same angles). `tile` and `ahead` say how a kernel is launched and change
nothing here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from .plans import AttentionTile, Tile


def rms_norm_reference(
    x: Float[Tensor, "*n width"],
    weight: Float[Tensor, " width"],
    eps: float,
    delta: Float[Tensor, "*S_n width"] | None = None,
    ahead: int | None = None,
) -> tuple[Float[Tensor, "*n width"], Float[Tensor, "*n width"]]:
    """`x + delta`, and its RMSNorm (Zhang and Sennrich, 2019) times `weight`.

    `delta` has the shape of `x`, or one dimension more in front: parts to be added up. Without it the first result is
    `x` itself. The sum is rounded to `x.dtype` before the norm.
    """
    if delta is not None:
        parts = delta.float().sum(0) if delta.dim() > x.dim() else delta.float()
        x = (x.float() + parts).to(x.dtype)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return x, (wide * scale * weight.float()).to(x.dtype)


def swiglu_reference(gate_up: Float[Tensor, "*n two_mlp"], ahead: int | None = None) -> Float[Tensor, "*n mlp"]:
    """`silu(gate) * up` (Shazeer, 2020), gate in the first half."""
    gate, up = gate_up.float().chunk(2, -1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def linear_reference(
    x: Float[Tensor, "n K"], weight: Float[Tensor, "N K"], tile: Tile | None = None, ahead: int | None = None
) -> Float[Tensor, "n N"]:
    """`x @ weight.T`."""
    return (x.float() @ weight.float().T).to(x.dtype)


def swiglu_linear_reference(
    x: Float[Tensor, "n K"], gate_up: Float[Tensor, "two_mlp K"], tile: Tile | None = None, ahead: int | None = None
) -> Float[Tensor, "n mlp"]:
    """`swiglu(x @ gate_up.T)`."""
    gate, up = (x.float() @ gate_up.float().T).chunk(2, -1)
    return (F.silu(gate) * up).to(x.dtype)


def rotated(
    x: Float[Tensor, "B n H D"], cos: Float[Tensor, "n half"], sin: Float[Tensor, "n half"]
) -> Float[Tensor, "B n H D"]:
    """Rotary embedding (Su et al., 2021)."""
    low, high = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


def rotary_cache_reference_(
    qkv: Float[Tensor, "B n three_width"],
    cos: Float[Tensor, "n half"],
    sin: Float[Tensor, "n half"],
    keys: Float[Tensor, "B H n D"],
    values: Float[Tensor, "B H n D"],
    ahead: int | None = None,
) -> None:
    """Writes the turned keys, and the values, where later tokens read them."""
    _, key, value = qkv.unflatten(-1, (3, keys.shape[1], keys.shape[3])).unbind(2)
    keys.copy_(rotated(key, cos, sin).transpose(1, 2))
    values.copy_(value.transpose(1, 2))


def mask_words(keys: int) -> int:
    """Words of a packed mask: whole groups of 128 keys, so that a kernel's tile never runs over its end."""
    return -(-keys // 128) * 4


def pack_mask_reference(mask: Bool[Tensor, "B P"], ahead: int | None = None) -> Int32[Tensor, "B words"]:
    """Bit i of word w says whether key 32 w + i may be seen; bits behind the last key are zero."""
    padded = F.pad(mask, (0, mask_words(mask.shape[1]) * 32 - mask.shape[1])).unflatten(1, (-1, 32))
    words = (padded.long() << torch.arange(32, device=mask.device)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpacked_mask(words: Int32[Tensor, "B words"], keys: int) -> Bool[Tensor, "B P"]:
    """The way back."""
    bits = words[..., None] >> torch.arange(32, device=words.device, dtype=torch.int32)
    return ((bits & 1) != 0).flatten(1)[:, :keys]


def attention_reference(
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
    """The new tokens' queries over the cache and, with `new_mask`, over one another.

    Args:
        qkv: of the new tokens; their queries (and keys) are turned here.
        cos: of their positions.
        sin: likewise.
        keys: turned already.
        values: theirs.
        key_mask: which of the cache may be seen, packed (`pack_mask_reference`) or not; None: all of it.
        new_mask: `[i, j]`: may token i see token j. None: tokens see the cache only (it holds them already).
        causal: token i sees the first i + 1 of the cache.
        tile: see the module.
        out: where to write; None: a new tensor.
        ahead: see the module.

    A token that sees nothing gets zeros.
    """
    heads, head_dim = keys.shape[1], keys.shape[3]
    query, key, value = qkv.unflatten(-1, (3, heads, head_dim)).unbind(2)
    batch, tokens, cached = len(qkv), qkv.shape[1], keys.shape[2]
    query = rotated(query, cos, sin).transpose(1, 2).float()
    seen = torch.ones(batch, tokens, cached, dtype=torch.bool, device=qkv.device)
    if key_mask is not None:
        key_mask = key_mask if key_mask.dtype == torch.bool else unpacked_mask(key_mask, cached)
        seen = seen & key_mask[:, None]
    if causal:
        seen = seen & torch.ones(tokens, cached, dtype=torch.bool, device=qkv.device).tril()
    keys, values = keys.float(), values.float()
    if new_mask is not None:
        keys = torch.cat([keys, rotated(key, cos, sin).transpose(1, 2).float()], 2)
        values = torch.cat([values, value.transpose(1, 2).float()], 2)
        seen = torch.cat([seen, new_mask.expand(batch, -1, -1)], 2)
    scores = (query @ keys.transpose(2, 3) * head_dim**-0.5).masked_fill(~seen[:, None], -torch.inf)
    weights = torch.nan_to_num(scores.softmax(-1), nan=0.0)
    attended = (weights @ values).transpose(1, 2).flatten(2).to(qkv.dtype)
    return attended if out is None else out.copy_(attended)


def code_queries_reference(
    codes: Int32[Tensor, "B L T D"],
    table: Float[Tensor, "rows width"],
    base: Float[Tensor, "L T width"],
    levels: int,
    ahead: int | None = None,
) -> Float[Tensor, "B Q width"]:
    """The queries of a hierarchical head: of (l, t), `base[l, t]` and the embeddings of the codes of t below layer l.

    Row `(l * D + d) * levels + code` of `table` is that of a code; the last layer has none. Q = L * T, layer first.
    """
    batch, layers, _, dims = codes.shape
    queries = base.float().expand(batch, -1, -1, -1)
    if layers > 1:
        offset = torch.arange((layers - 1) * dims, device=codes.device).view(layers - 1, 1, dims) * levels
        below = table.float()[codes[:, :-1] + offset].sum(3).cumsum(1)
        queries = queries + F.pad(below, (0, 0, 0, 0, 1, 0))
    return queries.flatten(1, 2).to(table.dtype)
