// Attention in steps; see `Attention` and `AttentionSteps`. Included by each instruction set's file
// after vector_math.inl, inside that set's namespace.
//
// Queries by keys and weights by values are products of small matrices, made by one loop. A sum
// belongs to one row and adds in the order of its path, so it does not matter how the rows, keys
// and dimensions are cut.

constexpr int64_t kChunk = kKeyBlock;  // keys or values converted to single precision together
constexpr int kQueryRows = 32;  // rows that use them
#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = kFloats == 16 ? 32 : 16;
#endif
constexpr int kBlockRows = kRegisters / 4;

inline Floats& at(float* values, int64_t index) {
  return *reinterpret_cast<Floats*>(values + index);
}

// out (rows, columns) [+]= left (rows, count) times right (count, columns).
struct Product {
  const float* left;
  int64_t left_stride;
  const float* right;
  int64_t right_stride, count;
  float* out;
  int64_t out_stride;
  bool adds;
};

template <int Rows, int Vectors>
inline void multiply(const Product& p, int64_t row, int64_t column) {
  const float* left = p.left + row * p.left_stride;
  const float* right = p.right + column;
  float* out = p.out + row * p.out_stride + column;
  Floats sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      sums[r][v] = p.adds ? at(out + r * p.out_stride, v * kFloats) : Floats{};
  for (int64_t i = 0; i < p.count; ++i) {
    Floats factors[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) factors[v] = at(right + i * p.right_stride, v * kFloats);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[r][v] += left[r * p.left_stride + i] * factors[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) at(out + r * p.out_stride, v * kFloats) = sums[r][v];
}

// More vectors for few rows: there must be enough sums to hide the latency of an addition.
template <int Rows, int Vectors = (2 * Rows <= kBlockRows ? 4 : 2)>
void multiply_rows(const Product& p, int64_t row, int64_t columns) {
  constexpr int64_t width = Vectors * kFloats;
  int64_t column = 0;
  for (; column + width <= columns; column += width) multiply<Rows, Vectors>(p, row, column);
  if (column == columns) return;
  if (Vectors > 2 && column + kFloats < columns) {
    multiply<Rows, 2>(p, row, column);
    column += 2 * kFloats;
  }
  for (; column < columns; column += kFloats) multiply<Rows, 1>(p, row, column);
}

// All rows and columns; what is behind the last column, up to a full vector, is computed too.
inline void multiply_all(const Product& p, int64_t rows, int64_t columns) {
  using Multiply = void (*)(const Product&, int64_t, int64_t);
  constexpr Multiply all[] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                              multiply_rows<4>, multiply_rows<5>, multiply_rows<6>,
                              multiply_rows<7>, multiply_rows<8>};
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = rows * block / blocks, end = rows * (block + 1) / blocks;
    all[end - row - 1](p, row, columns);
  }
}

// Transposes as many vectors as one has lanes: each turn deals the first and the second half out
// alternately.
inline void transpose(Ints* rows) {
  Ints low, high;
  for (int lane = 0; lane < kFloats; ++lane) {
    low[lane] = lane / 2 + lane % 2 * kFloats;
    high[lane] = low[lane] + kFloats / 2;
  }
#pragma GCC unroll 4
  for (int turn = 1; turn < kFloats; turn *= 2) {
    Ints next[kFloats];
#pragma GCC unroll 8
    for (int i = 0; i < kFloats / 2; ++i) {
      next[2 * i] = shuffled(rows[i], rows[i + kFloats / 2], low);
      next[2 * i + 1] = shuffled(rows[i], rows[i + kFloats / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) rows[i] = next[i];
  }
}

// Fetches rows of keys or values that are needed after the ones in work.
inline void prefetch(const uint16_t* rows, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count * size; i += 32) __builtin_prefetch(rows + i);
}

// Two neighbouring values in bfloat16, in each lane.
inline Floats evens(Ints pairs) {
  const Ints wide = pairs << 16;
  return reinterpret_cast<const Floats&>(wide);
}

inline Floats odds(Ints pairs) {
  const Ints wide = pairs & static_cast<int32_t>(0xffff0000);
  return reinterpret_cast<const Floats&>(wide);
}

// Writes `kFloats` keys (…, size) as columns: to (size, kChunk).
inline void load_keys(const uint16_t* keys, int64_t size, float* to) {
  const int64_t pairs = size / 2;
  if (size % 2 || pairs < kFloats) {
    for (int64_t d = 0; d < size; ++d)
      for (int64_t k = 0; k < kFloats; ++k)
        to[d * kChunk + k] = float_from_bfloat(keys[k * size + d]);
    return;
  }
  for (int64_t start = 0; start < pairs; start += kFloats) {
    const int64_t pair = start + kFloats <= pairs ? start : pairs - kFloats;
    Ints rows[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i)
      rows[i] = *reinterpret_cast<const Ints*>(keys + i * size + 2 * pair);
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) {
      at(to, 2 * (pair + i) * kChunk) = evens(rows[i]);
      at(to, (2 * (pair + i) + 1) * kChunk) = odds(rows[i]);
    }
  }
}

