#include "cpu/convert.hpp"

#include <algorithm>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

template <class T>
void widen_run(const T* p, std::int64_t stride, std::int64_t n, double* out) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = widen(p[i]);
  } else {
    for (std::int64_t i = 0; i < n; ++i) out[i] = widen(p[i * stride]);
  }
}

}  // namespace

void widen_row(const ArrayView& a, std::int64_t row, double* out) {
  visit_dtype(a.dtype(), [&]<class T>(T) {
    widen_run(reinterpret_cast<const T*>(a.row(row)), a.column_stride(), a.columns(), out);
  });
}

void widen_all(const ArrayView& a, double* out) {
  for (std::int64_t r = 0; r < a.rows(); ++r) widen_row(a, r, out + r * a.columns());
}

bool is_true(const ArrayView& a, std::int64_t index) {
  const std::int64_t columns = a.columns();
  const auto* const row = reinterpret_cast<const std::uint8_t*>(a.row(index / columns));
  return row[(index % columns) * a.column_stride()] != 0;
}

Matrix<double> widen_rows(const ArrayView& a, const Context& context) {
  constexpr std::int64_t group = 64;
  const std::int64_t rows = a.rows();
  Matrix<double> out(rows, a.columns());
  const int threads = a.size() < 1 << 15 ? 1 : threads_of(context);
  const auto widen_group = [&](std::int64_t g) {
    for (std::int64_t r = g * group; r < std::min(rows, (g + 1) * group); ++r)
      widen_row(a, r, out.row(r));
  };
  parallel_for(threads, (rows + group - 1) / group, widen_group, context.poll);
  return out;
}

}  // namespace descramble_fast::cpu
