// Calls every kernel on blocks of exactly the size they may touch, for a build with sanitizers:
// on a grid of sizes as the operators lay maps out, then on random sizes, 0 among them, of maps in
// any order of axes, with gaps, and with axes that repeat one place. Every map is in float32 or in
// bfloat16, by lot.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

struct Problem { int64_t batch, heads, height, width, depth; int use_qk, norm, mask; float scale; };
struct Filters { int64_t batch, height, width, heads, depth; int per_image; };
struct Windows {
  int64_t batch, heads, height, width, depth, rows, columns;
  int use_qk, norm, vectors;
  float scale;
};
struct Strided {
  int64_t batch, height, width, heads, depth, rows, columns, size, stride, dilation;
};
struct Maps { int64_t batch, height, width, channels; };
struct View { void* at; int64_t stride[5], half; };

extern "C" {
int lanes();
int neighboring_forward(const Problem*, int, const View*, const View*, const View*, const float*,
                        const float*, const float*, const View*, float*, float*);
int neighboring_backward(const Problem*, int, const View*, const View*, const View*, const float*,
                         const float*, const float*, const float*, const float*, const View*,
                         const View*, const View*, const View*, float*, float*, float*);
int window_forward(const Windows*, const View*, const View*, const View*, const float*,
                   const float*, const float*, const uint8_t*, const View*, float*, float*);
int window_backward(const Windows*, const View*, const View*, const View*, const float*,
                    const float*, const float*, const uint8_t*, const float*, const float*,
                    const View*, const View*, const View*, const View*, float*, float*, float*);
int filters_forward(const Filters*, int, const View*, const View*, const float*, const float*,
                    const View*);
int filters_backward(const Filters*, int, const View*, const View*, const float*, const float*,
                     const View*, const View*, const View*, float*, float*);
int strided_forward(const Strided*, const float*, const float*, const float*, const float*, float*);
int strided_backward(const Strided*, const float*, const float*, const float*, const float*,
                     const float*, float*, float*, float*, float*);
int grouped_conv_forward(const Maps*, int, int, const View*, const float*, const float*, const View*);
int grouped_conv_backward(const Maps*, int, int, const View*, const float*, const View*, const View*,
                          float*, float*);
int pictures_resize(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t, int, int, uint8_t*);
int pictures_warp(const uint8_t*, int64_t, int64_t, const double*, int, const uint8_t*, uint8_t*);
void pictures_mix(uint8_t*, int64_t, int64_t, float, float);
void pictures_look_up(const uint8_t*, int64_t, int64_t, int64_t, const float*, float*);
}


// Memory on a boundary of 64 bytes, as torch's is: the window kernel keeps whole vectors there.
struct Kept {
  void* at = nullptr;
  explicit Kept(int64_t n) {
    if (posix_memalign(&at, 64, n * sizeof(float))) std::abort();
  }
  ~Kept() { std::free(at); }
  float* data() const { return static_cast<float*>(at); }
};

static uint32_t state = 1;
static bool scattered = false;  // whether maps that are read lie in memory at random

static uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
static int64_t pick(int64_t low, int64_t high) { return low + next() % (high - low + 1); }

static std::vector<float> numbers(int64_t n) {
  std::vector<float> made(n);
  for (float& x : made) x = next() / 8388608.0f - 1.0f;
  return made;
}

// A tensor of up to five axes, and the memory from its first to its last element, no more.
struct Map {
  std::vector<uint8_t> memory;
  View view;
};

// ``order`` names the axes from the slowest in memory to the fastest.
static Map lay(std::vector<int64_t> shape, std::vector<int> order, bool random) {
  Map made = {{}, {nullptr, {0, 0, 0, 0, 0}, pick(0, 1)}};
  if (random)
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[pick(0, i - 1)]);
  int64_t step = random ? pick(1, 2) : 1, last = 0;
  bool empty = false;
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    empty |= !shape[*axis];
    if (random && !pick(0, 5)) continue;  // an expanded axis: one place for all
    made.view.stride[*axis] = step;
    last += (shape[*axis] - 1) * step;
    step = step * std::max<int64_t>(shape[*axis], 1) + (random ? pick(0, 3) : 0);
  }
  const std::vector<float> filled = numbers(empty ? 0 : last + 1);
  const size_t wide = made.view.half ? 2 : 4;
  made.memory.resize(filled.size() * wide);
  // The upper half of a float is it in bfloat16.
  for (size_t i = 0; i < filled.size(); ++i)
    std::memcpy(&made.memory[i * wide], reinterpret_cast<const uint8_t*>(&filled[i]) + 4 - wide, wide);
  made.view.at = empty ? nullptr : made.memory.data();
  return made;
}

