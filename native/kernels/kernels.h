// The arithmetic of the operators: linear layers with weights of 8 or 4 bits and activations of 8,
// and attention under a tree mask.
//
// A weight matrix (K inputs, N outputs) is cut into blocks of `block` inputs by 16 outputs. Within
// a block it is stored as the dot product instructions read it: four consecutive inputs of each of
// the 16 outputs make 64 bytes. Every block has 16 scales. Activations are quantized by row and
// block. Products are exact integers, and the blocks of a row are added in order with one
// rounding each: a row's result depends neither on the other rows nor on the instruction set
// (given a fused multiply-add).
#pragma once

#include <cstdint>

namespace medusa {

constexpr int kLanes = 16;       // outputs of a group
constexpr int kLeastBlock = 32;  // inputs that share a scale, at least
// Distance at which weights are prefetched, in bytes; 4,096 and 32,768 are slower.
constexpr int kPrefetch = 8192;
constexpr int kPart = 256;  // values of a row whose weights are summed together
constexpr int kMaxTileRows = 16;
constexpr int kMaxTileGroups = 4;

struct Weights {
  int bits;         // 8 or 4
  int block;        // inputs that share a scale: 64 at 8 bits, 32 at 4 bits
  int64_t inputs;   // K, a multiple of 64
  int64_t groups;   // ceil(N / 16)
  const uint8_t* data;     // groups x inputs x 16 values, offset by 128 (8 bits) or 8 (4 bits)
  const uint16_t* scales;  // groups x inputs / block x 16, half precision

  int zero() const { return bits == 8 ? 128 : 8; }
  int64_t blocks() const { return inputs / block; }
  int64_t group_bytes() const { return inputs * kLanes * bits / 8; }
};

// Activations: `values` (rows, inputs); `scales` and `offsets` (rows, blocks). An offset is the
// negative of the amount that the weights' offset adds to a block's product.
struct Rows {
  const int8_t* values;
  const float* scales;
  const int32_t* offsets;
};

constexpr float kHidden = -1e30f;  // mask values below hide a node
constexpr int64_t kKeyBlock = 64;  // keys whose scores are computed together

// Attention of one sequence's new nodes to its cache, which already holds their keys and values in
// bfloat16. A node sees the past and the new nodes on its path, itself included, from its first
// position on. Keys are summed in the order of the path, and hidden ones add exactly zero. So a
// row's result depends neither on the other rows nor on the places of its path's nodes in the tree.
struct Attention {
  int64_t group;        // query heads that share a key and value head
  int64_t head_dim;
  int64_t past;         // cached rows before the step
  int64_t nodes;        // T
  float scale;
  const float* queries;  // (T, row_stride), at the group's first head
  int64_t row_stride;
  const float* mask;     // (T, T), added to the scores of the new nodes: 0, or hides one
  bool chain;            // every node sees all nodes before it
  const uint16_t* keys;    // (past + T, head_dim)
  const uint16_t* values;  // (past + T, head_dim)
  const float* cos;      // rows of rotary_dim / 2
  const float* sin;
  const int64_t* positions;  // (T,)
  int64_t rotary_dim;
  const int64_t* firsts;     // (T,) the first position that each node sees; null for 0
  float softcap;         // bound of the scores; 0 for no bound
  const float* sinks;    // (group,) a score that joins the sum of weights; null for none
  float* out;            // (T, out_stride), at the group's first head
  int64_t out_stride;

  int64_t rows() const { return past + nodes; }
  bool is_plain() const { return !firsts && softcap == 0.0f && !sinks; }

  // The first row of the cache that one of so many query rows sees, or some rows before it; see
  // `AttentionRows`. The rows of tree nodes are not in the order of their positions, so all count.
  int64_t first_key(int64_t row, int64_t count) const {
    if (!firsts) return 0;
    int64_t least = chain ? rows() : past;
    for (int64_t node = row / group; node <= (row + count - 1) / group; ++node)
      if (firsts[node] < least) least = firsts[node];
    return least / kKeyBlock * kKeyBlock;
  }

  // The end of the rows of the cache that they see.
  int64_t end_key(int64_t row, int64_t count) const {
    return chain ? past + (row + count - 1) / group + 1 : rows();
  }
};

// Query rows [first, first + count) of `Attention`, where row i is head i % group of node i / group,
// and what the steps know of them.
struct AttentionRows {
  int64_t first, count;
  int64_t begin, end;  // rows of the cache that one of them may see; `begin` is a multiple of 64
  float* queries;      // (count, head_dim), rotated and scaled
  float* scores;       // (count, stride) scores, then weights; the stride is a multiple of 64
  float* inverses;     // (count,) of the sums of weights
  int64_t stride;

  AttentionRows(const Attention& a, int64_t from, int64_t number, float* memory)
      : first(from),
        count(number),
        begin(a.first_key(from, number)),
        end(a.end_key(from, number)),
        queries(memory),
        scores(memory + (number * a.head_dim + 15) / 16 * 16),
        inverses(scores + number * padded(a.rows())),
        stride(padded(a.rows())) {}

  // Number of floats of its memory, which is aligned to 64 bytes.
  static int64_t floats(int64_t rows, int64_t keys, int64_t head_dim) {
    return (rows * head_dim + 15) / 16 * 16 + rows * padded(keys) + (rows + 15) / 16 * 16;
  }

