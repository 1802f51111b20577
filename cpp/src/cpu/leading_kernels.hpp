#pragma once

#include <cstdint>
#include <span>

#include "cpu/simd.hpp"

namespace descramble_fast::cpu {

/// Vectors that a pass over the matrix multiplies.
inline constexpr std::int64_t pass_width = 8;

/// Adds to w what the rows [begin, end) of a symmetric matrix's lower triangle and their mirror
/// images contribute to A X; x and w are (n, pass_width), interleaved. `space` holds 8 n doubles.
template <class T>
using LowerProduct = void (*)(const T* a, std::int64_t lda, std::int64_t begin, std::int64_t end,
                              const double* x, double* w, double* space);

struct LeadingKernels {
  LowerProduct<float> single;
  LowerProduct<double> wide;
};

std::span<const Variant<LeadingKernels>> leading_variants(Simd level);

template <class T>
LowerProduct<T> lower_product();

}  // namespace descramble_fast::cpu
