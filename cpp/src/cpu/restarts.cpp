#include "cpu/restarts.hpp"

#include <algorithm>
#include <chrono>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

RestartsReport run_restarts(std::span<const std::unique_ptr<Restart>> restarts,
                            std::int64_t planned, double known, const SearchOptions& search,
                            const Context& context) {
  const auto began = std::chrono::steady_clock::now();
  const std::int64_t count = std::int64_t(restarts.size());
  const int threads = threads_of(context);
  // Only the calling thread may poll.
  const Context inner{count == 1 ? threads : 1, count == 1 ? context.poll : nullptr};
  RestartsReport report;
  double best = known;
  std::vector<char> done(restarts.size(), 0);
  while (std::ranges::count(done, 0) > 0) {
    if (context.poll) context.poll();
    parallel_for(threads, count, [&](std::int64_t i) {
      char& over = done[std::size_t(i)];
      if (!over) over = restarts[std::size_t(i)]->advance(inner);
    });
    report.steps = 0;
    for (const auto& restart : restarts) {
      report.steps += restart->steps();
      best = std::min(best, restart->cost());
    }
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - began;
    const bool stop =
        search.progress && search.progress({passed.count(), report.steps, planned, best});
    if (std::ranges::count(done, 0) == 0) break;
    if (stop) report.stopped = Stopped::callback;
    if (!stop && search.time_limit && passed.count() >= *search.time_limit)
      report.stopped = Stopped::time_limit;
    if (report.stopped != Stopped::finished) break;
  }
  return report;
}

}  // namespace descramble_fast::cpu
