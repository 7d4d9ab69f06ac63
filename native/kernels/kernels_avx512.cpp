// Tiles by AVX512-VNNI: one instruction multiplies and adds four inputs of 16 outputs.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#include <immintrin.h>

#include <utility>

#include "kernels.h"
#include "target.h"

MEDUSA_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")

namespace medusa {
namespace avx512 {
#define MEDUSA_FLOATS 16
#define MEDUSA_OWN_QUANTIZE_BLOCK

// See vector_math.inl, whose codes these are; packing them takes a third of the time.
template <int Vectors>
inline void quantize_vectors(const float* x, int zero, int8_t* values, float* scale,
                             int32_t* offset) {
  __m512 parts[4] = {};
  __m512 largest = _mm512_setzero_ps();
  for (int i = 0; i < Vectors; ++i) {
    parts[i] = _mm512_loadu_ps(x + 16 * i);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(parts[i]));
  }
  const float most = _mm512_reduce_max_ps(largest);
  const __m512 inverse = _mm512_set1_ps(most > 1e-30f ? 127.0f / most : 0.0f);
  __m512i codes[4] = {};
  for (int i = 0; i < Vectors; ++i)
    codes[i] = _mm512_cvtps_epi32(_mm512_mul_ps(parts[i], inverse));
  // Packing works on quarters of a register, so the last step restores their order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(
      order, _mm512_packs_epi16(_mm512_packs_epi32(codes[0], codes[1]),
                                _mm512_packs_epi32(codes[2], codes[3])));
  if (Vectors == 4)
    _mm512_storeu_si512(values, bytes);
  else
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), _mm512_castsi512_si256(bytes));
  *scale = most / 127.0f;
  *offset = -zero * _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(
                        _mm512_setzero_si512(), _mm512_set1_epi8(1), bytes));
}

inline void quantize_block(const float* x, int block, int zero, int8_t* values, float* scale,
                           int32_t* offset) {
  if (block == 64)
    quantize_vectors<4>(x, zero, values, scale, offset);
  else
    quantize_vectors<2>(x, zero, values, scale, offset);
}
#include "vector_math.inl"
#include "attention.inl"

constexpr int kTileRows = 12, kPairRows = 8;

inline Ints broadcast(int32_t value) { return (Ints)_mm512_set1_epi32(value); }

inline Floats floats_from_halves(const uint16_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

template <int Bits>
struct Dots {
  using Weight = Ints;
  static Ints begin(int32_t offset) { return broadcast(offset); }
  static Weight prepare(Ints codes) { return codes; }
  static Ints add(Ints dots, Weight weights, Ints inputs) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)dots, (__m512i)weights, (__m512i)inputs);
  }
  static Ints end(Ints dots, int32_t) { return dots; }
};
#include "tile.inl"

constexpr Kernels kernels = make_kernels("avx512-vnni", any_tile, tile_shape);
}  // namespace avx512

const Kernels* avx512_kernels() { return &avx512::kernels; }
}  // namespace medusa
MEDUSA_END_TARGET
#endif
