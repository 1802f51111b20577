#include "cpu/limits.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

extern const LimitsKernels limits_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const LimitsKernels limits_avx2;
extern const LimitsKernels limits_avx512;
extern const LimitsKernels limits_avx512_bf16;
#endif

std::span<const Variant<LimitsKernels>> limits_variants(Simd level) {
  static constexpr auto all = std::to_array<Variant<LimitsKernels>>({
      {Simd::baseline, &limits_baseline},
#if defined(DESCRAMBLE_FAST_X86)
      {Simd::avx2, &limits_avx2},
      {Simd::avx512, &limits_avx512},
      {Simd::avx512_bf16, &limits_avx512_bf16},
#endif
  });
  return up_to<LimitsKernels>(level, all);
}

namespace {

using Clock = std::chrono::steady_clock;

// Results of measured work end here, so that the work is done.
std::atomic<double> sink;

// Rates are those of the best window, so that what else runs on the machine counts least.
constexpr double window = 2e-3;
using Work = std::vector<double>;  // one entry per window

// One moment from which all threads count. Tasks may also run one after another (fewer threads than
// were asked for): one that has waited a second goes on, and those after it come too late to count.
class Start {
 public:
  explicit Start(int tasks) : missing_(tasks) {}

  Clock::time_point wait() {
    --missing_;
    const auto patience = Clock::now() + std::chrono::seconds(1);
    while (missing_.load() > 0 && Clock::now() < patience) std::this_thread::yield();
    auto begin = Clock::time_point();
    const auto now = Clock::now();
    return begin_.compare_exchange_strong(begin, now) ? now : begin;
  }

 private:
  std::atomic<int> missing_;
  std::atomic<Clock::time_point> begin_{};
};

// What one thread gets done in each window; step() returns the work of one small step.
template <class Step>
Work work_from(Clock::time_point begin, std::size_t windows, Step& step) {
  Work done(windows, 0.0);
  for (;;) {
    const double work = step();
    const std::chrono::duration<double> elapsed = Clock::now() - begin;
    const double now = elapsed.count() / window;
    if (now >= double(windows)) return done;
    done[std::size_t(now)] += work;
  }
}

// Work a second of all threads together. prepare() is called in each thread before the clock
// starts, and returns its step.
template <class Prepare>
double best_rate(double seconds, int threads, const Prepare& prepare) {
  const std::size_t windows = std::max<std::size_t>(1, std::size_t(seconds / window));
  std::vector<Work> done(static_cast<std::size_t>(threads));
  Start start(threads);
  parallel_for(threads, threads, [&](std::int64_t t) {
    auto step = prepare();
    done[std::size_t(t)] = work_from(start.wait(), windows, step);
  });
  double best = 0;
  for (std::size_t w = 0; w < windows; ++w) {
    double together = 0;
    for (const Work& d : done) together += d[w];
    best = std::max(best, together);
  }
  return best / window;
}

}  // namespace

double peak_rate(const PeakLoop& loop, double seconds, int threads) {
  constexpr std::int64_t rounds = 2000;  // some ten microseconds
  return best_rate(seconds, threads, [&] {
    return [&loop] {
      sink = loop.run(rounds, 0.5);
      return double(rounds) * loop.flops_per_round;
    };
  });
}

double read_rate(const LimitsKernels& kernels, double seconds, int threads) {
  constexpr std::int64_t words_of_mib = (1 << 20) / 8, step = words_of_mib / 8;
  const std::int64_t size = std::max<std::int64_t>(256 / threads, 32) * words_of_mib;
  return best_rate(seconds, threads, [&] {
    // Filled by the thread that reads it, which places it in that thread's memory.
    auto words = std::make_unique_for_overwrite<std::uint64_t[]>(std::size_t(size));
    std::fill_n(words.get(), size, std::uint64_t(1));
    return [&kernels, size, at = std::int64_t(0), words = std::move(words)]() mutable {
      sink = double(kernels.read(words.get() + at, step));
      at = (at + step) % size;
      return 8.0 * step;
    };
  });
}

}  // namespace descramble_fast::cpu
