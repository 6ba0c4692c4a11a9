// One head of one image, packed to [row][channel][x] with a border of zeros, so that the pixels of a
// row lie in the vector's lanes: no sums across lanes, the norm over the taps is lane by lane, and a
// tap to the right is a load one float further. Two tiles of VL pixels, one under the other, are
// worked on together: a loaded neighbor serves both.
//
// Everything is made of three sums: ``products`` over channels (logits; gradient of the weights),
// ``mix`` over taps (output; gradients of queries, keys and values), and ``outer`` over pixels
// (gradients of the tables).
#pragma once
#include <algorithm>
#include <cmath>

#include "memory.h"
#include "simd.h"
#include "transpose.h"

namespace {

enum Norm { IDENTITY = 0, FILTER_NORM = 1, SOFTMAX = 2 };

struct Problem {
  int64_t batch, heads, height, width, depth;
  int use_qk, norm, mask;
  float scale;
};

// Element strides of a (B, h, H, W, d) view.
struct View {
  float* at;
  int64_t stride[5];
  float* row(int64_t b, int64_t h, int64_t y) const {
    return at + b * stride[0] + h * stride[1] + y * stride[2];
  }
};

// Tables [t][c] of one head as [dy][c][dx], so that the taps of a row lie side by side.
template <int K>
void by_rows_of(const float* table, int64_t depth, float* to) {
  for (int t = 0; t < K * K; ++t)
    for (int64_t c = 0; c < depth; ++c)
      to[(t / K * depth + c) * K + t % K] = table[t * depth + c];
}

template <int K>
struct Task {
  static constexpr int R = K / 2, T = K * K;
  static constexpr int PAIR = 2;     // tiles worked on together
  static constexpr int GROUP = 16;   // tiles whose outer products are added up at once
  static_assert(R <= VL, "the border must fit into one vector");
  const Problem& p;
  const int64_t b, h, blocks, span;  // span: floats of a packed row, border included
  const float *rel_k, *rel_q, *bias;

  Task(const Problem& p, int64_t task, const float* rel_k_, const float* rel_q_, const float* bias_)
      : p(p), b(task / p.heads), h(task % p.heads), blocks((p.width + VL - 1) / VL),
        span((VL + p.width + R + VL - 1) / VL * VL),
        rel_k(rel_k_ ? rel_k_ + h * T * p.depth : nullptr),
        rel_q(rel_q_ ? rel_q_ + h * T * p.depth : nullptr),
        bias(bias_ ? bias_ + h * T : nullptr) {}

  // One row more below, for the second tile of a last pair; a vector more for loads past the end.
  int64_t packed() const { return (p.height + 2 * R + 1) * row() + VL; }
  // Pixel x of channel c in row y of a packed map.
  float* at(float* map, int64_t y, int64_t x, int64_t c) const {
    return map + (y + R) * row() + c * span + VL + x;
  }
  const float* at(const float* map, int64_t y, int64_t x, int64_t c) const {
    return at(const_cast<float*>(map), y, x, c);
  }
  // Floats from a pixel to the one below it. A cache line more than the channels take: powers of two
  // would put the rows of an area into the same few sets of the first cache.
  int64_t row() const { return p.depth * span + 16; }

  void pack(const View& from, float* map) const {
    for (int64_t y = 0; y < p.height; ++y)
      to_lanes(from.row(b, h, y), from.stride[3], from.stride[4], p.width, p.depth,
               at(map, y, 0, 0), span);
  }

  void unpack(const float* map, const View& to, float factor) const {
    for (int64_t y = 0; y < p.height; ++y)
      from_lanes(at(map, y, 0, 0), span, p.width, p.depth, factor, to.row(b, h, y), to.stride[3],
                 to.stride[4]);
  }

  // Lanes that are pixels of the map at all.
  vi real(int64_t x) const {
    vi lane;
    for (int i = 0; i < VL; ++i) lane[i] = x + i < p.width ? -1 : 0;
    return lane;
  }

  // Lanes whose tap (dy, dx) lies on the map.
  vi inside(int64_t y, int64_t x, int dy, int dx) const {
    vi lane;
    const bool row = y + dy >= 0 && y + dy < p.height;
    for (int i = 0; i < VL; ++i) lane[i] = row && x + i + dx >= 0 && x + i + dx < p.width ? -1 : 0;
    return lane;
  }

  // Terms of a sum of products over channels.
  enum Terms { PLAIN, ALL, SOME };

