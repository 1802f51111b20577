#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/divide.hpp"
#include "cpu/lapack.hpp"
#include "cpu/secular_kernels.hpp"
#include "descramble_fast/view.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;

struct Tridiagonal {
  const char* name;
  double (*diagonal)(std::int64_t i);
  double (*beside)(std::int64_t i);
};

class DivideAndConquer : public ::testing::TestWithParam<Tridiagonal> {};

template <class T>
void expect_eigenpairs(const Tridiagonal& tested, std::int64_t n) {
  std::vector<T> d, e;
  double norm = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    d.push_back(T(tested.diagonal(i)));
    e.push_back(T(tested.beside(i)));
    norm = std::max(norm, std::abs(double(d.back())) + 2 * std::abs(double(e.back())));
  }
  std::vector<T> w = d, lost = e;
  Matrix<T> z(n, n);
  {
    const cpu::SingleBlasThread guard;
    ASSERT_EQ(cpu::divide_and_conquer(n, n, w.data(), lost.data(), z.data(), 2, {}), 0);
  }
  double residual = 0, orthogonality = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (i > 0) EXPECT_LE(w[std::size_t(i - 1)], w[std::size_t(i)]);
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = (double(d[std::size_t(j)]) - double(w[std::size_t(i)])) * double(z(i, j));
      if (j > 0) sum += double(e[std::size_t(j - 1)]) * double(z(i, j - 1));
      if (j + 1 < n) sum += double(e[std::size_t(j)]) * double(z(i, j + 1));
      residual = std::max(residual, std::abs(sum));
      double product = i == j ? -1 : 0;
      for (std::int64_t q = 0; q < n; ++q) product += double(z(i, q)) * double(z(j, q));
      orthogonality = std::max(orthogonality, std::abs(product));
    }
  }
  const double eps = double(std::numeric_limits<T>::epsilon());
  EXPECT_LE(residual, 20 * eps * norm) << n;
  EXPECT_LE(orthogonality, 40 * eps) << n;
}

TEST_P(DivideAndConquer, GivesOrthonormalEigenvectors) {
  for (const std::int64_t n : {1, 2, 64, 65, 130, 257}) {
    expect_eigenpairs<double>(GetParam(), n);
    expect_eigenpairs<float>(GetParam(), n);
  }
}

const auto one = [](std::int64_t) { return 1.0; };
const auto none = [](std::int64_t) { return 0.0; };

INSTANTIATE_TEST_SUITE_P(
    Spectra, DivideAndConquer,
    ::testing::Values(
        Tridiagonal{"path", [](std::int64_t) { return 2.0; }, [](std::int64_t) { return -1.0; }},
        Tridiagonal{"zero", none, none}, Tridiagonal{"identity", one, none},
        Tridiagonal{"distinct", [](std::int64_t i) { return double(i % 50); }, none},
        Tridiagonal{"weak_ties", [](std::int64_t i) { return double(i % 5); },
                    [](std::int64_t) { return 1e-9; }},
        // Wilkinson's matrices, glued: many clusters of pairs.
        Tridiagonal{"glued", [](std::int64_t i) { return std::abs(double(i % 21) - 10); },
                    [](std::int64_t i) { return i % 21 == 20 ? 1e-8 : 1.0; }},
        Tridiagonal{"graded", [](std::int64_t i) { return std::exp(-0.3 * double(i)); },
                    [](std::int64_t i) { return std::exp(-0.3 * double(i) - 1); }},
        Tridiagonal{"mixed_signs", [](std::int64_t i) { return std::sin(double(3 * i)); },
                    [](std::int64_t i) { return std::cos(double(7 * i)); }}),
    [](const auto& tested) { return tested.param.name; });

TEST(SecularKernels, AgreeWithPlainSums) {
  constexpr std::int64_t k = 29;
  std::vector<double> d, origins, taus, z;
  const Matrix<double> g = gaussian(2, k, 5);
  for (std::int64_t j = 0; j < k; ++j) {
    d.push_back(double(j) + 0.2 * std::tanh(g(0, j)));
    z.push_back(g(1, j));
  }
  for (std::int64_t j = 0; j < k; ++j) {
    origins.push_back(d[std::size_t(j)]);
    taus.push_back(0.1);
  }
  for (const auto& variant : cpu::secular_variants(cpu::simd_level())) {
    const cpu::SecularKernels& kernels = *variant.kernels;
    for (std::int64_t begin = 0; begin < k; begin += 5) {
      double value = 0, slope = 0;
      for (std::int64_t j = begin; j < k; ++j) {
        const double gap = d[std::size_t(j)] - d[3] - 0.1;
        value += z[std::size_t(j)] / gap;
        slope += z[std::size_t(j)] / gap / gap;
      }
      const auto sums = kernels.sums(d.data(), z.data(), begin, k, d[3], 0.1);
      EXPECT_NEAR(sums.value, value, 1e-12 * std::abs(slope));
      EXPECT_NEAR(sums.slope, slope, 1e-12 * std::abs(slope));
    }
    for (std::int64_t j = 0; j < k; ++j) {
      double product = 0.1;
      for (std::int64_t i = 0; i < k; ++i)
        if (i != j)
          product *= (d[std::size_t(i)] + 0.1 - d[std::size_t(j)]) /
                     (d[std::size_t(i)] - d[std::size_t(j)]);
      EXPECT_NEAR(kernels.weight(d.data(), origins.data(), taus.data(), k, j) / product, 1, 1e-12);
    }
    std::vector<double> out(k);
    double squares = 0;
    const double sum = kernels.vector(d.data(), z.data(), k, d[3], 0.1, out.data());
    for (std::int64_t j = 0; j < k; ++j) {
      const double entry = z[std::size_t(j)] / (d[std::size_t(j)] - d[3] - 0.1);
      EXPECT_NEAR(out[std::size_t(j)] / entry, 1, 1e-12);
      squares += entry * entry;
    }
    EXPECT_NEAR(sum / squares, 1, 1e-12);
  }
}

}  // namespace
}  // namespace descramble_fast
