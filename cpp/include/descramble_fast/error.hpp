#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "descramble_fast/export.hpp"

namespace descramble_fast {

/// A value, shape or combination of arguments that cannot be used. The message names the argument,
/// what came and what was expected. Nothing that the call was to change has been changed.
class DESCRAMBLE_FAST_EXPORT InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// An element type that the operation does not take.
class DESCRAMBLE_FAST_EXPORT TypeError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A backend (LAPACK, CUDA) that is absent or that failed after every fallback.
class DESCRAMBLE_FAST_EXPORT BackendError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Memory that the system would not grant. The message names the bytes.
class DESCRAMBLE_FAST_EXPORT OutOfMemory : public std::bad_alloc {
 public:
  /// The message.
  explicit OutOfMemory(const std::string& what) : what_(what) {}
  /// Lives as long as the exception.
  const char* what() const noexcept override { return what_.what(); }

 private:
  std::runtime_error what_;  // a string that can be copied without throwing
};

}  // namespace descramble_fast
