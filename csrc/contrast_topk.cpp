// `contrast` over the top_k hardest negatives, forward and backward.
//
// Only S = anchors · candidatesᵀ is ever formed, tile by tile in cache, and at once reduced to the top_k largest of
// each row. R, the temperatures and all gradients are then needed for top_k columns a row and are gathered, which for
// far fewer than all candidates costs a few percent of the dense products. The candidates' gradients go by a list
// sorted by (column, row), so every sum has one order: no atomics, and the same bits for any number of threads.
#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "hardest.hpp"

namespace amcl {

template <class T>
Sums contrast_topk_forward(const Contrast<T>& call, T* rows, int32_t* chosen, T* slope_s, T* slope_r, T* slope_tau) {
  const int64_t top_k = call.top_k;
  const Kernels<T>& kernel = kernels<T>();
  const auto row = [&](int64_t head, int64_t anchor, const T* similarities, const int32_t* own, T* work, Sums* total) {
    const int64_t at = head * call.anchors + anchor;
    T* const r = call.phi_a ? work + 3 * top_k : nullptr;
    if (r)
      kernel.gather_dot(r, top_k, own, call.phi_a.row(head, anchor), call.phi_b.row(head, 0), call.phi_b.row_stride,
                        call.phi_width);
    rows[at] = kernel.topk_row(call.form, top_k, similarities, r, call.temperature_of(at),
                               slope_s ? slope_s + at * top_k : nullptr, slope_r ? slope_r + at * top_k : nullptr,
                               slope_tau ? slope_tau + at : nullptr, work, total);
    if (chosen) std::copy_n(own, top_k, chosen + at * top_k);
  };
  return for_hardest(call, 4 * top_k, row);
}

namespace {

// The selected (row, column) pairs of one head, ordered by column and then by row, with their weights.
template <class T>
struct ByColumn {
  std::unique_ptr<int64_t[]> begin;  // (candidates + 1): where each column's entries start
  std::unique_ptr<int32_t[]> row;
  std::unique_ptr<T[]> slope_s, slope_r;  // times the gradient of the row; null when not needed
};

// Counting sort over fixed chunks of rows, so that it runs on many threads and gives one order.
template <class T>
class ColumnSort {
 public:
  ColumnSort(const Contrast<T>& call, bool with_slope_s, bool with_slope_r)
      : call_(call), chunk_rows_((call.anchors + kChunks - 1) / kChunks) {
    // Arrays by `new` and not vectors: they are written whole, so filling them with zeros first would be waste.
    const auto entries = static_cast<std::size_t>(call.anchors * call.top_k);
    offsets_.reset(new int64_t[static_cast<std::size_t>(kChunks * call.candidates)]);
    sorted_.begin.reset(new int64_t[static_cast<std::size_t>(call.candidates + 1)]);
    sorted_.row.reset(new int32_t[entries]);
    if (with_slope_s) sorted_.slope_s.reset(new T[entries]);
    if (with_slope_r) sorted_.slope_r.reset(new T[entries]);
  }

  // To be called by all threads of a parallel region; ends with a barrier.
  void sort(const T* gradient, const int32_t* chosen, const T* slope_s, const T* slope_r) {
    const int64_t top_k = call_.top_k, candidates = call_.candidates;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      int64_t* counts = offsets_.get() + chunk * candidates;
      std::fill_n(counts, candidates, 0);
      for (int64_t e = first_row(chunk) * top_k; e < first_row(chunk + 1) * top_k; ++e) ++counts[chosen[e]];
    }
#pragma omp single
    {
      int64_t position = 0;
      for (int64_t column = 0; column < candidates; ++column) {
        sorted_.begin[column] = position;
        for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
          int64_t& offset = offsets_[chunk * candidates + column];
          const int64_t count = offset;
          offset = position;
          position += count;
        }
      }
      sorted_.begin[candidates] = position;
    }
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
      int64_t* offsets = offsets_.get() + chunk * candidates;
      for (int64_t row = first_row(chunk); row < first_row(chunk + 1); ++row) {
        for (int64_t e = row * top_k; e < (row + 1) * top_k; ++e) {
          const int64_t at = offsets[chosen[e]]++;
          sorted_.row[at] = static_cast<int32_t>(row);
          if (sorted_.slope_s) sorted_.slope_s[at] = gradient[row] * slope_s[e];
          if (sorted_.slope_r) sorted_.slope_r[at] = gradient[row] * slope_r[e];
        }
      }
    }
  }

  const ByColumn<T>& sorted() const { return sorted_; }

 private:
  static constexpr int64_t kChunks = 8;
  int64_t first_row(int64_t chunk) const { return std::min(chunk * chunk_rows_, call_.anchors); }

  const Contrast<T>& call_;
  int64_t chunk_rows_;
  std::unique_ptr<int64_t[]> offsets_;
  ByColumn<T> sorted_;
};

}  // namespace

