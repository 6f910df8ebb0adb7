"""Measures which tiles are best on this GPU: every candidate of every product, inside CUDA graphs.

A timed graph runs one op over several layers' weights, some 400 MB in all, so that every one of them comes from memory
as it does in a model. An op is timed with what its choice makes necessary: `add` with the norm that adds up its parts,
`swiglu` with the kernel that follows cuBLAS. Candidates are compiled by a pool of processes before anything is timed,
and each must agree with a float32 product.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .op import attention, linear, linear_add_, pack_mask, rms_norm, swiglu_linear
from .plans import CUBLAS, CUBLAS_ADD, FEW_ROWS, AttentionTile, Choice, Tile, entry_of
from .reference import attention_reference, swiglu_linear_reference

CHAIN_BYTES = 400e6
REPLAYS = 9
SLEEP_CYCLES = 1_500_000  # the GPU waits until the host has launched
WORST_COSINE = 0.9999
EPS = 1e-6


@dataclass(frozen=True)
class Product:
    """A matrix product of a model: `linear`, `add` or `swiglu` over weights `[outputs, inputs]`, at some rows."""

    op: str
    rows: int
    outputs: int
    inputs: int

    @property
    def key(self) -> str:
        """In a table."""
        return f"{self.op} {self.outputs}x{self.inputs}"

    @property
    def bytes(self) -> int:
        """Of the weights, in half precision."""
        return 2 * self.outputs * self.inputs * (2 if self.op == "swiglu" else 1)

    def candidates(self, shared: int, quick: bool = False) -> list[Choice]:
        """What is worth timing with `shared` bytes of shared memory a block; cuBLAS first."""
        first: list[Choice] = [CUBLAS, CUBLAS_ADD] if self.op == "add" else [CUBLAS]
        tiles = few_row_tiles(self, quick) if self.rows <= FEW_ROWS else many_row_tiles(self)
        return first + [tile for tile in tiles if stage_bytes(self, tile) * tile.stages + 2048 <= shared]


@dataclass(frozen=True)
class Attention:
    """Attention of a model, `pass` or `prefill`, at some new tokens and cached ones."""

    kind: str
    rows: int
    cached: int
    heads: int
    head_dim: int

    @property
    def key(self) -> str:
        """In a table."""
        return f"{self.kind} attention {self.heads}x{self.head_dim}"

    @property
    def bytes(self) -> int:
        """Of keys and values, in half precision."""
        return 4 * self.cached * self.heads * self.head_dim

    def candidates(self, shared: int, quick: bool = False) -> list[AttentionTile]:
        """What is worth timing with `shared` bytes of shared memory a block."""
        if self.kind == "prefill":
            sizes = [(64, 64, 1, 4, 2), (64, 64, 1, 4, 3), (64, 128, 1, 4, 2), (128, 64, 1, 4, 2)]
            sizes += [(128, 64, 1, 8, 2), (128, 64, 1, 8, 3), (128, 128, 1, 8, 2), (64, 32, 1, 4, 3)]
            sizes += [(64, 32, 1, 4, 4), (64, 64, 1, 4, 4), (128, 32, 1, 8, 3), (128, 32, 1, 4, 3)]
        else:
            queries = {16, min(32, -(-self.rows // 16) * 16), min(64, -(-self.rows // 16) * 16)}
            sizes = [
                (block_q, block_k, split, 4, 2)
                for block_q in sorted(queries)
                if block_q in (16, 32, 64)
                for block_k, split in ((64, 2), (64, 3), (64, 4), (64, 5), (128, 1), (128, 2), (128, 3), (32, 4))
            ]
            sizes += [(16, 64, 1, 4, 3), (32, 64, 1, 4, 3), (32, 64, 2, 4, 3), (32, 64, 3, 4, 3), (16, 64, 3, 2, 3)]
            sizes += [(32, 64, 9, 4, 1), (64, 64, 9, 4, 1), (64, 64, 3, 8, 2), (32, 32, 6, 4, 2), (64, 32, 4, 4, 3)]
            sizes = sizes[::2] if quick else sizes
        tiles = [AttentionTile(*numbers) for numbers in sizes]
        # Turned keys of the new tokens are staged beside the loads.
        return [
            tile
            for tile in tiles
            if 2 * self.head_dim * (2 * tile.block_k * (tile.stages + 1) + tile.block_q) <= shared
        ]


Work = Product | Attention


def model_work(
    width: int, mlp: int, heads: int, cached: int, queries: Sequence[int], prefills: Sequence[int]
) -> list[Work]:
    """Everything a Llama layer does: passes of `queries` against `cached` tokens, prefills of so many rows."""
    work: list[Work] = []
    for rows in (*queries, *prefills):
        work += [
            Product("linear", rows, 3 * width, width),
            Product("add", rows, width, width),
            Product("swiglu", rows, mlp, width),
            Product("add", rows, width, mlp),
        ]
    work += [Attention("pass", rows, cached, heads, width // heads) for rows in queries]
    return work + [Attention("prefill", rows, rows, heads, width // heads) for rows in prefills]


def few_row_tiles(product: Product, quick: bool = False) -> list[Tile]:
    """Tiles that cover few rows; splits give one or two programs a multiprocessor."""
    block_m = max(16, 1 << (product.rows - 1).bit_length())
    shapes = [  # block_n, block_k, warps, stages
        *((128, 64, 4, 4), (128, 64, 4, 6), (128, 64, 8, 4), (128, 128, 4, 3), (128, 128, 8, 3)),
        *((64, 64, 4, 4), (64, 64, 4, 8), (64, 128, 4, 3), (64, 128, 4, 5), (64, 256, 4, 2), (64, 256, 4, 3)),
        *((256, 64, 8, 3), (256, 64, 8, 4), (32, 128, 4, 4), (32, 256, 4, 3)),
    ]
    shapes = shapes[:2] + shapes[3:4] + shapes[5:9] if quick else shapes
    tiles = []
    for swap in (False, True):
        for block_n, block_k, warps, stages in shapes:
            if swap and block_n < 64:
                continue  # the tensor cores take 64 weights at a time
            for split in splits_of(product, block_n):
                tiles.append(Tile(block_m, block_n, block_k, split, warps, stages, swap))
    return tiles


def splits_of(product: Product, block_n: int) -> list[int]:
    """Only a sum that is added up later can be split."""
    programs = -(-product.outputs // block_n)
    if product.op != "add":
        return [1]
    wanted = {max(1, round(many / programs)) for many in (128, 256)}
    return sorted(split for split in wanted if split <= 16)


def many_row_tiles(product: Product) -> list[Tile]:
    """Tiles for a prefill."""
    if product.op == "swiglu":
        sizes = [(128, 64, 64, 4, 3), (128, 64, 64, 4, 4), (128, 64, 64, 8, 4), (128, 128, 64, 8, 3)]
        sizes += [(128, 128, 64, 8, 4), (64, 128, 64, 4, 4), (128, 64, 128, 8, 2)]
    else:
        sizes = [(128, 128, 64, 4, 4), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (128, 256, 64, 8, 4)]
        sizes += [(64, 256, 64, 4, 4), (128, 128, 128, 8, 3), (64, 128, 64, 4, 4)]
    return [Tile(m, n, k, 1, warps, stages) for m, n, k, warps, stages in sizes]


def stage_bytes(product: Product, tile: Tile) -> int:
    """Of one step in shared memory."""
    return 2 * tile.block_k * (tile.block_m + tile.block_n * (2 if product.op == "swiglu" else 1))


# ---- running


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers on the GPU, bfloat16."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


class ProductRun:
    """A product over several layers' weights."""

    def __init__(self, work: Product, layers: int) -> None:
        self.work = work
        rows = work.outputs * (2 if work.op == "swiglu" else 1)
        self.x = normal(work.rows, work.inputs)
        self.weights = [normal(rows, work.inputs, scale=work.inputs**-0.5) for _ in range(layers)]
        self.norm = 1 + 0.1 * normal(work.outputs)
        self.stream = normal(work.rows, work.outputs)
        self.scratch = self.stream.clone()  # what timed calls add to

    def call(self, weight: Tensor, choice: Choice, stream: Tensor, ahead: int | None = None) -> Tensor:
        """One layer."""
        if self.work.op == "linear":
            return linear(self.x, weight, choice, ahead=ahead)
        if self.work.op == "swiglu":
            return swiglu_linear(self.x, weight, choice, ahead=ahead)
        delta = linear_add_(stream, self.x, weight, choice, ahead=ahead)
        return rms_norm(stream, self.norm, EPS, delta, ahead=ahead)[1]

    def all(self, choice: Choice) -> None:
        """Every layer."""
        for weight in self.weights:
            self.call(weight, choice, self.scratch)

    def wanted(self) -> Tensor:
        """Of the first layer, float32."""
        x, weight = self.x.float(), self.weights[0].float()
        if self.work.op == "swiglu":
            return swiglu_linear_reference(x, weight)
        product = x @ weight.T
        if self.work.op == "linear":
            return product
        return F.rms_norm(self.stream.float() + product, (self.work.outputs,), self.norm.float(), EPS)

    def got(self, choice: Choice, ahead: int | None = None) -> Tensor:
        """Of the first layer."""
        return self.call(self.weights[0], choice, self.stream.clone(), ahead)


