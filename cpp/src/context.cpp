#include "descramble_fast/context.hpp"

#include <atomic>

#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

std::atomic<int> chosen_threads{0};

}  // namespace

int num_threads() {
  const int chosen = chosen_threads.load(std::memory_order_relaxed);
  return chosen > 0 ? chosen : cpu::default_threads();
}

void set_num_threads(int threads) {
  if (threads < 0)
    throw InvalidArgument(message("threads: got ", threads, ", expected at least 0"));
  chosen_threads.store(threads, std::memory_order_relaxed);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const cpu::Simd level : cpu::simd_levels()) names.emplace_back(cpu::name(level));
  return names;
}

std::string instruction_set() { return cpu::name(cpu::simd_level()); }

}  // namespace descramble_fast
