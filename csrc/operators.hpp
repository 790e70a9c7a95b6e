// The operators that Python sees: tensors as pointers and strides, everything in one parallel region per call.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace amcl {

// (heads, rows, width), unit stride along the width; data null: absent. Outputs are written, inputs only read.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t head_stride = 0, row_stride = 0;

  explicit operator bool() const { return data != nullptr; }
  T* row(int64_t head, int64_t index) const { return data + head * head_stride + index * row_stride; }
};

// Gradients to be written; null: not wanted. `offset` is the gradient by the offset that each head contributes,
// (heads,). For `contrast` x are the anchors and y the candidates.
template <class T>
struct Gradients {
  Rows<T> x, y, phi_x, phi_y;
  double* offset = nullptr;

  bool any() const { return x || y || phi_x || phi_y || offset; }
};

// Shapes and settings of one `contrast` call.
template <class T>
struct Contrast {
  int64_t heads, anchors, candidates, width, phi_width, top_k, skips;
  Form form;
  Temperature<T> temperature;
  Rows<T> a, b, phi_a, phi_b;
  const int64_t* skip;  // (anchors, skips) or null
  int threads;
};

// Values (heads, anchors) over the top k. With `columns`, `ds`, `dr` (each (heads, anchors, k), or all null) it leaves
// what the backward pass needs: the selected columns and the derivatives of each value by s and by r.
template <class T>
Sums contrast_topk_forward(const Contrast<T>& call, T* values, int32_t* columns, T* ds, T* dr);

// Gradients from those; `upstream` is (heads, anchors), contiguous.
template <class T>
void contrast_topk_backward(const Contrast<T>& call, const T* upstream, const int32_t* columns, const T* ds,
                            const T* dr, const Gradients<T>& gradients);

// Values (heads, anchors) over all negatives and, unless null, one `extra` logit for each anchor; in the same pass the
// gradients of Σ weight · value. `weights` and `extra` are (heads, anchors), `weights` null for ones.
template <class T>
Sums contrast_softmax(const Contrast<T>& call, const T* weights, const T* extra, T* values, const Gradients<T>& gradients);

// Barlow Twins: x and y are (heads, channels, batch). `values` is (heads,).  The gradients are those of each
// head's value.
template <class T>
struct Decorrelate {
  int64_t heads, channels, batch, phi_width;
  T lambda;
  Temperature<T> temperature;
  Rows<T> x, y, phi_x, phi_y;
  int threads;
};

template <class T>
void decorrelate(const Decorrelate<T>& call, double* values, const Gradients<T>& gradients, Sums* on, Sums* off);

// Paired rows: x and y are (heads, rows, width). `factors` (heads, rows) is what the backward pass needs.
template <class T>
struct Align {
  int64_t heads, rows, width, phi_width;
  T weight;
  Temperature<T> temperature;
  Rows<T> x, y, phi_x, phi_y;
  int threads;
};

template <class T>
Sums align_forward(const Align<T>& call, T* values, AlignFactors<T>* factors);

// `upstream` is (heads, rows), contiguous.
template <class T>
void align_backward(const Align<T>& call, const T* upstream, const AlignFactors<T>* factors,
                    const Gradients<T>& gradients);

}  // namespace amcl
