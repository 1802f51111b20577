#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/one_tree.hpp"
#include "cpu/quadratic_assignment.hpp"
#include "descramble_fast/assignment.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/permutation.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;
using testing::identity;
using testing::product;
using testing::transpose;

using Order = std::vector<std::int64_t>;

Order iota(std::int64_t n) {
  Order out(std::size_t(n), 0);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

bool is_permutation_of(const Order& p, std::int64_t n) {
  Order sorted = p;
  std::ranges::sort(sorted);
  return sorted == iota(n);
}

Order shuffled(std::int64_t n, unsigned seed) {
  Order out = iota(n);
  std::mt19937_64 engine(seed);
  std::shuffle(out.begin(), out.end(), engine);
  return out;
}

Matrix<double> reordered(const Matrix<double>& a, const Order& p) {
  Matrix<double> out(a.rows(), a.rows());
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.rows(); ++j) out(i, j) = a(p[std::size_t(i)], p[std::size_t(j)]);
  return out;
}

// The least value of a function over all orders of n.
double least_of_all(std::int64_t n, const std::function<double(const Order&)>& cost) {
  Order p = iota(n);
  double best = std::numeric_limits<double>::infinity();
  do {
    best = std::min(best, cost(p));
  } while (std::next_permutation(p.begin(), p.end()));
  return best;
}

Covariance covariance_of(const Matrix<double>& samples) {
  Covariance c(samples.columns());
  c.update(samples.view());
  return c;
}

// ---- smooth orders

Matrix<double> dense(const Operator& op) {
  Matrix<double> out = identity(op.size());
  op.apply(out.values());
  return out;
}

double roughness(const Matrix<double>& l, const Matrix<double>& c, const Order& p) {
  double sum = 0;
  for (std::int64_t i = 0; i < l.rows(); ++i)
    for (std::int64_t j = 0; j < l.rows(); ++j)
      sum += l(i, j) * c(p[std::size_t(i)], p[std::size_t(j)]);
  return sum;
}

Operator general(std::int64_t n) {
  const Matrix<double> g = gaussian(n, n, 99);
  return Operator::from_matrix(product(g, transpose(g)).view());
}

std::vector<Operator> operators(std::int64_t n) {
  std::vector<Operator> out{
      Operator::fourier(n, 1),
      Operator::fourier(n, 2),
      Operator::difference(n, 1, Boundary::periodic),
      Operator::difference(n, 1, Boundary::path),
      Operator::difference(n, 2, Boundary::periodic),
      Operator::difference(n, 2, Boundary::path),
      Operator::central_difference(n),
      general(n),
  };
  if (n % 2 == 0)
    out.push_back(Operator::grid({Operator::difference(2, 1, Boundary::path),
                                  Operator::difference(n / 2, 1, Boundary::path)}));
  return out;
}

TEST(SmoothOrder, CostsAreThoseOfTheDefinition) {
  for (const std::int64_t n : {2, 3, 8, 9, 16, 25}) {
    const Covariance covariance = covariance_of(gaussian(4 * n, n, unsigned(n), 0.5));
    const Matrix<double> c = covariance.second_moment();
    for (const Operator& op : operators(n)) {
      SCOPED_TRACE(op.name());
      const SmoothOrder r = descramble_permutation(covariance, op);
      ASSERT_TRUE(is_permutation_of(r.permutation, n));
      const Matrix<double> l = dense(op);
      const double limit = 1e-11 * op.eigenvalues().back() * double(n);
      EXPECT_NEAR(r.cost, roughness(l, c, r.permutation), limit);
      EXPECT_NEAR(r.initial_cost, roughness(l, c, iota(n)), limit);
      EXPECT_LE(r.cost, r.initial_cost + limit);
      EXPECT_LE(r.bound, r.cost + limit);
      EXPECT_NEAR(r.bound, descramble(covariance, op).bound, limit);
      EXPECT_EQ(r.stopped, Stopped::finished);
      if (r.tree_bound) {
        EXPECT_LE(*r.tree_bound, r.cost + limit);
      }
    }
  }
}

