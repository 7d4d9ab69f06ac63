// The kernels for any processor, and the choice among all of them.
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#if defined(__x86_64__)
#include <cpuid.h>
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace medusa {
namespace portable {
#define MEDUSA_FLOATS 4
#include "vector_math.inl"
#include "attention.inl"
#include "tile_16_bits.inl"

constexpr Kernels kernels = make_kernels("portable", any_tile, tile_shape);
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

#if defined(__aarch64__)
// Whether the processor has an extension: its place in the words of Linux, and its name on macOS.
bool has_extension([[maybe_unused]] unsigned long word, [[maybe_unused]] int bit,
                   [[maybe_unused]] const char* name) {
#if defined(__linux__)
  return getauxval(word) >> bit & 1;
#elif defined(__APPLE__)
  int32_t value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
#else
  return false;
#endif
}

// Linux's AT_HWCAP is 16, AT_HWCAP2 is 26.
bool has_dotprod() { return has_extension(16, 20, "hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_extension(26, 13, "hw.optional.arm.FEAT_I8MM"); }
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
#elif defined(__aarch64__)
  if (has_dotprod()) {
    if (has_i8mm()) found.push_back(neon_i8mm_kernels());
    found.push_back(neon_dotprod_kernels());
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
