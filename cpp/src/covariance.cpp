#include "descramble_fast/covariance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "accumulator.hpp"
#include "call.hpp"
#include "check.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

std::int64_t checked_size(const char* argument, std::int64_t n) {
  if (n < 1) throw InvalidArgument(message(argument, ": got ", n, ", expected at least 1"));
  if (n > (std::int64_t(1) << 30))
    throw InvalidArgument(message(argument, ": got ", n, ", expected at most 2^30"));
  return n;
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

Covariance::Covariance(std::int64_t n, MomentsPlace place)
    : n_(checked_size("n_features", n)), accumulator_(std::make_unique<Accumulator>(n, 0, place)) {}

Covariance::~Covariance() = default;
Covariance::Covariance(Covariance&&) noexcept = default;
Covariance& Covariance::operator=(Covariance&&) noexcept = default;

void Covariance::move_to(MomentsPlace place) {
  if (place.device && *place.device != device())
    accumulator_ = std::make_unique<Accumulator>(accumulator_->to(place));
}

Device Covariance::device() const { return accumulator_->device(); }
bool Covariance::offload() const { return accumulator_->offload(); }
std::int64_t Covariance::count() const { return accumulator_->totals().count; }
double Covariance::weight() const { return accumulator_->totals().weight; }

void Covariance::update(const ArrayView& batch, const RowSelection& selection,
                        const Context& context) {
  check_rows("batch", batch, n_);
  if (!has_mean_)
    throw InvalidArgument("batch: this second moment has no mean and takes no more samples");
  accumulator_->add({&batch, 1}, selection, context);
}

void Covariance::merge(const Covariance& other) {
  if (other.n_ != n_)
    throw InvalidArgument(message("other: got ", other.n_, " features, expected ", n_));
  if (!has_mean_ || !other.has_mean_)
    throw InvalidArgument(
        "other: a second moment without a mean cannot be merged; use combine with weights");
  accumulator_->merge(*other.accumulator_);
}

std::vector<double> Covariance::mean() const {
  if (!has_mean_) throw InvalidArgument("mean: unknown, this second moment came without one");
  need_samples("mean", weight());
  return accumulator_->mean(0).sum();
}

Matrix<double> Covariance::second_moment() const {
  const double weight = this->weight();
  need_samples("second_moment", weight);
  return accumulator_->moment(weight, false);
}

Matrix<double> Covariance::covariance(double ddof) const {
  if (!has_mean_)
    throw InvalidArgument("covariance: undefined, this second moment came without a mean");
  return accumulator_->moment(checked_divisor(weight(), ddof), true);
}

Covariance Covariance::from_moments(const ArrayView& second_moment,
                                    const std::optional<ArrayView>& mean, double weight,
                                    MomentsPlace place, const Context& context) {
  check_matrix("second_moment", second_moment, -1, -1);
  const std::int64_t n = second_moment.columns();
  check_matrix("second_moment", second_moment, n, n);
  if (mean) {
    check_vector("mean", *mean, n);
    check_device("mean", *mean, second_moment.device());
  }
  if (!(weight > 0) || !std::isfinite(weight))
    throw InvalidArgument(message("weight: got ", weight, ", expected finite and positive"));
  const Call call(context);
  if (!place.device) place.device = second_moment.device();
  Covariance out(n, {.memory = place.memory});
  const Matrix<double> c = fetch(second_moment, context);
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      if (!std::isfinite(c(i, j)))
        throw InvalidArgument(message("second_moment: NaN or infinity at row ", i, ", column ", j));
      largest = std::max(largest, std::abs(c(i, j)));
    }
  check_symmetric_moment("second_moment", c);
  out.has_mean_ = mean.has_value();
  cpu::Moments::Settled& moments = out.accumulator_->settled();
  std::vector<double>& reference = moments.reference;
  if (mean) {
    std::ranges::copy(fetch(*mean, context).values(), reference.begin());
    for (std::int64_t i = 0; i < n; ++i)
      if (!std::isfinite(reference[std::size_t(i)]))
        throw InvalidArgument(message("mean: NaN or infinity at entry ", i));
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j) {
      double& x = moments.scatter(i, j);
      x = weight *
          (c(i, j) / 2 + c(j, i) / 2 - reference[std::size_t(i)] * reference[std::size_t(j)]);
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
  if (!(out.accumulator_->assume({std::int64_t(std::min(weight, 0x1p62)), weight}) <=
        cpu::Moments::most_made))
    throw InvalidArgument(message("second_moment: its product with the weight ", weight,
                                  " or the mean's square leaves no room in float64 for more"));
  out.move_to(place);
  return out;
}

Covariance Covariance::combine(std::span<const Covariance* const> covariances,
                               std::span<const double> weights) {
  if (covariances.empty()) throw InvalidArgument("covs: got none, expected at least one");
  if (weights.size() != covariances.size())
    throw InvalidArgument(message("weights: got ", weights.size(), " entries, expected ",
                                  covariances.size(), ", one per covariance"));
  Covariance out(covariances[0]->n_);
  std::int64_t count = 0;
  out.has_mean_ = false;
  cpu::Moments::Settled& moments = out.accumulator_->settled();
  for (std::size_t i = 0; i < covariances.size(); ++i) {
    const Covariance& part = *covariances[i];
    if (part.n_ != out.n_)
      throw InvalidArgument(
          message("covs: entry ", i, " has ", part.n_, " features, expected ", out.n_));
    if (!(weights[i] >= 0) || !std::isfinite(weights[i]))
      throw InvalidArgument(message("weights: got ", weights[i], " at entry ", i,
                                    ", expected finite and non-negative"));
    if (part.device() != covariances[0]->device())
      throw InvalidArgument(message("covs: entry ", i, " lies on ", name(part.device()),
                                    ", expected ", name(covariances[0]->device())));
    const Accumulator::Totals totals = part.accumulator_->totals();
    if (!(totals.weight > 0)) throw InvalidArgument(message("covs: entry ", i, " has no samples"));
    const Matrix<double> c = part.second_moment().to({}, {});
    for (std::int64_t row = 0; row < out.n_; ++row)
      for (std::int64_t j = row; j < out.n_; ++j) moments.scatter(row, j) += weights[i] * c(row, j);
    if (totals.count > std::numeric_limits<std::int64_t>::max() - count)
      throw InvalidArgument("count: the number of rows exceeds 2^63 - 1");
    count += totals.count;
  }
  if (!(out.accumulator_->assume({count, 1}) <= cpu::Moments::most_made))
    throw InvalidArgument("weights: the combined second moment overflows float64");
  out.move_to({covariances[0]->device()});
  return out;
}

Covariance::State Covariance::state() const {
  const auto n = std::size_t(n_), packed = n * (n + 1) / 2;
  const Accumulator::Totals totals = accumulator_->totals();
  State out{totals.count, totals.weight, has_mean_, {}, {}, {}};
  if (!(totals.weight > 0)) {           // perhaps nothing has decided where it lives
    out.packed_scatter.resize(packed);  // first what there is least room for
    out.reference.resize(n);
    out.offset.resize(n);
    return out;
  }
  Accumulator::Mean mean = accumulator_->mean(0);
  out.reference = std::move(mean.reference);
  out.offset = std::move(mean.offset);
  out.packed_scatter.reserve(packed);
  const auto pack = [&](const auto& scatter) {
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t j = i; j < n_; ++j) out.packed_scatter.push_back(scatter(i, j));
  };
  if (accumulator_->on_device())
    pack(accumulator_->moment(1, true).to({}, {}));
  else
    pack(accumulator_->settled().scatter);
  return out;
}

