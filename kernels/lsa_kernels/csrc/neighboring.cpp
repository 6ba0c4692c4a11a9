// Eq. 4 on every pixel's own neighborhood, forward and backward, float32.
//
// One task is one head of one image. Its queries, keys and values are packed to [row][channel][x],
// keys and values with a border of zeros, so that the pixels of a row lie in the vector's lanes: no
// sums across lanes, the norm over the taps is lane by lane, and a tap to the right is a load one
// float further. A tile is VL pixels of a row; its K*K logits stay in the first cache. Every task
// writes its own memory, and parameter gradients are summed over the images in order, so results do
// not depend on the number of threads.
#include <omp.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "simd.h"

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

struct Buffer {
  float* at = nullptr;
  int64_t size = 0;
  explicit Buffer(int64_t n) : size(n) {
    at = static_cast<float*>(std::aligned_alloc(64, ((n * 4 + 63) / 64) * 64));
    if (!at) throw std::bad_alloc();
    clear();
  }
  Buffer(Buffer&& other) noexcept : at(other.at), size(other.size) { other.at = nullptr; }
  ~Buffer() { std::free(at); }
  void clear() { std::memset(at, 0, size * 4); }
};

// One scratch per thread, made before the threads start: what cannot be had is told, not fatal.
template <class Scratch>
struct Each {
  std::vector<std::unique_ptr<Scratch>> all;
  template <class Make>
  explicit Each(Make make) {
    for (int i = 0; i < omp_get_max_threads(); ++i) all.emplace_back(make());
  }
  Scratch& mine() { return *all[omp_get_thread_num()]; }
};

template <int K>
struct Task {
  static constexpr int R = K / 2, T = K * K;
  const Problem& p;
  const int64_t b, h, blocks, span;  // span: floats of a packed row, border included
  const float *rel_k, *rel_q, *bias;

  Task(const Problem& p, int64_t task, const float* rel_k_, const float* rel_q_, const float* bias_)
      : p(p), b(task / p.heads), h(task % p.heads), blocks((p.width + VL - 1) / VL),
        span(blocks * VL + 2 * R),
        rel_k(rel_k_ ? rel_k_ + h * T * p.depth : nullptr),
        rel_q(rel_q_ ? rel_q_ + h * T * p.depth : nullptr),
        bias(bias_ ? bias_ + h * T : nullptr) {}

  int64_t packed() const { return (p.height + 2 * R) * p.depth * span; }
  // First float of channel c in row y of a packed map; x = 0 stands R floats further.
  float* at(float* map, int64_t y, int64_t c) const {
    return map + ((y + R) * p.depth + c) * span;
  }
  const float* at(const float* map, int64_t y, int64_t c) const {
    return at(const_cast<float*>(map), y, c);
  }

  void pack(const View& from, float* map) const {
    for (int64_t y = 0; y < p.height; ++y) {
      const float* row = from.row(b, h, y);
      for (int64_t c = 0; c < p.depth; ++c) {
        float* to = at(map, y, c) + R;
        for (int64_t x = 0; x < p.width; ++x) to[x] = row[x * from.stride[3] + c * from.stride[4]];
      }
    }
  }

