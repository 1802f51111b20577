#pragma once

#include <cstdint>
#include <span>

#include "cpu/simd.hpp"

namespace descramble_fast::cpu {

/// Operations on registers alone, enough of them independent to fill the arithmetic units. The
/// result depends on all of them.
struct PeakLoop {
  double (*run)(std::int64_t rounds, double start);
  double flops_per_round;
};

struct LimitsKernels {
  PeakLoop fma_single, fma_wide;
  /// `run` is null where the processor has no such instruction.
  PeakLoop dot_bfloat16;
  /// Reads all of it; `size` is a multiple of read_block.
  std::uint64_t (*read)(const std::uint64_t* from, std::int64_t size);
};

inline constexpr int read_block = 64;

/// The builds that a processor of this level can run, the slowest first.
std::span<const Variant<LimitsKernels>> limits_variants(Simd level);

inline const LimitsKernels& limits_kernels() {
  return *limits_variants(simd_level()).back().kernels;
}

/// Flop/s of that many threads at once.
double peak_rate(const PeakLoop& loop, double seconds, int threads);

/// Bytes/s that they read from memory beyond the caches.
double read_rate(const LimitsKernels& kernels, double seconds, int threads);

}  // namespace descramble_fast::cpu