class AttentionRun:
    """Attention over several layers' caches."""

    def __init__(self, work: Attention, layers: int) -> None:
        self.work = work
        width = work.heads * work.head_dim
        self.qkv = [normal(1, work.rows, 3 * width) for _ in range(layers)]
        self.caches = normal(layers, 2, 1, work.heads, work.cached, work.head_dim)
        angles = torch.randn(work.rows, work.head_dim // 2, device="cuda")
        self.cos, self.sin = angles.cos(), angles.sin()
        self.key_mask = pack_mask(torch.ones(1, work.cached, dtype=torch.bool, device="cuda"))
        layer = torch.arange(work.rows, device="cuda") // 8
        self.new_mask = layer[:, None] >= layer[None] if work.kind == "pass" else None

    def call(self, i: int, tile: AttentionTile, ahead: int | None = None) -> Tensor:
        """One layer."""
        inputs = self.qkv[i], self.cos, self.sin, *self.caches[i], self.key_mask, self.new_mask
        return attention(*inputs, tile=tile, ahead=ahead)

    def all(self, tile: AttentionTile) -> None:
        """Every layer."""
        for i in range(len(self.qkv)):
            self.call(i, tile)

    def wanted(self) -> Tensor:
        """Of the first layer, float32."""
        qkv, cache = self.qkv[0].float(), self.caches[0].float()
        return attention_reference(qkv, self.cos, self.sin, cache[0], cache[1], self.key_mask, self.new_mask)

    def got(self, tile: AttentionTile, ahead: int | None = None) -> Tensor:
        """Of the first layer."""
        return self.call(0, tile, ahead)


def run_of(work: Work, layers: int) -> ProductRun | AttentionRun:
    """What `work` does, over so many layers."""
    return ProductRun(work, layers) if isinstance(work, Product) else AttentionRun(work, layers)


def shared_bytes() -> int:
    """Shared memory that a block may have on this GPU."""
    properties: Any = torch.cuda.get_device_properties(0)  # torch's stubs do not know the field
    return int(properties.shared_memory_per_block_optin)


def compile_in_pool(
    jobs: Sequence[tuple[Work, Any]], workers: int | None = None, ahead: int | None = None
) -> None:
    """Leaves the compiled kernels in Triton's cache on disk. What fails here fails again where it is timed."""
    workers = workers or min(16, os.cpu_count() or 1)
    parts = [list(jobs[i::workers]) for i in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(compile_part, ahead=ahead), parts))


