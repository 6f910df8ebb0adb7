"""A few calls of CUDA's driver by ctypes: graphs as the driver sees them, and its calls with nothing around them.

Handles of the runtime (torch's `raw_cuda_graph()`, `cuda_stream`) and of the driver are the same.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import partial

NODES = ("kernel", "memcpy", "memset", "host", "graph", "empty", "wait event", "event record")  # CUgraphNodeType
HANDLE, HANDLES = c_void_p, POINTER(c_void_p)
SIGNATURES = {
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGraphCreate": (HANDLES, c_uint),
    "cuGraphAddChildGraphNode": (HANDLES, HANDLE, HANDLES, c_size_t, HANDLE),
    "cuGraphInstantiateWithFlags": (HANDLES, HANDLE, c_ulonglong),
    "cuGraphUpload": (HANDLE, HANDLE),
    "cuGraphLaunch": (HANDLE, HANDLE),
    "cuGraphGetNodes": (HANDLE, HANDLES, POINTER(c_size_t)),
    "cuGraphGetEdges_v2": (HANDLE, HANDLES, HANDLES, c_void_p, POINTER(c_size_t)),
    "cuGraphNodeGetType": (HANDLE, POINTER(c_int)),
    "cuEventCreate": (HANDLES, c_uint),
    "cuEventRecord": (HANDLE, HANDLE),
    "cuEventSynchronize": (HANDLE,),
    "cuMemsetD32Async": (c_ulonglong, c_uint, c_size_t, HANDLE),
}
NO_TIMES = 2  # CU_EVENT_DISABLE_TIMING

Call = Callable[[], int]  # gives CUDA's status


class Driver:
    """Graphs and events made here live as long as the process.

    Args:
        library: to load.

    Raises:
        OSError: there is no driver.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._library = ctypes.CDLL(library)
        for name, types in SIGNATURES.items():
            getattr(self._library, name).argtypes = types

    def call(self, name: str, *arguments: object) -> Call:
        """The bare call, to be timed."""
        return partial(getattr(self._library, name), *arguments)

    def do(self, name: str, *arguments: object) -> None:
        """The call.

        Raises:
            RuntimeError: it fails.
        """
        if status := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name}: got CUDA's status {status}, expected 0")

    def new(self, name: str, *arguments: object) -> int:
        """The handle that such a call makes."""
        handle = c_void_p()
        self.do(name, ctypes.byref(handle), *arguments)
        assert handle.value is not None
        return handle.value

    def version_call(self) -> Call:
        """A call that does nothing to speak of: what ctypes costs."""
        return self.call("cuDriverGetVersion", ctypes.byref(c_int()))

    def event(self) -> int:
        return self.new("cuEventCreate", NO_TIMES)

    def chain(self, parts: Sequence[int]) -> int:
        """A graph of these graphs, one behind the other."""
        graph = self.new("cuGraphCreate", 0)
        after = None
        for part in parts:
            before = None if after is None else ctypes.byref(c_void_p(after))
            after = self.new("cuGraphAddChildGraphNode", graph, before, 0 if after is None else 1, part)
        return graph

    def instantiate(self, graph: int) -> int:
        return self.new("cuGraphInstantiateWithFlags", graph, 0)

    def nodes(self, graph: int) -> Counter[str]:
        """Nodes by kind; child graphs count as one."""
        count = c_size_t()
        self.do("cuGraphGetNodes", graph, None, ctypes.byref(count))
        handles = (c_void_p * count.value)()
        self.do("cuGraphGetNodes", graph, handles, ctypes.byref(count))
        kinds: Counter[str] = Counter()
        for handle in handles:
            kind = c_int()
            self.do("cuGraphNodeGetType", handle, ctypes.byref(kind))
            kinds[NODES[kind.value] if kind.value < len(NODES) else f"type {kind.value}"] += 1
        return kinds

    def edges(self, graph: int) -> int:
        """One less than nodes where a graph is a straight line."""
        count = c_size_t()
        self.do("cuGraphGetEdges_v2", graph, None, None, None, ctypes.byref(count))
        return count.value
