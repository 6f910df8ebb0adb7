"""Stages as CUDA graphs, and the loop that replays them from the host."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from .loops import EagerLoop
from .stages import RoundStages, Stage

WARM_UP = 3  # runs before a capture: compile, choose algorithms, allocate workspaces


class CapturedStages:
    """Every stage of a round as a CUDA graph, in one memory pool.

    What a stage leaves behind for later ones (features, keys and values, logits) stays alive in the objects that the
    stages write to; everything else of the pool is shared, since the graphs run one after the other.

    Attributes:
        head, forward, accept: the graphs; not instantiated.
    """

    def __init__(self, stages: RoundStages, pool: Any = None) -> None:
        self.stages = stages
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool
        self._warm_up()
        torch.cuda.synchronize()
        self.head = {name: self._capture(stage) for name, stage in stages.head.items()}
        self.forward = self._capture(stages.forward)
        self.accept = self._capture(stages.accept)

    def _warm_up(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                for stage in (*self.stages.head.values(), self.stages.forward, self.stages.accept):
                    stage()
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, stage: Stage) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._pool, stream=capture_stream(torch.cuda.current_device())):
            stage()
        return graph


@cache
def capture_stream(device: int) -> torch.cuda.Stream:
    """The stream of all captures on a device: memory that one capture leaves is free for the next on the same stream.

    PyTorch's own is of the device on which it first captured anything, whatever is current later.
    """
    return torch.cuda.Stream(device)


class GraphLoop(EagerLoop):
    """One replay a stage; after every pass the host looks whether there is another."""

    def __init__(self, captured: CapturedStages) -> None:
        for graph in (*captured.head.values(), captured.forward, captured.accept):
            graph.instantiate()
        replays = {name: graph.replay for name, graph in captured.head.items()}
        forward, accept = captured.forward.replay, captured.accept.replay
        super().__init__(replace(captured.stages, head=replays, forward=forward, accept=accept))
        self.captured = captured


def pool_bytes(pool: Any) -> int:
    """Device memory that the graphs of a pool (`torch.cuda.graph_pool_handle()`) hold."""
    segments = torch.cuda.memory_snapshot()
    return sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) == tuple(pool))
