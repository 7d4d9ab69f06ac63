// The operators of domain "medusa_trt", and their registration with ONNX Runtime.
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "huge_memory.h"
#include "kernels.h"
#include "ort_abi.h"

namespace medusa {
namespace {

using ort::Api;
using ort::Status;

constexpr int kInvalidArgument = 2;

// A failure on its way to the operator's caller.
struct Failure {
  Status* status;
};

void check(Status* status) {
  if (status) throw Failure{status};
}

struct Tensor {
  char* data = nullptr;
  std::vector<int64_t> shape;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  int64_t size() const {
    int64_t product = 1;
    for (int64_t dim : shape) product *= dim;
    return product;
  }
};

// Scratch memory of the calling thread, aligned for vectors.
template <typename T>
T* scratch(int which, size_t count) {
  thread_local std::vector<char> buffers[4];
  std::vector<char>& buffer = buffers[which];
  if (buffer.size() < count * sizeof(T) + 64) buffer.resize(count * sizeof(T) + 64);
  const uintptr_t address = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

Tensor tensor_of(const Api* api, const ort::Value* value) {
  ort::ShapeInfo* info = nullptr;
  check(api->shape_info(value, &info));
  size_t rank = 0;
  Status* status = api->dimensions_count(info, &rank);
  Tensor tensor;
  tensor.shape.resize(rank);
  if (!status) status = api->dimensions(info, tensor.shape.data(), rank);
  api->release_shape_info(info);
  check(status);
  void* data = nullptr;
  check(api->data(const_cast<ort::Value*>(value), &data));
  tensor.data = static_cast<char*>(data);
  return tensor;
}

// What a kernel does with ONNX Runtime.
class Call {
 public:
  Call(const Api* api, ort::KernelContext* context) : api_(api), context_(context) {}

  // An input; absent ones have no data.
  Tensor input(size_t index) const {
    size_t count = 0;
    check(api_->input_count(context_, &count));
    const ort::Value* value = nullptr;
    if (index < count) check(api_->input(context_, index, &value));
    return value ? tensor_of(api_, value) : Tensor();
  }

  Tensor output(size_t index, const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    check(api_->output(context_, index, shape.data(), shape.size(), &value));
    Tensor tensor;
    tensor.shape = shape;
    void* data = nullptr;
    check(api_->data(value, &data));
    tensor.data = static_cast<char*>(data);
    return tensor;
  }

  // Calls task(0) ... task(total - 1) on the session's threads.
  template <typename Task>
  void parallel(int64_t total, const Task& task) const {
    if (total == 0) return;
    if (total == 1) return task(0);
    const auto call = [](void* argument, size_t index) {
      (*static_cast<const Task*>(argument))(static_cast<int64_t>(index));
    };
    void* argument = const_cast<void*>(static_cast<const void*>(&task));
    check(api_->parallel_for(context_, call, static_cast<size_t>(total), 0, argument));
  }

  void require(bool condition, const char* op, const char* what) const {
    if (!condition)
      throw Failure{api_->create_status(kInvalidArgument, (std::string(op) + ": " + what).c_str())};
  }

 private:
  const Api* api_;
  ort::KernelContext* context_;
};

int64_t int_attribute(const Api* api, const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api->int_attribute(info, name, &value));
  return value;
}

float float_attribute(const Api* api, const ort::KernelInfo* info, const char* name) {
  float value = 0;
  check(api->float_attribute(info, name, &value));
  return value;
}

// y = activation(norm(x) W + bias) + residual, or activation(gate) * up + residual where the
// 16-column groups of W are gate and up in turn.
//
// Inputs: x (..., K) float; weight (groups, inputs * 16 * bits / 8) uint8 and scales (groups,
// blocks, 16) float16 as `Weights` describes; norm (K,), bias (groups * 16,) and residual (..., N),
// each optional. Output: y (..., N) float.
class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr size_t kInputs = 6, kRequiredInputs = 3, kOutputs = 1;

  static ort::ElementType input_type(size_t index) {
    return index == 1 ? ort::kUint8 : index == 2 ? ort::kFloat16 : ort::kFloat;
  }

  static ort::ElementType output_type(size_t) { return ort::kFloat; }

  Linear(const Api* api, const ort::KernelInfo* info)
      : bits_(static_cast<int>(int_attribute(api, info, "bits"))),
        activation_(static_cast<int>(int_attribute(api, info, "activation"))),
        gated_(int_attribute(api, info, "gated") != 0),
        outputs_(int_attribute(api, info, "num_outputs")),
        epsilon_(float_attribute(api, info, "epsilon")),
        weight_(constant(api, info, 1)),
        scales_(constant(api, info, 2)) {}

