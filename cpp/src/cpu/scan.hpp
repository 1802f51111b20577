#pragma once

#include <cstdint>
#include <span>

#include "cpu/simd.hpp"

namespace descramble_fast::cpu {

inline constexpr int scan_lanes = 64;

/// The least and second least of some reduced costs, and the first place of the least.
struct Bid {
  double least, second;
  std::int64_t place;
};

/// Passes over one contiguous row of costs s c_j with s = 1 or -1; reduced costs are s c_j - v_j in
/// double precision. Every variant gives the same bits.
template <class T>
struct RowScan {
  /// The least s c_j, and least[j] = min(least[j], s c_j) unless `least` is null. `bad` becomes
  /// true where some s c_j is NaN or minus infinity.
  double (*survey)(const T* row, std::int64_t m, double s, double* least, bool* bad);
  /// out[l] = the least reduced cost of the columns j = l mod scan_lanes, infinity where there are
  /// none.
  void (*lane_minima)(const T* row, const double* v, std::int64_t m, double s, double* out);
  /// Costs and columns whose reduced cost is at most `limit`, the first `capacity` of them in the
  /// order of columns. Returns their number, or capacity + 1 where there are more. The outputs have
  /// list_slack places more than that, whose contents are lost.
  std::int64_t (*collect)(const T* row, const double* v, std::int64_t m, double s, double limit,
                          double* costs, std::int32_t* columns, std::int64_t capacity);
  Bid (*bid)(const T* row, const double* v, std::int64_t m, double s);
  /// For d_j = (s c_j - v_j) + offset below distance[j]: distance[j] = d_j and parent[j] = label.
  /// Returns the least distance[j] that is not minus infinity.
  double (*relax)(const T* row, const double* v, std::int64_t m, double s, double offset,
                  double label, double* distance, double* parent);
};

inline constexpr int list_slack = 8;

/// Passes over a list of costs and their columns. Its length is a multiple of list_slack: the end
/// is filled up with infinite costs.
struct ListScan {
  Bid (*bid)(const double* costs, const std::int32_t* columns, std::int64_t size, const double* v);
  /// Places and distances d_q = (costs[q] - v[columns[q]]) + offset of those that are below `limit`
  /// and below distance[columns[q]]; returns their number.
  std::int64_t (*reach)(const double* costs, const std::int32_t* columns, std::int64_t size,
                        const double* v, double offset, double limit, const double* distance,
                        std::int32_t* places, double* distances);
};

struct ScanKernels {
  RowScan<float> single;
  RowScan<double> wide;
  ListScan list;
};

/// The builds that a processor of this level can run, the slowest first.
std::span<const Variant<ScanKernels>> scan_variants(Simd level);

inline const ScanKernels& scan_kernels() { return *scan_variants(simd_level()).back().kernels; }

template <class T>
const RowScan<T>& row_scan();

}  // namespace descramble_fast::cpu
