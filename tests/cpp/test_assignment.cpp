#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/scan.hpp"
#include "descramble_fast/assignment.hpp"
#include "descramble_fast/error.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

using testing::gaussian;
using testing::transpose;

constexpr double infinity = std::numeric_limits<double>::infinity();

// Equal bits, apart from the sign of zero, which no comparison of the solver can see.
bool same(double a, double b) {
  return std::bit_cast<std::uint64_t>(a + 0.0) == std::bit_cast<std::uint64_t>(b + 0.0);
}

// ---- row scans

enum class Kind { smooth, ties, forbidden };

template <class T>
struct Row {
  std::vector<T> costs;
  std::vector<double> v;
};

template <class T>
Row<T> random_row(std::int64_t m, Kind kind, double sign, std::mt19937_64& engine) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  Row<T> out;
  for (std::int64_t j = 0; j < m; ++j) {
    const bool ties = kind != Kind::smooth;
    double x = ties ? std::round(3 * uniform(engine)) : uniform(engine);
    if (kind == Kind::forbidden && uniform(engine) > 0.5) x = sign * infinity;
    out.costs.push_back(T(x));
    out.v.push_back(ties ? std::round(2 * uniform(engine)) : uniform(engine));
  }
  return out;
}

template <class T>
std::vector<double> signed_costs(const Row<T>& row, double sign) {
  std::vector<double> out;
  for (const T x : row.costs) out.push_back(sign * double(x));
  return out;
}

template <class T>
void check_survey(const cpu::RowScan<T>& scan, const Row<T>& row, double sign) {
  const std::vector<double> s = signed_costs(row, sign);
  std::vector<double> least = row.v, expected = row.v;
  double lowest = infinity;
  for (std::size_t j = 0; j < s.size(); ++j) {
    lowest = std::min(lowest, s[j]);
    expected[j] = std::min(expected[j], s[j]);
  }
  bool bad = false;
  const auto m = std::int64_t(s.size());
  EXPECT_TRUE(same(scan.survey(row.costs.data(), m, sign, least.data(), &bad), lowest));
  EXPECT_TRUE(same(scan.survey(row.costs.data(), m, sign, nullptr, &bad), lowest));
  EXPECT_FALSE(bad);
  for (std::size_t j = 0; j < s.size(); ++j) EXPECT_TRUE(same(least[j], expected[j])) << j;
}

template <class T>
void check_survey_of_bad(const cpu::RowScan<T>& scan, Row<T> row, double sign,
                         std::mt19937_64& engine) {
  if (row.costs.empty()) return;
  T& place = row.costs[engine() % row.costs.size()];
  for (const double wrong : {std::numeric_limits<double>::quiet_NaN(), -sign * infinity}) {
    place = T(wrong);
    bool bad = false;
    scan.survey(row.costs.data(), std::int64_t(row.costs.size()), sign, nullptr, &bad);
    EXPECT_TRUE(bad) << wrong;
  }
}

template <class T>
void check_lane_minima(const cpu::RowScan<T>& scan, const Row<T>& row, double sign) {
  const std::vector<double> s = signed_costs(row, sign);
  std::vector<double> out(cpu::scan_lanes, -1), expected(cpu::scan_lanes, infinity);
  for (std::size_t j = 0; j < s.size(); ++j) {
    double& lane = expected[j % cpu::scan_lanes];
    lane = std::min(lane, s[j] - row.v[j]);
  }
  scan.lane_minima(row.costs.data(), row.v.data(), std::int64_t(s.size()), sign, out.data());
  for (std::size_t l = 0; l < out.size(); ++l) EXPECT_TRUE(same(out[l], expected[l])) << l;
}

template <class T>
void check_collect(const cpu::RowScan<T>& scan, const Row<T>& row, double sign, double limit) {
  const std::vector<double> s = signed_costs(row, sign);
  std::vector<std::int32_t> expected;
  for (std::size_t j = 0; j < s.size(); ++j)
    if (s[j] - row.v[j] <= limit) expected.push_back(std::int32_t(j));
  const auto found = std::int64_t(expected.size());
  for (const std::int64_t capacity : {std::int64_t(0), found / 2, found, found + 1, found + 9}) {
    std::vector<double> costs(std::size_t(capacity + cpu::list_slack), -1);
    std::vector<std::int32_t> columns(std::size_t(capacity + cpu::list_slack), -1);
    const std::int64_t count = scan.collect(row.costs.data(), row.v.data(), std::int64_t(s.size()),
                                            sign, limit, costs.data(), columns.data(), capacity);
    ASSERT_EQ(count, std::min(found, capacity + 1));
    if (count > capacity) continue;  // too many: the outputs are lost
    for (std::size_t q = 0; q < expected.size(); ++q) {
      ASSERT_EQ(columns[q], expected[q]);
      EXPECT_TRUE(same(costs[q], s[std::size_t(expected[q])]));
    }
  }
}

