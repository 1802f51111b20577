#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "backend.hpp"

namespace descramble_fast::cuda::testing {

inline const Queue queue{};

/// An array on the device.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::int64_t size) : size_(size) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, std::size_t(size) * sizeof(T)) != cudaSuccess)
      throw std::runtime_error("cudaMalloc failed");
    data_.reset(static_cast<T*>(memory));
  }
  DeviceArray(const T* from, std::int64_t size) : DeviceArray(size) {
    copy(data(), from, cudaMemcpyHostToDevice);
  }
  explicit DeviceArray(const std::vector<T>& from)
      : DeviceArray(from.data(), std::int64_t(from.size())) {}

  T* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  std::vector<T> host() const {
    std::vector<T> out(static_cast<std::size_t>(size_));
    copy(out.data(), data(), cudaMemcpyDeviceToHost);
    return out;
  }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  void copy(T* to, const T* from, cudaMemcpyKind kind) const {
    if (size_ > 0 && cudaMemcpy(to, from, std::size_t(size_) * sizeof(T), kind) != cudaSuccess)
      throw std::runtime_error("cudaMemcpy failed");
  }

  std::int64_t size_;
  std::unique_ptr<T, Free> data_;
};

}  // namespace descramble_fast::cuda::testing
