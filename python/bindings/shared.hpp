#pragma once

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace descramble_fast::python {

/// A value that Python threads share. Its lock is taken with the GIL released, never the other way
/// round.
template <class T>
class Shared {
 public:
  explicit Shared(T value) : value_(std::move(value)) {}

  template <class Use>
  decltype(auto) locked(Use&& use) const {
    const std::lock_guard lock(mutex_);
    return use(value_);
  }
  template <class Use>
  decltype(auto) locked(Use&& use) {
    const std::lock_guard lock(mutex_);
    return use(value_);
  }
  /// Both locks, in an order that cannot deadlock; `other` must be a different object.
  template <class Use>
  decltype(auto) locked_with(const Shared& other, Use&& use) {
    const std::scoped_lock lock(mutex_, other.mutex_);
    return use(value_, other.value_);
  }
  /// All locks, taken in the order of addresses so that two callers cannot wait for each other; the
  /// same object may be named more than once.
  template <class Use>
  static decltype(auto) locked_all(const std::vector<const Shared*>& shared, Use&& use) {
    std::vector<const Shared*> order = shared;
    std::ranges::sort(order);
    order.erase(std::unique(order.begin(), order.end()), order.end());
    std::vector<std::unique_lock<std::mutex>> locks;
    for (const Shared* one : order) locks.emplace_back(one->mutex_);
    std::vector<const T*> values;
    for (const Shared* one : shared) values.push_back(&one->value_);
    return use(values);
  }

 private:
  T value_;
  mutable std::mutex mutex_;
};

}  // namespace descramble_fast::python
