// Temperatures at which the negatives of each anchor have a given perplexity.
#include <algorithm>
#include <limits>

#include "all_pairs.hpp"
#include "hardest.hpp"

namespace amcl {

template <class T>
void calibrate_topk(const Contrast<T>& call, const Calibration<T>& calibration, T* tau, T* similarities,
                    int32_t* columns) {
  const int64_t top_k = call.top_k;
  const Kernels<T>& kernel = kernels<T>();
  const auto row = [&](int64_t head, int64_t anchor, const T* s, const int32_t* own, T* work, Sums*) {
    const int64_t at = head * call.anchors + anchor;
    tau[at] = kernel.calibrate_row(top_k, s, top_k, calibration, work);
    std::copy_n(s, top_k, similarities + at * top_k);
    std::copy_n(own, top_k, columns + at * top_k);
  };
  for_hardest(call, top_k + kPadding, row);
}

template <class T>
void calibrate_softmax(const Contrast<T>& call, const Calibration<T>& calibration, T* tau) {
  const Kernels<T>& kernel = kernels<T>();
  const AllPairs<T> pairs{call.heads, call.anchors, call.candidates, call.width, 0, T(1),
                          call.a,     call.b,       {},              {},         call.threads};
  for_all_pairs(pairs, Gradients<T>{}, call.candidates + kPadding,
                [&](int64_t head, int64_t anchor, T* s, T*, T* work) {
                  const int64_t* skip = call.skip + anchor * call.skips;
                  for (int64_t j = 0; j < call.skips; ++j) s[skip[j]] = -std::numeric_limits<T>::infinity();
                  tau[head * call.anchors + anchor] = kernel.calibrate_row(
                      call.candidates, s, call.candidates - call.skips, calibration, work);
                });
}

template void calibrate_topk(const Contrast<float>&, const Calibration<float>&, float*, float*, int32_t*);
template void calibrate_topk(const Contrast<double>&, const Calibration<double>&, double*, double*, int32_t*);
template void calibrate_softmax(const Contrast<float>&, const Calibration<float>&, float*);
template void calibrate_softmax(const Contrast<double>&, const Calibration<double>&, double*);

}  // namespace amcl
