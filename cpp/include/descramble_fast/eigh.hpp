#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// Eigenpairs of a batch of symmetric matrices, ascending.
template <class T>
struct Eigh {
  /// Rows of each matrix.
  std::int64_t n = 0;
  /// (batch, k).
  Matrix<T> eigenvalues;
  /// (batch * k, n): row b * k + i is the eigenvector of eigenvalues(b, i).
  Matrix<T> eigenvectors;
  /// Per matrix, absolute: Frobenius norm of A V - V Lambda, estimated by random probes.
  std::vector<double> residual;
  /// Per matrix: Frobenius norm of V^T V - I, estimated in the same way.
  std::vector<double> orthogonality_error;
  /// Of the batch as a whole.
  Route route;
};

/// Eigenvalues and eigenvectors of symmetric matrices, shape (..., n, n), T float or double.
///
/// Reads the lower triangles. k takes the k largest pairs (all if absent). Each solution is
/// checked: residual <= 50 n eps |A| and orthogonality error <= 50 n eps; a solution that fails
/// goes down a ladder of other drivers, recorded in the route. A batch is spread over threads, a
/// single large matrix is solved by all of them.
///
/// From n = 1024 on, k <= n / 32 pairs are first sought by block Krylov ("skrylov", "dkrylov").
/// What it gives is certified to be the k largest: no other eigenvalue exceeds the least of them by
/// more than 5 n eps |A|, up to rounding. Where the spectrum decays too slowly for that to pay it
/// gives up early, which the route records like any other fallback.
///
/// O(n^3) for each matrix. Extra memory for one matrix: 3 n^2 elements for all pairs, k n more for
/// k of them, result included; block Krylov, where it answers, n^2 + k n, and up to n max(n / 8, 5
/// k) + n^2 / 32 doubles while it runs.
///
/// On a CUDA device small matrices are solved by Jacobi rotations, a block or a warp of threads to
/// each, others by cuSOLVER, and checked in the same way; a matrix that every driver there fails
/// on is solved on the CPU, which the route records. Results lie where `a` does.
///
/// Throws InvalidArgument (shape, k, NaN or infinity with its position, eigenvalues beyond T's
/// range), TypeError (T narrower than the input), BackendError (every driver failed).
template <class T>
DESCRAMBLE_FAST_EXPORT Eigh<T> eigh(const ArrayView& a, std::optional<std::int64_t> k = {},
                                    const Context& context = {});

/// @cond
extern template DESCRAMBLE_FAST_EXPORT Eigh<float> eigh(const ArrayView&,
                                                        std::optional<std::int64_t>,
                                                        const Context&);
extern template DESCRAMBLE_FAST_EXPORT Eigh<double> eigh(const ArrayView&,
                                                         std::optional<std::int64_t>,
                                                         const Context&);
/// @endcond

}  // namespace descramble_fast
