// Calls every kernel on blocks of exactly the size they may touch, for a build with sanitizers.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

struct Problem { int64_t batch, heads, height, width, depth; int use_qk, norm, mask; float scale; };
struct Filters { int64_t batch, height, width, heads, depth; int per_image; };
struct Windows {
  int64_t batch, heads, height, width, depth, rows, columns;
  int use_qk, norm;
  float scale;
};
struct Maps { int64_t batch, height, width, channels; };
struct View { float* at; int64_t stride[5]; };

extern "C" {
int lanes();
int neighboring_forward(const Problem*, int, const View*, const View*, const View*, const float*,
                        const float*, const float*, const View*, float*, float*);
int neighboring_backward(const Problem*, int, const View*, const View*, const View*, const float*,
                         const float*, const float*, const float*, const float*, const View*,
                         const View*, const View*, const View*, float*, float*, float*);
int window_lanes();
int window_forward(const Windows*, const View*, const View*, const View*, const float*,
                   const float*, const float*, const uint8_t*, const View*, float*, float*);
int window_backward(const Windows*, const View*, const View*, const View*, const float*,
                    const float*, const float*, const uint8_t*, const float*, const float*,
                    const View*, const View*, const View*, const View*, float*, float*, float*);
int filters_forward(const Filters*, int, const View*, const View*, const float*, const float*,
                    const View*);
int filters_backward(const Filters*, int, const View*, const View*, const float*, const float*,
                     const View*, const View*, const View*, float*, float*);
int grouped_conv_forward(const Maps*, int, int, const View*, const float*, const float*, const View*);
int grouped_conv_backward(const Maps*, int, int, const View*, const float*, const View*, const View*,
                          float*, float*);
int pictures_resize(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t, int, int, uint8_t*);
int pictures_warp(const uint8_t*, int64_t, int64_t, const double*, int, const uint8_t*, uint8_t*);
}

