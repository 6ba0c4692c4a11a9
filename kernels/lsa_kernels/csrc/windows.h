// Windows, packed: the same pixel of 2 * VL windows lies in the lanes of two vectors, so that a
// table's entry, which depends on the pair of pixels alone, is broadcast once for all of them.
//
// Everything is made of three sums: ``products`` over channels (logits; gradient of the weights),
// ``mix`` over pairs (output; gradients of queries, keys and values), and ``outer`` over windows
// (gradients of the tables).
#pragma once
#include <algorithm>
#include <vector>

#include "memory.h"
#include "simd.h"
#include "transpose.h"

namespace {

struct Problem {
  int64_t batch, heads, height, width, depth, rows, columns;
  int use_qk, norm;
  float scale;
  int64_t pixels() const { return rows * columns; }
  int64_t per_image() const { return height / rows * (width / columns); }
  // Floats of a packed pixel. One channel more than there are: powers of two would put all pixels'
  // same channels into the same few sets of the first cache.
  int64_t packed() const;
  int64_t windows() const { return batch * per_image(); }
  int64_t offsets() const { return (2 * rows - 1) * (2 * columns - 1); }
  // pos(j) - pos(i) in a table that runs row by row from the top left.
  int64_t offset(int64_t i, int64_t j) const {
    const int64_t dy = j / columns - i / columns + rows - 1;
    return dy * (2 * columns - 1) + j % columns - i % columns + columns - 1;
  }
};

// Element strides of a (B, h, H, W, d) view.
struct View {
  float* at;
  int64_t stride[5];
};

constexpr int VB = 2, LANES = VB * VL;  // vectors, and windows, worked on together
int64_t Problem::packed() const { return (depth + 1) * LANES; }

struct Group {
  const Problem& p;
  const int64_t h, n, d;
  int64_t first, count;  // windows of this group

  Group(const Problem& p, int64_t h, int64_t group)
      : p(p), h(h), n(p.pixels()), d(p.depth), first(group * LANES),
        count(std::min<int64_t>(LANES, p.windows() - first)) {}

  // Where each lane's window begins; a pixel of it lies ``within`` further.
  void corners(const View& map, float** to) const {
    const int64_t across = p.width / p.columns;
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t image = (first + lane) / p.per_image(), w = (first + lane) % p.per_image();
      to[lane] = map.at + image * map.stride[0] + h * map.stride[1] +
                 w / across * p.rows * map.stride[2] + w % across * p.columns * map.stride[3];
    }
  }
  int64_t within(const View& map, int64_t i) const {
    return i / p.columns * map.stride[2] + i % p.columns * map.stride[3];
  }

  // To [pixel][channel][lane]; lanes without a window are zero.
  void pack(const View& from, float* to) const {
    float* corner[LANES];
    corners(from, corner);
    for (int64_t i = 0; i < n; ++i) {
      float* block = to + i * p.packed();
      const int64_t shift = within(from, i);
      const float* at[LANES];
      for (int64_t lane = 0; lane < count; ++lane) at[lane] = corner[lane] + shift;
      int64_t c = 0;
      for (; from.stride[4] == 1 && c + 8 <= d; c += 8)
        for (int64_t lane = 0; lane < LANES; lane += 8) {
          v8 r[8];
          for (int k = 0; k < 8; ++k)
            r[k] = lane + k < count ? v8(*(const v8u*)(at[lane + k] + c)) : v8{};
          turn(r);
          for (int k = 0; k < 8; ++k) *(v8u*)(block + (c + k) * LANES + lane) = r[k];
        }
      for (; c < d; ++c)
        for (int64_t lane = 0; lane < LANES; ++lane)
          block[c * LANES + lane] = lane < count ? at[lane][c * from.stride[4]] : 0.0f;
    }
  }

