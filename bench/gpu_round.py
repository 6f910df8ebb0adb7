"""Rounds of a policy on a GPU, by mode and runtime: `python -m bench.gpu_round --out round.json`, under 90 seconds.

A round is what a robot waits for after its pictures are in host memory: copy in, vision, prefill, draft, passes,
dequantisation, copy out. The same observation goes through every mode and runtime, so passes are the same. `launch` is
the host's time in the call that starts a round of the device loop.

Modes differ in what they compute; a ratio is to `sequential` with the same runtime. `eager` is the baseline of the
runtimes: the same PyTorch code, kernel by kernel, with the fused tail.

`--launch` runs another study, in under 60 seconds: what a launch costs the host and why (`bench.gpu_launch`), and why
rounds differ in time (`bench.gpu_spread`).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import gpu_launch, gpu_spread
from bench.cuda_driver import Driver
from bench.gpu_accept import copy_bandwidth, machine
from bench.rounds import INSTRUCTION, MODES, observation, percentiles
from rsd_fast.decoding import Mode
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.runtime import DeviceLoop

RUNTIMES = ("device-loop", "graph", "eager")  # what matters first: an eager round takes tens of milliseconds
STUDIED: tuple[Mode, ...] = ("rsd", "sequential", "parallel")  # by --launch; the first one in every variant


@torch.inference_mode()
def time_rounds(engine: RSDInferenceEngine, rounds: int) -> dict[str, Any]:
    """Wall time of `rounds` rounds, one after the other, with inputs already in host memory."""
    engine.generate_action(observation(), INSTRUCTION)
    (made, loop) = next(iter(engine._rounds.values()))
    for _ in range(10):
        loop.run()
    gc.collect()
    gc.disable()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        loop.run()
        seconds.append(time.perf_counter() - started)
    gc.enable()
    stages = {name: 1e3 * spent for name, spent in loop.milliseconds().items()}
    return {**percentiles(seconds), "passes": int(made.outputs.on_host["passes"][0]), "stages_us": stages}


@torch.inference_mode()
def time_launches(engine: RSDInferenceEngine, rounds: int) -> dict[str, float]:
    """The host's time to start a round, each waited for before the next."""
    loop = next(iter(engine._rounds.values()))[1]
    assert isinstance(loop, DeviceLoop)
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        loop.launch()
        seconds.append(time.perf_counter() - started)
    torch.cuda.synchronize()
    return percentiles(seconds[rounds // 10 :])


def calls(engine: RSDInferenceEngine, rounds: int) -> dict[str, float]:
    """Wall time of `generate_action`, checks and stacking of the observation included."""
    seen, seconds = observation(), []
    for _ in range(rounds):
        started = time.perf_counter()
        engine.generate_action(seen, INSTRUCTION)
        seconds.append(time.perf_counter() - started)
    return percentiles(seconds[rounds // 10 :])


def launch_note(row: dict[str, Any]) -> str:
    if "launch" not in row:
        return ""
    return f"   launch {row['launch']['p50_us']:.1f} us (p99 {row['launch']['p99_us']:.1f})"


def study(out: Path, checkpoint: str | None, rounds: int, results: dict[str, Any]) -> None:
    """The host's time of launches, and the spread of rounds; rows are written as they come."""
    failed: list[str] = []

    def emit(row: dict[str, Any]) -> None:
        results["rows"].append(row)
        out.write_text(json.dumps(results))
        if row["study"] == "rounds":
            print(gpu_spread.line(row), flush=True)
        elif "idle" in row:
            print(gpu_launch.line(row), flush=True)
        else:
            print({name: value for name, value in row.items() if name != "study"}, flush=True)

    def take(part: str, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Emits the rows of a part and gives the last one."""
        row: dict[str, Any] = {}
        try:
            for row in rows:
                emit(row)
        except Exception as error:  # the other parts still count; said again at the end
            traceback.print_exc()
            failed.append(part)
            emit({"study": "failed", "name": part, "error": f"{type(error).__name__}: {error}"})
        return row

    started = time.perf_counter()
    results["host"] = gpu_spread.host_description() | gpu_spread.machine_state()
    print(results["host"])
    emit(gpu_spread.host_alone())
    driver, stream = Driver(), torch.cuda.current_stream().cuda_stream
    chains = gpu_launch.Chains()
    print(gpu_launch.HEADER)
    with gpu_spread.collector(on=False):
        take("python", gpu_launch.python_rows(driver, stream))
        take("chains", gpu_launch.chain_rows(driver, chains, stream))
        loops = take("loops", gpu_launch.loop_rows(chains, stream))
    for mode in STUDIED:
        engine = RSDInferenceEngine.from_pretrained(checkpoint, mode=mode, device="cuda", runtime="device-loop")
        engine.generate_action(observation(), INSTRUCTION)
        print(f"{mode}, {time.perf_counter() - started:.0f} s\n{gpu_spread.HEADER}")
        whole = mode == STUDIED[0]
        take(f"{mode}, spread", gpu_spread.spread_rows(driver, engine, rounds, whole))
        print(gpu_launch.HEADER)
        with gpu_spread.collector(on=False):
            take(f"{mode}, round", gpu_launch.round_rows(driver, engine, loops, whole))
            if whole:
                take(f"{mode}, path", gpu_launch.path_rows(engine))
    print(f"{time.perf_counter() - started:.0f} s")
    if failed:
        raise SystemExit(f"parts failed: {failed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--checkpoint", default=None, help="policy; default the shipped one")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--launch", action="store_true", help="what launches cost and why rounds differ, instead")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one")
    results: dict[str, Any] = {"machine": machine(copy_bandwidth()), "rounds": arguments.rounds, "rows": []}
    print(results["machine"])
    if arguments.launch:
        study(arguments.out, arguments.checkpoint, arguments.rounds, results)
        return
    print(f"{'mode':12} {'runtime':12} {'passes':>6} {'p50 us':>9} {'p99 us':>9} {'p99/p50':>8} {'x sequential':>12}")
    sequential: dict[str, float] = {}
    for runtime in arguments.runtimes:
        for mode in MODES:
            started = time.perf_counter()
            engine = RSDInferenceEngine.from_pretrained(
                arguments.checkpoint, mode=mode, device="cuda", runtime=runtime
            )
            row: dict[str, Any] = {"mode": mode, "runtime": runtime, "construction_s": time.perf_counter() - started}
            rounds = arguments.rounds if runtime != "eager" else min(arguments.rounds, 50)
            row |= time_rounds(engine, rounds) | {"rounds": rounds, "memory": engine.memory()}
            row["call"] = calls(engine, min(rounds, 200))
            if runtime == "device-loop":
                row["launch"] = time_launches(engine, 500)
            sequential.setdefault(runtime, row["p50_us"])
            row["x_sequential"] = sequential[runtime] / row["p50_us"]
            results["rows"].append(row)
            print(
                f"{mode:12} {runtime:12} {row['passes']:6} {row['p50_us']:9.1f} {row['p99_us']:9.1f} "
                f"{row['p99_over_p50']:8.3f} {row['x_sequential']:12.2f}"
                + launch_note(row),
                flush=True,
            )
            arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
