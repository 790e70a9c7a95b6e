#define AMCL_ISA generic
#include "kernels.inc"
