// The operators Linear and LinearChain.
#pragma once

#include "chain.h"

namespace medusa {
namespace {

// One layer.
//
// Inputs: x (..., K) float; the layer's weight, scales, norm and bias; residual (..., N), optional.
// Output: y (..., N) float.
class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr size_t kInputs = 6, kRequiredInputs = 3, kOutputs = 1, kRequiredOutputs = 1;

  static bool may_lack(size_t) { return false; }

  static ort::ElementType input_type(size_t index) {
    return index == 1 ? ort::kUint8 : index == 2 ? ort::kFloat16 : ort::kFloat;
  }

  static ort::ElementType output_type(size_t) { return ort::kFloat; }

  Linear(const Api* api, const ort::KernelInfo* info) {
    chain_.layers.emplace_back(api, info, "", 1, kName);
    chain_.layers[0].residual = Layer::kExternal;  // null where there is none
    chain_.results = {0};
  }

  void compute(const Call& call) const {
    chain_.compute(call, kName, call.input(0), call.input(5));
  }

 private:
  Chain chain_;
};

// Several layers.
//
// Inputs: x (..., K) float; residual (..., N) float, optional; for each layer its weight, scales,
// norm and bias. Attributes: `num_layers`; with the layer's number appended, those of Linear,
// `source` (the layer that it reads, -1 for x) and `residual` (the layer that it adds, -1 for the
// input, -2 for none); `num_results` and `result0`, ... the layers whose outputs are wanted.
// Outputs: (..., outputs of the layer) float.
class LinearChain {
 public:
  static constexpr const char* kName = "LinearChain";
  static constexpr size_t kInputs = 2 + 4 * Chain::kMostLayers, kRequiredInputs = 4;
  static constexpr size_t kOutputs = Chain::kMostLayers, kRequiredOutputs = 1;

  static bool may_lack(size_t index) { return index == 1; }

  static ort::ElementType input_type(size_t index) {
    if (index < 2) return ort::kFloat;
    return index % 4 == 2 ? ort::kUint8 : index % 4 == 3 ? ort::kFloat16 : ort::kFloat;
  }

  static ort::ElementType output_type(size_t) { return ort::kFloat; }

  LinearChain(const Api* api, const ort::KernelInfo* info) {
    const auto integer = [&](const char* name, int64_t number) {
      return static_cast<int>(
          int_attribute(api, info, (name + std::to_string(number)).c_str()));
    };
    const auto require = [&](bool condition, const char* what) {
      if (!condition)
        throw Failure{api->create_status(kInvalidArgument, (std::string(kName) + what).c_str())};
    };
    const int64_t count = int_attribute(api, info, "num_layers");
    const int64_t num_results = int_attribute(api, info, "num_results");
    require(count > 0 && count <= static_cast<int64_t>(Chain::kMostLayers) && num_results > 0 &&
                num_results <= count,
            ": a number of layers or results is wrong");
    for (int64_t i = 0; i < count; ++i) {
      chain_.layers.emplace_back(api, info, std::to_string(i), 2 + 4 * static_cast<size_t>(i),
                                 kName);
      Layer& layer = chain_.layers.back();
      layer.source = integer("source", i);
      layer.residual = integer("residual", i);
      require(layer.source >= Layer::kExternal && layer.source < i &&
                  layer.residual >= Layer::kNone && layer.residual < i,
              ": a layer reads one that comes later");
      require(layer.residual < 0 ||
                  chain_.layers[static_cast<size_t>(layer.residual)].outputs == layer.outputs,
              ": a residual has another size than the output");
    }
    for (int64_t i = 0; i < num_results; ++i) {
      chain_.results.push_back(integer("result", i));
      require(chain_.results.back() >= 0 && chain_.results.back() < count,
              ": a result is of no layer");
    }
  }

  void compute(const Call& call) const {
    const Tensor residual = call.input(1);
    for (const Layer& layer : chain_.layers)
      call.require(layer.residual != Layer::kExternal || residual.data, kName,
                   "the residual is missing");
    chain_.compute(call, kName, call.input(0), residual);
  }

 private:
  Chain chain_;
};

}  // namespace
}  // namespace medusa
