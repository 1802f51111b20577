#include "accumulator.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "call.hpp"
#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/parallel.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

void check_selector(const char* argument, const ArrayView& selector, const ArrayView& batch,
                    Device device) {
  check_device(argument, selector, device);
  const auto leading = batch.shape().first(std::size_t(batch.rank() - 1));
  if (!std::ranges::equal(selector.shape(), leading))
    throw InvalidArgument(message(argument, ": got shape ", shape_text(selector),
                                  ", expected one entry per row of the batch of shape ",
                                  shape_text(batch)));
}

void check_selection(const ArrayView& batch, const RowSelection& selection, Device device) {
  if (selection.mask) {
    if (selection.mask->dtype() != DType::boolean)
      throw TypeError(message("mask: got dtype ", name(selection.mask->dtype()),
                              ", expected bool; true for rows that count"));
    check_selector("mask", *selection.mask, batch, device);
  }
  if (selection.weights) {
    check_floating("weights", *selection.weights);
    check_selector("weights", *selection.weights, batch, device);
  }
}

cpu::Rows select(const ArrayView& batch, const RowSelection& selection) {
  cpu::Rows rows;
  rows.count = batch.rows();
  std::vector<double> weights;
  if (selection.weights) {
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

}  // namespace

Accumulator::Accumulator(std::int64_t n_x, std::int64_t n_y, MomentsPlace place)
    : n_x_(n_x), n_y_(n_y), place_(place) {
  if (place.device) settle_on(*place.device);
}

void Accumulator::settle_on(Device device) {
  if (decided()) return;
  const Call call({}, place_.memory);
  if (device.kind == DeviceKind::cuda)
    device_moments_ = std::make_unique<cuda::DeviceMoments>(device, n_x_, n_y_, place_.offload);
  else if (n_y_ == 0)
    moments_.emplace(n_x_);
  else
    moments_.emplace(n_x_, n_y_);
  place_.device = device;
}

Device Accumulator::device() const { return place_.device.value_or(Device{}); }

const char* Accumulator::argument(std::size_t side) const {
  return n_y_ == 0 ? "batch" : side == 0 ? "x" : "y";
}

cpu::Moments::Settled& Accumulator::settled() {
  settle_on({});
  const Call call({}, place_.memory);
  return moments_->settled();
}

Accumulator::Totals Accumulator::totals() {
  if (on_device()) {
    const cuda::MomentsReport report = device_moments_->report();
    return {report.count, report.weight};
  }
  return {count_, moments_ ? moments_->weight() : 0};
}

void Accumulator::add(std::span<const ArrayView> batches, const RowSelection& selection,
                      const Context& context) {
  const Call call(context, place_.memory);
  if (!decided()) {  // which an update that fails shall not have done
    Accumulator settled(n_x_, n_y_, {batches.front().device(), place_.offload, place_.memory});
    settled.add(batches, selection, context);
    *this = std::move(settled);
    return;
  }
  for (std::size_t s = 0; s < batches.size(); ++s) check_device(argument(s), batches[s], device());
  check_selection(batches.front(), selection, device());
  if (on_device()) {
    if (batches.front().rows() > 0) device_moments_->add(batches.data(), selection, context);
    return;
  }
  const cpu::Rows rows = select(batches.front(), selection);
  if (rows.count == 0) return;
  check_count(count_, rows.count);
  check_total_weight(moments_->weight(), rows.weight);
  if (const auto refusal = moments_->add(batches, rows, context))
    refuse(argument(refusal->side), *refusal);
  count_ += rows.count;
}

void Accumulator::merge(Accumulator& other) {
  if (!other.decided()) return;
  if (!decided()) {
    Accumulator settled(n_x_, n_y_, {other.device(), place_.offload, place_.memory});
    settled.merge(other);
    *this = std::move(settled);
    return;
  }
  if (other.device() != device())
    throw InvalidArgument(message("other: lies on ", name(other.device()), ", expected ",
                                  name(device()), ", where this accumulator is"));
  const Totals mine = totals(), theirs = naming("other", [&] { return other.totals(); });
  check_count(mine.count, theirs.count);
  check_total_weight(mine.weight, theirs.weight);
  if (on_device()) {
    device_moments_->merge(*other.device_moments_);
    return;
  }
  other.settled();  // with its own memory
  const Call call({}, place_.memory);
  if (!moments_->merge(*other.moments_))
    throw InvalidArgument("other: the combined scatter overflows float64");
  count_ += theirs.count;
}

std::vector<double> Accumulator::Mean::sum() const {
  std::vector<double> out = reference;
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += offset[i];
  return out;
}

Accumulator::Mean Accumulator::mean(std::int32_t set) {
  if (on_device()) {
    auto [reference, offset] = device_moments_->mean(set);
    return {std::move(reference), std::move(offset)};
  }
  const cpu::Moments::Settled& moments = settled();
  const auto first = std::ptrdiff_t(moments_->first(std::size_t(set)));
  const auto part = [&](const std::vector<double>& x) {
    return std::vector<double>(x.begin() + first, x.begin() + first + (set == 0 ? n_x_ : n_y_));
  };
  return {part(moments.reference), part(moments.offset)};
}

Matrix<double> Accumulator::moment(double divisor, bool centred) {
  const Call call({.memory = place_.memory});
  if (on_device()) return device_moments_->read(divisor, centred);
  const std::int32_t right = n_y_ == 0 ? 0 : 1;
  std::vector<double> u = mean(0).sum(), v = mean(right).sum();
  if (centred) {
    std::ranges::fill(u, 0.0);
    std::ranges::fill(v, 0.0);
  }
  return moments_->scaled_scatter(divisor, u, v);
}

Matrix<double> Accumulator::correlation() {
  const Call call({.memory = place_.memory});
  if (on_device()) return device_moments_->correlation();
  const cpu::Moments::Settled& moments = settled();
  // Rounding may leave a constant feature a square below zero.
  const auto size = [&](std::int64_t j) {
    return std::sqrt(std::max(0.0, moments.squares[std::size_t(j)]));
  };
  std::vector<double> sizes(static_cast<std::size_t>(n_y_));
  for (std::int64_t j = 0; j < n_y_; ++j) sizes[std::size_t(j)] = size(moments_->first(1) + j);
  Matrix<double> out(n_x_, n_y_);
  constexpr std::int64_t threaded_work = 1 << 14;
  cpu::parallel_for(
      n_x_ * n_y_ < threaded_work ? 1 : cpu::threads_of({}), n_x_, [&](std::int64_t i) {
        const double of_row = size(i);
        for (std::int64_t j = 0; j < n_y_; ++j) {
          const double scale = of_row * sizes[std::size_t(j)];
          out(i, j) = scale > 0 ? std::clamp(moments.scatter(i, j) / scale, -1.0, 1.0) : 0;
        }
      });
  return out;
}

double Accumulator::assume(Totals totals) {
  settle_on({});
  count_ = totals.count;
  return moments_->assume(totals.weight);
}

Accumulator Accumulator::to(MomentsPlace place) {
  Accumulator out(n_x_, 0, place);
  const Totals all = totals();
  const Mean about = mean(0);
  const Matrix<double> scatter = moment(1, true).to(out.device(), {});
  if (out.on_device()) {
    out.device_moments_->assume(all.count, all.weight, about.reference.data(), about.offset.data(),
                                scatter);
    return out;
  }
  cpu::Moments::Settled& moments = out.settled();
  std::ranges::copy(about.reference, moments.reference.begin());
  std::ranges::copy(about.offset, moments.offset.begin());
  for (std::int64_t i = 0; i < n_x_; ++i)
    for (std::int64_t j = i; j < n_x_; ++j) moments.scatter(i, j) = scatter(i, j);
  out.assume(all);
  return out;
}

}  // namespace descramble_fast
