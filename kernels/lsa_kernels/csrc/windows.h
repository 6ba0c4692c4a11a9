// Windows, packed: the same pixel of VB * VL windows lies in the lanes of VB vectors. A table's entry
// depends on the pair of pixels alone and is broadcast once for all of them, so that with tables two
// vectors are faster; without, one keeps more of what is packed in the caches.
//
// Everything is made of three sums: ``products`` over channels (logits; gradient of the weights),
// ``mix`` over pairs (output; gradients of queries, keys and values), and ``outer`` over windows
// (gradients of the tables).
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "simd.h"
#include "transpose.h"
#include "view.h"

namespace {

struct Problem {
  int64_t batch, heads, height, width, depth, rows, columns;
  int use_qk, norm, vectors;  // vectors: of windows worked on together, 1 or 2
  float scale;
  int64_t pixels() const { return rows * columns; }
  int64_t per_image() const { return height / rows * (width / columns); }
  // Floats of a packed pixel. One channel more than there are: powers of two would put all pixels'
  // same channels into the same few sets of the first cache.
  template <int VB>
  int64_t packed() const { return (depth + 1) * VB * VL; }
  int64_t windows() const { return batch * per_image(); }
  int64_t offsets() const { return (2 * rows - 1) * (2 * columns - 1); }
  // pos(j) - pos(i) in a table that runs row by row from the top left.
  int64_t offset(int64_t i, int64_t j) const {
    const int64_t dy = j / columns - i / columns + rows - 1;
    return dy * (2 * columns - 1) + j % columns - i % columns + columns - 1;
  }
};

template <int VB>
struct Group {
  static constexpr int LANES = VB * VL;  // windows worked on together
  const Problem& p;
  const int64_t h, n, d;
  int64_t first, count;  // windows of this group

  Group(const Problem& p, int64_t h, int64_t group)
      : p(p), h(h), n(p.pixels()), d(p.depth), first(group * LANES),
        count(std::min<int64_t>(LANES, p.windows() - first)) {}

  // Where each lane's window begins in a (B, h, H, W, d) map; a pixel of it lies ``within`` further.
  template <class E>
  void corners(const View& map, E* origin, E** to) const {
    const int64_t across = p.width / p.columns;
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t image = (first + lane) / p.per_image(), w = (first + lane) % p.per_image();
      to[lane] = origin + map.place(image, h, w / across * p.rows, w % across * p.columns);
    }
  }
  int64_t within(const View& map, int64_t i) const {
    return map.place(0, 0, i / p.columns, i % p.columns);
  }

  // To [pixel][channel][lane]; lanes without a window are zero.
  void pack(const View& from, float* to) const {
    from.typed([&](const auto* origin) { pack(from, origin, to); });
  }
  void unpack(const float* from, const View& to, float factor) const {
    to.typed([&](auto* origin) { unpack(from, to, origin, factor); });
  }

  template <class E>
  void pack(const View& from, const E* origin, float* to) const {
    const E* corner[LANES];
    corners(from, origin, corner);
    for (int64_t i = 0; i < n; ++i) {
      float* block = to + i * p.packed<VB>();
      const int64_t shift = within(from, i);
      const E* at[LANES];
      for (int64_t lane = 0; lane < count; ++lane) at[lane] = corner[lane] + shift;
      int64_t c = 0;
      for (; from.stride[4] == 1 && c + 8 <= d; c += 8)
        for (int64_t lane = 0; lane < LANES; lane += 8) {
          v8 r[8];
          for (int k = 0; k < 8; ++k)
            r[k] = lane + k < count ? get8(at[lane + k] + c) : v8{};
          turn(r);
          for (int k = 0; k < 8; ++k) *(v8u*)(block + (c + k) * LANES + lane) = r[k];
        }
      for (; c < d; ++c)
        for (int64_t lane = 0; lane < LANES; ++lane)
          block[c * LANES + lane] = lane < count ? get(at[lane] + c * from.stride[4]) : 0.0f;
    }
  }

  template <class E>
  void unpack(const float* from, const View& to, E* origin, float factor) const {
    E* corner[LANES];
    corners(to, origin, corner);
    for (int64_t i = 0; i < n; ++i) {
      const float* block = from + i * p.packed<VB>();
      const int64_t shift = within(to, i);
      int64_t c = 0;
      for (; to.stride[4] == 1 && c + 8 <= d; c += 8)
        for (int64_t lane = 0; lane < count; lane += 8) {
          v8 r[8];
          for (int k = 0; k < 8; ++k) r[k] = factor * *(const v8u*)(block + (c + k) * LANES + lane);
          turn(r);
          for (int k = 0; k < 8 && lane + k < count; ++k)
            put8(corner[lane + k] + shift + c, r[k]);
        }
      for (; c < d; ++c)
        for (int64_t lane = 0; lane < count; ++lane)
          put(corner[lane] + shift + c * to.stride[4], factor * block[c * LANES + lane]);
    }
  }
};

