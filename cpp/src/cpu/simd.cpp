#include "cpu/simd.hpp"

#include <cstdlib>
#include <string>
#include <vector>

#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

const char* name(Simd level) {
  switch (level) {
    case Simd::avx2:
      return "avx2";
    case Simd::avx512:
      return "avx512";
    case Simd::avx512_bf16:
      return "avx512_bf16";
    default:
      return "baseline";
  }
}

std::span<const Simd> simd_levels() {
  static const std::vector<Simd> levels = [] {
    std::vector<Simd> out{Simd::baseline};
#if defined(DESCRAMBLE_FAST_X86)
    const auto add = [&](Simd level, bool supported) {
      if (supported && int(out.back()) + 1 == int(level)) out.push_back(level);
    };
    add(Simd::avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c"));
    add(Simd::avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
    add(Simd::avx512_bf16, __builtin_cpu_supports("avx512bf16"));
#endif
    return out;
  }();
  return levels;
}

Simd simd_level() {
  static const Simd chosen = [] {
    const char* const wanted = std::getenv("DESCRAMBLE_FAST_SIMD");
    std::string names;
    for (const Simd level : simd_levels()) {
      if (wanted != nullptr && std::string(wanted) == name(level)) return level;
      names += message(names.empty() ? "" : ", ", name(level));
    }
    if (wanted != nullptr && *wanted != '\0')
      throw InvalidArgument(message("DESCRAMBLE_FAST_SIMD: got \"", wanted,
                                    "\", expected one that this processor runs: ", names));
    return simd_levels().back();
  }();
  return chosen;
}

}  // namespace descramble_fast::cpu
