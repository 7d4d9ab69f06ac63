// Products of rows with groups of weights on processors without dot products of bytes: in numbers of
// 16 bits, four outputs at a time. Included by kernels_portable.cpp, inside its namespace.

constexpr int kTileRows = 8;

typedef int16_t Shorts __attribute__((vector_size(16), may_alias));

inline Floats floats_from_halves(const uint16_t* halves) {
  Ints wide;
  for (int lane = 0; lane < kFloats; ++lane) wide[lane] = halves[lane];
  const Ints size = (wide & 0x7fff) << 13, sign = (wide & 0x8000) << 16;
  const Ints special = (wide & 0x7c00) == 0x7c00;  // infinite, or not a number
  // A single's exponent is 112 more. The product is exact, also where the half has no exponent.
  const Floats scaled = reinterpret_cast<const Floats&>(size) * 0x1p112f;
  const Ints bits = reinterpret_cast<const Ints&>(scaled) | sign | (special & 0x7f800000);
  return reinterpret_cast<const Floats&>(bits);
}

// dots * scale + sum with one rounding.
inline Floats add_product(Ints dots, Floats scale, Floats sum) {
#if defined(__SSE2__) && !defined(__FMA__)
  // The product is exact in double precision, and two roundings of the sum differ from one only where
  // the first ends halfway between two numbers of single precision.
  const auto added = [](__m128i whole, __m128 factor, __m128 to) {
    return _mm_add_pd(_mm_mul_pd(_mm_cvtepi32_pd(whole), _mm_cvtps_pd(factor)), _mm_cvtps_pd(to));
  };
  const __m128i whole = (__m128i)dots;
  const __m128 factor = (__m128)scale, to = (__m128)sum;
  const __m128d low = added(whole, factor, to);
  const __m128d high = added(_mm_unpackhi_epi64(whole, whole), _mm_movehl_ps(factor, factor),
                             _mm_movehl_ps(to, to));
  const __m128i ends = _mm_castps_si128(
      _mm_shuffle_ps(_mm_castpd_ps(low), _mm_castpd_ps(high), _MM_SHUFFLE(2, 0, 2, 0)));
  const __m128i halfway = _mm_cmpeq_epi32(_mm_and_si128(ends, _mm_set1_epi32(0x1fffffff)),
                                          _mm_set1_epi32(0x10000000));
  if (__builtin_expect(_mm_movemask_epi8(halfway) == 0, 1))
    return (Floats)_mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
#endif
  Floats result;
  for (int lane = 0; lane < kFloats; ++lane)
    result[lane] = __builtin_fmaf(static_cast<float>(dots[lane]), scale[lane], sum[lane]);
  return result;
}

// The four bytes of each lane as numbers of 16 bits: the first and third, the second and fourth.
struct Pairs {
  Shorts even, odd;
};

inline Pairs widen(Ints bytes) {
  const Shorts both = (Shorts)bytes;
  return {(both << 8) >> 8, both >> 8};
}

// dots + the sums of two neighbours.
inline Ints add_pairs(Ints dots, Shorts halves) {
#if defined(__ARM_NEON)
  return (Ints)vpadalq_s16((int32x4_t)dots, (int16x8_t)halves);
#else
  const Ints both = (Ints)halves;
  return dots + ((both << 16) >> 16) + (both >> 16);
#endif
}

template <int Bits>
struct Dots;

// Two products of signed weights fit 16 bits.
template <>
struct Dots<8> {
  static Pairs prepare(Ints codes) { return widen(codes ^ static_cast<int32_t>(0x80808080)); }
  static Ints add(Ints dots, const Pairs& w, const Pairs& x) {
#if defined(__SSE2__)
    dots += (Ints)_mm_madd_epi16((__m128i)w.even, (__m128i)x.even);
    return dots + (Ints)_mm_madd_epi16((__m128i)w.odd, (__m128i)x.odd);
#else
    return add_pairs(dots, w.even * x.even + w.odd * x.odd);
#endif
  }
  static Ints end(Ints dots, int32_t) { return dots; }
};

