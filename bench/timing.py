"""Times on a GPU by CUDA events and by the wall clock, on a CPU by the wall clock alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

Run = Callable[[], object]
AHEAD = 300_000  # cycles for which the GPU is kept busy, so that a launch is never what is timed


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: the device's own (median, 10th and 90th percentile), and what a caller waits."""

    ms: float
    p10: float
    p90: float
    wall_ms: float
    count: int

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Timer:
    """Repeats a call for about `seconds`, at least `least` times, after three calls of warm-up."""

    def __init__(self, device: torch.device, seconds: float, least: int = 5, most: int = 200) -> None:
        self.device, self.seconds, self.least, self.most = device, seconds, least, most

    def __call__(self, run: Run, before: Run | None = None) -> Times:
        before = before or (lambda: None)
        for _ in range(3):
            before()
            run()
        self.synchronize()
        gc.collect()
        gc.disable()
        try:
            wall = self._repeat(lambda: self._wall(run, before), self.seconds / 2)
            device = self._repeat(lambda: self._events(run, before), self.seconds / 2) if self.is_cuda else wall
        finally:
            gc.enable()
        p10, median, p90 = np.percentile(device, (10, 50, 90)).tolist()
        return Times(median, p10, p90, float(np.median(wall)), len(device))

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def _repeat(self, once: Callable[[], float], seconds: float) -> list[float]:
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < self.least or (len(times) < self.most and time.perf_counter() - started < seconds):
            times.append(once())
        return times

    def _wall(self, run: Run, before: Run) -> float:
        before()
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return 1e3 * (time.perf_counter() - started)

    def _events(self, run: Run, before: Run) -> float:
        before()
        torch.cuda._sleep(AHEAD)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def captured(run: Run, device: torch.device) -> Run:
    """`run` as a CUDA graph that has been replayed once; on a CPU `run` itself."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay
