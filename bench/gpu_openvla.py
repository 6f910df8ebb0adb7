"""OpenVLA-7B at its real geometry on one GPU: `python -m bench.gpu_openvla --out FOLDER`, under five minutes.

Random weights (bench/openvla_random.py), two images, proprio and text: prefixes of 545 and, with OpenVLA-OFT's action
placeholders, 608 tokens. Times do not depend on what weights and pixels say; the number of passes does, so RSD is
timed with its passes forced to 1, 2 and 3 by a draft that is right, or wrong in one layer. `--trace` weighs those times
by the passes that a trained policy took.

Every section appends its rows to `FOLDER/rows.jsonl` as soon as they are measured; `FOLDER/stages.json` has the stages'
times for replaying traces. Stacks:

- `fused`: this package's kernels; `plain`: the same networks in plain PyTorch
- `transformers`: LlamaModel over the same weights, Dinov2WithRegistersModel and SiglipVisionModel at the same sizes
- `torch.compile`: over the blocks of the plain networks

each run as one CUDA graph (`graph`), by this package's runtimes (`device-loop`), or kernel by kernel (`eager`). A floor
is the longer of bytes at the copy bandwidth and operations at the GEMM rate of the same run (bench/openvla_floors.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.openvla_baselines import (
    TransformersLlama,
    TransformersVision,
    gemm_rate,
    oft_chunk,
    oft_chunk_transformers,
)
from bench.openvla_chunks import accuracy_rows, chunk_rows, trace_rows
from bench.openvla_floors import Cost, Rates, draft_cost, pass_cost, prefill_cost, vision_cost
from bench.openvla_load import measure_in_fresh_process
from bench.openvla_outside import compile_, profile
from bench.openvla_random import Models, random_inputs, random_models
from bench.timing import Run, Timer, Times, captured
from rsd_fast.acceptance import Acceptance
from rsd_fast.decoding import ChunkDecoder
from rsd_fast.models.fused_vision import FusedVisionTower
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.main import MainModel
from rsd_fast.proposal import Proposal
from rsd_fast.runtime import choose_runtime

CODES = ("redundant", "original")


class Bench:
    """Models, clock and sink of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.seconds = options.seconds or (0.4 if options.quick else 1.0)
        self.timer = Timer(self.device, self.seconds, least=3 if options.quick else 10)
        self.started = time.perf_counter()
        options.out.mkdir(parents=True, exist_ok=True)
        self.sink = options.out / "rows.jsonl"
        self.sink.write_text("")
        self.stages: dict[str, Any] = {code: {} for code in CODES}
        self.rates = self.measure_rates()
        self.runtime = choose_runtime(options.runtime, self.device)
        self.emit("machine", "machine", "", **self.describe())
        self.models: Models = random_models(options.preset, self.device, self.dtype, fuse=not options.plain)
        self.emit("machine", "weights made", "", seconds=time.perf_counter() - self.started)
        self.inputs = {name: self.on_device(main) for name, main in self.models.plain.items()}

    def on_device(self, main: MainModel) -> PolicyInputs:
        return random_inputs(main.config).to(self.device)

    def measure_rates(self) -> Rates:
        size = 2**30 if self.device.type == "cuda" else 2**24
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        copy = 2 * size / self.timer(lambda: target.copy_(source)).ms * 1e3
        return Rates(copy, gemm_rate(self.device, self.dtype, lambda run: self.timer(run).ms))

    def describe(self) -> dict[str, Any]:
        rates = {"copy_gbps": self.rates.copy / 1e9, "gemm_tflops": self.rates.gemm / 1e12}
        common = {**rates, "torch": torch.__version__, "preset": self.options.preset, "runtime": self.runtime}
        if self.device.type != "cuda":
            return {**common, "gpu": "none"}
        from bench.gpu_accept import machine

        return {**machine(self.rates.copy / 1e9), **common}

    def emit(
        self,
        section: str,
        work: str,
        variant: str,
        times: Times | None = None,
        cost: Cost | None = None,
        **more: Any,
    ) -> None:
        """Prints a row and appends it to the file."""
        row: dict[str, Any] = {"section": section, "work": work, "variant": variant}
        row |= times.row() if times else {}
        if cost is not None:
            row |= {"floor_ms": cost.floor_ms(self.rates), "bound": cost.bound(self.rates)}
            row |= {"gflop": cost.flops / 1e9, "gbyte": cost.bytes / 1e9}
            row["floor_share"] = row["floor_ms"] / times.ms if times else None
        row |= more
        with self.sink.open("a") as file:
            file.write(json.dumps(row) + "\n")
        numbers = f"{times.ms:9.3f} ms  {times.p10:9.3f} {times.p90:9.3f}  wall {times.wall_ms:9.3f}" if times else ""
        floor = f"  floor {row['floor_ms']:7.3f} {row['bound']} {row['floor_share'] or 0:6.1%}" if cost else ""
        rest = "  " + json.dumps(more) if more else ""
        print(f"{time.perf_counter() - self.started:6.1f} s  {work:34} {variant:28} {numbers}{floor}{rest}", flush=True)

    def stage(self, code: str, name: str, ms: float) -> None:
        """Remembers a stage of the best stack, for replaying traces."""
        self.stages[code][f"{name}_ms"] = ms
        flat = {**self.stages["redundant"], "original": self.stages["original"], "stack": self.best}
        (self.options.out / "stages.json").write_text(json.dumps(flat, indent=1) + "\n")

    @property
    def best(self) -> str:
        return "fused" if self.models.fused else "plain"

    @property
    def stacks(self) -> dict[str, dict[str, MainModel]]:
        """Fused first, where it is."""
        found = {"fused": self.models.fused, "plain": self.models.plain}
        return {name: mains for name, mains in found.items() if mains}

    def graph_and_eager(
        self, section: str, work: str, stack: str, run: Run, cost: Cost, before: Run | None = None
    ) -> float:
        """Rows of one call as a graph and eager; milliseconds of the first."""
        if self.device.type == "cuda":
            times = self.timer(captured(run, self.device), before)
            self.emit(section, work, f"{stack}, graph", times, cost)
        eager = self.timer(run, before)
        self.emit(section, work, f"{stack}, eager", eager, cost)
        return times.ms if self.device.type == "cuda" else eager.ms


