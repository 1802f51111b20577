#pragma once

#include <functional>
#include <memory_resource>
#include <string_view>

#include "descramble_fast/context.hpp"

namespace descramble_fast {

/// What a call of the public interface brings along for everything it does: found on the thread, so
/// that allocations and loops deep inside need no argument for it.
struct Surroundings {
  Executor* executor = nullptr;
  std::pmr::memory_resource* memory = nullptr;
  const std::function<void(Severity, std::string_view)>* log = nullptr;
  int depth = 0;  // of calls within calls
};

/// Of this thread. parallel_for hands them to the threads that help it.
Surroundings& surroundings();

/// Stands first in every public function that takes a context.
class Call {
 public:
  /// What the context leaves open stays as it is around this call.
  explicit Call(const Context& context);
  /// For objects with memory of their own; null: operator new.
  Call(const Context& context, std::pmr::memory_resource* memory);
  ~Call() { surroundings() = outer_; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Tells the caller's log, if there is one, what failed on the way and what solved the problem;
  /// nothing within another call, which has a route of its own.
  void log(const char* name, const Route& route) const;

 private:
  Surroundings outer_;
};

/// Whether the system would grant so many bytes at once; memory that the caller brings is not
/// asked.
bool can_have(std::int64_t bytes);

}  // namespace descramble_fast
