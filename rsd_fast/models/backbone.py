"""The backbone: a Llama-style transformer (Touvron et al., 2023) with a prefix that is encoded once.

Parameter names are Llama's, so that published weights load by name. There is no cache for the action queries: a pass
runs all of them, at one fixed shape, against the keys and values of the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class BackboneConfig:
    """A Llama-style transformer.

    Attributes:
        width: hidden width.
        depth: layers.
        heads: attention heads (as many key-value heads).
        mlp_width: hidden width of the SwiGLU.
        rms_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary embedding.
        causal: whether prefix tokens attend only backwards; OpenVLA-OFT attends in both directions.
    """

    width: int = 256
    depth: int = 6
    heads: int = 4
    mlp_width: int = 704
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0
    causal: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError where the sizes do not fit together."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not an even multiple of heads {self.heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass
class Joint:
    """What `Backbone.joint` returns: what `prefill` does, and the hidden states of the queries, `[B, Q, width]`."""

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Float[Tensor, "B P width"]
    queries: Float[Tensor, "B Q width"]


Rotary = tuple[Float[Tensor, "n head_dim"], Float[Tensor, "n head_dim"]]


def rotary_table(config: BackboneConfig, positions: Int[Tensor, "n"]) -> Rotary:
    """Cosine and sine of the rotary embedding, float32 (Su et al., 2021; the half-split layout of Llama)."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    angle = positions.float()[:, None] / config.rope_theta**exponent
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "B heads n head_dim"], rotary: Rotary) -> Float[Tensor, "B heads n head_dim"]:
    """Applies `rotary_table` to queries or keys."""
    cos, sin = rotary
    low, high = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-high, low], -1) * sin).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention of new tokens over themselves and, when given, over a prefix."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B n width"],
        rotary: Rotary,
        mask: Bool[Tensor, "#B 1 n keys"],
        prefix: tuple[Tensor, Tensor] | None = None,
        prefix_tokens: int = 0,
    ) -> tuple[Float[Tensor, "B n width"], Tensor, Tensor]:
        """Returns the output and the keys and values of the new tokens.

        Keys and values longer than `prefix_tokens` have room behind the prefix: the new ones are written there, and
        nothing is copied together.
        """
        batch, tokens, width = x.shape
        query, key, value = (
            projection(x).view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, rotary), rotate(key, rotary)
        keys, values = key, value
        if prefix is not None and prefix[0].shape[2] > prefix_tokens:
            keys, values = (stored[:, :, : prefix_tokens + tokens] for stored in prefix)
            keys[:, :, prefix_tokens:].copy_(key)
            values[:, :, prefix_tokens:].copy_(value)
        elif prefix is not None:
            keys, values = torch.cat([prefix[0], key], 2), torch.cat([prefix[1], value], 2)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.o_proj(attended.transpose(1, 2).reshape(batch, tokens, width)), key, value


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer, 2020)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "B n width"]) -> Float[Tensor, "B n width"]:
        """Token-wise."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """One Llama layer."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.rms_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.rms_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor,
        prefix: tuple[Tensor, Tensor] | None = None,
        prefix_tokens: int = 0,
    ) -> tuple[Float[Tensor, "B n width"], Tensor, Tensor]:
        """Returns the output and the keys and values of the new tokens."""
        attended, key, value = self.self_attn(self.input_layernorm(x), rotary, mask, prefix, prefix_tokens)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class Backbone(nn.Module):
    """Encodes a prefix once; then runs action queries against it."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.rms_eps)

    def prefill(
        self, x: Float[Tensor, "B P width"], mask: Bool[Tensor, "B P"], room: int = 0
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "B P width"]]:
        """Keys and values of every layer, and the final normalised hidden states.

        With `room`, keys and values are `[B, heads, P + room, head_dim]`: `decode` writes its own behind the prefix
        instead of copying the prefix in every pass. Only without gradients.
        """
        tokens = x.shape[1]
        rotary = rotary_table(self.config, torch.arange(tokens, device=x.device))
        attention = mask[:, None, None, :].expand(-1, 1, tokens, -1)
        if self.config.causal:
            attention = attention & torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        keys, values = [], []
        for layer in self.layers:
            x, key, value = layer(x, rotary, attention)
            keys.append(_with_room(key, room))
            values.append(_with_room(value, room))
        return keys, values, self.norm(x)

    def decode(
        self,
        x: Float[Tensor, "B Q width"],
        keys: list[Tensor],
        values: list[Tensor],
        prefix_mask: Bool[Tensor, "B P"],
        query_mask: Bool[Tensor, "Q Q"],
        start: int | None = None,
    ) -> Float[Tensor, "B Q width"]:
        """Queries attend to the whole prefix, and to one another where `query_mask[i, j]` lets i see j.

        `start` is the position of the first query; by default the one behind the prefix.
        """
        start = prefix_mask.shape[1] if start is None else start
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        return self.decode_at(positions, x, keys, values, prefix_mask, query_mask)

    def decode_at(
        self,
        positions: Int[Tensor, " Q"],
        x: Float[Tensor, "B Q width"],
        keys: list[Tensor],
        values: list[Tensor],
        prefix_mask: Bool[Tensor, "B P"],
        query_mask: Bool[Tensor, "Q Q"],
    ) -> Float[Tensor, "B Q width"]:
        """`decode` with a position for each query."""
        batch, queries = x.shape[:2]
        prefix_tokens = prefix_mask.shape[1]
        rotary = rotary_table(self.config, positions)
        attention = torch.cat(
            [
                prefix_mask[:, None, None, :].expand(-1, 1, queries, -1),
                query_mask[None, None].expand(batch, 1, -1, -1),
            ],
            -1,
        )
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            x, _, _ = layer(x, rotary, attention, (key, value), prefix_tokens)
        return self.norm(x)

    def joint(
        self,
        x: Float[Tensor, "B P width"],
        mask: Bool[Tensor, "B P"],
        queries: Float[Tensor, "B Q width"],
        query_mask: Bool[Tensor, "Q Q"],
        start: int | None = None,
        room: int = 0,
    ) -> Joint:
        """A prefix and queries that do not depend on it: `prefill`, then `decode`. The prefix does not see the queries.

        A backbone that is bound by reading its weights does both at once.
        """
        keys, values, hidden = self.prefill(x, mask, room)
        return Joint(keys, values, hidden, self.decode(queries, keys, values, mask, query_mask, start))


def _with_room(stored: Float[Tensor, "B heads P head_dim"], room: int) -> Float[Tensor, "B heads slots head_dim"]:
    if room == 0:
        return stored
    batch, heads, tokens, head_dim = stored.shape
    # Zeros, not whatever lies there: a mask hides the room, but NaN times nothing is NaN.
    roomy = stored.new_zeros(batch, heads, tokens + room, head_dim)
    roomy[:, :, :tokens].copy_(stored)
    return roomy
