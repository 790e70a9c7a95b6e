#define AMCL_ISA avx2
#include "kernels.inc"
