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
  /// Gauge::identity and Gauge::reference need all components.
  Gauge gauge = Gauge::canonical;
  /// (n, n), any floating type, for Gauge::reference and only for it.
  std::optional<ArrayView> reference;
  /// Only the k leading components, 1 to n: P is then a partial isometry onto the k smoothest
  /// modes.
  std::optional<std::int64_t> k;
};

/// How the freedom among optimal matrices was used up.
struct GaugeReport {
  /// |P - R|_F; NaN in the canonical gauge.
  double distance;
  /// True where P is known to be the nearest: the spectrum of C is simple. False: a stationary
  /// point.
  bool exact;
  /// Alternations that were made.
  std::int64_t iterations;
};

/// An orthogonal matrix P, with the criterion it optimises. Rows of samples are mapped by x -> x
/// P^T. Const members may be called from several threads at once.
///
/// What P is applied to may have any floating type and must lie on device(), as results do,
/// float64. A row takes O(n k), k being n or the number of components that are kept, and what the
/// operator takes; a ConvolutionDescrambler takes O(n (C_out + log n)). All of these throw
/// InvalidArgument (shape, device) and TypeError (dtype).
class DESCRAMBLE_FAST_EXPORT Descrambler {
 public:
  virtual ~Descrambler() = default;

  /// n.
  virtual std::int64_t size() const = 0;
  /// Where P lies.
  virtual Device device() const = 0;
  /// P, (n, n), on device(), formed at every call: O(n^2 log n) where T has a fast transform, else
  /// O(n^3).
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

  /// The criterion at P.
  double cost = 0;
  /// The criterion at P = I.
  double initial_cost = 0;
  /// Lower bound of a minimised criterion, upper bound of a maximised one.
  double bound = 0;
  /// |P P^T - I|_F (on the retained part), estimated by random probes.
  double orthogonality_error = 0;
  /// (n,): what transform() takes off; empty unless centred.
  std::vector<double> mean;
  /// How P was found.
  Route route;

 protected:
  /// rows P^T on the CPU.
  virtual Matrix<double> forward(Matrix<double> rows, const Context& context) const = 0;
  /// rows P on the CPU.
  virtual Matrix<double> backward(Matrix<double> rows, const Context& context) const = 0;
  /// (x - mean) P^T or z P + mean on the CUDA device; without a mean where it is null.
  virtual Matrix<double> rotated(const ArrayView& rows, const double* mean, bool back,
                                 const Context& context) const = 0;
};

/// P = T U^T, applied through a fast transform for T; P itself is formed only by matrix(). Keeps
/// 8 k n bytes.
class DESCRAMBLE_FAST_EXPORT SmoothnessDescrambler final : public Descrambler {
 public:
  /// Columns of T times an orthogonal matrix.
  struct Rotation {
    /// Which columns.
    Block block;
    /// (size, size) for the size of the block; on the CPU.
    Matrix<double> matrix;
  };

  /// For the library itself: descramble() makes them.
  SmoothnessDescrambler(Operator on) : op(std::move(on)) {}

  std::int64_t size() const override { return op.size(); }
  Device device() const override { return components.device(); }
  Matrix<double> matrix() const override;
  /// Row i is the i-th mode, rotated within its degenerate block as the gauge asks; (k, n), on
  /// device(). O(n^2).
  Matrix<double> modes() const;

  /// L, with T's closed form.
  Operator op;
  /// c, descending, (k,).
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
  /// What DescrambleOptions::gauge came to.
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
  /// P, (n, n), which is not checked.
  explicit MatrixDescrambler(Matrix<double> p) : p_(std::move(p)) {}

  std::int64_t size() const override { return p_.rows(); }
  Device device() const override { return p_.device(); }
  Matrix<double> matrix() const override { return p_.to(p_.device(), {}); }
  /// Copies P to another device.
  void move_to(Device device, const Context& context = {}) { p_ = p_.to(device, context); }

