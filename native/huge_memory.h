// Memory for weights in large pages, which are read up to one and a half times as fast.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

namespace medusa {

// Copies of constant tensors, packed into large blocks that live as long as one of their tensors.
class HugeMemory {
 public:
  using Bytes = std::shared_ptr<const char>;

  // A copy of `size` bytes, aligned to 64; null where no memory is left.
  static Bytes copy(const char* source, size_t size) {
    static HugeMemory memory;
    const std::lock_guard<std::mutex> lock(memory.mutex_);
    const size_t padded = (size + 63) / 64 * 64;
    if (!memory.block_ || memory.used_ + padded > memory.capacity_)
      if (!memory.grow(padded)) return nullptr;
    char* target = memory.block_.get() + memory.used_;
    memory.used_ += padded;
    if (size > 0) std::memcpy(target, source, size);  // an empty tensor may have no address
    drop(source, size);
    return Bytes(memory.block_, target);
  }

 private:
  static constexpr size_t kPage = size_t{2} << 20, kBlock = size_t{64} << 20;

  bool grow(size_t size) {
    const size_t capacity = size > kBlock ? (size + kPage - 1) / kPage * kPage : kBlock;
    const size_t mapped = capacity + kPage;
    void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return false;
    const uintptr_t address = (reinterpret_cast<uintptr_t>(start) + kPage - 1) / kPage * kPage;
#ifdef MADV_HUGEPAGE
    madvise(reinterpret_cast<void*>(address), capacity, MADV_HUGEPAGE);
#endif
    const std::shared_ptr<void> mapping(start, [mapped](void* where) { munmap(where, mapped); });
    block_ = std::shared_ptr<char>(mapping, reinterpret_cast<char*>(address));
    capacity_ = capacity;
    used_ = 0;
    return true;
  }

  // The original lies in a mapped file as a rule; its pages need not stay in memory.
  static void drop(const char* source, size_t size) {
#ifdef MADV_PAGEOUT
    constexpr uintptr_t kSmallPage = 4096;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(source) + kSmallPage - 1) & ~(kSmallPage - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(source) + size) & ~(kSmallPage - 1);
    if (end > start) madvise(reinterpret_cast<void*>(start), end - start, MADV_PAGEOUT);
#endif
  }

  std::mutex mutex_;
  std::shared_ptr<char> block_;
  size_t capacity_ = 0, used_ = 0;
};

}  // namespace medusa
