// amcl_fast._native. Tensors arrive as addresses and strides, checked by amcl_fast/ops/native.py; what is checked here
// again are the sizes that decide where memory is written. The GIL is released for the whole work.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <limits>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "blas.hpp"
#include "operators.hpp"

namespace py = pybind11;

namespace amcl {
namespace {

using Address = std::uintptr_t;  // of contiguous elements; 0: absent
// x, y, φx, φy or their gradients: each (address, head stride, row stride) or None.
using FourRows = std::array<std::optional<std::tuple<Address, int64_t, int64_t>>, 4>;
// (τ low, τ span, offset, β)
using TemperatureArgument = std::tuple<double, double, double, double>;
// Σ s, Σ (τ − low), Σ (τ − low)², lowest τ, count at a bound, count
using SumsResult = std::tuple<double, double, double, double, double, double>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
std::array<Rows<T>, 4> rows(const FourRows& argument) {
  std::array<Rows<T>, 4> result;
  for (std::size_t i = 0; i < argument.size(); ++i) {
    if (!argument[i]) continue;
    const auto [address, head_stride, row_stride] = *argument[i];
    result[i] = {pointer<T>(address), head_stride, row_stride};
  }
  return result;
}

template <class T>
Gradients<T> gradients(const FourRows& argument, Address offset) {
  const auto [x, y, phi_x, phi_y] = rows<T>(argument);
  return {x, y, phi_x, phi_y, pointer<double>(offset)};
}

template <class T>
Temperature<T> temperature(const TemperatureArgument& argument, int64_t dim) {
  const auto [low, span, offset, beta] = argument;
  return {static_cast<T>(low), static_cast<T>(span), static_cast<T>(offset), static_cast<T>(beta),
          static_cast<double>(dim)};
}

SumsResult result(const Sums& sums) {
  return {sums.s, sums.rise, sums.rise_squared, sums.tau_lowest, sums.at_bound, sums.count};
}

void require_sizes(std::initializer_list<int64_t> sizes, int threads) {
  // BLAS counts with 32-bit integers, and so do the lists of selected columns.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  for (const int64_t size : sizes) require(size >= 1 && size <= most, "size out of range");
  require(threads >= 1, "threads must be positive");
}

void require_inputs(const FourRows& inputs, int64_t phi_width) {
  require(inputs[0] && inputs[1], "x and y are required");
  require(inputs[2].has_value() == inputs[3].has_value() && inputs[2].has_value() == (phi_width > 0),
          "phi_x, phi_y and their width go together");
}

// What the two forms of `contrast` share.
struct ContrastArguments {
  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> shape;
  Form form;
  TemperatureArgument temperature;
  FourRows inputs;
  Address skip;
  int threads;

  template <class T>
  Contrast<T> call() const {
    const auto [heads, anchors, candidates, width, phi_width, top_k, skips] = shape;
    require_sizes({heads, anchors, candidates, width}, threads);
    require_inputs(inputs, phi_width);
    require(skips >= 0 && top_k >= 1 && top_k <= candidates - skips, "top_k must be in [1, candidates - skipped]");
    require((skips > 0) == (skip != 0), "skip does not fit its size");
    const auto* columns = pointer<const int64_t>(skip);
    for (int64_t i = 0; i < anchors * skips; ++i)
      require(columns[i] >= 0 && columns[i] < candidates, "skip holds a column that does not exist");
    const auto [a, b, phi_a, phi_b] = rows<T>(inputs);
    return {heads, anchors, candidates, width, phi_width, top_k, skips, form,
            amcl::temperature<T>(temperature, width), a, b, phi_a, phi_b, columns, threads};
  }
};

template <class T>
SumsResult topk_forward(const ContrastArguments& arguments, Address values, Address columns, Address ds, Address dr) {
  const auto call = arguments.call<T>();
  require(values != 0 && (columns != 0) == (ds != 0) && (dr != 0) == (ds && call.phi_a), "missing outputs");
  return result(contrast_topk_forward(call, pointer<T>(values), pointer<int32_t>(columns), pointer<T>(ds),
                                      pointer<T>(dr)));
}

template <class T>
void topk_backward(const ContrastArguments& arguments, Address upstream, Address columns, Address ds, Address dr,
                   const FourRows& outputs, Address offset) {
  const auto call = arguments.call<T>();
  require(upstream && columns && ds && (dr || !(outputs[2] || outputs[3] || offset)), "missing inputs");
  contrast_topk_backward(call, pointer<const T>(upstream), pointer<const int32_t>(columns), pointer<const T>(ds),
                         pointer<const T>(dr), gradients<T>(outputs, offset));
}

template <class T>
SumsResult softmax(const ContrastArguments& arguments, Address weights, Address extra, Address values,
                   const FourRows& outputs, Address offset) {
  const auto call = arguments.call<T>();
  require(values != 0, "missing outputs");
  return result(contrast_softmax(call, pointer<const T>(weights), pointer<const T>(extra), pointer<T>(values),
                                 gradients<T>(outputs, offset)));
}

// (heads, channels, batch, width of φ)
using DecorrelateShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;

template <class T>
std::tuple<SumsResult, SumsResult> decorrelate_both(const DecorrelateShape& shape,
                                                    const TemperatureArgument& temperatures, double lambda,
                                                    const FourRows& inputs, int threads, Address values,
                                                    const FourRows& outputs, Address offset) {
  const auto [heads, channels, batch, phi_width] = shape;
  require_sizes({heads, channels, batch}, threads);
  require_inputs(inputs, phi_width);
  require(values != 0, "missing outputs");
  const auto [x, y, phi_x, phi_y] = rows<T>(inputs);
  Sums on, off;
  decorrelate<T>({heads, channels, batch, phi_width, static_cast<T>(lambda), temperature<T>(temperatures, channels), x,
                  y, phi_x, phi_y, threads},
                 pointer<double>(values), gradients<T>(outputs, offset), &on, &off);
  return {result(on), result(off)};
}

struct AlignArguments {
  std::tuple<int64_t, int64_t, int64_t, int64_t> shape;  // heads, rows, width, width of φ
  TemperatureArgument temperature;
  double weight;
  FourRows inputs;
  int threads;

