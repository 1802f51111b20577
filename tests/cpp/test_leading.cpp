#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "cpu/eigh.hpp"
#include "cpu/lapack.hpp"
#include "cpu/leading.hpp"
#include "cpu/leading_kernels.hpp"
#include "descramble_fast/eigh.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;

constexpr std::int64_t n = 1024;

// Q diag(spectrum) Q^T with Q a product of a few random reflections; the diagonal matrix for none.
Matrix<double> with_spectrum(std::span<const double> spectrum, int reflections = 8) {
  const std::int64_t size = std::int64_t(spectrum.size());
  Matrix<double> a(size, size, 0);
  for (std::int64_t i = 0; i < size; ++i) a(i, i) = spectrum[std::size_t(i)];
  for (int r = 0; r < reflections; ++r) {
    const Matrix<double> u = gaussian(1, size, unsigned(r + 1));
    double square = 0;
    for (const double x : u.values()) square += x * x;
    // A - p u^T - u p^T with p = 2 (A u - (u^T A u / u^T u) u) / u^T u
    std::vector<double> p(std::size_t(size), 0.0);
    double along = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      for (std::int64_t j = 0; j < size; ++j) p[std::size_t(i)] += a(i, j) * u(0, j);
      along += u(0, i) * p[std::size_t(i)];
    }
    for (std::int64_t i = 0; i < size; ++i)
      p[std::size_t(i)] = 2 * (p[std::size_t(i)] - along / square * u(0, i)) / square;
    for (std::int64_t i = 0; i < size; ++i)
      for (std::int64_t j = 0; j < size; ++j)
        a(i, j) -= p[std::size_t(i)] * u(0, j) + u(0, i) * p[std::size_t(j)];
  }
  return a;
}

std::vector<double> spectrum_of(double (*value)(std::int64_t)) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < n; ++i) out.push_back(value(i));
  return out;
}

template <class T>
struct Found {
  std::string failure;
  Matrix<T> w, v;
};

template <class T>
Found<T> leading(const Matrix<double>& a, std::int64_t k, int threads = 2) {
  Matrix<T> narrow(a.rows(), a.rows());
  for (std::size_t i = 0; i < a.values().size(); ++i) narrow.values()[i] = T(a.values()[i]);
  const int exponent = cpu::scale_of(narrow.view()).exponent;
  Found<T> out{{}, Matrix<T>(1, k), Matrix<T>(k, a.rows())};
  const double norm = cpu::frobenius_norm(narrow.view(), exponent);
  const cpu::SingleBlasThread guard;
  out.failure = cpu::leading_eigenpairs(narrow.view(), exponent, norm, k, threads, {}, out.w.data(),
                                        out.v.data());
  for (T& w : out.w.values()) w = std::ldexp(w, exponent);
  return out;
}

// The k largest of the spectrum, eigenvectors and orthogonality within 50 n eps.
template <class T>
void expect_leading(const Matrix<double>& a, std::vector<double> spectrum, const Found<T>& found) {
  ASSERT_EQ(found.failure, "");
  std::sort(spectrum.begin(), spectrum.end());
  const std::int64_t size = a.rows(), k = found.v.rows();
  const double norm = std::max(std::abs(spectrum.front()), std::abs(spectrum.back()));
  const double limit = 50 * double(size) * double(std::numeric_limits<T>::epsilon());
  double residual = 0, orthogonality = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    EXPECT_NEAR(double(found.w(0, i)), spectrum[std::size_t(size - k + i)], limit * norm);
    for (std::int64_t r = 0; r < size; ++r) {
      double sum = -double(found.w(0, i)) * double(found.v(i, r));
      for (std::int64_t c = 0; c < size; ++c) sum += a(r, c) * double(found.v(i, c));
      residual += sum * sum;
    }
    for (std::int64_t j = 0; j < k; ++j) {
      double sum = i == j ? -1 : 0;
      for (std::int64_t c = 0; c < size; ++c) sum += double(found.v(i, c)) * double(found.v(j, c));
      orthogonality += sum * sum;
    }
  }
  EXPECT_LE(std::sqrt(residual), limit * norm);
  EXPECT_LE(std::sqrt(orthogonality), limit);
}

struct Case {
  const char* name;
  double (*value)(std::int64_t);
};

class LeadingOfSpectrum : public ::testing::TestWithParam<Case> {};

