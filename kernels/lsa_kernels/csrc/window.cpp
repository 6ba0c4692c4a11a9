// Eq. 4 on shared windows, forward and backward, sums in float32; any side, maps rolled and padded already.
//
// A task works through a fixed share of a head's windows; parameter gradients are summed over the
// shares in order, so results do not depend on the number of threads.
#include "window_norms.h"

namespace {

constexpr int64_t SHARES = 16;  // tasks of a head

// Gradients of the parameters, or null.
struct Slopes {
  float *rel_k, *rel_q, *bias;
};

template <int VB>
struct Scratch {
  Buffer q, k, v, out, grad, dq, dk, dv;
  std::vector<Pair<VB>> a, slopes;
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
  static int64_t size(const Problem& p) { return p.pixels() * p.packed<VB>(); }
};

// The mask of one group, if any of its windows has excluded pairs.
struct GroupMask {
  const int8_t* from = nullptr;
  int64_t row = 0;

  template <int VB>
  GroupMask(const Group<VB>& group, const Mask& mask) {
    if (mask.seen.empty()) return;
    const int64_t w = group.first % group.p.per_image();
    const char* some = &mask.some[w];
    if (std::none_of(some, some + group.LANES, [](char any) { return any; })) return;
    from = mask.seen.data() + w;
    row = mask.row;
  }
  Seen of(int64_t i, int64_t n, int b) const {
    return {from ? from + i * n * row + b * VL : nullptr, row};
  }
};

template <int VB>
int64_t groups_of(const Problem& p) {
  return (p.windows() + VB * VL - 1) / (VB * VL);
}

struct Tables {
  const float *rel_k, *rel_q, *bias;
  Tables of(const Problem& p, int64_t h) const {
    const int64_t o = p.offsets();
    return {rel_k ? rel_k + h * o * p.depth : nullptr, rel_q ? rel_q + h * o * p.depth : nullptr,
            bias ? bias + h * o : nullptr};
  }
};

template <int VB>
void forward_group(const Group<VB>& group, Scratch<VB>& my, const Tables& tables, const View& q,
                   const View& k, const View& v, const Mask& excluded, const View& out,
                   float* kept, float* spreads) {
  const Problem& p = group.p;
  const int64_t n = group.n;
  if (q.at) group.pack(q, my.q.at);
  if (k.at) group.pack(k, my.k.at);
  group.pack(v, my.v.at);
  const GroupMask mask(group, excluded);
  Pair<VB>* a = kept ? reinterpret_cast<Pair<VB>*>(kept) : my.a.data();
  const int64_t* offsets = my.offsets.data();
  const float *query = q.at ? my.q.at : nullptr, *keys = k.at ? my.k.at : nullptr;
  auto way = !p.use_qk || !tables.rel_k != !tables.rel_q ? products<VB, SOME>
             : tables.rel_k                             ? products<VB, ALL>
                                                        : products<VB, MAPS>;
  way(p, query, keys, tables.rel_k, tables.rel_q, offsets, a);
  for (int64_t i = 0; i < n; ++i)
    for (int b = 0; b < VB; ++b) {
      Pair<VB>* row = a + i * n;
      for (int64_t j = 0; j < n; ++j)
        row[j][b] = p.scale * row[j][b] + (tables.bias ? tables.bias[offsets[i * n + j]] : 0.0f);
      vf spread = vf{};
      normalise<VB>(p, row, b, mask.of(i, n, b), &spread);
      if (spreads) store(spreads + (i * VB + b) * VL, spread);
    }
  mix<VB>(p, a, n, 1, my.v.at, nullptr, offsets, my.out.at);
  group.unpack(my.out.at, out, 1.0f);
}

template <int VB>
void backward_group(const Group<VB>& group, Scratch<VB>& my, const Tables& tables, const View& q,
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
  const Pair<VB>* a = reinterpret_cast<const Pair<VB>*>(kept);
  Pair<VB>* slopes = my.slopes.data();
  const int64_t *offsets = my.offsets.data(), *back = offsets + n * n;
  products<VB, MAPS>(p, my.grad.at, my.v.at, nullptr, nullptr, offsets, slopes);
  for (int64_t i = 0; i < n; ++i) {
    for (int b = 0; b < VB; ++b)
      normalise_back<VB>(p, slopes + i * n, a + i * n, b, mask.of(i, n, b),
                     load(spreads + (i * VB + b) * VL));
    for (int64_t j = 0; j < n && !my.dbias.empty(); ++j)
      for (int b = 0; b < VB; ++b) my.dbias[offsets[i * n + j]] += slopes[i * n + j][b];
  }
  mix<VB>(p, a, 1, n, my.grad.at, nullptr, back, my.dv.at);
  if (q.at)
    mix<VB>(p, slopes, n, 1, p.use_qk ? my.k.at : nullptr, tables.rel_k, offsets, my.dq.at);
  if (k.at) mix<VB>(p, slopes, 1, n, p.use_qk ? my.q.at : nullptr, tables.rel_q, back, my.dk.at);
  if (!my.drel_k.empty()) outer<VB>(p, slopes, n, 1, my.q.at, offsets, my.block, my.drel_k.data());
  if (!my.drel_q.empty()) outer<VB>(p, slopes, 1, n, my.k.at, back, my.block, my.drel_q.data());
  if (dq.at) group.unpack(my.dq.at, dq, p.scale);
  if (dk.at) group.unpack(my.dk.at, dk, p.scale);
  group.unpack(my.dv.at, dv, 1.0f);
}

template <int VB>
void forward(const Problem& p, const View& q, const View& k, const View& v, const Tables& tables,
             const uint8_t* excluded, const View& out, float* kept, float* spreads) {
  const int64_t groups = groups_of<VB>(p), n = p.pixels();
  const Mask mask(p, excluded, VB * VL);
  Each<Scratch<VB>> scratch([&] { return new Scratch<VB>(p, q, k, false); });
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < p.heads * groups; ++task) {
    const Group<VB> group(p, task / groups, task % groups);
    forward_group(group, scratch.mine(), tables.of(p, group.h), q, k, v, mask, out,
                  kept ? kept + task * n * n * group.LANES : nullptr,
                  kept ? spreads + task * n * group.LANES : nullptr);
  }
}

