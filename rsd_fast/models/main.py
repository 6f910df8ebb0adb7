"""The main model: observation -> prefix, codes -> logits."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from rsd_fast.images import ImageConfig
from rsd_fast.models.backbone import Backbone, BackboneConfig
from rsd_fast.models.head_registry import DECODERS, HEAD_KINDS, make_head
from rsd_fast.models.heads import ActionHead, HeadConfig, HierarchicalHead, PrefixHead, QueryHead
from rsd_fast.models.heads_baseline import ConditionedQueryHead, RegressionHead
from rsd_fast.models.heads_oft import BaselineHead
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.prompt import PromptConfig, load_tokenizer
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
        heads: which heads it carries, of `rsd_fast.models.head_registry.HEAD_KINDS`.
        cameras: images an observation.
        vocab_size: tokens of the instruction tokenizer.
        max_tokens: N, the fixed length of an instruction; with a prompt, of everything that is text.
        head_widths: hidden widths of the heads that have any, by name.
        proprio: whether the robot's state is read.
        prompt: how an instruction becomes OpenVLA's prompt; None for the bare instruction.
        images: what is done to an image first.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    heads: tuple[str, ...] = ("hierarchical", "parallel")
    cameras: int = 2
    vocab_size: int = 512
    max_tokens: int = 24
    head_widths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    proprio: bool = True
    prompt: PromptConfig | None = None
    images: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        """Rebuilds nested configurations from JSON; raises ValueError on an unknown head."""
        nested = {
            "vision": VisionConfig,
            "backbone": BackboneConfig,
            "head": HeadConfig,
            "prompt": PromptConfig,
            "images": ImageConfig,
        }
        for name, kind in nested.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, kind(**value))
        object.__setattr__(self, "heads", tuple(self.heads))
        widths = {name: tuple(values) for name, values in self.head_widths.items()}
        object.__setattr__(self, "head_widths", widths)
        if unknown := set(self.heads) - set(HEAD_KINDS):
            raise ValueError(f"got heads {sorted(unknown)}, expected some of {sorted(HEAD_KINDS)}")

    @property
    def prefix_tokens(self) -> int:
        """P: beginning of sequence (a prompt counts it among its tokens), patches, proprio, instruction."""
        begin = 0 if self.prompt else 1
        return begin + self.cameras * self.vision.patches + int(self.proprio) + self.max_tokens


class Projector(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*b inputs"]) -> Float[Tensor, "*b width"]:
        """Token-wise."""
        return self.fc2(F.gelu(self.fc1(x)))


class FusedProjector(nn.Module):
    """OpenVLA's projector for two featurisers: widen fourfold, narrow, mix; GELU between."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 4 * inputs)
        self.fc2 = nn.Linear(4 * inputs, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*b inputs"]) -> Float[Tensor, "*b width"]:
        """Token-wise."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


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
        projector = FusedProjector if config.vision.fused else Projector
        self.projector = projector(config.vision.features, width)
        if config.proprio:
            self.proprio_normalizer = QuantileNormalizer(PROPRIO_DIMS)
            self.proprio_projector = Projector(PROPRIO_DIMS, width)
        if config.prompt is None:
            self.begin_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.backbone = Backbone(config.backbone)
        self.heads = nn.ModuleDict(
            {name: make_head(name, config.head, width, config.head_widths.get(name, ())) for name in config.heads}
        )
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
        rider: str | None = None,
    ) -> Prefix:
        """Encodes an observation once a chunk.

        Args:
            inputs: a batch; its tokens may be shorter than the model's N where the rest would be padding.
            features: of `encode_images`, where the caller has run that stage already.
            in_place: leave room behind the prefix, so that passes write their keys and values there instead of copying
                the prefix. Inference only.
            rider: a head that reads no codes: its queries go through the backbone together with the prefix, and
                `decode` with it has only logits to read out.
        """
        x, mask = self.embed(inputs, self.encode_images(inputs.images) if features is None else features)
        room = self.config.head.queries if in_place else 0
        if rider is None:
            keys, values, hidden = self.backbone.prefill(x, mask, room)
            return Prefix(keys, values, hidden, mask)
        if not self.can_ride(rider):
            raise ValueError(f"got rider {rider!r}, expected a head whose queries do not depend on codes")
        head = self.query_head(rider)
        queries = head.queries(self.no_codes(len(x), x.device)).to(x.dtype)
        done = self.backbone.joint(x, mask, queries, head.query_mask(), self.config.prefix_tokens, room)
        return Prefix(done.keys, done.values, done.hidden, mask, {rider: done.queries})

    def embed(
        self, inputs: PolicyInputs, features: Float[Tensor, "B tokens vision_width"]
    ) -> tuple[Float[Tensor, "B P width"], Bool[Tensor, "B P"]]:
        """What the backbone reads: begin of sequence, patches, proprio, text; and which of it is not padding."""
        patches = self.projector(features)
        batch = len(patches)
        if self.config.prompt is None:
            begin, text = self.begin_token.expand(batch, -1, -1), self.embed_tokens(inputs.tokens)
        else:
            # Action placeholders (negative ids) are zeros: only their position speaks.
            text = self.embed_tokens(inputs.tokens.clamp_min(0)) * (inputs.tokens >= 0)[..., None]
            begin, text = text[:, :1], text[:, 1:]
        parts = [begin, patches]
        if self.config.proprio:
            proprio = self.proprio_projector(self.proprio_normalizer.normalize(inputs.proprio).to(patches.dtype))
            parts.append(proprio[:, None])
        x = torch.cat([*parts, text], 1)
        words = text.shape[1]
        seen = inputs.token_mask.new_ones(batch, x.shape[1] - words)
        return x, torch.cat([seen, inputs.token_mask[:, -words:]], 1)

    # ---- codes -> logits

    def can_ride(self, head: str) -> bool:
        """Whether a head's queries can go through the backbone together with the prefix."""
        module = self.heads[head]
        return isinstance(module, QueryHead) and not module.READS_CODES

    def query_head(self, name: str) -> QueryHead:
        """A head that runs queries."""
        module = self.heads[name]
        assert isinstance(module, QueryHead)
        return module

    def head_for(self, mode: str) -> str:
        """The head that a mode of decoding uses: the first one there is.

        Raises:
            ValueError: none of this model's heads can serve the mode.
        """
        wanted = DECODERS.get(mode, DECODERS["layered"])
        for name in wanted:
            if name in self.heads:
                return name
        raise ValueError(f"mode {mode!r} needs a head of {list(wanted)}; this model has {list(self.heads)}")

    def is_layered(self, head: str) -> bool:
        """Whether a head says every layer in view of the codes below it."""
        return isinstance(self.heads[head], HierarchicalHead)

    def decode(
        self, prefix: Prefix, codes: Int[Tensor, "B L T D"], head: str = "hierarchical"
    ) -> Float[Tensor, "B L T D V"]:
        """One pass over all queries of a head. Layer l's logits depend on the codes below l only (hierarchical head).

        The original project's heads read the prefix alone: with them a pass runs no backbone.
        """
        module = self.heads[head]
        if isinstance(module, PrefixHead):
            return module(prefix, codes)
        hidden = self.run_queries(prefix, codes, head)
        if isinstance(module, ConditionedQueryHead):
            return module.logits(hidden, codes)
        assert isinstance(module, ActionHead)
        return module.logits(hidden)

    def actions(self, prefix: Prefix, head: str = "regression") -> Float[Tensor, "B T A"]:
        """The chunk of a head that gives actions, not codes: normalised, float32."""
        module = self.heads[head]
        if isinstance(module, BaselineHead):
            return module.actions(prefix)
        assert isinstance(module, RegressionHead)
        return module.actions(self.run_queries(prefix, self.no_codes(len(prefix.mask), prefix.mask.device), head))

    def run_queries(self, prefix: Prefix, codes: Int[Tensor, "B L T D"], head: str) -> Float[Tensor, "B Q width"]:
        """A head's queries through the backbone, or what they became on the way through the prefill."""
        if head in prefix.riders:
            return prefix.riders[head]
        module = self.query_head(head)
        return self.backbone.decode(
            module.queries(codes),
            prefix.keys,
            prefix.values,
            prefix.mask,
            module.query_mask(),
            start=self.config.prefix_tokens,  # also where the padding of a short instruction was left out
        )

    def run_together(
        self, prefix: Prefix, codes: dict[str, Int[Tensor, "B L T D"]]
    ) -> dict[str, Float[Tensor, "B Q width"]]:
        """The queries of several heads in one run of the backbone, each for its own codes; none sees another head's.

        For training: as riders of a prefix, `decode` and `actions` take them from there, whatever codes they are asked
        for then. Keys and values of the prefix are put together with those of the queries once, not once a head.
        """
        queries = [self.query_head(name).queries(of_head) for name, of_head in codes.items()]
        counts = [of_head.shape[1] for of_head in queries]
        start, device = self.config.prefix_tokens, prefix.mask.device
        positions = torch.cat([torch.arange(start, start + count, device=device) for count in counts])
        mask = torch.block_diag(*(self.query_head(name).query_mask() for name in codes))
        x = torch.cat(queries, 1)
        hidden = self.backbone.decode_at(positions, x, prefix.keys, prefix.values, prefix.mask, mask)
        return dict(zip(codes, hidden.split(counts, 1), strict=True))

    def no_codes(self, batch: int, device: torch.device) -> Int[Tensor, "B L T D"]:
        """For the queries of heads that read none."""
        c = self.config.head
        return torch.zeros(batch, c.layers, c.steps, c.latent_dims, dtype=torch.int32, device=device)

    # ---- checkpoints (huggingface_hub's mixin calls these)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save(save_directory)

    def _load_more(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder, self.config.max_tokens, self.config.prompt)