  void unpack(const float* map, const View& to, float factor) const {
    for (int64_t y = 0; y < p.height; ++y) {
      float* row = to.row(b, h, y);
      for (int64_t x = 0; x < p.width; ++x)
        for (int64_t c = 0; c < p.depth; ++c)
          row[x * to.stride[3] + c * to.stride[4]] = factor * at(map, y, c)[R + x];
    }
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

  void logits(const float* q, const float* k, int64_t y, int64_t x, vf* out) const {
    for (int t = 0; t < T; ++t) out[t] = vf{};
    for (int dy = -R; dy <= R; ++dy) {
      vf acc[K];
      for (int i = 0; i < K; ++i) acc[i] = vf{};
      const int first = (dy + R) * K;
      for (int64_t c = 0; c < p.depth; ++c) {
        const vf query = q ? load(at(q, y, c) + R + x) : vf{};
        const float* keys = k ? at(k, y + dy, c) + x : nullptr;
        if (p.use_qk && rel_q) {
          for (int i = 0; i < K; ++i)
            acc[i] += (query + rel_q[(first + i) * p.depth + c]) * load(keys + i);
        } else if (p.use_qk) {
          for (int i = 0; i < K; ++i) acc[i] += query * load(keys + i);
        } else if (rel_q) {
          for (int i = 0; i < K; ++i) acc[i] += rel_q[(first + i) * p.depth + c] * load(keys + i);
        }
        if (rel_k)
          for (int i = 0; i < K; ++i) acc[i] += query * rel_k[(first + i) * p.depth + c];
      }
      for (int i = 0; i < K; ++i)
        out[first + i] = acc[i] * p.scale + (bias ? bias[first + i] : 0.0f);
    }
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
    const vf total = by_rows([&](int t) { return seen[t] ? d[t] : vf{}; });
    const vf dot = by_rows([&](int t) { return d[t] * a[t]; });
    const vf others = count > 1.0f ? count - 1.0f : splat(1);
    const vf deviation = spread - 1e-10f;
    // With w = G x / (s + e): x = w (s + e) / G, and s changes by x / ((n - 1) s).
    const vf pull = deviation > 0.0f ? dot * spread / (G * G * others * deviation) : vf{};
    for (int t = 0; t < T; ++t)
      d[t] = seen[t] ? (G / spread) * (d[t] - total / count - pull * a[t]) : vf{};
  }

  // CB channels of sum over taps of a[t] * v, so that a[t] is read once for all of them.
  template <int CB>
  void mix_channels(const vf* a, const float* v, int64_t y, int64_t x, int64_t c, float* out) const {
    vf total[CB] = {};
    for (int dy = 0; dy < K; ++dy) {
      vf acc[CB] = {};
      const float* rows = at(v, y + dy - R, c) + x;
      for (int dx = 0; dx < K; ++dx)
        for (int i = 0; i < CB; ++i) acc[i] += a[dy * K + dx] * load(rows + i * span + dx);
      for (int i = 0; i < CB; ++i) total[i] += acc[i];
    }
    for (int i = 0; i < CB; ++i) store(out + (c + i) * VL, total[i]);
  }

  void mix(const vf* a, const float* v, int64_t y, int64_t x, float* out) const {
    int64_t c = 0;
    for (; c + 8 <= p.depth; c += 8) mix_channels<8>(a, v, y, x, c, out);
    for (; c < p.depth; ++c) mix_channels<1>(a, v, y, x, c, out);
  }

  // Row y of tap t in a map of weights [y][t][span]; pixel 0 stands R floats further.
  float* tap(float* map, int64_t y, int t) const { return map + (y * T + t) * span; }
  const float* tap(const float* map, int64_t y, int t) const {
    return tap(const_cast<float*>(map), y, t);
  }
  int64_t taps() const { return p.height * T * span; }

  // Gradient of the weights: the output's gradient against every neighbor's value.
  void weights_back(const float* dout, const float* v, int64_t y, int64_t x, vf* g) const {
    for (int dy = 0; dy < K; ++dy) {
      vf acc[K] = {};
      for (int64_t c = 0; c < p.depth; ++c) {
        const vf grad = load(at(dout, y, c) + R + x);
        const float* values = at(v, y + dy - R, c) + x;
        for (int i = 0; i < K; ++i) acc[i] += grad * load(values + i);
      }
      for (int i = 0; i < K; ++i) g[dy * K + i] = acc[i];
    }
  }

  template <int CB>
  void query_channels(const vf* g, const float* k, int64_t y, int64_t x, int64_t c,
                      float* dq) const {
    vf total[CB] = {};
    for (int dy = 0; dy < K; ++dy) {
      vf acc[CB] = {};
      const float* keys = k ? at(k, y + dy - R, c) + x : nullptr;
      for (int dx = 0; dx < K; ++dx) {
        const int t = dy * K + dx;
        if (p.use_qk)
          for (int i = 0; i < CB; ++i) acc[i] += g[t] * load(keys + i * span + dx);
        if (rel_k)
          for (int i = 0; i < CB; ++i) acc[i] += g[t] * rel_k[t * p.depth + c + i];
      }
      for (int i = 0; i < CB; ++i) total[i] += acc[i];
    }
    for (int i = 0; i < CB; ++i) store(at(dq, y, c + i) + R + x, total[i]);
  }

  void query_back(const vf* g, const float* k, int64_t y, int64_t x, float* dq) const {
    int64_t c = 0;
    for (; c + 8 <= p.depth; c += 8) query_channels<8>(g, k, y, x, c, dq);
    for (; c < p.depth; ++c) query_channels<1>(g, k, y, x, c, dq);
  }

  // Every pixel as a neighbor: what the queries around it send to its value and its key.
  template <int CB>
  void neighbor_channels(const float* weights, const float* slopes, const float* dout,
                         const float* q, int64_t y, int64_t x, int64_t c, float* dv,
                         float* dk) const {
    vf values[CB] = {}, keys[CB] = {};
    for (int dy = 0; dy < K; ++dy) {
      const int64_t from = y - (dy - R);
      if (from < 0 || from >= p.height) continue;
      vf value[CB] = {}, key[CB] = {};
      const float* grads = at(dout, from, c) + x + 2 * R;
      const float* queries = q ? at(q, from, c) + x + 2 * R : nullptr;
      for (int dx = 0; dx < K; ++dx) {
        const int t = dy * K + dx;
        const vf weight = load(tap(weights, from, t) + x + 2 * R - dx);
        for (int i = 0; i < CB; ++i) value[i] += weight * load(grads + i * span - dx);
        if (!dk) continue;
        const vf slope = load(tap(slopes, from, t) + x + 2 * R - dx);
        if (p.use_qk)
          for (int i = 0; i < CB; ++i) key[i] += slope * load(queries + i * span - dx);
        if (rel_q)
          for (int i = 0; i < CB; ++i) key[i] += slope * rel_q[t * p.depth + c + i];
      }
      for (int i = 0; i < CB; ++i) {
        values[i] += value[i];
        keys[i] += key[i];
      }
    }
    for (int i = 0; i < CB; ++i) {
      store(at(dv, y, c + i) + R + x, values[i]);
      if (dk) store(at(dk, y, c + i) + R + x, keys[i]);
    }
  }

  void neighbor_back(const float* weights, const float* slopes, const float* dout, const float* q,
                     int64_t y, int64_t x, float* dv, float* dk) const {
    int64_t c = 0;
    for (; c + 4 <= p.depth; c += 4)
      neighbor_channels<4>(weights, slopes, dout, q, y, x, c, dv, dk);
    for (; c < p.depth; ++c) neighbor_channels<1>(weights, slopes, dout, q, y, x, c, dv, dk);
  }

  // Parameter gradients of one row, kept per lane until the task ends.
  void tables_back(const float* slopes, const float* q, const float* k, int64_t y, float* lanes_k,
                   float* lanes_q, float* lanes_b) const {
    for (int t = 0; t < T && lanes_b; ++t) {
      vf acc = vf{};
      for (int64_t x = 0; x < blocks * VL; x += VL) acc += load(tap(slopes, y, t) + R + x);
      store(lanes_b + t * VL, load(lanes_b + t * VL) + acc);
    }
    for (int dy = 0; dy < K && (lanes_k || lanes_q); ++dy)
      for (int64_t c = 0; c < p.depth; ++c) {
        vf by_query[K] = {}, by_key[K] = {};
        const float* queries = q ? at(q, y, c) + R : nullptr;
        const float* keys = k ? at(k, y + dy - R, c) : nullptr;
        for (int64_t x = 0; x < blocks * VL; x += VL) {
          const vf query = lanes_k ? load(queries + x) : vf{};
          for (int i = 0; i < K; ++i) {
            const vf slope = load(tap(slopes, y, dy * K + i) + R + x);
            if (lanes_k) by_query[i] += slope * query;
            if (lanes_q) by_key[i] += slope * load(keys + x + i);
          }
        }
        for (int i = 0; i < K; ++i) {
          const int64_t entry = ((dy * K + i) * p.depth + c) * VL;
          if (lanes_k) store(lanes_k + entry, load(lanes_k + entry) + by_query[i]);
          if (lanes_q) store(lanes_q + entry, load(lanes_q + entry) + by_key[i]);
        }
      }
  }
};

template <int K>
void forward(const Problem& p, const View& q, const View& k, const View& v, const float* rel_k,
             const float* rel_q, const float* bias, const View& out, float* weights,
             float* spreads) {
  constexpr int T = K * K, R = K / 2;
  const int64_t tasks = p.batch * p.heads;
  const Task<K> shape(p, 0, nullptr, nullptr, nullptr);
  struct Scratch {
    Buffer q, k, v, mixed;
  };
  Each<Scratch> scratch([&] {
    return new Scratch{Buffer(q.at ? shape.packed() : 1), Buffer(k.at ? shape.packed() : 1),
                       Buffer(shape.packed()), Buffer(p.depth * VL)};
  });
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < tasks; ++n) {
    Scratch& my = scratch.mine();
    const Task<K> task(p, n, rel_k, rel_q, bias);
    if (q.at) task.pack(q, my.q.at);
    if (k.at) task.pack(k, my.k.at);
    task.pack(v, my.v.at);
    float* kept = weights ? weights + n * task.taps() : nullptr;
    for (int64_t y = 0; y < p.height; ++y) {
      for (int t = 0; t < T && kept; ++t) {
        std::memset(task.tap(kept, y, t), 0, R * 4);
        std::memset(task.tap(kept, y, t) + task.span - R, 0, R * 4);
      }
      for (int64_t block = 0; block < task.blocks; ++block) {
        const int64_t x = block * VL;
        vf a[T], spread = vf{};
        task.logits(q.at ? my.q.at : nullptr, k.at ? my.k.at : nullptr, y, x, a);
        task.normalise(a, y, x, &spread);
        if (kept) {
          const vi real = task.real(x);
          for (int t = 0; t < T; ++t) store(task.tap(kept, y, t) + R + x, real ? a[t] : vf{});
          store(spreads + ((n * p.height + y) * task.blocks + block) * VL, spread);
        }
        task.mix(a, my.v.at, y, x, my.mixed.at);
        float* row = out.row(task.b, task.h, y);
        for (int i = 0; i < VL && x + i < p.width; ++i)
          for (int64_t c = 0; c < p.depth; ++c)
            row[(x + i) * out.stride[3] + c * out.stride[4]] = my.mixed.at[c * VL + i];
      }
    }
  }
}

