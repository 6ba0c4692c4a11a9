// Maps as torch holds them, in float32 or bfloat16: read to float32, rounded where they are written.
#pragma once
#include <cstdint>
#include <cstring>

#include "simd.h"

typedef uint16_t h8 __attribute__((vector_size(16)));
typedef uint32_t u8 __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;  // the upper half of a float's
};

static inline float get(const float* p) { return *p; }
static inline float get(const bf16* p) {
  const uint32_t bits = uint32_t(p->bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

static inline v8 get8(const float* p) { return *(const v8u*)p; }
static inline v8 get8(const bf16* p) {
  h8 halves;
  std::memcpy(&halves, p, sizeof halves);
  const u8 bits = __builtin_convertvector(halves, u8) << 16;
  v8 x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Rounds to the nearest, ties to even: a carry from the lower half, which a last bit of 1 makes
// easier. What is not a number could be carried to infinity, and becomes torch's one.
static inline void put(float* p, float x) { *p = x; }
static inline void put(bf16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  p->bits = x == x ? bits : 0x7fc0;
}

static inline void put8(float* p, v8 x) { *(v8u*)p = x; }
static inline void put8(bf16* p, v8 x) {
  u8 bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const h8 halves = __builtin_convertvector(x == x ? bits : (u8{} + 0x7fc0), h8);
  std::memcpy(p, &halves, sizeof halves);
}

// Numbers that lie ``step`` apart, one behind the other.
template <class E>
static inline void get_row(const E* from, int64_t step, int64_t count, float* __restrict to) {
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) to[i] = get(from + i);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = get(from + i * step);
}

// The reverse.
template <class E>
static inline void put_row(const float* __restrict from, int64_t count, E* to, int64_t step) {
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) put(to + i, from[i]);
  else
    for (int64_t i = 0; i < count; ++i) put(to + i * step, from[i]);
}

// Element strides of up to five axes.
struct View {
  void* at;
  int64_t stride[5];
  int64_t half;  // whether it holds bfloat16
  int64_t place(int64_t first, int64_t second, int64_t third, int64_t fourth = 0) const {
    return first * stride[0] + second * stride[1] + third * stride[2] + fourth * stride[3];
  }
  // Calls with the first element, as what it is.
  template <class Call>
  void typed(Call call) const {
    half ? call(static_cast<bf16*>(at)) : call(static_cast<float*>(at));
  }
};
