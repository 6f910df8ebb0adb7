"""Why rounds differ in time: `python -m bench.gpu_round --launch`.

Of every round: what the caller waits, the GPU's own time by its clock (from the first mark of the device loop to the
last), what lies between the two (the launch, and hearing of the end), the parts of the GPU's time, and the number of
passes. Rounds with different numbers of passes are different work: their spread is told apart from that of equal ones.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cuda_driver import Driver
from bench.gpu_launch import bare
from bench.rounds import INSTRUCTION, observation, percentiles
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.observation import build_inputs
from rsd_fast.policy_round import PolicyRound
from rsd_fast.runtime import DeviceLoop, RoundLoop

SLOW = 0.02  # share of rounds that is looked at as slow
OBSERVATIONS = 24  # of the mixed variant
WARM_UP = 20

Row = dict[str, Any]


@dataclass(frozen=True)
class Rounds:
    """Seconds by round; `parts` are the GPU's, in order."""

    host: np.ndarray
    parts: dict[str, np.ndarray]
    passes: np.ndarray

    @property
    def gpu(self) -> np.ndarray:
        return np.sum(list(self.parts.values()), axis=0)

    @property
    def outside(self) -> np.ndarray:
        return self.host - self.gpu


def measure(
    made: PolicyRound,
    loop: RoundLoop,
    count: int,
    inputs: Sequence[PolicyInputs] = (),
    run: Callable[[], object] | None = None,
) -> Rounds:
    """`count` rounds, one after the other.

    Args:
        made: its round; not filled unless there are `inputs`.
        loop: the loop of the round.
        count: rounds.
        inputs: filled in turn, before the time of a round starts.
        run: instead of `loop.run`.
    """
    run, now, parts_of = run or loop.run, time.perf_counter_ns, part_times(loop)
    passes_on_host = made.outputs.on_host["passes"].numpy()
    host, parts, passes = [], [], []
    for i in range(-WARM_UP, count):
        if inputs:
            made.fill(inputs[i % len(inputs)])
        started = now()
        run()
        taken = now() - started
        if i >= 0:
            host.append(taken)
            parts.append(parts_of())
            passes.append(int(passes_on_host[0]))
    columns = np.array([list(part.values()) for part in parts]).T * 1e-3
    names = list(parts[0])
    return Rounds(np.array(host) * 1e-9, dict(zip(names, columns, strict=True)), np.array(passes))


def part_times(loop: RoundLoop) -> Callable[[], dict[str, float]]:
    """Gives the milliseconds of a round's parts; of the device loop with the copies apart."""
    if not isinstance(loop, DeviceLoop):
        return loop.milliseconds
    names = ("copy in", *loop.captured.head, "passes", "copy out")
    return lambda: dict(zip(names, loop._round.milliseconds(), strict=True))


def describe(rounds: Rounds) -> Row:
    """Everything that is told of a run of rounds, JSON-able."""
    passes = sorted(set(rounds.passes.tolist()))
    return {
        "rounds": len(rounds.host),
        "host": percentiles(rounds.host),
        "gpu": percentiles(rounds.gpu),
        "outside": percentiles(rounds.outside),
        "parts": {name: percentiles(part) for name, part in rounds.parts.items()},
        "by_passes": {
            str(number): {
                "rounds": int((rounds.passes == number).sum()),
                "host": percentiles(rounds.host[rounds.passes == number]),
                "gpu": percentiles(rounds.gpu[rounds.passes == number]),
            }
            for number in passes
        },
        "slow": slow_rounds(rounds),
        "tenths_p50_us": [1e6 * float(np.median(part)) for part in np.array_split(rounds.host, 10) if len(part)],
        "tick_ns": tick(rounds),
        "host_us": np.round(rounds.host * 1e6, 1).tolist(),
        "gpu_us": np.round(rounds.gpu * 1e6, 1).tolist(),
        "passes": rounds.passes.tolist(),
    }


def tick(rounds: Rounds) -> int:
    """Nanoseconds by which the GPU's clock moves on: what all times are multiples of."""
    return int(np.gcd.reduce(np.round(1e9 * np.concatenate(list(rounds.parts.values()))).astype(np.int64)))


def slow_rounds(rounds: Rounds, share: float = SLOW) -> Row:
    """The slowest by what the caller waits: microseconds over the median, by part, and how many stand together.

    The median of a part is of the rounds with as many passes.
    """
    slow = rounds.host >= np.quantile(rounds.host, 1 - share)
    excess = {
        name: 1e6 * float((part - usual(part, rounds.passes))[slow].mean())
        for name, part in {**rounds.parts, "outside": rounds.outside}.items()
    }
    bursts = int(slow[0]) + int((slow[1:] & ~slow[:-1]).sum())
    return {"rounds": int(slow.sum()), "bursts": bursts, "excess_us": excess}


def usual(part: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """For every round the median of those with as many passes."""
    medians = {number: np.median(part[passes == number]) for number in set(passes.tolist())}
    return np.array([medians[number] for number in passes.tolist()])


# ---- the machine


def machine_state() -> Row:
    """Of CPU and GPU, at this moment; None where the machine does not tell."""
    tasks = len(list(Path("/proc/self/task").iterdir()))
    return {"cpu_mhz": cpu_mhz(), "load": os.getloadavg()[0], "tasks": tasks, "gpu": gpu_clocks()}


def host_description() -> Row:
    """What the host is."""
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    governor = _lines("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "governor": governor[0] if governor else None,
        "kernel": f"{platform.release()} {platform.version()}",
        "driver": next(iter(_lines("/proc/driver/nvidia/version")), None),
        "set": sorted(name for name in os.environ if name.startswith(("CUDA_", "NVTX_", "NSYS_"))),
    }


def cpu_mhz() -> dict[str, float] | None:
    values = [float(line.split(":", 1)[1]) for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)} if values else None


