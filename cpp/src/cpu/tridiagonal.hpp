#pragma once

#include <cstdint>

namespace descramble_fast::cpu {

/// V = V Q^T for the rows of V (k, n), with Q as Lapack<T>::sytrd left it in `a` (n, n) and `tau`;
/// destroys both. Under SingleBlasThread. The same bits for every number of threads.
template <class T>
void transform_back(std::int64_t n, std::int64_t k, T* a, T* tau, T* v, int threads);

}  // namespace descramble_fast::cpu