  void unpack(const float* from, const View& to, float factor) const {
    float* corner[LANES];
    corners(to, corner);
    for (int64_t i = 0; i < n; ++i) {
      const float* block = from + i * p.packed();
      const int64_t shift = within(to, i);
      int64_t c = 0;
      for (; to.stride[4] == 1 && c + 8 <= d; c += 8)
        for (int64_t lane = 0; lane < count; lane += 8) {
          v8 r[8];
          for (int k = 0; k < 8; ++k) r[k] = factor * *(const v8u*)(block + (c + k) * LANES + lane);
          turn(r);
          for (int k = 0; k < 8 && lane + k < count; ++k)
            *(v8u*)(corner[lane + k] + shift + c) = r[k];
        }
      for (; c < d; ++c)
        for (int64_t lane = 0; lane < count; ++lane)
          corner[lane][shift + c * to.stride[4]] = factor * block[c * LANES + lane];
    }
  }
};

typedef vf Pair[VB];

// What a product reads: queries and keys alone, those and both tables, or any other choice.
enum Reads { MAPS, ALL, SOME };

// Sums over channels of one query and JB keys, with the terms of the tables if there are any.
// ``offset`` holds the offsets of this query's pairs. In parts of CHANNELS: short sums round less.
template <int JB, Reads READS>
void product_block(const Problem& p, const float* q, const float* k, const float* rel_k,
                   const float* rel_q, const int64_t* offset, int64_t j, Pair* out) {
  constexpr int64_t CHANNELS = 8;
  const float *rk[JB] = {}, *rq[JB] = {};
  for (int i = 0; i < JB && READS != MAPS; ++i) {
    rk[i] = rel_k ? rel_k + offset[j + i] * p.depth : nullptr;
    rq[i] = rel_q ? rel_q + offset[j + i] * p.depth : nullptr;
  }
  const float* keys = k ? k + j * p.packed() : nullptr;
  const int64_t step = p.packed();
  for (int64_t first = 0; first < p.depth; first += CHANNELS) {
    Pair acc[JB] = {};
    for (int64_t c = first; c < std::min(p.depth, first + CHANNELS); ++c) {
      Pair query = {};
      for (int b = 0; b < VB && (READS != SOME || q); ++b) query[b] = held(load(q + c * LANES + b * VL));
      for (int i = 0; i < JB; ++i)
        for (int b = 0; b < VB; ++b) {
          const vf key = READS != SOME || keys ? load(keys + i * step + c * LANES + b * VL) : vf{};
          if (READS == MAPS) {
            acc[i][b] += query[b] * key;
          } else if (READS == ALL) {
            acc[i][b] += (query[b] + rq[i][c]) * key;
            acc[i][b] += query[b] * rk[i][c];
          } else {
            if (rel_q)
              acc[i][b] += (p.use_qk ? query[b] + rq[i][c] : splat(rq[i][c])) * key;
            else if (p.use_qk)
              acc[i][b] += query[b] * key;
            if (rel_k) acc[i][b] += query[b] * rk[i][c];
          }
        }
    }
    for (int i = 0; i < JB; ++i)
      for (int b = 0; b < VB; ++b) out[j + i][b] = first ? out[j + i][b] + acc[i][b] : acc[i][b];
  }
}

// All pairs, to [i][j]; a block of keys stays in the first cache while the queries pass.
template <Reads READS>
void products(const Problem& p, const float* q, const float* k, const float* rel_k,
              const float* rel_q, const int64_t* offsets, Pair* out) {
  const int64_t n = p.pixels(), step = p.packed();
  int64_t j = 0;
  auto pass = [&](auto block) {
    for (int64_t i = 0; i < n; ++i)
      block(q ? q + i * step : nullptr, offsets + i * n, out + i * n);
  };
  for (; j + 4 <= n; j += 4)
    pass([&](const float* query, const int64_t* offset, Pair* row) {
      product_block<4, READS>(p, query, k, rel_k, rel_q, offset, j, row);
    });
  for (; j < n; ++j)
    pass([&](const float* query, const int64_t* offset, Pair* row) {
      product_block<1, READS>(p, query, k, rel_k, rel_q, offset, j, row);
    });
}

