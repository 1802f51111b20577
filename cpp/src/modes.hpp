#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend.hpp"

namespace descramble_fast {

/// An operator's modes as the CUDA backend takes them. Borrows from the operator, which must
/// outlive it.
struct ModesDescription {
  std::int64_t n;
  const double* eigenvalues;
  std::vector<cuda::ModeAxis> axes;
  /// Mode i is product order[i] over the axes; empty: itself.
  std::vector<std::int64_t> order;

  std::int64_t product(std::int64_t mode) const {
    return order.empty() ? mode : order[std::size_t(mode)];
  }
  cuda::Modes view() const {
    return {n, eigenvalues, axes.data(), std::int32_t(axes.size()),
            order.empty() ? nullptr : order.data()};
  }
};

}  // namespace descramble_fast
