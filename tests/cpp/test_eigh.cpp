#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/divide.hpp"
#include "cpu/eigh.hpp"
#include "cpu/eigh_batch.hpp"
#include "cpu/lapack.hpp"
#include "cpu/linalg.hpp"
#include "cpu/tridiagonal.hpp"
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

// ---- several matrices at once

// Matrices of many kinds, so that neighbouring lanes have nothing in common.
template <class T>
Matrix<T> assorted(std::int64_t n, std::int64_t batch) {
  Matrix<T> out(batch * n, n);
  const double tiny = std::is_same_v<T, float> ? 1e-37 : 1e-305;
  for (std::int64_t b = 0; b < batch; ++b) {
    const Matrix<double> a = symmetric(n, unsigned(b));
    const double scale = b % 3 == 0 ? 1 : b % 3 == 1 ? tiny : 1 / tiny / 1e3;
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        const auto entry = [&]() -> double {
          switch (b % 11) {
            case 1:
              return 0;
            case 2:
              return 1;
            case 3:
              return i == j;
            case 4:
              return double((i + 1) * (j + 1)) / double(n * n);
            case 5:
              return a(i, j) * std::pow(10.0, -double(i + j) * 30 / double(n));
            case 6:
              return i == j ? 2 : std::abs(i - j) == 1 ? -1 : 0;
            case 7:
              return i + j == n - 1;
            case 8:
              return i / 3 == j / 3 ? -0.5 : 0;
            case 9:
              return i == j ? double((7 * i) % n) : 0;
            default:
              return a(i, j) / 4;
          }
        };
        out(b * n + i, j) = T(entry() * (b < 22 ? 1 : scale));
      }
  }
  return out;
}

template <class T>
struct InLanes {
  Matrix<T> w, v;
  std::vector<double> residual, orthogonality_error;
  std::vector<cpu::LaneStatus> status;
};

template <class T>
InLanes<T> in_lanes(const cpu::EighBatchKernels& kernels, const ArrayView& a, std::int64_t k,
                    std::int64_t width = 64) {
  const std::int64_t n = a.columns(), batch = a.rows() / n;
  InLanes<T> out{Matrix<T>(batch, k), Matrix<T>(batch * k, n), std::vector<double>(batch),
                 std::vector<double>(batch), std::vector<cpu::LaneStatus>(batch)};
  cpu::eigh_in_lanes<T>(kernels, a, 0, batch, k, width,
                        {out.w.data(), out.v.data(), out.residual.data(),
                         out.orthogonality_error.data(), out.status.data()});
  return out;
}

struct Errors {
  double residual, orthogonality, norm;
};

// Frobenius norms of A V - V Lambda and V^T V - I, in double precision, and the norm of A.
template <class T>
Errors true_errors(const T* a, std::int64_t n, std::int64_t k, const T* w, const T* v) {
  double largest = 0, size = 0, residual = 0, orthogonality = 0;
  for (std::int64_t i = 0; i < n * n; ++i) largest = std::max(largest, std::abs(double(a[i])));
  const double scale = largest > 0 ? largest : 1;
  for (std::int64_t i = 0; i < n * n; ++i) size += double(a[i]) / scale * (double(a[i]) / scale);
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      double r = -double(w[i]) / scale * double(v[i * n + j]), o = 0;
      for (std::int64_t p = 0; p < n; ++p)
        r += double(a[std::max(j, p) * n + std::min(j, p)]) / scale * double(v[i * n + p]);
      residual += r * r;
      if (j >= k) continue;
      for (std::int64_t p = 0; p < n; ++p) o += double(v[i * n + p]) * double(v[j * n + p]);
      orthogonality += (o - (i == j)) * (o - (i == j));
    }
  double norm = std::sqrt(size / double(n));
  for (std::int64_t i = 0; i < k; ++i) norm = std::max(norm, std::abs(double(w[i])) / scale);
  return {std::sqrt(residual) * scale, std::sqrt(orthogonality), norm * scale};
}

