"""Two baselines on our own backbone, each of one pass over T queries: a regression, and a head that trusts its draft.

Both are trained beside the hierarchical head, so that what they are compared on is the way of decoding alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rsd_fast.models.heads import HeadConfig, QueryHead
from rsd_fast.models.heads_oft import ResidualMlp

CERTAIN = 1e4  # logits by which a code that was given leads; finite, and so in half precision


class StepHead(QueryHead):
    """One query a step, which sees the prefix and the queries of all steps."""

    def query_mask(self) -> Bool[Tensor, "T T"]:
        """Every query sees every other."""
        steps = self.config.steps
        return torch.ones(steps, steps, dtype=torch.bool, device=self.step_embedding.device)


class RegressionHead(StepHead):
    """L1 regression in OpenVLA-OFT's manner (Kim et al., 2025): a learned query a step, OFT's small network on top.

    No code is read or written. Actions are normalised as the codec's normaliser does it; the gripper, which is a
    switch, is its command as it stands.
    """

    READS_CODES = False

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__(config, width)
        self.model = ResidualMlp(width, width, config.action_dims)

    def queries(self, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B T width"]:
        """The same queries for every sample."""
        return self.step_embedding.expand(codes.shape[0], -1, -1)

    def actions(self, hidden: Float[Tensor, "B T width"]) -> Float[Tensor, "B T A"]:
        """Hidden states of the queries -> normalised actions, float32."""
        return self.model(hidden).float()


class ConditionedQueryHead(StepHead):
    """Given a draft's codes of all layers below the last ("mode locking"), one pass gives the last.

    The query of step t is its embedding plus those of the given codes of step t; every query sees every other. What
    is executed are the given codes, as they are, and the last layer of this head, which refines them.

    Why it does not predict the given layers anew: it learns from valid prefixes (the nearest codes and their valid
    neighbours), as any head has to that is trained before there is a draft. In those the given codes are always right,
    so a prediction of them would be a copy; and where it differed, the layers above, which were predicted in the same
    pass for the codes that were given, would not fit it. So nothing that the draft says is verified: the difference
    between this head and RSD is what verification is worth.
    """

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__(config, width)
        self.given = config.layers - 1
        # One table a given layer and latent dimension.
        self.code_embedding = nn.Embedding(max(self.given * config.latent_dims, 1) * config.levels, width)
        nn.init.normal_(self.code_embedding.weight, std=0.02)
        self.readout = nn.Linear(width, config.latent_dims * config.levels)

    def queries(self, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B T width"]:
        """Embeds the codes below the last layer, of each step."""
        c = self.config
        queries = self.step_embedding.to(self.code_embedding.weight.dtype).expand(codes.shape[0], -1, -1)
        if not self.given:
            return queries
        offset = torch.arange(self.given * c.latent_dims, device=codes.device) * c.levels
        rows = codes[:, : self.given] + offset.view(self.given, 1, c.latent_dims).to(codes.dtype)
        return queries + self.code_embedding(rows).sum((1, 3))

    def last_layer(self, hidden: Float[Tensor, "B T width"]) -> Float[Tensor, "B T D V"]:
        """Hidden states of the queries -> logits of the last layer."""
        return self.readout(hidden).unflatten(2, (self.config.latent_dims, self.config.levels))

    def logits(self, hidden: Float[Tensor, "B T width"], codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B L T D V"]:
        """As the other heads give them: the layers that were given are certain of the code that was given."""
        last = self.last_layer(hidden)[:, None]
        levels = torch.arange(self.config.levels, device=codes.device)
        other = (codes[:, : self.given, ..., None] != levels).to(last.dtype)
        return torch.cat([-CERTAIN * other, last], 1)


BASELINE_HEADS: dict[str, type[StepHead]] = {
    "regression": RegressionHead,
    "conditioned_queries": ConditionedQueryHead,
}
