"""Tiny checkpoints in the exact formats of OpenVLA, OpenVLA-OFT and the original RSD project, with random weights.

The networks are transformers' own, so that what is loaded can be compared with what transformers computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

WIDTH, STEPS, ACTIONS, VOCABULARY = 64, 4, 7, 448
INSTRUCTION = "Pick up the black bowl"
OTHER = "put it there"
KEY = "libero_spatial_no_noops"


@dataclass
class Networks:
    """transformers' models behind a checkpoint, in evaluation mode, float32."""

    dino: Dinov2WithRegistersModel
    siglip: SiglipVisionModel
    llama: LlamaForCausalLM


def make_networks(seed: int = 0) -> Networks:
    torch.manual_seed(seed)
    dino = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=56,
            patch_size=14,
            num_register_tokens=4,
            layerscale_value=0.5,
            layer_norm_eps=1e-6,
        )
    )
    siglip = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
        )
    )
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=VOCABULARY,
            initializer_range=0.1,
        )
    )
    networks = Networks(dino.eval(), siglip.eval(), llama.eval())
    for model in (dino, siglip, llama):
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases too must not be their trivial values
                nn.init.normal_(parameter, 1.0 if parameter.mean() > 0.4 else 0.0, 0.1)
    nn.init.normal_(dino.embeddings.cls_token)
    nn.init.normal_(dino.embeddings.register_tokens)
    nn.init.normal_(dino.embeddings.position_embeddings, std=0.1)
    return networks


# ---- OpenVLA's names


