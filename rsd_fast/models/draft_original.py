"""The draft models of the original RSD project, with its parameter names.

The later one reads a single hidden state, projects it down, runs one transformer decoder layer over a sequence of
length one, and gives the logits of all elements of a layer from a head each. The older one has no projection, runs at
main's width over a sequence of T * D positions, and gives the V logits of each position.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rsd_fast.codec import RFSQCodec
from rsd_fast.models.draft_base import DraftModel, choose_codes
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.heads_oft import action_states
from rsd_fast.models.inputs import Prefix, last_hidden
from rsd_fast.proposal import Proposal

MAX_POSITIONS = 256


@dataclass(frozen=True)
class OriginalDraftConfig:
    """A draft of the original project.

    Attributes:
        kind: always `original`.
        prefix_width: width of main's hidden states.
        width: of the decoder layer; equals `prefix_width` in the older variant.
        mlp_width: hidden width of the decoder layer's perceptron.
        head_width: hidden width of the classification heads.
        heads: attention heads.
        layers: coarse layers that it proposes.
        projects: whether it is the later variant, with `input_projection`.
        head: the chunk and code.
    """

    kind: str = "original"
    prefix_width: int = 4096
    width: int = 512
    mlp_width: int = 2048
    head_width: int = 256
    heads: int = 8
    layers: int = 3
    projects: bool = True
    head: HeadConfig = field(default_factory=lambda: HeadConfig(8, 8, 16, 7))

    def __post_init__(self) -> None:
        """Rebuilds the nested configuration from JSON; raises ValueError where the sizes do not fit together."""
        if isinstance(self.head, dict):
            object.__setattr__(self, "head", HeadConfig(**self.head))
        if self.kind != "original":
            raise ValueError(f"got draft kind {self.kind!r}, expected 'original'")
        if not 1 <= self.layers <= self.head.layers:
            raise ValueError(f"got {self.layers} draft layers, expected 1 to the code's {self.head.layers}")
        if not self.projects and self.width != self.prefix_width:
            raise ValueError(f"a draft without projection is as wide as main: got {self.width}, {self.prefix_width}")
        if not self.projects and self.elements > MAX_POSITIONS:
            raise ValueError(f"a draft without projection has {MAX_POSITIONS} positions, got {self.elements} elements")

    @property
    def elements(self) -> int:
        """T * D."""
        return self.head.steps * self.head.latent_dims


class DecoderBlock(nn.Module):
    """The project's decoder: one layer that is its own memory."""

    def __init__(self, config: OriginalDraftConfig) -> None:
        super().__init__()
        self.decoder_layer = nn.TransformerDecoderLayer(
            config.width,
            config.heads,
            config.mlp_width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.position_encoding = nn.Parameter(0.02 * torch.randn(1, MAX_POSITIONS, config.width))
        self.output_norm = nn.LayerNorm(config.width)

    def forward(self, x: Float[Tensor, "B n width"]) -> Float[Tensor, "B n width"]:
        """Self-attention, attention to the same sequence, perceptron."""
        x = x + self.position_encoding[:, : x.shape[1]]
        return self.output_norm(self.decoder_layer(x, x))


class OriginalDraft(DraftModel):
    """See the module's text."""

    def __init__(self, config: OriginalDraftConfig) -> None:
        super().__init__()
        self.config = config
        if config.projects:
            self.input_projection = nn.Linear(config.prefix_width, config.width)
        self.decoder = DecoderBlock(config)
        outputs = config.head.levels * (config.elements if config.projects else 1)
        self.classification_heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.width, config.head_width),
                nn.GELU(),
                nn.LayerNorm(config.head_width),
                nn.Linear(config.head_width, outputs),
            )
            for _ in range(config.layers)
        )

    def forward(self, states: Float[Tensor, "B n prefix"]) -> Float[Tensor, "B Ld T D V"]:
        """Logits from the last hidden state (n = 1), or in the older variant from T * D of them."""
        c, head = self.config, self.config.head
        decoded = self.decoder(self.input_projection(states) if c.projects else states)
        logits = torch.stack([classify(decoded) for classify in self.classification_heads], 1)
        return logits.reshape(-1, c.layers, head.steps, head.latent_dims, head.levels)

    def propose(self, prefix: Prefix, codec: RFSQCodec, uniforms: Tensor | None = None) -> Proposal:
        """The likeliest codes, or with `uniforms` drawn ones.

        The older variant reads the hidden states of T * D action placeholders, so main's prompt needs as many.
        """
        single = self.config.projects
        states = last_hidden(prefix)[:, None] if single else action_states(prefix, self.config.elements)
        return choose_codes(self(states).float(), uniforms)