// Sums over one pixel's pairs of weights and (values + a table's entries): CB channels from c.
template <int CB, bool VALUES, bool TABLE>
void mix_block(const Problem& p, const Pair* a, int64_t step, const float* values,
               const float* table, const int64_t* offset, int64_t c, float* to) {
  const int64_t n = p.pixels(), pixel = p.packed();
  Pair total[CB] = {};
  for (int64_t first = 0; first < n; first += 8) {
    Pair acc[CB] = {};
    for (int64_t j = first; j < std::min(n, first + 8); ++j) {
      const float* from = VALUES ? values + j * pixel + c * LANES : nullptr;
      const float* entry = TABLE ? table + offset[j] * p.depth + c : nullptr;
      Pair weight;
      for (int b = 0; b < VB; ++b) weight[b] = held(a[j * step][b]);
      for (int i = 0; i < CB; ++i) {
        const vf own = TABLE ? held(splat(entry[i])) : vf{};
        for (int b = 0; b < VB; ++b) {
          const vf value = VALUES ? load(from + i * LANES + b * VL) : vf{};
          acc[i][b] += weight[b] * (VALUES && TABLE ? value + own : VALUES ? value : own);
        }
      }
    }
    for (int i = 0; i < CB; ++i)
      for (int b = 0; b < VB; ++b) total[i][b] += acc[i][b];
  }
  for (int i = 0; i < CB; ++i)
    for (int b = 0; b < VB; ++b) store(to + (c + i) * LANES + b * VL, total[i][b]);
}

template <bool VALUES, bool TABLE>
void mix_of(const Problem& p, const Pair* a, int64_t next, int64_t step, const float* values,
            const float* table, const int64_t* offsets, float* to) {
  const int64_t n = p.pixels(), size = p.packed();
  int64_t c = 0;
  for (; c + 4 <= p.depth; c += 4)
    for (int64_t i = 0; i < n; ++i)
      mix_block<4, VALUES, TABLE>(p, a + i * next, step, values, table, offsets + i * n, c,
                                  to + i * size);
  for (; c < p.depth; ++c)
    for (int64_t i = 0; i < n; ++i)
      mix_block<1, VALUES, TABLE>(p, a + i * next, step, values, table, offsets + i * n, c,
                                  to + i * size);
}

// All pixels; a block of channels stays in the first cache while they pass. Weights of pixel i lie
// at a[i * next], those of its pairs ``step`` apart. At least one of values and table is there.
void mix(const Problem& p, const Pair* a, int64_t next, int64_t step, const float* values,
         const float* table, const int64_t* offsets, float* to) {
  auto way = values && table ? mix_of<true, true>
             : values        ? mix_of<true, false>
                             : mix_of<false, true>;
  way(p, a, next, step, values, table, offsets, to);
}

// Gradient of a table: for every offset, sums over its pairs of slopes and one pixel's channels.
// ``next`` is how far apart the slopes of two such pixels lie, ``step`` those of one pixel's pairs;
// ``offsets`` runs alike. CB channels from c; ``block`` is room for them. Lanes are summed when a
// share is done.
template <int CB>
void outer_block(const Problem& p, const Pair* slopes, int64_t next, int64_t step, const float* map,
                 const int64_t* offsets, int64_t c, vf* block, vf* sums) {
  const int64_t n = p.pixels(), o = p.offsets();
  std::fill(block, block + o * CB, vf{});
  for (int64_t i = 0; i < n; ++i) {
    Pair pixel[CB];
    for (int k = 0; k < CB; ++k)
      for (int b = 0; b < VB; ++b)
        pixel[k][b] = held(load(map + i * p.packed() + (c + k) * LANES + b * VL));
    for (int64_t j = 0; j < n; ++j) {
      vf* to = block + offsets[i * n + j] * CB;
      Pair slope;
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

void outer(const Problem& p, const Pair* slopes, int64_t next, int64_t step, const float* map,
           const int64_t* offsets, std::vector<vf>& block, vf* sums) {
  int64_t c = 0;
  for (; c + 4 <= p.depth; c += 4)
    outer_block<4>(p, slopes, next, step, map, offsets, c, block.data(), sums);
  for (; c < p.depth; ++c)
    outer_block<1>(p, slopes, next, step, map, offsets, c, block.data(), sums);
}

}  // namespace
