// Attention by AMX in bfloat16, up to 16 query rows at once. It is plain: where a layer has a window,
// a cap or sinks, the kernels in `Kernels::general` attend.
//
// Each query row attends to the sequence of its path: the past and then the new nodes that it
// sees, so that position i of that sequence is the same key in a tree and in plain decoding. The
// sum of weights and the sum of weighted values, which depend on the order of keys, are functions
// of that sequence alone. Weighted values are added 32 positions at a time, as one instruction of
// the tiles does: even positions in one sum, odd ones in another, then both added to the result
// (Intel SDM, TDPBF16PS, which rounds after each step and flushes denormals). Blocks that reach
// beyond the past, where rows see different nodes, repeat these additions with vectors.
#if defined(__x86_64__) && defined(__linux__)
#pragma GCC target( \
    "amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#pragma GCC optimize("O3,no-math-errno,no-trapping-math,no-signed-zeros")
#include <immintrin.h>

#include "amx.h"

namespace medusa {
namespace amx {
namespace {

constexpr int64_t kBlock = 32;     // positions that a tile multiplies
constexpr int64_t kTileKeys = 16;  // keys scored together
constexpr int64_t kMostGroups = 4; // of 16 dimensions, added together
constexpr int64_t kTileFloats = 256;

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Arrays in scratch memory that `attend` needs besides its arguments.
struct Work {
  int64_t stride;         // of scores, in floats
  float* scores;          // (16, stride), then weights
  uint16_t* weights;      // (16, stride) bfloat16
  uint16_t* queries;      // 2 * head_dim / 32 tiles: rounded queries, and rounding errors
  uint16_t* padded_keys;  // (16, head_dim): the last keys
  uint16_t* pairs;        // 4 tiles of values
  float* products;        // 2 tiles
  float* sums;            // (16, head_dim)
  const uint16_t** path;  // values of the positions of one row's path after the whole blocks

  Work(float* scratch, int64_t rows, int64_t head_dim) {
    stride = rounded_up(rows, kBlock) + kTileKeys;  // an odd multiple spreads over the cache
    scores = scratch;
    sums = scores + 16 * stride;
    products = sums + 16 * head_dim;
    weights = reinterpret_cast<uint16_t*>(products + 2 * kTileFloats);
    queries = weights + 16 * stride;
    padded_keys = queries + 32 * head_dim;
    pairs = padded_keys + 16 * head_dim;
    path = reinterpret_cast<const uint16_t**>(pairs + kMostGroups * 512);
  }

  static int64_t floats(int64_t rows, int64_t head_dim) {
    const int64_t stride = rounded_up(rows, kBlock) + kTileKeys;
    return 16 * stride + 16 * head_dim + 2 * kTileFloats +
           (16 * stride + 32 * head_dim + 16 * head_dim + kMostGroups * 512) / 2 + 2 * stride;
  }
};

// x as bfloat16 in the upper halves of 32 bits, rounded as bfloat_from_float does.
inline __m512i rounded_halves(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_and_si512(_mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7fc00000)),
                          _mm512_set1_epi32(static_cast<int>(0xffff0000)));
}

// Queries as the right side of a product with keys: pairs of dimensions by 16 rows. The rounded
// queries and their rounding errors together hold 16 bits of precision.
void load_queries(const Attention& a, int64_t first, int64_t count, const Work& work) {
  const int64_t size = a.head_dim, half = a.rotary_dim / 2;
  int32_t* rounded = reinterpret_cast<int32_t*>(work.queries);
  int32_t* left = rounded + 8 * size;
  if (count < 16)
    __builtin_memset(rounded, 0, static_cast<size_t>(32 * size) * sizeof(uint16_t));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512i places = _mm512_slli_epi32(even, 3);  // 16 rows between pairs
  const __m512 scale = _mm512_set1_ps(a.scale);
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t node = (first + lane) / a.group, head = (first + lane) % a.group;
    const int64_t turn = a.positions[node] * half;
    rotate(a.queries + node * a.row_stride + head * size, a.cos + turn, a.sin + turn, size,
           a.rotary_dim, work.sums);
    for (int64_t d = 0; d < size; d += 32) {
      const __m512 low = _mm512_mul_ps(_mm512_load_ps(work.sums + d), scale);
      const __m512 high = _mm512_mul_ps(_mm512_load_ps(work.sums + d + 16), scale);
      const __m512 evens = _mm512_permutex2var_ps(low, even, high);
      const __m512 odds = _mm512_permutex2var_ps(low, odd, high);
      const __m512i even_halves = rounded_halves(evens), odd_halves = rounded_halves(odds);
      const __m512i even_left =
          rounded_halves(_mm512_sub_ps(evens, _mm512_castsi512_ps(even_halves)));
      const __m512i odd_left =
          rounded_halves(_mm512_sub_ps(odds, _mm512_castsi512_ps(odd_halves)));
      const int64_t place = d / 2 * 16 + lane;
      _mm512_i32scatter_epi32(rounded + place, places,
                              _mm512_or_si512(_mm512_srli_epi32(even_halves, 16), odd_halves), 4);
      _mm512_i32scatter_epi32(left + place, places,
                              _mm512_or_si512(_mm512_srli_epi32(even_left, 16), odd_left), 4);
    }
  }
}

