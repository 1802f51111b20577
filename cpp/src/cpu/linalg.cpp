#include "cpu/linalg.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr std::int64_t threaded_size = 256;
// Numbers below which threads cost more than they bring.
constexpr std::int64_t threaded_work = 1 << 14;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Tiles of a product, body(row, rows, column, columns). Their shape depends on the product's alone,
// so that the thread count cannot matter: tall enough for what is packed to be used often.
template <class Callable>
void each_tile(std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads,
               const std::function<void()>& poll, const Callable& body) {
  const std::int64_t height = columns <= 512 ? 128 : 512;
  const std::int64_t width = rows * columns < 1 << 21 ? 512 : 1024;
  const std::int64_t across = ceil_div(columns, width);
  const bool small = rows * columns * depth < 1 << 18;
  const SingleBlasThread guard;
  const auto tile = [&](std::int64_t t) {
    const std::int64_t row = t / across * height, column = t % across * width;
    body(row, std::min(height, rows - row), column, std::min(width, columns - column));
  };
  parallel_for(small ? 1 : threads, ceil_div(rows, height) * across, tile, poll);
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

Matrix<double> times_transposed(const Matrix<double>& x, const Matrix<double>& b, int threads,
                                const std::function<void()>& poll) {
  const std::int64_t n = x.columns(), k = b.rows();
  Matrix<double> out(x.rows(), k);
  each_tile(x.rows(), k, n, threads, poll,
            [&](std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
              gemm('N', 'T', rows, columns, n, 1, x.row(row), n, b.row(column), n, 0,
                   out.row(row) + column, k);
            });
  return out;
}

Matrix<double> times(const Matrix<double>& x, const Matrix<double>& b, int threads,
                     const std::function<void()>& poll) {
  const std::int64_t k = x.columns(), n = b.columns();
  Matrix<double> out(x.rows(), n);
  each_tile(x.rows(), n, k, threads, poll,
            [&](std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
              gemm('N', 'N', rows, columns, k, 1, x.row(row), k, b.data() + column, n, 0,
                   out.row(row) + column, n);
            });
  return out;
}

Matrix<double> transposed(const Matrix<double>& x, int threads) {
  constexpr std::int64_t tile = 32;
  Matrix<double> out(x.columns(), x.rows());
  const bool small = x.rows() * x.columns() < threaded_work;
  parallel_for(small ? 1 : threads, ceil_div(x.columns(), tile), [&](std::int64_t t) {
    const std::int64_t bj = t * tile, end = std::min(x.columns(), bj + tile);
    for (std::int64_t bi = 0; bi < x.rows(); bi += tile)
      for (std::int64_t j = bj; j < end; ++j)
        for (std::int64_t i = bi; i < std::min(x.rows(), bi + tile); ++i) out(j, i) = x(i, j);
  });
  return out;
}

// E|E s|^2 = |E|_F^2 for random signs s.
double orthogonality_error(const Matrix<double>& rows, int threads) {
  constexpr std::int64_t probes = 4, block = 64;
  const std::int64_t k = rows.rows(), n = rows.columns(), blocks = ceil_div(k, block);
  const bool small = k * n < threaded_work;
  const auto each_block = [&](const auto& body) {
    parallel_for(small ? 1 : threads, blocks, [&](std::int64_t b) {
      for (std::int64_t i = b * block; i < std::min(k, (b + 1) * block); ++i) body(b, i);
    });
  };
  Matrix<double> signs(probes, k), parts(blocks * probes, n, 0), mixed(n, probes, 0);
  std::minstd_rand random(20230718u);
  for (double& s : signs.values()) s = (random() >> 8) & 1 ? 1 : -1;
  each_block([&](std::int64_t b, std::int64_t i) {
    for (std::int64_t p = 0; p < probes; ++p) {
      double* const to = parts.row(b * probes + p);
      for (std::int64_t j = 0; j < n; ++j) to[j] += signs(p, i) * rows(i, j);
    }
  });
  for (std::int64_t r = 0; r < parts.rows(); ++r)
    for (std::int64_t j = 0; j < n; ++j) mixed(j, r % probes) += parts(r, j);
  each_block([&](std::int64_t, std::int64_t i) {
    double sum[probes] = {};
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t p = 0; p < probes; ++p) sum[p] += rows(i, j) * mixed(j, p);
    for (std::int64_t p = 0; p < probes; ++p) signs(p, i) -= sum[p];
  });
  const auto squares = signs.values();
  return std::sqrt(std::inner_product(squares.begin(), squares.end(), squares.begin(), 0.0) /
                   double(probes));
}

namespace {

// As many lanes as let a compiler use its vector registers.
double largest_magnitude(const double* x, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  double top[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::int64_t l = 0; l < lanes; ++l) {
      const double magnitude = std::abs(x[i + l]);
      top[l] = top[l] < magnitude ? magnitude : top[l];
    }
  for (; i < n; ++i) top[0] = std::max(top[0], std::abs(x[i]));
  return *std::max_element(top, top + lanes);
}

}  // namespace

void fix_sign(double* vector, std::int64_t n) {
  const double largest = largest_magnitude(vector, n);
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
