// Eq. 4 on shared windows, forward and backward, float32; any side, maps rolled and padded already.
//
// The same pixel of 2 * VL windows lies in the lanes of two vectors, so that a table's entry, which
// depends on the pair of pixels alone, is broadcast once for all of them. A task works through a
// fixed share of a head's windows; parameter gradients are summed over the shares in order, so
// results do not depend on the number of threads.
#include <algorithm>
#include <cmath>

#include "memory.h"
#include "simd.h"
#include "transpose.h"

namespace {

enum Norm { IDENTITY = 0, FILTER_NORM = 1, SOFTMAX = 2 };

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
constexpr int64_t SHARES = 16;          // tasks of a head
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
      for (int b = 0; b < VB && (READS != SOME || q); ++b) query[b] = load(q + c * LANES + b * VL);
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
      for (int i = 0; i < CB; ++i)
        for (int b = 0; b < VB; ++b) {
          vf value = VALUES ? load(from + i * LANES + b * VL) : splat(entry[i]);
          if (VALUES && TABLE) value += entry[i];
          acc[i][b] += a[j * step][b] * value;
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
        pixel[k][b] = load(map + i * p.packed() + (c + k) * LANES + b * VL);
    for (int64_t j = 0; j < n; ++j) {
      vf* to = block + offsets[i * n + j] * CB;
      const Pair& slope = slopes[i * next + j * step];
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

// A sum over the pairs of a query, in short parts: they round less than one long one.
template <class Term>
vf in_parts(int64_t n, Term term) {
  vf total = vf{};
  for (int64_t j = 0; j < n; j += 8) {
    vf part = vf{};
    for (int64_t k = j; k < std::min(n, j + 8); ++k) part += term(k);
    total += part;
  }
  return total;
}

// Which pairs count, a byte for each window of an image: [pair][window], all bits set if it does. The
// first windows stand once more at the end of a row, so that any LANES in turn can be loaded.
struct Mask {
  int64_t row = 0;
  std::vector<int8_t> seen;
  std::vector<char> some;  // for each window, whether any of its pairs is excluded

  Mask(const Problem& p, const uint8_t* excluded) {
    if (!excluded) return;
    const int64_t pairs = p.pixels() * p.pixels(), windows = p.per_image();
    row = windows + LANES;
    seen.resize(pairs * row);
    some.resize(row);
#pragma omp parallel for schedule(static)
    for (int64_t w = 0; w < row; ++w) {
      const uint8_t* from = excluded + w % windows * pairs;
      for (int64_t pair = 0; pair < pairs; ++pair) some[w] |= from[pair] != 0;
    }
#pragma omp parallel for schedule(static)
    for (int64_t pair = 0; pair < pairs; ++pair)
      for (int64_t w = 0; w < row; ++w)
        seen[pair * row + w] = excluded[w % windows * pairs + pair] ? 0 : -1;
  }
};

// The mask's part for one query and one vector of windows; without one, all pairs count.
struct Seen {
  const int8_t* lanes;
  int64_t row;
  vi operator()(int64_t j) const {
    if (!lanes) return vi{} - 1;
    vb bytes;
    std::memcpy(&bytes, lanes + j * row, sizeof bytes);
    return __builtin_convertvector(bytes, vi);
  }
};

void normalise(const Problem& p, Pair* a, int b, Seen seen, vf* spread) {
  const int64_t n = p.pixels();
  if (p.norm == SOFTMAX) {
    vf top = splat(-INFINITY);
    for (int64_t j = 0; j < n; ++j) {
      a[j][b] = seen(j) ? a[j][b] : splat(-INFINITY);
      top = a[j][b] > top || a[j][b] != a[j][b] ? a[j][b] : top;  // a NaN stays
    }
    for (int64_t j = 0; j < n; ++j) a[j][b] = exp_of(a[j][b] - top);
    const vf inverse = 1.0f / in_parts(n, [&](int64_t j) { return a[j][b]; });
    for (int64_t j = 0; j < n; ++j) a[j][b] *= inverse;
    return;
  }
  vf count = vf{};
  for (int64_t j = 0; j < n; ++j) {
    count += seen(j) ? splat(1) : vf{};
    a[j][b] = seen(j) ? a[j][b] : vf{};
  }
  if (p.norm == IDENTITY) return;
  const vf mean = in_parts(n, [&](int64_t j) { return a[j][b]; }) / count;
  for (int64_t j = 0; j < n; ++j) a[j][b] = seen(j) ? a[j][b] - mean : vf{};
  const vf squares = in_parts(n, [&](int64_t j) { return a[j][b] * a[j][b]; });
  vf deviation = squares / (count > 1.0f ? count - 1.0f : splat(1));
  for (int i = 0; i < VL; ++i) deviation[i] = std::sqrt(deviation[i]);
  *spread = deviation + 1e-10f;
  const vf gain = std::sqrt(2.0f / n) / *spread;
  for (int64_t j = 0; j < n; ++j) a[j][b] *= gain;
}

void normalise_back(const Problem& p, Pair* g, const Pair* a, int b, Seen seen, vf spread) {
  const int64_t n = p.pixels();
  if (p.norm == IDENTITY) {
    for (int64_t j = 0; j < n; ++j) g[j][b] = seen(j) ? g[j][b] : vf{};
    return;
  }
  const vf dot = in_parts(n, [&](int64_t j) { return g[j][b] * a[j][b]; });
  if (p.norm == SOFTMAX) {
    for (int64_t j = 0; j < n; ++j) g[j][b] = a[j][b] * (g[j][b] - dot);
    return;
  }
  const float gain = std::sqrt(2.0f / n);
  vf count = vf{};
  for (int64_t j = 0; j < n; ++j) count += seen(j) ? splat(1) : vf{};
  const vf others = count > 1.0f ? count - 1.0f : splat(1);
  const vf deviation = spread - 1e-10f;
  // With w = G x / (s + e): x = w (s + e) / G, and s changes by x / ((n - 1) s). The mean goes last:
  // it also takes what rounding left of the weights' own mean.
  const vf pull = deviation > 0.0f ? dot * spread / (gain * gain * others * deviation) : vf{};
  for (int64_t j = 0; j < n; ++j) g[j][b] = seen(j) ? g[j][b] - pull * a[j][b] : vf{};
  const vf mean = in_parts(n, [&](int64_t j) { return g[j][b]; }) / count;
  // Of two numbers filter norm keeps the order alone: rounding would stand where 0 belongs.
  const vf slope = count == 2.0f && deviation > 0.0f ? vf{} : gain / spread;
  for (int64_t j = 0; j < n; ++j) g[j][b] = seen(j) ? slope * (g[j][b] - mean) : vf{};
}

// Gradients of the parameters, or null.
struct Slopes {
  float *rel_k, *rel_q, *bias;
};

struct Scratch {
  Buffer q, k, v, out, grad, dq, dk, dv;
  std::vector<Pair> a, slopes;
  std::vector<vf> drel_k, drel_q, dbias, block;  // of a share; of some channels of a group
  std::vector<int64_t> offsets;  // [i][j], then [j][i]
  Scratch(const Problem& p, const View& q_, const View& k_, bool back, const Slopes& to = {})
      : q(q_.at ? size(p) : 1), k(k_.at ? size(p) : 1), v(size(p)), out(back ? 1 : size(p)),
        grad(back ? size(p) : 1), dq(back && q_.at ? size(p) : 1), dk(back && k_.at ? size(p) : 1),
        dv(back ? size(p) : 1), a(back ? 0 : p.pixels() * p.pixels()),
        slopes(back ? p.pixels() * p.pixels() : 0), drel_k(to.rel_k ? p.offsets() * p.depth : 0),
        drel_q(to.rel_q ? p.offsets() * p.depth : 0), dbias(to.bias ? p.offsets() : 0),
        block(back ? 4 * p.offsets() : 0), offsets(2 * p.pixels() * p.pixels()) {
    const int64_t n = p.pixels();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        offsets[i * n + j] = offsets[n * n + j * n + i] = p.offset(i, j);
  }
  static int64_t size(const Problem& p) { return p.pixels() * p.packed(); }
};

// The mask of one group, if any of its windows has excluded pairs.
struct GroupMask {
  const int8_t* from = nullptr;
  int64_t row = 0;

  GroupMask(const Group& group, const Mask& mask) {
    if (mask.seen.empty()) return;
    const int64_t w = group.first % group.p.per_image();
    if (std::none_of(&mask.some[w], &mask.some[w] + LANES, [](char any) { return any; })) return;
    from = mask.seen.data() + w;
    row = mask.row;
  }
  Seen of(int64_t i, int64_t n, int b) const {
    return {from ? from + i * n * row + b * VL : nullptr, row};
  }
};

int64_t groups_of(const Problem& p) { return (p.windows() + LANES - 1) / LANES; }

struct Tables {
  const float *rel_k, *rel_q, *bias;
  Tables of(const Problem& p, int64_t h) const {
    const int64_t o = p.offsets();
    return {rel_k ? rel_k + h * o * p.depth : nullptr, rel_q ? rel_q + h * o * p.depth : nullptr,
            bias ? bias + h * o : nullptr};
  }
};

void forward_group(const Group& group, Scratch& my, const Tables& tables, const View& q,
                   const View& k, const View& v, const Mask& excluded, const View& out,
                   float* kept, float* spreads) {
  const Problem& p = group.p;
  const int64_t n = group.n;
  if (q.at) group.pack(q, my.q.at);
  if (k.at) group.pack(k, my.k.at);
  group.pack(v, my.v.at);
  const GroupMask mask(group, excluded);
  Pair* a = kept ? reinterpret_cast<Pair*>(kept) : my.a.data();
  const int64_t* offsets = my.offsets.data();
  const float *query = q.at ? my.q.at : nullptr, *keys = k.at ? my.k.at : nullptr;
  auto way = !p.use_qk || !tables.rel_k != !tables.rel_q ? products<SOME>
             : tables.rel_k                             ? products<ALL>
                                                        : products<MAPS>;
  way(p, query, keys, tables.rel_k, tables.rel_q, offsets, a);
  for (int64_t i = 0; i < n; ++i)
    for (int b = 0; b < VB; ++b) {
      Pair* row = a + i * n;
      for (int64_t j = 0; j < n; ++j)
        row[j][b] = p.scale * row[j][b] + (tables.bias ? tables.bias[offsets[i * n + j]] : 0.0f);
      vf spread = vf{};
      normalise(p, row, b, mask.of(i, n, b), &spread);
      if (spreads) store(spreads + i * LANES + b * VL, spread);
    }
  mix(p, a, n, 1, my.v.at, nullptr, offsets, my.out.at);
  group.unpack(my.out.at, out, 1.0f);
}

void backward_group(const Group& group, Scratch& my, const Tables& tables, const View& q,
                    const View& k, const View& v, const Mask& excluded, const float* kept,
                    const float* spreads, const View& dout, const View& dq, const View& dk,
                    const View& dv) {
  const Problem& p = group.p;
  const int64_t n = group.n;
  if (q.at) group.pack(q, my.q.at);
  if (k.at) group.pack(k, my.k.at);
  group.pack(v, my.v.at);
  group.pack(dout, my.grad.at);
  const GroupMask mask(group, excluded);
  const Pair* a = reinterpret_cast<const Pair*>(kept);
  Pair* slopes = my.slopes.data();
  const int64_t *offsets = my.offsets.data(), *back = offsets + n * n;
  products<MAPS>(p, my.grad.at, my.v.at, nullptr, nullptr, offsets, slopes);
  for (int64_t i = 0; i < n; ++i) {
    for (int b = 0; b < VB; ++b)
      normalise_back(p, slopes + i * n, a + i * n, b, mask.of(i, n, b),
                     load(spreads + i * LANES + b * VL));
    for (int64_t j = 0; j < n && !my.dbias.empty(); ++j)
      my.dbias[offsets[i * n + j]] += slopes[i * n + j][0] + slopes[i * n + j][1];
  }
  mix(p, a, 1, n, my.grad.at, nullptr, back, my.dv.at);
  if (q.at)
    mix(p, slopes, n, 1, p.use_qk ? my.k.at : nullptr, tables.rel_k, offsets, my.dq.at);
  if (k.at) mix(p, slopes, 1, n, p.use_qk ? my.q.at : nullptr, tables.rel_q, back, my.dk.at);
  if (!my.drel_k.empty()) outer(p, slopes, n, 1, my.q.at, offsets, my.block, my.drel_k.data());
  if (!my.drel_q.empty()) outer(p, slopes, 1, n, my.k.at, back, my.block, my.drel_q.data());
  if (dq.at) group.unpack(my.dq.at, dq, p.scale);
  if (dk.at) group.unpack(my.dk.at, dk, p.scale);
  group.unpack(my.dv.at, dv, 1.0f);
}

void forward(const Problem& p, const View& q, const View& k, const View& v, const Tables& tables,
             const uint8_t* excluded, const View& out, float* kept, float* spreads) {
  const int64_t groups = groups_of(p), n = p.pixels();
  const Mask mask(p, excluded);
  Each<Scratch> scratch([&] { return new Scratch(p, q, k, false); });
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < p.heads * groups; ++task) {
    const Group group(p, task / groups, task % groups);
    forward_group(group, scratch.mine(), tables.of(p, group.h), q, k, v, mask, out,
                  kept ? kept + task * n * n * LANES : nullptr,
                  kept ? spreads + task * n * LANES : nullptr);
  }
}

void backward(const Problem& p, const View& q, const View& k, const View& v, const Tables& tables,
              const uint8_t* excluded, const float* kept, const float* spreads, const View& dout,
              const View& dq, const View& dk, const View& dv, const Slopes& to) {
  const int64_t groups = groups_of(p), n = p.pixels(), shares = std::min(groups, SHARES);
  const int64_t o = p.offsets(), length = o * p.depth;
  const Mask mask(p, excluded);
  Buffer parts_k(to.rel_k ? p.heads * shares * length : 1);
  Buffer parts_q(to.rel_q ? p.heads * shares * length : 1);
  Buffer parts_b(to.bias ? p.heads * shares * o : 1);
  Each<Scratch> scratch([&] { return new Scratch(p, q, k, true, to); });
  auto keep = [](std::vector<vf>& of_share, float scale, float* part) {
    if (of_share.empty()) return;
    sum_lanes(reinterpret_cast<const float*>(of_share.data()), of_share.size(), scale, part);
    std::fill(of_share.begin(), of_share.end(), vf{});
  };
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < p.heads * shares; ++task) {
    const int64_t h = task / shares, share = task % shares;
    Scratch& my = scratch.mine();
    for (int64_t g = share * groups / shares; g < (share + 1) * groups / shares; ++g) {
      const int64_t at = h * groups + g;
      backward_group(Group(p, h, g), my, tables.of(p, h), q, k, v, mask, kept + at * n * n * LANES,
                     spreads + at * n * LANES, dout, dq, dk, dv);
    }
    keep(my.drel_k, p.scale, parts_k.at + task * length);
    keep(my.drel_q, p.scale, parts_q.at + task * length);
    keep(my.dbias, 1.0f, parts_b.at + task * o);
  }
  auto collect = [&](const Buffer& parts, float* total, int64_t size) {
    if (!total) return;
    std::memset(total, 0, p.heads * size * 4);
    for (int64_t task = 0; task < p.heads * shares; ++task)
      for (int64_t e = 0; e < size; ++e)
        total[task / shares * size + e] += parts.at[task * size + e];
  };
  collect(parts_k, to.rel_k, length);
  collect(parts_q, to.rel_q, length);
  collect(parts_b, to.bias, o);
}

}  // namespace

extern "C" {

int window_lanes() { return LANES; }

// 0 done, 1 out of memory. ``excluded`` is (windows of an image, pixels, pixels), or null.
int window_forward(const Problem* p, const View* q, const View* k, const View* v,
                   const float* rel_k, const float* rel_q, const float* bias,
                   const uint8_t* excluded, const View* out, float* kept, float* spreads) {
  try {
    forward(*p, *q, *k, *v, {rel_k, rel_q, bias}, excluded, *out, kept, spreads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int window_backward(const Problem* p, const View* q, const View* k, const View* v,
                    const float* rel_k, const float* rel_q, const float* bias,
                    const uint8_t* excluded, const float* kept, const float* spreads,
                    const View* dout, const View* dq, const View* dk, const View* dv,
                    float* drel_k, float* drel_q, float* dbias) {
  try {
    backward(*p, *q, *k, *v, {rel_k, rel_q, bias}, excluded, kept, spreads, *dout, *dq, *dk, *dv,
             {drel_k, drel_q, dbias});
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
