// amcl_fast._native. Tensors arrive as addresses and strides, checked by amcl_fast/ops; what is checked here
// again are the sizes that decide where memory is written. The GIL is released for the whole work.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "blas.hpp"
#include "operators.hpp"

namespace py = pybind11;

namespace amcl {
namespace {

using Address = std::uintptr_t;  // of contiguous elements; 0: absent
// x, y, φx, φy or their gradients: each (address, head stride, row stride) or None.
using FourTables = std::array<std::optional<std::tuple<Address, int64_t, int64_t>>, 4>;
// (tau_min, tau_span, offset, β)
using TemperatureArgument = std::tuple<double, double, double, double>;
// Σ s, Σ (τ − tau_min), Σ (τ − tau_min)², lowest τ, count at a bound, count
using SumsResult = std::tuple<double, double, double, double, double, double>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void require(bool condition, const char* name_must, int64_t got) {
  if (!condition) throw std::invalid_argument(std::string(name_must) + ", got " + std::to_string(got));
}

template <class T>
std::array<Table<T>, 4> tables(const FourTables& argument) {
  std::array<Table<T>, 4> result;
  for (std::size_t i = 0; i < argument.size(); ++i) {
    if (!argument[i]) continue;
    const auto [address, head_stride, row_stride] = *argument[i];
    result[i] = {pointer<T>(address), head_stride, row_stride};
  }
  return result;
}

template <class T>
Gradients<T> gradients(const FourTables& argument, Address offset) {
  const auto [x, y, phi_x, phi_y] = tables<T>(argument);
  return {x, y, phi_x, phi_y, pointer<double>(offset)};
}

template <class T>
Temperature<T> temperature(const TemperatureArgument& argument, int64_t dim) {
  const auto [tau_min, tau_span, offset, beta] = argument;
  return {static_cast<T>(tau_min), static_cast<T>(tau_span), static_cast<T>(offset), static_cast<T>(beta),
          static_cast<double>(dim), static_cast<T>(tau_min)};
}

SumsResult result(const Sums& sums) {
  return {sums.s, sums.rise, sums.rise_squared, sums.tau_lowest, sums.at_bound, sums.count};
}

void require_sizes(std::initializer_list<int64_t> sizes, int threads) {
  // BLAS counts with 32-bit integers, and so do the lists of chosen columns.
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  for (const int64_t size : sizes) require(size >= 1 && size <= most, "sizes must be in [1, 2147483647]", size);
  require(threads >= 1, "threads must be at least 1", threads);
}

void require_inputs(const FourTables& inputs, int64_t phi_width) {
  require(inputs[0] && inputs[1], "x and y must be given, got none");
  require(inputs[2].has_value() == inputs[3].has_value() && inputs[2].has_value() == (phi_width > 0),
          "phi_width must be positive where phi_x and phi_y are given, else 0", phi_width);
}

// What the two forms of `contrast` share, and those of `calibrate`.
struct ContrastArguments {
  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> shape;
  Form form;
  TemperatureArgument temperature;
  FourTables inputs;
  Address skip, tau, similarities, columns;
  int threads;

