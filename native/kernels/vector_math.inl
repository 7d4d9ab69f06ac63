// Arithmetic on rows, written so that compilers vectorize it for every instruction set.
// Included by each instruction set's file, inside that set's namespace.

inline float fast_exp(float x) {
  // 2^n * 2^f with a polynomial on [-0.5, 0.5], relative error below 2e-7; 0 below -87.
  float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  float t = clamped * 1.44269504088896341f;
  float n = __builtin_nearbyintf(t);
  float f = t - n;
  float p = 1.5403530393381609954e-4f;
  p = p * f + 1.3333558146428443423e-3f;
  p = p * f + 9.6181291076284771619e-3f;
  p = p * f + 5.5504108664821579953e-2f;
  p = p * f + 2.4022650695910071233e-1f;
  p = p * f + 6.9314718055994530942e-1f;
  p = p * f + 1.0f;
  // The integer is unsigned because a row may hold NaN, which `p` keeps.
  const uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n)) + 127u) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

constexpr int kFloats = MEDUSA_FLOATS;  // in a register
typedef float Floats __attribute__((vector_size(4 * kFloats), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kFloats), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(kFloats), aligned(1), may_alias));

// fast_exp of each lane; loops over it are not always vectorized.
inline Floats fast_exp(Floats x) {
  const Floats zero = {}, least = zero - 87.0f, most = zero + 88.0f;
  const Floats clamped = x < least ? least : (x > most ? most : x);
  const Floats t = clamped * 1.44269504088896341f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  const Floats n = (t + kRound) - kRound, f = t - n;
  Floats p = 1.5403530393381609954e-4f * f + 1.3333558146428443423e-3f;
  p = p * f + 9.6181291076284771619e-3f;
  p = p * f + 5.5504108664821579953e-2f;
  p = p * f + 2.4022650695910071233e-1f;
  p = p * f + 6.9314718055994530942e-1f;
  p = p * f + 1.0f;
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
  const Floats power = reinterpret_cast<const Floats&>(bits);
  return x < least ? zero : p * power;
}

inline Floats activate(int activation, Floats x) {
  if (activation == kSilu) return x / (1.0f + fast_exp(-x));
  const Floats inner = 1.5957691216057308f * (x + 0.044715f * x * x * x);  // 2 sqrt(2 / pi)
  return x / (1.0f + fast_exp(-inner));
}

inline Floats at(const float* values, int64_t index) {
  return *reinterpret_cast<const Floats*>(values + index);
}

template <int Activation>
void finish_rows(const Finish& f, const float* products, const float* up, int64_t stride,
                 int64_t row, int rows, int64_t group) {
  const int64_t column = (f.gated ? group / 2 : group) * kLanes;
  const int64_t count = f.outputs - column < kLanes ? f.outputs - column : kLanes;
  const float* bias = f.bias ? f.bias + group * kLanes : nullptr;
  for (int r = 0; r < rows; ++r, products += stride, up += up ? stride : 0) {
    const int64_t start = (row + r) * f.outputs + column;
    for (int i = 0; i < count; i += kFloats) {
      Floats x = at(products, i);
      if (bias) x += at(bias, i);
      if (Activation != kNone) x = activate(Activation, x);
      if (up) x *= bias ? at(up, i) + at(bias, kLanes + i) : at(up, i);
      if (i + kFloats <= count) {
        if (f.residual) x += at(f.residual, start + i);
        *reinterpret_cast<Floats*>(f.out + start + i) = x;
      } else {
        for (int64_t j = 0; i + j < count; ++j)
          f.out[start + i + j] = x[j] + (f.residual ? f.residual[start + i + j] : 0.0f);
      }
    }
  }
}

void finish(const Finish& f, const float* products, const float* up, int64_t stride, int64_t row,
            int rows, int64_t group) {
  if (f.activation == kNone)
    finish_rows<kNone>(f, products, up, stride, row, rows, group);
  else if (f.activation == kSilu)
    finish_rows<kSilu>(f, products, up, stride, row, rows, group);
  else
    finish_rows<kGeluTanh>(f, products, up, stride, row, rows, group);
}

