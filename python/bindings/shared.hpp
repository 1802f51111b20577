#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

namespace descramble_fast::python {

/// A value that Python threads share. Its lock is taken with the GIL released, never the other way
/// round. A signal handler that a long call runs may come back to the value the call is at work on:
/// that is an error, where waiting would be for ever.
template <class T>
class Shared {
 public:
  explicit Shared(T value) : value_(std::move(value)) {}

  template <class Use>
  decltype(auto) locked(Use&& use) const {
    const Hold hold(*this);
    return use(value_);
  }
  template <class Use>
  decltype(auto) locked(Use&& use) {
    const Hold hold(*this);
    return use(value_);
  }
  /// Both, in the order of addresses so that two callers cannot wait for each other; `other` must
  /// be a different object.
  template <class Use>
  decltype(auto) locked_with(const Shared& other, Use&& use) {
    const Hold first(*std::min<const Shared*>(this, &other));
    const Hold second(*std::max<const Shared*>(this, &other));
    return use(value_, other.value_);
  }

  /// All, in the same order; the same object may be named more than once.
  template <class Use>
  static decltype(auto) locked_all(const std::vector<const Shared*>& shared, Use&& use) {
    std::vector<const Shared*> order = shared;
    std::ranges::sort(order);
    order.erase(std::unique(order.begin(), order.end()), order.end());
    std::deque<Hold> holds;
    for (const Shared* one : order) holds.emplace_back(*one);
    std::vector<const T*> values;
    for (const Shared* one : shared) values.push_back(&one->value_);
    return use(values);
  }

 private:
  class Hold {
   public:
    explicit Hold(const Shared& shared) : shared_(shared) {
      if (shared.owner_.load() == std::this_thread::get_id())
        throw std::runtime_error(
            "this accumulator is in use by the call that a signal interrupted");
      shared.mutex_.lock();
      shared.owner_.store(std::this_thread::get_id());
    }
    ~Hold() {
      shared_.owner_.store({});
      shared_.mutex_.unlock();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    const Shared& shared_;
  };

  T value_;
  mutable std::mutex mutex_;
  mutable std::atomic<std::thread::id> owner_{};
};

}  // namespace descramble_fast::python
