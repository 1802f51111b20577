#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <complex>
#include <limits>
#include <numbers>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpu/convolution.hpp"
#include "descramble_fast/convolution.hpp"
#include "descramble_fast/error.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using cpu::Complex;
using cpu::HalfSpectrum;
using testing::gaussian;
using testing::identity;
using testing::largest_difference;
using testing::product;
using testing::transpose;
using Shape = std::vector<std::int64_t>;

std::int64_t volume(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t(1), std::multiplies<>());
}

Shape index_of(std::int64_t place, const Shape& shape) {
  Shape out(shape.size());
  for (std::size_t a = shape.size(); a-- > 0; place /= shape[a]) out[a] = place % shape[a];
  return out;
}

// y = W x for one column at a time.
Matrix<double> dense(const Matrix<double>& weight, std::int64_t rows, std::int64_t columns,
                     const Shape& kernel, const Shape& shape) {
  const std::int64_t places = volume(shape), taps = volume(kernel);
  Matrix<double> out(rows * places, columns * places, 0);
  for (std::int64_t p = 0; p < places; ++p)
    for (std::int64_t t = 0; t < taps; ++t) {
      const Shape at = index_of(p, shape), tap = index_of(t, kernel);
      std::int64_t read = 0;
      for (std::size_t a = 0; a < shape.size(); ++a)
        read = read * shape[a] + (at[a] + tap[a]) % shape[a];
      for (std::int64_t o = 0; o < rows; ++o)
        for (std::int64_t i = 0; i < columns; ++i)
          out(o * places + p, i * places + read) += weight.data()[(o * columns + i) * taps + t];
    }
  return out;
}

ConvolutionDescrambler solve(const Matrix<double>& weight, std::int64_t rows, std::int64_t columns,
                             const Shape& kernel, const Shape& shape,
                             std::optional<Operator> op = {}, const Context& context = {}) {
  Shape full{rows, columns};
  full.insert(full.end(), kernel.begin(), kernel.end());
  return descramble_conv(ArrayView(weight.data(), DType::float64, full), shape, op, context);
}

double trace_of(const Matrix<double>& a) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i) sum += a(i, i);
  return sum;
}

// tr(L P C P^T), L one block for each channel.
double cost_of(const Operator& op, const Matrix<double>& p, const Matrix<double>& c) {
  Matrix<double> moment = product(product(p, c), transpose(p));
  op.apply(moment.values());
  return trace_of(moment);
}

TEST(Convolution, FrequenciesAndModesAreCounted) {
  for (const Shape& shape :
       {Shape{1}, {2}, {7}, {8}, {3, 4}, {4, 4}, {5, 1}, {2, 3, 4}, {5, 3, 3}}) {
    const HalfSpectrum spectrum(shape);
    EXPECT_EQ(spectrum.places(), volume(shape));
    EXPECT_EQ(spectrum.frequencies(), HalfSpectrum::count(shape));
    std::vector<int> met(std::size_t(volume(shape)), 0);
    std::int64_t first = 0, offset = 0;
    for (const auto& group : spectrum.groups()) {
      EXPECT_EQ(group.first, first);
      EXPECT_EQ(group.offset, offset);
      first += group.frequencies();
      offset += group.frequencies() * group.dimensions();
      EXPECT_EQ(group.frequencies() * group.dimensions(), group.modes());
      for (std::int64_t m = 0; m < group.modes(); ++m) ++met[std::size_t(group.mode(m))];
    }
    EXPECT_EQ(first, spectrum.frequencies());
    EXPECT_EQ(offset, volume(shape));
    EXPECT_TRUE(std::ranges::all_of(met, [](int times) { return times == 1; }));
  }
}

TEST(Convolution, CoefficientsAreThoseOfTheDiscreteTransform) {
  for (const Shape& shape : {Shape{6}, {5}, {4, 3}, {5, 6}, {3, 4, 5}}) {
    const HalfSpectrum spectrum(shape);
    const std::int64_t n = volume(shape);
    const Matrix<double> x = gaussian(1, n, 7);
    Matrix<double> modes = x.copy(), back(1, n);
    spectrum.basis().analyze(modes.data(), 1);
    for (const auto& group : spectrum.groups())
      for (std::int64_t f = 0; f < group.frequencies(); ++f) {
        Complex z, expected = 0;
        cpu::gather(group, f, modes.data(), n, 1, 1, &z);
        const auto wave = group.signed_wave(f);
        for (std::int64_t p = 0; p < n; ++p) {
          const Shape at = index_of(p, shape);
          double turns = 0;
          for (std::size_t a = 0; a < shape.size(); ++a)
            turns += double(wave[a] * at[a]) / double(shape[a]);
          expected += x(0, p) * std::polar(1.0, -2 * std::numbers::pi * turns);
        }
        expected *= std::sqrt(double(group.dimensions()) / double(n));
        EXPECT_LE(std::abs(z - expected), 1e-12);
        cpu::scatter(group, f, &z, n, 1, 1, back.data());
      }
    EXPECT_LE(largest_difference(back, modes), 1e-13);
  }
}

