// Grouped convolution of channels-last maps: K x K taps, groups of G channels in and out, zeros
// outside the map; forward and backward, sums in float32. It makes ELSA's filters.
//
//   out[p, o] = bias[o] + sum over taps t and channels i of o's group of weight[o, i, t] x[p + o_t, i]
//
// Channels out lie in the vector's lanes; channel i of each group is spread over its group's lanes.
// Sums stay in registers while pixels pass by. The gradient of x is the same convolution with the
// filters turned round and their channels exchanged. Every task writes its own memory and parts of
// parameter gradients are summed in order, so results do not depend on the number of threads.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "memory.h"
#include "simd.h"
#include "view.h"

namespace {

struct Problem {
  int64_t batch, height, width, channels;
};

constexpr int64_t BAND = 32;  // rows of a task at most
constexpr int64_t MANY = 16;  // tasks there should be at least
constexpr int PX = 7;         // pixels that share a loaded weight

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The same place, which GCC does not know to be the same: it then reads a product's factor from
// memory in the product itself, and the sums have all registers but two.
inline const float* elsewhere(const float* p) {
  __asm__ volatile("" : "+r"(p));
  return p;
}

// One task: CHUNK channels of one image in a band of rows.
template <int K, int G>
struct Task {
  static constexpr int R = K / 2, T = K * K;
  static constexpr int CHUNK = std::max(G, VL), OUT = CHUNK / VL;

  const Problem& p;
  const int64_t chunks, bands, band, columns;
  int64_t b = 0, chunk = 0, first = 0, top = 0, rows = 0;

  explicit Task(const Problem& p)
      : p(p), chunks(ceil_div(p.channels, CHUNK)), bands(bands_of(p, chunks)),
        band(ceil_div(p.height, bands)), columns(ceil_div(p.width, PX) * PX + 2 * R) {}

  static int64_t bands_of(const Problem& p, int64_t chunks) {
    const int64_t wanted = std::max(
        ceil_div(p.height, BAND),
        std::min(ceil_div(MANY, p.batch * chunks), ceil_div(p.height, 8)));
    return ceil_div(p.height, ceil_div(p.height, wanted));
  }

  int64_t tasks() const { return p.batch * chunks * bands; }
  // One row more than its taps reach: rows are worked on by twos.
  int64_t map_size() const { return (band + 2 * R + 1) * columns * CHUNK; }
  static constexpr int64_t weights_size() { return OUT * T * G * VL; }

  void choose(int64_t n) {
    b = n / (chunks * bands);
    chunk = n / bands % chunks;
    first = chunk * CHUNK;
    top = n % bands * band;
    rows = std::min(band, p.height - top);
  }

  int64_t filled() const { return std::min<int64_t>(CHUNK, p.channels - first); }

  // Row ``y`` of the band, from -R to rows + R, and column ``x`` from -R.
  int64_t place(int64_t y, int64_t x) const { return ((y + R) * columns + x + R) * CHUNK; }

  // Copies the chunk's channels of a (B, H, W, C) map; lanes without a channel and pixels outside the map stay zero.
  void pack(const View& from, float* to) const {
    std::memset(to, 0, map_size() * 4);
    const int64_t count = filled();
    from.typed([&](const auto* origin) {
      for (int64_t y = std::max<int64_t>(-R, -top); y < std::min(rows + R, p.height - top); ++y)
        for (int64_t x = 0; x < p.width; ++x) {
          const auto* pixel = origin + from.place(b, top + y, x, first);
          float* packed = to + place(y, x);
          if (from.stride[3] == 1 && count == CHUNK)
            for (int c = 0; c < CHUNK; c += 8) put8(packed + c, get8(pixel + c));
          else
            get_row(pixel, from.stride[3], count, packed);
        }
    });
  }

