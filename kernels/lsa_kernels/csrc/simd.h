// Vectors of floats by GCC's own extension: as wide as the machine the file is compiled for, or as
// LSA_LANES says. A vector wider than the machine's is several of its registers.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(LSA_LANES)
constexpr int VL = LSA_LANES;
#elif defined(__AVX512F__)
constexpr int VL = 16;
#else
constexpr int VL = 8;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef int8_t vb __attribute__((vector_size(VL)));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
// Eight floats, whatever the machine: what is turned, and what is read and written at once.
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8 __attribute__((vector_size(32)));

static inline vf load(const float* p) { return *(const vfu*)p; }
static inline void store(float* p, vf v) { *(vfu*)p = v; }
// A value that several sums use, kept in a register: GCC would rather load it anew for each of them,
// and loads are what limits the sums.
static inline vf held(vf v) {
#if defined(__AVX512F__) || (defined(__AVX__) && (!defined(LSA_LANES) || LSA_LANES <= 8))
  __asm__("" : "+x"(v));
#endif
  return v;
}

static inline vf splat(float x) { return x - vf{}; }

static inline float sum(vf v) {
  float total = 0;
  for (int i = 0; i < VL; ++i) total += v[i];
  return total;
}

// The larger one; the second where the first is not a number.
static inline vf larger(vf a, vf b) { return a > b ? a : b; }

// e**x for x <= 0 and NaN, within 2 units in the last place; below -87.7 it is 0.
static inline vf exp_of(vf x) {
  x = larger(splat(-88.0f), x);
  // Adding 1.5 * 2**23 rounds to a whole number n, whose bits then stand last; 127 is the exponent's
  // bias, and n = -127 makes a power of two of 0.
  constexpr float SHIFT = 12582912.0f + 127.0f;
  const vf shifted = x * 1.44269504088896341f + SHIFT;
  const vf whole = shifted - SHIFT;
  vf r = x - whole * 0.693359375f;  // ln 2 in two parts
  r = r - whole * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  vi bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  vf power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}
