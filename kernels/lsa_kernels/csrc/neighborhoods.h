// One head of one image, packed to [row][channel][x] with a border of zeros, so that the pixels of a
// row lie in the vector's lanes: no sums across lanes, the norm over the taps is lane by lane, and a
// tap to the right is a load one float further. Some tiles of VL pixels, one under the other, are
// worked on together: a loaded neighbor serves all that it is a neighbor of.
//
// Everything is made of three sums: ``products`` over channels (logits; gradient of the weights),
// ``mix`` over taps (output; gradients of queries, keys and values), and ``outer`` over pixels
// (gradients of the tables).
#pragma once
#include <algorithm>
#include <type_traits>

#include "memory.h"
#include "neighborhood_norms.h"
#include "transpose.h"
#include "view.h"

namespace {

template <int N>
using Known = std::integral_constant<int, N>;

template <int K>
struct Task {
  static constexpr int R = K / 2, T = K * K;
  // Tiles worked on together, as many as the registers have room for; at a map's end two.
#ifdef __AVX512F__
  static constexpr int MANY = 4;
#else
  static constexpr int MANY = 2;
#endif
  static constexpr int GROUP = 8;  // tiles whose outer products are added up at once
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

  // Calls with the number of tiles from (y, x) on, for all tiles of the map.
  template <class Call>
  void each_tiles(Call call) const {
    int64_t y = 0;
    for (; y + MANY <= p.height; y += MANY)
      for (int64_t x = 0; x < wide(); x += VL) call(Known<MANY>(), y, x);
    for (; y < p.height; y += 2)
      for (int64_t x = 0; x < wide(); x += VL) call(Known<2>(), y, x);
  }

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

  // From a (B, h, H, W, d) map.
  void pack(const View& from, float* map) const {
    from.typed([&](const auto* origin) {
      for (int64_t y = 0; y < p.height; ++y) {
        // Pixels lie further apart than the processor looks ahead by itself.
        for (int64_t x = 0; x < p.width && y + 1 < p.height && from.stride[4] == 1; ++x)
          for (int64_t c = 0; c < p.depth; c += 64 / sizeof *origin)
            __builtin_prefetch(origin + from.place(b, h, y + 1, x) + c);
        to_lanes(origin + from.place(b, h, y), from.stride[3], from.stride[4], p.width, p.depth,
                 at(map, y, 0, 0), span);
      }
    });
  }

  void unpack(const float* map, const View& to, float factor) const {
    to.typed([&](auto* origin) {
      for (int64_t y = 0; y < p.height; ++y)
        from_lanes(at(map, y, 0, 0), span, p.width, p.depth, factor, origin + to.place(b, h, y),
                   to.stride[3], to.stride[4]);
    });
  }

  // Some tiles [tile][channel][VL] from (y, x) on. Never a part of its caller, whose sums need all
  // registers.
  __attribute__((noinline)) void unpack_tiles(const float* tiles, int64_t count, int64_t y, int64_t x,
                                              const View& to) const {
    to.typed([&](auto* origin) {
      for (int j = 0; j < count; ++j)
        from_lanes(tiles + j * p.depth * VL, VL, std::min<int64_t>(VL, p.width - x), p.depth, 1.0f,
                   origin + to.place(b, h, y + j, x), to.stride[3], to.stride[4]);
    });
  }

  // Lanes that are pixels of the map at all.
  vi real(int64_t x) const {
    vi lane;
    for (int i = 0; i < VL; ++i) lane[i] = x + i < p.width ? -1 : 0;
    return lane;
  }

