// What the operators need of OpenMP, and per-thread memory that is allocated before the parallel region, where
// running out of it is an exception and not the end of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace amcl {

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

constexpr std::size_t kAlignment = 64;

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
};

// One aligned block of `bytes` for each thread.
class Workspace {
 public:
  Workspace(int threads, std::size_t bytes)
      : stride_((bytes + kAlignment - 1) / kAlignment * kAlignment),
        memory_(static_cast<char*>(::operator new(stride_ * static_cast<std::size_t>(threads) + kAlignment,
                                                  std::align_val_t{kAlignment}))) {}
  char* of_thread() const { return memory_.get() + stride_ * static_cast<std::size_t>(thread_index()); }

 private:
  std::size_t stride_;
  std::unique_ptr<char, FreeAligned> memory_;
};

// Hands out aligned arrays from a thread's block; given no block it only measures (`used`).
class Arena {
 public:
  explicit Arena(char* base = nullptr) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    char* at = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace amcl
