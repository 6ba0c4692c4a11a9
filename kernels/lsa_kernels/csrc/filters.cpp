// Filters on every pixel's neighborhood: one per pixel and head, expanded by the ghost head, or
// static ones; forward and backward, sums in float32.
//
//   out[p, c] = sum over taps t of (mul[c, t] f[p, h(c), t] + add[c, t]) v[p + o_t, c]
//
// One task is one head of one image in a band of rows. Values and gradients are packed to
// [row][x][channel] with a border of zeros: channels lie in the vector's lanes, filters are
// broadcast, and a column of values serves several pixels while it is in a register. The part of
// ``add`` is a static filter of its own pass. Every task writes its own memory and parameter
// gradients are summed in order, so results do not depend on the number of threads.
#include <algorithm>

#include "memory.h"
#include "simd.h"
#include "sizes.h"
#include "transpose.h"
#include "view.h"

namespace {

struct Problem {
  int64_t batch, height, width, heads, depth;
  int per_image;  // mul and add hold one table per image
};

constexpr int64_t ROUND = 8;      // packed rows hold a multiple of so many pixels
constexpr int64_t BAND = 32;      // rows of a task at most
constexpr int64_t MANY = 16;      // tasks there should be at least
constexpr int PX = 4, STATIC_PX = 8;  // pixels that share a loaded column

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Split {
  int64_t bands, rows;
  explicit Split(const Problem& p) {
    const int64_t units = std::max<int64_t>(1, p.batch * p.heads);
    bands = std::max(ceil_div(p.height, BAND),
                     std::min(ceil_div(MANY, units), ceil_div(p.height, 8)));
    rows = ceil_div(p.height, bands);
    bands = ceil_div(p.height, rows);
  }
  int64_t tasks(const Problem& p) const { return p.batch * p.heads * bands; }
};

inline v8 folded(vf v) {
  v8 halves[VL / 8];
  std::memcpy(halves, &v, sizeof v);
  v8 total = halves[0];
  for (int i = 1; i < VL / 8; ++i) total += halves[i];
  return total;
}

inline v8 pair(v8 a, v8 b, i8 first, i8 second) {
  return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

// The lane sums of eight vectors, one in each lane. Never a call: the vectors stay in registers.
__attribute__((always_inline)) inline v8 sums(const vf (&a)[8]) {
  const i8 one1 = {0, 8, 1, 9, 4, 12, 5, 13}, one2 = {2, 10, 3, 11, 6, 14, 7, 15};
  const i8 two1 = {0, 1, 8, 9, 4, 5, 12, 13}, two2 = {2, 3, 10, 11, 6, 7, 14, 15};
  const i8 four1 = {0, 1, 2, 3, 8, 9, 10, 11}, four2 = {4, 5, 6, 7, 12, 13, 14, 15};
  v8 level[8];
  for (int i = 0; i < 8; ++i) level[i] = folded(a[i]);
  for (int i = 0; i < 4; ++i) level[i] = pair(level[2 * i], level[2 * i + 1], one1, one2);
  for (int i = 0; i < 2; ++i) level[i] = pair(level[2 * i], level[2 * i + 1], two1, two2);
  return pair(level[0], level[1], four1, four2);
}

template <int K>
struct Task {
  static constexpr int R = K / 2, T = K * K;
  const Problem& p;
  const int64_t wide, columns, band;  // wide: packed channels; columns: packed pixels of a row
  int64_t b, h, top, rows;

  Task(const Problem& p, const Split& split, int64_t n)
      : p(p), wide(ceil_div(p.depth, VL) * VL), columns(ceil_div(p.width, ROUND) * ROUND + 2 * R),
        band(split.rows), b(n / (split.bands * p.heads)), h(n / split.bands % p.heads),
        top(n % split.bands * split.rows), rows(std::min(split.rows, p.height - top)) {}

  int64_t map_size() const { return (band + 2 * R) * columns * wide; }
  int64_t filters_size() const { return (band + 2 * R) * columns * T; }
  int64_t table_size() const { return T * wide; }

  // Row ``y`` of the band, from -R to rows + R, and column ``x`` from -R.
  int64_t place(int64_t y, int64_t x) const { return (y + R) * columns + x + R; }

  // Copies ``length`` numbers of every pixel of a (B, H, W, h, last) map; pixels outside it stay zero.
  void pack(const View& from, int64_t length, int64_t step, float* to) const {
    std::memset(to, 0, (band + 2 * R) * columns * step * 4);
    from.typed([&](const auto* origin) {
      for (int64_t y = std::max<int64_t>(-R, -top); y < std::min(rows + R, p.height - top); ++y)
        for (int64_t x = 0; x < p.width; ++x)
          get_row(origin + from.place(b, top + y, x, h), from.stride[4], length,
                  to + place(y, x) * step);
    });
  }

  // (C, T) or (B, C, T) to [T][wide], so that the channels of a tap lie side by side.
  void pack_table(const float* from, float* to) const {
    const float* mine = from + ((p.per_image ? b * p.heads : 0) + h) * p.depth * T;
    std::memset(to, 0, table_size() * 4);
    for (int64_t c = 0; c < p.depth; ++c)
      for (int t = 0; t < T; ++t) to[t * wide + c] = mine[c * T + t];
  }

  // Filters on the columns from x of PX pixels, CB vectors of channels from c. The way back
  // gathers what each pixel gave to its neighbors.
  template <bool MUL, bool BACK, int CB>
  void dynamic_block(const float* map, const float* filters, const float* mul, int64_t y, int64_t x,
                     int64_t c, float* line) const {
    vf acc[PX][CB] = {};
    for (int dy = 0; dy < K; ++dy) {
      const int64_t from = BACK ? y + R - dy : y + dy - R;
      const float* column = map + place(from, x - R) * wide + c;
      const float* taps = filters + (BACK ? place(from, x - R) : place(y, x)) * T + dy * K;
      const float* scale = MUL ? mul + dy * K * wide + c : nullptr;
#pragma GCC unroll 16
      for (int s = 0; s < K + PX - 1; ++s) {
        vf value[CB];
        for (int j = 0; j < CB; ++j) value[j] = held(load(column + s * wide + j * VL));
#pragma GCC unroll 4
        for (int i = 0; i < PX; ++i) {
          const int dx = BACK ? i + K - 1 - s : s - i;
          if (dx < 0 || dx >= K) continue;
          const vf weight = held(splat(taps[(BACK ? s : i) * T + dx]));
          for (int j = 0; j < CB; ++j) {
            if (MUL)
              acc[i][j] += weight * load(scale + dx * wide + j * VL) * value[j];
            else
              acc[i][j] += weight * value[j];
          }
        }
      }
    }
    for (int i = 0; i < PX; ++i)
      for (int j = 0; j < CB; ++j) store(line + (x + i) * wide + c + j * VL, acc[i][j]);
  }

  template <bool MUL, bool BACK>
  void dynamic_row(const float* map, const float* filters, const float* mul, int64_t y,
                   float* line) const {
    for (int64_t x = 0; x < p.width; x += PX) {
      int64_t c = 0;
      for (; c + 2 * VL <= wide; c += 2 * VL)
        dynamic_block<MUL, BACK, 2>(map, filters, mul, y, x, c, line);
      if (c < wide) dynamic_block<MUL, BACK, 1>(map, filters, mul, y, x, c, line);
    }
  }

  // Static filters, added to the line: a row of a filter stays in registers for all pixels.
  template <bool BACK>
  void static_row(const float* map, const float* table, int64_t y, float* line) const {
    for (int64_t x = 0; x < p.width; x += STATIC_PX)
      for (int64_t c = 0; c < wide; c += VL) {
        vf acc[STATIC_PX] = {};
        for (int dy = 0; dy < K; ++dy) {
          const float* column = map + place(BACK ? y + R - dy : y + dy - R, x - R) * wide + c;
          vf weight[K];
          for (int dx = 0; dx < K; ++dx)
            weight[dx] = load(table + (dy * K + (BACK ? K - 1 - dx : dx)) * wide + c);
#pragma GCC unroll 32
          for (int s = 0; s < K + STATIC_PX - 1; ++s) {
            const vf value = held(load(column + s * wide));
#pragma GCC unroll 8
            for (int i = 0; i < STATIC_PX; ++i)
              if (s - i >= 0 && s - i < K) acc[i] += weight[s - i] * value;
          }
        }
        for (int i = 0; i < STATIC_PX; ++i) {
          float* to = line + (x + i) * wide + c;
          store(to, load(to) + acc[i]);
        }
      }
  }

  // One row of the output, or of the values' gradient.
  template <bool BACK>
  void row(const float* map, const float* filters, const float* mul, const float* add, int64_t y,
           float* line, const View& to) const {
    if (!filters)
      std::memset(line, 0, columns * wide * 4);
    else if (mul)
      dynamic_row<true, BACK>(map, filters, mul, y, line);
    else
      dynamic_row<false, BACK>(map, filters, nullptr, y, line);
    if (add) static_row<BACK>(map, add, y, line);
    to.typed([&](auto* origin) {
      for (int64_t x = 0; x < p.width; ++x)
        put_row(line + x * wide, p.depth, origin + to.place(b, top + y, x, h), to.stride[4]);
    });
  }

  // Gradients of some filters of one pixel, of a row's taps from FIRST on: eight, or the rest.
  template <bool MUL, int FIRST = 0>
  void filters_back_row(const float* grad, const float* column, const float* scale,
                        float* found) const {
    constexpr int COUNT = std::min(8, K - FIRST);
    vf acc[8] = {};
    for (int64_t c = 0; c < wide; c += VL) {
      const vf g = held(load(grad + c));
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; ++i) {
        const int64_t at = (FIRST + i) * wide + c;
        acc[i] += (MUL ? g * load(scale + at) : g) * load(column + at);
      }
    }
    *(v8u*)(found + FIRST) = sums(acc);
    if constexpr (FIRST + 8 < K) filters_back_row<MUL, FIRST + 8>(grad, column, scale, found);
  }

  // Gradient of one pixel's filters: its output's gradient against every neighbor's values.
  template <bool MUL>
  void filters_back(const float* grad, const float* map, const float* mul, int64_t y, int64_t x,
                    const View& to) const {
    float found[T + 8];
    for (int dy = 0; dy < K; ++dy)
      filters_back_row<MUL>(grad + place(y, x) * wide, map + place(y + dy - R, x - R) * wide,
                            MUL ? mul + dy * K * wide : nullptr, found + dy * K);
    to.typed([&](auto* origin) {
      put_row(found, T, origin + to.place(b, top + y, x, h), to.stride[4]);
    });
  }

  // Gradients of the tables from one row, added to [T][wide].
  template <bool MUL, bool ADD>
  void tables_back(const float* grad, const float* map, const float* filters, int64_t y, float* dmul,
                   float* dadd) const {
    for (int dy = 0; dy < K; ++dy)
      for (int64_t c = 0; c < wide; c += VL) {
        vf by_filter[K] = {}, plain[K] = {};
        const float* g = grad + place(y, 0) * wide + c;
        const float* column = map + place(y + dy - R, -R) * wide + c;
        const float* taps = MUL ? filters + place(y, 0) * T + dy * K : nullptr;
        for (int64_t x = 0; x < p.width; ++x) {
          const vf here = held(load(g + x * wide));
#pragma GCC unroll 16
          for (int i = 0; i < K; ++i) {
            const vf product = here * load(column + (x + i) * wide);
            if (ADD) plain[i] += product;
            if (MUL) by_filter[i] += taps[x * T + i] * product;
          }
        }
        for (int i = 0; i < K; ++i) {
          const int64_t entry = (dy * K + i) * wide + c;
          if (ADD) store(dadd + entry, load(dadd + entry) + plain[i]);
          if (MUL) store(dmul + entry, load(dmul + entry) + by_filter[i]);
        }
      }
  }

  void keep_table(const float* lanes, float* part) const {
    for (int64_t c = 0; c < p.depth; ++c)
      for (int t = 0; t < T; ++t) part[c * T + t] = lanes[t * wide + c];
  }
};

template <int K>
void forward(const Problem& p, const View& v, const View& f, const float* mul, const float* add,
             const View& out) {
  const Split split(p);
  const Task<K> shape(p, split, 0);
  struct Scratch {
    Buffer v, f, mul, add, line;
  };
  Each<Scratch> scratch([&] {
    return new Scratch{Buffer(shape.map_size()), Buffer(f.at ? shape.filters_size() : 1),
                       Buffer(shape.table_size()), Buffer(shape.table_size()),
                       Buffer(shape.columns * shape.wide)};
  });
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < split.tasks(p); ++n) {
    Scratch& my = scratch.mine();
    const Task<K> task(p, split, n);
    task.pack(v, p.depth, task.wide, my.v.at);
    if (f.at) task.pack(f, task.T, task.T, my.f.at);
    if (mul) task.pack_table(mul, my.mul.at);
    if (add) task.pack_table(add, my.add.at);
    for (int64_t y = 0; y < task.rows; ++y)
      task.template row<false>(my.v.at, f.at ? my.f.at : nullptr, mul ? my.mul.at : nullptr,
                               add ? my.add.at : nullptr, y, my.line.at, out);
  }
}