Covariance Covariance::from_state(const State& state, MomentsPlace place) {
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
  Covariance out(n, {.memory = place.memory});
  out.has_mean_ = state.has_mean;
  cpu::Moments::Settled& moments = out.accumulator_->settled();
  std::ranges::copy(state.reference, moments.reference.begin());
  std::ranges::copy(state.offset, moments.offset.begin());
  const auto mean = [&](std::int64_t i) {
    return state.reference[std::size_t(i)] + state.offset[std::size_t(i)];
  };
  auto next = state.packed_scatter.begin();
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j) {
      const double x = moments.scatter(i, j) = *next++;
      if (state.weight == 0 && x != 0)
        throw InvalidArgument(message("scatter: got ", x, " at row ", i, ", column ", j,
                                      ", expected 0 where the weight is 0"));
      if (state.weight > 0 && !std::isfinite(x / state.weight + mean(i) * mean(j)))
        throw InvalidArgument(message("scatter: its quotient by the weight ", state.weight,
                                      " or the mean's square overflows at row ", i, ", column ",
                                      j));
    }
  if (!(out.accumulator_->assume({state.count, state.weight}) <= cpu::Moments::most_kept))
    throw InvalidArgument(message("scatter: it, or the weight ", state.weight,
                                  " times the mean's square, leaves no room in float64 for more"));
  out.move_to(place);
  return out;
}