template <class T>
void check_row_scans(cpu::Simd level, const cpu::RowScan<T>& scan) {
  std::mt19937_64 engine(1);
  for (std::int64_t m = 0; m <= 200; ++m)
    for (const Kind kind : {Kind::smooth, Kind::ties, Kind::forbidden})
      for (const double sign : {1.0, -1.0}) {
        SCOPED_TRACE(std::string(cpu::name(level)) + ", length " + std::to_string(m));
        const Row<T> row = random_row<T>(m, kind, sign, engine);
        check_survey(scan, row, sign);
        check_survey_of_bad(scan, row, sign, engine);
        check_lane_minima(scan, row, sign);
        for (const double limit : {-infinity, -1.0, 0.0, 0.5, 10.0, infinity})
          check_collect(scan, row, sign, limit);
        if (::testing::Test::HasFailure()) return;
      }
}

TEST(Scan, EveryVariantReadsRowsAsPlainCodeDoes) {
  const auto variants = cpu::scan_variants(cpu::simd_levels().back());
  ASSERT_GE(variants.size(), 1u);
  for (const auto& [level, kernels] : variants) {
    check_row_scans(level, kernels->single);
    check_row_scans(level, kernels->wide);
  }
}

// ---- list scans

struct List {
  std::vector<double> costs;  // filled up with infinite ones
  std::vector<std::int32_t> columns;
  std::vector<double> v, distance;
};

List random_list(std::int64_t length, Kind kind, std::mt19937_64& engine) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  const auto value = [&] {
    return kind == Kind::smooth ? uniform(engine) : std::round(3 * uniform(engine));
  };
  List out;
  for (int j = 0; j < 300; ++j) {
    out.v.push_back(value());
    out.distance.push_back(uniform(engine) > 0 ? infinity : value());
  }
  std::vector<std::int32_t> columns(300);
  std::iota(columns.begin(), columns.end(), 0);
  std::shuffle(columns.begin(), columns.end(), engine);
  for (std::int64_t q = 0; q < length || q % cpu::list_slack != 0; ++q) {
    const bool filler = q >= length || (kind == Kind::forbidden && uniform(engine) > 0.5);
    out.costs.push_back(filler ? infinity : value());
    out.columns.push_back(q < length ? columns[std::size_t(q)] : 0);
  }
  return out;
}

void check_bid(const cpu::ListScan& scan, const List& list) {
  cpu::Bid expected{infinity, infinity, 0};
  std::vector<double> reduced;
  for (std::size_t q = 0; q < list.costs.size(); ++q)
    reduced.push_back(list.costs[q] - list.v[std::size_t(list.columns[q])]);
  if (!reduced.empty()) {
    const auto least = std::min_element(reduced.begin(), reduced.end());
    expected.least = *least;
    expected.place = least - reduced.begin();
    for (auto x = reduced.begin(); x != reduced.end(); ++x)
      if (x != least) expected.second = std::min(expected.second, *x);
  }
  const cpu::Bid found = scan.bid(list.costs.data(), list.columns.data(),
                                  std::int64_t(list.costs.size()), list.v.data());
  EXPECT_TRUE(same(found.least, expected.least));
  EXPECT_TRUE(same(found.second, expected.second));
  EXPECT_EQ(found.place, expected.place);
}

