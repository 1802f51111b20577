#include "descramble_fast/operators.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cpu/fft.hpp"
#include "descramble_fast/error.hpp"

namespace descramble_fast {
namespace {

using std::numbers::pi;

const std::vector<int> sizes{2, 3, 4, 5, 6, 7, 8, 9, 80, 81};

Matrix<double> product(const Matrix<double>& a, const Matrix<double>& b) {
  Matrix<double> out(a.rows(), b.columns(), 0);
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t k = 0; k < a.columns(); ++k)
      for (std::int64_t j = 0; j < b.columns(); ++j) out(i, j) += a(i, k) * b(k, j);
  return out;
}

Matrix<double> transposed(const Matrix<double>& a) {
  Matrix<double> out(a.columns(), a.rows());
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j) out(j, i) = a(i, j);
  return out;
}

Matrix<double> gram(const Matrix<double>& d) { return product(transposed(d), d); }

Matrix<double> identity(std::int64_t n) {
  Matrix<double> out(n, n, 0);
  for (std::int64_t i = 0; i < n; ++i) out(i, i) = 1;
  return out;
}

Matrix<double> kronecker(const Matrix<double>& a, const Matrix<double>& b) {
  Matrix<double> out(a.rows() * b.rows(), a.columns() * b.columns());
  for (std::int64_t i = 0; i < out.rows(); ++i)
    for (std::int64_t j = 0; j < out.columns(); ++j)
      out(i, j) = a(i / b.rows(), j / b.columns()) * b(i % b.rows(), j % b.columns());
  return out;
}

Matrix<double> sum(const Matrix<double>& a, const Matrix<double>& b) {
  Matrix<double> out = a.copy();
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j) out(i, j) += b(i, j);
  return out;
}

double largest_difference(const Matrix<double>& a, const Matrix<double>& b) {
  EXPECT_EQ(a.rows(), b.rows());
  EXPECT_EQ(a.columns(), b.columns());
  double largest = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j)
      largest = std::max(largest, std::abs(a(i, j) - b(i, j)));
  return largest;
}

Matrix<double> random_rows(std::int64_t rows, std::int64_t n, unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Matrix<double> out(rows, n);
  for (double& x : out.values()) x = normal(generator);
  return out;
}

// Dense definitions, written out without the library's basis.

// d/dx of the trigonometric interpolant at the points 2 pi j/n.
Matrix<double> first_spectral_derivative(int n) {
  Matrix<double> d(n, n, 0);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j)
      if (i != j) {
        const double angle = (i - j) * pi / n, sign = (i - j) % 2 == 0 ? 0.5 : -0.5;
        d(i, j) = n % 2 == 0 ? sign * std::cos(angle) / std::sin(angle) : sign / std::sin(angle);
      }
  return d;
}

Matrix<double> second_spectral_derivative(int n) {
  Matrix<double> d(n, n, 0);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      const double angle = (i - j) * pi / n, sign = (i - j) % 2 == 0 ? -0.5 : 0.5;
      if (i == j) {
        d(i, j) = n % 2 == 0 ? -(n * n + 2) / 12.0 : (1 - n * n) / 12.0;
      } else {
        const double squared = std::sin(angle) * std::sin(angle);
        d(i, j) = n % 2 == 0 ? sign / squared : sign * std::cos(angle) / squared;
      }
    }
  return d;
}

Matrix<double> periodic_first_difference(int n) {
  Matrix<double> d(n, n, 0);
  for (int i = 0; i < n; ++i) {
    d(i, i) -= 1;
    d(i, (i + 1) % n) += 1;
  }
  return d;
}

Matrix<double> periodic_second_difference(int n) {
  Matrix<double> d(n, n, 0);
  for (int i = 0; i < n; ++i) {
    d(i, (i + n - 1) % n) += 1;
    d(i, i) -= 2;
    d(i, (i + 1) % n) += 1;
  }
  return d;
}

Matrix<double> path_first_difference(int n) {
  Matrix<double> d(n - 1, n, 0);
  for (int i = 0; i + 1 < n; ++i) {
    d(i, i) = -1;
    d(i, i + 1) = 1;
  }
  return d;
}

Matrix<double> central_first_difference(int n) {
  Matrix<double> d(n, n, 0);
  for (int i = 0; i < n; ++i) {
    d(i, (i + n - 1) % n) -= 0.5;
    d(i, (i + 1) % n) += 0.5;
  }
  return d;
}

