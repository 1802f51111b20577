#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "assignment.hpp"
#include "descramble_fast/assignment.hpp"
#include "device_memory.hpp"

namespace descramble_fast::cuda {
namespace {

using testing::DeviceArray;
using testing::queue;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

struct Shape {
  std::int64_t batch, n, m;
  std::int64_t size() const { return batch * n * m; }
};

struct Answers {
  std::vector<std::int64_t> columns;
  std::vector<double> row_duals, column_duals, cost, gap, violation;
  std::vector<Assigned> status;
  std::vector<std::int64_t> row, column;
};

Answers answers_of(const ArrayView& cost, const Shape& shape, bool maximize,
                   const LaunchLimits& limits = {}, const Queue& on = queue) {
  const auto batch = std::size_t(shape.batch);
  DeviceArray<std::int64_t> columns(shape.batch * shape.n);
  DeviceArray<double> u(shape.batch * shape.n), v(shape.batch * shape.m);
  Answers out;
  for (auto* values : {&out.cost, &out.gap, &out.violation}) values->assign(batch, nan);
  out.status.resize(batch);
  out.row.resize(batch);
  out.column.resize(batch);
  const AssignmentOutput output{columns.data(),    u.data(),       v.data(),
                                out.cost.data(),   out.gap.data(), out.violation.data(),
                                out.status.data(), out.row.data(), out.column.data()};
  assign(on, {&cost, maximize}, output, limits);
  out.columns = columns.host();
  out.row_duals = u.host();
  out.column_duals = v.host();
  return out;
}

// Numbers as an element type has them; those of the tests are exact in it.
template <class T>
T as(double x) {
  if constexpr (std::is_same_v<T, Float16>)
    return {__half_as_ushort(__float2half_rn(float(x)))};
  else if constexpr (std::is_same_v<T, BFloat16>)
    return {std::uint16_t(__float_as_uint(float(x)) >> 16)};
  else
    return T(x);
}

template <class T>
std::vector<T> narrowed(const std::vector<double>& values) {
  std::vector<T> out;
  for (const double x : values) out.push_back(as<T>(x));
  return out;
}

template <class T>
ArrayView view(const T* data, const Shape& shape) {
  return ArrayView(data, {shape.batch, shape.n, shape.m});
}

template <class T>
Answers solved(const std::vector<double>& costs, const Shape& shape, bool maximize,
               const LaunchLimits& limits = {}) {
  const DeviceArray<T> device(narrowed<T>(costs));
  return answers_of(view(device.data(), shape), shape, maximize, limits);
}

template <class T>
LinearAssignment on_cpu(const std::vector<double>& costs, const Shape& shape, bool maximize) {
  const std::vector<T> host = narrowed<T>(costs);
  return linear_assignment(view(host.data(), shape), {maximize, {}});
}

std::vector<double> uniform(const Shape& shape, unsigned seed, double low = 0, double high = 1) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<double> number(low, high);
  std::vector<double> out(std::size_t(shape.size()));
  for (double& x : out) x = number(engine);
  return out;
}

std::vector<double> integers(const Shape& shape, unsigned seed, int below, double forbidden,
                             double sign) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<double> chance(0, 1);
  std::vector<double> out(std::size_t(shape.size()));
  for (double& x : out)
    x = chance(engine) < forbidden ? sign * infinity : double(int(engine() % unsigned(below)) - 2);
  return out;
}

