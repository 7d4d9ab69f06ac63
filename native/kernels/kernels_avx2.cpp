// Tiles by AVX2, whose exact 16-bit products take four instructions. kernels_avx_vnni.cpp
// compiles this file again, with one instruction instead.
#if defined(__x86_64__)
#ifdef MEDUSA_AVX_VNNI
#define MEDUSA_AVX2_SPACE avx_vnni
#pragma GCC target("avx2,fma,f16c,avxvnni")
#else
#define MEDUSA_AVX2_SPACE avx2
#pragma GCC target("avx2,fma,f16c")
#endif
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#include <immintrin.h>

#include "kernels.h"

namespace medusa {
namespace MEDUSA_AVX2_SPACE {
#define MEDUSA_FLOATS 8
#include "vector_math.inl"
#include "attention.inl"

// Adds the dot products of four weights (unsigned) and four inputs (signed) in each 32 bits.
inline __m256i add_dots(__m256i sums, __m256i weights, __m256i inputs) {
#ifdef MEDUSA_AVX_VNNI
  return _mm256_dpbusd_avx_epi32(sums, weights, inputs);
#else
  const __m256i even_weights = _mm256_and_si256(weights, _mm256_set1_epi16(255));
  const __m256i odd_weights = _mm256_srli_epi16(weights, 8);
  const __m256i even_inputs = _mm256_srai_epi16(_mm256_slli_epi16(inputs, 8), 8);
  const __m256i odd_inputs = _mm256_srai_epi16(inputs, 8);
  const __m256i even = _mm256_madd_epi16(even_weights, even_inputs);
  const __m256i odd = _mm256_madd_epi16(odd_weights, odd_inputs);
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
#endif
}

// R rows by one group of 16 outputs, in two halves.
template <int Bits, int R>
void tile(const Weights& w, const Rows& x, int64_t row, int64_t group, float* out) {
  constexpr int block = Bits == 8 ? 64 : 32;
  const int64_t blocks = w.inputs / block;
  const int8_t* values = x.values + row * w.inputs;
  const float* row_scales = x.scales + row * blocks;
  const int32_t* offsets = x.offsets + row * blocks;
  const uint8_t* data = w.data + group * w.group_bytes();
  const uint16_t* scales = w.scales + group * blocks * kLanes;
  const __m256i low = _mm256_set1_epi8(15);
  for (int i = 0; i < R * kLanes; ++i) out[i] = 0.0f;
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* bytes = Bits == 8 ? data + b * 1024 : data + (b >> 1) * 512;
    const bool high = Bits == 4 && (b & 1);
    const int8_t* inputs = values + b * block;
    for (int half = 0; half < 2; ++half) {
      __m256i dots[R];
      for (int r = 0; r < R; ++r) dots[r] = _mm256_set1_epi32(offsets[r * blocks + b]);
      for (int k = 0; k < block / 4; ++k) {
        const uint8_t* address = bytes + k * 64 + half * 32;
        __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(address));
        _mm_prefetch(reinterpret_cast<const char*>(address + kPrefetch), _MM_HINT_T0);
        if (Bits == 4)
          weights = _mm256_and_si256(high ? _mm256_srli_epi16(weights, 4) : weights, low);
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, inputs + r * w.inputs + k * 4, 4);
          dots[r] = add_dots(dots[r], weights, _mm256_set1_epi32(four));
        }
      }
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(
          reinterpret_cast<const __m128i*>(scales + b * kLanes + half * 8)));
      for (int r = 0; r < R; ++r) {
        float* sum = out + r * kLanes + half * 8;
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(row_scales[r * blocks + b]));
        _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), both,
                                              _mm256_loadu_ps(sum)));
      }
    }
  }
}

template <int Bits>
void tile_of_bits(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group,
                  float* out) {
  using Tile = void (*)(const Weights&, const Rows&, int64_t, int64_t, float*);
  constexpr Tile tiles[] = {tile<Bits, 1>, tile<Bits, 2>, tile<Bits, 3>,
                            tile<Bits, 4>, tile<Bits, 5>, tile<Bits, 6>,
                            tile<Bits, 7>, tile<Bits, 8>};
  tiles[rows - 1](w, x, row, group, out);
}

void any_tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int groups,
              float* out) {
  (void)groups;  // `tile_shape` asks for one
  if (w.bits == 8)
    tile_of_bits<8>(w, x, row, rows, group, out);
  else
    tile_of_bits<4>(w, x, row, rows, group, out);
}

void tile_shape(int, int64_t num_rows, int* rows, int* groups) {
  const int64_t tiles = (num_rows + 7) / 8;
  *rows = static_cast<int>((num_rows + tiles - 1) / tiles);
  *groups = 1;
}

#ifdef MEDUSA_AVX_VNNI
constexpr Kernels kernels = {"avx-vnni", any_tile, tile_shape,    quantize,      finish,
                             argmax, top_k, weigh, keep,    append,     attend, attend_floats, kQueryRows, &attention_steps};
#else
constexpr Kernels kernels = {"avx2", any_tile, tile_shape,    quantize,      finish,
                             argmax, top_k, weigh, keep,    append,     attend, attend_floats, kQueryRows, &attention_steps};
#endif
}  // namespace MEDUSA_AVX2_SPACE

#ifdef MEDUSA_AVX_VNNI
const Kernels* avx_vnni_kernels() { return &avx_vnni::kernels; }
#else
const Kernels* avx2_kernels() { return &avx2::kernels; }
#endif
}  // namespace medusa
#endif
