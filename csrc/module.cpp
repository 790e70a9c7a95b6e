// amcl_fast._native. Tensors arrive as (address, head stride, row stride), checked by amcl_fast/ops/native.py; what is
// checked here again are the sizes that decide where memory is written. The GIL is released for the whole work.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "blas.hpp"
#include "operators.hpp"

namespace py = pybind11;

namespace amcl {
namespace {

using Address = std::uintptr_t;
using RowsArgument = std::optional<std::tuple<Address, int64_t, int64_t>>;
using SumsResult = std::tuple<double, double, double, double, double, double>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
Rows<T> rows(const RowsArgument& argument) {
  if (!argument) return {};
  const auto [address, head_stride, row_stride] = *argument;
  return {pointer<T>(address), head_stride, row_stride};
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

SumsResult result(const Sums& sums) {
  return {sums.s, sums.rise, sums.rise_squared, sums.tau_lowest, sums.at_bound, sums.count};
}

// (heads, anchors, candidates, width, width of φ, k, columns skipped per anchor)
using ContrastShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// (τ low, τ span, offset, β)
using TemperatureArgument = std::tuple<double, double, double, double>;

template <class T>
Contrast<T> contrast_call(const ContrastShape& shape, Form form, const TemperatureArgument& temperature,
                          const RowsArgument& a, const RowsArgument& b, const RowsArgument& phi_a,
                          const RowsArgument& phi_b, Address skip, int threads) {
  const auto [heads, anchors, candidates, width, phi_width, top_k, skips] = shape;
  const auto [low, span, offset, beta] = temperature;
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  require(heads >= 1 && anchors >= 1 && width >= 1 && threads >= 1, "sizes must be positive");
  require(candidates <= most && anchors <= most, "more than 2^31 rows");
  require(skips >= 0 && top_k >= 1 && top_k <= candidates - skips, "top_k must be in [1, candidates - skipped]");
  require(a && b && phi_a.has_value() == phi_b.has_value(), "missing rows");
  require((skips > 0) == (skip != 0), "skip does not fit its size");
  const int64_t* columns = pointer<const int64_t>(skip);
  for (int64_t i = 0; i < anchors * skips; ++i)
    require(columns[i] >= 0 && columns[i] < candidates, "skip holds a column that does not exist");
  Contrast<T> call;
  call.heads = heads;
  call.anchors = anchors;
  call.candidates = candidates;
  call.width = width;
  call.phi_width = phi_width;
  call.top_k = top_k;
  call.skips = skips;
  call.form = form;
  call.temperature = {static_cast<T>(low), static_cast<T>(span), static_cast<T>(offset), static_cast<T>(beta),
                      static_cast<double>(width)};
  call.a = rows<T>(a);
  call.b = rows<T>(b);
  call.phi_a = rows<T>(phi_a);
  call.phi_b = rows<T>(phi_b);
  call.skip = columns;
  call.threads = threads;
  return call;
}

template <class T>
SumsResult topk_forward(const ContrastShape& shape, Form form, const TemperatureArgument& temperature,
                        const RowsArgument& a, const RowsArgument& b, const RowsArgument& phi_a,
                        const RowsArgument& phi_b, Address skip, int threads, Address values, Address columns,
                        Address ds, Address dr) {
  const auto call = contrast_call<T>(shape, form, temperature, a, b, phi_a, phi_b, skip, threads);
  require(values && (columns != 0) == (ds != 0) && (!dr || ds), "missing outputs");
  return result(contrast_topk_forward(call, pointer<T>(values), pointer<int32_t>(columns), pointer<T>(ds),
                                      pointer<T>(dr)));
}

template <class T>
double topk_backward(const ContrastShape& shape, Form form, const TemperatureArgument& temperature,
                   const RowsArgument& a, const RowsArgument& b, const RowsArgument& phi_a, const RowsArgument& phi_b,
                   Address skip, int threads, Address upstream, Address columns, Address ds, Address dr,
                   const RowsArgument& grad_a, const RowsArgument& grad_b, const RowsArgument& grad_phi_a,
                   const RowsArgument& grad_phi_b, bool with_offset) {
  const auto call = contrast_call<T>(shape, form, temperature, a, b, phi_a, phi_b, skip, threads);
  require(upstream && columns && ds && (dr || !(grad_phi_a || grad_phi_b || with_offset)), "missing inputs");
  double grad_offset = 0;
  contrast_topk_backward(call, pointer<const T>(upstream), pointer<const int32_t>(columns), pointer<const T>(ds),
                         pointer<const T>(dr), rows<T>(grad_a), rows<T>(grad_b), rows<T>(grad_phi_a),
                         rows<T>(grad_phi_b), with_offset ? &grad_offset : nullptr);
  return grad_offset;
}

// One Python name for both element types: the first argument tells which.
template <class... A, class R>
auto by_type(R (*single)(A...), R (*both)(A...)) {
  return [single, both](bool is_double, A... arguments) {
    const py::gil_scoped_release release;
    return is_double ? both(arguments...) : single(arguments...);
  };
}

}  // namespace
}  // namespace amcl

PYBIND11_MODULE(_native, module) {
  using namespace amcl;
  module.doc() = "CPU engine of amcl_fast; call it through amcl_fast.ops.native, which checks the arguments.";
  py::enum_<Form>(module, "Form")
      .value("topk_mean", Form::topk_mean)
      .value("topk_softmax", Form::topk_softmax)
      .value("softmax", Form::softmax);
  module.def("instruction_sets", &instruction_sets, "Instruction sets that this processor can run, best first.");
  module.def("use_instruction_set", &use_instruction_set, "Chooses one of instruction_sets(), for tests.");
  module.def("use_blas", &use_blas, "Addresses of Fortran sgemm and dgemm; 0 means plain loops.");
  module.def("contrast_topk_forward", by_type(topk_forward<float>, topk_forward<double>));
  module.def("contrast_topk_backward", by_type(topk_backward<float>, topk_backward<double>));
}