template <class T>
void check_lanes(const cpu::EighBatchKernels& kernels, std::int64_t n, std::int64_t k) {
  SCOPED_TRACE("n = " + std::to_string(n) + ", k = " + std::to_string(k));
  const std::int64_t batch = n < 12 ? 67 : n < 40 ? 35 : 13;
  const Matrix<T> a = assorted<T>(n, batch);
  const InLanes<T> out = in_lanes<T>(kernels, ArrayView(a.data(), {batch, n, n}), k);
  const double limit = 50 * double(n) * double(std::numeric_limits<T>::epsilon());
  for (std::int64_t b = 0; b < batch; ++b) {
    SCOPED_TRACE("matrix " + std::to_string(b));
    ASSERT_EQ(int(out.status[std::size_t(b)]), int(cpu::LaneStatus::solved));
    const Errors errors = true_errors(a.row(b * n), n, k, out.w.row(b), out.v.row(b * k));
    EXPECT_LE(errors.residual, limit * errors.norm);
    EXPECT_LE(errors.orthogonality, limit);
    EXPECT_TRUE(std::is_sorted(out.w.row(b), out.w.row(b) + k));
    // The trace tells that no pair is missing.
    if (k < n) continue;
    double trace = 0, sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      trace += double(a(b * n + i, i));
      sum += double(out.w(b, i));
    }
    EXPECT_LE(std::abs(trace - sum), limit * errors.norm);
  }
}

TEST(EighInLanes, EveryVariantSolvesEverySize) {
  for (const auto& [level, kernels] : cpu::eigh_batch_variants(cpu::simd_levels().back())) {
    SCOPED_TRACE(cpu::name(level));
    for (const std::int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 20, 21, 31, 32, 33}) {
      check_lanes<float>(*kernels, n, n);
      check_lanes<double>(*kernels, n, n);
      if (HasFailure()) return;
    }
    for (const std::int64_t n : {42, 65, 83}) {
      check_lanes<float>(*kernels, n, n);
      check_lanes<double>(*kernels, n, n);
    }
    for (const std::int64_t k : {1, 2, 7, 19}) {
      check_lanes<float>(*kernels, 20, k);
      check_lanes<double>(*kernels, 20, k);
    }
  }
}

template <class T>
void check_bits(const cpu::EighBatchKernels& kernels, std::int64_t n) {
  const std::int64_t batch = 37;
  const Matrix<T> a = assorted<T>(n, batch);
  const InLanes<T> together = in_lanes<T>(kernels, ArrayView(a.data(), {batch, n, n}), n);
  const auto same = [&](const InLanes<T>& other, std::int64_t at, std::int64_t b) {
    return std::memcmp(together.w.row(b), other.w.row(at), sizeof(T) * n) == 0 &&
           std::memcmp(together.v.row(b * n), other.v.row(at * n), sizeof(T) * n * n) == 0 &&
           together.residual[b] == other.residual[at] &&
           together.orthogonality_error[b] == other.orthogonality_error[at];
  };
  for (const std::int64_t width : {1, 3, 8}) {
    const InLanes<T> narrow = in_lanes<T>(kernels, ArrayView(a.data(), {batch, n, n}), n, width);
    for (std::int64_t b = 0; b < batch; ++b)
      EXPECT_TRUE(same(narrow, b, b)) << "n = " << n << ", width " << width << ", matrix " << b;
  }
  Matrix<T> turned(batch * n, n);
  for (std::int64_t b = 0; b < batch; ++b)
    std::copy_n(a.row(b * n), n * n, turned.row((batch - 1 - b) * n));
  const InLanes<T> reversed = in_lanes<T>(kernels, ArrayView(turned.data(), {batch, n, n}), n);
  for (std::int64_t b = 0; b < batch; ++b)
    EXPECT_TRUE(same(reversed, batch - 1 - b, b)) << "n = " << n << ", matrix " << b;
}