// -1/2 sum_ij L_ij d(p_i, p_j) with d_ij = C_ii + C_jj - 2 C_ij, where L 1 = 0.
TEST(SmoothOrder, DistancesAloneDecideWhereConstantsAreSmooth) {
  for (const std::int64_t n : {6, 11}) {
    const Covariance covariance = covariance_of(gaussian(50, n, unsigned(n), 1));
    const Matrix<double> c = covariance.second_moment();
    Matrix<double> d(n, n);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) d(i, j) = -(c(i, i) + c(j, j) - 2 * c(i, j)) / 2;
    for (const Operator& op : operators(n)) {
      if (op.eigenvalues()[0] > 1e-9) continue;  // the general one: constants are not smooth
      const Order p = descramble_permutation(covariance, op).permutation;
      const Matrix<double> l = dense(op);
      EXPECT_NEAR(roughness(l, d, p), roughness(l, c, p), 1e-9 * op.eigenvalues().back())
          << op.name();
    }
  }
}

TEST(SmoothOrder, IsTheBestOfAllOnSmallProblems) {
  for (std::int64_t n = 2; n <= 7; ++n)
    for (unsigned seed = 1; seed <= 3; ++seed) {
      const Covariance covariance = covariance_of(gaussian(20, n, seed));
      const Matrix<double> c = covariance.second_moment();
      for (const Operator& op : operators(n)) {
        const Matrix<double> l = dense(op);
        const double best = least_of_all(n, [&](const Order& p) { return roughness(l, c, p); });
        EXPECT_NEAR(descramble_permutation(covariance, op).cost, best,
                    1e-12 * op.eigenvalues().back() * double(n))
            << op.name() << ' ' << n;
      }
    }
}

// Neurons that sample a smooth curve, on a ring or along a line, in a random order.
Matrix<double> planted(const Order& order, bool ring) {
  const std::int64_t n = std::int64_t(order.size()), count = 400;
  Matrix<double> out(count, n);
  for (std::int64_t s = 0; s < count; ++s)
    for (std::int64_t j = 0; j < n; ++j) {
      const double t = double(order[std::size_t(j)]) / double(n);
      const double x = double(s) / double(count);
      const double distance = ring ? std::sin(std::numbers::pi * (t - x)) : t - x;
      out(s, j) = std::exp(-20 * distance * distance);
    }
  return out;
}

TEST(SmoothOrder, APlantedOrderIsPutBack) {
  for (const std::int64_t n : {12, 61})
    for (const Boundary boundary : {Boundary::path, Boundary::periodic})
      for (const int order : {1, 2}) {
        const bool ring = boundary == Boundary::periodic;
        const Order shuffle = shuffled(n, unsigned(n));
        const Operator op = Operator::difference(n, order, boundary);
        const SmoothOrder r = descramble_permutation(covariance_of(planted(shuffle, ring)), op);
        std::vector<std::int64_t> steps;
        for (std::int64_t i = 0; i + 1 < n; ++i) {
          const auto at = [&](std::int64_t place) {
            return shuffle[std::size_t(r.permutation[std::size_t(place)])];
          };
          const std::int64_t step = at(i + 1) - at(i);
          steps.push_back(ring ? (step + n) % n : step);
        }
        const std::int64_t back = ring ? n - 1 : -1;
        EXPECT_TRUE(steps == Order(steps.size(), 1) || steps == Order(steps.size(), back))
            << op.name();
        if (order == 1) {
          ASSERT_TRUE(r.tree_bound);
          EXPECT_LE(*r.tree_bound, r.cost * (1 + 1e-9));
        }
      }
}

TEST(SmoothOrder, DependsOnTheSeedAndNotOnThreads) {
  const Covariance covariance = covariance_of(gaussian(100, 14, 3));
  for (const Operator& op :
       {Operator::difference(14, 1, Boundary::path), Operator::fourier(14, 2), general(14)}) {
    const SearchOptions search{.seed = 5, .restarts = 2, .time_limit = {}, .progress = {}};
    const SmoothOrder serial =
        descramble_permutation(covariance, op, search, {.threads = 1, .poll = {}});
    for (const int threads : {2, 4})
      EXPECT_EQ(descramble_permutation(covariance, op, search, {.threads = threads, .poll = {}})
                    .permutation,
                serial.permutation)
          << op.name();
  }
}

