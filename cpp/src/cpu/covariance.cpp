#include "cpu/covariance.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "cpu/convert.hpp"
#include "cpu/panel.hpp"
#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

// Multiplications below which threads cost more than they bring.
constexpr std::int64_t small_work = 1 << 25;
// What reading and writing an element costs, in multiplications.
constexpr std::int64_t element_work = 32;

// Rows packed at once: enough to hide the traffic of the scatter, in some 16 MB.
std::int64_t panel_rows(std::int64_t columns, std::int64_t element) {
  return std::clamp<std::int64_t>((1 << 24) / (columns * element) / 512 * 512, 1024, 8192);
}

// Rows that wait for others, at most: in a few times the memory of the scatter, but not many.
std::int64_t waiting_rows(std::int64_t columns) {
  return std::clamp<std::int64_t>(2 * std::max<std::int64_t>(columns, (1 << 14) / columns), 64,
                                  512);
}

// In float, mean squares within these bounds lose no digits to the ends of the range.
constexpr double least_square = 0x1p-90, largest_square = 0x1p100;

bool leaves_range(const Sums& sums, double weight) {
  for (std::size_t j = 0; j < sums.sum.size(); ++j)
    if (sums.square[j] > weight * largest_square ||
        (sums.bits[j] != 0 && sums.square[j] < weight * least_square))
      return true;
  return false;
}

bool is_finite(const Sums& sums) {
  const auto finite = [](double x) { return std::isfinite(x); };
  return std::ranges::all_of(sums.sum, finite) && std::ranges::all_of(sums.square, finite);
}

// Rounding is relative to squares about the reference: these may not exceed the squares about the
// mean by much, in any column; with pairs, whose reference is 0, not those of the largest column.
bool is_far(Arithmetic arithmetic, std::span<const double> reference, std::span<const double> sum,
            std::span<const double> square, double weight) {
  constexpr double factor = 4, factor_of_largest = 8;
  const double epsilon = arithmetic == Arithmetic::wide ? std::numeric_limits<double>::epsilon()
                                                        : std::numeric_limits<float>::epsilon();
  double largest = 0, largest_about_mean = 0;
  for (std::size_t j = 0; j < sum.size(); ++j) {
    const double shift = sum[j] / weight, about_mean = square[j] - sum[j] * shift;
    const bool movable = std::abs(shift) > epsilon * std::abs(reference[j]);
    if (arithmetic != Arithmetic::pairs && movable && square[j] > factor * about_mean) return true;
    largest = std::max(largest, square[j]);
    largest_about_mean = std::max(largest_about_mean, about_mean);
  }
  return arithmetic == Arithmetic::pairs && largest > factor_of_largest * largest_about_mean;
}

// The first entry of a row that is NaN or infinite; -1: none.
std::int64_t bad_column(const ArrayView& batch, std::int64_t row) {
  std::vector<double> x(std::size_t(batch.columns()));
  widen_row(batch, row, x.data());
  const auto bad = std::ranges::find_if(x, [](double value) { return !std::isfinite(value); });
  return bad == x.end() ? -1 : bad - x.begin();
}

std::optional<Refusal> find_bad(std::span<const ArrayView> batches, const Rows& rows,
                                std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i)
    for (std::size_t side = 0; side < batches.size(); ++side)
      if (const auto column = bad_column(batches[side], rows[i]); column >= 0)
        return Refusal{side, rows[i], column, 0};
  return {};
}

// The largest magnitude whose squares, and those of differences, stay finite in every sum.
double largest_allowed(double total_weight) {
  return std::sqrt(std::numeric_limits<double>::max() / std::max(1.0, total_weight)) / 8;
}

