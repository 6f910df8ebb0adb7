"""The public calls: each checks its inputs and runs the backend that the registry picks.

`ahead`, wherever it is: None runs a kernel after the one in front. A number lets it start early (GPUs from sm_90 on);
a product then fetches about so many bytes of its weights into the L2 cache while it waits. It changes no bit of the
result.

They serve inference under CUDA graphs: no gradient, no host synchronisation, nothing but their results allocated. As
they return what they compute and are not traced, they are plain functions and no torch.library ops.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from ..registry import pick
from .plans import CUBLAS, CUBLAS_ADD, AttentionTile, Choice
from .reference import mask_words

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rms_norm(
    x: Float[Tensor, "*n width"],
    weight: Float[Tensor, " width"],
    eps: float,
    delta: Float[Tensor, "*S_n width"] | None = None,
    *,
    ahead: int | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "*n width"], Float[Tensor, "*n width"]]:
    """`x + delta` and its norm, see `rms_norm_reference`; everything contiguous.

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: a dtype that is not floating point.
    """
    _check_rows("x", x)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [{x.shape[-1]}]")
    if delta is not None:
        _check_rows("delta", delta)
        if delta.shape != x.shape and delta.shape[1:] != x.shape:
            raise ValueError(f"delta has shape {list(delta.shape)}, expected {list(x.shape)} or [parts, ...] of it")
    return pick("rms_norm", x.device, backend).run(x, weight, eps, delta, ahead)


def swiglu(
    gate_up: Float[Tensor, "*n two_mlp"], *, ahead: int | None = None, backend: str = "auto"
) -> Float[Tensor, "*n mlp"]:
    """See `swiglu_reference`; contiguous.

    Raises:
        ValueError: an odd width, or another layout.
        TypeError: a dtype that is not floating point.
    """
    _check_rows("gate_up", gate_up)
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up is {gate_up.shape[-1]} wide, expected an even width: gate, then up")
    return pick("swiglu", gate_up.device, backend).run(gate_up, ahead)


def linear(
    x: Float[Tensor, "n K"],
    weight: Float[Tensor, "N K"],
    choice: Choice = CUBLAS,
    *,
    ahead: int | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*S n N"]:
    """`x @ weight.T`; with a tile that splits the inputs, its parts, float32 `[split, n, N]`.

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: a dtype that is not floating point.
    """
    _check_product(x, weight)
    if isinstance(choice, str):
        return F.linear(x, weight)
    return pick("linear", x.device, backend).run(x, weight, choice, ahead)


def linear_add_(
    x: Float[Tensor, "n N"],
    inputs: Float[Tensor, "n K"],
    weight: Float[Tensor, "N K"],
    choice: Choice = CUBLAS,
    *,
    ahead: int | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*S n N"] | None:
    """What is to be added to `x`, as `rms_norm` takes it; None where it was added already (`cublas-add`).

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: a dtype that is not floating point.
    """
    if choice != CUBLAS_ADD:
        return linear(inputs, weight, choice, ahead=ahead, backend=backend)
    _check_product(inputs, weight)
    x.addmm_(inputs, weight.t())
    return None


def swiglu_linear(
    x: Float[Tensor, "n K"],
    gate_up: Float[Tensor, "two_mlp K"],
    choice: Choice = CUBLAS,
    *,
    ahead: int | None = None,
    backend: str = "auto",
) -> Float[Tensor, "n mlp"]:
    """`swiglu(x @ gate_up.T)`, see `swiglu_linear_reference`.

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: a dtype that is not floating point.
    """
    if isinstance(choice, str):
        return swiglu(linear(x, gate_up, choice), ahead=ahead, backend=backend)
    _check_product(x, gate_up)
    return pick("swiglu_linear", x.device, backend).run(x, gate_up, choice, ahead)


def rotary_cache_(
    qkv: Float[Tensor, "B n three_width"],
    cos: Float[Tensor, "n half"],
    sin: Float[Tensor, "n half"],
    keys: Float[Tensor, "B H n D"],
    values: Float[Tensor, "B H n D"],
    *,
    ahead: int | None = None,
    backend: str = "auto",
) -> None:
    """Turned keys, and values, into the cache; see `rotary_cache_reference_`.

    Raises:
        ValueError: shapes or layouts that do not fit.
    """
    _check_attention(qkv, cos, sin, keys, values)
    if keys.shape[2] != qkv.shape[1]:
        raise ValueError(f"the cache has {keys.shape[2]} tokens, expected the {qkv.shape[1]} of qkv")
    pick("rotary_cache", qkv.device, backend).run(qkv, cos, sin, keys, values, ahead)


def pack_mask(
    mask: Bool[Tensor, "B P"], *, ahead: int | None = None, backend: str = "auto"
) -> Int32[Tensor, "B words"]:
    """A mask of keys as bits, see `pack_mask_reference`.

    Raises:
        ValueError: no contiguous bool `[B, P]`.
    """
    if mask.dtype != torch.bool or mask.dim() != 2 or not mask.is_contiguous():
        raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}, expected contiguous bool [B, P]")
    return pick("pack_mask", mask.device, backend).run(mask, ahead)


def attention(
    qkv: Float[Tensor, "B n three_width"],
    cos: Float[Tensor, "n half"],
    sin: Float[Tensor, "n half"],
    keys: Float[Tensor, "B H P D"],
    values: Float[Tensor, "B H P D"],
    key_mask: Bool[Tensor, "B P"] | Int32[Tensor, "B words"] | None = None,
    new_mask: Bool[Tensor, "n n"] | None = None,
    causal: bool = False,
    *,
    tile: AttentionTile | None = None,
    out: Float[Tensor, "B n width"] | None = None,
    ahead: int | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B n width"]:
    """Attention of new tokens over a cache and one another, see `attention_reference`.

    Args:
        qkv, cos, sin, keys, values, key_mask, new_mask, causal: see there. A token of `qkv` is contiguous, and so is
            one of the cache, whose tokens follow one another; keys and values have the same strides. A mask that many
            layers share is best packed once (`pack_mask`).
        tile: how the Triton kernel is launched; None takes `AttentionTile.default`.
        out: where to write; a row of it is contiguous, and rows follow one another.
        ahead: see the module.
        backend: `auto`, or one of the registry's.

    Raises:
        ValueError: shapes or layouts that do not fit.
    """
    _check_attention(qkv, cos, sin, keys, values)
    batch, tokens = qkv.shape[:2]
    packed = key_mask is not None and key_mask.dtype == torch.int32
    masks = {
        "key_mask": (key_mask, (batch, mask_words(keys.shape[2]) if packed else keys.shape[2])),
        "new_mask": (new_mask, (tokens, tokens)),
    }
    for name, (mask, size) in masks.items():
        dtype = torch.int32 if packed and name == "key_mask" else torch.bool
        if mask is not None and (mask.shape != size or mask.dtype != dtype or not mask.is_contiguous()):
            raise ValueError(f"{name} is {mask.dtype} {list(mask.shape)}, expected contiguous {dtype} {list(size)}")
    shape = (batch, tokens, qkv.shape[2] // 3)
    if out is None:
        out = qkv.new_empty(shape)
    elif out.shape != shape or out.stride()[1:] != (shape[2], 1):
        raise ValueError(
            f"out has shape {list(out.shape)} and strides {out.stride()}, expected {list(shape)} and whole rows"
        )
    run = pick("attention", qkv.device, backend).run
    run(qkv, cos, sin, keys, values, key_mask, new_mask, causal, tile, out, ahead)
    return out


def code_queries(
    codes: Int32[Tensor, "B L T D"],
    table: Float[Tensor, "rows width"],
    base: Float[Tensor, "L T width"],
    levels: int,
    *,
    ahead: int | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B Q width"]:
    """Queries of a hierarchical head, see `code_queries_reference`; contiguous. Codes are trusted to be levels.

    Raises:
        ValueError: shapes or layouts that do not fit.
        TypeError: codes that are not int32, or a dtype that is not floating point.
    """
    _check_rows("table", table)
    _check_rows("base", base)
    if codes.dtype != torch.int32:
        raise TypeError(f"codes are {codes.dtype}, expected torch.int32")
    _, layers, steps, dims = codes.shape
    rows = max((layers - 1) * dims, 1) * levels
    if not codes.is_contiguous() or base.shape != (layers, steps, table.shape[1]) or len(table) != rows:
        raise ValueError(
            f"got codes {list(codes.shape)}, table {list(table.shape)} and base {list(base.shape)}, expected "
            f"contiguous [B, L, T, D], [{rows}, width] and [{layers}, {steps}, width]"
        )
    return pick("code_queries", codes.device, backend).run(codes, table, base, levels, ahead)


def _check_rows(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {x.dtype}, expected one of {[str(dtype) for dtype in DTYPES]}")
    if not x.is_contiguous():
        raise ValueError(f"{name} has shape {list(x.shape)} and strides {x.stride()}, expected it to be contiguous")


def _check_product(x: Tensor, weight: Tensor) -> None:
    _check_rows("x", x)
    _check_rows("weight", weight)
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"got x {list(x.shape)} and weight {list(weight.shape)}, expected [n, K] and [N, K]")


def _check_attention(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> None:
    batch, heads, _, head_dim = keys.shape
    tokens, half = qkv.shape[1], head_dim // 2
    if len(qkv) != batch or qkv.shape[2] != 3 * heads * head_dim or qkv.stride(2) != 1:
        raise ValueError(
            f"qkv has shape {list(qkv.shape)} and strides {qkv.stride()}, expected "
            f"[{batch}, tokens, {3 * heads * head_dim}] with contiguous rows"
        )
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (tokens, half) or table.dtype != torch.float32 or not table.is_contiguous():
            raise ValueError(
                f"{name} is {table.dtype} {list(table.shape)}, expected contiguous float32 [{tokens}, {half}]"
            )
    if keys.shape != values.shape or keys.stride() != values.stride() or keys.stride()[2:] != (head_dim, 1):
        raise ValueError(
            f"keys have shape {list(keys.shape)} and strides {keys.stride()}, values {list(values.shape)} and "
            f"{values.stride()}, expected the same, with contiguous tokens that follow one another"
        )
