// The operator Embedding.
#pragma once

#include "call.h"

namespace medusa {
namespace {

// Rows of a table of token embeddings, which is stored as a layer's weights are: the same bytes
// serve a model whose unembedding is the same matrix.
//
// Inputs: ids (...) int64; the table's weight and scales, as Linear has them, with 8 bits, one
// output for each token. Attribute: `size`, the values of a row. Output: (..., size) float.
class Embedding {
 public:
  static constexpr const char* kName = "Embedding";
  static constexpr size_t kInputs = 3, kRequiredInputs = 3, kOutputs = 1, kRequiredOutputs = 1;

  static bool may_lack(size_t) { return false; }
  static ort::ElementType input_type(size_t index) {
    return index == 0 ? ort::kInt64 : index == 1 ? ort::kUint8 : ort::kFloat16;
  }
  static ort::ElementType output_type(size_t) { return ort::kFloat; }

  Embedding(const Api* api, const ort::KernelInfo* info) : size_(int_attribute(api, info, "size")) {}

  void compute(const Call& call) const {
    const Tensor ids = call.input(0), data = call.input(1), scales = call.input(2);
    const int64_t inputs = (size_ + 63) / 64 * 64;
    call.require(size_ > 0 && data.shape.size() == 2 && scales.shape.size() == 3 &&
                     data.shape[1] == inputs * kLanes && scales.shape[0] == data.shape[0] &&
                     scales.shape[1] * kBlock == inputs && scales.shape[2] == kLanes,
                 kName, "weight and scales do not have the shapes of this size");
    std::vector<int64_t> shape = ids.shape;
    shape.push_back(size_);
    const Tensor out = call.output(0, shape);
    for (int64_t row = 0; row < ids.size(); ++row) {
      const int64_t id = ids.as<const int64_t>()[row], group = id / kLanes, lane = id % kLanes;
      call.require(id >= 0 && group < data.shape[0], kName, "an id is not in the table");
      const uint8_t* codes = data.as<const uint8_t>() + group * data.shape[1] + lane * kQuad;
      const uint16_t* group_scales = scales.as<const uint16_t>() + group * inputs / kBlock * kLanes;
      float* values = out.as<float>() + row * size_;
      for (int64_t block = 0; block * kBlock < size_; ++block) {
        const float scale = float_from_half(group_scales[block * kLanes + lane]);
        const int64_t first = block * kBlock, end = size_ < first + kBlock ? size_ : first + kBlock;
        for (int64_t i = first; i < end; ++i) {
          const int code = codes[i / kQuad * kQuad * kLanes + i % kQuad] - 128;
          values[i] = static_cast<float>(code) * scale;
        }
      }
    }
  }

 private:
  static constexpr int64_t kBlock = 64, kQuad = 4;  // see kernels.h

  int64_t size_;
};

}  // namespace
}  // namespace medusa
