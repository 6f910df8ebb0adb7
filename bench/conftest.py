"""What a result says about the machine it is from; pytest-benchmark adds CPU, Python and commit."""

from __future__ import annotations

import time
from typing import Any

import torch


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["copy_gbps"] = {"cpu": copy_gbps()}
    if torch.cuda.is_available():
        from bench.gpu_accept import copy_bandwidth, machine

        machine_info["gpu"] = machine(copy_bandwidth())
        machine_info["copy_gbps"]["cuda"] = machine_info["gpu"]["copy_gbps"]


def copy_gbps(size: int = 2**28) -> float:
    """The ceiling on a CPU: the best of some copies much larger than its caches, bytes read and written."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.ones_like(source)  # written, so that its pages are there
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * size / min(seconds) / 1e9
