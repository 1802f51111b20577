#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "descramble_fast/covariance.hpp"
#include "descramble_fast/error.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;
using testing::largest_difference;

// Two passes in long double over weighted rows.
Matrix<double> oracle(const Matrix<double>& x, const std::vector<double>& weights = {}) {
  const std::int64_t n = x.columns();
  const auto weight = [&](std::int64_t r) {
    return weights.empty() ? 1.0L : static_cast<long double>(weights[std::size_t(r)]);
  };
  std::vector<long double> mean(std::size_t(n), 0);
  long double total = 0;
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    total += weight(r);
    for (std::int64_t i = 0; i < n; ++i) mean[std::size_t(i)] += weight(r) * x(r, i);
  }
  for (auto& m : mean) m /= total;
  Matrix<double> out(n, n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      long double sum = 0;
      for (std::int64_t r = 0; r < x.rows(); ++r)
        sum += weight(r) * (x(r, i) - mean[std::size_t(i)]) * (x(r, j) - mean[std::size_t(j)]);
      out(i, j) = double(sum / total);
    }
  return out;
}

Matrix<double> rows(const Matrix<double>& x, std::int64_t begin, std::int64_t end) {
  Matrix<double> out(end - begin, x.columns());
  std::copy_n(x.row(begin), (end - begin) * x.columns(), out.data());
  return out;
}

bool same_bits(const Covariance& a, const Covariance& b) {
  const auto s = a.state(), t = b.state();
  const auto equal = [](const std::vector<double>& x, const std::vector<double>& y) {
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), 8 * x.size()) == 0;
  };
  return s.count == t.count && s.weight == t.weight && equal(s.reference, t.reference) &&
         equal(s.offset, t.offset) && equal(s.packed_scatter, t.packed_scatter);
}

TEST(Covariance, AgreesWithTwoPassesForEveryChunking) {
  for (const double mean : {0.0, 1e6}) {
    const Matrix<double> x = gaussian(700, 13, 1, mean);
    const Matrix<double> expected = oracle(x);
    for (const std::int64_t chunk : {1, 7, 64, 512, 700}) {
      Covariance c(13);
      for (std::int64_t r = 0; r < x.rows(); r += chunk)
        c.update(rows(x, r, std::min(x.rows(), r + chunk)).view());
      EXPECT_EQ(c.count(), 700);
      EXPECT_LE(largest_difference(c.covariance(), expected), 1e-13) << mean << " " << chunk;
    }
  }
}

TEST(Covariance, MergesShardsOfOppositeMeans) {
  Matrix<double> x = gaussian(600, 5, 2, 1e6);
  for (std::int64_t r = 300; r < 600; ++r)
    for (std::int64_t i = 0; i < 5; ++i) x(r, i) = -x(r, i);
  Covariance left(5), right(5);
  left.update(rows(x, 0, 300).view());
  right.update(rows(x, 300, 600).view());
  left.merge(right);
  EXPECT_LE(largest_difference(left.covariance(), oracle(x)), 1e-15 * 1e12);
}

TEST(Covariance, AnEmptyAccumulatorIsNeutral) {
  Covariance full(4), into(4), copy(4);
  const Matrix<double> x = gaussian(50, 4, 3, 10);
  full.update(x.view());
  copy.update(x.view());
  into.merge(full);
  EXPECT_TRUE(same_bits(into, full));
  full.merge(Covariance(4));
  EXPECT_TRUE(same_bits(full, copy));
}

TEST(Covariance, WeightsAreFrequencies) {
  const Matrix<double> x = gaussian(90, 6, 4, 3);
  std::vector<double> weights(90);
  Covariance repeated(6), weighted(6);
  for (std::int64_t r = 0; r < 90; ++r) {
    weights[std::size_t(r)] = double(r % 4);
    for (int i = 0; i < r % 4; ++i) repeated.update(rows(x, r, r + 1).view());
  }
  weighted.update(x.view(), {.mask = {}, .weights = ArrayView(weights.data(), {90})});
  EXPECT_EQ(weighted.weight(), repeated.weight());
  EXPECT_LE(largest_difference(weighted.covariance(), repeated.covariance()), 1e-13);
  EXPECT_LE(largest_difference(weighted.covariance(), oracle(x, weights)), 1e-13);
}