def gpu_clocks() -> str | None:
    """SM and memory clock (MHz), state, temperature (C), power (W), reasons why clocks are down."""
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "clocks.sm,clocks.mem,pstate,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def throttled() -> int | None:
    """How often the kernel has stopped this container for using up its share of the CPUs."""
    for path in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        for line in _lines(path):
            if line.startswith("nr_throttled"):
                return int(line.split()[1])
    return None


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


@contextmanager
def watched() -> Iterator[Row]:
    """Fills in how often the process was stopped meanwhile."""
    row: Row = {}
    before, stopped = resource.getrusage(resource.RUSAGE_SELF), throttled()
    yield row
    after, stopped_after = resource.getrusage(resource.RUSAGE_SELF), throttled()
    row["preempted"], row["waited"] = after.ru_nivcsw - before.ru_nivcsw, after.ru_nvcsw - before.ru_nvcsw
    row["throttled"] = None if stopped is None or stopped_after is None else stopped_after - stopped


@contextmanager
def collector(on: bool) -> Iterator[None]:
    gc.collect()
    (gc.enable if on else gc.disable)()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def one_core() -> Iterator[None]:
    """This thread stays on the last core that it may use."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def host_alone(count: int = 1000, seconds: float = 0.001) -> Row:
    """The same sum of Python numbers, over and over, about a millisecond each: how steady is this host by itself?"""
    numbers = range(10_000)
    started = time.perf_counter()
    sum(numbers)
    numbers = range(max(1, int(len(numbers) * seconds / (time.perf_counter() - started))))
    with collector(on=False), watched() as row:
        taken = []
        for _ in range(count):
            started = time.perf_counter()
            sum(numbers)
            taken.append(time.perf_counter() - started)
    return {"study": "host alone", "name": "a sum in Python", **percentiles(taken), **row}


# ---- the study


def spread_rows(driver: Driver, engine: RSDInferenceEngine, count: int, whole: bool) -> Iterator[Row]:
    """Rounds of an engine with the device loop.

    Args:
        driver: for rounds that are waited for by an event.
        engine: warmed up, with one round.
        count: rounds of a variant.
        whole: every variant, or the plain one alone.
    """
    (made, loop) = next(iter(engine._rounds.values()))
    assert isinstance(loop, DeviceLoop)

    def row(variant: str, *, on: bool = False, **settings: Any) -> Row:
        with collector(on), watched() as stopped:
            rounds = measure(made, loop, count, **settings)
        name = {"study": "rounds", "name": f"{engine.mode}, {variant}", "mode": engine.mode, "variant": variant}
        return {**name, **describe(rounds), **stopped, "machine": machine_state()}

    yield row("same observation")
    if not whole:
        return
    yield row("garbage collection on", on=True)
    with one_core():
        yield row("one core")
    stream, event = torch.cuda.current_stream().cuda_stream, driver.event()
    launch = bare(loop._round, stream)
    record, wait = driver.call("cuEventRecord", event, stream), driver.call("cuEventSynchronize", event)

    def by_event() -> None:
        if status := launch() or record() or wait():
            raise RuntimeError(f"got CUDA's status {status}, expected 0")

    yield row("waited for by an event", run=by_event)
    tokens = made.inputs.on_host["tokens"].shape[1]
    inputs = [
        build_inputs([observation(seed)], [INSTRUCTION], engine.main.config, engine.tokenizer).first_tokens(tokens)
        for seed in range(OBSERVATIONS)
    ]
    yield row("many observations", inputs=inputs)


def line(row: Row) -> str:
    """A row of the printed table."""
    times = " ".join(
        f"{row[what]['p50_us']:8.1f} {row[what]['p99_us']:8.1f} {row[what]['p99_over_p50']:6.3f}"
        for what in ("host", "gpu", "outside")
    )
    excess = sorted(row["slow"]["excess_us"].items(), key=lambda pair: -pair[1])[:3]
    why = ", ".join(f"{name} {us:+.0f}" for name, us in excess)
    stopped = f"preempted {row['preempted']}, throttled {row['throttled']}"
    lines = [f"{row['name']:34} {times}   slow {row['slow']['rounds']} in {row['slow']['bursts']}: {why}; {stopped}"]
    for passes, of in row["by_passes"].items() if len(row["by_passes"]) > 1 else ():
        times = " ".join(
            f"{of[what]['p50_us']:8.1f} {of[what]['p99_us']:8.1f} {of[what]['p99_over_p50']:6.3f}"
            for what in ("host", "gpu")
        )
        label = f"  {passes} passes, {of['rounds']} rounds"
        lines.append(f"{label:34} {times}")
    return "\n".join(lines)


COLUMNS = (f"{what:>8} {'p99':>8} {'ratio':>6}" for what in ("host p50", "gpu p50", "between"))
HEADER = " ".join([f"{'us':34}", *COLUMNS])