template <int VB>
using Pair = vf[VB];  // what one pair of pixels has in every window

template <int N>
using Known = std::integral_constant<int, N>;

// What a product reads: queries and keys alone, those and both tables, or any other choice.
enum Reads { MAPS, ALL, SOME };

// Sums over channels of IB queries and JB keys, with the terms of the tables if there are any.
// ``offset`` holds the offsets of this query's pairs. In parts of CHANNELS: short sums round less.
template <int VB, int IB, int JB, Reads READS>
void product_block(const Problem& p, const float* q, const float* k, const float* rel_k,
                   const float* rel_q, const int64_t* offset, int64_t j, Pair<VB>* out) {
  static_assert(IB == 1 || READS == MAPS, "every query has table entries of its own");
  constexpr int64_t CHANNELS = 8;
  const float *rk[JB] = {}, *rq[JB] = {};
  for (int i = 0; i < JB && READS != MAPS; ++i) {
    rk[i] = rel_k ? rel_k + offset[j + i] * p.depth : nullptr;
    rq[i] = rel_q ? rel_q + offset[j + i] * p.depth : nullptr;
  }
  const int64_t step = p.packed<VB>(), n = p.pixels();
  const float* keys = k ? k + j * step : nullptr;
  for (int64_t first = 0; first < p.depth; first += CHANNELS) {
    Pair<VB> acc[IB][JB] = {};
    for (int64_t c = first; c < std::min(p.depth, first + CHANNELS); ++c)
#pragma GCC unroll 2
      for (int b = 0; b < VB; ++b) {
        const int64_t lane = (c * VB + b) * VL;
        vf query[IB] = {};
#pragma GCC unroll 2
        for (int m = 0; m < IB && (READS != SOME || q); ++m)
          query[m] = held(load(q + m * step + lane));
#pragma GCC unroll 4
        for (int i = 0; i < JB; ++i) {
          const vf key = READS != SOME || keys ? load(keys + i * step + lane) : vf{};
          if (READS == MAPS) {
#pragma GCC unroll 2
            for (int m = 0; m < IB; ++m) acc[m][i][b] += query[m] * key;
          } else if (READS == ALL) {
            acc[0][i][b] += (query[0] + rq[i][c]) * key;
            acc[0][i][b] += query[0] * rk[i][c];
          } else {
            if (rel_q)
              acc[0][i][b] += (p.use_qk ? query[0] + rq[i][c] : splat(rq[i][c])) * key;
            else if (p.use_qk)
              acc[0][i][b] += query[0] * key;
            if (rel_k) acc[0][i][b] += query[0] * rk[i][c];
          }
        }
      }
    for (int m = 0; m < IB; ++m)
      for (int i = 0; i < JB; ++i)
        for (int b = 0; b < VB; ++b) {
          vf& sum = out[m * n + j + i][b];
          sum = first ? sum + acc[m][i][b] : acc[m][i][b];
        }
  }
}

// All pairs, to [i][j]; a block of keys stays in the first cache while the queries pass.
template <int VB, Reads READS>
void products(const Problem& p, const float* q, const float* k, const float* rel_k,
              const float* rel_q, const int64_t* offsets, Pair<VB>* out) {
  constexpr int IB = READS == MAPS ? 2 : 1, JB = READS == MAPS ? 4 / VB : 4;
  const int64_t n = p.pixels(), step = p.packed<VB>();
  auto pass = [&](auto queries, auto keys, int64_t i, int64_t j) {
    product_block<VB, decltype(queries)::value, decltype(keys)::value, READS>(
        p, q ? q + i * step : nullptr, k, rel_k, rel_q, offsets + i * n, j, out + i * n);
  };
  auto all = [&](auto keys, int64_t j) {
    int64_t i = 0;
    for (; i + IB <= n; i += IB) pass(Known<IB>(), keys, i, j);
    for (; i < n; ++i) pass(Known<1>(), keys, i, j);
  };
  int64_t j = 0;
  for (; j + JB <= n; j += JB) all(Known<JB>(), j);
  for (; j < n; ++j) all(Known<1>(), j);
}