TEST(EighInLanes, TheBitsOfAMatrixDoNotDependOnItsNeighbours) {
  for (const auto& [level, kernels] : cpu::eigh_batch_variants(cpu::simd_levels().back())) {
    SCOPED_TRACE(cpu::name(level));
    for (const std::int64_t n : {1, 2, 3, 5, 8, 11, 16, 17, 30, 65}) {
      check_bits<float>(*kernels, n);
      check_bits<double>(*kernels, n);
    }
  }
}

// One solve with as many sweeps a row; returns the reported errors beside the true ones.
template <class T>
void check_the_check(const cpu::LaneSolver<T>& solver, std::int64_t n, std::int64_t sweeps) {
  const std::size_t lanes = std::size_t(solver.lanes);
  std::vector<Matrix<T>> a, v;
  std::vector<T> w(lanes * n), residual(lanes), orthogonality(lanes), probes;
  std::vector<const T*> sources;
  std::vector<T*> values, vectors;
  std::vector<cpu::LaneStatus> status(lanes);
  std::vector<int> exponent(lanes);
  for (std::size_t l = 0; l < lanes; ++l) {
    const Matrix<double> wide = symmetric(n, unsigned(100 + l));
    a.emplace_back(n, n);
    v.emplace_back(n, n);
    for (std::int64_t i = 0; i < n * n; ++i) a[l].data()[i] = T(wide.data()[i]);
  }
  for (std::size_t l = 0; l < lanes; ++l) {
    sources.push_back(a[l].data());
    values.push_back(w.data() + l * n);
    vectors.push_back(v[l].data());
  }
  for (std::int64_t i = 0; i < n; ++i) {
    probes.push_back(T(std::sqrt(2.0) * std::cos(double(i * i))));
    probes.push_back(T(std::sqrt(2.0) * std::sin(double(i * i))));
  }
  std::vector<std::byte> work(std::size_t(solver.workspace(n)) + 64);
  void* aligned = work.data();
  std::size_t space = work.size();
  std::align(64, space - 64, aligned, space);
  solver.solve({n, n, solver.lanes, sources.data(), values.data(), vectors.data(), probes.data(),
                sweeps, aligned, status.data(), residual.data(), orthogonality.data(),
                exponent.data()});
  for (std::size_t l = 0; l < lanes; ++l) {
    const Errors errors = true_errors(a[l].data(), n, n, values[l], vectors[l]);
    const double reported = std::ldexp(double(residual[l]), exponent[l]);
    EXPECT_GE(reported, errors.residual / 4);
    EXPECT_LE(reported, errors.residual * 4);
    EXPECT_GE(double(orthogonality[l]), errors.orthogonality / 4);
    EXPECT_LE(double(orthogonality[l]), errors.orthogonality * 4);
    EXPECT_EQ(int(status[l]),
              int(sweeps == 0 ? cpu::LaneStatus::not_converged : cpu::LaneStatus::solved));
    if (sweeps == 0) EXPECT_GE(reported, 0.1 * errors.norm);
  }
}

TEST(EighInLanes, ReportedErrorsAreTheTrueOnesOfGoodAndBadSolutions) {
  for (const auto& [level, kernels] : cpu::eigh_batch_variants(cpu::simd_levels().back())) {
    SCOPED_TRACE(cpu::name(level));
    for (const std::int64_t sweeps : {0, 30}) {
      for (const auto& solver : kernels->single.widths)
        if (solver.lanes > 0) check_the_check(solver, 40, sweeps);
      for (const auto& solver : kernels->wide.widths)
        if (solver.lanes > 0) check_the_check(solver, 40, sweeps);
    }
  }
}

