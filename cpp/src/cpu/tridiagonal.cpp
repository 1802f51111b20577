#include "cpu/tridiagonal.hpp"

#include <algorithm>

#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

namespace {

// Reflections taken together.
std::int64_t panel_of(std::int64_t n) { return n < 768 ? 32 : 64; }

}  // namespace

template <class T>
void transform_back(std::int64_t n, std::int64_t k, T* a, T* tau, T* v, int threads) {
  // Panel p holds the reflections of rows [1 + p panel, ...) of a, H_1 H_2 ... = I - Y^T S Y with
  // S^-1 upper triangular: 1 / tau on its diagonal, Y Y^T above.
  const std::int64_t panel = panel_of(n);
  const std::int64_t panels = (n - 1 + panel - 1) / panel;
  Matrix<T> inverses(panels * panel, panel);
  const auto first_of = [=](std::int64_t p) { return 1 + p * panel; };
  parallel_for(threads, panels, [&](std::int64_t p) {
    const std::int64_t first = first_of(p), end = std::min(n, first + panel), count = end - first;
    for (std::int64_t r = first; r < end; ++r) {
      T* const row = a + r * n;
      if (tau[r - 1] == 0) {
        std::fill(row, row + end, T(0));
        continue;
      }
      row[r - 1] = 1;
      std::fill(row + r, row + end, T(0));
    }
    T* const inverse = inverses.row(p * panel);
    gemm('N', 'T', count, count, end - 1, T(1), a + first * n, n, a + first * n, n, T(0), inverse,
         panel);
    for (std::int64_t i = 0; i < count; ++i) {
      const T t = tau[first + i - 1];
      inverse[i * panel + i] = t == 0 ? T(1) : 1 / t;
    }
  });
  const std::int64_t height = std::clamp<std::int64_t>(n / 128 * 32, 64, n < 2048 ? 128 : 256);
  parallel_for(threads, (k + height - 1) / height, [&](std::int64_t s) {
    const std::int64_t rows = std::min(height, k - s * height);
    T* const part = v + s * height * n;
    Matrix<T> along(rows, panel);
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t first = first_of(p), end = std::min(n, first + panel), count = end - first;
      const T* const y = a + first * n;
      gemm('N', 'T', rows, count, end - 1, T(1), part, n, y, n, T(0), along.data(), panel);
      solve_lower_transposed(rows, count, inverses.row(p * panel), panel, along.data(), panel);
      gemm('N', 'N', rows, end - 1, count, T(-1), along.data(), panel, y, n, T(1), part, n);
    }
  });
}

template void transform_back(std::int64_t, std::int64_t, float*, float*, float*, int);
template void transform_back(std::int64_t, std::int64_t, double*, double*, double*, int);

}  // namespace descramble_fast::cpu