TEST_P(LeadingOfSpectrum, IsFoundInBothPrecisions) {
  const std::vector<double> spectrum = spectrum_of(GetParam().value);
  for (const int reflections : {0, 8}) {
    const Matrix<double> a = with_spectrum(spectrum, reflections);
    for (const std::int64_t k : {1, 7, 32}) {
      ASSERT_TRUE(cpu::leading_may_pay(n, k));
      expect_leading(a, spectrum, leading<double>(a, k));
      expect_leading(a, spectrum, leading<float>(a, k));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Decaying, LeadingOfSpectrum,
    ::testing::Values(
        Case{"square", [](std::int64_t i) { return 1 / double((i + 1) * (i + 1)); }},
        Case{"zero", [](std::int64_t) { return 0.0; }},
        Case{"identity", [](std::int64_t) { return 1.0; }},
        Case{"minus_identity", [](std::int64_t) { return -1.0; }},
        Case{"rank_3", [](std::int64_t i) { return i < 3 ? 1.0 + double(i) : 0.0; }},
        Case{"projector_100", [](std::int64_t i) { return i < 100 ? 1.0 : 0.0; }},
        Case{"low_rank_below_zero", [](std::int64_t i) { return i < 5 ? -1.0 - double(i) : 0.0; }},
        Case{"large_negative",
             [](std::int64_t i) { return i == 0 ? -1e6 : 1 / double((i + 1) * (i + 1)); }},
        Case{"large", [](std::int64_t i) { return 1e30 / double((i + 1) * (i + 1)); }},
        Case{"small", [](std::int64_t i) { return 1e-30 / double((i + 1) * (i + 1)); }}),
    [](const auto& tested) { return tested.param.name; });

// More copies than a block has vectors: convergence alone would miss some of them.
TEST(Leading, CopiesBeyondABlockAreNotMissed) {
  const std::vector<double> spectrum =
      spectrum_of([](std::int64_t i) { return i < 12 ? 1.0 : 1e-3 / double((i - 11) * (i - 11)); });
  const Matrix<double> a = with_spectrum(spectrum);
  for (const std::int64_t k : {9, 13}) {
    const Found<double> found = leading<double>(a, k);
    if (found.failure.empty()) expect_leading(a, spectrum, found);
    const Eigh<double> solved = eigh<double>(a.view(), k, {.threads = 1, .poll = {}});
    for (std::int64_t i = 0; i < k; ++i)
      EXPECT_NEAR(solved.eigenvalues(0, i), spectrum[std::size_t(k - 1 - i)], 1e-11) << k;
  }
}

TEST(Leading, GivesUpOnAFlatSpectrumSoon) {
  const Matrix<double> a = with_spectrum(spectrum_of([](std::int64_t i) { return double(i); }));
  const Found<double> found = leading<double>(a, 32);
  EXPECT_NE(found.failure.find("too slow to pay"), std::string::npos) << found.failure;
}

TEST(Leading, SameBitsForEveryThreadCount) {
  const Matrix<double> a =
      with_spectrum(spectrum_of([](std::int64_t i) { return 1 / double((i + 1) * (i + 1)); }));
  const Found<double> one = leading<double>(a, 9, 1), many = leading<double>(a, 9, 3);
  EXPECT_TRUE(std::ranges::equal(one.v.values(), many.v.values()));
  EXPECT_TRUE(std::ranges::equal(one.w.values(), many.w.values()));
}

// The upper triangle is not read, whether the matrix is used where it lies or copied.
TEST(Leading, ReadsTheLowerTriangleOfAnyView) {
  const std::vector<double> spectrum =
      spectrum_of([](std::int64_t i) { return 1 / double((i + 1) * (i + 1)); });
  Matrix<double> a = with_spectrum(spectrum);
  Matrix<double> wide(n, 2 * n, std::nan(""));
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) wide(i, 2 * j) = a(i, j);
  const std::int64_t shape[] = {n, n}, strides[] = {2 * n, 2};
  const Eigh<double> strided =
      eigh<double>(ArrayView(wide.data(), DType::float64, shape, strides), 5);
  EXPECT_EQ(strided.route.driver, "dkrylov");
  for (std::int64_t i = 0; i < 5; ++i)
    EXPECT_NEAR(strided.eigenvalues(0, i), spectrum[std::size_t(4 - i)], 1e-12);
}

TEST(Leading, EighFallsBackWhereItWouldNotPay) {
  const std::vector<double> spectrum = spectrum_of([](std::int64_t i) { return double(i); });
  const Eigh<double> solved =
      eigh<double>(with_spectrum(spectrum).view(), 3, {.threads = 1, .poll = {}});
  EXPECT_EQ(solved.route.driver, "dsytrd");
  ASSERT_EQ(solved.route.fallbacks.size(), 1u);
  EXPECT_EQ(solved.route.fallbacks[0].rfind("dkrylov: too slow to pay", 0), 0u);
  for (std::int64_t i = 0; i < 3; ++i)
    EXPECT_NEAR(solved.eigenvalues(0, i), double(n - 3 + i), 1e-9);
}

template <class T>
void expect_products() {
  for (const auto& variant : cpu::leading_variants(cpu::simd_level()))
    for (const std::int64_t size : {1, 2, 7, 8, 9, 33, 70}) {
      const Matrix<double> g = gaussian(size, size, 3), x = gaussian(size, cpu::pass_width, 4);
      Matrix<T> a(size, size);
      for (std::size_t i = 0; i < g.values().size(); ++i) a.values()[i] = T(g.values()[i]);
      Matrix<double> w(size, cpu::pass_width, 0);
      std::vector<double> space(std::size_t(8 * size));
      cpu::LowerProduct<T> product;
      if constexpr (std::is_same_v<T, float>)
        product = variant.kernels->single;
      else
        product = variant.kernels->wide;
      const std::int64_t cut = size / 2;
      product(a.data(), size, 0, cut, x.data(), w.data(), space.data());
      product(a.data(), size, cut, size, x.data(), w.data(), space.data());
      for (std::int64_t i = 0; i < size; ++i)
        for (std::int64_t p = 0; p < cpu::pass_width; ++p) {
          double sum = 0;
          for (std::int64_t j = 0; j < size; ++j)
            sum += double(i < j ? a(j, i) : a(i, j)) * x(j, p);
          EXPECT_NEAR(w(i, p), sum, 1e-12) << size << " " << int(variant.level);
        }
    }
}

TEST(Leading, ProductsOfEveryInstructionSet) {
  expect_products<float>();
  expect_products<double>();
}

}  // namespace
}  // namespace descramble_fast
