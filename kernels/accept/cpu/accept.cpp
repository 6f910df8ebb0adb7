// accept_ on the CPU, torch-free: one struct of pointers, sizes and strides comes in (kernels/accept/cpu/__init__.py
// mirrors it field by field), nothing is allocated but scratch. kernels/accept/reference.py defines the semantics and
// the edge cases; names are its names.
//
// A sample is decoded layer by layer, lowest first. A layer's logits are read once and laid out [V][E] (E = T * D
// elements), so that the loops over elements run in vector registers. Samples are independent: large batches run on
// several threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "numbers.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define RSD_VECTOR __attribute__((target_clones("avx512f", "avx2", "default")))  // picked when the library is loaded
#else
#define RSD_VECTOR
#endif

namespace {

enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Granularity : int64_t { kElement = 0, kLayer = 1, kAll = 2 };
enum Rule : int64_t { kDistance = 0, kTypical = 1 };
enum Redraft : int64_t { kNone = 0, kMain = 1, kMiddle = 2 };

}  // namespace

extern "C" struct RsdAcceptArgs {
  const void* logits;  // [B, L, T, D, V], strides below, in elements
  int32_t *codes, *frontier, *drafted, *finished, *passes;
  float* latents;
  int32_t *agreed, *kept;
  const float* codebook;
  const int32_t* slack;
  const float *uniforms, *draft_probs;                 // or null
  const float *w1, *b1, *w2, *b2, *gain, *offset;      // w*, b* or all six null
  float* actions;                                      // or null
  int64_t B, L, T, D, V, H, A;
  int64_t stride_b, stride_l, stride_t, stride_d, stride_v;
  int64_t dtype, stop, granularity, rule, need, keep_draft, redraft, expected, threads;
  double log_tau, temperature;
};

namespace {

using Args = RsdAcceptArgs;
constexpr int64_t kSteps = 8;  // of the action decoder at once: a vector register

// ---------------------------------------------------------------------------------------------- one sample

struct Scratch {
  std::vector<float> x;        // [V, E] logits of the layer at hand
  std::vector<float> top;      // [E] their maximum
  std::vector<int32_t> greedy, choice, agree, walking, changed, entry;  // [E]
  std::vector<int32_t> left;   // [E] the layer above which codes fall back to the middle; `stop` for none
  std::vector<float> mean;     // [E] its softmax mean, if that is read
  std::vector<float> row;      // two of [V] (weights, residual) or three of [E] (mean, sum, latents)
  std::vector<float> steps;    // [D + H + A, kSteps] of the action decoder

