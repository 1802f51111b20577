#pragma once

#include <cstdint>
#include <functional>

#include "descramble_fast/context.hpp"

namespace descramble_fast::cpu {

/// What the environment, the CPU affinity and the cgroup quota allow.
int default_threads();

/// Threads that a call with this context may use. Throws InvalidArgument for a negative request.
int threads_of(const Context& context);

/// Runs body(0) ... body(count - 1), each once, on up to `threads` threads including the caller's.
/// Serial inside another parallel_for. The first exception is rethrown here.
/// What an index computes must not depend on which thread runs it: results are then the same for
/// every thread count.
void parallel_for(int threads, std::int64_t count, const std::function<void(std::int64_t)>& body);

/// Forgets the pool in a forked child, whose copies of the workers do not exist. Other state that a
/// fork leaves locked registers its own reset here.
void on_fork_in_child(void (*reset)());

}  // namespace descramble_fast::cpu