void check_reach(const cpu::ListScan& scan, const List& list, double offset, double limit) {
  std::vector<std::int32_t> places(list.costs.size() + cpu::list_slack), expected_places;
  std::vector<double> distances(places.size()), expected;
  for (std::size_t q = 0; q < list.costs.size(); ++q) {
    const auto j = std::size_t(list.columns[q]);
    const double d = (list.costs[q] - list.v[j]) + offset;
    if (!(d < limit && d < list.distance[j])) continue;
    expected_places.push_back(std::int32_t(q));
    expected.push_back(d);
  }
  const std::int64_t count = scan.reach(
      list.costs.data(), list.columns.data(), std::int64_t(list.costs.size()), list.v.data(),
      offset, limit, list.distance.data(), places.data(), distances.data());
  ASSERT_EQ(count, std::int64_t(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(places[i], expected_places[i]);
    EXPECT_TRUE(same(distances[i], expected[i]));
  }
}

TEST(Scan, EveryVariantReadsListsAsPlainCodeDoes) {
  for (const auto& [level, kernels] : cpu::scan_variants(cpu::simd_levels().back())) {
    std::mt19937_64 engine(2);
    for (std::int64_t length = 0; length <= 200; ++length)
      for (const Kind kind : {Kind::smooth, Kind::ties, Kind::forbidden}) {
        SCOPED_TRACE(std::string(cpu::name(level)) + ", length " + std::to_string(length));
        const List list = random_list(length, kind, engine);
        check_bid(kernels->list, list);
        for (const double limit : {-infinity, 0.0, 1.0, infinity})
          for (const double offset : {0.0, 0.3, -2.0})
            check_reach(kernels->list, list, offset, limit);
        if (HasFailure()) return;
      }
  }
}

// ---- the solver

// The least total of min(n, m) pairs, infinite where there is none without a forbidden pair.
double brute_force(const Matrix<double>& cost) {
  if (cost.rows() > cost.columns()) return brute_force(transpose(cost));
  std::vector<std::int64_t> p(std::size_t(cost.columns()));
  std::iota(p.begin(), p.end(), 0);
  double best = infinity;
  do {
    double sum = 0;
    for (std::int64_t i = 0; i < cost.rows(); ++i) sum += cost(i, p[std::size_t(i)]);
    best = std::min(best, sum);
  } while (std::next_permutation(p.begin(), p.end()));
  return best;
}

Matrix<double> negated(const Matrix<double>& a) {
  Matrix<double> out = a.copy();
  for (double& x : out.values()) x = -x;
  return out;
}

Matrix<double> integers(std::int64_t n, std::int64_t m, int range, unsigned seed) {
  std::mt19937_64 engine(seed);
  Matrix<double> out(n, m);
  for (double& x : out.values()) x = double(engine() % unsigned(2 * range + 1)) - range;
  return out;
}

// An assignment of min(n, m) pairs whose cost is `cost`, and duals that prove it the least.
void expect_certified(const Matrix<double>& cost, const LinearAssignment& r, bool maximize = false,
                      std::int64_t item = 0, double rounding = 1e-13) {
  const std::int64_t n = cost.rows(), m = cost.columns();
  const double sign = maximize ? -1 : 1;
  std::vector<int> used(std::size_t(m), 0);
  std::int64_t pairs = 0;
  double total = 0, duals = 0, scale = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t j = r.columns(item, i);
    const double u = r.row_duals(item, i);
    duals += u;
    if (j < 0) {
      EXPECT_EQ(u, 0);
      continue;
    }
    ASSERT_LT(j, m);
    EXPECT_EQ(used[std::size_t(j)]++, 0);
    ++pairs;
    total += cost(i, j);
  }
  EXPECT_EQ(pairs, std::min(n, m));
  for (std::int64_t j = 0; j < m; ++j) {
    const double v = r.column_duals(item, j);
    duals += v;
    scale = std::max(scale, std::abs(v));
    if (used[std::size_t(j)] == 0) EXPECT_EQ(v, 0);
    if (n < m) EXPECT_LE(sign * v, 0);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    scale = std::max(scale, std::abs(r.row_duals(item, i)));
    if (n > m) EXPECT_LE(sign * r.row_duals(item, i), 0);
  }
  const double limit = rounding * double(n + m) * scale;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < m; ++j) {
      const double slack = sign * (cost(i, j) - r.row_duals(item, i) - r.column_duals(item, j));
      EXPECT_GE(slack, -limit) << i << ' ' << j;
      if (r.columns(item, i) == j) EXPECT_LE(slack, limit) << i << ' ' << j;
    }
  EXPECT_NEAR(r.cost[std::size_t(item)], total, limit);
  EXPECT_NEAR(total, duals, limit);
  EXPECT_LE(std::abs(r.gap[std::size_t(item)]), limit);
  EXPECT_LE(r.violation[std::size_t(item)], limit);
}

