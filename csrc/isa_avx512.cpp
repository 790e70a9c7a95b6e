#define AMCL_ISA avx512
#include "kernels.inc"
