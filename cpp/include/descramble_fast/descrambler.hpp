#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// Which of the optimal matrices is taken.
enum class Gauge {
  canonical,  ///< In every component the first of its largest entries is positive; T in closed
              ///< form.
  identity,   ///< The one nearest to the identity.
  reference,  ///< The one nearest to DescrambleOptions::reference.
};

/// What is asked of a smoothness descrambler beside its operator.
struct DescrambleOptions {
  /// Use the covariance instead of the uncentred second moment.
  bool center = false;
  Gauge gauge = Gauge::canonical;
  /// (n, n), for Gauge::reference.
  std::optional<ArrayView> reference;
  /// Only the k leading components.
  std::optional<std::int64_t> k;
};

/// How the freedom among optimal matrices was used up.
struct GaugeReport {
  /// |P - R|_F; NaN in the canonical gauge.
  double distance;
  /// True where P is known to be the nearest: the spectrum of C is simple. False: a stationary
  /// point.
  bool exact;
  std::int64_t iterations;
};

/// An orthogonal matrix P, with the criterion it optimises. Rows of samples are mapped by x -> x
/// P^T.
class DESCRAMBLE_FAST_EXPORT Descrambler {
 public:
  virtual ~Descrambler() = default;

  virtual std::int64_t size() const = 0;
  /// Where P and what it is applied to must lie.
  virtual Device device() const = 0;
  virtual Matrix<double> matrix() const = 0;

  /// x -> (x - mean) P^T for samples (..., n); the mean is there only where C was centred.
  Matrix<double> transform(const ArrayView& samples, const Context& context = {}) const;
  /// The way back: z -> z P + mean.
  Matrix<double> inverse_transform(const ArrayView& samples, const Context& context = {}) const;
  /// P W for W of shape (n, m).
  Matrix<double> transform_weight(const ArrayView& weight, const Context& context = {}) const;
  /// P b for b of shape (n,), as a (1, n) matrix.
  Matrix<double> transform_bias(const ArrayView& bias, const Context& context = {}) const;
  /// W_next P^T for W_next of shape (m, n).
  Matrix<double> transform_next_weight(const ArrayView& weight, const Context& context = {}) const;

  double cost = 0;
  /// The criterion at P = I.
  double initial_cost = 0;
  /// Lower bound of a minimised criterion, upper bound of a maximised one.
  double bound = 0;
  /// |P P^T - I|_F (on the retained part), estimated by random probes.
  double orthogonality_error = 0;
  std::vector<double> mean;
  Route route;

 protected:
  virtual Matrix<double> forward(Matrix<double> rows, const Context& context) const = 0;
  virtual Matrix<double> backward(Matrix<double> rows, const Context& context) const = 0;
  /// (x - mean) P^T or z P + mean on the CUDA device; without a mean where it is null.
  virtual Matrix<double> rotated(const ArrayView& rows, const double* mean, bool back,
                                 const Context& context) const = 0;
};

/// P = T U^T, applied through a fast transform for T; P itself is formed only by matrix().
class DESCRAMBLE_FAST_EXPORT SmoothnessDescrambler final : public Descrambler {
 public:
  struct Rotation {
    Block block;
    Matrix<double> matrix;
  };

  SmoothnessDescrambler(Operator op) : op(std::move(op)) {}

  std::int64_t size() const override { return op.size(); }
  Device device() const override { return components.device(); }
  Matrix<double> matrix() const override;
  /// Row i is the i-th mode, rotated within its degenerate block as the gauge asks; (k, n).
  Matrix<double> modes() const;

  Operator op;
  /// c, descending.
  std::vector<double> eigenvalues;
  /// Row i is the i-th principal component; (k, n).
  Matrix<double> components;
  /// Of T's columns within degenerate blocks of the operator (none in the canonical gauge).
  std::vector<Rotation> rotations;
  /// Estimate of |cost - exact|: |dC|_2 (eigensolver's residual, rounding of the moments, clipped
  /// part) times the sum of l.
  double cost_error = 0;
  /// Components whose eigenvalues agree to within n eps c_1: these columns are not determined one
  /// by one.
  std::vector<Block> blocks;
  GaugeReport gauge{};

 protected:
  Matrix<double> forward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> backward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> rotated(const ArrayView& rows, const double* mean, bool back,
                         const Context& context) const override;
};

/// A descrambler of the trace or diagonal criterion: P as it stands.
class DESCRAMBLE_FAST_EXPORT MatrixDescrambler final : public Descrambler {
 public:
  explicit MatrixDescrambler(Matrix<double> p) : p_(std::move(p)) {}

  std::int64_t size() const override { return p_.rows(); }
  Device device() const override { return p_.device(); }
  Matrix<double> matrix() const override { return p_.to(p_.device(), {}); }
  void move_to(Device device, const Context& context = {}) { p_ = p_.to(device, context); }

  /// Norm of the skew part of P grad^T over the norm of the gradient: 0 at a stationary point.
  double stationarity = 0;
  std::int64_t iterations = 0;

 protected:
  Matrix<double> forward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> backward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> rotated(const ArrayView& rows, const double* mean, bool back,
                         const Context& context) const override;

 private:
  Matrix<double> p_;
};

/// The exact minimiser of tr(L P C P^T) over orthogonal P. Throws OutOfMemory before any work where
/// the system would not grant descramble_memory.
DESCRAMBLE_FAST_EXPORT SmoothnessDescrambler descramble(const Covariance& covariance,
                                                        const Operator& op,
                                                        const DescrambleOptions& options = {},
                                                        const Context& context = {});

/// The same for many; equal sizes are solved as one batch. ops has one entry per covariance.
DESCRAMBLE_FAST_EXPORT std::vector<SmoothnessDescrambler> descramble_many(
    std::span<const Covariance* const> covariances, std::span<const Operator> ops,
    const DescrambleOptions& options = {}, const Context& context = {});

/// The most memory in bytes, result included, that descramble takes beside the covariance of n
/// features and the operator, where no eigensolver fails: with all components 32 n^2, with k of
/// them 16 n^2 + 8 k n, and little more. A reference adds 8 n^2; nearest matrices where eigenvalues
/// repeat take more.
DESCRAMBLE_FAST_EXPORT std::int64_t descramble_memory(std::int64_t n,
                                                      std::optional<std::int64_t> k = {});

/// The second moment of W x + b from that of x, (n, n): W S W^T + W m b^T + b m^T W^T + b b^T.
/// Absent: S = I (isotropic), b = 0, m = 0.
DESCRAMBLE_FAST_EXPORT Covariance
preactivation_moment(const ArrayView& weight, const std::optional<ArrayView>& bias,
                     const std::optional<ArrayView>& input_second_moment,
                     const std::optional<ArrayView>& input_mean, const Context& context = {});

/// max tr(P W): orthogonal Procrustes, exact.
DESCRAMBLE_FAST_EXPORT MatrixDescrambler descramble_trace(const ArrayView& weight,
                                                          const Context& context = {});

/// max sum_i (P W)_ii^2 by generalised power iteration from the trace solution: a stationary point.
DESCRAMBLE_FAST_EXPORT MatrixDescrambler descramble_diagonal(const ArrayView& weight,
                                                             const Context& context = {});

}  // namespace descramble_fast
