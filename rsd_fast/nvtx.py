"""NVTX ranges for Nsight Systems; nothing where there is no CUDA.

Names: `rsd/vision`, `rsd/prefill`, `rsd/draft`, `rsd/pass`, `rsd/accept`; `rsd/round` around a launch of the
device-resident loop, inside which the host marks nothing; `env/step` and `env/render` in the simulators' processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# What Nsight sets in the environment of the processes that it watches.
WATCHED = ("NVTX_INJECTION64_PATH", "CUDA_INJECTION64_PATH", "NSYS_PROFILING_SESSION_ID")


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """Marks what the host does inside."""
    if not _enabled():
        yield
        return
    from torch.cuda import nvtx

    nvtx.range_push(name)
    try:
        yield
    finally:
        nvtx.range_pop()


@cache
def _enabled() -> bool:
    # A simulator's process has no torch; only somebody who is watching is worth the seconds to import it.
    if "torch" not in sys.modules and not any(variable in os.environ for variable in WATCHED):
        return False
    import torch

    return torch.cuda.is_available()
