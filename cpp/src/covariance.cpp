#include "descramble_fast/covariance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/covariance.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

std::int64_t checked_size(const char* argument, std::int64_t n) {
  if (n < 1) throw InvalidArgument(message(argument, ": got ", n, ", expected at least 1"));
  if (n > (std::int64_t(1) << 30))
    throw InvalidArgument(message(argument, ": got ", n, ", expected at most 2^30"));
  return n;
}

void check_selector(const char* argument, const ArrayView& selector, const ArrayView& batch) {
  check_on_cpu(argument, selector);
  const auto leading = batch.shape().first(std::size_t(batch.rank() - 1));
  if (!std::ranges::equal(selector.shape(), leading))
    throw InvalidArgument(message(argument, ": got shape ", shape_text(selector),
                                  ", expected one entry per row of the batch of shape ",
                                  shape_text(batch)));
}

cpu::Rows select(const ArrayView& batch, const RowSelection& selection) {
  cpu::Rows rows;
  rows.count = batch.rows();
  std::vector<double> weights;
  if (selection.mask) {
    if (selection.mask->dtype() != DType::boolean)
      throw TypeError(message("mask: got dtype ", name(selection.mask->dtype()),
                              ", expected bool; true for rows that count"));
    check_selector("mask", *selection.mask, batch);
  }
  if (selection.weights) {
    check_floating("weights", *selection.weights);
    check_selector("weights", *selection.weights, batch);
    weights.resize(std::size_t(rows.count));
    cpu::widen_all(*selection.weights, weights.data());
  }
  if (selection.mask || selection.weights) {
    for (std::int64_t r = 0; r < batch.rows(); ++r) {
      if (selection.mask && !cpu::is_true(*selection.mask, r)) continue;
      if (selection.weights) {
        const double w = weights[std::size_t(r)];
        if (!(w >= 0) || !std::isfinite(w) || (w > 0 && !std::isnormal(w)))
          throw InvalidArgument(message("weights: got ", w, " at row ", r,
                                        ", expected 0 or a normal positive number"));
        if (w == 0) continue;
        rows.weights.push_back(w);
      }
      rows.index.push_back(r);
    }
    rows.count = std::int64_t(rows.index.size());
  }
  rows.weight = double(rows.count);
  if (selection.weights) {
    rows.weight = 0;
    for (const double w : rows.weights) rows.weight += w;
    if (!std::isfinite(rows.weight)) throw InvalidArgument("weights: their sum overflows float64");
  }
  return rows;
}

cpu::BatchStatistics checked_statistics(const char* argument, const ArrayView& batch,
                                        const cpu::Rows& rows, std::span<const double> reference,
                                        double total_weight, const Context& context) {
  cpu::BatchStatistics statistics = cpu::statistics(batch, rows, reference, context);
  if (statistics.bad_row >= 0)
    throw InvalidArgument(message(argument, ": NaN or infinity at row ", statistics.bad_row,
                                  ", column ", statistics.bad_column,
                                  "; the accumulator is unchanged"));
  // Squares of differences of two such values, summed over all samples, must stay finite.
  const double limit = std::sqrt(std::numeric_limits<double>::max() / std::max(1.0, total_weight));
  if (statistics.largest > limit / 8)
    throw InvalidArgument(
        message(argument, ": got magnitudes up to ", statistics.largest,
                ", whose squares overflow float64; the accumulator is unchanged"));
  return statistics;
}

void check_count(std::int64_t count, std::int64_t more) {
  if (more > std::numeric_limits<std::int64_t>::max() - count)
    throw InvalidArgument("count: the number of rows exceeds 2^63 - 1");
}

double total_weight(double a, double b) {
  if (!std::isfinite(a + b)) throw InvalidArgument("weights: their sum overflows float64");
  return a + b;
}

void check_sum(double scatter, double correction, double shift) {
  if (!std::isfinite(scatter + correction * (shift * shift)))
    throw InvalidArgument("other: the combined scatter overflows float64");
}

// The weight of Chan's correction to the scatter.
double combined_weight(double a, double b) { return a > 0 && b > 0 ? a * (b / (a + b)) : 0; }

std::vector<double> difference(std::span<const double> a, std::span<const double> b) {
  std::vector<double> out(a.begin(), a.end());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] -= b[i];
  return out;
}

