#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

/// One way to solve a problem. It returns an empty string, or why its answer cannot be used.
struct Rung {
  std::string driver;
  std::function<std::string()> solve;
};

/// Tries the rungs in turn; returns the driver that succeeded and appends the failures before it.
/// Throws BackendError where all fail.
inline std::string climb(std::span<const Rung> rungs, std::vector<std::string>& fallbacks) {
  std::string failures;
  for (const Rung& rung : rungs) {
    const std::string failure = rung.solve();
    if (failure.empty()) return rung.driver;
    fallbacks.push_back(message(rung.driver, ": ", failure));
    failures += message(failures.empty() ? "" : "; ", fallbacks.back());
  }
  throw BackendError(message("every driver failed: ", failures));
}

}  // namespace descramble_fast
