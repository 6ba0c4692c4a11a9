// Eq. 4 on every pixel's own neighborhood, forward and backward; sums in float32.
//
// One task is one head of one image. Every task writes its own memory, and parameter gradients are
// summed over the images in order, so results do not depend on the number of threads.
#include "neighborhoods.h"
#include "sizes.h"

namespace {

// Tiles gathered until their outer products are worth adding up.
template <int K>
struct Gathered {
  using T = Task<K>;
  const T& task;
  float* lanes;  // [t][channel][VL], or null: nothing is gathered
  int count = 0;
  vf a[T::GROUP][T::T];
  const float* maps[T::GROUP];

  Gathered(const T& task, float* lanes) : task(task), lanes(lanes) {}
  template <int ROWS>
  void take(const vf (*tiles)[T::T], const float* map) {
    for (int j = 0; j < ROWS && lanes; ++j) {
      std::copy(tiles[j], tiles[j] + T::T, a[count]);
      maps[count++] = map + j * task.row();
      if (count == T::GROUP) flush();
    }
  }
  void flush() {
    if (lanes && count) task.outer(a, maps, count, lanes);
    count = 0;
  }
};

// Tables [t][c] of one head as [dy][c][dx], so that the taps of a row lie side by side.
template <int K>
void by_rows_of(const float* table, int64_t depth, float* to) {
  for (int t = 0; t < K * K; ++t)
    for (int64_t c = 0; c < depth; ++c)
      to[(t / K * depth + c) * K + t % K] = table[t * depth + c];
}

// The tables of all heads by rows, made once for all tasks.
template <int K>
struct Tables {
  Buffer made;
  Tables(const Problem& p, const float* table) : made(table ? p.heads * K * K * p.depth : 1) {
    const int64_t length = K * K * p.depth;
    for (int64_t h = 0; h < p.heads && table; ++h)
      by_rows_of<K>(table + h * length, p.depth, made.at + h * length);
  }
  const float* of(const Task<K>& task, bool there) const {
    return there ? made.at + task.h * K * K * task.p.depth : nullptr;
  }
};

template <int K>
void forward(const Problem& p, const View& q, const View& k, const View& v, const float* rel_k,
             const float* rel_q, const float* bias, const View& out, float* weights,
             float* spreads) {
  constexpr int T = K * K, R = K / 2;
  const int64_t tasks = p.batch * p.heads;
  const Task<K> shape(p, 0, nullptr, nullptr, nullptr);
  const Tables<K> tables_k(p, rel_k), tables_q(p, rel_q);
  struct Scratch {
    Buffer q, k, v, mixed;
  };
  Each<Scratch> scratch([&] {
    return new Scratch{Buffer(q.at ? shape.packed() : 1), Buffer(k.at ? shape.packed() : 1),
                       Buffer(shape.packed()), Buffer(Task<K>::MANY * p.depth * VL)};
  });
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < tasks; ++n) {
    Scratch& my = scratch.mine();
    const Task<K> task(p, n, rel_k, rel_q, bias);
    if (q.at) task.pack(q, my.q.at);
    if (k.at) task.pack(k, my.k.at);
    task.pack(v, my.v.at);
    float* kept = weights ? weights + n * task.taps() : nullptr;
    task.each_tiles([&](auto rows, int64_t y, int64_t x) {
      constexpr int ROWS = decltype(rows)::value;
      vf a[ROWS][T];
      task.template logits<ROWS>(q.at ? task.at(my.q.at, y, x, 0) : nullptr,
                                 k.at ? task.at(my.k.at, y - R, x - R, 0) : nullptr,
                                 tables_k.of(task, rel_k), tables_q.of(task, rel_q), a);
      const int64_t there = std::min<int64_t>(ROWS, p.height - y);
      for (int j = 0; j < there; ++j) {
        vf spread = vf{};
        Norms<K>{p}.normalise(a[j], y + j, x, &spread);
        if (!kept) continue;
        const vi real = task.real(x);
        for (int t = 0; t < T; ++t) store(task.tap(kept, y + j, t, x), real ? a[j][t] : vf{});
        store(spreads + (n * p.height + y + j) * task.wide() + x, spread);
      }
      task.template mix<ROWS>(a, task.at(my.v.at, y - R, x - R, 0), my.mixed.at, VL, p.depth * VL);
      task.unpack_tiles(my.mixed.at, there, y, x, out);
    });
  }
}

