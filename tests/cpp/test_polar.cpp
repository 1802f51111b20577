#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/lapack.hpp"
#include "cpu/linalg.hpp"
#include "cpu/polar.hpp"
#include "descramble_fast/eigh.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;
using testing::identity;
using testing::largest_difference;
using testing::product;
using testing::transpose;

constexpr double epsilon = std::numeric_limits<double>::epsilon();

struct Svd {
  Matrix<double> u, vt;
  std::vector<double> s;
};

Svd lapack(const Matrix<double>& a) {
  const std::int64_t n = a.rows();
  Svd out{Matrix<double>(n, n), Matrix<double>(n, n), std::vector<double>(std::size_t(n))};
  Matrix<double> work = a.copy();
  const cpu::SingleBlasThread guard;
  if (cpu::gesdd(n, work.data(), out.s.data(), out.u.data(), out.vt.data()) != 0)
    throw std::runtime_error("dgesdd failed");
  return out;
}

Matrix<double> random_orthogonal(std::int64_t n, unsigned seed) {
  return lapack(gaussian(n, n, seed)).u;
}

// With the singular values given, and random directions.
Matrix<double> with_values(const std::vector<double>& s, unsigned seed) {
  const auto n = std::int64_t(s.size());
  Matrix<double> left = random_orthogonal(n, seed);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) left(i, j) *= s[std::size_t(j)];
  return product(left, random_orthogonal(n, seed + 1));
}

std::vector<double> values(std::int64_t n, const std::function<double(double)>& of) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < n; ++i) out.push_back(of(double(i) / double(n - 1)));
  return out;
}

struct Case {
  std::string name;
  Matrix<double> a;
};

// Small singular values whose directions do not spread.
std::vector<Case> lone_cases(std::int64_t n) {
  std::vector<Case> out;
  for (const double low : {3e-13, 6e-13, 1e-14}) {
    Matrix<double> a(n, n, 0.0);
    a(0, 0) = 1;
    const Matrix<double> q = random_orthogonal(n - 1, 10);
    for (std::int64_t i = 1; i < n; ++i)
      for (std::int64_t j = 1; j < n; ++j) {
        const double sign = std::popcount(std::uint64_t(i & j)) % 2 == 0 ? 1 : -1;
        a(i, j) = low * (low < 1e-13 ? sign : q(i - 1, j - 1));
      }
    out.push_back({"one beside " + std::to_string(std::log10(low)), std::move(a)});
  }
  return out;
}

std::vector<Case> cases(std::int64_t n) {
  const auto step = [n](double where, double high, double low) {
    return values(n, [=](double x) { return x < where ? high : low; });
  };
  const auto graded = [n](double decades) {
    return values(n, [=](double x) { return std::pow(10, -decades * x); });
  };
  const auto graded_then_null = [n](double decades) {
    return values(n, [=](double x) { return x < 0.5 ? std::pow(10, -2 * decades * x) : 0.0; });
  };
  std::vector<Case> out;
  const auto add = [&](const std::string& name, Matrix<double> a) {
    out.push_back({name, std::move(a)});
  };
  add("gaussian", gaussian(n, n, 1));
  for (const double decades : {2.0, 4.9, 5.1, 8.0, 12.0, 20.0, 200.0})
    add("graded by " + std::to_string(decades), with_values(graded(decades), 2));
  for (const double low : {1e-3, 1e-5, 1e-6, 1e-9, 1e-15, 0.0}) {
    add("half are " + std::to_string(std::log10(low)), with_values(step(0.5, 1, low), 3));
    add("all but one are " + std::to_string(std::log10(low)), with_values(step(1e-9, 1, low), 4));
    add("one is " + std::to_string(std::log10(low)), with_values(step(1 - 1e-9, 1, low), 5));
  }
  for (const double decades : {3.0, 4.9, 6.0})
    add("null beside " + std::to_string(decades), with_values(graded_then_null(decades), 6));
  Matrix<double> wide = gaussian(n, n, 7), shift(n, n, 0.0), skew(n, n), rows = gaussian(n, n, 8);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      if (j >= n / 3) wide(i, j) = 0;
      if (i >= n / 2) rows(i, j) *= std::pow(10, -300.0 * double(i) / double(n));
      shift(i, j) = j == i + 1;
      skew(i, j) = wide(i, j) - wide(j, i);
    }
  add("wide", std::move(wide));
  add("rows graded", std::move(rows));
  add("shift", std::move(shift));
  add("skew", std::move(skew));
  add("ones", Matrix<double>(n, n, 1.0));
  add("zero", Matrix<double>(n, n, 0.0));
  add("identity", identity(n));
  add("large", with_values(values(n, [](double x) { return 1e200 * (1 + x); }), 9));
  add("small", with_values(values(n, [](double x) { return 1e-280 * (1 + x); }), 9));
  return out;
}

TEST(Polar, IsTheNearestOrthogonalMatrix) {
  const Matrix<double> a = gaussian(30, 30, 5);
  const cpu::Polar polar = cpu::polar(a, {.threads = 2});
  EXPECT_EQ(polar.driver, "dgesdd");
  EXPECT_LE(cpu::orthogonality_error(polar.factor, 1), 1e-13);
  // Q^T A is symmetric positive semidefinite, its trace the nuclear norm.
  const Matrix<double> h = product(transpose(polar.factor), a);
  EXPECT_LE(largest_difference(h, transpose(h)), 1e-12);
  double trace = 0;
  for (std::int64_t i = 0; i < 30; ++i) trace += h(i, i);
  EXPECT_NEAR(trace, polar.nuclear_norm, 1e-11);
  EXPECT_GE(eigh<double>(h.view()).eigenvalues(0, 0), -1e-12);
}

