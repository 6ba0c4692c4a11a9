// From the logits of a window's pairs to its weights and back, a vector of windows at a time.
#pragma once
#include <cmath>

#include "windows.h"

namespace {

enum Norm { IDENTITY = 0, FILTER_NORM = 1, SOFTMAX = 2 };

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
// first windows stand once more at the end of a row, so that any ``lanes`` in turn can be loaded.
struct Mask {
  int64_t row = 0;
  std::vector<int8_t> seen;
  std::vector<char> some;  // for each window, whether any of its pairs is excluded

  Mask(const Problem& p, const uint8_t* excluded, int lanes) {
    if (!excluded) return;
    const int64_t pairs = p.pixels() * p.pixels(), windows = p.per_image();
    row = windows + lanes;
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

template <int VB>
void normalise(const Problem& p, Pair<VB>* a, int b, Seen seen, vf* spread) {
  const int64_t n = p.pixels();
  if (p.norm == SOFTMAX) {
    vf top = splat(-INFINITY);
    for (int64_t j = 0; j < n; ++j) {
      if (seen.lanes) a[j][b] = seen(j) ? a[j][b] : splat(-INFINITY);
      top = larger(a[j][b], top);  // a NaN stays in the sum
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

template <int VB>
void normalise_back(const Problem& p, Pair<VB>* g, const Pair<VB>* a, int b, Seen seen, vf spread) {
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

}  // namespace
