// Between pixels with their channels and channels with their pixels in a vector's lanes.
#pragma once
#include <cstdint>

#include "simd.h"
#include "view.h"

// Eight rows of eight numbers to eight columns, in place.
static inline void turn(v8* r) {
  const i8 low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
  const i8 even = {0, 1, 8, 9, 4, 5, 12, 13}, odd = {2, 3, 10, 11, 6, 7, 14, 15};
  const i8 left = {0, 1, 2, 3, 8, 9, 10, 11}, right = {4, 5, 6, 7, 12, 13, 14, 15};
  v8 a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = __builtin_shuffle(r[2 * i], r[2 * i + 1], low);
    a[2 * i + 1] = __builtin_shuffle(r[2 * i], r[2 * i + 1], high);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = __builtin_shuffle(a[i], a[i + 2], even);
    b[i + 1] = __builtin_shuffle(a[i], a[i + 2], odd);
    b[i + 2] = __builtin_shuffle(a[i + 1], a[i + 3], even);
    b[i + 3] = __builtin_shuffle(a[i + 1], a[i + 3], odd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shuffle(b[i], b[i + 4], left);
    r[i + 4] = __builtin_shuffle(b[i], b[i + 4], right);
  }
}

// The sums of ``count`` vectors that lie one behind the other, times a factor; eight at a time.
static inline void sum_lanes(const float* from, int64_t count, float factor, float* to) {
  int64_t e = 0;
  for (; e + 8 <= count; e += 8) {
    v8 r[8] = {};
    for (int i = 0; i < 8; ++i)
      for (int part = 0; part < VL; part += 8) r[i] += *(const v8u*)(from + (e + i) * VL + part);
    turn(r);
    *(v8u*)(to + e) = factor * (((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7])));
  }
  for (; e < count; ++e) to[e] = factor * sum(load(from + e * VL));
}

// Pixels of strided channels to rows of channels; lanes behind the last pixel, up to a multiple of
// eight, become zero.
template <class E>
static inline void to_lanes(const E* from, int64_t pixel, int64_t channel, int64_t width,
                            int64_t depth, float* to, int64_t span) {
  int64_t c = 0;
  for (; channel == 1 && c + 8 <= depth; c += 8)
    for (int64_t x = 0; x < width; x += 8) {
      v8 block[8];
      for (int i = 0; i < 8; ++i)
        block[i] = x + i < width ? get8(from + (x + i) * pixel + c) : v8{};
      turn(block);
      for (int i = 0; i < 8; ++i) *(v8u*)(to + (c + i) * span + x) = block[i];
    }
  for (; c < depth; ++c)
    for (int64_t x = 0; x < width; ++x) to[c * span + x] = get(from + x * pixel + c * channel);
}

// The reverse, times a factor; only pixels of the map are written.
template <class E>
static inline void from_lanes(const float* from, int64_t span, int64_t width, int64_t depth,
                              float factor, E* to, int64_t pixel, int64_t channel) {
  int64_t c = 0;
  for (; channel == 1 && c + 8 <= depth; c += 8)
    for (int64_t x = 0; x < width; x += 8) {
      v8 block[8];
      for (int i = 0; i < 8; ++i) block[i] = factor * *(const v8u*)(from + (c + i) * span + x);
      turn(block);
      for (int i = 0; i < 8 && x + i < width; ++i) put8(to + (x + i) * pixel + c, block[i]);
    }
  for (; c < depth; ++c)
    for (int64_t x = 0; x < width; ++x) put(to + x * pixel + c * channel, factor * from[c * span + x]);
}
