// Scratch memory of the kernels.
#pragma once
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

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
