// Built once for each instruction set, with DESCRAMBLE_FAST_KERNELS naming the table. Nothing here
// may come from a header as an inline function: the linker could keep the copy of another build.
#include "cpu/scan.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace descramble_fast::cpu {

extern const ScanKernels DESCRAMBLE_FAST_KERNELS;

namespace {

constexpr double infinity = __builtin_inf();

// In a tree, which vectorises; the lanes are lost.
template <int width>
double least_of(double (&lanes)[width]) {
  for (int half = width / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l)
      lanes[l] = lanes[l + half] < lanes[l] ? lanes[l + half] : lanes[l];
  return lanes[0];
}

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
  double lowest = least_of(lanes);
  for (; j < m; ++j) {
    const double x = s * double(row[j]);
    lowest = x < lowest ? x : lowest;
    odd |= !(x > -infinity);
    if (least != nullptr) least[j] = x < least[j] ? x : least[j];
  }
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

// Parents are doubles, as wide as distances, so that both are selected by one mask.
template <class T>
double relax(const T* row, const double* v, std::int64_t m, double s, double offset, double label,
             double* distance, double* parent) {
  constexpr int width = 16;
  double lanes[width];
  for (double& lane : lanes) lane = infinity;
  std::int64_t j = 0;
  for (; j + width <= m; j += width)
    for (int l = 0; l < width; ++l) {
      const double d = (s * double(row[j + l]) - v[j + l]) + offset, old = distance[j + l];
      const double nearer = d < old ? d : old, open = nearer > -infinity ? nearer : infinity;
      parent[j + l] = d < old ? label : parent[j + l];
      distance[j + l] = nearer;
      lanes[l] = open < lanes[l] ? open : lanes[l];
    }
  double lowest = least_of(lanes);
  for (; j < m; ++j) {
    const double d = (s * double(row[j]) - v[j]) + offset;
    if (d < distance[j]) {
      distance[j] = d;
      parent[j] = label;
    }
    if (distance[j] > -infinity && distance[j] < lowest) lowest = distance[j];
  }
  return lowest;
}

#if defined(__AVX512F__)
__m512d load(const double* from) { return _mm512_loadu_pd(from); }
__m512d load(const float* from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }

// Of two pairs of least and second least, those of both together.
void merge(__m512d& first, __m512d& second, __m512d other_first, __m512d other_second) {
  second = _mm512_min_pd(_mm512_min_pd(second, other_second), _mm512_max_pd(first, other_first));
  first = _mm512_min_pd(first, other_first);
}

// Both everywhere.
void merge_lanes(__m512d& first, __m512d& second) {
  merge(first, second, _mm512_shuffle_f64x2(first, first, 0x4e),
        _mm512_shuffle_f64x2(second, second, 0x4e));
  merge(first, second, _mm512_shuffle_f64x2(first, first, 0xb1),
        _mm512_shuffle_f64x2(second, second, 0xb1));
  merge(first, second, _mm512_permute_pd(first, 0x55), _mm512_permute_pd(second, 0x55));
}

template <class T>
Bid bid_row(const T* row, const double* v, std::int64_t m, double s) {
  const __m512d sign = _mm512_set1_pd(s);
  const auto reduced = [&](std::int64_t j) {
    return _mm512_sub_pd(_mm512_mul_pd(sign, load(row + j)), _mm512_loadu_pd(v + j));
  };
  __m512d first = _mm512_set1_pd(infinity), second = first, first_b = first, second_b = first;
  std::int64_t j = 0;
  for (; j + 16 <= m; j += 16) {
    const __m512d x = reduced(j), y = reduced(j + 8);
    second = _mm512_min_pd(second, _mm512_max_pd(first, x));
    first = _mm512_min_pd(first, x);
    second_b = _mm512_min_pd(second_b, _mm512_max_pd(first_b, y));
    first_b = _mm512_min_pd(first_b, y);
  }
  merge(first, second, first_b, second_b);
  merge_lanes(first, second);
  Bid out{_mm512_cvtsd_f64(first), _mm512_cvtsd_f64(second), 0};
  for (; j < m; ++j) {
    const double x = s * double(row[j]) - v[j], loser = x < out.least ? out.least : x;
    out.second = loser < out.second ? loser : out.second;
    out.least = x < out.least ? x : out.least;
  }
  // Four vectors at a time: a branch for each would be mispredicted as often as not.
  const __m512d least = _mm512_set1_pd(out.least);
  const auto here = [&](std::int64_t at) {
    return unsigned(_mm512_cmp_pd_mask(reduced(at), least, _CMP_EQ_OQ));
  };
  for (; out.place + 32 <= m; out.place += 32) {
    const std::int64_t at = out.place;
    const unsigned bits = here(at) | here(at + 8) << 8 | here(at + 16) << 16 | here(at + 24) << 24;
    if (bits != 0) {
      out.place += __builtin_ctz(bits);
      return out;
    }
  }
  while (out.place + 1 < m && s * double(row[out.place]) - v[out.place] != out.least) ++out.place;
  return out;
}

// Writes eight places each time, as many as count; the others are overwritten or lie in the slack.
template <class T>
std::int64_t collect(const T* row, const double* v, std::int64_t m, double s, double limit,
                     double* costs, std::int32_t* columns, std::int64_t capacity) {
  std::int64_t count = 0, j = 0;
  __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0);
  for (; j + 8 <= m; j += 8, places = _mm512_add_epi32(places, _mm512_set1_epi32(8))) {
    const __m512d x = _mm512_mul_pd(_mm512_set1_pd(s), load(row + j));
    const __m512d reduced = _mm512_sub_pd(x, _mm512_loadu_pd(v + j));
    const __mmask8 within = _mm512_cmp_pd_mask(reduced, _mm512_set1_pd(limit), _CMP_LE_OQ);
    if (within == 0) continue;
    _mm512_storeu_pd(costs + count, _mm512_maskz_compress_pd(within, x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + count),
                        _mm512_castsi512_si256(_mm512_maskz_compress_epi32(within, places)));
    count += __builtin_popcount(within);
    if (count > capacity) return capacity + 1;
  }
#else
template <class T>
Bid bid_row(const T* row, const double* v, std::int64_t m, double s) {
  constexpr int width = 16;
  double first[width], second[width];
  for (int l = 0; l < width; ++l) first[l] = second[l] = infinity;
  std::int64_t j = 0;
  for (; j + width <= m; j += width)
    for (int l = 0; l < width; ++l) {
      const double x = s * double(row[j + l]) - v[j + l], loser = x < first[l] ? first[l] : x;
      second[l] = loser < second[l] ? loser : second[l];
      first[l] = x < first[l] ? x : first[l];
    }
  for (int half = width / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) {
      const double a = first[l], b = first[l + half], loser = a < b ? b : a;
      const double rest = second[l] < second[l + half] ? second[l] : second[l + half];
      second[l] = loser < rest ? loser : rest;
      first[l] = a < b ? a : b;
    }
  Bid out{first[0], second[0], 0};
  for (; j < m; ++j) {
    const double x = s * double(row[j]) - v[j], loser = x < out.least ? out.least : x;
    out.second = loser < out.second ? loser : out.second;
    out.least = x < out.least ? x : out.least;
  }
  while (out.place + 1 < m && s * double(row[out.place]) - v[out.place] != out.least) ++out.place;
  return out;
}

#if defined(__AVX2__)
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
#endif
  for (; j < m; ++j)
    if (s * double(row[j]) - v[j] <= limit) {
      if (count == capacity) return capacity + 1;
      costs[count] = s * double(row[j]);
      columns[count++] = std::int32_t(j);
    }
  return count;
}

