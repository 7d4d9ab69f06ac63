// Makes threads of the operator library late or short of memory, for test_late_threads.py.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <thread>

namespace late_threads {

// What happens at a point, once in `one_in` visits.
struct Trouble {
  std::string point;
  uint64_t one_in = 0;
  int64_t most_us = 0;  // it sleeps up to so long; below 0: no memory is left
  bool spares_caller = false;  // the thread that set it sleeps 20 µs only, others `most_us`
  std::thread::id caller = std::this_thread::get_id();
};

inline Trouble trouble;  // changed between calls only
inline std::atomic<uint64_t> visits{0};

// SplitMix64, so that troubles are spread as if by chance.
inline uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

inline void pass(const char* point) {
  if (trouble.one_in == 0 || trouble.point != point) return;
  if (trouble.spares_caller && std::this_thread::get_id() == trouble.caller)
    return std::this_thread::sleep_for(std::chrono::microseconds(20));
  const uint64_t chance = mixed(visits.fetch_add(1));
  if (chance % trouble.one_in != 0) return;
  if (trouble.most_us < 0) throw std::bad_alloc();
  const uint64_t most = static_cast<uint64_t>(trouble.most_us);
  const uint64_t length = trouble.spares_caller ? most : mixed(chance) % most;
  std::this_thread::sleep_for(std::chrono::microseconds(length));
}

}  // namespace late_threads

#define MEDUSA_TEST_POINT(name) late_threads::pass(name)

extern "C" __attribute__((visibility("default"))) void set_trouble(const char* point,
                                                                   uint64_t one_in,
                                                                   int64_t most_us,
                                                                   bool spares_caller) {
  late_threads::trouble = {point, one_in, most_us, spares_caller};
}

// How often the point was passed since the library was loaded.
extern "C" __attribute__((visibility("default"))) uint64_t num_visits() {
  return late_threads::visits.load();
}