TEST(EighInLanes, ABadMatrixSpoilsNoneBesideIt) {
  constexpr std::int64_t n = 6, batch = 19;
  Matrix<float> a = assorted<float>(n, batch);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  a(4 * n + 2, 1) = nan;
  a(7 * n + 5, 5) = -std::numeric_limits<float>::infinity();
  a(8 * n + 1, 4) = nan;  // in the upper triangle, which is not read
  for (std::int64_t i = 0; i < n * n; ++i) a.row(9 * n)[i] = 3.4e38f;
  for (const auto& [level, kernels] : cpu::eigh_batch_variants(cpu::simd_levels().back())) {
    const InLanes<float> out = in_lanes<float>(*kernels, ArrayView(a.data(), {batch, n, n}), n);
    for (std::int64_t b = 0; b < batch; ++b)
      EXPECT_EQ(int(out.status[b]), int(b == 4 || b == 7 ? cpu::LaneStatus::not_finite
                                        : b == 9         ? cpu::LaneStatus::out_of_range
                                                         : cpu::LaneStatus::solved))
          << cpu::name(level) << ", matrix " << b;
  }
}

TEST(Lapack, WorkspaceLengthsOutgrow32BitsAndAreNotAskedFor) {
  EXPECT_GT(cpu::Lapack<double>::syevd_workspace(32767), std::int64_t(1) << 31);
  EXPECT_EQ(cpu::fits_lapack(cpu::Lapack<double>::syevd_workspace(32767)),
            sizeof(cpu::lapack_int) == 8);
}

TEST(Tridiagonal, HermitianMatricesOfAnySizeComeBackFromTheirEigenpairs) {
  for (const std::int64_t n : {1, 2, 3, 5, 31, 32, 33, 64, 65, 130}) {
    const Matrix<double> parts = gaussian(n, 2 * n, unsigned(n));
    const auto size = static_cast<std::size_t>(n);
    std::vector<cpu::Complex> a(size * size), tau(size), v(size * size);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j <= i; ++j) {
        // (Where rows have nothing beside the diagonal, no reflection is needed.)
        const double beside = i == j || i % 7 == 6 ? 0 : 1;
        a[std::size_t(i * n + j)] = {i % 7 == 6 ? double(i == j) : parts(i, 2 * j),
                                     beside * parts(i, 2 * j + 1)};
        a[std::size_t(j * n + i)] = std::conj(a[std::size_t(i * n + j)]);
      }
    std::vector<cpu::Complex> work = a;
    for (std::int64_t i = 0; i < n; ++i)  // the lower triangle alone is read
      for (std::int64_t j = i + 1; j < n; ++j) work[std::size_t(i * n + j)] = 1e300;
    std::vector<double> w(size), e(size);
    Matrix<double> z(n, n);
    int polls = 0;
    const auto poll = [&] { ++polls; };
    {
      const cpu::SingleBlasThread guard;
      cpu::tridiagonalise(n, work.data(), w.data(), e.data(), tau.data(), poll);
      ASSERT_EQ(cpu::divide_and_conquer(n, n, w.data(), e.data(), z.data(), 1, poll), 0);
      std::ranges::copy(z.values(), v.begin());
      cpu::transform_back(n, n, work.data(), tau.data(), v.data(), 1, poll);
    }
    EXPECT_GE(polls, n);
    // A = V^H diag(w) V and V V^H = I, V's rows the eigenvectors' conjugates.
    double off = 0, skew = 0;
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        cpu::Complex sum = -a[std::size_t(i * n + j)], product = i == j ? -1 : 0;
        for (std::int64_t k = 0; k < n; ++k) {
          sum +=
              std::conj(v[std::size_t(k * n + i)]) * w[std::size_t(k)] * v[std::size_t(k * n + j)];
          product += v[std::size_t(i * n + k)] * std::conj(v[std::size_t(j * n + k)]);
        }
        off = std::max(off, std::abs(sum));
        skew = std::max(skew, std::abs(product));
      }
    EXPECT_LE(off, 1e-14 * double(n) * std::max(std::abs(w.front()), std::abs(w.back())))
        << "n = " << n;
    EXPECT_LE(skew, 1e-14 * double(n)) << "n = " << n;
    EXPECT_TRUE(std::ranges::is_sorted(w));
  }
}

}  // namespace
}  // namespace descramble_fast
