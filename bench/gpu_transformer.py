"""The language backbone at 7 B on a GPU: `python -m bench.gpu_transformer --out transformer.json`, some two minutes.

1. Every op of `rsd_fast.kernels.transformer` against its float32 reference, at the real shapes in bfloat16.
2. Every candidate tile of every product and of attention, timed inside CUDA graphs over distinct weights
   (`rsd_fast.kernels.transformer.tuning`). The table of the fastest is written beside the results, `*.table.json`: what
   goes into `kernels/transformer/tables/sm_XX.json`.
3. From sm_90 on: the table refined on passes of some layers, whose kernels start before the one in front has ended.
4. Passes, prefills and the two at once, each one CUDA graph, for plain torch, for the fused backbone with cuBLAS
   everywhere, with the package's table, with the table of this run, and (from sm_90 on) with kernels that start before
   the one in front has ended; and how far each is from float32.

Random weights in the geometry of Llama-2-7B, batch 1. Bytes are those of the weights. `--quick` times fewer candidates.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu_accept import copy_bandwidth, machine
from rsd_fast.kernels.transformer import AttentionTile, Plans, Tile, rms_norm, rotary_cache_, swiglu
from rsd_fast.kernels.transformer.plans import write_table
from rsd_fast.kernels.transformer.reference import rms_norm_reference, rotary_cache_reference_, swiglu_reference
from rsd_fast.kernels.transformer.tuning import (
    best_of,
    compile_in_pool,
    cosine,
    median_graph_us,
    model_work,
    normal,
    shared_bytes,
    sweep,
)
from rsd_fast.models.backbone import Backbone, BackboneConfig, rotary_table
from rsd_fast.models.fused_backbone import FusedBackbone

CONFIG = BackboneConfig(width=4096, depth=32, heads=32, mlp_width=11008, rms_eps=1e-6)
QUERIES = (8, 24, 64, 128)
SWEPT_QUERIES = (64, 24)
CACHED = 545
PREFILLS = (545, 608)
SWEPT_PREFILLS = (640,)  # one entry serves every prefill up to it
AHEAD = (0, 3, 6, 10)  # MB of weights that a kernel fetches while it waits for the one in front
LAYERS, TRIED, CLEARLY = 8, 9, 0.998  # a refinement: of so many layers, candidates of an op, and what counts as faster
CUDA = torch.device("cuda")


def check_rows() -> list[dict[str, Any]]:
    """The kernels without tiles, at the shapes of a prefill and of a pass."""
    rows = []
    width, heads, head_dim = CONFIG.width, CONFIG.heads, CONFIG.head_dim
    for tokens in (64, 608):
        x, weight = normal(tokens, width), 1 + 0.1 * normal(width)
        for parts in (0, 1, 4):
            delta = {0: None, 1: normal(tokens, width), 4: normal(4, tokens, width).float()}[parts]
            summed, normed = rms_norm(x, weight, CONFIG.rms_eps, delta)
            wanted = rms_norm_reference(x.float(), weight.float(), CONFIG.rms_eps, delta)
            rows.append((f"rms_norm, {parts} parts, {tokens} rows", min(map(cosine, (summed, normed), wanted))))
        gate_up = normal(tokens, 2 * CONFIG.mlp_width)
        rows.append((f"swiglu, {tokens} rows", cosine(swiglu(gate_up), swiglu_reference(gate_up.float()))))
        qkv = normal(1, tokens, 3 * width)
        cos, sin = (
            table[:, : head_dim // 2].contiguous()
            for table in rotary_table(CONFIG, torch.arange(tokens, device=CUDA))
        )
        shape = (2, 1, heads, tokens, head_dim)
        caches = [torch.empty(shape, device=CUDA, dtype=dtype) for dtype in (qkv.dtype, torch.float32)]
        rotary_cache_(qkv, cos, sin, *caches[0])
        rotary_cache_reference_(qkv.float(), cos, sin, *caches[1])
        rows.append((f"rotary_cache, {tokens} rows", cosine(*caches)))
    for name, near in rows:
        print(f"{name:36} cosine {near:.7f}")
    return [{"op": name, "cosine": near} for name, near in rows]


def sweep_all(quick: bool, seconds: float) -> list[dict[str, Any]]:
    """Times candidates until `seconds` are over; what matters most comes first."""
    started = time.perf_counter()
    work = model_work(CONFIG.width, CONFIG.mlp_width, CONFIG.heads, CACHED, SWEPT_QUERIES, SWEPT_PREFILLS)
    shared = shared_bytes()
    jobs = [(item, choice) for item in work for choice in item.candidates(shared, quick)]
    compile_in_pool(jobs)
    print(f"{len(jobs)} candidates, compiled in {time.perf_counter() - started:.0f} s")
    rows: list[dict[str, Any]] = []
    for item in work:
        if time.perf_counter() - started > seconds:
            print(f"not timed for want of time: {item.key} at {item.rows} rows")
            continue
        found = list(sweep(item, item.candidates(shared, quick)))
        rows += found
        timed = sorted((row for row in found if row["us"] is not None), key=lambda row: row["us"])
        failed = [row for row in found if row["us"] is None]
        for row in (*timed[:3], *(row for row in timed[3:] if isinstance(row["choice"], str))):
            what = row["choice"] if isinstance(row["choice"], str) else " ".join(map(str, row["choice"].values()))
            speed = f"{row['us']:8.2f} us {row['gbps']:7.0f} GB/s"
            print(f"{row['key']:26} {row['rows']:4} rows  {speed}  {what}", flush=True)
        if failed:
            print(f"    {len(failed)} failed, the first {failed[0]['choice']}: {failed[0]['note']}")
        torch.cuda.empty_cache()
    return rows


def choice_of(row: dict[str, Any]) -> Any:
    """A row's choice as the kernels take it."""
    choice = row["choice"]
    if isinstance(choice, str):
        return choice
    return AttentionTile(**choice) if " attention " in row["key"] else Tile(**choice)


