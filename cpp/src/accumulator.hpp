#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cpu/covariance.hpp"
#include "cuda.hpp"
#include "descramble_fast/covariance.hpp"

namespace descramble_fast {

/// Moments of one set of columns with itself, or with another, wherever they lie. The caller has
/// checked shapes and types.
class Accumulator {
 public:
  /// n_y 0: of one set.
  Accumulator(std::int64_t n_x, std::int64_t n_y, MomentsPlace place);

  Device device() const;
  bool offload() const { return place_.offload; }
  bool on_device() const { return device_moments_ != nullptr; }

  struct Totals {
    std::int64_t count = 0;
    double weight = 0;
  };
  /// Wait for all updates, and throw for one that was refused.
  Totals totals();

  void add(std::span<const ArrayView> batches, const RowSelection& selection,
           const Context& context);
  void merge(Accumulator& other);

  /// reference + offset is the mean of set 0 or 1.
  struct Mean {
    std::vector<double> reference, offset;
    std::vector<double> sum() const;
  };
  Mean mean(std::int32_t set);
  /// Scatter about the mean / divisor, plus the outer product of the means unless centred.
  Matrix<double> moment(double divisor, bool centred);
  Matrix<double> correlation();

  /// On the CPU: the state itself, to be filled in and then assumed.
  cpu::Moments::Settled& settled();
  /// As cpu::Moments does.
  double assume(Totals totals);
  /// Of one set.
  Accumulator to(MomentsPlace place);

 private:
  bool decided() const { return on_device() || moments_; }
  void settle_on(Device device);
  const char* argument(std::size_t side) const;

  std::int64_t n_x_, n_y_;
  MomentsPlace place_;
  std::int64_t count_ = 0;  // on the CPU
  std::optional<cpu::Moments> moments_;
  std::unique_ptr<cuda::DeviceMoments> device_moments_;
};

}  // namespace descramble_fast