MomentsMemory moments_memory(std::int64_t n, std::int64_t rows, DType dtype, bool offload) {
  const cuda::MomentsShape shape{0, n, 0, offload};
  const auto bytes = [&](std::int64_t of_rows) {
    return cuda::backend().moments_memory(&shape, of_rows, dtype);
  };
  return {bytes(0), bytes(rows) - bytes(0)};
}

CrossCovariance::CrossCovariance(std::int64_t n_x, std::int64_t n_y, MomentsPlace place)
    : n_x_(checked_size("n_x", n_x)),
      n_y_(checked_size("n_y", n_y)),
      accumulator_(std::make_unique<Accumulator>(n_x, n_y, place)) {}

CrossCovariance::~CrossCovariance() = default;
CrossCovariance::CrossCovariance(CrossCovariance&&) noexcept = default;
CrossCovariance& CrossCovariance::operator=(CrossCovariance&&) noexcept = default;

Device CrossCovariance::device() const { return accumulator_->device(); }
std::int64_t CrossCovariance::count() const { return accumulator_->totals().count; }
double CrossCovariance::weight() const { return accumulator_->totals().weight; }

void CrossCovariance::update(const ArrayView& x, const ArrayView& y, const RowSelection& selection,
                             const Context& context) {
  check_rows("x", x, n_x_);
  check_rows("y", y, n_y_);
  if (!std::ranges::equal(x.shape().first(std::size_t(x.rank() - 1)),
                          y.shape().first(std::size_t(y.rank() - 1))))
    throw InvalidArgument(message("y: got shape ", shape_text(y),
                                  ", expected the same leading axes as x of shape ",
                                  shape_text(x)));
  const ArrayView batches[] = {x, y};
  accumulator_->add(batches, selection, context);
}

void CrossCovariance::merge(const CrossCovariance& other) {
  if (other.n_x_ != n_x_ || other.n_y_ != n_y_)
    throw InvalidArgument(message("other: got ", other.n_x_, " x ", other.n_y_,
                                  " features, expected ", n_x_, " x ", n_y_));
  accumulator_->merge(*other.accumulator_);
}

Matrix<double> CrossCovariance::cross_moment() const {
  const double weight = this->weight();
  need_samples("cross_moment", weight);
  return accumulator_->moment(weight, false);
}

Matrix<double> CrossCovariance::cross_covariance(double ddof) const {
  return accumulator_->moment(checked_divisor(weight(), ddof), true);
}

Matrix<double> CrossCovariance::correlation() const {
  need_samples("correlation", weight());
  return accumulator_->correlation();
}

}  // namespace descramble_fast
