// Every build of the kernels against plain loops in double.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cpu/convert.hpp"
#include "cpu/covariance_kernels.hpp"

namespace descramble_fast {
namespace {

using cpu::strip;

// Numbers that every type holds: multiples of 1/8 up to 15, their sums of squares exact in float.
template <class T>
T number(int eighths);
template <>
float number(int eighths) {
  return float(eighths) / 8;
}
template <>
double number(int eighths) {
  return double(eighths) / 8;
}
template <>
BFloat16 number(int eighths) {
  return {std::uint16_t(std::bit_cast<std::uint32_t>(float(eighths) / 8) >> 16)};
}
template <>
Float16 number(int eighths) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(float(eighths) / 8);
  if (eighths == 0) return {0};
  return {std::uint16_t((bits >> 16 & 0x8000u) | ((bits >> 13 & 0x3ffffu) - (112u << 10)))};
}

template <class Packed>
struct Case {
  std::int64_t n;
  int count;
  bool weighted;
  std::vector<std::vector<double>> values;  // rows of what is read
  std::vector<Packed> reference, roots;
};

template <class Packed>
Case<Packed> random_case(std::int64_t n, int count, bool weighted, std::mt19937_64& engine) {
  std::uniform_int_distribution<int> eighths(-15, 15);
  Case<Packed> out{n, count, weighted, {}, {}, {}};
  const std::int64_t padded = (n + strip - 1) / strip * strip;
  for (std::int64_t j = 0; j < padded; ++j)
    out.reference.push_back(j < n ? number<Packed>(eighths(engine)) : Packed(0));
  for (int r = 0; r < count; ++r) {
    out.roots.push_back(Packed(1 + r % 3) / 2);
    out.values.emplace_back();
    for (std::int64_t j = 0; j < n; ++j) out.values.back().push_back(eighths(engine) / 8.0);
  }
  return out;
}

template <class Stored, class Packed>
void check_pack(void (*pack)(const cpu::PackTask&), const Case<Packed>& c) {
  const std::int64_t strips = (c.n + strip - 1) / strip, padded = strips * strip;
  const std::int64_t stride =
      strip * c.count + strip;  // a row to spare, which is not to be written
  std::vector<std::vector<Stored>> stored;
  std::vector<const void*> rows;
  for (const auto& values : c.values) {
    stored.emplace_back();
    for (const double x : values) stored.back().push_back(number<Stored>(int(8 * x)));
  }
  for (const auto& row : stored) rows.push_back(row.data());
  std::vector<Packed> packed(std::size_t(strips * stride), Packed(77));
  std::vector<double> sum(std::size_t(padded), 1), square(std::size_t(padded), 2),
      largest(std::size_t(padded), 0);
  std::vector<std::uint32_t> bits(std::size_t(padded), 0);
  pack({rows.data(), nullptr, c.count, c.n, c.reference.data(),
        c.weighted ? c.roots.data() : nullptr, packed.data(), stride, sum.data(), square.data(),
        bits.data(), largest.data()});
  for (std::int64_t j = 0; j < padded; ++j) {
    double expected_sum = 1, expected_square = 2, expected_largest = 0;
    bool any = false;
    for (int r = 0; r < c.count; ++r) {
      const double x = j < c.n ? c.values[std::size_t(r)][std::size_t(j)] : 0;
      const double root = c.weighted ? double(c.roots[std::size_t(r)]) : 1;
      const double y = (x - double(c.reference[std::size_t(j)])) * root;
      EXPECT_EQ(double(packed[std::size_t(j / strip * stride + r * strip + j % strip)]), y);
      expected_sum += root * y;
      expected_square += y * y;
      expected_largest = std::max(expected_largest, std::abs(x));
      any = any || y != 0;
    }
    EXPECT_EQ(sum[std::size_t(j)], expected_sum);
    EXPECT_EQ(square[std::size_t(j)], expected_square);
    if constexpr (sizeof(Packed) == 8)
      EXPECT_EQ(largest[std::size_t(j)], expected_largest);
    else
      EXPECT_EQ(bits[std::size_t(j)] != 0, any);
  }
  for (std::int64_t s = 0; s < strips; ++s)
    EXPECT_EQ(packed[std::size_t(s * stride + strip * c.count)], Packed(77));
}

template <class Test>
void for_each_variant(Test test) {
  const auto variants = cpu::covariance_variants(cpu::simd_levels().back());
  ASSERT_EQ(variants.size(), cpu::simd_levels().size());
  for (const auto& [level, kernels] : variants) {
    SCOPED_TRACE(cpu::name(level));
    test(*kernels);
  }
}

TEST(CovarianceKernels, PackRowsAboutAReference) {
  for_each_variant([](const cpu::CovarianceKernels& kernels) {
    std::mt19937_64 engine(1);
    for (const std::int64_t n : {1, 5, 31, 32, 33, 64, 100})
      for (const int count : {1, 2, 7, 16})
        for (const bool weighted : {false, true}) {
          const auto single = random_case<float>(n, count, weighted, engine);
          check_pack<float>(kernels.pack_float32, single);
          check_pack<BFloat16>(kernels.pack_bfloat16, single);
          check_pack<Float16>(kernels.pack_float16, single);
          check_pack<double>(kernels.pack_float64, random_case<double>(n, count, weighted, engine));
        }
  });
}

TEST(CovarianceKernels, ReadEveryFloat16) {
  for_each_variant([](const cpu::CovarianceKernels& kernels) {
    const std::vector<float> zero(1024, 0);
    std::vector<double> sum(1024), square(1024);
    std::vector<std::uint32_t> bits(1024);
    for (std::uint32_t first = 0; first < 1u << 16; first += 1024) {
      std::vector<Float16> row;
      for (std::uint32_t i = 0; i < 1024; ++i) row.push_back({std::uint16_t(first + i)});
      const void* const rows[] = {row.data()};
      std::vector<float> packed(1024);
      kernels.pack_float16({rows, rows, 1, 1024, zero.data(), nullptr, packed.data(), strip,
                            sum.data(), square.data(), bits.data(), nullptr});
      for (std::uint32_t i = 0; i < 1024; ++i) {
        const float expected = cpu::widen(row[i]);
        EXPECT_TRUE(packed[i] == expected || (std::isnan(packed[i]) && std::isnan(expected)))
            << first + i;
      }
    }
  });
}

// C += A^T B of small whole numbers, which every arithmetic sums without rounding.
template <class Element, class Make>
void check_multiply(void (*multiply)(const cpu::BlockTask&), int rows_in_element, Make make) {
  std::mt19937_64 engine(2);
  std::uniform_int_distribution<int> whole(-8, 8);
  for (const std::int64_t depth : {1, 3, 63, 64, 65, 200})
    for (const std::int64_t columns : {1, 8, 16, 17, 32})
      for (const bool diagonal : {false, true}) {
        SCOPED_TRACE(std::to_string(depth) + " x " + std::to_string(columns));
        std::vector<std::vector<double>> a, b;
        std::vector<Element> packed_a, packed_b;
        for (std::int64_t k = 0; k < depth; ++k) {
          std::vector<std::vector<double>> rows_a, rows_b;
          for (int r = 0; r < rows_in_element; ++r) {
            rows_a.emplace_back();
            rows_b.emplace_back();
            for (int j = 0; j < strip; ++j) {
              rows_b.back().push_back(j < columns ? whole(engine) : 0);
              rows_a.back().push_back(diagonal ? rows_b.back().back() : whole(engine));
            }
          }
          for (int j = 0; j < strip; ++j) {
            packed_a.push_back(make(rows_a, j));
            packed_b.push_back(make(rows_b, j));
          }
          a.insert(a.end(), rows_a.begin(), rows_a.end());
          b.insert(b.end(), rows_b.begin(), rows_b.end());
        }
        std::vector<double> c(strip * strip, 0.5);
        multiply({packed_a.data(), packed_b.data(), depth, columns, diagonal, c.data(),
                  packed_a.data()});
        for (int i = 0; i < strip; ++i)
          for (int j = diagonal ? i : 0; j < columns; ++j) {
            double expected = 0.5;
            for (std::size_t k = 0; k < a.size(); ++k)
              expected += a[k][std::size_t(i)] * b[k][std::size_t(j)];
            EXPECT_EQ(c[std::size_t(i * strip + j)], expected) << i << ", " << j;
          }
      }
}

TEST(CovarianceKernels, MultiplyStrips) {
  for_each_variant([](const cpu::CovarianceKernels& kernels) {
    using Rows = std::vector<std::vector<double>>;
    check_multiply<float>(kernels.multiply_float, 1,
                          [](const Rows& rows, int j) { return float(rows[0][std::size_t(j)]); });
    check_multiply<double>(kernels.multiply_double, 1,
                           [](const Rows& rows, int j) { return rows[0][std::size_t(j)]; });
    if (kernels.multiply_pairs == nullptr) return;
    check_multiply<std::uint32_t>(kernels.multiply_pairs, 2, [](const Rows& rows, int j) {
      const auto bits = [&](int r) {
        return std::bit_cast<std::uint32_t>(float(rows[std::size_t(r)][std::size_t(j)])) >> 16;
      };
      return bits(1) << 16 | bits(0);
    });
  });
}

TEST(CovarianceKernels, PairRowsOfBFloat16) {
  for_each_variant([](const cpu::CovarianceKernels& kernels) {
    if (kernels.pack_pairs == nullptr) return;
    std::mt19937_64 engine(3);
    for (const std::int64_t n : {1, 31, 32, 33, 100})
      for (const int count : {1, 2, 7, 16}) {
        const auto c = random_case<float>(n, count, false, engine);
        const std::int64_t strips = (n + strip - 1) / strip, stride = strip * ((count + 1) / 2);
        std::vector<std::vector<BFloat16>> stored;
        std::vector<const void*> rows;
        for (const auto& values : c.values) {
          stored.emplace_back();
          for (const double x : values) stored.back().push_back(number<BFloat16>(int(8 * x)));
        }
        for (const auto& row : stored) rows.push_back(row.data());
        std::vector<std::uint32_t> packed(std::size_t(strips * stride), 77u);
        std::vector<double> sum(std::size_t(strips * strip), 0), square = sum;
        std::vector<std::uint32_t> bits(std::size_t(strips * strip), 0);
        kernels.pack_pairs({rows.data(), nullptr, count, n, nullptr, nullptr, packed.data(), stride,
                            sum.data(), square.data(), bits.data(), nullptr});
        for (std::int64_t j = 0; j < strips * strip; ++j) {
          double expected_sum = 0, expected_square = 0;
          bool any = false;
          for (int r = 0; r < count + count % 2; ++r) {
            const double x = j < n && r < count ? c.values[std::size_t(r)][std::size_t(j)] : 0;
            const std::uint32_t pair =
                packed[std::size_t(j / strip * stride + r / 2 * strip + j % strip)];
            EXPECT_EQ(std::uint16_t(r % 2 == 0 ? pair : pair >> 16),
                      number<BFloat16>(int(8 * x)).bits);
            expected_sum += x;
            expected_square += x * x;
            any = any || x != 0;
          }
          EXPECT_EQ(sum[std::size_t(j)], expected_sum);
          EXPECT_EQ(square[std::size_t(j)], expected_square);
          EXPECT_EQ(bits[std::size_t(j)] != 0, any);
        }
      }
  });
}

}  // namespace
}  // namespace descramble_fast