def vision(bench: Bench) -> None:
    main = bench.models.plain["redundant"]
    images = bench.inputs["redundant"].images
    cost = vision_cost(main.vision_backbone, images.shape[0] * images.shape[1])
    for stack, mains in bench.stacks.items():
        tower = mains["redundant"].vision_backbone
        ms = bench.graph_and_eager("vision", "vision, 2 images", stack, partial(tower, images), cost)
        if stack == bench.best:
            for code in CODES:
                bench.stage(code, "vision", ms)
        if isinstance(tower, FusedVisionTower):
            single = FusedVisionTower(main.vision_backbone, streams=False)
            times = bench.timer(captured(partial(single, images), bench.device))
            bench.emit("vision", "vision, 2 images", "fused, one stream, graph", times, cost)


def prefill(bench: Bench) -> None:
    for name in ("redundant", "oft"):
        inputs, plain = bench.inputs[name], bench.models.plain[name]
        features = plain.encode_images(inputs.images)
        tokens = plain.config.prefix_tokens
        cost = prefill_cost(plain, tokens)
        for stack, mains in bench.stacks.items():
            ms = bench.graph_and_eager(
                "prefill",
                f"prefill, {tokens} tokens",
                stack,
                partial(mains[name].prefill, inputs, features, in_place=True),
                cost,
            )
            if stack == bench.best and name == "redundant":
                for code in CODES:
                    bench.stage(code, "prefill", ms)


