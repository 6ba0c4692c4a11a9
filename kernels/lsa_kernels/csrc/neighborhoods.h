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

  // What the row ``dy`` of their areas gives to the logits of both tiles, ALL terms or any choice
  // of them: the tiles share the tables' entries, whose loads are the limit, not the neighbors.
  template <bool ALL>
  void table_row(const float* query, const float* key, const float* table_k, const float* table_q,
                 int dy, vf (*out)[T]) const {
    constexpr int CHUNK = 4;
    const float* rk = table_k ? table_k + dy * p.depth * K : nullptr;
    const float* rq = table_q ? table_q + dy * p.depth * K : nullptr;
    auto load_of = [&](const float* map, int64_t tile, int64_t at) {
      return ALL || map ? load(map + tile * row() + at) : vf{};
    };
#pragma GCC unroll 4
    for (int first = 0; first < K; first += CHUNK) {
      vf acc[2][CHUNK] = {};
      for (int64_t c = 0; c < p.depth; ++c) {
        const vf q[2] = {held(load_of(query, 0, c * span)), held(load_of(query, 1, c * span))};
#pragma GCC unroll 4
        for (int i = 0; i < CHUNK; ++i) {
          if (first + i >= K) continue;
          const int64_t entry = c * K + first + i;
#pragma GCC unroll 2
          for (int j = 0; j < 2; ++j) {
            const vf neighbor = load_of(key, j, c * span + first + i);
            if (ALL || (rq && p.use_qk))
              acc[j][i] += (q[j] + rq[entry]) * neighbor;
            else if (rq)
              acc[j][i] += rq[entry] * neighbor;
            else if (p.use_qk)
              acc[j][i] += q[j] * neighbor;
            if (ALL || rk) acc[j][i] += q[j] * rk[entry];
          }
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < CHUNK; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < 2 && first + i < K; ++j) out[j][dy * K + first + i] = p.scale * acc[j][i];
    }
  }

  // What a row of neighbors gives to the sums of the upper tile (UP), for which it is the row ``dy``
  // of its area, and of the lower one (LOW), for which it is ``dy - 1``: they share the neighbors.
  template <bool UP, bool LOW>
  void plain_row(const float* query, const float* key, int dy, float scale, vf (*out)[T]) const {
    constexpr int CHUNK = UP && LOW ? 4 : 8;  // as many sums under way as the units take at once
    const int rows[2] = {dy, dy - 1};
#pragma GCC unroll 4
    for (int first = 0; first < K; first += CHUNK) {
      vf acc[2][CHUNK] = {};
      for (int64_t c = 0; c < p.depth; ++c) {
        vf q[2] = {};
        if (UP) q[0] = held(load(query + c * span));
        if (LOW) q[1] = held(load(query + row() + c * span));
#pragma GCC unroll 8
        for (int i = 0; i < CHUNK; ++i) {
          if (first + i >= K) continue;
          const vf neighbor = held(load(key + c * span + first + i));
          if (UP) acc[0][i] += q[0] * neighbor;
          if (LOW) acc[1][i] += q[1] * neighbor;
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < CHUNK; ++i) {
        if (first + i >= K) continue;
        if (UP) out[0][rows[0] * K + first + i] = scale * acc[0][i];
        if (LOW) out[1][rows[1] * K + first + i] = scale * acc[1][i];
      }
    }
  }

  // Sums over channels between a pair of tiles and all their neighbors. ``query`` is the upper
  // tile's first pixel, ``key`` the first neighbor of it.
  void products(const float* query, const float* key, float scale, vf (*out)[T]) const {
    plain_row<true, false>(query, key, 0, scale, out);
    for (int dy = 1; dy < K; ++dy)
      plain_row<true, true>(query, key + dy * row(), dy, scale, out);
    plain_row<false, true>(query, key + K * row(), K, scale, out);
  }

  void logits(const float* query, const float* key, const float* table_k, const float* table_q,
              vf (*out)[T]) const {
    auto below = [&](int rows) { return key ? key + rows * row() : nullptr; };
    if (!table_k && !table_q && p.use_qk)
      products(query, key, p.scale, out);
    else if (p.use_qk && table_k && table_q)
      for (int dy = 0; dy < K; ++dy)
        table_row<true>(query, below(dy), table_k, table_q, dy, out);
    else
      for (int dy = 0; dy < K; ++dy)
        table_row<false>(query, below(dy), table_k, table_q, dy, out);
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
    for (int t = 0; t < T && (p.mask || p.norm == FILTER_NORM); ++t)
      seen[t] = p.mask ? inside(y, x, t / K - R, t % K - R) : vi{} - 1;
    if (p.norm == SOFTMAX) {
      vf top = splat(-INFINITY);
      for (int t = 0; t < T; ++t) {
        if (p.mask) a[t] = seen[t] ? a[t] : splat(-INFINITY);
        top = larger(a[t], top);  // a NaN stays in the sum
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
    const float* top = from + c * span;
    const float* end = top + K * row();
    vf acc[2][CB] = {};
    for (int dy = 1; dy < K; ++dy)
#pragma GCC unroll 16
      for (int dx = 0; dx < K; ++dx) {
        const vf up = held(a[0][dy * K + dx]), low = held(a[1][(dy - 1) * K + dx]);
#pragma GCC unroll 6
        for (int i = 0; i < CB; ++i) {
          const vf value = held(load(top + dy * row() + i * span + dx));
          acc[0][i] += up * value;
          acc[1][i] += low * value;
        }
      }
    // The rows that only one of the tiles sees.
#pragma GCC unroll 16
    for (int dx = 0; dx < K; ++dx) {
      const vf up = held(a[0][dx]), low = held(a[1][(K - 1) * K + dx]);
#pragma GCC unroll 6
      for (int i = 0; i < CB; ++i) {
        acc[0][i] += up * load(top + i * span + dx);
        acc[1][i] += low * load(end + i * span + dx);
      }
    }
    for (int i = 0; i < CB; ++i)
      for (int j = 0; j < 2; ++j) store(to + j * lower + (c + i) * step, acc[j][i]);
  }

  // By sixes, which fill the registers and keep the units busy, once fours have made that possible.
  void mix(const vf (*a)[T], const float* from, float* to, int64_t step, int64_t lower) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth && (p.depth - c) % 6; c += 4)
      mix_channels<4>(a, from, c, to, step, lower);
    for (; c + 6 <= p.depth; c += 6) mix_channels<6>(a, from, c, to, step, lower);
    for (; c < p.depth; ++c) mix_channels<1>(a, from, c, to, step, lower);
  }

  // Adds the sums over taps of a[tile][t] and the table's channels.
  template <int CB>
  void mix_table(const vf (*a)[T], const float* table, bool backwards, int64_t c, float* to,
                 int64_t lower) const {
    vf acc[2][CB] = {};
    for (int t = 0; t < T; ++t) {
      const float* entry = table + (backwards ? T - 1 - t : t) * p.depth + c;
      const vf up = held(a[0][t]), low = held(a[1][t]);
      for (int i = 0; i < CB; ++i) {
        const vf value = held(splat(entry[i]));
        acc[0][i] += up * value;
        acc[1][i] += low * value;
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
      for (int i = 0; i < TB; ++i) weight[i] = held(a[n][t + i]);
      for (int j = 0; j < CB; ++j) {
        const vf value = held(load(maps[n] + (c + j) * span));
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
