"""What the host pays to launch a round, and why (`python -m bench.gpu_round --launch`).

Every time is that of one call between two readings of `time.perf_counter_ns`. `idle`: the device was synchronised
before. `queued`: `DEPTH` calls in a row behind a kernel that keeps the device busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cuda_driver import Driver
from bench.rounds import INSTRUCTION, observation, percentiles
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.kernels.cuda import DeviceRound
from rsd_fast.nvtx import nvtx_range
from rsd_fast.observation import build_inputs
from rsd_fast.policy_round import PolicyRound, describe_state
from rsd_fast.runtime import CapturedStages, DeviceLoop, PackedBuffers

CHAINS = (1, 10, 50, 100, 200, 400)  # kernels
LOOPS = ((1, 1), (100, 1), (400, 1), (1, 100), (1, 400), (200, 200))  # kernels before the WHILE node, and inside
COUNT, WARM_UP = 504, 20
DEPTH = 8
BUSY = 2_000_000  # cycles, about a millisecond
FIRSTS = 8  # rounds built, to see first launches
REST = 0.005  # seconds

Row = dict[str, Any]
Call = Callable[[], object]


def nanoseconds(call: Call, count: int, before: Callable[[int], object] = lambda _: None) -> list[int]:
    """Of every call; `before` gets its number.

    Raises:
        RuntimeError: a call gives a status other than 0.
    """
    now, taken = time.perf_counter_ns, []
    for i in range(count):
        before(i)
        started = now()
        status = call()
        taken.append(now() - started)
        if status:
            raise RuntimeError(f"a call gave status {status}, expected 0")
    return taken


def idle(call: Call, count: int = COUNT, rest: float = 0.0) -> dict[str, float]:
    def before(_: int) -> None:
        torch.cuda.synchronize()
        if rest:
            time.sleep(rest)

    nanoseconds(call, WARM_UP, before)
    taken = nanoseconds(call, count, before)
    torch.cuda.synchronize()
    return percentiles(np.array(taken) * 1e-9)


def queued(call: Call, count: int = COUNT) -> dict[str, float]:
    def before(i: int) -> None:
        if i % DEPTH == 0:
            torch.cuda.synchronize()
            torch.cuda._sleep(BUSY)

    taken = nanoseconds(call, count, before)
    torch.cuda.synchronize()
    return percentiles(np.array(taken) * 1e-9)


def launch_row(name: str, call: Call, facts: Mapping[str, Any] = MappingProxyType({}), both: bool = True) -> Row:
    """Times a call; `facts` go into the row."""
    row = {"study": "launch", "name": name, **facts, "idle": idle(call)}
    if both:
        row["queued"] = queued(call)
    return row


def line(row: Row) -> str:
    """A row of the printed table."""
    nodes = f"{row.get('outside', ''):>6} {row.get('inside', ''):>6}"
    times = "".join(
        "  " + " ".join(f"{row[how][f'p{p}_us']:7.2f}" for p in (10, 50, 90)) if how in row else ""
        for how in ("idle", "queued")
    )
    expected = f"   by its nodes {row['expected_us']:.1f}" if "expected_us" in row else ""
    return f"{row['name']:46} {nodes}{times}{expected}"


TIMES = f"{'p10':>7} {'p50':>7} {'p90':>7}"
HEADER = f"{'us of host time (idle, queued)':46} {'nodes':>6} {'inside':>6}  {TIMES}  {TIMES}"


def fit(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, float]:
    """Median of idle launches as `us` plus so much a node, by least squares."""
    nodes = np.array([[1.0, *(row[column] for column in columns)] for row in rows])
    medians = np.array([row["idle"]["p50_us"] for row in rows])
    solved = np.linalg.lstsq(nodes, medians, rcond=None)[0].tolist()
    return dict(zip(("us", *(f"us_per_{column}" for column in columns)), solved, strict=True))


def expected(line_of: Row, outside: int, inside: int) -> float:
    """By a fit over loops."""
    return line_of["us"] + outside * line_of["us_per_outside"] + inside * line_of["us_per_inside"]


# ---- graphs of kernels that do nothing to speak of


class Chains:
    """Graphs of trivial kernels; kept alive. `chains[100]` is a line of a hundred."""

    def __init__(self) -> None:
        self._words = torch.zeros(2, device="cuda").split(1)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._others: list[torch.cuda.CUDAGraph] = []
        self.kernels(1)
        torch.cuda.synchronize()

    def kernels(self, count: int, word: int = 0) -> None:
        for _ in range(count):
            self._words[word].add_(1)

    def __getitem__(self, kernels: int) -> torch.cuda.CUDAGraph:
        if kernels not in self._graphs:
            self._graphs[kernels] = self._captured(lambda: self.kernels(kernels))
        return self._graphs[kernels]

    def raw(self, kernels: int) -> int:
        return self[kernels].raw_cuda_graph()

    def with_memsets(self, driver: Driver) -> int:
        """A hundred nodes, every tenth of them a memset."""

        def run() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            for _ in range(10):
                self.kernels(9)
                driver.do("cuMemsetD32Async", self._words[1].data_ptr(), 0, 1, stream)

        return self._other(run)

    def in_branches(self) -> int:
        """A hundred kernels and two branches."""

        def run() -> None:
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                self.kernels(50, word=1)
            self.kernels(50)
            here.wait_stream(side)

        return self._other(run)

    def _other(self, run: Callable[[], None]) -> int:
        self._others.append(self._captured(run))
        return self._others[-1].raw_cuda_graph()

    @staticmethod
    def _captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            run()
        return graph


def chain_rows(driver: Driver, chains: Chains, stream: int) -> Iterator[Row]:
    """Plain graphs: what a node costs on this host and driver, and what torch adds."""
    rows = []
    for kernels in CHAINS:
        executable = driver.instantiate(chains.raw(kernels))
        rows.append(
            launch_row(f"{kernels} kernels", driver.call("cuGraphLaunch", executable, stream), {"outside": kernels})
        )
        yield rows[-1]
    yield {"study": "fit", "name": "plain graphs, idle", **fit(rows, ("outside",))}
    for kernels in (CHAINS[0], CHAINS[-1]):
        chains[kernels].instantiate()
        yield launch_row(f"{kernels} kernels, graph.replay()", chains[kernels].replay, {"outside": kernels})
    for name, graph in (
        ("100 kernels in 10 child graphs", driver.chain([chains.raw(10)] * 10)),
        ("90 kernels, 10 memsets", chains.with_memsets(driver)),
        ("100 kernels in two branches", chains.in_branches()),
    ):
        launch = driver.call("cuGraphLaunch", driver.instantiate(graph), stream)
        yield launch_row(name, launch, {"outside": 100})
    side = torch.cuda.Stream().cuda_stream
    launch = driver.call("cuGraphLaunch", driver.instantiate(chains.raw(100)), side)
    yield launch_row("100 kernels, a stream of its own", launch, {"outside": 100})


# ---- rounds of the device loop


def device_round(
    head: Sequence[int], body: Sequence[int], finished: Tensor, inputs: PackedBuffers, outputs: PackedBuffers
) -> DeviceRound:
    """As `DeviceLoop` makes it, not uploaded."""
    buffers = [
        (packed.device_bytes.data_ptr(), packed.host_bytes.data_ptr(), packed.host_bytes.numel())
        for packed in (inputs, outputs)
    ]
    return DeviceRound(head, body, finished.data_ptr(), len(finished), *buffers)


def bare(made: DeviceRound, stream: int) -> Call:
    """`rsd_round_launch`: nothing but `cudaGraphLaunch`."""
    return partial(made._library.rsd_round_launch, made._handle, stream)


def loop_nodes(head: Sequence[int], body: Sequence[int]) -> dict[str, int]:
    """Nodes of a `DeviceRound`, from those of its parts: marks, two copies and the WHILE node; inside the condition."""
    return {"outside": sum(head) + len(head) + 4 + 2 + 1, "inside": sum(body) + 1}


def loop_rows(chains: Chains, stream: int) -> Iterator[Row]:
    """Rounds whose parts are trivial kernels, one pass each: what a node costs before the WHILE node, and inside."""
    finished = torch.ones(1, dtype=torch.int32, device="cuda")
    packed = PackedBuffers({"word": ((1,), torch.float32)}, torch.device("cuda"))
    rows = []
    for head, body in LOOPS:
        made = device_round([chains.raw(head)], [chains.raw(body)], finished, packed, packed)
        made.upload(stream)
        nodes = loop_nodes([head], [body])
        rows.append(launch_row(f"WHILE loop, {head} kernels + {body} inside", bare(made, stream), nodes))
        yield rows[-1]
    yield {"study": "fit", "name": "loops, idle", **fit(rows, ("outside", "inside"))}


def first_launches(make: Callable[[], DeviceRound], stream: int, upload: bool) -> dict[str, float]:
    """Of rounds just built."""
    taken = []
    for _ in range(FIRSTS):
        made = make()
        if upload:
            made.upload(stream)
        torch.cuda.synchronize()
        taken += nanoseconds(bare(made, stream), 1)
        torch.cuda.synchronize()
        made.close()
    return percentiles(np.array(taken) * 1e-9)


def captured_nodes(driver: Driver, captured: CapturedStages) -> dict[str, Row]:
    """Of every captured stage: nodes by kind, and whether they stand in a line."""
    stages = {**captured.head, "forward": captured.forward, "accept": captured.accept}
    facts: dict[str, Row] = {}
    for name, graph in stages.items():
        kinds, edges = driver.nodes(graph.raw_cuda_graph()), driver.edges(graph.raw_cuda_graph())
        facts[name] = {"nodes": kinds.total(), "kinds": dict(kinds), "straight": edges == max(kinds.total() - 1, 0)}
    return facts


def round_rows(driver: Driver, engine: RSDInferenceEngine, loops: Row, whole: bool) -> Iterator[Row]:
    """The round of an engine with the device loop.

    Args:
        driver: to launch with.
        engine: warmed up, with one round.
        loops: the fit of `loop_rows`; empty for none.
        whole: everything, or the launch of the round alone.
    """
    (made, loop) = next(iter(engine._rounds.values()))
    assert isinstance(loop, DeviceLoop)
    stream, captured = torch.cuda.current_stream().cuda_stream, loop.captured
    loop.run()
    passes = int(made.outputs.on_host["passes"].max())
    stages = captured_nodes(driver, captured)
    yield {"study": "stages", "name": f"{engine.mode}: nodes of stages", "passes": passes, "stages": stages}
    head = [graph.raw_cuda_graph() for graph in captured.head.values()]
    body = [captured.forward.raw_cuda_graph(), captured.accept.raw_cuda_graph()]
    head_nodes = [stages[name]["nodes"] for name in captured.head]
    body_nodes = [stages[name]["nodes"] for name in ("forward", "accept")]
    nodes = loop_nodes(head_nodes, body_nodes)
    facts = {"mode": engine.mode, **nodes}
    fitted = {"expected_us": expected(loops, **nodes)} if "us" in loops else {}
    row = partial(launch_row, facts={**facts, **fitted})
    launch = bare(loop._round, stream)
    yield row(f"{engine.mode}: round, cudaGraphLaunch", launch)
    yield row(f"{engine.mode}: round, DeviceLoop.launch()", loop.launch, both=False)
    if not whole:
        return
    for name, parts, size in (
        ("one pass", body, sum(body_nodes)),
        (f"{passes} passes without WHILE", head + body * passes, sum(head_nodes) + passes * sum(body_nodes)),
    ):
        executable = driver.instantiate(driver.chain(parts))
        call = driver.call("cuGraphLaunch", executable, stream)
        yield launch_row(f"{engine.mode}: {name}", call, {"mode": engine.mode, "outside": size})
    yield row(f"{engine.mode}: round, DeviceRound.launch()", partial(loop._round.launch, stream), both=False)
    side = torch.cuda.Stream().cuda_stream
    yield row(f"{engine.mode}: round, a stream of its own", bare(loop._round, side), both=False)
    yield {
        **{"study": "launch", "name": f"{engine.mode}: round, after {1e3 * REST:.0f} ms of sleep"},
        **{**facts, "idle": idle(launch, 100, REST)},
    }

    def upload_and_synchronize(_: int) -> None:
        torch.cuda.synchronize()
        loop._round.upload(stream)
        torch.cuda.synchronize()

    taken = nanoseconds(launch, COUNT, upload_and_synchronize)
    yield {
        **{"study": "launch", "name": f"{engine.mode}: round, uploaded before each launch"},
        **{**facts, "idle": percentiles(np.array(taken) * 1e-9)},
    }
    make = partial(device_round, head, body, captured.stages.finished, captured.stages.inputs, captured.stages.outputs)
    for upload in (False, True):
        name = f"{engine.mode}: first launch, {'' if upload else 'not '}uploaded"
        yield {
            **{"study": "launch", "name": name, **facts},
            "idle": first_launches(make, stream, upload),
        }


# ---- what Python adds


def python_rows(driver: Driver, stream: int) -> Iterator[Row]:
    """What stands around a launch, piece by piece, and what this host makes of calls."""

    def nothing() -> None:
        pass

    def stream_object() -> None:
        torch.cuda.current_stream().cuda_stream  # noqa: B018 - what building it costs

    def stream_handle() -> None:
        torch._C._cuda_getCurrentRawStream(0)

    def a_range() -> None:
        with nvtx_range("rsd/round"):
            pass

    def a_system_call() -> None:
        os.getppid()

    for name, call in (
        ("nothing", nothing),
        ("a call by ctypes", driver.version_call()),
        ("a system call", a_system_call),
        ("torch.cuda.current_stream().cuda_stream", stream_object),
        ("raw handle of the current stream", stream_handle),
        ("an NVTX range", a_range),
        ("cuEventRecord", driver.call("cuEventRecord", driver.event(), stream)),
    ):
        yield launch_row(name, call, both=False)


def path_rows(engine: RSDInferenceEngine) -> Iterator[Row]:
    """From an observation to actions, piece by piece: what `generate_action` does besides the round."""
    (made, loop) = next(iter(engine._rounds.values()))
    seen = observation()
    inputs = build_inputs([seen], [INSTRUCTION], engine.main.config, engine.tokenizer)
    host = made.outputs.on_host
    elements = host["codes"][0, 0].numel()

    def read(made: PolicyRound = made) -> None:
        host["actions"].clone()
        describe_state(host, elements)

    def generate() -> None:
        engine.generate_action(seen, INSTRUCTION)

    def build() -> None:
        build_inputs([seen], [INSTRUCTION], engine.main.config, engine.tokenizer)

    def times() -> None:
        loop.milliseconds()

    default = torch.get_num_threads()
    for threads in sorted({default, 1}, reverse=True):
        torch.set_num_threads(threads)
        for name, call in (
            ("build_inputs", build),
            ("PolicyRound.fill", partial(made.fill, inputs)),
            ("loop.run()", loop.run),
            ("loop.milliseconds()", times),
            ("actions and infos", read),
            ("generate_action", generate),
        ):
            row = {"study": "path", "name": f"{name}, {threads} threads", "mode": engine.mode, "threads": threads}
            yield {**row, "idle": idle(call, 200)}
    torch.set_num_threads(default)