  void compute(const Call& call) const {
    const Tensor x = call.input(0), weight = call.input(1), scales = call.input(2);
    const Tensor norm = call.input(3), bias = call.input(4), residual = call.input(5);
    call.require(bits_ == 8 || bits_ == 4, kName, "bits is neither 8 nor 4");
    call.require(!x.shape.empty() && weight.shape.size() == 2 && scales.shape.size() == 3, kName,
                 "a rank is wrong");
    const int64_t size = x.shape.back();
    Weights w;
    w.bits = bits_;
    w.block = bits_ == 8 ? 64 : 32;
    w.inputs = weight.shape[1] * 8 / (bits_ * kLanes);
    w.groups = weight.shape[0];
    w.data = reinterpret_cast<const uint8_t*>(weight_ ? weight_.get() : weight.data);
    w.scales = reinterpret_cast<const uint16_t*>(scales_ ? scales_.get() : scales.data);
    call.require(w.inputs % 64 == 0 && size > 0 && size <= w.inputs && size > w.inputs - 64, kName,
                 "the weight has another number of inputs than x");
    call.require(scales.size() == w.groups * w.blocks() * kLanes, kName,
                 "weight and scales differ in shape");
    const int64_t columns = gated_ ? w.groups / 2 * kLanes : w.groups * kLanes;
    call.require((!gated_ || w.groups % 2 == 0) && outputs_ > columns - kLanes &&
                     outputs_ <= columns,
                 kName, "the weight has another number of outputs than the node");
    call.require(!norm.data || norm.size() == size, kName, "norm has another size than x");
    call.require(!bias.data || bias.size() == w.groups * kLanes, kName,
                 "bias has another size than the weight");
    std::vector<int64_t> shape = x.shape;
    shape.back() = outputs_;
    const Tensor y = call.output(0, shape);
    call.require(!residual.data || residual.size() == y.size(), kName,
                 "residual has another size than the output");
    const int64_t num_rows = x.size() / size;
    if (num_rows == 0) return;
    const Rows rows = quantized(call, w, x.as<const float>(), norm.as<const float>(), num_rows,
                                size);
    multiply(call, w, rows, num_rows, bias.as<const float>(), residual.as<const float>(),
             y.as<float>());
  }

 private:
  Rows quantized(const Call& call, const Weights& w, const float* x, const float* norm,
                 int64_t num_rows, int64_t size) const {
    const size_t rows = static_cast<size_t>(num_rows);
    const size_t inputs = static_cast<size_t>(w.inputs), blocks = static_cast<size_t>(w.blocks());
    int8_t* values = scratch<int8_t>(0, rows * inputs);
    float* scales = scratch<float>(1, rows * blocks);
    int32_t* offsets = scratch<int32_t>(2, rows * blocks);
    const auto quantize_row = [&](int64_t row) {
      float* normalized = scratch<float>(3, inputs);
      kernels()->quantize(x + row * size, norm, epsilon_, size, w.inputs, w.block, w.zero(),
                          normalized, values + row * w.inputs, scales + row * w.blocks(),
                          offsets + row * w.blocks());
    };
    constexpr int64_t kWorthThreads = 1 << 15;  // values; below, waking threads costs more
    if (num_rows * w.inputs < kWorthThreads)
      for (int64_t row = 0; row < num_rows; ++row) quantize_row(row);
    else
      call.parallel(num_rows, quantize_row);
    return {values, scales, offsets};
  }

