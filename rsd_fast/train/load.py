"""Demonstration files -> the training device, as fast as the disk gives them.

Pictures that lie in the files as they are (`rsd-fast render` writes them so, as do LIBERO's public files) go straight
from the file into page-locked memory and from there to the device, in several threads that Python's lock does not hold
up. Compressed ones are unpacked by processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, groupby, pairwise
from threading import local

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from rsd_fast.train.read import CAMERAS, DemoHeader, read_demos, read_steps

Steps = tuple[Float[Tensor, "F 8"], Float[Tensor, "F A"], Bool[Tensor, " F"]]


def load_demos(
    headers: Sequence[DemoHeader],
    images: UInt8[Tensor, "P cameras S S 3"],
    workers: int,
    advance: Callable[[int], None],
) -> Steps:
    """Reads demonstrations one after the other; their pictures go into `images`.

    Args:
        headers: of the demonstrations, files together.
        images: on any device, as many as the headers say.
        workers: threads, or processes where there is something to unpack.
        advance: is told of every demonstration.

    Returns:
        proprio, actions and pushed (`rsd_fast.train.read.Demo`), on the host.

    Raises:
        ValueError: a file cannot be used; the message says why.
    """
    starts = list(accumulate((header.pictures for header in headers), initial=0))
    parts = [images[start:end] for start, end in pairwise(starts)]
    steps: list[tuple[np.ndarray, ...]] = [()] * len(headers)
    plain = [index for index, header in enumerate(headers) if header.plain is not None]
    packed = [index for index, header in enumerate(headers) if header.plain is None]
    with ThreadPoolExecutor(workers) as pool:
        copier = Copier(max((headers[index].pictures for index in plain), default=0), images)
        copies = [pool.submit(copier.copy, headers[index], parts[index]) for index in plain]
        try:
            # Meanwhile the rest, one open file at a time: HDF5 works for one thread only.
            for file, members in groupby(plain, lambda index: headers[index].file):
                with h5py.File(file) as source:
                    for index in members:
                        steps[index] = read_steps(headers[index], source)
            for copied in copies:
                copied.result()
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for index, demo in zip(packed, read_demos([headers[index] for index in packed], workers), strict=True):
        parts[index].copy_(torch.from_numpy(demo.images))
        steps[index] = (demo.proprio, demo.actions, demo.pushed)
        advance(1)
    proprio, actions, pushed = (torch.from_numpy(np.concatenate(values)) for values in zip(*steps, strict=True))
    return proprio, actions, pushed


class Copier:
    """Copies pictures from files to a device, through memory that each thread has for itself.

    Args:
        pictures: a camera, of the longest demonstration.
        images: like those to come.
    """

    def __init__(self, pictures: int, images: UInt8[Tensor, "P cameras S S 3"]) -> None:
        self.shape = (len(CAMERAS), pictures, *images.shape[2:])
        self.device = images.device
        self.memory = local()

    def copy(self, header: DemoHeader, part: UInt8[Tensor, "P cameras S S 3"]) -> None:
        """Fills `part` with a demonstration's pictures.

        Raises:
            ValueError: the file is cut short.
        """
        assert header.plain is not None
        if not hasattr(self.memory, "host"):
            self.memory.host = torch.zeros(self.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        # One camera after the other lies in the file; together they lie in `part`.
        host = self.memory.host[:, : header.pictures]
        descriptor = os.open(header.file, os.O_RDONLY)
        try:
            for camera, offset in zip(host, header.plain, strict=True):
                read_at(descriptor, camera.numpy(), offset, header)
        finally:
            os.close(descriptor)
        for camera, pictures in enumerate(host):
            there = pictures.to(self.device, non_blocking=True)
            # The simulator's pictures are turned by 180 degrees.
            part[:, camera] = there if header.upright else there.flip(1, 2)
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            done.synchronize()  # before the memory is written again


def read_at(descriptor: int, values: UInt8[np.ndarray, "*shape"], offset: int, header: DemoHeader) -> None:
    """Reads bytes at an offset of a file."""
    left = memoryview(values.data).cast("B")
    while left:
        count = os.preadv(descriptor, [left], offset)
        if count == 0:
            raise ValueError(f"{header.file}: {header.key} is cut short: {len(left)} bytes of pictures are missing")
        left, offset = left[count:], offset + count
