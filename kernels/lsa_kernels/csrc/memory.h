// Scratch memory of the kernels.
#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

// Bytes that all threads hold, and the most they held since that was asked last.
inline std::atomic<int64_t> scratch_held{0}, scratch_most{0};

struct Buffer {
  float* at = nullptr;
  int64_t size = 0;
  explicit Buffer(int64_t n) : size(n) {
    at = static_cast<float*>(std::aligned_alloc(64, ((n * 4 + 63) / 64) * 64));
    if (!at) throw std::bad_alloc();
    const int64_t held = scratch_held += size * 4;
    int64_t most = scratch_most;
    while (most < held && !scratch_most.compare_exchange_weak(most, held)) {
    }
    clear();
  }
  Buffer(Buffer&& other) noexcept : at(other.at), size(other.size) { other.at = nullptr; }
  ~Buffer() {
    if (at) scratch_held -= size * 4;
    std::free(at);
  }
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
