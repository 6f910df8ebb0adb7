"""OpenVLA and OpenVLA-OFT: what their folders say, in our configuration's terms.

Kim et al., 2024 (https://arxiv.org/abs/2406.09246) and 2025 (https://arxiv.org/abs/2502.19645). A folder holds
`config.json`, safetensors, a Llama tokenizer, `preprocessor_config.json`, statistics of the data it was trained on, and
in OpenVLA-OFT's case `action_head--<step>_checkpoint.pt` and `proprio_projector--<step>_checkpoint.pt`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from rsd_fast.models.backbone import BackboneConfig
from rsd_fast.models.formats import read_json
from rsd_fast.models.heads_oft import ACTION_BINS, VOCABULARY_PADDING
from rsd_fast.models.prompt import PromptConfig
from rsd_fast.models.vision import VisionConfig
from rsd_fast.normalize import QuantileNormalizer

# What OpenVLA reads of a featuriser is its second-to-last block: of 24 and 27 blocks, 23 and 26 run. Pixel statistics
# are those of the published preprocessor (ImageNet's, as bfloat16 rounds them). timm 0.9, which OpenVLA pins, gives
# SigLIP the exact GELU.
FEATURIZERS: dict[str, VisionConfig] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": VisionConfig(
        image_size=224,
        patch_size=14,
        width=1024,
        depth=23,
        heads=16,
        mlp_width=4096,
        stem_widths=(),
        class_token=True,
        register_tokens=4,
        layer_scale=True,
        mean=(0.484375, 0.455078125, 0.40625),
        std=(0.228515625, 0.2236328125, 0.224609375),
    ),
    "vit_so400m_patch14_siglip_224": VisionConfig(
        image_size=224,
        patch_size=14,
        width=1152,
        depth=26,
        heads=16,
        mlp_width=4304,
        stem_widths=(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    # For tests: the same formats at toy size.
    "vit_tiny_patch14_reg4_dinov2": VisionConfig(
        image_size=56,
        patch_size=14,
        width=32,
        depth=2,
        heads=2,
        mlp_width=64,
        stem_widths=(),
        class_token=True,
        register_tokens=4,
        layer_scale=True,
        mean=(0.484375, 0.455078125, 0.40625),
        std=(0.228515625, 0.2236328125, 0.224609375),
    ),
    "vit_tiny_patch14_siglip": VisionConfig(
        image_size=56,
        patch_size=14,
        width=48,
        depth=2,
        heads=2,
        mlp_width=80,
        stem_widths=(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}

# What transformers' LlamaConfig takes where a published text_config says nothing, which is nearly everywhere.
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}

_FEATURIZER_NAMES = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


def read_vision(config: dict[str, Any], preprocessor: dict[str, Any]) -> VisionConfig:
    """The featurisers of a `config.json`, with the pixel statistics of a `preprocessor_config.json`.

    Raises:
        ValueError: featurisers or image processing that are not supported, or missing entries.
    """
    ids, sizes = config.get("timm_model_ids"), config.get("image_sizes")
    fused = bool(config.get("use_fused_vision_backbone"))
    if not isinstance(ids, list) or not isinstance(sizes, list) or not len(ids) == len(sizes) == 1 + fused:
        raise ValueError(
            f"config.json has timm_model_ids {ids}, image_sizes {sizes}, use_fused_vision_backbone {fused}; "
            "expected two of each where it is fused, else one"
        )
    if unknown := [name for name in ids if str(name) not in FEATURIZERS]:
        raise ValueError(f"config.json names featurisers {unknown}, expected some of {sorted(FEATURIZERS)}")
    if wrong := [size for size in sizes if not _is_positive(size, int)]:
        raise ValueError(f"config.json has image_sizes {wrong}, expected whole numbers above 0")
    if config.get("timm_override_act_layers") not in (None, [None] * len(ids)):
        raise ValueError(f"timm_override_act_layers {config['timm_override_act_layers']} are not supported")
    for source, settings in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if (strategy := settings.get("image_resize_strategy", "resize-naive")) != "resize-naive":
            raise ValueError(f"{source} asks for image_resize_strategy {strategy!r}, expected 'resize-naive'")
    featurizers = [
        replace(FEATURIZERS[name], image_size=size, mean=mean, std=std)
        for name, size, (mean, std) in zip(ids, sizes, _pixel_statistics(preprocessor, len(ids)), strict=True)
    ]
    return replace(featurizers[0], fused=featurizers[1]) if fused else featurizers[0]


def _pixel_statistics(preprocessor: dict[str, Any], count: int) -> list[tuple[Any, Any]]:
    # `tvf_normalize_params` is what is applied; `means` and `stds` are what it was made of.
    means, stds = preprocessor.get("means"), preprocessor.get("stds")
    applied = preprocessor.get("tvf_normalize_params")
    if isinstance(applied, list) and all(isinstance(entry, dict) for entry in applied):
        means, stds = ([entry.get(key) for entry in applied] for key in ("mean", "std"))
    for values in (means, stds):
        if not isinstance(values, list) or len(values) != count or not all(_is_rgb(entry) for entry in values):
            raise ValueError(
                f"preprocessor_config.json has means {means} and stds {stds}, "
                f"expected three numbers a featuriser ({count})"
            )
    assert means is not None and stds is not None
    return list(zip(means, stds, strict=True))


def _is_rgb(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(x, int | float) for x in value)


def _is_positive(value: Any, kind: type) -> bool:
    numbers = (int, float) if kind is float else int
    return isinstance(value, numbers) and not isinstance(value, bool) and value > 0


def read_backbone(config: dict[str, Any], causal: bool) -> tuple[BackboneConfig, int]:
    """The transformer and its vocabulary's size.

    Raises:
        ValueError: no Llama, or one with features that OpenVLA's has not.
    """
    text = config.get("text_config")
    if config.get("model_type") != "openvla" or not isinstance(text, dict) or text.get("model_type") != "llama":
        raise ValueError(
            f"config.json has model_type {config.get('model_type')!r} and text_config {text}, "
            "expected 'openvla' over a 'llama'"
        )
    sizes = {name: text.get(name, default) for name, default in _LLAMA.items()}
    sizes["vocab_size"] = text.get("vocab_size")
    for name, value in sizes.items():
        if not _is_positive(value, float if isinstance(_LLAMA.get(name), float) else int):
            raise ValueError(f"config.json has {name} {value!r} in its text_config, expected a number above 0")
    same = {"num_key_value_heads": sizes["num_attention_heads"], "hidden_act": "silu", "rope_scaling": None}
    odd = {name: text[name] for name, value in same.items() if text.get(name, value) not in (value, None)}
    for name, value in (("n_action_bins", ACTION_BINS), ("pad_to_multiple_of", VOCABULARY_PADDING)):
        if config.get(name, value) != value:
            odd[name] = config[name]
    if odd:
        raise ValueError(f"config.json has {odd}, which no published OpenVLA has: not supported")
    backbone = BackboneConfig(
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp_width=sizes["intermediate_size"],
        rms_eps=sizes["rms_norm_eps"],
        rope_theta=sizes["rope_theta"],
        causal=causal,
    )
    return backbone, sizes["vocab_size"]


def read_prompt(tokenizer: Tokenizer, config: dict[str, Any], placeholders: int) -> PromptConfig:
    """OpenVLA's prompt in a tokenizer's ids.

    Raises:
        ValueError: the vocabulary is larger than the model's, or lacks a token that the prompt needs.
    """
    begin, stop, end = (tokenizer.token_to_id(name) for name in ("<s>", "</s>", "▁"))
    if begin is None or stop is None or end is None:
        raise ValueError("tokenizer.json lacks '<s>', '</s>' or '▁'; expected Llama 2's tokenizer")
    text = config["text_config"]
    pad = config.get("pad_token_id") or text.get("pad_token_id") or stop  # masked: any id that is embedded
    if not _is_positive(pad, int):
        raise ValueError(f"config.json has pad_token_id {pad!r}, expected an id")
    largest = max([*tokenizer.get_vocab(with_added_tokens=True).values(), pad])
    if largest >= text["vocab_size"]:
        raise ValueError(
            f"the tokenizer has ids up to {largest}, but the model embeds {text['vocab_size']}: "
            "they are not of one checkpoint"
        )
    return PromptConfig(begin=begin, end=end, stop=stop, pad=pad, placeholders=placeholders)


def read_cameras(config: dict[str, Any], default: int) -> int:
    """Images an observation, where `config.json` says so."""
    cameras = config.get("num_images_in_input") or default
    if not _is_positive(cameras, int):
        raise ValueError(f"config.json has num_images_in_input {cameras!r}, expected a whole number above 0")
    return int(cameras)


# ---- statistics


def read_statistics(folder: Path, config: dict[str, Any], key: str | None) -> tuple[str, dict[str, Any]]:
    """The statistics of one data set: from `dataset_statistics.json` where there is one, else from `config.json`.

    Args:
        folder: of the checkpoint.
        config: its `config.json`.
        key: name of the data set, with or without the suffix `_no_noops`; None where there is only one.

    Raises:
        ValueError: there is no such data set; the message lists those there are.
    """
    path = folder / "dataset_statistics.json"
    statistics = read_json(path) if path.is_file() else config.get("norm_stats")
    if not isinstance(statistics, dict) or not statistics:
        raise ValueError(f"{folder} has neither a dataset_statistics.json nor norm_stats in its config.json")
    names = [key, f"{key}_no_noops"] if key else list(statistics) if len(statistics) == 1 else []
    for name in names:
        if isinstance(statistics.get(name), dict):
            return name, statistics[name]
    asked = f"no statistics of {key!r}" if key else "statistics of several data sets, so unnorm_key must name one"
    raise ValueError(f"{folder} has {asked}; it has {', '.join(sorted(statistics))}")


def set_statistics(normalizer: QuantileNormalizer, statistics: dict[str, Any], what: str, key: str) -> None:
    """Takes q01, q99 and mask of `action` or `proprio`.

    Raises:
        ValueError: they are missing, or not as many as the robot has.
    """
    entry = statistics.get(what)
    if not isinstance(entry, dict) or not {"q01", "q99"} <= set(entry):
        raise ValueError(f"the statistics of {key!r} have no q01 and q99 of {what!r}; they have {sorted(statistics)}")
    try:
        q01, q99 = (torch.tensor(entry[name], dtype=torch.float32) for name in ("q01", "q99"))
        mask = torch.tensor(entry.get("mask", [True] * len(q01)), dtype=torch.bool)
        normalizer.set_statistics(q01, q99, mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the statistics of {what!r} in {key!r} do not fit: {error}") from error


# ---- names


def published_name(name: str) -> str:
    """The name that one of our main model's tensors has in OpenVLA's safetensors."""
    if name == "heads.discrete.weight":
        return "language_model.lm_head.weight"
    name = re.sub(r"^embed_tokens\.", "language_model.model.embed_tokens.", name)
    return re.sub(r"^backbone\.", "language_model.model.", name)


def is_unread(name: str, vision: VisionConfig) -> bool:
    """Whether OpenVLA stores a tensor of this published name that no forward pass reads.

    The featurisers' last block, final norm and attention pooling; the language model's own head, which only the
    discrete head is; rotary tables that old checkpoints hold.
    """
    if name == "language_model.lm_head.weight" or name.endswith(".rotary_emb.inv_freq"):
        return True
    for prefix, config in zip(_FEATURIZER_NAMES, (vision, vision.fused), strict=True):
        if config is not None and name.startswith(prefix):
            return name.removeprefix(prefix).startswith((f"blocks.{config.depth}.", "norm.", "attn_pool."))
    return False
