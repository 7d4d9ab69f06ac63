// The operators Linear and LinearChain.
#pragma once

#include "call.h"
#include "huge_memory.h"

namespace medusa {
namespace {

// One linear layer: y = activation(norm(x) W + bias) + residual, or activation(gate) * up +
// residual where the 16-column groups of W are gate and up in turn.
struct Layer {
  static constexpr int kExternal = -1, kNone = -2;

  Weights weights;
  HugeMemory::Bytes data, scales, norm, bias;
  int activation;
  bool gated;
  int64_t outputs;
  float epsilon;
  int source = kExternal;  // the layer whose output it reads, or x
  int residual = kNone;    // the layer whose output is added, the chain's residual, or none
  int64_t norm_size = 0;   // of `norm`

  // Reads attributes whose names end in `suffix`, and constants from input `first` on: weight
  // (groups, inputs * 16 * bits / 8) uint8 and scales (groups, blocks, 16) float16 as `Weights`
  // describes; norm (inputs,) and bias (groups * 16,), each optional.
  Layer(const Api* api, const ort::KernelInfo* info, const std::string& suffix, size_t first,
        const char* op) {
    const auto integer = [&](const char* name) {
      return int_attribute(api, info, (name + suffix).c_str());
    };
    activation = static_cast<int>(integer("activation"));
    gated = integer("gated") != 0;
    outputs = integer("num_outputs");
    epsilon = float_attribute(api, info, ("epsilon" + suffix).c_str());
    weights.bits = static_cast<int>(integer("bits"));
    const auto require = [&](bool condition, const char* what) {
      if (!condition)
        throw Failure{api->create_status(kInvalidArgument, (std::string(op) + ": " + what).c_str())};
    };
    require(weights.bits == 8 || weights.bits == 4, "bits is neither 8 nor 4");
    weights.block = weights.bits == 8 ? 64 : 32;
    std::vector<int64_t> shape, scales_shape;
    data = constant(api, info, first, sizeof(uint8_t), &shape);
    scales = constant(api, info, first + 1, sizeof(uint16_t), &scales_shape);
    require(data && scales, "the weight is no constant, or memory is short");
    require(shape.size() == 2 && scales_shape.size() == 3, "a rank is wrong");
    weights.inputs = shape[1] * 8 / (weights.bits * kLanes);
    weights.groups = shape[0];
    weights.data = reinterpret_cast<const uint8_t*>(data.get());
    weights.scales = reinterpret_cast<const uint16_t*>(scales.get());
    require(weights.inputs > 0 && weights.inputs % 64 == 0,
            "the number of inputs is no multiple of 64");
    require(scales_shape[0] == weights.groups && scales_shape[1] == weights.blocks() &&
                scales_shape[2] == kLanes,
            "weight and scales differ in shape");
    const int64_t columns = (gated ? weights.groups / 2 : weights.groups) * kLanes;
    require((!gated || weights.groups % 2 == 0) && outputs > columns - kLanes &&
                outputs <= columns,
            "the weight has another number of outputs than the node");
    std::vector<int64_t> norm_shape, bias_shape;
    norm = constant(api, info, first + 2, sizeof(float), &norm_shape);
    bias = constant(api, info, first + 3, sizeof(float), &bias_shape);
    require(!norm || norm_shape.size() == 1, "norm has another size than x");
    require(!bias || (bias_shape.size() == 1 && bias_shape[0] == weights.groups * kLanes),
            "bias has another size than the weight");
    norm_size = norm ? norm_shape[0] : 0;
  }

  // Whether rows of so many values are its inputs.
  bool reads(int64_t size) const {
    return size > 0 && size <= weights.inputs && size > weights.inputs - 64 &&
           (norm_size == 0 || norm_size == size);
  }

 private:
  // A fast copy of a constant input; null for one that is absent or computed.
  static HugeMemory::Bytes constant(const Api* api, const ort::KernelInfo* info, size_t index,
                                    size_t item, std::vector<int64_t>* shape) {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api->constant_input(info, index, &is_constant, &value));
    if (!is_constant || !value) return nullptr;
    const Tensor tensor = tensor_of(api, value);
    *shape = tensor.shape;
    return HugeMemory::copy(tensor.data, static_cast<size_t>(tensor.size()) * item);
  }
};

// Layers that run one after the other in one call.
class Chain {
 public:
  static constexpr size_t kMostLayers = 8;

  std::vector<Layer> layers;
  std::vector<int> results;  // layers whose outputs are the operator's, in turn

