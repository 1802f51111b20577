#include "cpu/restarts.hpp"

#include <algorithm>
#include <chrono>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

// Between two looks at the clock, the signals and the caller.
constexpr std::chrono::milliseconds round_time{20};

}  // namespace

RestartsReport run_restarts(std::span<const std::unique_ptr<Restart>> restarts,
                            std::int64_t planned, double known, const SearchOptions& search,
                            const Context& context) {
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now();
  const int threads = threads_of(context);
  // As many at a time as there are threads: the first have an answer before the last begin.
  const std::size_t width = std::min(restarts.size(), std::size_t(threads));
  // Only the calling thread may poll.
  const Context inner{width == 1 ? threads : 1, width == 1 ? context.poll : nullptr};
  std::vector<Restart*> active;
  std::size_t begun = 0;
  RestartsReport report;
  double best = known;
  for (;;) {
    while (active.size() < width && begun < restarts.size())
      active.push_back(restarts[begun++].get());
    if (active.empty()) return report;
    if (context.poll) context.poll();
    std::vector<char> over(active.size(), 0);
    const auto round = Clock::now();
    parallel_for(threads, std::int64_t(active.size()), [&](std::int64_t i) {
      char& done = over[std::size_t(i)];
      do {
        done = active[std::size_t(i)]->advance(inner);
      } while (!done && Clock::now() - round < round_time);
    });
    report.steps = 0;
    for (std::size_t i = 0; i < begun; ++i) report.steps += restarts[i]->steps();
    for (const Restart* restart : active) best = std::min(best, restart->cost());
    std::size_t kept = 0;
    for (std::size_t i = 0; i < active.size(); ++i)
      if (!over[i]) active[kept++] = active[i];
    active.resize(kept);

    const std::chrono::duration<double> passed = Clock::now() - began;
    const bool stop =
        search.progress && search.progress({passed.count(), report.steps, planned, best});
    if (active.empty() && begun == restarts.size()) return report;
    if (stop || (search.time_limit && passed.count() >= *search.time_limit)) {
      report.stopped = stop ? Stopped::callback : Stopped::time_limit;
      return report;
    }
  }
}

}  // namespace descramble_fast::cpu
