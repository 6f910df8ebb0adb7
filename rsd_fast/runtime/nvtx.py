"""NVTX ranges for Nsight Systems; nothing where there is no CUDA.

Names: `rsd/vision`, `rsd/prefill`, `rsd/draft`, `rsd/pass`, `rsd/accept`, and `rsd/round` around a launch of the
device-resident loop, inside which the host marks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """Marks what the host launches inside."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
