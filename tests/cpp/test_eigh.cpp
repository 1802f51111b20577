#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cpu/eigh.hpp"
#include "cpu/lapack.hpp"
#include "cpu/linalg.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;
using testing::identity;
using testing::largest_difference;
using testing::product;
using testing::transpose;

Matrix<double> symmetric(std::int64_t n, unsigned seed) {
  const Matrix<double> g = gaussian(n, n, seed);
  Matrix<double> out(n, n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) out(i, j) = g(i, j) + g(j, i);
  return out;
}

// max |A v - w v| and max |V^T V - I| within 50 n eps, entry by entry and without the solver's own
// probes.
template <class T>
void expect_eigenpairs(const Matrix<double>& a, const Eigh<T>& solved, std::int64_t item = 0) {
  const std::int64_t n = a.rows(), k = solved.eigenvalues.columns();
  Matrix<double> v(k, n);
  double norm = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    norm = std::max(norm, std::abs(double(solved.eigenvalues(item, i))));
    for (std::int64_t j = 0; j < n; ++j) v(i, j) = double(solved.eigenvectors(item * k + i, j));
    if (i > 0) EXPECT_LE(solved.eigenvalues(item, i - 1), solved.eigenvalues(item, i));
  }
  const double limit = 50 * double(n) * double(std::numeric_limits<T>::epsilon());
  Matrix<double> scaled = v.copy();
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t j = 0; j < n; ++j) scaled(i, j) *= double(solved.eigenvalues(item, i));
  EXPECT_LE(largest_difference(product(v, a), scaled), limit * norm);
  EXPECT_LE(largest_difference(product(v, transpose(v)), identity(k)), limit);
}

TEST(Eigh, SolvesEverySizeInBothPrecisions) {
  for (const std::int64_t n : {1, 2, 3, 31, 32, 33, 80, 129}) {
    const Matrix<double> a = symmetric(n, unsigned(n));
    expect_eigenpairs(a, eigh<double>(a.view()));
    Matrix<float> narrow(n, n);
    for (std::int64_t i = 0; i < n * n; ++i) narrow.data()[i] = float(a.data()[i]);
    expect_eigenpairs(a, eigh<float>(narrow.view()));
  }
}

TEST(Eigh, LeadingPairsAreTheLargest) {
  const Matrix<double> a = symmetric(60, 1);
  const Eigh<double> all = eigh<double>(a.view()), some = eigh<double>(a.view(), 5);
  ASSERT_EQ(some.eigenvalues.columns(), 5);
  for (std::int64_t i = 0; i < 5; ++i)
    EXPECT_NEAR(some.eigenvalues(0, i), all.eigenvalues(0, 55 + i), 1e-11);
  expect_eigenpairs(a, some);
}

TEST(Eigh, ABatchIsSolvedItemByItem) {
  constexpr std::int64_t n = 12, batch = 40;
  Matrix<double> stack(batch * n, n);
  for (std::int64_t b = 0; b < batch; ++b) {
    const Matrix<double> a = symmetric(n, unsigned(b));
    std::copy_n(a.data(), n * n, stack.row(b * n));
  }
  const ArrayView view(stack.data(), {4, 10, n, n});
  const Eigh<double> serial = eigh<double>(view, {}, {.threads = 1, .poll = {}});
  const Eigh<double> threaded = eigh<double>(view, {}, {.threads = 4, .poll = {}});
  for (std::int64_t b = 0; b < batch; ++b) expect_eigenpairs(symmetric(n, unsigned(b)), serial, b);
  EXPECT_EQ(largest_difference(serial.eigenvectors, threaded.eigenvectors), 0);
  EXPECT_EQ(largest_difference(serial.eigenvalues, threaded.eigenvalues), 0);
}

TEST(Eigh, OrdinarySpectraThatBreakSolvers) {
  Matrix<double> rank_one(40, 40);
  for (std::int64_t i = 0; i < 40; ++i)
    for (std::int64_t j = 0; j < 40; ++j) rank_one(i, j) = double((i + 1) * (j + 1));
  for (const Matrix<double>& a :
       {identity(40), Matrix<double>(40, 40, 0.0), Matrix<double>(40, 40, 1.0), rank_one.copy()})
    expect_eigenpairs(a, eigh<double>(a.view()));
}