static const std::vector<int> AS_IT_IS = {0, 1, 2, 3, 4}, HEADS_LAST = {0, 2, 3, 1, 4};
static Map written(std::vector<int64_t> shape, const std::vector<int>& order, bool there = true) {
  return there ? lay(shape, order, false) : Map{{}, {nullptr, {0, 0, 0, 0, 0}, 0}};
}
static Map read(std::vector<int64_t> shape, const std::vector<int>& order, bool there = true) {
  return there ? lay(shape, order, scattered) : written(shape, order, false);
}

// The inputs of Eq. 4 and their gradients; ``terms`` says which of its four summands are in.
struct Eq4 {
  bool qk, rk, rq, rb;
  Map q, k, v, out, dout, dq, dk, dv;
  std::vector<float> tk, tq, tb, dtk, dtq, dtb;
  const float *a, *b, *c;
  float *da, *db, *dc;

  Eq4(std::vector<int64_t> shape, int64_t offsets, int terms)
      : qk(terms & 1), rk(terms & 2), rq(terms & 4), rb(terms & 8),
        q(read(shape, HEADS_LAST, qk || rk)), k(read(shape, HEADS_LAST, qk || rq)),
        v(read(shape, HEADS_LAST)), out(written(shape, HEADS_LAST)),
        dout(read(shape, HEADS_LAST)), dq(written(shape, HEADS_LAST, qk || rk)),
        dk(written(shape, HEADS_LAST, qk || rq)), dv(written(shape, HEADS_LAST)),
        tk(numbers(shape[1] * offsets * shape[4])), tq(numbers(tk.size())),
        tb(numbers(shape[1] * offsets)), dtk(tk.size()), dtq(tk.size()), dtb(tb.size()),
        a(rk ? tk.data() : nullptr), b(rq ? tq.data() : nullptr), c(rb ? tb.data() : nullptr),
        da(rk ? dtk.data() : nullptr), db(rq ? dtq.data() : nullptr), dc(rb ? dtb.data() : nullptr) {}
};

static int neighboring(int size, std::vector<int64_t> shape, int terms, int norm, int mask) {
  const int64_t taps = size * size, rows = shape[0] * shape[1] * shape[2];
  const int64_t wide = (shape[3] + lanes() - 1) / lanes() * lanes();
  Eq4 x(shape, taps, terms);
  std::vector<float> kept(rows * taps * wide), spreads(rows * wide);
  const Problem p = {shape[0], shape[1], shape[2], shape[3], shape[4], x.qk, norm, mask, 0.3f};
  return neighboring_forward(&p, size, &x.q.view, &x.k.view, &x.v.view, x.a, x.b, x.c, &x.out.view,
                             nullptr, nullptr) |
         neighboring_forward(&p, size, &x.q.view, &x.k.view, &x.v.view, x.a, x.b, x.c, &x.out.view,
                             kept.data(), spreads.data()) |
         neighboring_backward(&p, size, &x.q.view, &x.k.view, &x.v.view, x.a, x.b, x.c, kept.data(),
                              spreads.data(), &x.dout.view, &x.dq.view, &x.dk.view, &x.dv.view, x.da,
                              x.db, x.dc);
}

// Windows of ``rows`` x ``columns`` pixels, ``down`` times ``across`` of them in an image.
static int window(std::vector<int64_t> shape, int64_t rows, int64_t columns, int terms, int norm,
                  bool excludes, int vectors) {
  const int64_t pixels = rows * columns, offsets = (2 * rows - 1) * (2 * columns - 1);
  const int64_t windows = shape[2] * shape[3], together = vectors * lanes();
  shape[2] *= rows, shape[3] *= columns;
  const int64_t slots = (shape[0] * windows + together - 1) / together * together * shape[1] * pixels;
  Eq4 x(shape, offsets, terms);
  Kept kept(slots * pixels);
  std::vector<float> spreads(slots);
  std::vector<uint8_t> excluded(windows * pixels * pixels);
  for (size_t e = 0; e < excluded.size(); ++e)
    excluded[e] = e % 5 == 0 && e / pixels % pixels != e % pixels;  // a pixel always sees itself
  const Windows p = {shape[0], shape[1], shape[2], shape[3], shape[4], rows, columns,
                     x.qk,     norm,     vectors,  0.3f};
  const uint8_t* hidden = excludes ? excluded.data() : nullptr;
  return window_forward(&p, &x.q.view, &x.k.view, &x.v.view, x.a, x.b, x.c, hidden, &x.out.view,
                        nullptr, nullptr) |
         window_forward(&p, &x.q.view, &x.k.view, &x.v.view, x.a, x.b, x.c, hidden, &x.out.view,
                        kept.data(), spreads.data()) |
         window_backward(&p, &x.q.view, &x.k.view, &x.v.view, x.a, x.b, x.c, hidden, kept.data(),
                         spreads.data(), &x.dout.view, &x.dq.view, &x.dk.view, &x.dv.view, x.da,
                         x.db, x.dc);
}