template <int K>
void backward(const Problem& p, const View& v, const View& f, const float* mul, const float* add,
              const View& dout, const View& dv, const View& df, float* dmul, float* dadd) {
  const Split split(p);
  const Task<K> shape(p, split, 0);
  const int64_t tasks = split.tasks(p), length = p.depth * shape.T;
  Buffer parts_mul(dmul ? tasks * length : 1), parts_add(dadd ? tasks * length : 1);
  struct Scratch {
    Buffer v, g, f, mul, add, dmul, dadd, line;
  };
  Each<Scratch> scratch([&] {
    return new Scratch{Buffer(shape.map_size()), Buffer(shape.map_size()),
                       Buffer(f.at ? shape.filters_size() : 1), Buffer(shape.table_size()),
                       Buffer(shape.table_size()), Buffer(shape.table_size()),
                       Buffer(shape.table_size()), Buffer(shape.columns * shape.wide)};
  });
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < tasks; ++n) {
    Scratch& my = scratch.mine();
    const Task<K> task(p, split, n);
    const float* filters = f.at ? my.f.at : nullptr;
    task.pack(v, p.depth, task.wide, my.v.at);
    task.pack(dout, p.depth, task.wide, my.g.at);
    if (f.at) task.pack(f, task.T, task.T, my.f.at);
    if (mul) task.pack_table(mul, my.mul.at);
    if (add) task.pack_table(add, my.add.at);
    my.dmul.clear();
    my.dadd.clear();
    for (int64_t y = 0; y < task.rows; ++y) {
      if (dv.at)
        task.template row<true>(my.g.at, filters, mul ? my.mul.at : nullptr,
                                add ? my.add.at : nullptr, y, my.line.at, dv);
      for (int64_t x = 0; x < p.width && df.at; ++x) {
        if (mul)
          task.template filters_back<true>(my.g.at, my.v.at, my.mul.at, y, x, df);
        else
          task.template filters_back<false>(my.g.at, my.v.at, nullptr, y, x, df);
      }
      if (dmul && dadd)
        task.template tables_back<true, true>(my.g.at, my.v.at, filters, y, my.dmul.at, my.dadd.at);
      else if (dmul)
        task.template tables_back<true, false>(my.g.at, my.v.at, filters, y, my.dmul.at, nullptr);
      else if (dadd)
        task.template tables_back<false, true>(my.g.at, my.v.at, nullptr, y, nullptr, my.dadd.at);
    }
    if (dmul) task.keep_table(my.dmul.at, parts_mul.at + n * length);
    if (dadd) task.keep_table(my.dadd.at, parts_add.at + n * length);
  }
  auto collect = [&](const Buffer& parts, float* total) {
    if (!total) return;
    std::memset(total, 0, (p.per_image ? p.batch : 1) * p.heads * length * 4);
    for (int64_t n = 0; n < tasks; ++n) {
      const int64_t unit = n / split.bands;
      float* to = total + (p.per_image ? unit : unit % p.heads) * length;
      for (int64_t e = 0; e < length; ++e) to[e] += parts.at[n * length + e];
    }
  };
  collect(parts_mul, dmul);
  collect(parts_add, dadd);
}

}  // namespace

extern "C" {

// 0 done, 1 out of memory, 2 a size that is not compiled. ``f`` may be absent where ``add`` is not.
int filters_forward(const Problem* p, int size, const View* v, const View* f, const float* mul,
                    const float* add, const View* out) {
  if (!v->at) return 0;  // a map of no elements
  try {
#define CALL(K) forward<K>(*p, *v, *f, mul, add, *out); return 0
    FOR_SIZE(CALL)
#undef CALL
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int filters_backward(const Problem* p, int size, const View* v, const View* f, const float* mul,
                     const float* add, const View* dout, const View* dv, const View* df,
                     float* dmul, float* dadd) {
  if (!v->at) return 0;  // a map of no elements
  try {
#define CALL(K) backward<K>(*p, *v, *f, mul, add, *dout, *dv, *df, dmul, dadd); return 0
    FOR_SIZE(CALL)
#undef CALL
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
