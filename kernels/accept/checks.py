"""What `accept_` asks of its inputs; backends rely on it and check nothing themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from .state import AcceptParams, ActionDecoder, RoundState

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_accept(
    logits: Tensor,
    state: RoundState,
    codebook: Tensor,
    slack: Tensor,
    params: AcceptParams,
    uniforms: Tensor | None,
    draft_probs: Tensor | None,
    decoder: ActionDecoder | None,
    actions: Tensor | None,
) -> None:
    """Raises ValueError (shape, layout, device, parameters) or TypeError (dtype) with got and expected."""
    if logits.dim() != 5:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected [B, L, T, D, V]")
    if logits.dtype not in LOGIT_DTYPES:
        raise TypeError(f"logits: got {logits.dtype}, expected one of {list(LOGIT_DTYPES)}")
    batch, layers, steps, dims, levels = logits.shape
    if min(layers, steps, dims, levels) < 1:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected L, T, D, V of at least 1")

    device, ints, floats = logits.device, torch.int32, torch.float32
    check("state.codes", state.codes, ints, (batch, layers, steps, dims), device)
    check("state.frontier", state.frontier, ints, (batch, steps, dims), device)
    check("state.drafted", state.drafted, ints, (batch,), device)
    check("state.finished", state.finished, ints, (batch,), device)
    check("state.passes", state.passes, ints, (batch,), device)
    check("state.latents", state.latents, floats, (batch, steps, dims), device)
    check("state.agreed", state.agreed, ints, (batch, layers), device)
    check("state.kept", state.kept, ints, (batch, layers), device)
    check("codebook", codebook, floats, (layers, dims, levels), device)
    check("slack", slack, ints, (layers, dims), device)
    if uniforms is not None:
        check("uniforms", uniforms, floats, (batch, layers, steps, dims, 2), device)
    if draft_probs is not None:
        check("draft_probs", draft_probs, floats, (batch, layers, steps, dims, levels), device)
    action_dims = dims if decoder is None else check_decoder(decoder, dims, device)
    if actions is not None:
        check("actions", actions, floats, (batch, steps, action_dims), device)
    check_params(params, layers, steps * dims, uniforms is not None)


def check_params(params: AcceptParams, layers: int, elements: int, has_uniforms: bool) -> None:
    """What `AcceptParams` alone cannot know."""
    if params.stop > layers:
        raise ValueError(f"got stop {params.stop}, expected 1 to the {layers} layers of the logits")
    if params.need > elements:
        raise ValueError(f"got need {params.need}, expected at most T * D = {elements}")
    if params.temperature > 0.0 and params.need != elements:
        raise ValueError(f"got need {params.need} with a temperature, expected T * D = {elements}")
    if params.temperature > 0.0 and not has_uniforms:
        raise ValueError("got no uniforms with a temperature above 0, expected float32 [B, L, T, D, 2]")


def check_decoder(decoder: ActionDecoder, dims: int, device: torch.device) -> int:
    """Checks the weights and returns A."""
    actions = decoder.gain.shape[0] if decoder.gain.dim() == 1 else -1
    if decoder.w1 is None:
        actions = dims
    else:
        assert decoder.b1 is not None and decoder.w2 is not None and decoder.b2 is not None
        hidden = decoder.b1.shape[0] if decoder.b1.dim() == 1 else -1
        check("decoder.w1", decoder.w1, torch.float32, (hidden, dims), device)
        check("decoder.b1", decoder.b1, torch.float32, (hidden,), device)
        check("decoder.w2", decoder.w2, torch.float32, (actions, hidden), device)
        check("decoder.b2", decoder.b2, torch.float32, (actions,), device)
    check("decoder.gain", decoder.gain, torch.float32, (actions,), device)
    check("decoder.offset", decoder.offset, torch.float32, (actions,), device)
    return actions


def check(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """One contiguous tensor."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: got {tensor.dtype}, expected {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}, expected {device} as the logits")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")
