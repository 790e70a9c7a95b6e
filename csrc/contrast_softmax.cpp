// `contrast` over all negatives. The whole row is at hand when its log-sum-exp is taken, so the derivatives follow at
// once and the gradients are made in the same pass: six products in all, none of them twice.
#include <algorithm>
#include <vector>

#include "all_pairs.hpp"

namespace amcl {

template <class T>
Sums contrast_softmax(const Contrast<T>& call, const T* gradient, const T* extra, T* rows, T* slope_tau,
                      const Gradients<T>& gradients) {
  const Kernels<T>& kernel = kernels<T>();
  const auto count = static_cast<std::size_t>(call.heads * call.anchors);
  std::vector<T> slope_sums(count);
  std::vector<Sums> sums(count);
  const AllPairs<T> pairs{call.heads, call.anchors, call.candidates, call.width,  call.phi_width, T(1),
                          call.a,     call.b,       call.phi_a,      call.phi_b, call.threads};
  for_all_pairs(pairs, gradients, 3 * call.candidates, [&](int64_t head, int64_t anchor, T* s, T* r, T* work) {
    const int64_t at = head * call.anchors + anchor;
    rows[at] = kernel.softmax_row(call.candidates, s, r, call.skip + anchor * call.skips, call.skips,
                                  call.temperature_of(at), gradients.any() || slope_tau,
                                  gradient ? gradient[at] : T(1), extra ? extra + at : nullptr, work,
                                  &slope_sums[static_cast<std::size_t>(at)],
                                  &sums[static_cast<std::size_t>(at)]);
  });
  Sums result;
  for (const Sums& part : sums) result.add(part);
  if (slope_tau) std::copy(slope_sums.begin(), slope_sums.end(), slope_tau);
  for (int64_t head = 0; gradients.offset && head < call.heads; ++head) {
    double slope_r = 0;
    for (int64_t i = 0; i < call.anchors; ++i)
      slope_r += static_cast<double>(slope_sums[static_cast<std::size_t>(head * call.anchors + i)]);
    gradients.offset[head] = -slope_r;
  }
  return result;
}

template Sums contrast_softmax(const Contrast<float>&, const float*, const float*, float*, float*,
                               const Gradients<float>&);
template Sums contrast_softmax(const Contrast<double>&, const double*, const double*, double*, double*,
                               const Gradients<double>&);

}  // namespace amcl
