"""RFSQ, the codec between continuous actions and the integer codes that the models speak.

Residual finite scalar quantisation: `r_0 = z`; layer l takes the nearest of V evenly spaced levels to `r_l / s_l` and
leaves `r_{l+1} = r_l - s_l * level[c_l]`. Decoding is the plain sum of `s_l * level[c_l]`. Finite scalar quantisation:
Mentzer et al., 2023 (https://arxiv.org/abs/2309.15505).

The scales are constants, so that codes alone decode to the same actions in a fresh process, and a row decodes to the
same bits alone or inside a batch.

**Redundancy.** `s_{l+1} = rho * s_l / (V - 1)`. With rho = 1 layer l + 1 covers exactly the cell of layer l, and a code
that is off by one can never be repaired. With rho near 2 neighbouring cells overlap, and the finer layers repair it,
as redundant digits do in SRT division (Robertson, 1958). This is what lets a cheap draft stand.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rsd_fast.normalize import QuantileNormalizer
from rsd_fast.pretrained import Pretrained

# The largest slope of Mish, for the error bound through the action decoder.
_MISH_LIPSCHITZ = 1.0885


@dataclass(frozen=True)
class CodecConfig:
    """What a codec is.

    Attributes:
        layers: L, residual stages.
        levels: V, values a code can take.
        latent_dims: D; equals `action_dims` unless there is an autoencoder.
        action_dims: A.
        redundancy: rho, in [(V - 1) / V, V - 1]; at the lower end the V cells of a layer tile one cell of the layer
            below without any overlap.
        normalization: `none`: `s_0 = 1`; `scale`: `s_0` is fitted per latent dimension, a constant afterwards.
        autoencoder_width: hidden width of the action autoencoder; 0 for none.
        gripper_dims: action dimensions that are switches: they are not normalised.
    """

    layers: int = 3
    levels: int = 5
    latent_dims: int = 7
    action_dims: int = 7
    redundancy: float = 2.0
    normalization: Literal["none", "scale"] = "scale"
    autoencoder_width: int = 0
    gripper_dims: tuple[int, ...] = (6,)

    def __post_init__(self) -> None:
        """Raises ValueError on anything that no codec can be."""
        object.__setattr__(self, "gripper_dims", tuple(self.gripper_dims))  # JSON gives a list
        if self.layers < 1 or self.levels < 2:
            raise ValueError(f"got layers {self.layers} and levels {self.levels}, expected at least 1 and 2")
        least = (self.levels - 1) / self.levels
        if not least - 1e-9 <= self.redundancy <= self.levels - 1:
            raise ValueError(f"got redundancy {self.redundancy}, expected {least:.3f} to {self.levels - 1}")
        if self.normalization not in ("none", "scale"):
            raise ValueError(f"got normalization {self.normalization!r}, expected 'none' or 'scale'")
        if self.autoencoder_width == 0 and self.latent_dims != self.action_dims:
            raise ValueError(
                f"got latent_dims {self.latent_dims} without an autoencoder, expected action_dims {self.action_dims}"
            )


PRESETS: dict[str, CodecConfig] = {
    "redundant": CodecConfig(),
    "original": CodecConfig(
        layers=8, levels=7, latent_dims=16, redundancy=1.0, normalization="none", autoencoder_width=64
    ),
}


class PerturbedCodes(NamedTuple):
    """What `encode` returns.

    Attributes:
        prefix: the codes that were used, layer by layer.
        targets: at each layer the nearest code given the prefix below it. Equal to `prefix` without perturbation.
    """

    prefix: Int[Tensor, "*b L T D"]
    targets: Int[Tensor, "*b L T D"]


class RFSQCodec(
    nn.Module,
    Pretrained,
    library_name="rsd_fast",
    license="apache-2.0",
    repo_url="rsd_fast",
    tags=["robotics", "action-tokenizer"],
):
    """Actions `[..., T, A]` in physical units <-> codes `[..., L, T, D]`. See the module's text for the definition."""

    codebook: Float[Tensor, "L D V"]
    base_scale: Float[Tensor, " D"]

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.normalizer = QuantileNormalizer(config.action_dims)
        self.register_buffer("base_scale", torch.ones(config.latent_dims))
        self.register_buffer("codebook", torch.zeros(config.layers, config.latent_dims, config.levels), False)
        self.encoder: nn.Sequential | None = None
        self.decoder: nn.Sequential | None = None
        if width := config.autoencoder_width:
            # Index names (0, 2) are those of the original project's autoencoder.
            self.encoder = nn.Sequential(
                nn.Linear(config.action_dims, width), nn.Mish(), nn.Linear(width, config.latent_dims), nn.Tanh()
            )
            self.decoder = nn.Sequential(
                nn.Linear(config.latent_dims, width), nn.Mish(), nn.Linear(width, config.action_dims)
            )
        self.register_load_state_dict_post_hook(lambda module, _: module._fill_codebook())
        self._fill_codebook()

    # ---- scales

    @property
    def scales(self) -> Float[Tensor, "L D"]:
        """`s_l` per layer and latent dimension."""
        step = self.config.redundancy / (self.config.levels - 1)
        powers = step ** torch.arange(self.config.layers, dtype=torch.float64, device=self.base_scale.device)
        return (powers[:, None] * self.base_scale.double()).float()

    @torch.no_grad()
    def _fill_codebook(self) -> None:
        levels = torch.linspace(-1, 1, self.config.levels, dtype=torch.float64, device=self.base_scale.device)
        self.codebook.copy_(self.scales.double()[..., None] * levels)

    @torch.no_grad()
    def fit_scale(self, latents: Float[Tensor, "n D"]) -> None:
        """Sets `s_0` to the largest absolute value of each dimension (normalization `scale`).

        Raises:
            ValueError: the codec's normalization is `none`, or a latent is not finite.
        """
        if self.config.normalization != "scale":
            raise ValueError("fit_scale needs a codec with normalization 'scale', got 'none'")
        _require_finite(latents, "latents")
        self.base_scale.copy_(latents.abs().amax(0).clamp_min(1e-6))
        self._fill_codebook()

    def remaining_bound(self, layer: int) -> Float[Tensor, "D"]:
        """How far the value of `layer` layers can still be from the latent: the reach of the layers above.

        `sum_{j >= layer} s_j`, plus half a cell of the last layer. Holds for every valid prefix, nearest or not.
        """
        if not 0 <= layer <= self.config.layers:
            raise ValueError(f"got layer {layer}, expected 0 to {self.config.layers}")
        scales = self.scales
        return scales[layer:].sum(0) + scales[-1] / (self.config.levels - 1)

    def action_bound(self, layer: int) -> Float[Tensor, "A"]:
        """`remaining_bound` carried through the action decoder and the un-normalisation, in physical units."""
        bound = self.remaining_bound(layer)
        if self.decoder is not None:
            first, last = _linears(self.decoder)
            bound = last.weight.abs() @ (_MISH_LIPSCHITZ * (first.weight.abs() @ bound))
        return (bound * self.normalizer.gain).detach()

    def depth_for(self, tolerance: float) -> int:
        """Adaptive depth: the fewest layers whose `action_bound` is within `tolerance` (physical units).

        Gripper dimensions are left out: they are switched by sign. Returns L when no depth is enough.
        """
        if not tolerance > 0:
            raise ValueError(f"got tolerance {tolerance}, expected a positive number in the units of the action")
        moving = self.normalizer.mask
        for layer in range(1, self.config.layers):
            if bool((self.action_bound(layer)[moving] <= tolerance).all()):
                return layer
        return self.config.layers

    # ---- latents <-> codes

    def _nearest(self, residual: Float[Tensor, "*b T D"], scale: Float[Tensor, "D"]) -> Int[Tensor, "*b T D"]:
        top = self.config.levels - 1
        return torch.round((residual / scale + 1) * (top / 2)).clamp(0, top).to(torch.int32)

    def _value(self, layer: int, codes: Int[Tensor, "*b T D"]) -> Float[Tensor, "*b T D"]:
        table = self.codebook[layer]
        dims = torch.arange(table.shape[0], device=table.device).expand(codes.shape)
        return table[dims, codes.long()]

    def encode(
        self,
        latents: Float[Tensor, "*b T D"],
        perturb: float = 0.0,
        generator: torch.Generator | None = None,
        check_finite: bool = True,
    ) -> PerturbedCodes:
        """Latents -> codes, int32.

        Ties round as `torch.round` does on the level grid (half to even); values out of range clamp.

        Args:
            latents: float, in the codec's latent space.
            perturb: probability, per code, of taking a valid neighbour of the nearest code instead and going on from
                *its* residual. A neighbour is valid if the layers above still reach the latent, so a perturbed prefix
                decodes to the same value within the last cell.
            generator: of the draws, on the latents' device.
            check_finite: the check costs a device synchronisation; a training loop on checked data can leave it out.

        Raises:
            ValueError: a latent is NaN or inf, or the last dimension is not D.
        """
        if latents.shape[-1] != self.config.latent_dims:
            raise ValueError(f"latents have {latents.shape[-1]} dimensions, expected {self.config.latent_dims}")
        if check_finite:
            _require_finite(latents, "latents")
        residual, prefix, targets = latents.float(), [], []
        scales = self.scales
        for layer in range(self.config.layers):
            nearest = self._nearest(residual, scales[layer])
            chosen = nearest
            if perturb > 0:
                chosen = self._perturbed(nearest, residual, layer, perturb, generator)
            residual = residual - self._value(layer, chosen)
            prefix.append(chosen)
            targets.append(nearest)
        return PerturbedCodes(torch.stack(prefix, -3), torch.stack(targets, -3))

    def _perturbed(
        self, nearest: Tensor, residual: Tensor, layer: int, probability: float, generator: torch.Generator | None
    ) -> Tensor:
        reach = self.remaining_bound(layer + 1)
        draw, below_first = torch.rand(2, *nearest.shape, device=nearest.device, generator=generator)
        candidates = []
        for step in (-1, 1):
            code = nearest + step
            inside = (code >= 0) & (code < self.config.levels)
            code = code.clamp(0, self.config.levels - 1)
            candidates.append((code, inside & ((residual - self._value(layer, code)).abs() <= reach)))
        (below, below_valid), (above, above_valid) = candidates
        take_below = below_valid & ((below_first < 0.5) | ~above_valid)
        neighbour = torch.where(take_below, below, torch.where(above_valid, above, nearest))
        return torch.where(draw < probability, neighbour, nearest)

    def decode(self, codes: Int[Tensor, "*b L T D"], stop: int | None = None) -> Float[Tensor, "*b T D"]:
        """Codes -> latents: the sum over the first `stop` layers (all of them by default), coarse to fine."""
        stop = self.config.layers if stop is None else stop
        if not 1 <= stop <= codes.shape[-3]:
            raise ValueError(f"got stop {stop}, expected 1 to the {codes.shape[-3]} layers of the codes")
        total = self._value(0, codes[..., 0, :, :])
        for layer in range(1, stop):
            total = total + self._value(layer, codes[..., layer, :, :])
        return total

    # ---- actions <-> codes

    def actions_to_latents(self, actions: Float[Tensor, "*b T A"]) -> Float[Tensor, "*b T D"]:
        """Physical units -> latents."""
        normalized = self.normalizer.normalize(actions.float())
        return normalized if self.encoder is None else self.encoder(normalized)

    def latents_to_actions(self, latents: Float[Tensor, "*b T D"]) -> Float[Tensor, "*b T A"]:
        """Latents -> physical units."""
        if self.decoder is not None:
            first, last = _linears(self.decoder)
            latents = _row_linear(last, F.mish(_row_linear(first, latents)))
        return self.normalizer.unnormalize(latents)

    def encode_actions(self, actions: Float[Tensor, "*b T A"]) -> Int[Tensor, "*b L T D"]:
        """Actions in physical units -> codes, int32. NaN and inf are a ValueError, never a code."""
        _require_finite(actions, "actions")
        return self.encode(self.actions_to_latents(actions)).targets

    def decode_actions(self, codes: Int[Tensor, "*b L T D"], stop: int | None = None) -> Float[Tensor, "*b T A"]:
        """Codes -> actions in physical units, float32."""
        return self.latents_to_actions(self.decode(codes, stop))


def codec_preset(name: str, **changes: object) -> CodecConfig:
    """A named configuration, with changes; an unknown name is a ValueError that lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"got codec preset {name!r}, expected one of {sorted(PRESETS)}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


def _linears(decoder: nn.Sequential) -> tuple[nn.Linear, nn.Linear]:
    first, _, last = decoder
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return first, last


def _row_linear(layer: nn.Linear, rows: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
    # A matrix product may sum in another order for another number of rows; a row must decode to the same bits alone
    # and inside a batch.
    return (rows[..., None, :] * layer.weight).sum(-1) + layer.bias


def _require_finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{what} hold {bad} NaN or infinite values of {values.numel()}; clean the data first")
