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

// c (m, n; row-major, stride c_stride) = alpha · a (m, k) · b (k, n) + (accumulate ? c : 0).
// Called from inside a parallel region, where the BLAS runs on the calling thread alone: the bits of a product then
// depend on its shape only, never on the number of threads.
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, T alpha, Operand<T> a, Operand<T> b, bool accumulate, T* c,
              int64_t c_stride);

// Addresses of Fortran sgemm and dgemm with 32-bit integers; 0 means none.
void use_blas(std::uintptr_t sgemm, std::uintptr_t dgemm);

}  // namespace amcl
