"""Parts of the accept kernel: rows of logits, counts over a sample, sampling, the action decoder.

Tensors are one-dimensional, an element each or a lane each, sample after sample, unless a docstring says otherwise.
"""

# mypy: disallow-incomplete-defs=False
# (what a Triton program computes with has no Python type)

import triton
import triton.language as tl


@triton.constexpr_function
def fields_of(bits):
    """Fields of so many bits in a word of 32; no more than one multiplication can spread."""
    return max(min(32 // bits, bits - 1), 1)


@triton.constexpr_function
def spread_of(bits):
    """The factor that moves bit i to i * bits."""
    return sum(1 << (i * (bits - 1)) for i in range(fields_of(bits)))


@triton.constexpr_function
def ones_of(bits):
    """1 in every field."""
    return sum(1 << (i * bits) for i in range(fields_of(bits)))


@triton.constexpr_function
def smaller(a, b):
    """The minimum, when compiling."""
    return min(a, b)


@triton.jit
def load_logit(pointers, mask):
    """In fp32 at once; NaN and lanes outside the mask are -inf."""
    x = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask & (x == x), x, -float("inf"))


@triton.jit
def load_words(words, stride, mask, V: tl.constexpr, HOLD: tl.constexpr):
    """V words, a tuple: the logits of as many neighbouring elements as a word holds."""
    POLICY: tl.constexpr = "evict_last" if HOLD else ""  # of the L1 cache: lines are read V times in a row
    loaded = ()
    for k in tl.static_range(V):
        word = tl.load(words + k * stride, mask=mask, eviction_policy=POLICY)
        loaded = loaded + (word,)  # noqa: RUF005 -- no starred tuples
    return loaded


@triton.jit
def logit_of(words, at: tl.constexpr, dtype: tl.constexpr):
    """Logit `at` of a lane's words, in fp32."""
    BITS: tl.constexpr = dtype.primitive_bitwidth
    PACK: tl.constexpr = words[0].dtype.primitive_bitwidth // BITS
    if words[0].dtype == dtype:
        return words[at].to(tl.float32)
    else:
        word = words[at // PACK] >> (at % PACK * BITS)
        if dtype == tl.bfloat16:  # the upper half of an fp32
            return (word.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        elif dtype == tl.float16:
            return word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        else:
            return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def most_likely_of(words, dtype: tl.constexpr, V: tl.constexpr, PACK: tl.constexpr):
    """`most_likely` of every element in the lanes' words."""
    levels, tops = (), ()
    for i in tl.static_range(PACK):
        top = tl.full(words[0].shape, -float("inf"), tl.float32)
        level = tl.zeros(words[0].shape, tl.int32)
        for v in tl.static_range(V):
            x = logit_of(words, i * V + v, dtype)
            larger = x > top
            top = tl.where(larger, x, top)
            level = tl.where(larger, v, level)
        levels, tops = levels + (level,), tops + (top,)  # noqa: RUF005
    return interleaved(levels), interleaved(tops)


@triton.jit
def interleaved(parts):
    """1, 2 or 4 tensors of one shape, element by element in turn."""
    if len(parts) == 1:
        return parts[0]
    elif len(parts) == 2:
        return tl.interleave(parts[0], parts[1])
    else:
        return tl.interleave(tl.interleave(parts[0], parts[2]), tl.interleave(parts[1], parts[3]))


@triton.jit
def load_one(pointer, STEP: tl.constexpr, i_b, lane_b, B, BLOCK_B: tl.constexpr, other: tl.constexpr):
    """What a sample has one of, `STEP` apart: a scalar in a program of one sample, otherwise for every lane."""
    if BLOCK_B == 1:
        return tl.load(pointer + i_b * STEP)
    else:
        return tl.load(pointer + lane_b * STEP, mask=lane_b < B, other=other)


@triton.jit
def store_one(pointer, value, i_b, lane_b, lane, alive, BLOCK_B: tl.constexpr):
    """The way back, for samples that are alive."""
    if BLOCK_B == 1:
        tl.store(pointer + i_b, value, mask=alive != 0)
    else:
        tl.store(pointer + lane_b, value, mask=(alive != 0) & (lane == 0))


@triton.jit
def of_elements(x, PACK: tl.constexpr):
    """What every lane has one of, once for each of its elements; a scalar stays one."""
    if PACK == 1 or len(x.shape) == 0:
        return x
    elif PACK == 2:
        return tl.interleave(x, x)
    else:
        return tl.interleave(tl.interleave(x, x), tl.interleave(x, x))


@triton.jit
def of_lanes(x, PACK: tl.constexpr):
    """The largest of each lane's elements; a scalar stays one."""
    if PACK == 1 or len(x.shape) == 0:
        return x
    else:
        return tl.max(tl.reshape(x, (x.shape[0] // PACK, PACK)), 1)


@triton.jit
def any_of(x):
    """Not 0 where some x is not, a scalar."""
    if len(x.shape) == 0:
        return x.to(tl.int32)
    else:
        return tl.max(x.to(tl.int32), 0)


@triton.jit
def sample_sum(x, BLOCK_B: tl.constexpr):
    """Over the elements of each sample: for each of them, or of a single sample a scalar."""
    if BLOCK_B == 1:
        return tl.sum(x, 0)
    else:
        by_sample = tl.reshape(x, (BLOCK_B, x.shape[0] // BLOCK_B))
        sums = tl.sum(by_sample, 1, keep_dims=True)
        return tl.reshape(tl.broadcast_to(sums, by_sample.shape), x.shape)


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
def below_bit(n):
    """The bits below bit n."""
    return (1 << n) - 1


@triton.jit
def bit_of(power):
    """Which bit a power of two below 2^24 is: the exponent of the same float."""
    return (power.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def softmax_means_of(
    words, levels, lane, dtype: tl.constexpr, D: tl.constexpr, V: tl.constexpr, PACK: tl.constexpr
):
    """`softmax_mean` of every element in the lanes' words; levels [D, V] of the layer."""
    means = ()
    for i in tl.static_range(PACK):
        at = levels + (lane * PACK + i) % D * V
        top = tl.full(lane.shape, -float("inf"), tl.float32)
        for v in tl.static_range(V):
            x = logit_of(words, i * V + v, dtype)
            top = tl.where(x > top, x, top)
        weights = tl.zeros(lane.shape, tl.float32)
        mean = tl.zeros(lane.shape, tl.float32)
        for v in tl.static_range(V):
            x = logit_of(words, i * V + v, dtype)
            x = tl.where(x == x, x, -float("inf"))
            w = tl.where(x == top, 1.0, tl.exp(x - top))
            weights += w
            mean += w * tl.load(at + v)
        means = means + (tl.div_rn(mean, weights),)  # noqa: RUF005
    return interleaved(means)


@triton.jit
def field_sums(bits, BLOCK_B: tl.constexpr, LAYERS: tl.constexpr, FIELD: tl.constexpr):
    """How often each of the lower bits is set over a sample; words of `PER` fields, a tuple.

    Bits are spread out by one multiplication to fields that no sum over a sample overflows.
    """
    PER: tl.constexpr = fields_of(FIELD)
    sums = ()
    for start in tl.static_range(0, LAYERS, PER):
        spread = (((bits >> start) & ((1 << PER) - 1)) * spread_of(FIELD)) & ones_of(FIELD)
        sums = sums + (sample_sum(spread, BLOCK_B),)  # noqa: RUF005
    return sums


@triton.jit
def field(sums, i: tl.constexpr, FIELD: tl.constexpr):
    """Field i of all the words."""
    PER: tl.constexpr = fields_of(FIELD)
    return (sums[i // PER] >> (i % PER * FIELD)) & ((1 << FIELD) - 1)


@triton.jit
def field_at(sums, i, PACK: tl.constexpr, FIELD: tl.constexpr):
    """Field i of its sample's words, a different one in every lane."""
    PER: tl.constexpr = fields_of(FIELD)
    word = tl.zeros(i.shape, tl.int32)
    for k in tl.static_range(len(sums)):
        word = tl.where(i >= k * PER, of_lanes(sums[k], PACK), word)
    return (word >> (i % PER * FIELD)) & ((1 << FIELD) - 1)


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
def load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROWS_PAD: tl.constexpr, COLUMNS_PAD: tl.constexpr):
    """A contiguous matrix, padded with zeros, [ROWS_PAD, COLUMNS_PAD]."""
    i = tl.arange(0, ROWS_PAD)[:, None]
    j = tl.arange(0, COLUMNS_PAD)[None, :]
    return tl.load(pointer + i * COLUMNS + j, mask=(i < ROWS) & (j < COLUMNS), other=0.0)


@triton.jit
def load_columns(pointer, at, mask, ROWS: tl.constexpr, PAD: tl.constexpr):
    """Rows `at` [1, n] of a contiguous matrix as columns, padded with zeros, [PAD, n]."""
    i = tl.arange(0, PAD)[:, None]
    return tl.load(pointer + at * ROWS + i, mask=mask & (i < ROWS), other=0.0)


@triton.jit
def load_vector(pointer, SIZE: tl.constexpr, PAD: tl.constexpr):
    """Padded with zeros, [PAD, 1]."""
    i = tl.arange(0, PAD)
    return tl.load(pointer + i, mask=i < SIZE, other=0.0)[:, None]


@triton.jit
def product(x, y):
    """The matrix product to the precision of fp32; of at least 16 terms.

    With many columns on tensor cores, as the three products of two tf32 parts each: in plain fp32 every thread fetches
    its operands from shared memory, a third of all that the kernel asks of it. With few that costs more than it saves.

    Not as a sum of products for fewer: Triton 3.6 turns that into a tf32 product of tensor cores, which reads beyond
    what there is.
    """
    return tl.dot(x, y, input_precision="tf32x3" if y.shape[1] >= 32 else "ieee")


@triton.jit
def mish(x):
    """Mish, x * tanh(log(1 + e^x)), as tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2): no cancelling."""
    e = tl.exp(tl.minimum(x, 20.0))  # from there on the factor is 1
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))
