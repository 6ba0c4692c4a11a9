// Filters of pixels on every stride-th pixel's neighborhood, expanded to channels by tables of each
// image; forward and backward, float32. Only what the stride keeps is computed.
//
//   out[p, c] = sum over taps t of (mul[t, c] f[p, h(c), t] + add[t, c]) v[stride p + dilation o_t, c]
//
// Maps are (B, H, W, C) and tables (B, T, C), without gaps, so that channels lie in the vector's lanes.
// The forward is cut by rows of the output, the backward by heads of images: each task writes its
// own memory, so results do not depend on the number of threads.
#include <algorithm>

#include "simd.h"

namespace {

struct Problem {
  int64_t batch, height, width, heads, depth;
  int64_t rows, columns;  // of the output
  int64_t size, stride, dilation;
  int64_t channels() const { return heads * depth; }
  int64_t taps() const { return size * size; }
};

// One tap of one pixel: where it reads, or nothing where that is outside the map.
struct Place {
  bool inside;
  int64_t at;  // of the first channel of the pixel that is read
  Place(const Problem& p, int64_t b, int64_t y, int64_t x, int64_t tap) {
    const int64_t reach = p.size / 2;
    const int64_t row = y * p.stride + (tap / p.size - reach) * p.dilation;
    const int64_t column = x * p.stride + (tap % p.size - reach) * p.dilation;
    inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
    at = ((b * p.height + row) * p.width + column) * p.channels();
  }
};

template <bool MUL, bool ADD>
void forward(const Problem& p, const float* v, const float* f, const float* mul, const float* add,
             float* out) {
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < p.batch * p.rows; ++line) {
    const int64_t b = line / p.rows, y = line % p.rows;
    for (int64_t x = 0; x < p.columns; ++x) {
      const int64_t pixel = line * p.columns + x;
      float* to = out + pixel * p.channels();
      std::fill(to, to + p.channels(), 0.0f);
      for (int64_t t = 0; t < p.taps(); ++t) {
        const Place there(p, b, y, x, t);
        if (!there.inside) continue;
        const float* from = v + there.at;
        const float* m = MUL ? mul + (b * p.taps() + t) * p.channels() : nullptr;
        const float* a = ADD ? add + (b * p.taps() + t) * p.channels() : nullptr;
        for (int64_t h = 0; h < p.heads; ++h) {
          const float weight = f[(pixel * p.heads + h) * p.taps() + t];
          int64_t c = h * p.depth;
          const int64_t end = c + p.depth;
          for (; c + VL <= end; c += VL) {
            vf w = splat(weight);
            if (MUL) w *= load(m + c);
            if (ADD) w += load(a + c);
            store(to + c, load(to + c) + w * load(from + c));
          }
          for (; c < end; ++c)
            to[c] += ((MUL ? weight * m[c] : weight) + (ADD ? a[c] : 0.0f)) * from[c];
        }
      }
    }
  }
}

// The gradients of one tap of one pixel and head, whose filter's is returned.
template <bool MUL, bool ADD>
float tap_back(int64_t c, int64_t end, float weight, const float* g, const float* v, const float* m,
               const float* a, float* dv, float* dm, float* da) {
  vf total = {};
  for (; c + VL <= end; c += VL) {
    const vf grad = load(g + c), seen = grad * load(v + c);
    vf w = splat(weight);
    if (MUL) w *= load(m + c);
    if (ADD) w += load(a + c);
    store(dv + c, load(dv + c) + w * grad);
    total += MUL ? seen * load(m + c) : seen;
    if (MUL) store(dm + c, load(dm + c) + weight * seen);
    if (ADD) store(da + c, load(da + c) + seen);
  }
  float rest = 0;
  for (; c < end; ++c) {
    const float seen = g[c] * v[c];
    dv[c] += ((MUL ? weight * m[c] : weight) + (ADD ? a[c] : 0.0f)) * g[c];
    rest += MUL ? seen * m[c] : seen;
    if (MUL) dm[c] += weight * seen;
    if (ADD) da[c] += seen;
  }
  return sum(total) + rest;
}

template <bool MUL, bool ADD>
void backward(const Problem& p, const float* v, const float* f, const float* mul, const float* add,
              const float* dout, float* dv, float* df, float* dmul, float* dadd) {
#pragma omp parallel for schedule(static)
  for (int64_t unit = 0; unit < p.batch * p.heads; ++unit) {
    const int64_t b = unit / p.heads, h = unit % p.heads, first = h * p.depth;
    for (int64_t y = 0; y < p.rows; ++y)
      for (int64_t x = 0; x < p.columns; ++x) {
        const int64_t pixel = (b * p.rows + y) * p.columns + x;
        const int64_t filter = (pixel * p.heads + h) * p.taps();
        for (int64_t t = 0; t < p.taps(); ++t) {
          const Place there(p, b, y, x, t);
          const int64_t table = (b * p.taps() + t) * p.channels();
          df[filter + t] = !there.inside ? 0.0f : tap_back<MUL, ADD>(
              first, first + p.depth, f[filter + t], dout + pixel * p.channels(), v + there.at,
              MUL ? mul + table : nullptr, ADD ? add + table : nullptr, dv + there.at,
              MUL ? dmul + table : nullptr, ADD ? dadd + table : nullptr);
        }
      }
  }
}

}  // namespace

extern "C" {

int strided_forward(const Problem* p, const float* v, const float* f, const float* mul,
                    const float* add, float* out) {
  if (mul && add)
    forward<true, true>(*p, v, f, mul, add, out);
  else if (mul)
    forward<true, false>(*p, v, f, mul, nullptr, out);
  else if (add)
    forward<false, true>(*p, v, f, nullptr, add, out);
  else
    forward<false, false>(*p, v, f, nullptr, nullptr, out);
  return 0;
}

// Gradients of values and tables are added to what is there: zeros.
int strided_backward(const Problem* p, const float* v, const float* f, const float* mul,
                     const float* add, const float* dout, float* dv, float* df, float* dmul,
                     float* dadd) {
  if (mul && add)
    backward<true, true>(*p, v, f, mul, add, dout, dv, df, dmul, dadd);
  else if (mul)
    backward<true, false>(*p, v, f, mul, nullptr, dout, dv, df, dmul, nullptr);
  else if (add)
    backward<false, true>(*p, v, f, nullptr, add, dout, dv, df, nullptr, dadd);
  else
    backward<false, false>(*p, v, f, nullptr, nullptr, dout, dv, df, nullptr, nullptr);
  return 0;
}
}
