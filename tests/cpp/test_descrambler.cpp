#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/linalg.hpp"
#include "cpu/polar.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/error.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;
using testing::identity;
using testing::largest_difference;
using testing::product;
using testing::transpose;

Covariance moments(std::int64_t n, std::int64_t samples, unsigned seed) {
  // Unequal scales, so that the spectrum is well spread.
  Matrix<double> x = gaussian(samples, n, seed);
  for (std::int64_t r = 0; r < samples; ++r)
    for (std::int64_t i = 0; i < n; ++i) x(r, i) *= std::pow(0.8, double(i));
  Covariance c(n);
  c.update(product(x, gaussian(n, n, seed + 1)).view());
  return c;
}

Matrix<double> dense(const Operator& op) {
  Matrix<double> l = identity(op.size());
  op.apply(l.values());
  return l;
}

double trace_of(const Matrix<double>& a) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i) sum += a(i, i);
  return sum;
}

double cost_of(const Matrix<double>& p, const Operator& op, const Matrix<double>& c) {
  return trace_of(product(product(dense(op), p), product(c, transpose(p))));
}

Matrix<double> random_orthogonal(std::int64_t n, unsigned seed) {
  return cpu::polar(gaussian(n, n, seed), {}).factor;
}

double distance(const Matrix<double>& a, const Matrix<double>& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j) sum += std::pow(a(i, j) - b(i, j), 2);
  return std::sqrt(sum);
}

TEST(Descrambler, TransformsCanBeCancelled) {
  struct Cancelled {};
  const Matrix<double> x = gaussian(4000, 96, 1);
  const SmoothnessDescrambler d = descramble(moments(96, 200, 2), Operator::fourier(96));
  for (const int threads : {1, 2}) {
    const Context context{.threads = threads, .poll = [] { throw Cancelled(); }};
    EXPECT_THROW(d.transform(x.view(), context), Cancelled);
    EXPECT_THROW(d.inverse_transform(x.view(), context), Cancelled);
    int polls = 0;  // in each of the steps
    const Context counting{.threads = threads, .poll = [&] { ++polls; }};
    d.transform(x.view(), counting);
    EXPECT_GE(polls, 3);
  }
}

TEST(Descrambler, ReachesItsStatedCostAndNothingBeatsIt) {
  for (const std::int64_t n : {1, 2, 5, 8, 33, 64}) {
    const Operator op = Operator::fourier(n);
    const Covariance cov = moments(n, 3 * n + 5, unsigned(n));
    const Matrix<double> c = cov.second_moment();
    const SmoothnessDescrambler d = descramble(cov, op);
    const Matrix<double> p = d.matrix();
    const double tolerance = 50 * double(n) * std::numeric_limits<double>::epsilon() *
                             op.eigenvalues().back() * d.eigenvalues.front();
    EXPECT_NEAR(cost_of(p, op, c), d.cost, tolerance);
    EXPECT_NEAR(cost_of(identity(n), op, c), d.initial_cost, tolerance * double(n));
    EXPECT_LE(distance(product(p, transpose(p)), identity(n)), 1e-12 * double(n));
    for (unsigned seed = 0; seed < 20; ++seed)
      EXPECT_GE(cost_of(random_orthogonal(n, seed), op, c), d.cost - tolerance);
  }
}

TEST(Descrambler, TransformsAgreeWithTheDenseMatrix) {
  const std::int64_t n = 12;
  const Covariance cov = moments(n, 100, 3);
  const Matrix<double> reference = random_orthogonal(n, 9);
  for (const bool with_reference : {false, true}) {
    DescrambleOptions options;
    if (with_reference) {
      options.gauge = Gauge::reference;
      options.reference = reference.view();
    }
    const SmoothnessDescrambler d =
        descramble(cov, Operator::difference(n, 2, Boundary::periodic), options);
    const Matrix<double> p = d.matrix(), x = gaussian(7, n, 4), w = gaussian(n, 5, 5);
    EXPECT_LE(largest_difference(d.transform(x.view()), product(x, transpose(p))), 1e-12);
    EXPECT_LE(largest_difference(d.inverse_transform(d.transform(x.view()).view()), x), 1e-12);
    EXPECT_LE(largest_difference(d.transform_weight(w.view()), product(p, w)), 1e-12);
    EXPECT_LE(largest_difference(d.transform_next_weight(x.view()), product(x, transpose(p))),
              1e-12);
    EXPECT_LE(largest_difference(product(transpose(d.modes()), d.components), p), 1e-12);
  }
}

