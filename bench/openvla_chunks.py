"""Whole chunks of OpenVLA by mode, and how far the fused stack is from float32."""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.openvla_floors import Cost, draft_cost, pass_cost, prefill_cost, vision_cost
from bench.openvla_random import STEPS, TEXT, Models, empty_main, random_inputs
from bench.timing import Times, captured
from rsd_fast.acceptance import lossless
from rsd_fast.codec import RFSQCodec
from rsd_fast.decoding import ChunkDecoder, Mode
from rsd_fast.models.draft import DraftModel
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.main import MainModel
from rsd_fast.policy_round import PolicyRound, RoundParts
from rsd_fast.proposal import Proposal
from rsd_fast.runtime import RoundLoop, make_loop

ADAPTIVE = 3  # layers of the original code that stand within half a per cent of the range


@dataclass(frozen=True)
class Spec:
    """A way to decode a chunk; `passes`: forced, mode rsd only."""

    code: str
    mode: Mode
    stop: int
    passes: int | None = None

    @property
    def name(self) -> str:
        return f"chunk, {self.code}, {self.mode}, stop {self.stop}"


SPECS = (
    Spec("redundant", "sequential", 3),
    *(Spec("redundant", "rsd", 3, passes) for passes in (1, 2, 3)),
    Spec("redundant", "parallel", 3),
    Spec("original", "sequential", ADAPTIVE),
    *(Spec("original", "rsd", ADAPTIVE, passes) for passes in (1, 2, 3)),
    Spec("original", "sequential", 8),
    Spec("original", "parallel", 8),
    Spec("redundant", "jacobi", 3),
    Spec("original", "jacobi", ADAPTIVE),
)
EAGER = (SPECS[0], SPECS[1], SPECS[4])  # what is also run kernel by kernel


class ForcedDraft(DraftModel):
    """Runs a draft and proposes other codes, so that a round takes a known number of passes."""

    def __init__(self, draft: DraftModel, codes: Tensor) -> None:
        super().__init__()
        self.config, self.draft, self.codes = draft.config, draft, codes

    def propose(self, prefix: Prefix, codec: RFSQCodec, uniforms: Tensor | None = None) -> Proposal:
        self.draft.propose(prefix, codec, uniforms)
        return Proposal(self.codes)


def make_round(models: Models, stack: dict[str, MainModel], spec: Spec, draft: DraftModel | None) -> PolicyRound:
    """Filled with the observation that every round decodes. Verification is exact and by layers."""
    main, codec = stack[spec.code], models.codecs[spec.code]
    decoder = ChunkDecoder(codec, lossless(), spec.mode, steps=STEPS, stop=spec.stop)
    device = codec.codebook.device
    made = PolicyRound(RoundParts(main, draft, codec, decoder), 1, TEXT, device)
    made.fill(random_inputs(main.config))
    return made


def forced_draft(models: Models, spec: Spec, sequential: Tensor) -> ForcedDraft:
    """Right in all drafted layers, but for the one that makes the round take `spec.passes` passes."""
    assert spec.passes is not None
    codes = sequential[:, : spec.stop - 1].clone()
    if spec.passes > 1:
        wrong, levels = spec.stop - spec.passes, models.codecs[spec.code].config.levels
        codes[:, wrong] = (codes[:, wrong] + 1) % levels
    return ForcedDraft(models.drafts[spec.code], codes.contiguous())


def chunk_cost(main: MainModel, draft: DraftModel | None, mode: str, passes: int) -> Cost:
    """Vision, prefill, draft and passes; the tail is nothing beside them. A parallel head's queries go along free."""
    config = main.config
    images, tokens = config.cameras, config.prefix_tokens
    cost = vision_cost(main.vision_backbone, images) + prefill_cost(main, tokens)
    cost += draft_cost(draft, tokens) if draft is not None else Cost(0.0, 0.0)
    if mode == "parallel":
        return cost
    return cost + pass_cost(main, "hierarchical", tokens, config.head.queries).times(passes)