// Sums over the pairs of IB pixels of weights and (values + a table's entries): CB channels from c.
// The pixels' weights lie ``next`` apart, those of a pixel's pairs ``step``.
template <int VB, int IB, int CB, bool VALUES, bool TABLE>
void mix_block(const Problem& p, const Pair<VB>* a, int64_t next, int64_t step, const float* values,
               const float* table, const int64_t* offset, int64_t c, float* to) {
  static_assert(IB == 1 || !TABLE, "every pixel has table entries of its own");
  const int64_t n = p.pixels(), pixel = p.packed<VB>();
  Pair<VB> total[IB][CB] = {};
  for (int64_t first = 0; first < n; first += 8) {
    Pair<VB> acc[IB][CB] = {};
    for (int64_t j = first; j < std::min(n, first + 8); ++j) {
      const float* from = VALUES ? values + j * pixel + c * VB * VL : nullptr;
      const float* entry = TABLE ? table + offset[j] * p.depth + c : nullptr;
      Pair<VB> weight[IB];
      for (int m = 0; m < IB; ++m)
        for (int b = 0; b < VB; ++b) weight[m][b] = held(a[m * next + j * step][b]);
      for (int i = 0; i < CB; ++i) {
        const vf own = TABLE ? held(splat(entry[i])) : vf{};
        for (int b = 0; b < VB; ++b) {
          const vf value = VALUES ? load(from + (i * VB + b) * VL) : vf{};
          for (int m = 0; m < IB; ++m)
            acc[m][i][b] += weight[m][b] * (VALUES && TABLE ? value + own : VALUES ? value : own);
        }
      }
    }
    for (int m = 0; m < IB; ++m)
      for (int i = 0; i < CB; ++i)
        for (int b = 0; b < VB; ++b) total[m][i][b] += acc[m][i][b];
  }
  for (int m = 0; m < IB; ++m)
    for (int i = 0; i < CB; ++i)
      for (int b = 0; b < VB; ++b) store(to + m * pixel + ((c + i) * VB + b) * VL, total[m][i][b]);
}

template <int VB, bool VALUES, bool TABLE>
void mix_of(const Problem& p, const Pair<VB>* a, int64_t next, int64_t step, const float* values,
            const float* table, const int64_t* offsets, float* to) {
  constexpr int IB = TABLE ? 1 : 2, CB = TABLE ? 4 : 4 / VB;
  const int64_t n = p.pixels(), size = p.packed<VB>();
  auto pass = [&](auto pixels, auto channels, int64_t i, int64_t c) {
    mix_block<VB, decltype(pixels)::value, decltype(channels)::value, VALUES, TABLE>(
        p, a + i * next, next, step, values, table, offsets + i * n, c, to + i * size);
  };
  auto all = [&](auto channels, int64_t c) {
    int64_t i = 0;
    for (; i + IB <= n; i += IB) pass(Known<IB>(), channels, i, c);
    for (; i < n; ++i) pass(Known<1>(), channels, i, c);
  };
  int64_t c = 0;
  for (; c + CB <= p.depth; c += CB) all(Known<CB>(), c);
  for (; c < p.depth; ++c) all(Known<1>(), c);
}

// All pixels; a block of channels stays in the first cache while they pass. Weights of pixel i lie
// at a[i * next], those of its pairs ``step`` apart. At least one of values and table is there.
template <int VB>
void mix(const Problem& p, const Pair<VB>* a, int64_t next, int64_t step, const float* values,
         const float* table, const int64_t* offsets, float* to) {
  auto way = values && table ? mix_of<VB, true, true>
             : values        ? mix_of<VB, true, false>
                             : mix_of<VB, false, true>;
  way(p, a, next, step, values, table, offsets, to);
}

// Gradient of a table: for every offset, sums over its pairs of slopes and one pixel's channels.
// ``next`` is how far apart the slopes of two such pixels lie, ``step`` those of one pixel's pairs;
// ``offsets`` runs alike. CB channels from c; ``block`` is room for them. Lanes are summed when a
// share is done.
template <int VB, int CB>
void outer_block(const Problem& p, const Pair<VB>* slopes, int64_t next, int64_t step,
                 const float* map, const int64_t* offsets, int64_t c, vf* block, vf* sums) {
  const int64_t n = p.pixels(), o = p.offsets();
  std::fill(block, block + o * CB, vf{});
  for (int64_t i = 0; i < n; ++i) {
    Pair<VB> pixel[CB];
    for (int k = 0; k < CB; ++k)
      for (int b = 0; b < VB; ++b)
        pixel[k][b] = held(load(map + i * p.packed<VB>() + ((c + k) * VB + b) * VL));
    for (int64_t j = 0; j < n; ++j) {
      vf* to = block + offsets[i * n + j] * CB;
      Pair<VB> slope;
      for (int b = 0; b < VB; ++b) slope[b] = held(slopes[i * next + j * step][b]);
      for (int k = 0; k < CB; ++k) {
        vf total = to[k];
        for (int b = 0; b < VB; ++b) total += slope[b] * pixel[k][b];
        to[k] = total;
      }
    }
  }
  for (int64_t e = 0; e < o; ++e)
    for (int k = 0; k < CB; ++k) sums[e * p.depth + c + k] += block[e * CB + k];
}

template <int VB>
void outer(const Problem& p, const Pair<VB>* slopes, int64_t next, int64_t step, const float* map,
           const int64_t* offsets, std::vector<vf>& block, vf* sums) {
  int64_t c = 0;
  for (; c + 4 <= p.depth; c += 4)
    outer_block<VB, 4>(p, slopes, next, step, map, offsets, c, block.data(), sums);
  for (; c < p.depth; ++c)
    outer_block<VB, 1>(p, slopes, next, step, map, offsets, c, block.data(), sums);
}

}  // namespace