TEST(SmoothOrder, ProgressStopsTheSearchAndPollCancelsIt) {
  struct Cancelled {};
  const Covariance covariance = covariance_of(gaussian(100, 60, 4));
  for (const Operator& op :
       {Operator::difference(60, 1, Boundary::periodic), Operator::fourier(60, 2), general(60)}) {
    SearchOptions search;
    search.progress = [](const SearchProgress& p) { return p.step >= 0; };
    const SmoothOrder stopped = descramble_permutation(covariance, op, search);
    EXPECT_EQ(stopped.stopped, Stopped::callback) << op.name();
    EXPECT_TRUE(is_permutation_of(stopped.permutation, 60));
    EXPECT_LE(stopped.cost, stopped.initial_cost);
    search.progress = {};
    search.time_limit = 0;
    const SmoothOrder late = descramble_permutation(covariance, op, search);
    EXPECT_EQ(late.stopped, Stopped::time_limit) << op.name();
    EXPECT_TRUE(is_permutation_of(late.permutation, 60));
    EXPECT_THROW(descramble_permutation(covariance, op, {},
                                        {.threads = 2, .poll = [] { throw Cancelled{}; }}),
                 Cancelled)
        << op.name();
  }
}

TEST(SmoothOrder, BadArgumentsAreRefused) {
  const Covariance covariance = covariance_of(gaussian(20, 6, 5));
  const Operator op = Operator::fourier(6);
  EXPECT_THROW(descramble_permutation(covariance, Operator::fourier(7)), InvalidArgument);
  EXPECT_THROW(descramble_permutation(Covariance(6), op), InvalidArgument);
  SearchOptions search;
  search.restarts = -1;
  EXPECT_THROW(descramble_permutation(covariance, op, search), InvalidArgument);
  search = {};
  search.time_limit = -1;
  EXPECT_THROW(descramble_permutation(covariance, op, search), InvalidArgument);
}

// ---- the 1-tree bound

Matrix<double> squared_distances(const Matrix<double>& points) {
  Matrix<double> out(points.rows(), points.rows(), 0);
  for (std::int64_t i = 0; i < points.rows(); ++i)
    for (std::int64_t j = 0; j < points.rows(); ++j)
      for (std::int64_t k = 0; k < points.columns(); ++k)
        out(i, j) += std::pow(points(i, k) - points(j, k), 2);
  return out;
}

double tour(const Matrix<double>& d, const Order& p, bool periodic) {
  double sum = periodic ? d(p.back(), p.front()) : 0;
  for (std::size_t i = 0; i + 1 < p.size(); ++i) sum += d(p[i], p[i + 1]);
  return sum;
}

TEST(OneTree, IsBelowEveryTourAndPath) {
  for (std::int64_t n = 3; n <= 7; ++n)
    for (unsigned seed = 0; seed < 8; ++seed)
      for (const bool periodic : {true, false}) {
        const Matrix<double> d = squared_distances(gaussian(n, 1 + seed % 3, seed));
        const auto cost = [&](const Order& p) { return tour(d, p, periodic); };
        const double best = least_of_all(n, cost);
        for (const double upper : {best, cost(iota(n)), 10 * best}) {
          const double bound = cpu::one_tree_bound(d, periodic, upper, {});
          EXPECT_LE(bound, best * (1 + 1e-12)) << n << ' ' << seed << ' ' << periodic;
          EXPECT_GE(bound, 0.5 * best) << n << ' ' << seed << ' ' << periodic;
        }
      }
}

TEST(OneTree, IsAttainedAlongALine) {
  const Order order = shuffled(50, 1);
  Matrix<double> points(50, 1);
  for (std::int64_t i = 0; i < 50; ++i) points(i, 0) = double(order[std::size_t(i)]);
  const Matrix<double> d = squared_distances(points);
  EXPECT_NEAR(cpu::one_tree_bound(d, false, 49, {}), 49, 0.05);
}

// ---- quadratic assignment

Matrix<double> integers(std::int64_t n, unsigned seed, bool symmetric) {
  std::mt19937_64 engine(seed);
  Matrix<double> out(n, n);
  for (double& x : out.values()) x = double(engine() % 19) - 9;
  if (symmetric)
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < i; ++j) out(i, j) = out(j, i);
  return out;
}

double definition(const Matrix<double>& a, const Matrix<double>& b, const Order& p) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.rows(); ++j)
      sum += a(i, j) * b(p[std::size_t(i)], p[std::size_t(j)]);
  return sum;
}