// The reference of an accumulator that takes this batch: its own, or a row of the batch; one that
// counts most, since a row of no weight to speak of may lie anywhere.
std::vector<double> reference_for(const std::vector<double>& own, double weight,
                                  const ArrayView& batch, const cpu::Rows& rows) {
  if (weight > 0) return own;
  std::vector<double> row(own.size());
  const auto heaviest = std::ranges::max_element(rows.weights);
  cpu::widen_row(batch, rows[heaviest - rows.weights.begin()], row.data());
  return row;
}

// The shift from one mean to another, each a reference plus an offset.
std::vector<double> shift_between(const std::vector<double>& reference,
                                  const std::vector<double>& offset,
                                  const std::vector<double>& other_reference,
                                  const std::vector<double>& other_offset) {
  std::vector<double> out(offset.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = (other_reference[i] - reference[i]) + (other_offset[i] - offset[i]);
  return out;
}

void add_multiple(std::vector<double>& x, double factor, std::span<const double> y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += factor * y[i];
}

std::vector<double> sum_of(std::span<const double> a, std::span<const double> b) {
  std::vector<double> out(a.begin(), a.end());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += b[i];
  return out;
}

void mirror(Matrix<double>& a) {
  constexpr std::int64_t tile = 64;  // both sides of a tile stay in cache
  for (std::int64_t bi = 0; bi < a.rows(); bi += tile)
    for (std::int64_t bj = bi; bj < a.rows(); bj += tile)
      for (std::int64_t i = bi; i < std::min(a.rows(), bi + tile); ++i)
        for (std::int64_t j = std::max(i + 1, bj); j < std::min(a.rows(), bj + tile); ++j)
          a(j, i) = a(i, j);
}

void need_samples(const char* what, double weight) {
  if (!(weight > 0))
    throw InvalidArgument(
        message(what, ": undefined, no samples have been accumulated (weight 0)"));
}

double checked_divisor(double weight, double ddof) {
  need_samples("covariance", weight);
  if (!(weight - ddof > 0))
    throw InvalidArgument(message("ddof: got ", ddof, ", expected less than the weight ", weight));
  return weight - ddof;
}

}  // namespace

Covariance::Covariance(std::int64_t n)
    : n_(checked_size("n_features", n)),
      scatter_(n, n, 0),
      reference_(std::size_t(n), 0),
      offset_(std::size_t(n), 0) {}

void Covariance::update(const ArrayView& batch, const RowSelection& selection,
                        const Context& context) {
  check_rows("batch", batch, n_);
  if (!has_mean_)
    throw InvalidArgument("batch: this second moment has no mean and takes no more samples");
  const cpu::Rows rows = select(batch, selection);
  if (rows.count == 0) return;
  check_count(count_, rows.count);
  const double weight = total_weight(weight_, rows.weight);
  std::vector<double> reference = reference_for(reference_, weight_, batch, rows);
  const auto statistics = checked_statistics("batch", batch, rows, reference, weight, context);
  if (context.poll) context.poll();

  const std::vector<double> shift = difference(statistics.offset, offset_);
  cpu::add_scatter({batch, reference, statistics.offset, shift}, rows,
                   combined_weight(weight_, rows.weight), scatter_, context);
  reference_ = std::move(reference);
  add_multiple(offset_, rows.weight / weight, shift);
  weight_ = weight;
  count_ += rows.count;
}

void Covariance::merge(const Covariance& other) {
  if (other.n_ != n_)
    throw InvalidArgument(message("other: got ", other.n_, " features, expected ", n_));
  if (!has_mean_ || !other.has_mean_)
    throw InvalidArgument(
        "other: a second moment without a mean cannot be merged; use combine with weights");
  check_count(count_, other.count_);
  if (!(other.weight_ > 0)) return;
  const double weight = total_weight(weight_, other.weight_);
  const double correction = combined_weight(weight_, other.weight_);
  std::vector<double> reference = weight_ == 0 ? other.reference_ : reference_;
  const auto shift = shift_between(reference, offset_, other.reference_, other.offset_);
  for (std::int64_t i = 0; i < n_; ++i)  // the largest entries of a scatter are on its diagonal
    check_sum(scatter_(i, i) + other.scatter_(i, i), correction, shift[std::size_t(i)]);
  reference_ = std::move(reference);
  for (std::int64_t i = 0; i < n_; ++i)
    for (std::int64_t j = i; j < n_; ++j)
      scatter_(i, j) +=
          other.scatter_(i, j) + correction * (shift[std::size_t(i)] * shift[std::size_t(j)]);
  add_multiple(offset_, other.weight_ / weight, shift);
  weight_ = weight;
  count_ += other.count_;
}