// The largest magnitude; infinity where something is not finite.
template <class T, class Bits>
double largest_of(const std::byte* data, std::int64_t size) {
  Bits largest = 0;
  const auto* const x = reinterpret_cast<const Bits*>(data);
  // Magnitudes are in the order of their bits.
  for (std::int64_t i = 0; i < size; ++i)
    largest = std::max(largest, Bits(x[i] & std::numeric_limits<Bits>::max()));
  T value;
  std::memcpy(&value, &largest, sizeof value);
  const double magnitude = double(widen(value));
  return std::isfinite(magnitude) ? magnitude : std::numeric_limits<double>::infinity();
}

double largest_of(const std::byte* data, DType dtype, std::int64_t size) {
  switch (dtype) {
    case DType::float16:
      return largest_of<Float16, std::int16_t>(data, size);
    case DType::bfloat16:
      return largest_of<BFloat16, std::int16_t>(data, size);
    case DType::float32:
      return largest_of<float, std::int32_t>(data, size);
    default:
      return largest_of<double, std::int64_t>(data, size);
  }
}

std::optional<Refusal> find_too_large(std::span<const ArrayView> batches, const Rows& rows,
                                      double total_weight) {
  for (std::size_t side = 0; side < batches.size(); ++side) {
    const ArrayView& batch = batches[side];
    const bool as_is = batch.column_stride() == 1;
    std::vector<std::byte> copy(as_is ? 0 : std::size_t(batch.columns() * size_of(batch.dtype())));
    double largest = 0;
    for (std::int64_t i = 0; i < rows.count; ++i) {
      if (!as_is) copy_row(batch, rows[i], copy.data());
      const std::byte* const row = as_is ? batch.row(rows[i]) : copy.data();
      largest = std::max(largest, largest_of(row, batch.dtype(), batch.columns()));
    }
    if (largest > largest_allowed(total_weight)) {
      if (auto bad = find_bad(batches, rows, 0, rows.count)) return bad;
      return Refusal{side, -1, -1, largest};
    }
  }
  return {};
}

Arithmetic arithmetic_for(std::span<const ArrayView> batches, const Rows& rows,
                          double total_weight) {
  const auto all = [&](DType dtype) {
    return std::ranges::all_of(batches, [=](const auto& b) { return b.dtype() == dtype; });
  };
  constexpr double least = 0x1p-40, most = 0x1p40;
  const auto extreme = [](double w) { return w < least || w > most; };
  if (std::ranges::any_of(batches, [](const auto& b) { return b.dtype() == DType::float64; }) ||
      std::ranges::any_of(rows.weights, extreme) ||
      !(largest_allowed(total_weight) > double(std::numeric_limits<float>::max())))
    return Arithmetic::wide;
  if (covariance_kernels().pack_pairs != nullptr && all(DType::bfloat16) && rows.weights.empty())
    return Arithmetic::pairs;
  return Arithmetic::single;
}

// By padded column.
struct Centre {
  std::vector<double> mean, variance;
};

// Of a few rows from all over a panel; exact for constant columns.
Centre sample_centre(const Source& source, std::int64_t padded) {
  constexpr std::int64_t most = 32;
  const std::int64_t count = std::min(most, source.end - source.begin);
  const std::int64_t step = (source.end - source.begin) / count;
  std::vector<double> mean(std::size_t(padded), 0), square = mean, first = mean, row = mean;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::size_t side = 0; side < source.batches.size(); ++side)
      widen_row(source.batches[side], source.rows[source.begin + i * step],
                row.data() + source.firsts[side]);
    if (i == 0) first = row;
    for (std::size_t j = 0; j < row.size(); ++j) {
      const double difference = row[j] - first[j];
      mean[j] += difference / double(count);
      square[j] += difference * difference / double(count);
    }
  }
  for (std::size_t j = 0; j < mean.size(); ++j) {
    square[j] -= mean[j] * mean[j];
    mean[j] += first[j];
  }
  return {std::move(mean), std::move(square)};
}

// Of the significand.
int digits_of(DType dtype) {
  return dtype == DType::float16 ? 11 : dtype == DType::bfloat16 ? 8 : 24;
}

