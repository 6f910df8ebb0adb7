"""The heads of the original RSD project: small networks on main's last hidden state, all layers at once.

They run no pass of the main model: what they read, the prefill has computed already. Variants a, b and c are the
project's parallel heads; variant d, "mode locking", is also given the draft's coarse codes. Parameter names are the
project's, so that its checkpoints load by name.

| variant | class | hidden widths |
|---|---|---|
| a | `LinearHead` | none |
| b | `MlpHead` | of the two layers of each head |
| c | `TrunkHead` | trunk, layer head |
| d | `ConditionedHead` | trunk, layer head, code embedding, condition layers |

At D = 7 variant a is `[B, 8, 56, 7]` reshaped: element = step * D + dim in every variant.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rsd_fast.models.heads import HeadConfig, PrefixHead
from rsd_fast.models.inputs import Prefix, last_hidden


def gelu_norm(inputs: int, *widths: int) -> list[nn.Module]:
    """Linear, GELU, LayerNorm for each width."""
    modules: list[nn.Module] = []
    for width in widths:
        modules += [nn.Linear(inputs, width), nn.GELU(), nn.LayerNorm(width)]
        inputs = width
    return modules


class OriginalHead(PrefixHead):
    """What the variants share: T * D * V logits a layer, from one vector.

    `WIDTHS` is how many hidden widths a variant has.
    """

    WIDTHS = 0

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.logits_per_layer = config.steps * config.latent_dims * config.levels

    def layers(self, state: Float[Tensor, "B width"], codes: Int[Tensor, "B L T D"]) -> list[Float[Tensor, "B n"]]:
        """Flat logits of each layer."""
        raise NotImplementedError

    def forward(self, prefix: Prefix, codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B L T D V"]:
        """Logits; of `codes` only variant d reads the coarse layers."""
        c = self.config
        flat = torch.stack(self.layers(last_hidden(prefix), codes), 1)
        return flat.view(-1, c.layers, c.steps, c.latent_dims, c.levels)


class LinearHead(OriginalHead):
    """Variant a: one linear map a layer."""

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(config, width, hidden)
        self.classification_heads = nn.ModuleList(
            nn.Linear(width, self.logits_per_layer) for _ in range(config.layers)
        )

    def layers(self, state: Float[Tensor, "B width"], codes: Int[Tensor, "B L T D"]) -> list[Float[Tensor, "B n"]]:
        """See the class."""
        return [head(state) for head in self.classification_heads]


class MlpHead(OriginalHead):
    """Variant b: a three-layer perceptron a layer."""

    WIDTHS = 2

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(config, width, hidden)
        self.classification_heads = nn.ModuleList(
            nn.Sequential(*gelu_norm(width, *hidden), nn.Linear(hidden[-1], self.logits_per_layer))
            for _ in range(config.layers)
        )

    def layers(self, state: Float[Tensor, "B width"], codes: Int[Tensor, "B L T D"]) -> list[Float[Tensor, "B n"]]:
        """See the class."""
        return [head(state) for head in self.classification_heads]


class TrunkHead(OriginalHead):
    """Variant c: a shared trunk, then a two-layer perceptron a layer."""

    WIDTHS = 2

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(config, width, hidden)
        trunk, layer = hidden[:2]
        self.feature_proj = nn.Sequential(*gelu_norm(width, trunk))
        self.layer_heads = nn.ModuleList(
            nn.Sequential(*gelu_norm(trunk, layer), nn.Linear(layer, self.logits_per_layer))
            for _ in range(config.layers)
        )

    def features(self, state: Float[Tensor, "B width"], codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B trunk"]:
        """What the layer heads read."""
        return self.feature_proj(state)

    def layers(self, state: Float[Tensor, "B width"], codes: Int[Tensor, "B L T D"]) -> list[Float[Tensor, "B n"]]:
        """See the class."""
        features = self.features(state, codes)
        return [head(features) for head in self.layer_heads]


class ConditionedHead(TrunkHead):
    """Variant d: the trunk is fused with an embedding of the draft's coarse codes.

    Every layer's logits, the coarse ones' too, depend on all conditioning codes; so sequential decoding with this head
    is not what the other heads' is, and a round should start from a draft.
    """

    WIDTHS = 4

    def __init__(self, config: HeadConfig, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(config, width, hidden)
        trunk, _, embedding, self.condition_layers = hidden
        self.token_embedding = nn.Embedding(config.levels, embedding)
        codes = config.steps * config.latent_dims * self.condition_layers
        self.token_proj = nn.Sequential(*gelu_norm(codes * embedding, trunk))
        self.fusion = nn.Sequential(*gelu_norm(2 * trunk, trunk))

    def features(self, state: Float[Tensor, "B width"], codes: Int[Tensor, "B L T D"]) -> Float[Tensor, "B trunk"]:
        """Trunk feature, then code feature."""
        condition = codes[:, : self.condition_layers].permute(0, 2, 3, 1)  # [B, T, D, layers], as it was trained
        embedded = self.token_proj(self.token_embedding(condition).flatten(1))
        return self.fusion(torch.cat([self.feature_proj(state), embedded], -1))


ORIGINAL_HEADS: dict[str, type[OriginalHead]] = {
    "linear": LinearHead,
    "mlp": MlpHead,
    "trunk": TrunkHead,
    "conditioned": ConditionedHead,
}
