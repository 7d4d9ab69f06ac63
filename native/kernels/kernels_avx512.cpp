// Tiles by AVX512-VNNI: one instruction multiplies and adds four inputs of 16 outputs.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#include <immintrin.h>

#include "kernels.h"

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

// R rows by one group: R independent sums. Two groups at once read two streams of weights, which
// takes longer (docs/decisions/operators.md).
template <int Bits, int R>
void tile(const Weights& w, const Rows& x, int64_t row, int64_t group, float* out) {
  constexpr int block = Bits == 8 ? 64 : 32;
  const int64_t blocks = w.inputs / block;
  const int8_t* values = x.values + row * w.inputs;
  const float* row_scales = x.scales + row * blocks;
  const int32_t* offsets = x.offsets + row * blocks;
  const uint8_t* data = w.data + group * w.group_bytes();
  const uint16_t* scales = w.scales + group * blocks * kLanes;
  __m512 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi8(15);
  // Two blocks of 4 bits share their bytes: the first in the low halves, the second in the high.
  constexpr int parts = Bits == 8 ? 1 : 2;
  for (int64_t b = 0; b < blocks; b += parts) {
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part) {
      __m512i dots[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) dots[r] = _mm512_set1_epi32(offsets[r * blocks + b + part]);
      const int8_t* inputs = values + (b + part) * block;
#pragma GCC unroll 16
      for (int k = 0; k < block / 4; ++k) {
        __m512i weights = _mm512_loadu_si512(data + k * 64);
        if (part == 0)
          _mm_prefetch(reinterpret_cast<const char*>(data + k * 64 + kPrefetch), _MM_HINT_T0);
        if (Bits == 4)
          weights = _mm512_and_si512(part ? _mm512_srli_epi16(weights, 4) : weights, low);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, inputs + r * w.inputs + k * 4, 4);
          dots[r] = _mm512_dpbusd_epi32(dots[r], weights, _mm512_set1_epi32(four));
        }
      }
      const __m512 scale = _mm512_cvtph_ps(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + (b + part) * kLanes)));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m512 both =
            _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r * blocks + b + part]));
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), both, sums[r]);
      }
    }
    data += block * kLanes * parts * Bits / 8;
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + r * kLanes, sums[r]);
}

constexpr int kMostRows = 12;

template <int Bits>
void tile_of_bits(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group,
                  float* out) {
  using Tile = void (*)(const Weights&, const Rows&, int64_t, int64_t, float*);
  constexpr Tile tiles[kMostRows] = {tile<Bits, 1>, tile<Bits, 2>,  tile<Bits, 3>,  tile<Bits, 4>,
                                     tile<Bits, 5>, tile<Bits, 6>,  tile<Bits, 7>,  tile<Bits, 8>,
                                     tile<Bits, 9>, tile<Bits, 10>, tile<Bits, 11>, tile<Bits, 12>};
  tiles[rows - 1](w, x, row, group, out);
}

void any_tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int groups,
              float* out) {
  (void)groups;  // always 1
  if (w.bits == 8)
    tile_of_bits<8>(w, x, row, rows, group, out);
  else
    tile_of_bits<4>(w, x, row, rows, group, out);
}

void tile_shape(int, int64_t num_rows, int* rows, int* groups) {
  int64_t tiles = (num_rows + kMostRows - 1) / kMostRows;
  *rows = static_cast<int>((num_rows + tiles - 1) / tiles);
  *groups = 1;
}

constexpr Kernels kernels = {"avx512-vnni", any_tile, tile_shape,    quantize,      finish,
                             argmax, top_k, weigh, keep,    append,     attend, attend_floats, kQueryRows, &attention_steps};
}  // namespace avx512

const Kernels* avx512_kernels() { return &avx512::kernels; }
}  // namespace medusa
#endif
