"""How far actions of two backends may be apart: a few roundings of what is added up on the way to each of them.

A tolerance for the action itself would be too strict where large terms cancel and say little where none do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rsd_fast.kernels.accept import ActionDecoder

ROUNDINGS = 2.0**-22  # of the sizes: four times what rounding to fp32 once may change
STEEPEST = 1.1  # Mish rises by at most 1.09


def action_sizes(
    latents: Float[Tensor, "B T D"], decoder: ActionDecoder | None, constants: bool = True
) -> Float[Tensor, "B T A"]:
    """The sum of the sizes of all terms, with every weight and latent positive.

    Without `constants`, of latents that are differences, it is what is left of them at most, up to Mish's slope.
    """
    sizes = latents.double().abs()
    if decoder is None:
        return sizes
    if decoder.w1 is not None:
        assert decoder.b1 is not None and decoder.w2 is not None and decoder.b2 is not None
        sizes = sizes @ decoder.w1.double().abs().T + constants * decoder.b1.abs()
        sizes = sizes @ decoder.w2.double().abs().T + constants * decoder.b2.abs()
    return sizes * decoder.gain.abs() + constants * decoder.offset.abs()


def assert_actions_close(
    got: Float[Tensor, "B T A"],
    wanted: Float[Tensor, "B T A"],
    latents: tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]],
    decoder: ActionDecoder | None,
) -> None:
    """NaN in the same places, and elsewhere no further apart than `ROUNDINGS` of the sizes.

    `latents` are those of both: what they differ by may reach the actions.
    """
    assert torch.equal(got.isnan(), wanted.isnan()), "actions are written for other samples"
    passed_on = STEEPEST * action_sizes(latents[0] - latents[1], decoder, constants=False)
    apart = (got.double() - wanted.double()).abs() - passed_on
    share = (apart / action_sizes(latents[1], decoder)).nan_to_num(0.0)
    assert not (share > ROUNDINGS).any(), f"actions differ by {share.max():.2g} of the sizes, expected {ROUNDINGS:.2g}"
