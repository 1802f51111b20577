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

[[noreturn]] void refuse(const char* argument, const cpu::Refusal& refusal) {
  if (refusal.row >= 0)
    throw InvalidArgument(message(argument, ": NaN or infinity at row ", refusal.row, ", column ",
                                  refusal.column, "; the accumulator is unchanged"));
  throw InvalidArgument(message(argument, ": got magnitudes up to ", refusal.largest,
                                ", whose squares overflow float64; the accumulator is unchanged"));
}

void check_count(std::int64_t count, std::int64_t more) {
  if (more > std::numeric_limits<std::int64_t>::max() - count)
    throw InvalidArgument("count: the number of rows exceeds 2^63 - 1");
}

void check_total_weight(double a, double b) {
  if (!std::isfinite(a + b)) throw InvalidArgument("weights: their sum overflows float64");
}

[[noreturn]] void refuse_sum() {
  throw InvalidArgument("other: the combined scatter overflows float64");
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
    : n_(checked_size("n_features", n)), moments_(std::make_unique<cpu::Moments>(n)) {}

Covariance::~Covariance() = default;
Covariance::Covariance(Covariance&&) noexcept = default;
Covariance& Covariance::operator=(Covariance&&) noexcept = default;

double Covariance::weight() const { return moments_->weight(); }

void Covariance::update(const ArrayView& batch, const RowSelection& selection,
                        const Context& context) {
  check_rows("batch", batch, n_);
  if (!has_mean_)
    throw InvalidArgument("batch: this second moment has no mean and takes no more samples");
  const cpu::Rows rows = select(batch, selection);
  if (rows.count == 0) return;
  check_count(count_, rows.count);
  check_total_weight(weight(), rows.weight);
  if (const auto refusal = moments_->add({&batch, 1}, rows, context)) refuse("batch", *refusal);
  count_ += rows.count;
}

void Covariance::merge(const Covariance& other) {
  if (other.n_ != n_)
    throw InvalidArgument(message("other: got ", other.n_, " features, expected ", n_));
  if (!has_mean_ || !other.has_mean_)
    throw InvalidArgument(
        "other: a second moment without a mean cannot be merged; use combine with weights");
  check_count(count_, other.count_);
  check_total_weight(weight(), other.weight());
  if (!moments_->merge(*other.moments_)) refuse_sum();
  count_ += other.count_;
}

std::vector<double> Covariance::mean() const {
  if (!has_mean_) throw InvalidArgument("mean: unknown, this second moment came without one");
  need_samples("mean", weight());
  return moments_->mean(0);
}

Matrix<double> Covariance::second_moment() const {
  need_samples("second_moment", weight());
  const std::vector<double> mean = moments_->mean(0);
  return moments_->scaled_scatter(weight(), mean, mean);
}

Matrix<double> Covariance::covariance(double ddof) const {
  if (!has_mean_)
    throw InvalidArgument("covariance: undefined, this second moment came without a mean");
  const std::vector<double> none(std::size_t(n_), 0);
  return moments_->scaled_scatter(checked_divisor(weight(), ddof), none, none);
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
  cpu::Moments::Settled& moments = out.moments_->settled();
  std::vector<double>& reference = moments.reference;
  if (mean) {
    cpu::widen_row(*mean, 0, reference.data());
    for (std::int64_t i = 0; i < n; ++i)
      if (!std::isfinite(reference[std::size_t(i)]))
        throw InvalidArgument(message("mean: NaN or infinity at entry ", i));
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j) {
      double& x = moments.scatter(i, j);
      x = weight *
          ((c(i, j) + c(j, i)) / 2 - reference[std::size_t(i)] * reference[std::size_t(j)]);
      if (!std::isfinite(x))
        throw InvalidArgument(message("second_moment: its product with the weight ", weight,
                                      " or the mean's square overflows at row ", i, ", column ",
                                      j));
    }
  for (std::int64_t i = 0; i < n; ++i)
    if (c(i, i) < -1e-6 * largest || moments.scatter(i, i) < -1e-6 * weight * largest)
      throw InvalidArgument(
          message("second_moment: not positive semidefinite about the mean: ", c(i, i), " at row ",
                  i, ", column ", i, ", mean ", reference[std::size_t(i)]));
  out.moments_->assume(weight);
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
  cpu::Moments::Settled& moments = out.moments_->settled();
  for (std::size_t i = 0; i < covariances.size(); ++i) {
    const Covariance& part = *covariances[i];
    if (part.n_ != out.n_)
      throw InvalidArgument(
          message("covs: entry ", i, " has ", part.n_, " features, expected ", out.n_));
    if (!(weights[i] >= 0) || !std::isfinite(weights[i]))
      throw InvalidArgument(message("weights: got ", weights[i], " at entry ", i,
                                    ", expected finite and non-negative"));
    if (!(part.weight() > 0)) throw InvalidArgument(message("covs: entry ", i, " has no samples"));
    const std::vector<double> mean = part.moments_->mean(0);
    const cpu::Scatter& scatter = part.moments_->settled().scatter;
    for (std::int64_t r = 0; r < out.n_; ++r)
      for (std::int64_t c = r; c < out.n_; ++c)
        moments.scatter(r, c) += weights[i] * (scatter(r, c) / part.weight() +
                                               mean[std::size_t(r)] * mean[std::size_t(c)]);
    check_count(out.count_, part.count_);
    out.count_ += part.count_;
  }
  for (std::int64_t i = 0; i < out.n_; ++i)
    if (!std::isfinite(moments.scatter(i, i)))
      throw InvalidArgument("weights: the combined second moment overflows float64");
  out.moments_->assume(1);
  return out;
}

Covariance::State Covariance::state() const {
  const cpu::Moments::Settled& moments = moments_->settled();
  const auto first = [&](const std::vector<double>& x) {
    return std::vector<double>(x.begin(), x.begin() + n_);
  };
  State out{count_, weight(), has_mean_, first(moments.reference), first(moments.offset), {}};
  out.packed_scatter.reserve(std::size_t(n_ * (n_ + 1) / 2));
  for (std::int64_t i = 0; i < n_; ++i)
    for (std::int64_t j = i; j < n_; ++j) out.packed_scatter.push_back(moments.scatter(i, j));
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
  out.has_mean_ = state.has_mean;
  cpu::Moments::Settled& moments = out.moments_->settled();
  std::ranges::copy(state.reference, moments.reference.begin());
  std::ranges::copy(state.offset, moments.offset.begin());
  auto next = state.packed_scatter.begin();
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j) moments.scatter(i, j) = *next++;
  out.moments_->assume(state.weight);
  return out;
}

