"""What a round carries from pass to pass, and what stays fixed over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int32
from torch import Tensor

Granularity = Literal["element", "layer", "all"]
RuleKind = Literal["distance", "typical"]
Keep = Literal["main", "draft"]
Redraft = Literal["none", "main", "middle"]


@dataclass(eq=False)
class RoundState:
    """Static buffers of a round, contiguous and on one device; `accept_` updates them in place.

    Attributes:
        codes: the draft's codes, then more and more main's.
        frontier: how many layers are final, per element; uniform over a sample at granularity `layer` and
            `all`.
        drafted: layers below this hold a proposal that may be kept. Layer `stop - 1` is always main's own.
        finished: 0 or 1.
        passes: passes of the main model so far.
        latents: what the codes decode to, in the codec's latent units.
        agreed: first pass: elements whose draft agreed with main; -1 where nothing was drafted.
        kept: first pass: elements whose draft code was accepted; -1 where nothing was drafted.
    """

    codes: Int32[Tensor, "B L T D"]
    frontier: Int32[Tensor, "B T D"]
    drafted: Int32[Tensor, " B"]
    finished: Int32[Tensor, " B"]
    passes: Int32[Tensor, " B"]
    latents: Float[Tensor, "B T D"]
    agreed: Int32[Tensor, "B L"]
    kept: Int32[Tensor, "B L"]

    @classmethod
    def new(
        cls, batch: int, layers: int, steps: int, dims: int, device: torch.device | str = "cpu"
    ) -> RoundState:
        """Buffers for `batch` chunks of `layers` x `steps` x `dims` codes; `begin_` starts a round.

        Raises:
            ValueError: a negative batch, or any other size below 1.
        """
        if batch < 0 or min(layers, steps, dims) < 1:
            raise ValueError(
                f"got sizes B {batch}, L {layers}, T {steps}, D {dims}, expected B >= 0, the others >= 1"
            )

        def ints(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return cls(
            codes=ints(batch, layers, steps, dims),
            frontier=ints(batch, steps, dims),
            drafted=ints(batch),
            finished=ints(batch),
            passes=ints(batch),
            latents=torch.zeros(batch, steps, dims, dtype=torch.float32, device=device),
            agreed=ints(batch, layers).fill_(-1),
            kept=ints(batch, layers).fill_(-1),
        )

    def begin_(self, draft_codes: Int32[Tensor, "B Ld T D"] | None, drafted: int, neutral: int) -> None:
        """Starts a round in place; no host synchronisation, so it can be captured in a CUDA graph.

        Args:
            draft_codes: the proposal for the lowest Ld layers, or None.
            drafted: how many of those layers may be kept, at most Ld; the caller caps it at `stop - 1`.
            neutral: the code of every other layer, V // 2.

        Raises:
            ValueError: shapes that do not fit, or `drafted` outside 0 .. Ld.
        """
        batch, layers, steps, dims = self.codes.shape
        proposed = 0 if draft_codes is None else draft_codes.shape[1]
        if draft_codes is not None and (
            proposed > layers or draft_codes.shape != (batch, proposed, steps, dims)
        ):
            shape = tuple(draft_codes.shape)
            raise ValueError(
                f"got draft_codes of shape {shape}, expected ({batch}, up to {layers}, {steps}, {dims})"
            )
        if not 0 <= drafted <= proposed:
            raise ValueError(f"got drafted {drafted}, expected 0 to the {proposed} layers of draft_codes")
        self.codes.fill_(neutral)
        if draft_codes is not None:
            self.codes[:, :proposed].copy_(draft_codes)
        self.drafted.fill_(drafted)
        for buffer in (self.frontier, self.finished, self.passes, self.latents):
            buffer.zero_()
        self.agreed.fill_(-1)
        self.kept.fill_(-1)


@dataclass(frozen=True)
class AcceptParams:
    """How a round accepts; host scalars, the same for every pass and sample.

    Attributes:
        stop: layers to decode, 1 .. L.
        granularity: `element`: every element walks up alone. `layer`: whole layers. `all`: every layer below
            `stop` takes main's choice in one pass (a parallel head).
        rule: `distance`: the draft's code is within `slack` levels of main's (0: equal). `typical`: its logit
            is at most `-log_tau` below main's.
        need: elements that must agree (`layer`) or have reached `stop` (`element`), of T * D.
        log_tau: see `rule`; at most 0.
        keep: granularity `layer`: what disagreeing elements of an accepted layer take.
        redraft: what is proposed next in the layers above the frontier. `none`: nothing. `main`: main's guesses.
            `middle`: the same, but above an element's code that this pass has changed, in accepted layers too, the
            middle level.
        expected: the last layer adds its softmax mean instead of its most likely level; with `middle` so does the
            layer that changed, and what is above it adds nothing.
        temperature: 0 takes main's most likely code; above, main's codes are sampled. Sampling is granularity
            `layer`, rule `distance` with slack 0 (the slack table is not read), `need` T * D and not
            `expected`.
    """

    stop: int
    granularity: Granularity
    rule: RuleKind
    need: int
    log_tau: float
    keep: Keep
    redraft: Redraft
    expected: bool
    temperature: float

    def __post_init__(self) -> None:
        """Raises ValueError on a setting that has no meaning."""
        if self.stop < 1:
            raise ValueError(f"got stop {self.stop}, expected at least 1 layer")
        for name, valid in (("granularity", Granularity), ("rule", RuleKind), ("keep", Keep), ("redraft", Redraft)):
            if getattr(self, name) not in get_args(valid):
                raise ValueError(
                    f"got {name} {getattr(self, name)!r}, expected one of {list(get_args(valid))}"
                )
        if self.need < 0:
            raise ValueError(f"got need {self.need}, expected 0 to T * D elements")
        if not self.log_tau <= 0.0:
            raise ValueError(f"got log_tau {self.log_tau}, expected at most 0 (tau in (0, 1])")
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ValueError(
                f"got temperature {self.temperature}, expected 0 (greedy) or a finite number above"
            )
        if self.temperature > 0.0 and (
            self.granularity != "layer" or self.rule != "distance" or self.expected
        ):
            raise ValueError(
                f"got temperature {self.temperature} with granularity {self.granularity!r}, "
                f"rule {self.rule!r}, expected={self.expected}; sampling takes granularity 'layer', "
                "rule 'distance', expected=False"
            )


@dataclass(frozen=True, eq=False)
class ActionDecoder:
    """From latents to physical units: `gain * decoder(z) + offset`; float32, contiguous.

    `decoder` is `w2 @ mish(w1 @ z + b1) + b2`, or the identity (A = D) where the four weights are None.
    """

    w1: Float[Tensor, "H D"] | None
    b1: Float[Tensor, " H"] | None
    w2: Float[Tensor, "A H"] | None
    b2: Float[Tensor, " A"] | None
    gain: Float[Tensor, " A"]
    offset: Float[Tensor, " A"]

    def __post_init__(self) -> None:
        """Raises ValueError where only some of the weights are given."""
        weights = {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": self.b2}
        missing = [name for name, weight in weights.items() if weight is None]
        if len(missing) not in (0, 4):
            raise ValueError(f"got no {', '.join(missing)}, expected all of w1, b1, w2, b2 or none")

    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order of the fields."""
        return self.w1, self.b1, self.w2, self.b2, self.gain, self.offset
