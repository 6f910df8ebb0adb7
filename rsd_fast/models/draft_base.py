"""What every draft model is: something that turns main's prefix into a proposal of coarse codes."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rsd_fast.codec import RFSQCodec
from rsd_fast.models.inputs import Prefix
from rsd_fast.pretrained import Pretrained
from rsd_fast.proposal import Proposal


class DraftModel(
    nn.Module,
    Pretrained,
    library_name="rsd_fast",
    license="apache-2.0",
    repo_url="rsd_fast",
    tags=["robotics", "speculative-decoding"],
):
    """A draft model.

    Its configuration says at least `kind`, `head` (the chunk and code), `layers` (coarse layers that it proposes) and
    `prefix_width` (of the hidden states it reads).
    """

    config: Any

    def propose(self, prefix: Prefix, codec: RFSQCodec, uniforms: Tensor | None = None) -> Proposal:
        """Codes for verification.

        Args:
            prefix: main's.
            codec: quantises a continuous guess.
            uniforms: float32 `[B, Ld, T, D]` in [0, 1), to draw the codes; without, the likeliest.
        """
        raise NotImplementedError

    def latents(self, prefix: Prefix, codec: RFSQCodec) -> Float[Tensor, "B T D"]:
        """The chunk that the draft alone would execute: what its codes decode to."""
        codes = self.propose(prefix, codec).codes
        return codec.decode(codes, codes.shape[1])


def choose_codes(logits: Float[Tensor, "B Ld T D V"], uniforms: Float[Tensor, "B Ld T D"] | None) -> Proposal:
    """The likeliest codes; with `uniforms`, codes drawn from the draft's distribution, and that distribution."""
    if uniforms is None:
        return Proposal(logits.argmax(-1).to(torch.int32))
    probs = F.softmax(logits, -1)
    codes = (probs.cumsum(-1) <= uniforms[..., None]).sum(-1).clamp_max(logits.shape[-1] - 1)
    return Proposal(codes.to(torch.int32), probs)