TEST(Eigh, ScalesOfAnyMagnitude) {
  for (const double scale : {1e300, 1e-300, 4.9e-324, 0x1p-1060}) {
    Matrix<double> a(2, 2, scale);
    const Eigh<double> solved = eigh<double>(a.view());
    EXPECT_NEAR(solved.eigenvalues(0, 1) / scale, 2, 1e-14) << scale;
    EXPECT_LE(std::abs(solved.eigenvalues(0, 0)), scale * 1e-15) << scale;
  }
}

TEST(Eigh, AnEigenvalueBeyondTheTypeIsAnError) {
  const Matrix<float> a(3, 3, 3.4e38f);
  EXPECT_THROW(eigh<float>(a.view()), InvalidArgument);
  EXPECT_NEAR(eigh<double>(a.view()).eigenvalues(0, 2), 3 * double(3.4e38f), 1e25);
}

TEST(Eigh, OnlyTheLowerTriangleIsRead) {
  Matrix<double> a = symmetric(9, 3);
  const Eigh<double> expected = eigh<double>(a.view());
  for (std::int64_t i = 0; i < 9; ++i)
    for (std::int64_t j = i + 1; j < 9; ++j) a(i, j) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(largest_difference(eigh<double>(a.view()).eigenvectors, expected.eigenvectors), 0);
}

TEST(Eigh, NanIsNamedByMatrixRowAndColumn) {
  Matrix<double> stack(6, 3, 0.0);
  stack(5, 1) = std::numeric_limits<double>::quiet_NaN();
  try {
    eigh<double>(ArrayView(stack.data(), {2, 3, 3}));
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("row 2, column 1 of matrix 1"), std::string::npos);
  }
}

TEST(Eigh, BadArgumentsAreRefused) {
  const Matrix<double> a = symmetric(3, 1), flat = gaussian(2, 3, 1);
  EXPECT_THROW(eigh<double>(flat.view()), InvalidArgument);
  EXPECT_THROW(eigh<double>(a.view(), 0), InvalidArgument);
  EXPECT_THROW(eigh<double>(a.view(), 4), InvalidArgument);
  EXPECT_THROW(eigh<float>(a.view()), TypeError);
}

TEST(Eigh, TheSelfCheckSeesASpoiltPair) {
  const Matrix<double> a = symmetric(50, 7);
  Eigh<double> solved = eigh<double>(a.view());
  const auto check = [&] {
    return cpu::check_eigenpairs(a.view(), 0, 50, solved.eigenvalues.data(),
                                 solved.eigenvectors.data());
  };
  const double limit = 50 * 50 * std::numeric_limits<double>::epsilon();
  EXPECT_LE(check().residual, limit * 30);
  EXPECT_LE(check().orthogonality_error, limit);
  solved.eigenvalues(0, 20) += 1e-6;
  EXPECT_GT(check().residual, 5e-7);
  solved.eigenvectors(20, 3) += 1e-6;
  EXPECT_GT(check().orthogonality_error, 5e-7);
}

TEST(Lapack, WorkspaceLengthsOutgrow32BitsAndAreNotAskedFor) {
  EXPECT_GT(cpu::Lapack<double>::syevd_workspace(32767), std::int64_t(1) << 31);
  EXPECT_EQ(cpu::fits_lapack(cpu::Lapack<double>::syevd_workspace(32767)),
            sizeof(cpu::lapack_int) == 8);
}

TEST(Polar, IsTheNearestOrthogonalMatrix) {
  const Matrix<double> a = gaussian(30, 30, 5);
  const cpu::Polar polar = cpu::polar(a, 2);
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
  EXPECT_LE(largest_difference(cpu::polar(Matrix<double>(6, 6, 0.0), 1).factor, identity(6)),
            1e-15);
  Matrix<double> half(4, 4, 0.0);
  half(0, 1) = 2;
  half(1, 0) = -3;
  Matrix<double> expected = identity(4);
  expected(0, 0) = expected(1, 1) = 0;
  expected(0, 1) = 1;
  expected(1, 0) = -1;
  EXPECT_LE(largest_difference(cpu::polar(half, 1).factor, expected), 1e-15);
}

}  // namespace
}  // namespace descramble_fast
