#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Whether block Krylov is worth trying for the k largest of n eigenpairs: n >= 1024, k <= n / 32.
bool leading_may_pay(std::int64_t n, std::int64_t k);

/// The k largest eigenpairs of the scaled matrix by block Krylov with full orthogonalisation in
/// double precision: w ascending, v (k, n) by rows. For a view of rank 2 and n and k that
/// leading_may_pay(n, k); `frobenius` is |A|_F.
///
/// Returns an empty string, or why it gave up: a spectrum that decays too slowly shows after a
/// small part of a full solve's work. An answer has converged (residual at most 4 sqrt(n) eps |A|),
/// and is certified besides: at most k eigenvalues of A exceed w_0 + 5 n eps |A|. Two proofs are
/// tried.
/// - With B the part of A inside the basis, C what ties it to the rest and |R|_F = r the norm left
///   for the rest: where r < s, A has no more eigenvalues above s than B + C^T C / (s - r). Only
///   rounding in double precision, of which |A|_F^2 gets n eps, is outside of the proof.
/// - Cholesky's factorisation of s I - A + V^T S V, S >= 0 of rank k, succeeds. Then, whatever V,
/// at
///   most k eigenvalues of A + E exceed s, E the rounding error of the factorisation, which takes
///   n^3 / 3 operations.
///
/// Memory: n^2 elements of T and n max(n / 8, 5 k) + n^2 / 32 doubles. Under SingleBlasThread.
/// `poll` is called between steps. The same bits for every number of threads.
template <class T>
std::string leading_eigenpairs(const ArrayView& a, int exponent, double frobenius, std::int64_t k,
                               int threads, const std::function<void()>& poll, T* w, T* v);

}  // namespace descramble_fast::cpu
