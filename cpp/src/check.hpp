#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "cpu/convert.hpp"
#include "cuda.hpp"
#include "descramble_fast/assignment.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/view.hpp"
#include "message.hpp"

namespace descramble_fast {

/// Where the others are.
inline void check_device(const char* argument, const ArrayView& a, Device device) {
  if (a.device() != device)
    throw InvalidArgument(
        message(argument, ": lies on ", name(a.device()), ", expected ", name(device)));
}

inline void check_floating(const char* argument, const ArrayView& a) {
  if (a.dtype() == DType::boolean)
    throw TypeError(
        message(argument, ": got dtype bool, expected float16, bfloat16, float32 or float64"));
}

/// Calls what may throw for an earlier update of some moments, and says of which ones.
template <class Call>
auto naming(const std::string& moments, const Call& call) {
  try {
    return call();
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(message(moments, ": ", error.what()));
  }
}

inline std::string shape_text(const ArrayView& a) {
  std::string text = "(";
  for (int i = 0; i < a.rank(); ++i) text += message(i > 0 ? ", " : "", a.shape()[std::size_t(i)]);
  return text + (a.rank() == 1 ? ",)" : ")");
}

/// Rows of n floating numbers, shape (..., n).
inline void check_rows(const char* argument, const ArrayView& a, std::int64_t n) {
  check_floating(argument, a);
  if (a.rank() < 1 || a.columns() != n)
    throw InvalidArgument(
        message(argument, ": got shape ", shape_text(a), ", expected (..., ", n, ")"));
}

/// Exactly (n,).
inline void check_vector(const char* argument, const ArrayView& a, std::int64_t n) {
  check_floating(argument, a);
  if (a.rank() != 1 || a.columns() != n)
    throw InvalidArgument(
        message(argument, ": got shape ", shape_text(a), ", expected (", n, ",)"));
}

inline void check_search(const SearchOptions& search) {
  if (search.restarts < 0)
    throw InvalidArgument(message("restarts: got ", search.restarts, ", expected at least 0"));
  if (search.time_limit && !(*search.time_limit >= 0))
    throw InvalidArgument(
        message("time_limit: got ", *search.time_limit, ", expected at least 0 seconds"));
}

/// Symmetric to the rounding of a float32 matrix.
inline void check_symmetric_moment(const char* argument, const Matrix<double>& c) {
  double largest = 0;
  for (const double x : c.values()) largest = std::max(largest, std::abs(x));
  for (std::int64_t i = 0; i < c.rows(); ++i)
    for (std::int64_t j = i + 1; j < c.rows(); ++j)
      if (std::abs(c(i, j) - c(j, i)) > 1e-6 * largest)
        throw InvalidArgument(message(argument, ": not symmetric at row ", i, ", column ", j, ": ",
                                      c(i, j), " and ", c(j, i)));
}

/// Exactly (rows, columns); a negative expectation takes any length.
inline void check_matrix(const char* argument, const ArrayView& a, std::int64_t rows,
                         std::int64_t columns) {
  check_floating(argument, a);
  const auto fits = [](std::int64_t got, std::int64_t wanted) {
    return wanted < 0 || got == wanted;
  };
  if (a.rank() == 2 && fits(a.rows(), rows) && fits(a.columns(), columns)) return;
  const auto text = [](std::int64_t wanted, const char* any) {
    return wanted < 0 ? std::string(any) : std::to_string(wanted);
  };
  throw InvalidArgument(message(argument, ": got shape ", shape_text(a), ", expected (",
                                text(rows, "n"), ", ", text(columns, "m"), ")"));
}

inline void check_finite(const char* argument, const Matrix<double>& a) {
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.columns(); ++j)
      if (!std::isfinite(a(i, j)))
        throw InvalidArgument(message(argument, ": NaN or infinity at row ", i, ", column ", j));
}

/// A contiguous float64 copy on the CPU, wherever the array lies.
inline Matrix<double> fetch(const ArrayView& a, const Context& context) {
  if (a.device().kind == DeviceKind::cpu) return cpu::widen_rows(a, context);
  return cuda::widened(a, context).to({}, context);
}

/// Says in the route that an array was brought to the CPU, where alone a function works.
inline void record_fetch(const char* argument, const ArrayView& a, Route& route) {
  if (a.device().kind != DeviceKind::cpu)
    route.fallbacks.push_back(
        message(name(a.device()), ": ", argument, " copied, as this is computed on the CPU"));
}

inline Matrix<double> finite_matrix(const char* argument, const ArrayView& a, std::int64_t rows,
                                    std::int64_t columns, const Context& context) {
  check_matrix(argument, a, rows, columns);
  Matrix<double> out = fetch(a, context);
  check_finite(argument, out);
  return out;
}

}  // namespace descramble_fast