def draft(bench: Bench) -> None:
    for code in CODES:
        prefix = bench.models.plain[code].prefill(bench.inputs[code])
        model, codec = bench.models.drafts[code], bench.models.codecs[code]
        cost = draft_cost(model, prefix.mask.shape[1])
        run = partial(model.propose, prefix, codec)
        bench.stage(code, "draft", bench.graph_and_eager("draft", f"draft, {code}", "plain", run, cost))


def one_pass(bench: Bench) -> None:
    for code in CODES:
        inputs = bench.inputs[code]
        head: HeadConfig = bench.models.plain[code].config.head
        codes = torch.zeros(1, head.layers, head.steps, head.latent_dims, dtype=torch.int32, device=bench.device)
        for stack, mains in bench.stacks.items():
            main = mains[code]
            prefix = main.prefill(inputs, in_place=True)
            tokens = prefix.mask.shape[1]
            ms = bench.graph_and_eager(
                "pass",
                f"pass, {head.queries} queries, prefix {tokens}",
                stack,
                partial(main.decode, prefix, codes),
                pass_cost(main, "hierarchical", tokens, head.queries),
            )
            if stack == bench.best:
                bench.stage(code, "pass", ms)


def tail(bench: Bench) -> None:
    for code in CODES:
        head, codec = bench.models.plain[code].config.head, bench.models.codecs[code]
        shape = (1, head.layers, head.steps, head.latent_dims, head.levels)
        logits = torch.randn(shape, device=bench.device, dtype=bench.dtype)
        drafted = Proposal(logits[:, : head.layers - 1].argmax(-1).int())  # agrees: the round ends in this pass
        actions = torch.zeros(1, head.steps, codec.config.action_dims, device=bench.device)
        cost = Cost(0.0, logits.numel() * logits.element_size())
        for backend in ("auto", "reference"):
            decoder = ChunkDecoder(codec, Acceptance(), "rsd", steps=head.steps, backend=backend)
            state = decoder.begin(1, drafted)
            ms = bench.graph_and_eager(
                "tail",
                f"tail, {code}",
                "fused" if backend == "auto" else "plain",
                partial(decoder.accept, logits, state, actions),
                cost,
                before=partial(decoder.begin_, state, drafted),
            )
            if backend == "auto":
                bench.stage(code, "tail", ms)


def chunk(bench: Bench) -> None:
    for row in chunk_rows(bench.models, bench.device, bench.runtime, bench.seconds, bench.options.quick):
        bench.emit("chunk", **row)
        if row["variant"] == f"{bench.best}, {bench.runtime}" and ", parallel," in row["work"]:
            bench.stage(row["work"].split(", ")[1], "parallel", row["times"].ms)
    for row in trace_rows(bench.sink, bench.options.trace):
        bench.emit("chunk", **row)


def oft_cost(bench: Bench) -> Cost:
    main = bench.models.plain["oft"]
    images = main.config.cameras
    return vision_cost(main.vision_backbone, images) + prefill_cost(main, main.config.prefix_tokens)


def oft(bench: Bench) -> None:
    """OpenVLA-OFT's L1 head: one run of the backbone over 608 tokens, no codes."""
    inputs, work = bench.inputs["oft"], "chunk, OFT's L1 head, 608 tokens"
    for stack, mains in bench.stacks.items():
        bench.graph_and_eager("oft", work, stack, partial(oft_chunk, mains["oft"], inputs), oft_cost(bench))


