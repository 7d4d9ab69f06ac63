// Linear layers, and the chain that runs them one after the other.
#pragma once

#include "call.h"
#include "huge_memory.h"
#include "phase.h"

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
    weights.block = weights.bits == 8 ? 64 : kLeastBlock;
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

  // Whether the layer takes rows of this many values.
  bool reads(int64_t size) const {
    return size > 0 && size <= weights.inputs && size > weights.inputs - 64 &&
           (norm_size == 0 || norm_size == size);
  }

 private:
  // Returns a fast copy of a constant input; null for an input that is absent or computed.
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

// Layers that run one after the other on the same threads.
//
// Waking ONNX Runtime's threads takes about 4 µs, as long as a small layer. Here the threads wait
// for each other between layers without going to sleep.
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
    size_t inner = 0, values = 0, blocks = 0, widest = 0;
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
      widest = row_values > widest ? row_values : widest;
    }
    if (num_rows == 0) return;
    float* free = scratch<float>(Scratch::kInner, inner);
    const Quantized shared = {scratch<int8_t>(Scratch::kValues, values),
                              scratch<float>(Scratch::kScales, blocks),
                              scratch<int32_t>(Scratch::kOffsets, blocks)};
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
    call.parallel([&](Worker& worker) {
      float* row = scratch<float>(Scratch::kTask, widest);
      for (size_t i = 0; i < layers.size(); ++i) {
        if (!run[i].work(layers[i], num_rows, shared, row, worker)) return;
        if (i + 1 < layers.size()) run[i + 1].fetch(layers[i + 1].weights, worker.half());
        if (!worker.wait(run[i].products)) return;
      }
    });
  }

 private:
  static constexpr int64_t kAlone = 1 << 12;  // values that a thread rather quantizes for itself
  static constexpr int kFetched = 8192;

  // Rows as they are written; see `Rows`.
  struct Quantized {
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
    int64_t span, spans_a_task;
    bool quantizes_together;
    Phase quantization, products;

    void plan(const Layer& layer, int64_t num_rows, const float* added) {
      const Weights& w = layer.weights;
      finish = {layer.activation, layer.gated, layer.outputs,
                reinterpret_cast<const float*>(layer.bias.get()), added, out};
      kernels()->tile_shape(w.bits, num_rows, &tile_rows, &tile_groups);
      // Number of groups that are written together: gate and up, or a tile.
      span = layer.gated && tile_groups % 2 ? 2 : tile_groups;
      constexpr int64_t kTasks = 64;  // enough for an even split between threads
      const int64_t spans = (w.groups + span - 1) / span;
      spans_a_task = (spans + kTasks - 1) / kTasks;
      products.begin((spans + spans_a_task - 1) / spans_a_task);
      quantizes_together = num_rows * w.inputs > kAlone;
      quantization.begin(quantizes_together ? num_rows : 0);
    }

    // Does the work of one thread, and returns false if it must leave; `row` is the thread's memory
    // for one row.
    bool work(const Layer& layer, int64_t num_rows, const Quantized& shared, float* row,
              Worker& worker) {
      if (quantizes_together) {
        worker.take(quantization, [&](int64_t index) {
          MEDUSA_TEST_POINT("quantize");
          quantize(layer, index, row, shared);
        });
        if (!worker.wait(quantization)) return false;
        multiply_some(layer.weights, shared, num_rows, worker);
      } else if (!products.is_taken()) {
        MEDUSA_TEST_POINT("quantize alone");
        alignas(64) int8_t values[kAlone];
        float scales[kAlone / kLeastBlock];
        int32_t offsets[kAlone / kLeastBlock];
        const Quantized input = {values, scales, offsets};
        for (int64_t index = 0; index < num_rows; ++index) quantize(layer, index, row, input);
        multiply_some(layer.weights, input, num_rows, worker);
      }
      return true;
    }

    void multiply_some(const Weights& w, const Quantized& x, int64_t num_rows, Worker& worker) {
      worker.take(products, [&](int64_t task) {
        MEDUSA_TEST_POINT("multiply");
        multiply(w, {x.values, x.scales, x.offsets}, num_rows, task);
      });
    }

    // Prefetches the first weights of a thread, as many bytes as kernels prefetch.
    void fetch(const Weights& w, int half) const {
      const int64_t group = products.first(half) * spans_a_task * span;
      if (group >= w.groups) return;
      const char* first = reinterpret_cast<const char*>(w.data) + group * w.group_bytes();
      for (int byte = 0; byte < kFetched; byte += 64) __builtin_prefetch(first + byte, 0, 2);
    }

    void quantize(const Layer& layer, int64_t index, float* row, const Quantized& to) const {
      const Weights& w = layer.weights;
      kernels()->quantize(source + index * size, reinterpret_cast<const float*>(layer.norm.get()),
                          layer.epsilon, size, w.inputs, w.block, w.zero(), row,
                          to.values + index * w.inputs, to.scales + index * w.blocks(),
                          to.offsets + index * w.blocks());
    }

    void multiply(const Weights& w, const Rows& x, int64_t num_rows, int64_t task) const {
      alignas(64) float sums[2 * kMaxTileRows * kMaxTileGroups * kLanes];
      for (int64_t part = task * spans_a_task; part < (task + 1) * spans_a_task; ++part) {
        const int64_t group = part * span;
        if (group >= w.groups) break;
        const int groups = static_cast<int>(w.groups - group < span ? w.groups - group : span);
        for (int64_t row = 0; row < num_rows; row += tile_rows) {
          const int rows = static_cast<int>(num_rows - row < tile_rows ? num_rows - row : tile_rows);
          // Computes one tile, or several smaller ones.
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

}  // namespace
}  // namespace medusa