// The certificate, from the costs alone.
void expect_proof(const std::vector<double>& costs, const Shape& shape, bool maximize,
                  const Answers& found, std::int64_t b) {
  const double sign = maximize ? -1 : 1;
  const auto [batch, n, m] = shape;
  const double* const c = costs.data() + b * n * m;
  const double* const u = found.row_duals.data() + b * n;
  const double* const v = found.column_duals.data() + b * m;
  double largest = 0, worst = 0, cost = 0, duals = 0;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(u[i]));
  for (std::int64_t j = 0; j < m; ++j) largest = std::max(largest, std::abs(v[j]));
  const double rounding = 1e-12 * largest;
  // Duals of the shorter side and of the longer one: differences are rounded in this order.
  const auto small = [&](std::int64_t i, std::int64_t j) { return sign * (n > m ? v[j] : u[i]); };
  const auto large = [&](std::int64_t i, std::int64_t j) { return sign * (n > m ? u[i] : v[j]); };
  std::vector<bool> taken(std::size_t(m), false);
  std::int64_t pairs = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < m; ++j)
      worst = std::max(worst, small(i, j) - (sign * c[i * m + j] - large(i, j)));
    duals += u[i];
    const std::int64_t j = found.columns[std::size_t(b * n + i)];
    if (j < 0) {
      EXPECT_EQ(j, -1);
      EXPECT_EQ(u[i], 0);
      continue;
    }
    ASSERT_LT(j, m);
    ASSERT_FALSE(taken[std::size_t(j)]);
    taken[std::size_t(j)] = true;
    ++pairs;
    cost += c[i * m + j];
    EXPECT_NEAR(u[i] + v[j], c[i * m + j], rounding);
  }
  for (std::int64_t j = 0; j < m; ++j) {
    duals += v[j];
    if (!taken[std::size_t(j)]) {
      EXPECT_EQ(v[j], 0);
    }
    if (n < m) {
      EXPECT_LE(sign * v[j], 0);
    }
  }
  for (std::int64_t i = 0; i < n && n > m; ++i) EXPECT_LE(sign * u[i], 0);
  EXPECT_EQ(pairs, std::min(n, m));
  EXPECT_LE(worst, rounding);
  EXPECT_EQ(found.violation[std::size_t(b)], std::max(worst, 0.0));
  EXPECT_NEAR(found.cost[std::size_t(b)], cost, 1e-12 * double(n) * largest);
  EXPECT_NEAR(duals, cost, 1e-12 * double(n + m) * largest);
  EXPECT_LE(std::abs(found.gap[std::size_t(b)]), rounding * double(n));
}

void expect_nothing(const Shape& shape, const Answers& found, std::int64_t b) {
  for (std::int64_t i = b * shape.n; i < (b + 1) * shape.n; ++i) {
    EXPECT_EQ(found.columns[std::size_t(i)], -1);
    EXPECT_EQ(found.row_duals[std::size_t(i)], 0);
  }
  for (std::int64_t j = b * shape.m; j < (b + 1) * shape.m; ++j)
    EXPECT_EQ(found.column_duals[std::size_t(j)], 0);
}

// Answers that claim to be the only ones are the CPU's. Returns how many do.
std::int64_t expect_as_on_cpu(const std::vector<double>& costs, const Shape& shape, bool maximize,
                              const Answers& found, const LinearAssignment& cpu) {
  std::int64_t optimal = 0;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    SCOPED_TRACE("problem " + std::to_string(b));
    if (found.status[std::size_t(b)] != Assigned::optimal) {
      EXPECT_EQ(found.status[std::size_t(b)], Assigned::open);
      expect_nothing(shape, found, b);
      continue;
    }
    ++optimal;
    const std::int64_t* const columns = found.columns.data() + b * shape.n;
    EXPECT_TRUE(std::equal(columns, columns + shape.n, cpu.columns.row(b)));
    EXPECT_EQ(found.cost[std::size_t(b)], cpu.cost[std::size_t(b)]);
    expect_proof(costs, shape, maximize, found, b);
    if (::testing::Test::HasFailure()) break;
  }
  return optimal;
}

struct Optima {
  double cost = infinity;
  std::int64_t count = 0;
};