TEST(Convolution, TheRealFormSolvesRepeatedEigenvalues) {
  for (const std::int64_t n : {1, 2, 7}) {
    // A = V^H diag(w) V with w in groups of three.
    std::vector<Complex> v(std::size_t(n * n)), a(std::size_t(n * n), 0);
    const Matrix<double> re = gaussian(n, n, 1), im = gaussian(n, n, 2);
    std::vector<double> w;
    for (std::int64_t i = 0; i < n; ++i) {
      w.push_back(double(i / 3));
      Complex* const row = v.data() + i * n;
      for (std::int64_t j = 0; j < n; ++j) row[j] = {re(i, j), im(i, j)};
      for (int pass = 0; pass < 2; ++pass)
        for (std::int64_t k = 0; k <= i; ++k) {
          const Complex* const other = v.data() + k * n;
          Complex overlap = 0;
          for (std::int64_t j = 0; j < n; ++j) overlap += std::conj(other[j]) * row[j];
          const Complex scale = std::sqrt(overlap);
          for (std::int64_t j = 0; j < n; ++j)
            row[j] = k < i ? row[j] - overlap * other[j] : row[j] / scale;
        }
      for (std::int64_t j = 0; j < n; ++j)
        for (std::int64_t k = 0; k < n; ++k)
          a[std::size_t(j * n + k)] += std::conj(row[j]) * w.back() * row[k];
    }
    std::vector<double> values(static_cast<std::size_t>(n));
    std::vector<Complex> vectors(std::size_t(n * n));
    EXPECT_EQ(cpu::solve_embedded(n, a.data(), values.data(), vectors.data()), "");
    for (std::int64_t i = 0; i < n; ++i) {
      const Complex* const one = vectors.data() + i * n;
      EXPECT_NEAR(values[std::size_t(i)], w[std::size_t(i)], 1e-13);
      for (std::int64_t j = 0; j < n; ++j) {
        Complex image = 0, overlap = 0;
        for (std::int64_t k = 0; k < n; ++k) {
          image += a[std::size_t(j * n + k)] * std::conj(one[k]);
          overlap += one[k] * std::conj(vectors[std::size_t(j * n + k)]);
        }
        EXPECT_LE(std::abs(image - values[std::size_t(i)] * std::conj(one[j])), 1e-12);
        EXPECT_LE(std::abs(overlap - (i == j ? 1.0 : 0.0)), 1e-13);
      }
    }
  }
}

TEST(Convolution, PhasesAreFixedAtTheFirstOfTheLargestEntries) {
  std::vector<Complex> v{{0.1, 0.2}, {0, -3}, {3 * (1 + 1e-8), 0}, {1, 1}};
  const std::vector<Complex> before = v;
  cpu::fix_phase(v.data(), 4);
  EXPECT_EQ(v[1], Complex(3, 0));
  for (std::size_t i = 0; i < 4; ++i) EXPECT_LE(std::abs(v[i] - before[i] * Complex(0, 1)), 1e-15);
  std::vector<Complex> zero(2, 0);
  cpu::fix_phase(zero.data(), 2);
  EXPECT_EQ(zero[0], Complex(0));
}

TEST(Convolution, ItIsTheDenseSolution) {
  struct Case {
    Shape shape, kernel;
    std::int64_t rows, columns;
    std::optional<Operator> op;
  };
  const Matrix<double> root = gaussian(12, 12, 5);
  const Matrix<double> l = product(root, transpose(root));
  const Case cases[] = {
      {{8}, {3}, 3, 2, {}},
      {{9}, {3}, 2, 4, Operator::difference(9, 1, Boundary::path)},
      {{1}, {2}, 3, 3, {}},
      {{4, 5}, {3, 3}, 3, 1, {}},
      {{3, 4}, {5, 3}, 2, 2, Operator::from_matrix(l.view())},
      {{3, 4}, {2, 2}, 2, 2, Operator::fourier(12, 1)},
      {{2, 3, 4}, {2, 3, 2}, 2, 2, {}},
      {{6, 4},
       {3, 3},
       2,
       1,
       Operator::grid({Operator::difference(6, 2, Boundary::path), Operator::fourier(4, 1)})},
  };
  for (const auto& [shape, kernel, rows, columns, op] : cases) {
    const Matrix<double> weight = gaussian(rows, columns * volume(kernel), 11);
    const ConvolutionDescrambler d = solve(weight, rows, columns, kernel, shape, op);
    const std::int64_t n = rows * volume(shape);
    ASSERT_EQ(d.size(), n);
    EXPECT_EQ(d.channels(), rows);
    EXPECT_EQ(d.spatial_shape, shape);
    const Matrix<double> w = dense(weight, rows, columns, kernel, shape);
    const Matrix<double> c = product(w, transpose(w)), p = d.matrix();
    EXPECT_LE(largest_difference(product(p, transpose(p)), identity(n)), 1e-13);
    EXPECT_NEAR(cost_of(d.op, p, c), d.cost, 1e-10 * d.initial_cost);
    EXPECT_NEAR(cost_of(d.op, identity(n), c), d.initial_cost, 1e-10 * d.initial_cost);
    EXPECT_NEAR(std::accumulate(d.eigenvalues.begin(), d.eigenvalues.end(), 0.0), trace_of(c),
                1e-12 * trace_of(c));
    EXPECT_TRUE(std::ranges::is_sorted(d.eigenvalues, std::greater<>()));
    // P takes C to a matrix that is diagonal in the modes: with the eigenvalues, C is theirs.
    Matrix<double> moment = product(product(p, c), transpose(p));
    d.op.analyze(moment.values());
    moment = transpose(moment);
    d.op.analyze(moment.values());
    double beside = 0;
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        if (i != j) beside = std::max(beside, std::abs(moment(i, j)));
    EXPECT_LE(beside, 1e-12 * d.eigenvalues.front());
    const Matrix<double> x = gaussian(3, n, 4);
    EXPECT_LE(largest_difference(d.transform(x.view()), product(x, transpose(p))), 1e-12);
    EXPECT_LE(largest_difference(d.inverse_transform(d.transform(x.view()).view()), x), 1e-12);
  }
}

