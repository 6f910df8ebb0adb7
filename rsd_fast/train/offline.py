"""Offline evaluation: what every way of decoding makes of held-out observations, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.table import Table
from torch import Tensor

from rsd_fast.acceptance import Acceptance
from rsd_fast.codec import RFSQCodec
from rsd_fast.decoding import ChunkDecoder, Mode
from rsd_fast.models.draft_base import DraftModel
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.main import MainModel
from rsd_fast.train.dataset import DemoData

BATCH = 256
MODES: dict[str, Mode] = {"sequential": "sequential", "jacobi": "jacobi", "parallel": "parallel"}
ONE_PASS = ("parallel", "regression")  # by the head of that name, where the model has it
CONDITIONED = "conditioned_queries"
ARGMAX = "sequential, last digit argmax"


@dataclass
class Tally:
    """Sums over batches, on the host at the end only."""

    total: dict[str, Tensor] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, values: Tensor, keep: int | None = None) -> None:
        """Adds the values' mean over all dimensions but `keep`, weighted by the batch."""
        dims = [dim for dim in range(values.ndim) if dim != keep]
        total = len(values) * values.double().mean(dims)
        self.total[name] = self.total[name] + total if name in self.total else total
        self.count[name] += len(values)

    def mean(self, name: str) -> Any:
        """A number, or a list where a dimension was kept."""
        return (self.total[name] / self.count[name]).tolist()


@torch.no_grad()
def evaluate_offline(
    main: MainModel,
    drafts: Mapping[str, DraftModel],
    codec: RFSQCodec,
    data: DemoData,
    frames: Int[Tensor, " n"],
    decodings: tuple[str, ...] | None = None,
    acceptance: Acceptance | None = None,
) -> dict[str, Any]:
    """Decodes the chunks of some frames in every way.

    Args:
        main: the main model, with its tokenizer.
        drafts: by kind; each adds the rows `rsd, <kind> draft` and `<kind> draft alone`, and where the model has the
            head for it `conditioned, <kind> draft`.
        codec: of the policy.
        data: the demonstrations.
        frames: where the chunks start; held-out ones.
        decodings: the ways that need no draft; all that the model's heads allow without.
        acceptance: of RSD; the engine's default without.

    Returns:
        `table`: a row a decoding with `decoding`, `mae` (mean absolute error of the action, physical units),
        `motion_mae` (without the switched dimensions), and mean `passes`. `main.accuracy`: by layer, with teacher
        forcing on nearest codes; `main.conditioned`, likewise: the last layer of the conditioned head, where there is
        one. `drafts.<kind>`, by drafted layer: `accuracy` against the data, `match` and `within_one` against main's
        sequential codes, `agreed` as verified in the first pass of RSD.
    """
    acceptance = acceptance or Acceptance()
    if decodings is None:
        decodings = ("sequential", ARGMAX, "jacobi", *(name for name in ONE_PASS if name in main.heads))
    offline = _Offline(main, codec, acceptance)
    tally = Tally()
    for inputs, wanted in chunks_of(main, data, frames):
        offline.evaluate(inputs, wanted, drafts, decodings, tally)
    with_draft = [name(kind) for kind in drafts for name in (rsd_with, conditioned_with, alone_with)]
    names = [*decodings, *(name for name in with_draft if f"{name}/mae" in tally.count)]
    table = []
    for name in names:
        row = {"decoding": name, "mae": tally.mean(f"{name}/mae"), "motion_mae": tally.mean(f"{name}/motion_mae")}
        table.append(row | {"passes": tally.mean(f"{name}/passes")})
    measures = ("accuracy", "match", "within_one", "agreed")
    of_main = [name for name in ("accuracy", "conditioned") if f"main/{name}" in tally.count]
    return {
        "samples": len(frames),
        "table": table,
        "main": {name: tally.mean(f"main/{name}") for name in of_main},
        "drafts": {kind: {measure: tally.mean(f"{kind}/{measure}") for measure in measures} for kind in drafts},
    }


def chunks_of(
    main: MainModel, data: DemoData, frames: Int[Tensor, " n"]
) -> Iterator[tuple[PolicyInputs, Float[Tensor, "B T A"]]]:
    """Observations and the expert's chunks in physical units, so many frames at a time."""
    assert main.tokenizer is not None
    tokens = data.tokenize(main.tokenizer)
    for part in frames.split(BATCH):
        yield data.inputs(part, tokens), data.chunks(part, main.config.head.steps)