// Of s c, over the lines of the shorter side, by trying all.
Optima all_optima(const double* c, std::int64_t n, std::int64_t m, double sign) {
  const bool tall = n > m;
  const std::int64_t lines = std::min(n, m), others = std::max(n, m);
  Optima out;
  std::vector<bool> taken(std::size_t(others), false);
  const auto place = [&](auto&& self, std::int64_t line, double cost) -> void {
    if (cost == infinity) return;
    if (line == lines) {
      if (cost < out.cost) out = {cost, 0};
      if (cost == out.cost) ++out.count;
      return;
    }
    for (std::int64_t other = 0; other < others; ++other) {
      if (taken[std::size_t(other)]) continue;
      taken[std::size_t(other)] = true;
      self(self, line + 1, cost + sign * (tall ? c[other * m + line] : c[line * m + other]));
      taken[std::size_t(other)] = false;
    }
  };
  place(place, 0, 0);
  return out;
}

struct Tally {
  std::int64_t optimal = 0, open = 0, infeasible = 0;
};

void expect_brute_force(const std::vector<double>& costs, const Shape& shape, bool maximize,
                        const Answers& found, Tally& tally) {
  const double sign = maximize ? -1 : 1;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    SCOPED_TRACE("problem " + std::to_string(b));
    const auto at = std::size_t(b);
    const Optima all = all_optima(costs.data() + b * shape.n * shape.m, shape.n, shape.m, sign);
    const Assigned expected = all.count == 0   ? Assigned::infeasible
                              : all.count == 1 ? Assigned::optimal
                                               : Assigned::open;
    ASSERT_EQ(found.status[at], expected) << all.count;
    ++(all.count == 0 ? tally.infeasible : all.count == 1 ? tally.optimal : tally.open);
    if (expected == Assigned::optimal) {
      EXPECT_EQ(found.cost[at], sign * all.cost);
      EXPECT_EQ(found.gap[at], 0);
      EXPECT_EQ(found.violation[at], 0);
      expect_proof(costs, shape, maximize, found, b);
    } else {
      expect_nothing(shape, found, b);
    }
    if (::testing::Test::HasFailure()) return;
  }
}

template <class T>
void check_integers(std::int64_t n, std::int64_t m, int below, double forbidden, bool maximize,
                    unsigned seed, std::int64_t batch, Tally& tally) {
  SCOPED_TRACE(std::to_string(n) + " x " + std::to_string(m) + ", below " + std::to_string(below));
  const Shape shape{batch, n, m};
  const std::vector<double> costs = integers(shape, seed, below, forbidden, maximize ? -1 : 1);
  const Answers found = solved<T>(costs, shape, maximize);
  expect_brute_force(costs, shape, maximize, found, tally);
}

TEST(AssignmentOnDevice, OpenExactlyWhereThereAreOtherOptima) {
  Tally tally;
  unsigned seed = 0;
  for (std::int64_t n = 1; n <= 5; ++n)
    for (std::int64_t m = 1; m <= 5; ++m)
      for (const int below : {2, 6, 40}) {
        check_integers<float>(n, m, below, 0.0, seed % 2 == 0, seed, 12, tally);
        check_integers<double>(n, m, below, 0.4, seed % 2 == 1, seed + 1000, 12, tally);
        ++seed;
        if (HasFatalFailure() || HasFailure()) return;
      }
  for (const int below : {4, 20, 100})
    for (const auto& [n, m] : {std::pair{7, 7}, {6, 7}, {7, 6}, {3, 7}}) {
      check_integers<Float16>(n, m, below, 0.2, false, ++seed, 8, tally);
      check_integers<BFloat16>(n, m, below, 0.0, true, ++seed, 8, tally);
      if (HasFailure()) return;
    }
  EXPECT_GT(tally.optimal, 100);
  EXPECT_GT(tally.open, 100);
  EXPECT_GT(tally.infeasible, 50);
}

template <class T>
void check_random(const Shape& shape, bool maximize, unsigned seed) {
  SCOPED_TRACE(std::to_string(shape.n) + " x " + std::to_string(shape.m));
  std::vector<double> costs = uniform(shape, seed, -1, 1);
  for (double& x : costs) x = double(float(x));
  const Answers found = solved<T>(costs, shape, maximize);
  const LinearAssignment cpu = on_cpu<T>(costs, shape, maximize);
  EXPECT_EQ(expect_as_on_cpu(costs, shape, maximize, found, cpu), shape.batch);
}