  template <class T>
  Contrast<T> call() const {
    const auto [heads, anchors, candidates, width, phi_width, top_k, skips] = shape;
    require_sizes({heads, anchors, candidates, width}, threads);
    require_inputs(inputs, phi_width);
    require(skips >= 0 && top_k >= 1 && top_k <= candidates - skips, "top_k must be in [1, candidates less skip]",
            top_k);
    require((skips > 0) == (skip != 0), "skips must be positive where skip is given, else 0", skips);
    const auto* skipped = pointer<const int64_t>(skip);
    for (int64_t i = 0; i < anchors * skips; ++i)
      require(skipped[i] >= 0 && skipped[i] < candidates, "skip must hold columns of candidates", skipped[i]);
    require(!(tau && inputs[2]), "a temperature per anchor must be given without phi, got both");
    require((similarities != 0) == (columns != 0), "similarities and columns must be given both or neither, got one");
    const auto [a, b, phi_a, phi_b] = tables<T>(inputs);
    return {heads, anchors, candidates, width, phi_width, top_k, skips, form,
            amcl::temperature<T>(temperature, width), a, b, phi_a, phi_b, skipped,
            pointer<const T>(tau), pointer<const T>(similarities), pointer<const int32_t>(columns), threads};
  }
};

template <class T>
SumsResult topk_forward(const ContrastArguments& arguments, Address rows, Address chosen, Address slope_s,
                        Address slope_r, Address slope_tau) {
  const auto call = arguments.call<T>();
  require(rows != 0, "rows must be given, got none");
  require((chosen != 0) == (slope_s && !call.columns) && (slope_r != 0) == (slope_s && call.phi_a) &&
              (slope_tau != 0) == (slope_s && call.tau),
          "chosen and slopes must be given all or none, got some");
  const int64_t entries = call.columns ? call.heads * call.anchors * call.top_k : 0;
  for (int64_t e = 0; e < entries; ++e)
    require(call.columns[e] >= 0 && call.columns[e] < call.candidates, "columns must be of candidates",
            call.columns[e]);
  return result(contrast_topk_forward(call, pointer<T>(rows), pointer<int32_t>(chosen), pointer<T>(slope_s),
                                      pointer<T>(slope_r), pointer<T>(slope_tau)));
}

template <class T>
void topk_backward(const ContrastArguments& arguments, Address gradient, Address chosen, Address slope_s,
                   Address slope_r, const FourTables& outputs, Address offset) {
  const auto call = arguments.call<T>();
  require(gradient && chosen && slope_s && (slope_r || !(outputs[2] || outputs[3] || offset)),
          "gradient, chosen and slopes must be given, got some of them");
  contrast_topk_backward(call, pointer<const T>(gradient), pointer<const int32_t>(chosen), pointer<const T>(slope_s),
                         pointer<const T>(slope_r), gradients<T>(outputs, offset));
}

template <class T>
SumsResult softmax(const ContrastArguments& arguments, Address gradient, Address extra, Address rows,
                   Address slope_tau, const FourTables& outputs, Address offset) {
  const auto call = arguments.call<T>();
  require(rows != 0, "rows must be given, got none");
  return result(contrast_softmax(call, pointer<const T>(gradient), pointer<const T>(extra), pointer<T>(rows),
                                 pointer<T>(slope_tau), gradients<T>(outputs, offset)));
}

template <class T>
void calibrate(const ContrastArguments& arguments, double tau_max, double deficit, Address tau, Address similarities,
               Address columns) {
  const auto call = arguments.call<T>();
  const Calibration<T> calibration{call.temperature.tau_min, static_cast<T>(tau_max), deficit};
  require(tau != 0, "tau must be given, got none");
  if (call.form == Form::softmax) {
    calibrate_softmax(call, calibration, pointer<T>(tau));
    return;
  }
  require(similarities && columns && !call.columns, "similarities and columns must be given to be written, got none");
  calibrate_topk(call, calibration, pointer<T>(tau), pointer<T>(similarities), pointer<int32_t>(columns));
}

// (heads, channels, batch, width of φ)
using DecorrelateShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;

template <class T>
std::tuple<SumsResult, SumsResult> decorrelate_both(const DecorrelateShape& shape,
                                                    const TemperatureArgument& temperatures, double lambda,
                                                    const FourTables& inputs, int threads, Address losses,
                                                    const FourTables& outputs, Address offset) {
  const auto [heads, channels, batch, phi_width] = shape;
  require_sizes({heads, channels, batch}, threads);
  require_inputs(inputs, phi_width);
  require(losses != 0, "losses must be given, got none");
  const auto [x, y, phi_x, phi_y] = tables<T>(inputs);
  Sums on, off;
  decorrelate<T>({heads, channels, batch, phi_width, static_cast<T>(lambda), temperature<T>(temperatures, channels), x,
                  y, phi_x, phi_y, threads},
                 pointer<double>(losses), gradients<T>(outputs, offset), &on, &off);
  return {result(on), result(off)};
}

struct AlignArguments {
  std::tuple<int64_t, int64_t, int64_t, int64_t> shape;  // heads, rows, width, width of φ
  TemperatureArgument temperature;
  double weight;
  FourTables inputs;
  int threads;

