#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

#include "descramble_fast/view.hpp"

namespace descramble_fast::testing {

inline Matrix<double> gaussian(std::int64_t rows, std::int64_t columns, unsigned seed,
                               double mean = 0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal(mean, 1);
  Matrix<double> out(rows, columns);
  for (double& x : out.values()) x = normal(engine);
  return out;
}

inline Matrix<double> product(const Matrix<double>& a, const Matrix<double>& b) {
  Matrix<double> out(a.rows(), b.columns(), 0);
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t k = 0; k < a.columns(); ++k)
      for (std::int64_t j = 0; j < b.columns(); ++j) out(i, j) += a(i, k) * b(k, j);
  return out;
}

inline Matrix<double> transpose(const Matrix<double>& a) {
  Matrix<double> out(a.columns(), a.rows());
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j) out(j, i) = a(i, j);
  return out;
}

inline double largest_difference(const Matrix<double>& a, const Matrix<double>& b) {
  double largest = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j)
      largest = std::max(largest, std::abs(a(i, j) - b(i, j)));
  return largest;
}

inline Matrix<double> identity(std::int64_t n) {
  Matrix<double> out(n, n, 0);
  for (std::int64_t i = 0; i < n; ++i) out(i, i) = 1;
  return out;
}

}  // namespace descramble_fast::testing
