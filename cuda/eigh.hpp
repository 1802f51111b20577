#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "device.hpp"

namespace descramble_fast::cuda {

/// How a batch is solved at first; what fails the check goes on to the next driver.
enum class Route : std::int32_t {
  jacobi,   // our own kernel, in shared memory: a warp for each matrix, or a block
  batched,  // cusolverDnXsyevBatched
  single,   // cusolverDnXsyevd or cusolverDnXsyevdx, one matrix after another
};

/// Matrix and vectors of these sizes take under 80 KiB of shared memory, which every device from
/// compute capability 8.0 grants a block.
inline constexpr std::int64_t largest_jacobi_float32 = 96, largest_jacobi_float64 = 64;
/// Up to here a matrix has a warp to itself, above a block.
inline constexpr std::int64_t largest_jacobi_warp = 32;
/// Above, and for fewer matrices, one matrix keeps the device busy.
inline constexpr std::int64_t largest_batched = 512, least_batched = 4;
/// One part of a batch, between which the caller may cancel, takes some n^3 of this many.
inline constexpr std::int64_t jacobi_work = std::int64_t(1) << 34, largest_jacobi_part = 1 << 20;
/// cuSOLVER has refused batches of 2^15 and more, and lengths that 31 bits cannot count in bytes.
inline constexpr std::int64_t largest_batched_part = 1 << 14;
inline constexpr std::int64_t largest_batched_bytes = (std::int64_t(1) << 31) - 1;
/// Of the free memory, what a part of a batch and its workspace may take.
inline constexpr double batched_share = 0.5;
/// No matrix met so far took more than eleven.
inline constexpr int jacobi_sweeps = 30;

inline Route route_for(std::int64_t n, std::int64_t k, std::int64_t batch, DType working) {
  if (n <= (working == DType::float32 ? largest_jacobi_float32 : largest_jacobi_float64))
    return Route::jacobi;
  // Batches are solved for all pairs: a few are found faster one matrix at a time.
  const bool few = n > 128 && 8 * k < n && batch < 16;
  return n <= largest_batched && batch >= least_batched && !few ? Route::batched : Route::single;
}

/// The most matrices to a part of a batch.
inline std::int64_t part_for(Route route, std::int64_t n, DType working) {
  switch (route) {
    case Route::jacobi:
      return std::clamp<std::int64_t>(jacobi_work / (n * n * n), 1, largest_jacobi_part);
    case Route::batched:
      return std::clamp<std::int64_t>(largest_batched_bytes / (n * n * bytes_of(working)), 1,
                                      largest_batched_part);
    case Route::single:
      break;
  }
  return 1;
}

struct EighPlan {
  Route route;
  std::int64_t part;
  double memory_share = batched_share;
  int sweeps = jacobi_sweeps;
};

inline EighPlan plan_for(std::int64_t n, std::int64_t k, std::int64_t batch, DType working) {
  const Route route = route_for(n, k, batch, working);
  return {route, part_for(route, n, working)};
}

/// What is known of one solved matrix, all of the matrix times 2^-exponent.
struct Verdict {
  /// Frobenius norms: of A V - V Lambda and V V^T - I, estimated with random signs, and of A.
  double residual, orthogonality, norm;
  /// Of the eigenvalues' moduli.
  double largest;
  std::int64_t bad;  // the first NaN or infinity, as row * n + column; -1: none
  std::int32_t exponent;
  std::int32_t info;   // of the driver; 0: success
  std::int32_t range;  // 0: an eigenvalue, times 2^exponent, exceeds the working type
};

/// Why an answer is refused; empty: it is good.
template <class T>
std::string judge(const Verdict& verdict, std::int64_t n);

/// Checks the k pairs w (batch, k), v (batch, k, n) of scaled matrices, and undoes the scaling of
/// w.
template <class T>
std::vector<Verdict> check_eigenpairs(const Queue& queue, const ArrayView& a, std::int64_t k, T* w,
                                      const T* v);

template <class T>
void solve_eigenproblems(const Queue& queue, const ArrayView& a, std::int64_t k,
                         const EighPlan& plan, EighOutput& out, const Notes& notes);

}  // namespace descramble_fast::cuda