double rounded(double x, int digits) {
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, digits)), exponent - digits);
}

// A reference as the arithmetic holds it; 0 where it holds nothing finite. Numbers of 16 bits that
// are far from 0 lie on a grid; from a place on it they have differences of few digits, whose
// products float adds up without rounding.
std::vector<double> reference_at(Centre centre, Arithmetic arithmetic, const Source& source) {
  constexpr double far = 8;
  std::size_t side = 0;
  for (std::size_t j = 0; j < centre.mean.size(); ++j) {
    double& x = centre.mean[j];
    while (side + 1 < source.firsts.size() && std::int64_t(j) >= source.firsts[side + 1]) ++side;
    if (arithmetic == Arithmetic::single) {
      if (x * x > far * far * centre.variance[j])
        x = rounded(x, digits_of(source.batches[side].dtype()));
      x = double(float(x));
    }
    if (!std::isfinite(x)) x = 0;
  }
  return std::move(centre.mean);
}

bool holds(Arithmetic arithmetic, std::span<const double> reference) {
  if (arithmetic == Arithmetic::wide) return true;
  return std::ranges::all_of(reference, [=](double x) {
    return arithmetic == Arithmetic::pairs ? x == 0 : double(float(x)) == x;
  });
}

int threads_for(std::int64_t work, const Context& context) {
  const int threads = threads_of(context);
  return work < small_work ? 1 : threads;
}

}  // namespace

// ---- the moments

// What an update makes of the moments: they take it over when nothing can fail any more.
class Moments::Draft {
 public:
  // With `copied`, the scatter is written to a copy, because later rows may yet be refused.
  Draft(Moments& moments, bool copied, int threads)
      : moments_(moments),
        copied_(copied),
        threads_(threads),
        weight_(moments.settled_.weight),
        reference_(moments.settled_.reference),
        offset_(moments.settled_.offset),
        squares_(moments.settled_.squares),
        open_(moments.open_) {}

  Scatter& scatter() {
    Moments& m = moments_;
    if (!copied_) return m.settled_.scatter;
    if (!begun_) {
      if (m.spare_.values().empty()) m.spare_ = m.settled_.scatter.like();
      copy_values(m.settled_.scatter.values(), m.spare_.values(), threads_);
      begun_ = true;
    }
    return m.spare_;
  }

  // Moves open sums to the settled moments (Chan, Golub and LeVeque).
  void settle() {
    if (!(open_.weight > 0)) return;
    const double weight = weight_ + open_.weight;
    std::vector<double> delta = open_.sum, shift(delta.size(), 0);
    for (double& x : delta) x /= open_.weight;
    double correction = 0;
    if (weight_ > 0) {
      correction = weight_ * (open_.weight / weight);
      for (std::size_t j = 0; j < delta.size(); ++j)
        shift[j] = (open_.reference[j] - reference_[j]) + (delta[j] - offset_[j]);
    }
    const std::int64_t right = moments_.sets_.back().first;
    add_outer(scatter(), right, correction, shift, open_.weight, delta, threads_);
    for (std::size_t j = 0; j < delta.size(); ++j)
      squares_[j] += open_.square[j] - open_.weight * (delta[j] * delta[j]) +
                     correction * (shift[j] * shift[j]);
    if (weight_ > 0) {
      for (std::size_t j = 0; j < delta.size(); ++j)
        offset_[j] += (open_.weight / weight) * shift[j];
    } else {
      reference_ = open_.reference;
      offset_ = std::move(delta);
    }
    weight_ = weight;
    open_.weight = 0;
    std::ranges::fill(open_.sum, 0.0);
    std::ranges::fill(open_.square, 0.0);
  }