// Place of a dimension in `load_values`: in blocks of two vectors the even ones come first.
inline int64_t place(int64_t d) {
  return d / (2 * kFloats) * (2 * kFloats) + d % 2 * kFloats + d / 2 % kFloats;
}

inline int64_t padded(int64_t dims) { return (dims + 2 * kFloats - 1) / (2 * kFloats) * (2 * kFloats); }

// Writes some dimensions of values (count, size) to (count, padded(dims)), each at its place.
inline void load_values(const uint16_t* values, int64_t count, int64_t size, int64_t dims,
                        float* to) {
  const int64_t width = padded(dims);
  for (int64_t k = 0; k < count; ++k, values += size, to += width) {
    int64_t d = 0;
    for (; d + 2 * kFloats <= dims; d += 2 * kFloats) {
      const Ints pairs = *reinterpret_cast<const Ints*>(values + d);
      at(to, d) = evens(pairs);
      at(to, d + kFloats) = odds(pairs);
    }
    for (; d < width; ++d) to[place(d)] = d < dims ? float_from_bfloat(values[d]) : 0.0f;
  }
}

// See `AttentionSteps::rotate`.
void rotate_queries(const Attention& a, const AttentionRows& rows) {
  const int64_t size = a.head_dim, half = a.rotary_dim / 2;
  prefetch(a.keys + rows.begin * size, kChunk, size);
  prefetch(a.values + rows.begin * size, kChunk, size);
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t node = (rows.first + row) / a.group, head = (rows.first + row) % a.group;
    const float* source = a.queries + node * a.row_stride + head * size;
    const int64_t turn = a.positions[node] * half;
    float* query = rows.queries + row * size;
    rotate(source, a.cos + turn, a.sin + turn, size, a.rotary_dim, query);
    for (int64_t d = 0; d < size; ++d) query[d] *= a.scale;
  }
}

// See `AttentionSteps::score`.
void score(const Attention& a, const AttentionRows& rows, int64_t begin, int64_t end, float* own) {
  const int64_t size = a.head_dim;
  for (int64_t key = begin; key < end; key += kChunk) {
    const int64_t count = end - key < kChunk ? end - key : kChunk;
    const uint16_t* keys = a.keys + key * size;
    prefetch(keys + kChunk * size, count, size);
    int64_t k = 0;
    for (; k + kFloats <= count; k += kFloats) load_keys(keys + k * size, size, own + k);
    if (k < count) {
      uint16_t* last = reinterpret_cast<uint16_t*>(own + kChunk * size);
      for (int64_t i = 0; i < kFloats * size; ++i)
        last[i] = i < (count - k) * size ? keys[k * size + i] : 0;
      load_keys(last, size, own + k);
    }
    const Product product = {rows.queries, size, own,         kChunk, size,
                             rows.scores + key, rows.stride, false};
    multiply_all(product, rows.count, count);
  }
}

// softcap * tanh(x / softcap) of each lane.
inline Floats capped(Floats x, float softcap) {
  return softcap - 2.0f * softcap / (fast_exp(x * (2.0f / softcap)) + 1.0f);
}

// Caps the scores of a row of keys [begin, end), and hides the keys that its node does not see.
inline void limit_row(const Attention& a, int64_t node, int64_t begin, int64_t end, float* scores) {
  const float* mask = a.mask + node * a.nodes;
  const int64_t first = a.firsts ? a.firsts[node] : 0;
  if (a.softcap > 0.0f)
    for (int64_t k = begin; k < end; k += kFloats) at(scores, k) = capped(at(scores, k), a.softcap);
  for (int64_t k = begin; k < first && k < a.past; ++k) scores[k] = -3.4e38f;
  const int64_t skipped = begin > a.past ? begin - a.past : 0;
  for (int64_t j = skipped; a.past + j < end; ++j)
    if (!(mask[j] > kHidden) || a.positions[j] < first) scores[a.past + j] = -3.4e38f;
}