class _Offline:
    def __init__(self, main: MainModel, codec: RFSQCodec, acceptance: Acceptance) -> None:
        self.main, self.codec, self.acceptance = main, codec, acceptance
        self.moving: Bool[Tensor, " A"] = codec.normalizer.mask

    def evaluate(
        self,
        inputs: PolicyInputs,
        wanted: Float[Tensor, "B T A"],
        drafts: Mapping[str, DraftModel],
        decodings: tuple[str, ...],
        tally: Tally,
    ) -> None:
        prefix = self.main.prefill(inputs)
        nearest = self.codec.encode(self.codec.actions_to_latents(wanted), check_finite=False).targets
        tally.add("main/accuracy", self.main.decode(prefix, nearest).argmax(-1) == nearest, keep=1)
        if CONDITIONED in self.main.heads:
            last = self.main.decode(prefix, nearest, CONDITIONED)[:, -1]
            tally.add("main/conditioned", last.argmax(-1) == nearest[:, -1])
        for name in decodings:
            self.decode(name, prefix, wanted, tally)
        if not drafts:
            return
        own = self.decoder("sequential").run(lambda codes: self.main.decode(prefix, codes), len(wanted))[1].codes
        for kind, draft in drafts.items():
            self.draft_alone(kind, draft, prefix, nearest, own, wanted, tally)
            self.speculate(kind, draft, prefix, wanted, tally)
            self.condition(kind, draft, prefix, wanted, tally)

    def decoder(self, mode: Mode, expected_last: bool = True) -> ChunkDecoder:
        acceptance = self.acceptance if mode == "rsd" else Acceptance(expected_last=expected_last)
        return ChunkDecoder(self.codec, acceptance, mode, steps=self.main.config.head.steps)

    def decode(self, name: str, prefix: Prefix, wanted: Float[Tensor, "B T A"], tally: Tally) -> None:
        if name == "regression":
            actions = self.codec.normalizer.unnormalize(self.main.actions(prefix, name))
            self.note(name, actions, wanted, torch.ones(len(wanted), device=wanted.device), tally)
            return
        decoder = self.decoder("sequential", expected_last=False) if name == ARGMAX else self.decoder(MODES[name])
        head = "parallel" if name == "parallel" else "hierarchical"
        actions, state = decoder.run(lambda codes: self.main.decode(prefix, codes, head), len(wanted))
        self.note(name, actions, wanted, state.passes, tally)

    def speculate(
        self, kind: str, draft: DraftModel, prefix: Prefix, wanted: Float[Tensor, "B T A"], tally: Tally
    ) -> None:
        decoder = self.decoder("rsd")
        proposal = draft.propose(prefix, self.codec)
        actions, state = decoder.run(lambda codes: self.main.decode(prefix, codes), len(wanted), proposal)
        self.note(rsd_with(kind), actions, wanted, state.passes, tally)
        drafted = proposal.top(decoder.stop).codes.shape[1]
        elements = self.main.config.head.steps * self.codec.config.latent_dims
        tally.add(f"{kind}/agreed", state.agreed[:, :drafted] / elements, keep=1)

    def condition(
        self, kind: str, draft: DraftModel, prefix: Prefix, wanted: Float[Tensor, "B T A"], tally: Tally
    ) -> None:
        """Where the model has the head and the draft proposes all that it reads."""
        proposal = draft.propose(prefix, self.codec)
        if CONDITIONED not in self.main.heads or proposal.codes.shape[1] < self.codec.config.layers - 1:
            return
        decoder = self.decoder("conditioned")
        actions, state = decoder.run(lambda codes: self.main.decode(prefix, codes, CONDITIONED), len(wanted), proposal)
        self.note(conditioned_with(kind), actions, wanted, state.passes, tally)

    def draft_alone(
        self,
        kind: str,
        draft: DraftModel,
        prefix: Prefix,
        nearest: Int[Tensor, "B L T D"],
        own: Int[Tensor, "B L T D"],
        wanted: Float[Tensor, "B T A"],
        tally: Tally,
    ) -> None:
        codes = draft.propose(prefix, self.codec).codes
        layers = codes.shape[1]
        tally.add(f"{kind}/accuracy", codes == nearest[:, :layers], keep=1)
        tally.add(f"{kind}/match", codes == own[:, :layers], keep=1)
        tally.add(f"{kind}/within_one", (codes - own[:, :layers]).abs() <= 1, keep=1)
        actions = self.codec.latents_to_actions(draft.latents(prefix, self.codec))
        self.note(alone_with(kind), actions, wanted, torch.zeros(len(wanted), device=wanted.device), tally)

    def note(
        self, name: str, actions: Float[Tensor, "B T A"], wanted: Float[Tensor, "B T A"], passes: Tensor, tally: Tally
    ) -> None:
        error = (actions - wanted).abs()
        tally.add(f"{name}/mae", error)
        tally.add(f"{name}/motion_mae", error[..., self.moving])
        tally.add(f"{name}/passes", passes)


def rsd_with(kind: str) -> str:
    """The row of RSD with a draft."""
    return f"rsd, {kind} draft"


def conditioned_with(kind: str) -> str:
    """The row of the conditioned head with a draft."""
    return f"conditioned, {kind} draft"


def alone_with(kind: str) -> str:
    """The row of a draft without main."""
    return f"{kind} draft alone"


def offline_table(report: Mapping[str, Any]) -> Table:
    """The decodings of a report for the terminal."""
    table = Table(title=f"{report['samples']} held-out chunks: mean absolute error of the action")
    table.add_column("decoding")
    for heading in ("MAE", "without gripper", "passes"):
        table.add_column(heading, justify="right")
    for row in report["table"]:
        table.add_row(row["decoding"], f"{row['mae']:.4f}", f"{row['motion_mae']:.4f}", f"{row['passes']:.2f}")
    return table
