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

/// A ring, or a path with reflecting ends.
enum class Boundary { periodic, path };

/// A roughness operator L = T diag(l) T^T on n places: symmetric, positive semidefinite, its modes
/// T known in closed form wherever its structure allows. An immutable value: copies share what it
/// holds, and any number of threads may use it at once.
///
/// Places lie at distance 1, but for fourier(). All but from_matrix() are made in O(n log n), for n
/// up to 2^48, and throw InvalidArgument for arguments that are not among those they name.
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
  /// Any symmetric positive-semidefinite matrix, shape (n, n), by eigensolve: O(n^3), and 8 n^2
  /// bytes kept. Both to rounding of its element type; throws InvalidArgument where it is neither,
  /// or holds NaN or infinity, TypeError (dtype), and what eigh() throws.
  static Operator from_matrix(const ArrayView& matrix, const Context& context = {});

  /// Number of places, n.
  std::int64_t size() const;
  /// With its parameters, e.g. "fourier(n=80, order=2)". Lives as long as a copy of the operator.
  const std::string& name() const;
  /// l, (n,), ascending. Lives as long as a copy of the operator.
  std::span<const double> eigenvalues() const;
  /// Runs of two or more equal eigenvalues. Lives as long as a copy of the operator.
  std::span<const Block> blocks() const;
  /// T^T: row i is the i-th mode; (n, n), on the CPU. O(n^2).
  Matrix<double> modes() const;

  /// x -> L x in place, on consecutive rows of n doubles on the CPU.
  ///
  /// A row takes O(n log n) by a fast transform, O(n^2) by an operator from_matrix(); in a grid its
  /// axes take as much each. Throws InvalidArgument where the size is no multiple of n. Where the
  /// context's poll throws, some rows are done and others are not.
  void apply(std::span<double> rows, const Context& context = {}) const;
  /// x -> T^T x, as apply().
  void analyze(std::span<double> rows, const Context& context = {}) const;
  /// z -> T z, as apply().
  void synthesize(std::span<double> rows, const Context& context = {}) const;

  /// L x for any floating array (..., n), as a new (rows, n) matrix on its device. Throws
  /// InvalidArgument (shape) and TypeError (dtype).
  Matrix<double> applied(const ArrayView& x, const Context& context = {}) const;
  /// T^T x, as applied().
  Matrix<double> analyzed(const ArrayView& x, const Context& context = {}) const;
  /// T z, as applied().
  Matrix<double> synthesized(const ArrayView& x, const Context& context = {}) const;

  struct Impl;
  /// For the library itself.
  const Impl& impl() const { return *impl_; }

 private:
  explicit Operator(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace descramble_fast