// Transposes a tile of floats: rows of 16 into rows `stride` apart.
inline void transpose(const float* from, float* to, int64_t stride, int64_t count) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_ps(from + 16 * i);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 1]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
  for (int64_t i = 0; i < count; ++i) _mm512_store_ps(to + i * stride, r[i]);
}

// Scores of all rows of the cache, by slot.
void score(const Attention& a, int64_t first, int64_t count, const Work& work) {
  const int64_t size = a.head_dim, rows = a.rows();
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set_rows(tile, 16);
  config.keep();
  _tile_loadconfig(&config);
  const bool resident = size == 64;  // the queries stay in tiles
  if (resident) {
    _tile_loadd(4, work.queries, 64);
    _tile_loadd(5, work.queries + 512, 64);
    _tile_loadd(6, work.queries + 1024, 64);
    _tile_loadd(7, work.queries + 1536, 64);
  }
  for (int64_t k = 0; k < rows; k += kTileKeys) {
    const uint16_t* keys = a.keys + k * size;
    // The first access waits for memory, so both matrices are prefetched.
    if (first == 0)
      for (int64_t byte = 0; byte < kTileKeys * size * 2; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(keys) + byte + kPrefetch);
        __builtin_prefetch(reinterpret_cast<const char*>(a.values + k * size) + byte);
      }
    if (rows - k < kTileKeys) {
      const int64_t valid = (rows - k) * size;
      __builtin_memcpy(work.padded_keys, keys, static_cast<size_t>(valid) * sizeof(uint16_t));
      for (int64_t i = valid; i < kTileKeys * size; ++i) work.padded_keys[i] = 0;
      keys = work.padded_keys;
    }
    _tile_zero(0);
    if (resident) {
      _tile_loadd(2, keys, 128);
      _tile_loadd(3, keys + 32, 128);
      _tile_dpbf16ps(0, 2, 4);
      _tile_dpbf16ps(0, 3, 5);
      _tile_dpbf16ps(0, 2, 6);
      _tile_dpbf16ps(0, 3, 7);
    } else {
      for (int64_t d = 0; d < size; d += 32) {
        _tile_loadd(2, keys + d, size * 2);
        _tile_loadd(4, work.queries + d * 16, 64);
        _tile_dpbf16ps(0, 2, 4);
        _tile_loadd(5, work.queries + (d + size) * 16, 64);
        _tile_dpbf16ps(0, 2, 5);
      }
    }
    _tile_stored(0, work.products, 64);
    transpose(work.products, work.scores + k, work.stride, count);
  }
}