  explicit Scratch(const Args& a) {
    const size_t e = size_t(a.T * a.D);
    x.resize(size_t(a.V) * e);
    top.resize(e);
    mean.resize(e);
    for (auto* buffer : {&greedy, &choice, &agree, &walking, &changed, &left, &entry}) buffer->resize(e);
    row.resize(std::max(3 * e, 2 * size_t(a.V)));
    steps.resize(size_t(kSteps * (a.D + a.H + a.A)));
  }
};

// Two passes, because the first cannot use vector registers (the strides are any): bits into place, then numbers.
template <typename Format>
RSD_VECTOR void load_layer(const Args& a, int64_t at, float* x) {
  using Storage = typename Format::Storage;
  const Storage* base = static_cast<const Storage*>(a.logits) + at;
  const int64_t E = a.T * a.D;
  const bool even = a.stride_t == a.D * a.stride_d;  // steps and dims are one run of elements
  const int64_t rows = even ? 1 : a.T, run = even ? E : a.D, stride = a.stride_d;
  for (int64_t v = 0; v < a.V; ++v) {
    for (int64_t row = 0; row < rows; ++row) {
      const Storage* from = base + v * a.stride_v + row * a.stride_t;
      float* to = x + v * E + row * a.D;
      for (int64_t i = 0; i < run; ++i) to[i] = from_bits(from[i * stride]);
    }
  }
  for (int64_t i = 0; i < a.V * E; ++i) {
    const float value = Format::value(to_bits(x[i]));
    x[i] = value == value ? value : -kInf;  // NaN counts as -inf
  }
}

void load(const Args& a, int64_t b, int64_t l, float* x) {
  const int64_t at = b * a.stride_b + l * a.stride_l;
  if (a.dtype == kFloat32) {
    load_layer<Float32>(a, at, x);
  } else if (a.dtype == kBFloat16) {
    load_layer<BFloat16>(a, at, x);
  } else {
    load_layer<Float16>(a, at, x);
  }
}

RSD_VECTOR void argmax(const float* x, int64_t V, int64_t E, float* __restrict top, int32_t* __restrict greedy) {
  for (int64_t e = 0; e < E; ++e) top[e] = x[e], greedy[e] = 0;
  for (int64_t v = 1; v < V; ++v) {
    const float* row = x + v * E;
#pragma omp simd
    for (int64_t e = 0; e < E; ++e) {
      const float value = row[e], best = top[e];
      const int32_t at = greedy[e];
      top[e] = value > best ? value : best;
      greedy[e] = value > best ? int32_t(v) : at;  // ties: the lowest level
    }
  }
}

inline bool is_level(const Args& a, int32_t code) { return uint32_t(code) < uint32_t(a.V); }
inline int32_t nearest_level(const Args& a, int32_t code) { return std::clamp(code, 0, int32_t(a.V - 1)); }

RSD_VECTOR void compare(const Args& a, int64_t l, const int32_t* codes, Scratch& s) {
  const int64_t E = a.T * a.D;
  if (a.rule == kDistance) {
    const int32_t *greedy = s.greedy.data(), *slack = a.slack + l * a.D;
    int32_t* __restrict agree = s.agree.data();
    const uint32_t levels = uint32_t(a.V);
    for (int64_t begin = 0; begin < E; begin += a.D) {
      for (int64_t d = 0; d < a.D; ++d) {
        const int32_t code = codes[begin + d], known = uint32_t(code) < levels;
        const int32_t distance = std::abs((known ? code : 0) - greedy[begin + d]);
        agree[begin + d] = known & int32_t(distance <= slack[d]);
      }
    }
    return;
  }
  const float log_tau = float(a.log_tau);
  for (int64_t e = 0; e < E; ++e) {
    const float at_code = s.x[size_t(nearest_level(a, codes[e]) * E + e)];
    const float gap = at_code == s.top[e] ? 0.0f : at_code - s.top[e];
    s.agree[e] = is_level(a, codes[e]) && gap >= log_tau;
  }
}

// ---------------------------------------------------------------------------------------------- sampling

// The first level whose cumulative weight exceeds the share u of the sum; sums in the order of the levels.
int32_t sample(const float* weights, int64_t V, float u) {
  float sum = 0.0f;
  for (int64_t v = 0; v < V; ++v) sum += weights[v];
  const float threshold = u * sum;
  float cumulative = 0.0f;
  int32_t passed = 0;
  for (int64_t v = 0; v < V; ++v) passed += (cumulative += weights[v]) <= threshold;
  return std::min(passed, int32_t(V - 1));
}

void sample_layer(const Args& a, int64_t b, int64_t l, const int32_t* codes, bool proposed, Scratch& s) {
  const int64_t E = a.T * a.D, V = a.V;
  const bool point_mass = a.draft_probs == nullptr || !proposed || a.passes[b] > 0;
  float *weights = s.row.data(), *residual = weights + V;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t at = (b * a.L + l) * E + e;
    for (int64_t v = 0; v < V; ++v) {
      const float x = s.x[size_t(v * E + e)];
      const float log = x == s.top[e] ? 0.0f : x - s.top[e];
      weights[v] = float(std::exp(double(log) / a.temperature));
    }
    const float u_accept = a.uniforms[2 * at], u_sample = a.uniforms[2 * at + 1];
    if (point_mass) {
      s.choice[e] = sample(weights, V, u_sample);
      s.agree[e] = codes[e] == s.choice[e];
      continue;
    }
    const float* q = a.draft_probs + at * V;
    float sum = 0.0f, left = 0.0f;
    for (int64_t v = 0; v < V; ++v) sum += weights[v];
    for (int64_t v = 0; v < V; ++v) left += residual[v] = std::max(weights[v] / sum - q[v], 0.0f);
    const int32_t c = nearest_level(a, codes[e]);
    s.agree[e] = is_level(a, codes[e]) && u_accept * q[c] < weights[c] / sum;
    s.choice[e] = s.agree[e] ? codes[e] : sample(left == 0.0f ? weights : residual, V, u_sample);
  }
}

