#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/convert.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {
namespace {

TEST(ArrayView, RowsRunOverAllAxesButTheLast) {
  std::vector<float> data(2 * 3 * 4);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = float(i);
  const ArrayView a(data.data(), {2, 3, 4});
  EXPECT_EQ(a.rows(), 6);
  EXPECT_EQ(a.columns(), 4);
  std::vector<double> row(4);
  for (std::int64_t r = 0; r < a.rows(); ++r) {
    cpu::widen_row(a, r, row.data());
    for (std::int64_t c = 0; c < 4; ++c) EXPECT_EQ(row[std::size_t(c)], double(r * 4 + c));
  }
}

TEST(ArrayView, StridesMayBeNegativeOrZero) {
  const double data[] = {0, 1, 2, 3, 4, 5};
  const std::int64_t shape[] = {2, 3}, reversed[] = {-3, -1}, repeated[] = {0, 1};
  std::vector<double> row(3);
  cpu::widen_row(ArrayView(data + 5, DType::float64, shape, reversed), 0, row.data());
  EXPECT_EQ(row, (std::vector<double>{5, 4, 3}));
  cpu::widen_row(ArrayView(data, DType::float64, shape, repeated), 1, row.data());
  EXPECT_EQ(row, (std::vector<double>{0, 1, 2}));
}

TEST(ArrayView, StridesOfNothingAreNotSteppedAlong) {
  const std::int64_t shape[] = {3, 0}, strides[] = {std::numeric_limits<std::int64_t>::min(), 7};
  const ArrayView nothing(nullptr, DType::float64, shape, strides);
  EXPECT_EQ(nothing.rows(), 3);
  EXPECT_EQ(nothing.row(2), nullptr);
}

TEST(ArrayView, ImpossibleShapesAreRefused) {
  const std::int64_t nine[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_THROW(ArrayView(nullptr, DType::float32, nine), InvalidArgument);
  const std::int64_t negative[] = {2, -1};
  EXPECT_THROW(ArrayView(nullptr, DType::float32, negative), InvalidArgument);
  const std::int64_t huge[] = {std::int64_t(1) << 40, std::int64_t(1) << 40};
  EXPECT_THROW(ArrayView(nullptr, DType::float32, huge), InvalidArgument);
  // Empty, but its strides would not be numbers.
  const std::int64_t empty[] = {0, std::int64_t(1) << 40, std::int64_t(1) << 40};
  EXPECT_THROW(ArrayView(nullptr, DType::float32, empty), InvalidArgument);
}

TEST(Convert, EveryFloat16IsWidenedExactly) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const int sign = bits & 0x8000u ? -1 : 1, exponent = int(bits >> 10 & 31u);
    const int fraction = int(bits & 1023u);
    const float got = cpu::widen(Float16{std::uint16_t(bits)});
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(got), fraction != 0);
      if (fraction == 0) EXPECT_EQ(got, sign * std::numeric_limits<float>::infinity());
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(double(got), sign * magnitude);
      EXPECT_EQ(std::signbit(got), sign < 0);
    }
  }
}

TEST(Convert, EveryBFloat16IsTheUpperHalfOfAFloat) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(cpu::widen(BFloat16{std::uint16_t(bits)})), bits << 16);
}

}  // namespace
}  // namespace descramble_fast
