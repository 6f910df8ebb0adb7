"""How the accept kernel is launched: what it is compiled for, and how samples map to programs and lanes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import triton
from torch import Tensor

from .state import AcceptParams

PACKED_LEVELS = 16  # a lane holds as many words as there are levels; with more it reads level by level
EAGER_LOGITS = 128  # of an element: what a lane can hold before it uses any
EAGER_BATCH = 512  # samples that run at once, four on each multiprocessor: the chain of latencies is the time
LATE_BATCH = 16384  # programs wait for one another, so a latency more costs nothing; measured at 4096 and 65536 only


@dataclass(frozen=True)
class Launch:
    """Choices that change the time of a launch, and nothing else but the last bits of decoded actions.

    Attributes:
        samples: a program's, a power of two.
        pack: neighbouring elements a lane reads together, as words of their logits: 1, 2 or 4, at most
            `largest_pack`.
        eager: everything is loaded before it is known whether it is needed: one memory latency instead of
            three, but final layers and finished samples are read too.
        warps: of a program.
        unroll: layers that are read and compared side by side.
        hold: whether the L1 cache is asked to keep logits until a lane has read all its words.
        late: whether the decoder's weights are read where they are used, though `eager`: they take no room while
            logits are read, but add a latency.
    """

    samples: int
    pack: int
    eager: bool
    warps: int
    unroll: int
    hold: bool = False
    late: bool = False


def launch_choice(batch: int, shape: Sequence[int], largest: int) -> Launch:
    """The launch for `batch` samples.

    Args:
        batch: samples.
        shape: L, T, D, V.
        largest: of `largest_pack`.
    """
    layers, _, _, levels = shape
    eager = layers * levels <= EAGER_LOGITS
    if batch <= EAGER_BATCH:
        return Launch(1, 1, eager, warps_for(padded_elements(shape, 1)), layers if eager else 1)
    lanes = padded_elements(shape, largest) // largest
    # The fastest of a sweep on an H200 (bench/results) that spill on no architecture.
    samples = 8 if lanes <= 16 else 4 if lanes == 32 else 1
    few = layers <= 4
    unroll = layers if few else 2
    return Launch(samples, largest, eager, warps_for(samples * lanes), unroll, hold=few, late=batch >= LATE_BATCH)


def warps_for(lanes: int) -> int:
    """One lane a thread while there are threads."""
    return min(max(lanes // 32, 1), 32)


def padded_elements(shape: Sequence[int], pack: int) -> int:
    """Elements of a sample, a power of two; enough for a lane a layer, which writes that layer's counts."""
    layers, steps, dims, _ = shape
    return max(triton.next_power_of_2(steps * dims), pack * triton.next_power_of_2(layers))


def largest_pack(logits: Tensor) -> int:
    """How many neighbouring elements can be read as aligned words of at most 8 bytes; above 1 T, D and V are dense."""
    _, _, steps, dims, levels = logits.shape
    batch_stride, layer_stride, *inner = logits.stride()
    if inner != [dims * levels, levels, 1] or levels > PACKED_LEVELS:
        return 1
    for pack in (4, 2):
        size = pack * logits.element_size()
        strides = [s for s, n in ((batch_stride, logits.shape[0]), (layer_stride, logits.shape[1])) if n > 1]
        fits = all(stride % pack == 0 for stride in (*strides, steps * dims)) and logits.data_ptr() % size == 0
        if size <= 8 and fits:
            return pack
    return 1


def constants(
    params: AcceptParams, shape: Sequence[int], hidden: int, action_dims: int, launch: Launch
) -> dict[str, int | str | bool]:
    """What the kernel is compiled for, `num_warps` included; `shape` is the logits'.

    Raises:
        ValueError: more warps than lanes.
    """
    _, layers, steps, dims, levels = shape
    lanes = launch.samples * padded_elements(shape[1:], launch.pack) // launch.pack
    if launch.warps > warps_for(lanes):
        raise ValueError(f"got {launch.warps} warps, expected at most {warps_for(lanes)} for {lanes} lanes")
    return {
        "L": layers,
        "T": steps,
        "D": dims,
        "V": levels,
        "H": hidden,
        "A": action_dims,
        "stop": params.stop,
        "granularity": params.granularity,
        "rule": params.rule,
        "keep": params.keep,
        "redraft": params.redraft,
        "expected": params.expected,
        "sampling": params.temperature > 0,
        "E_PAD": padded_elements(shape[1:], launch.pack),
        "FIELD": (steps * dims).bit_length(),
        "BITS": levels.bit_length(),
        "BLOCK_B": launch.samples,
        "PACK": launch.pack,
        "EAGER": launch.eager,
        "UNROLL": launch.unroll,
        "HOLD": launch.hold,
        "LATE": launch.late,
        "num_warps": launch.warps,
    }


def double_bits(value: float) -> int:
    """A float64 as an integer: Triton passes a Python float as float32."""
    return struct.unpack("q", struct.pack("d", value))[0]