// ---------------------------------------------------------------------------------------------- walk and select

int64_t count(const std::vector<int32_t>& flags) {
  int64_t sum = 0;
  for (const int32_t flag : flags) sum += flag;
  return sum;
}

// Codes and frontier of one layer; `s.walking` says which elements have not met a layer that is not accepted.
// Returns how many elements hold the draft's code in an accepted layer.
RSD_VECTOR int64_t select_layer(const Args& a, int64_t l, bool proposed, int32_t* __restrict codes,
                                int32_t* __restrict frontier, Scratch& s) {
  const int64_t E = a.T * a.D;
  const bool by_layer = a.granularity == kLayer;
  const int32_t layer_passes = proposed && a.granularity != kAll && (!by_layer || count(s.agree) >= a.need);
  const int32_t to_middle = a.redraft == kMiddle && a.granularity != kAll, middle = int32_t(a.V / 2);
  const int32_t whole = by_layer, keep_draft = a.keep_draft != 0, layer = int32_t(l), below_last = l < a.stop - 1;
  const int32_t reached = a.granularity == kAll ? int32_t(a.stop) : layer + 1;
  const uint32_t levels = uint32_t(a.V);
  const int32_t *entry = s.entry.data(), *greedy = s.greedy.data(), *choice = s.choice.data(), *agree = s.agree.data();
  int32_t *__restrict walking = s.walking.data(), *__restrict changed = s.changed.data();
  int32_t* __restrict left = s.left.data();
  int32_t held = 0;
#pragma omp simd reduction(+ : held)
  for (int64_t e = 0; e < E; ++e) {  // everything is read, and no branch is taken: many elements at once
    const int32_t code = codes[e], own = choice[e], likely = greedy[e];
    const int32_t agrees = agree[e], was = walking[e], at = frontier[e];
    const int32_t open = layer >= entry[e], walks = was & open;
    const int32_t accepted = layer_passes & (whole | agrees);
    const int32_t stands = accepted & (agrees | (keep_draft & int32_t(uint32_t(code) < levels)));
    const int32_t final_code = stands ? code : own;
    const int32_t open_code = walks ? final_code : likely;  // above the frontier: the next draft
    const int32_t take = left[e] < layer ? middle : open ? open_code : code;
    const int32_t changes = int32_t(take != code);
    held += walks & stands;
    walking[e] = open ? walks & accepted : was;
    frontier[e] = walks ? reached : at;
    changed[e] |= below_last & changes;
    left[e] = to_middle & walks & changes & int32_t(left[e] > layer) ? layer : left[e];
    codes[e] = take;
  }
  return held;
}

// ---------------------------------------------------------------------------------------------- dequantise, decode

// The mean of the levels [D, V] under the softmax of x [V, E], for every element. Overwrites x with the weights.
RSD_VECTOR void softmax_mean(int64_t V, int64_t T, int64_t D, float* x, const float* top, const float* levels,
                             float* mean, float* sum) {
  const int64_t E = T * D;
  for (int64_t e = 0; e < E; ++e) mean[e] = sum[e] = 0.0f;
  for (int64_t v = 0; v < V; ++v) {
    float* row = x + v * E;
    for (int64_t e = 0; e < E; ++e) {
      const float below = exp_negative(row[e] - top[e]);
      row[e] = row[e] == top[e] ? 1.0f : below;
    }
    for (int64_t e = 0; e < E; ++e) sum[e] += row[e];
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t d = 0; d < D; ++d) mean[t * D + d] += row[t * D + d] * levels[d * V + v];
    }
  }
  for (int64_t e = 0; e < E; ++e) mean[e] /= sum[e];
}

