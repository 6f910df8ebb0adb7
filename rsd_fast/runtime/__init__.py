"""How a round is driven: static buffers, CUDA graph capture, the host-driven and the device-resident loop.

Nothing here knows a model: a round is a set of functions without arguments that work on static buffers
(`RoundStages`). Three loops run it, to the same bits:

| loop | passes are driven by | host synchronisations a round |
|---|---|---|
| eager | Python, kernel by kernel | one a pass |
| graph | Python, one graph replay a stage | one a pass |
| device-loop | the device: the whole round is one graph launch | none before the results are there |
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch

from .device_loop import DeviceLoop, why_no_device_loop
from .graphs import CapturedStages, GraphLoop, pool_bytes
from .loops import EagerLoop, RoundLoop
from .packed import PackedBuffers
from .stages import RoundStages

Runtime = Literal["auto", "eager", "graph", "device-loop"]

__all__ = [
    "CapturedStages",
    "DeviceLoop",
    "EagerLoop",
    "GraphLoop",
    "PackedBuffers",
    "RoundLoop",
    "RoundStages",
    "Runtime",
    "choose_runtime",
    "make_loop",
    "pool_bytes",
]


def choose_runtime(wanted: str, device: torch.device) -> str:
    """The loop to use: on a GPU the device loop where it can run, else graphs, which is said once; eager on the CPU.

    Raises:
        ValueError: an unknown runtime, or one that needs a GPU on another device.
        RuntimeError: the device loop was asked for and cannot run here.
    """
    if wanted not in get_args(Runtime):
        raise ValueError(f"got runtime {wanted!r}, expected one of {list(get_args(Runtime))}")
    if device.type != "cuda":
        if wanted in ("graph", "device-loop"):
            raise ValueError(f"got runtime {wanted!r} on {device}, expected 'eager': CUDA graphs need an NVIDIA GPU")
        return "eager"
    if wanted in ("eager", "graph"):
        return wanted
    reason = why_no_device_loop()
    if reason is None:
        return "device-loop"
    if wanted == "device-loop":
        raise RuntimeError(f"runtime 'device-loop' cannot run here: {reason}")
    warnings.warn(f"rsd_fast: the host drives the passes, because {reason}", RuntimeWarning, stacklevel=3)
    return "graph"


def make_loop(runtime: str, stages: RoundStages, pool: Any = None) -> RoundLoop:
    """A loop over `stages`, warmed up and captured: no later call compiles or captures.

    Args:
        runtime: `eager`, `graph` or `device-loop`.
        stages: what to run.
        pool: of `torch.cuda.graph_pool_handle()`, shared by rounds that never run at the same time.
    """
    if runtime == "eager":
        return EagerLoop(stages)
    captured = CapturedStages(stages, pool)
    return DeviceLoop(captured) if runtime == "device-loop" else GraphLoop(captured)