TEST(Descrambler, CentringSubtractsTheMean) {
  Matrix<double> x = gaussian(200, 6, 1, 50);
  Covariance cov(6);
  cov.update(x.view());
  const SmoothnessDescrambler d = descramble(cov, Operator::fourier(6), {.center = true});
  const Matrix<double> y = d.transform(x.view());
  for (std::int64_t i = 0; i < 6; ++i) {
    double sum = 0;
    for (std::int64_t r = 0; r < 200; ++r) sum += y(r, i);
    EXPECT_NEAR(sum / 200, 0, 1e-12);
  }
  EXPECT_LE(largest_difference(d.inverse_transform(y.view()), x), 1e-11);
}

TEST(Gauge, TheReferenceIsRecoveredWhereItIsOptimal) {
  // An optimal matrix, moved within the gauge group, is its own nearest optimum.
  for (const int order : {1, 2}) {
    const std::int64_t n = 10;
    const Operator op = Operator::fourier(n, order);
    const Covariance cov = moments(n, 200, 17);
    const Matrix<double> start = random_orthogonal(n, 3);
    DescrambleOptions options;
    options.gauge = Gauge::reference;
    options.reference = start.view();
    const SmoothnessDescrambler first = descramble(cov, op, options);
    EXPECT_TRUE(first.gauge.exact);
    const Matrix<double> p = first.matrix();
    EXPECT_NEAR(first.gauge.distance, distance(p, start), 1e-12);
    options.reference = p.view();
    const SmoothnessDescrambler second = descramble(cov, op, options);
    EXPECT_LE(largest_difference(second.matrix(), p), 1e-12);
    EXPECT_NEAR(cost_of(p, op, cov.second_moment()), first.cost, 1e-9 * first.initial_cost);
  }
}

TEST(Gauge, RepeatedEigenvaluesEndAtAStationaryPointNoRandomStartBeats) {
  const std::int64_t n = 9;
  Covariance cov(n);
  cov.update(gaussian(4, n, 23).view());  // rank 4: a null space of 5
  const Operator op = Operator::fourier(n);
  const Matrix<double> reference = random_orthogonal(n, 1);
  DescrambleOptions options;
  options.gauge = Gauge::reference;
  options.reference = reference.view();
  const SmoothnessDescrambler d = descramble(cov, op, options);
  EXPECT_EQ(d.blocks, (std::vector<Block>{{4, 9}}));
  EXPECT_FALSE(d.gauge.exact);
  EXPECT_NEAR(d.gauge.distance, distance(d.matrix(), reference), 1e-12);

  // Random members of the gauge group, each improved no further.
  const SmoothnessDescrambler canonical = descramble(cov, op);
  for (unsigned seed = 0; seed < 200; ++seed) {
    Matrix<double> middle = identity(n), right = identity(n);
    const auto put = [](Matrix<double>& into, Block block, const Matrix<double>& q) {
      for (std::int64_t i = 0; i < block.size(); ++i)
        for (std::int64_t j = 0; j < block.size(); ++j)
          into(block.begin + i, block.begin + j) = q(i, j);
    };
    for (const Block block : op.blocks())
      put(middle, block, random_orthogonal(block.size(), seed * 31 + unsigned(block.begin)));
    put(right, {4, 9}, random_orthogonal(5, seed + 1000));
    const Matrix<double> p = product(product(transpose(canonical.modes()), middle),
                                     product(right, canonical.components));
    EXPECT_GE(distance(p, reference), d.gauge.distance - 1e-12);
  }
}

TEST(DescrambleMany, EqualsOneByOne) {
  std::vector<Covariance> covs;
  std::vector<Operator> ops;
  for (unsigned i = 0; i < 6; ++i) {
    const std::int64_t n = i % 2 == 0 ? 8 : 11;
    covs.push_back(moments(n, 60, i));
    ops.push_back(Operator::fourier(n));
  }
  std::vector<const Covariance*> pointers;
  for (const Covariance& c : covs) pointers.push_back(&c);
  const auto many = descramble_many(pointers, ops);
  for (std::size_t i = 0; i < covs.size(); ++i) {
    const SmoothnessDescrambler one = descramble(covs[i], ops[i]);
    EXPECT_EQ(many[i].cost, one.cost);
    EXPECT_EQ(largest_difference(many[i].matrix(), one.matrix()), 0);
  }
}