// The softmax means of layer l, whose logits x holds, where the codes above it fall back to the middle. Overwrites x.
void keep_means(const Args& a, int64_t l, Scratch& s) {
  if (std::find(s.left.begin(), s.left.end(), int32_t(l)) == s.left.end()) return;
  const int64_t E = a.T * a.D;
  float *mean = s.row.data(), *sum = mean + E;
  softmax_mean(a.V, a.T, a.D, s.x.data(), s.top.data(), a.codebook + l * a.D * a.V, mean, sum);
  for (int64_t e = 0; e < E; ++e) s.mean[e] = s.left[e] == l ? mean[e] : s.mean[e];
}

// Latents of the elements that were not final at entry: what their layers stand for, added in the order of the layers.
RSD_VECTOR void dequantise(const Args& a, const int32_t* codes, const int32_t* frontier, float* latents, Scratch& s) {
  const int64_t E = a.T * a.D, last = a.stop - 1;
  float *mean = s.row.data(), *sum = mean + E, *__restrict z = sum + E;
  const auto value = [&](int64_t l, int64_t e, int64_t d) {
    return a.codebook[(l * a.D + d) * a.V + nearest_level(a, codes[l * E + e])];
  };
  if (a.expected) {  // x holds layer stop - 1
    softmax_mean(a.V, a.T, a.D, s.x.data(), s.top.data(), a.codebook + last * a.D * a.V, mean, sum);
  }
  std::fill(z, z + E, 0.0f);
  for (int64_t l = 0; l < last; ++l) {
    for (int64_t e = 0; a.expected && e < E; ++e) s.mean[e] += s.left[e] == l ? z[e] : 0.0f;
    for (int64_t begin = 0; begin < E; begin += a.D) {
      for (int64_t d = 0; d < a.D; ++d) z[begin + d] += value(l, begin + d, d);
    }
  }
  for (int64_t e = 0, d = 0; e < E; ++e, d = d + 1 == a.D ? 0 : d + 1) {
    if (s.entry[e] >= a.stop) continue;
    const bool blend = a.expected && frontier[e] >= a.stop && (a.granularity == kAll || !s.changed[e]);
    latents[e] = a.expected && s.left[e] < last ? s.mean[e] : z[e] + (blend ? mean[e] : value(last, e, d));
  }
}

// to[row] = bias[row] + sum_i weights[row, i] * from[i], for kSteps steps at once. The sums of all rows grow side by
// side, so that no addition waits for the one before it.
RSD_VECTOR void linear(const float* weights, const float* bias, int64_t rows, int64_t columns, const float* from,
                       float* __restrict to) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t t = 0; t < kSteps; ++t) to[row * kSteps + t] = bias[row];
  }
  for (int64_t i = 0; i < columns; ++i) {
    const float* in = from + i * kSteps;
    for (int64_t row = 0; row < rows; ++row) {
      const float weight = weights[row * columns + i];
      float* __restrict out = to + row * kSteps;
#pragma omp simd
      for (int64_t t = 0; t < kSteps; ++t) out[t] += weight * in[t];
    }
  }
}

RSD_VECTOR void mish(float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = mish(values[i]);
}

