#include "cpu/eigh.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "cpu/convert.hpp"
#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr std::int64_t probes = 4;
constexpr int lanes = 8;
// Rows or columns to a task.
constexpr std::int64_t strip = 128;

// Exact multiplication by 2^-exponent, in two steps because one factor may not be representable.
class Downscale {
 public:
  explicit Downscale(int exponent)
      : first_(std::ldexp(1.0, -exponent / 2)),
        second_(std::ldexp(1.0, -exponent + exponent / 2)) {}
  double operator()(double x) const { return x * first_ * second_; }

 private:
  double first_, second_;
};

// Visits the rows [begin, end) of the lower triangle, as they lie in memory or as doubles.
template <class Visit>
void each_lower_row(const ArrayView& a, std::int64_t begin, std::int64_t end, Visit visit) {
  const bool contiguous = a.column_stride() == 1;
  std::vector<double> widened;
  for (std::int64_t i = begin; i < end; ++i) {
    if (contiguous && a.dtype() == DType::float64) {
      visit(i, reinterpret_cast<const double*>(a.row(i)));
    } else if (contiguous && a.dtype() == DType::float32) {
      visit(i, reinterpret_cast<const float*>(a.row(i)));
    } else {
      widened.resize(std::size_t(a.columns()));
      widen_row(a, i, widened.data());
      visit(i, static_cast<const double*>(widened.data()));
    }
  }
}

// body(strip, begin, end) over [0, n).
template <class Callable>
void by_strips(int threads, std::int64_t n, const Callable& body) {
  parallel_for(threads, (n + strip - 1) / strip,
               [&](std::int64_t s) { body(s, s * strip, std::min(n, (s + 1) * strip)); });
}

// The sum of term(j) for j < n, in lanes.
template <class Term>
double sum_of(std::int64_t n, Term term) {
  double part[lanes] = {};
  std::int64_t j = 0;
  for (; j + lanes <= n; j += lanes)
    for (int l = 0; l < lanes; ++l) part[l] += term(j + l);
  double sum = 0;
  for (; j < n; ++j) sum += term(j);
  for (const double x : part) sum += x;
  return sum;
}

struct Extent {
  double largest = 0;
  std::int64_t bad_row = -1;
};

template <class R>
void survey(std::int64_t i, const R* row, Extent& extent) {
  R largest[lanes] = {}, spoiled[lanes] = {};
  const auto visit = [&](int lane, R x) {
    const R size = x < 0 ? -x : x;
    largest[lane] = size > largest[lane] ? size : largest[lane];
    spoiled[lane] += x * R(0);
  };
  std::int64_t j = 0;
  for (; j + lanes <= i + 1; j += lanes)
    for (int l = 0; l < lanes; ++l) visit(l, row[j + l]);
  for (; j <= i; ++j) visit(0, row[j]);
  bool finite = true;
  for (int l = 0; l < lanes; ++l) {
    extent.largest = std::max(extent.largest, double(largest[l]));
    finite = finite && spoiled[l] == 0;
  }
  if (!finite && extent.bad_row < 0) extent.bad_row = i;
}

std::vector<double> slots(std::int64_t n) {
  return std::vector<double>(std::size_t((n + strip - 1) / strip));
}

double total(const std::vector<double>& parts) {
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

using Sums = std::array<double, probes>;

// Four dot products of one row with the rows of x (probes, n).
template <class R>
Sums dots(const R* row, const Matrix<double>& x, std::int64_t n) {
  Sums sum;
  for (std::int64_t p = 0; p < probes; ++p)
    sum[std::size_t(p)] =
        sum_of(n, [&, other = x.row(p)](std::int64_t j) { return double(row[j]) * other[j]; });
  return sum;
}

}  // namespace

Scaled scale_of(const ArrayView& a, int threads) {
  const std::int64_t n = a.columns();
  std::vector<Extent> extents(static_cast<std::size_t>((n + strip - 1) / strip));
  by_strips(threads, n, [&](std::int64_t s, std::int64_t begin, std::int64_t end) {
    each_lower_row(a, begin, end, [&](std::int64_t i, const auto* row) {
      survey(i, row, extents[std::size_t(s)]);
    });
  });
  Scaled out;
  double largest = 0;
  for (const Extent& extent : extents) {
    largest = std::max(largest, extent.largest);
    if (out.bad_row < 0) out.bad_row = extent.bad_row;
  }
  if (out.bad_row >= 0)
    each_lower_row(a, out.bad_row, out.bad_row + 1, [&](std::int64_t i, const auto* row) {
      out.bad_column = std::find_if(row, row + i, [](auto x) { return !std::isfinite(x); }) - row;
    });
  else if (largest > 0)
    out.exponent = std::ilogb(largest);
  return out;
}