@torch.inference_mode()
def refine(backbone: Backbone, rows: list[dict[str, Any]], table: dict[str, Any], queries: int, seconds: float) -> Any:
    """Descends from the fastest alone to the fastest together: passes of some layers, one choice changed at a time.

    Kernels that overlap are fast or slow together: what leaves room for the next one may win though it is slower alone.
    Changes the table's entries for `queries`; returns the bytes ahead that were best with them, and what was tried.
    """
    started = time.perf_counter()
    few = Backbone(replace(CONFIG, depth=0))
    few.config, few.layers, few.norm = replace(CONFIG, depth=LAYERS), backbone.layers[:LAYERS], backbone.norm
    work = model_work(CONFIG.width, CONFIG.mlp_width, CONFIG.heads, CACHED, (queries,), ())
    work.sort(key=lambda item: -item.bytes)
    timed = sorted((row for row in rows if row["us"] is not None), key=lambda row: row["us"])
    best_first = {
        item: [row for row in timed if (row["key"], row["rows"]) == (item.key, queries)][:TRIED] for item in work
    }
    compile_in_pool([(item, choice_of(row)) for item in work for row in best_first[item]], ahead=0)
    inputs = Inputs(CACHED, queries)
    tried: list[dict[str, Any]] = []

    def passes(ahead: int | None) -> float:
        fused = FusedBackbone(few, 1024, Plans((table,), "being refined"), ahead)
        keys, values, _ = fused.prefill(inputs.prefix, inputs.mask)
        run = lambda: fused.decode(inputs.queries, keys, values, inputs.mask, inputs.sees)  # noqa: E731
        us = median_graph_us(run, LAYERS, 15)
        tried.append({"us": us, "ahead": ahead, **{item.key: table[item.key][str(queries)] for item in work}})
        return us

    best, us = None, passes(None)
    for _ in range(2):
        for ahead in (None, *(10**6 * megabytes for megabytes in AHEAD)):
            if ahead != best and (found := passes(ahead)) < us * CLEARLY:
                best, us = ahead, found
        for item in work:
            entries = table[item.key]
            kept = entries[str(queries)]
            for row in best_first[item]:
                if row["choice"] == kept or time.perf_counter() - started > seconds:
                    continue
                entries[str(queries)] = row["choice"]
                if (found := passes(best)) < us * CLEARLY:
                    kept, us = row["choice"], found
            entries[str(queries)] = kept
            print(f"{queries} queries, {item.key:26} {us:7.2f} us a layer, ahead {best}, {kept}", flush=True)
    return best, tried


def make_backbone() -> Backbone:
    """Random weights of a size that keeps hidden states in range."""
    with torch.device("meta"):
        backbone = Backbone(CONFIG)
    backbone = backbone.to(torch.bfloat16).to_empty(device=CUDA).eval()
    torch.manual_seed(0)
    for name, parameter in backbone.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1 if "norm" in name else 0.02)
    return backbone.requires_grad_(False)


class Inputs:
    """One observation's prefix, with padding in its last 5 tokens, and queries."""

    def __init__(self, prefix: int, queries: int) -> None:
        torch.manual_seed(prefix + queries)
        self.prefix, self.queries = normal(1, prefix, CONFIG.width), normal(1, queries, CONFIG.width)
        self.mask = torch.ones(1, prefix, dtype=torch.bool, device=CUDA)
        self.mask[:, -5:] = False
        layer = torch.arange(queries, device=CUDA) // 8
        self.sees = layer[:, None] >= layer[None]


