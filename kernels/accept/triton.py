"""The accept op as one Triton kernel that reads the logits once; `reference.py` says what it computes.

A program does `BLOCK_B` samples; tensors are [samples, elements], elements (t, d) in memory order. Layers are
unrolled: a first loop over them reads the logits and keeps, per element, main's choice (one register a layer)
and whether the draft agrees (a field of a few bits a layer, wide enough to be summed over a sample as it is);
the walk is arithmetic on those fields; a second loop selects the codes and adds up the latents in the order
of the layers. Samples that finish decode their actions in the same program.

Where the logits of a layer are contiguous a lane reads words of `PACK` neighbouring elements, and rows are
taken apart in registers; any other strides are read level by level (`PACK` 1).

Nothing that the reference would leave as it is gets written. Logits of final layers are not read after the
first pass, unless the launch is `EAGER`. Integer outputs and latents are the reference's bits: there is no
a * b + c on their way that could be fused.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from .state import AcceptParams, ActionDecoder, RoundState
from .triton_launch import Launch, constants, double_bits, largest_pack, launch_choice
from .triton_parts import (
    below_bit,
    bit_of,
    field,
    field_at,
    field_sums,
    load_logit,
    load_matrix,
    load_rows,
    load_vector,
    load_words,
    mish,
    most_likely,
    most_likely_of,
    of_elements,
    product,
    sampled,
    softmax_mean,
)


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
    launch: Launch | None = None,
) -> None:
    """`rsd_fast.kernels.accept.accept_` for inputs that were checked; one launch, no synchronisation.

    `launch` is for benches and tests; None takes `launch_choice`.
    """
    batch, dims = logits.shape[0], logits.shape[3]
    hidden = 0 if decoder is None or decoder.b1 is None else decoder.b1.shape[0]
    sampling = params.temperature > 0
    if launch is None:
        launch = launch_choice(batch, logits.shape[1:], 1 if sampling else largest_pack(logits))
    accept_kernel[(triton.cdiv(batch, launch.samples),)](
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
        batch,
        params.need,
        params.log_tau,
        double_bits(params.temperature),
        **constants(params, logits.shape, hidden, dims if actions is None else actions.shape[2], launch),
    )


@triton.jit(do_not_specialize=["B", "need", "temperature_bits"])
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
    B,
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
    E_PAD: tl.constexpr,
    FIELD: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PACK: tl.constexpr,
    EAGER: tl.constexpr,
):
    """One pass of `BLOCK_B` samples. Needs `stop` <= L <= 16, and everything but the logits contiguous."""
    E: tl.constexpr = T * D
    UNROLLED: tl.constexpr = V <= 16 and not sampling
    dtype: tl.constexpr = logits.dtype.element_ty
    i_b = tl.program_id(0).to(tl.int64) * BLOCK_B
    LANES: tl.constexpr = E_PAD // PACK
    i_b = tl.program_id(0).to(tl.int64) * BLOCK_B
    o_b = tl.max_contiguous(i_b + tl.arange(0, BLOCK_B), 1)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    e = tl.arange(0, E_PAD)[None, :]
    d = tl.broadcast_to(e % D, (BLOCK_B, E_PAD))
    a_sample = tl.broadcast_to(o_b, (BLOCK_B, LANES))  # what a sample has one of, every lane loads
    exists = a_sample < B

    live = exists & (tl.load(finished + a_sample, mask=exists, other=1) == 0)
    done_passes = tl.load(passes + a_sample, mask=exists, other=0)
    proposed = tl.minimum(tl.load(drafted + a_sample, mask=exists, other=0), stop - 1)
    first = done_passes == 0
    # [samples, lanes] -> [samples, elements]
    is_first, proposes = of_elements(first, PACK), of_elements(proposed, PACK)
    if EAGER:
        wanted = (o_b < B) & (e < E)
        inside = of_elements(live, PACK) & (e < E)
    else:
        any_live = tl.max(live.to(tl.int32), 1, keep_dims=True)
        if tl.max(any_live) == 0:
            return
        inside = (any_live != 0) & (e < E)
        wanted = inside
    frontier += o_b * E + e
    entry = tl.load(frontier, mask=wanted, other=0)
    read_from = tl.where(is_first, 0, entry)  # the first pass counts over all layers
    codes += o_b * (L * E) + e
    rows = logits + o_b * stride_b + (e // D).to(tl.int64) * stride_t + d.to(tl.int64) * stride_d
    if PACK > 1:
        WORD: tl.constexpr = tl.int32 if PACK * dtype.primitive_bitwidth == 32 else tl.int64
        words = logits.to(tl.pointer_type(WORD)) + o_b * (stride_b // PACK) + lane * V
        words_wanted = (exists if EAGER else live) & (lane < E // PACK)
        words_from = tl.min(tl.reshape(read_from, (BLOCK_B, LANES, PACK)), 2)
    else:
        words, words_wanted, words_from = rows, wanted, read_from
    drafts = ()  # the codes at entry, per layer
    loaded = ()
    if EAGER and UNROLLED:
        for l in tl.static_range(stop):
            loaded = loaded + (load_words(words + l * (stride_l // PACK), stride_v, words_wanted, V),)
    for l in tl.static_range(stop):
        drafts = drafts + (tl.load(codes + l * E, mask=wanted),)
    if EAGER and H > 0 and actions is not None:
        inner, outer = load_matrix(w1, H, D), load_matrix(w2, A, H)

    # Compare. Sets of layers are integers, bit l for layer l.
    agrees = tl.zeros((BLOCK_B, E_PAD), tl.int32)
    valid = tl.zeros((BLOCK_B, E_PAD), tl.int32)
    choices = ()  # per layer, main's most likely level; when sampling, 32 times its sample on top
    for l in tl.static_range(stop):
        row = rows + l * stride_l
        code = drafts[l]
        known = (code >= 0) & (code < V)
        read = wanted if EAGER else wanted & (read_from <= l)
        if not UNROLLED:
            level, top = most_likely(row, stride_v, read, V)
        elif EAGER:
            level, top = most_likely_of(loaded[l], dtype, V, PACK)
        else:
            here = load_words(words + l * (stride_l // PACK), stride_v, words_wanted & (words_from <= l), V)
            level, top = most_likely_of(here, dtype, V, PACK)
        if sampling:
            at = (o_b * L + l) * E + e
            own, agree = sampled(
                row, stride_v, read, top, code, known, uniforms + at * 2, draft_probs, at * V,
                is_first & (l < proposes), temperature_bits, V,
            )  # fmt: skip
            level += 32 * own
        elif rule == "distance":
            agree = known & (tl.abs(code - level) <= tl.load(slack + l * D + d))
        else:
            at_code = load_logit(row + code * stride_v, read & known)
            agree = known & (tl.where(at_code == top, 0.0, at_code - top) >= log_tau)
        choices = choices + (level,)
        agrees |= tl.where(agree, 1 << l, 0)
        valid |= tl.where(known, 1 << l, 0)
    agrees &= tl.where(inside, below_bit(proposes), 0)

    # Walk.
    agree_sums = field_sums(agrees, stop - 1, FIELD)
    final = below_bit(tl.where(inside, entry, 0))
    if granularity == "layer":
        passing = tl.zeros((BLOCK_B, E_PAD), tl.int32)
        for l in tl.static_range(stop - 1):
            enough = (field(agree_sums, l, FIELD) >= need) & (l < proposes)
            passing |= tl.where(enough, 1 << l, 0)
        passing = passing | final
    elif granularity == "element":
        passing = agrees | final
    else:
        passing = final
    walked = (passing ^ (passing + 1)) >> 1  # the lowest bits up to the first that is not set
    stands = agrees | valid if keep == "draft" else agrees
    keeps = final | (walked & stands)

    # Select and dequantise.
    equal = tl.zeros((BLOCK_B, E_PAD), tl.int32)
    total = tl.zeros((BLOCK_B, E_PAD), tl.float32)
    before_last = total
    for l in tl.static_range(stop):
        code, level = drafts[l], choices[l]
        if sampling:
            level = tl.where((((walked << 1) | 1) & (1 << l)) != 0, level >> 5, level & 31)
        new = tl.where((keeps & (1 << l)) != 0, code, level)
        same = new == code
        tl.store(codes + l * E, new, mask=inside & ~same)
        equal |= tl.where(same, 1 << l, 0)
        if l == stop - 1:
            before_last = total
        total += tl.load(codebook + (l * D + d) * V + new)

    unfinished = inside & (entry < stop)
    if granularity == "all":
        reach = tl.full((BLOCK_B, E_PAD), stop, tl.int32)
    else:
        reach = bit_of(walked + 1) + 1
    reach = tl.where(unfinished, reach, entry)
    if expected:
        levels = codebook + ((stop - 1) * D + d) * V
        last = softmax_mean(rows + (stop - 1) * stride_l, stride_v, unfinished, levels, V)
        stood = (equal | (1 << (stop - 1))) == (1 << stop) - 1
        total = tl.where((reach >= stop) & (stood | (granularity == "all")), before_last + last, total)
    latents_at = latents + o_b * E + e
    total = tl.where(unfinished, total, tl.load(latents_at, mask=inside & ~unfinished, other=0.0))
    reached = tl.sum((inside & (reach >= stop)).to(tl.int32), 1, keep_dims=True)
    ends = reached >= (need if granularity == "element" else E)

    # Write. Every lane has read what is written below: the sum above waited for all of a sample's.
    tl.store(frontier, reach, mask=unfinished)
    tl.store(latents_at, total, mask=unfinished)
    one = live & (lane == 0)
    tl.store(drafted + a_sample, stop - 1 if redraft else 0, mask=one)
    tl.store(finished + a_sample, tl.broadcast_to(ends.to(tl.int32), (BLOCK_B, LANES)), mask=one)
    tl.store(passes + a_sample, done_passes + 1, mask=one)
    held_sums = field_sums(tl.where(inside, walked & ~final & equal, 0), stop - 1, FIELD)
    counted = live & first & (lane < L)  # here a lane is a layer
    tl.store(agreed + o_b * L + lane, tl.where(lane < proposed, field_at(agree_sums, lane, FIELD), -1), mask=counted)
    tl.store(kept + o_b * L + lane, tl.where(lane < proposed, field_at(held_sums, lane, FIELD), -1), mask=counted)
    if actions is not None:  # noqa: SIM102 -- decided when compiling
        ends = live & ends
        if tl.max(tl.max(ends.to(tl.int32), 1), 0) != 0:
            if H > 0:
                if not EAGER:
                    inner, outer = load_matrix(w1, H, D), load_matrix(w2, A, H)
                # Rows (sample, t) of a matrix: a sample's elements are STEPS such rows, or are fetched as rows.
                RESHAPED: tl.constexpr = triton.next_power_of_2(D) == D
                STEPS: tl.constexpr = E_PAD // D if RESHAPED else triton.next_power_of_2(T)
                r = tl.arange(0, BLOCK_B * STEPS)[:, None]
                row_at = (i_b + r // STEPS) * T + r % STEPS
                if RESHAPED:
                    z = tl.reshape(total, (BLOCK_B * STEPS, D))
                else:
                    tl.debug_barrier()
                    z = load_rows(latents, row_at, (r % STEPS < T) & (i_b + r // STEPS < B), D)
                hidden = product(z, inner) + load_vector(b1, H)
                out = product(mish(hidden), outer) + load_vector(b2, A)
                out = out * load_vector(gain, A) + load_vector(offset, A)
                a = tl.arange(0, triton.next_power_of_2(A))[None, :]
                of_row = tl.broadcast_to(tl.max(ends.to(tl.int32), 1)[:, None], (BLOCK_B, STEPS))
                writes = (tl.reshape(of_row, (BLOCK_B * STEPS, 1)) != 0) & (r % STEPS < T) & (a < A)
                tl.store(actions + row_at * A + a, out, mask=writes)
            else:
                if gain is not None:
                    total = total * tl.load(gain + d) + tl.load(offset + d)
                tl.store(actions + o_b * E + e, total, mask=inside & of_elements(ends, PACK))