  void compute(const Call& call, const char* op, const Tensor& x, const Tensor& residual) const {
    call.require(!x.shape.empty() && x.shape.back() > 0, op, "x has no values");
    const int64_t num_rows = x.size() / x.shape.back();
    Run run[kMostLayers];
    std::vector<int64_t> shape = x.shape;
    for (size_t i = 0; i < results.size(); ++i) {
      const size_t index = static_cast<size_t>(results[i]);
      shape.back() = layers[index].outputs;
      run[index].out = call.output(i, shape).as<float>();
    }
    size_t inner = 0, values = 0, blocks = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      const bool external = layer.source == Layer::kExternal;
      run[i].size = external ? x.shape.back() : layers[static_cast<size_t>(layer.source)].outputs;
      call.require(layer.reads(run[i].size), op,
                   "the weight has another number of inputs than x");
      if (layer.residual == Layer::kExternal && residual.data)
        call.require(residual.size() == num_rows * layer.outputs, op,
                     "residual has another size than the output");
      const size_t rows = static_cast<size_t>(num_rows);
      if (!run[i].out) inner += rows * static_cast<size_t>(layer.outputs);
      const size_t row_values = static_cast<size_t>(layer.weights.inputs);
      const size_t row_blocks = static_cast<size_t>(layer.weights.blocks());
      values = rows * row_values > values ? rows * row_values : values;
      blocks = rows * row_blocks > blocks ? rows * row_blocks : blocks;
    }
    if (num_rows == 0) return;
    float* free = scratch<float>(4, inner);
    const Shared shared = {scratch<int8_t>(0, values), scratch<float>(1, blocks),
                           scratch<int32_t>(2, blocks)};
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      if (!run[i].out) {
        run[i].out = free;
        free += num_rows * layer.outputs;
      }
      run[i].source = layer.source == Layer::kExternal
                          ? x.as<const float>()
                          : run[static_cast<size_t>(layer.source)].out;
      const float* added =
          layer.residual == Layer::kNone       ? nullptr
          : layer.residual == Layer::kExternal ? residual.as<const float>()
                                               : run[static_cast<size_t>(layer.residual)].out;
      run[i].plan(layer, num_rows, added);
    }
    for (size_t i = 0; i < layers.size(); ++i) {
      const Run& step = run[i];
      const Layer& layer = layers[i];
      const auto quantize = [&](int64_t row) { step.quantize(layer, row, shared); };
      constexpr int64_t kWorthThreads = 1 << 15;  // values; below, waking threads costs more
      if (num_rows * layer.weights.inputs < kWorthThreads)
        for (int64_t row = 0; row < num_rows; ++row) quantize(row);
      else
        call.parallel(num_rows, quantize);
      call.parallel(step.tasks, [&](int64_t task) {
        step.multiply(layer.weights, {shared.values, shared.scales, shared.offsets}, num_rows, task);
      });
    }
  }

 private:
  struct Shared {
    int8_t* values;
    float* scales;
    int32_t* offsets;
  };

  // One layer in one call.
  struct Run {
    int64_t size;  // of a row that it reads
    const float* source = nullptr;
    float* out = nullptr;
    Finish finish;
    int tile_rows, tile_groups;
    int64_t span, spans_a_task, tasks;

    void plan(const Layer& layer, int64_t num_rows, const float* added) {
      const Weights& w = layer.weights;
      finish = {layer.activation, layer.gated, layer.outputs,
                reinterpret_cast<const float*>(layer.bias.get()), added, out};
      kernels()->tile_shape(w.bits, num_rows, &tile_rows, &tile_groups);
      // What is written together: gate and up, or a tile.
      span = layer.gated && tile_groups % 2 ? 2 : tile_groups;
      constexpr int64_t kTasks = 64;  // enough for an even split between threads
      const int64_t spans = (w.groups + span - 1) / span;
      spans_a_task = (spans + kTasks - 1) / kTasks;
      tasks = (spans + spans_a_task - 1) / spans_a_task;
    }

    void quantize(const Layer& layer, int64_t row, const Shared& to) const {
      const Weights& w = layer.weights;
      kernels()->quantize(source + row * size, reinterpret_cast<const float*>(layer.norm.get()),
                          layer.epsilon, size, w.inputs, w.block, w.zero(),
                          scratch<float>(3, static_cast<size_t>(w.inputs)),
                          to.values + row * w.inputs, to.scales + row * w.blocks(),
                          to.offsets + row * w.blocks());
    }

    void multiply(const Weights& w, const Rows& x, int64_t num_rows, int64_t task) const {
      alignas(64) float sums[2 * kMaxTileRows * kMaxTileGroups * kLanes];
      for (int64_t part = task * spans_a_task; part < (task + 1) * spans_a_task; ++part) {
        const int64_t group = part * span;
        if (group >= w.groups) break;
        const int groups = static_cast<int>(w.groups - group < span ? w.groups - group : span);
        for (int64_t row = 0; row < num_rows; row += tile_rows) {
          const int rows = static_cast<int>(num_rows - row < tile_rows ? num_rows - row : tile_rows);
          // One tile, or several of what fits.
          for (int first = 0; first < groups; first += tile_groups) {
            const int count = groups - first < tile_groups ? groups - first : tile_groups;
            kernels()->tile(w, x, row, rows, group + first, count, sums + first * rows * kLanes);
          }
          const int stride = groups < tile_groups ? groups : tile_groups;
          for (int g = 0; g < groups; g += finish.gated ? 2 : 1)
            kernels()->finish(finish, at(sums, rows, stride, g),
                              finish.gated ? at(sums, rows, stride, g + 1) : nullptr,
                              stride * kLanes, row, rows, group + g);
        }
      }
    }

    // The first row's sums of group g, in tiles of `stride` groups.
    static float* at(float* sums, int rows, int stride, int g) {
      return sums + (g / stride * stride * rows + g % stride) * kLanes;
    }
  };
};

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
