#pragma once

#include <cstdint>

namespace descramble_fast::cpu {

/// Eigenpairs of the symmetric tridiagonal matrix with diagonal d (n) and off-diagonal e (n - 1),
/// by divide and conquer (Cuppen; Gu and Eisenstat): d becomes the eigenvalues, ascending, the rows
/// of z (n, n) the eigenvectors; e is lost. LAPACK's `info`.
///
/// Memory: n^2 + O(n) elements beside z. Under SingleBlasThread. The same bits for every number of
/// threads.
template <class T>
std::int64_t divide_and_conquer(std::int64_t n, T* d, T* e, T* z, int threads);

}  // namespace descramble_fast::cpu
