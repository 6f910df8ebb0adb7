"""The accept op as one Triton kernel that reads the logits once; `reference.py` says what it computes.

One program does one sample, because granularity `layer` counts over a sample's elements. Elements (t, d) are
the lanes, T and D each padded to a power of two. Layers are unrolled: a first loop over them reads the logits
and keeps, per lane, main's choice (one register a layer) and whether the draft agrees (one bit a layer); the
walk is arithmetic on those bits; a second loop selects the codes and adds up the latents in the order of the
layers. A sample that finishes decodes its actions in the same program.

Nothing that the reference would leave as it is gets written, and logits of final layers are not read after
the first pass. Integer outputs and latents are the reference's bits: there is no a * b + c on their way that
could be fused.
"""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from .state import AcceptParams, ActionDecoder, RoundState


@torch.no_grad()
def accept_triton_(
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
    """`rsd_fast.kernels.accept.accept_` for inputs that were checked; one launch, no synchronisation."""
    batch, dims = logits.shape[0], logits.shape[3]
    hidden = 0 if decoder is None or decoder.b1 is None else decoder.b1.shape[0]
    sampling = params.temperature > 0
    accept_kernel[(batch,)](
        logits,
        *logits.stride(),
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
        uniforms if sampling else None,
        draft_probs if sampling else None,
        decoder.w1 if decoder else None,
        decoder.b1 if decoder else None,
        decoder.w2 if decoder else None,
        decoder.b2 if decoder else None,
        decoder.gain if decoder else None,
        decoder.offset if decoder else None,
        actions,
        params.need,
        params.log_tau,
        double_bits(params.temperature),
        **constants(params, logits.shape, hidden, dims if actions is None else actions.shape[2]),
    )


def constants(params: AcceptParams, shape: Sequence[int], hidden: int, action_dims: int) -> dict[str, int | str | bool]:
    """What the kernel is compiled for, `num_warps` included; `shape` is the logits'."""
    _, layers, steps, dims, levels = shape
    lanes = triton.next_power_of_2(steps) * triton.next_power_of_2(dims)
    return {
        "L": layers,
        "T": steps,
        "D": dims,
        "V": levels,
        "H": hidden,
        "A": action_dims,
        "stop": params.stop,
        "granularity": params.granularity,
        "rule": params.rule,
        "keep": params.keep,
        "redraft": params.redraft,
        "expected": params.expected,
        "sampling": params.temperature > 0,
        "num_warps": min(max(lanes // 32, 1), 32),  # one element a thread while there are threads
    }


def double_bits(value: float) -> int:
    """A float64 as an integer: Triton passes a Python float as float32."""
    return struct.unpack("q", struct.pack("d", value))[0]


@triton.jit(do_not_specialize=["need", "temperature_bits"])
def accept_kernel(
    logits,
    stride_b,
    stride_l,
    stride_t,
    stride_d,
    stride_v,
    codes,
    frontier,
    drafted,
    finished,
    passes,
    latents,
    agreed,
    kept,
    codebook,
    slack,
    uniforms,
    draft_probs,
    w1,
    b1,
    w2,
    b2,
    gain,
    offset,
    actions,
    need,
    log_tau,
    temperature_bits,
    L: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    H: tl.constexpr,
    A: tl.constexpr,
    stop: tl.constexpr,
    granularity: tl.constexpr,
    rule: tl.constexpr,
    keep: tl.constexpr,
    redraft: tl.constexpr,
    expected: tl.constexpr,
    sampling: tl.constexpr,
):
    """One sample's pass. Needs `stop` <= L <= 16, and everything but the logits contiguous."""
    T_PAD: tl.constexpr = triton.next_power_of_2(T)
    D_PAD: tl.constexpr = triton.next_power_of_2(D)
    L_PAD: tl.constexpr = triton.next_power_of_2(L)
    b = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, T_PAD * D_PAD)
    t, d = lane // D_PAD, lane % D_PAD
    inside = (t < T) & (d < D)
    element = t * D + d

    # All of these before the branch: their latencies overlap.
    is_finished = tl.load(finished + b)
    done_passes = tl.load(passes + b)
    proposed = tl.minimum(tl.load(drafted + b), stop - 1)  # layers that hold a proposal
    entry = tl.load(frontier + b * (T * D) + element, mask=inside, other=stop)
    tl.debug_barrier()  # or the compiler moves them below
    if is_finished != 0:
        return
    first = done_passes == 0
    read_from = tl.where(first, 0, entry)  # the first pass counts over all layers

    # Compare.
    rows = logits + b * stride_b + t.to(tl.int64) * stride_t + d.to(tl.int64) * stride_d
    codes += b * (L * T * D) + element
    agrees = tl.zeros_like(lane)  # bit l: layer l
    choices = ()  # per layer, main's most likely level; when sampling, 32 times its sample on top
    for l in tl.static_range(stop):
        row = rows + l * stride_l
        read = inside & (read_from <= l)
        code = tl.load(codes + l * T * D, mask=inside, other=0)
        known = (code >= 0) & (code < V)
        level, top = most_likely(row, stride_v, read, V)
        if sampling:
            at = (b * L + l) * (T * D) + element
            own, agree = sampled(
                row, stride_v, read, top, code, known, uniforms + at * 2, draft_probs, at * V,
                first & (l < proposed), temperature_bits, V,
            )  # fmt: skip
            level += 32 * own
        elif rule == "distance":
            near = tl.load(slack + l * D + d, mask=inside, other=-1)
            agree = known & (tl.abs(code - level) <= near)
        else:
            at_code = load_logit(row + code * stride_v, read & known)
            agree = known & (tl.where(at_code == top, 0.0, at_code - top) >= log_tau)
        agrees |= tl.where(inside & agree & (l < proposed), 1 << l, 0)
        choices = choices + (level,)  # type: ignore[assignment]  # noqa: RUF005 -- no starred tuples in Triton

    # Which layers let a walk pass, as bits.
    if granularity == "layer":
        layer = tl.arange(0, L_PAD)
        enough = (count_bits(agrees, L_PAD) >= need) & (layer < proposed)
        passing = tl.sum(enough.to(tl.int32) << layer, 0)
    elif granularity == "element":
        passing = agrees
    else:
        passing = 0

    # Walk, select and dequantise.
    below = inside | True  # every layer so far was final at entry or is accepted now
    walked = tl.zeros_like(lane)
    held = tl.zeros_like(lane)  # bit l: an accepted layer l that holds the draft's code
    stood = inside | True  # no code below stop - 1 changed
    total = tl.zeros(lane.shape, tl.float32)
    before_last = total
    for l in tl.static_range(stop):
        code = tl.load(codes + l * T * D, mask=inside, other=0)
        here = below
        below = here & ((((passing >> l) & 1) != 0) | (entry > l))
        accepted = below & (entry <= l)
        stands = ((agrees >> l) & 1) != 0
        if keep == "draft":
            stands |= (code >= 0) & (code < V)
        level = choices[l]
        if sampling:
            level = tl.where(here, level >> 5, level & 31)
        new = tl.where((entry > l) | (accepted & stands), code, level)
        same = new == code
        tl.store(codes + l * T * D, new, mask=inside & ~same)
        walked += below.to(tl.int32)
        held |= tl.where(inside & accepted & same, 1 << l, 0)
        if l < stop - 1:
            stood &= same
        else:
            before_last = total
        total += tl.load(codebook + (l * D + d) * V + new, mask=inside, other=0.0)

    unfinished = entry < stop
    reach = walked + 1
    if granularity == "all":
        reach = tl.full(lane.shape, stop, tl.int32)
    reach = tl.where(unfinished, reach, entry)
    if expected:
        row = rows + (stop - 1) * stride_l
        levels = codebook + ((stop - 1) * D + d) * V
        last = softmax_mean(row, stride_v, inside & unfinished, levels, V)
        total = tl.where((reach >= stop) & (stood | (granularity == "all")), before_last + last, total)
    latents += b * (T * D) + element
    total = tl.where(unfinished, total, tl.load(latents, mask=inside & ~unfinished, other=0.0))
    reached = tl.sum((inside & (reach >= stop)).to(tl.int32), 0)
    ends = reached >= (need if granularity == "element" else T * D)

    # Write. Every lane has read what is written below: the sum above waited for all of them.
    tl.store(frontier + b * (T * D) + element, reach, mask=inside & unfinished)
    tl.store(latents, total, mask=inside & unfinished)
    tl.store(drafted + b, stop - 1 if redraft else 0)
    tl.store(finished + b, ends.to(tl.int32))
    tl.store(passes + b, done_passes + 1)
    if first:
        layer = tl.arange(0, L_PAD)
        agree_counts = tl.where(layer < proposed, count_bits(agrees, L_PAD), -1)
        held_counts = tl.where(layer < proposed, count_bits(held, L_PAD), -1)
        tl.store(agreed + b * L + layer, agree_counts, mask=layer < L)
        tl.store(kept + b * L + layer, held_counts, mask=layer < L)
    if actions is not None:  # noqa: SIM102 -- decided when compiling
        if ends:
            actions += b * (T * A)
            if H > 0:
                z = tl.reshape(tl.where(inside, total, 0.0), (T_PAD, D_PAD))
                decode_hidden(z, w1, b1, w2, b2, gain, offset, actions, T, D, H, A)
            else:
                if gain is not None:
                    total = total * tl.load(gain + d, mask=inside) + tl.load(offset + d, mask=inside)
                tl.store(actions + element, total, mask=inside)


@triton.jit
def load_logit(pointers, mask):
    """In fp32 at once; NaN and lanes outside the mask are -inf."""
    x = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask & (x == x), x, -float("inf"))


@triton.jit
def most_likely(row, stride_v, mask, V: tl.constexpr):
    """The lowest level with the largest logit, and that logit. No comparison with NaN is true."""
    CHUNK: tl.constexpr = V if V <= 16 else 4 if V % 4 == 0 else 1  # more would compile for minutes
    top = tl.full(mask.shape, -float("inf"), tl.float32)
    level = tl.zeros(mask.shape, tl.int32)
    for start in range(0, V, CHUNK):
        for i in tl.static_range(CHUNK):
            v = start + i
            x = tl.load(row + v * stride_v, mask=mask, other=0.0).to(tl.float32)
            larger = x > top
            top = tl.where(larger, x, top)
            level = tl.where(larger, v, level)
    return level, top


@triton.jit
def count_bits(bits, LAYERS: tl.constexpr):
    """Over all lanes, how often each bit is set, [LAYERS]."""
    layer = tl.arange(0, LAYERS)
    return tl.sum((bits[:, None] >> layer[None, :]) & 1, 0)


@triton.jit
def softmax_mean(row, stride_v, mask, levels, V: tl.constexpr):
    """The mean of the levels under the softmax of the row."""
    top = most_likely(row, stride_v, mask, V)[1]
    weights = tl.zeros(mask.shape, tl.float32)
    mean = tl.zeros(mask.shape, tl.float32)
    for v in range(V):
        x = load_logit(row + v * stride_v, mask)
        w = tl.where(x == top, 1.0, tl.exp(x - top))
        weights += w
        mean += w * tl.load(levels + v, mask=mask, other=0.0)
    return tl.div_rn(mean, weights)


@triton.jit
def sampled(
    row, stride_v, mask, top, code, known, uniforms, draft_probs, probs_at, ratio, temperature_bits,
    V: tl.constexpr,
):  # fmt: skip
    """Main's sampled choice, and whether the draft's code is accepted; `ratio`: by p / q where q is known."""
    u_sample = tl.load(uniforms + 1, mask=mask, other=0.0)
    total = tl.zeros(mask.shape, tl.float32)
    for v in range(V):
        total += weight(row + v * stride_v, mask, top, temperature_bits)
    running = tl.zeros(mask.shape, tl.float32)
    own = tl.zeros(mask.shape, tl.int32)
    for v in range(V):
        running += weight(row + v * stride_v, mask, top, temperature_bits)
        own += (running <= u_sample * total).to(tl.int32)
    own = tl.minimum(own, V - 1)
    agree = own == code
    if draft_probs is not None:
        q = draft_probs + probs_at
        at_code = mask & known
        p = tl.div_rn(weight(row + code * stride_v, at_code, top, temperature_bits), total)
        u_accept = tl.load(uniforms, mask=mask, other=0.0)
        accept = known & (u_accept * tl.load(q + code, mask=at_code, other=0.0) < p)
        leftover = tl.zeros(mask.shape, tl.float32)
        for v in range(V):
            p = tl.div_rn(weight(row + v * stride_v, mask, top, temperature_bits), total)
            leftover += tl.maximum(p - tl.load(q + v, mask=mask, other=0.0), 0.0)
        running = tl.zeros(mask.shape, tl.float32)
        other = tl.zeros(mask.shape, tl.int32)
        for v in range(V):
            p = tl.div_rn(weight(row + v * stride_v, mask, top, temperature_bits), total)
            running += tl.maximum(p - tl.load(q + v, mask=mask, other=0.0), 0.0)
            other += (running <= u_sample * leftover).to(tl.int32)
        other = tl.where(leftover == 0.0, own, tl.minimum(other, V - 1))
        own = tl.where(ratio, tl.where(accept, code, other), own)
        agree = tl.where(ratio, accept, agree)
    return own, agree


@triton.jit
def weight(pointers, mask, top, temperature_bits):
    """exp((x - max x) / temperature), in float64 and rounded once, as in every backend."""
    x = load_logit(pointers, mask)
    log = tl.where(x == top, 0.0, x - top).to(tl.float64)
    return tl.exp(log / temperature_bits.to(tl.float64, bitcast=True)).to(tl.float32)


@triton.jit
def decode_hidden(
    z, w1, b1, w2, b2, gain, offset, actions,
    T: tl.constexpr, D: tl.constexpr, H: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Writes gain * (w2 @ mish(w1 @ z + b1) + b2) + offset."""
    T_PAD: tl.constexpr = z.shape[0]
    D_PAD: tl.constexpr = z.shape[1]
    A_PAD: tl.constexpr = triton.next_power_of_2(A)
    H_PAD: tl.constexpr = triton.next_power_of_2(H)
    d, h, a, t = tl.arange(0, D_PAD), tl.arange(0, H_PAD), tl.arange(0, A_PAD), tl.arange(0, T_PAD)
    inner = tl.load(w1 + h[None, :] * D + d[:, None], mask=(h < H)[None, :] & (d < D)[:, None], other=0.0)
    outer = tl.load(w2 + a[None, :] * H + h[:, None], mask=(a < A)[None, :] & (h < H)[:, None], other=0.0)
    hidden = product(z, inner) + tl.load(b1 + h, mask=h < H, other=0.0)[None]
    total = product(mish(hidden), outer) + tl.load(b2 + a, mask=a < A, other=0.0)[None]
    total = total * tl.load(gain + a, mask=a < A)[None] + tl.load(offset + a, mask=a < A)[None]
    tl.store(actions + t[:, None] * A + a[None, :], total, mask=(t < T)[:, None] & (a < A)[None, :])


@triton.jit
def product(x, y):
    """The matrix product in plain fp32, no tensor cores; tl.dot wants at least 16 terms."""
    if x.shape[1] >= 16:
        return tl.dot(x, y, input_precision="ieee")
    else:
        return tl.sum(x[:, :, None] * y[None], 1)


@triton.jit
def mish(x):
    """Mish, x * tanh(log(1 + e^x)), as tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2): no cancelling."""
    e = tl.exp(tl.minimum(x, 20.0))  # from there on the factor is 1
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))
