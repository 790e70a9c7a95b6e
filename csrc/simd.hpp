// exp, log and a few vector operations, written so that one source compiles to SSE2, AVX2, AVX-512 or NEON.
//
// Everything lives in a namespace named after the instruction set (AMCL_ISA): an inline function shared between
// translation units could be linked in its AVX-512 form and run on a processor without it. For the same reason
// nothing here uses a template of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

namespace amcl::AMCL_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Types;
template <>
struct Types<float> {
  using Int = int32_t;
  using Unsigned = uint32_t;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Types<double> {
  using Int = int64_t;
  using Unsigned = uint64_t;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vector = typename Types<T>::Vector;
template <class T>
using Mask = typename Types<T>::Mask;
template <class T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <class T>
static inline Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
static inline void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <class T>
static inline Vector<T> broadcast(T value) {
  return Vector<T>{} + value;
}

template <class To, class From>
static inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits() keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// Adding and subtracting 1.5·2^mantissa rounds to the nearest integer, and leaves it in the low bits.
template <class T>
struct Layout;
template <>
struct Layout<float> {
  static constexpr int mantissa = 23;
  static constexpr int32_t bias = 127;
  static constexpr float rounder = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float exp_lowest = -87.0f, exp_highest = 87.0f;
};
template <>
struct Layout<double> {
  static constexpr int mantissa = 52;
  static constexpr int64_t bias = 1023;
  static constexpr double rounder = 6755399441055744.0, ln2_high = 6.93145751953125e-1,
                          ln2_low = 1.42860682030941723212e-6;
  static constexpr double exp_lowest = -700.0, exp_highest = 700.0;
};

// e^x within 2 ulp for |x| up to exp_highest; the caller clamps above it. Below exp_lowest: 0. NaN stays NaN.
template <class T>
static inline T exponential(T x) {
  using L = Layout<T>;
  using U = typename Types<T>::Unsigned;
  const T bounded = x < L::exp_lowest ? L::exp_lowest : x;
  const T shifted = bounded * T(1.44269504088896340736) + L::rounder;
  const T n = shifted - L::rounder;
  const T f = bounded - n * L::ln2_high - n * L::ln2_low;
  T p;
  if constexpr (sizeof(T) == 4) {  // minimax on |f| <= ln 2 / 2 (Cephes)
    p = T(1.9875691500e-4);
    p = p * f + T(1.3981999507e-3);
    p = p * f + T(8.3334519073e-3);
    p = p * f + T(4.1665795894e-2);
    p = p * f + T(1.6666665459e-1);
    p = p * f + T(5.0000001201e-1);
  } else {  // Taylor to f^13: the rest is below 4e-18 on |f| <= ln 2 / 2
    p = T(1) / T(6227020800.0);
    p = p * f + T(1) / T(479001600.0);
    p = p * f + T(1) / T(39916800.0);
    p = p * f + T(1) / T(3628800.0);
    p = p * f + T(1) / T(362880.0);
    p = p * f + T(1) / T(40320.0);
    p = p * f + T(1) / T(5040.0);
    p = p * f + T(1) / T(720.0);
    p = p * f + T(1) / T(120.0);
    p = p * f + T(1) / T(24.0);
    p = p * f + T(1) / T(6.0);
    p = p * f + T(0.5);
  }
  const T y = p * f * f + f + T(1);
  const T scale = bits<T>(static_cast<U>((bits<U>(shifted) + static_cast<U>(L::bias)) << L::mantissa));
  return x < L::exp_lowest ? T(0) : y * scale;
}

// log x for normal x > 0, by log m = 2·artanh((m − 1)/(m + 1)) with m in [√½, √2).
template <class T>
static inline T logarithm(T x) {
  using L = Layout<T>;
  using I = typename Types<T>::Int;
  using U = typename Types<T>::Unsigned;
  constexpr I sqrt_half = sizeof(T) == 4 ? static_cast<I>(0x3f3504f3) : static_cast<I>(0x3fe6a09e667f3bcdLL);
  const I exponent = (bits<I>(x) - sqrt_half) >> L::mantissa;
  const T m = bits<T>(static_cast<U>(bits<U>(x) - (static_cast<U>(exponent) << L::mantissa)));
  const T f = (m - T(1)) / (m + T(1));
  const T q = f * f;
  T p;
  if constexpr (sizeof(T) == 4) {  // q <= 0.0295: q^5 / 11 is below 3e-9
    p = T(1.0 / 9);
  } else {
    p = T(1.0 / 23);
    p = p * q + T(1.0 / 21);
    p = p * q + T(1.0 / 19);
    p = p * q + T(1.0 / 17);
    p = p * q + T(1.0 / 15);
    p = p * q + T(1.0 / 13);
    p = p * q + T(1.0 / 11);
    p = p * q + T(1.0 / 9);
  }
  p = p * q + T(1.0 / 7);
  p = p * q + T(1.0 / 5);
  p = p * q + T(1.0 / 3);
  const T e = static_cast<T>(exponent);
  return e * L::ln2_high + (e * L::ln2_low + (T(2) * f * q * p + T(2) * f));
}

// σ(−r) and its complement; r is clamped where neither changes any more, so that nothing overflows.
template <class T>
struct Logistic {
  T value, complement;
};

template <class T>
static inline Logistic<T> logistic_of_minus(T r) {
  using L = Layout<T>;
  const T low = r < L::exp_lowest ? L::exp_lowest : r;
  const T e = exponential(low > L::exp_highest ? L::exp_highest : low);
  const T value = T(1) / (T(1) + e);
  return {value, e * value};
}

}  // namespace amcl::AMCL_ISA