TEST(Weights, IsotropicInputGivesModesTimesSingularValues) {
  const Matrix<double> w = gaussian(7, 12, 2);
  const Operator op = Operator::fourier(7);
  const SmoothnessDescrambler d = descramble(preactivation_moment(w.view(), {}, {}, {}), op);
  // P W = T S V^T: analysed along the neurons, its rows are orthogonal with the singular values as
  // norms.
  Matrix<double> rows = transpose(d.transform_weight(w.view()));
  op.analyze(rows.values());
  const Matrix<double> sv = transpose(rows), gram = product(sv, transpose(sv));
  for (std::int64_t i = 0; i < 7; ++i)
    for (std::int64_t j = 0; j < 7; ++j)
      EXPECT_NEAR(gram(i, j), i == j ? d.eigenvalues[std::size_t(i)] : 0, 1e-12);
}

TEST(Weights, KnownInputMomentsEqualStreamedPreactivations) {
  const Matrix<double> w = gaussian(5, 9, 3), x = gaussian(400, 9, 4, 0.5), b = gaussian(1, 5, 5);
  Matrix<double> y = product(x, transpose(w));
  for (std::int64_t r = 0; r < 400; ++r)
    for (std::int64_t i = 0; i < 5; ++i) y(r, i) += b(0, i);
  Covariance inputs(9), outputs(5);
  inputs.update(x.view());
  outputs.update(y.view());
  const Matrix<double> s = inputs.second_moment();
  const std::vector<double> mean = inputs.mean();
  const Covariance c = preactivation_moment(w.view(), ArrayView(b.data(), {5}), s.view(),
                                            ArrayView(mean.data(), {9}));
  EXPECT_LE(largest_difference(c.second_moment(), outputs.second_moment()), 1e-12 * 50);
  EXPECT_LE(largest_difference(c.covariance(), outputs.covariance()), 1e-12 * 50);
}

TEST(Trace, IsTheNuclearNormAndTheProductIsPositive) {
  for (const auto& [n, m] : {std::pair{6, 6}, {6, 4}, {4, 6}, {1, 1}}) {
    const Matrix<double> w = gaussian(n, m, unsigned(n * 10 + m));
    const MatrixDescrambler d = descramble_trace(w.view());
    const Matrix<double> pw = product(d.matrix(), w);
    double trace = 0;
    for (std::int64_t i = 0; i < std::min(n, m); ++i) trace += pw(i, i);
    EXPECT_NEAR(trace, d.cost, 1e-12);
    EXPECT_NEAR(d.cost, d.bound, 1e-12);
    EXPECT_LE(d.orthogonality_error, 1e-13);
    if (n == m) EXPECT_LE(largest_difference(pw, transpose(pw)), 1e-13);
    for (unsigned seed = 0; seed < 50; ++seed) {
      const Matrix<double> other = product(random_orthogonal(n, seed), w);
      double rival = 0;
      for (std::int64_t i = 0; i < std::min(n, m); ++i) rival += other(i, i);
      EXPECT_LE(rival, d.cost + 1e-12);
    }
  }
}

TEST(Diagonal, ClimbsFromTheTraceSolutionToAStationaryPoint) {
  const Matrix<double> w = gaussian(8, 8, 6);
  const auto value = [&](const Matrix<double>& p) {
    const Matrix<double> pw = product(p, w);
    double sum = 0;
    for (std::int64_t i = 0; i < 8; ++i) sum += pw(i, i) * pw(i, i);
    return sum;
  };
  const MatrixDescrambler d = descramble_diagonal(w.view());
  EXPECT_NEAR(value(d.matrix()), d.cost, 1e-11);
  EXPECT_GE(d.cost, value(descramble_trace(w.view()).matrix()));
  EXPECT_LE(d.cost, d.bound);
  EXPECT_LE(d.stationarity, 1e-7);
  EXPECT_GT(d.iterations, 0);
  // No small rotation from it climbs further.
  for (unsigned seed = 0; seed < 50; ++seed) {
    Matrix<double> nudge = gaussian(8, 8, seed);
    for (std::int64_t i = 0; i < 8; ++i)
      for (std::int64_t j = 0; j < 8; ++j) nudge(i, j) = (i == j ? 1 : 0) + 1e-3 * nudge(i, j);
    EXPECT_LE(value(product(cpu::polar(nudge, {}).factor, d.matrix())), d.cost + 1e-12);
  }
}