  // What the row ``dy`` of their areas gives to the logits of the tiles, ALL terms or any choice
  // of them: the tiles share the tables' entries, whose loads are the limit, not the neighbors.
  template <int ROWS, bool ALL>
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
      vf acc[ROWS][CHUNK] = {};
      for (int64_t c = 0; c < p.depth; ++c) {
        vf q[ROWS];
#pragma GCC unroll 4
        for (int j = 0; j < ROWS; ++j) q[j] = held(load_of(query, j, c * span));
#pragma GCC unroll 4
        for (int i = 0; i < CHUNK; ++i) {
          if (first + i >= K) continue;
          const int64_t entry = c * K + first + i;
#pragma GCC unroll 4
          for (int j = 0; j < ROWS; ++j) {
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
#pragma GCC unroll 4
        for (int j = 0; j < ROWS && first + i < K; ++j)
          out[j][dy * K + first + i] = p.scale * acc[j][i];
    }
  }

  // Calls with the tiles, from the first to before the second number, that have a row of neighbors
  // in their areas: the row ``e`` of the first tile's, the row ``e - j`` of tile j's.
  template <int ROWS, class Call>
  static void each_row(Call call) {
    static_assert(ROWS <= K + 1, "the first and the last tile would share no row");
    upper_rows<ROWS, 1>(call);
    for (int e = ROWS - 1; e < K; ++e) call(Known<0>(), Known<ROWS>(), e);
    lower_rows<ROWS, 1>(call);
  }
  template <int ROWS, int TO, class Call>
  static void upper_rows(Call call) {
    if constexpr (TO < ROWS) {
      call(Known<std::max(0, TO - K)>(), Known<TO>(), TO - 1);
      upper_rows<ROWS, TO + 1>(call);
    }
  }
  template <int ROWS, int FROM, class Call>
  static void lower_rows(Call call) {
    if constexpr (FROM < ROWS) {
      call(Known<FROM>(), Known<ROWS>(), K - 1 + FROM);
      lower_rows<ROWS, FROM + 1>(call);
    }
  }

  // What a row of neighbors gives to the sums of the tiles that share it.
  template <int FROM, int TO>
  void plain_row(const float* query, const float* key, int e, float scale, vf (*out)[T]) const {
    constexpr int ROWS = TO - FROM;
    constexpr int CHUNK = ROWS > 1 ? 4 : 8;  // as many sums under way as the units take at once
#pragma GCC unroll 4
    for (int first = 0; first < K; first += CHUNK) {
      vf acc[ROWS][CHUNK] = {};
      for (int64_t c = 0; c < p.depth; ++c) {
        vf q[ROWS];
#pragma GCC unroll 4
        for (int j = 0; j < ROWS; ++j) q[j] = held(load(query + (FROM + j) * row() + c * span));
#pragma GCC unroll 8
        for (int i = 0; i < CHUNK; ++i) {
          if (first + i >= K) continue;
          const vf neighbor = held(load(key + c * span + first + i));
#pragma GCC unroll 4
          for (int j = 0; j < ROWS; ++j) acc[j][i] += q[j] * neighbor;
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < CHUNK; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < ROWS && first + i < K; ++j)
          out[FROM + j][(e - FROM - j) * K + first + i] = scale * acc[j][i];
    }
  }

  // Sums over channels between some tiles and all their neighbors. ``query`` is the upper tile's
  // first pixel, ``key`` the first neighbor of it.
  template <int ROWS>
  void products(const float* query, const float* key, float scale, vf (*out)[T]) const {
    each_row<ROWS>([&](auto from, auto to, int e) {
      plain_row<decltype(from)::value, decltype(to)::value>(query, key + e * row(), e, scale, out);
    });
  }

  template <int ROWS>
  void logits(const float* query, const float* key, const float* table_k, const float* table_q,
              vf (*out)[T]) const {
    auto below = [&](int rows) { return key ? key + rows * row() : nullptr; };
    if (!table_k && !table_q && p.use_qk)
      products<ROWS>(query, key, p.scale, out);
    else if (p.use_qk && table_k && table_q)
      for (int dy = 0; dy < K; ++dy)
        table_row<ROWS, true>(query, below(dy), table_k, table_q, dy, out);
    else
      for (int dy = 0; dy < K; ++dy)
        table_row<ROWS, false>(query, below(dy), table_k, table_q, dy, out);
    for (int j = 0; j < ROWS && bias; ++j)
      for (int t = 0; t < T; ++t) out[j][t] += bias[t];
  }

  // Sums over taps of the weights a[tile][t] and the neighbors' channels. ``from`` is the upper
  // tile's first neighbor, channel 0; a tile's channels are ``lower`` behind those above in ``to``.
  template <int ROWS, int CB>
  void mix_channels(const vf (*a)[T], const float* from, int64_t c, float* to, int64_t step,
                    int64_t lower) const {
    const float* top = from + c * span;
    vf acc[ROWS][CB] = {};
    each_row<ROWS>([&](auto first, auto last, int e) __attribute__((always_inline)) {
      constexpr int FROM = decltype(first)::value, TO = decltype(last)::value;
#pragma GCC unroll 16
      for (int dx = 0; dx < K; ++dx) {
        vf weight[TO - FROM];
#pragma GCC unroll 4
        for (int j = FROM; j < TO; ++j) weight[j - FROM] = held(a[j][(e - j) * K + dx]);
#pragma GCC unroll 6
        for (int i = 0; i < CB; ++i) {
          const vf value = held(load(top + e * row() + i * span + dx));
#pragma GCC unroll 4
          for (int j = FROM; j < TO; ++j) acc[j][i] += weight[j - FROM] * value;
        }
      }
    });
    for (int i = 0; i < CB; ++i)
      for (int j = 0; j < ROWS; ++j) store(to + j * lower + (c + i) * step, acc[j][i]);
  }

  // As many channels as fill the registers and keep the units busy: four of four tiles, six of two,
  // once fours have made that possible.
  template <int ROWS>
  void mix(const vf (*a)[T], const float* from, float* to, int64_t step, int64_t lower) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth && (ROWS > 2 || (p.depth - c) % 6); c += 4)
      mix_channels<ROWS, 4>(a, from, c, to, step, lower);
    for (; ROWS == 2 && c + 6 <= p.depth; c += 6)
      mix_channels<ROWS, 6>(a, from, c, to, step, lower);
    for (; c < p.depth; ++c) mix_channels<ROWS, 1>(a, from, c, to, step, lower);
  }

