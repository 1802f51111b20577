#include "descramble_fast/context.hpp"

#include <atomic>
#include <new>

#include "call.hpp"
#include "cpu/cgroup.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

std::atomic<int> chosen_threads{0};

thread_local Surroundings current;

}  // namespace

Surroundings& surroundings() { return current; }

Call::Call(const Context& context) : outer_(current) {
  if (context.executor != nullptr) current.executor = context.executor;
  if (context.memory != nullptr) current.memory = context.memory;
  if (context.log) current.log = &context.log;
  ++current.depth;
}

Call::Call(const Context& context, std::pmr::memory_resource* memory) : Call(context) {
  current.memory = memory;
}

void Call::log(const char* name, const Route& route) const {
  if (current.log == nullptr || outer_.depth > 0) return;
  for (const std::string& fallback : route.fallbacks)
    (*current.log)(Severity::warning, message(name, ": ", fallback));
  (*current.log)(Severity::info,
                 message(name, ": ", route.driver, " (", route.device, ", ", route.dtype, ")"));
}

bool can_have(std::int64_t bytes) {
  if (current.memory != nullptr) return true;
  // Where memory is granted before it is used, a group's limit shows only when it kills.
  constexpr std::int64_t few = 1 << 26;
  if (bytes > few && bytes > cpu::cgroup_memory()) return false;
  void* const granted = ::operator new(std::size_t(bytes), std::nothrow);
  ::operator delete(granted);
  return granted != nullptr;
}

std::pmr::memory_resource* memory_of_call() noexcept {
  return current.memory != nullptr ? current.memory : std::pmr::new_delete_resource();
}

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
