// The operator TreeAttention.
#pragma once

#include "attention_step.h"

namespace medusa {
namespace {

// Rotary embedding, cache update and attention of T nodes under a tree mask, for B sequences of
// different lengths.
//
// Inputs: query (B, T, heads * D), or with key and value absent all three in one; key and value
// (B, T, kv_heads * D); past_key and past_value (B, kv_heads, capacity, D); past_length (B,) int64;
// position_offsets (B, T) int64; tree_mask (B, T, T), 0 or a value that hides a node; cos and sin
// (positions, rotary_dim / 2); sinks (heads,), a score of each query head that joins the sum of
// weights, or absent. The cache is bfloat16. Bundles of version 0.1 have one tree for all
// sequences, (T,) and (T, T).
// Attributes: num_heads, kv_num_heads, scale; and where a layer has these, window, the number of
// positions up to its own that a node sees; chunk, where a node sees only positions of its own chunk
// of so many; softcap, which replaces a score x by softcap * tanh(x / softcap).
// Outputs: attended (B, T, heads * D) and the updated cache, which may share memory with the past.
class TreeAttention {
 public:
  static constexpr const char* kName = "TreeAttention";
  static constexpr size_t kInputs = 11, kRequiredInputs = 10, kOutputs = 3;
  static constexpr size_t kRequiredOutputs = kOutputs;

  static bool may_lack(size_t index) { return index == 1 || index == 2; }

  static ort::ElementType input_type(size_t index) {
    if (index == 3 || index == 4) return ort::kBfloat16;
    return index == 5 || index == 6 ? ort::kInt64 : ort::kFloat;
  }

  static ort::ElementType output_type(size_t index) {
    return index == 0 ? ort::kFloat : ort::kBfloat16;
  }

  TreeAttention(const Api* api, const ort::KernelInfo* info)
      : heads_(int_attribute(api, info, "num_heads")),
        kv_heads_(int_attribute(api, info, "kv_num_heads")),
        scale_(float_attribute(api, info, "scale")),
        window_(int_attribute(api, info, "window", 0)),
        chunk_(int_attribute(api, info, "chunk", 0)),
        softcap_(float_attribute(api, info, "softcap", 0.0f)) {}

  void compute(const Call& call) const {
    const Tensor query = call.input(0), key = call.input(1), value = call.input(2);
    const Tensor past_key = call.input(3), past_value = call.input(4);
    const Tensor past_length = call.input(5), offsets = call.input(6), mask = call.input(7);
    const Tensor cos = call.input(8), sin = call.input(9), sinks = call.input(10);
    call.require(query.shape.size() == 3 && past_key.shape.size() == 4 && cos.shape.size() == 2 &&
                     past_key.shape == past_value.shape && cos.shape == sin.shape,
                 kName, "a rank or shape is wrong");
    const int64_t batch = query.shape[0], nodes = query.shape[1];
    const int64_t capacity = past_key.shape[2], size = past_key.shape[3];
    const bool packed = !key.data;
    const int64_t width = (packed ? heads_ + 2 * kv_heads_ : heads_) * size;
    call.require(past_key.shape[0] == batch && past_key.shape[1] == kv_heads_ &&
                     query.shape[2] == width && past_length.size() == batch &&
                     (offsets.size() == nodes || offsets.size() == batch * nodes) &&
                     mask.size() == offsets.size() * nodes &&
                     2 * cos.shape[1] <= size && (!sinks.data || sinks.size() == heads_),
                 kName, "inputs differ in shape");
    if (!packed) {
      const std::vector<int64_t> shape = {batch, nodes, kv_heads_ * size};
      call.require(key.shape == shape && value.shape == shape, kName, "inputs differ in shape");
    }
    const int64_t* pasts = past_length.as<const int64_t>();
    const int64_t tree_stride = offsets.size() == nodes ? 0 : nodes;  // from tree to tree
    for (int64_t b = 0; b < batch; ++b) {
      call.require(pasts[b] >= 0 && pasts[b] <= capacity - nodes, kName,
                   "the nodes do not fit the cache");
      for (int64_t t = 0; t < nodes; ++t) {
        const int64_t position = pasts[b] + offsets.as<const int64_t>()[b * tree_stride + t];
        call.require(position >= 0 && position < cos.shape[0], kName,
                     "a position is outside the rotary table");
      }
    }
    const Tensor out = call.output(0, {batch, nodes, heads_ * size});
    const Tensor new_key = call.output(1, past_key.shape);
    const Tensor new_value = call.output(2, past_value.shape);
    copy_unless_same(past_key, new_key);
    copy_unless_same(past_value, new_value);
    if (batch * nodes == 0) return;

    AttentionStep step;
    step.batch = batch;
    step.heads = kv_heads_;
    step.capacity = capacity;
    step.query_stride = nodes * width;
    step.kv_stride = packed ? width : kv_heads_ * size;
    step.new_keys = packed ? query.as<float>() + heads_ * size : key.as<float>();
    step.new_values = packed ? step.new_keys + kv_heads_ * size : value.as<float>();
    step.pasts = pasts;
    step.tree_stride = tree_stride;
    step.to_keys = new_key.as<uint16_t>();
    step.to_values = new_value.as<uint16_t>();
    step.offsets = offsets.as<const int64_t>();
    step.window = window_;
    step.chunk = chunk_;
    Attention& a = step.shared;
    a.group = heads_ / kv_heads_;
    a.head_dim = size;
    a.nodes = nodes;
    a.scale = scale_;
    a.queries = query.as<float>();
    a.row_stride = width;
    a.mask = mask.as<float>();
    a.cos = cos.as<float>();
    a.sin = sin.as<float>();
    a.rotary_dim = 2 * cos.shape[1];
    a.softcap = softcap_;
    a.sinks = sinks.as<float>();
    a.out = out.as<float>();
    a.out_stride = heads_ * size;
    step.run(call);
  }

 private:
  static void copy_unless_same(const Tensor& from, const Tensor& to) {
    if (from.data != to.data)
      std::memcpy(to.data, from.data, static_cast<size_t>(from.size()) * sizeof(uint16_t));
  }

  int64_t heads_, kv_heads_;
  float scale_;
  int64_t window_, chunk_;
  float softcap_;
};

}  // namespace
}  // namespace medusa