template <int VB>
void backward(const Problem& p, const View& q, const View& k, const View& v, const Tables& tables,
              const uint8_t* excluded, const float* kept, const float* spreads, const View& dout,
              const View& dq, const View& dk, const View& dv, const Slopes& to) {
  const int64_t groups = groups_of<VB>(p), n = p.pixels(), shares = std::min(groups, SHARES);
  const int64_t o = p.offsets(), length = o * p.depth;
  const Mask mask(p, excluded, VB * VL);
  Buffer parts_k(to.rel_k ? p.heads * shares * length : 1);
  Buffer parts_q(to.rel_q ? p.heads * shares * length : 1);
  Buffer parts_b(to.bias ? p.heads * shares * o : 1);
  Each<Scratch<VB>> scratch([&] { return new Scratch<VB>(p, q, k, true, to); });
  auto keep = [](std::vector<vf>& of_share, float scale, float* part) {
    if (of_share.empty()) return;
    sum_lanes(reinterpret_cast<const float*>(of_share.data()), of_share.size(), scale, part);
    std::fill(of_share.begin(), of_share.end(), vf{});
  };
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < p.heads * shares; ++task) {
    const int64_t h = task / shares, share = task % shares;
    Scratch<VB>& my = scratch.mine();
    for (int64_t g = share * groups / shares; g < (share + 1) * groups / shares; ++g) {
      const int64_t at = h * groups + g;
      const Group<VB> group(p, h, g);
      backward_group(group, my, tables.of(p, h), q, k, v, mask, kept + at * n * n * group.LANES,
                     spreads + at * n * group.LANES, dout, dq, dk, dv);
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

// 0 done, 1 out of memory. ``excluded`` is (windows of an image, pixels, pixels), or null.
int window_forward(const Problem* p, const View* q, const View* k, const View* v,
                   const float* rel_k, const float* rel_q, const float* bias,
                   const uint8_t* excluded, const View* out, float* kept, float* spreads) {
  if (!v->at) return 0;  // a map of no elements
  try {
    auto way = p->vectors == 2 ? forward<2> : forward<1>;
    way(*p, *q, *k, *v, {rel_k, rel_q, bias}, excluded, *out, kept, spreads);
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
  if (!v->at) return 0;  // a map of no elements
  try {
    auto way = p->vectors == 2 ? backward<2> : backward<1>;
    way(*p, *q, *k, *v, {rel_k, rel_q, bias}, excluded, kept, spreads, *dout, *dq, *dk, *dv,
        {drel_k, drel_q, dbias});
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
