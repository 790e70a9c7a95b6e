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

// Gradients from those; null outputs are not computed. `upstream` is (heads, anchors), contiguous.
template <class T>
void contrast_topk_backward(const Contrast<T>& call, const T* upstream, const int32_t* columns, const T* ds,
                            const T* dr, Rows<T> grad_a, Rows<T> grad_b, Rows<T> grad_phi_a, Rows<T> grad_phi_b,
                            double* grad_offset);

}  // namespace amcl
