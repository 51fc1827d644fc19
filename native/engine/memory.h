// Memory aligned to a cache line, which is also the widest vector.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rw {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Not cleared: pages that nobody touches take no memory.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    const size_t unit = bytes >= kHuge / 2 ? kHuge : 64;
    const size_t rounded = (bytes + unit - 1) / unit * unit;
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(unit, rounded ? rounded : unit)));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (unit == kHuge) madvise(data_.get(), rounded, MADV_HUGEPAGE);  // a wish: a few large pages miss the TLB less
#endif
  }
  uint8_t* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kHuge = size_t{2} << 20;

  std::unique_ptr<uint8_t, Free> data_;
  size_t bytes_ = 0;
};

}  // namespace rw
