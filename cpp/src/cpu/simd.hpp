#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace descramble_fast::cpu {

/// Instruction sets that kernels are built for, each holding the ones before it. `baseline` is what
/// the compiler takes for granted (SSE2 on x86-64); `avx2` has FMA and F16C too; `avx512` is F, BW,
/// DQ and VL.
enum class Simd : std::uint8_t { baseline, avx2, avx512, avx512_bf16 };

const char* name(Simd level);

/// Those that this processor can run, the lowest first.
std::span<const Simd> simd_levels();

/// The highest, or the one named by DESCRAMBLE_FAST_SIMD. Throws InvalidArgument where that names
/// none that this processor can run.
Simd simd_level();

/// One build of a table of kernels.
template <class Kernels>
struct Variant {
  Simd level;
  const Kernels* kernels;
};

/// The builds that `level` can run; `all` in ascending order.
template <class Kernels>
std::span<const Variant<Kernels>> up_to(Simd level, std::span<const Variant<Kernels>> all) {
  const auto higher = std::ranges::find_if(all, [=](const auto& v) { return v.level > level; });
  return all.first(std::size_t(higher - all.begin()));
}

}  // namespace descramble_fast::cpu
