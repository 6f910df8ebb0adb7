"""What a user has without this package: transformers' own modules, and torch.compile over the plain ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsd_fast.models.backbone import Backbone
from rsd_fast.models.heads_oft import L1Head
from rsd_fast.models.inputs import PolicyInputs, Prefix
from rsd_fast.models.main import MainModel
from rsd_fast.models.vision import VisionConfig, VisionTower, normalize_pixels


class TransformersLlama:
    """transformers' LlamaModel over the very weights of a `Backbone`, SDPA attention, prefix attention unmasked."""

    def __init__(self, backbone: Backbone) -> None:
        from transformers import LlamaConfig, LlamaModel
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        c = backbone.config
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=c.width,
            intermediate_size=c.mlp_width,
            num_hidden_layers=c.depth,
            num_attention_heads=c.heads,
            rms_norm_eps=c.rms_eps,
            attn_implementation="sdpa",
        )
        weight = backbone.norm.weight
        with torch.device("meta"):
            model = LlamaModel(config)
        for name, parameter in backbone.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(parameter.detach(), requires_grad=False))
        model.embed_tokens = nn.Embedding(8, c.width, device=weight.device, dtype=weight.dtype)
        model.rotary_emb = LlamaRotaryEmbedding(config).to(weight.device)
        self.model = model.eval()
        parameters = inspect.signature(LlamaModel.forward).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5

    def prefill(self, x: Tensor, use_cache: bool = True) -> Any:
        """The model's output: hidden states and a cache."""
        tokens = x.shape[1]
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=x.device)
        return self.model(inputs_embeds=x, attention_mask=mask, use_cache=use_cache)

    def run_pass(self, queries: Tensor, cache: Any, prefix: int, query_mask: Tensor) -> Tensor:
        """Hidden states of the queries; leaves the cache as it was."""
        count = queries.shape[1]
        mask = torch.cat([query_mask.new_ones(count, prefix), query_mask], 1)[None, None]
        out = self.model(inputs_embeds=queries, attention_mask=mask, use_cache=True, **{self.cache_name: cache})
        cache.crop(-count)
        return out.last_hidden_state

    def cache_of(self, output: Any) -> Any:
        return getattr(output, self.cache_name)


class TransformersVision:
    """Dinov2WithRegisters and Siglip at the tower's sizes, with weights of their own: the time is the same.

    transformers' SigLIP has the tanh GELU.
    """

    def __init__(self, tower: VisionTower) -> None:
        from transformers import (
            Dinov2WithRegistersConfig,
            Dinov2WithRegistersModel,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        weight = tower.featurizer.pos_embed
        self.tower, self.dtype = tower, weight.dtype
        dino, siglip = tower.config, tower.config.fused
        assert siglip is not None
        both: list[nn.Module] = []
        for kind, config in (
            (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(num_register_tokens=4, **sizes(dino))),
            (SiglipVisionModel, SiglipVisionConfig(vision_use_head=False, **sizes(siglip))),
        ):
            config._attn_implementation = "sdpa"
            with torch.device(weight.device):
                model = kind(config)
            for parameter in model.parameters():
                parameter.data = 0.02 * torch.randn_like(parameter, dtype=self.dtype)
            both.append(model.to(weight.device, self.dtype).eval())
        self.models = both

    def __call__(self, images: Tensor) -> Tensor:
        """Raw pixels -> features, as `VisionTower`."""
        flat = images.flatten(0, 1)
        parts = []
        for model, config in zip(self.models, (self.tower.config, self.tower.config.fused), strict=True):
            assert config is not None
            tokens = model(pixel_values=normalize_pixels(flat, config, self.dtype)).last_hidden_state
            parts.append(tokens[:, -config.patches :])
        return torch.cat(parts, -1).flatten(0, 1)[None]


def sizes(config: VisionConfig) -> dict[str, Any]:
    """In transformers' words."""
    common = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
    }
    if config.layer_scale:
        return {**common, "mlp_ratio": config.mlp_width // config.width}
    return {**common, "intermediate_size": config.mlp_width}


def oft_chunk(main: MainModel, inputs: PolicyInputs) -> Tensor:
    """OpenVLA-OFT's own way: everything in one run of the backbone, its L1 head on the placeholders' states."""
    head = main.heads["l1"]
    assert isinstance(head, L1Head)
    return head.actions(main.prefill(inputs))


def oft_chunk_transformers(
    main: MainModel, llama: TransformersLlama, vision: Callable[[Tensor], Tensor], inputs: PolicyInputs
) -> Tensor:
    """The same over transformers' modules."""
    head = main.heads["l1"]
    assert isinstance(head, L1Head)
    x, mask = main.embed(inputs, vision(inputs.images))
    hidden = llama.prefill(x, use_cache=False).last_hidden_state
    return head.actions(Prefix([], [], hidden, mask))


@contextmanager
def compiled(blocks: Sequence[nn.Module], mode: str) -> Iterator[None]:
    """torch.compile over each block; those of a stack are compiled once, since they are alike.

    `reduce-overhead` and `max-autotune` take their CUDA graph from whoever captures the whole stack: one graph
    instead of one a block.
    """
    options: dict[str, Any] = {"mode": "max-autotune-no-cudagraphs"} if mode == "max-autotune" else {}
    torch._dynamo.reset()
    for block in blocks:
        block.compile(dynamic=False, **options)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()


def gemm_rate(device: torch.device, dtype: torch.dtype, time: Callable[[Callable[[], object]], float]) -> float:
    """Operations a second of a large product; `time` gives milliseconds."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / time(lambda: F.linear(a, b)) * 1e3
