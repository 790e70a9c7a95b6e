// Matrix products by the BLAS that PyTorch has loaded (its address comes from Python), or by plain loops.
#pragma once

#include <cstdint>

namespace amcl {

// A row-major matrix with any leading dimension; `transposed` means that it is read as its transpose.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  bool transposed;
};

// While it lives, the BLAS works on the calling thread alone. Each thread of a parallel region holds one: the bits of
// a product then depend on its shape only, not on the number of threads. (MKL notices by itself that it is called in
// a parallel region, but not in a region of one thread, and then takes another path with other roundings.)
class BlasOnThisThread {
 public:
  BlasOnThisThread();
  ~BlasOnThisThread();
  BlasOnThisThread(const BlasOnThisThread&) = delete;
  BlasOnThisThread& operator=(const BlasOnThisThread&) = delete;

 private:
  int before_;
};

// c (m, n; row-major, stride c_stride) = alpha · a (m, k) · b (k, n) + (accumulate ? c : 0).
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, T alpha, Operand<T> a, Operand<T> b, bool accumulate, T* c,
              int64_t c_stride);

// Addresses of Fortran sgemm and dgemm with 32-bit integers, and of MKL_Set_Num_Threads_Local; 0 means none.
void use_blas(std::uintptr_t sgemm, std::uintptr_t dgemm, std::uintptr_t set_threads);

}  // namespace amcl
