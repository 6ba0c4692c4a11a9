// From the logits of a pixel's neighborhood to its weights and back, a tile of VL pixels at a time.
#pragma once
#include <cmath>

#include "simd.h"

namespace {

enum Norm { IDENTITY = 0, FILTER_NORM = 1, SOFTMAX = 2 };

struct Problem {
  int64_t batch, heads, height, width, depth;
  int use_qk, norm, mask;
  float scale;
};

template <int K>
struct Norms {
  static constexpr int R = K / 2, T = K * K;
  const Problem& p;

  // Lanes whose tap (dy, dx) lies on the map.
  vi inside(int64_t y, int64_t x, int dy, int dx) const {
    vi lane;
    const bool row = y + dy >= 0 && y + dy < p.height;
    for (int i = 0; i < VL; ++i) lane[i] = row && x + i + dx >= 0 && x + i + dx < p.width ? -1 : 0;
    return lane;
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
    for (int t = 0; t < T && (p.mask || p.norm == FILTER_NORM); ++t)
      seen[t] = p.mask ? inside(y, x, t / K - R, t % K - R) : vi{} - 1;
    if (p.norm == SOFTMAX) {
      vf top = splat(-INFINITY);
      for (int t = 0; t < T; ++t) {
        if (p.mask) a[t] = seen[t] ? a[t] : splat(-INFINITY);
        top = larger(a[t], top);  // a NaN stays in the sum
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
    const vf dot = by_rows([&](int t) { return d[t] * a[t]; });
    const vf others = count > 1.0f ? count - 1.0f : splat(1);
    const vf deviation = spread - 1e-10f;
    // With w = G x / (s + e): x = w (s + e) / G, and s changes by x / ((n - 1) s). The mean goes
    // last: it also takes what rounding left of the weights' own mean.
    const vf pull = deviation > 0.0f ? dot * spread / (G * G * others * deviation) : vf{};
    for (int t = 0; t < T; ++t) d[t] = seen[t] ? d[t] - pull * a[t] : vf{};
    const vf mean = by_rows([&](int t) { return d[t]; }) / count;
    // Of two numbers filter norm keeps the order alone: rounding would stand where 0 belongs.
    const vf slope = count == 2.0f && deviation > 0.0f ? vf{} : G / spread;
    for (int t = 0; t < T; ++t) d[t] = seen[t] ? slope * (d[t] - mean) : vf{};
  }
};

}  // namespace
