"""An OpenVLA folder with random weights: `python -m bench.openvla_folder OUT`, 15 GB in some tens of seconds on a GPU.

Files, names, shapes and dtype are those of a published fine-tuned OpenVLA, the parts that no forward pass reads
included: the featurisers' last blocks and norms, SigLIP's attention pooling. The tokenizer has Llama 2's special ids
but knows only the prompt's words. Tensors are made on the device; no more than one shard is in the host's memory.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from torch import Tensor

from bench.openvla_random import distribution, empty_main
from rsd_fast.models.formats import INDEX, Shape
from rsd_fast.models.heads_oft import ACTION_BINS, VOCABULARY_PADDING
from rsd_fast.models.main import PROPRIO_DIMS, MainConfig
from rsd_fast.models.openvla import FEATURIZERS, published_name
from rsd_fast.models.presets import OPENVLA_PRESETS
from rsd_fast.models.prompt import PromptConfig
from rsd_fast.models.tokenizer import InstructionTokenizer
from rsd_fast.models.vision import VisionConfig

DTYPE = torch.bfloat16
DATA_SET = "libero_spatial_no_noops"


# ---- weights


def published_shapes(config: MainConfig) -> dict[str, Shape]:
    """Shapes by published name, of everything that OpenVLA's safetensors hold at these sizes."""
    assert config.vision.fused is not None
    one_more = replace(  # the block that our tower does not run
        config.vision,
        depth=config.vision.depth + 1,
        fused=replace(config.vision.fused, depth=config.vision.fused.depth + 1),
    )
    model = empty_main(
        replace(
            config,
            vision=one_more,
            proprio=False,
            heads=("discrete",),
            head_widths={"discrete": (config.vocab_size,)},
        )
    )
    shapes = {published_name(name): tuple(tensor.shape) for name, tensor in model.named_parameters()}
    for part, vision in (("featurizer", config.vision), ("fused_featurizer", config.vision.fused)):
        unread: dict[str, Shape] = {"norm.weight": (vision.width,), "norm.bias": (vision.width,)}
        if not vision.class_token:
            unread |= pooling_shapes(vision)
        shapes |= {f"vision_backbone.{part}.{name}": shape for name, shape in unread.items()}
    return shapes


def pooling_shapes(vision: VisionConfig) -> dict[str, Shape]:
    """SigLIP's attention pooling, as timm names it."""
    width, hidden = vision.width, vision.mlp_width
    linear = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
    linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes: dict[str, Shape] = {"attn_pool.latent": (1, 1, width)}
    for name, shape in linear.items():
        shapes |= {f"attn_pool.{name}.weight": shape, f"attn_pool.{name}.bias": shape[:1]}
    return shapes | dict.fromkeys(("attn_pool.norm.weight", "attn_pool.norm.bias"), (width,))


