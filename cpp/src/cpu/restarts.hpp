#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/context.hpp"

namespace descramble_fast::cpu {

/// One of several independent searches, advanced in slices of a few milliseconds. What it finds
/// must depend neither on how the others fare nor on the clock.
class Restart {
 public:
  virtual ~Restart() = default;
  /// One slice; true when the search is over. May throw what `context.poll` throws.
  virtual bool advance(const Context& context) = 0;
  /// The best so far; infinite before there is one.
  virtual double cost() const = 0;
  virtual std::int64_t steps() const = 0;
};

struct RestartsReport {
  std::int64_t steps = 0;
  Stopped stopped = Stopped::finished;
};

/// Advances the restarts, as many at a time as there are threads and each by one slice at least,
/// until they are over, or time or the caller ends them. Between rounds of slices the caller is
/// polled and told of the steps made and `planned` and of the best cost, `known` at first. Restarts
/// that were not begun have no answer.
RestartsReport run_restarts(std::span<const std::unique_ptr<Restart>> restarts,
                            std::int64_t planned, double known, const SearchOptions& search,
                            const Context& context);

}  // namespace descramble_fast::cpu
