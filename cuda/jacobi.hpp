#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace descramble_fast::cuda {

// The two-sided Jacobi method, many rotations at once: indices meet as in a round-robin tournament.

struct Pair {
  int p, q;
};

/// Pair i < m / 2 of a round < m - 1, for an even number m of indices: those of a round are
/// disjoint, and every two indices meet in one of the rounds.
__host__ __device__ inline Pair pair_of(int m, int round, int i) {
  int p = round + i, q = round - i;
  if (p >= m - 1) p -= m - 1;
  if (q < 0) q += m - 1;
  return {p, i == 0 ? m - 1 : q};
}

/// x' = c x - s y, y' = s x + c y for c = cos(angle), s = sin(angle) and tau = tan(angle / 2): as
/// changes to x and y, which round by the less the smaller the angle.
template <class T>
struct Rotation {
  T s, tau;
  __host__ __device__ void apply(T& x, T& y) const {
    const T before = x;
    x -= s * (y + tau * before);
    y += s * (before - tau * y);
  }
};

/// Annihilates b of the symmetric matrix (a, b; b, d) and leaves the eigenvalues in a and d. No
/// intermediate result overflows or vanishes for a matrix scaled to [1, 2) and a b that matters.
template <class T>
__host__ __device__ Rotation<T> annihilate(T& a, T& b, T& d) {
  const T gap = d - a, twice = 2 * b;
  // The smaller root: an angle of at most pi / 4, without which the sweeps need not converge.
  const T t = (gap >= 0 ? twice : -twice) / (fabs(gap) + sqrt(gap * gap + twice * twice));
  const T c = 1 / sqrt(1 + t * t);
  a -= t * b;
  d += t * b;
  b = 0;
  return {t * c, t * c / (1 + c)};
}

/// What a matrix takes of a block's shared memory. Rows are an odd number of elements apart, so
/// that neither rows nor columns meet in one bank.
struct JacobiLayout {
  int n;
  __host__ __device__ int even() const { return n + n % 2; }
  __host__ __device__ int stride() const { return even() + 1; }
  __host__ __device__ int pairs() const { return even() / 2; }
  __host__ __device__ int matrix() const { return even() * stride(); }
  /// The matrix, the vectors, a rotation for each pair, and a number for each warp: elements.
  __host__ __device__ int elements() const { return 2 * matrix() + 2 * pairs() + 32; }
  /// Two pairs of indices for each of the 2 x 2 blocks below the diagonal.
  __host__ __device__ int blocks() const { return pairs() * (pairs() - 1) / 2; }
  __host__ __device__ std::int64_t bytes(int element, int matrices) const {
    return std::int64_t(elements()) * element * matrices + blocks() * 2;
  }
};

}  // namespace descramble_fast::cuda