TEST(AssignmentOnDevice, RandomCostsAsOnTheCpu) {
  unsigned seed = 10;
  for (const std::int64_t n : {1, 2, 3, 31, 32, 33, 64, 65, 100})
    for (const bool maximize : {false, true}) {
      check_random<double>({2, n, n}, maximize, ++seed);
      check_random<float>({2, n, n}, maximize, ++seed);
    }
  for (const auto& [n, m] : {std::pair{1, 2},
                             {2, 1},
                             {1, 33},
                             {40, 1},
                             {31, 33},
                             {64, 65},
                             {65, 64},
                             {20, 100},
                             {100, 20},
                             {130, 110},
                             {5, 300}}) {
    check_random<float>({2, n, m}, false, ++seed);
    check_random<double>({1, n, m}, true, ++seed);
  }
  check_random<float>({1, 260, 260}, false, ++seed);
  check_random<double>({1, 12, 2100}, false, ++seed);
}

TEST(AssignmentOnDevice, StateThatDoesNotFitSharedMemory) {
  check_random<double>({10, 2, 7000}, false, 1);  // more than blocks are started for
  check_random<float>({1, 1, 7000}, true, 2);
  check_random<float>({2, 7000, 3}, false, 3);
}

TEST(AssignmentOnDevice, ForbiddenPairs) {
  for (const std::int64_t n : {10, 40, 70}) {
    const Shape shape{4, n, n};
    for (const bool maximize : {false, true}) {
      std::vector<double> costs = uniform(shape, unsigned(n), 0, 100);
      const std::vector<double> chance = uniform(shape, unsigned(n) + 1);
      for (std::size_t k = 0; k < costs.size(); ++k)
        if (chance[k] < 0.7 && k % std::size_t(n + 1) != 0)
          costs[k] = maximize ? -infinity : infinity;
      for (std::int64_t b = 0; b < shape.batch; ++b)  // leaves one way at least
        for (std::int64_t i = 0; i < n; ++i) {
          double& x = costs[std::size_t((b * n + i) * n + (i * 3 + b) % n)];
          if (std::isinf(x)) x = 50;
        }
      for (std::int64_t b = 0; b < shape.batch; ++b)
        for (std::int64_t i = 0; i < n; ++i) {
          double& x = costs[std::size_t((b * n + i) * n + i)];
          if (std::isinf(x)) x = double(i) / 16;
        }
      const Answers found = solved<double>(costs, shape, maximize);
      expect_as_on_cpu(costs, shape, maximize, found, on_cpu<double>(costs, shape, maximize));
      EXPECT_GT(std::ranges::count(found.status, Assigned::optimal), 0);
    }
  }
}

TEST(AssignmentOnDevice, InfeasibleNamesALine) {
  // Three lines with two places between them; and one with none.
  const std::vector<double> crowded{1, 2, infinity, infinity,  //
                                    3, 1, infinity, infinity,  //
                                    2, 2, infinity, infinity,  //
                                    5, 1, 7,        2};
  Answers found = solved<double>(crowded, {1, 4, 4}, false);
  EXPECT_EQ(found.status[0], Assigned::infeasible);
  EXPECT_GE(found.row[0], 0);
  EXPECT_LT(found.row[0], 3);
  EXPECT_EQ(found.column[0], -1);

  std::vector<double> costs = uniform({3, 40, 70}, 5);
  for (const std::int64_t row : {17, 30})
    std::fill_n(costs.begin() + (40 + row) * 70, 70, infinity);
  found = solved<double>(costs, {3, 40, 70}, false);
  EXPECT_EQ(found.status[0], Assigned::optimal);
  EXPECT_EQ(found.status[1], Assigned::infeasible);
  EXPECT_EQ(found.row[1], 17);
  EXPECT_EQ(found.status[2], Assigned::optimal);

  costs = uniform({1, 6, 4}, 6);
  for (std::int64_t i = 0; i < 6; ++i) costs[std::size_t(4 * i + 2)] = -infinity;
  found = solved<float>(costs, {1, 6, 4}, true);
  EXPECT_EQ(found.status[0], Assigned::infeasible);
  EXPECT_EQ(found.row[0], -1);
  EXPECT_EQ(found.column[0], 2);
}

