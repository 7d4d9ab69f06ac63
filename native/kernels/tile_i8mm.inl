// Products of two rows and more by instructions that multiply 2 outputs by 2 rows over 8 inputs.
// Included by kernels_neon.cpp after tile.inl, which multiplies single rows.

constexpr int kMostPairs = 3;

// Products of 4 outputs with two rows: of each two outputs, both of the first, then of the second.
struct PairDots {
  int32x4_t low, high;
};

// P pairs of rows. Where there are fewer rows, the last one is multiplied again, and not written.
template <int Bits, int P>
void tile_pairs(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, float* out) {
  constexpr int block = Bits == 8 ? 64 : 32, parts = 8 / Bits, bytes = block * kLanes;
  constexpr int vectors = kLanes / kFloats;
  const int64_t blocks = w.blocks();
  const uint8_t* data = w.data + group * w.group_bytes();
  const uint16_t* scales = w.scales + group * blocks * kLanes;
  int64_t places[2 * P];
  for (int r = 0; r < 2 * P; ++r) places[r] = row + (r < rows ? r : rows - 1);
  Floats sums[2 * P][vectors] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* line = data + b / parts * bytes;
    PairDots dots[P][vectors];
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      const int32x2_t offsets = {x.offsets[places[2 * p] * blocks + b],
                                 x.offsets[places[2 * p + 1] * blocks + b]};
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v)
        dots[p][v].low = dots[p][v].high = vcombine_s32(offsets, offsets);
    }
#pragma GCC unroll 4
    for (int k = 0; k < block / 8; ++k) {
      int8x16_t inputs[P];
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p)
        inputs[p] = vcombine_s8(vld1_s8(x.values + places[2 * p] * w.inputs + b * block + k * 8),
                                vld1_s8(x.values + places[2 * p + 1] * w.inputs + b * block + k * 8));
      if (b % parts == 0)
        for (int byte = 0; byte < 128; byte += 64)
          __builtin_prefetch(line + k * 128 + byte + kPrefetch);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        uint8x16_t first = vld1q_u8(line + k * 128 + v * 16);
        uint8x16_t second = vld1q_u8(line + k * 128 + 64 + v * 16);
        if (Bits == 4 && b % 2 == 0) {
          first = vandq_u8(first, vdupq_n_u8(15));
          second = vandq_u8(second, vdupq_n_u8(15));
        } else if (Bits == 4) {
          first = vshrq_n_u8(first, 4);
          second = vshrq_n_u8(second, 4);
        }
        // Eight inputs of one output, then of the next.
        const uint8x16_t low = (uint8x16_t)vzip1q_u32((uint32x4_t)first, (uint32x4_t)second);
        const uint8x16_t high = (uint8x16_t)vzip2q_u32((uint32x4_t)first, (uint32x4_t)second);
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) {
          dots[p][v].low = vusmmlaq_s32(dots[p][v].low, low, inputs[p]);
          dots[p][v].high = vusmmlaq_s32(dots[p][v].high, high, inputs[p]);
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Floats scale = floats_from_halves(scales + b * kLanes + v * kFloats);
#pragma GCC unroll 6
      for (int r = 0; r < 2 * P; ++r) {
        const PairDots& both = dots[r / 2][v];
        const Ints whole = (Ints)(r % 2 ? vuzp2q_s32(both.low, both.high)
                                        : vuzp1q_s32(both.low, both.high));
        const Floats factor = scale * x.scales[places[r] * blocks + b];
        sums[r][v] += __builtin_convertvector(whole, Floats) * factor;
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < 2 * P; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors && r < rows; ++v)
      *reinterpret_cast<Floats*>(out + r * kLanes + v * kFloats) = sums[r][v];
}

template <int Bits>
void tile_of_pairs(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group,
                   float* out) {
  if (rows <= 2) return tile_pairs<Bits, 1>(w, x, row, rows, group, out);
  if (rows <= 4) return tile_pairs<Bits, 2>(w, x, row, rows, group, out);
  tile_pairs<Bits, kMostPairs>(w, x, row, rows, group, out);
}

void best_tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int groups,
               float* out) {
  if (rows == 1) return any_tile(w, x, row, rows, group, groups, out);
  if (w.bits == 8)
    tile_of_pairs<8>(w, x, row, rows, group, out);
  else
    tile_of_pairs<4>(w, x, row, rows, group, out);
}

void best_shape(int, int64_t num_rows, int* rows, int* groups) {
  const int64_t pairs = (num_rows + 1) / 2, tiles = (pairs + kMostPairs - 1) / kMostPairs;
  *rows = static_cast<int>(num_rows == 1 ? 1 : 2 * ((pairs + tiles - 1) / tiles));
  *groups = 1;
}