// Turns the scores of a row into weights and returns their sum. It adds in the order of the row's
// path, in turn to each lane, and hidden keys have weights of zero. Position i of a path is added
// to lane i % kFloats, wherever the sum begins.
inline float weigh_row(const Attention& a, int64_t row, int64_t begin, int64_t keys, float* scores,
                       float* path) {
  const float* mask = a.mask + row / a.group * a.nodes;
  const int64_t end = (keys + kFloats - 1) / kFloats * kFloats;
  limit_row(a, row / a.group, begin, keys, scores);
  for (int64_t k = keys; k < end; ++k) scores[k] = -3.4e38f;
  const auto larger = [](Floats a, Floats b) { return a > b ? a : b; };
  const auto add = [](Floats a, Floats b) { return a + b; };
  const float sink = a.sinks ? a.sinks[row % a.group] : -3.4e38f;
  Floats most = Floats{} + sink;
  for (int64_t k = begin; k < end; k += kFloats) most = larger(at(scores, k), most);
  most = Floats{} + over_lanes(most, larger);
  const int64_t together = a.chain ? end : a.past / kFloats * kFloats;
  Floats sums = {};
  for (int64_t k = begin; k < end; k += kFloats) {
    at(scores, k) = fast_exp(at(scores, k) - most);
    if (k < together) sums += at(scores, k);
  }
  if (!a.chain) {
    int64_t length = 0;
    for (int64_t k = together; k < a.past; ++k) path[length++] = scores[k];
    for (int64_t j = 0; a.past + j < keys; ++j)
      if (mask[j] > kHidden) path[length++] = scores[a.past + j];
    while (length % kFloats) path[length++] = 0.0f;
    for (int64_t k = 0; k < length; k += kFloats) sums += at(path, k);
  }
  const float total = over_lanes(sums, add);
  return a.sinks ? total + fast_exp(sink - most)[0] : total;
}

// See `AttentionSteps::weigh`.
void weigh_rows(const Attention& a, const AttentionRows& rows, int64_t begin, int64_t end,
                float* own) {
  for (int64_t row = begin; row < end; ++row)
    rows.inverses[row] = 1.0f / weigh_row(a, rows.first + row, rows.begin, rows.end,
                                          rows.scores + row * rows.stride, own);
}

// See `AttentionSteps::add`.
void add_values(const Attention& a, const AttentionRows& rows, int64_t begin, int64_t end,
                float* own) {
  const int64_t size = a.head_dim, width = padded(end - begin);
  float* out = own + kChunk * width;
  for (int64_t key = rows.begin; key < rows.end; key += kChunk) {
    const int64_t count = rows.end - key < kChunk ? rows.end - key : kChunk;
    prefetch(a.values + (key + kChunk) * size, count, size);
    load_values(a.values + key * size + begin, count, size, end - begin, own);
    const Product product = {rows.scores + key, rows.stride, own, width, count, out, width,
                             key > rows.begin};
    multiply_all(product, rows.count, width);
  }
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t node = (rows.first + row) / a.group, head = (rows.first + row) % a.group;
    float* target = a.out + node * a.out_stride + head * size;
    for (int64_t d = 0; d < end - begin; ++d)
      target[begin + d] = out[row * width + place(d)] * rows.inverses[row];
  }
}

// Number of floats for the memory of one thread.
int64_t own_floats(int64_t keys, int64_t head_dim) {
  const int64_t products = (kChunk + kQueryRows) * padded(head_dim), path = keys + 2 * kFloats;
  return (products > path ? products : path) + 15;
}

constexpr AttentionSteps attention_steps = {rotate_queries, score, weigh_rows, add_values,
                                            own_floats};

int64_t attend_floats(int64_t keys, int64_t head_dim) {
  return AttentionRows::floats(kQueryRows, keys, head_dim) + own_floats(keys, head_dim);
}

void attend(const Attention& a, int64_t first, int64_t count, float* scratch) {
  const AttentionRows rows(a, first, count, scratch);
  float* own = scratch + AttentionRows::floats(count, a.rows(), a.head_dim);
  rotate_queries(a, rows);
  score(a, rows, rows.begin, rows.end, own);
  weigh_rows(a, rows, 0, count, own);
  add_values(a, rows, 0, a.head_dim, own);
}

// The table of an instruction set: its tiles, and what all sets compile from the same lines.
constexpr Kernels make_kernels(const char* name, decltype(Kernels::tile) tile,
                               decltype(Kernels::tile_shape) tile_shape) {
  return {name, tile,  tile_shape, quantize, finish, argmax,        top_k,
          weigh, keep, append,     attend,   attend_floats, kQueryRows, &attention_steps, nullptr};
}
