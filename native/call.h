// Access of an operator's kernel to ONNX Runtime: inputs, outputs, memory and threads.
#pragma once

#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "ort_abi.h"

namespace medusa {
namespace {

using ort::Api;
using ort::Status;

constexpr int kInvalidArgument = 2;

// An error that the caller of the operator will get.
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

// A point where a build for tests delays threads or makes them run out of memory.
#ifndef MEDUSA_TEST_POINT
#define MEDUSA_TEST_POINT(name)
#endif

// Purpose of scratch memory. The thread that calls an operator shares its call buffers with the
// threads that help, and runs tasks itself. Therefore a task uses `kTask` only.
namespace Scratch {
enum Use { kTask, kInner, kValues, kScales, kOffsets, kNumUses };
}

// Scratch memory of this thread, aligned for vectors.
template <typename T>
T* scratch(Scratch::Use use, size_t count) {
  MEDUSA_TEST_POINT("allocate");
  thread_local std::vector<char> buffers[Scratch::kNumUses];
  std::vector<char>& buffer = buffers[use];
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

// One call of a kernel.
class Call {
 public:
  Call(const Api* api, ort::KernelContext* context) : api_(api), context_(context) {}

  // Returns an input; an absent input has no data.
  Tensor input(size_t index) const {
    size_t count = 0;
    check(api_->input_count(context_, &count));
    const ort::Value* value = nullptr;
    if (index < count) check(api_->input(context_, index, &value));
    return value ? tensor_of(api_, value) : Tensor();
  }

  // Returns an output; one that nothing reads has no data.
  Tensor output(size_t index, const std::vector<int64_t>& shape) const {
    ort::Value* value = nullptr;
    check(api_->output(context_, index, shape.data(), shape.size(), &value));
    Tensor tensor;
    tensor.shape = shape;
    if (!value) return tensor;
    void* data = nullptr;
    check(api_->data(value, &data));
    tensor.data = static_cast<char*>(data);
    return tensor;
  }

  // Calls task(0) ... task(total - 1) on the session's threads. If a task runs out of memory, the
  // call fails after all tasks, because exceptions cannot pass through ONNX Runtime's threads.
  template <typename Task>
  void parallel(int64_t total, const Task& task) const {
    if (total == 0) return;
    if (total == 1) return task(0);
    struct Section {
      const Task& task;
      std::atomic<bool> is_short;
    } section{task, {false}};
    const auto call = [](void* argument, size_t index) {
      Section& own = *static_cast<Section*>(argument);
      try {
        own.task(static_cast<int64_t>(index));
      } catch (const std::bad_alloc&) {
        own.is_short.store(true, std::memory_order_relaxed);
      }
    };
    check(api_->parallel_for(context_, call, static_cast<size_t>(total), 0, &section));
    if (section.is_short.load(std::memory_order_relaxed)) throw std::bad_alloc();
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

}  // namespace
}  // namespace medusa