def dino_tensors(dino: Dinov2WithRegistersModel) -> dict[str, Tensor]:
    """In timm's names, with OpenVLA's `scale_factor`; the class token's position is part of the class token."""
    own = dino.state_dict()
    positions = own["embeddings.position_embeddings"]
    named = {
        "cls_token": own["embeddings.cls_token"] + positions[:, :1],
        "reg_token": own["embeddings.register_tokens"],
        "pos_embed": positions[:, 1:],
        "patch_embed.proj.weight": own["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": own["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": own["layernorm.weight"],
        "norm.bias": own["layernorm.bias"],
    }
    for block in range(dino.config.num_hidden_layers):
        here, there = f"encoder.layer.{block}.", f"blocks.{block}."
        for kind in ("weight", "bias"):
            parts = [own[f"{here}attention.{part}_proj.{kind}"] for part in "qkv"]
            named[f"{there}attn.qkv.{kind}"] = torch.cat(parts)
            named[f"{there}attn.proj.{kind}"] = own[f"{here}attention.o_proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{there}{name}.{kind}"] = own[f"{here}{name}.{kind}"]
        for index in (1, 2):
            named[f"{there}ls{index}.scale_factor"] = own[f"{here}layer_scale{index}.lambda1"]
    return named


def siglip_tensors(siglip: SiglipVisionModel) -> dict[str, Tensor]:
    """In timm's names, with an attention pooling that nobody reads."""
    own = {name.removeprefix("vision_model."): tensor for name, tensor in siglip.state_dict().items()}
    named = {
        "pos_embed": own["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": own["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": own["embeddings.patch_embedding.bias"],
        "norm.weight": own["post_layernorm.weight"],
        "norm.bias": own["post_layernorm.bias"],
        "attn_pool.latent": torch.randn(1, 1, 48),
        "attn_pool.kv.weight": torch.randn(96, 48),
        "attn_pool.mlp.fc1.bias": torch.randn(80),
    }
    for block in range(siglip.config.num_hidden_layers):
        here, there = f"encoder.layers.{block}.", f"blocks.{block}."
        for kind in ("weight", "bias"):
            parts = [own[f"{here}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            named[f"{there}attn.qkv.{kind}"] = torch.cat(parts)
            named[f"{there}attn.proj.{kind}"] = own[f"{here}self_attn.out_proj.{kind}"]
            renamed = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
            for name, other in renamed.items():
                named[f"{there}{name}.{kind}"] = own[f"{here}{other}.{kind}"]
    return named


def projector_tensors(inputs: int, hidden: int, outputs: int) -> dict[str, Tensor]:
    sizes = [(inputs, hidden), (hidden, outputs), (outputs, outputs)]
    tensors = {}
    for index, (before, after) in enumerate(sizes, 1):
        tensors[f"fc{index}.weight"] = torch.randn(after, before) / before**0.5
        tensors[f"fc{index}.bias"] = 0.1 * torch.randn(after)
    return tensors


def openvla_tensors(networks: Networks) -> dict[str, Tensor]:
    parts = {
        "vision_backbone.featurizer": dino_tensors(networks.dino),
        "vision_backbone.fused_featurizer": siglip_tensors(networks.siglip),
        "projector": projector_tensors(80, 320, WIDTH),
        "language_model": networks.llama.state_dict(),
    }
    return {
        f"{part}.{name}": tensor.detach().clone().contiguous()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


# ---- files


def llama_tokenizer() -> Tokenizer:
    """Built as Llama 2's: spaces are `▁`, one in front, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    texts = ["▁In:▁What▁action▁should▁the▁robot▁take▁to▁pick▁up▁the▁black▁bowl?\nOut:▁qwertzuiopasdfghjklyxcvbnm"]
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken("<PAD>", special=True)])
    return tokenizer


def statistics(low: float = -0.5) -> dict:
    action = {"q01": [low - 0.1 * i for i in range(6)] + [0.0], "q99": [0.8 + 0.1 * i for i in range(6)] + [1.0]}
    proprio = {"q01": [-1.0 - i for i in range(8)], "q99": [2.0 + i for i in range(8)]}
    return {"action": {**action, "mask": [True] * 6 + [False]}, "proprio": proprio, "num_transitions": 3}


def write_openvla(folder: Path, networks: Networks, shards: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    """An OpenVLA folder, without OpenVLA-OFT's files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = llama_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    pad = tokenizer.token_to_id("<PAD>")
    config = {
        "model_type": "openvla",
        "timm_model_ids": ["vit_tiny_patch14_reg4_dinov2", "vit_tiny_patch14_siglip"],
        "timm_override_act_layers": [None, None],
        "image_sizes": [56, 56],
        "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive",
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "pad_token_id": pad,
        "norm_stats": {"bridge_orig": statistics(-1.0), "fractal": statistics(-2.0)},
        "text_config": {
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": VOCABULARY,
            "pad_token_id": pad,
        },
    }
    preprocessor = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_normalize_params": [
            {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]},
            {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        ],
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_shards(folder, {k: v.to(dtype) for k, v in openvla_tensors(networks).items()}, shards)
    return folder


def write_shards(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in own}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})


def write_oft(folder: Path, networks: Networks, **settings: object) -> Path:
    """An OpenVLA-OFT folder: fine-tuned, with an action head, a proprio projector and statistics of its own."""
    write_openvla(folder, networks, **settings)  # type: ignore[arg-type]
    write_json(folder / "dataset_statistics.json", {KEY: statistics()})
    proprio = {name: tensor for name, tensor in projector_tensors(8, WIDTH, WIDTH).items() if "fc3" not in name}
    torch.save(with_prefix(proprio, "module."), folder / "proprio_projector--150000_checkpoint.pt")
    head = with_prefix(L1Reference().state_dict(), "module.")
    torch.save(head, folder / "action_head--150000_checkpoint.pt")
    return folder


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes one of a folder's JSON files."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        write_json(folder / name, content)

    return apply


class L1Reference(nn.Module):
    """OpenVLA-OFT's action head, written from its description."""

    def __init__(self, hidden: int = 40) -> None:
        super().__init__()
        inputs = ACTIONS * WIDTH
        blocks = [
            nn.ModuleDict({"ffn": nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU())})
            for _ in range(2)
        ]
        self.model = nn.ModuleDict(
            {
                "layer_norm1": nn.LayerNorm(inputs),
                "fc1": nn.Linear(inputs, hidden),
                "mlp_resnet_blocks": nn.ModuleList(blocks),
                "layer_norm2": nn.LayerNorm(hidden),
                "fc2": nn.Linear(hidden, ACTIONS),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        x = model["fc1"](model["layer_norm1"](x)).relu()
        for block in model["mlp_resnet_blocks"]:
            x = x + block["ffn"](x)
        return model["fc2"](model["layer_norm2"](x))
