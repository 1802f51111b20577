#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace descramble_fast::cpu {

/// Uninitialised memory for numbers, aligned to cache lines, and large arrays to huge pages where
/// the system gives them: kernels that walk through megabytes wait for page tables otherwise.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(std::int64_t size) : size_(size) {
    const std::size_t bytes = std::size_t(size) * sizeof(T);
    const bool large = bytes >= 2 * huge_page;
    const std::align_val_t alignment{large ? huge_page : cache_line};
    data_ = {static_cast<T*>(::operator new(bytes, alignment)), Free{alignment}};
#if defined(__linux__)
    if (large) ::madvise(data_.get(), bytes, MADV_HUGEPAGE);  // a wish: no matter if it fails
#endif
  }

  Aligned(Aligned&& other) noexcept
      : size_(std::exchange(other.size_, 0)), data_(std::move(other.data_)) {}
  Aligned& operator=(Aligned&& other) noexcept {
    size_ = std::exchange(other.size_, 0);
    data_ = std::move(other.data_);
    return *this;
  }

  std::int64_t size() const { return size_; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  static constexpr std::size_t cache_line = 64, huge_page = std::size_t(1) << 21;
  struct Free {
    std::align_val_t alignment{cache_line};
    void operator()(T* data) const { ::operator delete(data, alignment); }
  };
  std::int64_t size_ = 0;
  std::unique_ptr<T[], Free> data_;
};

}  // namespace descramble_fast::cpu