inline __m512 exponential(__m512 x) {
  // 2^n * 2^f with a polynomial on [-0.5, 0.5], as fast_exp; 0 below -87.
  const __m512 t = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-100.0f)),
                                 _mm512_set1_ps(1.44269504088896341f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(t, n);
  __m512 p = _mm512_set1_ps(1.5403530393381609954e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558146428443423e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291076284771619e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504108664821579953e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022650695910071233e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718055994530942e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
  return _mm512_maskz_scalef_ps(kept, p, n);
}

// Scores of one row, by slot, into weights, by position of its path. Returns their sum.
float weigh(const Attention& a, int64_t row, float* scores, int64_t stride, uint16_t* weights) {
  const float* mask = a.mask + row / a.group * a.nodes;
  int64_t length = a.past;
  for (int64_t j = 0; j < a.nodes; ++j)
    if (mask[j] > kHidden) scores[length++] = scores[a.past + j];
  const int64_t used = rounded_up(length, 16);
  for (int64_t j = length; j < used; ++j) scores[j] = -3.4e38f;
  __m512 most = _mm512_set1_ps(-3.4e38f);
  for (int64_t j = 0; j < used; j += 16)
    most = _mm512_max_ps(most, _mm512_load_ps(scores + j));
  most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < used; j += 16) {
    const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores + j), most));
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight));
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights + j), rounded);
    total = _mm512_add_ps(
        total, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  }
  for (int64_t j = used; j < stride; j += 16)
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights + j), _mm256_setzero_si256());
  return _mm512_reduce_add_ps(total);
}

