#pragma once

#include <cstdint>
#include <span>

#include "cpu/simd.hpp"

namespace descramble_fast::cpu {

/// Columns go in strips of this many. A packed strip holds its rows one after another.
inline constexpr int strip = 32;
/// Most rows that one call packs.
inline constexpr int pack_rows = 16;

/// Up to pack_rows rows of n contiguous elements, to be packed as (x - reference) * root.
///
/// All arrays by column go on to the end of the last strip. The type that is packed is float,
/// double, or a pair of bfloat16 (two rows, of which the second may be missing) in 32 bits.
struct PackTask {
  const void* const* rows;
  /// Those packed after these: fetched meanwhile. As many, or null.
  const void* const* next_rows;
  int count;
  std::int64_t n;
  /// By column, of the type packed; unused for pairs.
  const void* reference;
  /// By row, square roots of the weights, of the type packed; null: all 1.
  const void* roots;
  /// Where the first strip of the first row goes, and the distance of strips in elements.
  void* packed;
  std::int64_t strip_stride;
  /// Of what is packed, y: these grow by the sums over rows of root * y and y^2.
  double* sum;
  double* square;
  /// For float and pairs: bits that are set in any y, so that 0 means that all are 0.
  std::uint32_t* bits;
  /// For double: largest |x|.
  double* largest;
};

/// C (strip, strip) += A^T B for packed strips A and B of `depth` rows (or pairs of rows). The
/// columns of B from `columns` on are zeros; in a diagonal block only the upper triangle counts.
/// What does not count may be left out.
struct BlockTask {
  const void* a;
  const void* b;
  std::int64_t depth;
  std::int64_t columns;
  bool diagonal;
  double* c;
  /// As much again as A, that the next task will read: fetched meanwhile.
  const void* next;
};

struct CovarianceKernels {
  void (*pack_float16)(const PackTask&);
  void (*pack_bfloat16)(const PackTask&);
  void (*pack_float32)(const PackTask&);
  void (*pack_float64)(const PackTask&);
  /// float tiles, flushed to C every block_rows rows.
  void (*multiply_float)(const BlockTask&);
  void (*multiply_double)(const BlockTask&);
  /// Null where the processor has no such products.
  void (*pack_pairs)(const PackTask&);
  void (*multiply_pairs)(const BlockTask&);
};

/// The builds that a processor of this level can run, the slowest first.
std::span<const Variant<CovarianceKernels>> covariance_variants(Simd level);

inline const CovarianceKernels& covariance_kernels() {
  return *covariance_variants(simd_level()).back().kernels;
}

}  // namespace descramble_fast::cpu
