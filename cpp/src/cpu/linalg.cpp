#include "cpu/linalg.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

// Multiplications, about 50 ms, between which a caller can be heard.
constexpr std::int64_t most_unheard = std::int64_t(1) << 31;
// Numbers below which threads cost more than they bring.
constexpr std::int64_t threaded_work = 1 << 14;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Tiles of a product, body(row, rows, column, columns). Their shape depends on the product's alone,
// so that the thread count cannot matter: tall enough for what is packed to be used often.
template <class Callable>
void each_tile(std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads,
               const std::function<void()>& poll, const Callable& body) {
  std::int64_t height = columns <= 512 ? 128 : 512;
  const std::int64_t width = rows * columns < 1 << 21 ? 512 : 1024;
  while (height > 16 && height * width * depth > most_unheard) height /= 2;
  const std::int64_t across = ceil_div(columns, width);
  const bool small = rows * columns * depth < 1 << 18;
  const SingleBlasThread guard;
  const auto tile = [&](std::int64_t t) {
    const std::int64_t row = t / across * height, column = t % across * width;
    body(row, std::min(height, rows - row), column, std::min(width, columns - column));
  };
  parallel_for(small ? 1 : threads, ceil_div(rows, height) * across, tile, poll);
}

// body(i, j) for every entry, in squares that fit the cache both ways.
template <class Callable>
void each_square(const Matrix<double>& x, int threads, const Callable& body) {
  constexpr std::int64_t side = 32;
  const bool small = x.rows() * x.columns() < threaded_work;
  parallel_for(small ? 1 : threads, ceil_div(x.columns(), side), [&](std::int64_t s) {
    const std::int64_t end = std::min(x.columns(), (s + 1) * side);
    for (std::int64_t top = 0; top < x.rows(); top += side)
      for (std::int64_t j = s * side; j < end; ++j)
        for (std::int64_t i = top; i < std::min(x.rows(), top + side); ++i) body(i, j);
  });
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

Matrix<double> gram(const Matrix<double>& x, int threads, const std::function<void()>& poll) {
  const std::int64_t n = x.rows(), k = x.columns();
  std::int64_t tile = 512;
  while (tile > 64 && tile * tile * k > most_unheard) tile /= 2;
  const std::int64_t across = ceil_div(n, tile);
  Matrix<double> out(n, n);
  {
    const SingleBlasThread guard;
    const bool small = n * n * k < 1 << 18;
    parallel_for(
        small ? 1 : threads, across * across,
        [&](std::int64_t t) {
          const std::int64_t row = t / across * tile, column = t % across * tile;
          if (column > row) return;
          gemm('N', 'T', std::min(tile, n - row), std::min(tile, n - column), k, 1, x.row(row), k,
               x.row(column), k, 0, out.row(row) + column, n);
        },
        poll);
  }
  each_square(out, threads, [&](std::int64_t i, std::int64_t j) {
    if (j < i) out(j, i) = out(i, j);
  });
  return out;
}

Matrix<double> transposed(const Matrix<double>& x, int threads) {
  Matrix<double> out(x.columns(), x.rows());
  each_square(x, threads, [&](std::int64_t i, std::int64_t j) { out(j, i) = x(i, j); });
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
  return std::sqrt(sum_of_squares(signs.values()) / double(probes));
}

Matrix<double> identity(std::int64_t n) {
  Matrix<double> out(n, n, 0);
  for (std::int64_t i = 0; i < n; ++i) out(i, i) = 1;
  return out;
}

double sum_of_squares(std::span<const double> x) {
  return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
}

// As many lanes as let a compiler use its vector registers.
double largest_magnitude(std::span<const double> x) {
  constexpr std::size_t lanes = 8;
  double top[lanes] = {};
  std::size_t i = 0;
  for (; i + lanes <= x.size(); i += lanes)
    for (std::size_t l = 0; l < lanes; ++l) {
      const double magnitude = std::abs(x[i + l]);
      top[l] = top[l] < magnitude ? magnitude : top[l];
    }
  for (; i < x.size(); ++i) top[0] = std::max(top[0], std::abs(x[i]));
  return *std::max_element(top, top + lanes);
}

void fix_sign(double* vector, std::int64_t n) {
  const double largest = largest_magnitude({vector, std::size_t(n)});
  const double* const first = std::find_if(
      vector, vector + n, [largest](double x) { return std::abs(x) >= largest * (1 - 1e-6); });
  if (first != vector + n && *first < 0)
    for (std::int64_t i = 0; i < n; ++i) vector[i] = -vector[i];
}

}  // namespace descramble_fast::cpu
