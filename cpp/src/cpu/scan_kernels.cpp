// Built once for each instruction set, with DESCRAMBLE_FAST_SCAN naming the table. Nothing here may
// come from a header as an inline function: the linker could keep the copy of another build.
#include "cpu/scan.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace descramble_fast::cpu {

extern const ScanKernels DESCRAMBLE_FAST_SCAN;

namespace {

constexpr double infinity = __builtin_inf();

template <class T>
double survey(const T* row, std::int64_t m, double s, double* least, bool* bad) {
  double lanes[scan_lanes];
  for (double& lane : lanes) lane = infinity;
  std::int64_t odd = 0, j = 0;
  for (; j + scan_lanes <= m; j += scan_lanes)
    for (int l = 0; l < scan_lanes; ++l) {
      const double x = s * double(row[j + l]);
      lanes[l] = x < lanes[l] ? x : lanes[l];
      odd |= !(x > -infinity);
      if (least != nullptr) least[j + l] = x < least[j + l] ? x : least[j + l];
    }
  double lowest = infinity;
  for (; j < m; ++j) {
    const double x = s * double(row[j]);
    lowest = x < lowest ? x : lowest;
    odd |= !(x > -infinity);
    if (least != nullptr) least[j] = x < least[j] ? x : least[j];
  }
  for (const double lane : lanes) lowest = lane < lowest ? lane : lowest;
  if (odd != 0) *bad = true;
  return lowest;
}

template <class T>
void lane_minima(const T* row, const double* v, std::int64_t m, double s, double* out) {
  double lanes[scan_lanes];
  for (double& lane : lanes) lane = infinity;
  std::int64_t j = 0;
  for (; j + scan_lanes <= m; j += scan_lanes)
    for (int l = 0; l < scan_lanes; ++l) {
      const double x = s * double(row[j + l]) - v[j + l];
      lanes[l] = x < lanes[l] ? x : lanes[l];
    }
  for (int l = 0; j + l < m; ++l) {
    const double x = s * double(row[j + l]) - v[j + l];
    lanes[l] = x < lanes[l] ? x : lanes[l];
  }
  for (int l = 0; l < scan_lanes; ++l) out[l] = lanes[l];
}

// Bit l: whether the reduced cost of column l of eight is at most the limit.
#if defined(__AVX512F__)
unsigned within(const double* row, const double* v, double s, double limit) {
  const __m512d x = _mm512_mul_pd(_mm512_set1_pd(s), _mm512_loadu_pd(row));
  return _mm512_cmp_pd_mask(_mm512_sub_pd(x, _mm512_loadu_pd(v)), _mm512_set1_pd(limit),
                            _CMP_LE_OQ);
}
unsigned within(const float* row, const double* v, double s, double limit) {
  const __m512d x = _mm512_mul_pd(_mm512_set1_pd(s), _mm512_cvtps_pd(_mm256_loadu_ps(row)));
  return _mm512_cmp_pd_mask(_mm512_sub_pd(x, _mm512_loadu_pd(v)), _mm512_set1_pd(limit),
                            _CMP_LE_OQ);
}
#elif defined(__AVX2__)
__m256d load(const double* from) { return _mm256_loadu_pd(from); }
__m256d load(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
template <class T>
unsigned within(const T* row, const double* v, double s, double limit) {
  unsigned bits = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256d x = _mm256_mul_pd(_mm256_set1_pd(s), load(row + 4 * half));
    const __m256d reduced = _mm256_sub_pd(x, _mm256_loadu_pd(v + 4 * half));
    const __m256d low = _mm256_cmp_pd(reduced, _mm256_set1_pd(limit), _CMP_LE_OQ);
    bits |= unsigned(_mm256_movemask_pd(low)) << (4 * half);
  }
  return bits;
}
#else
template <class T>
unsigned within(const T* row, const double* v, double s, double limit) {
  unsigned bits = 0;
  for (int l = 0; l < 8; ++l) bits |= unsigned(s * double(row[l]) - v[l] <= limit) << l;
  return bits;
}
#endif

template <class T>
std::int64_t collect(const T* row, const double* v, std::int64_t m, double s, double limit,
                     double* costs, std::int32_t* columns, std::int64_t capacity) {
  std::int64_t count = 0, j = 0;
  for (; j + 8 <= m; j += 8)
    for (unsigned bits = within(row + j, v + j, s, limit); bits != 0; bits &= bits - 1) {
      if (count == capacity) return capacity + 1;
      const std::int64_t column = j + __builtin_ctz(bits);
      costs[count] = s * double(row[column]);
      columns[count++] = std::int32_t(column);
    }
  for (; j < m; ++j)
    if (s * double(row[j]) - v[j] <= limit) {
      if (count == capacity) return capacity + 1;
      costs[count] = s * double(row[j]);
      columns[count++] = std::int32_t(j);
    }
  return count;
}

}  // namespace

const ScanKernels DESCRAMBLE_FAST_SCAN{
#if defined(__AVX512F__)
    "avx512",
#elif defined(__AVX2__)
    "avx2",
#else
    "baseline",
#endif
    {survey<float>, lane_minima<float>, collect<float>},
    {survey<double>, lane_minima<double>, collect<double>}};

}  // namespace descramble_fast::cpu
