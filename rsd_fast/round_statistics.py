"""What an engine counts over a run."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import torch

STAGES = ("vision", "prefill", "draft", "passes", "tail")


class StageClock:
    """Times the stages of a call without stopping the device in between.

    On a GPU a CUDA event is recorded after each stage and read once the call has finished; on the CPU it is the wall
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

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds a stage, and `total`. Waits for the device."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        spent = dict.fromkeys(STAGES, 0.0)
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            spent[stage] += before.elapsed_time(after) if self._cuda else 1e3 * (after - before)
        return {**spent, "total": sum(spent.values())}


class RoundStatistics:
    """Acceptance histogram, mean passes and latency percentiles over all chunks since the last reset."""

    def __init__(self) -> None:
        self._passes: Counter[int] = Counter()
        self._accepted: Counter[int] = Counter()
        self._kept: list[list[float]] = []
        self._ms: dict[str, list[float]] = defaultdict(list)

    def add(self, infos: list[dict[str, Any]], ms: dict[str, float]) -> None:
        """One call's chunks; `ms` is of the call."""
        for info in infos:
            self._passes[info["passes"]] += 1
            self._accepted[int(info["accepted_layers"] + 1e-6)] += 1
            self._kept.append(info["kept_rates"])
        for stage, value in ms.items():
            self._ms[stage].append(value)

    def summary(self) -> dict[str, Any]:
        """JSON-able; percentiles are of calls, not of chunks."""
        chunks = sum(self._passes.values())
        if not chunks:
            return {"chunks": 0}
        return {
            "chunks": chunks,
            "mean_passes": sum(k * n for k, n in self._passes.items()) / chunks,
            "passes_histogram": dict(sorted(self._passes.items())),
            "accepted_layers_histogram": dict(sorted(self._accepted.items())),
            "kept_rates": np.mean(self._kept, axis=0).tolist() if self._kept[0] else [],
            "latency_ms": {
                stage: {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}
                for stage, values in self._ms.items()
            },
        }
