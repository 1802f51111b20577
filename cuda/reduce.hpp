#pragma once

#include "device.hpp"

namespace descramble_fast::cuda {

/// All threads' values combined, in one order whatever the timing; every thread of a block of
/// `threads`, a power of two, must call it, and all get the result.
template <int threads, class T, class Combine>
__device__ T reduced(T value, const Combine& combine) {
  __shared__ T parts[threads];
  parts[threadIdx.x] = value;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half)
      parts[threadIdx.x] = combine(parts[threadIdx.x], parts[threadIdx.x + half]);
  }
  __syncthreads();
  const T out = parts[0];
  __syncthreads();  // the parts may be wanted again
  return out;
}

template <int threads>
__device__ double block_sum(double value) {
  return reduced<threads>(value, [](double a, double b) { return a + b; });
}

}  // namespace descramble_fast::cuda