TEST(Convolution, TheThreadCountMakesNoDifference) {
  const Matrix<double> weight = gaussian(6, 3 * 9, 2), x = gaussian(70, 6 * 30, 3);
  const auto one = solve(weight, 6, 3, {3, 3}, {5, 6}, {}, {1});
  const auto many = solve(weight, 6, 3, {3, 3}, {5, 6}, {}, {3});
  EXPECT_EQ(one.eigenvalues, many.eigenvalues);
  EXPECT_EQ(one.cost, many.cost);
  EXPECT_EQ(one.initial_cost, many.initial_cost);
  EXPECT_EQ(largest_difference(one.transform(x.view(), {1}), many.transform(x.view(), {3})), 0);
  EXPECT_EQ(largest_difference(one.inverse_transform(x.view(), {1}),
                               many.inverse_transform(x.view(), {3})),
            0);
}

TEST(Convolution, ManyChannelsAreSolvedInSteps) {
  const std::int64_t n = 128;
  const auto d = solve(gaussian(n, n * 2, 5), n, n, {2}, {3}, {}, {2});
  EXPECT_EQ(d.route.driver, "zhetrd, real: dsytrd");
  EXPECT_TRUE(d.route.fallbacks.empty());
}

TEST(Convolution, TheCallerCanCancel) {
  const Matrix<double> weight = gaussian(4, 2 * 3, 1);
  struct Cancelled {};
  int polls = 0;
  const Context context{
      2, [&] {
        if (++polls == 3) throw Cancelled();
        std::this_thread::sleep_for(std::chrono::milliseconds(25));  // so it is due
      }};
  EXPECT_THROW(solve(weight, 4, 2, {3}, {5000}, {}, context), Cancelled);
}

TEST(Convolution, TheMemoryStatedGrowsAsDocumented) {
  const Shape weight{256, 256, 3, 3}, grid{56, 56};
  const double stored = 16.0 * 256 * 256 * (56 * 56 / 2 + 2);
  EXPECT_GT(double(descramble_conv_memory(weight, grid, 2)), stored);
  EXPECT_LT(double(descramble_conv_memory(weight, grid, 2)), 1.2 * stored);
  EXPECT_GT(descramble_conv_memory(weight, grid, 8), descramble_conv_memory(weight, grid, 2));
  const Shape huge{1 << 20, 1 << 20, 3}, row{1 << 20};
  EXPECT_EQ(descramble_conv_memory(huge, row), std::numeric_limits<std::int64_t>::max());
  // Products that no 64 bits hold.
  const Shape long_kernel{4, 1 << 30, std::int64_t(1) << 40},
      many_channels{std::int64_t(1) << 39, 1, 1};
  for (const Shape& beyond : {long_kernel, many_channels})
    EXPECT_EQ(descramble_conv_memory(beyond, Shape{2}), std::numeric_limits<std::int64_t>::max());
}

TEST(Convolution, WhatCannotBeUsedIsNamed) {
  const auto refusal = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "nothing was refused";
  };
  Matrix<double> weight = gaussian(2, 6, 1);
  const auto text = refusal([&] { solve(weight, 2, 2, {3}, {4, 4}); });
  EXPECT_NE(text.find("spatial_shape: got (4, 4), expected 1"), std::string::npos) << text;
  const auto size = refusal([&] { solve(weight, 2, 2, {3}, {4}, Operator::fourier(5)); });
  EXPECT_NE(size.find("operator: acts on 5 places"), std::string::npos) << size;
  weight(1, 4) = std::numeric_limits<double>::infinity();
  const auto place = refusal([&] { solve(weight, 2, 2, {3}, {4}); });
  EXPECT_NE(place.find("index (1, 1, 1)"), std::string::npos) << place;
}

}  // namespace
}  // namespace descramble_fast