std::vector<Block> blocks_of(const Operator& op) {
  return {op.blocks().begin(), op.blocks().end()};
}

// Pairs from `first` on.
std::vector<Block> pairs(std::int64_t first, std::int64_t end) {
  std::vector<Block> out;
  for (; first + 2 <= end; first += 2) out.push_back({first, first + 2});
  return out;
}

// `slack` multiplies the allowance for the definition's own rounding.
void expect_matches(const Operator& op, const Matrix<double>& dense, double slack = 1) {
  SCOPED_TRACE(op.name());
  const std::int64_t n = dense.rows();
  ASSERT_EQ(op.size(), n);
  const std::span<const double> l = op.eigenvalues();
  EXPECT_TRUE(std::ranges::is_sorted(l));
  EXPECT_GE(l.front(), 0);
  const double scale = std::max(l.back(), 0.01);  // All of l may be 0.
  const double tolerance = 2e-15 * double(n) * scale * slack;

  const Matrix<double> modes = op.modes();
  EXPECT_LE(largest_difference(product(modes, transposed(modes)), identity(n)), 1e-15 * double(n));
  Matrix<double> scaled = modes.copy();
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) scaled(i, j) *= l[std::size_t(i)];
  EXPECT_LE(largest_difference(product(transposed(modes), scaled), dense), tolerance);

  // Five rows: a full bundle and a rest.
  const Matrix<double> x = random_rows(5, n);
  Matrix<double> z = x.copy();
  op.analyze(z.values());
  EXPECT_LE(largest_difference(z, product(x, transposed(modes))), 1e-14 * std::sqrt(double(n)));
  op.synthesize(z.values());
  EXPECT_LE(largest_difference(z, x), 1e-14);
  Matrix<double> applied = x.copy();
  op.apply(applied.values());
  EXPECT_LE(largest_difference(applied, product(x, dense)), 4 * tolerance);

  // A row's result does not depend on its neighbours.
  for (std::int64_t i = 0; i < 5; ++i) {
    Matrix<double> alone(1, n);
    std::copy_n(x.row(i), n, alone.data());
    op.apply(alone.values());
    EXPECT_LE(largest_difference(alone,
                                 [&] {
                                   Matrix<double> row(1, n);
                                   std::copy_n(applied.row(i), n, row.data());
                                   return row;
                                 }()),
              tolerance);
  }

  for (const Block& block : op.blocks()) {
    EXPECT_GE(block.size(), 2);
    for (std::int64_t i = block.begin; i < block.end; ++i)
      EXPECT_LE(l[std::size_t(i)] - l[std::size_t(block.begin)], tolerance);
  }
}

TEST(Operators, FourierOrderOne) {
  for (const int n : sizes) {
    const Operator op = Operator::fourier(n, 1);
    expect_matches(op, gram(first_spectral_derivative(n)), 4);
    // Even n: constant and Nyquist are both null.
    EXPECT_EQ(blocks_of(op), n % 2 == 0 ? pairs(0, n) : pairs(1, n)) << n;
  }
}

TEST(Operators, FourierOrderTwo) {
  for (const int n : sizes) {
    const Operator op = Operator::fourier(n);
    expect_matches(op, gram(second_spectral_derivative(n)), 4);
    EXPECT_EQ(blocks_of(op), pairs(1, n)) << n;
    EXPECT_EQ(op.eigenvalues().back(), std::pow(n / 2, 4));
  }
}

TEST(Operators, FourierHigherOrders) {
  for (const int n : {2, 3, 8, 9}) {
    const Matrix<double> d1 = first_spectral_derivative(n), d2 = second_spectral_derivative(n);
    expect_matches(Operator::fourier(n, 3), gram(product(d1, d2)), 10);
    expect_matches(Operator::fourier(n, 4), gram(product(d2, d2)), 10);
  }
}