// The products of a whole block fit 16 bits, and are added without the weights' signs.
template <>
struct Dots<4> {
  static Pairs prepare(Ints codes) { return widen(codes); }
  static Ints add(Ints dots, const Pairs& w, const Pairs& x) {
    return (Ints)((Shorts)dots + w.even * x.even + w.odd * x.odd);
  }
  static Ints end(Ints dots, int32_t offset) { return add_pairs(Ints{} + offset, (Shorts)dots); }
};

// Writes a block's inputs, four at a time, to all lanes.
template <int Block>
inline void load_inputs(const int8_t* inputs, Pairs* to) {
  for (int k = 0; k < Block / 4; k += kFloats) {
    const Pairs four = widen(*reinterpret_cast<const Ints*>(inputs + 4 * k));
#pragma GCC unroll 4
    for (int i = 0; i < kFloats; ++i)
      to[k + i] = {(Shorts)(Ints{} + ((Ints)four.even)[i]), (Shorts)(Ints{} + ((Ints)four.odd)[i])};
  }
}

template <int Bits, int R>
void tile(const Weights& w, const Rows& x, int64_t row, int64_t group, float* out) {
  // Two blocks of 4 bits share their bytes: the first in the low halves, the second in the high.
  constexpr int block = Bits == 8 ? 64 : 32, parts = 8 / Bits, bytes = block * kLanes;
  const int64_t blocks = w.blocks();
  const uint8_t* data = w.data + group * w.group_bytes();
  const uint16_t* scales = w.scales + group * blocks * kLanes;
  Floats sums[kLanes / kFloats][R] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    Pairs inputs[R][block / 4];
    for (int r = 0; r < R; ++r)
      load_inputs<block>(x.values + (row + r) * w.inputs + b * block, inputs[r]);
    const uint8_t* line = data + b / parts * bytes;
    const int shift = Bits == 4 && b % 2 ? 4 : 0;
    for (int v = 0; v < kLanes / kFloats; ++v) {
      Ints dots[R] = {};
#pragma GCC unroll 4
      for (int k = 0; k < block / 4; ++k) {
        Ints codes = *reinterpret_cast<const Ints*>(line + k * 4 * kLanes + v * 16);
        if (Bits == 4) codes = codes >> shift & 0x0f0f0f0f;
        const Pairs weights = Dots<Bits>::prepare(codes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) dots[r] = Dots<Bits>::add(dots[r], weights, inputs[r][k]);
      }
      const Floats scale = floats_from_halves(scales + b * kLanes + v * kFloats);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t place = (row + r) * blocks + b;
        sums[v][r] = add_product(Dots<Bits>::end(dots[r], x.offsets[place]),
                                 scale * x.scales[place], sums[v][r]);
      }
    }
  }
  for (int v = 0; v < kLanes / kFloats; ++v)
    for (int r = 0; r < R; ++r)
      *reinterpret_cast<Floats*>(out + r * kLanes + v * kFloats) = sums[v][r];
}

template <int Bits, int... R>
void tile_of_bits(std::integer_sequence<int, R...>, const Weights& w, const Rows& x, int64_t row,
                  int rows, int64_t group, float* out) {
  using Tile = void (*)(const Weights&, const Rows&, int64_t, int64_t, float*);
  constexpr Tile tiles[] = {tile<Bits, R + 1>...};
  tiles[rows - 1](w, x, row, group, out);
}

void any_tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int,
              float* out) {
  const std::make_integer_sequence<int, kTileRows> each;
  if (w.bits == 8)
    tile_of_bits<8>(each, w, x, row, rows, group, out);
  else
    tile_of_bits<4>(each, w, x, row, rows, group, out);
}

void tile_shape(int, int64_t num_rows, int* rows, int* groups) {
  const int64_t tiles = (num_rows + kTileRows - 1) / kTileRows;
  *rows = static_cast<int>((num_rows + tiles - 1) / tiles);
  *groups = 1;
}
