#include "failing_memory.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

struct Plan {
  std::atomic<std::int64_t> left{-1};  // successes to come before a failure; below 0: all succeed
  std::atomic<std::int64_t> failed{0};
  std::atomic<bool> all{false};

  bool fails() {
    std::int64_t before = left.load();
    while (before >= 0) {
      if (before == 0 && all.load()) break;
      if (left.compare_exchange_weak(before, before - 1)) break;
    }
    if (before != 0) return false;
    failed.fetch_add(1);
    return true;
  }
};

Plan plans[2];
std::atomic<std::int64_t> live{0};

void* aligned(std::size_t bytes, std::size_t alignment) {
  return std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
}

void* or_throw(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void start_failing(std::int32_t kind, std::int64_t n, std::int32_t all) {
  plans[kind].failed = 0;
  plans[kind].all = all != 0;
  plans[kind].left = n;
}

std::int64_t stop_failing() {
  std::int64_t failed = 0;
  for (Plan& plan : plans) {
    plan.left = -1;
    failed += plan.failed.exchange(0);
  }
  return failed;
}

void* failing_allocate(void*, std::size_t bytes, std::size_t alignment) {
  if (plans[FAIL_CALLERS].fails()) return nullptr;
  void* const memory = aligned(bytes, alignment);
  if (memory != nullptr) live += std::int64_t(bytes);
  return memory;
}

void failing_release(void*, void* memory, std::size_t bytes, std::size_t) {
  live -= std::int64_t(bytes);
  std::free(memory);
}

std::int64_t live_bytes() { return live; }

void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return plans[FAIL_NEW].fails() ? nullptr : std::malloc(bytes > 0 ? bytes : 1);
}
void* operator new(std::size_t bytes) { return or_throw(operator new(bytes, std::nothrow)); }
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return plans[FAIL_NEW].fails() ? nullptr : aligned(bytes, std::size_t(alignment));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return or_throw(operator new(bytes, alignment, std::nothrow));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
  std::free(memory);
}
