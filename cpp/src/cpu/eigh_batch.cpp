#include "cpu/eigh_batch.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/convert.hpp"

namespace descramble_fast::cpu {

extern const EighBatchKernels eigh_batch_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const EighBatchKernels eigh_batch_avx2;
extern const EighBatchKernels eigh_batch_avx512;
#endif

std::span<const Variant<EighBatchKernels>> eigh_batch_variants(Simd level) {
  static constexpr auto all = std::to_array<Variant<EighBatchKernels>>({
      {Simd::baseline, &eigh_batch_baseline},
#if defined(DESCRAMBLE_FAST_X86)
      {Simd::avx2, &eigh_batch_avx2},
      {Simd::avx512, &eigh_batch_avx512},
#endif
  });
  return up_to<EighBatchKernels>(level, all);
}

const Variant<EighBatchKernels>& eigh_batch_kernels() {
  return eigh_batch_variants(simd_level()).back();
}

template <>
const LaneSolvers<float>& lane_solvers(const EighBatchKernels& kernels) {
  return kernels.single;
}
template <>
const LaneSolvers<double>& lane_solvers(const EighBatchKernels& kernels) {
  return kernels.wide;
}

template <class T>
const LaneSolver<T>& fitting(const LaneSolvers<T>& solvers, std::int64_t n, std::int64_t matrices) {
  const LaneSolver<T>* chosen = &solvers.widths[0];
  for (const LaneSolver<T>& solver : solvers.widths) {
    const bool useful = solver.lanes > 0 && chosen->lanes < matrices;
    const bool wide = std::size_t(solver.lanes) * sizeof(T) > 32;
    if (useful && !(wide && solver.workspace(n) > 1 << 17)) chosen = &solver;
  }
  return *chosen;
}

namespace {

constexpr int most_lanes = 16;
// Far more than a row takes, which is about 2.
constexpr std::int64_t sweeps = 30;

// Two probes whose weights for one vector have squares that add up to 2: the error of a single
// vector is seen in full, and those of two cancel for no ratio.
template <class T>
const T* probes() {
  static const std::vector<T> weights = [] {
    std::vector<T> out;
    std::mt19937_64 random(20230718u);
    for (std::int64_t i = 0; i < largest_in_lanes<T>; ++i) {
      const double angle = 2 * std::numbers::pi * double(random() >> 11) * 0x1p-53;
      out.push_back(T(std::numbers::sqrt2 * std::cos(angle)));
      out.push_back(T(std::numbers::sqrt2 * std::sin(angle)));
    }
    return out;
  }();
  return weights.data();
}

template <class T>
bool contiguous(const ArrayView& a) {
  const auto strides = a.strides();
  return a.dtype() == dtype_of<T> && strides[std::size_t(a.rank() - 1)] == 1 &&
         strides[std::size_t(a.rank() - 2)] == a.columns();
}

// The lower triangle of a matrix that begins with row `first` of a.
template <class T>
void copy_lower(const ArrayView& a, std::int64_t first, T* out) {
  const std::int64_t n = a.columns(), step = a.column_stride();
  const std::int64_t row_step = a.strides()[std::size_t(a.rank() - 2)];
  visit_dtype(a.dtype(), [&]<class From>(From) {
    const auto* const from = reinterpret_cast<const From*>(a.row(first));
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j <= i; ++j)
        out[i * n + j] = T(widen(from[i * row_step + j * step]));
  });
}

}  // namespace

template <class T>
void eigh_in_lanes(const EighBatchKernels& kernels, const ArrayView& a, std::int64_t begin,
                   std::int64_t end, std::int64_t k, std::int64_t width,
                   const LaneResults<T>& results) {
  const std::int64_t n = a.columns();
  const LaneSolvers<T>& solvers = lane_solvers<T>(kernels);
  width = std::min(width, end - begin);
  const LaneSolver<T>& widest = fitting(solvers, n, width);
  Aligned<std::byte> work(widest.workspace(n));
  std::vector<T> copies(contiguous<T>(a) ? 0 : std::size_t(widest.lanes * n * n));

  const T* sources[most_lanes];
  T *values[most_lanes], *vectors[most_lanes];
  T residual[most_lanes], orthogonality_error[most_lanes];
  LaneStatus status[most_lanes];
  int exponent[most_lanes];
  while (begin < end) {
    const LaneSolver<T>& solver = fitting(solvers, n, std::min(width, end - begin));
    const int count = int(std::min<std::int64_t>(solver.lanes, end - begin));
    for (int l = 0; l < count; ++l) {
      const std::int64_t item = begin + l;
      sources[l] = reinterpret_cast<const T*>(a.row(item * n));
      if (!copies.empty()) {
        T* const copy = copies.data() + l * n * n;
        copy_lower(a, item * n, copy);
        sources[l] = copy;
      }
      values[l] = results.w + item * k;
      vectors[l] = results.v + item * k * n;
    }
    solver.solve({n, k, count, sources, values, vectors, probes<T>(), sweeps, work.data(), status,
                  residual, orthogonality_error, exponent});
    for (int l = 0; l < count; ++l) {
      results.residual[begin + l] = std::ldexp(double(residual[l]), exponent[l]);
      results.orthogonality_error[begin + l] = double(orthogonality_error[l]);
      results.status[begin + l] = status[l];
    }
    begin += count;
  }
}

template const LaneSolver<float>& fitting(const LaneSolvers<float>&, std::int64_t, std::int64_t);
template const LaneSolver<double>& fitting(const LaneSolvers<double>&, std::int64_t, std::int64_t);
template void eigh_in_lanes(const EighBatchKernels&, const ArrayView&, std::int64_t, std::int64_t,
                            std::int64_t, std::int64_t, const LaneResults<float>&);
template void eigh_in_lanes(const EighBatchKernels&, const ArrayView&, std::int64_t, std::int64_t,
                            std::int64_t, std::int64_t, const LaneResults<double>&);

}  // namespace descramble_fast::cpu
