#pragma once

#include "device.hpp"

namespace descramble_fast::cuda {

/// What one launch takes on at most, beyond one problem.
struct LaunchLimits {
  double seconds = 0.25;              // by the model; then the caller is asked whether to go on
  std::int64_t copied = 256ll << 20;  // bytes of costs that cannot be read where they are
};

void assign(const Queue& queue, const AssignmentProblem& problem, const AssignmentOutput& output,
            const LaunchLimits& limits);

}  // namespace descramble_fast::cuda
