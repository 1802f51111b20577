#include "cpu/eigh.hpp"

#include <algorithm>
#include <cmath>
#include <random>

#include "cpu/convert.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr std::int64_t probes = 4;

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

// Row-wise visit of the lower triangle as doubles.
template <class Visit>
void each_lower_row(const ArrayView& a, Visit visit) {
  const std::int64_t n = a.columns();
  std::vector<double> row(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    widen_row(a, i, row.data());
    visit(i, row.data());
  }
}

}  // namespace

Scaled scale_of(const ArrayView& a) {
  Scaled out;
  double largest = 0;
  each_lower_row(a, [&](std::int64_t i, const double* row) {
    double spoiled = 0;
    for (std::int64_t j = 0; j <= i; ++j) {
      spoiled += row[j] * 0.0;
      largest = std::max(largest, std::abs(row[j]));
    }
    if (spoiled != 0 && out.bad_row < 0) {
      out.bad_row = i;
      out.bad_column = std::find_if(row, row + i, [](double x) { return !std::isfinite(x); }) - row;
    }
  });
  if (out.bad_row < 0 && largest > 0) out.exponent = std::ilogb(largest);
  return out;
}

template <class T>
void load_lower(const ArrayView& a, int exponent, T* out) {
  const std::int64_t n = a.columns();
  const Downscale scaled(exponent);
  each_lower_row(a, [&](std::int64_t i, const double* row) {
    for (std::int64_t j = 0; j <= i; ++j) out[i * n + j] = T(scaled(row[j]));
    std::fill(out + i * n + i + 1, out + (i + 1) * n, T(0));
  });
}

double frobenius_norm(const ArrayView& a, int exponent) {
  double sum = 0;
  const Downscale scaled(exponent);
  each_lower_row(a, [&](std::int64_t i, const double* row) {
    double part = 0;
    for (std::int64_t j = 0; j < i; ++j) {
      const double x = scaled(row[j]);
      part += 2 * x * x;
    }
    const double x = scaled(row[i]);
    sum += part + x * x;
  });
  return std::sqrt(sum);
}

template <class T>
EighCheck check_eigenpairs(const ArrayView& a, int exponent, std::int64_t k, const T* w,
                           const T* v) {
  const std::int64_t n = a.columns();
  // signs (k, p); mixed = V s (n, p); wanted = V Lambda s (n, p).
  Matrix<double> signs(k, probes), mixed(n, probes, 0), residual(n, probes, 0);
  std::minstd_rand random(20230718u);
  for (double& s : signs.values()) s = (random() >> 8) & 1 ? 1 : -1;
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      const double x = double(v[i * n + j]), y = -x * double(w[i]);
      for (std::int64_t p = 0; p < probes; ++p) {
        mixed(j, p) += x * signs(i, p);
        residual(j, p) += y * signs(i, p);
      }
    }
  const Downscale scaled(exponent);
  each_lower_row(a, [&](std::int64_t i, const double* row) {
    double sum[probes] = {};
    for (std::int64_t j = 0; j <= i; ++j) {
      const double x = scaled(row[j]);
      for (std::int64_t p = 0; p < probes; ++p) {
        sum[p] += x * mixed(j, p);
        if (j < i) residual(j, p) += x * mixed(i, p);
      }
    }
    for (std::int64_t p = 0; p < probes; ++p) residual(i, p) += sum[p];
  });
  for (std::int64_t i = 0; i < k; ++i) {
    double sum[probes] = {};
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t p = 0; p < probes; ++p) sum[p] += double(v[i * n + j]) * mixed(j, p);
    for (std::int64_t p = 0; p < probes; ++p) signs(i, p) -= sum[p];
  }
  const auto norm = [](const Matrix<double>& x) {
    double sum = 0;
    for (const double y : x.values()) sum += y * y;
    return std::sqrt(sum / double(probes));
  };
  return {norm(residual), norm(signs)};
}

template void load_lower(const ArrayView&, int, float*);
template void load_lower(const ArrayView&, int, double*);
template EighCheck check_eigenpairs(const ArrayView&, int, std::int64_t, const float*,
                                    const float*);
template EighCheck check_eigenpairs(const ArrayView&, int, std::int64_t, const double*,
                                    const double*);

}  // namespace descramble_fast::cpu