  // Calls with every channel of a group (every STEP-th), known to the compiler where lanes are
  // exchanged: such an exchange costs no instruction of its own.
  template <int STEP, class Call>
  __attribute__((always_inline)) static inline void each_channel(Call call) {
    if constexpr (G < VL)
      each_known<STEP>(call, std::make_integer_sequence<int, G / STEP>());
    else
      for (int i = 0; i < G; i += STEP) call(i);
  }

  template <int STEP, class Call, int... N>
  __attribute__((always_inline)) static inline void each_known(
      Call call, std::integer_sequence<int, N...>) {
    (call(std::integral_constant<int, N * STEP>()), ...);
  }

  // Channel ``i + MORE`` of each lane's group at one pixel, whose group or vector begins there.
  template <int MORE = 0, class I>
  __attribute__((always_inline)) static inline vf channel(const float* pixel, I i) {
    if constexpr (G < VL)
      return spread<I::value + MORE>(load(pixel), std::make_integer_sequence<int, VL>());
    else
      return splat(pixel[i + MORE]);
  }

  template <int I, int... LANE>
  static vf spread(vf v, std::integer_sequence<int, LANE...>) {
    const vi lanes = {LANE / G * G + I...};
    return __builtin_shuffle(v, lanes);
  }

  // Where the weight of channel out ``c`` of the chunk lies in [OUT][K][G][K][VL].
  static int64_t weight_at(int64_t c, int64_t i, int64_t dy, int64_t dx) {
    return ((((c / VL) * K + dy) * G + i) * K + dx) * VL + c % VL;
  }

  // The chunk's part of (C, G, T). Backward: channels in and out exchanged, taps turned round.
  void pack_weights(const float* from, bool backward, float* to) const {
    for (int64_t c = 0; c < filled(); ++c)
      for (int64_t i = 0; i < G; ++i) {
        const int64_t out = backward ? c / G * G + i : c, in = backward ? c % G : i;
        const float* filter = from + ((first + out) * G + in) * T;
        for (int dy = 0; dy < K; ++dy)
          for (int dx = 0; dx < K; ++dx)
            to[weight_at(c, i, dy, dx)] = filter[backward ? T - 1 - dy * K - dx : dy * K + dx];
      }
  }

  void keep_weights(const float* found, float* to) const {
    for (int64_t c = 0; c < filled(); ++c)
      for (int64_t i = 0; i < G; ++i)
        for (int dy = 0; dy < K; ++dy)
          for (int dx = 0; dx < K; ++dx)
            to[((first + c) * G + i) * T + dy * K + dx] = found[weight_at(c, i, dy, dx)];
  }

  // Sums at PX pixels of two rows, from (y, x) on, of one vector of channels out. Fewer sums would
  // wait for each other.
  __attribute__((always_inline)) inline void sums(const float* map, const float* weights,
                                                  int64_t y, int64_t x, vf (&acc)[2][PX]) const {
    for (int dy = 0; dy < K; ++dy)
      each_channel<1>([&](auto i) __attribute__((always_inline)) {
        const float* taps = weights + (dy * G + i) * K * VL;
        const float* column = map + place(y + dy - R, x - R);
#pragma GCC unroll 32
        for (int s = 0; s < K + PX - 1; ++s, column += CHUNK) {
          const vf upper = held(channel(column, i));
          const vf lower = held(channel(column + columns * CHUNK, i));
          const float *once = elsewhere(taps), *again = elsewhere(taps);
#pragma GCC unroll 8
          for (int n = 0; n < PX; ++n) {
            if (s - n < 0 || s - n >= K) continue;
            acc[0][n] += load(once + (s - n) * VL) * upper;
            acc[1][n] += load(again + (s - n) * VL) * lower;
          }
        }
      });
  }