std::vector<double> Covariance::mean() const {
  if (!has_mean_) throw InvalidArgument("mean: unknown, this second moment came without one");
  need_samples("mean", weight_);
  return sum_of(reference_, offset_);
}

Matrix<double> Covariance::second_moment() const {
  need_samples("second_moment", weight_);
  const std::vector<double> mean = sum_of(reference_, offset_);
  Matrix<double> out(n_, n_);
  for (std::int64_t i = 0; i < n_; ++i)
    for (std::int64_t j = i; j < n_; ++j)
      out(i, j) = scatter_(i, j) / weight_ + mean[std::size_t(i)] * mean[std::size_t(j)];
  mirror(out);
  return out;
}

Matrix<double> Covariance::covariance(double ddof) const {
  if (!has_mean_)
    throw InvalidArgument("covariance: undefined, this second moment came without a mean");
  const double divisor = checked_divisor(weight_, ddof);
  Matrix<double> out(n_, n_);
  for (std::int64_t i = 0; i < n_; ++i)
    for (std::int64_t j = i; j < n_; ++j) out(i, j) = scatter_(i, j) / divisor;
  mirror(out);
  return out;
}

Covariance Covariance::from_moments(const ArrayView& second_moment,
                                    const std::optional<ArrayView>& mean, double weight) {
  check_matrix("second_moment", second_moment, -1, -1);
  const std::int64_t n = second_moment.columns();
  check_matrix("second_moment", second_moment, n, n);
  if (mean) check_vector("mean", *mean, n);
  if (!(weight > 0) || !std::isfinite(weight))
    throw InvalidArgument(message("weight: got ", weight, ", expected finite and positive"));
  Covariance out(n);
  Matrix<double> c = cpu::widen_rows(second_moment, {});
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      if (!std::isfinite(c(i, j)))
        throw InvalidArgument(message("second_moment: NaN or infinity at row ", i, ", column ", j));
      largest = std::max(largest, std::abs(c(i, j)));
    }
  check_symmetric_moment("second_moment", c);
  out.has_mean_ = mean.has_value();
  if (mean) {
    cpu::widen_row(*mean, 0, out.reference_.data());
    for (std::int64_t i = 0; i < n; ++i)
      if (!std::isfinite(out.reference_[std::size_t(i)]))
        throw InvalidArgument(message("mean: NaN or infinity at entry ", i));
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j)
      out.scatter_(i, j) = weight * ((c(i, j) + c(j, i)) / 2 - out.reference_[std::size_t(i)] *
                                                                   out.reference_[std::size_t(j)]);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j)
      if (!std::isfinite(out.scatter_(i, j)))
        throw InvalidArgument(message("second_moment: its product with the weight ", weight,
                                      " or the mean's square overflows at row ", i, ", column ",
                                      j));
  for (std::int64_t i = 0; i < n; ++i)
    if (c(i, i) < -1e-6 * largest || out.scatter_(i, i) < -1e-6 * weight * largest)
      throw InvalidArgument(
          message("second_moment: not positive semidefinite about the mean: ", c(i, i), " at row ",
                  i, ", column ", i, ", mean ", out.reference_[std::size_t(i)]));
  out.weight_ = weight;
  out.count_ = std::int64_t(std::min(weight, 0x1p62));
  return out;
}

Covariance Covariance::combine(std::span<const Covariance* const> covariances,
                               std::span<const double> weights) {
  if (covariances.empty()) throw InvalidArgument("covs: got none, expected at least one");
  if (weights.size() != covariances.size())
    throw InvalidArgument(message("weights: got ", weights.size(), " entries, expected ",
                                  covariances.size(), ", one per covariance"));
  Covariance out(covariances[0]->n_);
  out.has_mean_ = false;
  out.weight_ = 1;
  for (std::size_t i = 0; i < covariances.size(); ++i) {
    const Covariance& part = *covariances[i];
    if (part.n_ != out.n_)
      throw InvalidArgument(
          message("covs: entry ", i, " has ", part.n_, " features, expected ", out.n_));
    if (!(weights[i] >= 0) || !std::isfinite(weights[i]))
      throw InvalidArgument(message("weights: got ", weights[i], " at entry ", i,
                                    ", expected finite and non-negative"));
    if (!(part.weight_ > 0)) throw InvalidArgument(message("covs: entry ", i, " has no samples"));
    const std::vector<double> mean = sum_of(part.reference_, part.offset_);
    for (std::int64_t r = 0; r < out.n_; ++r)
      for (std::int64_t c = r; c < out.n_; ++c)
        out.scatter_(r, c) += weights[i] * (part.scatter_(r, c) / part.weight_ +
                                            mean[std::size_t(r)] * mean[std::size_t(c)]);
    check_count(out.count_, part.count_);
    out.count_ += part.count_;
  }
  for (std::int64_t i = 0; i < out.n_; ++i)
    if (!std::isfinite(out.scatter_(i, i)))
      throw InvalidArgument("weights: the combined second moment overflows float64");
  return out;
}

