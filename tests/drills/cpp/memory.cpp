#include "memory.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace drill {

namespace {

// No drill needs more at once, and machines differ in what they promise.
constexpr std::size_t most_bytes = std::size_t(1) << 30;

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
    ++failed;
    return true;
  }
};

constinit Plan plans[std::size_t(Source::count)];
constinit std::atomic<std::int64_t> live{0}, live_of_allocator{0};

// Stands before memory, and keeps its alignment.
struct Header {
  std::size_t bytes, alignment;
};

std::size_t room_for_header(std::size_t alignment) {
  return alignment < sizeof(Header) ? sizeof(Header) : alignment;
}

void* take(std::size_t bytes, std::size_t alignment) {
  if (bytes > most_bytes) return nullptr;
  const std::size_t room = room_for_header(alignment);
  void* begin = nullptr;
  if (posix_memalign(&begin, room < 16 ? 16 : room, room + bytes) != 0) return nullptr;
  char* const memory = static_cast<char*>(begin) + room;
  const Header header{bytes, alignment};
  std::memcpy(memory - sizeof header, &header, sizeof header);
  live += std::int64_t(bytes);
  return memory;
}

Header give_back(void* memory) {
  Header header;
  std::memcpy(&header, static_cast<char*>(memory) - sizeof header, sizeof header);
  live -= std::int64_t(header.bytes);
  std::free(static_cast<char*>(memory) - room_for_header(header.alignment));
  return header;
}

void* take_new(std::size_t bytes, std::size_t alignment) noexcept {
  return fails(Source::operator_new) ? nullptr : take(bytes, alignment);
}

void* take_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* const memory = take_new(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace

bool is_failing(Source source) { return plans[std::size_t(source)].left >= 0; }
bool fails(Source source) { return plans[std::size_t(source)].fails(); }

void start_failing(Source source, std::int64_t n, bool all) {
  Plan& plan = plans[std::size_t(source)];
  plan.failed = 0;
  plan.all = all;
  plan.left = n;
}

std::int64_t stop_failing() {
  std::int64_t failed = 0;
  for (Plan& plan : plans) {
    plan.left = -1;
    failed += plan.failed.exchange(0);
  }
  return failed;
}

std::int64_t live_bytes() { return live; }
std::int64_t allocator_bytes() { return live_of_allocator; }

void* allocate(void*, std::size_t bytes, std::size_t alignment) {
  void* const memory = fails(Source::caller) ? nullptr : take(bytes, alignment);
  if (memory != nullptr) live_of_allocator += std::int64_t(bytes);
  return memory;
}

void release(void*, void* memory, std::size_t bytes, std::size_t alignment) {
  live_of_allocator -= std::int64_t(bytes);
  const Header header = give_back(memory);
  if (header.bytes == bytes && header.alignment == alignment) return;
  std::fprintf(stderr, "release: got %zu bytes at %zu, allocate gave %zu at %zu\n", bytes,
               alignment, header.bytes, header.alignment);
  std::abort();
}

}  // namespace drill

void* operator new(std::size_t bytes) { return drill::take_or_throw(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return drill::take_or_throw(bytes, std::size_t(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return drill::take_new(bytes, 16);
}
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return drill::take_new(bytes, std::size_t(alignment));
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t& tag) noexcept {
  return operator new(bytes, tag);
}
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete(void* memory) noexcept {
  if (memory != nullptr) drill::give_back(memory);
}
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { operator delete(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  operator delete(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
  operator delete(memory);
}
