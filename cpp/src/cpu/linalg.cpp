#include "cpu/linalg.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr std::int64_t panel = 128;
constexpr std::int64_t threaded_size = 256;

void each_panel(std::int64_t rows, std::int64_t work, int threads,
                const std::function<void(std::int64_t, std::int64_t)>& body) {
  const SingleBlasThread guard;
  parallel_for(work < 1 << 18 ? 1 : threads, (rows + panel - 1) / panel,
               [&](std::int64_t p) { body(p * panel, std::min(panel, rows - p * panel)); });
}

// Columns [first, n) of u and rows [first, n) of vt span the singular directions of both sides.
Matrix<double> completion(const Matrix<double>& u, const Matrix<double>& vt, std::int64_t first,
                          int threads) {
  const std::int64_t n = u.rows(), free = n - first;
  // polar(U0^T V0), the map between the two null spaces that is nearest to the identity.
  Matrix<double> overlap(free, free, 0);
  for (std::int64_t i = 0; i < free; ++i)
    for (std::int64_t j = 0; j < free; ++j)
      for (std::int64_t r = 0; r < n; ++r) overlap(i, j) += u(r, first + i) * vt(first + j, r);
  Matrix<double> s(1, free), left(free, free), right(free, free);
  {
    const SingleBlasThread guard;
    if (const auto info = svd(free, overlap.data(), s.data(), left.data(), right.data()).info)
      throw BackendError(message("dgesdd and dgesvd failed: info = ", info));
  }
  return times(left, right, threads);
}

}  // namespace

Matrix<double> times_transposed(const Matrix<double>& x, const Matrix<double>& b, int threads) {
  const std::int64_t n = x.columns(), k = b.rows();
  Matrix<double> out(x.rows(), k);
  each_panel(x.rows(), x.rows() * n * k, threads, [&](std::int64_t first, std::int64_t count) {
    gemm('N', 'T', count, k, n, 1, x.row(first), n, b.data(), n, 0, out.row(first), k);
  });
  return out;
}

Matrix<double> times(const Matrix<double>& x, const Matrix<double>& b, int threads) {
  const std::int64_t k = x.columns(), n = b.columns();
  Matrix<double> out(x.rows(), n);
  each_panel(x.rows(), x.rows() * n * k, threads, [&](std::int64_t first, std::int64_t count) {
    gemm('N', 'N', count, n, k, 1, x.row(first), k, b.data(), n, 0, out.row(first), n);
  });
  return out;
}

Matrix<double> transposed(const Matrix<double>& x) {
  constexpr std::int64_t tile = 32;
  Matrix<double> out(x.columns(), x.rows());
  for (std::int64_t bi = 0; bi < x.rows(); bi += tile)
    for (std::int64_t bj = 0; bj < x.columns(); bj += tile)
      for (std::int64_t i = bi; i < std::min(x.rows(), bi + tile); ++i)
        for (std::int64_t j = bj; j < std::min(x.columns(), bj + tile); ++j) out(j, i) = x(i, j);
  return out;
}

double orthogonality_error(const Matrix<double>& rows, int threads) {
  const std::int64_t k = rows.rows(), n = rows.columns();
  std::vector<double> sums(std::size_t((k + panel - 1) / panel), 0);
  each_panel(k, k * k * n, threads, [&](std::int64_t first, std::int64_t count) {
    Matrix<double> gram(count, k - first);
    gemm('N', 'T', count, k - first, n, 1, rows.row(first), n, rows.row(first), n, 0, gram.data(),
         k - first);
    double sum = 0;
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t j = i; j < k - first; ++j) {
        const double x = gram(i, j) - (i == j ? 1 : 0);
        sum += (i == j ? 1 : 2) * x * x;
      }
    sums[std::size_t(first / panel)] = sum;
  });
  double total = 0;
  for (const double s : sums) total += s;
  return std::sqrt(total);
}

void fix_sign(double* vector, std::int64_t n) {
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(vector[i]));
  const double* const first = std::find_if(
      vector, vector + n, [largest](double x) { return std::abs(x) >= largest * (1 - 1e-6); });
  if (first != vector + n && *first < 0)
    for (std::int64_t i = 0; i < n; ++i) vector[i] = -vector[i];
}

Polar polar(const Matrix<double>& a, int threads) {
  const std::int64_t n = a.rows();
  Polar out;
  if (!fits_lapack(8 * n * n))
    throw BackendError(
        message("dgesdd: its workspace for n = ", n, " exceeds this LAPACK's 32-bit lengths"));
  if (n == 1) {
    out.factor = Matrix<double>(1, 1, a(0, 0) < 0 ? -1.0 : 1.0);
    out.nuclear_norm = std::abs(a(0, 0));
    return out;
  }
  Matrix<double> work = a.copy(), s(1, n), u(n, n), vt(n, n);
  Svd solved{};
  if (n < threaded_size || threads == 1) {
    const SingleBlasThread guard;
    solved = svd(n, work.data(), s.data(), u.data(), vt.data());
  } else {
    const ManyBlasThreads guard(threads);
    solved = svd(n, work.data(), s.data(), u.data(), vt.data());
  }
  if (solved.info != 0)
    throw BackendError(message("dgesdd and dgesvd failed: info = ", solved.info));
  out.fell_back = solved.fell_back;
  for (const double x : s.values()) out.nuclear_norm += x;

  const double tiny = double(n) * std::numeric_limits<double>::epsilon() * s(0, 0);
  const std::int64_t rank =
      std::ranges::count_if(s.values(), [tiny](double x) { return x > tiny; });
  if (rank < n) {
    // U1 V1^T + (U0 Q) V0^T: rotate the singular columns of U, then multiply as usual.
    const Matrix<double> q = completion(u, vt, rank, threads);
    std::vector<double> old(static_cast<std::size_t>(n - rank));
    for (std::int64_t i = 0; i < n; ++i) {
      std::copy_n(u.row(i) + rank, n - rank, old.begin());
      for (std::int64_t j = rank; j < n; ++j) {
        double sum = 0;
        for (std::int64_t r = rank; r < n; ++r)
          sum += old[std::size_t(r - rank)] * q(r - rank, j - rank);
        u(i, j) = sum;
      }
    }
  }
  out.factor = times(u, vt, threads);
  return out;
}

}  // namespace descramble_fast::cpu
