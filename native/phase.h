// Work that the threads of one call share.
#pragma once

#include <atomic>
#include <cstdint>

namespace medusa {
namespace {

// Work that threads take piece by piece. Half of the threads begin with the first half of the
// pieces and the others with the second half, so that each thread reads neighbouring memory. Then
// they take the pieces that are left of the other half.
//
// Threads run the same phases in the same order, and a thread may come late or never. Four rules
// make this safe:
// - A thread waits only for pieces that were taken, so only for threads that are running. A thread
//   takes a piece after it has everything that it needs, memory included, so it always finishes it.
// - A thread that has waited for a phase sees everything that its pieces wrote (`done_` is released
//   and acquired), and no piece of that phase reads or writes any more.
// - So the next phase's pieces, and nothing else, may reuse memory that a phase's pieces wrote. A
//   late thread between two pieces may be any number of phases behind, and writes only to memory
//   that no other thread knows.
// - Everything that threads read, inputs and counters, lives until the last thread has left.
class Phase {
 public:
  // Called before any thread starts.
  void begin(int64_t total) {
    end_[0] = (total + 1) / 2;
    end_[1] = total;
    next_[0].count.store(0, std::memory_order_relaxed);
    next_[1].count.store(end_[0], std::memory_order_relaxed);
  }

  // The piece at which a thread begins.
  int64_t first(int half) const { return half ? end_[0] : 0; }

  bool is_taken() const { return is_taken(0) && is_taken(1); }

  bool is_done() const { return done_.count.load(std::memory_order_acquire) >= end_[1]; }

  // Returns the number of pieces that this thread did. It takes several at once as long as many are
  // left, and reports them together: a counter waits until other threads' caches have given up what
  // the pieces wrote.
  template <typename Task>
  int64_t take(int half, const Task& task) {
    int64_t count = 0;
    for (int turn = 0; turn < 2; ++turn, half = 1 - half) {
      std::atomic<int64_t>& next = next_[half].count;
      int64_t index = next.load(std::memory_order_relaxed);
      while (index < end_[half]) {
        const int64_t end = index + (end_[half] - index + kShare - 1) / kShare;
        if (!next.compare_exchange_weak(index, end, std::memory_order_relaxed)) continue;
        count += end - index;
        for (; index < end; ++index) task(index);
        index = next.load(std::memory_order_relaxed);
      }
    }
    if (count > 0) done_.count.fetch_add(count, std::memory_order_release);
    return count;
  }

 private:
  static constexpr int64_t kShare = 4;  // of the pieces that are left, one part is taken at once

  struct alignas(64) Counter {
    std::atomic<int64_t> count{0};
  };

  bool is_taken(int half) const {
    return next_[half].count.load(std::memory_order_relaxed) >= end_[half];
  }

  int64_t end_[2] = {0, 0};
  Counter next_[2], done_;
};

}  // namespace
}  // namespace medusa
