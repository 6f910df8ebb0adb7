"""What acceptance settings make of demonstrations that nobody trained on: `python -m bench.acceptance_grid DEMOS`.

A setting that is chosen on evaluation episodes flatters itself there. This chooses on other data, in minutes and
without a simulator: some chunks of DEMOS (pictures drawn, seeds of their own) are decoded sequentially and with RSD at
each rule, granularity and theta, from one prefill. Of each: mean passes, error to the expert, distance to sequential
decoding, and the share of chunks that are somewhere further than half a unit from it, as where a draft reached for
another grasp.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rsd_fast.acceptance import Acceptance, parse_rule
from rsd_fast.codec import RFSQCodec
from rsd_fast.decoding import ChunkDecoder, Mode
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.inputs import Prefix
from rsd_fast.models.main import MainModel
from rsd_fast.proposal import Proposal
from rsd_fast.train.config import DataOptions
from rsd_fast.train.dataset import load_data
from rsd_fast.train.offline import chunks_of

RULES = ("typical(0.1)", "typical(0.3)", "distance(1)", "exact")
GRANULARITIES = ("element", "layer")
THETAS = (1.0, 0.95, 0.9, 0.8)
FAR = 0.5  # of an action, whose range is [-1, 1]


@dataclass
class Batch:
    """Observations after the prefill, and what the expert did."""

    prefix: Prefix
    proposal: Proposal
    wanted: Float[Tensor, "B T A"]


class Grid:
    """Decodes the same chunks at any setting; actions in physical units."""

    def __init__(self, main: MainModel, codec: RFSQCodec, batches: Sequence[Batch]) -> None:
        self.main, self.codec, self.batches = main, codec, batches
        self.wanted = torch.cat([batch.wanted for batch in batches])
        self.sequential, self.passes = self.decode(Acceptance(), "sequential")

    def decode(self, acceptance: Acceptance, mode: Mode) -> tuple[Float[Tensor, "N T A"], Float[Tensor, " N"]]:
        """Actions, and the passes that each chunk took."""
        decoder = ChunkDecoder(self.codec, acceptance, mode, steps=self.main.config.head.steps)
        actions, passes = [], []
        for batch in self.batches:
            prefix, drafted = batch.prefix, (batch.proposal,) if mode == "rsd" else ()
            made, state = decoder.run(lambda codes, p=prefix: self.main.decode(p, codes), len(batch.wanted), *drafted)
            actions.append(made)
            passes.append(state.passes.float())
        return torch.cat(actions), torch.cat(passes)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Sequential decoding first."""
        moving = self.codec.normalizer.mask
        error = mean_distance(self.sequential, self.wanted)
        yield {"setting": "sequential", "passes": float(self.passes.mean()), "mae": error}
        for rule, granularity, theta in product(RULES, GRANULARITIES, THETAS):
            acceptance = Acceptance(parse_rule(rule), granularity, theta)  # type: ignore[arg-type]
            actions, passes = self.decode(acceptance, "rsd")
            away = (actions - self.sequential)[..., moving].abs()
            yield {
                "setting": f"{rule}, {granularity}, {theta:g}",
                "passes": float(passes.mean()),
                "mae": mean_distance(actions, self.wanted),
                "to_sequential": mean_distance(actions, self.sequential),
                "far_chunks": float((away.amax((1, 2)) > FAR).float().mean()),
            }


def mean_distance(first: Tensor, second: Tensor) -> float:
    """Mean absolute difference."""
    return float((first - second).abs().mean())


@torch.no_grad()
def measure(demos: Path, checkpoint: str, draft: str, chunks: int) -> list[dict[str, Any]]:
    """A row a setting, over `chunks` chunks drawn from all of `demos`."""
    engine = RSDInferenceEngine.from_pretrained(checkpoint, mode="rsd", draft=draft, runtime="eager")
    assert engine.draft is not None
    data = load_data(DataOptions(demos=demos, device=str(engine.device)))
    steps = engine.main.config.head.steps
    frames = torch.cat([data.frames(part, steps) for part in (True, False)])
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))[:chunks]
    batches = []
    for inputs, wanted in chunks_of(engine.main, data, frames[order.to(frames.device)]):
        prefix = engine.main.prefill(inputs)
        batches.append(Batch(prefix, engine.draft.propose(prefix, engine.codec), wanted))
    return list(Grid(engine.main, engine.codec, batches).rows())


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demos", type=Path, help="folder of demonstrations, two or more a task")
    parser.add_argument("--checkpoint", default="libero-nano")
    parser.add_argument("--draft", default="coarse")
    parser.add_argument("--chunks", type=int, default=400)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    rows = measure(options.demos, options.checkpoint, options.draft, options.chunks)
    print("| setting | passes | error | to sequential | far chunks |\n|---|---:|---:|---:|---:|")
    for row in rows:
        rest = f"{row['to_sequential']:.4f} | {row['far_chunks']:.1%}" if "to_sequential" in row else " | "
        print(f"| {row['setting']} | {row['passes']:.2f} | {row['mae']:.4f} | {rest} |")
    if options.out:
        told = {"checkpoint": options.checkpoint, "draft": options.draft, "chunks": options.chunks, "rows": rows}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