// The lanes of `low` and `high`, numbered one after the other, that `places` names.
template <typename Vector>
inline Vector shuffled(Vector low, Vector high, Ints places) {
#if defined(__clang__)  // has no such function, and finds the instruction for constant places
  Vector result;
  for (int lane = 0; lane < kFloats; ++lane)
    result[lane] = places[lane] < kFloats ? low[places[lane]] : high[places[lane] - kFloats];
  return result;
#else
  return __builtin_shuffle(low, high, places);
#endif
}

// x with its halves (or quarters, ...) exchanged, for sums and maxima over all lanes.
template <int Distance, typename Vector>
inline Vector exchanged(Vector x) {
  Ints lanes;
  for (int lane = 0; lane < kFloats; ++lane) lanes[lane] = lane ^ (Distance % kFloats);
  return shuffled(x, x, lanes);
}

template <typename Vector, typename Function>
inline auto over_lanes(Vector x, const Function& join) {
  if (kFloats > 8) x = join(x, exchanged<8>(x));
  if (kFloats > 4) x = join(x, exchanged<4>(x));
  x = join(x, exchanged<2>(x));
  return join(x, exchanged<1>(x))[0];
}

#ifndef MEDUSA_OWN_QUANTIZE_BLOCK
// Without fused multiply-adds, which would round some codes another way on other processors.
#if !defined(__clang__)
__attribute__((optimize("fp-contract=off")))
#endif
void quantize_block(const float* x, int block, int zero, int8_t* values, float* scale,
                    int32_t* offset) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  const Floats* parts = reinterpret_cast<const Floats*>(x);
  const auto larger = [](Floats a, Floats b) { return a > b ? a : b; };
  Floats largest = {};
  for (int i = 0; i < block / kFloats; ++i)
    largest = larger(largest, parts[i] < 0.0f ? -parts[i] : parts[i]);
  const float most = over_lanes(largest, larger);
  const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  Ints sums = {};
  for (int i = 0; i < block / kFloats; ++i) {
    const Ints rounded = __builtin_convertvector((parts[i] * inverse + kRound) - kRound, Ints);
    reinterpret_cast<Bytes*>(values)[i] = __builtin_convertvector(rounded, Bytes);
    sums += rounded;
  }
  *scale = most / 127.0f;
  *offset = -zero * over_lanes(sums, [](Ints a, Ints b) { return a + b; });
}
#endif

void quantize(const float* x, const float* norm, float epsilon, int64_t size, int64_t inputs,
              int block, int zero, float* scratch, int8_t* values, float* scales,
              int32_t* offsets) {
  const float* source = x;
  if (norm || inputs > size) {
    float factor = 1.0f;
    if (norm) {
      float partial[64] = {};  // the same order of additions for every instruction set
      int64_t i = 0;
      for (; i + 64 <= size; i += 64)
        for (int lane = 0; lane < 64; ++lane) partial[lane] += x[i + lane] * x[i + lane];
      for (int width = 32; width; width /= 2)
        for (int lane = 0; lane < width; ++lane) partial[lane] += partial[lane + width];
      float sum = partial[0];
      for (; i < size; ++i) sum += x[i] * x[i];
      factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + epsilon);
    }
    if (norm)
      for (int64_t i = 0; i < size; ++i) scratch[i] = x[i] * factor * norm[i];
    else
      for (int64_t i = 0; i < size; ++i) scratch[i] = x[i];
    for (int64_t i = size; i < inputs; ++i) scratch[i] = 0.0f;
    source = scratch;
  }
  for (int64_t start = 0, index = 0; start < inputs; start += block, ++index)
    quantize_block(source + start, block, zero, values + start, scales + index, offsets + index);
}

void append(const float* key, const float* value, const float* cos, const float* sin,
            int64_t head_dim, int64_t rotary_dim, float* scratch, uint16_t* to_key,
            uint16_t* to_value) {
  rotate(key, cos, sin, head_dim, rotary_dim, scratch);
  for (int64_t d = 0; d < head_dim; ++d) to_key[d] = bfloat_from_float(scratch[d]);
  for (int64_t d = 0; d < head_dim; ++d) to_value[d] = bfloat_from_float(value[d]);
}