template <class T>
void contrast_topk_backward(const Contrast<T>& call, const T* gradient, const int32_t* chosen, const T* slope_s,
                            const T* slope_r, const Gradients<T>& gradients) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t top_k = call.top_k;
  const bool to_candidates = gradients.y || gradients.phi_y;
  std::vector<double> offset_terms(gradients.offset ? static_cast<std::size_t>(call.heads * call.anchors) : 0);
  std::optional<ColumnSort<T>> by_column;
  if (to_candidates)
    by_column.emplace(call, static_cast<bool>(gradients.y), static_cast<bool>(gradients.phi_y));

#pragma omp parallel num_threads(call.threads)
  for (int64_t head = 0; head < call.heads; ++head) {
    const int64_t start = head * call.anchors;
    if (gradients.x || gradients.phi_x || gradients.offset) {
#pragma omp for schedule(dynamic, 16) nowait
      for (int64_t i = 0; i < call.anchors; ++i) {
        const int64_t row = start + i;
        const int32_t* own = chosen + row * top_k;
        if (gradients.x)
          kernel.gather_sum(gradients.x.row(head, i), gradient[row], top_k, own, slope_s + row * top_k,
                            call.b.row(head, 0), call.b.row_stride, call.width);
        if (gradients.phi_x)
          kernel.gather_sum(gradients.phi_x.row(head, i), gradient[row], top_k, own, slope_r + row * top_k,
                            call.phi_b.row(head, 0), call.phi_b.row_stride, call.phi_width);
        if (gradients.offset) {
          double sum = 0;
          for (int64_t e = row * top_k; e < (row + 1) * top_k; ++e) sum += static_cast<double>(slope_r[e]);
          offset_terms[static_cast<std::size_t>(row)] = -sum * static_cast<double>(gradient[row]);
        }
      }
    }
    if (to_candidates) {
      by_column->sort(gradient + start, chosen + start * top_k, slope_s + start * top_k,
                      slope_r ? slope_r + start * top_k : nullptr);
      const ByColumn<T>& sorted = by_column->sorted();
#pragma omp for schedule(dynamic, 16)
      for (int64_t j = 0; j < call.candidates; ++j) {
        const int64_t begin = sorted.begin[j], count = sorted.begin[j + 1] - begin;
        const int32_t* rows = sorted.row.get() + begin;
        if (gradients.y)
          kernel.gather_sum(gradients.y.row(head, j), T(1), count, rows, sorted.slope_s.get() + begin,
                            call.a.row(head, 0), call.a.row_stride, call.width);
        if (gradients.phi_y)
          kernel.gather_sum(gradients.phi_y.row(head, j), T(1), count, rows, sorted.slope_r.get() + begin,
                            call.phi_a.row(head, 0), call.phi_a.row_stride, call.phi_width);
      }
    }
  }
  for (int64_t head = 0; gradients.offset && head < call.heads; ++head) {
    const auto terms = offset_terms.begin() + head * call.anchors;
    gradients.offset[head] = std::accumulate(terms, terms + call.anchors, 0.0);
  }
}

template Sums contrast_topk_forward(const Contrast<float>&, float*, int32_t*, float*, float*, float*);
template Sums contrast_topk_forward(const Contrast<double>&, double*, int32_t*, double*, double*, double*);
template void contrast_topk_backward(const Contrast<float>&, const float*, const int32_t*, const float*, const float*,
                                     const Gradients<float>&);
template void contrast_topk_backward(const Contrast<double>&, const double*, const int32_t*, const double*,
                                     const double*, const Gradients<double>&);

}  // namespace amcl
