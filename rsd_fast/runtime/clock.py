"""The time of a round's stages."""

from __future__ import annotations

import time
from typing import Any

import torch

STAGES = ("vision", "prefill", "draft", "passes", "tail")


class StageClock:
    """Times the stages of a round without stopping the device in between.

    On a GPU a CUDA event is recorded after each stage and read once the round has ended; on the CPU it is the wall
    clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("start", self._now())]

    def _now(self) -> Any:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def mark(self, stage: str) -> None:
        """The time since the last mark belongs to `stage`."""
        self._marks.append((stage, self._now()))

    def wait(self) -> None:
        """Until the device has reached the last mark."""
        if self._cuda:
            self._marks[-1][1].synchronize()

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds by stage. Waits for the device."""
        self.wait()
        spent = dict.fromkeys(STAGES, 0.0)
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            spent[stage] += before.elapsed_time(after) if self._cuda else 1e3 * (after - before)
        return spent