  // Adds the sums over taps of a[tile][t] and the table's channels.
  template <int ROWS, int CB>
  void mix_table(const vf (*a)[T], const float* table, bool backwards, int64_t c, float* to,
                 int64_t lower) const {
    vf acc[ROWS][CB] = {};
    for (int t = 0; t < T; ++t) {
      const float* entry = table + (backwards ? T - 1 - t : t) * p.depth + c;
      vf weight[ROWS];
      for (int j = 0; j < ROWS; ++j) weight[j] = held(a[j][t]);
      for (int i = 0; i < CB; ++i) {
        const vf value = held(splat(entry[i]));
        for (int j = 0; j < ROWS; ++j) acc[j][i] += weight[j] * value;
      }
    }
    for (int j = 0; j < ROWS; ++j)
      for (int i = 0; i < CB; ++i) {
        float* sum = to + j * lower + (c + i) * span;
        store(sum, load(sum) + acc[j][i]);
      }
  }

  template <int ROWS>
  void mix_table(const vf (*a)[T], const float* table, bool backwards, float* to,
                 int64_t lower) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth; c += 4) mix_table<ROWS, 4>(a, table, backwards, c, to, lower);
    for (; c < p.depth; ++c) mix_table<ROWS, 1>(a, table, backwards, c, to, lower);
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

  // What the queries around some tiles gave them: weights by place of the query, row by row from
  // the top left, which is the taps' order backwards.
  template <int ROWS>
  void received(const float* weights, int64_t y, int64_t x, vf (*a)[T]) const {
    vi inside_row[K];
    for (int e = 0; e < K; ++e)
      for (int i = 0; i < VL; ++i)
        inside_row[e][i] = x + i + e - R >= 0 && x + i + e - R < p.width ? -1 : 0;
    for (int j = 0; j < ROWS; ++j)
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
    constexpr int CB = MANY > 2 ? 3 : 4;
    int64_t c = 0;
    for (; c + CB <= p.depth; c += CB) outer_block<TB, CB>(a, maps, count, t, c, lanes);
    for (; c < p.depth; ++c) outer_block<TB, 1>(a, maps, count, t, c, lanes);
  }

  void outer(const vf (*a)[T], const float* const* maps, int count, float* lanes) const {
    constexpr int TB = MANY > 2 ? 7 : 3;
    int t = 0;
    for (; t + TB <= T; t += TB) outer_taps<TB>(a, maps, count, t, lanes);
    for (; t < T; ++t) outer_taps<1>(a, maps, count, t, lanes);
  }
};

}  // namespace
