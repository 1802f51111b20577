// Built once for each instruction set, with DESCRAMBLE_FAST_KERNELS naming the table. Nothing here
// may come from a header as an inline function: the linker could keep the copy of another build.
#include "cpu/limits.hpp"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace descramble_fast::cpu {

extern const LimitsKernels DESCRAMBLE_FAST_KERNELS;

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int chains = 24;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int chains = 12;
#else
constexpr int vector_bytes = 16;
constexpr int chains = 12;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int lanes = vector_bytes / int(sizeof(T));

// No two alike, else the compiler could compute one for both.
template <class T>
void begin(Vector<T> (&x)[chains], double start) {
  Vector<T> first;
  for (int l = 0; l < lanes<T>; ++l) first[l] = T(l);
  for (int i = 0; i < chains; ++i) x[i] = first + T(start + i * lanes<T>);
}

template <class T>
double total(const Vector<T> (&x)[chains]) {
  Vector<T> sum = x[0];
  for (int i = 1; i < chains; ++i) sum += x[i];
  double out = 0;
  for (int l = 0; l < lanes<T>; ++l) out += double(sum[l]);
  return out;
}

// x becomes 0.75 x + 1, so tends to 4.
template <class T>
double fma_loop(std::int64_t rounds, double start) {
  Vector<T> x[chains];
  begin<T>(x, start);
  const Vector<T> factor = T(0.75) - Vector<T>{}, term = T(1) - Vector<T>{};
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) x[i] = x[i] * factor + term;
  }
  return total<T>(x);
}

template <class T>
constexpr PeakLoop fma_peak{fma_loop<T>, 2.0 * chains* lanes<T>};

#if defined(__AVX512BF16__)
// Each lane adds one product of 1 and one of -1: sums of small integers, which stay as they are.
double dot_loop(std::int64_t rounds, double start) {
  Vector<float> x[chains];
  begin<float>(x, start);
  const __m512bh ones = __m512bh(_mm512_set1_epi32(0x3F803F80));
  const __m512bh signs = __m512bh(_mm512_set1_epi32(int(0xBF803F80u)));
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i)
      x[i] = Vector<float>(_mm512_dpbf16_ps(__m512(x[i]), ones, signs));
  }
  return total<float>(x);
}
constexpr PeakLoop dot_peak{dot_loop, 4.0 * chains* lanes<float>};
#else
constexpr PeakLoop dot_peak{nullptr, 0};
#endif

std::uint64_t read(const std::uint64_t* from, std::int64_t size) {
  typedef std::uint64_t Words __attribute__((vector_size(vector_bytes), aligned(8), may_alias));
  constexpr int width = lanes<std::uint64_t>, parts = 8;
  static_assert(read_block % (width * parts) == 0);
  Words sums[parts]{};
  for (std::int64_t at = 0; at < size; at += width * parts) {
#pragma GCC unroll 8
    for (int i = 0; i < parts; ++i)
      sums[i] += *reinterpret_cast<const Words*>(from + at + i * width);
  }
  std::uint64_t sum = 0;
  for (int i = 0; i < parts; ++i)
    for (int l = 0; l < width; ++l) sum += sums[i][l];
  return sum;
}

}  // namespace

const LimitsKernels DESCRAMBLE_FAST_KERNELS{fma_peak<float>, fma_peak<double>, dot_peak, read};

}  // namespace descramble_fast::cpu
