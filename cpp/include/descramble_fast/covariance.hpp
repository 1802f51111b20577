#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// Which rows of a batch count, and how often. Both have one entry per row.
struct RowSelection {
  /// boolean: true for rows that count.
  std::optional<ArrayView> mask;
  /// Any floating type, non-negative: how often a row counts.
  std::optional<ArrayView> weights;
};

/// Streaming first and second moments of n features: count, weight, mean and centred scatter,
/// float64.
///
/// A batch of any floating type is read in place, twice: once for its mean and the finite check,
/// once for its scatter about that mean, which Chan's update adds to the state. Not synchronised:
/// one object, one thread at a time.
class DESCRAMBLE_FAST_EXPORT Covariance {
 public:
  /// 8 n^2 bytes. Throws InvalidArgument for n < 1.
  explicit Covariance(std::int64_t n);

  /// Moments known from elsewhere. Without a mean only the uncentred second moment is defined.
  static Covariance from_moments(const ArrayView& second_moment,
                                 const std::optional<ArrayView>& mean, double weight);
  /// sum_i weights[i] C_i of the normalised, uncentred second moments.
  static Covariance combine(std::span<const Covariance* const> covariances,
                            std::span<const double> weights);

  /// Adds the rows of a batch, shape (..., n). Rows masked out or of zero weight are not looked at.
  /// On any error the state is left bit for bit as it was.
  void update(const ArrayView& batch, const RowSelection& selection = {},
              const Context& context = {});
  /// Adds another accumulator's samples.
  void merge(const Covariance& other);

  std::int64_t size() const { return n_; }
  std::int64_t count() const { return count_; }
  double weight() const { return weight_; }
  /// Whether the mean is known, so that centring is defined.
  bool has_mean() const { return has_mean_; }
  std::vector<double> mean() const;
  /// C = (sum of w x x^T) / weight, (n, n).
  Matrix<double> second_moment() const;
  /// K = scatter about the mean / (weight - ddof), (n, n).
  Matrix<double> covariance(double ddof = 0) const;

  /// The whole state, for saving and copying.
  struct State {
    std::int64_t count = 0;
    double weight = 0;
    bool has_mean = true;
    /// The mean is their sum.
    std::vector<double> reference, offset;
    /// Row-major upper triangle of the scatter about the mean, n (n + 1)/2.
    std::vector<double> packed_scatter;
  };
  State state() const;
  /// Throws InvalidArgument where the lengths disagree or an entry is negative, NaN or infinite.
  static Covariance from_state(const State& state);

 private:
  std::int64_t n_;
  std::int64_t count_ = 0;
  double weight_ = 0;
  bool has_mean_ = true;
  Matrix<double> scatter_;                  // upper triangle
  std::vector<double> reference_, offset_;  // the mean is their sum
};

/// Streaming cross moments between two sets of features of the same samples.
class DESCRAMBLE_FAST_EXPORT CrossCovariance {
 public:
  CrossCovariance(std::int64_t n_x, std::int64_t n_y);

  /// Adds paired rows, shapes (..., n_x) and (..., n_y).
  void update(const ArrayView& x, const ArrayView& y, const RowSelection& selection = {},
              const Context& context = {});
  void merge(const CrossCovariance& other);

  std::int64_t size_x() const { return std::int64_t(offset_x_.size()); }
  std::int64_t size_y() const { return std::int64_t(offset_y_.size()); }
  std::int64_t count() const { return count_; }
  double weight() const { return weight_; }
  /// (sum of w x y^T) / weight, (n_x, n_y).
  Matrix<double> cross_moment() const;
  Matrix<double> cross_covariance(double ddof = 0) const;
  /// Pearson's; 0 where a feature is constant.
  Matrix<double> correlation() const;

 private:
  std::int64_t count_ = 0;
  double weight_ = 0;
  std::vector<double> reference_x_, reference_y_, offset_x_, offset_y_;
  std::vector<double> squares_x_, squares_y_;  // diagonals of the centred scatters
  Matrix<double> scatter_;
};

}  // namespace descramble_fast
