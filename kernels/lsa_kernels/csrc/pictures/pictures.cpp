// Resampling of pictures of 8 bits a channel, bit for bit as Pillow does it: the same arithmetic in
// the same order, several channels at a time; and what is done to whole batches of them, as torch
// does it. Single-threaded: loading processes share the cores.

// One rounding more or less moves a pixel: products and sums must not become one instruction.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int BITS = 32 - 8 - 2;  // of a weight's fraction, as in Pillow
constexpr double CUBIC = -0.5;

typedef uint8_t Bytes4 __attribute__((vector_size(4)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef double Reals4 __attribute__((vector_size(32)));

// A pixel's four bytes as numbers, and back with numbers outside 0..255 clipped.
inline Ints4 load4(const uint8_t* at) {
#if defined(__SSE4_1__)
  return Ints4(_mm_cvtepu8_epi32(_mm_loadu_si32(at)));
#else
  Bytes4 pixel;
  std::memcpy(&pixel, at, sizeof pixel);
  return __builtin_convertvector(pixel, Ints4);
#endif
}

inline void store4(uint8_t* at, Ints4 pixel) {
#if defined(__SSE4_1__)
  const __m128i words = _mm_packus_epi32(__m128i(pixel), __m128i(pixel));
  _mm_storeu_si32(at, _mm_packus_epi16(words, words));
#else
  pixel = pixel < 0 ? Ints4{} : pixel > 255 ? Ints4{} + 255 : pixel;
  const Bytes4 bytes = __builtin_convertvector(pixel, Bytes4);
  std::memcpy(at, &bytes, sizeof bytes);
#endif
}

inline uint8_t clip(int32_t sum) { return uint8_t(std::clamp(sum >> BITS, 0, 255)); }

double triangle(double x) { return std::abs(x) < 1 ? 1 - std::abs(x) : 0; }

double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * CUBIC : 0;
}

// For every output number along one side: where its taps begin, how many there are, their weights.
struct Taps {
  int64_t most;
  std::vector<int64_t> first, count;
  std::vector<int32_t> weights;

  Taps(int64_t in, int64_t out, bool is_cubic) : first(out), count(out) {
    const double scale = double(in) / double(out), wide = std::max(scale, 1.0);
    const double reach = (is_cubic ? 2 : 1) * wide;
    most = int64_t(std::ceil(reach)) * 2 + 1;
    weights.resize(out * most);
    std::vector<double> exact(most);
    for (int64_t i = 0; i < out; ++i) {
      const double centre = (double(i) + 0.5) * scale, narrow = 1 / wide;
      first[i] = std::max<int64_t>(0, int64_t(centre - reach + 0.5));
      count[i] = std::min<int64_t>(in, int64_t(centre + reach + 0.5)) - first[i];
      double sum = 0;
      for (int64_t t = 0; t < count[i]; ++t) {
        const double x = (double(t + first[i]) - centre + 0.5) * narrow;
        exact[t] = is_cubic ? cubic(x) : triangle(x);
        sum += exact[t];
      }
      for (int64_t t = 0; t < count[i]; ++t) {
        const double weight = (sum != 0 ? exact[t] / sum : exact[t]) * (1 << BITS);
        weights[i * most + t] = int32_t(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
    }
  }
};

// A row of RGB to a row of RGBX. ``row`` has a byte to spare behind its last pixel.
void across(const uint8_t* row, const Taps& taps, int64_t width, uint8_t* out) {
  for (int64_t i = 0; i < width; ++i) {
    const uint8_t* at = row + 3 * taps.first[i];
    const int32_t* weight = &taps.weights[i * taps.most];
    Ints4 sum = Ints4{} + (1 << (BITS - 1));
    for (int64_t t = 0; t < taps.count[i]; ++t)
      sum += load4(at + 3 * t) * weight[t];
    store4(out + 4 * i, sum >> BITS);
  }
}

// ``count`` rows, ``stride`` bytes apart, to one row of ``bytes``.
void down(const uint8_t* rows, int64_t stride, const int32_t* weight, int64_t count, int64_t bytes,
          uint8_t* out) {
  constexpr int64_t LANES = 32;
  for (int64_t start = 0; start < bytes; start += LANES) {
    const int64_t here = std::min(LANES, bytes - start);
    int32_t sum[LANES];
    std::fill(sum, sum + LANES, 1 << (BITS - 1));
    for (int64_t t = 0; t < count; ++t) {
      const uint8_t* at = rows + t * stride + start;
      if (here == LANES)
        for (int64_t b = 0; b < LANES; ++b) sum[b] += at[b] * weight[t];
      else
        for (int64_t b = 0; b < here; ++b) sum[b] += at[b] * weight[t];
    }
    for (int64_t b = 0; b < here; ++b) out[start + b] = clip(sum[b]);
  }
}

// A picture of RGBX as numbers, its border continued as far as the taps of a cubic reach.
struct Picture {
  static constexpr int64_t REACH = 2;
  int64_t width, height, stride;
  const Reals4* pixels;

  Picture(const uint8_t* in, int64_t w, int64_t h) : width(w), height(h), stride(w + 2 * REACH) {
    thread_local std::vector<Reals4> kept;
    kept.resize(stride * (h + 2 * REACH));
    pixels = kept.data();
    Reals4* to = kept.data();
    for (int64_t y = -REACH; y < h + REACH; ++y)
      for (int64_t x = -REACH; x < w + REACH; ++x) {
        const int64_t row = std::clamp<int64_t>(y, 0, h - 1);
        const int64_t column = std::clamp<int64_t>(x, 0, w - 1);
        *to++ = __builtin_convertvector(load4(in + 4 * (row * w + column)), Reals4);
      }
  }
  const Reals4* at(int64_t x, int64_t y) const {
    return &pixels[(y + REACH) * stride + x + REACH];
  }
};

inline Reals4 mixed(Reals4 a, Reals4 b, double share) { return a + (b - a) * share; }

inline Reals4 mixed(Reals4 a, Reals4 b, Reals4 c, Reals4 d, double share) {
  const Reals4 p2 = c - a, p3 = 2 * (a - b) + c - d, p4 = b - a - c + d;
  return b + share * (p2 + share * (p3 + share * p4));
}

inline Reals4 cubic_across(const Reals4* at, double share) {
  return mixed(at[-1], at[0], at[1], at[2], share);
}

template <bool is_cubic>
inline Reals4 between(const Picture& in, double x, double y) {
  x -= 0.5;
  y -= 0.5;
  const double left = std::floor(x), top = std::floor(y), dx = x - left, dy = y - top;
  const Reals4* at = in.at(int64_t(left), int64_t(top));
  if constexpr (is_cubic)
    return mixed(cubic_across(at - in.stride, dx), cubic_across(at, dx),
                 cubic_across(at + in.stride, dx), cubic_across(at + 2 * in.stride, dx), dy);
  else
    return mixed(mixed(at[0], at[1], dx), mixed(at[in.stride], at[in.stride + 1], dx), dy);
}

template <bool is_cubic>
void warp(const Picture& in, const double* m, const uint8_t* fill, uint8_t* out) {
  for (int64_t row = 0; row < in.height; ++row)
    for (int64_t column = 0; column < in.width; ++column, out += 4) {
      const double x = double(column) + 0.5, y = double(row) + 0.5;
      const double from_x = m[0] * x + m[1] * y + m[2], from_y = m[3] * x + m[4] * y + m[5];
      if (!(from_x >= 0 && from_x < double(in.width) && from_y >= 0 && from_y < double(in.height))) {
        std::memcpy(out, fill, 4);
        continue;
      }
      const Reals4 value = between<is_cubic>(in, from_x, from_y);
      store4(out, __builtin_convertvector(value, Ints4));
    }
}

}  // namespace

extern "C" {

// Cut left, top, width, height (``box``) out of RGB rows ``stride`` bytes apart, resize it to RGBX.
// 0 done, 1 out of memory.
int pictures_resize(const uint8_t* in, int64_t stride, const int64_t* box, int64_t width,
                    int64_t height, int is_cubic, int down_first, uint8_t* out) {
  try {
    const int64_t wide = 3 * box[2], narrow = 4 * width;
    const Taps columns(box[2], width, is_cubic), rows(box[3], height, is_cubic);
    const auto weights = [&](int64_t y) { return &rows.weights[y * rows.most]; };
    in += box[1] * stride + 3 * box[0];
    thread_local std::vector<uint8_t> row, between;
    row.resize(wide + 1);
    if (down_first) {
      for (int64_t y = 0; y < height; ++y) {
        down(in + rows.first[y] * stride, stride, weights(y), rows.count[y], wide, row.data());
        across(row.data(), columns, width, out + y * narrow);
      }
      return 0;
    }
    between.resize(narrow * box[3]);
    for (int64_t y = 0; y < box[3]; ++y) {
      std::memcpy(row.data(), in + y * stride, wide);
      across(row.data(), columns, width, &between[y * narrow]);
    }
    for (int64_t y = 0; y < height; ++y)
      down(&between[rows.first[y] * narrow], narrow, weights(y), rows.count[y], narrow,
           out + y * narrow);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Output pixel (x, y) is what lies at ``matrix`` (2 x 3) times (x, y, 1) of RGBX; else ``fill``.
int pictures_warp(const uint8_t* in, int64_t width, int64_t height, const double* matrix,
                  int is_cubic, const uint8_t* fill, uint8_t* out) {
  if (!width || !height) return 0;
  try {
    const Picture picture(in, width, height);
    if (is_cubic)
      warp<true>(picture, matrix, fill, out);
    else
      warp<false>(picture, matrix, fill, out);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Picture i of ``count`` becomes ``share`` of itself and ``rest`` of picture count - 1 - i, rounded.
void pictures_mix(uint8_t* pictures, int64_t count, int64_t bytes, float share, float rest) {
  for (int64_t i = 0; i < count / 2; ++i) {
    uint8_t *one = pictures + i * bytes, *other = pictures + (count - 1 - i) * bytes;
    for (int64_t b = 0; b < bytes; ++b) {
      const float x = one[b], y = other[b];
      one[b] = uint8_t(int32_t(std::nearbyint(x * share + y * rest)));
      other[b] = uint8_t(int32_t(std::nearbyint(y * share + x * rest)));
    }
  }
}

// Each byte of (pictures, channels, pixels) is looked up in the table of 256 of its channel.
void pictures_look_up(const uint8_t* in, int64_t pictures, int64_t channels, int64_t pixels,
                      const float* tables, float* out) {
  for (int64_t plane = 0; plane < pictures * channels; ++plane, in += pixels, out += pixels) {
    const float* table = tables + plane % channels * 256;
    for (int64_t i = 0; i < pixels; ++i) out[i] = table[in[i]];
  }
}
}
