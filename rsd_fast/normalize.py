"""Quantile normalisation of actions and proprioception, as OpenVLA does it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_EPSILON = 1e-8  # OpenVLA adds it to the range; a constant dimension then maps to -1 and back to itself


class QuantileNormalizer(nn.Module):
    """Maps `[q01, q99]` of each dimension to `[-1, 1]`; dimensions outside `mask` pass through unchanged.

        normalise:    x = 2 (a - q01) / (q99 - q01) - 1, clipped to [-1, 1]
        un-normalise: a = (x + 1) / 2 * (q99 - q01) + q01      = gain * x + offset

    Source: the `bounds_q99` statistics of OpenVLA (Kim et al., 2024). The gripper is masked out there: it is a
    switch, not a quantity.
    """

    q01: Float[Tensor, "dims"]
    q99: Float[Tensor, "dims"]
    mask: Bool[Tensor, "dims"]

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("q01", -torch.ones(dims))
        self.register_buffer("q99", torch.ones(dims))
        self.register_buffer("mask", torch.ones(dims, dtype=torch.bool))

    @torch.no_grad()
    def set_statistics(
        self, q01: Float[Tensor, "dims"], q99: Float[Tensor, "dims"], mask: Bool[Tensor, "dims"] | None = None
    ) -> None:
        """Takes quantiles computed elsewhere, for example from a `dataset_statistics.json`.

        Raises:
            ValueError: a shape does not fit, a value is not finite, or q99 is below q01 inside the mask.
        """
        mask = torch.ones_like(self.mask) if mask is None else mask.to(torch.bool)
        for name, value in (("q01", q01), ("q99", q99), ("mask", mask)):
            if value.shape != self.q01.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(self.q01.shape)}")
        if not (torch.isfinite(q01).all() and torch.isfinite(q99).all()):
            raise ValueError("q01 and q99 must be finite; the data they come from holds NaN or inf")
        if bool(((q99 < q01) & mask.to(q01.device)).any()):
            raise ValueError(f"q99 is below q01 in some dimension: q01 {q01.tolist()}, q99 {q99.tolist()}")
        self.q01.copy_(q01)
        self.q99.copy_(q99)
        self.mask.copy_(mask)

    @torch.no_grad()
    def fit(
        self, values: Float[Tensor, "n dims"], mask: Bool[Tensor, "dims"] | None = None, quantile: float = 0.01
    ) -> None:
        """Takes the quantiles `quantile` and `1 - quantile` of `values`; the customary 1 % and 99 % by default."""
        # numpy's quantile has no limit on the number of elements; torch.quantile stops at 16 million.
        import numpy as np

        low, high = np.quantile(values.double().cpu().numpy(), [quantile, 1 - quantile], axis=0)
        self.set_statistics(torch.from_numpy(low).float(), torch.from_numpy(high).float(), mask)

    @property
    def gain(self) -> Float[Tensor, "dims"]:
        """`a = gain * x + offset` un-normalises."""
        return torch.where(self.mask, (self.q99 - self.q01 + _EPSILON) / 2, torch.ones_like(self.q01))

    @property
    def offset(self) -> Float[Tensor, "dims"]:
        """See `gain`."""
        return torch.where(self.mask, self.q01 + (self.q99 - self.q01 + _EPSILON) / 2, torch.zeros_like(self.q01))

    def normalize(self, values: Float[Tensor, "*b dims"]) -> Float[Tensor, "*b dims"]:
        """Physical units -> [-1, 1]; values beyond the quantiles are clipped."""
        return torch.where(self.mask, ((values - self.offset) / self.gain).clamp(-1, 1), values)

    def unnormalize(self, values: Float[Tensor, "*b dims"]) -> Float[Tensor, "*b dims"]:
        """[-1, 1] -> physical units."""
        return values * self.gain + self.offset
