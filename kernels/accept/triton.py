"""The accept op as one Triton kernel that reads the logits once; `reference.py` says what it computes.

A program does `BLOCK_B` samples; tensors are one-dimensional, an element (sample, t, d) each in memory order, or a
lane each, which is `PACK` elements. A first loop over the layers reads the logits and keeps, per element, main's
choice and what stood there (fields of a word, a few bits a layer) and whether they agree (a bit a layer). The walk is
arithmetic on those bits; how often each is set over a sample is one sum of words whose fields are wide enough. A
second loop selects the codes and adds up the latents in the order of the layers. Samples that finish decode their
actions in the same program.

Where the logits of a layer are contiguous a lane reads words of `PACK` neighbouring elements and takes them apart in
registers; any other strides are read level by level (`PACK` 1).

A lane whose codes do not change writes none. Logits of final layers are not read after the first pass, unless the
launch is `EAGER`. Integer outputs and latents are the reference's bits: there is no a * b + c on their way that could
be fused. As everywhere slack is at least 0, and at granularities `layer` and `all` the frontier is uniform over a
sample.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from .state import AcceptParams, ActionDecoder, RoundState
from .triton_launch import Launch, constants, double_bits, largest_pack, launch_choice
from .triton_parts import (
    any_of,
    below_bit,
    bit_of,
    field,
    field_at,
    field_sums,
    load_columns,
    load_logit,
    load_matrix,
    load_one,
    load_vector,
    load_words,
    mish,
    most_likely,
    most_likely_of,
    of_elements,
    of_lanes,
    product,
    sample_sum,
    sampled,
    smaller,
    softmax_mean,
    softmax_means_of,
    store_one,
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

    Raises:
        ValueError: a launch that packs more than the logits' layout allows, or has more warps than lanes.
    """
    batch, dims = logits.shape[0], logits.shape[3]
    hidden = 0 if decoder is None or decoder.b1 is None else decoder.b1.shape[0]
    sampling = params.temperature > 0
    largest = 1 if sampling else largest_pack(logits)
    if launch is None:
        launch = launch_choice(batch, logits.shape[1:], largest)
    elif launch.pack > largest:
        raise ValueError(f"got pack {launch.pack}, expected at most {largest} for logits of strides {logits.stride()}")
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
    BITS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PACK: tl.constexpr,
    EAGER: tl.constexpr,
    UNROLL: tl.constexpr,
    HOLD: tl.constexpr,
    LATE: tl.constexpr,
):
    """One pass of `BLOCK_B` samples. Needs `stop` <= L <= 16, and everything but the logits contiguous."""
    E: tl.constexpr = T * D
    D_PAD: tl.constexpr = triton.next_power_of_2(D) if D > 16 else 16  # products of at least 16 terms
    H_PAD: tl.constexpr = triton.next_power_of_2(H) if H > 16 else 16
    A_PAD: tl.constexpr = triton.next_power_of_2(A)
    LEVELS: tl.constexpr = (1 << BITS) - 1  # a field that holds a level, or V
    CHOICE: tl.constexpr = 2 * BITS if sampling else BITS
    PER: tl.constexpr = 32 // CHOICE  # layers in a word
    LANES: tl.constexpr = E_PAD // PACK
    TO_MIDDLE: tl.constexpr = redraft == "middle" and granularity != "all"
    IN_WORDS: tl.constexpr = V <= 16 and not sampling  # a lane holds the logits of a layer
    dtype: tl.constexpr = logits.dtype.element_ty
    i_b = tl.program_id(0).to(tl.int64) * BLOCK_B
    x = tl.arange(0, BLOCK_B * E_PAD)  # an element each
    b, e = i_b + x // E_PAD, x % E_PAD
    d = e % D
    y = tl.arange(0, BLOCK_B * LANES)  # a lane each: PACK elements
    lane_b, lane = i_b + y // LANES, y % LANES

    # What a sample has one of is a scalar in a program of one sample, and otherwise loaded by every lane of it: no lane
    # waits for another.
    live = load_one(finished, 1, i_b, lane_b, B, BLOCK_B, 1) == 0
    done_passes = load_one(passes, 1, i_b, lane_b, B, BLOCK_B, 0)
    proposed = tl.minimum(load_one(drafted, 1, i_b, lane_b, B, BLOCK_B, 0), stop - 1)  # layers that hold a proposal
    alive = tl.where(live, 1, 0)
    if not EAGER:  # noqa: SIM102 -- decided when compiling
        if any_of(alive) == 0:
            return
    inside = tl.max_constancy((of_elements(alive, PACK) + 0 * x != 0) & (e < E), PACK)
    wanted = (b < B) & (e < E) if EAGER else inside
    reads = ((lane_b < B) if EAGER else (alive + 0 * y != 0)) & (lane < E // PACK)
    frontier_at = frontier + b * E + e
    if granularity == "element":
        entry = tl.load(frontier_at, mask=wanted, other=0)
        lowest_entry = tl.min(tl.reshape(entry, (BLOCK_B * LANES, PACK)), 1)
    else:  # uniform over a sample
        lowest_entry = load_one(frontier, E, i_b, lane_b, B, BLOCK_B, 0)
        entry = of_elements(lowest_entry, PACK)
    read_from = tl.where(done_passes == 0, 0, lowest_entry)  # the first pass counts over all layers
    codes += b * (L * E) + e
    rows = logits + b * stride_b + (e // D).to(tl.int64) * stride_t + d.to(tl.int64) * stride_d
    if PACK > 1:
        WORD: tl.constexpr = tl.int32 if PACK * dtype.primitive_bitwidth == 32 else tl.int64
        words = logits.to(tl.pointer_type(WORD)) + lane_b * (stride_b // PACK) + lane * V
    else:
        words = rows
    WEIGHTS_FIRST: tl.constexpr = EAGER and not LATE
    if WEIGHTS_FIRST and H > 0 and actions is not None:
        inner, outer = load_matrix(w1, H, D, H_PAD, D_PAD), load_matrix(w2, A, H, A_PAD, H_PAD)
        bias, last_bias = load_vector(b1, H, H_PAD), load_vector(b2, A, A_PAD)
        scale, shift = load_vector(gain, A, A_PAD), load_vector(offset, A, A_PAD)

    # Compare, from the top layer down. Sets of layers are integers, bit l for layer l; the codes of all layers
    # are fields of words, and a code that is no level is V.
    agrees = tl.zeros(x.shape, tl.int32)
    valid = tl.zeros(x.shape, tl.int32)
    proposals, choices = (), ()  # what stands at entry; main's most likely level, and above it its sample
    for w in tl.static_range((stop - 1) // PER, -1, -1):
        standing = tl.zeros(x.shape, tl.int32)
        chosen = tl.zeros(x.shape, tl.int32)
        # Sampling calls a division in float64, around which layers side by side would spill.
        for i in tl.range(smaller(PER, stop - w * PER), loop_unroll_factor=1 if sampling else UNROLL):
            l = smaller((w + 1) * PER, stop) - 1 - i
            row = rows + l * stride_l
            code = tl.load(codes + l * E, mask=wanted, other=0)
            proposal = tl.minimum(code.to(tl.uint32, bitcast=True), V).to(tl.int32, bitcast=True)
            known = proposal < V
            read = reads if EAGER else reads & (read_from + 0 * y <= l)
            if IN_WORDS:
                loaded = load_words(words + l * (stride_l // PACK), stride_v, read, V, HOLD)
                level, top = most_likely_of(loaded, dtype, V, PACK)
            else:
                level, top = most_likely(row, stride_v, read, V)
            choice = level
            if sampling:
                at = (b * L + l) * E + e
                own, agree = sampled(
                    row, stride_v, read, top, code, known, uniforms + at * 2, draft_probs, at * V,
                    l < tl.where(done_passes == 0, proposed, 0), temperature_bits, V,
                )  # fmt: skip
                choice += own << BITS
            elif rule == "distance":
                agree = known & (tl.abs(proposal - level) <= tl.load(slack + l * D + d))
            else:
                at_code = load_logit(row + code * stride_v, of_elements(read, PACK) & known)
                agree = known & (tl.where(at_code == top, 0.0, at_code - top) >= log_tau)
            standing = (standing << CHOICE) + proposal
            chosen = (chosen << CHOICE) + choice
            agrees = (agrees << 1) + agree.to(tl.int32)
            if keep == "draft":
                valid = (valid << 1) + known.to(tl.int32)
        proposals, choices = (standing,) + proposals, (chosen,) + choices  # noqa: RUF005 -- no starred tuples

    # Walk.
    proposes = of_elements(proposed, PACK)
    agrees &= tl.where(inside, below_bit(proposes), 0)
    final = below_bit(entry)
    agree_sums = field_sums(agrees, BLOCK_B, stop - 1, FIELD)
    stand_sums = agree_sums
    if granularity == "layer" and keep == "draft":
        stand_sums = field_sums(tl.where(inside, agrees | valid, 0), BLOCK_B, stop - 1, FIELD)
    if granularity == "layer":
        passing = final
        for l in tl.static_range(stop - 1):
            enough = (field(agree_sums, l, FIELD) >= need) & (l < proposes)
            passing |= tl.where(enough, 1 << l, 0)
    elif granularity == "element":
        passing = agrees | final
    else:
        passing = final
    walked = (passing ^ (passing + 1)) >> 1  # the lowest bits up to the first that is not set
    accepted = walked & ~final & (agrees | valid)  # layers that take the draft's code
    keeps = tl.where(inside, final | accepted, -1)
    replaced = walked & ~keeps
    end = bit_of(walked + 1)

    # Layers whose codes fall back to the middle: those above the lowest accepted one that takes main's code, or above
    # the walk's end, if its code changes.
    left = tl.zeros(x.shape, tl.int32)
    if TO_MIDDLE:
        at_end = tl.minimum(end, stop - 1)
        differs = tl.zeros(x.shape, tl.int32)
        for w in tl.static_range(len(choices)):
            word = (choices[w] >> BITS if sampling else choices[w]) ^ proposals[w]
            differs = word if w == 0 else tl.where(at_end >= w * PER, word, differs)
        differs = (differs >> (at_end % PER * CHOICE)) & LEVELS
        left = ~(replaced ^ (replaced - 1))
        left = tl.where(inside & (differs != 0), left | ~((walked << 1) | 1), left)
    lowest = ~left ^ (~left >> 1)  # the bit of the layer below them

    # Select and dequantise.
    total = tl.zeros(x.shape, tl.float32)
    before_last, before_mean = total, total
    for l in tl.static_range(stop):
        standing, chosen = proposals[l // PER], choices[l // PER]
        if sampling:  # where the walk ends main's sample, above it the most likely level as the next draft
            chosen = tl.where((((walked << 1) | 1) & (1 << l)) != 0, chosen >> BITS, chosen)
        chosen = tl.where((keeps & (1 << l)) != 0, standing, chosen)
        if TO_MIDDLE:
            chosen = tl.where((left & (1 << l)) != 0, V // 2 << (l % PER * CHOICE), chosen)
        new = (chosen >> (l % PER * CHOICE)) & LEVELS
        changes = (((chosen ^ standing) >> (l % PER * CHOICE)) & LEVELS) != 0
        # The lane's codes in one store, if any of them changes.
        some = of_elements(of_lanes(changes.to(tl.int32), PACK), PACK) != 0
        tl.store(codes + l * E, new, mask=tl.max_constancy(some, PACK))
        if l == stop - 1:
            before_last = total
        elif TO_MIDDLE and expected:
            before_mean = tl.where(lowest == 1 << l, total, before_mean)
        total += tl.load(codebook + (l * D + d) * V + new, mask=inside if EAGER else None)

    unfinished = inside & (entry + 0 * x < stop)
    reach = stop if granularity == "all" else end + 1
    reach = tl.where(entry < stop, reach, entry)
    if expected:
        levels = codebook + (stop - 1) * D * V
        read = reads & (lowest_entry + 0 * y < stop)
        if IN_WORDS:
            loaded = load_words(words + (stop - 1) * (stride_l // PACK), stride_v, read, V, HOLD)
            mean = softmax_means_of(loaded, levels, lane, dtype, D, V, PACK)
        else:
            mean = softmax_mean(rows + (stop - 1) * stride_l, stride_v, read, levels + d * V, V)
        stood = (replaced == 0) | (granularity == "all")
        total = tl.where((reach + 0 * x >= stop) & stood, before_last + mean, total)
        if TO_MIDDLE:
            by_mean = (lowest & below_bit(stop - 1)) != 0
            l = tl.where(by_mean, bit_of(lowest), 0)
            mean = softmax_mean(rows + l * stride_l, stride_v, inside & by_mean, codebook + (l * D + d) * V, V)
            total = tl.where(by_mean, before_mean + mean, total)
    latents_at = latents + b * E + e
    total = tl.where(unfinished, total, tl.load(latents_at, mask=inside & ~unfinished, other=0.0))
    if granularity == "element":
        reached = of_lanes(sample_sum((inside & (reach >= stop)).to(tl.int32), BLOCK_B), PACK)
        ends = alive * tl.where(reached >= need, 1, 0)
        held = field_at(field_sums(tl.where(inside, accepted, 0), BLOCK_B, stop - 1, FIELD), lane, PACK, FIELD)
    else:
        ends = alive * tl.where(of_lanes(reach, PACK) >= stop, 1, 0)
        held = field_at(stand_sums, lane, PACK, FIELD) * ((of_lanes(walked & ~final, PACK) >> lane) & 1)

    # Write, now that every lane has read what is written here.
    if LANES > 32:
        tl.debug_barrier()
    tl.store(frontier_at, reach, mask=inside)
    tl.store(latents_at, total, mask=inside)
    store_one(drafted, 0 if redraft == "none" else stop - 1, i_b, lane_b, lane, alive, BLOCK_B)
    store_one(finished, ends, i_b, lane_b, lane, alive, BLOCK_B)
    store_one(passes, done_passes + 1, i_b, lane_b, lane, alive, BLOCK_B)
    counts_at = lane_b * L + lane  # here a lane is a layer
    counted = (alive + 0 * y != 0) & (lane < tl.where(done_passes == 0, L, 0))
    agree_counts = field_at(agree_sums, lane, PACK, FIELD)
    tl.store(agreed + counts_at, tl.where(lane < proposed, agree_counts, -1), mask=counted)
    tl.store(kept + counts_at, tl.where(lane < proposed, held, -1), mask=counted)
    if actions is not None:  # noqa: SIM102 -- decided when compiling
        if any_of(ends) != 0:
            if H > 0:
                if not WEIGHTS_FIRST:
                    inner, outer = load_matrix(w1, H, D, H_PAD, D_PAD), load_matrix(w2, A, H, A_PAD, H_PAD)
                    bias, last_bias = load_vector(b1, H, H_PAD), load_vector(b2, A, A_PAD)
                    scale, shift = load_vector(gain, A, A_PAD), load_vector(offset, A, A_PAD)
                # Columns (sample, t): what the lanes hold is STEPS of them a sample, or they are read back.
                RESHAPED: tl.constexpr = D_PAD == D
                STEPS: tl.constexpr = E_PAD // D if RESHAPED else triton.next_power_of_2(T)
                r = tl.arange(0, BLOCK_B * STEPS)[None, :]
                column_at = (i_b + r // STEPS) * T + r % STEPS
                if RESHAPED:
                    z = tl.trans(tl.reshape(total, (BLOCK_B * STEPS, D)))
                else:
                    tl.debug_barrier()
                    z = load_columns(latents, column_at, (r % STEPS < T) & (i_b + r // STEPS < B), D, D_PAD)
                out = product(outer, mish(product(inner, z) + bias)) + last_bias
                a = tl.arange(0, A_PAD)[:, None]
                of_columns = ends
                if BLOCK_B > 1:
                    of_samples = tl.max(tl.reshape(ends, (BLOCK_B, LANES)), 1)[:, None]
                    of_columns = tl.reshape(tl.broadcast_to(of_samples, (BLOCK_B, STEPS)), (1, BLOCK_B * STEPS))
                writes = (of_columns + 0 * r != 0) & (r % STEPS < T) & (a < A)
                tl.store(actions + column_at * A + a, out * scale + shift, mask=writes)
            else:
                if gain is not None:
                    total = total * tl.load(gain + d) + tl.load(offset + d)
                tl.store(actions + b * E + e, total, mask=inside & (of_elements(ends, PACK) + 0 * x != 0))
