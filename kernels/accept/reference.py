"""What `accept_` means, in plain PyTorch; every backend is tested against it.

Runs on CPU and CUDA, without host synchronisation.

Words: c the code that stands in a layer at entry, m main's choice there, x main's logits (fp32), l a layer,
e = (t, d) an element. A *walk* goes up from the entry frontier as long as layers are accepted; the layer
where it ends takes m, which is final too (the correction costs nothing), so an unfinished frontier moves at
least one layer a pass.

With `redraft` "middle", an element's codes fall back to the middle level above one that takes m and changes, in an
accepted layer or where the walk ends: what the draft and main had said there refines a cell that has been left. Not at
granularity `all`, whose head says everything at once.

With `expected`, the last layer is read as the mean of its levels under main's softmax, in elements that reach it and
whose codes below stood. Where codes fall back to the middle, the layer that changed is read so and the middle adds
nothing: what main says of that layer is all that is known of the element.

Edge cases, the same in every backend:
- argmax ties: the lowest level. A NaN logit counts as -inf. A row of equal logits, -inf included, is a
  uniform softmax.
- a drafted code outside 0 .. V - 1 never agrees and is never kept.
- layers >= `stop - 1` are never drafted, whatever `drafted` says; layers >= `stop` are never touched.
- a sample that was finished at entry is not touched at all: a row of a batch is the row alone.
- B = 0 is a no-op.

Sampling follows Leviathan et al., 2023 (https://arxiv.org/abs/2211.17192), layer by layer. To be the same
bits in every backend, weights are exponentials taken in float64 and rounded once to float32, and sums run in
the order of the levels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor
from torch.nn.functional import mish

from .state import AcceptParams, ActionDecoder, RoundState


@torch.no_grad()
def accept_reference_(
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
) -> None:
    """`rsd_fast.kernels.accept.accept_` for inputs that were checked; same arguments."""
    stop, codes, entry = params.stop, state.codes, state.frontier
    live = state.finished == 0
    x = logits.float()
    x = torch.where(x.isnan(), -torch.inf, x)
    layer = torch.arange(codes.shape[1], device=codes.device)[:, None, None]  # [L, 1, 1]
    proposed = layer < state.drafted.clamp(max=stop - 1)[:, None, None, None]  # [B, L, 1, 1]

    # Compare.
    greedy = x.argmax(-1).int()
    if params.temperature == 0:
        choice = greedy
        agree = proposed & within_rule(x, codes, greedy, slack, params)
    else:
        assert uniforms is not None  # checked at the boundary
        point_mass = ~proposed | (state.passes > 0)[:, None, None, None]
        choice, accepted = sampled(x, codes, uniforms, draft_probs, point_mass, params.temperature)
        agree = proposed & accepted

    # Walk.
    passing = agree
    if params.granularity == "layer":
        passing = proposed & (agree.sum((2, 3), keepdim=True) >= params.need)
    if params.granularity == "all":
        passing = torch.zeros_like(agree)
    # Final at entry, or accepted just now.
    below = (passing | (layer < entry[:, None])).int().cumprod(1).bool()
    accepted = below & (layer >= entry[:, None])
    walked = below.sum(1)
    frontier = torch.full_like(walked, stop) if params.granularity == "all" else walked + 1
    frontier = torch.where(entry < stop, frontier, entry)

    # Select.
    stands = agree | valid(codes, x.shape[-1]) if params.keep == "draft" else agree
    new = torch.where(accepted & ~stands, choice, codes)
    new = torch.where((layer >= walked[:, None]) & (layer < frontier[:, None]), choice, new)
    new = torch.where((layer >= frontier[:, None]) & (layer < stop), greedy, new)
    to_middle = params.redraft == "middle" and params.granularity != "all"
    if to_middle:
        changed = (new != codes) & (layer < frontier[:, None])
        left = above(changed)
        new = torch.where(left & (layer < stop), x.shape[-1] // 2, new)
    finished = frontier.flatten(1) >= stop
    finished = finished.sum(1) >= params.need if params.granularity == "element" else finished.all(1)

    # Dequantise.
    latents = dequantise(new, codebook, stop)
    if params.expected:
        stood = (new == codes)[:, : stop - 1].all(1) | (params.granularity == "all")
        mean = dequantise(new, codebook, stop - 1) + softmax_mean(x[:, stop - 1], codebook[stop - 1])
        latents = torch.where((frontier >= stop) & stood, mean, latents)
        if to_middle:
            for l in range(stop - 1):
                mean = dequantise(new, codebook, l) + softmax_mean(x[:, l], codebook[l])
                latents = torch.where(changed[:, l] & ~left[:, l], mean, latents)
    latents = torch.where(entry < stop, latents, state.latents)

    # Write.
    first = (live & (state.passes == 0))[:, None]
    held = accepted & stands
    for counter, elements in ((state.agreed, agree), (state.kept, held)):
        count = torch.where(proposed[:, :, 0, 0], elements.sum((2, 3)), -1)
        counter.copy_(torch.where(first, count, counter))
    if actions is not None:
        ends = (live & finished)[:, None, None]
        actions.copy_(torch.where(ends, decode_actions(latents, decoder), actions))
    state.codes.copy_(torch.where(live[:, None, None, None], new, codes))
    state.frontier.copy_(torch.where(live[:, None, None], frontier, entry))
    state.latents.copy_(torch.where(live[:, None, None], latents, state.latents))
    state.drafted.copy_(torch.where(live, 0 if params.redraft == "none" else stop - 1, state.drafted))
    state.passes.add_(live)
    state.finished.copy_(torch.where(live, finished, state.finished))


def above(changed: Bool[Tensor, "B L T D"]) -> Bool[Tensor, "B L T D"]:
    """Whether a code of the same element in a lower layer has changed."""
    return changed.cumsum(1) > changed


def within_rule(
    x: Float[Tensor, "B L T D V"],
    codes: Int32[Tensor, "B L T D"],
    greedy: Int32[Tensor, "B L T D"],
    slack: Int32[Tensor, "L D"],
    params: AcceptParams,
) -> Bool[Tensor, "B L T D"]:
    """Whether the code that stands agrees with main's most likely one."""
    known = valid(codes, x.shape[-1])
    if params.rule == "distance":
        return known & ((codes - greedy).abs() <= slack[:, None])
    at_code, at_greedy = pick(x, codes), pick(x, greedy)
    gap = torch.where(at_code == at_greedy, 0.0, at_code - at_greedy)  # inf - inf is no NaN here
    return known & (gap >= params.log_tau)