  // Packs rows about a reference, and in an arithmetic, that keep the accuracy of their products.
  std::optional<Refusal> pack(Panel& panel, const Source& source, double total_weight) {
    weight_packed_ = 0;
    for (std::int64_t i = source.begin; i < source.end; ++i)
      weight_packed_ += source.rows.weight_of(i);
    Arithmetic arithmetic = arithmetic_for(source.batches, source.rows, total_weight);
    if (arithmetic == Arithmetic::pairs && !may_take_pairs()) arithmetic = Arithmetic::single;
    choose_reference(arithmetic, source);
    for (bool moved = false;;) {
      panel.pack(source, arithmetic, packed_about_, threads_);
      const Sums& sums = panel.sums();
      if (!is_finite(sums)) {
        if (auto bad = find_bad(source.batches, source.rows, source.begin, source.end)) return bad;
        if (arithmetic == Arithmetic::wide) return overflow(sums, source);
      }
      if (arithmetic == Arithmetic::wide) {
        if (std::ranges::max(sums.largest) > largest_allowed(total_weight))
          return overflow(sums, source);
      } else if (!is_finite(sums) || leaves_range(sums, weight_packed_)) {
        arithmetic = Arithmetic::wide;
        moved = false;
        choose_reference(arithmetic, source);
        continue;
      }
      if (moved || !is_far_now(arithmetic, sums)) return {};
      moved = fresh_ = true;
      if (arithmetic == Arithmetic::pairs) arithmetic = Arithmetic::single;
      Centre centre{packed_about_, sums.square};
      for (std::size_t j = 0; j < packed_about_.size(); ++j) {
        const double shift = sums.sum[j] / weight_packed_;
        centre.mean[j] += shift;
        centre.variance[j] = centre.variance[j] / weight_packed_ - shift * shift;
      }
      packed_about_ = reference_at(std::move(centre), arithmetic, source);
    }
  }

  // Takes over the sums of the panel packed last; its products are for the caller to add.
  void add(const Panel& panel) {
    if (fresh_) {
      // Nothing may fail once the scatter is written to.
      Open next{0, packed_about_, std::vector<double>(packed_about_.size(), 0),
                std::vector<double>(packed_about_.size(), 0)};
      settle();
      open_ = std::move(next);
    }
    const Sums& sums = panel.sums();
    for (std::size_t j = 0; j < sums.sum.size(); ++j) {
      open_.sum[j] += sums.sum[j];
      open_.square[j] += sums.square[j];
    }
    open_.weight += weight_packed_;
  }

  void commit() {
    if (begun_) std::swap(moments_.settled_.scatter, moments_.spare_);
    moments_.settled_.weight = weight_;
    moments_.settled_.reference = std::move(reference_);
    moments_.settled_.offset = std::move(offset_);
    moments_.settled_.squares = std::move(squares_);
    moments_.open_ = std::move(open_);
  }

 private:
  std::vector<double> mean() const {
    std::vector<double> out = reference_;
    for (std::size_t j = 0; j < out.size(); ++j) out[j] += offset_[j];
    return out;
  }

  // Whether pairs, whose reference is 0, suit the rows seen so far.
  bool may_take_pairs() const {
    if (open_.weight > 0) return holds(Arithmetic::pairs, open_.reference);
    if (!(weight_ > 0)) return true;
    std::vector<double> sum = mean(), square = squares_;
    for (std::size_t j = 0; j < sum.size(); ++j) {
      square[j] += weight_ * (sum[j] * sum[j]);
      sum[j] *= weight_;
    }
    return !is_far(Arithmetic::pairs, reference_, sum, square, weight_);
  }

  void choose_reference(Arithmetic arithmetic, const Source& source) {
    fresh_ = !(open_.weight > 0 && holds(arithmetic, open_.reference));
    if (!fresh_) {
      packed_about_ = open_.reference;
    } else if (arithmetic == Arithmetic::pairs) {
      packed_about_.assign(reference_.size(), 0);
    } else {
      Centre centre{mean(), squares_};
      for (double& x : centre.variance) x /= weight_;
      if (!(weight_ > 0)) centre = sample_centre(source, std::int64_t(reference_.size()));
      packed_about_ = reference_at(std::move(centre), arithmetic, source);
    }
  }