TEST(Polar, IsTheIdentityOnSingularDirections) {
  EXPECT_LE(largest_difference(cpu::polar(Matrix<double>(6, 6, 0.0), {}).factor, identity(6)),
            1e-15);
  Matrix<double> half(4, 4, 0.0);
  half(0, 1) = 2;
  half(1, 0) = -3;
  Matrix<double> expected = identity(4);
  expected(0, 0) = expected(1, 1) = 0;
  expected(0, 1) = 1;
  expected(1, 0) = -1;
  EXPECT_LE(largest_difference(cpu::polar(half, {}).factor, expected), 1e-15);
}

void expect_found_by_gram(const Case& c) {
  const Matrix<double>& a = c.a;
  const std::int64_t n = a.rows();
  SCOPED_TRACE(c.name + ", n = " + std::to_string(n));
  const cpu::Polar polar = cpu::polar(a, {.threads = 2});
  EXPECT_EQ(polar.driver, "gram") << (polar.fallbacks.empty() ? "" : polar.fallbacks.front());
  const double unit = double(n) * epsilon;
  const Matrix<double> q = product(transpose(polar.factor), polar.factor);
  EXPECT_LE(largest_difference(q, identity(n)), 2 * unit);
  EXPECT_LE(polar.skewness.value_or(1), 5 * unit);
  // What is null to rounding may be turned as the identity wants it, at that cost.
  const Svd svd = lapack(a);
  const double rounding = 5 * unit * std::sqrt(double(n)) * svd.s.front();
  double nuclear = 0, null = 0, trace = 0;
  for (const double s : svd.s) (s > unit * svd.s.front() ? nuclear : null) += s;
  for (std::int64_t i = 0; i < n * n; ++i) trace += polar.factor.data()[i] * a.data()[i];
  EXPECT_LE(std::abs(polar.nuclear_norm - nuclear), 2 * null + rounding);
  EXPECT_LE(std::abs(trace - nuclear), 2 * null + rounding);
}

TEST(Polar, OfAnyConditionIsFoundWithoutASingularValueDecomposition) {
  for (const std::int64_t n : {128, 161})
    for (const Case& c : cases(n)) expect_found_by_gram(c);
  for (const Case& c : lone_cases(256)) expect_found_by_gram(c);
}

TEST(Polar, IsNearestToTheIdentityWhereverThereIsAChoice) {
  for (const std::int64_t n : {128, 161})
    for (const auto& [name, a] : cases(n)) {
      const Svd svd = lapack(a);
      const double tiny = double(n) * epsilon * svd.s.front();
      const auto rank =
          std::int64_t(std::ranges::count_if(svd.s, [&](double s) { return s > 1e3 * tiny; }));
      if (rank == n || svd.s[std::size_t(rank)] > tiny / 10) continue;
      SCOPED_TRACE(name + ", n = " + std::to_string(n));
      // Among all maps Q from V0 to U0, <U0 Q V0^T, I> = <Q, U0^T V0> is largest for the polar
      // factor of U0^T V0, where it is the sum of the singular values.
      const std::int64_t free = n - rank;
      Matrix<double> u0(n, free), v0(n, free);
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < free; ++j) {
          u0(i, j) = svd.u(i, rank + j);
          v0(i, j) = svd.vt(rank + j, i);
        }
      const Matrix<double> overlap = product(transpose(u0), v0);
      double most = 0, reached = 0;
      for (const double s : lapack(overlap).s) most += s;
      const Matrix<double> q =
          product(product(transpose(u0), cpu::polar(a, {.threads = 2}).factor), v0);
      for (std::int64_t i = 0; i < free * free; ++i) reached += q.data()[i] * overlap.data()[i];
      EXPECT_NEAR(reached, most, 1e-9 * double(free));
    }
}

TEST(Polar, IsTheSameForAnyNumberOfThreads) {
  const Matrix<double> a = with_values(values(300, [](double x) { return std::exp(-30 * x); }), 3);
  const Matrix<double> one = cpu::polar(a, {.threads = 1}).factor;
  EXPECT_EQ(largest_difference(one, cpu::polar(a, {.threads = 2}).factor), 0);
}

TEST(Polar, CanBeInterruptedAnywhere) {
  const Matrix<double> a = with_values(values(160, [](double x) { return std::exp(-30 * x); }), 3);
  struct Stop {};
  std::int64_t polls = 0;
  cpu::polar(a, {.threads = 2, .poll = [&] { ++polls; }});
  EXPECT_GE(polls, 4);
  for (std::int64_t last = 0; last < polls; ++last) {
    std::int64_t left = last;
    const auto poll = [&] {
      if (left-- == 0) throw Stop();
    };
    try {
      cpu::polar(a, {.threads = 2, .poll = poll});
    } catch (const Stop&) {
      continue;
    }
    EXPECT_GE(left, 0);  // fewer were asked this time
  }
}

}  // namespace
}  // namespace descramble_fast
