"""`rsd-fast profile`: rounds of a policy for Nsight Systems, Nsight Compute or torch's own profiler."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.evaluate.config import ProfileConfig

# Set in the environment of what Nsight Systems or Nsight Compute starts. CUPTI serves one profiler at a time.
NSIGHT = ("NSYS_PROFILING_SESSION_ID", "NV_NSIGHT_INJECTION_PORT_BASE", "NV_COMPUTE_PROFILER_PERFWORKS_DIR")


def run(config: ProfileConfig) -> None:
    """Runs `config.rounds` rounds inside a cudaProfilerApi range, and writes a trace where no Nsight is watching."""
    console = Console()
    engine = RSDInferenceEngine.from_pretrained(
        config.checkpoint,
        mode=config.mode,
        draft=config.draft,
        device=config.device,
        runtime=config.runtime,
        batch_sizes=(config.batch,),
    )
    seen = noise(engine.main.config.vision.image_size)
    batch = [seen] * config.batch, [config.instruction] * config.batch
    for _ in range(config.warmup):
        engine.generate_actions(*batch)
    engine.reset_stats()
    watched = any(name in os.environ for name in NSIGHT)
    trace = None if watched else config.out
    with capture_range(), torch_trace(trace):
        for _ in range(config.rounds):
            engine.generate_actions(*batch)
    stats = engine.stats()
    console.print(f"{config.rounds} rounds, {config.mode}, runtime {engine.runtime}, device {engine.device}")
    console.print(f"passes {stats['mean_passes']:.2f}; ms p50 " + stages(stats["latency_ms"]))
    if trace is not None:
        console.print(f"trace: {trace} (open it in Perfetto or chrome://tracing)")
    if not watched:
        for line in nsight_commands(sys.argv[1:]):
            console.print(line, soft_wrap=True, highlight=False)


def noise(size: int) -> dict[str, np.ndarray]:
    """One observation; what is seen decides the number of passes, not their time."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return {"full_image": images[0], "wrist_image": images[1], "state": np.zeros(8, np.float32)}


def stages(latency: dict[str, dict[str, float]]) -> str:
    """Medians of a run's stages on one line."""
    return ", ".join(f"{name} {values['p50']:.3f}" for name, values in latency.items())


@contextmanager
def capture_range() -> Iterator[None]:
    """What `--capture-range=cudaProfilerApi` and `--profile-from-start off` look at."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


@contextmanager
def torch_trace(path: Path | None) -> Iterator[None]:
    """Chrome's trace format, by torch's profiler; nothing for None."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as recorded:
        yield
    recorded.export_chrome_trace(str(path))


def nsight_commands(words: list[str]) -> list[str]:
    """The command lines that run the same rounds under Nsight Systems and Nsight Compute."""
    command = shlex.join(["rsd-fast", *words])
    lines = [
        "Nsight Systems: nsys profile --capture-range=cudaProfilerApi --capture-range-end=stop --cuda-graph-trace=node "
        f"--trace=cuda,nvtx,osrt -o rsd_fast {command}",
        "Nsight Compute: ncu --profile-from-start off --graph-profiling node --set full -k regex:accept "
        f"-o rsd_fast {command}",
    ]
    return lines if shutil.which("nsys") else [*lines, "nsys is not on the PATH here; the trace above is torch's own."]