// Channels of (B, H, W, C) as heads: a view of the same memory.
static View by_heads(const Map& map, int64_t depth) {
  const int64_t* s = map.view.stride;
  return {map.view.at, {s[0], s[1], s[2], s[3] * depth, s[3]}, map.view.half};
}

static int filters(int size, std::vector<int64_t> shape, int64_t heads, int parts, bool per_image) {
  const int64_t taps = size * size, depth = shape[3];
  const bool dynamic = parts & 1, by = parts & 2, plus = parts & 4;
  shape[3] *= heads;
  const std::vector<int> order = {0, 1, 2, 3};
  Map v = read(shape, order), g = read(shape, order), out = written(shape, order);
  Map dv = written(shape, order);
  shape[3] = heads, shape.push_back(taps);
  Map f = read(shape, AS_IT_IS, dynamic), df = written(shape, AS_IT_IS, dynamic);
  const int64_t tables = (per_image ? shape[0] : 1) * heads * depth * taps;
  std::vector<float> m = numbers(tables), a = numbers(tables), dm(tables), da(tables);
  const Filters p = {shape[0], shape[1], shape[2], heads, depth, per_image};
  const View v_ = by_heads(v, depth), g_ = by_heads(g, depth), out_ = by_heads(out, depth);
  const View dv_ = by_heads(dv, depth);
  const float *by_ = by ? m.data() : nullptr, *plus_ = plus ? a.data() : nullptr;
  return filters_forward(&p, size, &v_, &f.view, by_, plus_, &out_) |
         filters_backward(&p, size, &v_, &f.view, by_, plus_, &g_, &dv_, &df.view,
                          by ? dm.data() : nullptr, plus ? da.data() : nullptr);
}

static int grouped_conv(int size, std::vector<int64_t> shape, int group, bool bias) {
  const std::vector<int> order = {0, 1, 2, 3};
  Map x = read(shape, order), g = read(shape, order), out = written(shape, order);
  Map dx = written(shape, order);
  std::vector<float> b = numbers(shape[3]), db(shape[3]), w = numbers(shape[3] * group * size * size);
  std::vector<float> dw(w.size());
  const Maps p = {shape[0], shape[1], shape[2], shape[3]};
  return grouped_conv_forward(&p, size, group, &x.view, w.data(), bias ? b.data() : nullptr,
                              &out.view) |
         grouped_conv_backward(&p, size, group, &x.view, w.data(), &g.view, &dx.view, dw.data(),
                               bias ? db.data() : nullptr);
}

static int strided(int64_t size, std::vector<int64_t> shape, int64_t heads, int64_t stride, int way) {
  const int64_t rows = (shape[1] + stride - 1) / stride, columns = (shape[2] + stride - 1) / stride;
  const int64_t depth = shape[3], taps = size * size, wide = heads * depth;
  const Strided p = {shape[0], shape[1], shape[2], heads, depth, rows, columns, size, stride,
                     1 + (way >> 2)};
  const auto v = numbers(shape[0] * shape[1] * shape[2] * wide);
  const auto f = numbers(shape[0] * rows * columns * heads * taps);
  const auto m = numbers(shape[0] * taps * wide), g = numbers(shape[0] * rows * columns * wide);
  std::vector<float> out(g.size()), dv(v.size()), df(f.size()), dm(m.size()), da(m.size());
  const float *by = way & 1 ? m.data() : nullptr, *plus = way & 2 ? m.data() : nullptr;
  return strided_forward(&p, v.data(), f.data(), by, plus, out.data()) |
         strided_backward(&p, v.data(), f.data(), by, plus, g.data(), dv.data(), df.data(),
                          by ? dm.data() : nullptr, plus ? da.data() : nullptr);
}

// The last row ends where the memory does, but for the byte that the kernel may read behind a pixel.
static int picture(int64_t width, int64_t height, std::vector<int64_t> box, int64_t to_width,
                   int64_t to_height, int way) {
  const int64_t stride = 3 * width + (scattered ? pick(0, 5) : 0);
  std::vector<uint8_t> rgb((height - 1) * stride + 3 * width), out(4 * to_width * to_height);
  return pictures_resize(rgb.data(), stride, box.data(), to_width, to_height, way & 1, way >> 1 & 1,
                         out.data());
}

static int warp(int64_t width, int64_t height, int way) {
  std::vector<uint8_t> from(4 * width * height), to(from.size());
  const double turn = way & 4 ? NAN : scattered ? pick(-40, 40) / 10.0 : 0.3;
  const double matrix[] = {1 - turn, turn, -2.5, -turn, 1, 7.5};
  const uint8_t fill[] = {1, 2, 3, 4};
  return pictures_warp(from.data(), width, height, matrix, way & 1, fill, to.data());
}

