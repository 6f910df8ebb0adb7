"""The public call and the torch.library op under it, `rsd_fast::accept_`.

One boundary: `accept_` unpacks its dataclasses and calls the op, whose one implementation checks the inputs
and runs the backend that the registry picks. The op mutates its arguments and returns nothing, so it is
opaque to torch.compile, captured by CUDA graphs as it is, and has no gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from ..registry import pick
from .checks import check_accept
from .state import AcceptParams, ActionDecoder, RoundState

SCHEMA = """accept_(
    Tensor logits,
    Tensor(a!) codes, Tensor(b!) frontier, Tensor(c!) drafted, Tensor(d!) finished, Tensor(e!) passes,
    Tensor(f!) latents, Tensor(g!) agreed, Tensor(h!) kept,
    Tensor codebook, Tensor slack, Tensor? uniforms, Tensor? draft_probs,
    Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, Tensor? gain, Tensor? offset, Tensor(i!)? actions,
    int stop, str granularity, str rule, int need, float log_tau, str keep, str redraft, bool expected,
    float temperature, str backend
) -> ()"""


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
    """Updates `state` in place from the logits of one pass; `reference.py` says how, to the bit.

    Everything but `logits` is contiguous, and all tensors are on one device. B may be 0.

    Args:
        logits: main's, bfloat16, float16 or float32, any strides.
        state: of the round.
        codebook: what code v of layer l adds to latent dimension d, float32.
        slack: rule `distance`: levels by which a draft may differ, int32.
        params: how the round accepts.
        uniforms: in [0, 1), float32; read where the temperature is above 0: `[..., 0]` accepts, `[..., 1]`
            samples. Each layer's are used once a round.
        draft_probs: the distribution the draft was sampled from, float32, read at drafted layers of the first
            pass and where the temperature is above 0. None: the draft is deterministic.
        decoder: from latents to physical units. None: actions are latents, A = D.
        actions: written for samples that finish in this pass, float32. None: not written.
        backend: `auto`, or one of the registry's.

    Raises:
        ValueError: shapes, layouts, devices, parameters or a backend that do not fit.
        TypeError: a wrong dtype.
        RuntimeError: the backend asked for cannot run here.
    """
    weights = NO_DECODER if decoder is None else decoder.tensors()
    torch.ops.rsd_fast.accept_.default(
        logits,
        state.codes,
        state.frontier,
        state.drafted,
        state.finished,
        state.passes,
        state.latents,
        state.agreed,
        state.kept,
        codebook,
        slack,
        uniforms,
        draft_probs,
        *weights,
        actions,
        params.stop,
        params.granularity,
        params.rule,
        params.need,
        params.log_tau,
        params.keep,
        params.redraft,
        params.expected,
        params.temperature,
        backend,
    )


NO_DECODER = (None,) * 6
Unpacked = tuple[Tensor, RoundState, Tensor, Tensor, AcceptParams, dict[str, Any], str]


def _unpack(logits: Tensor, *rest: Any) -> Unpacked:
    """The op's arguments, in the order of the schema, as `accept_` took them; checked."""
    state, (codebook, slack, uniforms, draft_probs) = RoundState(*rest[:8]), rest[8:12]
    decoder = None if rest[16] is None else ActionDecoder(*rest[12:18])
    actions, params, backend = rest[18], _params(*rest[19:28]), rest[28]
    check_accept(logits, state, codebook, slack, params, uniforms, draft_probs, decoder, actions)
    optional = {"uniforms": uniforms, "draft_probs": draft_probs, "decoder": decoder, "actions": actions}
    return logits, state, codebook, slack, params, optional, backend


_params = lru_cache(maxsize=256)(AcceptParams)


def _accept(*arguments: Any) -> None:
    logits, state, codebook, slack, params, optional, backend = _unpack(*arguments)
    run = pick("accept", logits.device, backend).run
    if logits.shape[0] > 0:
        run(logits, state, codebook, slack, params, **optional)


def _accept_fake(*arguments: Any) -> None:
    _unpack(*arguments)


_LIBRARY = torch.library.Library("rsd_fast", "FRAGMENT")
_LIBRARY.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("accept_", _accept, "CPU")
_LIBRARY.impl("accept_", _accept, "CUDA")
torch.library.register_fake("rsd_fast::accept_", _accept_fake, lib=_LIBRARY)
