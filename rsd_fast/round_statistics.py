"""What an engine counts over a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np


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