def time_rounds(loop: RoundLoop, seconds: float, least: int) -> tuple[Times, dict[str, float]]:
    """Wall time of rounds, one after the other, inputs in host memory; and the median of each stage."""
    for _ in range(3):
        loop.run()
    gc.collect()
    gc.disable()
    wall: list[float] = []
    stages: list[dict[str, float]] = []
    started = time.perf_counter()
    while len(wall) < least or (len(wall) < 200 and time.perf_counter() - started < seconds):
        before = time.perf_counter()
        loop.run()
        wall.append(1e3 * (time.perf_counter() - before))
        stages.append(loop.milliseconds())
    gc.enable()
    p10, median, p90 = np.percentile(wall, (10, 50, 90)).tolist()
    device = {name: float(np.median([one[name] for one in stages])) for name in stages[0]}
    return Times(sum(device.values()), p10, p90, median, len(wall)), device


def chunk_rows(
    models: Models, device: torch.device, runtime: str, seconds: float, quick: bool
) -> Iterator[dict[str, Any]]:
    """A row a mode, stack and runtime. `ms` is the sum of the stages' medians, percentiles are of the wall clock."""
    least = 3 if quick else 10
    for stack, mains in {"fused": models.fused, "plain": models.plain}.items():
        if not mains:
            continue
        runs = [(spec, runtime) for spec in SPECS]
        if runtime != "eager" and not (quick and stack == "fused"):
            runs += [(spec, "eager") for spec in EAGER]
        sequential: dict[tuple[str, int], Tensor] = {}
        for spec, how in runs:
            draft = None
            if spec.mode == "rsd":
                draft = forced_draft(models, spec, sequential[spec.code, spec.stop])
            made = make_round(models, mains, spec, draft)
            loop = make_loop(how, made.stages())
            times, stages = time_rounds(loop, seconds, least)
            passes = int(made.outputs.on_host["passes"][0])
            if spec.mode == "sequential" and how == runtime:
                sequential[spec.code, spec.stop] = made.outputs.on_host["codes"].to(device, copy=True)
            row: dict[str, Any] = {
                "work": spec.name,
                "variant": f"{stack}, {how}",
                "times": times,
                "cost": chunk_cost(models.plain[spec.code], draft.draft if draft else None, spec.mode, passes),
                "passes": passes,
                "stages": stages,
            }
            if spec.passes is not None:
                row["passes_forced"] = spec.passes
                if passes != spec.passes:
                    row["note"] = f"took {passes} passes, {spec.passes} were asked for"
                same = torch.equal(made.outputs.on_host["codes"][:, : spec.stop].to(device),
                                   sequential[spec.code, spec.stop][:, : spec.stop])  # fmt: skip
                row["codes_as_sequential"] = same
            yield row
            del made, loop, draft
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def read_trace(path: Path) -> list[int]:
    """Passes, a number a chunk.

    Raises:
        ValueError: the file holds something else.
    """
    data = json.loads(path.read_text())
    passes = data.get("passes") if isinstance(data, dict) else data
    if not isinstance(passes, list) or not passes or not all(isinstance(n, int) and n > 0 for n in passes):
        raise ValueError(f'{path} holds no passes, expected {{"passes": [1, 2, 1, ...]}}, a whole number a chunk')
    return passes


def trace_rows(rows: Path, trace: Path | None) -> Iterator[dict[str, Any]]:
    """What RSD takes on average: the measured times of 1, 2, 3 passes, weighed by a trace, or each on its own."""
    measured = [json.loads(line) for line in rows.read_text().splitlines()]
    forced = [row for row in measured if row.get("passes_forced") == row.get("passes") and row.get("passes")]
    if trace is None:
        yield {"work": "chunk, rsd", "variant": "", "note": "no trace given: a sweep over 1, 2 and 3 passes"}
        return
    passes = read_trace(trace)
    shares = {count: n / len(passes) for count, n in sorted(Counter(passes).items())}
    for work, variant in dict.fromkeys((row["work"], row["variant"]) for row in forced):
        times = {r["passes"]: r["wall_ms"] for r in forced if (r["work"], r["variant"]) == (work, variant)}
        row: dict[str, Any] = {"work": f"{work}, trace", "variant": variant, "trace": trace.name}
        row |= {"passes_mean": float(np.mean(passes)), "passes_shares": {str(k): v for k, v in shares.items()}}
        if missing := sorted(set(shares) - set(times)):
            yield {**row, "note": f"no time measured for {missing} passes"}
        else:
            yield {**row, "wall_ms_mean": sum(share * times[count] for count, share in shares.items())}


# ---- accuracy


