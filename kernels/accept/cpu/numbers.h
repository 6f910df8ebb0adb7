// Numbers of the logits as fp32, and the two functions that the action decoder and the softmax need; plain arithmetic
// that compilers turn into vector instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A format: how its numbers lie in memory, and what their bits stand for.

struct Float32 {
  using Storage = uint32_t;
  static float value(uint32_t bits) { return from_bits(bits); }
};

struct BFloat16 {
  using Storage = uint16_t;
  static float value(uint32_t bits) { return from_bits(bits << 16); }
};

struct Float16 {
  using Storage = uint16_t;
  static float value(uint32_t bits);
};

inline float Float16::value(uint32_t half) {
  const uint32_t magnitude = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
  const bool special = (half & 0x7c00) == 0x7c00;                      // inf or NaN
  const float finite = from_bits(magnitude) * from_bits(0x77800000);         // * 2^112: exact, subnormals included
  const float result = special ? from_bits(magnitude | 0x7f800000) : finite;
  return from_bits(to_bits(result) | sign);
}

// e^x for x <= 0, within 2 units in the last place, never below e^-87. Plain arithmetic, so that it vectorises.
inline float exp_negative(float x) {
  x = x > -87.0f ? x : -87.0f;
  const int32_t n = int32_t(x * 1.44269504f - 0.5f);  // to nearest: the sum is not positive
  const float r = (x - float(n) * 0.693359375f) + float(n) * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;  // minimax polynomial of Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * from_bits(uint32_t(n + 127) << 23);
}

// x * tanh(log(1 + e^x)), written with w = e^-|x| so that nothing overflows or cancels.
inline float mish(float x) {
  const float w = exp_negative(-std::fabs(x));
  const float positive = (1.0f + 2.0f * w) / (1.0f + 2.0f * w + 2.0f * w * w);
  const float negative = w * (w + 2.0f) / (w * (w + 2.0f) + 2.0f);
  return x * (x >= 0.0f ? positive : negative);
}

}  // namespace