TEST(Operators, FourierModesInTheirOrder) {
  const Matrix<double> even = Operator::fourier(4, 2).modes();
  const double half = 0.5, root = std::sqrt(0.5);
  const double expected[4][4] = {{half, half, half, half},
                                 {root, 0, -root, 0},
                                 {0, root, 0, -root},
                                 {half, -half, half, -half}};
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) EXPECT_NEAR(even(i, j), expected[i][j], 1e-16);
  // Order 1: Nyquist's eigenvalue is 0, so it follows the constant.
  const Matrix<double> first = Operator::fourier(4, 1).modes();
  for (int j = 0; j < 4; ++j) {
    EXPECT_NEAR(first(1, j), expected[3][j], 1e-16);
    EXPECT_NEAR(first(2, j), expected[1][j], 1e-16);
    EXPECT_NEAR(first(3, j), expected[2][j], 1e-16);
  }
}

TEST(Operators, PeriodicDifference) {
  for (const int n : sizes) {
    for (const int order : {1, 2}) {
      const Operator op = Operator::difference(n, order, Boundary::periodic);
      expect_matches(
          op, gram(order == 1 ? periodic_first_difference(n) : periodic_second_difference(n)));
      EXPECT_EQ(blocks_of(op), pairs(1, n)) << n;
    }
  }
}

TEST(Operators, PathDifference) {
  for (const int n : sizes) {
    const Matrix<double> laplacian = gram(path_first_difference(n));
    expect_matches(Operator::difference(n, 1, Boundary::path), laplacian);
    const Operator second = Operator::difference(n, 2, Boundary::path);
    expect_matches(second, gram(laplacian));
    EXPECT_TRUE(second.blocks().empty());
  }
}

TEST(Operators, CentralDifference) {
  for (const int n : sizes) {
    const Operator op = Operator::central_difference(n);
    expect_matches(op, gram(central_first_difference(n)));
    std::vector<Block> expected;
    if (n % 2 == 1) {
      expected = pairs(1, n);
    } else {
      // Constant and Nyquist; then k with n/2 - k; k = n/4 with itself.
      expected.push_back({0, 2});
      for (std::int64_t begin = 2; begin < n; begin += 4)
        expected.push_back({begin, std::min<std::int64_t>(begin + 4, n)});
    }
    EXPECT_EQ(blocks_of(op), expected) << n;
  }
}

TEST(Operators, SizeOne) {
  for (const Operator& op :
       {Operator::fourier(1), Operator::difference(1, 1, Boundary::path),
        Operator::difference(1, 2, Boundary::periodic), Operator::central_difference(1)}) {
    EXPECT_EQ(op.eigenvalues()[0], 0);
    EXPECT_EQ(op.modes()(0, 0), 1);
    std::vector<double> x{3, -2};
    op.analyze(x);
    op.synthesize(x);
    EXPECT_EQ(x, (std::vector<double>{3, -2}));
    op.apply(x);
    EXPECT_EQ(x, (std::vector<double>{0, 0}));
  }
}

TEST(Operators, LargePrimeAndLongRows) {
  for (const int n : {97, 127, 262, 251, 9000}) {
    for (const Operator& op : {Operator::fourier(n), Operator::difference(n, 1, Boundary::path)}) {
      SCOPED_TRACE(op.name());
      const Matrix<double> x = random_rows(3, n);
      Matrix<double> z = x.copy();
      op.analyze(z.values());
      double before = 0, after = 0;
      for (const double v : x.values()) before += v * v;
      for (const double v : z.values()) after += v * v;
      EXPECT_NEAR(after / before, 1, 1e-14);
      if (n < 1000) {
        EXPECT_LE(largest_difference(z, product(x, transposed(op.modes()))), 1e-13);
      }
      op.synthesize(z.values());
      EXPECT_LE(largest_difference(z, x), 2e-14);
    }
  }
}

TEST(Operators, GridIsAKroneckerSum) {
  const Matrix<double> l3 = gram(path_first_difference(3)),
                       l4 = gram(second_spectral_derivative(4));
  const Operator a = Operator::difference(3, 1, Boundary::path), b = Operator::fourier(4);
  expect_matches(Operator::grid({a, b}),
                 sum(kronecker(l3, identity(4)), kronecker(identity(3), l4)));

  const Matrix<double> l2 = gram(central_first_difference(2)),
                       l5 = gram(periodic_first_difference(5));
  const Operator three = Operator::grid(
      {Operator::central_difference(2), a, Operator::difference(5, 1, Boundary::periodic)});
  expect_matches(three, sum(sum(kronecker(l2, identity(15)),
                                kronecker(identity(2), kronecker(l3, identity(5)))),
                            kronecker(identity(6), l5)));

  const Matrix<double> l8 = gram(path_first_difference(8));
  const Operator path = Operator::difference(8, 1, Boundary::path);
  const Operator square = Operator::grid({path, path});
  expect_matches(square, sum(kronecker(l8, identity(8)), kronecker(identity(8), l8)));
}

