#pragma once

#include <optional>
#include <string>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// |skew(G P^T)|_F / |G|_F: 0 where P is stationary on the orthogonal group for the gradient G.
double skewness(const Matrix<double>& gradient, const Matrix<double>& p, const Context& context);

struct Polar {
  /// The orthogonal matrix.
  Matrix<double> factor;
  /// The sum of |A v| over an orthonormal basis of right singular vectors v: the sum of the
  /// singular values, and never below it but for rounding, whatever the error of the basis.
  double nuclear_norm = 0;
  /// skewness(A, factor), where that was looked at.
  std::optional<double> skewness;
  std::string driver;
  std::vector<std::string> fallbacks;
};

/// The orthogonal matrix nearest to A (n, n). On singular directions, where any orthogonal map is
/// as near, the one nearest to the identity.
///
/// From n = 128 on from the eigenvectors of A^T A ("gram"), which can be interrupted and for a
/// condition up to 1e5 takes less time than a singular value decomposition; by LAPACK ("dgesdd",
/// "dgesvd") where that is not accurate to 50 n eps. Throws BackendError where all fail.
Polar polar(const Matrix<double>& a, const Context& context);

}  // namespace descramble_fast::cpu
