"""OpenVLA-7B with random weights, made where it runs: nothing large passes through the host.

Weights have the scales of a trained network's (inverse square root of the inputs; branches into the residual stream
divided by the square root of their number), so that activations stay of order one in bf16. A value depends on the seed
and the order of the parameters only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from rsd_fast.codec import PRESETS, RFSQCodec
from rsd_fast.models.draft import DraftModel, make_draft
from rsd_fast.models.draft_original import OriginalDraft, OriginalDraftConfig
from rsd_fast.models.fused_backbone import fuse_backbone
from rsd_fast.models.fused_vision import fuse_vision
from rsd_fast.models.heads import HeadConfig
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.main import PROPRIO_DIMS, MainConfig, MainModel
from rsd_fast.models.presets import OPENVLA_PRESETS, draft_preset
from rsd_fast.models.prompt import PLACEHOLDER
from rsd_fast.models.streaming import build_empty

STEPS, ACTION_DIMS = 8, 7
TEXT = 32  # tokens of text: with two images of 256 patches and proprio a prefix of 545
OFT_TEXT = 95  # 38 of prompt, 56 placeholders, stop: a prefix of 608
SHARED = ("vision_backbone", "projector", "proprio_normalizer", "proprio_projector", "embed_tokens", "backbone")
EMBEDDINGS = ("embed_tokens", "pos_embed", "_embedding", "_token", "query", "position_encoding")
INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")

M = TypeVar("M", bound=nn.Module)


@dataclass
class Models:
    """One backbone and one vision tower under three sets of heads.

    Attributes:
        plain: by name: `redundant` and `original` (hierarchical and parallel heads of a code), `oft` (L1 regression).
        fused: the same with the fused tower and backbone, on the same memory; empty where nothing fuses.
        codecs, drafts: by code.
    """

    plain: dict[str, MainModel]
    fused: dict[str, MainModel]
    codecs: dict[str, RFSQCodec]
    drafts: dict[str, DraftModel]


def random_models(preset: str, device: torch.device, dtype: torch.dtype, seed: int = 0, fuse: bool = True) -> Models:
    """Everything the bench runs."""
    generator = torch.Generator(device).manual_seed(seed)
    base = OPENVLA_PRESETS[preset]

    def filled(model: M) -> M:
        fill_randomly(model, device, dtype, generator)
        return model.to(device).eval()

    configs = {
        code: replace(
            base, head=HeadConfig.of_codec(PRESETS[code], STEPS), heads=("hierarchical", "parallel"), max_tokens=TEXT
        )
        for code in ("redundant", "original")
    }
    assert base.prompt is not None
    configs["oft"] = replace(
        base,
        head=configs["redundant"].head,
        heads=("l1",),
        head_widths={"l1": (base.backbone.width,)},
        max_tokens=OFT_TEXT,
        prompt=replace(base.prompt, placeholders=STEPS * ACTION_DIMS),
    )
    plain: dict[str, MainModel] = {}
    for name, config in configs.items():
        model = empty_main(config)
        if plain:
            share(plain["redundant"], model)
        plain[name] = filled(model)
    positions = max(c.prefix_tokens + c.head.queries for c in configs.values())
    shared = plain["redundant"]
    backbone, vision = shared.backbone, shared.vision_backbone
    fused: dict[str, MainModel] = {}
    if fuse:
        backbone, vision = fuse_backbone(backbone, positions), fuse_vision(vision)
    if backbone is not shared.backbone or vision is not shared.vision_backbone:
        for name, model in plain.items():
            fused[name] = empty_main(model.config)
            share(model, fused[name])
            fused[name].heads, fused[name].backbone, fused[name].vision_backbone = model.heads, backbone, vision
            fused[name].eval()
    original = OriginalDraftConfig(prefix_width=base.backbone.width, head=configs["original"].head)
    drafts: dict[str, DraftModel] = {
        "redundant": filled(build_empty(lambda: make_draft(draft_preset("coarse", configs["redundant"])))),
        "original": filled(build_empty(lambda: OriginalDraft(original))),
    }
    codecs = {code: RFSQCodec(PRESETS[code]).to(device).eval() for code in ("redundant", "original")}
    return Models(plain, fused, codecs, drafts)


def empty_main(config: MainConfig) -> MainModel:
    return build_empty(lambda: MainModel(config))


def share(source: MainModel, target: MainModel) -> None:
    """Lets `target` have everything of `source` but the heads."""
    for name in SHARED:
        setattr(target, name, getattr(source, name))


@torch.no_grad()
def fill_randomly(model: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Gives memory and values to every parameter that has none."""
    depth = max(len(getattr(module, "layers", getattr(module, "blocks", ()))) for module in model.modules())
    for name, parameter in list(model.named_parameters()):
        if not parameter.is_meta:
            continue
        owner, _, leaf = name.rpartition(".")
        value = torch.empty(parameter.shape, dtype=dtype, device=device)
        mean, std = distribution(name, parameter, max(depth, 1))
        value.normal_(mean, std, generator=generator)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def distribution(name: str, parameter: Tensor, depth: int) -> tuple[float, float]:
    """Mean and standard deviation of a parameter, by what it is."""
    leaf = name.rpartition(".")[2]
    if leaf == "scale_factor":
        return 0.3, 0.05
    if parameter.ndim == 1:
        return (1.0, 0.1) if leaf == "weight" else (0.0, 0.02)
    if any(word in name for word in EMBEDDINGS):
        return 0.0, 0.02
    inputs = parameter.shape[-1] if leaf == "readout" else parameter[0].numel()
    return 0.0, inputs**-0.5 * ((2 * depth) ** -0.5 if name.endswith(INTO_RESIDUAL) else 1.0)


def random_inputs(config: MainConfig, seed: int = 0) -> PolicyInputs:
    """One observation of noise, on the CPU; every text token is there, none is padding."""
    generator = torch.Generator().manual_seed(seed)
    size = config.vision.image_size
    images = torch.randint(0, 256, (1, config.cameras, size, size, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(3, config.vocab_size - 64, (1, config.max_tokens), generator=generator)
    assert config.prompt is not None
    if config.prompt.placeholders:
        tokens[:, -config.prompt.placeholders - 1 : -1] = PLACEHOLDER
    proprio = torch.rand(1, PROPRIO_DIMS, generator=generator)
    return PolicyInputs(images, proprio, tokens, torch.ones_like(tokens, dtype=torch.bool))