TEST(Operators, GridTiesAreOneBlockInTheOrderOfTheAxes) {
  const Operator path = Operator::difference(8, 1, Boundary::path);
  const Operator square = Operator::grid({path, path});
  const std::span<const double> l = path.eigenvalues();
  // l_i + l_j: ties are (i, j) with (j, i), and all i + j = 8, whose sum is 8 - 4 = 4.
  std::int64_t in_blocks = 0;
  bool seen = false;
  for (const Block& block : square.blocks()) {
    in_blocks += block.size();
    const double value = square.eigenvalues()[std::size_t(block.begin)];
    for (std::int64_t i = block.begin; i < block.end; ++i)
      EXPECT_EQ(square.eigenvalues()[std::size_t(i)], value);
    if (std::abs(value - 4) < 1e-12) {
      seen = true;
      EXPECT_EQ(block.size(), 7);
      const Matrix<double> modes = square.modes(), axis = path.modes();
      for (std::int64_t i = 1; i < 8; ++i)
        for (std::int64_t p = 0; p < 8; ++p)
          for (std::int64_t q = 0; q < 8; ++q)
            EXPECT_EQ(modes(block.begin + i - 1, p * 8 + q), axis(i, p) * axis(8 - i, q));
    } else {
      EXPECT_EQ(block.size(), 2);
    }
  }
  EXPECT_TRUE(seen);
  EXPECT_EQ(in_blocks, 64 - 7);  // All but (i, i), i != 4.
  EXPECT_EQ(square.eigenvalues()[1], l[1]);
}

TEST(Operators, GridOfGridsAndMatrices) {
  const Matrix<double> l3 = gram(path_first_difference(3)), l4 = gram(periodic_first_difference(4));
  const Operator inner = Operator::grid(
      {Operator::from_matrix(l3.view()), Operator::difference(4, 1, Boundary::periodic)});
  const Operator outer = Operator::grid({inner, Operator::from_matrix(l3.view())});
  const Matrix<double> dense = sum(kronecker(l3, identity(4)), kronecker(identity(3), l4));
  expect_matches(outer, sum(kronecker(dense, identity(3)), kronecker(identity(12), l3)), 4);
}

TEST(Operators, FromMatrix) {
  for (const int n : sizes) {
    const Matrix<double> l = gram(periodic_second_difference(n));
    const Operator op = Operator::from_matrix(l.view());
    expect_matches(op, l, 10);
    EXPECT_EQ(blocks_of(op), pairs(1, n)) << n;
    EXPECT_EQ(op.eigenvalues()[0], 0);
    const Matrix<double> modes = op.modes();
    for (std::int64_t i = 0; i < n; ++i) {
      double largest = 0;
      for (std::int64_t j = 0; j < n; ++j) largest = std::max(largest, std::abs(modes(i, j)));
      std::int64_t first = 0;
      while (std::abs(modes(i, first)) < largest * (1 - 1e-6)) ++first;
      EXPECT_GT(modes(i, first), 0);
    }
  }
}

TEST(Operators, FromMatrixOfOtherKinds) {
  const Matrix<float> narrow = [] {
    Matrix<float> out(2, 2, 1.0f);
    out(0, 0) = out(1, 1) = 2;
    return out;
  }();
  const Operator op = Operator::from_matrix(narrow.view());
  EXPECT_NEAR(op.eigenvalues()[0], 1, 1e-15);
  EXPECT_NEAR(op.eigenvalues()[1], 3, 1e-15);

  const Operator zero = Operator::from_matrix(Matrix<double>(3, 3, 0).view());
  EXPECT_EQ(blocks_of(zero), (std::vector<Block>{{0, 3}}));

  // The upper triangle counts too, and strides are followed.
  const std::vector<double> memory{2, 9, -1, 9, -1, 9, 2, 9};
  const std::int64_t shape[] = {2, 2}, strides[] = {4, 2};
  const Operator strided =
      Operator::from_matrix(ArrayView(memory.data(), DType::float64, shape, strides));
  EXPECT_NEAR(strided.eigenvalues()[0], 1, 1e-15);
}

