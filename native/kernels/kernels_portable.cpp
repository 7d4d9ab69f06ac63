// The kernels for any processor, and the choice among all of them.
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

namespace medusa {
namespace portable {
#define MEDUSA_FLOATS 4
#include "vector_math.inl"
#include "attention.inl"

float float_from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  uint32_t bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  if (exponent == 31) bits = sign | 0x7f800000u | (fraction << 13);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  if (exponent == 0) value = (sign ? -1.0f : 1.0f) * static_cast<float>(fraction) * 0x1p-24f;
  return value;
}

void tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int groups,
          float* out) {
  const int64_t blocks = w.blocks();
  for (int r = 0; r < rows; ++r)
    for (int g = 0; g < groups; ++g) {
      const uint8_t* data = w.data + (group + g) * w.group_bytes();
      const uint16_t* scales = w.scales + (group + g) * blocks * kLanes;
      const int8_t* values = x.values + (row + r) * w.inputs;
      float sums[kLanes] = {};
      for (int64_t b = 0; b < blocks; ++b) {
        int32_t dots[kLanes];
        for (int32_t& dot : dots) dot = x.offsets[(row + r) * blocks + b];
        const uint8_t* bytes = w.bits == 8 ? data + b * 1024 : data + (b >> 1) * 512;
        const int shift = w.bits == 4 && (b & 1) ? 4 : 0, kept = w.bits == 8 ? 255 : 15;
        for (int k = 0; k < w.block / 4; ++k)
          for (int lane = 0; lane < kLanes; ++lane)
            for (int i = 0; i < 4; ++i)
              dots[lane] += ((bytes[k * 64 + lane * 4 + i] >> shift) & kept) *
                            values[b * w.block + k * 4 + i];
        const float row_scale = x.scales[(row + r) * blocks + b];
        for (int lane = 0; lane < kLanes; ++lane)
          sums[lane] = __builtin_fmaf(static_cast<float>(dots[lane]),
                                      float_from_half(scales[b * kLanes + lane]) * row_scale,
                                      sums[lane]);
      }
      for (int lane = 0; lane < kLanes; ++lane)
        out[(r * groups + g) * kLanes + lane] = sums[lane];
    }
}

void tile_shape(int, int64_t num_rows, int* rows, int* groups) {
  *rows = static_cast<int>(num_rows < kMaxTileRows ? num_rows : kMaxTileRows);
  *groups = 1;
}

constexpr Kernels kernels = {"portable", tile, tile_shape,    quantize,      finish,
                             argmax, top_k, weigh, keep,    append,     attend, attend_floats, kQueryRows, &attention_steps};
}  // namespace portable

const Kernels* portable_kernels() { return &portable::kernels; }

namespace {
#if defined(__x86_64__)
// Tiles, of 8-bit integers and bfloat16, by leaf 7 of CPUID: compilers before GCC 13 have no name
// for them.
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
}
#endif

// The kernels that this processor runs, the fastest first.
std::vector<const Kernels*> find() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
#if defined(__linux__)
    if (has_amx() && amx_kernels()) found.push_back(amx_kernels());
#endif
    found.push_back(avx512_kernels());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if (__builtin_cpu_supports("avxvnni")) found.push_back(avx_vnni_kernels());
    found.push_back(avx2_kernels());
  }
#endif
  found.push_back(portable_kernels());
  return found;
}

// runtime/engines/operators.py refuses a name that is not among the found ones.
const Kernels* choose() {
  const char* wanted = std::getenv("MEDUSA_TRT_KERNELS");
  for (const Kernels* one : find())
    if (!wanted || !*wanted || !std::strcmp(one->name, wanted)) return one;
  return portable_kernels();
}
}  // namespace

const char* kernel_names() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* one : find()) joined += (joined.empty() ? "" : " ") + std::string(one->name);
    return joined;
  }();
  return names.c_str();
}

const Kernels* kernels() {
  static const Kernels* const chosen = choose();
  return chosen;
}
}  // namespace medusa