// The index of the largest of `size` values, the first of equal ones.
int64_t argmax(const float* x, int64_t size) {
  Floats largest;
  for (int lane = 0; lane < kFloats; ++lane) largest[lane] = x[0];
  int64_t i = 0;
  for (; i + kFloats <= size; i += kFloats) {
    const Floats part = *reinterpret_cast<const Floats*>(x + i);
    largest = part > largest ? part : largest;
  }
  float most = over_lanes(largest, [](Floats a, Floats b) { return a > b ? a : b; });
  for (; i < size; ++i) most = x[i] > most ? x[i] : most;
  for (i = 0; i < size; ++i)
    if (x[i] == most) return i;
  return 0;  // all values are NaN
}

// Finds the indices of the `count` largest values, largest first and the first of equal ones; 0
// where NaN leaves too few values. `best` holds `count` floats.
void top_k(const float* x, int64_t size, int64_t count, float* best, int64_t* indices) {
  for (int64_t place = 0; place < count; ++place) indices[place] = 0;
  int64_t found = 0;
  const auto offer = [&](int64_t index) {
    const float value = x[index];
    if (!(found < count ? value == value : value > best[count - 1])) return;
    int64_t place = found < count ? found++ : count - 1;
    for (; place > 0 && best[place - 1] < value; --place) {
      best[place] = best[place - 1];
      indices[place] = indices[place - 1];
    }
    best[place] = value;
    indices[place] = index;
  };
  constexpr int64_t kStep = 4 * kFloats;
  int64_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    const Floats* parts = reinterpret_cast<const Floats*>(x + i);
    if (found == count) {
      const float least = best[count - 1];
      const Ints above = (parts[0] > least) | (parts[1] > least) | (parts[2] > least) |
                         (parts[3] > least);
      if (!over_lanes(above, [](Ints a, Ints b) { return a | b; })) continue;
    }
    for (int64_t k = i; k < i + kStep; ++k) offer(k);
  }
  for (; i < size; ++i) offer(i);
}

// See `Kernels::weigh`.
double weigh(const float* x, int64_t size, float temperature, float highest, float* weights,
             double* spread) {
  const auto add = [](Floats a, Floats b) { return a + b; };
  double total = 0, products = 0;
  for (int64_t i = 0; i < size;) {
    const int64_t end = size - i < kPart ? size : i + kPart;
    Floats sums = {}, spreads = {};
    for (; i + kFloats <= end; i += kFloats) {
      const Floats zero = {}, lowest = zero - 1e30f, difference = at(x, i) / temperature - highest;
      // Minus infinity times a weight of zero would be NaN.
      const Floats logarithm = difference < lowest ? lowest : difference;
      const Floats weight = fast_exp(logarithm);
      *reinterpret_cast<Floats*>(weights + i) = weight;
      sums += weight;
      spreads += weight * logarithm;
    }
    total += over_lanes(sums, add);
    products += over_lanes(spreads, add);
    for (; i < end; ++i) {
      const float difference = x[i] / temperature - highest;
      weights[i] = fast_exp(difference);
      total += weights[i];
      products += weights[i] > 0.0f ? weights[i] * difference : 0.0f;
    }
  }
  *spread = products;
  return total;
}

// See `Kernels::keep`.
void keep(const float* x, int64_t size, float temperature, float least, float* weights,
          double* sums) {
  for (int64_t i = 0, part = 0; i < size; ++part) {
    const int64_t end = size - i < kPart ? size : i + kPart;
    const Floats zero = {};
    Floats kept = zero;
    for (; i + kFloats <= end; i += kFloats) {
      Floats& weight = *reinterpret_cast<Floats*>(weights + i);
      weight = at(x, i) / temperature >= zero + least ? weight : zero;
      kept += weight;
    }
    sums[part] = over_lanes(kept, [](Floats a, Floats b) { return a + b; });
    for (; i < end; ++i) {
      if (x[i] / temperature < least) weights[i] = 0.0f;
      sums[part] += weights[i];
    }
  }
}
