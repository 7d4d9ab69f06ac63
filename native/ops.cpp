// Registration of the operators of domain "medusa_trt" with ONNX Runtime.
#include "cache.h"
#include "call.h"
#include "draft_trees.h"
#include "embedding.h"
#include "linear.h"
#include "reduce.h"
#include "selection.h"
#include "tree_attention.h"

namespace medusa {
namespace {

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
      const bool required = index < Kernel::kRequiredInputs && !Kernel::may_lack(index);
      return required ? ort::kRequired : ort::kOptional;
    };
    output_characteristic = [](const Op*, size_t index) {
      return index < Kernel::kRequiredOutputs ? ort::kRequired : ort::kOptional;
    };
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

// The function that ONNX Runtime calls when a session registers this library.
extern "C" __attribute__((visibility("default"))) medusa::ort::Status* RegisterCustomOps(
    medusa::ort::SessionOptions* options, const medusa::ort::ApiBase* base) {
  using namespace medusa;
  static const Description<Linear> linear;
  static const Description<LinearChain> chain;
  static const Description<TreeAttention> attention;
  static const Description<Embedding> embedding;
  static const Description<ArgMax> argmax;
  static const Description<TopK> top_k;
  static const Description<Reduce> reduce;
  const ort::Api* api = base->get_api(ort::kApiVersion);
  if (!api) return nullptr;
  // Sessions may live longer than this library's objects, so the domain is never freed.
  static ort::OpDomain* domain = nullptr;
  if (!domain) {
    ort::Status* status = api->create_domain("medusa_trt", &domain);
    if (!status) status = api->add_op(domain, &linear);
    if (!status) status = api->add_op(domain, &chain);
    if (!status) status = api->add_op(domain, &attention);
    if (!status) status = api->add_op(domain, &embedding);
    if (!status) status = api->add_op(domain, &argmax);
    if (!status) status = api->add_op(domain, &top_k);
    if (!status) status = api->add_op(domain, &reduce);
    if (status) return status;
  }
  return api->add_domain(options, domain);
}

// Moves accepted rows of a KV cache; see runtime/engines/kv_cache.py.
extern "C" __attribute__((visibility("default"))) void medusa_trt_commit(
    const medusa::Commit* commit) {
  commit->run();
}

// Grows the draft trees of a step; see runtime/decoding/growth.py.
extern "C" __attribute__((visibility("default"))) void medusa_trt_grow(medusa::DraftTrees* trees) {
  trees->run();
}

// The name of the kernels in use, for reports.
extern "C" __attribute__((visibility("default"))) const char* medusa_trt_kernels() {
  return medusa::kernels()->name;
}

// The names of all kernels that this processor runs.
extern "C" __attribute__((visibility("default"))) const char* medusa_trt_kernel_names() {
  return medusa::kernel_names();
}

// The hash of the sources that this library was compiled from; see setup.py.
#define MEDUSA_TRT_TEXT(name) #name
#define MEDUSA_TRT_QUOTE(name) MEDUSA_TRT_TEXT(name)
extern "C" __attribute__((visibility("default"))) const char* medusa_trt_sources() {
  return MEDUSA_TRT_QUOTE(MEDUSA_TRT_SOURCES);
}
