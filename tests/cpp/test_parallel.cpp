#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/parallel.hpp"
#include "descramble_fast/error.hpp"
#include "ladder.hpp"

namespace descramble_fast {
namespace {

using cpu::parallel_for;

TEST(Parallel, EveryIndexRunsOnce) {
  for (const int threads : {1, 2, 7}) {
    std::vector<std::atomic<int>> hits(1000);
    parallel_for(threads, 1000, [&](std::int64_t i) { ++hits[std::size_t(i)]; });
    for (const auto& h : hits) EXPECT_EQ(h.load(), 1);
  }
}

TEST(Parallel, AnExceptionReachesTheCallerAndThePoolLivesOn) {
  EXPECT_THROW(parallel_for(4, 100,
                            [](std::int64_t i) {
                              if (i == 37) throw std::runtime_error("37");
                            }),
               std::runtime_error);
  std::atomic<int> sum = 0;
  parallel_for(4, 10, [&](std::int64_t i) { sum += int(i); });
  EXPECT_EQ(sum.load(), 45);
}

TEST(Parallel, WhoeverPollsHearsThatAnotherHasFailed) {
  struct Stop {};
  struct Late {};
  std::atomic<bool> helped{false};
  const auto begin = std::chrono::steady_clock::now();
  const auto caller = std::this_thread::get_id();
  const std::function<void()> poll = cpu::now_and_then([&] {
    if (helped) throw Stop{};
  });
  const auto endless = [&](std::int64_t) {
    for (;;) {
      helped = helped || std::this_thread::get_id() != caller;
      poll();
      if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(30)) throw Late{};
      std::this_thread::yield();
    }
  };
  EXPECT_THROW(parallel_for(2, 2, endless, poll), Stop);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  helped = false;
  EXPECT_NO_THROW(parallel_for(2, 2, [&](std::int64_t) { poll(); }, poll));
}

TEST(Parallel, NestedCallsRunSerially) {
  std::atomic<int> sum = 0;
  parallel_for(4, 8, [&](std::int64_t) {
    const auto outer = std::this_thread::get_id();
    parallel_for(4, 8, [&](std::int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++sum;
    });
  });
  EXPECT_EQ(sum.load(), 64);
}

TEST(Parallel, ManyCallersShareThePool) {
  std::atomic<int> sum = 0;
  std::vector<std::thread> callers;
  for (int c = 0; c < 8; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) parallel_for(3, 20, [&](std::int64_t) { ++sum; });
    });
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(sum.load(), 8 * 50 * 20);
}

#if !defined(__SANITIZE_THREAD__)  // its runtime forbids new threads in a forked child
TEST(Parallel, AForkedChildGetsAPoolOfItsOwn) {
  parallel_for(4, 100, [](std::int64_t) {});
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    std::atomic<int> sum = 0;
    parallel_for(4, 100, [&](std::int64_t) { ++sum; });
    _exit(sum.load() == 100 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

TEST(Threads, TheArgumentBeatsTheSettingBeatsTheEnvironment) {
  setenv("DESCRAMBLE_FAST_NUM_THREADS", "5", 1);
  setenv("OMP_NUM_THREADS", "6", 1);
  EXPECT_EQ(num_threads(), 5);
  unsetenv("DESCRAMBLE_FAST_NUM_THREADS");
  EXPECT_EQ(num_threads(), 6);
  set_num_threads(3);
  EXPECT_EQ(num_threads(), 3);
  EXPECT_EQ(cpu::threads_of({.threads = 2, .poll = {}}), 2);
  EXPECT_EQ(cpu::threads_of({}), 3);
  set_num_threads(0);
  EXPECT_EQ(num_threads(), 6);
  unsetenv("OMP_NUM_THREADS");
  EXPECT_GE(num_threads(), 1);
  EXPECT_THROW(set_num_threads(-1), InvalidArgument);
}

TEST(Ladder, AFailedDriverIsRecordedAndTheNextOneTried) {
  std::vector<std::string> fallbacks;
  const Rung rungs[] = {{"first", [] { return std::string("info = 3"); }},
                        {"second", [] { return std::string(); }},
                        {"third", []() -> std::string { throw std::logic_error("not needed"); }}};
  EXPECT_EQ(climb(rungs, fallbacks), "second");
  EXPECT_EQ(fallbacks, std::vector<std::string>{"first: info = 3"});
}

TEST(Ladder, WhereAllFailEveryReasonIsNamed) {
  std::vector<std::string> fallbacks;
  const Rung rungs[] = {{"first", [] { return std::string("info = 3"); }},
                        {"second", [] { return std::string("residual 1 above 0.1"); }}};
  try {
    climb(rungs, fallbacks);
    FAIL();
  } catch (const BackendError& error) {
    EXPECT_STREQ(error.what(),
                 "every driver failed: first: info = 3; second: residual 1 above 0.1");
  }
}

}  // namespace
}  // namespace descramble_fast
