// Loaded before the C++ library: what the extension of Python asks of operator new fails on demand.

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> left{-1}, failed{0};
std::atomic<bool> all{false};

bool is_ours(const void* caller) {
  Dl_info info;
  if (dladdr(caller, &info) == 0) return false;
  return std::strstr(info.dli_fname, "libdescramble_fast") != nullptr ||
         std::strstr(info.dli_fname, "descramble_fast/_core") != nullptr;
}

bool fails(const void* caller) {
  if (left < 0 || !is_ours(caller)) return false;
  if (left > 0) {
    --left;
    return false;
  }
  if (!all) left = -1;
  ++failed;
  return true;
}

void* or_throw(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// From now on the n-th request (from 0) fails, and with `every` all after it; below 0: none.
extern "C" void start_failing(long n, int every) {
  failed = 0;
  all = every != 0;
  left = n;
}
extern "C" long stop_failing() {
  left = -1;
  return failed.exchange(0);
}

void* operator new(std::size_t bytes) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return or_throw(std::malloc(bytes > 0 ? bytes : 1));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  const auto step = std::size_t(alignment);
  return or_throw(std::aligned_alloc(step, (bytes + step) / step * step));
}