Covariance::State Covariance::state() const {
  State out{count_, weight_, has_mean_, reference_, offset_, {}};
  out.packed_scatter.reserve(std::size_t(n_ * (n_ + 1) / 2));
  for (std::int64_t i = 0; i < n_; ++i)
    out.packed_scatter.insert(out.packed_scatter.end(), scatter_.row(i) + i, scatter_.row(i) + n_);
  return out;
}

Covariance Covariance::from_state(const State& state) {
  const std::int64_t n = checked_size("n_features", std::int64_t(state.reference.size()));
  if (state.offset.size() != state.reference.size())
    throw InvalidArgument(message("offset: got ", state.offset.size(), " entries, expected ", n));
  if (state.count < 0)
    throw InvalidArgument(message("count: got ", state.count, ", expected at least 0"));
  if (!(state.weight >= 0) || !std::isfinite(state.weight))
    throw InvalidArgument(
        message("weight: got ", state.weight, ", expected finite and non-negative"));
  if (state.packed_scatter.size() != std::size_t(n * (n + 1) / 2))
    throw InvalidArgument(message("scatter: got ", state.packed_scatter.size(),
                                  " entries, expected ", n * (n + 1) / 2));
  const auto finite = [](double x) { return std::isfinite(x); };
  if (!std::ranges::all_of(state.reference, finite) || !std::ranges::all_of(state.offset, finite))
    throw InvalidArgument("mean: holds NaN or infinity");
  if (!std::ranges::all_of(state.packed_scatter, finite))
    throw InvalidArgument("scatter: holds NaN or infinity");
  Covariance out(n);
  out.count_ = state.count;
  out.weight_ = state.weight;
  out.has_mean_ = state.has_mean;
  out.reference_ = state.reference;
  out.offset_ = state.offset;
  auto next = state.packed_scatter.begin();
  for (std::int64_t i = 0; i < n; ++i) {
    std::copy_n(next, n - i, out.scatter_.row(i) + i);
    next += n - i;
  }
  return out;
}

CrossCovariance::CrossCovariance(std::int64_t n_x, std::int64_t n_y)
    : reference_x_(std::size_t(checked_size("n_x", n_x)), 0),
      reference_y_(std::size_t(checked_size("n_y", n_y)), 0),
      offset_x_(std::size_t(n_x), 0),
      offset_y_(std::size_t(n_y), 0),
      squares_x_(std::size_t(n_x), 0),
      squares_y_(std::size_t(n_y), 0),
      scatter_(n_x, n_y, 0) {}

void CrossCovariance::update(const ArrayView& x, const ArrayView& y, const RowSelection& selection,
                             const Context& context) {
  check_rows("x", x, size_x());
  check_rows("y", y, size_y());
  if (!std::ranges::equal(x.shape().first(std::size_t(x.rank() - 1)),
                          y.shape().first(std::size_t(y.rank() - 1))))
    throw InvalidArgument(message("y: got shape ", shape_text(y),
                                  ", expected the same leading axes as x of shape ",
                                  shape_text(x)));
  const cpu::Rows rows = select(x, selection);
  if (rows.count == 0) return;
  check_count(count_, rows.count);
  const double weight = total_weight(weight_, rows.weight);
  std::vector<double> reference_x = reference_for(reference_x_, weight_, x, rows);
  std::vector<double> reference_y = reference_for(reference_y_, weight_, y, rows);
  const auto in_x = checked_statistics("x", x, rows, reference_x, weight, context);
  const auto in_y = checked_statistics("y", y, rows, reference_y, weight, context);
  if (context.poll) context.poll();

  const std::vector<double> shift_x = difference(in_x.offset, offset_x_);
  const std::vector<double> shift_y = difference(in_y.offset, offset_y_);
  cpu::add_cross_scatter(
      {x, reference_x, in_x.offset, shift_x}, {y, reference_y, in_y.offset, shift_y}, rows,
      combined_weight(weight_, rows.weight), scatter_, squares_x_, squares_y_, context);
  reference_x_ = std::move(reference_x);
  reference_y_ = std::move(reference_y);
  add_multiple(offset_x_, rows.weight / weight, shift_x);
  add_multiple(offset_y_, rows.weight / weight, shift_y);
  weight_ = weight;
  count_ += rows.count;
}

