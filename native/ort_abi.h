// The part of ONNX Runtime's C interface that an operator library needs.
//
// ONNX Runtime ships no headers with its Python package. Its interface is a table of functions
// that only grows at the end (https://onnxruntime.ai/docs/reference/compatibility.html), so the
// positions below, those of version 17 and later, hold for every newer release.
#pragma once

#include <cstddef>
#include <cstdint>

namespace medusa::ort {

struct Status;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct OpDomain;

constexpr uint32_t kApiVersion = 17;

enum ElementType {
  kFloat = 1,
  kUint8 = 2,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kBfloat16 = 16
};
enum Characteristic { kRequired = 0, kOptional = 1 };

struct Api {
  const void* functions[275];

  template <typename Function>
  Function at(int position) const {
    return reinterpret_cast<Function>(const_cast<void*>(functions[position]));
  }
  Status* create_status(int code, const char* message) const {
    return at<Status* (*)(int, const char*)>(0)(code, message);
  }
  Status* create_domain(const char* name, OpDomain** out) const {
    return at<Status* (*)(const char*, OpDomain**)>(26)(name, out);
  }
  Status* add_op(OpDomain* domain, const void* op) const {
    return at<Status* (*)(OpDomain*, const void*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, OpDomain* domain) const {
    return at<Status* (*)(SessionOptions*, OpDomain*)>(28)(options, domain);
  }
  Status* data(Value* value, void** out) const {
    return at<Status* (*)(Value*, void**)>(51)(value, out);
  }
  Status* dimensions_count(const ShapeInfo* info, size_t* out) const {
    return at<Status* (*)(const ShapeInfo*, size_t*)>(61)(info, out);
  }
  Status* dimensions(const ShapeInfo* info, int64_t* values, size_t count) const {
    return at<Status* (*)(const ShapeInfo*, int64_t*, size_t)>(62)(info, values, count);
  }
  Status* shape_info(const Value* value, ShapeInfo** out) const {
    return at<Status* (*)(const Value*, ShapeInfo**)>(65)(value, out);
  }
  Status* float_attribute(const KernelInfo* info, const char* name, float* out) const {
    return at<Status* (*)(const KernelInfo*, const char*, float*)>(85)(info, name, out);
  }
  Status* int_attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
  }
  Status* input_count(const KernelContext* context, size_t* out) const {
    return at<Status* (*)(const KernelContext*, size_t*)>(88)(context, out);
  }
  Status* input(const KernelContext* context, size_t index, const Value** out) const {
    return at<Status* (*)(const KernelContext*, size_t, const Value**)>(90)(context, index, out);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* shape, size_t rank,
                 Value** out) const {
    return at<Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(
        context, index, shape, rank, out);
  }
  void release_status(Status* status) const { at<void (*)(Status*)>(93)(status); }
  void release_shape_info(ShapeInfo* info) const { at<void (*)(ShapeInfo*)>(99)(info); }
  // `constant` tells whether the input is; if not, `out` stays null.
  Status* constant_input(const KernelInfo* info, size_t index, int* constant,
                         const Value** out) const {
    return at<Status* (*)(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index,
                                                                                constant, out);
  }
  Status* parallel_for(const KernelContext* context, void (*task)(void*, size_t), size_t total,
                       size_t batches, void* argument) const {
    return at<Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
        274)(context, task, total, batches, argument);
  }
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// An operator: its description and its kernel, as ONNX Runtime reads them.
struct Op {
  uint32_t version;
  void* (*create_kernel)(const Op*, const Api*, const KernelInfo*);
  const char* (*name)(const Op*);
  const char* (*provider)(const Op*);
  ElementType (*input_type)(const Op*, size_t);
  size_t (*input_count)(const Op*);
  ElementType (*output_type)(const Op*, size_t);
  size_t (*output_count)(const Op*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const Op*, size_t);
  Characteristic (*output_characteristic)(const Op*, size_t);
  int (*input_memory_type)(const Op*, size_t);
  int (*variadic_input_min)(const Op*);
  int (*variadic_input_homogeneous)(const Op*);
  int (*variadic_output_min)(const Op*);
  int (*variadic_output_homogeneous)(const Op*);
  Status* (*create_kernel_v2)(const Op*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shape)(const Op*, void*);
  int (*start_version)(const Op*);
  int (*end_version)(const Op*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};

}  // namespace medusa::ort