  template <class T>
  Align<T> call() const {
    const auto [heads, count, width, phi_width] = shape;
    require_sizes({heads, count, width}, threads);
    require_inputs(inputs, phi_width);
    const auto [x, y, phi_x, phi_y] = tables<T>(inputs);
    return {heads, count, width, phi_width, static_cast<T>(weight), amcl::temperature<T>(temperature, width),
            x,     y,     phi_x, phi_y,     threads};
  }
};

template <class T>
SumsResult aligned(const AlignArguments& arguments, Address rows, Address factors) {
  require(rows && factors, "rows and factors must be given, got none");
  return result(align_forward(arguments.call<T>(), pointer<T>(rows), pointer<AlignFactors<T>>(factors)));
}

template <class T>
void aligned_backward(const AlignArguments& arguments, Address gradient, Address factors, const FourTables& outputs,
                      Address offset) {
  require(gradient && factors, "gradient and factors must be given, got none");
  align_backward(arguments.call<T>(), pointer<const T>(gradient), pointer<const AlignFactors<T>>(factors),
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
  module.doc() = "CPU engine of amcl_fast; call it through amcl_fast.ops, which checks the arguments.";
  py::enum_<Form>(module, "Form")
      .value("topk_mean", Form::topk_mean)
      .value("topk_softmax", Form::topk_softmax)
      .value("softmax", Form::softmax);
  using ContrastShape = decltype(ContrastArguments::shape);
  py::class_<ContrastArguments>(module, "Contrast")
      .def(py::init([](ContrastShape shape, Form form, TemperatureArgument temperature, FourTables inputs, Address skip,
                       Address tau, Address similarities, Address columns, int threads) {
        return ContrastArguments{shape, form, temperature, inputs, skip, tau, similarities, columns, threads};
      }));
  using AlignShape = decltype(AlignArguments::shape);
  py::class_<AlignArguments>(module, "Align")
      .def(py::init([](AlignShape shape, TemperatureArgument temperature, double weight, FourTables inputs,
                       int threads) { return AlignArguments{shape, temperature, weight, inputs, threads}; }));
  module.attr("BOUND_SHARE") = kBoundShare;
  module.attr("EPS") = kEps;
  module.attr("LONGEST") = kLongest;
  module.attr("ALIGN_FACTORS") = sizeof(AlignFactors<float>) / sizeof(float);
  module.def("instruction_sets", &instruction_sets, "Instruction sets that this processor can run, best first.");
  module.def("use_instruction_set", &use_instruction_set, "Chooses one of instruction_sets(), for tests.");
  module.def("use_blas", &use_blas,
             "Addresses of Fortran sgemm and dgemm (0: plain loops) and of MKL_Set_Num_Threads_Local (0: not MKL).");
  module.def("contrast_topk_forward", by_type(topk_forward<float>, topk_forward<double>));
  module.def("contrast_topk_backward", by_type(topk_backward<float>, topk_backward<double>));
  module.def("contrast_softmax", by_type(softmax<float>, softmax<double>));
  module.def("calibrate", by_type(calibrate<float>, calibrate<double>));
  module.def("decorrelate", by_type(decorrelate_both<float>, decorrelate_both<double>));
  module.def("align_forward", by_type(aligned<float>, aligned<double>));
  module.def("align_backward", by_type(aligned_backward<float>, aligned_backward<double>));
}