TEST(Covariance, RowsThatDoNotCountMayHoldNan) {
  Matrix<double> x = gaussian(10, 3, 5);
  x(4, 1) = std::numeric_limits<double>::quiet_NaN();
  bool mask[10];
  std::fill_n(mask, 10, true);
  mask[4] = false;
  Covariance c(3);
  c.update(x.view(), {.mask = ArrayView(mask, {10}), .weights = {}});
  EXPECT_EQ(c.count(), 9);
  EXPECT_TRUE(std::isfinite(c.covariance()(1, 1)));
}

TEST(Covariance, ANanInTheLastRowLeavesTheStateBitIdentical) {
  Covariance c(3), before(3);
  const Matrix<double> good = gaussian(5, 3, 6);
  c.update(good.view());
  before.update(good.view());
  Matrix<double> bad = gaussian(2000, 3, 7);
  bad(1999, 2) = std::numeric_limits<double>::infinity();
  try {
    c.update(bad.view());
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("row 1999, column 2"), std::string::npos);
  }
  EXPECT_TRUE(same_bits(c, before));
}

TEST(Covariance, ARefusedUpdateLeavesWaitingRowsToThoseThatFollow) {
  const Matrix<double> first = gaussian(7, 1, 30, 3), more = gaussian(256, 1, 31, 3);
  Matrix<double> full = gaussian(256, 1, 32);
  full(255, 0) = std::numeric_limits<double>::quiet_NaN();
  const float narrow[] = {1, std::numeric_limits<float>::infinity()};
  // Neither may wait with the rows that do: they are of another type, or too many.
  for (const ArrayView& bad : {ArrayView(narrow, {2, 1}), full.view()}) {
    Covariance c(1), before(1);
    for (Covariance* each : {&c, &before}) {
      each->update(first.view());
      each->update(more.view());
    }
    EXPECT_THROW(c.update(bad), InvalidArgument);
    for (Covariance* each : {&c, &before}) each->update(first.view());
    EXPECT_TRUE(same_bits(c, before));
  }
}

TEST(Covariance, SquaresBeyondFloat64AreRefused) {
  Matrix<double> x(2, 2, 1e200);
  Covariance c(2);
  EXPECT_THROW(c.update(x.view()), InvalidArgument);
  EXPECT_EQ(c.count(), 0);
}

TEST(Covariance, HalfTypesGiveTheMomentsOfTheirExactValues) {
  // 65504 is the largest float16; its square overflows float16.
  const Float16 halves[] = {{0x7bff}, {0xfbff}, {0x3c00}, {0x0001}};
  Covariance c(1);
  c.update(ArrayView(halves, {4, 1}));
  const double sum = 1 + 0x1p-24, squares = 2 * 65504.0 * 65504.0 + 1 + 0x1p-48;
  EXPECT_NEAR(c.mean()[0], sum / 4, 1e-6 * 65504);
  EXPECT_NEAR(c.second_moment()(0, 0), squares / 4, 1e-6 * squares / 4);
}

TEST(Covariance, OneAndManyThreadsGiveTheSameBits) {
  const Matrix<double> x = gaussian(3000, 200, 8);
  Covariance one(200), three(200);
  one.update(x.view(), {}, {.threads = 1, .poll = {}});
  three.update(x.view(), {}, {.threads = 3, .poll = {}});
  EXPECT_TRUE(same_bits(one, three));
}

TEST(Covariance, ACancelledUpdateChangesNothing) {
  Covariance c(3);
  const Matrix<double> x = gaussian(5, 3, 9);
  EXPECT_THROW(c.update(x.view(), {}, {.threads = 1, .poll = [] { throw 1; }}), int);
  EXPECT_TRUE(same_bits(c, Covariance(3)));
}

TEST(Covariance, AnUpdateCancelledAmidItsProductsChangesNothing) {
  const std::int64_t n = 1100;
  const Matrix<double> first = gaussian(50, n, 10), x = gaussian(4500, n, 11);
  Covariance before(n), whole(n);
  before.update(first.view());
  whole.update(first.view());
  EXPECT_TRUE(same_bits(whole, before));  // (which settles both, as below)
  int polls = 0;
  whole.update(x.view(), {}, {.threads = 2, .poll = [&] { ++polls; }});
  EXPECT_GE(polls, 6);  // of each panel once it is packed, and in its products
  Covariance c(n);
  c.update(first.view());
  for (int last = 0; last < 6; ++last) {
    int left = last;
    const auto cancel = [&] {
      if (left-- == 0) throw 1;
    };
    EXPECT_THROW(c.update(x.view(), {}, {.threads = 2, .poll = cancel}), int);
    EXPECT_TRUE(same_bits(c, before));
  }
  c.update(x.view());
  EXPECT_TRUE(same_bits(c, whole));
}