// Some dimensions of the values of 32 slots as the right side of a product: pairs of slots by 16
// dimensions in each tile.
void pair_values(const Attention& a, int64_t first, int64_t start, int64_t end,
                 uint16_t* pairs) {
  alignas(64) static const struct Places {
    uint16_t low[32], high[32];
    constexpr Places() : low(), high() {
      for (int i = 0; i < 32; ++i) {
        low[i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
        high[i] = static_cast<uint16_t>(i / 2 + 16 + i % 2 * 32);
      }
    }
  } places;
  const __m512i low = _mm512_load_si512(places.low), high = _mm512_load_si512(places.high);
  const int64_t size = a.head_dim, rows = a.rows();
  for (int64_t pair = 0; pair < kBlock / 2; ++pair) {
    const int64_t slot = first + 2 * pair;
    const uint16_t* even = a.values + slot * size;
    const __mmask32 has_even = slot < rows ? ~0u : 0, has_odd = slot + 1 < rows ? ~0u : 0;
    for (int64_t d = start; d < end; d += 32) {
      const __m512i x = _mm512_maskz_loadu_epi16(has_even, even + d);
      const __m512i y = _mm512_maskz_loadu_epi16(has_odd, even + size + d);
      uint16_t* to = pairs + (d - start) / 16 * 512 + pair * 32;
      _mm512_store_si512(to, _mm512_permutex2var_epi16(x, low, y));
      _mm512_store_si512(to + 512, _mm512_permutex2var_epi16(x, high, y));
    }
  }
}

// Adds the weighted values of whole blocks, in which slots are positions.
void add_blocks(const Attention& a, int64_t count, int64_t blocks, const Work& work) {
  const int64_t size = a.head_dim, stride = size * 4;
  TileConfig config;
  for (int tile = 0; tile < 5; ++tile) config.set_rows(tile, count);
  for (int tile = 5; tile < 8; ++tile) config.set_rows(tile, 16);
  config.keep();
  _tile_loadconfig(&config);
  for (int64_t start = 0; start < size; start += kMostGroups * 16) {
    const int64_t groups = (size - start) / 16 < kMostGroups ? (size - start) / 16 : kMostGroups;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t block = 0; block < blocks; ++block) {
      pair_values(a, block * kBlock, start, start + groups * 16, work.pairs);
      const uint16_t* pairs = work.pairs;
      _tile_loadd(4, work.weights + block * kBlock, work.stride * 2);
      _tile_loadd(5, pairs, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, pairs + 512, 64);
      _tile_dpbf16ps(1, 4, 6);
      if (groups < 3) continue;
      _tile_loadd(7, pairs + 1024, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, pairs + 1536, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    float* sums = work.sums + start;
    _tile_stored(0, sums, stride);
    _tile_stored(1, sums + 16, stride);
    if (groups < 3) continue;
    _tile_stored(2, sums + 32, stride);
    _tile_stored(3, sums + 48, stride);
  }
}

// 16 values in single precision.
inline __m512 widened(const uint16_t* values) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

// Adds to one row the weighted values of its path from a block's first position, as tiles would.
void add_path(const Attention& a, int64_t row, int64_t first, const uint16_t* weights,
              const uint16_t** path, float* sums) {
  const float* mask = a.mask + row / a.group * a.nodes;
  const int64_t size = a.head_dim;
  int64_t length = 0;
  for (int64_t slot = first; slot < a.past; ++slot) path[length++] = a.values + slot * size;
  for (int64_t j = 0; j < a.nodes; ++j)
    if (mask[j] > kHidden) path[length++] = a.values + (a.past + j) * size;
  for (int64_t d = 0; d < size; d += 32) {
    __m512 low = _mm512_load_ps(sums + d), high = _mm512_load_ps(sums + d + 16);
    for (int64_t start = 0; start < length; start += kBlock) {
      const int64_t end = length - start < kBlock ? length : start + kBlock;
      __m512 even_low = {}, even_high = {}, odd_low = {}, odd_high = {};
      int64_t i = start;
      for (; i + 2 <= end; i += 2) {
        const __m512 even = _mm512_set1_ps(float_from_bfloat(weights[first + i]));
        const __m512 odd = _mm512_set1_ps(float_from_bfloat(weights[first + i + 1]));
        even_low = _mm512_fmadd_ps(even, widened(path[i] + d), even_low);
        even_high = _mm512_fmadd_ps(even, widened(path[i] + d + 16), even_high);
        odd_low = _mm512_fmadd_ps(odd, widened(path[i + 1] + d), odd_low);
        odd_high = _mm512_fmadd_ps(odd, widened(path[i + 1] + d + 16), odd_high);
      }
      if (i < end) {
        const __m512 even = _mm512_set1_ps(float_from_bfloat(weights[first + i]));
        even_low = _mm512_fmadd_ps(even, widened(path[i] + d), even_low);
        even_high = _mm512_fmadd_ps(even, widened(path[i] + d + 16), even_high);
      }
      low = _mm512_add_ps(low, _mm512_add_ps(even_low, odd_low));
      high = _mm512_add_ps(high, _mm512_add_ps(even_high, odd_high));
    }
    _mm512_store_ps(sums + d, low);
    _mm512_store_ps(sums + d + 16, high);
  }
}
}  // namespace

int64_t attend_floats(int64_t rows, int64_t head_dim) {
  const int64_t floats = Work::floats(rows, head_dim);
  const int64_t without = avx512_kernels()->attend_floats(rows, head_dim);
  return floats > without ? floats : without;
}

void attend(const Attention& a, int64_t first, int64_t count, float* scratch) {
  const int64_t size = a.head_dim;
  if (size % 32 != 0)  // tiles would be incomplete
    return avx512_kernels()->attend(a, first, count, scratch);
  const Work work(scratch, a.rows(), size);
  // The tiles flush denormals, so the vectors that repeat their arithmetic must do it too.
  const unsigned control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);
  load_queries(a, first, count, work);
  score(a, first, count, work);
  float totals[kQueryRows];
  for (int64_t row = 0; row < count; ++row)
    totals[row] = weigh(a, first + row, work.scores + row * work.stride, work.stride,
                        work.weights + row * work.stride);
  // In a chain every node sees all nodes before it. Weights of 0 hide the others, without a path.
  const int64_t blocks = (a.chain ? a.rows() + kBlock - 1 : a.past) / kBlock;
  add_blocks(a, count, blocks, work);
  _tile_release();
  for (int64_t row = 0; row < count; ++row) {
    float* sums = work.sums + row * size;
    if (!a.chain)
      add_path(a, first + row, blocks * kBlock, work.weights + row * work.stride, work.path,
               sums);
    const int64_t node = (first + row) / a.group, head = (first + row) % a.group;
    float* target = a.out + node * a.out_stride + head * size;
    const float inverse = 1.0f / totals[row];
    for (int64_t d = 0; d < size; ++d) target[d] = sums[d] * inverse;
  }
  _mm_setcsr(control);
}

}  // namespace amx
}  // namespace medusa
#endif
