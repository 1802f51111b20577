#pragma once

// The instructions behind cuda/mma.hpp, with the fragment layouts of the PTX manual.

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace descramble_fast::cuda {

inline constexpr bool has_warpgroup_products = false;

namespace emulated {

inline float widened(__half, unsigned bits) { return __half2float({std::uint16_t(bits)}); }
inline float widened(__nv_bfloat16, unsigned bits) {
  return __bfloat162float({std::uint16_t(bits)});
}

/// The sum as exact as two doubles hold it, cut off to a float like the device's.
class TruncatedSum {
 public:
  explicit TruncatedSum(float start) : sum_(start) {}

  void add(double term) {
    const double sum = sum_ + term, back = sum - sum_;
    const double lost = (sum_ - (sum - back)) + (term - back);
    sum_ = sum;
    if (std::isfinite(sum)) rest_ += lost;
  }

  float value() const {
    if (!std::isfinite(sum_)) return float(sum_);
    const double high = sum_ + rest_, low = rest_ - (high - sum_);
    const float nearest = float(high);
    const double above = (double(nearest) - high) - low;
    const bool beyond = nearest > 0 ? above > 0 : above < 0;
    return beyond && std::isfinite(nearest) ? std::nextafter(nearest, 0.0f) : nearest;
  }

 private:
  double sum_, rest_ = 0;
};

template <class Element>
void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Argument {
    float* d;
    const unsigned *a, *b;
  } argument{d, a, b};
  ::emulated_cuda::warp_collective(
      0xffffffffu,
      [](unsigned lanes, void* const(&arguments)[32]) {
        if (lanes != 0xffffffffu) ::emulated_cuda::fault("mma: lanes of the warp have ended");
        const auto at = [&](int lane) { return static_cast<Argument*>(arguments[lane]); };
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int group = lane / 4, pair = 2 * (lane % 4);
          for (int half = 0; half < 2; ++half) {
            for (int r = 0; r < 4; ++r)
              a[group + 8 * (r % 2)][pair + 8 * (r / 2) + half] =
                  widened(Element{}, at(lane)->a[r] >> (16 * half));
            for (int r = 0; r < 2; ++r)
              b[pair + 8 * r + half][group] = widened(Element{}, at(lane)->b[r] >> (16 * half));
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          for (int r = 0; r < 4; ++r) {
            const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
            TruncatedSum sum(at(lane)->d[r]);
            for (int k = 0; k < 16; ++k) sum.add(double(a[row][k]) * double(b[k][column]));
            at(lane)->d[r] = sum.value();
          }
        }
      },
      &argument);
}

template <bool transposed>
void ldmatrix_x4(unsigned (&r)[4], const void* shared_row) {
  if (reinterpret_cast<std::uintptr_t>(shared_row) % 16 != 0)
    ::emulated_cuda::fault("ldmatrix: row not aligned to 16 bytes");
  struct Argument {
    unsigned* r;
    const void* row;
  } argument{r, shared_row};
  ::emulated_cuda::warp_collective(
      0xffffffffu,
      [](unsigned lanes, void* const(&arguments)[32]) {
        if (lanes != 0xffffffffu) ::emulated_cuda::fault("ldmatrix: lanes of the warp have ended");
        for (int matrix = 0; matrix < 4; ++matrix) {
          std::uint16_t rows[8][8];
          for (int row = 0; row < 8; ++row)
            std::memcpy(rows[row], static_cast<Argument*>(arguments[8 * matrix + row])->row, 16);
          for (int lane = 0; lane < 32; ++lane) {
            const int i = lane / 4, j = 2 * (lane % 4);
            static_cast<Argument*>(arguments[lane])->r[matrix] =
                transposed ? rows[j][i] | unsigned(rows[j + 1][i]) << 16
                           : rows[i][j] | unsigned(rows[i][j + 1]) << 16;
          }
        }
      },
      &argument);
}

}  // namespace emulated

/// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulated::mma<__nv_bfloat16>(d, a, b);
}

/// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulated::mma<__half>(d, a, b);
}

/// ldmatrix.sync.aligned.m8n8.x4.shared.b16
inline void ldmatrix_x4(unsigned (&r)[4], const void* shared_row) {
  emulated::ldmatrix_x4<false>(r, shared_row);
}

/// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row) {
  emulated::ldmatrix_x4<true>(r, shared_row);
}

/// cp.async.cg.shared.global: 16 bytes, the last 16 - bytes_valid of them zeros.
inline void copy_async_16(void* shared, const void* global, int bytes_valid) {
  ::emulated_cuda::copy_async(shared, global, bytes_valid);
}

inline void copy_async_commit() { ::emulated_cuda::copy_async_commit(); }

/// Until at most N of the groups committed are under way.
template <int N>
void copy_async_wait() {
  ::emulated_cuda::copy_async_wait(N);
}

}  // namespace descramble_fast::cuda
