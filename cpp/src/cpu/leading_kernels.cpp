// Built once for each instruction set, with DESCRAMBLE_FAST_KERNELS naming the table. Nothing here
// may come from a header as an inline function: the linker could keep the copy of another build.
#include "cpu/leading_kernels.hpp"

namespace descramble_fast::cpu {

extern const LeadingKernels DESCRAMBLE_FAST_KERNELS;

namespace {

// One element of each of the vectors; the compiler splits it where registers are narrower.
typedef double Lanes __attribute__((vector_size(64), aligned(8)));
static_assert(pass_width == 8);

#if defined(__AVX512F__)
constexpr int height = 8;
#elif defined(__AVX2__)
constexpr int height = 4;
#else
constexpr int height = 2;
#endif

// By reference: vectors wider than a register are not passed by value.
const Lanes& lanes(const double* p) { return *reinterpret_cast<const Lanes*>(p); }
Lanes& lanes(double* p) { return *reinterpret_cast<Lanes*>(p); }

const double* as_double(const double* row, std::int64_t, double*) { return row; }
const double* as_double(const float* row, std::int64_t n, double* space) {
  for (std::int64_t j = 0; j < n; ++j) space[j] = double(row[j]);
  return space;
}

// Rows [i, i + rows) and the columns before i, then the small triangle at the diagonal.
template <int rows, class T>
void strip(const T* a, std::int64_t lda, std::int64_t i, const double* x, double* w,
           double* space) {
  const double* row[rows];
  Lanes here[rows], sum[rows];
  for (int r = 0; r < rows; ++r) {
    row[r] = as_double(a + (i + r) * lda, i + r + 1, space + r * lda);
    here[r] = lanes(x + 8 * (i + r));
    sum[r] = Lanes{};
  }
  for (std::int64_t j = 0; j < i; ++j) {
    const Lanes there = lanes(x + 8 * j);
    Lanes mirrored = lanes(w + 8 * j);
    for (int r = 0; r < rows; ++r) {
      const double entry = row[r][j];
      sum[r] += entry * there;
      mirrored += entry * here[r];
    }
    lanes(w + 8 * j) = mirrored;
  }
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < r; ++c) {
      const double entry = row[r][i + c];
      sum[r] += entry * here[c];
      sum[c] += entry * here[r];
    }
    sum[r] += row[r][i + r] * here[r];
  }
  for (int r = 0; r < rows; ++r) lanes(w + 8 * (i + r)) += sum[r];
}

template <class T>
void product(const T* a, std::int64_t lda, std::int64_t begin, std::int64_t end, const double* x,
             double* w, double* space) {
  std::int64_t i = begin;
  for (; i + height <= end; i += height) strip<height>(a, lda, i, x, w, space);
  for (; i < end; ++i) strip<1>(a, lda, i, x, w, space);
}

}  // namespace

const LeadingKernels DESCRAMBLE_FAST_KERNELS = {product<float>, product<double>};

}  // namespace descramble_fast::cpu
