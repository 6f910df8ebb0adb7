"""The loop as it is written down, and what all loops have in common."""

from __future__ import annotations

from typing import Protocol

from rsd_fast.nvtx import nvtx_range

from .clock import StageClock
from .stages import RoundStages


class RoundLoop(Protocol):
    """Runs one round after the other over the same static buffers."""

    stages: RoundStages

    def run(self) -> None:
        """One round: inputs as the host left them, outputs on the host when this returns."""
        ...

    def milliseconds(self) -> dict[str, float]:
        """Of the last round, by stage (`rsd_fast.runtime.clock.STAGES`)."""
        ...


class EagerLoop:
    """Stage by stage, from Python."""

    def __init__(self, stages: RoundStages) -> None:
        self.stages = stages
        self._clock = StageClock(stages.finished.device)

    def run(self) -> None:
        """See `RoundLoop`."""
        stages = self.stages
        self._clock = clock = StageClock(stages.finished.device)
        stages.inputs.upload()
        for name, stage in stages.head.items():
            with nvtx_range(f"rsd/{name}"):
                stage()
            clock.mark(name)
        for _ in range(stages.stop):
            with nvtx_range("rsd/pass"):
                stages.forward()
            clock.mark("passes")
            with nvtx_range("rsd/accept"):
                stages.accept()
            clock.mark("tail")
            if bool(stages.finished.all()):
                break
        stages.outputs.download()
        clock.mark("tail")
        clock.wait()

    def milliseconds(self) -> dict[str, float]:
        """See `RoundLoop`."""
        return self._clock.milliseconds()
