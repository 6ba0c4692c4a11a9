// Eq. 4 on every pixel's own neighborhood, forward and backward, float32.
//
// One task is one head of one image. Every task writes its own memory, and parameter gradients are
// summed over the images in order, so results do not depend on the number of threads.
#include "neighborhoods.h"
#include "sizes.h"

namespace {

// Pairs of tiles gathered until their outer products are worth adding up.
template <int K>
struct Gathered {
  using T = Task<K>;
  const T& task;
  float* lanes;  // [t][channel][VL], or null: nothing is gathered
  int count = 0;
  vf a[T::GROUP][T::T];
  const float* maps[T::GROUP];

  Gathered(const T& task, float* lanes) : task(task), lanes(lanes) {}
  void take(const vf (*pair)[T::T], const float* map) {
    if (!lanes) return;
    for (int j = 0; j < 2; ++j) {
      std::copy(pair[j], pair[j] + T::T, a[count]);
      maps[count++] = map + j * task.row();
    }
    if (count == T::GROUP) flush();
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
                       Buffer(shape.packed()), Buffer(2 * p.depth * VL)};
  });
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < tasks; ++n) {
    Scratch& my = scratch.mine();
    const Task<K> task(p, n, rel_k, rel_q, bias);
    if (q.at) task.pack(q, my.q.at);
    if (k.at) task.pack(k, my.k.at);
    task.pack(v, my.v.at);
    float* kept = weights ? weights + n * task.taps() : nullptr;
    for (int64_t y = 0; y < p.height; y += 2)
      for (int64_t block = 0; block < task.blocks; ++block) {
        const int64_t x = block * VL;
        vf a[2][T];
        task.logits(q.at ? task.at(my.q.at, y, x, 0) : nullptr,
                    k.at ? task.at(my.k.at, y - R, x - R, 0) : nullptr,
                    tables_k.of(task, rel_k), tables_q.of(task, rel_q), a);
        for (int j = 0; j < 2 && y + j < p.height; ++j) {
          vf spread = vf{};
          task.normalise(a[j], y + j, x, &spread);
          if (!kept) continue;
          const vi real = task.real(x);
          for (int t = 0; t < T; ++t) store(task.tap(kept, y + j, t, x), real ? a[j][t] : vf{});
          store(spreads + ((n * p.height + y + j) * task.blocks + block) * VL, spread);
        }
        task.mix(a, task.at(my.v.at, y - R, x - R, 0), my.mixed.at, VL, p.depth * VL);
        for (int j = 0; j < 2 && y + j < p.height; ++j)
          from_lanes(my.mixed.at + j * p.depth * VL, VL, std::min<int64_t>(VL, p.width - x),
                     p.depth, 1.0f, out.row(task.b, task.h, y + j) + x * out.stride[3],
                     out.stride[3], out.stride[4]);
      }
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
    const Problem& p = task.p;
    Gathered<K> gathered(task, tables_k ? my.lanes_k.at : nullptr);
    for (int64_t y = 0; y < p.height; y += 2)
      for (int64_t block = 0; block < task.blocks; ++block) {
        const int64_t x = block * VL;
        const vi real = task.real(x);
        vf g[2][T];
        task.products(task.at(my.dout.at, y, x, 0), task.at(my.v.at, y - R, x - R, 0), 1.0f, g);
        for (int j = 0; j < 2; ++j) {
          if (y + j == p.height) {
            std::fill(g[j], g[j] + T, vf{});
            continue;
          }
          vf a[T];
          for (int t = 0; t < T; ++t) a[t] = load(task.tap(kept, y + j, t, x));
          task.normalise_back(g[j], a, y + j, x,
                              load(spreads + ((y + j) * task.blocks + block) * VL));
          for (int t = 0; t < T; ++t) {
            g[j][t] = real ? g[j][t] : vf{};  // lanes beyond the row's end hold no pixel
            store(task.tap(my.slopes.at, y + j, t, x), g[j][t]);
          }
        }
        if (tables_b)
          for (int t = 0; t < T; ++t) {
            float* sum = my.lanes_b.at + t * VL;
            store(sum, load(sum) + g[0][t] + g[1][t]);
          }
        if (reads_q) gathered.take(g, task.at(my.q.at, y, x, 0));
        if (reads_q) to_query(g, y, x);
      }
    gathered.flush();
  }

  void to_query(const vf (*g)[T], int64_t y, int64_t x) {
    float* to = task.at(my.dq.at, y, x, 0);
    if (task.p.use_qk)
      task.mix(g, task.at(my.k.at, y - R, x - R, 0), to, task.span, task.row());
    else
      for (int j = 0; j < 2; ++j)
        for (int64_t c = 0; c < task.p.depth; ++c) store(to + j * task.row() + c * task.span, vf{});
    if (task.rel_k) task.mix_table(g, task.rel_k, false, to, task.row());
  }

  // Every pixel as a neighbor: what the queries around it send to its value and its key.
  void neighbors(const float* kept) {
    const Problem& p = task.p;
    Gathered<K> gathered(task, tables_q ? my.lanes_q.at : nullptr);
    for (int64_t y = 0; y < p.height; y += 2)
      for (int64_t x = 0; x < task.wide(); x += VL) {
        vf a[2][T];
        task.received(kept, y, x, a);
        task.mix(a, task.at(my.dout.at, y - R, x - R, 0), task.at(my.dv.at, y, x, 0), task.span,
                 task.row());
        if (!reads_k) continue;
        task.received(my.slopes.at, y, x, a);
        // The lower tile of a last pair is no row of the map; nor are lanes beyond the row's end.
        if (y + 1 == p.height) std::fill(a[1], a[1] + T, vf{});
        gathered.take(a, task.at(my.k.at, y, x, 0));
        to_key(a, y, x);
      }
    gathered.flush();
  }

  void to_key(const vf (*a)[T], int64_t y, int64_t x) {
    float* to = task.at(my.dk.at, y, x, 0);
    if (task.p.use_qk)
      task.mix(a, task.at(my.q.at, y - R, x - R, 0), to, task.span, task.row());
    else
      for (int j = 0; j < 2; ++j)
        for (int64_t c = 0; c < task.p.depth; ++c) store(to + j * task.row() + c * task.span, vf{});
    if (task.rel_q) task.mix_table(a, task.rel_q, true, to, task.row());
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
