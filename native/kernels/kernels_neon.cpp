// Tiles by NEON's dot products. kernels_neon_i8mm.cpp compiles this file again, for processors that
// also multiply matrices of 2 rows by 2 outputs.
#if defined(__aarch64__)
#ifdef MEDUSA_I8MM
#define MEDUSA_NEON_SPACE neon_i8mm
#define MEDUSA_NEON_FEATURES "arch=armv8.2-a+dotprod+i8mm"
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#else
#define MEDUSA_NEON_SPACE neon_dotprod
#define MEDUSA_NEON_FEATURES "arch=armv8.2-a+dotprod"
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros,no-schedule-insns")
#include <arm_neon.h>

#include <utility>

#include "kernels.h"
#include "target.h"

MEDUSA_BEGIN_TARGET(MEDUSA_NEON_FEATURES)
namespace medusa {
namespace MEDUSA_NEON_SPACE {
#define MEDUSA_FLOATS 4
#include "vector_math.inl"
#include "attention.inl"

constexpr int kTileRows = 6, kPairRows = 0;

inline Ints broadcast(int32_t value) { return (Ints)vdupq_n_s32(value); }

inline Floats floats_from_halves(const uint16_t* halves) {
  return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
}

#ifdef MEDUSA_I8MM
template <int Bits>
struct Dots {
  using Weight = Ints;
  static Ints begin(int32_t offset) { return broadcast(offset); }
  static Weight prepare(Ints codes) { return codes; }
  static Ints add(Ints dots, Weight weights, Ints inputs) {
    return (Ints)vusdotq_s32((int32x4_t)dots, (uint8x16_t)weights, (int8x16_t)inputs);
  }
  static Ints end(Ints dots, int32_t) { return dots; }
};
#else
// Both factors are signed, so weights of 8 bits are taken without their offset.
template <int Bits>
struct Dots {
  using Weight = Ints;
  static Ints begin(int32_t offset) { return Bits == 8 ? Ints{} : broadcast(offset); }
  static Weight prepare(Ints codes) {
    return Bits == 8 ? codes ^ static_cast<int32_t>(0x80808080) : codes;
  }
  static Ints add(Ints dots, Weight weights, Ints inputs) {
    return (Ints)vdotq_s32((int32x4_t)dots, (int8x16_t)weights, (int8x16_t)inputs);
  }
  static Ints end(Ints dots, int32_t) { return dots; }
};
#endif
#include "tile.inl"
#ifdef MEDUSA_I8MM
#include "tile_i8mm.inl"
#endif

#ifdef MEDUSA_I8MM
constexpr Kernels kernels = make_kernels("neon-i8mm", best_tile, best_shape);
#else
constexpr Kernels kernels = make_kernels("neon-dotprod", any_tile, tile_shape);
#endif
}  // namespace MEDUSA_NEON_SPACE

#ifdef MEDUSA_I8MM
const Kernels* neon_i8mm_kernels() { return &neon_i8mm::kernels; }
#else
const Kernels* neon_dotprod_kernels() { return &neon_dotprod::kernels; }
#endif
}  // namespace medusa
MEDUSA_END_TARGET
#endif