def split(shapes: dict[str, Shape], shards: int) -> list[list[str]]:
    """Names by shard, about as many bytes in each."""
    total, start = sum(torch.Size(shape).numel() for shape in shapes.values()), 0
    groups: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault(start * shards // total, []).append(name)
        start += torch.Size(shape).numel()
    if len(groups) != shards:
        raise ValueError(f"got {shards} shards, but {len(shapes)} tensors fill {len(groups)}")
    return list(groups.values())


def write_weights(folder: Path, config: MainConfig, device: torch.device, shards: int, seed: int = 0) -> None:
    """The shards and their index."""
    shapes, generator = published_shapes(config), torch.Generator(device).manual_seed(seed)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(split(shapes, shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        tensors = {name: random_tensor(name, shapes[name], config.backbone.depth, generator) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        del tensors  # before the next shard is made
        weight_map |= dict.fromkeys(names, file)
    size = DTYPE.itemsize * sum(torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def random_tensor(name: str, shape: Shape, depth: int, generator: torch.Generator) -> Tensor:
    """On the CPU, made where the generator is."""
    value = torch.empty(shape, dtype=DTYPE, device=generator.device)
    mean, std = distribution(name, value, depth)
    return value.normal_(mean, std, generator=generator).cpu()


# ---- everything else


def config_json(config: MainConfig) -> dict[str, Any]:
    """`config.json`, with the sizes that published ones leave to LlamaConfig's defaults."""
    backbone, parts = config.backbone, featurizers(config)
    assert config.prompt is not None
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "model_type": "openvla",
        "timm_model_ids": [
            next(name for name, known in FEATURIZERS.items() if known == replace(part, fused=None)) for part in parts
        ],
        "timm_override_act_layers": [None] * len(parts),
        "image_sizes": [part.image_size for part in parts],
        "use_fused_vision_backbone": len(parts) == 2,
        "image_resize_strategy": "resize-naive",
        "n_action_bins": ACTION_BINS,
        "pad_to_multiple_of": VOCABULARY_PADDING,
        "pad_token_id": config.prompt.pad,
        "norm_stats": {DATA_SET: statistics()},
        "text_config": {
            "model_type": "llama",
            "hidden_size": backbone.width,
            "intermediate_size": backbone.mlp_width,
            "num_hidden_layers": backbone.depth,
            "num_attention_heads": backbone.heads,
            "rms_norm_eps": backbone.rms_eps,
            "rope_theta": backbone.rope_theta,
            "vocab_size": config.vocab_size,
            "pad_token_id": config.prompt.pad,
            "torch_dtype": "bfloat16",
        },
        "torch_dtype": "bfloat16",
    }


def preprocessor_json(config: MainConfig) -> dict[str, Any]:
    """`preprocessor_config.json`."""
    parts = featurizers(config)
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, part.image_size, part.image_size] for part in parts],
        "means": [part.mean for part in parts],
        "stds": [part.std for part in parts],
        "tvf_normalize_params": [{"inplace": False, "mean": part.mean, "std": part.std} for part in parts],
        "use_fused_vision_backbone": len(parts) == 2,
    }


def featurizers(config: MainConfig) -> list[VisionConfig]:
    """One or two."""
    return [part for part in (config.vision, config.vision.fused) if part is not None]


def statistics() -> dict[str, Any]:
    """Of a data set whose actions and states lie in [-1, 1]."""

    def entry(dims: int) -> dict[str, Any]:
        values = {"mean": 0.0, "std": 0.5, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
        return {name: [value] * dims for name, value in values.items()}

    action = entry(7) | {"mask": [True] * 6 + [False]}
    return {"action": action, "proprio": entry(PROPRIO_DIMS), "num_transitions": 1, "num_trajectories": 1}


def llama_tokenizer(prompt: PromptConfig) -> Tokenizer:
    """Llama 2's kind and special ids; merges are learned from the prompt, other words end in bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    text = "▁" + prompt.template.format(instruction="pick up the black bowl and place it on the plate")
    tokenizer.train_from_iterator([text.replace(" ", "▁")], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    content = json.loads(tokenizer.to_str())
    fixed = {"<unk>": 0, "<s>": prompt.begin, "</s>": prompt.stop, "▁": prompt.end}
    learned = [*(f"<0x{byte:02X}>" for byte in range(256)), *content["model"]["vocab"]]
    free = (number for number in count() if number not in {*fixed.values(), prompt.pad})
    vocabulary = fixed | {token: next(free) for token in learned if token not in fixed} | {"<PAD>": prompt.pad}
    taken = set(vocabulary.values())  # up to the padding's no id is missing: the rest are tokens that no text has
    vocabulary |= {f"<unused_{number}>": number for number in range(prompt.pad) if number not in taken}
    content["model"]["vocab"] = vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", "<PAD>")])
    return tokenizer


def write_json(path: Path, content: object) -> None:
    """Indented, as transformers writes its own."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_openvla(folder: Path, preset: str, device: torch.device, shards: int = 4) -> None:
    """Everything.

    Raises:
        ValueError: an unknown preset, or more shards than there are tensors to fill them.
    """
    if preset not in OPENVLA_PRESETS:
        raise ValueError(f"got preset {preset!r}, expected one of {sorted(OPENVLA_PRESETS)}")
    config = OPENVLA_PRESETS[preset]
    assert config.prompt is not None
    folder.mkdir(parents=True, exist_ok=True)
    if old := sorted(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds {old[0].name} already, expected a folder without weights")
    write_json(folder / "config.json", config_json(config))
    write_json(folder / "preprocessor_config.json", preprocessor_json(config))
    write_json(folder / "dataset_statistics.json", {DATA_SET: statistics()})
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    write_json(folder / "special_tokens_map.json", tokens)
    write_json(folder / "tokenizer_config.json", tokens | {"tokenizer_class": "LlamaTokenizer"})
    llama_tokenizer(config.prompt).save(str(folder / InstructionTokenizer.FILE))
    write_weights(folder, config, device, shards)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder without weights")
    parser.add_argument("--preset", default="openvla-7b", choices=sorted(OPENVLA_PRESETS))
    parser.add_argument("--device", default="cuda", help="that makes the numbers: cuda or cpu")
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    write_openvla(options.out, options.preset, torch.device(options.device), options.shards)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{size / 1e9:.3f} GB in {options.shards} shards, {time.perf_counter() - began:.1f} s: {options.out}")


if __name__ == "__main__":
    main()