  void convolve(const float* map, const float* weights, const float* bias, const View& to) const {
    const int64_t count = filled();
    for (int64_t y = 0; y < rows; y += 2)
      for (int64_t x = 0; x < p.width; x += PX)
        for (int o = 0; o < OUT && o * VL < count; ++o) {
          const int64_t lanes = std::min<int64_t>(VL, count - o * VL);
          vf start = {};
          for (int64_t c = 0; c < lanes && bias; ++c) start[c] = bias[first + o * VL + c];
          vf acc[2][PX];
          for (auto& row : acc)
            for (vf& one : row) one = start;
          sums(map, weights + o * T * G * VL, y, x, acc);
          for (int row = 0; row < std::min<int64_t>(2, rows - y); ++row)
            for (int n = 0; n < std::min<int64_t>(PX, p.width - x); ++n)
              keep_sums(acc[row][n], lanes, to, to.place(b, top + y + row, x + n, first + o * VL));
        }
  }

  // Writes one pixel's channels.
  static void keep_sums(const vf& sums, int64_t lanes, const View& to, int64_t place) {
    float found[VL];
    store(found, sums);
    to.typed([&](auto* origin) {
      if (to.stride[3] == 1 && lanes == VL)
        for (int c = 0; c < VL; c += 8) put8(origin + place + c, get8(found + c));
      else
        put_row(found, lanes, origin + place, to.stride[3]);
    });
  }

  // Gradients of the weights from one band: two channels in and a row of taps at a time.
  void weights_back(const float* map, const float* grad, float* found) const {
    for (int o = 0; o < OUT; ++o)
      for (int dy = 0; dy < K; ++dy)
        each_channel<2>([&](auto i) {
          vf acc[2][K] = {};
          for (int64_t y = 0; y < rows; ++y) {
            const float* column = map + place(y + dy - R, 0);
            const float* g = grad + place(y, -R) + o * VL;
            for (int64_t s = 0; s < p.width; ++s, column += CHUNK, g += CHUNK) {
              const vf one = held(channel(column, i)), two = held(channel<1>(column, i));
              const float *once = elsewhere(g), *again = elsewhere(g);
#pragma GCC unroll 8
              for (int dx = 0; dx < K; ++dx) {
                acc[0][dx] += load(once + (K - 1 - dx) * CHUNK) * one;
                acc[1][dx] += load(again + (K - 1 - dx) * CHUNK) * two;
              }
            }
          }
          float* to = found + ((o * K + dy) * G + i) * K * VL;
          for (int j = 0; j < 2; ++j)
            for (int dx = 0; dx < K; ++dx) store(to + (j * K + dx) * VL, acc[j][dx]);
        });
  }

  void bias_back(const float* grad, float* found) const {
    vf acc[OUT] = {};
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < p.width; ++x)
        for (int o = 0; o < OUT; ++o) acc[o] += load(grad + place(y, x) + o * VL);
    for (int o = 0; o < OUT; ++o) store(found + o * VL, acc[o]);
  }
};

// The weights of all chunks, packed.
template <int K, int G>
Buffer packed(const Problem& p, const float* weight, bool backward) {
  Task<K, G> shape(p);
  const int64_t length = Task<K, G>::weights_size();
  Buffer all(shape.chunks * length);
#pragma omp parallel for schedule(static) firstprivate(shape)
  for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
    shape.choose(chunk * shape.bands);
    shape.pack_weights(weight, backward, all.at + chunk * length);
  }
  return all;
}

template <int K, int G>
void forward(const Problem& p, const View& x, const float* weight, const float* bias,
             const View& out) {
  const Task<K, G> shape(p);
  Each<Buffer> scratch([&] { return new Buffer(shape.map_size()); });
  const Buffer weights = packed<K, G>(p, weight, false);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < shape.tasks(); ++n) {
    float* map = scratch.mine().at;
    Task<K, G> task(p);
    task.choose(n);
    task.pack(x, map);
    task.convolve(map, weights.at + task.chunk * task.weights_size(), bias, out);
  }
}