template <class T>
void load_lower(const ArrayView& a, int exponent, T* out, int threads) {
  const std::int64_t n = a.columns();
  const Downscale scaled(exponent);
  by_strips(threads, n, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    each_lower_row(a, begin, end, [&](std::int64_t i, const auto* row) {
      for (std::int64_t j = 0; j <= i; ++j) out[i * n + j] = T(scaled(double(row[j])));
    });
  });
}

template <class T>
void load_symmetric(const ArrayView& a, int exponent, T* out, int threads) {
  load_lower(a, exponent, out, threads);
  const std::int64_t n = a.columns();
  constexpr std::int64_t tile = 32;
  by_strips(threads, n, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t top = begin; top < end; top += tile)
      for (std::int64_t j = top; j < std::min(top + tile, n); ++j)
        for (std::int64_t i = begin; i < std::min(end, j); ++i) out[i * n + j] = out[j * n + i];
    for (std::int64_t left = end; left < n; left += tile)
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t j = left; j < std::min(left + tile, n); ++j)
          out[i * n + j] = out[j * n + i];
  });
}

double frobenius_norm(const ArrayView& a, int exponent, int threads) {
  const std::int64_t n = a.columns();
  const Downscale scaled(exponent);
  std::vector<double> parts = slots(n);
  by_strips(threads, n, [&](std::int64_t s, std::int64_t begin, std::int64_t end) {
    each_lower_row(a, begin, end, [&](std::int64_t i, const auto* row) {
      const auto square = [&](std::int64_t j) {
        const double x = scaled(double(row[j]));
        return x * x;
      };
      parts[std::size_t(s)] += 2 * sum_of(i, square) + square(i);
    });
  });
  return std::sqrt(total(parts));
}

template <class T>
EighCheck check_eigenpairs(const ArrayView& a, int exponent, std::int64_t k, const T* w, const T* v,
                           int threads) {
  const std::int64_t n = a.columns();
  // By probes: signs s (k); mixed = V s (n); residual = A V s - V Lambda s (n).
  Matrix<double> signs(probes, k), mixed(probes, n, 0), residual(probes, n, 0);
  std::minstd_rand random(20230718u);
  for (double& s : signs.values()) s = (random() >> 8) & 1 ? 1 : -1;
  by_strips(threads, n, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t p = 0; p < probes; ++p) {
        const double sign = signs(p, i), pull = -sign * double(w[i]);
        double *const mix = mixed.row(p), *const rest = residual.row(p);
        for (std::int64_t j = begin; j < end; ++j) {
          mix[j] += sign * double(v[i * n + j]);
          rest[j] += pull * double(v[i * n + j]);
        }
      }
  });
  const Downscale scaled(exponent);
  // Below the diagonal each entry counts twice; what it adds to earlier rows waits in its group's
  // own sums.
  constexpr std::int64_t groups = 8;
  const std::int64_t height = (n + groups - 1) / groups;
  Matrix<double> waiting(groups * probes, n, 0);
  parallel_for(threads, groups, [&](std::int64_t g) {
    std::vector<double> row(static_cast<std::size_t>(n));
    each_lower_row(a, std::min(n, g * height), std::min(n, (g + 1) * height),
                   [&](std::int64_t i, const auto* stored) {
                     for (std::int64_t j = 0; j <= i; ++j)
                       row[std::size_t(j)] = scaled(double(stored[j]));
                     const Sums sums = dots(row.data(), mixed, i + 1);
                     for (std::int64_t p = 0; p < probes; ++p) {
                       residual(p, i) += sums[std::size_t(p)];
                       double* const wait = waiting.row(g * probes + p);
                       const double x = mixed(p, i);
                       for (std::int64_t j = 0; j < i; ++j) wait[j] += x * row[std::size_t(j)];
                     }
                   });
  });
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t p = 0; p < probes; ++p)
      for (std::int64_t j = 0; j < n; ++j) residual(p, j) += waiting(g * probes + p, j);
  by_strips(threads, k, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Sums sums = dots(v + i * n, mixed, n);
      for (std::int64_t p = 0; p < probes; ++p) signs(p, i) -= sums[std::size_t(p)];
    }
  });
  const auto norm = [](const Matrix<double>& x) {
    const double* const y = x.data();
    return std::sqrt(sum_of(x.rows() * x.columns(), [=](std::int64_t i) { return y[i] * y[i]; }) /
                     double(probes));
  };
  return {norm(residual), norm(signs)};
}

template void load_lower(const ArrayView&, int, float*, int);
template void load_lower(const ArrayView&, int, double*, int);
template void load_symmetric(const ArrayView&, int, float*, int);
template void load_symmetric(const ArrayView&, int, double*, int);
template EighCheck check_eigenpairs(const ArrayView&, int, std::int64_t, const float*, const float*,
                                    int);
template EighCheck check_eigenpairs(const ArrayView&, int, std::int64_t, const double*,
                                    const double*, int);

}  // namespace descramble_fast::cpu
