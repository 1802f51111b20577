#include "cpu/scan.hpp"

#include <cstdlib>
#include <string>
#include <vector>

#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

extern const ScanKernels scan_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const ScanKernels scan_avx2;
extern const ScanKernels scan_avx512;
#endif

std::span<const ScanKernels* const> scan_variants() {
  static const std::vector<const ScanKernels*> variants = [] {
    std::vector<const ScanKernels*> out{&scan_baseline};
#if defined(DESCRAMBLE_FAST_X86)
    if (__builtin_cpu_supports("avx2")) out.push_back(&scan_avx2);
    if (__builtin_cpu_supports("avx512f")) out.push_back(&scan_avx512);
#endif
    return out;
  }();
  return variants;
}

const ScanKernels& scan_kernels() {
  static const ScanKernels& chosen = []() -> const ScanKernels& {
    const char* const wanted = std::getenv("DESCRAMBLE_FAST_SIMD");
    std::string names;
    for (const ScanKernels* variant : scan_variants()) {
      if (wanted != nullptr && std::string(wanted) == variant->name) return *variant;
      names += message(names.empty() ? "" : ", ", variant->name);
    }
    if (wanted != nullptr && *wanted != '\0')
      throw InvalidArgument(message("DESCRAMBLE_FAST_SIMD: got \"", wanted,
                                    "\", expected one that this processor runs: ", names));
    return *scan_variants().back();
  }();
  return chosen;
}

template <>
const RowScan<float>& row_scan() {
  return scan_kernels().single;
}
template <>
const RowScan<double>& row_scan() {
  return scan_kernels().wide;
}

}  // namespace descramble_fast::cpu
