"""Action heads: how codes become queries, and hidden states become logits.

The two heads here run L * T queries, one per layer and step, ordered layer first. The logits of (l, t) are `[D, V]`.
Those of `heads_baseline` run T queries. Heads that read the prefix alone (`PrefixHead`) are in `heads_original` and
`heads_oft`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rsd_fast.codec import CodecConfig
from rsd_fast.kernels.transformer import code_queries
from rsd_fast.models.inputs import Prefix


@dataclass(frozen=True)
class HeadConfig:
    """The chunk and code that a head predicts.

    Attributes:
        steps: T.
        layers: L.
        latent_dims: D.
        levels: V.
        action_dims: A.
    """

    steps: int = 8
    layers: int = 3
    latent_dims: int = 7
    levels: int = 5
    action_dims: int = 7

    @classmethod
    def of_codec(cls, codec: CodecConfig, steps: int) -> HeadConfig:
        """The head for chunks of `steps` steps in a codec's codes."""
        return cls(steps, codec.layers, codec.latent_dims, codec.levels, codec.action_dims)

    @property
    def queries(self) -> int:
        """L * T."""
        return self.layers * self.steps


class QueryHead(nn.Module):
    """A head whose queries go through the backbone behind the prefix: at least one a step.

    `READS_CODES` says whether its queries depend on codes; where not, they can ride in the prefill.
    """

    READS_CODES = True

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.step_embedding = nn.Parameter(0.02 * torch.randn(config.steps, width))

    def queries(self, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B Q width"]:
        """The input of the backbone's decode pass."""
        raise NotImplementedError

    def query_mask(self) -> Bool[Tensor, "Q Q"]:
        """`mask[i, j]`: may query i see query j."""
        raise NotImplementedError


class ActionHead(QueryHead):
    """L * T queries from step and layer embeddings, and one linear read-out a layer."""

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__(config, width)
        self.layer_embedding = nn.Parameter(0.02 * torch.randn(config.layers, width))
        logits = config.latent_dims * config.levels
        self.readout = nn.Parameter(torch.randn(config.layers, logits, width) / width**0.5)
        self.readout_bias = nn.Parameter(torch.zeros(config.layers, logits))

    def base_queries(self) -> Float[Tensor, "L T width"]:
        """Step plus layer embedding."""
        return self.layer_embedding[:, None] + self.step_embedding[None]

    def logits(self, hidden: Float[Tensor, "B Q width"]) -> Float[Tensor, "B L T D V"]:
        """Hidden states of the queries -> logits, in the hidden states' dtype."""
        c = self.config
        if hidden.is_cuda and not torch.is_grad_enabled():
            # Every layer's read-out of every query, in one product: cheaper than a product of T rows a layer.
            all_layers = F.linear(hidden, self.readout.flatten(0, 1), self.readout_bias.flatten())
            own = all_layers.view(-1, c.layers, c.steps, c.layers, self.readout.shape[1]).diagonal(dim1=1, dim2=3)
            return own.permute(0, 3, 1, 2).unflatten(3, (c.latent_dims, c.levels))
        hidden = hidden.view(-1, c.layers, c.steps, hidden.shape[-1])
        flat = torch.einsum("blth,lvh->bltv", hidden, self.readout) + self.readout_bias[:, None]
        return flat.view(-1, c.layers, c.steps, c.latent_dims, c.levels)


class HierarchicalHead(ActionHead):
    """Layer l is predicted from the prefix and from the codes of all layers below l.

    The query of (l, t) is the sum of a step embedding, a layer embedding and the embeddings of the codes of step t in
    the layers below l. It sees the whole prefix and every query of its own and lower layers, so the logits of layer l
    are a function of lower codes only, bit for bit: codes above change nothing below.
    """

    def __init__(self, config: HeadConfig, width: int) -> None:
        super().__init__(config, width)
        # One table a layer and latent dimension; the last layer conditions nothing.
        tables = (config.layers - 1) * config.latent_dims
        self.code_embedding = nn.Embedding(max(tables, 1) * config.levels, width)
        nn.init.normal_(self.code_embedding.weight, std=0.02)

    def queries(self, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B Q width"]:
        """Embeds the codes below each layer."""
        c = self.config
        base = self.base_queries().to(self.code_embedding.weight.dtype)
        if codes.is_cuda and codes.dtype == torch.int32 and not torch.is_grad_enabled():
            return code_queries(codes.contiguous(), self.code_embedding.weight, base, c.levels)
        queries = base.expand(codes.shape[0], -1, -1, -1)
        if c.layers > 1:
            offset = torch.arange((c.layers - 1) * c.latent_dims, device=codes.device) * c.levels
            rows = codes[:, :-1] + offset.view(c.layers - 1, 1, c.latent_dims).to(codes.dtype)
            embedded = self.code_embedding(rows).sum(3)  # [B, L - 1, T, width]
            below = torch.cat([torch.zeros_like(embedded[:, :1]), embedded.cumsum(1)], 1)
            queries = queries + below
        return queries.flatten(1, 2)

    def query_mask(self) -> Bool[Tensor, "Q Q"]:
        """Bidirectional inside a layer, causal across layers."""
        layer = torch.arange(self.config.queries, device=self.readout.device) // self.config.steps
        return layer[:, None] >= layer[None, :]


class ParallelHead(ActionHead):
    """All layers at once from the prefix, as OpenVLA-OFT predicts its chunk. Codes are not read."""

    READS_CODES = False

    def queries(self, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B Q width"]:
        """The same queries for every sample."""
        return self.base_queries().flatten(0, 1).expand(codes.shape[0], -1, -1)

    def query_mask(self) -> Bool[Tensor, "Q Q"]:
        """Every query sees every other."""
        queries = self.config.queries
        return torch.ones(queries, queries, dtype=torch.bool, device=self.readout.device)


class PrefixHead(nn.Module):
    """A head that reads what the prefill left behind and runs no queries of its own."""

    def forward(self, prefix: Prefix, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B L T D V"]:
        """Logits of codes, where the head gives any."""
        raise NotImplementedError(f"{type(self).__name__} gives actions, not codes; see its `actions`")


HEADS: dict[str, type[ActionHead]] = {"hierarchical": HierarchicalHead, "parallel": ParallelHead}
