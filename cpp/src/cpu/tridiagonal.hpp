#pragma once

#include <cstdint>
#include <functional>

#include "cpu/lapack.hpp"

namespace descramble_fast::cpu {

/// A = Q T Q^T for the lower triangle of a row-major symmetric A (n, n), conj(A) = Q T Q^H for a
/// Hermitian one, T real with diagonal d (n) and off-diagonal e (n - 1), by Householder reflections
/// in panels (Dongarra, Sorensen and Hammarling): Q = H_(n-1) ... H_1, where H_r = I - tau[r - 1] v
/// v^H with v = (a(r, 0) ... a(r, r - 1), 0 ...), which ends in a 1. Where LAPACK's ?sytrd would be
/// one call of minutes, `poll` is called at every column. Under ManyBlasThreads or
/// SingleBlasThread.
template <class T>
void tridiagonalise(std::int64_t n, T* a, Real<T>* d, Real<T>* e, T* tau,
                    const std::function<void()>& poll);

/// V = V Q^T for the rows of V (k, n), with Q as tridiagonalise leaves it in `a` (n, n) and `tau`;
/// destroys both. Under SingleBlasThread. The same bits for every number of threads.
template <class T>
void transform_back(std::int64_t n, std::int64_t k, T* a, T* tau, T* v, int threads,
                    const std::function<void()>& poll);

}  // namespace descramble_fast::cpu
