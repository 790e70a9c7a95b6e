// The operators that Python sees: tensors as pointers and strides, everything in one parallel region per call.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace amcl {

// (heads, rows, width), unit stride along the width; data null: absent. Outputs are written, inputs only read.
template <class T>
struct Table {
  T* data = nullptr;
  int64_t head_stride = 0, row_stride = 0;

  explicit operator bool() const { return data != nullptr; }
  T* row(int64_t head, int64_t index) const { return data + head * head_stride + index * row_stride; }
};

// Gradients to be written; null: not needed. `offset` is the gradient by the offset that each head contributes,
// (heads,). For `contrast` x are the anchors and y the candidates.
template <class T>
struct Gradients {
  Table<T> x, y, phi_x, phi_y;
  double* offset = nullptr;

  bool any() const { return x || y || phi_x || phi_y || offset; }
};

// Shapes and settings of one `contrast` call.
template <class T>
struct Contrast {
  int64_t heads, anchors, candidates, width, phi_width, top_k, skips;
  Form form;
  Temperature<T> temperature;
  Table<T> a, b, phi_a, phi_b;
  const int64_t* skip;  // (anchors, skips) or null
  const T* tau;            // (heads, anchors), a temperature per anchor, or null; without φ
  const T* similarities;   // (heads, anchors, top_k), the hardest, where they are known, with their columns; or null
  const int32_t* columns;
  int threads;

  // That of a row, `at` in (heads, anchors).
  Temperature<T> temperature_of(int64_t at) const {
    Temperature<T> result = temperature;
    if (tau) result.tau = tau[at];
    return result;
  }
};

// Rows (heads, anchors) over the top_k hardest. In `chosen`, `slope_s`, `slope_r` (each (heads, anchors, top_k)) and
// `slope_tau` (heads, anchors) it leaves what the backward pass needs (null: not needed): the chosen columns and the
// derivatives of each row by s, by r and by its τ.
template <class T>
Sums contrast_topk_forward(const Contrast<T>& call, T* rows, int32_t* chosen, T* slope_s, T* slope_r, T* slope_tau);

// Gradients from those; `gradient`, of the rows, is (heads, anchors), contiguous.
template <class T>
void contrast_topk_backward(const Contrast<T>& call, const T* gradient, const int32_t* chosen, const T* slope_s,
                            const T* slope_r, const Gradients<T>& gradients);

// Rows (heads, anchors) over all negatives and, unless null, one `extra` logit for each anchor; in the same pass the
// gradients of Σ gradient · row, and in `slope_tau`, unless null, that by the τ of each anchor. `gradient`, `extra` and
// `slope_tau` are (heads, anchors), `gradient` null for ones.
template <class T>
Sums contrast_softmax(const Contrast<T>& call, const T* gradient, const T* extra, T* rows, T* slope_tau,
                      const Gradients<T>& gradients);

// τ (heads, anchors) at which each row over its top_k hardest has the deficit, and those, (heads, anchors, top_k).
template <class T>
void calibrate_topk(const Contrast<T>& call, const Calibration<T>& calibration, T* tau, T* similarities,
                    int32_t* columns);

// The same over all negatives.
template <class T>
void calibrate_softmax(const Contrast<T>& call, const Calibration<T>& calibration, T* tau);

// Barlow Twins: x and y are (heads, channels, batch). `losses` is (heads,). The gradients are those of each
// head's loss.
template <class T>
struct Decorrelate {
  int64_t heads, channels, batch, phi_width;
  T lambda;
  Temperature<T> temperature;
  Table<T> x, y, phi_x, phi_y;
  int threads;
};

template <class T>
void decorrelate(const Decorrelate<T>& call, double* losses, const Gradients<T>& gradients, Sums* on, Sums* off);

// Paired rows: x and y are (heads, rows, width). `factors` (heads, rows) is what the backward pass needs.
template <class T>
struct Align {
  int64_t heads, rows, width, phi_width;
  T weight;
  Temperature<T> temperature;
  Table<T> x, y, phi_x, phi_y;
  int threads;
};

template <class T>
Sums align_forward(const Align<T>& call, T* rows, AlignFactors<T>* factors);

// `gradient` is (heads, rows), contiguous.
template <class T>
void align_backward(const Align<T>& call, const T* gradient, const AlignFactors<T>* factors,
                    const Gradients<T>& gradients);

}  // namespace amcl
