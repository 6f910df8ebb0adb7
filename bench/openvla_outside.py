"""Sections of `bench.gpu_openvla` that look at the networks from outside: torch.compile's, and a profile by kernels."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from bench.openvla_baselines import compiled
from bench.openvla_floors import Cost, pass_cost, prefill_cost, vision_cost
from bench.timing import Run, captured

if TYPE_CHECKING:
    from bench.gpu_openvla import Bench


def compile_(bench: Bench) -> None:
    """Late: torch.compile throws workspaces away that captured graphs still use."""
    plain = bench.models.plain
    images = bench.inputs["redundant"].images
    tower = plain["redundant"].vision_backbone
    parts = [part for part in (tower.featurizer, tower.fused_featurizer) if part is not None]
    blocks = [block for part in parts for block in part.blocks]
    for mode in ("reduce-overhead", "max-autotune"):
        variant = f"torch.compile {mode}, graph"

        def row(work: str, run: Run, cost: Cost, variant: str = variant) -> None:
            began = time.perf_counter()
            if began - bench.started > bench.options.budget:
                bench.emit("compile", work, variant, note="not run: out of time")
                return
            try:
                replay = captured(run, bench.device)
                spent = time.perf_counter() - began
                bench.emit("compile", work, variant, bench.timer(replay), cost, compile_s=spent)
            except Exception as error:  # a baseline that torch cannot build is a result too
                bench.emit("compile", work, variant, note=f"failed: {type(error).__name__}: {str(error)[:300]}")

        with compiled([*plain["redundant"].backbone.layers], mode):
            for name in ("redundant", "oft"):
                main = plain[name]
                x, mask = main.embed(bench.inputs[name], main.encode_images(bench.inputs[name].images))
                row(
                    f"prefill, {x.shape[1]} tokens",
                    partial(main.backbone.prefill, x, mask, main.config.head.queries),
                    prefill_cost(main, x.shape[1]),
                )
            for code in bench.stages:
                main = plain[code]
                c = main.config.head
                prefix = main.prefill(bench.inputs[code], in_place=True)
                codes = torch.zeros(1, c.layers, c.steps, c.latent_dims, dtype=torch.int32, device=bench.device)
                tokens = prefix.mask.shape[1]
                row(
                    f"pass, {c.queries} queries, prefix {tokens}",
                    partial(main.decode, prefix, codes),
                    pass_cost(main, "hierarchical", tokens, c.queries),
                )
        with compiled(blocks, mode):
            row("vision, 2 images", partial(tower, images), vision_cost(tower, images.shape[1]))


def profile(bench: Bench) -> None:
    """Where the microseconds of the best stack's stages go: kernels of one replay, by name; and the time of none."""
    if bench.device.type != "cuda":
        return
    mains = bench.stacks[bench.best]
    main, inputs = mains["redundant"], bench.inputs["redundant"]
    features = main.encode_images(inputs.images)
    prefix = main.prefill(inputs, features, in_place=True)
    c = main.config.head
    codes = torch.zeros(1, c.layers, c.steps, c.latent_dims, dtype=torch.int32, device=bench.device)
    calls: dict[str, Run] = {
        "vision": partial(main.encode_images, inputs.images),
        "prefill": partial(main.prefill, inputs, features, in_place=True),
        "pass": partial(main.decode, prefix, codes),
    }
    for name, run in calls.items():
        replay = captured(run, bench.device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            replay()
            torch.cuda.synchronize()
        kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        spent: dict[str, list[float]] = {}
        for event in kernels:
            spent.setdefault(event.name[:90], []).append(event.time_range.elapsed_us())
        spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
        busy, reached = 0.0, spans[0][0] if spans else 0.0
        for start, end in spans:
            busy += max(end - max(start, reached), 0.0)
            reached = max(reached, end)
        whole = reached - spans[0][0] if spans else 0.0
        bench.emit("profile", name, bench.best, whole_us=whole, idle_us=whole - busy, kernels=len(kernels))
        for kernel, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:12]:
            bench.emit("profile", name, kernel, us=sum(times), count=len(times), us_each=sum(times) / len(times))