void CrossCovariance::merge(const CrossCovariance& other) {
  if (other.size_x() != size_x() || other.size_y() != size_y())
    throw InvalidArgument(message("other: got ", other.size_x(), " x ", other.size_y(),
                                  " features, expected ", size_x(), " x ", size_y()));
  check_count(count_, other.count_);
  if (!(other.weight_ > 0)) return;
  const double weight = total_weight(weight_, other.weight_);
  const double correction = combined_weight(weight_, other.weight_);
  std::vector<double> reference_x = weight_ == 0 ? other.reference_x_ : reference_x_;
  std::vector<double> reference_y = weight_ == 0 ? other.reference_y_ : reference_y_;
  const auto shift_x = shift_between(reference_x, offset_x_, other.reference_x_, other.offset_x_);
  const auto shift_y = shift_between(reference_y, offset_y_, other.reference_y_, other.offset_y_);
  for (std::size_t i = 0; i < squares_x_.size(); ++i)
    check_sum(squares_x_[i] + other.squares_x_[i], correction, shift_x[i]);
  for (std::size_t i = 0; i < squares_y_.size(); ++i)
    check_sum(squares_y_[i] + other.squares_y_[i], correction, shift_y[i]);
  reference_x_ = std::move(reference_x);
  reference_y_ = std::move(reference_y);
  for (std::int64_t i = 0; i < size_x(); ++i)
    for (std::int64_t j = 0; j < size_y(); ++j)
      scatter_(i, j) +=
          other.scatter_(i, j) + correction * (shift_x[std::size_t(i)] * shift_y[std::size_t(j)]);
  const auto add_squares = [&](std::vector<double>& mine, const std::vector<double>& theirs,
                               const std::vector<double>& shift) {
    for (std::size_t i = 0; i < mine.size(); ++i)
      mine[i] += theirs[i] + correction * shift[i] * shift[i];
  };
  add_squares(squares_x_, other.squares_x_, shift_x);
  add_squares(squares_y_, other.squares_y_, shift_y);
  add_multiple(offset_x_, other.weight_ / weight, shift_x);
  add_multiple(offset_y_, other.weight_ / weight, shift_y);
  weight_ = weight;
  count_ += other.count_;
}

Matrix<double> CrossCovariance::cross_moment() const {
  need_samples("cross_moment", weight_);
  const std::vector<double> mean_x = sum_of(reference_x_, offset_x_);
  const std::vector<double> mean_y = sum_of(reference_y_, offset_y_);
  Matrix<double> out(size_x(), size_y());
  for (std::int64_t i = 0; i < size_x(); ++i)
    for (std::int64_t j = 0; j < size_y(); ++j)
      out(i, j) = scatter_(i, j) / weight_ + mean_x[std::size_t(i)] * mean_y[std::size_t(j)];
  return out;
}

Matrix<double> CrossCovariance::cross_covariance(double ddof) const {
  const double divisor = checked_divisor(weight_, ddof);
  Matrix<double> out = scatter_.copy();
  for (double& x : out.values()) x /= divisor;
  return out;
}

Matrix<double> CrossCovariance::correlation() const {
  need_samples("correlation", weight_);
  Matrix<double> out(size_x(), size_y());
  for (std::int64_t i = 0; i < size_x(); ++i)
    for (std::int64_t j = 0; j < size_y(); ++j) {
      const double scale =
          std::sqrt(squares_x_[std::size_t(i)]) * std::sqrt(squares_y_[std::size_t(j)]);
      out(i, j) = scale > 0 ? std::clamp(scatter_(i, j) / scale, -1.0, 1.0) : 0;
    }
  return out;
}

}  // namespace descramble_fast
