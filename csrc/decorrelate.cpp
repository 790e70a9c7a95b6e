// Barlow Twins with a temperature for each pair of channels.
#include <vector>

#include "all_pairs.hpp"

namespace amcl {

template <class T>
void decorrelate(const Decorrelate<T>& call, double* losses, const Gradients<T>& gradients, Sums* on, Sums* off) {
  const Kernels<T>& kernel = kernels<T>();
  const auto count = static_cast<std::size_t>(call.heads * call.channels);
  std::vector<double> terms(count);
  std::vector<T> slope_r_sums(count);
  std::vector<Sums> sums_on(count), sums_off(count);
  const AllPairs<T> pairs{call.heads, call.channels, call.channels, call.batch, call.phi_width,
                          T(1) / static_cast<T>(call.batch), call.x, call.y, call.phi_x, call.phi_y, call.threads};
  for_all_pairs(pairs, gradients, 2 * call.channels, [&](int64_t head, int64_t channel, T* s, T* r, T* work) {
    const auto at = static_cast<std::size_t>(head * call.channels + channel);
    terms[at] = kernel.decorrelate_row(call.channels, channel, s, r, call.temperature, call.lambda, work,
                                       &slope_r_sums[at], &sums_on[at], &sums_off[at]);
  });
  for (int64_t head = 0; head < call.heads; ++head) {
    double value = 0, slope_r = 0;
    for (int64_t channel = 0; channel < call.channels; ++channel) {
      const auto at = static_cast<std::size_t>(head * call.channels + channel);
      value += terms[at];
      slope_r += static_cast<double>(slope_r_sums[at]);
      on->add(sums_on[at]);
      off->add(sums_off[at]);
    }
    losses[head] = value;
    if (gradients.offset) gradients.offset[head] = -slope_r;
  }
}

template void decorrelate(const Decorrelate<float>&, double*, const Gradients<float>&, Sums*, Sums*);
template void decorrelate(const Decorrelate<double>&, double*, const Gradients<double>&, Sums*, Sums*);

}  // namespace amcl