static int batch(int64_t pictures, int64_t pixels) {
  std::vector<uint8_t> bytes(pictures * 3 * pixels);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(i);
  pictures_mix(bytes.data(), pictures, 3 * pixels, 0.3f, 0.7f);
  const std::vector<float> tables(3 * 256);
  std::vector<float> out(bytes.size());
  pictures_look_up(bytes.data(), pictures, 3, pixels, tables.data(), out.data());
  return 0;
}

static int at_random() {
  const int sizes[] = {3, 7, 9}, size = sizes[pick(0, 2)], terms = pick(1, 15), norm = pick(0, 2);
  const int way = pick(0, 7);
  std::vector<int64_t> shape = {pick(1, 3), pick(1, 3), pick(1, 12), pick(1, 40), pick(1, 20)};
  if (!pick(0, 7)) shape[pick(0, 4)] = 0;
  const int parts[] = {1, 3, 4, 5, 7};
  const int64_t left = pick(0, 9), top = pick(0, 9), wide = pick(1, 30), tall = pick(1, 30);
  switch (pick(0, 5)) {
    case 0: return neighboring(size, shape, terms, norm, way & 1);
    case 1:
      shape[2] = shape[2] % 4, shape[3] = shape[3] % 9;
      return window(shape, pick(1, 4), pick(1, 4), terms, norm, way & 1, pick(1, 2));
    case 2:
      return filters(size, {shape[0], shape[2], shape[3], shape[4]}, shape[1], parts[pick(0, 4)], way & 1);
    case 3: {
      const int group = 4 << pick(0, 2);
      return grouped_conv(pick(0, 1) ? 3 : 7, {shape[0], shape[2], shape[3], shape[1] * group}, group, way & 1);
    }
    case 4: return strided(size, {shape[0], shape[2], shape[3], shape[4]}, shape[1], pick(1, 4), way);
    default:
      return picture(left + wide + pick(0, 3), top + tall + pick(0, 3), {left, top, wide, tall},
                     pick(1, 40), pick(1, 40), way) |
             warp(shape[3], shape[2], way) | batch(shape[0], shape[2] * shape[3]);
  }
}

int main(int, char** arguments) {
  const int64_t shapes[][3] = {{1, 1, 1}, {5, 9, 3}, {3, 17, 8}, {8, 8, 12}, {40, 3, 4}};
  int calls = 0, refused = 0;
  for (int size : {3, 7, 9})
    for (const auto& s : shapes) {
      if (size > 7 && s != shapes[1]) continue;
      for (int terms = 1; terms < 16; ++terms)
        for (int norm = 0; norm < 3; ++norm, ++calls)
          refused += neighboring(size, {2, 2, s[0], s[1], s[2]}, terms, norm, terms % 2) != 0;
      for (int parts : {1, 3, 4, 5, 7})
        for (int per_image = 0; per_image < 2; ++per_image, ++calls)
          refused += filters(size, {2, s[0], s[1], s[2]}, 2, parts, per_image) != 0;
    }
  for (const auto& s : shapes)
    for (int stride = 1; stride < 4; ++stride)
      for (int way = 0; way < 8; ++way, ++calls)
        refused += strided(3, {2, s[0], s[1], s[2]}, 2, stride, way) != 0;
  for (int size : {3, 7})
    for (const auto& s : shapes)
      for (int group : {4, 8, 16})
        for (int bias = 0; bias < 2; ++bias, ++calls)
          refused += grouped_conv(size, {2, s[0], s[1], (s[2] % 4 + 1) * group}, group, bias) != 0;
  for (const auto& s : shapes)
    for (int terms = 1; terms < 16; ++terms)
      for (int norm = 0; norm < 3; ++norm, ++calls)
        refused += window({2, 2, s[0], s[1], s[2]}, 3, 2, terms, norm, terms % 2, 1 + norm % 2) != 0;
  for (const auto& s : shapes)
    for (int way = 0; way < 8; ++way, ++calls)
      refused += (picture(s[0], s[1], {0, 0, s[0], s[1]}, 3 * s[2], s[0] + s[2], way) |
                  warp(s[0], s[1], way)) != 0;
  std::printf("grid: %d calls, %d refused\n", calls, refused);

  scattered = true;
  const int first = std::atoi(arguments[1]), number = std::atoi(arguments[2]);
  for (int seed = first; seed < first + number; ++seed) {
    state = seed * 2654435761u;
    // Known also where a sanitizer ends the program.
    std::fprintf(stderr, "seed %d\n", seed);
    refused += at_random() != 0;
  }
  std::printf("random: %d calls, %d refused\n", number, refused);
  return refused != 0;
}
