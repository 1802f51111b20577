#pragma once

// What device code sees: keywords, indices, barriers, warp-wide functions, atomics and arithmetic.
// Every thread of a block is a fiber that runs until it has to wait for others.

#include <math.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
// One block at a time runs on an operating system's thread.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
  unsigned x, y, z;
};

inline constinit thread_local uint3 threadIdx{}, blockIdx{};
inline constinit thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

/// The block's dynamic shared memory.
unsigned char* descramble_fast_dynamic_shared();

namespace emulated_cuda {

/// Does a warp-wide operation for all lanes of `mask` at once; those outside have no arguments.
using Collective = void (*)(unsigned mask, void* const (&arguments)[32]);

/// Waits until all lanes of `mask` that have not ended are here; the last to come acts for all.
void warp_collective(unsigned mask, Collective, void* arguments);

enum class Barrier { plain, any, all, count };
/// Waits for all threads of the block that have not ended.
int block_barrier(Barrier, bool predicate);

unsigned lane();

/// Ends the kernel: what a device would leave undefined, here is an error.
[[noreturn]] void fault(const char* text);

/// Runs `thread` for every thread of the grid, block after block. The variable EMULATED_CUDA_ORDER
/// (forward, backward, shuffled) says in which order, within what barriers leave open.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);

/// This thread's copies to shared memory, done when they are waited for and not before.
void copy_async(void* shared, const void* global, int bytes_valid);
void copy_async_commit();
void copy_async_wait(int groups_left);

template <class T>
T exchange(unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  struct Argument {
    T value;
    unsigned source;
    T result;
  } argument{value, source, value};
  warp_collective(
      mask,
      [](unsigned lanes, void* const(&arguments)[32]) {
        for (unsigned i = 0; i < 32; ++i) {
          if ((lanes >> i & 1) == 0) continue;
          auto& mine = *static_cast<Argument*>(arguments[i]);
          if ((lanes >> mine.source & 1) != 0)
            mine.result = static_cast<Argument*>(arguments[mine.source])->value;
          else
            std::memset(&mine.result, 0xCD, sizeof(T));  // such a lane's value is undefined
        }
      },
      &argument);
  return argument.result;
}

/// The same for all lanes: `combine` folds their values from the first lane to the last.
template <class T, class Combine>
T reduce(unsigned mask, T value, Combine) {
  warp_collective(
      mask,
      [](unsigned lanes, void* const(&arguments)[32]) {
        T total = *static_cast<T*>(arguments[std::countr_zero(lanes)]);
        for (unsigned rest = lanes & (lanes - 1); rest != 0; rest &= rest - 1)
          total = Combine{}(total, *static_cast<T*>(arguments[std::countr_zero(rest)]));
        for (unsigned rest = lanes; rest != 0; rest &= rest - 1)
          *static_cast<T*>(arguments[std::countr_zero(rest)]) = total;
      },
      &value);
  return value;
}

template <class T, class Change>
T atomic_update(T* at, const Change& change) {
  std::atomic_ref<T> shared(*at);
  T old = shared.load();
  while (!shared.compare_exchange_weak(old, change(old))) {
  }
  return old;
}

inline unsigned segment(int width) {
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0) fault("shuffle width");
  return lane() & ~(unsigned(width) - 1);
}

template <class T>
concept Integer32 = std::is_same_v<T, int> || std::is_same_v<T, unsigned>;
template <class T>
concept Integer = Integer32<T> || std::is_same_v<T, unsigned long long>;

}  // namespace emulated_cuda

