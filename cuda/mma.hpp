#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstdint>

#include "descramble_fast/view.hpp"

namespace descramble_fast::cuda {

/// d += a b on tensor cores, (16, 16) by (16, 8): lane l holds of a, which is row-major, rows l / 4
/// (+ 8) and pairs of columns 2 (l % 4) (+ 8), of b pairs of rows 2 (l % 4) (+ 8) and column l / 4.
__device__ inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four (8, 8) matrices of 16-bit elements, transposed: lane l names row l % 8 of matrix l / 8 and
/// gets of each matrix column l / 4, rows 2 (l % 4) and the next.
__device__ inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(unsigned(__cvta_generic_to_shared(shared_row)))
               : "memory");
}

/// 16 bytes, the last 16 - bytes_valid of them zeros; both addresses are multiples of 16.
__device__ inline void copy_async_16(void* shared, const void* global, int bytes_valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   unsigned(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(bytes_valid)
               : "memory");
}

__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Until at most N of the groups committed are under way.
template <int N>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- by warpgroups, on compute capability 9.0 alone, in code of its own

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool has_warpgroup_products = true;
#else
inline constexpr bool has_warpgroup_products = false;
#endif

/// A factor in shared memory: 16-bit elements, rows of 64 columns, 128 bytes apart, whose chunks of
/// 8 elements are exchanged, chunk ^ row % 8; the next 64 columns follow at `next_columns` bytes.
/// The first row is a multiple of 8, and row 0 lies at a multiple of 1024 bytes.
__device__ inline std::uint64_t factor_at(const void* shared, unsigned next_columns) {
  constexpr std::uint64_t exchanged_128 = 1, eight_rows = 1024;
  const auto address = std::uint64_t(__cvta_generic_to_shared(shared));
  return (address >> 4 & 0x3fff) | std::uint64_t(next_columns >> 4) << 16 | eight_rows >> 4 << 32 |
         exchanged_128 << 62;
}

/// As instructions call them.
template <class Element>
inline constexpr char instruction_type[] = "bf16";
template <>
inline constexpr char instruction_type<Float16>[] = "f16";

/// d = a^T b, or d += where `adds`, for 16 rows of a, 64 columns, and b, 128 columns; it is there
/// when warpgroup_wait says so: warp w % 4 of the group holds rows 16 (w % 4) + lane / 4 (+ 8 where
/// d's index / 2 is odd) and columns 8 (index / 4) + 2 (lane % 4) + index % 2.
template <class Element>
__device__ void warpgroup_mma(float (&d)[64], std::uint64_t a, std::uint64_t b, int adds) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%67.%67 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, adds, 1, 1, 1, 1;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b), "r"(adds), "C"(instruction_type<Element>));
}

/// Before the first of several, and after registers were touched.
__device__ inline void warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most N of the groups committed are under way.
template <int N>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/// Keeps the compiler from moving reads and writes of what products are under way for.
__device__ inline void hold(float (&d)[64]) {
#pragma unroll
  for (float& x : d) asm volatile("" : "+f"(x)::"memory");
}
/// What was copied to shared memory shall be seen by warpgroup products after the next barrier.
__device__ inline void show_to_warpgroups() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace descramble_fast::cuda

#else
#include "emulated_mma.hpp"
#endif