TEST(LinearAssignment, IsTheBestOfAllOnSmallProblems) {
  unsigned seed = 0;
  for (std::int64_t n = 1; n <= 7; ++n)
    for (std::int64_t m = 1; m <= 7; ++m)
      for (int range = 0; range < 4; ++range) {
        const Matrix<double> cost =
            range == 0 ? gaussian(n, m, ++seed) : integers(n, m, range * range, ++seed);
        const LinearAssignment least = linear_assignment(cost.view());
        EXPECT_NEAR(least.cost[0], brute_force(cost), 1e-13) << n << ' ' << m;
        expect_certified(cost, least);
        const LinearAssignment most = linear_assignment(cost.view(), {.maximize = true});
        EXPECT_NEAR(most.cost[0], -brute_force(negated(cost)), 1e-13) << n << ' ' << m;
        expect_certified(cost, most, true);
        if (range > 0) {
          EXPECT_EQ(least.gap[0], 0);
          EXPECT_EQ(most.gap[0], 0);
        }
      }
}

TEST(LinearAssignment, ForbiddenPairsAreAvoidedOrTheProblemIsRefused) {
  int infeasible = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    std::mt19937_64 engine(seed);
    const auto n = std::int64_t(1 + engine() % 6), m = std::int64_t(1 + engine() % 6);
    Matrix<double> cost = seed % 2 == 0 ? gaussian(n, m, seed) : integers(n, m, 2, seed);
    for (double& x : cost.values())
      if (engine() % 2 == 0) x = infinity;
    const double best = brute_force(cost);
    if (best == infinity) {
      ++infeasible;
      EXPECT_THROW(linear_assignment(cost.view()), InvalidArgument) << seed;
      EXPECT_THROW(linear_assignment(negated(cost).view(), {.maximize = true}), InvalidArgument);
      continue;
    }
    const LinearAssignment r = linear_assignment(cost.view());
    EXPECT_NEAR(r.cost[0], best, 1e-13) << seed;
    expect_certified(cost, r);
    EXPECT_NEAR(linear_assignment(negated(cost).view(), {.maximize = true}).cost[0], -best, 1e-13);
  }
  EXPECT_GT(infeasible, 50);
  EXPECT_LT(infeasible, 350);
}

TEST(LinearAssignment, LargerProblemsAreCertifiedInBothPrecisions) {
  for (const auto& [n, m] : {std::pair{150, 150}, {150, 400}, {400, 150}, {1, 500}, {500, 1}}) {
    for (int range : {0, 1, 50}) {
      const Matrix<double> cost =
          range == 0 ? gaussian(n, m, 1) : integers(n, m, range, unsigned(range));
      expect_certified(cost, linear_assignment(cost.view()));
      Matrix<float> narrow(n, m);
      Matrix<double> rounded(n, m);
      for (std::int64_t i = 0; i < n * m; ++i)
        rounded.data()[i] = narrow.data()[i] = float(cost.data()[i]);
      const LinearAssignment r = linear_assignment(narrow.view(), {.maximize = true});
      expect_certified(rounded, r, true);
      EXPECT_EQ(r.route.dtype, "float32");
      EXPECT_EQ(r.cost[0], linear_assignment(rounded.view(), {.maximize = true}).cost[0]);
    }
  }
}

TEST(LinearAssignment, TheTransposedProblemHasTheSameCost) {
  for (const auto& [n, m] : {std::pair{30, 70}, {70, 30}, {50, 50}}) {
    const Matrix<double> cost = integers(n, m, 20, unsigned(n)), other = transpose(cost);
    const std::int64_t shape[] = {m, n}, strides[] = {1, m};
    const ArrayView turned(cost.data(), DType::float64, shape, strides);
    const LinearAssignment r = linear_assignment(turned);
    expect_certified(other, r);
    EXPECT_EQ(r.cost, linear_assignment(cost.view()).cost);
    const LinearAssignment contiguous = linear_assignment(other.view());
    EXPECT_TRUE(std::ranges::equal(r.columns.values(), contiguous.columns.values()));
  }
}

