"""NVTX ranges for Nsight Systems; nothing where there is no CUDA.

Names: `rsd/vision`, `rsd/prefill`, `rsd/draft`, `rsd/pass`, `rsd/accept`; `rsd/round` around a launch of the
device-resident loop, inside which the host marks nothing; `env/step` and `env/render` in the simulators' processes.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType

# What Nsight sets in the environment of the processes that it watches.
WATCHED = ("NVTX_INJECTION64_PATH", "CUDA_INJECTION64_PATH", "NSYS_PROFILING_SESSION_ID")


class _Range:
    """Not a generator: those cost the host a microsecond more, in every launch of a round."""

    __slots__ = ("name", "nvtx")

    def __init__(self, name: str, nvtx: ModuleType) -> None:
        self.name, self.nvtx = name, nvtx

    def __enter__(self) -> None:
        self.nvtx.range_push(self.name)

    def __exit__(self, *_: object) -> None:
        self.nvtx.range_pop()


def nvtx_range(name: str) -> AbstractContextManager[None]:
    """Marks what the host does inside."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else _Range(name, nvtx)


@cache
def _nvtx() -> ModuleType | None:
    # A simulator's process has no torch; only somebody who is watching is worth the seconds to import it.
    if "torch" not in sys.modules and not any(variable in os.environ for variable in WATCHED):
        return None
    import torch

    return torch.cuda.nvtx if torch.cuda.is_available() else None
