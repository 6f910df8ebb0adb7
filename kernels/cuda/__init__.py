"""The device-resident loop: a whole round, all its passes included, as one CUDA graph launch.

`loop.cu`, built by CMake where there is nvcc, loaded here with ctypes. It takes graphs that were captured elsewhere
and knows neither Python nor torch nor what they compute:

    copy in -> head graphs -> WHILE any sample is unfinished { body graphs } -> copy out

The WHILE is a conditional graph node: after every pass a one-warp kernel looks at `finished` and tells the device
whether to go round again. The host launches once and never looks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("librsd_fast_loop.so")


class Spec(ctypes.Structure):
    """`RsdRoundSpec` of loop.cu, field by field."""

    _fields_ = (
        ("head", POINTER(c_void_p)),
        ("body", POINTER(c_void_p)),
        *((name, c_void_p) for name in ("finished", "inputs", "host_inputs", "host_outputs", "outputs")),
        *((name, c_longlong) for name in ("heads", "bodies", "batch", "input_bytes", "output_bytes")),
    )


@cache
def load() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        ImportError: it was not built, or the driver cannot run it; the message says why.
    """
    if not LIBRARY.exists():
        raise ImportError("the CUDA part was not built: install CUDA's nvcc (12.4 or newer), then reinstall rsd-fast")
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ImportError(f"the CUDA part does not load: {error}") from error
    library.rsd_last_error.restype = c_char_p
    library.rsd_round_create.argtypes = (POINTER(Spec), POINTER(c_void_p))
    for name in ("rsd_round_upload", "rsd_round_launch"):
        getattr(library, name).argtypes = (c_void_p, c_void_p)
    library.rsd_round_wait.argtypes = (c_void_p,)
    library.rsd_round_times.argtypes = (c_void_p, POINTER(c_float))
    library.rsd_round_destroy.argtypes = (c_void_p,)
    library.rsd_round_destroy.restype = None
    if library.rsd_check_driver():
        raise ImportError(library.rsd_last_error().decode())
    return library


class DeviceRound:
    """One instantiated round. Everything that the graphs and copies touch has to outlive it.

    Args:
        head: raw `cudaGraph_t` handles, run once in order; cloned.
        body: raw handles, run once a pass in order; cloned.
        finished: device pointer to int32 `[batch]`; a pass follows while any is 0. One always runs.
        batch: samples.
        inputs: (device pointer, pinned host pointer, bytes), copied in first.
        outputs: (device pointer, pinned host pointer, bytes), copied out last.

    Raises:
        ImportError: see `load`.
        RuntimeError: CUDA refuses the graph.
    """

    def __init__(
        self,
        head: Sequence[int],
        body: Sequence[int],
        finished: int,
        batch: int,
        inputs: tuple[int, int, int],
        outputs: tuple[int, int, int],
    ) -> None:
        self._library = load()
        self._handle = c_void_p()
        self._times = (c_float * (len(head) + 3))()
        (device_in, host_in, bytes_in), (device_out, host_out, bytes_out) = inputs, outputs
        spec = Spec(
            *((c_void_p * len(head))(*head), (c_void_p * len(body))(*body)),
            *(finished, device_in, host_in, host_out, device_out),
            *(len(head), len(body), batch, bytes_in, bytes_out),
        )
        self._check(self._library.rsd_round_create(spec, ctypes.byref(self._handle)))

    def upload(self, stream: int) -> None:
        """Sends the graph to the device, so that the first launch costs no more than the others."""
        self._check(self._library.rsd_round_upload(self._handle, stream))

    def launch(self, stream: int) -> None:
        """Starts a round: one graph launch, no synchronisation."""
        self._check(self._library.rsd_round_launch(self._handle, stream))

    def wait(self) -> None:
        """Until the last launch has ended and its outputs are on the host."""
        self._check(self._library.rsd_round_wait(self._handle))

    def milliseconds(self) -> list[float]:
        """Of the last launch, which must have ended: copy in, every head graph, the loop, copy out."""
        self._check(self._library.rsd_round_times(self._handle, self._times))
        return list(self._times)

    def close(self) -> None:
        """Frees the graph."""
        if self._handle:
            self._library.rsd_round_destroy(self._handle)
            self._handle = c_void_p()

    def __del__(self) -> None:
        """As `close`."""
        if getattr(self, "_handle", None):
            self.close()

    def _check(self, status: c_int) -> None:
        if status:
            raise RuntimeError(f"CUDA: {self._library.rsd_last_error().decode()}")