  void multiply(const Call& call, const Weights& w, const Rows& x, int64_t num_rows,
                const float* bias, const float* residual, float* y) const {
    int tile_rows, tile_groups;
    kernels()->tile_shape(w.bits, num_rows, &tile_rows, &tile_groups);
    // What is written together: gate and up, or a tile.
    const int64_t span = gated_ && tile_groups % 2 ? 2 : tile_groups;
    const int64_t spans = (w.groups + span - 1) / span;
    constexpr int64_t kTasks = 64;  // enough for an even split between threads
    const int64_t spans_a_task = (spans + kTasks - 1) / kTasks;
    call.parallel((spans + spans_a_task - 1) / spans_a_task, [&](int64_t task) {
      alignas(64) float sums[2 * kMaxTileRows * kMaxTileGroups * kLanes];
      const int64_t end = (task + 1) * spans_a_task < spans ? (task + 1) * spans_a_task : spans;
      for (int64_t group = task * spans_a_task * span; group < end * span; group += span) {
        if (group >= w.groups) break;
        const int groups = static_cast<int>(w.groups - group < span ? w.groups - group : span);
        for (int64_t row = 0; row < num_rows; row += tile_rows) {
          const int rows = static_cast<int>(num_rows - row < tile_rows ? num_rows - row : tile_rows);
          // One tile, or several of what fits.
          for (int first = 0; first < groups; first += tile_groups) {
            const int part = groups - first < tile_groups ? groups - first : tile_groups;
            kernels()->tile(w, x, row, rows, group + first, part,
                            sums + first * rows * kLanes);
          }
          const int stride = groups < tile_groups ? groups : tile_groups;
          for (int r = 0; r < rows; ++r)
            for (int g = 0; g < groups; g += gated_ ? 2 : 1) {
              float* lanes = at(sums, rows, stride, r, g);
              float* up = gated_ ? at(sums, rows, stride, r, g + 1) : nullptr;
              finish(lanes, up, group + g, row + r, bias, residual, y);
            }
        }
      }
    });
  }

  // The 16 sums of row r and group g, in tiles of `stride` groups.
  static float* at(float* sums, int rows, int stride, int r, int g) {
    const int tile = g / stride;
    return sums + (tile * stride * rows + r * stride + g % stride) * kLanes;
  }

  void finish(float* lanes, float* up, int64_t group, int64_t row, const float* bias,
              const float* residual, float* y) const {
    const int64_t column = (gated_ ? group / 2 : group) * kLanes;
    const int64_t count = outputs_ - column < kLanes ? outputs_ - column : kLanes;
    if (bias)
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += bias[group * kLanes + lane];
        if (up) up[lane] += bias[(group + 1) * kLanes + lane];
      }
    if (activation_ != kNone) kernels()->gate(activation_, lanes, up, kLanes, lanes);
    float* target = y + row * outputs_ + column;
    if (residual) {
      const float* added = residual + row * outputs_ + column;
      for (int64_t lane = 0; lane < count; ++lane) target[lane] = lanes[lane] + added[lane];
    } else {
      std::memcpy(target, lanes, static_cast<size_t>(count) * sizeof(float));
    }
  }

  // A fast copy of a constant input; null for one that is computed.
  static HugeMemory::Bytes constant(const Api* api, const ort::KernelInfo* info, size_t index) {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    check(api->constant_input(info, index, &is_constant, &value));
    if (!is_constant || !value) return nullptr;
    const Tensor tensor = tensor_of(api, value);
    const size_t item = index == 1 ? sizeof(uint8_t) : sizeof(uint16_t);
    return HugeMemory::copy(tensor.data, static_cast<size_t>(tensor.size()) * item);
  }

  int bits_, activation_;
  bool gated_;
  int64_t outputs_;
  float epsilon_;
  HugeMemory::Bytes weight_, scales_;
};

// Rotary embedding, cache update and attention of T nodes under a tree mask, for B sequences of
// different lengths.
//
// Inputs: query (B, T, heads * D), or with key and value absent all three in one; key and value
// (B, T, kv_heads * D); past_key and past_value (B, kv_heads, capacity, D); past_length (B,) int64;
// position_offsets (T,) int64; tree_mask (T, T), 0 or what hides a node; cos and sin
// (positions, rotary_dim / 2). The cache is bfloat16.
// Outputs: attended (B, T, heads * D) and the updated cache, which may be the past's memory.
class TreeAttention {
 public:
  static constexpr const char* kName = "TreeAttention";
  static constexpr size_t kInputs = 10, kRequiredInputs = kInputs, kOutputs = 3;

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
        scale_(float_attribute(api, info, "scale")) {}