TEST(Covariance, CombineWeighsNormalisedSecondMoments) {
  const Matrix<double> x = gaussian(40, 3, 10, 1), y = gaussian(70, 3, 11, -2);
  Covariance a(3), b(3);
  a.update(x.view());
  b.update(y.view());
  const Covariance* const parts[] = {&a, &b};
  const double weights[] = {2, 0.5};
  const Covariance c = Covariance::combine(parts, weights);
  const Matrix<double> ca = a.second_moment(), cb = b.second_moment(), cc = c.second_moment();
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t j = 0; j < 3; ++j)
      EXPECT_NEAR(cc(i, j), 2 * ca(i, j) + 0.5 * cb(i, j), 1e-14);
  EXPECT_THROW(c.covariance(), InvalidArgument);
  EXPECT_THROW(c.mean(), InvalidArgument);
  EXPECT_THROW(a.merge(c), InvalidArgument);
}

TEST(Covariance, StateRoundTripsBitForBit) {
  Covariance c(7);
  c.update(gaussian(30, 7, 12, 5).view());
  EXPECT_TRUE(same_bits(c, Covariance::from_state(c.state())));
}

TEST(CrossCovariance, IsTheOffDiagonalBlockOfTheJointCovariance) {
  const Matrix<double> joint = gaussian(900, 8, 13, 100);
  Matrix<double> x(900, 3), y(900, 5);
  for (std::int64_t r = 0; r < 900; ++r) {
    std::copy_n(joint.row(r), 3, x.row(r));
    std::copy_n(joint.row(r) + 3, 5, y.row(r));
  }
  Covariance all(8);
  all.update(joint.view());
  CrossCovariance whole(3, 5), left(3, 5), right(3, 5);
  whole.update(x.view(), y.view());
  left.update(rows(x, 0, 400).view(), rows(y, 0, 400).view());
  right.update(rows(x, 400, 900).view(), rows(y, 400, 900).view());
  left.merge(right);
  const Matrix<double> k = all.covariance(), c = all.second_moment();
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t j = 0; j < 5; ++j) {
      EXPECT_NEAR(whole.cross_covariance()(i, j), k(i, j + 3), 1e-13);
      EXPECT_NEAR(left.cross_covariance()(i, j), k(i, j + 3), 1e-13);
      EXPECT_NEAR(whole.cross_moment()(i, j), c(i, j + 3), 1e-10);
      EXPECT_NEAR(left.correlation()(i, j), k(i, j + 3) / std::sqrt(k(i, i) * k(j + 3, j + 3)),
                  1e-13);
    }
}

TEST(Covariance, BadArgumentsAreNamed) {
  Covariance c(3);
  const Matrix<double> wrong = gaussian(2, 4, 1);
  EXPECT_THROW(c.update(wrong.view()), InvalidArgument);
  const bool flags[] = {true, false, true};
  EXPECT_THROW(c.update(ArrayView(flags, {1, 3})), TypeError);
  const Matrix<double> x = gaussian(2, 3, 1);
  const double negative[] = {1, -1};
  EXPECT_THROW(c.update(x.view(), {.mask = {}, .weights = ArrayView(negative, {2})}),
               InvalidArgument);
  const std::int64_t shape[] = {2, 3};
  const ArrayView elsewhere(x.data(), DType::float64, shape, {DeviceKind::cuda, 99});
  c.update(x.view());
  EXPECT_THROW(c.update(elsewhere), InvalidArgument);
  EXPECT_THROW(Covariance(3).update(elsewhere), BackendError);
  EXPECT_THROW(Covariance(0), InvalidArgument);
  EXPECT_THROW(Covariance(3).second_moment(), InvalidArgument);
  EXPECT_EQ(c.count(), 2);
}

}  // namespace
}  // namespace descramble_fast
