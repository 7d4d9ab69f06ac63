// The operators ArgMax and TopK.
#pragma once

#include <cmath>

#include "call.h"

namespace medusa {
namespace {

// The index of each row's largest value; ONNX Runtime's ArgMax is five times slower.
//
// Input: x (..., N) float. Output: (...) int64.
class ArgMax {
 public:
  static constexpr const char* kName = "ArgMax";
  static constexpr size_t kInputs = 1, kRequiredInputs = 1, kOutputs = 1, kRequiredOutputs = 1;

  static bool may_lack(size_t) { return false; }
  static ort::ElementType input_type(size_t) { return ort::kFloat; }
  static ort::ElementType output_type(size_t) { return ort::kInt64; }

  ArgMax(const Api*, const ort::KernelInfo*) {}

  void compute(const Call& call) const {
    const Tensor x = call.input(0);
    call.require(!x.shape.empty() && x.shape.back() > 0, kName, "x has no values");
    std::vector<int64_t> shape = x.shape;
    const int64_t size = shape.back();
    shape.pop_back();
    const Tensor out = call.output(0, shape);
    call.for_each(out.size(), 0, [&](int64_t row, float*) {
      out.as<int64_t>()[row] = kernels()->argmax(x.as<const float>() + row * size, size);
    });
  }
};

// The indices of each row's largest values, largest first, and the logarithms of their shares in
// the row's softmax; ONNX Runtime's operators are slower.
//
// Input: x (..., N) float. Outputs: (..., count) int64 and, if it is wanted, (..., count) float.
class TopK {
 public:
  static constexpr const char* kName = "TopK";
  static constexpr size_t kInputs = 1, kRequiredInputs = 1, kOutputs = 2, kRequiredOutputs = 1;

  static bool may_lack(size_t) { return false; }
  static ort::ElementType input_type(size_t) { return ort::kFloat; }
  static ort::ElementType output_type(size_t index) {
    return index == 0 ? ort::kInt64 : ort::kFloat;
  }

  TopK(const Api* api, const ort::KernelInfo* info) : count_(int_attribute(api, info, "count")) {}

  void compute(const Call& call) const {
    const Tensor x = call.input(0);
    call.require(!x.shape.empty() && count_ > 0 && x.shape.back() >= count_, kName,
                 "x has fewer values than are wanted");
    std::vector<int64_t> shape = x.shape;
    const int64_t size = shape.back();
    shape.back() = count_;
    const Tensor out = call.output(0, shape);
    float* logprobs = call.output(1, shape).as<float>();
    call.for_each(out.size() / count_, size, [&](int64_t row, float* buffer) {
      const float* values = x.as<const float>() + row * size;
      int64_t* indices = out.as<int64_t>() + row * count_;
      kernels()->top_k(values, size, count_, buffer, indices);
      if (!logprobs) return;
      double spread = 0;
      const float highest = values[indices[0]];
      const double total = kernels()->weigh(values, size, 1.0f, highest, buffer, &spread);
      for (int64_t i = 0; i < count_; ++i)
        logprobs[row * count_ + i] =
            static_cast<float>(values[indices[i]] - highest - std::log(total));
    });
  }

 private:
  int64_t count_;
};

}  // namespace
}  // namespace medusa
