#pragma once

#include <cstdint>
#include <span>

#include "cpu/simd.hpp"

namespace descramble_fast::cpu {

/// Sums over poles of the secular function and of its derivative.
struct SecularSums {
  double value, slope;
};

/// Loops over the poles d (k) of the secular function 1 + sum z2_j / (d_j - x). A point x is given
/// as origin + tau, origin one of the poles, so that its distance to each pole is exact.
struct SecularKernels {
  /// Over the poles [begin, end).
  SecularSums (*sums)(const double* d, const double* z2, std::int64_t begin, std::int64_t end,
                      double origin, double tau);
  /// (x_j - d_j) prod_{i != j} (x_i - d_j) / (d_i - d_j), x_i = origins[i] + taus[i] the roots.
  double (*weight)(const double* d, const double* origins, const double* taus, std::int64_t k,
                   std::int64_t j);
  /// out[j] = z_j / (d_j - x); returns the sum of squares.
  double (*vector)(const double* d, const double* z, std::int64_t k, double origin, double tau,
                   double* out);
};

std::span<const Variant<SecularKernels>> secular_variants(Simd level);

}  // namespace descramble_fast::cpu
