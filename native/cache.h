// Moving accepted rows of a KV cache.
#pragma once

#include <cstdint>
#include <cstring>

namespace medusa {

// A commit as the runtime describes it, in one block of memory: the cache is
// (tensors, slots, heads, capacity, row_bytes) from `rows` on.
struct Commit {
  char* rows;
  int64_t tensors, slots, heads, capacity, row_bytes;
  int64_t slot, past_length, count;
  int64_t nodes[64];  // the first `count`; increasing, each at least its position

  // Row `past_length + nodes[i]` of every head becomes row `past_length + i`. After a step no
  // processor cache holds the rows, and nearly all the time is spent waiting for memory. Therefore
  // the rows of later heads are prefetched.
  void run() const {
    const int64_t head_bytes = capacity * row_bytes;
    for (int64_t unit = -kAhead; unit < tensors * heads; ++unit) {
      if (unit + kAhead < tensors * heads) fetch(first_row(unit + kAhead, head_bytes));
      if (unit < 0) continue;
      char* first = first_row(unit, head_bytes);
      for (int64_t i = 0; i < count; ++i)
        if (nodes[i] != i)
          std::memcpy(first + i * row_bytes, first + nodes[i] * row_bytes,
                      static_cast<size_t>(row_bytes));
    }
  }

 private:
  static constexpr int64_t kAhead = 8, kLine = 64;

  // The row at `past_length` of a head; `unit` counts the heads of the slot over all tensors.
  char* first_row(int64_t unit, int64_t head_bytes) const {
    const int64_t head = (unit / heads * slots + slot) * heads + unit % heads;
    return rows + head * head_bytes + past_length * row_bytes;
  }

  void fetch(const char* first) const {
    for (int64_t i = 0; i < count; ++i)
      if (nodes[i] != i)
        for (int64_t byte = 0; byte < row_bytes; byte += kLine) {
          __builtin_prefetch(first + nodes[i] * row_bytes + byte, 0);
          __builtin_prefetch(first + i * row_bytes + byte, 1);
        }
  }
};

}  // namespace medusa
