"""The heads of OpenVLA-OFT (Kim et al., 2025): baselines that give a chunk in one pass, without codes.

The prefix then ends in T * A action placeholders and a stop token. As in a language model, the hidden state *before* a
placeholder speaks for it: what is read are T * A positions from the last prompt token on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rsd_fast.models.heads import HeadConfig, PrefixHead
from rsd_fast.models.inputs import Prefix

ACTION_DIMS = 7
ACTION_BINS = 256
# The vocabulary is padded by so many rows; the last real ids are the action bins.
VOCABULARY_PADDING = 64


def action_states(prefix: Prefix, count: int) -> Float[Tensor, "B count width"]:
    """The hidden states that speak for `count` placeholders, which only a stop token follows."""
    start = prefix.mask.sum(1) - count - 2
    rows = start[:, None] + torch.arange(count, device=start.device)
    return prefix.hidden.gather(1, rows[..., None].expand(-1, -1, prefix.hidden.shape[-1]))


class BaselineHead(PrefixHead):
    """Gives actions, not logits of codes. It has one width of its own (`WIDTHS`)."""

    WIDTHS = 1

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = config.steps

    def actions(self, prefix: Prefix) -> Float[Tensor, "B T A"]:
        """Normalised actions; the codec's normaliser gives them their units."""
        raise NotImplementedError


class ResidualBlock(nn.Module):
    """`x + relu(linear(norm(x)))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Float[Tensor, "B T width"]) -> Float[Tensor, "B T width"]:
        """Token-wise."""
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    """The network of OFT's action head."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, "B T inputs"]) -> Float[Tensor, "B T outputs"]:
        """Token-wise."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1Head(BaselineHead):
    """Regression: the hidden states of a step's A placeholders, side by side, to its action."""

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(config, width, hidden)
        self.model = ResidualMlp(ACTION_DIMS * width, hidden[0], ACTION_DIMS)

    def actions(self, prefix: Prefix) -> Float[Tensor, "B T A"]:
        """See the class."""
        states = action_states(prefix, self.steps * ACTION_DIMS)
        return self.model(states.unflatten(1, (self.steps, ACTION_DIMS)).flatten(2)).float()


class DiscreteHead(BaselineHead):
    """The language model's own logits: each placeholder takes the likeliest token, which names a bin of [-1, 1].

    Bin = vocabulary size - token id, so the last id is the lowest bin. Ids that are no action fall into the outermost
    bin, as in the original.
    """

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(config, width, hidden)
        rows = hidden[0]
        self.vocabulary = rows - VOCABULARY_PADDING
        self.weight = nn.Parameter(torch.randn(rows, width) / width**0.5)

    def actions(self, prefix: Prefix) -> Float[Tensor, "B T A"]:
        """Bin centres."""
        states = action_states(prefix, self.steps * ACTION_DIMS)
        tokens = F.linear(states, self.weight).argmax(-1)
        bins = (self.vocabulary - tokens - 1).clamp(0, ACTION_BINS - 2)
        width = 2 / (ACTION_BINS - 1)
        return (-1 + (bins.float() + 0.5) * width).unflatten(1, (self.steps, ACTION_DIMS))


OFT_HEADS: dict[str, type[BaselineHead]] = {"l1": L1Head, "discrete": DiscreteHead}
