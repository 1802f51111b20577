#pragma once

#include <cstdint>
#include <span>

#include "cpu/simd.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Batches of at least few_matrices are solved in lanes to this size, larger matrices by LAPACK,
/// spread over threads. Measured on Zen 4 (AVX-512), time a matrix and core beside LAPACK's:
/// float32 0.10 at n = 64, 0.18 at 128, 0.4 at 320; float64 0.22, 0.40, 0.79.
template <class T>
inline constexpr std::int64_t largest_in_lanes = sizeof(T) == 4 ? 512 : 320;
/// A few matrices, or one, are solved in lanes to this size: a group of the narrowest lanes then
/// takes no longer than LAPACK for one matrix.
inline constexpr std::int64_t largest_few_in_lanes = 80;
inline constexpr std::int64_t few_matrices = 8;

/// Lanes find all pairs: for a few pairs of larger matrices LAPACK does less.
template <class T>
constexpr bool solved_in_lanes(std::int64_t n, std::int64_t k, std::int64_t batch) {
  return n <= (batch < few_matrices ? largest_few_in_lanes : largest_in_lanes<T>) &&
         (n <= 128 || 4 * k >= n);
}

enum class LaneStatus : std::uint8_t {
  solved,
  not_finite,      // NaN or infinity in the lower triangle; nothing is written
  out_of_range,    // an eigenvalue exceeds T's range
  not_converged,   // after the sweeps that are granted
  not_orthogonal,  // the check of the eigenvectors failed
  not_accurate,    // the check of the residual failed
};

/// Matrices that are solved together, one in each lane of a vector.
template <class T>
struct LaneGroup {
  std::int64_t n;
  /// The k largest pairs are written.
  std::int64_t k;
  /// Matrices, at most the solver's lanes.
  int count;
  /// Each (n, n), contiguous; the lower triangle is read.
  const T* const* a;
  /// k numbers each.
  T* const* w;
  /// (k, n) each; rows are eigenvectors.
  T* const* v;
  /// Two weights for each of n vectors: sqrt(2) times cosine and sine of an angle.
  const T* probes;
  /// QL sweeps granted, a row.
  std::int64_t sweeps;
  /// Workspace, aligned to 64 bytes.
  void* work;
  LaneStatus* status;
  /// Frobenius norms of A V - V Lambda, that is times 2^-exponent, and of V^T V - I, estimated.
  T* residual;
  T* orthogonality_error;
  int* exponent;
};

template <class T>
struct LaneSolver {
  int lanes;  // 0: no solver
  /// Bytes of workspace.
  std::int64_t (*workspace)(std::int64_t n);
  void (*solve)(const LaneGroup<T>& group);
};

/// Solvers of the same bits, the narrowest first.
template <class T>
struct LaneSolvers {
  LaneSolver<T> widths[3];
};

struct EighBatchKernels {
  LaneSolvers<float> single;
  LaneSolvers<double> wide;
};

/// The builds that a processor of this level can run, the slowest first.
std::span<const Variant<EighBatchKernels>> eigh_batch_variants(Simd level);

/// The one in use.
const Variant<EighBatchKernels>& eigh_batch_kernels();

template <class T>
const LaneSolvers<T>& lane_solvers(const EighBatchKernels& kernels);

/// The solver to take for so many matrices of a batch: the widest, unless a narrower one holds all
/// or keeps the work in a cache that wider vectors overflow.
template <class T>
const LaneSolver<T>& fitting(const LaneSolvers<T>& solvers, std::int64_t n, std::int64_t matrices);

/// What came of each matrix of a batch, and where its results go.
template <class T>
struct LaneResults {
  T* w;  // (batch, k)
  T* v;  // (batch, k, n)
  double* residual;
  double* orthogonality_error;
  LaneStatus* status;
};

/// The k largest pairs of matrices [begin, end) of a batch (..., n, n), at most `width` at a time.
/// Its floating type is T or narrower. A matrix gets the same bits whatever the others and whatever
/// the width.
template <class T>
void eigh_in_lanes(const EighBatchKernels& kernels, const ArrayView& a, std::int64_t begin,
                   std::int64_t end, std::int64_t k, std::int64_t width,
                   const LaneResults<T>& results);

}  // namespace descramble_fast::cpu
