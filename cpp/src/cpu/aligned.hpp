#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Uninitialised memory of the call for numbers, aligned to cache lines; where it is the library's
/// own, large arrays lie on huge pages if the system gives them: kernels that walk through
/// megabytes wait for page tables otherwise.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(std::int64_t size) : size_(size) {
    constexpr std::size_t cache_line = 64, huge_page = std::size_t(1) << 21;
    std::pmr::memory_resource* const memory = memory_of_call();
    const std::size_t bytes = std::size_t(size) * sizeof(T);
    const bool huge = bytes >= 2 * huge_page && memory->is_equal(*std::pmr::new_delete_resource());
    const std::size_t alignment = huge ? huge_page : cache_line;
    data_ = {static_cast<T*>(memory->allocate(bytes, alignment)), Free{memory, bytes, alignment}};
#if defined(__linux__)
    if (huge) ::madvise(data_.get(), bytes, MADV_HUGEPAGE);  // a wish: no matter if it fails
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
  struct Free {
    std::pmr::memory_resource* memory = nullptr;
    std::size_t bytes = 0, alignment = 0;
    void operator()(T* data) const { memory->deallocate(data, bytes, alignment); }
  };
  std::int64_t size_ = 0;
  std::unique_ptr<T[], Free> data_;
};

}  // namespace descramble_fast::cpu
