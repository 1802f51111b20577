#include "cpu/tridiagonal.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu/lapack.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;

template <class T>
void expect_a_tridiagonal_form(std::int64_t n, int threads, T zeros) {
  const Matrix<double> g = gaussian(n, n, 5);
  Matrix<T> a(n, n, std::numeric_limits<T>::quiet_NaN());  // above the diagonal nothing is read
  double norm = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      a(i, j) = i % 5 == 3 && j != i ? zeros : T(g(i, j));
      norm += (i == j ? 1 : 2) * double(a(i, j)) * double(a(i, j));
    }
  norm = std::sqrt(norm);
  Matrix<T> work(n, n), q(n, n, T(0)), d(1, n), e(1, n), tau(1, n);
  std::ranges::copy(a.values(), work.data());
  for (std::int64_t i = 0; i < n; ++i) q(i, i) = 1;
  {
    const cpu::SingleBlasThread guard;
    cpu::tridiagonalise<T>(n, work.data(), d.data(), e.data(), tau.data(), {});
    cpu::transform_back<T>(n, n, work.data(), tau.data(), q.data(), threads, {});
  }
  // A = Q T Q^T, of which q is Q^T; and Q^T Q = I.
  const double limit = 10 * std::sqrt(double(n)) * double(std::numeric_limits<T>::epsilon());
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0, product = i == j ? -1 : 0;
      for (std::int64_t r = 0; r < n; ++r) {
        sum += double(q(r, i)) * double(d(0, r)) * double(q(r, j));
        if (r + 1 < n)
          sum += double(e(0, r)) *
                 (double(q(r, i)) * double(q(r + 1, j)) + double(q(r + 1, i)) * double(q(r, j)));
        product += double(q(r, i)) * double(q(r, j));
      }
      ASSERT_NEAR(sum, double(a(i, j)), limit * norm) << n << ": " << i << ", " << j;
      ASSERT_NEAR(product, 0, limit) << n << ": " << i << ", " << j;
    }
}

TEST(Tridiagonal, FormTimesItsReflectionsIsTheMatrix) {
  for (const std::int64_t n : {1, 2, 3, 31, 32, 33, 64, 65, 150})
    for (const int threads : {1, 2}) {
      expect_a_tridiagonal_form<double>(n, threads, 0.25);
      expect_a_tridiagonal_form<float>(n, threads, 0);  // rows with nothing to reflect
    }
}

TEST(Tridiagonal, CanBeInterruptedAtEveryColumn) {
  const std::int64_t n = 70;
  for (const int at : {0, 1, 40, 69}) {
    Matrix<double> work = gaussian(n, n, 6), d(1, n), e(1, n), tau(1, n);
    int polls = 0;
    const auto poll = [&] {
      if (polls++ == at) throw std::runtime_error("enough");
    };
    const cpu::SingleBlasThread guard;
    EXPECT_THROW(cpu::tridiagonalise(n, work.data(), d.data(), e.data(), tau.data(), poll),
                 std::runtime_error);
    EXPECT_EQ(polls, at + 1);
  }
}

}  // namespace
}  // namespace descramble_fast
