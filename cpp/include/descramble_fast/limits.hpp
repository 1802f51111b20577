#pragma once

#include <optional>

#include "descramble_fast/context.hpp"
#include "descramble_fast/export.hpp"

namespace descramble_fast {

/// What the processor can do at most, with all threads at once and the instruction set in use; a
/// multiply-add counts as two operations.
struct MachineLimits {
  /// Flop/s in float32.
  double fma_float32 = 0;
  /// Flop/s in float64.
  double fma_float64 = 0;
  /// Flop/s in dot products of bfloat16 pairs added to float32, where there is an instruction for
  /// them.
  std::optional<double> dot_bfloat16;
  /// Bytes/s read from memory.
  double bandwidth = 0;
};

/// Measures each limit for about `seconds` and takes the best two milliseconds of that time, so
/// that what else runs on the machine counts least. Memory: 256 MiB, or 32 MiB a thread where that
/// is more, which is allocated meanwhile.
///
/// Throws InvalidArgument where `seconds` is not above 0 and at most 60.
DESCRAMBLE_FAST_EXPORT MachineLimits machine_limits(double seconds = 0.2,
                                                    const Context& context = {});

}  // namespace descramble_fast
