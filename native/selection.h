// The operators ArgMax and TopK.
#pragma once

#include "call.h"

namespace medusa {
namespace {

// The index of each row's largest value; ONNX Runtime's own is five times slower.
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
    call.parallel(out.size(), [&](int64_t row) {
      out.as<int64_t>()[row] = kernels()->argmax(x.as<const float>() + row * size, size);
    });
  }
};

// The indices of each row's largest values, largest first; ONNX Runtime's own is slower.
//
// Input: x (..., N) float. Output: (..., count) int64.
class TopK {
 public:
  static constexpr const char* kName = "TopK";
  static constexpr size_t kInputs = 1, kRequiredInputs = 1, kOutputs = 1, kRequiredOutputs = 1;

  static bool may_lack(size_t) { return false; }
  static ort::ElementType input_type(size_t) { return ort::kFloat; }
  static ort::ElementType output_type(size_t) { return ort::kInt64; }

  TopK(const Api* api, const ort::KernelInfo* info) : count_(int_attribute(api, info, "count")) {}

  void compute(const Call& call) const {
    const Tensor x = call.input(0);
    call.require(!x.shape.empty() && count_ > 0 && x.shape.back() >= count_, kName,
                 "x has fewer values than are wanted");
    std::vector<int64_t> shape = x.shape;
    const int64_t size = shape.back();
    shape.back() = count_;
    const Tensor out = call.output(0, shape);
    call.parallel(out.size() / count_, [&](int64_t row) {
      kernels()->top_k(x.as<const float>() + row * size, size, count_,
                       scratch<float>(Scratch::kTask, static_cast<size_t>(count_)),
                       out.as<int64_t>() + row * count_);
    });
  }

 private:
  int64_t count_;
};

}  // namespace
}  // namespace medusa
