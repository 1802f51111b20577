#pragma once

#include <cstdint>
#include <string>

/// What the machine and the control groups of this process grant: its own and every one above it
/// that can be seen, of version 1 and of version 2. `root` stands before every path that is read.
namespace descramble_fast::cpu {

/// CPUs' worth of time, rounded up; 0 where there is no quota.
int cgroup_cpus(const std::string& root = {});

/// Bytes that the process may still take; more would get it killed. Page cache and what may be
/// swapped out do not count as taken. The largest int64 where there is no limit.
std::int64_t cgroup_memory(const std::string& root = {});

}  // namespace descramble_fast::cpu