def transformers(bench: Bench) -> None:
    plain = bench.models.plain
    llama = TransformersLlama(plain["redundant"].backbone)
    tower = TransformersVision(plain["redundant"].vision_backbone)

    def row(work: str, run: Run, cost: Cost) -> None:
        bench.emit("transformers", work, "transformers, eager", bench.timer(run), cost)

    images = bench.inputs["redundant"].images
    row("vision, 2 images", partial(tower, images), vision_cost(plain["redundant"].vision_backbone, images.shape[1]))
    for name in ("redundant", "oft"):
        main = plain[name]
        x, _ = main.embed(bench.inputs[name], main.encode_images(bench.inputs[name].images))
        tokens = x.shape[1]
        row(f"prefill, {tokens} tokens", partial(llama.prefill, x), prefill_cost(main, tokens))
    for code in CODES:
        main = plain[code]
        head = main.heads["hierarchical"]
        x, _ = main.embed(bench.inputs[code], main.encode_images(bench.inputs[code].images))
        cache = llama.cache_of(llama.prefill(x))
        c = main.config.head
        codes = torch.zeros(1, c.layers, c.steps, c.latent_dims, dtype=torch.int32, device=bench.device)
        row(
            f"pass, {c.queries} queries, prefix {x.shape[1]}",
            lambda head=head, cache=cache, tokens=x.shape[1], codes=codes: head.logits(
                llama.run_pass(head.queries(codes), cache, tokens, head.query_mask())
            ),
            pass_cost(main, "hierarchical", x.shape[1], c.queries),
        )
    inputs = bench.inputs["oft"]
    run = partial(oft_chunk_transformers, plain["oft"], llama, tower, inputs)
    row("chunk, OFT's L1 head, 608 tokens", run, oft_cost(bench))


def accuracy(bench: Bench) -> None:
    for row in accuracy_rows(bench.models, bench.inputs, bench.device):
        bench.emit("accuracy", **row)


def load(bench: Bench) -> None:
    """A checkpoint from disk to the device, in a process of its own: its memory's peak is that of loading alone."""
    bench.emit("load", "load", "from_openvla", **measure_in_fresh_process(bench.options.load, bench.device))


RUNS: dict[str, Callable[[Bench], None]] = {
    "vision": vision,
    "prefill": prefill,
    "draft": draft,
    "pass": one_pass,
    "tail": tail,
    "chunk": chunk,
    "oft": oft,
    "transformers": transformers,
    "accuracy": accuracy,
    "profile": profile,
    "compile": compile_,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl and stages.json")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, nothing compiled: under two minutes")
    parser.add_argument("--seconds", type=float, default=None, help="for each row; default 1.0, with --quick 0.4")
    parser.add_argument("--only", default=None, help=f"sections, with commas between, of {','.join(RUNS)}")
    parser.add_argument("--preset", default="openvla-7b", help="or openvla-tiny")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--runtime", default="auto", help="of whole chunks: auto, graph, device-loop or eager")
    parser.add_argument("--plain", action="store_true", help="no fused kernels but the tail")
    parser.add_argument("--trace", type=Path, default=None, help='JSON: {"passes": [1, 2, 1, ...]}, a number a chunk')
    parser.add_argument("--budget", type=float, default=260.0, help="seconds after which nothing more is compiled")
    parser.add_argument("--load", default=None, help="also load this OpenVLA folder (bench.openvla_folder)")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else [n for n in RUNS if not (options.quick and n == "compile")]
    if unknown := set(names) - set(RUNS):
        raise SystemExit(f"got sections {sorted(unknown)}, expected some of {list(RUNS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("got no CUDA device, expected one; --preset openvla-tiny --device cpu tries the script out")
    torch.manual_seed(0)
    failed = []
    with torch.inference_mode():
        bench = Bench(options)
        for name in [*names, *(["load"] if options.load else [])]:
            try:
                load(bench) if name == "load" else RUNS[name](bench)
            except Exception as error:  # the other sections still count; said again at the end
                traceback.print_exc()
                failed.append(name)
                bench.emit(name, name, "", note=f"failed: {type(error).__name__}: {str(error)[:500]}")
            gc.collect()
    print(f"{time.perf_counter() - bench.started:.0f} s, written to {options.out}")
    if failed:
        raise SystemExit(f"sections failed: {failed}")


if __name__ == "__main__":
    main()
