"""The C++ backend of `accept_`: accept.cpp, built by CMake at install time, loaded here with ctypes.

The library knows no Python and no torch, so one build serves every version of both.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_int64
from pathlib import Path

import torch
from torch import Tensor

from ..state import AcceptParams, ActionDecoder, RoundState

LIBRARY = Path(__file__).with_name("librsd_fast_accept.so")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
GRANULARITIES = {"element": 0, "layer": 1, "all": 2}
RULES = {"distance": 0, "typical": 1}
REDRAFTS = {"none": 0, "main": 1, "middle": 2}
POINTERS = (
    *("logits", "codes", "frontier", "drafted", "finished", "passes", "latents", "agreed", "kept", "codebook"),
    *("slack", "uniforms", "draft_probs", "w1", "b1", "w2", "b2", "gain", "offset", "actions"),
)
INTEGERS = (
    *("B", "L", "T", "D", "V", "H", "A", "stride_b", "stride_l", "stride_t", "stride_d", "stride_v"),
    *("dtype", "stop", "granularity", "rule", "need", "keep_draft", "redraft", "expected", "threads"),
)
NUMBERS_PER_THREAD = 1 << 16  # fewer logits than that are done before a second thread has woken up


# `RsdAcceptArgs` of accept.cpp, field by field; packed, not a ctypes structure, which takes over 1 us longer to fill.
ARGS = struct.Struct(f"{len(POINTERS)}Q{len(INTEGERS)}q2d")


def load() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        ImportError: it was not built, or is older than this file.
    """
    if not LIBRARY.exists():
        raise ImportError(
            "the C++ kernels were not built: install CMake and a compiler, then reinstall rsd-fast"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ImportError(f"the C++ kernels do not load: {error}") from error
    library.rsd_accept_args_size.restype = c_int64
    if library.rsd_accept_args_size() != ARGS.size:
        raise ImportError("the C++ kernels are of another version: reinstall rsd-fast")
    library.rsd_accept.restype = None
    library.rsd_accept.argtypes = (ctypes.c_char_p,)
    return library


_accept = load().rsd_accept


def accept_cpu_(
    logits: Tensor,
    state: RoundState,
    codebook: Tensor,
    slack: Tensor,
    params: AcceptParams,
    *,
    uniforms: Tensor | None = None,
    draft_probs: Tensor | None = None,
    decoder: ActionDecoder | None = None,
    actions: Tensor | None = None,
) -> None:
    """`rsd_fast.kernels.accept.accept_` for CPU tensors that were checked; same arguments.

    Uses up to `torch.get_num_threads()` threads. Releases the interpreter lock while it runs.
    """
    batch, layers, steps, dims, levels = logits.shape
    weights = (None,) * 6 if decoder is None else decoder.tensors()
    hidden = 0 if weights[1] is None else weights[1].shape[0]
    action_dims = dims if weights[4] is None else weights[4].shape[0]
    tensors = (
        *(logits, state.codes, state.frontier, state.drafted, state.finished, state.passes, state.latents),
        *(state.agreed, state.kept, codebook, slack, uniforms, draft_probs, *weights, actions),
    )
    args = ARGS.pack(
        *[0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        *(batch, layers, steps, dims, levels, hidden, action_dims, *logits.stride()),
        DTYPES[logits.dtype],
        params.stop,
        GRANULARITIES[params.granularity],
        RULES[params.rule],
        params.need,
        params.keep == "draft",
        REDRAFTS[params.redraft],
        params.expected,
        min(torch.get_num_threads(), batch, 1 + logits.numel() // NUMBERS_PER_THREAD),
        params.log_tau,
        params.temperature,
    )
    _accept(args)
