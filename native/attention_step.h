// The work of TreeAttention, cut into pieces for threads.
#pragma once

#include <algorithm>

#include "call.h"

namespace medusa {
namespace {

// Attention of all sequences and heads in one call. Each key and value head of a sequence has its
// query rows in units of at most `query_rows`.
struct AttentionStep {
  int64_t batch, heads;  // of keys and values
  int64_t capacity;
  int64_t query_stride;  // from sequence to sequence
  int64_t kv_stride;     // from node to node
  const float* new_keys;
  const float* new_values;
  const int64_t* pasts;    // (batch,)
  const int64_t* offsets;  // (batch, nodes), or (nodes,) where `tree_stride` is 0
  int64_t tree_stride;     // from tree to tree
  uint16_t* to_keys;       // (batch, heads, capacity, head_dim)
  uint16_t* to_values;
  int64_t window;    // number of positions up to its own that a node sees; 0 for all
  int64_t chunk;     // number of positions in a chunk, of which a node sees its own; 0 for all
  Attention shared;  // of the first sequence and head, without its past and first positions

  void run(const Call& call) {
    const int64_t nodes = shared.nodes, rows = nodes * shared.group;
    prepare();
    if (!shared.is_plain() && best_->general) best_ = best_->general;
    blocks_ = (rows + best_->query_rows - 1) / best_->query_rows;
    block_rows_ = (rows + blocks_ - 1) / blocks_;
    units_ = batch * heads * blocks_;
    append_parts_ = (nodes + kAppended - 1) / kAppended;
    longest_ = *std::max_element(pasts, pasts + batch) + nodes;
    if (best_->attention && units_ < kEnough)
      run_in_steps(call, *best_->attention);
    else
      run_by_units(call);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  static constexpr int64_t kEnough = 16;     // units that threads can share evenly
  static constexpr int64_t kAppended = 16;   // nodes
  static constexpr int64_t kKeys = 128, kRows = 4, kDims = 32;  // of a piece of a step

  // Positions of the nodes and the first ones that they see, and whether the nodes are a chain.
  void prepare() {
    const int64_t nodes = shared.nodes;
    positions_.resize(static_cast<size_t>(batch * nodes));
    chains_.resize(static_cast<size_t>(batch));
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = 0; t < nodes; ++t)
        positions_[static_cast<size_t>(b * nodes + t)] = pasts[b] + offsets[b * tree_stride + t];
      chains_[static_cast<size_t>(b)] =
          b > 0 && tree_stride == 0 ? chains_[0]
                                    : is_chain(shared.mask + b * tree_stride * nodes,
                                               offsets + b * tree_stride);
    }
    for (int64_t position : positions_) {
      const int64_t in_window = window > 0 ? position - window + 1 : 0;
      const int64_t in_chunk = chunk > 0 ? position / chunk * chunk : 0;
      firsts_.push_back(std::max({int64_t{0}, in_window, in_chunk}));
    }
    shared.firsts = window > 0 || chunk > 0 ? firsts_.data() : nullptr;
  }

  bool is_chain(const float* tree, const int64_t* depths) const {
    for (int64_t t = 0; t < shared.nodes; ++t)
      if (depths[t] != t) return false;
    for (int64_t t = 0; t < shared.nodes; ++t)
      for (int64_t j = 0; j < shared.nodes; ++j)
        if ((j <= t) != (tree[t * shared.nodes + j] > kHidden)) return false;
    return true;
  }

  // Units one by one, after all keys and values are in the cache.
  void run_by_units(const Call& call) const {
    const int64_t floats = best_->attend_floats(longest_, shared.head_dim);
    Phase appended, attended;
    appended.begin(batch * heads * append_parts_);
    attended.begin(units_);
    call.parallel([&](Worker& worker) {
      float* own = scratch<float>(Scratch::kTask, static_cast<size_t>(floats));
      worker.take(appended, [&](int64_t index) { append(index, own); });
      if (!worker.wait(appended)) return;
      worker.take(attended, [&](int64_t unit) {
        const int64_t first = first_row(unit);
        if (num_rows(unit) > 0) best_->attend(attention(unit), first, num_rows(unit), own);
      });
      worker.wait(attended);
    });
  }