template <int K>
struct Backward {
  using Shape = Task<K>;
  static constexpr int T = K * K, R = K / 2;
  struct Scratch {
    Buffer q, k, v, dout, dq, dk, dv, slopes, lanes_k, lanes_q, lanes_b;
  };
  const Shape& task;
  Scratch& my;
  bool reads_q, reads_k, tables_k, tables_q, tables_b;

  // From the output's gradient to the logits', and on to the queries and their tables.
  void queries(const float* kept, const float* spreads) {
    Gathered<K> gathered(task, tables_k ? my.lanes_k.at : nullptr);
    task.each_tiles([&](auto rows, int64_t y, int64_t x) {
      constexpr int ROWS = decltype(rows)::value;
      vf g[ROWS][T];
      task.template products<ROWS>(task.at(my.dout.at, y, x, 0),
                                   task.at(my.v.at, y - R, x - R, 0), 1.0f, g);
      for (int j = 0; j < ROWS; ++j) to_logits(g[j], kept, spreads, y + j, x);
      for (int t = 0; t < T && tables_b; ++t) {
        vf total = load(my.lanes_b.at + t * VL);
        for (int j = 0; j < ROWS; ++j) total += g[j][t];
        store(my.lanes_b.at + t * VL, total);
      }
      if (!reads_q) return;
      gathered.template take<ROWS>(g, task.at(my.q.at, y, x, 0));
      to_map<ROWS>(g, y, x, my.k.at, task.rel_k, false, my.dq.at);
    });
    gathered.flush();
  }

  void to_logits(vf* g, const float* kept, const float* spreads, int64_t y, int64_t x) {
    if (y == task.p.height) {  // the lower tile of a last pair is no row of the map
      std::fill(g, g + T, vf{});
      return;
    }
    const vi real = task.real(x);
    vf a[T];
    for (int t = 0; t < T; ++t) a[t] = load(task.tap(kept, y, t, x));
    Norms<K>{task.p}.normalise_back(g, a, y, x, load(spreads + y * task.wide() + x));
    for (int t = 0; t < T; ++t) {
      g[t] = real ? g[t] : vf{};  // lanes beyond the row's end hold no pixel
      store(task.tap(my.slopes.at, y, t, x), g[t]);
    }
  }

  // The gradient of queries or keys, by the other map and their own table.
  template <int ROWS>
  void to_map(const vf (*g)[T], int64_t y, int64_t x, const float* other, const float* table,
              bool backwards, float* map) {
    float* to = task.at(map, y, x, 0);
    if (task.p.use_qk)
      task.template mix<ROWS>(g, task.at(other, y - R, x - R, 0), to, task.span, task.row());
    else
      for (int j = 0; j < ROWS; ++j)
        for (int64_t c = 0; c < task.p.depth; ++c) store(to + j * task.row() + c * task.span, vf{});
    if (table) task.template mix_table<ROWS>(g, table, backwards, to, task.row());
  }

  // Every pixel as a neighbor: what the queries around it send to its value and its key.
  void neighbors(const float* kept) {
    Gathered<K> gathered(task, tables_q ? my.lanes_q.at : nullptr);
    task.each_tiles([&](auto rows, int64_t y, int64_t x) {
      constexpr int ROWS = decltype(rows)::value;
      vf a[ROWS][T];
      task.template received<ROWS>(kept, y, x, a);
      task.template mix<ROWS>(a, task.at(my.dout.at, y - R, x - R, 0), task.at(my.dv.at, y, x, 0),
                              task.span, task.row());
      if (!reads_k) return;
      task.template received<ROWS>(my.slopes.at, y, x, a);
      // The lower tile of a last pair is no row of the map; nor are lanes beyond the row's end.
      if (y + ROWS > task.p.height) std::fill(a[ROWS - 1], a[ROWS - 1] + T, vf{});
      gathered.template take<ROWS>(a, task.at(my.k.at, y, x, 0));
      to_map<ROWS>(a, y, x, my.q.at, task.rel_q, true, my.dk.at);
    });
    gathered.flush();
  }

  void keep_tables(float* part_k, float* part_q, float* part_b) const {
    const int64_t d = task.p.depth;
    const float scale = task.p.scale;
    if (tables_k) sum_lanes(my.lanes_k.at, T * d, scale, part_k);
    for (int t = 0; t < T && tables_q; ++t)  // gathered by place of the query: the taps backwards
      sum_lanes(my.lanes_q.at + t * d * VL, d, scale, part_q + (T - 1 - t) * d);
    if (tables_b) sum_lanes(my.lanes_b.at, T, 1.0f, part_b);
  }
};

