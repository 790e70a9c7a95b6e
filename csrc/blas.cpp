#include "blas.hpp"


namespace amcl {
namespace {

template <class T>
using Gemm = void (*)(const char* op_a, const char* op_b, const int* m, const int* n, const int* k, const T* alpha,
                      const T* a, const int* lda, const T* b, const int* ldb, const T* beta, T* c, const int* ldc);

template <class T>
Gemm<T> gemm = nullptr;

int (*set_threads)(int) = nullptr;

// Not fast, but a machine whose torch exports no BLAS still gets correct results.
template <class T>
void multiply_plainly(int64_t m, int64_t n, int64_t k, T alpha, Operand<T> a, Operand<T> b, bool accumulate, T* c,
                      int64_t c_stride) {
  for (int64_t i = 0; i < m; ++i) {
    T* row = c + i * c_stride;
    if (!accumulate)
      for (int64_t j = 0; j < n; ++j) row[j] = 0;
    if (b.transposed) {
      for (int64_t j = 0; j < n; ++j) {
        const T* other = b.data + j * b.stride;
        T sum = 0;
        for (int64_t l = 0; l < k; ++l)
          sum += (a.transposed ? a.data[l * a.stride + i] : a.data[i * a.stride + l]) * other[l];
        row[j] += alpha * sum;
      }
    } else {
      for (int64_t l = 0; l < k; ++l) {
        const T factor = alpha * (a.transposed ? a.data[l * a.stride + i] : a.data[i * a.stride + l]);
        const T* other = b.data + l * b.stride;
        for (int64_t j = 0; j < n; ++j) row[j] += factor * other[j];
      }
    }
  }
}

}  // namespace

template <class T>
void multiply(int64_t m, int64_t n, int64_t k, T alpha, Operand<T> a, Operand<T> b, bool accumulate, T* c,
              int64_t c_stride) {
  if (!gemm<T>) {
    multiply_plainly(m, n, k, alpha, a, b, accumulate, c, c_stride);
    return;
  }
  // BLAS is column-major, so it is given cᵀ = bᵀ·aᵀ.
  const char op_a = a.transposed ? 'T' : 'N', op_b = b.transposed ? 'T' : 'N';
  const int rows = static_cast<int>(n), columns = static_cast<int>(m), inner = static_cast<int>(k);
  const int lda = static_cast<int>(a.stride), ldb = static_cast<int>(b.stride), ldc = static_cast<int>(c_stride);
  const T beta = accumulate ? T(1) : T(0);
  gemm<T>(&op_b, &op_a, &rows, &columns, &inner, &alpha, b.data, &ldb, a.data, &lda, &beta, c, &ldc);
}

template void multiply(int64_t, int64_t, int64_t, float, Operand<float>, Operand<float>, bool, float*, int64_t);
template void multiply(int64_t, int64_t, int64_t, double, Operand<double>, Operand<double>, bool, double*, int64_t);

BlasOnThisThread::BlasOnThisThread() : before_(set_threads ? set_threads(1) : 0) {}

BlasOnThisThread::~BlasOnThisThread() {
  if (set_threads) set_threads(before_);
}

void use_blas(std::uintptr_t sgemm, std::uintptr_t dgemm, std::uintptr_t set_threads_address) {
  gemm<float> = reinterpret_cast<Gemm<float>>(sgemm);
  gemm<double> = reinterpret_cast<Gemm<double>>(dgemm);
  set_threads = reinterpret_cast<int (*)(int)>(set_threads_address);
}

}  // namespace amcl