  // What a row of neighbors gives to the logits of the upper tile (UP), for which it is the row
  // ``dy`` of its area, and of the lower one (LOW), for which it is ``dy - 1``.
  template <int TERMS, bool UP, bool LOW>
  void product_row(const float* query, const float* key, const float* table_k, const float* table_q,
                   int dy, float scale, vf (*out)[T]) const {
    constexpr int CHUNK = 4;
    const int rows[2] = {dy, dy - 1};
    const float *rk[2], *rq[2];
    for (int i = 0; i < 2; ++i) {
      rk[i] = table_k ? table_k + rows[i] * p.depth * K : nullptr;
      rq[i] = table_q ? table_q + rows[i] * p.depth * K : nullptr;
    }
#pragma GCC unroll 4
    for (int first = 0; first < K; first += CHUNK) {
      vf acc[2][CHUNK] = {};
      for (int64_t c = 0; c < p.depth; ++c) {
        vf q[2] = {};
        if (UP && query) q[0] = load(query + c * span);
        if (LOW && query) q[1] = load(query + row() + c * span);
#pragma GCC unroll 4
        for (int i = 0; i < CHUNK; ++i) {
          if (first + i >= K) continue;
          const int64_t entry = c * K + first + i;
          const vf neighbor = TERMS != SOME || key ? load(key + c * span + first + i) : vf{};
#pragma GCC unroll 2
          for (int j = UP ? 0 : 1; j < (LOW ? 2 : 1); ++j) {
            if (TERMS == PLAIN) {
              acc[j][i] += q[j] * neighbor;
            } else if (TERMS == ALL) {
              acc[j][i] += (q[j] + rq[j][entry]) * neighbor;
              acc[j][i] += q[j] * rk[j][entry];
            } else {
              if (rq[j])
                acc[j][i] += (p.use_qk ? q[j] + rq[j][entry] : splat(rq[j][entry])) * neighbor;
              else if (p.use_qk)
                acc[j][i] += q[j] * neighbor;
              if (rk[j]) acc[j][i] += q[j] * rk[j][entry];
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < CHUNK; ++i) {
        if (first + i >= K) continue;
        if (UP) out[0][rows[0] * K + first + i] = scale * acc[0][i];
        if (LOW) out[1][rows[1] * K + first + i] = scale * acc[1][i];
      }
    }
  }

  // Sums over channels between a pair of tiles and all their neighbors. ``query`` is the upper
  // tile's first pixel, ``key`` the first neighbor of it; either may be absent.
  template <int TERMS>
  void products(const float* query, const float* key, const float* table_k, const float* table_q,
                float scale, vf (*out)[T]) const {
    auto below = [&](int rows) { return key ? key + rows * row() : nullptr; };
    product_row<TERMS, true, false>(query, key, table_k, table_q, 0, scale, out);
    for (int dy = 1; dy < K; ++dy)
      product_row<TERMS, true, true>(query, below(dy), table_k, table_q, dy, scale, out);
    product_row<TERMS, false, true>(query, below(K), table_k, table_q, K, scale, out);
  }

  void logits(const float* query, const float* key, const float* table_k, const float* table_q,
              vf (*out)[T]) const {
    if (p.use_qk && rel_k && rel_q)
      products<ALL>(query, key, table_k, table_q, p.scale, out);
    else if (p.use_qk && !rel_k && !rel_q)
      products<PLAIN>(query, key, nullptr, nullptr, p.scale, out);
    else
      products<SOME>(query, key, table_k, table_q, p.scale, out);
    for (int j = 0; j < PAIR && bias; ++j)
      for (int t = 0; t < T; ++t) out[j][t] += bias[t];
  }

  // A sum over the taps, row by row: K short sums round less than one of K * K.
  template <class Term>
  static vf by_rows(Term term) {
    vf total = vf{};
    for (int dy = 0; dy < K; ++dy) {
      vf row = vf{};
      for (int t = dy * K; t < (dy + 1) * K; ++t) row += term(t);
      total += row;
    }
    return total;
  }

  // Logits to weights in place. ``spread`` is what filter norm divided by, for the way back.
  void normalise(vf* a, int64_t y, int64_t x, vf* spread) const {
    vi seen[T];
    for (int t = 0; t < T; ++t) seen[t] = p.mask ? inside(y, x, t / K - R, t % K - R) : vi{} - 1;
    if (p.norm == SOFTMAX) {
      vf top = splat(-INFINITY);
      for (int t = 0; t < T; ++t) {
        a[t] = seen[t] ? a[t] : splat(-INFINITY);
        top = a[t] > top || a[t] != a[t] ? a[t] : top;  // a NaN stays
      }
      for (int t = 0; t < T; ++t) a[t] = exp_of(a[t] - top);
      const vf inverse = 1.0f / by_rows([&](int t) { return a[t]; });
      for (int t = 0; t < T; ++t) a[t] *= inverse;
    } else if (p.norm == IDENTITY) {
      if (p.mask)
        for (int t = 0; t < T; ++t) a[t] = seen[t] ? a[t] : vf{};
    } else {
      vf count = vf{};
      for (int t = 0; t < T; ++t) {
        count += seen[t] ? splat(1) : vf{};
        a[t] = seen[t] ? a[t] : vf{};
      }
      const vf mean = by_rows([&](int t) { return a[t]; }) / count;
      for (int t = 0; t < T; ++t) a[t] = seen[t] ? a[t] - mean : vf{};
      const vf squares = by_rows([&](int t) { return a[t] * a[t]; });
      const vf others = count > 1.0f ? count - 1.0f : splat(1);
      vf variance = squares / others;
      for (int i = 0; i < VL; ++i) variance[i] = std::sqrt(variance[i]);
      *spread = variance + 1e-10f;
      const vf gain = (1.41421356237309515f / K) / *spread;
      for (int t = 0; t < T; ++t) a[t] *= gain;
    }
  }

  // Gradient of the weights to gradient of the logits, in place.
  void normalise_back(vf* d, const vf* a, int64_t y, int64_t x, vf spread) const {
    if (p.norm == SOFTMAX) {
      const vf dot = by_rows([&](int t) { return d[t] * a[t]; });
      for (int t = 0; t < T; ++t) d[t] = a[t] * (d[t] - dot);
      return;
    }
    vi seen[T];
    for (int t = 0; t < T; ++t) seen[t] = p.mask ? inside(y, x, t / K - R, t % K - R) : vi{} - 1;
    if (p.norm == IDENTITY) {
      for (int t = 0; t < T; ++t) d[t] = seen[t] ? d[t] : vf{};
      return;
    }
    constexpr float G = 1.41421356237309515f / K;
    vf count = vf{};
    for (int t = 0; t < T; ++t) count += seen[t] ? splat(1) : vf{};
    const vf dot = by_rows([&](int t) { return d[t] * a[t]; });
    const vf others = count > 1.0f ? count - 1.0f : splat(1);
    const vf deviation = spread - 1e-10f;
    // With w = G x / (s + e): x = w (s + e) / G, and s changes by x / ((n - 1) s). The mean goes
    // last: it also takes what rounding left of the weights' own mean.
    const vf pull = deviation > 0.0f ? dot * spread / (G * G * others * deviation) : vf{};
    for (int t = 0; t < T; ++t) d[t] = seen[t] ? d[t] - pull * a[t] : vf{};
    const vf mean = by_rows([&](int t) { return d[t]; }) / count;
    // Of two numbers filter norm keeps the order alone: rounding would stand where 0 belongs.
    const vf slope = count == 2.0f && deviation > 0.0f ? vf{} : G / spread;
    for (int t = 0; t < T; ++t) d[t] = seen[t] ? slope * (d[t] - mean) : vf{};
  }

  // Sums over taps of the weights a[tile][t] and the neighbors' channels. ``from`` is the upper
  // tile's first neighbor, channel 0; the lower tile's channels follow the upper's in ``to``.
  template <int CB>
  void mix_channels(const vf (*a)[T], const float* from, int64_t c, float* to, int64_t step,
                    int64_t lower) const {
    vf total[2][CB] = {};
    for (int dy = 0; dy <= K; ++dy) {
      vf acc[2][CB] = {};
      const float* rows = from + dy * row() + c * span;
#pragma GCC unroll 16
      for (int dx = 0; dx < K; ++dx) {
        const vf up = dy < K ? a[0][dy * K + dx] : vf{};
        const vf low = dy > 0 ? a[1][(dy - 1) * K + dx] : vf{};
        for (int i = 0; i < CB; ++i) {
          const vf value = load(rows + i * span + dx);
          acc[0][i] += up * value;
          acc[1][i] += low * value;
        }
      }
      for (int i = 0; i < CB; ++i) {
        if (dy < K) total[0][i] += acc[0][i];
        if (dy > 0) total[1][i] += acc[1][i];
      }
    }
    for (int i = 0; i < CB; ++i) {
      store(to + (c + i) * step, total[0][i]);
      store(to + lower + (c + i) * step, total[1][i]);
    }
  }

  void mix(const vf (*a)[T], const float* from, float* to, int64_t step, int64_t lower) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth; c += 4) mix_channels<4>(a, from, c, to, step, lower);
    for (; c < p.depth; ++c) mix_channels<1>(a, from, c, to, step, lower);
  }

  // Adds the sums over taps of a[tile][t] and the table's channels.
  template <int CB>
  void mix_table(const vf (*a)[T], const float* table, bool backwards, int64_t c, float* to,
                 int64_t lower) const {
    vf acc[2][CB] = {};
    for (int t = 0; t < T; ++t) {
      const float* entry = table + (backwards ? T - 1 - t : t) * p.depth + c;
      for (int i = 0; i < CB; ++i) {
        acc[0][i] += a[0][t] * entry[i];
        acc[1][i] += a[1][t] * entry[i];
      }
    }
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < CB; ++i) {
        float* sum = to + j * lower + (c + i) * span;
        store(sum, load(sum) + acc[j][i]);
      }
  }