TEST(AssignmentOnDevice, NotFiniteNamesItsPlace) {
  for (const auto& [n, m] : {std::pair{3, 3}, {5, 40}, {40, 5}, {100, 100}, {100, 90}})
    for (const double wrong : {nan, -infinity}) {
      const Shape shape{2, n, m};
      std::vector<double> costs = uniform(shape, unsigned(n));
      const std::int64_t row = n / 2, column = m - 1, size = std::int64_t(n) * m;
      std::fill_n(costs.begin() + size + row * m, m, infinity);  // outranked
      costs[std::size_t(size + row * m + column)] = wrong;
      costs.back() = wrong;
      const Answers found = solved<double>(costs, shape, false);
      EXPECT_EQ(found.status[0], Assigned::optimal);
      EXPECT_EQ(found.status[1], Assigned::not_finite);
      EXPECT_EQ(found.row[1], row);
      EXPECT_EQ(found.column[1], column);
      expect_nothing(shape, found, 1);
    }
  std::vector<double> costs = uniform({1, 4, 4}, 1);
  costs[6] = infinity;
  const Answers found = solved<Float16>(costs, {1, 4, 4}, true);
  EXPECT_EQ(found.status[0], Assigned::not_finite);
  EXPECT_EQ(found.row[0], 1);
  EXPECT_EQ(found.column[0], 2);
}

// Any strides, for problems that are staged, read where they are, and copied.
TEST(AssignmentOnDevice, Views) {
  for (const std::int64_t n : {12, 96}) {
    const std::int64_t m = n + 4;
    const std::vector<double> memory = uniform({1, 6 * n, 3 * m}, unsigned(n));
    const DeviceArray<double> device(memory);
    struct View {
      std::int64_t n, m, first, row, column, outer, inner;
    };
    const std::int64_t line = 3 * m;
    for (const View& w :
         {View{n, m, 0, line, 1, n * line, m}, View{n, m, 0, 2 * line, 2, line, 1},
          View{m, n, 0, 1, line, 2 * n * line, m},
          View{n, m, n * line - 1, -line, -1, n * line, -m}, View{n, n, 5, line, 3, 0, 0}}) {
      const std::int64_t shape[] = {2, 2, w.n, w.m},
                         strides[] = {w.outer, w.inner, w.row, w.column};
      const auto at = [&](const double* data) {
        return ArrayView(data + w.first, DType::float64, shape, strides);
      };
      std::vector<double> costs;
      for (std::int64_t b = 0; b < 4; ++b)
        for (std::int64_t i = 0; i < w.n; ++i)
          for (std::int64_t j = 0; j < w.m; ++j)
            costs.push_back(memory[std::size_t(w.first + b / 2 * w.outer + b % 2 * w.inner +
                                               i * w.row + j * w.column)]);
      const Shape flat{4, w.n, w.m};
      for (const LaunchLimits& limits : {LaunchLimits{}, LaunchLimits{0.25, 1}}) {
        const Answers found = answers_of(at(device.data()), flat, false, limits);
        const LinearAssignment cpu = linear_assignment(at(memory.data()));
        EXPECT_EQ(expect_as_on_cpu(costs, flat, false, found, cpu), 4);
      }
    }
  }
  const std::vector<double> memory = uniform({1, 9, 9}, 3);
  const DeviceArray<double> device(memory);
  const Answers found = answers_of(ArrayView(device.data(), {9, 9}), {1, 9, 9}, false);
  EXPECT_EQ(expect_as_on_cpu(memory, {1, 9, 9}, false, found,
                             linear_assignment(ArrayView(memory.data(), {9, 9}))),
            1);
}

