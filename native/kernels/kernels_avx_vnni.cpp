// AVX-VNNI, of processors without AVX512.
#define MEDUSA_AVX_VNNI
#include "kernels_avx2.cpp"
