#pragma once

#include <cstdint>
#include <functional>

#include "descramble_fast/context.hpp"

namespace descramble_fast::cpu {

/// What the environment, the CPU affinity and the cgroup quota allow.
int default_threads();

/// Threads that a call with this context may use. Throws InvalidArgument for a negative request.
int threads_of(const Context& context);

/// A callable that is borrowed for the length of a call: no allocation, so nothing that can fail.
struct Body {
  const void* object;
  void (*invoke)(const void* object, std::int64_t index);
};

void run_parallel(int threads, std::int64_t count, Body body, const std::function<void()>& poll);

/// A poll for solvers that poll at every step: on this thread no sooner than 20 ms after the last
/// time; on a thread that helps with a parallel_for, it ends the index where another has failed.
/// Empty where `poll` is.
std::function<void()> now_and_then(std::function<void()> poll);

/// Runs body(0) ... body(count - 1), each once, on up to `threads` threads including the caller's.
/// Serial inside another parallel_for. The threads are the executor's of the call, if it brings
/// one: then nobody polls meanwhile. The first exception is rethrown here, and no index begins
/// after it; the call itself throws none, so that state half written by bodies that cannot fail is
/// always completed.
/// What an index computes must not depend on which thread runs it: results are then the same for
/// every thread count. `poll`, if any, is called now and then by the caller between its indices and
/// while it waits for the others; what it throws is rethrown like a body's.
template <class Callable>
void parallel_for(int threads, std::int64_t count, const Callable& body,
                  const std::function<void()>& poll = {}) {
  run_parallel(threads, count,
               {&body, [](const void* object,
                          std::int64_t index) { (*static_cast<const Callable*>(object))(index); }},
               poll);
}

}  // namespace descramble_fast::cpu
