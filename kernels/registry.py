"""Which backend runs an op.

A backend of an op is one line in `BACKENDS`; the first one that is available serves, and `pick` can say why.
Backends are imported when they are picked, not before. A better backend that is missing is named once, in a
warning.

`RSD_FAST_BACKEND=reference|cpu|triton` forces one wherever a caller leaves the choice open
(`backend="auto"`). It is read at the first call of an op on a kind of device.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class Backend:
    """Where an implementation lives: `function` of `module`, for tensors on `devices`."""

    name: str
    devices: tuple[str, ...]
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """The implementation.

        Raises:
            ImportError: it cannot run here; the message says why.
        """
        return getattr(import_module(self.module), self.function)


@dataclass(frozen=True)
class Choice:
    """A picked backend: its name, the function to call, and a sentence on why it was picked."""

    name: str
    run: Callable[..., Any]
    why: str


_REFERENCES = "rsd_fast.kernels.transformer.reference"
BACKENDS: dict[str, tuple[Backend, ...]] = {  # best first
    "accept": (
        Backend("triton", ("cuda",), "rsd_fast.kernels.accept.triton", "accept_triton_"),
        Backend("cpu", ("cpu",), "rsd_fast.kernels.accept.cpu", "accept_cpu_"),
        Backend("reference", ("cpu", "cuda"), "rsd_fast.kernels.accept.reference", "accept_reference_"),
    ),
    "normalized_patches": (
        Backend("triton", ("cuda",), "rsd_fast.kernels.vision.triton", "normalized_patches_triton"),
        Backend("reference", ("cpu", "cuda"), "rsd_fast.kernels.vision.reference", "normalized_patches_reference"),
    ),
    "add_layer_norm_": (
        Backend("triton", ("cuda",), "rsd_fast.kernels.vision.triton", "add_layer_norm_triton_"),
        Backend("reference", ("cpu", "cuda"), "rsd_fast.kernels.vision.reference", "add_layer_norm_reference_"),
    ),
    "gelu_": (
        Backend("triton", ("cuda",), "rsd_fast.kernels.vision.triton", "gelu_triton_"),
        Backend("reference", ("cpu", "cuda"), "rsd_fast.kernels.vision.reference", "gelu_reference_"),
    ),
    **{
        op: (
            Backend("triton", ("cuda",), f"rsd_fast.kernels.transformer.{module}", function.format("triton")),
            Backend("reference", ("cpu", "cuda"), _REFERENCES, function.format("reference")),
        )
        for op, module, function in (
            ("rms_norm", "triton_rows", "rms_norm_{}"),
            ("swiglu", "triton_rows", "swiglu_{}"),
            ("rotary_cache", "triton_rows", "rotary_cache_{}_"),
            ("code_queries", "triton_rows", "code_queries_{}"),
            ("pack_mask", "triton_attention", "pack_mask_{}"),
            ("attention", "triton_attention", "attention_{}"),
            ("linear", "triton_linear", "linear_{}"),
            ("swiglu_linear", "triton_linear", "swiglu_linear_{}"),
        )
    },
}


def pick(op: str, device: torch.device | str, backend: str = "auto") -> Choice:
    """The backend that runs `op` on `device`.

    Raises:
        ValueError: an unknown op or backend, or a backend that does not run on this kind of device.
        RuntimeError: the backend that was asked for cannot run here.
    """
    return _pick(op, torch.device(device).type, backend)


@cache
def _pick(op: str, device: str, wanted: str) -> Choice:
    if op not in BACKENDS:
        raise ValueError(f"got op {op!r}, expected one of {sorted(BACKENDS)}")
    if wanted != "auto":
        return _named(op, device, wanted, "the caller")
    if forced := os.environ.get("RSD_FAST_BACKEND", ""):
        return _named(op, device, forced, "RSD_FAST_BACKEND")
    return _best(op, device)


def _named(op: str, device: str, wanted: str, by: str) -> Choice:
    usable = {backend.name: backend for backend in BACKENDS[op] if device in _devices(backend)}
    if wanted not in usable:
        raise ValueError(
            f"{op} on {device}: got backend {wanted!r} from {by}, expected one of {[*usable, 'auto']}"
        )
    try:
        return Choice(wanted, usable[wanted].load(), f"{op} on {device}: {wanted}, because {by} asked for it")
    except ImportError as error:
        raise RuntimeError(f"{op} on {device}: {by} asked for {wanted}, but {error}") from error


def _best(op: str, device: str) -> Choice:
    missing = []
    for backend in BACKENDS[op]:
        if device not in backend.devices:
            continue
        try:
            run = backend.load()
        except ImportError as error:
            missing.append(f"{backend.name} is missing ({error})")
            continue
        if missing:
            why = f"{op} on {device}: {backend.name}, because {', '.join(missing)}"
            warnings.warn(why, RuntimeWarning, stacklevel=2)
            return Choice(backend.name, run, why)
        return Choice(backend.name, run, f"{op} on {device}: {backend.name}, the fastest there is")
    raise ValueError(f"{op}: no backend runs on {device!r}")


def _devices(backend: Backend) -> tuple[str, ...]:
    """Triton's interpreter runs on the CPU; nobody wants it unasked."""
    interpreted = backend.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return (*backend.devices, "cpu") if interpreted else backend.devices
