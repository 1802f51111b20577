#pragma once

#include <exception>
#include <string>
#include <vector>

#include "backend.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cuda {

/// The CUDA library's functions, loaded on first use. Throws BackendError that says why they cannot
/// be had: built without, libraries or driver missing, no device.
const Backend& backend();

/// Throws what a failure stands for.
[[noreturn]] void raise(const Failure& failure);

/// Calls an entry of the table that takes no queue.
template <class Entry, class... Arguments>
void call(Entry entry, Arguments... arguments) {
  Failure failure;
  if (!entry(arguments..., &failure)) raise(failure);
}

/// One call's queue. What the caller's poll throws goes through.
class Caller {
 public:
  Caller(Device device, const Context& context);
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  template <class Entry, class... Arguments>
  void operator()(Entry entry, Arguments... arguments) {
    Failure failure;
    if (entry(&queue_, arguments..., &failure)) return;
    if (thrown_) std::rethrow_exception(thrown_);
    raise(failure);
  }

  const Queue& queue() const { return queue_; }

 private:
  const Context& context_;
  Queue queue_;
  std::exception_ptr thrown_;
};

/// Moments on a device.
class DeviceMoments {
 public:
  DeviceMoments(Device device, std::int64_t n_x, std::int64_t n_y, bool offload);
  ~DeviceMoments();
  DeviceMoments(const DeviceMoments&) = delete;
  DeviceMoments& operator=(const DeviceMoments&) = delete;

  Device device() const { return {DeviceKind::cuda, shape_.device}; }
  bool offload() const { return shape_.offload; }

  /// Does not wait.
  void add(const ArrayView* batches, const RowSelection& selection, const Context& context);
  /// Waits for all updates. Throws InvalidArgument for the first one refused since the last time.
  MomentsReport report();
  void merge(DeviceMoments& other);
  void assume(std::int64_t count, double weight, const double* reference, const double* offset,
              const Matrix<double>& scatter);

  struct Mean {
    std::vector<double> reference, offset;
  };
  Mean mean(std::int32_t set) const;
  Matrix<double> read(double divisor, bool centred) const;
  Matrix<double> correlation() const;

 private:
  Matrix<double> empty() const;

  MomentsShape shape_;
  Moments* moments_ = nullptr;
};

/// A contiguous copy on the CPU: float64 where it was, float32 otherwise.
class OnHost {
 public:
  OnHost(const ArrayView& view, const Context& context);
  const ArrayView& view() const { return view_; }

 private:
  Matrix<double> wide_;
  Matrix<float> narrow_;
  ArrayView view_;
};

/// A contiguous float64 copy on the device it lies on, (rows, columns).
Matrix<double> widened(const ArrayView& view, const Context& context);

}  // namespace descramble_fast::cuda
