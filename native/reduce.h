// The operator Reduce.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "call.h"

namespace medusa {
namespace {

// Values that sampling and typical acceptance need, computed from each row of logits by itself.
//
// Inputs: logits (R, V) float; candidates, parent_rows (R,) int64; uniforms (R,) double;
// temperature (1,) float; top_k (1,) int64, 0 for all; top_p, min_p (1,) float.
// Outputs, (R,): sampled int64, the token at `uniforms` of the cumulative distribution; covered
// bool, always true; entropy float, in nats; candidate_logprob float, of the candidate in its
// parent's row. The last two are of the distribution before top_k, top_p and min_p.
class Reduce {
 public:
  static constexpr const char* kName = "Reduce";
  static constexpr size_t kInputs = 8, kRequiredInputs = 8, kOutputs = 4, kRequiredOutputs = 4;

  static bool may_lack(size_t) { return false; }
  static ort::ElementType input_type(size_t index) {
    return index == 3 ? ort::kDouble
           : index == 1 || index == 2 || index == 5 ? ort::kInt64
                                                    : ort::kFloat;
  }
  static ort::ElementType output_type(size_t index) {
    return index == 0 ? ort::kInt64 : index == 1 ? ort::kBool : ort::kFloat;
  }

  Reduce(const Api*, const ort::KernelInfo*) {}

  void compute(const Call& call) const {
    const Tensor logits = call.input(0);
    call.require(logits.shape.size() == 2 && logits.shape[1] > 0, kName, "there are no logits");
    const int64_t rows = logits.shape[0], size = logits.shape[1];
    const Tensor candidates = call.input(1), parents = call.input(2), uniforms = call.input(3);
    const Tensor temperature = call.input(4), top_k = call.input(5), top_p = call.input(6),
                 min_p = call.input(7);
    for (const Tensor* each : {&candidates, &parents, &uniforms})
      call.require(each->size() == rows, kName, "an input has another number of rows");
    for (const Tensor* each : {&temperature, &top_k, &top_p, &min_p})
      call.require(each->size() == 1, kName, "an option is not one number");
    const Filter filter = {*temperature.as<float>(), *top_k.as<int64_t>(), *top_p.as<float>(),
                           *min_p.as<float>()};
    call.require(filter.temperature > 0, kName, "the temperature is not above 0");
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = candidates.as<int64_t>()[row], parent = parents.as<int64_t>()[row];
      call.require(token >= 0 && token < size && parent >= 0 && parent < rows, kName,
                   "a candidate or its parent is out of range");
    }
    const Tensor sampled = call.output(0, {rows}), covered = call.output(1, {rows}),
                 entropy = call.output(2, {rows}), logprob = call.output(3, {rows});
    double* normalizers = scratch<double>(Scratch::kInner, static_cast<size_t>(rows));
    call.for_each(rows, num_floats(size), [&](int64_t row, float* memory) {
      double log_total = 0, own_entropy = 0;
      sampled.as<int64_t>()[row] =
          reduce(logits.as<float>() + row * size, size, filter, uniforms.as<double>()[row], memory,
                 &log_total, &own_entropy);
      normalizers[row] = log_total;
      covered.as<bool>()[row] = true;
      entropy.as<float>()[row] = static_cast<float>(own_entropy);
    });
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t parent = parents.as<int64_t>()[row];
      const float logit = logits.as<float>()[parent * size + candidates.as<int64_t>()[row]];
      logprob.as<float>()[row] =
          static_cast<float>(logit / filter.temperature - normalizers[parent]);
    }
  }

 private:
  struct Filter {
    float temperature;
    int64_t top_k;
    float top_p, min_p;
  };

  static int64_t num_parts(int64_t size) { return (size + kPart - 1) / kPart; }
  static int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

  // Of the memory for one row: its weights, a copy of it, and the sums of its parts as doubles.
  static int64_t num_floats(int64_t size) { return 2 * padded(size) + 2 * num_parts(size); }

  // Draws a token from one row; `log_total` is the logarithm of the sum of exp(x / temperature).
  static int64_t reduce(const float* x, int64_t size, const Filter& filter, double uniform,
                        float* weights, double* log_total, double* entropy) {
    const Kernels* k = kernels();
    float* copy = weights + padded(size);
    double* sums = reinterpret_cast<double*>(copy + padded(size));
    const float highest = x[k->argmax(x, size)] / filter.temperature;
    double spread = 0;
    const double total = k->weigh(x, size, filter.temperature, highest, weights, &spread);
    *log_total = highest + std::log(total);
    *entropy = std::log(total) - spread / total;
    const double least = threshold(x, weights, size, filter, highest, copy);
    k->keep(x, size, filter.temperature, rounded_up(least), weights, sums);
    return drawn(weights, sums, size, num_parts(size), uniform);
  }

  // Finds the smallest logit over temperature that passes all filters, one after the other.
  static double threshold(const float* x, const float* weights, int64_t size, const Filter& f,
                          float highest, float* copy) {
    double least = -std::numeric_limits<double>::infinity();
    if (f.top_k > 0 && f.top_k < size) {
      std::copy(x, x + size, copy);
      std::nth_element(copy, copy + f.top_k - 1, copy + size, std::greater<float>());
      least = copy[f.top_k - 1] / f.temperature;
    }
    if (f.top_p < 1) {
      double mass = 0;
      for (int64_t i = 0; i < size; ++i)
        if (x[i] / f.temperature >= least) mass += weights[i];
      // All tokens below this weight together have less than half of the share that may be dropped.
      const double floor = 0.5 * (1 - static_cast<double>(f.top_p)) * mass / static_cast<double>(size);
      float* end = copy;
      for (int64_t i = 0; i < size; ++i) {
        const float scaled = x[i] / f.temperature;
        if (scaled >= least && weights[i] > floor) *end++ = scaled;
      }
      std::sort(copy, end, std::greater<float>());
      double reached = 0;
      for (const float* each = copy; each < end; ++each) {
        if (each > copy && reached >= f.top_p * mass) break;
        least = *each;
        reached += std::exp(static_cast<double>(*each) - highest);
      }
    }
    if (f.min_p > 0) least = std::max(least, highest + std::log(static_cast<double>(f.min_p)));
    return least;
  }

  // Returns the smallest float that is at least this large.
  static float rounded_up(double value) {
    const float nearest = static_cast<float>(value);
    return nearest < value ? std::nextafter(nearest, std::numeric_limits<float>::infinity())
                           : nearest;
  }

  // The first token where the cumulative sum of the weights exceeds its share `uniform`.
  static int64_t drawn(const float* weights, const double* sums, int64_t size, int64_t parts,
                       double uniform) {
    double whole = 0;
    for (int64_t part = 0; part < parts; ++part) whole += sums[part];
    const double target = uniform * whole;
    double reached = 0;
    int64_t part = 0;
    while (part + 1 < parts && reached + sums[part] <= target) reached += sums[part++];
    // Sums over parts are rounded, so the tokens of a part may add up to less than its sum.
    int64_t last = -1;
    for (int64_t i = part * kPart; i < size; ++i) {
      if (weights[i] <= 0) continue;
      if (last >= 0 && i >= (part + 1) * kPart) break;
      last = i;
      reached += weights[i];
      if (reached > target) break;
    }
    for (int64_t i = part * kPart; last < 0 && i-- > 0;)
      if (weights[i] > 0) last = i;
    return last < 0 ? 0 : last;
  }
};

}  // namespace
}  // namespace medusa
