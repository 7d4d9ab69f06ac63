// Attention with a query row in each of 8 lanes; see `Attention`. Included by each instruction
// set's file, inside a namespace of its own: the compiler splits these vectors into the registers
// that it has.

typedef float Lanes __attribute__((vector_size(4 * kQueryLanes), aligned(4 * kQueryLanes), may_alias));

inline Lanes lanes_of(float value) { return value - Lanes{}; }

// Scores of `Count` keys: one sum over the head's dimensions for each, in order.
template <int Count>
inline void scores_of_keys(const float* keys, int64_t head_dim, const Lanes* queries,
                           Lanes* scores) {
  Lanes sums[Count] = {};
  for (int64_t d = 0; d < head_dim; ++d)
#pragma GCC unroll 12
    for (int k = 0; k < Count; ++k) sums[k] += queries[d] * keys[k * head_dim + d];
  for (int k = 0; k < Count; ++k) scores[k] = sums[k];
}

// Adds the weighted values of some keys to `Count` dimensions, key by key.
template <int Count>
inline void add_values(const float* values, int64_t head_dim, int64_t rows, const Lanes* weights,
                       Lanes* out) {
  Lanes sums[Count];
  for (int d = 0; d < Count; ++d) sums[d] = out[d];
  for (int64_t k = 0; k < rows; ++k)
#pragma GCC unroll 16
    for (int d = 0; d < Count; ++d) sums[d] += weights[k] * values[k * head_dim + d];
  for (int d = 0; d < Count; ++d) out[d] = sums[d];
}

inline void floats_from_bfloats(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_from_bfloat(from[i]);
}

constexpr int64_t kKeys = 12;    // keys multiplied together
constexpr int64_t kChunk = 32;   // keys whose values stay in the first cache

int64_t attend_floats(int64_t rows, int64_t head_dim) {
  return kQueryLanes * (rows + 2 * head_dim) + kChunk * head_dim;
}

void attend(const Attention& a, int64_t first, int64_t count, float* scratch) {
  const int64_t rows = a.rows(), size = a.head_dim;
  Lanes* queries = reinterpret_cast<Lanes*>(scratch);
  Lanes* out = queries + size;
  Lanes* scores = out + size;
  float* wide = reinterpret_cast<float*>(scores + rows);  // keys or values in single precision
  for (int64_t d = 0; d < size; ++d) queries[d] = Lanes{};
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t node = (first + lane) / a.group, head = (first + lane) % a.group;
    const float* source = a.queries + node * a.row_stride + head * size;
    const int64_t half = a.rotary_dim / 2, position = a.positions[node];
    rotate(source, a.cos + position * half, a.sin + position * half, size, a.rotary_dim, wide);
    for (int64_t d = 0; d < size; ++d)
      reinterpret_cast<float*>(queries + d)[lane] = wide[d] * a.scale;
  }
  int64_t k = 0;
  for (; k + kKeys <= rows; k += kKeys) {
    // The first access waits for memory, so both matrices are prefetched.
    if (first == 0)
      for (int64_t byte = 0; byte < kKeys * size * 2; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(a.keys + k * size) + byte + kPrefetch);
        __builtin_prefetch(reinterpret_cast<const char*>(a.values + k * size) + byte);
      }
    floats_from_bfloats(a.keys + k * size, kKeys * size, wide);
    scores_of_keys<kKeys>(wide, size, queries, scores + k);
  }
  for (; k < rows; ++k) {
    floats_from_bfloats(a.keys + k * size, size, wide);
    scores_of_keys<1>(wide, size, queries, scores + k);
  }
  for (int64_t j = 0; j < a.nodes; ++j)
    for (int64_t lane = 0; lane < count; ++lane)
      reinterpret_cast<float*>(scores + a.past + j)[lane] +=
          a.mask[(first + lane) / a.group * a.nodes + j];

  float most[kQueryLanes], total[kQueryLanes] = {};
  for (int lane = 0; lane < kQueryLanes; ++lane) most[lane] = -3.4e38f;
  for (k = 0; k < rows; ++k) {
    const float* row = reinterpret_cast<const float*>(scores + k);
    for (int lane = 0; lane < kQueryLanes; ++lane)
      most[lane] = row[lane] > most[lane] ? row[lane] : most[lane];
  }
  for (k = 0; k < rows; ++k) {
    float* row = reinterpret_cast<float*>(scores + k);
    for (int lane = 0; lane < kQueryLanes; ++lane) {
      row[lane] = fast_exp(row[lane] - most[lane]);
      total[lane] += row[lane];
    }
  }
  for (int64_t d = 0; d < size; ++d) out[d] = Lanes{};
  for (k = 0; k < rows; k += kChunk) {
    const int64_t chunk = rows - k < kChunk ? rows - k : kChunk;
    floats_from_bfloats(a.values + k * size, chunk * size, wide);
    int64_t d = 0;
    for (; d + 16 <= size; d += 16) add_values<16>(wide + d, size, chunk, scores + k, out + d);
    for (; d < size; ++d) add_values<1>(wide + d, size, chunk, scores + k, out + d);
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t node = (first + lane) / a.group, head = (first + lane) % a.group;
    float* target = a.out + node * a.out_stride + head * size;
    const float inverse = 1.0f / total[lane];
    for (int64_t d = 0; d < size; ++d) target[d] = reinterpret_cast<float*>(out + d)[lane] * inverse;
  }
}