TEST(LinearAssignment, StridesOfAnyKind) {
  const Matrix<double> large = gaussian(40, 60, 5);
  for (const std::int64_t row_step : {1, 2, -1, -2})
    for (const std::int64_t column_step : {1, 2, -1, -3}) {
      const std::int64_t shape[] = {18, 19}, strides[] = {row_step * 60, column_step};
      const std::int64_t start = (row_step < 0 ? 39 * 60 : 0) + (column_step < 0 ? 59 : 0);
      const ArrayView view(large.data() + start, DType::float64, shape, strides);
      Matrix<double> plain(18, 19);
      for (std::int64_t i = 0; i < 18; ++i)
        for (std::int64_t j = 0; j < 19; ++j)
          plain(i, j) = large.data()[start + i * strides[0] + j * strides[1]];
      const LinearAssignment r = linear_assignment(view),
                             expected = linear_assignment(plain.view());
      expect_certified(plain, r);
      EXPECT_TRUE(std::ranges::equal(r.columns.values(), expected.columns.values()));
      EXPECT_EQ(r.cost, expected.cost);
    }
  const std::int64_t shape[] = {5, 5}, strides[] = {0, 1};  // five times the same row
  const LinearAssignment r =
      linear_assignment(ArrayView(large.data(), DType::float64, shape, strides));
  EXPECT_NEAR(r.cost[0], std::accumulate(large.data(), large.data() + 5, 0.0), 1e-13);
}

void expect_equal(const LinearAssignment& a, const LinearAssignment& b) {
  EXPECT_TRUE(std::ranges::equal(a.columns.values(), b.columns.values()));
  EXPECT_TRUE(std::ranges::equal(a.row_duals.values(), b.row_duals.values()));
  EXPECT_TRUE(std::ranges::equal(a.column_duals.values(), b.column_duals.values()));
  EXPECT_EQ(a.cost, b.cost);
  EXPECT_EQ(a.gap, b.gap);
  EXPECT_EQ(a.violation, b.violation);
}

TEST(LinearAssignment, ThreadsDoNotChangeTheAnswer) {
  for (const int range : {0, 2}) {
    const Matrix<double> one = range == 0 ? gaussian(300, 320, 7) : integers(300, 320, range, 7);
    const Matrix<double> many =
        range == 0 ? gaussian(40 * 30, 30, 8) : integers(1200, 30, range, 8);
    const ArrayView batch(many.data(), {4, 10, 30, 30});
    const LinearAssignment first = linear_assignment(one.view(), {}, {.threads = 1, .poll = {}});
    const LinearAssignment all = linear_assignment(batch, {}, {.threads = 1, .poll = {}});
    for (int threads = 2; threads <= 4; ++threads) {
      expect_equal(linear_assignment(one.view(), {}, {.threads = threads, .poll = {}}), first);
      expect_equal(linear_assignment(batch, {}, {.threads = threads, .poll = {}}), all);
    }
  }
}

TEST(LinearAssignment, ABatchIsSolvedItemByItem) {
  for (const auto& [n, m] : {std::pair{9, 9}, {5, 12}, {12, 5}}) {
    constexpr std::int64_t batch = 6;
    const Matrix<double> stack = gaussian(batch * n, m, 9);
    const LinearAssignment r = linear_assignment(ArrayView(stack.data(), {2, 3, n, m}));
    ASSERT_EQ(r.columns.rows(), batch);
    for (std::int64_t b = 0; b < batch; ++b) {
      Matrix<double> cost(n, m);
      std::copy_n(stack.row(b * n), n * m, cost.data());
      expect_certified(cost, r, false, b);
      EXPECT_EQ(r.cost[std::size_t(b)], linear_assignment(cost.view()).cost[0]);
    }
  }
}

TEST(LinearAssignment, InitialDualsAreAStartAndNotAConstraint) {
  const Matrix<double> cost = gaussian(80, 80, 10);
  const LinearAssignment cold = linear_assignment(cost.view());
  for (const double spoilt : {0.0, 1e-3, 10.0}) {
    Matrix<double> duals = cold.column_duals.copy();
    const Matrix<double> noise = gaussian(1, 80, 11);
    for (std::int64_t j = 0; j < 80; ++j) duals(0, j) += spoilt * noise(0, j);
    const ArrayView view(duals.data(), {80});
    const LinearAssignment warm = linear_assignment(cost.view(), {.initial_duals = view});
    expect_certified(cost, warm);
    EXPECT_TRUE(std::ranges::equal(warm.columns.values(), cold.columns.values()));
  }
}

