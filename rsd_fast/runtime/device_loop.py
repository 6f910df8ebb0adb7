"""The loop that runs on the device: a whole round is one graph launch."""

from __future__ import annotations

import torch

from rsd_fast.kernels.cuda import DeviceRound, load
from rsd_fast.nvtx import nvtx_range

from .clock import STAGES
from .graphs import CapturedStages


def why_no_device_loop() -> str | None:
    """Why it cannot run here, or None where it can."""
    try:
        load()
    except ImportError as error:
        return str(error)
    return None


class DeviceLoop:
    """Copy in, head, passes until every sample is finished, copy out: launched once, looked at when it is over.

    The tail of each pass is counted under `passes`: inside the loop nothing is timed. The copies are counted under
    `vision` and `tail`.

    Raises:
        ImportError: the CUDA part is missing (`why_no_device_loop`).
        RuntimeError: CUDA refuses a stage inside a conditional node.
    """

    def __init__(self, captured: CapturedStages) -> None:
        self.captured, self.stages = captured, captured.stages
        stages = captured.stages
        self._device = stages.finished.get_device()
        buffers = [
            (packed.device_bytes.data_ptr(), packed.host_bytes.data_ptr(), packed.host_bytes.numel())
            for packed in (stages.inputs, stages.outputs)
        ]
        self._round = DeviceRound(
            [graph.raw_cuda_graph() for graph in captured.head.values()],
            [captured.forward.raw_cuda_graph(), captured.accept.raw_cuda_graph()],
            stages.finished.data_ptr(),
            len(stages.finished),
            *buffers,
        )
        self._round.upload(torch.cuda.current_stream(self._device).cuda_stream)

    def launch(self) -> None:
        """Starts a round on the current stream, without any synchronisation."""
        with nvtx_range("rsd/round"):
            # What Triton's launcher asks too: `torch.cuda.current_stream()` builds an object first.
            self._round.launch(torch._C._cuda_getCurrentRawStream(self._device))

    def run(self) -> None:
        """See `RoundLoop`."""
        self.launch()
        self._round.wait()

    def milliseconds(self) -> dict[str, float]:
        """See `RoundLoop`."""
        copy_in, *head, loop, copy_out = self._round.milliseconds()
        spent = dict.fromkeys(STAGES, 0.0)
        spent.update(zip(self.captured.head, head, strict=True))
        spent["vision"] += copy_in
        spent["passes"] += loop
        spent["tail"] += copy_out
        return spent
