// `align`: paired rows, bound by memory, so each pass reads every input once.
#include <vector>

#include "operators.hpp"

namespace amcl {

template <class T>
Sums align_forward(const Align<T>& call, T* rows, AlignFactors<T>* factors) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t count = call.heads * call.rows;
  std::vector<Sums> sums(static_cast<std::size_t>(count));
#pragma omp parallel for num_threads(call.threads) schedule(static)
  for (int64_t at = 0; at < count; ++at) {
    const int64_t head = at / call.rows, row = at % call.rows;
    const bool adaptive = static_cast<bool>(call.phi_x);
    rows[at] = kernel.align_row(call.width, call.x.row(head, row), call.y.row(head, row), call.phi_width,
                                adaptive ? call.phi_x.row(head, row) : nullptr,
                                adaptive ? call.phi_y.row(head, row) : nullptr, call.temperature, call.weight,
                                factors + at, &sums[static_cast<std::size_t>(at)]);
  }
  Sums result;
  for (const Sums& part : sums) result.add(part);
  return result;
}

template <class T>
void align_backward(const Align<T>& call, const T* gradient, const AlignFactors<T>* factors,
                  const Gradients<T>& gradients) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t count = call.heads * call.rows;
#pragma omp parallel for num_threads(call.threads) schedule(static)
  for (int64_t at = 0; at < count; ++at) {
    const int64_t head = at / call.rows, row = at % call.rows;
    const AlignFactors<T>& f = factors[at];
    const T g = gradient[at];
    if (gradients.x)
      kernel.combine(call.width, f.scale_x, f.scale_y, g * f.cross, call.y.row(head, row), g * f.own_x,
                     call.x.row(head, row), gradients.x.row(head, row));
    if (gradients.y)
      kernel.combine(call.width, f.scale_y, f.scale_x, g * f.cross, call.x.row(head, row), g * f.own_y,
                     call.y.row(head, row), gradients.y.row(head, row));
    if (gradients.phi_x)
      kernel.combine(call.phi_width, T(1), T(1), g * f.slope_r, call.phi_y.row(head, row), T(0),
                     call.phi_x.row(head, row), gradients.phi_x.row(head, row));
    if (gradients.phi_y)
      kernel.combine(call.phi_width, T(1), T(1), g * f.slope_r, call.phi_x.row(head, row), T(0),
                     call.phi_y.row(head, row), gradients.phi_y.row(head, row));
  }
  for (int64_t head = 0; gradients.offset && head < call.heads; ++head) {
    double sum = 0;
    for (int64_t at = head * call.rows; at < (head + 1) * call.rows; ++at)
      sum -= static_cast<double>(factors[at].slope_r) * static_cast<double>(gradient[at]);
    gradients.offset[head] = sum;
  }
}

template Sums align_forward(const Align<float>&, float*, AlignFactors<float>*);
template Sums align_forward(const Align<double>&, double*, AlignFactors<double>*);
template void align_backward(const Align<float>&, const float*, const AlignFactors<float>*, const Gradients<float>&);
template void align_backward(const Align<double>&, const double*, const AlignFactors<double>*,
                             const Gradients<double>&);

}  // namespace amcl