  template <class T>
  Align<T> call() const {
    const auto [heads, count, width, phi_width] = shape;
    require_sizes({heads, count, width}, threads);
    require_inputs(inputs, phi_width);
    const auto [x, y, phi_x, phi_y] = rows<T>(inputs);
    return {heads, count, width, phi_width, static_cast<T>(weight), amcl::temperature<T>(temperature, width),
            x,     y,     phi_x, phi_y,     threads};
  }
};

template <class T>
SumsResult aligned(const AlignArguments& arguments, Address values, Address factors) {
  require(values && factors, "missing outputs");
  return result(align_forward(arguments.call<T>(), pointer<T>(values), pointer<AlignFactors<T>>(factors)));
}

template <class T>
void aligned_backward(const AlignArguments& arguments, Address upstream, Address factors, const FourRows& outputs,
                      Address offset) {
  require(upstream && factors, "missing inputs");
  align_backward(arguments.call<T>(), pointer<const T>(upstream), pointer<const AlignFactors<T>>(factors),
                 gradients<T>(outputs, offset));
}

// One Python name for both element types: the first argument tells which.
template <class Result, class... A>
auto by_type(Result (*single)(A...), Result (*both)(A...)) {
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
  using ContrastShape = decltype(ContrastArguments::shape);
  py::class_<ContrastArguments>(module, "Contrast")
      .def(py::init([](ContrastShape shape, Form form, TemperatureArgument temperature, FourRows inputs, Address skip,
                       int threads) { return ContrastArguments{shape, form, temperature, inputs, skip, threads}; }));
  using AlignShape = decltype(AlignArguments::shape);
  py::class_<AlignArguments>(module, "Align")
      .def(py::init([](AlignShape shape, TemperatureArgument temperature, double weight, FourRows inputs,
                       int threads) { return AlignArguments{shape, temperature, weight, inputs, threads}; }));
  module.attr("ALIGN_FACTORS") = sizeof(AlignFactors<float>) / sizeof(float);
  module.def("instruction_sets", &instruction_sets, "Instruction sets that this processor can run, best first.");
  module.def("use_instruction_set", &use_instruction_set, "Chooses one of instruction_sets(), for tests.");
  module.def("use_blas", &use_blas,
             "Addresses of Fortran sgemm and dgemm (0: plain loops) and of MKL_Set_Num_Threads_Local (0: not MKL).");
  module.def("contrast_topk_forward", by_type(topk_forward<float>, topk_forward<double>));
  module.def("contrast_topk_backward", by_type(topk_backward<float>, topk_backward<double>));
  module.def("contrast_softmax", by_type(softmax<float>, softmax<double>));
  module.def("decorrelate", by_type(decorrelate_both<float>, decorrelate_both<double>));
  module.def("align_forward", by_type(aligned<float>, aligned<double>));
  module.def("align_backward", by_type(aligned_backward<float>, aligned_backward<double>));
}
