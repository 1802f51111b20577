#pragma once

#include <cstdint>
#include <functional>

namespace descramble_fast::cpu {

/// Eigenpairs of the symmetric tridiagonal matrix with diagonal d (n) and off-diagonal e (n - 1),
/// by divide and conquer (Cuppen; Gu and Eisenstat): d becomes the eigenvalues, ascending, the rows
/// of z (n, n) the eigenvectors, of which only the last k need be right; e is lost. LAPACK's
/// `info`.
///
/// Memory: n^2 + O(n) elements beside z. Under SingleBlasThread. The same bits for every number of
/// threads. `poll` is called often, on the calling thread.
template <class T>
std::int64_t divide_and_conquer(std::int64_t n, std::int64_t k, T* d, T* e, T* z, int threads,
                                const std::function<void()>& poll);

}  // namespace descramble_fast::cpu
