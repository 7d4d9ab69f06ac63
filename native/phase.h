// How threads share the layers of one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace medusa {
namespace {

// Work that threads take piece by piece: one half of them from its first half and the others from
// the second, so that each reads what lies together, then what is left of the other half.
//
// Threads run the same phases in the same order; any of them may come late, or never. Four things
// keep that from mattering:
// - A thread waits for pieces that were taken, so for threads that run, never for one that is yet
//   to come. It takes nothing before it has all it needs, memory too, and so finishes what it took.
// - Who has waited for a phase sees all that its pieces wrote (`done_` is released and acquired),
//   and no piece of it reads or writes any more.
// - So memory that pieces of a phase write is free for the next phase's pieces, and only for them:
//   a late thread, between two pieces, may be any number of phases behind. What it does there goes
//   to memory of its own, of which no other thread knows.
// - What threads find on their way, input and counters, lives until the last of them has left.
class Phase {
 public:
  // Before any thread comes.
  void begin(int64_t total) {
    end_[0] = (total + 1) / 2;
    end_[1] = total;
    next_[0].count.store(0, std::memory_order_relaxed);
    next_[1].count.store(end_[0], std::memory_order_relaxed);
  }

  // Where a thread begins.
  int64_t first(int half) const { return half ? end_[0] : 0; }

  bool is_taken() const { return is_taken(0) && is_taken(1); }

  template <typename Task>
  void take(int half, const Task& task) {
    for (int turn = 0; turn < 2; ++turn, half = 1 - half)
      while (!is_taken(half)) {
        const int64_t index = next_[half].count.fetch_add(1, std::memory_order_relaxed);
        if (index >= end_[half]) break;
        task(index);
        done_.count.fetch_add(1, std::memory_order_release);
      }
  }

  void wait() const {
    for (int spins = 0; done_.count.load(std::memory_order_acquire) < end_[1];)
      if (++spins % 256 == 0)
        std::this_thread::yield();
      else
        pause();
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> count{0};
  };

  bool is_taken(int half) const {
    return next_[half].count.load(std::memory_order_relaxed) >= end_[half];
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  int64_t end_[2] = {0, 0};
  Counter next_[2], done_;
};

}  // namespace
}  // namespace medusa
