#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace descramble_fast::cpu {

/// Uninitialised memory for numbers, aligned to cache lines; movable.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(std::int64_t size)
      : size_(size),
        data_(static_cast<T*>(::operator new(std::size_t(size) * sizeof(T), alignment))) {}

  std::int64_t size() const { return size_; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, alignment); }
  };
  std::int64_t size_ = 0;
  std::unique_ptr<T[], Free> data_;
};

}  // namespace descramble_fast::cpu
