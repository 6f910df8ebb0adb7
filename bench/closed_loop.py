"""Episodes a minute against the number of simulators, and of a plain loop: `python -m bench.closed_loop --help`.

The runner of `rsd-fast eval` plays the same kind of episodes with 1, 2, 4, ... simulators; beside it the loop that
people write: one environment, which draws both cameras at every control step, one chunk at a time. All in one run, on
one machine, with one policy. Time starts when the policy is loaded and ends with the last episode; building the
simulators is in it, so every simulator plays several episodes.

Busy shares: of the policy, the time in its calls; of the simulators, the mean; of the GPU, what nvidia-smi says, the
share of time in which something ran on it, drawing included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator, ScalarFormatter

from rsd_fast.decoding import Mode
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.evaluate.config import EvalConfig
from rsd_fast.evaluate.records import read_header
from rsd_fast.evaluate.runner import run
from rsd_fast.models.streaming import choose_device
from rsd_fast.sim.gl import draw_on
from rsd_fast.sim.suites import get_suite

PLAIN = "plain loop"
MODE: Mode = "sequential"


class GpuMonitor:
    """Samples nvidia-smi's utilisation once a second; None where there is no such program."""

    def __init__(self, device: str) -> None:
        index = torch.device(device).index or 0 if device.startswith("cuda") else 0
        self.command = ["nvidia-smi", f"--id={index}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        self.samples: list[float] = []

    @contextmanager
    def watching(self) -> Iterator[list[float]]:
        """The samples, while the block runs."""
        self.samples.clear()
        stop = threading.Event()
        thread = threading.Thread(target=self._sample, args=(stop,), daemon=True)
        thread.start()
        try:
            yield self.samples
        finally:
            stop.set()
            thread.join()

    def _sample(self, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            try:
                told = subprocess.run(self.command, capture_output=True, text=True, check=True, timeout=10).stdout
                self.samples.append(float(told))
            except (OSError, subprocess.SubprocessError, ValueError):
                return


def play_plainly(config: EvalConfig, episodes: int) -> dict[str, Any]:
    """The loop that people write; its episodes are the first ones of the suite's tasks."""
    suite = get_suite(config.suite)
    suite.prepare()
    device = choose_device(config.device)
    if device.type == "cuda":  # before anything uses it
        draw_on(device.index or 0)
    engine = RSDInferenceEngine.from_pretrained(config.policy, mode=MODE, device=device)
    tasks = suite.tasks[: len(config.tasks)]
    successes, steps, started = 0, 0, time.monotonic()
    for number, task in enumerate(tasks):
        env = suite.make_env(task, image_size=suite.image_size)
        share = episodes // len(tasks) + (number < episodes % len(tasks))
        for state in range(share):
            observation, _ = env.reset(seed=0, options={"init_state": state})
            ended = False
            while not ended:
                actions, _ = engine.generate_action(observation, task.instruction)
                for action in actions:
                    observation, _, terminated, truncated, _ = env.step(action)
                    steps += 1
                    ended = terminated or truncated
                    if ended:
                        break
            successes += terminated
        env.close()
    seconds = time.monotonic() - started
    return {"episodes": episodes, "seconds": round(seconds, 1), "successes": successes, "steps": steps}


def play(config: EvalConfig) -> dict[str, Any]:
    """The runner's episodes, and how busy everybody was."""
    if run(config):
        raise RuntimeError(f"episodes ended in errors; see {config.out}")
    rows = [json.loads(line) for line in (config.out / "episodes.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "outcome" in row]
    (usage,) = read_header(config.out)["sessions"]
    successes = sum(row["outcome"] == "success" for row in rows)
    return {**usage, "successes": successes, "steps": sum(row["steps"] for row in rows)}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the plain loop and one for each number of simulators."""
    tasks = tuple(task.name for task in get_suite(options.suite).tasks[: options.tasks])
    monitor = GpuMonitor(options.device)
    rows: list[dict[str, Any]] = []
    for workers in (0, *options.workers):
        trials = -(-max(workers, 1) * options.episodes // len(tasks))
        config = EvalConfig(
            suite=options.suite,
            tasks=tasks,
            trials=trials,
            modes=(MODE,),
            checkpoint=options.checkpoint,
            out=options.out / f"workers_{workers}",
            workers=workers or 1,
            batch=min(max(workers, 1), options.batch),
            device=options.device,
            resume=False,
        )
        with monitor.watching() as samples:
            row = play(config) if workers else play_plainly(config, options.episodes)
        row |= {"what": f"{workers} simulators" if workers else PLAIN, "workers": workers or 1}
        row["episodes_per_minute"] = round(60 * row["episodes"] / row["seconds"], 1)
        row["gpu_utilization"] = round(statistics.fmean(samples) / 100, 3) if samples else None
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Episodes a minute against simulators, beside as many times the first, and the plain loop."""
    (plain,) = (row for row in rows if row["what"] == PLAIN)
    scaled = [row for row in rows if row["what"] != PLAIN]
    workers = [row["workers"] for row in scaled]
    rates = [row["episodes_per_minute"] for row in scaled]
    figure, axes = plt.subplots(figsize=(5, 3.4), constrained_layout=True)
    axes.plot(workers, rates, "o-", label="rsd-fast eval")
    axes.plot(workers, [rates[0] * each / workers[0] for each in workers], ":", color="gray", label="in proportion")
    axes.axhline(plain["episodes_per_minute"], color="C1", linestyle="--", label="plain loop, one environment")
    axes.set(xscale="log", yscale="log", xticks=workers, xticklabels=workers)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set(xlabel="simulators", ylabel="episodes a minute")
    axes.legend(frameon=False)
    for name in (path.with_suffix(".png"), path.with_suffix(".svg")):
        figure.savefig(name, dpi=160)
    plt.close(figure)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, records and the plot")
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--tasks", type=int, default=4, help="the first so many of the suite")
    parser.add_argument("--episodes", type=int, default=8, help="for each simulator")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch", type=int, default=16, help="chunks that the policy decodes in one call at most")
    parser.add_argument("--checkpoint", default=None, help="default: the shipped one that knows the suite")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = measure(options)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    policy = EvalConfig(suite=options.suite, checkpoint=options.checkpoint).policy
    told = {"suite": options.suite, "checkpoint": policy, "mode": MODE, "gpu": gpu, "rows": rows}
    (options.out / "scaling.json").write_text(json.dumps(told, indent=2) + "\n")
    plot(rows, options.out / "scaling")


if __name__ == "__main__":
    main()
