"""The timed case of `accept_` as one would write it with numpy: granularity `layer`, rule `distance`, first pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.kernels.accept_cases import Case


def array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory; numpy has no bfloat16, so that comes as its bits."""
    return tensor.view(torch.int16).numpy() if tensor.element_size() == 2 else tensor.numpy()


class NumpyAccept:
    """Views of a case's tensors, made once; a call updates them in place."""

    def __init__(self, case: Case) -> None:
        params, decoder = case.params, case.decoder
        assert (params.granularity, params.rule, params.temperature) == ("layer", "distance", 0.0)
        assert decoder is not None and case.actions is not None
        self.params, self.state = params, {name: array(tensor) for name, tensor in vars(case.state).items()}
        self.bits = array(case.logits)
        self.codebook, self.slack, self.actions = array(case.codebook), array(case.slack), array(case.actions)
        self.decoder = [None if weight is None else array(weight) for weight in decoder.tensors()]

    def __call__(self) -> None:
        state, params = self.state, self.params
        codes, stop = state["codes"], params.stop
        x = (self.bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        main = np.where(np.isnan(x), -np.inf, x).argmax(-1).astype(np.int32)
        layer = np.arange(codes.shape[1])
        proposed = layer < np.minimum(state["drafted"], stop - 1)[:, None]  # [B, L]
        agree = (np.abs(codes - main) <= self.slack[:, None]) & proposed[:, :, None, None]
        agreed = agree.sum((2, 3))
        walked = (proposed & (agreed >= params.need)).cumprod(1).sum(1)  # [B]
        accepted = layer < walked[:, None]
        new = np.where(accepted[:, :, None, None] & agree, codes, main)
        if params.redraft == "middle":
            changed = (new != codes) & (layer <= walked[:, None])[:, :, None, None]
            new = np.where(changed.cumsum(1) > changed, main.dtype.type(x.shape[-1] // 2), new)
        new[:, stop:] = codes[:, stop:]
        state["kept"][:] = np.where(proposed, agreed * accepted, -1)
        state["agreed"][:] = np.where(proposed, agreed, -1)
        codes[:] = new
        state["frontier"][:] = (walked + 1)[:, None, None]
        dims = np.arange(codes.shape[-1])
        latents = np.zeros_like(state["latents"])
        for l in range(stop):
            latents += self.codebook[l][dims, codes[:, l]]
        state["latents"][:] = latents
        state["passes"] += 1
        state["drafted"][:] = 0 if params.redraft == "none" else stop - 1
        state["finished"][:] = walked + 1 >= stop
        self.actions[:] = np.where(state["finished"][:, None, None] != 0, self.decode(latents), self.actions)

    def decode(self, z: np.ndarray) -> np.ndarray:
        w1, b1, w2, b2, gain, offset = self.decoder
        hidden = z @ w1.T + b1
        hidden *= np.tanh(np.logaddexp(0.0, hidden))
        return (hidden @ w2.T + b2) * gain + offset
