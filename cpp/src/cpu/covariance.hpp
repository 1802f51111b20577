#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "cpu/panel.hpp"
#include "cpu/scatter.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Why rows cannot be added.
struct Refusal {
  /// Which of the batches.
  std::size_t side = 0;
  /// The first entry that is NaN or infinite, as it stands in the batch; -1: there is none, but
  /// numbers up to `largest` would overflow.
  std::int64_t row = -1;
  std::int64_t column = -1;
  double largest = 0;
};

/// Weighted moments of one set of columns, or of one beside another, of the same samples.
///
/// Rows are packed about a reference and multiplied in the narrowest arithmetic that keeps the
/// moments' accuracy. Sums about one reference stay open until the reference changes or the moments
/// are asked for, and few rows at a time wait until there are enough for the kernels.
class Moments {
 public:
  explicit Moments(std::int64_t n);
  Moments(std::int64_t n_x, std::int64_t n_y);

  /// Adds rows of one batch per set of columns, or says why not and changes nothing.
  std::optional<Refusal> add(std::span<const ArrayView> batches, const Rows& rows,
                             const Context& context);

  /// Of all rows.
  double weight() const { return weight_; }

  /// Moments of all rows about their mean, which is reference + offset. Columns are numbered from
  /// first(set) on.
  struct Settled {
    double weight = 0;
    std::vector<double> reference, offset;
    /// By column, its scatter with itself.
    std::vector<double> squares;
    Scatter scatter;
  };
  Settled& settled();
  /// The largest entry of a scatter, and weight times a mean's square, that merging, and whoever
  /// fills moments in, may make: above, rows that are yet to come could overflow unseen. (The
  /// squares of W rows sum up to max / 64 (1 + ln W), less than 0.6 of the largest number.) What
  /// was kept may be what more rows have made of that.
  static constexpr double most_made = std::numeric_limits<double>::max() / 8;
  static constexpr double most_kept = std::numeric_limits<double>::max() / 5;
  /// After the settled reference, offset and scatter of one set were filled in by the caller. The
  /// largest such number.
  double assume(double weight);
  /// Adds another's rows (Chan, Golub and LeVeque). False, and nothing done, where sums overflow.
  bool merge(Moments& other);

  /// The padded column where a set begins.
  std::int64_t first(std::size_t set) const { return sets_[set].first; }
  /// Of the columns of a set, (n).
  std::vector<double> mean(std::size_t set);
  /// S / divisor + u v^T, S the scatter and u, v by column of either set: all of it, (n_x, n_y).
  Matrix<double> scaled_scatter(double divisor, std::span<const double> u,
                                std::span<const double> v);

 private:
  struct Set {
    std::int64_t n, first;
  };
  /// Sums about a reference.
  struct Open {
    double weight = 0;
    std::vector<double> reference, sum, square;
  };
  struct Waiting {
    std::vector<DType> dtypes;
    std::vector<Aligned<std::byte>> rows;  // room for all that may wait
    std::vector<double> weights;           // empty: all 1
    std::int64_t count = 0;
    double weight = 0;
  };
  class Draft;

  std::optional<Refusal> add_now(std::span<const ArrayView> batches, const Rows& rows,
                                 double total_weight, const Context& context);
  std::optional<Refusal> let_wait(std::span<const ArrayView> batches, const Rows& rows,
                                  double total_weight, const Context& context);
  void start_waiting(std::span<const ArrayView> batches, const Context& context);
  bool fits_waiting(std::span<const ArrayView> batches, std::int64_t count) const;
  void add_waiting(const Context& context);
  std::vector<std::int64_t> first_columns() const;
  std::int64_t padded() const { return std::int64_t(settled_.reference.size()); }

  std::vector<Set> sets_;
  /// Whether moments came from elsewhere, which may be those of no samples.
  bool given_ = false;
  double weight_ = 0;
  Settled settled_;
  Open open_;
  Waiting waiting_;
  Scatter spare_;
};

}  // namespace descramble_fast::cpu
