"""Checks and times the accept op on a GPU: `python bench/gpu_accept.py --out results.json`, under 150 seconds.

A timed call is the first pass of a round whose draft main agrees with everywhere: all layers are accepted, the
sample finishes and its actions are decoded. Calls are unrolled into one CUDA graph, each with a state of its
own that is restored before every replay, outside the timed region; the time of a call is that of the replay
over the number of calls. At batches from 4096 on the calls read logits of their own, so that they come from
memory; the small ones find them in the L2 cache, as after a head that has just written them.

Bytes are what the op must move: logits and codes once, the codes that change, and the small buffers. The
ceiling is a device copy of 1 GiB, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import triton
from torch import Tensor

from rsd_fast.kernels.accept import AcceptParams, ActionDecoder, RoundState
from rsd_fast.kernels.accept.reference import accept_reference_
from rsd_fast.kernels.accept.triton import accept_triton_

SHAPES = {"L3 T8 D7 V5": (3, 8, 7, 5), "L8 T8 D16 V7": (8, 8, 16, 7)}
CALLS = {1: 256, 64: 64, 4096: 16, 65536: 4}  # batch: calls in a graph
COMPILED = {1: ("graph", "reduce-overhead"), 4096: ("graph",)}  # batch: how torch.compile is timed
OWN_LOGITS_FROM = 4096
ACTIONS, HIDDEN = 7, 64

Op = Callable[..., None]


@dataclass
class Work:
    """The calls of one graph; `restore` puts every state back to the start of its round."""

    logits: list[Tensor]
    states: list[RoundState]
    saved: dict[str, Tensor]
    live: dict[str, Tensor]
    codebook: Tensor
    slack: Tensor
    params: AcceptParams
    decoder: ActionDecoder
    actions: Tensor

    def restore(self) -> None:
        for name, tensor in self.saved.items():
            self.live[name].copy_(tensor)

    def call(self, op: Op, i: int) -> None:
        op(
            self.logits[i],
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

    def bytes(self) -> int:
        """What one call must move."""
        self.restore()
        before = self.live["codes"][0].clone()
        self.call(accept_triton_, 0)
        changed = int((self.live["codes"][0] != before).sum())
        batch, layers, steps, dims, _ = self.logits[0].shape
        elements = batch * steps * dims
        ints = layers * elements + changed + 2 * elements + batch * (3 + 3 + 2 * layers)
        floats = elements + self.actions[0].numel()
        return self.logits[0].numel() * self.logits[0].element_size() + 4 * (ints + floats)


def make_work(batch: int, sizes: tuple[int, int, int, int], calls: int) -> Work:
    layers, steps, dims, levels = sizes
    shape = (batch, layers, steps, dims, levels)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device="cuda")

    own = calls if batch >= OWN_LOGITS_FROM else 1
    logits = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(own)]
    live = {}
    for field in fields(RoundState):
        one = getattr(RoundState.new(1, layers, steps, dims, "cuda"), field.name)
        live[field.name] = one.new_zeros(calls, batch, *one.shape[1:])
    states = [RoundState(**{name: tensor[i] for name, tensor in live.items()}) for i in range(calls)]
    for state, x in zip(states, logits * (calls // own), strict=True):
        draft = x[:, : layers - 1].argmax(-1).int()  # the lowest of equal logits, as in the op
        state.begin_(draft, layers - 1, levels // 2)
    weights = (normal(HIDDEN, dims), normal(HIDDEN), normal(ACTIONS, HIDDEN), normal(ACTIONS))
    if dims == ACTIONS:  # such a codec's latents are actions, only normalised
        weights = (None, None, None, None)
    return Work(
        logits * (calls // own),
        states,
        {name: tensor.clone() for name, tensor in live.items()},
        live,
        normal(layers, dims, levels),
        torch.zeros(layers, dims, dtype=torch.int32, device="cuda"),
        AcceptParams(layers, "layer", "distance", steps * dims, 0.0, "main", True, False, 0.0),
        ActionDecoder(*weights, normal(ACTIONS), normal(ACTIONS)),
        torch.full((calls, batch, steps, ACTIONS), torch.nan, device="cuda"),
    )


def check(work: Work) -> None:
    """Triton and the reference agree on the data that is timed, and every sample finishes."""
    results = []
    for op in (accept_triton_, accept_reference_):
        work.restore()
        work.actions.fill_(torch.nan)
        work.call(op, 0)
        outputs = {name: tensor[0].clone() for name, tensor in work.live.items()}
        results.append((outputs, work.actions[0].clone()))
    (got, got_actions), (wanted, wanted_actions) = results
    for name in got:
        if not torch.equal(got[name], wanted[name]):
            raise AssertionError(f"triton and the reference differ in {name}")
    torch.testing.assert_close(got_actions, wanted_actions, rtol=1e-4, atol=1e-4)
    assert bool(got["finished"].all()), "a sample did not finish"


def median_us(run: Callable[[], None], before: Callable[[], None], calls: int, seconds: float) -> float:
    """Median time of a call, over replays that fill about `seconds`, at least 5 and at most 200."""
    times = []
    started = time.perf_counter()
    while len(times) < 5 or (len(times) < 200 and time.perf_counter() - started < seconds):
        before()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times[1:])


def captured(work: Work, op: Op) -> Callable[[], None]:
    """All calls as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work.call(op, 0)
        work.call(op, 0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.all(op)
    return graph.replay


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
    us = median_us(lambda: target.copy_(source), lambda: None, 1, 0.5)
    return 2 * size / us / 1e3


def rows_of(name: str, batch: int, work: Work, out_of_time: Callable[[], bool], copy: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    moved = work.bytes()

    def row(variant: str, us: float | None, note: str = "") -> None:
        gbps = moved / us / 1e3 if us else None
        share = gbps / copy if gbps else None
        record = {"shape": name, "batch": batch, "variant": variant, "us": us, "bytes": moved}
        rows.append({**record, "gbps": gbps, "copy_share": share, "note": note})
        numbers = f"{us:10.2f} us  {gbps:8.1f} GB/s  {100 * share:5.1f} %" if us else note
        print(f"{name:14} {batch:6}  {variant:34} {numbers}", flush=True)

    calls, long = len(work.states), 0.4 if batch < 4096 else 1.0
    row("triton, CUDA graph", median_us(captured(work, accept_triton_), work.restore, calls, long))
    row("triton, launched", median_us(lambda: work.all(accept_triton_), work.restore, calls, long))
    row("torch, CUDA graph", median_us(captured(work, accept_reference_), work.restore, calls, long))
    row("torch, eager", median_us(lambda: work.all(accept_reference_), work.restore, calls, long))
    for how in COMPILED.get(batch, ()):
        variant = f"torch.compile, {how}" + (" (max-autotune)" if how == "graph" else "")
        if out_of_time():
            row(variant, None, "not run: out of time")
            continue
        try:
            torch._dynamo.reset()
            if how == "graph":
                run = captured(work, compiled(work, "max-autotune-no-cudagraphs"))
                row(variant, median_us(run, work.restore, calls, long))
            else:  # its own graph, replayed from Python, on one state
                op = compiled(work, how)
                for _ in range(5):
                    work.restore()
                    work.call(op, 0)
                row(variant, median_us(lambda op=op: work.call(op, 0), work.restore, 1, long))
        except Exception as error:  # a baseline that torch cannot build is a result too
            row(variant, None, f"failed: {type(error).__name__}: {str(error)[:200]}")
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
    parser.add_argument("--budget", type=float, default=110.0, help="seconds after which nothing is compiled")
    parser.add_argument("--batches", type=int, nargs="*", choices=sorted(CALLS), default=sorted(CALLS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; benches without a GPU are under pytest bench/")
    started = time.perf_counter()
    torch.manual_seed(0)
    copy = copy_bandwidth()
    results = {"machine": machine(copy), "rows": []}
    print(results["machine"])
    # The shapes that the targets are about come first, the longest compilations late.
    for batch in arguments.batches:
        for name, sizes in reversed(SHAPES.items()):
            work = make_work(batch, sizes, CALLS[batch])
            check(work)
            results["rows"] += rows_of(
                name, batch, work, lambda: time.perf_counter() - started > arguments.budget, copy
            )
            del work
            torch.cuda.empty_cache()
            arguments.out.write_text(json.dumps(results, indent=1))
    print(f"{time.perf_counter() - started:.0f} s, written to {arguments.out}")


if __name__ == "__main__":
    main()
