#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory_resource>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/convolution.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/permutation.hpp"
#include "random.hpp"

namespace descramble_fast {
namespace {

// Threads of its own for every loop, of which it calls only so many tasks.
class Threads final : public Executor {
 public:
  explicit Threads(int most = 1 << 20) : most_(most) {}

  void run(int count, const std::function<void(int)>& task) override {
    ++loops;
    largest = std::max(largest.load(), count);
    std::vector<std::thread> threads;
    for (int i = 0; i < std::min(count, most_); ++i) threads.emplace_back(task, i);
    for (std::thread& thread : threads) thread.join();
  }

  std::atomic<int> loops = 0, largest = 0;

 private:
  int most_;
};

class Broken final : public Executor {
 public:
  void run(int, const std::function<void(int)>&) override {
    throw std::runtime_error("no threads to be had");
  }
};

// What every kind of call gives, in numbers.
std::vector<double> results(const Context& context) {
  std::vector<double> out;
  const auto keep = [&](std::span<const double> values) {
    out.insert(out.end(), values.begin(), values.end());
  };
  constexpr std::int64_t n = 300;
  const Matrix<double> x = testing::gaussian(2000, n, 1), w = testing::gaussian(n, n, 2);
  const Operator op = Operator::fourier(n);
  Covariance c(n);
  c.update(x.view(), {}, context);
  keep(c.covariance().values());
  const SmoothnessDescrambler d = descramble(c, op, {}, context);
  keep(d.components.values());
  keep(d.transform(x.view(), context).values());
  const Matrix<double> second = c.second_moment();
  keep(eigh<double>(second.view(), {}, context).eigenvectors.values());
  const std::int64_t small[] = {900, 10, 10};
  keep(eigh<double>(ArrayView(w.data(), DType::float64, small), {}, context).eigenvectors.values());
  keep(linear_assignment(w.view(), {}, context).row_duals.values());
  keep(descramble_trace(w.view(), context).matrix().values());
  for (const std::int64_t place : nearest_permutation(w.view(), true, context).permutation)
    out.push_back(double(place));
  const std::int64_t kernel[] = {30, 30, 10, 10}, shape[] = {12, 10};
  keep(
      descramble_conv(ArrayView(w.data(), DType::float64, kernel), shape, {}, context).eigenvalues);
  Covariance few(40);
  few.update(testing::gaussian(100, 40, 3).view(), {}, context);
  const SmoothOrder order =
      descramble_permutation(few, Operator::difference(40, 1, Boundary::path), {}, context);
  for (const std::int64_t place : order.permutation) out.push_back(double(place));
  return out;
}

std::int64_t threads_of_process() {
  std::int64_t count = 0;
  for ([[maybe_unused]] const auto& thread : std::filesystem::directory_iterator("/proc/self/task"))
    ++count;
  return count;
}

TEST(Executor, RunsAllLoopsWithTheSameResultsAndNoThreadIsStarted) {
  Threads executor;
  const std::int64_t before = threads_of_process();
  const std::vector<double> theirs = results({.threads = 3, .executor = &executor});
  EXPECT_EQ(threads_of_process(), before);
  EXPECT_GT(executor.loops, 50);
  EXPECT_EQ(executor.largest, 3);
  EXPECT_EQ(theirs, results({.threads = 1}));
}

TEST(Executor, WhatItDoesNotRunTheCallerDoes) {
  const std::vector<double> expected = results({.threads = 1});
  for (const int tasks : {0, 1, 2}) {
    Threads executor(tasks);
    EXPECT_EQ(results({.threads = 3, .executor = &executor}), expected) << tasks;
  }
  Broken broken;
  EXPECT_EQ(results({.threads = 3, .executor = &broken}), expected);
}

TEST(Executor, AnErrorInItsTasksReachesTheCaller) {
  Threads executor;
  Matrix<double> x = testing::gaussian(3000, 64, 4);
  x(2999, 63) = NAN;
  Covariance c(64);
  EXPECT_THROW(c.update(x.view(), {}, {.threads = 3, .executor = &executor}), InvalidArgument);
  EXPECT_EQ(c.count(), 0);
}

// Lends the thread that waits for it to another call.
class Lending final : public Executor {
 public:
  explicit Lending(std::function<void()> other) : other_(std::move(other)) {}

  void run(int count, const std::function<void(int)>& task) override {
    other_();
    for (int i = 0; i < count; ++i) task(i);
  }

