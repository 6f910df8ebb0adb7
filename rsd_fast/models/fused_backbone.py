"""The backbone on fused kernels and packed weights, for inference.

What it computes is `Backbone`'s; how: one product for queries, keys and values and one for gate and up, norms that add
the residual, attention straight from the packed product, no keys or values written in a pass. Which tiles the products
run with, or that cuBLAS is best, says `rsd_fast.kernels.transformer.Plans`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rsd_fast.kernels.transformer import (
    Plans,
    attention,
    linear,
    linear_add_,
    pack_mask,
    rms_norm,
    rotary_cache_,
    swiglu_linear,
)
from rsd_fast.models.backbone import Backbone, BackboneConfig, DecoderLayer, Joint, rotary_table

HEAD_DIMS = (32, 64, 128)  # of the attention kernel
AHEAD: int | None = None  # of engines, from sm_90 on: None until bench.gpu_transformer shows that it pays
Attend = Callable[[int, Float[Tensor, "B n three_width"]], Float[Tensor, "B n width"]]


@dataclass(frozen=True)
class PackedLayer:
    """The weights of a layer as the kernels read them; norms as they are."""

    input_norm: Float[Tensor, " width"]
    qkv: Float[Tensor, "three_width width"]
    out: Float[Tensor, "width width"]
    middle_norm: Float[Tensor, " width"]
    gate_up: Float[Tensor, "two_mlp width"]
    down: Float[Tensor, "width mlp"]


def can_fuse(config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the fused kernels serve: an NVIDIA GPU, half precision, a head width they are made for."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and config.head_dim in HEAD_DIMS


class FusedBackbone(Backbone):
    """`Backbone` on fused kernels; it takes over the modules of the one it is made from.

    Parameters keep their names and become views of packed weights, so nothing is stored twice. With gradients it runs
    as a plain `Backbone`.

    Args:
        backbone: on its device and in its dtype.
        positions: the most that a prefix and the queries behind it have.
        plans: tiles; None: those for the device.
        ahead: see `rsd_fast.kernels.transformer.op`; None: no kernel starts before the one in front has ended.
        backend: of the kernels.
    """

    cos: Float[Tensor, "positions half"]
    sin: Float[Tensor, "positions half"]

    def __init__(
        self,
        backbone: Backbone,
        positions: int,
        plans: Plans | None = None,
        ahead: int | None = None,
        backend: str = "auto",
    ) -> None:
        nn.Module.__init__(self)
        self.config, self.layers, self.norm = backbone.config, backbone.layers, backbone.norm
        self.positions, self._plans = positions, plans
        self.options: dict[str, Any] = {"ahead": ahead, "backend": backend}
        self.train(backbone.training)
        self.pack()

    def pack(self) -> None:
        """Packs the weights as they are now; to be called after they got other memory.

        What has not moved stays where it is: graphs that were captured before, by another engine, hold its addresses.
        """
        weight = self.norm.weight
        self.plans = Plans.of(weight.device) if self._plans is None else self._plans
        if not hasattr(self, "cos") or self.cos.device != weight.device:
            positions = torch.arange(self.positions, device=weight.device)
            half = self.config.head_dim // 2
            self.cos, self.sin = (table[:, :half].contiguous() for table in rotary_table(self.config, positions))
        self.packed = [pack_layer(layer) for layer in self.layers]
        if weight.is_cuda:
            torch.cuda.empty_cache()  # blocks of single weights are too small for anything that comes

    def _apply(self, fn: Any, recurse: bool = True) -> FusedBackbone:
        super()._apply(fn, recurse)
        self.pack()
        return self

    def prefill(
        self, x: Float[Tensor, "B P width"], mask: Bool[Tensor, "B P"], room: int = 0
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "B P width"]]:
        """See `Backbone`. There is never room behind the prefix: a pass writes no keys."""
        if torch.is_grad_enabled():
            return super().prefill(x, mask, room)
        tokens = x.shape[1]
        cos, sin = self._rotary(0, tokens)
        keys, values = self._new_cache(x, tokens)
        mask = pack_mask(mask, backend=self.options["backend"])

        def attend(i: int, qkv: Tensor) -> Tensor:
            rotary_cache_(qkv, cos, sin, keys[i], values[i], **self.options)
            tile = self._tile("prefill", tokens)
            return attention(
                qkv, cos, sin, keys[i], values[i], mask, None, self.config.causal, tile=tile, **self.options
            )

        return keys, values, self._run(x, attend)

    def decode(
        self,
        x: Float[Tensor, "B Q width"],
        keys: list[Tensor],
        values: list[Tensor],
        prefix_mask: Bool[Tensor, "B P"],
        query_mask: Bool[Tensor, "Q Q"],
        start: int | None = None,
    ) -> Float[Tensor, "B Q width"]:
        """See `Backbone`."""
        if torch.is_grad_enabled():
            return super().decode(x, keys, values, prefix_mask, query_mask, start)
        tokens, cached = x.shape[1], prefix_mask.shape[1]
        cos, sin = self._rotary(cached if start is None else start, tokens)
        tile = self._tile("pass", tokens)
        mask = pack_mask(prefix_mask, backend=self.options["backend"])

        def attend(i: int, qkv: Tensor) -> Tensor:
            key, value = keys[i][:, :, :cached], values[i][:, :, :cached]
            return attention(qkv, cos, sin, key, value, mask, query_mask, tile=tile, **self.options)

        return self._run(x, attend)

    def joint(
        self,
        x: Float[Tensor, "B P width"],
        mask: Bool[Tensor, "B P"],
        queries: Float[Tensor, "B Q width"],
        query_mask: Bool[Tensor, "Q Q"],
        start: int | None = None,
        room: int = 0,
    ) -> Joint:
        """See `Backbone`; here prefix and queries go through the layers side by side, and weights are read once."""
        if torch.is_grad_enabled():
            return super().joint(x, mask, queries, query_mask, start, room)
        prefix, tokens = x.shape[1], queries.shape[1]
        cos, sin = self._rotary(0, prefix)
        query_rotary = self._rotary(prefix if start is None else start, tokens)
        keys, values = self._new_cache(x, prefix)
        causal, options = self.config.causal, self.options
        mask = pack_mask(mask, backend=options["backend"])
        tiles = self._tile("prefill", prefix), self._tile("pass", tokens)

        def attend(i: int, qkv: Tensor) -> Tensor:
            key, value = keys[i], values[i]
            own, behind = qkv[:, :prefix], qkv[:, prefix:]
            out = qkv.new_empty(*qkv.shape[:2], self.config.width)
            rotary_cache_(own, cos, sin, key, value, **options)
            attention(
                own, cos, sin, key, value, mask, None, causal, tile=tiles[0], out=out[:, :prefix], **options
            )
            attention(
                behind,
                *query_rotary,
                key,
                value,
                mask,
                query_mask,
                tile=tiles[1],
                out=out[:, prefix:],
                **options,
            )
            return out

        hidden = self._run(torch.cat([x, queries], 1), attend)
        return Joint(keys, values, hidden[:, :prefix], hidden[:, prefix:])

    def _run(self, x: Float[Tensor, "B n width"], attend: Attend) -> Float[Tensor, "B n width"]:
        """All layers and the last norm. The residual stream has the dtype of the weights."""
        shape, eps, options = x.shape, self.config.rms_eps, self.options
        plan, rows = self.plans.linear, x.shape[0] * x.shape[1]
        # A copy: products may add to it where it stands.
        x = x.detach().to(self.norm.weight.dtype).reshape(rows, shape[2]).clone()
        x, hidden = rms_norm(x, self.packed[0].input_norm, eps, backend=options["backend"])  # a copy never starts early
        norms = [layer.input_norm for layer in self.packed[1:]] + [self.norm.weight.detach()]
        for i, (layer, next_norm) in enumerate(zip(self.packed, norms, strict=True)):
            qkv = linear(hidden, layer.qkv, plan("linear", rows, *layer.qkv.shape), **options)
            attended = attend(i, qkv.view(shape[0], shape[1], -1)).view(rows, -1)
            choice = plan("add", rows, *layer.out.shape)
            delta = linear_add_(x, attended, layer.out, choice, **options)
            x, hidden = rms_norm(x, layer.middle_norm, eps, delta, **options)
            choice = plan("swiglu", rows, self.config.mlp_width, shape[2])
            active = swiglu_linear(hidden, layer.gate_up, choice, **options)
            delta = linear_add_(x, active, layer.down, plan("add", rows, *layer.down.shape), **options)
            x, hidden = rms_norm(x, next_norm, eps, delta, **options)
        return hidden.view(shape)

    def _new_cache(self, x: Tensor, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        config = self.config
        shape = (2, config.depth, len(x), config.heads, tokens, config.head_dim)
        keys, values = torch.empty(shape, dtype=self.norm.weight.dtype, device=x.device)
        return list(keys), list(values)

    def _rotary(self, start: int, tokens: int) -> tuple[Tensor, Tensor]:
        if start + tokens > self.positions:
            raise ValueError(f"got {tokens} tokens from position {start}, expected at most {self.positions} positions")
        return self.cos[start : start + tokens], self.sin[start : start + tokens]

    def _tile(self, kind: str, tokens: int) -> Any:
        return self.plans.attention(kind, tokens, self.config.heads, self.config.head_dim)


def pack_layer(layer: nn.Module) -> PackedLayer:
    """Puts weights that are read together side by side; the layer's parameters become views of them."""
    assert isinstance(layer, DecoderLayer)
    attend, mlp = layer.self_attn, layer.mlp
    return PackedLayer(
        layer.input_layernorm.weight.detach(),
        pack_weights(attend.q_proj, attend.k_proj, attend.v_proj),
        attend.o_proj.weight.detach(),
        layer.post_attention_layernorm.weight.detach(),
        pack_weights(mlp.gate_proj, mlp.up_proj),
        mlp.down_proj.weight.detach(),
    )


