"""The public call."""

from __future__ import annotations

from jaxtyping import Float, Int32
from torch import Tensor

from .reference import accept_reference_
from .state import AcceptParams, ActionDecoder, RoundState


def accept_(
    logits: Float[Tensor, "B L T D V"],
    state: RoundState,
    codebook: Float[Tensor, "L D V"],
    slack: Int32[Tensor, "L D"],
    params: AcceptParams,
    *,
    uniforms: Float[Tensor, "B L T D 2"] | None = None,
    draft_probs: Float[Tensor, "B L T D V"] | None = None,
    decoder: ActionDecoder | None = None,
    actions: Float[Tensor, "B T A"] | None = None,
    backend: str = "auto",
) -> None:
    """Updates `state` in place from the logits of one pass; `reference.py` says how."""
    if backend not in ("auto", "reference"):
        raise ValueError(f"got backend {backend!r}, expected 'auto' or 'reference'")
    accept_reference_(
        logits,
        state,
        codebook,
        slack,
        params,
        uniforms=uniforms,
        draft_probs=draft_probs,
        decoder=decoder,
        actions=actions,
    )
