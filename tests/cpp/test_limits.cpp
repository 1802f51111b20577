#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/limits.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/limits.hpp"

namespace descramble_fast {
namespace {

using cpu::Simd;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

double one_thread(const cpu::PeakLoop& loop) { return cpu::peak_rate(loop, 0.04, 1); }

// Additions of integers that wait for each other: one per cycle on every processor there is.
double chained_additions(std::int64_t rounds, double) {
  std::uint64_t x = 0;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      x += 1;
      asm volatile("" : "+r"(x));
    }
  }
  return double(x);
}

// What the weakest processor with these instructions does per cycle, one vector.
double least_flops_per_cycle(Simd level) {
  switch (level) {
    case Simd::baseline:
      return 4;  // a product or a sum of four
    case Simd::avx2:
      return 16;
    default:
      return 32;
  }
}

struct Case {
  std::string name;
  cpu::PeakLoop loop;
  double per_cycle;
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const auto& [level, kernels] : cpu::limits_variants(cpu::simd_levels().back())) {
    const double least = least_flops_per_cycle(level);
    out.push_back({std::string(name(level)) + " float32", kernels->fma_single, least});
    out.push_back({std::string(name(level)) + " float64", kernels->fma_wide, least / 2});
    if (kernels->dot_bfloat16.run != nullptr)
      out.push_back({std::string(name(level)) + " bfloat16", kernels->dot_bfloat16, 2 * least});
  }
  return out;
}

// Another program can only take away from a rate, so the best of several attempts counts.

// A loop whose accumulators go through memory, or wait for each other, does not come near.
TEST(Limits, LoopsKeepTheArithmeticUnitsBusy) {
  if (sanitized) GTEST_SKIP() << "sanitizers slow the loops";
  const double cycles = one_thread({chained_additions, 8});
  for (const Case& c : cases()) {
    double share = 0;
    for (int attempt = 0; attempt < 10 && share < 0.75; ++attempt)
      share = std::max(share, one_thread(c.loop) / cycles / c.per_cycle);
    EXPECT_GE(share, 0.75) << c.name;
    EXPECT_LE(share, 10) << c.name << ": work left out";
  }
}

TEST(Limits, LoopsStayWithNormalNumbers) {
  for (const Case& c : cases())
    for (const std::int64_t rounds : {0, 1, 1000, 100000}) {
      const double sum = c.loop.run(rounds, 0.5);
      EXPECT_TRUE(std::isnormal(sum)) << c.name;
      EXPECT_LT(std::abs(sum), 1e6) << c.name;
    }
}

// The float32 loop in plain words: x becomes 0.75 x + 1, from 0.5, 1.5, 2.5 and so on.
TEST(Limits, LoopsDoWhatTheyAreCountedFor) {
  for (const Case& c : cases()) {
    const bool dot = c.name.ends_with("bfloat16");
    const double numbers = c.loop.flops_per_round / (dot ? 4 : 2);
    double sum = 0;
    for (double i = 0; i < numbers; ++i) {
      double x = i + 0.5;
      for (int r = 0; !dot && r < 3; ++r) x = 0.75 * x + 1;
      sum += x;
    }
    EXPECT_NEAR(c.loop.run(3, 0.5), sum, 1e-5 * sum) << c.name;
  }
}

TEST(Limits, ReadingSumsEveryWord) {
  std::vector<std::uint64_t> words(5 * cpu::read_block);
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < words.size(); ++i) sum += words[i] = i * i + (i << 40);
  for (const auto& [level, kernels] : cpu::limits_variants(cpu::simd_levels().back())) {
    EXPECT_EQ(kernels->read(words.data(), std::int64_t(words.size())), sum) << name(level);
    EXPECT_EQ(kernels->read(words.data(), 0), 0u) << name(level);
  }
}

TEST(Limits, DoublesAreHalfAsMany) {
  if (sanitized) GTEST_SKIP() << "sanitizers slow the loops, not all alike";
  const bool bfloat16 = cpu::simd_level() == Simd::avx512_bf16;
  double single = 0, wide = 0, dot = 0, bandwidth = 0;
  const auto as_expected = [&] {  // the first is exactly 2 where nothing else runs
    return single > 1.3 * wide && single < 3 * wide && (!bfloat16 || dot > 0.7 * single);
  };
  for (int attempt = 0; attempt < 10 && !as_expected(); ++attempt) {
    const MachineLimits limits = machine_limits(0.1, {.threads = 1, .poll = {}});
    ASSERT_EQ(limits.dot_bfloat16.has_value(), bfloat16);
    single = std::max(single, limits.fma_float32);
    wide = std::max(wide, limits.fma_float64);
    dot = std::max(dot, limits.dot_bfloat16.value_or(0));
    bandwidth = std::max(bandwidth, limits.bandwidth);
  }
  EXPECT_TRUE(as_expected()) << single << ' ' << wide << ' ' << dot;
  EXPECT_LT(dot, 10 * single);
  // Memory feeds no multiply-add per byte; a loop in the caches would.
  EXPECT_GT(bandwidth, 1e8);
  EXPECT_LT(bandwidth, 1e12);
}

// Sleep is work that threads do not take from each other, however few the cores.
TEST(Limits, ThreadsAddUp) {
  const cpu::PeakLoop nap{[](std::int64_t, double) {
                            std::this_thread::sleep_for(std::chrono::microseconds(50));
                            return 0.0;
                          },
                          1};
  const double one = cpu::peak_rate(nap, 0.2, 1), three = cpu::peak_rate(nap, 0.2, 3);
  EXPECT_GT(three, 2 * one);
  EXPECT_LT(three, 4 * one);
}

// In a nested call all tasks run in one thread, one after another.
TEST(Limits, TasksThatCannotOverlapDoNotWaitForEver) {
  const auto begin = std::chrono::steady_clock::now();
  double rate = 0, nested = 0;
  cpu::parallel_for(2, 2, [&](std::int64_t i) {
    if (i != 0) return;
    const cpu::PeakLoop& loop = cpu::limits_kernels().fma_single;
    rate = cpu::peak_rate(loop, 0.05, 1);
    nested = cpu::peak_rate(loop, 0.05, 3);
  });
  EXPECT_LT(nested, 1.5 * rate);
  EXPECT_GT(nested, 0);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 20);
}

TEST(Limits, ArgumentsAreChecked) {
  for (const double seconds : {0.0, -1.0, 61.0, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_THROW(machine_limits(seconds), InvalidArgument);
  EXPECT_THROW(machine_limits(0.1, {.threads = -1, .poll = {}}), InvalidArgument);
}

TEST(Limits, APollCancels) {
  EXPECT_THROW(
      machine_limits(0.01, {.threads = 1, .poll = [] { throw std::runtime_error("stop"); }}),
      std::runtime_error);
}

}  // namespace
}  // namespace descramble_fast