def sampled(
    x: Float[Tensor, "B L T D V"],
    codes: Int32[Tensor, "B L T D"],
    uniforms: Float[Tensor, "B L T D 2"],
    draft_probs: Float[Tensor, "B L T D V"] | None,
    point_mass: Bool[Tensor, "B L T D"],
    temperature: float,
) -> tuple[Int32[Tensor, "B L T D"], Bool[Tensor, "B L T D"]]:
    """Main's sampled choice, and whether the draft's code is accepted.

    A draft that is a point mass at c is right where main's own sample is c. A draft that was sampled from q
    is accepted with probability min(1, p / q); the choice after a rejection is a sample of max(p - q, 0).
    """
    top = x.amax(-1, keepdim=True)
    logs = torch.where(x == top, 0.0, x - top)  # also where both are infinite
    weights = (logs.double() / temperature).exp().float()
    u_accept, u_sample = uniforms.unbind(-1)
    own = sample(weights, u_sample)
    own_accepted = codes == own
    if draft_probs is None:
        return own, own_accepted
    p, q = weights / cumulative(weights)[..., -1:], draft_probs
    residual = (p - q).clamp(min=0.0)
    leftover = torch.where(cumulative(residual)[..., -1] == 0, own, sample(residual, u_sample))
    accepted = valid(codes, x.shape[-1]) & (u_accept * pick(q, codes) < pick(p, codes))
    choice = torch.where(accepted, codes, leftover)
    return torch.where(point_mass, own, choice), torch.where(point_mass, own_accepted, accepted)


def sample(weights: Float[Tensor, "*n V"], u: Float[Tensor, "*n"]) -> Int32[Tensor, "*n"]:
    """The first level whose cumulative weight exceeds the share u of the sum."""
    sums = cumulative(weights)
    return (sums <= (u * sums[..., -1])[..., None]).sum(-1).clamp(max=weights.shape[-1] - 1).int()


def cumulative(weights: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
    """Cumulative sums, one fp32 addition after the other (torch.cumsum has no fixed order or precision)."""
    sums = [weights[..., 0]]
    for v in range(1, weights.shape[-1]):
        sums.append(sums[-1] + weights[..., v])
    return torch.stack(sums, -1)


def dequantise(
    codes: Int32[Tensor, "B L T D"], codebook: Float[Tensor, "L D V"], layers: int
) -> Float[Tensor, "B T D"]:
    """What the first `layers` layers add up to, in their order."""
    dims = torch.arange(codes.shape[-1], device=codes.device)
    total = torch.zeros(codes[:, 0].shape, device=codes.device)
    for layer in range(layers):
        total = total + codebook[layer][dims, codes[:, layer]]
    return total


def softmax_mean(x: Float[Tensor, "B T D V"], levels: Float[Tensor, "D V"]) -> Float[Tensor, "B T D"]:
    """The mean of the levels under the softmax of x."""
    top = x.amax(-1, keepdim=True)
    weights = torch.where(x == top, 1.0, (x - top).exp())
    return (weights * levels).sum(-1) / weights.sum(-1)


def decode_actions(latents: Float[Tensor, "B T D"], decoder: ActionDecoder | None) -> Float[Tensor, "B T A"]:
    """Latents to physical units."""
    if decoder is None:
        return latents
    if decoder.w1 is not None:
        assert decoder.b1 is not None and decoder.w2 is not None and decoder.b2 is not None  # all four or none
        latents = mish(latents @ decoder.w1.T + decoder.b1) @ decoder.w2.T + decoder.b2
    return latents * decoder.gain + decoder.offset


def pick(values: Float[Tensor, "*n V"], codes: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`values[..., codes]`; codes outside 0 .. V - 1 read the nearest level (callers ask `valid`)."""
    return values.gather(-1, codes.clamp(0, values.shape[-1] - 1).long()[..., None])[..., 0]


def valid(codes: Int[Tensor, "*n"], levels: int) -> Bool[Tensor, "*n"]:
    """Codes that are levels."""
    return (codes >= 0) & (codes < levels)