def in_float32(main: MainModel) -> MainModel:
    """A copy with float32 weights."""
    exact = empty_main(main.config)
    for name, parameter in main.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(exact.get_submodule(owner), leaf, nn.Parameter(parameter.detach().float(), requires_grad=False))
    exact.proprio_normalizer = main.proprio_normalizer
    return exact.eval()


def cosines(got: Tensor, wanted: Tensor) -> dict[str, float]:
    """Over everything, and of the token (last dimension) that is furthest off."""
    a, b = got.double(), wanted.double()
    tokens = F.cosine_similarity(a.flatten(0, -2), b.flatten(0, -2), dim=-1)
    whole = F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    return {"cosine": whole.item(), "cosine_worst_token": tokens.min().item()}


def accuracy_rows(
    models: Models, inputs: dict[str, PolicyInputs], device: torch.device
) -> Iterator[dict[str, Any]]:
    """Each stage on the same input against float32; actions of whole chunks; graph replays against plain calls."""
    plain, seen = models.plain["redundant"], inputs["redundant"]
    exact = in_float32(plain)
    stacks = {"fused": models.fused.get("redundant"), "plain": plain}
    head = plain.config.head
    codes = torch.zeros(1, head.layers, head.steps, head.latent_dims, dtype=torch.int32, device=device)
    features32 = exact.encode_images(seen.images)
    features = features32.to(plain.backbone.norm.weight.dtype)
    prefix32 = exact.prefill(seen, features.float())
    logits32 = exact.decode(prefix32, codes)
    for stack, main in stacks.items():
        if main is None:
            continue
        one = {"variant": f"{stack} against fp32"}
        yield {"work": "vision", **one, **cosines(main.encode_images(seen.images), features32)}
        prefix = main.prefill(seen, features)
        tokens = prefix.mask.shape[1]
        yield {"work": "prefill, hidden", **one, **cosines(prefix.hidden, prefix32.hidden)}
        for name, got, wanted in (("keys", prefix.keys, prefix32.keys), ("values", prefix.values, prefix32.values)):
            pairs = [cosines(a[:, :, :tokens], b[:, :, :tokens]) for a, b in zip(got, wanted, strict=True)]
            worst = {name: min(pair[name] for pair in pairs) for name in pairs[0]}
            yield {"work": f"prefill, {name}, worst layer", **one, **worst}
        yield {"work": "pass, logits, own prefix", **one, **cosines(main.decode(prefix, codes), logits32)}
    actions32, codes32 = decode_alone(models, {"redundant": exact})
    for stack, main in stacks.items():
        if main is None:
            continue
        actions, own = decode_alone(models, {"redundant": main})
        yield {
            "work": "actions, sequential",
            "variant": f"{stack} against fp32",
            "action_mae": (actions - actions32).abs().mean().item(),
            "codes_alike": (own == codes32).float().mean().item(),
            "note": "random weights: near ties are as likely as anything",
        }
    del exact, prefix32
    if device.type != "cuda":
        return
    for stack, main in stacks.items():
        if main is not None:
            yield from replay_rows(stack, main, seen, features, codes)


def decode_alone(models: Models, stack: dict[str, MainModel]) -> tuple[Tensor, Tensor]:
    """Actions and codes of one sequential chunk, kernel by kernel."""
    made = make_round(models, stack, Spec("redundant", "sequential", 3), None)
    make_loop("eager", made.stages()).run()
    return made.outputs.on_host["actions"].clone(), made.outputs.on_host["codes"].clone()


def replay_rows(
    stack: str, main: MainModel, seen: PolicyInputs, features: Tensor, codes: Tensor
) -> Iterator[dict[str, Any]]:
    """Whether a captured stage gives the bits of the same calls outside a graph."""
    prefix = main.prefill(seen, features, in_place=True)
    calls = {
        "vision": lambda: main.encode_images(seen.images),
        "prefill": lambda: main.prefill(seen, features, in_place=True).hidden,
        "pass": lambda: main.decode(prefix, codes),
    }
    for name, call in calls.items():
        wanted, kept = call().clone(), []

        def run(call: Any = call, kept: list[Tensor] = kept) -> None:
            kept[:] = [call()]

        replay = captured(run, wanted.device)
        same = []
        for _ in range(3):
            replay()
            torch.cuda.synchronize()
            same.append(torch.equal(kept[0], wanted))
        yield {"work": f"{name}, replay", "variant": f"{stack}, graph against eager", "bit_identical": all(same)}