  static int64_t padded(int64_t keys) { return (keys + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }
};

// The steps of attention, each to be done in pieces by any number of threads. `own` is the memory of
// one thread: own_floats() floats.
struct AttentionSteps {
  // Rotates and scales all queries.
  void (*rotate)(const Attention&, const AttentionRows&);
  // Computes the scores of keys [begin, end), where begin is a multiple of `kKeyBlock`.
  void (*score)(const Attention&, const AttentionRows&, int64_t begin, int64_t end, float* own);
  // Turns the scores of rows [begin, end) into weights.
  void (*weigh)(const Attention&, const AttentionRows&, int64_t begin, int64_t end, float* own);
  // Writes dimensions [begin, end) of the results.
  void (*add)(const Attention&, const AttentionRows&, int64_t begin, int64_t end, float* own);
  int64_t (*own_floats)(int64_t keys, int64_t head_dim);
};

enum Activation { kNone = 0, kSilu = 1, kGeluTanh = 2 };

// The steps from products to results: activation(product + bias) [* (up + bias)] + residual.
struct Finish {
  int activation;
  bool gated;             // groups are gates and what they multiply in turn
  int64_t outputs;        // N, or half of it
  const float* bias;      // (groups, 16) or null
  const float* residual;  // (rows, outputs) or null
  float* out;             // (rows, outputs)
};

// One implementation for each instruction set.
struct Kernels {
  const char* name;
  // Products of rows [row, row + rows) with groups [group, group + groups) into
  // out (rows, groups * 16).
  void (*tile)(const Weights&, const Rows&, int64_t row, int rows, int64_t group, int groups,
               float* out);
  // Returns the best tile shape for this number of rows.
  void (*tile_shape)(int bits, int64_t num_rows, int* rows, int* groups);
  // Quantizes one row of `size` values, zero up to `inputs`; `norm` (size,) or null is the weight
  // of an RMS normalization that comes first; `scratch` (inputs,).
  void (*quantize)(const float* x, const float* norm, float epsilon, int64_t size, int64_t inputs,
                   int block, int zero, float* scratch, int8_t* values, float* scales,
                   int32_t* offsets);
  // Turns the products of `rows` rows with a group, or with a group of gates and the next group
  // `up`, into results; their rows are `stride` floats apart.
  void (*finish)(const Finish&, const float* products, const float* up, int64_t stride, int64_t row,
                 int rows, int64_t group);
  // Returns the index of the largest of `size` values, the first of equal ones; 0 if all are NaN.
  int64_t (*argmax)(const float* x, int64_t size);
  // Finds the indices of the `count` largest values, largest first and the first of equal ones; 0
  // where NaN leaves too few values. `best` holds `count` floats.
  void (*top_k)(const float* x, int64_t size, int64_t count, float* best, int64_t* indices);
  // Writes exp(x / temperature - highest) of `size` values to `weights` and returns their sum;
  // `spread` is the sum of the weights times their logarithms.
  double (*weigh)(const float* x, int64_t size, float temperature, float highest, float* weights,
                  double* spread);
  // Sets the weights of values with x / temperature below `least` to zero, and sums the others over
  // parts of `kPart`.
  void (*keep)(const float* x, int64_t size, float temperature, float least, float* weights,
               double* sums);
  // Writes one key (head_dim,), rotated, and one value into the cache.
  void (*append)(const float* key, const float* value, const float* cos, const float* sin,
                 int64_t head_dim, int64_t rotary_dim, float* scratch, uint16_t* to_key,
                 uint16_t* to_value);
  // Does all steps for some query rows, at most `query_rows`. `scratch` holds attend_floats()
  // floats, 64-byte aligned.
  void (*attend)(const Attention&, int64_t first, int64_t count, float* scratch);
  int64_t (*attend_floats)(int64_t rows, int64_t head_dim);
  int query_rows;
  const AttentionSteps* attention;  // null if `attend` is all there is
  const Kernels* general;           // attend where attention is not plain; null if these do
};

const Kernels* portable_kernels();
// These exist on x86-64 only.
const Kernels* avx2_kernels();
const Kernels* avx_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();  // Linux; null where it does not allow them
// These exist on 64-bit ARM only.
const Kernels* neon_dotprod_kernels();
const Kernels* neon_i8mm_kernels();

// The fastest kernels that this processor runs, or those named by MEDUSA_TRT_KERNELS.
const Kernels* kernels();
// The names of all kernels that this processor runs, the fastest first, with spaces between them.
const char* kernel_names();

// The functions below are static, so that each instruction set's file has a copy.

// x (size,) rotated in halves: pairs (i, i + rotary_dim / 2), as Llama does.
static inline void rotate(const float* x, const float* cos, const float* sin, int64_t size,
                   int64_t rotary_dim, float* out) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    out[i] = a * cos[i] - b * sin[i];
    out[i + half] = b * cos[i] + a * sin[i];
  }
  for (int64_t i = rotary_dim; i < size; ++i) out[i] = x[i];
}

static inline float float_from_bfloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

static inline float float_from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  uint32_t bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  if (exponent == 31) bits = sign | 0x7f800000u | (fraction << 13);
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  if (exponent == 0) value = (sign ? -1.0f : 1.0f) * static_cast<float>(fraction) * 0x1p-24f;
  return value;
}

// Rounded to nearest, ties to even; NaN stays NaN.
static inline uint16_t bfloat_from_float(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

}  // namespace medusa
