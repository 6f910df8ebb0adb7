"""OpenVLA's networks, loaded from files in its exact format, against transformers' own with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_fast.models.checkpoints import PolicyParts
from rsd_fast.models.inputs import PolicyInputs
from rsd_fast.models.loading import baseline_actions, from_openvla
from rsd_fast.models.main import MainModel
from rsd_fast.models.openvla import FEATURIZERS, is_unread, published_name
from rsd_fast.models.presets import OPENVLA_PRESETS
from rsd_fast.models.vision import VisionTransformer
from tests.models.openvla_files import (
    ACTIONS,
    INSTRUCTION,
    KEY,
    OTHER,
    STEPS,
    WIDTH,
    L1Reference,
    Networks,
    make_networks,
    statistics,
    write_oft,
    write_openvla,
)

MEAN = torch.tensor([0.484375, 0.455078125, 0.40625])
STD = torch.tensor([0.228515625, 0.2236328125, 0.224609375])
PATCHES = 16


@pytest.fixture(scope="module")
def networks() -> Networks:
    return make_networks()


@pytest.fixture(scope="module")
def oft_folder(tmp_path_factory: pytest.TempPathFactory, networks: Networks) -> Path:
    return write_oft(tmp_path_factory.mktemp("files") / "oft", networks, shards=3)


@pytest.fixture(scope="module")
def oft(oft_folder: Path) -> PolicyParts:
    return from_openvla(oft_folder, steps=STEPS, device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, networks: Networks) -> PolicyParts:
    folder = write_openvla(tmp_path_factory.mktemp("files") / "base", networks, shards=1)
    return from_openvla(folder, unnorm_key="bridge_orig", steps=STEPS, device="cpu")


def observe(main: MainModel, instructions: list[str], seed: int = 0) -> PolicyInputs:
    generator = torch.Generator().manual_seed(seed)
    batch = len(instructions)
    shape = (batch, main.config.cameras, 56, 56, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    assert main.tokenizer is not None
    return PolicyInputs(images, 3 * torch.randn(batch, 8, generator=generator), *main.tokenizer(instructions))


# ---- references


def reference_features(networks: Networks, images: Tensor) -> Tensor:
    """Second-to-last blocks of both featurisers, patch tokens, side by side; cameras one after the other."""
    cameras = []
    for camera in images.unbind(1):
        pixels = camera.permute(0, 3, 1, 2).float() / 255
        dino = networks.dino((pixels - MEAN[:, None, None]) / STD[:, None, None], output_hidden_states=True)
        siglip = networks.siglip((pixels - 0.5) / 0.5, output_hidden_states=True)
        cameras.append(torch.cat([dino.hidden_states[-2][:, 5:], siglip.hidden_states[-2]], -1))
    return torch.cat(cameras, 1)


def reference_hidden(networks: Networks, main: MainModel, inputs: PolicyInputs, row: int, causal: bool) -> Tensor:
    """The last hidden states of one row, without any padding."""
    ids = inputs.tokens[row][inputs.token_mask[row]]
    embedded = networks.llama.model.embed_tokens(ids.clamp_min(0)) * (ids >= 0)[:, None]
    parts = [embedded[:1], main.projector(reference_features(networks, inputs.images[row : row + 1]))[0]]
    if main.config.proprio:
        low, high = (torch.tensor(statistics()["proprio"][name]) for name in ("q01", "q99"))
        normalized = (2 * (inputs.proprio[row] - low) / (high - low + 1e-8) - 1).clamp(-1, 1)
        parts.append(main.proprio_projector(normalized)[None])
    sequence = torch.cat([*parts, embedded[1:]])[None]
    tokens = sequence.shape[1]
    seen = torch.ones(tokens, tokens).tril() if causal else torch.ones(tokens, tokens)
    mask = torch.zeros(1, 1, tokens, tokens).masked_fill(seen == 0, float("-inf"))
    return networks.llama.model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state[0]


# ---- numbers


@torch.no_grad()
def test_both_featurisers_agree_with_transformers(oft: PolicyParts, networks: Networks):
    images = observe(oft.main, ["a", "b"]).images
    features = oft.main.encode_images(images)
    expected = reference_features(networks, images)
    assert features.shape == (2, 2 * PATCHES, 32 + 48) and expected.abs().max() > 1
    assert torch.allclose(features, expected, atol=1e-5)


TIMM = {
    "vit_tiny_patch14_reg4_dinov2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "vit_tiny_patch14_siglip": {"class_token": False, "global_pool": "map"},
}


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_a_featuriser_agrees_with_timm_where_it_is_installed(name: str):
    vit = pytest.importorskip("timm.models.vision_transformer", exc_type=ImportError)
    config = FEATURIZERS[name]
    torch.manual_seed(0)
    reference = vit.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth + 1,
        num_heads=config.heads,
        mlp_ratio=config.mlp_width / config.width,
        num_classes=0,
        **TIMM[name],
    ).eval()
    for parameter in reference.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    weights = {name.replace(".gamma", ".scale_factor"): t for name, t in reference.state_dict().items()}
    ours = VisionTransformer(config).eval()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    images = torch.randn(2, 3, config.image_size, config.image_size)
    (expected,) = reference.get_intermediate_layers(images, n={config.depth - 1})
    assert torch.allclose(ours(images), expected, atol=1e-5)


@torch.no_grad()
def test_openvla_oft_s_hidden_states_agree_with_llama_in_both_directions(oft: PolicyParts, networks: Networks):
    """Two instructions of different length in one batch: padding must not move anything."""
    inputs = observe(oft.main, [INSTRUCTION, OTHER])
    prefix = oft.main.prefill(inputs)
    assert prefix.mask.sum(1).unique().numel() == 2
    for row in range(2):
        expected = reference_hidden(networks, oft.main, inputs, row, causal=False)
        assert prefix.mask[row].sum() == len(expected) and prefix.mask[row, : len(expected)].all()
        assert torch.allclose(prefix.hidden[row, : len(expected)], expected, atol=1e-5)


@torch.no_grad()
def test_openvla_s_hidden_states_agree_with_causal_llama(base: PolicyParts, networks: Networks):
    main = base.main
    assert main.config.backbone.causal and main.config.cameras == 1 and not main.config.proprio
    inputs = observe(main, [INSTRUCTION])
    expected = reference_hidden(networks, main, inputs, 0, causal=True)
    assert torch.allclose(main.prefill(inputs).hidden[0, : len(expected)], expected, atol=1e-5)


@torch.no_grad()
def test_the_l1_head_reads_the_states_before_the_placeholders(oft: PolicyParts, oft_folder: Path, networks: Networks):
    main, inputs = oft.main, observe(oft.main, [INSTRUCTION, OTHER])
    head = L1Reference()
    saved = torch.load(oft_folder / "action_head--150000_checkpoint.pt", weights_only=True)
    head.load_state_dict({name.removeprefix("module."): tensor for name, tensor in saved.items()})
    actions = main.heads["l1"].actions(main.prefill(inputs))
    for row in range(2):
        hidden = reference_hidden(networks, main, inputs, row, causal=False)
        prompt = int((inputs.tokens[row][inputs.token_mask[row]] >= 0).sum()) - 1  # without the stop token
        start = 2 * PATCHES + 1 + prompt - 1
        expected = head(hidden[start : start + STEPS * ACTIONS].reshape(STEPS, ACTIONS * WIDTH))
        assert torch.allclose(actions[row], expected, atol=1e-5)
    in_units = oft.codec.normalizer.unnormalize(actions)
    assert torch.equal(baseline_actions(oft, inputs), in_units)
    with pytest.raises(ValueError, match=r"got head 'hierarchical', expected one of \['discrete', 'l1'\]"):
        baseline_actions(oft, inputs, "hierarchical")


@torch.no_grad()
def test_the_discrete_head_reads_the_language_model_s_own_bins(oft: PolicyParts, networks: Networks):
    main, inputs = oft.main, observe(oft.main, [INSTRUCTION])
    hidden = reference_hidden(networks, main, inputs, 0, causal=False)
    last_prompt = int((inputs.tokens[0] >= 0)[inputs.token_mask[0]].sum()) - 2 + 2 * PATCHES + 1
    tokens = networks.llama.lm_head(hidden[last_prompt : last_prompt + STEPS * ACTIONS]).argmax(-1).numpy()
    edges = np.linspace(-1, 1, 256)
    centers = (edges[:-1] + edges[1:]) / 2
    expected = centers[np.clip(448 - 64 - tokens - 1, 0, 254)].reshape(STEPS, ACTIONS)
    got = main.heads["discrete"].actions(main.prefill(inputs))[0].numpy()
    assert len(np.unique(got)) > 2 and np.allclose(got, expected, atol=1e-6)


def test_actions_get_their_units_where_the_mask_says_so(oft: PolicyParts):
    normalized = torch.linspace(-1, 1, 7).expand(STEPS, 7)
    action = statistics()["action"]
    low, high = np.array(action["q01"]), np.array(action["q99"])
    expected = np.where(action["mask"], 0.5 * (normalized.numpy() + 1) * (high - low + 1e-8) + low, normalized.numpy())
    assert np.allclose(oft.codec.normalizer.unnormalize(normalized).numpy(), expected, atol=1e-6)
    assert KEY.removesuffix("_no_noops") == "libero_spatial"


# ---- text


def test_the_prompt_is_openvla_s(oft: PolicyParts):
    tokenizer = oft.main.tokenizer
    assert tokenizer is not None
    tokens, mask = tokenizer([INSTRUCTION])
    ids = tokens[0][mask[0]].tolist()
    vocabulary = tokenizer.tokenizer
    text = f"In: What action should the robot take to {INSTRUCTION.lower()}?\nOut:"
    words = vocabulary.encode(text, add_special_tokens=False).ids
    placeholders = [-1] * (STEPS * ACTIONS)
    stop, end = vocabulary.token_to_id("</s>"), vocabulary.token_to_id("▁")
    assert ids == [vocabulary.token_to_id("<s>"), *words, end, *placeholders, stop]
    assert not mask[0, len(ids) :].any(), "padding comes last"


def test_only_openvla_oft_s_own_heads_need_placeholders(oft_folder: Path, oft: PolicyParts):
    assert oft.main.config.prompt is not None and oft.main.config.prompt.placeholders == STEPS * ACTIONS
    assert oft.main.config.prefix_tokens == 2 * PATCHES + 1 + oft.main.config.max_tokens


def test_a_prompt_that_is_too_long_says_how_to_make_room(oft_folder: Path):
    short = from_openvla(oft_folder, steps=STEPS, device="cpu", max_prompt_tokens=19)
    assert short.main.tokenizer is not None
    short.main.tokenizer(["pick up"])
    with pytest.raises(ValueError, match=r"has \d+ tokens, this model takes at most 19; .*max_prompt_tokens"):
        short.main.tokenizer(["pick up the black bowl and the black bowl"])


# ---- the preset


def test_the_preset_has_openvla_7b_s_names_shapes_and_size():
    with torch.device("meta"):
        model = MainModel(OPENVLA_PRESETS["openvla-7b"])
    shapes = {published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    published = {
        "vision_backbone.featurizer.patch_embed.proj.weight": (1024, 3, 14, 14),
        "vision_backbone.featurizer.pos_embed": (1, 256, 1024),
        "vision_backbone.featurizer.cls_token": (1, 1, 1024),
        "vision_backbone.featurizer.reg_token": (1, 4, 1024),
        "vision_backbone.featurizer.blocks.22.ls2.scale_factor": (1024,),
        "vision_backbone.featurizer.blocks.0.attn.qkv.weight": (3072, 1024),
        "vision_backbone.fused_featurizer.pos_embed": (1, 256, 1152),
        "vision_backbone.fused_featurizer.blocks.25.mlp.fc1.weight": (4304, 1152),
        "projector.fc1.weight": (8704, 2176),
        "projector.fc2.weight": (4096, 8704),
        "projector.fc3.bias": (4096,),
        "proprio_projector.fc1.weight": (4096, 8),
        "language_model.model.embed_tokens.weight": (32064, 4096),
        "language_model.model.layers.31.self_attn.o_proj.weight": (4096, 4096),
        "language_model.model.layers.31.mlp.gate_proj.weight": (11008, 4096),
        "language_model.model.layers.31.post_attention_layernorm.weight": (4096,),
        "language_model.model.norm.weight": (4096,),
    }
    assert {name: shapes.get(name) for name in published} == published
    assert 7.2e9 < sum(parameter.numel() for parameter in model.parameters()) < 7.6e9
    assert not any(is_unread(name, model.config.vision) for name in shapes)
    assert model.config.prefix_tokens == 560


@torch.no_grad()
def test_the_tiny_preset_runs_hierarchical_passes():
    torch.manual_seed(0)
    main = MainModel(OPENVLA_PRESETS["openvla-tiny"]).eval()
    config = main.config
    tokens = torch.randint(5, 400, (1, config.max_tokens))
    images = torch.randint(0, 256, (1, 2, 56, 56, 3), dtype=torch.uint8)
    inputs = PolicyInputs(images, torch.zeros(1, 8), tokens, torch.ones_like(tokens, dtype=torch.bool))
    prefix = main.prefill(inputs)
    codes = torch.zeros(1, 3, 8, 7, dtype=torch.int32)
    changed = codes.clone()
    changed[:, 1] = 3
    logits, other = main.decode(prefix, codes), main.decode(prefix, changed)
    assert logits.shape == (1, 3, 8, 7, 5)
    assert torch.equal(logits[:, :2], other[:, :2]) and not torch.equal(logits[:, 2], other[:, 2])
