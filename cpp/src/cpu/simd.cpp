#include "cpu/simd.hpp"

#if defined(DESCRAMBLE_FAST_X86)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

#if defined(DESCRAMBLE_FAST_X86)
namespace {

// The compilers' own question for it needs a library that not every linker is given.
struct Cpu {
  unsigned basic = 0, extended = 0, extended_1 = 0;  // leaf 1 ecx, leaf 7 ebx, leaf 7.1 eax
  unsigned saved = 0;                                // registers that the system saves

  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &basic, &d) || !all(basic, {27})) return;
    __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if (__get_cpuid_count(7, 0, &a, &extended, &c, &d) && a >= 1)
      __get_cpuid_count(7, 1, &extended_1, &b, &c, &d);
  }
  static bool all(unsigned word, std::initializer_list<int> bits) {
    return std::ranges::all_of(bits, [&](int bit) { return (word >> bit & 1) != 0; });
  }
  bool avx2() const {  // and fma, f16c
    return all(saved, {1, 2}) && all(basic, {12, 28, 29}) && all(extended, {5});
  }
  bool avx512() const {  // f, dq, bw, vl
    return all(saved, {1, 2, 5, 6, 7}) && all(extended, {16, 17, 30, 31});
  }
  bool bf16() const { return all(extended_1, {5}); }
};

}  // namespace
#endif

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
    const Cpu cpu;
    add(Simd::avx2, cpu.avx2());
    add(Simd::avx512, cpu.avx512());
    add(Simd::avx512_bf16, cpu.bf16());
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