  // Few units: threads share their keys, rows and dimensions.
  void run_in_steps(const Call& call, const AttentionSteps& steps) const {
    const int64_t size = shared.head_dim;
    const int64_t unit_floats = AttentionRows::floats(block_rows_, longest_, size);
    float* memory = scratch<float>(Scratch::kInner, static_cast<size_t>(units_ * unit_floats));
    const size_t own_floats = static_cast<size_t>(steps.own_floats(longest_, size));
    const int64_t appends = batch * heads * append_parts_;
    const int64_t key_parts = (count_most_keys() + kKeys - 1) / kKeys;
    const int64_t row_parts = (block_rows_ + kRows - 1) / kRows;
    const int64_t dim_parts = (size + kDims - 1) / kDims;
    Phase prepared, scored, weighed, added;
    prepared.begin(appends + units_);
    scored.begin(units_ * key_parts);
    weighed.begin(units_ * row_parts);
    added.begin(units_ * dim_parts);
    // Calls step(attention, rows, begin, end) for a part of a unit's keys, rows or dimensions.
    const auto part = [&](int64_t unit, int64_t index, int64_t each, const auto& range_of,
                          const auto& step) {
      if (num_rows(unit) <= 0) return;
      const Attention a = attention(unit);
      const AttentionRows rows(a, first_row(unit), num_rows(unit), memory + unit * unit_floats);
      const Range range = range_of(rows);
      const int64_t begin = range.begin + index * each, end = std::min(begin + each, range.end);
      if (begin < end) step(a, rows, begin, end);
    };
    call.parallel([&](Worker& worker) {
      float* own = scratch<float>(Scratch::kTask, own_floats);
      worker.take(prepared, [&](int64_t index) {
        if (index < appends) return append(index, own);
        part(index - appends, 0, 1, [](const AttentionRows&) { return Range{0, 1}; },
             [&](const Attention& a, const AttentionRows& rows, int64_t, int64_t) {
               steps.rotate(a, rows);
             });
      });
      if (!worker.wait(prepared)) return;
      worker.take(scored, [&](int64_t index) {
        part(index / key_parts, index % key_parts, kKeys,
             [](const AttentionRows& rows) { return Range{rows.begin, rows.end}; },
             [&](const Attention& a, const AttentionRows& rows, int64_t begin, int64_t end) {
               steps.score(a, rows, begin, end, own);
             });
      });
      if (!worker.wait(scored)) return;
      worker.take(weighed, [&](int64_t index) {
        part(index / row_parts, index % row_parts, kRows,
             [](const AttentionRows& rows) { return Range{0, rows.count}; },
             [&](const Attention& a, const AttentionRows& rows, int64_t begin, int64_t end) {
               steps.weigh(a, rows, begin, end, own);
             });
      });
      if (!worker.wait(weighed)) return;
      worker.take(added, [&](int64_t index) {
        part(index / dim_parts, index % dim_parts, kDims,
             [&](const AttentionRows&) { return Range{0, size}; },
             [&](const Attention& a, const AttentionRows& rows, int64_t begin, int64_t end) {
               steps.add(a, rows, begin, end, own);
             });
      });
      worker.wait(added);
    });
  }

  // The number of keys of the unit that has the most of them.
  int64_t count_most_keys() const {
    int64_t most = 0;
    for (int64_t unit = 0; unit < units_; ++unit) {
      if (num_rows(unit) <= 0) continue;
      const Attention a = attention(unit);
      const int64_t row = first_row(unit), count = num_rows(unit);
      most = std::max(most, a.end_key(row, count) - a.first_key(row, count));
    }
    return most;
  }

  // Writes some new keys and values of a head into the cache.
  void append(int64_t index, float* own) const {
    const int64_t part = index % append_parts_, head = index / append_parts_ % heads;
    const int64_t b = index / append_parts_ / heads, size = shared.head_dim;
    const int64_t end = std::min((part + 1) * kAppended, shared.nodes);
    for (int64_t t = part * kAppended; t < end; ++t) {
      const int64_t source = (b * shared.nodes + t) * kv_stride + head * size;
      const int64_t target = ((b * heads + head) * capacity + pasts[b] + t) * size;
      const int64_t turn =
          positions_[static_cast<size_t>(b * shared.nodes + t)] * shared.rotary_dim / 2;
      best_->append(new_keys + source, new_values + source, shared.cos + turn, shared.sin + turn,
                    size, shared.rotary_dim, own, to_keys + target, to_values + target);
    }
  }

  int64_t first_row(int64_t unit) const { return unit % blocks_ * block_rows_; }

  int64_t num_rows(int64_t unit) const {
    return std::min(block_rows_, shared.nodes * shared.group - first_row(unit));
  }

  Attention attention(int64_t unit) const {
    const int64_t head = unit / blocks_ % heads, b = unit / blocks_ / heads;
    const int64_t cache = (b * heads + head) * capacity * shared.head_dim;
    const int64_t first_query = head * shared.group * shared.head_dim;
    Attention a = shared;
    a.past = pasts[b];
    a.queries += b * query_stride + first_query;
    a.mask += b * tree_stride * shared.nodes;
    a.chain = chains_[static_cast<size_t>(b)];
    if (a.firsts) a.firsts += b * shared.nodes;
    if (a.sinks) a.sinks += head * shared.group;
    a.keys = to_keys + cache;
    a.values = to_values + cache;
    a.positions = positions_.data() + b * shared.nodes;
    a.out += b * shared.nodes * shared.out_stride + first_query;
    return a;
  }

  const Kernels* best_ = kernels();
  int64_t blocks_, block_rows_, units_, append_parts_, longest_;
  std::vector<int64_t> positions_, firsts_;
  std::vector<char> chains_;
};

}  // namespace
}  // namespace medusa