@torch.inference_mode()
def float32_results(backbone: Backbone, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Hidden states of prefix and queries, with one layer at a time in float32."""
    one = Backbone(BackboneConfig(**{**vars(CONFIG), "depth": 1})).to(CUDA).eval()
    one.norm = nn.Identity()
    x, queries = inputs.prefix.float(), inputs.queries.float()
    for layer in backbone.layers:
        one.layers[0].load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
        keys, values, hidden = one.prefill(x, inputs.mask)
        queries = one.decode(queries, keys, values, inputs.mask, inputs.sees)
        x = hidden
    weight = backbone.norm.weight.float()
    x, queries = (nn.functional.rms_norm(y, (CONFIG.width,), weight, CONFIG.rms_eps) for y in (x, queries))
    return x, queries


@torch.inference_mode()
def time_backbone(name: str, backbone: Backbone, wanted: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """Every stage of one variant, in milliseconds, and its distance from float32."""
    rows = []

    def add(stage: str, run: Any, near: float | None = None) -> None:
        ms = median_graph_us(run, 1) / 1e3
        rows.append({"variant": name, "stage": stage, "ms": ms, "cosine": near})
        print(f"{name:24} {stage:24} {ms:7.3f} ms" + ("" if near is None else f"  cosine {near:.6f}"), flush=True)

    for queries in QUERIES:
        inputs = Inputs(CACHED, queries)
        keys, values, hidden = backbone.prefill(inputs.prefix, inputs.mask, queries)
        near = None
        if queries == 64:
            mask = inputs.mask
            add("accuracy of the prefix", lambda: None, cosine(hidden[mask], wanted[0][mask]))
            near = cosine(backbone.decode(inputs.queries, keys, values, mask, inputs.sees), wanted[1])
        add(
            f"pass, {queries} queries",
            lambda: backbone.decode(inputs.queries, keys, values, inputs.mask, inputs.sees),  # noqa: B023
            near,
        )
    for prefix in PREFILLS:
        inputs = Inputs(prefix, 64)
        add(f"prefill, {prefix} tokens", lambda: backbone.prefill(inputs.prefix, inputs.mask, 64))  # noqa: B023
    for queries in (24, 64):
        inputs = Inputs(CACHED, queries)
        add(
            f"prefill + {queries} riders",
            lambda: backbone.joint(inputs.prefix, inputs.mask, inputs.queries, inputs.sees, None, queries),  # noqa: B023
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="fewer candidates")
    parser.add_argument("--no-sweep", action="store_true", help="only the checks and the whole backbone")
    parser.add_argument("--refine", type=float, default=25.0, help="seconds of refinement a number of queries; 0: none")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds after which no other product is timed")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; benches without a GPU are under pytest bench/")
    started = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(copy_bandwidth())}
    print(results["machine"])

    def save() -> None:
        arguments.out.write_text(json.dumps(results, indent=1))

    results["checks"] = check_rows()
    save()
    table: dict[str, Any] = {}
    if not arguments.no_sweep:
        results["candidates"] = sweep_all(arguments.quick, arguments.budget)
        table = best_of(results["candidates"])
        write_table(arguments.out.with_suffix(".table.json"), table)
        save()
    backbone = make_backbone()
    wanted = float32_results(backbone, Inputs(CACHED, 64))
    results["stages"] = time_backbone("plain torch", backbone, wanted)
    save()
    variants: dict[str, tuple[Plans, int | None]] = {
        "fused, cuBLAS": (Plans(), None),
        "fused, package's table": (Plans.of(CUDA), None),
    }
    best = Plans.of(CUDA)
    if table:
        variants["fused, this table"] = Plans((copy.deepcopy(table),), "this run"), None
        best = Plans((table,), "this run, refined")
    if table and arguments.refine > 0 and torch.cuda.get_device_capability()[0] >= 9:
        for queries in SWEPT_QUERIES:
            ahead, tried = refine(backbone, results["candidates"], table, queries, arguments.refine)
            results[f"refined, {queries} queries"] = {"ahead": ahead, "tried": tried}
            write_table(arguments.out.with_suffix(".table.json"), table)
            save()
    if torch.cuda.get_device_capability()[0] >= 9:
        variants |= {f"fused, best, {ahead} MB ahead": (best, ahead * 10**6) for ahead in AHEAD}
    for name, (plans, ahead) in variants.items():
        try:
            results["stages"] += time_backbone(name, FusedBackbone(backbone, 1024, plans, ahead), wanted)
        except RuntimeError as error:  # one variant's launch failed; the others still count
            print(f"{name}: {error}")
            results["stages"].append({"variant": name, "error": str(error)})
        save()
    print(f"{time.perf_counter() - started:.0f} s, written to {arguments.out}")


if __name__ == "__main__":
    main()