inline void __syncthreads() { emulated_cuda::block_barrier(emulated_cuda::Barrier::plain, false); }
inline int __syncthreads_or(int p) {
  return emulated_cuda::block_barrier(emulated_cuda::Barrier::any, p != 0);
}
inline int __syncthreads_and(int p) {
  return emulated_cuda::block_barrier(emulated_cuda::Barrier::all, p != 0);
}
inline int __syncthreads_count(int p) {
  return emulated_cuda::block_barrier(emulated_cuda::Barrier::count, p != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulated_cuda::warp_collective(mask, [](unsigned, void* const(&)[32]) {}, nullptr);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulated_cuda::exchange(
      mask, value, emulated_cuda::segment(width) | (unsigned(source) & (unsigned(width) - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulated_cuda::lane(), first = emulated_cuda::segment(width);
  return emulated_cuda::exchange(mask, value, delta > lane - first ? lane : lane - delta);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulated_cuda::lane(), end = emulated_cuda::segment(width) + width;
  return emulated_cuda::exchange(mask, value, delta >= end - lane ? lane : lane + delta);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const unsigned lane = emulated_cuda::lane(), source = lane ^ unsigned(lane_mask);
  return emulated_cuda::exchange(mask, value,
                                 source >= emulated_cuda::segment(width) + width ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int p) {
  return emulated_cuda::reduce(mask, unsigned(p != 0) << emulated_cuda::lane(), std::bit_or<>{});
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p == 0) == 0; }
template <emulated_cuda::Integer32 T>
T __reduce_add_sync(unsigned mask, T value) {
  const auto sum = emulated_cuda::reduce(mask, unsigned(value), std::plus<>{});
  return static_cast<T>(sum);
}
template <emulated_cuda::Integer32 T>
T __reduce_min_sync(unsigned mask, T value) {
  return emulated_cuda::reduce(mask, value, [](T a, T b) { return b < a ? b : a; });
}
template <emulated_cuda::Integer32 T>
T __reduce_max_sync(unsigned mask, T value) {
  return emulated_cuda::reduce(mask, value, [](T a, T b) { return a < b ? b : a; });
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

template <class T>
  requires emulated_cuda::Integer<T> || std::is_floating_point_v<T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return emulated_cuda::atomic_update(at, [&](T old) {
    if constexpr (std::is_same_v<T, int>)
      return int(unsigned(old) + unsigned(value));
    else
      return old + value;
  });
}
template <class T>
  requires emulated_cuda::Integer<T> || std::is_same_v<T, long long>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return emulated_cuda::atomic_update(at, [&](T old) { return value < old ? value : old; });
}
template <class T>
  requires emulated_cuda::Integer<T> || std::is_same_v<T, long long>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return emulated_cuda::atomic_update(at, [&](T old) { return old < value ? value : old; });
}
template <emulated_cuda::Integer T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).fetch_or(value);
}
template <class T>
  requires emulated_cuda::Integer<T> || std::is_same_v<T, float>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).exchange(value);
}
template <emulated_cuda::Integer T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  std::atomic_ref<T>(*at).compare_exchange_strong(expected, desired);
  return expected;
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1; }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

namespace emulated_cuda {

// The compiler may not fuse what has been through a volatile.
template <class T>
T rounded(T x) {
  volatile T kept = x;
  return kept;
}

}  // namespace emulated_cuda

inline float __double2float_rn(double x) { return float(x); }
inline float __fadd_rn(float a, float b) { return emulated_cuda::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return emulated_cuda::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return emulated_cuda::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return emulated_cuda::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return emulated_cuda::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return emulated_cuda::rounded(a * b); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float rsqrtf(float x) { return float(1 / std::sqrt(double(x))); }
inline float rsqrt(float x) { return rsqrtf(x); }

/// sin(pi x) and cos(pi x), exact at multiples of a quarter turn.
inline void sincospi(double x, double* sine, double* cosine) {
  const double turns = x - 2 * std::nearbyint(x / 2);  // exact, in [-1, 1]
  const double quarter = std::nearbyint(2 * turns);    // -2 ... 2
  const double rest = (turns - quarter / 2) * 0x1.921fb54442d18p+1;
  const double s = std::sin(rest), c = std::cos(rest);
  switch (int(quarter) & 3) {
    case 0:
      return void((*sine = s, *cosine = c));
    case 1:
      return void((*sine = c, *cosine = -s));
    case 2:
      return void((*sine = -s, *cosine = -c));
    default:
      return void((*sine = -c, *cosine = s));
  }
}
inline void sincospi(float x, float* sine, float* cosine) {
  double s, c;
  sincospi(double(x), &s, &c);
  *sine = float(s);
  *cosine = float(c);
}
inline void sincospif(float x, float* sine, float* cosine) { sincospi(x, sine, cosine); }
inline double sinpi(double x) {
  double s, c;
  sincospi(x, &s, &c);
  return s;
}
inline double cospi(double x) {
  double s, c;
  sincospi(x, &s, &c);
  return c;
}
inline float sinpif(float x) { return float(sinpi(double(x))); }
inline float cospif(float x) { return float(cospi(double(x))); }
inline float sinpi(float x) { return sinpif(x); }
inline float cospi(float x) { return cospif(x); }

namespace emulated_cuda {

template <class A, class B>
concept Comparable = std::is_arithmetic_v<A> && std::is_arithmetic_v<B> &&
                     ((std::is_floating_point_v<A> && std::is_floating_point_v<B>) ||
                      (std::is_integral_v<A> && std::is_integral_v<B> && sizeof(A) == sizeof(B)));

}  // namespace emulated_cuda

// The overloads that CUDA has; of a NaN and a number the number.
template <class A, class B>
  requires emulated_cuda::Comparable<A, B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(T(a), T(b));
  else
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
  requires emulated_cuda::Comparable<A, B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(T(a), T(b));
  else
    return T(a) < T(b) ? T(b) : T(a);
}

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(2) uchar2 {
  unsigned char x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
constexpr double2 make_double2(double x, double y) { return {x, y}; }
constexpr longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
