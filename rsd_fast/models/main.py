"""The main model: observation -> prefix, codes -> logits."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from rsd_fast.models.backbone import Backbone, BackboneConfig
from rsd_fast.models.heads import HEADS, ActionHead, HeadConfig
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.tokenizer import InstructionTokenizer
from rsd_fast.models.vision import VisionConfig, VisionTower
from rsd_fast.normalize import QuantileNormalizer
from rsd_fast.pretrained import Pretrained

PROPRIO_DIMS = 8


@dataclass(frozen=True)
class MainConfig:
    """A main model.

    Attributes:
        vision: the featuriser.
        backbone: the transformer.
        head: the chunk and code it predicts.
        heads: which heads it carries, of `rsd_fast.models.heads.HEADS`.
        cameras: images an observation.
        vocab_size: tokens of the instruction tokenizer.
        max_tokens: N, the fixed length of an instruction.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    heads: tuple[str, ...] = ("hierarchical", "parallel")
    cameras: int = 2
    vocab_size: int = 512
    max_tokens: int = 24

    def __post_init__(self) -> None:
        """Rebuilds nested configurations from JSON; raises ValueError on an unknown head."""
        for name, kind in (("vision", VisionConfig), ("backbone", BackboneConfig), ("head", HeadConfig)):
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, kind(**value))
        object.__setattr__(self, "heads", tuple(self.heads))
        if unknown := set(self.heads) - set(HEADS):
            raise ValueError(f"got heads {sorted(unknown)}, expected some of {sorted(HEADS)}")

    @property
    def prefix_tokens(self) -> int:
        """P: beginning of sequence, patches, proprio, instruction."""
        return 1 + self.cameras * self.vision.patches + 1 + self.max_tokens


class Projector(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*b inputs"]) -> Float[Tensor, "*b width"]:
        """Token-wise."""
        return self.fc2(F.gelu(self.fc1(x)))


class MainModel(
    nn.Module,
    Pretrained,
    library_name="rsd_fast",
    license="apache-2.0",
    repo_url="rsd_fast",
    tags=["robotics", "vision-language-action"],
):
    """A vision-language-action policy over RFSQ codes.

    The prefix is, in OpenVLA-OFT's order: beginning of sequence, patches of every camera, proprio, instruction.
    """

    def __init__(self, config: MainConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.vision_backbone = VisionTower(config.vision)
        self.projector = Projector(config.vision.width, width)
        self.proprio_normalizer = QuantileNormalizer(PROPRIO_DIMS)
        self.proprio_projector = Projector(PROPRIO_DIMS, width)
        self.begin_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.backbone = Backbone(config.backbone)
        self.heads = nn.ModuleDict({name: HEADS[name](config.head, width) for name in config.heads})
        self.tokenizer: InstructionTokenizer | None = None

    # ---- observation -> prefix

    def encode_images(self, images: UInt8[Tensor, "B cameras H W 3"]) -> Float[Tensor, "B tokens vision_width"]:
        """The vision stage alone."""
        return self.vision_backbone(images)

    def prefill(
        self,
        inputs: PolicyInputs,
        features: Float[Tensor, "B tokens vision_width"] | None = None,
        in_place: bool = False,
    ) -> Prefix:
        """Encodes an observation once a chunk.

        Args:
            inputs: a batch; its tokens may be shorter than the model's N where the rest would be padding.
            features: of `encode_images`, where the caller has run that stage already.
            in_place: leave room behind the prefix, so that passes write their keys and values there instead of copying
                the prefix. Inference only.
        """
        features = self.encode_images(inputs.images) if features is None else features
        patches = self.projector(features)
        proprio = self.proprio_projector(self.proprio_normalizer.normalize(inputs.proprio).to(patches.dtype))
        batch, patch_tokens, _ = patches.shape
        x = torch.cat(
            [
                self.begin_token.expand(batch, -1, -1),
                patches,
                proprio[:, None],
                self.embed_tokens(inputs.tokens),
            ],
            1,
        )
        seen = inputs.token_mask.new_ones(batch, 1 + patch_tokens + 1)
        mask = torch.cat([seen, inputs.token_mask], 1)
        keys, values, hidden = self.backbone.prefill(x, mask, self.config.head.queries if in_place else 0)
        return Prefix(keys, values, hidden, mask)

    # ---- codes -> logits

    def decode(
        self, prefix: Prefix, codes: Int[Tensor, "B L T D"], head: str = "hierarchical"
    ) -> Float[Tensor, "B L T D V"]:
        """One pass over all L * T queries. Layer l's logits depend on the codes below l only."""
        module = self.heads[head]
        assert isinstance(module, ActionHead)
        hidden = self.backbone.decode(
            module.queries(codes),
            prefix.keys,
            prefix.values,
            prefix.mask,
            module.query_mask(),
            start=self.config.prefix_tokens,  # also where the padding of a short instruction was left out
        )
        return module.logits(hidden)

    # ---- checkpoints (huggingface_hub's mixin calls these)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save(save_directory)

    def _load_more(self, folder: Path) -> None:
        self.tokenizer = InstructionTokenizer.load(folder, self.config.max_tokens)