  bool is_far_now(Arithmetic arithmetic, const Sums& sums) const {
    if (fresh_) return is_far(arithmetic, packed_about_, sums.sum, sums.square, weight_packed_);
    std::vector<double> sum = open_.sum, square = open_.square;
    for (std::size_t j = 0; j < sum.size(); ++j) {
      sum[j] += sums.sum[j];
      square[j] += sums.square[j];
    }
    return is_far(arithmetic, packed_about_, sum, square, open_.weight + weight_packed_);
  }

  static Refusal overflow(const Sums& sums, const Source& source) {
    const auto most = std::ranges::max_element(sums.largest);
    Refusal refusal;
    refusal.largest = *most;
    while (refusal.side + 1 < source.firsts.size() &&
           most - sums.largest.begin() >= source.firsts[refusal.side + 1])
      ++refusal.side;
    return refusal;
  }

  Moments& moments_;
  bool copied_, begun_ = false;
  int threads_;
  double weight_;
  std::vector<double> reference_, offset_, squares_;
  Open open_;
  // Of the panel packed last; fresh: not about the reference of the open sums.
  std::vector<double> packed_about_;
  bool fresh_ = true;
  double weight_packed_ = 0;
};

Moments::Moments(std::int64_t n) : sets_{{n, 0}} {
  settled_.scatter = Scatter(n);
  const std::size_t padded = std::size_t(strip * settled_.scatter.column_strips());
  settled_.reference.assign(padded, 0);
  settled_.offset.assign(padded, 0);
  settled_.squares.assign(padded, 0);
}

Moments::Moments(std::int64_t n_x, std::int64_t n_y)
    : sets_{{n_x, 0}, {n_y, strip * ((n_x + strip - 1) / strip)}} {
  settled_.scatter = Scatter(n_x, n_y);
  const std::size_t padded = std::size_t(sets_[1].first + strip * settled_.scatter.column_strips());
  settled_.reference.assign(padded, 0);
  settled_.offset.assign(padded, 0);
  settled_.squares.assign(padded, 0);
}

std::vector<std::int64_t> Moments::first_columns() const {
  std::vector<std::int64_t> out;
  for (const Set& set : sets_) out.push_back(set.first);
  return out;
}

std::optional<Refusal> Moments::add(std::span<const ArrayView> batches, const Rows& rows,
                                    const Context& context) {
  if (context.poll) context.poll();
  const double total = weight_ + rows.weight;
  const bool few = 2 * rows.count <= waiting_rows(padded());
  const bool may_wait = few && largest_allowed(total) > double(std::numeric_limits<float>::max());
  if (auto refusal = may_wait ? let_wait(batches, rows, total, context)
                              : add_now(batches, rows, total, context))
    return refusal;
  weight_ = total;
  return {};
}

std::optional<Refusal> Moments::add_now(std::span<const ArrayView> batches, const Rows& rows,
                                        double total_weight, const Context& context) {
  const Arithmetic narrowest = arithmetic_for(batches, rows, total_weight);
  const std::int64_t columns = padded(), depth = panel_rows(columns, element_size(narrowest));
  const int threads = threads_for(rows.count * columns * columns, context);
  const std::vector<std::int64_t> firsts = first_columns();
  const bool copied = rows.count > depth;
  Draft draft(*this, copied, threads);
  Panel panel({settled_.scatter, columns, sets_.back().first / strip, sets_.back().n},
              std::min(depth, rows.count));
  for (std::int64_t begin = 0; begin < rows.count; begin += depth) {
    const Source source{batches, rows, firsts, begin, std::min(rows.count, begin + depth)};
    if (auto refusal = draft.pack(panel, source, total_weight)) return refusal;
    if (context.poll) context.poll();
    draft.add(panel);
    panel.add_products(draft.scatter(), threads, copied ? context.poll : nullptr);
  }
  draft.commit();
  return {};
}