TEST(AssignmentOnDevice, HalvesThatAreCopied) {
  const Shape shape{2, 100, 120};
  std::vector<double> costs = uniform(shape, 8, 0, 2048);
  for (double& x : costs) x = std::floor(x);
  const auto check = [&]<class T>(T) {
    const Answers found = solved<T>(costs, shape, false);
    const LinearAssignment cpu = on_cpu<T>(costs, shape, false);
    expect_as_on_cpu(costs, shape, false, found, cpu);
  };
  check(Float16{});
  check(float{});
  for (double& x : costs) x = double(int(x) & 255);
  check(BFloat16{});
}

TEST(AssignmentOnDevice, MacholWien) {
  constexpr std::int64_t n = 30;
  std::vector<double> costs;
  for (std::int64_t i = 1; i <= n; ++i)
    for (std::int64_t j = 1; j <= n; ++j) costs.push_back(double(i * j));
  const Answers found = solved<float>(costs, {1, n, n}, false);
  ASSERT_EQ(found.status[0], Assigned::optimal);
  for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(found.columns[std::size_t(i)], n - 1 - i);
  EXPECT_EQ(found.gap[0], 0);
  expect_proof(costs, {1, n, n}, false, found, 0);
}

// Integers up to 2^53 are exact in one row or column; the second of them differs from the first by
// more than that.
TEST(AssignmentOnDevice, ALoneRowHasDualsWithoutRounding) {
  const std::vector<double> costs{-8057025188139697.0, 2032479327623990.0, 7424535247601641.0,
                                  1954143999300695.0};
  for (const Shape& shape : {Shape{1, 1, 4}, Shape{1, 4, 1}, Shape{4, 1, 1}})
    for (const bool maximize : {false, true}) {
      const Answers found = solved<double>(costs, shape, maximize);
      for (std::size_t b = 0; b < std::size_t(shape.batch); ++b) {
        EXPECT_EQ(found.status[b], Assigned::optimal);
        EXPECT_EQ(found.violation[b], 0);
        EXPECT_EQ(found.gap[b], 0);
        EXPECT_EQ(found.cost[b], shape.batch > 1 ? costs[b]
                                 : maximize      ? *std::ranges::max_element(costs)
                                                 : *std::ranges::min_element(costs));
      }
    }
}

TEST(AssignmentOnDevice, OffsetsAndMagnitudes) {
  const Shape shape{4, 40, 40};
  std::vector<double> costs = uniform(shape, 20);
  for (double& x : costs) x += 1e6;
  Answers found = solved<double>(costs, shape, false);
  EXPECT_EQ(expect_as_on_cpu(costs, shape, false, found, on_cpu<double>(costs, shape, false)), 4);

  for (const double scale : {1e300, 1e-300}) {
    costs = uniform(shape, 21, -scale, scale);
    found = solved<double>(costs, shape, true);
    EXPECT_EQ(expect_as_on_cpu(costs, shape, true, found, on_cpu<double>(costs, shape, true)), 4);
  }
  // Sums of these overflow.
  for (const double low : {-8e307, 0.0}) {
    costs = uniform(shape, 22, low, 9e307);
    found = solved<double>(costs, shape, false);
    for (const Assigned status : found.status) EXPECT_EQ(status, Assigned::open);
  }
  // Differences that overflow are not forbidden pairs.
  const double most = 1.7e308;
  found = solved<double>({-most, -most, most, most}, {1, 2, 2}, false);
  EXPECT_EQ(found.status[0], Assigned::open);
  // Where rounding decides, the device does not: sums a_i + b_j, and few digits beside an offset.
  const Shape many{200, 3, 3};
  const std::vector<double> a = uniform({200, 3, 1}, 24), b = uniform({200, 3, 1}, 25);
  costs.clear();
  for (std::size_t k = 0; k < 1800; ++k) costs.push_back(a[k / 3] + b[k / 9 * 3 + k % 3]);
  found = solved<double>(costs, many, false);
  for (const Assigned status : found.status) EXPECT_EQ(status, Assigned::open);
  costs = uniform(shape, 23);
  for (double& x : costs) x = 1e12 + std::round(x * 64) / 65536;
  found = solved<double>(costs, shape, false);
  for (const Assigned status : found.status) EXPECT_EQ(status, Assigned::open);
}

