#include "cpu/scan.hpp"

#include <array>

namespace descramble_fast::cpu {

extern const ScanKernels scan_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const ScanKernels scan_avx2;
extern const ScanKernels scan_avx512;
#endif

std::span<const Variant<ScanKernels>> scan_variants(Simd level) {
  static constexpr auto all = std::to_array<Variant<ScanKernels>>({
      {Simd::baseline, &scan_baseline},
#if defined(DESCRAMBLE_FAST_X86)
      {Simd::avx2, &scan_avx2},
      {Simd::avx512, &scan_avx512},
#endif
  });
  return up_to<ScanKernels>(level, all);
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
