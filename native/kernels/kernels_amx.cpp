// Tiles by AMX: one instruction multiplies up to 16 rows by 16 outputs over a block of inputs.
// Only scaling and adding the products of each block remain, so a step over 8 rows waits for
// memory and not for arithmetic.
#if defined(__x86_64__) && defined(__linux__)
#pragma GCC target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"

namespace medusa {
namespace amx {

// Tiles read faster than the few open requests of the first cache deliver. Therefore weights are
// prefetched to the second cache.
constexpr int kFarPrefetch = 8192;

// Tiles 0, 1: products (rows, 16); 2, 3: activations (rows, 64); 4, 5: weights (16, 64).
inline void configure(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 6; ++tile) config.set_rows(tile, tile < 4 ? rows : 16);
  config.keep();
  _tile_loadconfig(&config);
}

// Multiplies one block by tiles 0, 2 and 4, or by 1, 3 and 5: the next block need not wait.
template <int Slot>
inline void multiply(const int8_t* inputs, int64_t stride, const uint8_t* weights, int32_t* dots) {
  if (Slot == 0) {
    _tile_zero(0);
    _tile_loadd(2, inputs, stride);
    _tile_loadd(4, weights, 64);
    _tile_dpbsud(0, 2, 4);
    _tile_stored(0, dots, 64);
  } else {
    _tile_zero(1);
    _tile_loadd(3, inputs, stride);
    _tile_loadd(5, weights, 64);
    _tile_dpbsud(1, 3, 5);
    _tile_stored(1, dots, 64);
  }
}

template <int R>
void tile(const Weights& w, const Rows& x, int64_t row, int64_t group, int groups, float* out) {
  constexpr int block = 64, bytes = block * kLanes;
  const int64_t blocks = w.inputs / block;
  const int8_t* values = x.values + row * w.inputs;
  const float* row_scales = x.scales + row * blocks;
  const int32_t* offsets = x.offsets + row * blocks;
  alignas(64) int32_t dots[2][R * kLanes];
  configure(R);
  for (int g = 0; g < groups; ++g) {
    const uint8_t* data = w.data + (group + g) * w.group_bytes();
    const uint16_t* scales = w.scales + (group + g) * blocks * kLanes;
    __m512 sums[R];
    for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b <= blocks; ++b) {
      if (b < blocks) {
        const uint8_t* weights = data + b * bytes;
        for (int line = 0; line < bytes; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(weights + line + kFarPrefetch), _MM_HINT_T1);
        if (b & 1)
          multiply<1>(values + b * block, w.inputs, weights, dots[1]);
        else
          multiply<0>(values + b * block, w.inputs, weights, dots[0]);
      }
      if (b > 0) {
        const int64_t last = b - 1;
        const __m512 scale = _mm512_cvtph_ps(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + last * kLanes)));
        const int32_t* dot = dots[last & 1];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const __m512 both =
              _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r * blocks + last]));
          const __m512i whole = _mm512_add_epi32(_mm512_load_si512(dot + r * kLanes),
                                                 _mm512_set1_epi32(offsets[r * blocks + last]));
          sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), both, sums[r]);
        }
      }
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + (r * groups + g) * kLanes, sums[r]);
  }
  _tile_release();
}

// Few rows are as fast without tiles, and 4 bits are faster: unpacked weights would reach the
// tiles through memory.
bool uses_tiles(int bits, int64_t rows) { return bits == 8 && rows > 2; }

void any_tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int groups,
              float* out) {
  if (!uses_tiles(w.bits, rows))
    return avx512_kernels()->tile(w, x, row, rows, group, groups, out);
  using Tile = void (*)(const Weights&, const Rows&, int64_t, int64_t, int, float*);
  constexpr Tile tiles[kMaxTileRows + 1] = {
      nullptr, nullptr, nullptr, tile<3>,  tile<4>,  tile<5>,  tile<6>,  tile<7>, tile<8>,
      tile<9>, tile<10>, tile<11>, tile<12>, tile<13>, tile<14>, tile<15>, tile<16>};
  tiles[rows](w, x, row, group, groups, out);
}

void tile_shape(int bits, int64_t num_rows, int* rows, int* groups) {
  if (!uses_tiles(bits, num_rows))
    return avx512_kernels()->tile_shape(bits, num_rows, rows, groups);
  const int64_t tiles = (num_rows + kMaxTileRows - 1) / kMaxTileRows;
  *rows = static_cast<int>((num_rows + tiles - 1) / tiles);
  *groups = kMaxTileGroups;
}
}  // namespace amx

// Linux gives a process the tiles' registers when it asks for them.
const Kernels* amx_kernels() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return nullptr;
  static const Kernels* const base = avx512_kernels();
  static const Kernels kernels = {"amx",        amx::any_tile, amx::tile_shape,    base->quantize,
                                  base->finish, base->argmax,  base->top_k, base->weigh, base->keep, base->append,
                                  amx::attend,  amx::attend_floats, amx::kQueryRows, nullptr, base};
  return &kernels;
}
}  // namespace medusa
#endif