  void compute(const Call& call) const {
    const Tensor query = call.input(0), key = call.input(1), value = call.input(2);
    const Tensor past_key = call.input(3), past_value = call.input(4);
    const Tensor past_length = call.input(5), offsets = call.input(6), mask = call.input(7);
    const Tensor cos = call.input(8), sin = call.input(9);
    call.require(query.shape.size() == 3 && past_key.shape.size() == 4 && cos.shape.size() == 2 &&
                     past_key.shape == past_value.shape && cos.shape == sin.shape,
                 kName, "a rank or shape is wrong");
    const int64_t batch = query.shape[0], nodes = query.shape[1];
    const int64_t capacity = past_key.shape[2], size = past_key.shape[3];
    const bool packed = !key.data;
    const int64_t width = (packed ? heads_ + 2 * kv_heads_ : heads_) * size;
    call.require(past_key.shape[0] == batch && past_key.shape[1] == kv_heads_ &&
                     query.shape[2] == width && past_length.size() == batch &&
                     offsets.size() == nodes && mask.size() == nodes * nodes &&
                     2 * cos.shape[1] <= size,
                 kName, "inputs differ in shape");
    if (!packed) {
      const std::vector<int64_t> shape = {batch, nodes, kv_heads_ * size};
      call.require(key.shape == shape && value.shape == shape, kName, "inputs differ in shape");
    }
    const int64_t* pasts = past_length.as<const int64_t>();
    for (int64_t b = 0; b < batch; ++b) {
      call.require(pasts[b] >= 0 && pasts[b] <= capacity - nodes, kName,
                   "the nodes do not fit the cache");
      for (int64_t t = 0; t < nodes; ++t) {
        const int64_t position = pasts[b] + offsets.as<const int64_t>()[t];
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

    const int64_t rotary_dim = 2 * cos.shape[1], group = heads_ / kv_heads_;
    const int64_t kv_stride = packed ? width : kv_heads_ * size;
    const float* keys = packed ? query.as<float>() + heads_ * size : key.as<float>();
    const float* values = packed ? keys + kv_heads_ * size : value.as<float>();
    int64_t longest = 0;
    for (int64_t b = 0; b < batch; ++b) longest = pasts[b] > longest ? pasts[b] : longest;
    std::vector<int64_t> positions(static_cast<size_t>(batch * nodes));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < nodes; ++t)
        positions[static_cast<size_t>(b * nodes + t)] =
            pasts[b] + offsets.as<const int64_t>()[t];

    const auto append = [&](int64_t index) {
      const int64_t b = index / kv_heads_, head = index % kv_heads_;
      for (int64_t t = 0; t < nodes; ++t) {
        const int64_t source = (b * nodes + t) * kv_stride + head * size;
        const int64_t target = ((b * kv_heads_ + head) * capacity + pasts[b] + t) * size;
        const int64_t turn = positions[static_cast<size_t>(b * nodes + t)] * rotary_dim / 2;
        float* rotated = scratch<float>(3, static_cast<size_t>(size));
        rotate(keys + source, cos.as<float>() + turn, sin.as<float>() + turn, size, rotary_dim,
               rotated);
        for (int64_t d = 0; d < size; ++d) {
          new_key.as<uint16_t>()[target + d] = bfloat_from_float(rotated[d]);
          new_value.as<uint16_t>()[target + d] = bfloat_from_float(values[source + d]);
        }
      }
    };
    for (int64_t index = 0; index < batch * kv_heads_; ++index) append(index);

    bool chain = true;
    for (int64_t t = 0; t < nodes; ++t)
      for (int64_t j = 0; j < nodes; ++j)
        chain = chain && (j <= t) == (mask.as<float>()[t * nodes + j] > kHidden);

    // Query rows are spread evenly over as few tasks as can take them.
    const Kernels& best = *kernels();
    const int64_t tasks = (nodes * group + best.query_rows - 1) / best.query_rows;
    const int64_t share = (nodes * group + tasks - 1) / tasks;
    call.parallel(batch * kv_heads_ * tasks, [&](int64_t task) {
      const int64_t b = task / (kv_heads_ * tasks), head = task / tasks % kv_heads_;
      const int64_t first = task % tasks * share;
      const int64_t count = nodes * group - first < share ? nodes * group - first : share;
      if (count <= 0) return;
      const int64_t cache = (b * kv_heads_ + head) * capacity * size;
      Attention a;
      a.group = group;
      a.head_dim = size;
      a.past = pasts[b];
      a.nodes = nodes;
      a.scale = scale_;
      a.queries = query.as<float>() + b * nodes * width + head * group * size;
      a.row_stride = width;
      a.mask = mask.as<float>();
      a.chain = chain;
      a.keys = new_key.as<uint16_t>() + cache;
      a.values = new_value.as<uint16_t>() + cache;
      a.cos = cos.as<float>();
      a.sin = sin.as<float>();
      a.positions = positions.data() + b * nodes;
      a.rotary_dim = rotary_dim;
      a.out = out.as<float>() + b * nodes * heads_ * size + head * group * size;
      a.out_stride = heads_ * size;
      const int64_t floats = best.attend_floats(longest + nodes, size);
      best.attend(a, first, count, scratch<float>(3, static_cast<size_t>(floats)));
    });
  }

 private:
  static void copy_unless_same(const Tensor& from, const Tensor& to) {
    if (from.data != to.data)
      std::memcpy(to.data, from.data, static_cast<size_t>(from.size()) * sizeof(uint16_t));
  }

  int64_t heads_, kv_heads_;
  float scale_;
};

// The index of each row's largest value; ONNX Runtime's own is five times slower.
//
// Input: x (..., N) float. Output: (...) int64.
class ArgMax {
 public:
  static constexpr const char* kName = "ArgMax";
  static constexpr size_t kInputs = 1, kRequiredInputs = 1, kOutputs = 1;

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
  static constexpr size_t kInputs = 1, kRequiredInputs = 1, kOutputs = 1;

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
                       scratch<float>(3, static_cast<size_t>(count_)),
                       out.as<int64_t>() + row * count_);
    });
  }

 private:
  int64_t count_;
};