TEST(AssignmentOnDevice, ConstantCostsAreOpen) {
  for (const std::int64_t n : {2, 33, 70})
    for (const double value : {0.0, 0.1, -7.0}) {
      const std::vector<double> costs(std::size_t(n * n), value);
      EXPECT_EQ(solved<double>(costs, {1, n, n}, false).status[0], Assigned::open);
    }
  const std::vector<double> row(50, 0.5), one{3};
  EXPECT_EQ(solved<float>(row, {1, 1, 50}, false).status[0], Assigned::open);
  EXPECT_EQ(solved<float>(row, {1, 50, 1}, true).status[0], Assigned::open);
  EXPECT_EQ(solved<float>(one, {1, 1, 1}, true).status[0], Assigned::optimal);
}

TEST(AssignmentOnDevice, LaunchesInShares) {
  const Shape shape{7, 100, 90};
  const std::vector<double> costs = uniform(shape, 30);
  const Answers whole = solved<double>(costs, shape, false);
  const Answers parts = solved<double>(costs, shape, false, {0.25, 2 * 100 * 90 * 8});
  EXPECT_EQ(whole.columns, parts.columns);
  EXPECT_EQ(whole.row_duals, parts.row_duals);
  EXPECT_EQ(whole.column_duals, parts.column_duals);
  EXPECT_EQ(whole.cost, parts.cost);
  for (const Assigned status : parts.status) EXPECT_EQ(status, Assigned::optimal);
}

TEST(AssignmentOnDevice, CanBeCancelled) {
  struct Asked {
    int times, until;
  };
  const auto give_up = [](void* with) {
    auto* asked = static_cast<Asked*>(with);
    return ++asked->times > asked->until;
  };
  const Shape shape{7, 100, 90};
  const DeviceArray<double> device(uniform(shape, 31));
  Asked asked{0, 2};
  const Queue impatient{0, nullptr, give_up, &asked};
  EXPECT_THROW(
      answers_of(view(device.data(), shape), shape, false, {0.25, 2 * 100 * 90 * 8}, impatient),
      Error);
  EXPECT_EQ(asked.times, 3);

  const ArrayView cost = view(device.data(), shape);
  const AssignmentProblem problem{&cost, false};
  AssignmentOutput output{};
  DeviceArray<std::int64_t> columns(shape.batch * shape.n);
  DeviceArray<double> u(shape.batch * shape.n), v(shape.batch * shape.m);
  output.columns = columns.data();
  output.row_duals = u.data();
  output.column_duals = v.data();
  Failure failure;
  asked = {0, 0};
  EXPECT_FALSE(assign(&impatient, &problem, &output, &failure));
  EXPECT_EQ(failure.fault, Fault::backend);
  EXPECT_STREQ(failure.text, "cancelled");
}

TEST(AssignmentOnDevice, PaysForManyProblems) {
  for (const DType dtype : {DType::float32, DType::float64})
    for (const int threads : {2, 16}) {
      EXPECT_TRUE(assignment_pays(10000, 64, 64, dtype, threads));
      EXPECT_TRUE(assignment_pays(1000, 256, 256, dtype, threads));
      EXPECT_TRUE(assignment_pays(100000, 16, 16, dtype, threads));
      EXPECT_TRUE(assignment_pays(64, 1024, 1024, dtype, threads));
      EXPECT_TRUE(assignment_pays(1, 16, 16, dtype, threads));  // the way there takes longer
      EXPECT_FALSE(assignment_pays(1, 64, 64, dtype, threads));
      EXPECT_FALSE(assignment_pays(1, 1024, 1024, dtype, threads));
      EXPECT_FALSE(assignment_pays(1, 8192, 8192, dtype, threads));
      EXPECT_FALSE(assignment_pays(4, 2048, 2048, dtype, threads));
    }
}

}  // namespace
}  // namespace descramble_fast::cuda