double swap_gain(const Matrix<double>& a, const Matrix<double>& b, Order p, std::int64_t r,
                 std::int64_t s) {
  const double before = definition(a, b, p);
  std::swap(p[std::size_t(r)], p[std::size_t(s)]);
  return definition(a, b, p) - before;
}

// Integers: gains must be exact.
void expect_gains(const cpu::SwapGains& gains, const Matrix<double>& a, const Matrix<double>& b) {
  const std::int64_t free = gains.free();
  std::vector<double> row(std::size_t(free), 0), scratch(std::size_t(free), 0);
  for (std::int64_t r = 0; r < free; ++r) {
    gains.row(r, row.data(), scratch.data());
    for (std::int64_t s = 0; s < free; ++s) {
      const double expected = swap_gain(a, b, gains.columns(), r, s);
      EXPECT_EQ(row[std::size_t(s)], expected) << r << ' ' << s;
      if (r != s) EXPECT_EQ(gains.gain(r, s), expected) << r << ' ' << s;
    }
  }
}

TEST(SwapGains, AreThoseOfTheDefinitionAfterAnyNumberOfSwaps) {
  constexpr std::int64_t n = 13;
  for (const auto& [a_symmetric, b_symmetric] :
       {std::pair{true, true}, {false, false}, {true, false}, {false, true}})
    for (const std::int64_t free : {n, n - 4, std::int64_t(2)}) {
      const Matrix<double> a = integers(n, 1, a_symmetric), b = integers(n, 2, b_symmetric);
      Order start = shuffled(free, 3);
      for (std::int64_t i = free; i < n; ++i) start.push_back(i);
      cpu::SwapGains gains(a, b, start, free, 2);
      expect_gains(gains, a, b);
      std::mt19937_64 engine(4);
      for (int k = 0; k < 200; ++k) {
        const auto u = std::int64_t(engine() % std::uint64_t(free));
        const auto v = (u + 1 + std::int64_t(engine() % std::uint64_t(free - 1))) % free;
        const Order before = gains.columns();
        gains.swap(u, v);
        EXPECT_EQ(gains.columns()[std::size_t(u)], before[std::size_t(v)]);
        EXPECT_EQ(gains.columns()[std::size_t(v)], before[std::size_t(u)]);
        if (k % 7 == 0) expect_gains(gains, a, b);
        if (k % 50 == 49) gains.refresh();
        if (HasFailure()) return;
      }
      expect_gains(gains, a, b);
    }
}

TEST(SwapGains, TheLastTermIsTheChangeOfOtherPairs) {
  constexpr std::int64_t n = 12;
  for (const bool symmetric : {true, false}) {
    const Matrix<double> a = integers(n, 5, symmetric), b = integers(n, 6, symmetric);
    cpu::SwapGains gains(a, b, shuffled(n, 7), n, 1);
    for (int k = 0; k < 60; ++k) {
      const std::int64_t u = k % n, v = (k + 1 + k % 5) % n;
      const Order before = gains.columns();
      gains.swap(u, v);
      const Order& p = gains.columns();
      for (std::int64_t r = 0; r < n; ++r)
        for (std::int64_t s = 0; s < n; ++s) {
          if (r == s || r == u || r == v || s == u || s == v) continue;
          double change = 0;
          for (int t = 0; t < gains.terms(); ++t) {
            const cpu::SwapGains::Term term = gains.last_term(t);
            change +=
                (term.x[r] - term.x[s]) * (term.y[p[std::size_t(r)]] - term.y[p[std::size_t(s)]]);
          }
          EXPECT_EQ(swap_gain(a, b, p, r, s) - swap_gain(a, b, before, r, s), change);
        }
    }
  }
}