TEST(Operators, Names) {
  const Operator fourier = Operator::fourier(80);
  EXPECT_EQ(fourier.name(), "fourier(n=80, order=2)");
  EXPECT_EQ(Operator::difference(80, 1, Boundary::path).name(),
            "difference(n=80, order=1, boundary=path)");
  EXPECT_EQ(Operator::difference(8, 2, Boundary::periodic).name(),
            "difference(n=8, order=2, boundary=periodic)");
  EXPECT_EQ(Operator::central_difference(80).name(), "central_difference(n=80)");
  EXPECT_EQ(Operator::grid({fourier, Operator::central_difference(2)}).name(),
            "grid(fourier(n=80, order=2), central_difference(n=2))");
  EXPECT_EQ(Operator::from_matrix(identity(80).view()).name(), "matrix(n=80)");
}

TEST(Operators, ThreadCountDoesNotMatter) {
  const Operator fourier = Operator::fourier(80);
  const Operator path = Operator::difference(81, 1, Boundary::path);
  const Operator dense = Operator::from_matrix(gram(random_rows(70, 70)).view());
  const Operator grid = Operator::grid({Operator::fourier(9), dense});
  for (const Operator& op : {fourier, path, Operator::fourier(131), dense, grid}) {
    SCOPED_TRACE(op.name());
    const Matrix<double> x = random_rows(601, op.size());
    for (const auto transform : {&Operator::apply, &Operator::analyze, &Operator::synthesize}) {
      Matrix<double> one = x.copy(), two = x.copy();
      (op.*transform)(one.values(), {.threads = 1, .poll = {}});
      (op.*transform)(two.values(), {.threads = 2, .poll = {}});
      EXPECT_TRUE(std::ranges::equal(one.values(), two.values()));
    }
  }
}

TEST(Operators, RowsAreIndependent) {
  for (const Operator& op : {Operator::fourier(80), Operator::difference(131, 1, Boundary::path)}) {
    Matrix<double> x = random_rows(4, op.size());
    x(1, 3) = std::numeric_limits<double>::quiet_NaN();
    for (double& v : std::span(x.row(2), std::size_t(op.size()))) v *= 1e200;
    op.analyze(x.values());
    EXPECT_TRUE(std::isnan(x(1, 0)));
    for (std::int64_t j = 0; j < op.size(); ++j) {
      EXPECT_LT(std::abs(x(0, j)), 10);
      EXPECT_LT(std::abs(x(3, j)), 10);
    }
  }
}

template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "not refused";
}

TEST(Operators, RefusesWhatItCannotUse) {
  EXPECT_EQ(refusal([] { Operator::fourier(0); }), "n: got 0, expected at least 1");
  EXPECT_EQ(refusal([] { Operator::central_difference(-3); }), "n: got -3, expected at least 1");
  EXPECT_EQ(refusal([] { Operator::fourier(8, 0); }), "order: got 0, expected at least 1");
  EXPECT_NE(refusal([] { Operator::fourier(80, 400); }).find("overflow"), std::string::npos);
  EXPECT_EQ(refusal([] { Operator::difference(8, 3, Boundary::path); }),
            "order: got 3, expected 1 or 2");
  EXPECT_EQ(refusal([] { Operator::grid({}); }), "axes: got none, expected at least one operator");
  EXPECT_EQ(refusal([] {
              std::vector<double> x(7);
              Operator::fourier(3).apply(x);
            }),
            "rows: got 7 numbers, expected a multiple of n = 3");
  EXPECT_NE(refusal([] {
              std::vector<double> x(3);
              Operator::fourier(3).analyze(x, {.threads = -1, .poll = {}});
            }),
            "not refused");

  EXPECT_EQ(refusal([] { Operator::from_matrix(Matrix<double>(2, 3, 0).view()); }),
            "matrix: got shape (2, 3), expected (n, n) with n at least 1");
  EXPECT_NE(refusal([] { Operator::from_matrix(Matrix<double>(0, 0).view()); }), "not refused");
  Matrix<double> skew = identity(3);
  skew(0, 2) = 1e-3;
  EXPECT_EQ(refusal([&] { Operator::from_matrix(skew.view()); }),
            "matrix: not symmetric: got 0 at row 2, column 0 and 0.001 at row 0, column 2");
  skew(0, 2) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(refusal([&] { Operator::from_matrix(skew.view()); }),
            "matrix: NaN or infinity at row 0, column 2");
  Matrix<double> negative = identity(3);
  negative(1, 1) = -1e-3;
  EXPECT_NE(refusal([&] {
              Operator::from_matrix(negative.view());
            }).find("matrix: not positive semidefinite: smallest eigenvalue -0.001"),
            std::string::npos);
  EXPECT_THROW(Operator::from_matrix(
                   ArrayView(negative.data(), DType::boolean, std::vector<std::int64_t>{3, 3})),
               TypeError);
}

