// The choice of instruction set, made once, at run time.
#include <stdexcept>

#include "kernels.hpp"

namespace amcl {

#define AMCL_DECLARE(isa)                      \
  namespace isa {                              \
  extern const Kernels<float> table_float;     \
  extern const Kernels<double> table_double;   \
  }
AMCL_DECLARE(generic)
#ifdef AMCL_X86
AMCL_DECLARE(avx2)
AMCL_DECLARE(avx512)
#endif
#undef AMCL_DECLARE

namespace {

struct InstructionSet {
  const char* name;
  const Kernels<float>* table_float;
  const Kernels<double>* table_double;
};

std::vector<InstructionSet> available() {
  std::vector<InstructionSet> sets;
#ifdef AMCL_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    sets.push_back({"avx512", &avx512::table_float, &avx512::table_double});
  }
  if (has_avx2) sets.push_back({"avx2", &avx2::table_float, &avx2::table_double});
#endif
  sets.push_back({"generic", &generic::table_float, &generic::table_double});
  return sets;
}

InstructionSet& current() {
  static InstructionSet chosen = available().front();
  return chosen;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return *current().table_float;
}
template <>
const Kernels<double>& kernels<double>() {
  return *current().table_double;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : available()) names.emplace_back(set.name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const InstructionSet& set : available()) {
    if (name == set.name) {
      current() = set;
      return;
    }
  }
  std::string names;
  for (const InstructionSet& set : available()) names += (names.empty() ? "" : ", ") + std::string(set.name);
  throw std::invalid_argument("the instruction set must be one of " + names + " on this processor, got '" + name + "'");
}

}  // namespace amcl
