#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../cpp/random.hpp"
#include "cpu/operators.hpp"
#include "descramble_fast/operators.hpp"
#include "device.hpp"
#include "device_memory.hpp"
#include "operators.hpp"

namespace descramble_fast::cuda::testing {

using descramble_fast::testing::gaussian;
using descramble_fast::testing::product;
using descramble_fast::testing::transpose;

inline constexpr double epsilon = std::numeric_limits<double>::epsilon();
/// As little as a call can do with: 64 modes or rows at a time.
inline constexpr Room narrow{1, 1, 1};

inline Operator random_operator(std::int64_t n) {
  const Matrix<double> g = gaussian(n, n + 1, 5);
  return Operator::from_matrix(product(g, transpose(g)).view());
}

/// Every kind of axis alone, and in products; even and odd sizes, more than 64 modes on an axis.
inline std::vector<Operator> operators() {
  std::vector<Operator> out;
  for (const std::int64_t n : {1, 2, 3, 8, 17, 96}) {
    out.push_back(Operator::fourier(n));
    out.push_back(Operator::fourier(n, 1));
    out.push_back(Operator::difference(n, 1, Boundary::path));
    out.push_back(Operator::difference(n, 2, Boundary::periodic));
    out.push_back(Operator::central_difference(n));
    out.push_back(random_operator(n));
  }
  const Operator path = Operator::difference(3, 1, Boundary::path);
  const Operator tiny = Operator::grid({Operator::fourier(2), path});
  out.push_back(Operator::grid({Operator::fourier(5)}));
  out.push_back(Operator::grid({Operator::fourier(6, 1), Operator::central_difference(4)}));
  out.push_back(Operator::grid({path, Operator::fourier(4), random_operator(5)}));
  out.push_back(Operator::grid({tiny, Operator::fourier(5), tiny}));
  out.push_back(Operator::grid({Operator::fourier(70), path}));
  out.push_back(Operator::grid({path, Operator::difference(1, 1, Boundary::path),
                                Operator::difference(67, 2, Boundary::path)}));
  return out;
}

inline double largest(const Matrix<double>& a) {
  double out = 0;
  for (const double x : a.values()) out = std::max(out, std::abs(x));
  return out;
}

inline void expect_near(const std::vector<double>& found, const Matrix<double>& expected,
                        double tolerance) {
  ASSERT_EQ(found.size(), expected.values().size());
  double difference = 0;
  for (std::size_t i = 0; i < found.size(); ++i)
    difference = std::max(difference, std::abs(found[i] - expected.values()[i]));
  EXPECT_LE(difference, tolerance);
  EXPECT_TRUE(std::ranges::all_of(found, [](double x) { return std::isfinite(x); }));
}

inline DeviceArray<double> upload(const Matrix<double>& a) {
  return {a.data(), a.rows() * a.columns()};
}

/// Numbers that float16 holds, and their bits.
inline std::vector<Float16> halves(std::size_t count) {
  std::vector<Float16> out;
  for (std::size_t i = 0; i < count; ++i) {
    const float x = 1 + float((i * 37) % 101) / 128;  // in [1, 2): ten bits of fraction
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    out.push_back({std::uint16_t((i % 3 == 0 ? 0x8000 : 0) | 15 << 10 | (bits >> 13 & 0x3ff))});
  }
  return out;
}

}  // namespace descramble_fast::cuda::testing
