"""Several small tensors in one allocation, so that one copy moves them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

_ALIGNMENT = 128  # bytes; a cache line


class PackedBuffers:
    """Named static tensors on a device, with a twin of pinned memory on the host.

    On the CPU both are the same memory and copies do nothing.

    Args:
        layout: name -> shape and dtype.
        device: where the tensors are.

    Attributes:
        on_device: views by name; their addresses never change.
        on_host: views of the twin, by name.
    """

    def __init__(self, layout: Mapping[str, tuple[Sequence[int], torch.dtype]], device: torch.device) -> None:
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in layout.items()}
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name] = end
            end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        self.device_bytes: UInt8[Tensor, " bytes"] = torch.zeros(end, dtype=torch.uint8, device=device)
        self.host_bytes: UInt8[Tensor, " bytes"] = self.device_bytes
        if device.type == "cuda":
            self.host_bytes = torch.zeros(end, dtype=torch.uint8, pin_memory=True)

        def views(storage: Tensor) -> dict[str, Tensor]:
            return {
                name: storage[starts[name] : starts[name] + sizes[name]].view(dtype).view(tuple(shape))
                for name, (shape, dtype) in layout.items()
            }

        self.on_device, self.on_host = views(self.device_bytes), views(self.host_bytes)

    def upload(self) -> None:
        """Host to device, on the current stream, without waiting."""
        if self.host_bytes is not self.device_bytes:
            self.device_bytes.copy_(self.host_bytes, non_blocking=True)

    def download(self) -> None:
        """Device to host, on the current stream, without waiting."""
        if self.host_bytes is not self.device_bytes:
            self.host_bytes.copy_(self.device_bytes, non_blocking=True)