void Moments::add_waiting(const Context& context) {
  if (waiting_.count == 0) return;
  std::vector<ArrayView> batches;
  for (std::size_t s = 0; s < sets_.size(); ++s) {
    const std::int64_t shape[] = {waiting_.count, sets_[s].n};
    batches.emplace_back(waiting_.rows[s].data(), waiting_.dtypes[s], shape);
  }
  Rows rows;
  rows.weights = waiting_.weights;
  rows.count = waiting_.count;
  rows.weight = waiting_.weight;
  add_now(batches, rows, waiting_.weight, context);
  // The room is kept: as many will wait again.
  waiting_.weights.clear();
  waiting_.count = 0;
  waiting_.weight = 0;
}

bool Moments::fits_waiting(std::span<const ArrayView> batches, std::int64_t count) const {
  const auto same = [](DType dtype, const ArrayView& b) { return dtype == b.dtype(); };
  return std::ranges::equal(waiting_.dtypes, batches, same) &&
         waiting_.count + count <= waiting_rows(padded());
}

// Adds what waits, so that rows of these batches may.
void Moments::start_waiting(std::span<const ArrayView> batches, const Context& context) {
  // First what may fail: rows added earlier than without this update would give other bits.
  std::vector<DType> dtypes;
  std::vector<Aligned<std::byte>> room(batches.size());
  waiting_.rows.resize(batches.size());
  for (std::size_t s = 0; s < batches.size(); ++s) {
    dtypes.push_back(batches[s].dtype());
    const std::int64_t bytes = waiting_rows(padded()) * sets_[s].n * size_of(dtypes[s]);
    if (waiting_.rows[s].size() < bytes) room[s] = Aligned<std::byte>(bytes);
  }
  add_waiting(context);
  waiting_.dtypes = std::move(dtypes);
  for (std::size_t s = 0; s < batches.size(); ++s)
    if (room[s].size() > 0) waiting_.rows[s] = std::move(room[s]);
}

std::optional<Refusal> Moments::let_wait(std::span<const ArrayView> batches, const Rows& rows,
                                         double total_weight, const Context& context) {
  if (auto refusal = find_too_large(batches, rows, total_weight)) return refusal;
  if (!rows.weights.empty()) waiting_.weights.reserve(std::size_t(waiting_rows(padded())));
  if (!fits_waiting(batches, rows.count)) start_waiting(batches, context);
  // Nothing may fail any more.
  for (std::size_t s = 0; s < batches.size(); ++s) {
    const std::size_t row_bytes = std::size_t(sets_[s].n * size_of(batches[s].dtype()));
    std::byte* to = waiting_.rows[s].data() + std::size_t(waiting_.count) * row_bytes;
    for (std::int64_t i = 0; i < rows.count; ++i, to += row_bytes)
      copy_row(batches[s], rows[i], to);
  }
  if (!rows.weights.empty() || !waiting_.weights.empty()) {  // within what is reserved
    waiting_.weights.resize(std::size_t(waiting_.count), 1.0);
    for (std::int64_t i = 0; i < rows.count; ++i) waiting_.weights.push_back(rows.weight_of(i));
  }
  waiting_.count += rows.count;
  waiting_.weight += rows.weight;
  return {};
}

Moments::Settled& Moments::settled() {
  add_waiting({});
  if (open_.weight > 0) {
    Draft draft(*this, false, threads_for(element_work * padded() * padded(), {}));
    draft.settle();
    draft.commit();
  }
  settled_.weight = weight_;
  return settled_;
}