def pack_weights(*modules: nn.Linear) -> Float[Tensor, "N K"]:
    """One matrix that holds those of all modules, whose parameters become views of it; one is stored twice at a time.

    What stands side by side already is taken as it is.
    """
    weights = [module.weight for module in modules]
    first, rows = weights[0].detach(), sum(len(weight) for weight in weights)
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if len(storages) == 1 and all(ends[i] == weights[i + 1].data_ptr() for i in range(len(weights) - 1)):
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    packed = torch.cat([weight.detach() for weight in weights])
    start = 0
    for module in modules:
        module.weight.data = packed[start : start + len(module.weight)]
        start += len(module.weight)
    return packed


def fuse_backbone(backbone: Backbone, positions: int) -> Backbone:
    """The fused backbone where it serves, or the same one.

    One that is fused already stays so, wherever it was moved and whatever its weights were cast to.
    """
    weight = backbone.norm.weight
    if isinstance(backbone, FusedBackbone) and backbone.positions >= positions:
        backbone.pack()
        return backbone
    if not isinstance(backbone, FusedBackbone) and not can_fuse(backbone.config, weight.dtype, weight.device):
        return backbone
    overlaps = weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] >= 9
    return FusedBackbone(backbone, positions, ahead=AHEAD if overlaps else None)
