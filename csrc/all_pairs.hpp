// The frame of the operators that need every pair of rows: products in blocks, a row epilogue, gradient products.
//
// A band of rows of x at a time: S = scale · x·yᵀ and R = φx·φyᵀ of the band, which `row` turns into the derivatives
// by S and R where they stand; then the gradients are four more products of the band. Those of rows of x belong to the
// thread that made the rows; those of rows of y are summed over bands in order, each by one thread. So memory is one
// band, nothing is recomputed, and the bits do not depend on the number of threads.
#pragma once

#include <algorithm>

#include "blas.hpp"
#include "operators.hpp"
#include "parallel.hpp"

namespace amcl {

template <class T>
struct AllPairs {
  int64_t heads, x_rows, y_rows, width, phi_width;
  T scale;
  Table<T> x, y, phi_x, phi_y;
  int threads;
};

// By the shape alone, as the bits may depend on them: the rows of a band; the rows of x, and later those of y, that one
// thread takes at a time. Measured on 2048 rows of y; a larger band costs more page faults than it saves.
constexpr int64_t kBandX = 512, kShareX = 64, kShareY = 256;

// `row(head, index, s, r, work)` is called once for each row of x, from any thread; r is null without φ. `work` holds
// work_elements.
template <class T, class Row>
void for_all_pairs(const AllPairs<T>& call, const Gradients<T>& gradients, int64_t work_elements, const Row& row) {
  const int64_t band_rows = std::min(kBandX, call.x_rows);
  const int64_t y_rows = call.y_rows;
  const Workspace bands(1, static_cast<std::size_t>(band_rows * y_rows * (call.phi_x ? 2 : 1)) * sizeof(T));
  T* const s_band = reinterpret_cast<T*>(bands.of_thread());
  T* const r_band = call.phi_x ? s_band + band_rows * y_rows : nullptr;
  const Workspace workspace(call.threads, static_cast<std::size_t>(work_elements) * sizeof(T));

#pragma omp parallel num_threads(call.threads)
  {
    const BlasOnThisThread alone;
    for (int64_t head = 0; head < call.heads; ++head) {
      for (int64_t first = 0; first < call.x_rows; first += band_rows) {
        const int64_t in_band = std::min(band_rows, call.x_rows - first);
#pragma omp for schedule(dynamic)
        for (int64_t at = 0; at < in_band; at += kShareX) {
          const int64_t count = std::min(kShareX, in_band - at);
          T* const s = s_band + at * y_rows;
          T* const r = r_band ? r_band + at * y_rows : nullptr;
          T* const work = reinterpret_cast<T*>(workspace.of_thread());
          multiply<T>(count, y_rows, call.width, call.scale, {call.x.row(head, first + at), call.x.row_stride, false},
                      {call.y.row(head, 0), call.y.row_stride, true}, false, s, y_rows);
          if (r)
            multiply<T>(count, y_rows, call.phi_width, T(1),
                        {call.phi_x.row(head, first + at), call.phi_x.row_stride, false},
                        {call.phi_y.row(head, 0), call.phi_y.row_stride, true}, false, r, y_rows);
          for (int64_t i = 0; i < count; ++i)
            row(head, first + at + i, s + i * y_rows, r ? r + i * y_rows : nullptr, work);
          if (gradients.x)
            multiply<T>(count, call.width, y_rows, call.scale, {s, y_rows, false},
                        {call.y.row(head, 0), call.y.row_stride, false}, false, gradients.x.row(head, first + at),
                        gradients.x.row_stride);
          if (gradients.phi_x)
            multiply<T>(count, call.phi_width, y_rows, T(1), {r, y_rows, false},
                        {call.phi_y.row(head, 0), call.phi_y.row_stride, false}, false,
                        gradients.phi_x.row(head, first + at), gradients.phi_x.row_stride);
        }
        if (!gradients.y && !gradients.phi_y) continue;
#pragma omp for schedule(dynamic)
        for (int64_t at = 0; at < y_rows; at += kShareY) {
          const int64_t count = std::min(kShareY, y_rows - at);
          if (gradients.y)
            multiply<T>(count, call.width, in_band, call.scale, {s_band + at, y_rows, true},
                        {call.x.row(head, first), call.x.row_stride, false}, first > 0, gradients.y.row(head, at),
                        gradients.y.row_stride);
          if (gradients.phi_y)
            multiply<T>(count, call.phi_width, in_band, T(1), {r_band + at, y_rows, true},
                        {call.phi_x.row(head, first), call.phi_x.row_stride, false}, first > 0,
                        gradients.phi_y.row(head, at), gradients.phi_y.row_stride);
        }
      }
    }
  }
}

}  // namespace amcl
