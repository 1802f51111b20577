#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

struct EighCheck {
  double residual = 0;
  double orthogonality_error = 0;
};

/// A matrix scaled by a power of two so that its largest entry lies in [1, 2).
struct Scaled {
  int exponent = 0;
  /// First row and column of the lower triangle with NaN or infinity; -1: none.
  std::int64_t bad_row = -1;
  std::int64_t bad_column = -1;
};

// All of these give the same bits for every number of threads.

/// The scale and the finite check of the lower triangle of a square view.
Scaled scale_of(const ArrayView& a, int threads = 1);

/// The lower triangle of a, times 2^-exponent, into the lower triangle of out (n, n).
template <class T>
void load_lower(const ArrayView& a, int exponent, T* out, int threads = 1);

/// Both triangles of out (n, n) from the lower one of a, times 2^-exponent.
template <class T>
void load_symmetric(const ArrayView& a, int exponent, T* out, int threads = 1);

/// |A V - V Lambda|_F and |V^T V - I|_F for the scaled A, estimated with a few random sign vectors:
/// every column takes part in each probe, at O(n^2) a probe. Eigenvectors are the k rows of v.
template <class T>
EighCheck check_eigenpairs(const ArrayView& a, int exponent, std::int64_t k, const T* w, const T* v,
                           int threads = 1);

/// |A|_F of the scaled lower triangle, both halves counted.
double frobenius_norm(const ArrayView& a, int exponent, int threads = 1);

}  // namespace descramble_fast::cpu