TEST(Descrambler, BadArgumentsAreRefused) {
  const Covariance cov = moments(4, 30, 1);
  EXPECT_THROW(descramble(cov, Operator::fourier(5)), InvalidArgument);
  EXPECT_THROW(descramble(Covariance(4), Operator::fourier(4)), InvalidArgument);
  EXPECT_THROW(descramble(cov, Operator::fourier(4),
                          {.center = false, .gauge = Gauge::canonical, .reference = {}, .k = 5}),
               InvalidArgument);
  Matrix<double> indefinite = identity(4);
  indefinite(2, 2) = -1;
  EXPECT_THROW(descramble(Covariance::from_moments(indefinite.view(), {}, 1), Operator::fourier(4)),
               InvalidArgument);
  const SmoothnessDescrambler d = descramble(cov, Operator::fourier(4));
  EXPECT_THROW(d.transform(gaussian(2, 5, 1).view()), InvalidArgument);
}

TEST(Descrambler, TheInitialCostIsTheTraceForEveryKindOfOperator) {
  std::vector<Operator> ops;
  for (const std::int64_t n : {1, 2, 3, 4, 7, 12, 35, 64, 130, 131, 254}) {
    for (const int order : {1, 2}) {
      ops.push_back(Operator::fourier(n, order));
      ops.push_back(Operator::difference(n, order, Boundary::periodic));
      ops.push_back(Operator::difference(n, order, Boundary::path));
    }
    ops.push_back(Operator::central_difference(n));
    const Matrix<double> root = gaussian(n, n, unsigned(n));
    ops.push_back(Operator::from_matrix(product(root, transpose(root)).view()));
  }
  const Operator path = Operator::difference(5, 2, Boundary::path), ring = Operator::fourier(6);
  ops.push_back(Operator::grid({path}));
  ops.push_back(Operator::grid({path, ring}));
  ops.push_back(Operator::grid({ring, Operator::central_difference(3), path}));
  ops.push_back(Operator::grid({Operator::grid({ring, path}), Operator::fourier(2)}));
  for (const Operator& op : ops) {
    const std::int64_t n = op.size();
    for (const double mean : {0.0, 3.0}) {
      Covariance cov(n);
      cov.update(gaussian(2 * n + 1, n, unsigned(n), mean).view());
      const Matrix<double> c = cov.second_moment();
      const double tolerance = 10 * double(n) * std::numeric_limits<double>::epsilon() *
                               op.eigenvalues().back() * trace_of(c);
      for (const int threads : {1, 3}) {
        Context context;
        context.threads = threads;
        EXPECT_NEAR(descramble(cov, op, {}, context).initial_cost, trace_of(product(dense(op), c)),
                    tolerance)
            << op.name() << ", mean " << mean;
      }
    }
  }
}

TEST(Descrambler, ThreadsAndCompanyChangeNoBit) {
  for (const Gauge gauge : {Gauge::canonical, Gauge::identity})
    for (const std::int64_t n : {3, 40, 129, 160}) {
      std::vector<Covariance> covariances;
      for (unsigned i = 0; i < 21; ++i) covariances.push_back(moments(n, n + 5, i));
      std::vector<const Covariance*> all;
      for (const Covariance& c : covariances) all.push_back(&c);
      const std::vector<Operator> ops(all.size(), Operator::difference(n, 2, Boundary::path));
      DescrambleOptions options;
      options.gauge = gauge;
      Context context;
      context.threads = 1;
      const auto expected = descramble_many(all, ops, options, context);
      const auto expect_equal = [&](const SmoothnessDescrambler& d, std::size_t i) {
        EXPECT_EQ(d.cost, expected[i].cost);
        EXPECT_EQ(d.initial_cost, expected[i].initial_cost);
        EXPECT_EQ(d.orthogonality_error, expected[i].orthogonality_error);
        EXPECT_EQ(largest_difference(d.components, expected[i].components), 0);
      };
      for (const int threads : {2, 5}) {
        context.threads = threads;
        const auto got = descramble_many(all, ops, options, context);
        ASSERT_EQ(got.size(), all.size());
        for (std::size_t i = 0; i < got.size(); ++i) expect_equal(got[i], i);
      }
      context.threads = 1;
      expect_equal(descramble(covariances[20], ops[0], options, context), 20);
    }
}

}  // namespace
}  // namespace descramble_fast