TEST(LinearAssignment, CostsNearTheEndOfTheRange) {
  for (const double scale : {1e300, 1e307, 1e-300, 5e-324}) {
    Matrix<double> cost = integers(6, 6, 1, 12);
    for (double& x : cost.values()) x *= scale;
    const LinearAssignment r = linear_assignment(cost.view());
    EXPECT_EQ(r.cost[0], brute_force(cost)) << scale;
    EXPECT_EQ(r.gap[0], 0) << scale;
  }
}

TEST(LinearAssignment, NothingToAssign) {
  const Matrix<double> cost(3, 4, 1.0);
  for (const auto& [n, m] : {std::pair{0, 0}, {0, 4}, {3, 0}}) {
    const LinearAssignment r = linear_assignment(ArrayView(cost.data(), {n, m}));
    EXPECT_EQ(r.cost, std::vector<double>{0});
    for (const std::int64_t j : r.columns.values()) EXPECT_EQ(j, -1);
  }
  EXPECT_TRUE(linear_assignment(ArrayView(cost.data(), {0, 3, 4})).cost.empty());
}

template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(LinearAssignment, NanIsNamedByProblemRowAndColumn) {
  for (const auto& [n, m] : {std::pair{3, 4}, {4, 3}}) {
    for (const double wrong : {std::numeric_limits<double>::quiet_NaN(), -infinity}) {
      Matrix<double> cost = gaussian(2 * n, m, 13);
      cost(n + 2, 1) = wrong;
      const ArrayView one(cost.row(n), {n, m}), both(cost.data(), {2, n, m});
      const std::string single = refusal([&] { linear_assignment(one); });
      EXPECT_TRUE(contains(single, "row 2, column 1")) << single;
      const std::string batch = refusal([&] { linear_assignment(both); });
      EXPECT_TRUE(contains(batch, "row 2, column 1 of problem 1")) << batch;
      cost(n + 2, 1) = -wrong;
      if (std::isnan(wrong)) continue;
      EXPECT_TRUE(contains(refusal([&] { linear_assignment(one, {.maximize = true}); }),
                           "row 2, column 1"));
    }
  }
}

TEST(LinearAssignment, InfeasibilityIsNamedByProblemAndRow) {
  Matrix<double> cost = gaussian(6, 3, 14);
  for (std::int64_t j = 0; j < 3; ++j) cost(4, j) = infinity;
  const std::string said = refusal([&] { linear_assignment(ArrayView(cost.data(), {2, 3, 3})); });
  EXPECT_TRUE(contains(said, "problem 1") && contains(said, "row 1")) << said;
}

TEST(LinearAssignment, BadArgumentsAreRefused) {
  const Matrix<double> cost = gaussian(3, 4, 15), square = gaussian(4, 4, 15);
  const bool flags[] = {true, false};
  EXPECT_THROW(linear_assignment(ArrayView(cost.data(), {12})), InvalidArgument);
  EXPECT_THROW(linear_assignment(ArrayView(flags, {1, 2})), TypeError);
  const ArrayView duals(cost.data(), {4}), few(cost.data(), {3});
  EXPECT_THROW(linear_assignment(cost.view(), {.initial_duals = duals}), InvalidArgument);
  EXPECT_THROW(linear_assignment(square.view(), {.initial_duals = few}), InvalidArgument);
  const std::array<double, 4> nan{0, std::numeric_limits<double>::quiet_NaN(), 0, 0};
  EXPECT_THROW(linear_assignment(square.view(), {.initial_duals = ArrayView(nan.data(), {4})}),
               InvalidArgument);
}

TEST(LinearAssignment, PollCancels) {
  struct Cancelled {};
  const auto cancel = [] { throw Cancelled{}; };
  const Matrix<double> many = gaussian(4000 * 20, 20, 16);
  EXPECT_THROW(
      linear_assignment(ArrayView(many.data(), {4000, 20, 20}), {}, {.threads = 2, .poll = cancel}),
      Cancelled);
  // Long enough to be polled within one problem: polls follow the clock.
  const Matrix<double> large = gaussian(1, 1500, 17);
  Matrix<double> product(1500, 1500);
  for (std::int64_t i = 0; i < 1500; ++i)
    for (std::int64_t j = 0; j < 1500; ++j) product(i, j) = large(0, i) * large(0, j);
  EXPECT_THROW(linear_assignment(product.view(), {}, {.threads = 2, .poll = cancel}), Cancelled);
}

}  // namespace
}  // namespace descramble_fast
