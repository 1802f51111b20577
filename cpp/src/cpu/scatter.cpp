#include "cpu/scatter.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

Scatter::Scatter(std::int64_t n)
    : row_strips_(ceil_div(n, strip)),
      column_strips_(row_strips_),
      values_(strip * strip * (row_strips_ * (row_strips_ + 1) / 2)) {
  std::ranges::fill(values(), 0.0);
}

Scatter::Scatter(std::int64_t n_x, std::int64_t n_y)
    : triangular_(false),
      row_strips_(ceil_div(n_x, strip)),
      column_strips_(ceil_div(n_y, strip)),
      values_(strip * strip * row_strips_ * column_strips_) {
  std::ranges::fill(values(), 0.0);
}

Scatter Scatter::like() const {
  Scatter out;
  out.triangular_ = triangular_;
  out.row_strips_ = row_strips_;
  out.column_strips_ = column_strips_;
  out.values_ = Aligned<double>(values_.size());
  return out;
}

constexpr std::int64_t copied_at_once = 1 << 16;

void add_all(std::span<double> to, std::span<const double> terms, int threads) {
  const std::int64_t size = std::int64_t(to.size()), count = std::int64_t(terms.size()) / size;
  constexpr std::int64_t at_once = 1 << 11;  // stays in the first cache
  parallel_for(threads, ceil_div(size, at_once), [&](std::int64_t part) {
    const std::int64_t begin = part * at_once, length = std::min(size - begin, at_once);
    double* const sum = to.data() + begin;
    for (std::int64_t t = 0; t < count; ++t) {
      const double* const term = terms.data() + t * size + begin;
      for (std::int64_t i = 0; i < length; ++i) sum[i] += term[i];
    }
  });
}

bool sums_within(double most, const Scatter& a, const Scatter& b, std::int64_t first_column,
                 double c, std::span<const double> u, int threads) {
  std::atomic<bool> within{true};
  parallel_for(threads, a.column_strips(), [&](std::int64_t s) {
    const double* const right = u.data() + first_column + strip * s;
    const double* x = a.values().data() + a.offset(0, s);
    const double* y = b.values().data() + b.offset(0, s);
    bool fine = true;
    for (std::int64_t i = 0; i < strip * a.row_strips(s); ++i, x += strip, y += strip) {
      const double left = c * u[std::size_t(i)];
      for (int j = 0; j < strip; ++j) fine &= std::abs(x[j] + y[j] + left * right[j]) <= most;
    }
    if (!fine) within = false;
  });
  return within;
}

void copy_values(std::span<const double> from, std::span<double> to, int threads) {
  const std::int64_t size = std::int64_t(from.size());
  parallel_for(threads, ceil_div(size, copied_at_once), [&](std::int64_t part) {
    const std::int64_t begin = part * copied_at_once;
    std::copy_n(from.data() + begin, std::min(size - begin, copied_at_once), to.data() + begin);
  });
}

void add_outer(Scatter& scatter, std::int64_t first_column, double a, std::span<const double> u,
               double b, std::span<const double> v, int threads) {
  parallel_for(threads, scatter.column_strips(), [&](std::int64_t strip_of_columns) {
    const double* const right_u = u.data() + first_column + strip * strip_of_columns;
    const double* const right_v = v.data() + first_column + strip * strip_of_columns;
    double* row = scatter.block(0, strip_of_columns);
    for (std::int64_t i = 0; i < strip * scatter.row_strips(strip_of_columns); ++i, row += strip) {
      const double left_u = a * u[std::size_t(i)], left_v = b * v[std::size_t(i)];
      for (int c = 0; c < strip; ++c) row[c] += left_u * right_u[c] - left_v * right_v[c];
    }
  });
}

}  // namespace descramble_fast::cpu
