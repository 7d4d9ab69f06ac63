// NEON with products of small matrices.
#define MEDUSA_I8MM
#include "kernels_neon.cpp"
