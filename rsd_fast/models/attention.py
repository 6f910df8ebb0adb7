"""Which of PyTorch's attention kernels serves a few dozen tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 128  # tokens


@contextmanager
def for_short(x: Tensor) -> Iterator[None]:
    """Within it, attention of the tokens `x` [B, n, width] is quick to launch, if they are few.

    PyTorch prefers cuDNN, which clears a word of memory before every call: in a CUDA graph a memset node, which costs
    the host as much as a hundred kernels do, and the GPU a microsecond. The memory-efficient kernel does not (H200, two
    images of 64 tokens: 5.2 against 6.0 us); with a mask it is slower by some microseconds, for long sequences by many,
    and in training cuDNN is the fastest.
    """
    if x.is_cuda and x.shape[1] <= SHORT and not torch.is_grad_enabled():
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    else:
        yield