template <int K, int G>
void backward(const Problem& p, const View& x, const float* weight, const View& dout,
              const View& dx, float* dweight, float* dbias) {
  const Task<K, G> shape(p);
  const int64_t length = shape.weights_size(), wide = shape.CHUNK;
  struct Scratch {
    Buffer map, grad;
  };
  Each<Scratch> scratch([&] {
    return new Scratch{Buffer(shape.map_size()), Buffer(shape.map_size())};
  });
  const Buffer weights = packed<K, G>(p, weight, true);
  Buffer parts(shape.tasks() * length), bias_parts(shape.tasks() * wide);
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < shape.tasks(); ++n) {
    Scratch& my = scratch.mine();
    Task<K, G> task(p);
    task.choose(n);
    task.pack(dout, my.grad.at);
    task.convolve(my.grad.at, weights.at + task.chunk * length, nullptr, dx);
    task.pack(x, my.map.at);
    task.weights_back(my.map.at, my.grad.at, parts.at + n * length);
    if (dbias) task.bias_back(my.grad.at, bias_parts.at + n * wide);
  }
#pragma omp parallel for schedule(static)
  for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
    Task<K, G> task(p);
    task.choose(chunk * task.bands);
    float* all = parts.at + chunk * task.bands * length;
    float* biases = bias_parts.at + chunk * task.bands * wide;
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t band = b == 0; band < task.bands; ++band) {
        const int64_t n = b * task.chunks * task.bands + band;
        for (int64_t e = 0; e < length; ++e) all[e] += all[n * length + e];
        for (int64_t e = 0; e < wide; ++e) biases[e] += biases[n * wide + e];
      }
    task.keep_weights(all, dweight);
    for (int64_t c = 0; c < task.filled() && dbias; ++c) dbias[task.first + c] = biases[c];
  }
}

template <int K>
int forward_of(const Problem& p, int group, const View& x, const float* weight, const float* bias,
               const View& out) {
  switch (group) {
    case 4: forward<K, 4>(p, x, weight, bias, out); return 0;
    case 8: forward<K, 8>(p, x, weight, bias, out); return 0;
    case 16: forward<K, 16>(p, x, weight, bias, out); return 0;
    default: return 2;
  }
}

template <int K>
int backward_of(const Problem& p, int group, const View& x, const float* weight, const View& dout,
                const View& dx, float* dweight, float* dbias) {
  switch (group) {
    case 4: backward<K, 4>(p, x, weight, dout, dx, dweight, dbias); return 0;
    case 8: backward<K, 8>(p, x, weight, dout, dx, dweight, dbias); return 0;
    case 16: backward<K, 16>(p, x, weight, dout, dx, dweight, dbias); return 0;
    default: return 2;
  }
}

}  // namespace

extern "C" {

// 0 done, 1 out of memory, 2 a size that is not compiled. ``bias`` and ``dbias`` may be absent.
int grouped_conv_forward(const Problem* p, int size, int group, const View* x, const float* weight,
                         const float* bias, const View* out) {
  if (!x->at) return 0;  // a map of no elements
  try {
    switch (size) {
      case 3: return forward_of<3>(*p, group, *x, weight, bias, *out);
#ifndef LSA_FEW_SIZES
      case 5: return forward_of<5>(*p, group, *x, weight, bias, *out);
#endif
      case 7: return forward_of<7>(*p, group, *x, weight, bias, *out);
      default: return 2;
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int grouped_conv_backward(const Problem* p, int size, int group, const View* x,
                          const float* weight, const View* dout, const View* dx, float* dweight,
                          float* dbias) {
  if (!x->at) return 0;  // a map of no elements
  try {
    switch (size) {
      case 3: return backward_of<3>(*p, group, *x, weight, *dout, *dx, dweight, dbias);
#ifndef LSA_FEW_SIZES
      case 5: return backward_of<5>(*p, group, *x, weight, *dout, *dx, dweight, dbias);
#endif
      case 7: return backward_of<7>(*p, group, *x, weight, *dout, *dx, dweight, dbias);
      default: return 2;
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