  void mix_table(const vf (*a)[T], const float* table, bool backwards, float* to,
                 int64_t lower) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth; c += 4) mix_table<4>(a, table, backwards, c, to, lower);
    for (; c < p.depth; ++c) mix_table<1>(a, table, backwards, c, to, lower);
  }

  // Weights [y][t][x] of a map without borders.
  int64_t wide() const { return blocks * VL; }
  int64_t taps() const { return p.height * T * wide(); }
  float* tap(float* map, int64_t y, int t, int64_t x) const {
    return map + (y * T + t) * wide() + x;
  }
  const float* tap(const float* map, int64_t y, int t, int64_t x) const {
    return tap(const_cast<float*>(map), y, t, x);
  }

  // What the queries around a pair of tiles gave them: weights by place of the query, row by row
  // from the top left, which is the taps' order backwards.
  void received(const float* weights, int64_t y, int64_t x, vf (*a)[T]) const {
    vi inside_row[K];
    for (int e = 0; e < K; ++e)
      for (int i = 0; i < VL; ++i)
        inside_row[e][i] = x + i + e - R >= 0 && x + i + e - R < p.width ? -1 : 0;
    for (int j = 0; j < 2; ++j)
      for (int dy = 0; dy < K; ++dy) {
        const int64_t from = y + j + dy - R;
        const bool there = from >= 0 && from < p.height;
        for (int e = 0; e < K; ++e) {
          const int t = dy * K + e;
          a[j][t] = vf{};
          if (there) {
            const vf weight = load(tap(weights, from, T - 1 - t, x + e - R));
            a[j][t] = inside_row[e] ? weight : vf{};
          }
        }
      }
  }

  // Sums over pixels of weights times channels, for some tiles at once: TB taps, CB channels.
  template <int TB, int CB>
  void outer_block(const vf (*a)[T], const float* const* maps, int count, int t, int64_t c,
                   float* lanes) const {
    vf acc[TB][CB] = {};
    for (int n = 0; n < count; ++n) {
      vf weight[TB];
      for (int i = 0; i < TB; ++i) weight[i] = a[n][t + i];
      for (int j = 0; j < CB; ++j) {
        const vf value = load(maps[n] + (c + j) * span);
        for (int i = 0; i < TB; ++i) acc[i][j] += weight[i] * value;
      }
    }
    for (int i = 0; i < TB; ++i)
      for (int j = 0; j < CB; ++j) {
        float* sum = lanes + ((t + i) * p.depth + c + j) * VL;
        store(sum, load(sum) + acc[i][j]);
      }
  }

  template <int TB>
  void outer_taps(const vf (*a)[T], const float* const* maps, int count, int t,
                  float* lanes) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth; c += 4) outer_block<TB, 4>(a, maps, count, t, c, lanes);
    for (; c < p.depth; ++c) outer_block<TB, 1>(a, maps, count, t, c, lanes);
  }

  void outer(const vf (*a)[T], const float* const* maps, int count, float* lanes) const {
    int t = 0;
    for (; t + 3 <= T; t += 3) outer_taps<3>(a, maps, count, t, lanes);
    for (; t < T; ++t) outer_taps<1>(a, maps, count, t, lanes);
  }
};

}  // namespace
