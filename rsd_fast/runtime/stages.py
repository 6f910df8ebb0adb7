"""What a loop runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Int32
from torch import Tensor

from .packed import PackedBuffers

Stage = Callable[[], None]


@dataclass(frozen=True)
class RoundStages:
    """One round at one shape, as functions that read and write static buffers.

    Attributes:
        head: run once, in order, by name: `vision`, `prefill`, `draft`. The last one starts the round's state.
        forward: one pass of the main model.
        accept: the tail of a pass; sets `finished`, and the outputs of samples that finish.
        finished: 0 or 1, on the device.
        stop: passes after which every sample is finished.
        inputs: filled on the host before a run.
        outputs: on the host after it.
    """

    head: dict[str, Stage]
    forward: Stage
    accept: Stage
    finished: Int32[Tensor, " B"]
    stop: int
    inputs: PackedBuffers
    outputs: PackedBuffers
