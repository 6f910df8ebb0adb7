"""Checks and times the accept op on a GPU: `python -m bench.gpu_accept --out results.json`, under 120 seconds.

A timed call is the first pass of a round whose draft main agrees with everywhere: all layers are accepted, the
sample finishes and its actions are decoded. Calls are unrolled into one CUDA graph that was captured from one
stream, so each starts when the one before has ended; the time of a call is that of the replay over the number of
calls. Each has a state of its own that is restored before every replay, outside the timed region, and the GPU is
kept busy until the host has launched the replay. At batches from 4096 on the calls also read logits of their own,
1 GiB in all or more, so that everything comes from memory; the small ones find them in the L2 cache, as after a
head that has just written them.

Bytes are what the op must move: logits and codes once, the codes that change, and the small buffers. Ceilings of the
same run: a device copy of 1 GiB, copies of as many bytes as a call moves, and a kernel that writes one word.

`--sweep` times the launches of `CANDIDATES` instead of the baselines, in under 60 seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.shapes import REDRAFT, SHAPES
from rsd_fast.kernels.accept import AcceptParams, ActionDecoder, RoundState
from rsd_fast.kernels.accept.reference import accept_reference_
from rsd_fast.kernels.accept.triton import accept_triton_
from rsd_fast.kernels.accept.triton_launch import Launch, largest_pack, launch_choice
from tests.kernels.action_sizes import assert_actions_close

BATCHES = (1, 64, 4096, 65536)
CALLS = {1: 256, 64: 64}  # batch: calls in a graph; from OWN_LOGITS_FROM on as many as move 1 GiB, at least 4
OWN_LOGITS_FROM = 4096
COMPILED = {1: ("graph", "reduce-overhead"), 4096: ("graph",)}  # batch: how torch.compile is timed
ACTIONS, HIDDEN = 7, 64
SHORT, LONG = (1, 64), (4096, 65536)
CANDIDATES = {  # of `Launch`: samples, pack, eager, warps, unroll, and hold and late if not False
    ("L8 T8 D16 V7", SHORT): (
        *((1, 1, True, 4, 8), (1, 1, True, 4, 1), (1, 1, False, 4, 1), (1, 2, True, 2, 8), (1, 4, True, 1, 8)),
    ),
    ("L8 T8 D16 V7", LONG): (
        *((1, 1, False, 4, 1), (1, 4, False, 1, 2), (1, 4, False, 1, 4), (2, 4, False, 2, 2), (4, 4, False, 4, 2)),
        *((1, 4, True, 1, 2), (1, 4, True, 1, 4), (1, 4, True, 1, 8), (2, 4, True, 2, 2), (2, 4, True, 2, 4)),
        *((4, 4, True, 4, 2), (4, 4, True, 4, 4), (8, 4, True, 8, 2), (1, 2, True, 2, 2), (4, 4, True, 4, 2, True)),
        (4, 4, True, 4, 2, False, True),
    ),
    ("L3 T8 D7 V5", SHORT): ((1, 1, True, 2, 3), (1, 1, False, 2, 1), (1, 2, True, 1, 3)),
    ("L3 T8 D7 V5", LONG): (
        *((2, 1, False, 4, 3), (4, 4, False, 2, 3), (8, 4, False, 4, 3)),
        *((2, 4, True, 1, 3), (4, 4, True, 2, 3), (8, 4, True, 4, 3), (8, 4, True, 4, 1), (4, 2, True, 4, 3)),
        *((8, 4, True, 4, 3, True), (4, 4, True, 2, 3, True), (8, 4, True, 4, 3, True, True)),
    ),
}

Op = Callable[..., None]


@triton.jit
def one_word(pointer):
    """As little as a kernel can do."""
    tl.store(pointer, 0)


@dataclass
class Work:
    """The calls of one graph; `restore` puts every state back to the start of its round."""

    logits: list[Tensor]
    states: list[RoundState]
    saved: dict[str, list[Tensor]]
    codebook: Tensor
    slack: Tensor
    params: AcceptParams
    decoder: ActionDecoder
    actions: list[Tensor]

    def restore(self) -> None:
        for name, tensors in self.saved.items():
            torch._foreach_copy_([getattr(state, name) for state in self.states], tensors)

    def call(self, op: Op, i: int) -> None:
        op(
            self.logits[i % len(self.logits)],
            self.states[i],
            self.codebook,
            self.slack,
            self.params,
            decoder=self.decoder,
            actions=self.actions[i],
        )

    def all(self, op: Op) -> None:
        for i in range(len(self.states)):
            self.call(op, i)

    def outputs(self, op: Op) -> dict[str, Tensor]:
        """What the first call writes."""
        self.restore()
        self.actions[0].fill_(torch.nan)
        self.call(op, 0)
        written = {f.name: getattr(self.states[0], f.name).clone() for f in fields(RoundState)}
        return {**written, "actions": self.actions[0].clone()}

    def bytes(self) -> int:
        """What one call must move."""
        self.restore()
        before = self.states[0].codes.clone()
        self.call(accept_triton_, 0)
        changed = int((self.states[0].codes != before).sum())
        return least_bytes(self.logits[0].shape, self.actions[0].shape[2], changed)


def least_bytes(shape: tuple[int, ...], actions: int, changed: int) -> int:
    batch, layers, steps, dims, levels = shape
    elements = batch * steps * dims
    ints = layers * elements + changed + 2 * elements + batch * (3 + 3 + 2 * layers)
    floats = elements + batch * steps * actions
    return 2 * layers * elements * levels + 4 * (ints + floats)


def calls_of(batch: int, name: str) -> int:
    if batch < OWN_LOGITS_FROM:
        return CALLS[batch]
    return max(4, math.ceil(2**30 / least_bytes((batch, *SHAPES[name]), ACTIONS, 0)))


def make_work(batch: int, name: str, calls: int) -> Work:
    """Calls of a shape of `SHAPES`."""
    layers, steps, dims, levels = sizes = SHAPES[name]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device="cuda")

    own = calls if batch >= OWN_LOGITS_FROM else 1
    logits = [torch.randn((batch, *sizes), device="cuda", dtype=torch.bfloat16) for _ in range(own)]
    drafts = [x[:, : layers - 1].argmax(-1).int() for x in logits]  # the lowest of equal logits, as in the op
    states = [RoundState.new(batch, layers, steps, dims, "cuda") for _ in range(calls)]
    for i, state in enumerate(states):
        state.begin_(drafts[i % own], layers - 1, levels // 2)
    weights = (normal(HIDDEN, dims), normal(HIDDEN), normal(ACTIONS, HIDDEN), normal(ACTIONS))
    if dims == ACTIONS:  # such a codec's latents are actions, only normalised
        weights = (None, None, None, None)
    return Work(
        logits,
        states,
        {f.name: [getattr(state, f.name).clone() for state in states] for f in fields(RoundState)},
        normal(layers, dims, levels),
        torch.zeros(layers, dims, dtype=torch.int32, device="cuda"),
        AcceptParams(layers, "layer", "distance", steps * dims, 0.0, "main", REDRAFT[name], False, 0.0),
        ActionDecoder(*weights, normal(ACTIONS), normal(ACTIONS)),
        [torch.full((batch, steps, ACTIONS), torch.nan, device="cuda") for _ in range(calls)],
    )


def check(got: dict[str, Tensor], wanted: dict[str, Tensor], decoder: ActionDecoder) -> None:
    """Triton and the reference agree on the data that is timed, and every sample finishes."""
    for name in got:
        if name == "actions":
            assert_actions_close(got[name], wanted[name], wanted["latents"], decoder)
        elif not torch.equal(got[name], wanted[name]):
            raise AssertionError(f"triton and the reference differ in {name}")
    assert bool(got["finished"].all()), "a sample did not finish"


def median_us(
    run: Callable[[], object], before: Callable[[], object], calls: int, seconds: float, busy: bool = False
) -> float:
    """Median time of a call, over replays that fill about `seconds`, at least 5 and at most 200.

    `busy` keeps the GPU from starting before the host has launched, so that only device time is measured.
    """
    times = []
    started = time.perf_counter()
    while len(times) < 5 or (len(times) < 200 and time.perf_counter() - started < seconds):
        before()
        if busy:
            torch.cuda._sleep(600_000)  # cycles
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times[1:])


def captured(warm: Callable[[], object], run: Callable[[], object]) -> Callable[[], None]:
    """`run` as one CUDA graph, after two calls of `warm`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm()
        warm()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def graph_us(work: Work, op: Op, seconds: float) -> float:
    """Device time of a call in the graph of all of them."""
    replay = captured(lambda: work.call(op, 0), lambda: work.all(op))
    return median_us(replay, work.restore, len(work.states), seconds, busy=True)