  /// Norm of the skew part of P grad^T over the norm of the gradient: 0 at a stationary point.
  double stationarity = 0;
  /// Steps of the power iteration; 0 for the trace, which is exact.
  std::int64_t iterations = 0;

 protected:
  Matrix<double> forward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> backward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> rotated(const ArrayView& rows, const double* mean, bool back,
                         const Context& context) const override;

 private:
  Matrix<double> p_;
};

/// The exact minimiser of tr(L P C P^T) over orthogonal P, where C, (n, n), is the second moment or
/// the covariance, and L the operator on n places. The answer lies where the moments do.
///
/// The eigenproblem of C, O(n^3) and less for few components; another gauge than the canonical one
/// takes some O(n^3) more. Memory: descramble_memory(). The covariance is used throughout: no other
/// thread may touch it meanwhile.
///
/// Throws InvalidArgument (sizes, options, no samples, a mean that is needed and unknown, a moment
/// that is not positive semidefinite or that overflows), BackendError (every eigensolver failed),
/// and OutOfMemory before any work where the system would not grant the least of descramble_memory.
DESCRAMBLE_FAST_EXPORT SmoothnessDescrambler descramble(const Covariance& covariance,
                                                        const Operator& op,
                                                        const DescrambleOptions& options = {},
                                                        const Context& context = {});

/// The same for many; equal sizes are solved as one batch, so that small ones take less than one by
/// one. ops has one entry per covariance; the answers are in their order.
DESCRAMBLE_FAST_EXPORT std::vector<SmoothnessDescrambler> descramble_many(
    std::span<const Covariance* const> covariances, std::span<const Operator> ops,
    const DescrambleOptions& options = {}, const Context& context = {});

/// The most memory in bytes, result included, that descramble takes beside the covariance of n
/// features and the operator, where no eigensolver fails: with all components 32 n^2, with k of
/// them 8 k n more, and little else. From n = 1024 on, where k < n / 32, as little as half suffices
/// unless the leading eigenvalues lie too close. A reference adds 8 n^2; nearest matrices where
/// eigenvalues repeat take more.
DESCRAMBLE_FAST_EXPORT std::int64_t descramble_memory(std::int64_t n,
                                                      std::optional<std::int64_t> k = {});

/// The second moment of W x + b from that of x, (n, n): W S W^T + W m b^T + b m^T W^T + b b^T.
/// Absent: S = I (isotropic), b = 0, m = 0. W is (n, m), b (n,), S (m, m), the mean m (m,). Counts
/// as one sample. O(n m (n + m)).
///
/// Throws InvalidArgument (shapes, NaN or infinity, S not symmetric) and TypeError (dtype).
DESCRAMBLE_FAST_EXPORT Covariance
preactivation_moment(const ArrayView& weight, const std::optional<ArrayView>& bias,
                     const std::optional<ArrayView>& input_second_moment,
                     const std::optional<ArrayView>& input_mean, const Context& context = {});

/// max tr(P W): orthogonal Procrustes, exact, for W of shape (n, m). Columns beyond n do not count,
/// missing ones count as 0. O(n^3), on the CPU, in some 10 n^2 doubles: from n = 128 on by the
/// eigenvectors of W^T W ("gram"), else by a singular value decomposition. P lies where W does.
///
/// Throws InvalidArgument (shape, NaN or infinity, overflow), TypeError (dtype), and BackendError
/// (the decomposition did not converge).
DESCRAMBLE_FAST_EXPORT MatrixDescrambler descramble_trace(const ArrayView& weight,
                                                          const Context& context = {});

/// max sum_i (P W)_ii^2 by generalised power iteration from the trace solution: a stationary point.
/// As descramble_trace(), which each step costs as much as; polled between steps.
DESCRAMBLE_FAST_EXPORT MatrixDescrambler descramble_diagonal(const ArrayView& weight,
                                                             const Context& context = {});

}  // namespace descramble_fast
