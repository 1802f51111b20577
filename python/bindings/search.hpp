#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "array.hpp"
#include "descramble_fast/assignment.hpp"

namespace descramble_fast::python {

/// Options of a search that calls back into Python and answers Ctrl-C with the best so far. It and
/// the callback must outlive the call.
class Search {
 public:
  Search(std::uint64_t seed, std::int64_t restarts, std::optional<double> time_limit,
         const py::object& callback)
      : callback_(callback) {
    options.seed = seed;
    options.restarts = restarts;
    options.time_limit = time_limit;
    options.progress = [this](const SearchProgress& progress) {
      return with_python([&] { return report(progress); });
    };
  }
  Search(const Search&) = delete;
  Search& operator=(const Search&) = delete;

  const char* stopped(Stopped how) const {
    if (interrupted_) return "interrupted";
    switch (how) {
      case Stopped::finished:
        return "finished";
      case Stopped::time_limit:
        return "time_limit";
      case Stopped::callback:
        return "callback";
    }
    return "unknown";
  }

  /// Ctrl-C and other signals end the call, but once there is an answer, Ctrl-C is noted, and the
  /// search stops with it at its next report.
  Context context(void* stream = nullptr) {
    return {0, [this] { with_python([this] { look_for_signals(); }); }, stream};
  }

  SearchOptions options;

 private:
  void look_for_signals() {
    if (PyErr_CheckSignals() == 0) return;
    if (!reported_ || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) == 0)
      throw py::error_already_set();
    PyErr_Clear();
    interrupted_ = true;
  }

  bool report(const SearchProgress& progress) {
    reported_ = true;
    look_for_signals();
    if (interrupted_) return true;
    if (callback_.is_none()) return false;
    const py::object answer = callback_(progress);
    return !answer.is_none() && py::bool_(answer);
  }

  const py::object& callback_;
  bool reported_ = false, interrupted_ = false;
};

}  // namespace descramble_fast::python
