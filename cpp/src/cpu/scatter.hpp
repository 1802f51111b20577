#pragma once

#include <cstdint>
#include <span>

#include "cpu/aligned.hpp"
#include "cpu/covariance_kernels.hpp"

namespace descramble_fast::cpu {

/// Sums of products of columns, in blocks of `strip` columns: the upper triangle for one set of
/// columns, all products for two. The rows of a strip of columns stand one after another.
class Scatter {
 public:
  Scatter() = default;
  /// One set of n columns with itself.
  explicit Scatter(std::int64_t n);
  /// n_x columns with n_y others.
  Scatter(std::int64_t n_x, std::int64_t n_y);

  std::int64_t row_strips(std::int64_t strip_of_columns) const {
    return triangular_ ? strip_of_columns + 1 : row_strips_;
  }
  std::int64_t column_strips() const { return column_strips_; }
  bool triangular() const { return triangular_; }
  /// Where a row of a strip of columns stands among the values.
  std::int64_t offset(std::int64_t row, std::int64_t column_strip) const {
    const std::int64_t before =
        triangular_ ? column_strip * (column_strip + 1) / 2 : column_strip * row_strips_;
    return strip * (strip * before + row);
  }
  double* block(std::int64_t row_strip, std::int64_t column_strip) {
    return values_.data() + offset(strip * row_strip, column_strip);
  }
  /// i <= j where there is only a triangle.
  double& operator()(std::int64_t i, std::int64_t j) {
    return values_.data()[offset(i, j / strip) + j % strip];
  }
  double operator()(std::int64_t i, std::int64_t j) const {
    return values_.data()[offset(i, j / strip) + j % strip];
  }
  std::span<double> values() { return {values_.data(), std::size_t(values_.size())}; }
  std::span<const double> values() const { return {values_.data(), std::size_t(values_.size())}; }
  /// As large, its values anything.
  Scatter like() const;

 private:
  bool triangular_ = true;
  std::int64_t row_strips_ = 0, column_strips_ = 0;
  Aligned<double> values_;
};

/// Adds the terms, each as long as `to`, in their order.
void add_all(std::span<double> to, std::span<const double> terms, int threads);

/// Whether no entry of a + b + c u u^T, for scatters of one shape, exceeds `most`.
bool sums_within(double most, const Scatter& a, const Scatter& b, std::int64_t first_column,
                 double c, std::span<const double> u, int threads);

void copy_values(std::span<const double> from, std::span<double> to, int threads);

/// scatter += a u u^T - b v v^T; u and v by padded column, of which the right-hand set begins at
/// first_column.
void add_outer(Scatter& scatter, std::int64_t first_column, double a, std::span<const double> u,
               double b, std::span<const double> v, int threads);

}  // namespace descramble_fast::cpu