CrossCovariance::CrossCovariance(std::int64_t n_x, std::int64_t n_y)
    : n_x_(checked_size("n_x", n_x)),
      n_y_(checked_size("n_y", n_y)),
      moments_(std::make_unique<cpu::Moments>(n_x, n_y)) {}

CrossCovariance::~CrossCovariance() = default;
CrossCovariance::CrossCovariance(CrossCovariance&&) noexcept = default;
CrossCovariance& CrossCovariance::operator=(CrossCovariance&&) noexcept = default;

double CrossCovariance::weight() const { return moments_->weight(); }

void CrossCovariance::update(const ArrayView& x, const ArrayView& y, const RowSelection& selection,
                             const Context& context) {
  check_rows("x", x, n_x_);
  check_rows("y", y, n_y_);
  if (!std::ranges::equal(x.shape().first(std::size_t(x.rank() - 1)),
                          y.shape().first(std::size_t(y.rank() - 1))))
    throw InvalidArgument(message("y: got shape ", shape_text(y),
                                  ", expected the same leading axes as x of shape ",
                                  shape_text(x)));
  const cpu::Rows rows = select(x, selection);
  if (rows.count == 0) return;
  check_count(count_, rows.count);
  check_total_weight(weight(), rows.weight);
  const ArrayView batches[] = {x, y};
  if (const auto refusal = moments_->add(batches, rows, context))
    refuse(refusal->side == 0 ? "x" : "y", *refusal);
  count_ += rows.count;
}

void CrossCovariance::merge(const CrossCovariance& other) {
  if (other.n_x_ != n_x_ || other.n_y_ != n_y_)
    throw InvalidArgument(message("other: got ", other.n_x_, " x ", other.n_y_,
                                  " features, expected ", n_x_, " x ", n_y_));
  check_count(count_, other.count_);
  check_total_weight(weight(), other.weight());
  if (!moments_->merge(*other.moments_)) refuse_sum();
  count_ += other.count_;
}

Matrix<double> CrossCovariance::cross_moment() const {
  need_samples("cross_moment", weight());
  return moments_->scaled_scatter(weight(), moments_->mean(0), moments_->mean(1));
}

Matrix<double> CrossCovariance::cross_covariance(double ddof) const {
  const std::vector<double> zero_x(std::size_t(n_x_), 0), zero_y(std::size_t(n_y_), 0);
  return moments_->scaled_scatter(checked_divisor(weight(), ddof), zero_x, zero_y);
}

Matrix<double> CrossCovariance::correlation() const {
  need_samples("correlation", weight());
  const cpu::Moments::Settled& moments = moments_->settled();
  const double* const squares_y = moments.squares.data() + moments_->first(1);
  Matrix<double> out(n_x_, n_y_);
  for (std::int64_t i = 0; i < n_x_; ++i)
    for (std::int64_t j = 0; j < n_y_; ++j) {
      // Rounding may leave a constant feature a square below zero.
      const double scale = std::sqrt(std::max(0.0, moments.squares[std::size_t(i)])) *
                           std::sqrt(std::max(0.0, squares_y[j]));
      out(i, j) = scale > 0 ? std::clamp(moments.scatter(i, j) / scale, -1.0, 1.0) : 0;
    }
  return out;
}

}  // namespace descramble_fast