double Moments::assume(double weight) {
  weight_ = settled_.weight = weight;
  given_ = true;
  const std::int64_t n = sets_.front().n;
  double most = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double mean = settled_.reference[std::size_t(i)] + settled_.offset[std::size_t(i)];
    most = std::max(most, weight * mean * mean);
    for (std::int64_t j = i; j < n; ++j) most = std::max(most, std::abs(settled_.scatter(i, j)));
    settled_.squares[std::size_t(i)] = settled_.scatter(i, i);
  }
  return most;
}

bool Moments::merge(Moments& other) {
  Settled& mine = settled();
  const Settled& theirs = other.settled();
  if (!(theirs.weight > 0)) return true;
  const double weight = mine.weight + theirs.weight;
  const double correction = mine.weight * (theirs.weight / weight);
  std::vector<double> shift(mine.squares.size(), 0);
  if (mine.weight > 0)
    for (std::size_t j = 0; j < shift.size(); ++j)
      shift[j] = (theirs.reference[j] - mine.reference[j]) + (theirs.offset[j] - mine.offset[j]);
  const double share = theirs.weight / weight;
  for (std::size_t j = 0; j < shift.size(); ++j) {
    const double mean = mine.weight > 0 ? mine.reference[j] + (mine.offset[j] + share * shift[j])
                                        : theirs.reference[j] + theirs.offset[j];
    const double square = mine.squares[j] + theirs.squares[j] + correction * (shift[j] * shift[j]);
    if (!(square <= most_made && weight * mean * mean <= most_made)) return false;
  }
  const int threads = threads_for(element_work * padded() * padded(), {});
  // Of samples the largest sums are those of squares; what was given may be anything.
  if ((given_ || other.given_) && !sums_within(most_made, mine.scatter, theirs.scatter,
                                               sets_.back().first, correction, shift, threads))
    return false;

  given_ = given_ || other.given_;
  add_all(mine.scatter.values(), theirs.scatter.values(), threads);
  add_outer(mine.scatter, sets_.back().first, correction, shift, 0, shift, threads);
  for (std::size_t j = 0; j < shift.size(); ++j)
    mine.squares[j] += theirs.squares[j] + correction * (shift[j] * shift[j]);
  if (mine.weight > 0) {
    for (std::size_t j = 0; j < shift.size(); ++j) mine.offset[j] += share * shift[j];
  } else {
    mine.reference = theirs.reference;
    mine.offset = theirs.offset;
  }
  weight_ = mine.weight = weight;
  return true;
}

std::vector<double> Moments::mean(std::size_t set) {
  const Settled& s = settled();
  std::vector<double> out(std::size_t(sets_[set].n));
  for (std::size_t j = 0; j < out.size(); ++j) {
    const std::size_t at = std::size_t(sets_[set].first) + j;
    out[j] = s.reference[at] + s.offset[at];
  }
  return out;
}

Matrix<double> Moments::scaled_scatter(double divisor, std::span<const double> u,
                                       std::span<const double> v) {
  Scatter& scatter = settled().scatter;
  const std::int64_t rows = sets_.front().n, columns = sets_.back().n;
  Matrix<double> out(rows, columns);
  // Strip by strip, so that both sides of the diagonal are written while a block is in cache.
  parallel_for(
      threads_for(element_work * rows * columns, {}), scatter.column_strips(), [&](std::int64_t s) {
        const std::int64_t end = std::min(columns, strip * (s + 1));
        for (std::int64_t b = 0; b < scatter.row_strips(s); ++b) {
          const double* block = scatter.block(b, s);
          for (std::int64_t i = strip * b; i < std::min(rows, strip * (b + 1)); ++i, block += strip)
            for (std::int64_t j = strip * s; j < end; ++j) {
              if (scatter.triangular() && j < i) continue;
              const double x =
                  block[j - strip * s] / divisor + u[std::size_t(i)] * v[std::size_t(j)];
              out(i, j) = x;
              if (scatter.triangular()) out(j, i) = x;
            }
        }
      });
  return out;
}

}  // namespace descramble_fast::cpu