#if defined(__AVX512F__)
__m512d reduced_costs(const double* costs, const std::int32_t* columns, const double* v) {
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns));
  return _mm512_sub_pd(_mm512_loadu_pd(costs), _mm512_i32gather_pd(at, v, 8));
}

Bid bid(const double* costs, const std::int32_t* columns, std::int64_t size, const double* v) {
  __m512d first = _mm512_set1_pd(infinity), second = first;
  for (std::int64_t q = 0; q < size; q += list_slack) {
    const __m512d x = reduced_costs(costs + q, columns + q, v);
    second = _mm512_min_pd(second, _mm512_max_pd(first, x));
    first = _mm512_min_pd(first, x);
  }
  const __m512d lanes = first;
  merge_lanes(first, second);
  Bid out{_mm512_cvtsd_f64(first), _mm512_cvtsd_f64(second), 0};
  if (size <= list_slack) {
    out.place = __builtin_ctz(_mm512_cmp_pd_mask(lanes, first, _CMP_EQ_OQ) | 0x100);
    return out;
  }
  for (; out.place < size; out.place += list_slack) {
    const __m512d x = reduced_costs(costs + out.place, columns + out.place, v);
    const __mmask8 here = _mm512_cmp_pd_mask(x, first, _CMP_EQ_OQ);
    if (here != 0) {
      out.place += __builtin_ctz(here);
      break;
    }
  }
  return out;
}
#else
Bid bid(const double* costs, const std::int32_t* columns, std::int64_t size, const double* v) {
  Bid out{infinity, infinity, 0};
  for (std::int64_t q = 0; q < size; ++q) {
    const double x = costs[q] - v[columns[q]];
    const bool first = x < out.least;
    const double loser = first ? out.least : x;
    out.second = loser < out.second ? loser : out.second;
    out.place = first ? q : out.place;
    out.least = first ? x : out.least;
  }
  return out;
}
#endif

std::int64_t reach(const double* costs, const std::int32_t* columns, std::int64_t size,
                   const double* v, double offset, double limit, const double* distance,
                   std::int32_t* places, double* distances) {
  std::int64_t count = 0;
  for (std::int64_t q = 0; q < size; q += list_slack) {
#if defined(__AVX512F__)
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns + q));
    const __m512d d =
        _mm512_add_pd(reduced_costs(costs + q, columns + q, v), _mm512_set1_pd(offset));
    const __mmask8 near = _mm512_cmp_pd_mask(d, _mm512_set1_pd(limit), _CMP_LT_OQ);
    const __mmask8 nearer = _mm512_mask_cmp_pd_mask(
        near, d, _mm512_mask_i32gather_pd(d, near, at, distance, 8), _CMP_LT_OQ);
    double lanes[list_slack];
    _mm512_storeu_pd(lanes, d);
    for (unsigned bits = nearer; bits != 0; bits &= bits - 1) {
      const int l = __builtin_ctz(bits);
      places[count] = std::int32_t(q + l);
      distances[count++] = lanes[l];
    }
#else
    for (int l = 0; l < list_slack; ++l) {
      const std::int32_t j = columns[q + l];
      const double d = (costs[q + l] - v[j]) + offset;
      places[count] = std::int32_t(q + l);
      distances[count] = d;
      count += d < limit && d < distance[j];
    }
#endif
  }
  return count;
}

}  // namespace

const ScanKernels DESCRAMBLE_FAST_KERNELS{
    {survey<float>, lane_minima<float>, collect<float>, bid_row<float>, relax<float>},
    {survey<double>, lane_minima<double>, collect<double>, bid_row<double>, relax<double>},
    {bid, reach}};

}  // namespace descramble_fast::cpu