def compile_part(jobs: Sequence[tuple[Work, Any]], ahead: int | None = None) -> int:
    """Launches each job once; returns how many failed."""
    failed, runs = 0, {}
    for work, choice in sorted(jobs, key=lambda job: job[0].key):
        if work not in runs:
            runs = {work: run_of(work, 1)}
        try:
            runs[work].got(choice, ahead)
        except Exception:  # reported where it is timed
            failed += 1
    return failed


def median_graph_us(run: Callable[[], object], calls: int, replays: int = REPLAYS) -> float:
    """Device time of a call, as a median over replays of one CUDA graph that holds `calls` of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(replays + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times[1:])


def cosine(got: Tensor, wanted: Tensor) -> float:
    """Of two tensors as vectors."""
    return F.cosine_similarity(got.double().flatten(), wanted.double().flatten(), 0).item()


@torch.inference_mode()
def sweep(work: Work, choices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """A row a candidate: `choice`, `us` (None where it failed), `gbps` of the weights, and a `note`."""
    layers = max(4, min(48, round(CHAIN_BYTES / work.bytes)))
    run = run_of(work, layers)
    wanted = run.wanted()
    for choice in choices:
        us, note = None, ""
        try:
            near = cosine(run.got(choice), wanted)
            if not near >= WORST_COSINE:
                raise ArithmeticError(f"cosine {near:.6f} to the float32 product")
            us = median_graph_us(lambda: run.all(choice), layers)  # noqa: B023 -- called at once
        except Exception as error:  # the other candidates still count
            note = f"failed: {type(error).__name__}: {str(error)[:160]}"
        gbps = None if us is None else work.bytes / us / 1e3
        yield {
            "key": work.key,
            "rows": work.rows,
            "choice": entry_of(choice),
            "us": us,
            "gbps": gbps,
            "note": note,
        }


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The table that timed candidates make: per key and rows the fastest."""
    table: dict[str, dict[str, Any]] = {}
    fastest: dict[tuple[str, int], float] = {}
    for row in rows:
        at = row["key"], row["rows"]
        if row["us"] is not None and row["us"] < fastest.get(at, float("inf")):
            fastest[at] = row["us"]
            table.setdefault(row["key"], {})[str(row["rows"])] = row["choice"]
    return table
