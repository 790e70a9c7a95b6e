// Row kernels: everything that is worth vectorising, one row of one head at a time, single-threaded.
//
// kernels.inc, selection.inc and calibration.inc implement them once; they are compiled for each instruction set, and
// `kernels<T>()` returns the table of the best set that the processor at hand has. The operators (contrast_topk.cpp,
// ...) own threads, blocks and memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace amcl {

enum class Form { topk_mean, topk_softmax, softmax };

// τ(r) = tau_min + tau_span·σ(−r). A row of `contrast` without r has the temperature `tau`, and the range counts for
// its statistics alone; a constant temperature is tau_min, with tau_span = 0. `dim` is the d of Ω.
template <class T>
struct Temperature {
  T tau_min, tau_span, offset, beta;
  double dim;
  T tau;
};

// Of the τ in a range, the one at which a row's entropy falls short of its largest by `deficit`.
template <class T>
struct Calibration {
  T tau_min, tau_max;
  double deficit;
};

// Sums from which the statistics of an operator are made. `rise` is Σ (τ − tau_min): measured from the lower end of the
// range, and in double, the variance keeps its digits, and is 0 for a constant temperature.
struct Sums {
  double s = 0, rise = 0, rise_squared = 0, tau_lowest = 1e300, at_bound = 0, count = 0;

  void add(const Sums& other) {
    s += other.s;
    rise += other.rise;
    rise_squared += other.rise_squared;
    tau_lowest = other.tau_lowest < tau_lowest ? other.tau_lowest : tau_lowest;
    at_bound += other.at_bound;
    count += other.count;
  }
};

// The best top_k similarities of a row so far, in column order. `floor` is the lowest of them once there are top_k:
// from then on only a strictly larger similarity can enter, because ties go to the lower column.
template <class T>
struct Selection {
  T* similarities;  // (top_k,)
  int32_t* chosen;  // (top_k,), their columns
  int64_t count;
  T floor;
  bool finite;  // false: the row holds a NaN or an infinity and has no meaningful order
};

// Per-thread memory of `select`: room for the top_k so far and a tile of new entries. `guess` carries the threshold of
// the row before, which costs nothing when wrong: the result does not depend on it.
template <class T>
struct SelectionScratch {
  T* similarities;
  int32_t* chosen;
  T guess;
};

// τ counts as at a bound within this share of its range; a shorter row is divided by kEps, as by
// torch.nn.functional.normalize; a longer one than kLongest is scaled down before it is squared. Python has them too.
constexpr double kBoundShare = 0.01, kEps = 1e-12, kLongest = 1099511627776.0;  // the last: 2⁴⁰

constexpr int64_t kPadding = 16;  // lanes that a vector store may write behind the last element of a scratch array

// Derivatives of an `align` value: by x, scale_x·(cross·v + own_x·u); by y, scale_y·(cross·u + own_y·v); by r,
// slope_r. Here u = scale_x·x and v = scale_y·y: rows too long for their squares are scaled down, all others have a
// scale of 1.
template <class T>
struct AlignFactors {
  T cross, own_x, own_y, slope_r, scale_x, scale_y;
};

template <class T>
struct Kernels {
  // Offers x[0..width), the similarities of columns first_column.., to the selection. −inf is never taken.
  void (*select)(const T* x, int64_t width, int32_t first_column, int64_t top_k, Selection<T>* best,
                 SelectionScratch<T>* scratch);
  // out[e] = x · base[index[e]]
  void (*gather_dot)(T* out, int64_t count, const int32_t* index, const T* x, const T* base, int64_t stride,
                     int64_t width);
  // out = scale · Σ_e weight[e] · base[index[e]]
  void (*gather_sum)(T* out, T scale, int64_t count, const int32_t* index, const T* weight, const T* base,
                     int64_t stride, int64_t width);
  // The row of one anchor over its top_k chosen (s, r), and its derivatives by s, r and, without r, by τ (null: not
  // needed). r is overwritten; work holds 3·top_k elements.
  T (*topk_row)(Form form, int64_t top_k, const T* s, T* r, const Temperature<T>& temperature, T* slope_s, T* slope_r,
                T* slope_tau, T* work, Sums* sums);
  // The same over a whole row of n columns but those in `skip`, and, unless null, the logit `extra`. With `gradients`,
  // s and r become `gradient` times the derivatives of the row by s and by r, and `slope_sum` the sum of the latter or,
  // without r, the one by τ. work holds 3n elements.
  T (*softmax_row)(int64_t n, T* s, T* r, const int64_t* skip, int64_t skips, const Temperature<T>& temperature,
                   bool gradients, T gradient, const T* extra, T* work, T* slope_sum, Sums* sums);
  // τ of a row of n similarities s, of which `count` are not −inf; at an end of the range where none within it has
  // that deficit. work holds n + kPadding elements.
  T (*calibrate_row)(int64_t n, const T* s, int64_t count, const Calibration<T>& call, T* work);
  // The terms of one channel, `diagonal` being its own column. s holds correlations; s and r become the derivatives
  // of the value by them. work holds 2n elements.
  double (*decorrelate_row)(int64_t n, int64_t diagonal, T* s, T* r, const Temperature<T>& temperature, T lambda,
                            T* work, T* slope_r_sum, Sums* on, Sums* off);
  // The value of one pair of rows of any norm (φ rows null: constant temperature), and the factors of its gradients.
  T (*align_row)(int64_t width, const T* x, const T* y, int64_t phi_width, const T* phi_x, const T* phi_y,
                 const Temperature<T>& temperature, T weight, AlignFactors<T>* factors, Sums* sums);
  // out = a·(p·(b·u) + q·(a·v)); a and b are scales of `AlignFactors`.
  void (*combine)(int64_t width, T a, T b, T p, const T* u, T q, const T* v, T* out);
};

template <class T>
const Kernels<T>& kernels();

// Names of the instruction sets that this processor can run, best first, and the choice among them.
std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

}  // namespace amcl
