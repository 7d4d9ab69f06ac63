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
#include "threads.h"

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

  // Calls work(worker) on this thread, and on those of the session's threads that come in time. If
  // it runs out of memory, the call fails after all threads have left, because exceptions cannot
  // pass through ONNX Runtime's threads.
  template <typename Work>
  void parallel(const Work& work) const {
    Shared<Work> shared(work);
    const int64_t allowed = Helpers::shared().allowed(now_ns());
    if (allowed == 1) {
      shared.enter();
    } else {
      // A call that comes after all work is done returns at once.
      constexpr int64_t kMostThreads = 64;
      const int64_t total = allowed == Helpers::kAll ? kMostThreads : allowed;
      const auto enter = [](void* argument, size_t) {
        static_cast<Shared<Work>*>(argument)->enter();
      };
      check(api_->parallel_for(context_, enter, static_cast<size_t>(total),
                               static_cast<size_t>(allowed), &shared));
      shared.report_late_helpers();
    }
    if (shared.is_short.load(std::memory_order_relaxed)) throw std::bad_alloc();
  }

  // Calls task(index, memory) for each index below `total`, on the session's threads; `memory` has
  // room for so many floats.
  template <typename Task>
  void for_each(int64_t total, int64_t num_floats, const Task& task) const {
    Phase phase;
    phase.begin(total);
    const auto work = [&](Worker& worker) {
      float* memory = scratch<float>(Scratch::kTask, static_cast<size_t>(num_floats));
      worker.take(phase, [&](int64_t index) { task(index, memory); });
      worker.wait(phase);
    };
    if (total > 1)
      parallel(work);
    else if (total == 1)
      task(0, scratch<float>(Scratch::kTask, static_cast<size_t>(num_floats)));
  }

  void require(bool condition, const char* op, const char* what) const {
    if (!condition)
      throw Failure{api_->create_status(kInvalidArgument, (std::string(op) + ": " + what).c_str())};
  }

 private:
  template <typename Work>
  struct Shared : Section {
    const Work& work;
    std::atomic<bool> is_short{false};
    int64_t left = 0;  // when the caller had done its part

    explicit Shared(const Work& task) : work(task) {}

    void enter() {
      MEDUSA_TEST_POINT("enter");
      if (is_closed.load(std::memory_order_relaxed)) return;
      try {
        Worker worker(*this);
        work(worker);
      } catch (const std::bad_alloc&) {
        is_short.store(true, std::memory_order_relaxed);
      }
      // A thread that has left must not come again, and no other can be of much help.
      is_closed.store(true, std::memory_order_relaxed);
      if (std::this_thread::get_id() == caller) left = now_ns();
    }

    // ONNX Runtime waits for helpers that have come, even if they have nothing to do any more.
    void report_late_helpers() const {
      const int64_t now = now_ns();
      if (left > 0 && now - left > kPatience) report(now, now - left);
    }
  };

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

// The same for an attribute that a node may lack.
int64_t int_attribute(const Api* api, const ort::KernelInfo* info, const char* name,
                      int64_t absent) {
  int64_t value = 0;
  Status* status = api->int_attribute(info, name, &value);
  if (status) api->release_status(status);
  return status ? absent : value;
}

float float_attribute(const Api* api, const ort::KernelInfo* info, const char* name,
                      float absent) {
  float value = 0;
  Status* status = api->float_attribute(info, name, &value);
  if (status) api->release_status(status);
  return status ? absent : value;
}

}  // namespace
}  // namespace medusa