static std::vector<float> numbers(int64_t n) {
  static uint32_t state = 1;
  std::vector<float> made(n);
  for (float& x : made) x = ((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
  return made;
}

static View view(std::vector<float>& block, int64_t b, int64_t c, int64_t d, int64_t e, bool there) {
  return {there ? block.data() : nullptr, {b, c, d, e, 1}};
}

static int neighboring(int size, int64_t height, int64_t width, int64_t depth, int terms, int norm,
                       int mask) {
  const int64_t batch = 2, heads = 2, n = batch * heads * height * width * depth, taps = size * size;
  const bool qk = terms & 1, rk = terms & 2, rq = terms & 4, rb = terms & 8;
  const int64_t wide = (width + lanes() - 1) / lanes() * lanes();
  std::vector<float> q = numbers(n), k = numbers(n), v = numbers(n), out(n), dout = numbers(n);
  std::vector<float> dq(n), dk(n), dv(n), tk = numbers(heads * taps * depth), dtk(tk.size());
  std::vector<float> tq = numbers(tk.size()), dtq(tk.size()), tb = numbers(heads * taps), dtb(tb.size());
  std::vector<float> kept(batch * heads * height * taps * wide);
  std::vector<float> spreads(batch * heads * height * wide);
  const Problem p = {batch, heads, height, width, depth, qk, norm, mask, 0.3f};
  // In memory (B, H, W, h, d).
  auto as = [&](std::vector<float>& x, bool there) {
    return view(x, height * width * heads * depth, depth, width * heads * depth, heads * depth, there);
  };
  const View q_ = as(q, qk || rk), k_ = as(k, qk || rq), v_ = as(v, true), out_ = as(out, true);
  const View dout_ = as(dout, true), dq_ = as(dq, qk || rk), dk_ = as(dk, qk || rq), dv_ = as(dv, true);
  const float *a = rk ? tk.data() : nullptr, *b = rq ? tq.data() : nullptr, *c = rb ? tb.data() : nullptr;
  return neighboring_forward(&p, size, &q_, &k_, &v_, a, b, c, &out_, kept.data(), spreads.data()) |
         neighboring_backward(&p, size, &q_, &k_, &v_, a, b, c, kept.data(), spreads.data(), &dout_,
                              &dq_, &dk_, &dv_, rk ? dtk.data() : nullptr,
                              rq ? dtq.data() : nullptr, rb ? dtb.data() : nullptr);
}

static int filters(int size, int64_t height, int64_t width, int64_t depth, int parts, int per_image) {
  const int64_t batch = 2, heads = 2, taps = size * size, channels = heads * depth;
  const int64_t n = batch * height * width * channels, tables = (per_image ? batch : 1) * channels * taps;
  const bool dynamic = parts & 1, by = parts & 2, plus = parts & 4;
  std::vector<float> v = numbers(n), out(n), g = numbers(n), dv(n), m = numbers(tables), dm(tables);
  std::vector<float> f = numbers(batch * height * width * heads * taps), df(f.size());
  std::vector<float> a = numbers(tables), da(tables);
  const Filters p = {batch, height, width, heads, depth, per_image};
  auto as = [&](std::vector<float>& x, int64_t last, bool there) {
    return view(x, height * width * heads * last, width * heads * last, heads * last, last, there);
  };
  const View v_ = as(v, depth, true), f_ = as(f, taps, dynamic), out_ = as(out, depth, true);
  const View g_ = as(g, depth, true), dv_ = as(dv, depth, true), df_ = as(df, taps, dynamic);
  const float *by_ = by ? m.data() : nullptr, *plus_ = plus ? a.data() : nullptr;
  return filters_forward(&p, size, &v_, &f_, by_, plus_, &out_) |
         filters_backward(&p, size, &v_, &f_, by_, plus_, &g_, &dv_, &df_, by ? dm.data() : nullptr,
                          plus ? da.data() : nullptr);
}

static int grouped_conv(int size, int64_t height, int64_t width, int group, int64_t groups, bool bias) {
  const int64_t batch = 2, channels = groups * group, n = batch * height * width * channels;
  const int64_t stride[] = {height * width * channels, width * channels, channels, 1};
  std::vector<float> x = numbers(n), out(n), g = numbers(n), dx(n), b = numbers(channels), db(channels);
  std::vector<float> w = numbers(channels * group * size * size), dw(w.size());
  const Maps p = {batch, height, width, channels};
  auto as = [&](std::vector<float>& t) {
    return View{t.data(), {stride[0], stride[1], stride[2], stride[3], 0}};
  };
  const View x_ = as(x), out_ = as(out), g_ = as(g), dx_ = as(dx);
  return grouped_conv_forward(&p, size, group, &x_, w.data(), bias ? b.data() : nullptr, &out_) |
         grouped_conv_backward(&p, size, group, &x_, w.data(), &g_, &dx_, dw.data(),
                               bias ? db.data() : nullptr);
}

// Windows of 3 x 2 pixels, ``down`` times ``across`` of them in an image.
static int window(int64_t down, int64_t across, int64_t depth, int terms, int norm, bool excludes) {
  const int64_t batch = 2, heads = 2, rows = 3, columns = 2, pixels = rows * columns;
  const int64_t height = down * rows, width = across * columns, offsets = 5 * 3;
  const int64_t n = batch * heads * height * width * depth, lanes = window_lanes();
  const int64_t slots = (batch * down * across + lanes - 1) / lanes * lanes * heads * pixels;
  const bool qk = terms & 1, rk = terms & 2, rq = terms & 4, rb = terms & 8;
  std::vector<float> q = numbers(n), k = numbers(n), v = numbers(n), out(n), dout = numbers(n);
  std::vector<float> dq(n), dk(n), dv(n), tk = numbers(heads * offsets * depth), dtk(tk.size());
  std::vector<float> tq = numbers(tk.size()), dtq(tk.size()), tb = numbers(heads * offsets), dtb(tb.size());
  std::vector<float> kept(slots * pixels), spreads(slots);
  std::vector<uint8_t> excluded(down * across * pixels * pixels);
  for (size_t e = 0; e < excluded.size(); ++e)
    excluded[e] = e % 5 == 0 && e / pixels % pixels != e % pixels;  // a pixel always sees itself
  const Windows p = {batch, heads, height, width, depth, rows, columns, qk, norm, 0.3f};
  auto as = [&](std::vector<float>& x, bool there) {
    return view(x, height * width * heads * depth, depth, width * heads * depth, heads * depth, there);
  };
  const View q_ = as(q, qk || rk), k_ = as(k, qk || rq), v_ = as(v, true), out_ = as(out, true);
  const View dout_ = as(dout, true), dq_ = as(dq, qk || rk), dk_ = as(dk, qk || rq), dv_ = as(dv, true);
  const float *a = rk ? tk.data() : nullptr, *b = rq ? tq.data() : nullptr, *c = rb ? tb.data() : nullptr;
  const uint8_t* hidden = excludes ? excluded.data() : nullptr;
  return window_forward(&p, &q_, &k_, &v_, a, b, c, hidden, &out_, kept.data(), spreads.data()) |
         window_backward(&p, &q_, &k_, &v_, a, b, c, hidden, kept.data(), spreads.data(), &dout_,
                         &dq_, &dk_, &dv_, rk ? dtk.data() : nullptr, rq ? dtq.data() : nullptr,
                         rb ? dtb.data() : nullptr);
}

// Each row ends where its memory does, but for the byte that the kernel may read behind a pixel.
int picture(int64_t width, int64_t height, int64_t to_width, int64_t to_height, int way) {
  std::vector<uint8_t> rgb(3 * width * height), rgbx(4 * width * height), out(4 * to_width * to_height);
  const int64_t box[] = {0, 0, width, height};
  const double turn = way & 4 ? NAN : 0.3, matrix[] = {1 - turn, turn, -2.5, -turn, 1, 7.5};
  const uint8_t fill[] = {1, 2, 3, 4};
  return pictures_resize(rgb.data(), 3 * width, box, to_width, to_height, way & 1, way >> 1 & 1, out.data()) |
         pictures_warp(rgbx.data(), width, height, matrix, way & 1, fill, rgbx.data());
}

int main() {
  const int64_t shapes[][3] = {{1, 1, 1}, {5, 9, 3}, {3, 17, 8}, {8, 8, 12}, {40, 3, 4}};
  int calls = 0, refused = 0;
  for (int size : {3, 7, 9})
    for (const auto& s : shapes) {
      if (size > 7 && s != shapes[1]) continue;
      for (int terms = 1; terms < 16; ++terms)
        for (int norm = 0; norm < 3; ++norm, ++calls)
          refused += neighboring(size, s[0], s[1], s[2], terms, norm, terms % 2) != 0;
      for (int parts : {1, 3, 4, 5, 7})
        for (int per_image = 0; per_image < 2; ++per_image, ++calls)
          refused += filters(size, s[0], s[1], s[2], parts, per_image) != 0;
    }
  for (int size : {3, 7})
    for (const auto& s : shapes)
      for (int group : {4, 8, 16})
        for (int bias = 0; bias < 2; ++bias, ++calls)
          refused += grouped_conv(size, s[0], s[1], group, s[2] % 4 + 1, bias) != 0;
  for (const auto& s : shapes)
    for (int terms = 1; terms < 16; ++terms)
      for (int norm = 0; norm < 3; ++norm, ++calls)
        refused += window(s[0], s[1], s[2], terms, norm, terms % 2) != 0;
  for (const auto& s : shapes)
    for (int way = 0; way < 8; ++way, ++calls)
      refused += picture(s[0], s[1], 3 * s[2], s[0] + s[2], way) != 0;
  std::printf("%d calls, %d refused\n", calls, refused);
  return refused != 0;
}
