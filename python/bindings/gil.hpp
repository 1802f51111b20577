#pragma once

#include <pybind11/pybind11.h>

#if defined(__GLIBC__)
#include <cxxabi.h>
#include <unistd.h>
#endif

namespace descramble_fast::python {

/// Does what may need the GIL. Once the interpreter ends, Python before 3.14 unwinds the stack of
/// another thread that asks for it, which no C++ in between survives: that thread sleeps here
/// instead until the process is gone, as Python 3.14 has it.
template <class Use>
decltype(auto) under_python(Use&& use) {
#if defined(__GLIBC__)
  try {
    return use();
  } catch (abi::__forced_unwind&) {
    for (;;) ::pause();
  }
#else
  return use();
#endif
}

/// As pybind11::gil_scoped_release.
class Released {
 public:
  Released() : thread_(PyEval_SaveThread()) {}
  ~Released() {
    under_python([&] { PyEval_RestoreThread(thread_); });
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* thread_;
};

/// Calls `use` with the GIL.
template <class Use>
decltype(auto) with_python(Use&& use) {
  return under_python([&]() -> decltype(auto) {
    const pybind11::gil_scoped_acquire acquire;
    return under_python(use);  // asleep, it never comes to give back the GIL that it lacks
  });
}

}  // namespace descramble_fast::python
