"""What a draft model hands to the decoding loop."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """What a draft model offers for a chunk.

    Attributes:
        codes: int32 `[B, Ld, T, D]`, the layers from the coarsest up.
        probs: float32 `[B, Ld, T, D, V]`, the distribution that `codes` were drawn from, or None if they were not
            drawn (a point mass). Read only when sampling.
    """

    codes: Int[Tensor, "B Ld T D"]
    probs: Float[Tensor, "B Ld T D V"] | None = None

    def top(self, stop: int) -> Proposal:
        """The part a round decoded to `stop` layers can use: the last layer is always main's own."""
        usable = min(self.codes.shape[1], stop - 1)
        return Proposal(self.codes[:, :usable], None if self.probs is None else self.probs[:, :usable])
