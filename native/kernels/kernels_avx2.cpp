// Tiles by AVX2, whose dot products take four instructions. kernels_avx_vnni.cpp compiles this file
// again, with one instruction instead.
#if defined(__x86_64__)
#ifdef MEDUSA_AVX_VNNI
#define MEDUSA_AVX2_SPACE avx_vnni
#define MEDUSA_AVX2_FEATURES "avx2,fma,f16c,avxvnni"
#pragma GCC target("avx2,fma,f16c,avxvnni")
#else
#define MEDUSA_AVX2_SPACE avx2
#define MEDUSA_AVX2_FEATURES "avx2,fma,f16c"
#pragma GCC target("avx2,fma,f16c")
#endif
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros,no-tree-reassoc,no-tree-ter")
#include <immintrin.h>

#include <utility>

#include "kernels.h"
#include "target.h"

MEDUSA_BEGIN_TARGET(MEDUSA_AVX2_FEATURES)

namespace medusa {
namespace MEDUSA_AVX2_SPACE {
#define MEDUSA_FLOATS 8
#include "vector_math.inl"
#include "attention.inl"

constexpr int kTileRows = 6, kPairRows = 0;

inline Ints broadcast(int32_t value) { return (Ints)_mm256_set1_epi32(value); }

inline Floats floats_from_halves(const uint16_t* halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}

#ifdef MEDUSA_AVX_VNNI
template <int Bits>
struct Dots {
  using Weight = Ints;
  static Ints begin(int32_t offset) { return broadcast(offset); }
  static Weight prepare(Ints codes) { return codes; }
  static Ints add(Ints dots, Weight weights, Ints inputs) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)dots, (__m256i)weights, (__m256i)inputs);
  }
  static Ints end(Ints dots, int32_t) { return dots; }
};
#else
inline __m256i sum_pairs(__m256i halves) { return _mm256_madd_epi16(halves, _mm256_set1_epi16(1)); }

template <int Bits>
struct Dots;

// Sums of two products fit 16 bits if neither factor is above 128, so weights are taken without
// their offset, and their signs given to the inputs.
template <>
struct Dots<8> {
  struct Weight {
    __m256i sized, sign;
  };
  static Ints begin(int32_t) { return Ints{}; }
  static Weight prepare(Ints codes) {
    const __m256i sign = _mm256_xor_si256((__m256i)codes, _mm256_set1_epi8(-128));
    return {_mm256_abs_epi8(sign), sign};
  }
  static Ints add(Ints dots, Weight weights, Ints inputs) {
    const __m256i turned = _mm256_sign_epi8((__m256i)inputs, weights.sign);
    return dots + (Ints)sum_pairs(_mm256_maddubs_epi16(weights.sized, turned));
  }
  static Ints end(Ints dots, int32_t) { return dots; }
};

// Sums of a whole block fit 16 bits.
template <>
struct Dots<4> {
  using Weight = Ints;
  static Ints begin(int32_t) { return Ints{}; }
  static Weight prepare(Ints codes) { return codes; }
  static Ints add(Ints dots, Weight weights, Ints inputs) {
    return (Ints)_mm256_add_epi16((__m256i)dots,
                                  _mm256_maddubs_epi16((__m256i)weights, (__m256i)inputs));
  }
  static Ints end(Ints dots, int32_t offset) {
    return (Ints)sum_pairs((__m256i)dots) + broadcast(offset);
  }
};
#endif
#include "tile.inl"

#ifdef MEDUSA_AVX_VNNI
constexpr Kernels kernels = make_kernels("avx-vnni", any_tile, tile_shape);
#else
constexpr Kernels kernels = make_kernels("avx2", any_tile, tile_shape);
#endif
}  // namespace MEDUSA_AVX2_SPACE

#ifdef MEDUSA_AVX_VNNI
const Kernels* avx_vnni_kernels() { return &avx_vnni::kernels; }
#else
const Kernels* avx2_kernels() { return &avx2::kernels; }
#endif
}  // namespace medusa
MEDUSA_END_TARGET
#endif
