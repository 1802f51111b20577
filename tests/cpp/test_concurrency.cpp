#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <memory_resource>
#include <string>
#include <thread>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/convolution.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/permutation.hpp"
#include "random.hpp"

#if defined(__SANITIZE_THREAD__)
// OpenBLAS is not built with the sanitizer, which sees what it writes with memset, but not how its
// threads wait for one another.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libscipy_openblas64_\n";
}
#endif

// What the thread sanitizer looks at: calls from many threads at once, on objects of their own and
// on those that may be shared.
namespace descramble_fast {
namespace {

constexpr int callers = 4;

void at_once(const std::function<void(int)>& call) {
  std::atomic<int> waiting = callers;
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller)
    threads.emplace_back([&, caller] {
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      call(caller);
    });
  for (std::thread& thread : threads) thread.join();
}

// The values of body(caller) from all callers at once are those that one gives after the other.
void expect_the_same(const std::function<std::vector<double>(int)>& body) {
  std::vector<std::vector<double>> found(callers);
  at_once([&](int caller) { found[std::size_t(caller)] = body(caller); });
  for (int caller = 0; caller < callers; ++caller)
    EXPECT_EQ(found[std::size_t(caller)], body(caller)) << "caller " << caller;
}

std::vector<double> values_of(const Matrix<double>& matrix) {
  return {matrix.values().begin(), matrix.values().end()};
}

Covariance moments_of(std::int64_t n, unsigned seed, const Context& context = {.threads = 2}) {
  Covariance c(n, {.memory = context.memory});
  for (unsigned i = 0; i < 5; ++i)
    c.update(testing::gaussian(300, n, 10 * seed + i, i).view(), {}, context);
  return c;
}

// Each test runs in a process of its own: this is the first call of the process, from all threads.
TEST(Concurrency, UpdatesOfSeparateAccumulators) {
  expect_the_same([](int caller) {
    return values_of(moments_of(50 + caller, unsigned(caller)).second_moment());
  });
}

TEST(Concurrency, MergesOfSeparateAccumulators) {
  expect_the_same([](int caller) {
    Covariance a = moments_of(40, unsigned(caller));
    a.merge(moments_of(40, unsigned(caller) + 7));
    return values_of(a.covariance());
  });
}

TEST(Concurrency, AMergeTreeWithOneThreadForEachPair) {
  std::vector<Covariance> leaves;
  for (unsigned i = 0; i < 2 * callers; ++i) leaves.push_back(moments_of(30, i));
  for (std::size_t stride = 1; stride < leaves.size(); stride *= 2) {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i + stride < leaves.size(); i += 2 * stride)
      threads.emplace_back([&, i] { leaves[i].merge(leaves[i + stride]); });
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(leaves[0].count(), 2 * callers * 5 * 300);
  Covariance all(30);
  for (unsigned i = 0; i < 2 * callers; ++i) all.merge(moments_of(30, i));
  EXPECT_LT(testing::largest_difference(leaves[0].covariance(), all.covariance()), 1e-12);
}

TEST(Concurrency, SolvesOfEverySize) {
  // In lanes; by LAPACK with one thread each; by LAPACK with threads of its own.
  for (const std::int64_t n : {8, 150, 260})
    expect_the_same([n](int caller) {
      const Covariance c = moments_of(n, unsigned(caller));
      return values_of(eigh<double>(c.second_moment().view(), {}, {.threads = 2}).eigenvectors);
    });
}

TEST(Concurrency, DescramblersWithOneOperator) {
  const Operator op = Operator::fourier(60);
  expect_the_same([&](int caller) {
    const SmoothnessDescrambler d =
        descramble(moments_of(60, unsigned(caller)), op, {}, {.threads = 2});
    return values_of(d.transform(testing::gaussian(100, 60, unsigned(caller)).view()));
  });
}

TEST(Concurrency, OneDescramblerIsReadByAll) {
  const SmoothnessDescrambler d = descramble(moments_of(60, 1), Operator::fourier(60));
  const Matrix<double> x = testing::gaussian(2000, 60, 2);
  expect_the_same([&](int caller) {
    return values_of(caller % 2 == 0 ? d.transform(x.view(), {.threads = 2})
                                     : d.inverse_transform(x.view(), {.threads = 2}));
  });
  const std::int64_t kernel[] = {4, 3, 3, 3}, shape[] = {6, 5};
  const Matrix<double> weight = testing::gaussian(1, 108, 3);
  const ConvolutionDescrambler conv =
      descramble_conv(ArrayView(weight.data(), DType::float64, kernel), shape);
  const Matrix<double> y = testing::gaussian(50, conv.size(), 4);
  expect_the_same([&](int) { return values_of(conv.transform(y.view(), {.threads = 2})); });
}

TEST(Concurrency, AssignmentsAndOrders) {
  expect_the_same([](int caller) {
    const Matrix<double> cost = testing::gaussian(200, 200, unsigned(caller));
    return linear_assignment(cost.view(), {}, {.threads = 2}).cost;
  });
  expect_the_same([](int caller) {
    const SmoothOrder order =
        descramble_permutation(moments_of(24, unsigned(caller)),
                               Operator::difference(24, 1, Boundary::path), {}, {.threads = 2});
    return std::vector<double>(order.permutation.begin(), order.permutation.end());
  });
}

TEST(Concurrency, TheThreadCountChangesMeanwhile) {
  std::atomic<bool> done = false;
  std::thread setter([&] {
    for (int k = 1; !done; k = k % 4 + 1) set_num_threads(k);
  });
  expect_the_same(
      [](int caller) { return values_of(moments_of(40, unsigned(caller), {}).second_moment()); });
  done = true;
  setter.join();
  set_num_threads(0);
}

// Threads of its own for every loop.
class Threads final : public Executor {
  void run(int count, const std::function<void(int)>& task) override {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back(task, i);
    for (std::thread& thread : threads) thread.join();
  }
};

TEST(Concurrency, OneExecutorAndOneMemoryForAll) {
  Threads executor;
  std::pmr::synchronized_pool_resource memory;
  std::atomic<int> lines = 0;
  const Context context{.threads = 3,
                        .executor = &executor,
                        .memory = &memory,
                        .log = [&](Severity, std::string_view) { ++lines; }};
  expect_the_same([&](int caller) {
    const Covariance c = moments_of(70, unsigned(caller), context);
    return values_of(descramble(c, Operator::fourier(70), {}, context).components);
  });
  EXPECT_EQ(lines, 2 * callers);
}

TEST(Concurrency, AnErrorOfOneCallerIsItsOwn) {
  at_once([](int caller) {
    Matrix<double> x = testing::gaussian(500, 30, unsigned(caller));
    Covariance c(30);
    if (caller % 2 == 0) {
      x(499, caller) = NAN;
      EXPECT_THROW(c.update(x.view(), {}, {.threads = 2}), InvalidArgument);
      EXPECT_EQ(c.count(), 0);
    } else {
      c.update(x.view(), {}, {.threads = 2});
      EXPECT_EQ(c.count(), 500);
    }
  });
}

}  // namespace
}  // namespace descramble_fast