// actions = gain * (w2 mish(w1 z + b1) + b2) + offset, a few steps at a time.
void decode_actions(const Args& a, const float* latents, float* actions, Scratch& s) {
  if (a.w1 == nullptr) {
    for (int64_t e = 0; e < a.T * a.D; ++e) {
      actions[e] = a.gain == nullptr ? latents[e] : latents[e] * a.gain[e % a.D] + a.offset[e % a.D];
    }
    return;
  }
  float *z = s.steps.data(), *hidden = z + a.D * kSteps, *out = hidden + a.H * kSteps;
  for (int64_t begin = 0; begin < a.T; begin += kSteps) {
    const int64_t steps = std::min(kSteps, a.T - begin);  // the rest of z is left over, and not used
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t d = 0; d < a.D; ++d) z[d * kSteps + t] = latents[(begin + t) * a.D + d];
    }
    linear(a.w1, a.b1, a.H, a.D, z, hidden);
    mish(hidden, a.H * kSteps);
    linear(a.w2, a.b2, a.A, a.H, hidden, out);
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t i = 0; i < a.A; ++i) {
        actions[(begin + t) * a.A + i] = out[i * kSteps + t] * a.gain[i] + a.offset[i];
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------- samples

bool is_finished(const Args& a, const int32_t* frontier) {
  const int64_t E = a.T * a.D;
  const int64_t reached = std::count_if(frontier, frontier + E, [&](int32_t f) { return f >= a.stop; });
  return a.granularity == kElement ? reached >= a.need : reached == E;
}

void accept_sample(const Args& a, int64_t b, Scratch& s) {
  if (a.finished[b] != 0) return;
  const int64_t E = a.T * a.D;
  int32_t *codes = a.codes + b * a.L * E, *frontier = a.frontier + b * E;
  const bool first = a.passes[b] == 0;
  const int64_t drafted = std::min<int64_t>(a.drafted[b], a.stop - 1);
  std::copy(frontier, frontier + E, s.entry.begin());
  std::fill(s.walking.begin(), s.walking.end(), 1);
  std::fill(s.changed.begin(), s.changed.end(), 0);
  std::fill(s.left.begin(), s.left.end(), int32_t(a.stop));
  if (first) {
    std::fill(a.agreed + b * a.L, a.agreed + (b + 1) * a.L, -1);
    std::fill(a.kept + b * a.L, a.kept + (b + 1) * a.L, -1);
  }

  // Layers below every frontier are read on the first pass only, for the counters.
  const int64_t start = first ? 0 : *std::min_element(s.entry.begin(), s.entry.end());
  for (int64_t l = start; l < a.stop; ++l) {
    const bool proposed = l < drafted;
    load(a, b, l, s.x.data());
    argmax(s.x.data(), a.V, E, s.top.data(), s.greedy.data());
    if (a.temperature > 0.0) {
      sample_layer(a, b, l, codes + l * E, proposed, s);
    } else {
      s.choice = s.greedy;
      compare(a, l, codes + l * E, s);
    }
    const int64_t held = select_layer(a, l, proposed, codes + l * E, frontier, s);
    if (a.expected && l < a.stop - 1) keep_means(a, l, s);
    if (first && proposed) {
      a.agreed[b * a.L + l] = int32_t(count(s.agree));
      a.kept[b * a.L + l] = int32_t(held);
    }
  }

  float* latents = a.latents + b * E;
  dequantise(a, codes, frontier, latents, s);
  a.finished[b] = is_finished(a, frontier);
  a.drafted[b] = a.redraft == kNone ? 0 : int32_t(a.stop - 1);
  a.passes[b] += 1;
  if (a.finished[b] != 0 && a.actions != nullptr) {
    decode_actions(a, latents, a.actions + b * a.T * a.A, s);
  }
}

}  // namespace

#define RSD_EXPORT extern "C" __attribute__((visibility("default")))

RSD_EXPORT int64_t rsd_accept_args_size() { return sizeof(RsdAcceptArgs); }

RSD_EXPORT void rsd_accept(const RsdAcceptArgs* args) {
  const Args& a = *args;
#pragma omp parallel num_threads(int(a.threads)) if (a.threads > 1)
  {
    Scratch scratch(a);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a.B; ++b) accept_sample(a, b, scratch);
  }
}