TEST(QuadraticAssignment, IsTheBestOfAllOnSmallProblems) {
  for (std::int64_t n = 1; n <= 7; ++n)
    for (unsigned seed = 0; seed < 4; ++seed) {
      const bool symmetric = seed % 2 == 0;
      const Matrix<double> a = integers(n, 2 * seed, symmetric);
      const Matrix<double> b = integers(n, 2 * seed + 1, symmetric);
      const double least = least_of_all(n, [&](const Order& p) { return definition(a, b, p); });
      const double most = -least_of_all(n, [&](const Order& p) { return -definition(a, b, p); });
      const QuadraticAssignment low = quadratic_assignment(a.view(), b.view());
      ASSERT_TRUE(is_permutation_of(low.columns, n));
      EXPECT_EQ(low.cost, definition(a, b, low.columns));
      EXPECT_EQ(low.cost, least) << n << ' ' << seed;
      QuadraticAssignmentOptions options;
      options.maximize = true;
      const QuadraticAssignment high = quadratic_assignment(a.view(), b.view(), options);
      EXPECT_EQ(high.cost, definition(a, b, high.columns));
      EXPECT_EQ(high.cost, most) << n << ' ' << seed;
    }
}

TEST(QuadraticAssignment, AGivenMatchIsKeptAndTheRestIsTheBest) {
  constexpr std::int64_t n = 7;
  for (unsigned seed = 0; seed < 4; ++seed) {
    const Matrix<double> a = integers(n, seed, seed < 2), b = integers(n, seed + 10, seed < 2);
    QuadraticAssignmentOptions options;
    options.partial_match = {{5, 0}, {1, 6}};
    const double best = least_of_all(n, [&](const Order& p) {
      return p[5] == 0 && p[1] == 6 ? definition(a, b, p) : std::numeric_limits<double>::infinity();
    });
    const QuadraticAssignment r = quadratic_assignment(a.view(), b.view(), options);
    ASSERT_TRUE(is_permutation_of(r.columns, n));
    EXPECT_EQ(r.columns[5], 0);
    EXPECT_EQ(r.columns[1], 6);
    EXPECT_EQ(r.cost, best) << seed;
  }
}

TEST(QuadraticAssignment, AStartIsCostedAndImproved) {
  const Matrix<double> a = integers(20, 1, true), b = integers(20, 2, true);
  QuadraticAssignmentOptions options;
  options.initial = shuffled(20, 3);
  const QuadraticAssignment r = quadratic_assignment(a.view(), b.view(), options);
  EXPECT_EQ(r.initial_cost, definition(a, b, *options.initial));
  EXPECT_EQ(r.cost, definition(a, b, r.columns));
  EXPECT_LT(r.cost, r.initial_cost);
  for (const int threads : {1, 3})
    EXPECT_EQ(
        quadratic_assignment(a.view(), b.view(), options, {.threads = threads, .poll = {}}).columns,
        r.columns);
}

TEST(QuadraticAssignment, BadArgumentsAreRefused) {
  const Matrix<double> a = integers(4, 1, true), b = integers(5, 2, true), flat = gaussian(3, 4, 1);
  EXPECT_THROW(quadratic_assignment(a.view(), b.view()), InvalidArgument);
  EXPECT_THROW(quadratic_assignment(flat.view(), a.view()), InvalidArgument);
  Matrix<double> nan = a.copy();
  nan(2, 3) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(quadratic_assignment(a.view(), nan.view()), InvalidArgument);
  using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;
  for (const Pairs& pairs :
       {Pairs{{0, 4}}, Pairs{{-1, 0}}, Pairs{{0, 1}, {0, 2}}, Pairs{{0, 1}, {2, 1}}}) {
    QuadraticAssignmentOptions options;
    options.partial_match = pairs;
    EXPECT_THROW(quadratic_assignment(a.view(), a.view(), options), InvalidArgument);
  }
  for (const Order& start : {Order{0, 1, 2}, Order{0, 1, 2, 2}, Order{0, 1, 2, 4}}) {
    QuadraticAssignmentOptions options;
    options.initial = start;
    EXPECT_THROW(quadratic_assignment(a.view(), a.view(), options), InvalidArgument);
  }
}

// ---- matching

