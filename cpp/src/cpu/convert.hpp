#pragma once

#include <bit>
#include <cstdint>

#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

inline float widen(BFloat16 x) { return std::bit_cast<float>(std::uint32_t(x.bits) << 16); }

/// Branch-free, so that loops over it vectorise.
inline float widen(Float16 x) {
  // The exponent's bias is 15 here and 127 there. Subnormals are read as 2^-14 + x less 2^-14,
  // which passes through no subnormal float: a caller may have told the processor to flush those.
  constexpr std::uint32_t bias = 112u << 23, smallest = 113u << 23;
  const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
  const std::uint32_t exponent = magnitude & 0x0f800000u;
  const float subnormal =
      std::bit_cast<float>(magnitude + smallest) - std::bit_cast<float>(smallest);
  const std::uint32_t other = magnitude + bias + (exponent == 0x0f800000u ? bias : 0u);
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
  return std::bit_cast<float>((exponent == 0 ? std::bit_cast<std::uint32_t>(subnormal) : other) |
                              sign);
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

/// Calls visit(T{}) with T the storage type of a floating dtype.
template <class Visit>
decltype(auto) visit_dtype(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::float16:
      return visit(Float16{});
    case DType::bfloat16:
      return visit(BFloat16{});
    case DType::float32:
      return visit(float{});
    default:
      return visit(double{});
  }
}

/// One row of any floating dtype, as doubles.
void widen_row(const ArrayView& a, std::int64_t row, double* out);

/// Every element in row-major order, as doubles.
void widen_all(const ArrayView& a, double* out);

/// The element at a row-major index of a boolean array.
bool is_true(const ArrayView& a, std::int64_t index);

/// All rows, as a contiguous (rows, columns) matrix of doubles.
Matrix<double> widen_rows(const ArrayView& a, const Context& context);

}  // namespace descramble_fast::cpu