TEST(Operators, NoRows) {
  std::vector<double> none;
  Operator::fourier(5).apply(none);
  Operator::difference(5, 1, Boundary::path).analyze(none);
  Operator::from_matrix(identity(5).view()).synthesize(none);
  EXPECT_TRUE(none.empty());
}

TEST(Fft, TurnsAreExactOnTheAxesAndSymmetric) {
  for (const std::int64_t b : {1, 3, 8, 12, 80, 97, 4096})
    for (std::int64_t a = -b; a <= 2 * b; ++a) {
      const auto [c, s] = cpu::turn(a, b);
      const double angle = 2 * pi * double(a) / double(b);
      EXPECT_NEAR(c, std::cos(angle), 4e-15);
      EXPECT_NEAR(s, std::sin(angle), 4e-15);
      EXPECT_NEAR(c * c + s * s, 1, 4e-16);
      EXPECT_EQ(cpu::turn(-a, b).cos, c);
      EXPECT_EQ(cpu::turn(-a, b).sin, -s);
    }
  for (const std::int64_t b : {4, 8, 12, 1 << 20}) {
    EXPECT_EQ(cpu::turn(b / 4, b).cos, 0);
    EXPECT_EQ(cpu::turn(b / 4, b).sin, 1);
    EXPECT_EQ(cpu::turn(b / 2, b).sin, 0);
    EXPECT_EQ(cpu::turn(b / 2, b).cos, -1);
  }
}

TEST(Fft, MatchesTheSlowTransform) {
  std::vector<int> lengths{80, 81, 97, 101, 128, 251, 360, 1009, 2 * 131, 7 * 11 * 13, 127 * 8};
  for (int n = 1; n <= 64; ++n) lengths.push_back(n);
  for (const int n : lengths) {
    const cpu::RealFft fft(n);
    std::vector<std::complex<long double>> roots;
    for (int j = 0; j < n; ++j)
      roots.push_back(std::polar(1.0L, -2 * std::numbers::pi_v<long double> * j / n));
    for (const int lanes : {1, 2, 3, 4}) {
      const Matrix<double> x = random_rows(n, lanes, unsigned(n + lanes));
      std::vector<double> work(std::size_t(fft.work_size(lanes)),
                               std::numeric_limits<double>::quiet_NaN());
      std::ranges::copy(x.values(), work.begin());
      fft.forward(lanes, work.data());
      const auto [re, im] = fft.spectrum(lanes, work.data());
      double error = 0, norm = 0;
      for (int k = 0; k <= n / 2; ++k)
        for (int v = 0; v < lanes; ++v) {
          std::complex<long double> slow = 0;
          for (int j = 0; j < n; ++j)
            slow += static_cast<long double>(x(j, v)) *
                    roots[std::size_t(j) * std::size_t(k) % std::size_t(n)];
          const std::complex<long double> fast(re[k * lanes + v], im[k * lanes + v]);
          error = std::max(error, double(std::abs(fast - slow)));
          norm = std::max(norm, double(std::abs(slow)));
          if (k == 0 || 2 * k == n) {
            EXPECT_EQ(im[k * lanes + v], 0);
          }
        }
      EXPECT_LE(error, 2e-15 * norm) << n << ", " << lanes << " lanes";
      fft.backward(lanes, work.data());
      for (int j = 0; j < n; ++j)
        for (int v = 0; v < lanes; ++v)
          EXPECT_NEAR(work[std::size_t(j * lanes + v)] / n, x(j, v), 1e-14) << n;
    }
  }
}

}  // namespace
}  // namespace descramble_fast
