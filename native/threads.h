// How the threads of a call wait for each other, and how many of them a call asks for.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "phase.h"

namespace medusa {
namespace {

// A thread that has waited for so long waits for one that does not run.
constexpr int64_t kPatience = 100'000;  // nanoseconds

inline int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Decides how many threads a call asks for.
//
// When another program wants a core, the system stops one of our threads for some milliseconds. If
// that thread has taken a piece of work, all others wait for it, and two threads are slower than
// one. After such a wait calls ask for one thread fewer, for a multiple of the time that was lost.
// Where it happens again soon after, they do so for twice as long.
class Helpers {
 public:
  static constexpr int64_t kAll = 0;

  // One for the whole process, because all its sessions use the same cores.
  static Helpers& shared() {
    static Helpers helpers;
    return helpers;
  }

  int64_t allowed(int64_t now) const {
    if (now >= until_.load(std::memory_order_relaxed)) return kAll;
    return limit_.load(std::memory_order_relaxed);
  }

  // A call of so many threads lost time because one of them did not run. When several calls report
  // at once, a report may be lost, and the next one comes soon.
  void report(int64_t now, int64_t lost, int64_t threads) {
    lost = std::min(lost, kMostLost);
    const int64_t last = pause_.load(std::memory_order_relaxed);
    const bool is_recurring = now - until_.load(std::memory_order_relaxed) < last;
    const int64_t longer = is_recurring ? 2 * last : 0;
    const int64_t pause = std::min(std::max(longer, kFirst * lost), kMost * lost);
    limit_.store(std::max<int64_t>(threads - 1, 1), std::memory_order_relaxed);
    pause_.store(pause, std::memory_order_relaxed);
    until_.store(now + pause, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kFirst = 2, kMost = 32;  // pauses, in times of what was lost
  static constexpr int64_t kMostLost = 10'000'000;  // a computer may have slept for an hour

  std::atomic<int64_t> until_{0}, pause_{0}, limit_{kAll};
};

// What the threads of one call know of each other.
struct Section {
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> threads{0};
  std::atomic<bool> is_closed{false};  // threads that come now find nothing to do

  void report(int64_t now, int64_t lost) const {
    Helpers::shared().report(now, lost, threads.load(std::memory_order_relaxed));
  }
};

// One thread of a call: the caller of the operator, or a helper.
//
// The caller waits for pieces that others have taken. A helper that waits long leaves, and the
// caller goes on without it: waiting would use up the time that the system gives to the helper, and
// the helper would be stopped later, with a piece in its hands.
class Worker {
 public:
  explicit Worker(Section& section)
      : section_(section),
        is_caller_(std::this_thread::get_id() == section.caller),
        half_(section.threads.fetch_add(1, std::memory_order_relaxed) % 2) {}

  int half() const { return half_; }

  // Does pieces of a phase until all are taken.
  template <typename Task>
  void take(Phase& phase, const Task& task) {
    const int64_t start = now_ns();
    if (const int64_t count = phase.take(half_, task)) piece_ = (now_ns() - start) / count;
  }

  // Waits until all pieces of the phase are done. Returns false if this thread must leave the call.
  bool wait(const Phase& phase) const {
    int64_t start = 0, waited = 0;
    const int64_t patience = kPatience + 4 * piece_;
    for (int spins = 1; !phase.is_done(); ++spins) {
      pause();
      if (spins % kSpins != 0) continue;
      const int64_t now = now_ns();
      if (start == 0) start = now;
      waited = now - start;
      if (waited < patience) continue;
      if (!is_caller_) return false;
      std::this_thread::yield();
    }
    if (is_caller_ && waited > patience) section_.report(start + waited, waited);
    return true;
  }

 private:
  static constexpr int kSpins = 32;  // between two looks at the clock

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Section& section_;
  const bool is_caller_;
  const int half_;
  int64_t piece_ = 0;  // nanoseconds that a piece takes
};

}  // namespace
}  // namespace medusa
