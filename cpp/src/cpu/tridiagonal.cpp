#include "cpu/tridiagonal.hpp"

#include <algorithm>
#include <complex>
#include <functional>
#include <type_traits>
#include <vector>

#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

namespace {

// Reflections taken together.
std::int64_t panel_of(std::int64_t n) { return n < 768 ? 32 : 64; }

template <class T>
T conjugate(T x) {
  if constexpr (std::is_same_v<T, Complex>)
    return std::conj(x);
  else
    return x;
}

// The op of gemv that conjugates a complex matrix.
template <class T>
constexpr char conjugated = std::is_same_v<T, Complex> ? 'C' : 'N';

}  // namespace

template <class T>
void tridiagonalise(std::int64_t n, T* a, Real<T>* d, Real<T>* e, T* tau,
                    const std::function<void()>& poll) {
  // Row i of A becomes v of the reflection r = i, and its partner is a row of W:
  // A <- A - V^T conj(W) - W^T conj(V), which waits until a panel of rows is full.
  const std::int64_t panel = std::min<std::int64_t>(n, 32);
  Matrix<T> w(panel, n, T(0));
  std::vector<T> along(static_cast<std::size_t>(panel));
  for (std::int64_t end = n; end > 0; end -= panel) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - panel);
    for (std::int64_t i = end - 1; i >= begin; --i) {
      if (poll) poll();
      T* const row = a + i * n;
      const std::int64_t later = end - 1 - i;  // reflections of this panel that A has not yet met
      const T* const v = a + (i + 1) * n;
      T* const mine = w.row(i - begin);
      const T* const others = w.row(i - begin) + n;
      // x -= Y^T conj(column i of Z)
      const auto meet = [&](const T* y, const T* z) {
        for (std::int64_t k = 0; k < later; ++k) along[std::size_t(k)] = conjugate(z[k * n + i]);
        gemv('T', later, i + 1, T(-1), y, n, along.data(), 1, T(1), row);
      };
      if (later > 0) {
        meet(v, others);
        meet(others, v);
      }
      d[i] = std::real(row[i]);
      if (i == 0) continue;
      tau[i - 1] = reflector(i, row);
      e[i - 1] = std::real(row[i - 1]);
      row[i - 1] = 1;
      symv(i, a, n, row, mine);
      if (later > 0) {
        gemv(conjugated<T>, later, i, T(1), others, n, row, 1, T(0), along.data());
        gemv('T', later, i, T(-1), v, n, along.data(), 1, T(1), mine);
        gemv(conjugated<T>, later, i, T(1), v, n, row, 1, T(0), along.data());
        gemv('T', later, i, T(-1), others, n, along.data(), 1, T(1), mine);
      }
      const T t = tau[i - 1];
      T product = 0;
      gemv(conjugated<T>, 1, i, conjugate(t), mine, n, row, 1, T(0), &product);
      for (std::int64_t j = 0; j < i; ++j) mine[j] = t * (mine[j] - product / T(2) * row[j]);
    }
    if (begin > 0) syr2k(begin, end - begin, T(-1), a + begin * n, w.data(), n, a, n);
  }
}

template <class T>
void transform_back(std::int64_t n, std::int64_t k, T* a, T* tau, T* v, int threads,
                    const std::function<void()>& poll) {
  // Panel p holds the reflections of rows [1 + p panel, ...) of a: V <- V (I - Y^H S Y) with S^-1
  // upper triangular, 1 / tau on its diagonal and Y Y^H above.
  const std::int64_t panel = panel_of(n);
  const std::int64_t panels = (n - 1 + panel - 1) / panel;
  Matrix<T> inverses(panels * panel, panel);
  const auto first_of = [=](std::int64_t p) { return 1 + p * panel; };
  const auto invert = [&](std::int64_t p) {
    const std::int64_t first = first_of(p), end = std::min(n, first + panel), count = end - first;
    for (std::int64_t r = first; r < end; ++r) {
      T* const row = a + r * n;
      std::fill(tau[r - 1] == T(0) ? row : row + r, row + end, T(0));
    }
    T* const inverse = inverses.row(p * panel);
    gemm('N', 'C', count, count, end - 1, T(1), a + first * n, n, a + first * n, n, T(0), inverse,
         panel);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < i; ++j)
        inverse[i * panel + j] = conjugate(inverse[i * panel + j]);
      const T t = tau[first + i - 1];
      inverse[i * panel + i] = t == T(0) ? T(1) : T(1) / t;
    }
  };
  parallel_for(threads, panels, invert, poll);
  const std::int64_t height = std::clamp<std::int64_t>(n / 128 * 32, 64, n < 2048 ? 128 : 256);
  const auto transform = [&](std::int64_t s) {
    const std::int64_t rows = std::min(height, k - s * height);
    T* const part = v + s * height * n;
    Matrix<T> along(rows, panel);
    for (std::int64_t p = 0; p < panels; ++p) {
      if (poll) poll();
      const std::int64_t first = first_of(p), end = std::min(n, first + panel), count = end - first;
      const T* const y = a + first * n;
      gemm('N', 'C', rows, count, end - 1, T(1), part, n, y, n, T(0), along.data(), panel);
      solve_lower_transposed(rows, count, inverses.row(p * panel), panel, along.data(), panel);
      gemm('N', 'N', rows, end - 1, count, T(-1), along.data(), panel, y, n, T(1), part, n);
    }
  };
  parallel_for(threads, (k + height - 1) / height, transform, poll);
}

template void tridiagonalise(std::int64_t, float*, float*, float*, float*,
                             const std::function<void()>&);
template void tridiagonalise(std::int64_t, double*, double*, double*, double*,
                             const std::function<void()>&);
template void tridiagonalise(std::int64_t, Complex*, double*, double*, Complex*,
                             const std::function<void()>&);
template void transform_back(std::int64_t, std::int64_t, float*, float*, float*, int,
                             const std::function<void()>&);
template void transform_back(std::int64_t, std::int64_t, double*, double*, double*, int,
                             const std::function<void()>&);
template void transform_back(std::int64_t, std::int64_t, Complex*, Complex*, Complex*, int,
                             const std::function<void()>&);

}  // namespace descramble_fast::cpu