template <int K>
void backward(const Problem& p, const View& q, const View& k, const View& v, const float* rel_k,
              const float* rel_q, const float* bias, const float* weights, const float* spreads,
              const View& dout, const View& dq, const View& dk, const View& dv, float* drel_k,
              float* drel_q, float* dbias) {
  constexpr int T = K * K, R = K / 2;
  const int64_t tasks = p.batch * p.heads, d = p.depth;
  const Task<K> shape(p, 0, nullptr, nullptr, nullptr);
  const int64_t size = shape.packed();
  // One part per task, summed over the images at the end in order.
  Buffer parts_k(drel_k ? tasks * T * d : 1), parts_q(drel_q ? tasks * T * d : 1);
  Buffer parts_b(dbias ? tasks * T : 1);
  struct Scratch {
    Buffer q, k, v, dout, dq, dk, dv, slopes, lanes_k, lanes_q, lanes_b;
  };
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
    for (int64_t y = 0; y < p.height; ++y) {
      for (int64_t block = 0; block < task.blocks; ++block) {
        const int64_t x = block * VL;
        const vi real = task.real(x);
        vf a[T], g[T];
        for (int t = 0; t < T; ++t) a[t] = load(task.tap(kept, y, t) + R + x);
        task.weights_back(my.dout.at, my.v.at, y, x, g);
        task.normalise_back(g, a, y, x,
                            load(spreads + ((n * p.height + y) * task.blocks + block) * VL));
        for (int t = 0; t < T; ++t) {
          g[t] = real ? g[t] : vf{};  // lanes beyond the row's end hold no pixel
          store(task.tap(my.slopes.at, y, t) + R + x, g[t]);
        }
        if (dq.at) task.query_back(g, k.at ? my.k.at : nullptr, y, x, my.dq.at);
      }
      task.tables_back(my.slopes.at, q.at ? my.q.at : nullptr, k.at ? my.k.at : nullptr, y,
                       drel_k ? my.lanes_k.at : nullptr, drel_q ? my.lanes_q.at : nullptr,
                       dbias ? my.lanes_b.at : nullptr);
    }
    for (int64_t y = 0; y < p.height; ++y)
      for (int64_t x = 0; x < task.blocks * VL; x += VL)
        task.neighbor_back(kept, my.slopes.at, my.dout.at, q.at ? my.q.at : nullptr, y, x, my.dv.at,
                           dk.at ? my.dk.at : nullptr);
    if (dq.at) task.unpack(my.dq.at, dq, p.scale);
    if (dk.at) task.unpack(my.dk.at, dk, p.scale);
    task.unpack(my.dv.at, dv, 1.0f);
    for (int64_t e = 0; drel_k && e < T * d; ++e)
      parts_k.at[n * T * d + e] = p.scale * sum(load(my.lanes_k.at + e * VL));
    for (int64_t e = 0; drel_q && e < T * d; ++e)
      parts_q.at[n * T * d + e] = p.scale * sum(load(my.lanes_q.at + e * VL));
    for (int64_t e = 0; dbias && e < T; ++e)
      parts_b.at[n * T + e] = sum(load(my.lanes_b.at + e * VL));
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

#define FOR_SIZE(call)   \
  switch (size) {        \
    case 3: call(3);     \
    case 5: call(5);     \
    case 7: call(7);     \
    case 9: call(9);     \
    case 11: call(11);   \
    case 13: call(13);   \
    default: return 2;   \
  }

extern "C" {

int lanes() { return VL; }

// 0 done, 1 out of memory, 2 a size that is not compiled.
int neighboring_forward(const Problem* p, int size, const View* q, const View* k, const View* v,
                        const float* rel_k, const float* rel_q, const float* bias, const View* out,
                        float* weights, float* spreads) {
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