// An operator's description for ONNX Runtime.
template <typename Kernel>
struct Description : ort::Op {
  struct Instance {
    const Api* api;
    Kernel kernel;
  };

  Description() : ort::Op{} {
    version = ort::kApiVersion;
    name = [](const Op*) { return Kernel::kName; };
    provider = [](const Op*) { return "CPUExecutionProvider"; };
    input_type = [](const Op*, size_t index) { return Kernel::input_type(index); };
    input_count = [](const Op*) { return Kernel::kInputs; };
    output_type = [](const Op*, size_t index) { return Kernel::output_type(index); };
    output_count = [](const Op*) { return Kernel::kOutputs; };
    input_characteristic = [](const Op*, size_t index) {
      const bool separate = std::strcmp(Kernel::kName, "TreeAttention") == 0 &&
                            (index == 1 || index == 2);
      return index >= Kernel::kRequiredInputs || separate ? ort::kOptional : ort::kRequired;
    };
    output_characteristic = [](const Op*, size_t) { return ort::kRequired; };
    input_memory_type = [](const Op*, size_t) { return 0; };
    variadic_input_min = variadic_output_min = [](const Op*) { return 0; };
    variadic_input_homogeneous = variadic_output_homogeneous = [](const Op*) { return 0; };
    start_version = [](const Op*) { return 1; };
    end_version = [](const Op*) { return 1 << 30; };
    create_kernel_v2 = [](const Op*, const Api* api, const ort::KernelInfo* info,
                          void** out) -> Status* {
      try {
        *out = new Instance{api, Kernel(api, info)};
        return nullptr;
      } catch (const Failure& failure) {
        return failure.status;
      }
    };
    compute_v2 = [](void* instance, ort::KernelContext* context) -> Status* {
      const Instance* self = static_cast<const Instance*>(instance);
      try {
        self->kernel.compute(Call(self->api, context));
        return nullptr;
      } catch (const Failure& failure) {
        return failure.status;
      } catch (const std::exception& error) {
        return self->api->create_status(1, error.what());
      }
    };
    destroy = [](void* instance) { delete static_cast<Instance*>(instance); };
  }
};

}  // namespace
}  // namespace medusa

// What ONNX Runtime calls when a session registers this library.
extern "C" __attribute__((visibility("default"))) medusa::ort::Status* RegisterCustomOps(
    medusa::ort::SessionOptions* options, const medusa::ort::ApiBase* base) {
  using namespace medusa;
  static const Description<Linear> linear;
  static const Description<TreeAttention> attention;
  static const Description<ArgMax> argmax;
  static const Description<TopK> top_k;
  const ort::Api* api = base->get_api(ort::kApiVersion);
  if (!api) return nullptr;
  // Sessions may outlive everything of ours, so the domain is never freed.
  static ort::OpDomain* domain = nullptr;
  if (!domain) {
    ort::Status* status = api->create_domain("medusa_trt", &domain);
    if (!status) status = api->add_op(domain, &linear);
    if (!status) status = api->add_op(domain, &attention);
    if (!status) status = api->add_op(domain, &argmax);
    if (!status) status = api->add_op(domain, &top_k);
    if (status) return status;
  }
  return api->add_domain(options, domain);
}

// The name of the kernels in use, for reports.
extern "C" __attribute__((visibility("default"))) const char* medusa_trt_kernels() {
  return medusa::kernels()->name;
}