def compiled(work: Work, mode: str) -> Op:
    """The reference under torch.compile, over plain tensors whose addresses it may rely on."""
    names = [field.name for field in fields(RoundState)]

    def plain(logits, buffers, codebook, slack, decoder, actions):
        state = RoundState(**dict(zip(names, buffers, strict=True)))
        weights = ActionDecoder(*decoder)
        accept_reference_(logits, state, codebook, slack, work.params, decoder=weights, actions=actions)

    fast = torch.compile(plain, mode=mode, fullgraph=True, dynamic=False)

    def op(logits, state, codebook, slack, params, *, decoder, actions):
        buffers = [getattr(state, name) for name in names]
        weights = [getattr(decoder, field.name) for field in fields(ActionDecoder)]
        for tensor in (logits, *buffers, actions):
            torch._dynamo.mark_static_address(tensor)
        fast(logits, buffers, codebook, slack, weights, actions)

    return op


def copy_bandwidth(size: int = 2**30) -> float:
    """GB/s of a device copy, bytes read and written."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    us = median_us(lambda: target.copy_(source), lambda: None, 1, 0.5, busy=True)
    return 2 * size / us / 1e3


def copy_us(moved: int, calls: int) -> float:
    """Time of a copy that reads and writes `moved` bytes together, in a graph of `calls` of them, each its own."""
    size = moved // 2 // 16 * 16
    source = torch.zeros(calls, size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def run() -> None:
        for i in range(calls):
            target[i].copy_(source[i])

    replay = captured(lambda: target[0].copy_(source[0]), run)
    return median_us(replay, source.zero_, calls, 0.2, busy=True)


def one_word_us(calls: int = 256) -> float:
    """Time of a kernel that writes one word, in a graph of `calls` of them."""
    word = torch.zeros(1, dtype=torch.int32, device="cuda")

    def run() -> None:
        for _ in range(calls):
            one_word[(1,)](word)

    return median_us(captured(lambda: one_word[(1,)](word), run), lambda: None, calls, 0.2, busy=True)


def row(name: str, batch: int, variant: str, moved: int, copy: float, us: float | None, note: str = "") -> dict:
    """Prints and returns one result."""
    gbps = moved / us / 1e3 if us else None
    share = gbps / copy if gbps else None
    numbers = f"{us:10.2f} us  {gbps:8.1f} GB/s  {100 * share:5.1f} %" if us else note
    print(f"{name:14} {batch:6}  {variant:42} {numbers}", flush=True)
    record = {"shape": name, "batch": batch, "variant": variant, "us": us, "bytes": moved}
    return {**record, "gbps": gbps, "copy_share": share, "note": note}


def rows_of(name: str, batch: int, work: Work, out_of_time: Callable[[], bool], copy: float) -> list[dict]:
    """Triton, its ceilings and the baselines."""
    moved, calls = work.bytes(), len(work.states)
    one = partial(row, name, batch, moved=moved, copy=copy)
    long = 0.4 if batch < 4096 else 1.0
    rows = [one("triton, CUDA graph", us=graph_us(work, accept_triton_, long))]
    rows += [one("triton, launched", us=median_us(lambda: work.all(accept_triton_), work.restore, calls, long))]
    rows += [one("copy of as many bytes, CUDA graph", us=copy_us(moved, calls))]
    if batch == 1:
        rows += [one("a kernel that writes one word, CUDA graph", us=one_word_us())]
    rows += [one("torch, CUDA graph", us=graph_us(work, accept_reference_, long))]
    rows += [one("torch, eager", us=median_us(lambda: work.all(accept_reference_), work.restore, calls, long))]
    for how in COMPILED.get(batch, ()):
        variant = f"torch.compile, {how}" + (" (max-autotune)" if how == "graph" else "")
        if out_of_time():
            rows += [one(variant, us=None, note="not run: out of time")]
            continue
        try:
            torch._dynamo.reset()
            if how == "graph":
                us = graph_us(work, compiled(work, "max-autotune-no-cudagraphs"), long)
            else:  # its own graph, replayed from Python, on one state
                op = compiled(work, how)
                for _ in range(5):
                    work.restore()
                    work.call(op, 0)
                us = median_us(partial(work.call, op, 0), work.restore, 1, long)
            rows += [one(variant, us=us)]
        except Exception as error:  # a baseline that torch cannot build is a result too
            rows += [one(variant, us=None, note=f"failed: {type(error).__name__}: {str(error)[:200]}")]
    return rows


def compile_candidates() -> str:
    """Leaves the compiled kernels in Triton's cache on disk; says how many."""
    distinct = sorted({(name, launch) for (name, _), launches in CANDIDATES.items() for launch in launches})
    workers = min(8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for name, launch in distinct:  # what fails here fails again, and is reported, where it is timed
            pool.submit(launch_once, name, Launch(*launch))
    return f"{len(distinct)} launches compiled by {workers} processes"


def launch_once(shape: str, launch: Launch) -> None:
    make_work(1, shape, 1).call(partial(accept_triton_, launch=launch), 0)
    torch.cuda.synchronize()


def sweep(name: str, batch: int, work: Work, copy: float) -> list[dict]:
    """Every candidate for this shape and batch, each checked before it is timed."""
    moved, wanted = work.bytes(), work.outputs(accept_reference_)
    chosen = launch_choice(batch, SHAPES[name], largest_pack(work.logits[0]))
    rows = []
    for candidate in CANDIDATES[name, SHORT if batch in SHORT else LONG]:
        launch = Launch(*candidate)
        op = partial(accept_triton_, launch=launch)
        us, note = None, "chosen" if launch == chosen else ""
        try:
            check(work.outputs(op), wanted, work.decoder)
            us = graph_us(work, op, 0.15)
        except Exception as error:  # the other candidates still count
            note = f"failed: {type(error).__name__}: {str(error)[:200]}"
        label = "{}, pack {}, eager {}, warps {}, unroll {}".format(*candidate)
        label += ", hold" * launch.hold + ", late" * launch.late + " *" * (launch == chosen)
        rows.append(row(name, batch, label, moved, copy, us, note))
    return rows


def machine(copy: float) -> dict[str, object]:
    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "copy_gbps": copy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sweep", action="store_true", help="time the candidate launches, not the baselines")
    parser.add_argument("--budget", type=float, default=110.0, help="seconds after which nothing is compiled")
    parser.add_argument("--batches", type=int, nargs="*", choices=BATCHES, default=BATCHES)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; benches without a GPU are under pytest bench/")
    started = time.perf_counter()
    torch.manual_seed(0)
    copy = copy_bandwidth()
    results = {"machine": machine(copy), "rows": []}
    print(results["machine"])
    if arguments.sweep:
        print(f"{compile_candidates()}, {time.perf_counter() - started:.0f} s; * is what a call would choose")
    # The shapes that the targets are about come first, the longest compilations late.
    for batch in arguments.batches:
        for name in reversed(SHAPES):
            work = make_work(batch, name, calls_of(batch, name))
            if arguments.sweep:
                results["rows"] += sweep(name, batch, work, copy)
            else:
                check(work.outputs(accept_triton_), work.outputs(accept_reference_), work.decoder)
                late = lambda: time.perf_counter() - started > arguments.budget  # noqa: E731
                results["rows"] += rows_of(name, batch, work, late, copy)
            del work
            torch.cuda.empty_cache()
            arguments.out.write_text(json.dumps(results, indent=1))
    print(f"{time.perf_counter() - started:.0f} s, written to {arguments.out}")


if __name__ == "__main__":
    main()