template <int K>
void backward(const Problem& p, const View& q, const View& k, const View& v, const float* rel_k,
              const float* rel_q, const float* bias, const float* weights, const float* spreads,
              const View& dout, const View& dq, const View& dk, const View& dv, float* drel_k,
              float* drel_q, float* dbias) {
  constexpr int T = K * K;
  const int64_t tasks = p.batch * p.heads, d = p.depth;
  const Task<K> shape(p, 0, nullptr, nullptr, nullptr);
  const int64_t size = shape.packed();
  // One part per task, summed over the images at the end in order.
  Buffer parts_k(drel_k ? tasks * T * d : 1), parts_q(drel_q ? tasks * T * d : 1);
  Buffer parts_b(dbias ? tasks * T : 1);
  using Scratch = typename Backward<K>::Scratch;
  Each<Scratch> scratch([&] {
    return new Scratch{Buffer(q.at ? size : 1), Buffer(k.at ? size : 1), Buffer(size), Buffer(size),
                       Buffer(dq.at ? size : 1), Buffer(dk.at ? size : 1), Buffer(size),
                       Buffer(shape.taps()), Buffer(drel_k ? T * d * VL : 1),
                       Buffer(drel_q ? T * d * VL : 1), Buffer(T * VL)};
  });
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < tasks; ++n) {
    Scratch& my = scratch.mine();
    const Task<K> task(p, n, rel_k, rel_q, bias);
    if (q.at) task.pack(q, my.q.at);
    if (k.at) task.pack(k, my.k.at);
    task.pack(v, my.v.at);
    task.pack(dout, my.dout.at);
    for (Buffer* lanes : {&my.lanes_k, &my.lanes_q, &my.lanes_b}) lanes->clear();
    const float* kept = weights + n * task.taps();
    Backward<K> back{task, my, q.at != nullptr, k.at != nullptr, drel_k != nullptr,
                     drel_q != nullptr, dbias != nullptr};
    back.queries(kept, spreads + n * p.height * task.wide());
    back.neighbors(kept);
    if (dq.at) task.unpack(my.dq.at, dq, p.scale);
    if (dk.at) task.unpack(my.dk.at, dk, p.scale);
    task.unpack(my.dv.at, dv, 1.0f);
    back.keep_tables(parts_k.at + n * T * d, parts_q.at + n * T * d, parts_b.at + n * T);
  }
  auto collect = [&](const Buffer& parts, float* total, int64_t length) {
    if (!total) return;
    std::memset(total, 0, p.heads * length * 4);
    for (int64_t n = 0; n < tasks; ++n)
      for (int64_t e = 0; e < length; ++e)
        total[(n % p.heads) * length + e] += parts.at[n * length + e];
  };
  collect(parts_k, drel_k, T * d);
  collect(parts_q, drel_q, T * d);
  collect(parts_b, dbias, T);
}

}  // namespace

extern "C" {

int lanes() { return VL; }

// Bytes of scratch memory that were held at once since this was called last.
int64_t most_scratch() { return scratch_most.exchange(scratch_held); }

// 0 done, 1 out of memory, 2 a size that is not compiled.
int neighboring_forward(const Problem* p, int size, const View* q, const View* k, const View* v,
                        const float* rel_k, const float* rel_q, const float* bias, const View* out,
                        float* weights, float* spreads) {
  if (!v->at) return 0;  // a map of no elements
  try {
#define CALL(K) forward<K>(*p, *q, *k, *v, rel_k, rel_q, bias, *out, weights, spreads); return 0
    FOR_SIZE(CALL)
#undef CALL
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int neighboring_backward(const Problem* p, int size, const View* q, const View* k, const View* v,
                         const float* rel_k, const float* rel_q, const float* bias,
                         const float* weights, const float* spreads, const View* dout,
                         const View* dq, const View* dk, const View* dv, float* drel_k,
                         float* drel_q, float* dbias) {
  if (!v->at) return 0;  // a map of no elements
  try {
#define CALL(K)                                                                             \
  backward<K>(*p, *q, *k, *v, rel_k, rel_q, bias, weights, spreads, *dout, *dq, *dk, *dv, \
              drel_k, drel_q, dbias);                                                       \
  return 0
    FOR_SIZE(CALL)
#undef CALL
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
