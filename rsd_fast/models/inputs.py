"""What goes into a policy, and what a prefill leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass
class PolicyInputs:
    """A batch of observations with their instructions, on one device.

    Attributes:
        images: uint8, `[B, cameras, H, W, 3]`, upright; third-person camera first, then the wrist.
        proprio: float32 `[B, 8]` in physical units: end-effector position (m), axis-angle (rad), gripper (m, two
            fingers).
        tokens: int64 `[B, N]`, the instruction, padded to the model's fixed N.
        token_mask: bool `[B, N]`, true where `tokens` is not padding.
    """

    images: UInt8[Tensor, "B cameras H W 3"]
    proprio: Float[Tensor, "B 8"]
    tokens: Int[Tensor, "B N"]
    token_mask: Bool[Tensor, "B N"]

    def to(self, device: torch.device | str) -> PolicyInputs:
        """The same batch on another device."""
        return PolicyInputs(*(tensor.to(device) for tensor in self._fields()))

    def __getitem__(self, rows: slice) -> PolicyInputs:
        """A part of the batch."""
        return PolicyInputs(*(tensor[rows] for tensor in self._fields()))

    def first_tokens(self, count: int) -> PolicyInputs:
        """The same batch with its instructions cut to `count` tokens."""
        return PolicyInputs(self.images, self.proprio, self.tokens[:, :count], self.token_mask[:, :count])

    def __len__(self) -> int:
        """B."""
        return self.images.shape[0]

    def _fields(self) -> tuple[Tensor, ...]:
        return self.images, self.proprio, self.tokens, self.token_mask


@dataclass
class Prefix:
    """What main keeps of an observation: everything that action queries and draft models read.

    Attributes:
        keys: per backbone layer, `[B, heads, P or more, head_dim]`, rotary positions applied; what lies behind the P
            tokens is room for the queries of a pass.
        values: likewise.
        hidden: the final normalised hidden states, `[B, P, width]`.
        mask: bool `[B, P]`, false at padding.
        riders: the hidden states of the queries that went through the prefill, `[B, Q, width]`, by head.
    """

    keys: list[Float[Tensor, "B heads slots head_dim"]]
    values: list[Float[Tensor, "B heads slots head_dim"]]
    hidden: Float[Tensor, "B P width"]
    mask: Bool[Tensor, "B P"]
    riders: dict[str, Float[Tensor, "B Q width"]] = field(default_factory=dict)


def last_hidden(prefix: Prefix) -> Float[Tensor, "B width"]:
    """The hidden state at the last token that is not padding."""
    last = (prefix.mask.sum(1) - 1)[:, None, None].expand(-1, 1, prefix.hidden.shape[-1])
    return prefix.hidden.gather(1, last)[:, 0]
