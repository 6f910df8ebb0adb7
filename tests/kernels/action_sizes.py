"""How far actions may be apart where the decoder runs on tensor cores: some roundings of what is added up for each.

A tolerance for the action itself says little where none of the terms cancel, and is too strict where large ones do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rsd_fast.kernels.accept import ActionDecoder

ROUNDINGS = 2.0**-22  # of the sizes: four times what rounding to fp32 once may change


def action_sizes(latents: Float[Tensor, "B T D"], decoder: ActionDecoder) -> Float[Tensor, "B T A"]:
    """The sum of the sizes of all terms, with every weight and latent positive; Mish lets none of them grow."""
    sizes = latents.double().abs()
    if decoder.w1 is not None:
        assert decoder.b1 is not None and decoder.w2 is not None and decoder.b2 is not None
        sizes = sizes @ decoder.w1.double().abs().T + decoder.b1.abs()
        sizes = sizes @ decoder.w2.double().abs().T + decoder.b2.abs()
    return sizes * decoder.gain.abs() + decoder.offset.abs()


def assert_actions_close(
    got: Float[Tensor, "B T A"], wanted: Float[Tensor, "B T A"], latents: Float[Tensor, "B T D"], decoder: ActionDecoder
) -> None:
    """NaN in the same places, and elsewhere no further apart than `ROUNDINGS` of the sizes."""
    assert torch.equal(got.isnan(), wanted.isnan()), "actions are written for other samples"
    share = ((got - wanted).abs() / action_sizes(latents, decoder)).nan_to_num(0.0)
    assert not (share > ROUNDINGS).any(), f"actions differ by {share.max():.2g} of the sizes, expected {ROUNDINGS:.2g}"
