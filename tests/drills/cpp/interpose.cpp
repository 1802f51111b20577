// Stands before what the C++ library asks of the system: threads, and memory for exceptions.

#include <dlfcn.h>
#include <pthread.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "memory.hpp"

extern "C" void* __libc_malloc(std::size_t bytes);

namespace {

// (What BLAS does without threads is its own affair: it ends the process.)
bool is_of_cpp(const void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && std::strstr(info.dli_fname, "libstdc++") != nullptr;
}

bool fails(drill::Source source, const void* caller) {
  return drill::is_failing(source) && is_of_cpp(caller) && drill::fails(source);
}

}  // namespace

extern "C" void* malloc(std::size_t bytes) {
  if (fails(drill::Source::malloc, __builtin_return_address(0))) return nullptr;
  return __libc_malloc(bytes);
}

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*run)(void*), void* argument) {
  if (fails(drill::Source::thread, __builtin_return_address(0))) return EAGAIN;
  static const auto create =
      reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return create(thread, attributes, run, argument);
}