 private:
  std::function<void()> other_;
};

TEST(Executor, AndPollMayMakeCallsOfTheirOwn) {
  // The call around them is in BLAS, by block Krylov; for those within, by LAPACK with threads of
  // its own, nobody else may be.
  Matrix<double> large(1100, 1100, 0);
  for (std::int64_t i = 0; i < 1100; ++i) large(i, i) = 1 / double(1 + i);
  const Matrix<double> small = testing::gaussian(260, 260, 7);
  std::pmr::synchronized_pool_resource memory;
  std::pmr::memory_resource* const none = std::pmr::new_delete_resource();
  const Matrix<double> expected = eigh<double>(large.view(), 5, {.threads = 2}).eigenvalues;
  int calls = 0;
  const auto call_within = [&](std::pmr::memory_resource* inherited) {
    EXPECT_EQ(memory_of_call(), inherited);
    if (calls++ % 4 == 0) eigh<double>(small.view(), 250, {.threads = 2});
  };
  Lending executor([&] { call_within(none); });
  const auto poll = [&] { call_within(&memory); };
  for (const Context& context : {Context{.threads = 2, .poll = poll, .memory = &memory},
                                 Context{.threads = 2, .executor = &executor, .memory = &memory}}) {
    calls = 0;
    const Eigh<double> found = eigh<double>(large.view(), 5, context);
    EXPECT_GT(calls, 0);
    EXPECT_EQ(found.route.driver, "dkrylov");
    EXPECT_EQ(testing::largest_difference(found.eigenvalues, expected), 0);
  }
  EXPECT_EQ(memory_of_call(), none);
}

struct Line {
  Severity severity;
  std::string text;
};

std::vector<Line> lines_of(const auto& call) {
  std::vector<Line> lines;
  call(Context{.log = [&](Severity severity, std::string_view text) {
    lines.push_back({severity, std::string(text)});
  }});
  return lines;
}

TEST(Log, NamesTheCallAndItsDriver) {
  const Matrix<double> x = testing::gaussian(50, 20, 5);
  Covariance c(20);
  c.update(x.view());
  const auto lines =
      lines_of([&](const Context& context) { descramble(c, Operator::fourier(20), {}, context); });
  ASSERT_EQ(lines.size(), 1u);  // not of the eigenproblem within
  EXPECT_EQ(lines[0].severity, Severity::info);
  EXPECT_EQ(lines[0].text.find("descramble: "), 0u) << lines[0].text;
  EXPECT_NE(lines[0].text.find("float64"), std::string::npos) << lines[0].text;

  Matrix<double> identity(20, 20, 0);
  for (std::int64_t i = 0; i < 20; ++i) identity(i, i) = 1;
  const auto of_operator =
      lines_of([&](const Context& context) { Operator::from_matrix(identity.view(), context); });
  ASSERT_EQ(of_operator.size(), 1u);
  EXPECT_EQ(of_operator[0].text.find("Operator::from_matrix: "), 0u) << of_operator[0].text;
}

TEST(Log, WhatItThrowsReachesTheCaller) {
  std::pmr::synchronized_pool_resource memory;
  const Context context{.memory = &memory, .log = [](Severity, std::string_view) {
                          throw std::runtime_error("the log is full");
                        }};
  EXPECT_THROW(eigh<double>(testing::gaussian(4, 4, 6).view(), {}, context), std::runtime_error);
  EXPECT_EQ(memory_of_call(), std::pmr::new_delete_resource());
  EXPECT_EQ(lines_of([](const Context& after) {
              eigh<double>(testing::gaussian(4, 4, 6).view(), {}, after);
            }).size(),
            1u);
}

TEST(Log, WarnsOfEveryFallback) {
  // A flat spectrum, on which block Krylov gives up.
  Matrix<double> a(1100, 1100, 0);
  for (std::int64_t i = 0; i < 1100; ++i) a(i, i) = 1 + 1e-9 * double(i);
  Route route;
  const auto lines =
      lines_of([&](const Context& context) { route = eigh<double>(a.view(), 5, context).route; });
  ASSERT_EQ(route.fallbacks.size(), 1u);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].severity, Severity::warning);
  EXPECT_EQ(lines[0].text, "eigh: " + route.fallbacks[0]);
  EXPECT_EQ(lines[1].severity, Severity::info);
}

TEST(Log, TheLibraryPrintsNothing) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  results({});
  EXPECT_THROW(eigh<double>(testing::gaussian(3, 4, 6).view()), InvalidArgument);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace descramble_fast
