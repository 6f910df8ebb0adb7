"""Filling a model tensor by tensor: no weight is in memory twice.

A model is built without memory for its parameters (on PyTorch's meta device); each tensor of a checkpoint then goes to
its device in its dtype and takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from rsd_fast.models.formats import Shape
from rsd_fast.normalize import QuantileNormalizer

M = TypeVar("M", bound=nn.Module)


def choose_device(name: str | torch.device) -> torch.device:
    """A device; `auto` is a GPU where there is one.

    Raises:
        RuntimeError: a GPU that is not there.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"got device '{device}', but torch {torch.__version__} sees no GPU; use device='cpu'")
    return device


def build_empty(make: Callable[[], M]) -> M:
    """A model whose parameters have shapes but no memory. Statistics are real, with their defaults."""
    with torch.device("meta"):
        model = make()
    for module in list(model.modules()):
        if isinstance(module, QuantileNormalizer):
            for name, buffer in QuantileNormalizer(len(module.q01)).named_buffers():
                setattr(module, name, buffer)
    return model


def expected_shapes(model: nn.Module) -> dict[str, Shape]:
    """By name, of everything in a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def assign(model: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> None:
    """Puts a copy of a tensor in its place; parameters get `dtype` (None: stay as they are), buffers keep theirs.

    Raises:
        ValueError: the model has no such place, or it has another shape.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    place = getattr(module, leaf)
    if place.shape != tensor.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(place.shape)}")
    if isinstance(place, nn.Parameter):
        value: Tensor = nn.Parameter(tensor.detach().to(device, dtype or tensor.dtype, copy=True))
    else:
        value = tensor.to(device, place.dtype, copy=True)
    setattr(module, leaf, value)


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype | None,
    done: Callable[[int], None] = lambda tensors: None,
) -> None:
    """Assigns every tensor of a stream; `done` hears of each."""
    for name, tensor in tensors:
        assign(model, name, tensor, device, dtype)
        done(1)


def require_filled(model: nn.Module, device: torch.device) -> None:
    """Raises RuntimeError if a weight was left without memory; a bug here, not a fault of a file."""
    if device.type != "meta":
        empty = [name for name, value in model.state_dict().items() if value.is_meta]
        if empty:
            raise RuntimeError(f"{len(empty)} weights were never filled: {', '.join(empty[:8])}")