TEST(Matching, TraceAndDiagonalAreTheBestOfAll) {
  for (const auto& [n, m] : {std::pair{1, 1}, {5, 5}, {6, 4}, {4, 7}}) {
    const Matrix<double> w = gaussian(n, m, unsigned(10 * n + m));
    const auto value = [&w](const Order& p, int power) {
      double sum = 0;
      for (std::int64_t i = 0; i < std::min(w.rows(), w.columns()); ++i)
        sum += std::pow(w(p[std::size_t(i)], i), power);
      return sum;
    };
    for (const int power : {1, 2}) {
      const Permutation r = power == 1 ? permute_trace(w.view()) : permute_diagonal(w.view());
      const double best = -least_of_all(n, [&](const Order& p) { return -value(p, power); });
      ASSERT_TRUE(is_permutation_of(r.permutation, n));
      EXPECT_NEAR(r.cost, best, 1e-12);
      EXPECT_NEAR(r.cost, value(r.permutation, power), 1e-12);
      EXPECT_NEAR(r.initial_cost, value(iota(n), power), 1e-12);
      EXPECT_NEAR(r.bound, r.cost, 1e-12);
    }
  }
}

TEST(Matching, TheNearestPermutationIsTheBestOfAllSignedToo) {
  const Matrix<double> p = gaussian(6, 6, 20);
  for (const bool is_signed : {false, true}) {
    const Permutation r = nearest_permutation(p.view(), is_signed);
    const double best = -least_of_all(6, [&](const Order& q) {
      double sum = 0;
      for (std::int64_t i = 0; i < 6; ++i) {
        const double x = p(i, q[std::size_t(i)]);
        sum -= is_signed ? std::abs(x) : x;
      }
      return sum;
    });
    EXPECT_NEAR(r.cost, best, 1e-12);
    ASSERT_EQ(r.signs.size(), is_signed ? 6u : 0u);
    for (std::int64_t i = 0; is_signed && i < 6; ++i)
      EXPECT_GT(double(r.signs[std::size_t(i)]) * p(i, r.permutation[std::size_t(i)]), 0);
  }
}

TEST(Matching, NeuronsLeftOverAreMarked) {
  const Matrix<double> similarity = gaussian(5, 3, 21);
  const Permutation r = match_neurons(similarity.view());
  ASSERT_EQ(r.permutation.size(), 5u);
  EXPECT_EQ(std::ranges::count(r.permutation, -1), 2);
}

TEST(Matching, ComponentsFindTheirModes) {
  constexpr std::int64_t n = 16;
  // Frequencies 3, 1 and 2, shifted, of falling amplitude: modes come in pairs after the constant.
  const std::vector<int> frequencies{3, 1, 2};
  Matrix<double> waves(3, n);
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      waves(i, j) = double(4 - i) *
                    std::cos(2 * std::numbers::pi * frequencies[std::size_t(i)] * double(j) / n +
                             0.4 * double(i + 1));
  DescrambleOptions options;
  options.k = 3;
  const SmoothnessDescrambler d = descramble(covariance_of(waves), Operator::fourier(n), options);
  const ModeMatch match = match_modes(d);
  ASSERT_EQ(match.modes.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((match.modes[i] + 1) / 2, frequencies[i]);
    EXPECT_NEAR(match.correlation[i], 1, 1e-6);
  }
  EXPECT_NEAR(match.score, 1, 1e-6);
}

TEST(OutputDifference, IsRoundingForAReorderingAndLargeForAnyOtherChange) {
  const Matrix<double> w = gaussian(9, 5, 22), bias = gaussian(1, 9, 23), next = gaussian(4, 9, 24);
  const Order p = shuffled(9, 25);
  Matrix<double> w2(9, 5), bias2(1, 9), next2(4, 9);
  for (std::int64_t i = 0; i < 9; ++i) {
    const std::int64_t q = p[std::size_t(i)];
    std::copy_n(w.row(q), 5, w2.row(i));
    bias2(0, i) = bias(0, q);
    for (std::int64_t k = 0; k < 4; ++k) next2(k, i) = next(k, q);
  }
  const ArrayView b(bias.data(), {9}), b2(bias2.data(), {9});
  const Layer before{w.view(), b, next.view()};
  EXPECT_EQ(output_difference(before, before), 0);
  EXPECT_LE(output_difference(before, {w2.view(), b2, next2.view()}), 1e-14);
  EXPECT_GT(output_difference(before, {w2.view(), b2, next.view()}), 1e-3);
  EXPECT_GT(output_difference(before, {w2.view(), b, next2.view()}), 1e-3);
  EXPECT_GT(output_difference(before, {w.view(), {}, next.view()}), 1e-3);
  EXPECT_THROW(output_difference(before, {w2.view(), b2, w.view()}), InvalidArgument);
}

}  // namespace
}  // namespace descramble_fast
