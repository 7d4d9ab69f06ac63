// Products of rows with groups of weights. Included by each instruction set's file after
// vector_math.inl, inside a namespace of its own that defines
//   Ints broadcast(int32_t), Floats floats_from_halves(const uint16_t*);
//   Dots<Bits>: the four steps of a block's dot products;
//   kTileRows, kPairRows: the most rows of a tile of one group, and of two.

// R rows by G groups: their sums hide the latency of the instructions, and stay in registers.
template <int Bits, int R, int G>
void tile(const Weights& w, const Rows& x, int64_t row, int64_t group, float* out) {
  constexpr int block = Bits == 8 ? 64 : 32, each = kLanes / kFloats, vectors = G * each;
  // Two blocks of 4 bits share their bytes: the first in the low halves, the second in the high.
  constexpr int parts = 8 / Bits, bytes = block * kLanes * parts * Bits / 8;
  const int64_t blocks = w.inputs / block;
  const int8_t* values = x.values + row * w.inputs;
  const float* row_scales = x.scales + row * blocks;
  const int32_t* offsets = x.offsets + row * blocks;
  const uint8_t* data = w.data + group * w.group_bytes();
  const uint16_t* scales = w.scales + group * blocks * kLanes;
  // Weights are fetched in the order of their use: behind the end of this tile's groups follow the
  // first bytes of the next tile's.
  constexpr int ahead = kPrefetch / (bytes * G);
  const uint8_t* fetched = data + ahead * bytes;
  int64_t left = blocks / parts - ahead;
  Floats sums[R][vectors] = {};
  for (int64_t b = 0; b < blocks; b += parts, data += bytes, fetched += bytes) {
    if (G > 1 && left-- == 0) fetched += (G - 1) * w.group_bytes();
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part) {
      Ints dots[R][vectors];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) dots[r][v] = Dots<Bits>::begin(offsets[r * blocks + b + part]);
      const int8_t* inputs = values + (b + part) * block;
#pragma GCC unroll 16
      for (int k = 0; k < block / 4; ++k) {
        typename Dots<Bits>::Weight weights[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          const int64_t place = v / each * w.group_bytes() + k * 64 + v % each * 4 * kFloats;
          Ints codes = *reinterpret_cast<const Ints*>(data + place);
          if (part == 0 && v % each == 0) __builtin_prefetch(fetched + place);
          if (Bits == 4) codes = (part ? codes >> 4 : codes) & 0x0f0f0f0f;
          weights[v] = Dots<Bits>::prepare(codes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t four;
          __builtin_memcpy(&four, inputs + r * w.inputs + k * 4, 4);
          const Ints input = broadcast(four);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v)
            dots[r][v] = Dots<Bits>::add(dots[r][v], weights[v], input);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Floats scale = floats_from_halves(
            scales + (v / each * blocks + b + part) * kLanes + v % each * kFloats);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Ints whole = Dots<Bits>::end(dots[r][v], offsets[r * blocks + b + part]);
          const Floats both = scale * row_scales[r * blocks + b + part];
          sums[r][v] += __builtin_convertvector(whole, Floats) * both;
        }
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < vectors; ++v)
      *reinterpret_cast<Floats*>(out + r * G * kLanes + v * kFloats) = sums[r][v];
}

template <int Bits, int R>
void tile_of_rows(const Weights& w, const Rows& x, int64_t row, int64_t group, int groups,
                  float* out) {
  if (groups == 2) return tile<Bits, R, R <= kPairRows ? 2 : 1>(w, x, row, group, out);
  tile<Bits, R, 1>(w, x, row, group, out);
}

template <int Bits, int... R>
void tile_of_bits(std::integer_sequence<int, R...>, const Weights& w, const Rows& x, int64_t row,
                  int rows, int64_t group, int groups, float* out) {
  using Tile = void (*)(const Weights&, const Rows&, int64_t, int64_t, int, float*);
  constexpr Tile tiles[] = {tile_of_rows<Bits, R + 1>...};
  tiles[rows - 1](w, x, row, group, groups, out);
}

void any_tile(const Weights& w, const Rows& x, int64_t row, int rows, int64_t group, int groups,
              float* out) {
  const std::make_integer_sequence<int, kTileRows> each;
  if (w.bits == 8)
    tile_of_bits<8>(each, w, x, row, rows, group, groups, out);
  else
    tile_of_bits<4>(each, w, x, row, rows, group, groups, out);
}

// One tile reads weights at the speed of memory, because their bytes follow each other. Where the
// rows need several tiles, arithmetic decides, and two groups share what is read of the rows.
void tile_shape(int, int64_t num_rows, int* rows, int* groups) {
  const bool pairs = kPairRows > 0 && num_rows > kTileRows;
  const int64_t most = pairs ? kPairRows : kTileRows, tiles = (num_rows + most - 1) / most;
  *rows = static_cast<int>((num_rows + tiles - 1) / tiles);
  *groups = pairs ? 2 : 1;
}
