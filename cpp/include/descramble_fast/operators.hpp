#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

enum class Boundary { periodic, path };

/// A roughness operator L = T diag(l) T^T on n places: symmetric, positive semidefinite, its modes
/// T known in closed form wherever its structure allows. A cheap, immutable value.
class DESCRAMBLE_FAST_EXPORT Operator {
 public:
  /// Spectral derivative of the given order (>= 1) on a periodic grid of period 2 pi: l = k^(2
  /// order). Basis: constant, cos 1, sin 1, cos 2, ..., alternating Nyquist for even n. The odd
  /// derivatives of Nyquist vanish on the grid.
  static Operator fourier(std::int64_t n, int order = 2);
  /// First or second difference. Periodic: l = (4 sin^2(pi k/n))^order, real Fourier basis. Path
  /// (reflecting ends): l = (4 sin^2(pi k/2n))^order, DCT-II basis.
  static Operator difference(std::int64_t n, int order, Boundary boundary);
  /// Circular central first difference (x[i+1] - x[i-1])/2: l = sin^2(2 pi k/n).
  static Operator central_difference(std::int64_t n);
  /// Separable sum over the axes of an image-like arrangement: L = sum_a I x ... x L_a x ... x I,
  /// the last axis fastest.
  static Operator grid(std::vector<Operator> axes);
  /// Any symmetric positive-semidefinite matrix, shape (n, n), by eigensolve.
  static Operator from_matrix(const ArrayView& matrix, const Context& context = {});

  std::int64_t size() const;
  const std::string& name() const;
  /// Ascending.
  std::span<const double> eigenvalues() const;
  /// Runs of two or more equal eigenvalues.
  std::span<const Block> blocks() const;
  /// T^T: row i is the i-th mode.
  Matrix<double> modes() const;

  // In place, on consecutive rows of n doubles; the size must be a multiple of n.
  void apply(std::span<double> rows, const Context& context = {}) const;       // x -> L x
  void analyze(std::span<double> rows, const Context& context = {}) const;     // x -> T^T x
  void synthesize(std::span<double> rows, const Context& context = {}) const;  // z -> T z

  // The same of any floating array (..., n), as a new (rows, n) matrix on its device.
  Matrix<double> applied(const ArrayView& x, const Context& context = {}) const;
  Matrix<double> analyzed(const ArrayView& x, const Context& context = {}) const;
  Matrix<double> synthesized(const ArrayView& x, const Context& context = {}) const;

  struct Impl;
  /// For the library itself.
  const Impl& impl() const { return *impl_; }

 private:
  explicit Operator(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace descramble_fast
