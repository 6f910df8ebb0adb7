"""Draft models: a cheap guess at the coarse layers, from the prefix that main has computed anyway."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rsd_fast.codec import RFSQCodec
from rsd_fast.models.attention import for_short
from rsd_fast.models.draft_base import DraftModel, choose_codes
from rsd_fast.models.draft_original import OriginalDraft
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.inputs import Prefix
from rsd_fast.proposal import Proposal


@dataclass(frozen=True)
class DraftConfig:
    """A draft model.

    Attributes:
        kind: one of `DRAFTS`.
        prefix_width: width of main's hidden states.
        width: of the draft's own trunk.
        depth: cross-attention blocks.
        heads: attention heads.
        layers: coarse layers that it proposes (`coarse` only; `regression` is quantised to every layer).
        head: the chunk and code.
    """

    kind: str = "regression"
    prefix_width: int = 256
    width: int = 192
    depth: int = 2
    heads: int = 3
    layers: int = 2
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Rebuilds the nested configuration from JSON; raises ValueError on an unknown kind."""
        if isinstance(self.head, dict):
            object.__setattr__(self, "head", HeadConfig(**self.head))
        if self.kind not in ("regression", "coarse"):
            raise ValueError(f"got draft kind {self.kind!r}, expected 'regression' or 'coarse'")
        if not 1 <= self.layers <= self.head.layers:
            raise ValueError(f"got {self.layers} draft layers, expected 1 to the code's {self.head.layers}")


class CrossBlock(nn.Module):
    """Queries read the prefix, then each other, then think."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        width = config.width
        self.cross_norm = nn.LayerNorm(width)
        self.cross = nn.MultiheadAttention(
            width, config.heads, batch_first=True, kdim=config.prefix_width, vdim=config.prefix_width
        )
        self.self_norm = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "B T width"], hidden: Float[Tensor, "B P prefix"], bias: Float[Tensor, "B 1 1 P"]
    ) -> Float[Tensor, "B T width"]:
        """`bias` is added to the scores: 0, or -inf where the prefix holds nothing."""
        q = self.cross_norm(x)
        with for_short(q):
            x = x + self.read(q, hidden, bias)
            q = self.self_norm(x)
            x = x + self.self_attn(q, q, q, need_weights=False)[0]
        return x + self.mlp(self.mlp_norm(x))

    def read(
        self, q: Float[Tensor, "B T width"], hidden: Float[Tensor, "B P prefix"], bias: Float[Tensor, "B 1 1 P"]
    ) -> Float[Tensor, "B T width"]:
        """`self.cross`, whose own forward would make the mask anew in every block, and copy it."""
        weights, biases = _projections(self.cross), self.cross.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(read, weight, offset).unflatten(-1, (self.cross.num_heads, -1)).transpose(1, 2)
            for read, weight, offset in zip((q, hidden, hidden), weights, biases, strict=True)
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.cross.out_proj(found.transpose(1, 2).flatten(2))
        return out


def _projections(attention: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    """Of queries, keys and values: one parameter where all are as wide, otherwise three."""
    if attention.in_proj_weight is not None:
        return attention.in_proj_weight.chunk(3)
    return attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight


def _bias(mask: Bool[Tensor, "B P"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 P"]:
    """0 where the mask is true, -inf elsewhere; rows begin at multiples of 16, or attention would copy them there."""
    batch, length = mask.shape
    room = torch.full((batch, 1, 1, -(-length // 16) * 16), -torch.inf, dtype=dtype, device=mask.device)
    return room[..., :length].masked_fill_(mask[:, None, None], 0.0)


class QueryDraft(DraftModel):
    """T learned queries over main's prefix; subclasses say what they read out."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Parameter(0.02 * torch.randn(1, config.head.steps, config.width))
        self.blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.readout = nn.Linear(config.width, self.outputs)

    @property
    def outputs(self) -> int:
        """Numbers read out a step."""
        raise NotImplementedError

    def trunk(self, hidden: Float[Tensor, "B P prefix"], mask: Bool[Tensor, "B P"]) -> Float[Tensor, "B T outputs"]:
        """The part that all drafts share."""
        x = self.query.expand(hidden.shape[0], -1, -1)
        bias = _bias(mask, x.dtype)
        for block in self.blocks:
            x = block(x, hidden, bias)
        return self.readout(self.norm(x))


class RegressionDraft(QueryDraft):
    """An L1-regression head, as OpenVLA-OFT's; its chunk is quantised by the codec into codes of every layer."""

    @property
    def outputs(self) -> int:
        """D."""
        return self.config.head.latent_dims

    def forward(self, hidden: Float[Tensor, "B P prefix"], mask: Bool[Tensor, "B P"]) -> Float[Tensor, "B T D"]:
        """Latents of the chunk."""
        return self.trunk(hidden, mask)

    def propose(self, prefix: Prefix, codec: RFSQCodec, uniforms: Tensor | None = None) -> Proposal:
        """A point mass: a regression has no distribution to draw from."""
        return Proposal(codec.encode(self.latents(prefix, codec), check_finite=False).targets)

    def latents(self, prefix: Prefix, codec: RFSQCodec) -> Float[Tensor, "B T D"]:
        """The regression itself, before it is quantised."""
        return self(prefix.hidden, prefix.mask).float()


class CoarseDraft(QueryDraft):
    """Logits for the first layers, all at once (the original project's draft)."""

    @property
    def outputs(self) -> int:
        """Ld * D * V."""
        head = self.config.head
        return self.config.layers * head.latent_dims * head.levels

    def forward(self, hidden: Float[Tensor, "B P prefix"], mask: Bool[Tensor, "B P"]) -> Float[Tensor, "B Ld T D V"]:
        """Logits of the coarse layers."""
        head = self.config.head
        flat = self.trunk(hidden, mask)
        return flat.view(-1, head.steps, self.config.layers, head.latent_dims, head.levels).transpose(1, 2)

    def propose(self, prefix: Prefix, codec: RFSQCodec, uniforms: Tensor | None = None) -> Proposal:
        """The likeliest codes; with `uniforms`, codes drawn from the draft's distribution, and that distribution."""
        return choose_codes(self(prefix.hidden, prefix.mask).float(), uniforms)


# The drafts that `rsd-fast train draft` trains.
DRAFTS: dict[str, type[QueryDraft]] = {"regression": RegressionDraft, "coarse": CoarseDraft}

# Every draft that a policy folder can hold.
DRAFT_KINDS: dict[str, type[DraftModel]] = {**DRAFTS, "original": OriginalDraft}


def make_draft(config: DraftConfig) -> QueryDraft:
    """The draft model of a configuration's kind."""
    return DRAFTS[config.kind](config)


def load_draft(path: str, kind: str, **kwargs: Any) -> DraftModel:
    """`from_pretrained` of the class that `kind` names."""
    if kind not in DRAFT_KINDS:
        raise ValueError(f"got draft {kind!r}, expected one of {sorted(DRAFT_KINDS)}")
    return DRAFT_KINDS[kind].from_pretrained(path, **kwargs)
