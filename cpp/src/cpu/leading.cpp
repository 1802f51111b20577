#include "cpu/leading.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/eigh.hpp"
#include "cpu/lapack.hpp"
#include "cpu/leading_kernels.hpp"
#include "cpu/parallel.hpp"
#include "cpu/random.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

extern const LeadingKernels leading_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const LeadingKernels leading_avx2;
extern const LeadingKernels leading_avx512;
#endif

std::span<const Variant<LeadingKernels>> leading_variants(Simd level) {
  static constexpr auto all = std::to_array<Variant<LeadingKernels>>({
      {Simd::baseline, &leading_baseline},
#if defined(DESCRAMBLE_FAST_X86)
      {Simd::avx2, &leading_avx2},
      {Simd::avx512, &leading_avx512},
#endif
  });
  return up_to<LeadingKernels>(level, all);
}

template <class T>
LowerProduct<T> lower_product() {
  const LeadingKernels& kernels = *leading_variants(simd_level()).back().kernels;
  if constexpr (std::is_same_v<T, float>)
    return kernels.single;
  else
    return kernels.wide;
}

namespace {

// Wide enough that a product is worth reading the matrix for, narrow enough for a high degree.
std::int64_t block_size(std::int64_t k) {
  return std::clamp<std::int64_t>((k / 4 + 7) / 8 * 8, 8, 64);
}

// The basis may grow to this; with it the work stays a small part of a full solve's.
std::int64_t capacity_of(std::int64_t n, std::int64_t k) { return std::max(n / 8, 5 * k); }

// Whether the digits gained, as a share of those wanted, keep up with the directions spent, as a
// share of those allowed. The first come late.
bool keeps_pace(double gained, double spent) { return gained >= 0.6 * spent - 0.1; }

double dot(const double* x, const double* y, std::int64_t n) {
  double lanes[8] = {};
  std::int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += x[j + l] * y[j + l];
  for (int l = 0; j + l < n; ++l) lanes[l] += x[j + l] * y[j + l];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

/// The scaled matrix: as it lies in memory where that will do, else a copy of its lower triangle.
template <class T>
class Operand {
 public:
  Operand(const ArrayView& a, int exponent, int threads)
      : a_(a), exponent_(exponent), n_(a.columns()), threads_(threads) {
    load();
  }

  void load() {
    constexpr int mild = std::is_same_v<T, float> ? 60 : 500;  // no product under- or overflows
    const std::int64_t stride = a_.strides()[0];
    if (a_.dtype() == dtype_of<T> && a_.column_stride() == 1 && stride > 0 &&
        std::abs(exponent_) <= mild) {
      lower_ = reinterpret_cast<const T*>(a_.row(0));
      lda_ = stride;
      factor_ = std::ldexp(1.0, -exponent_);
    } else {
      copy_ = Matrix<T>(n_, n_);
      load_lower(a_, exponent_, copy_.data(), threads_);
      lower_ = copy_.data();
      lda_ = n_;
    }
  }

  /// Frees the copy, if any, until the next load().
  void drop() { copy_ = {}; }

  std::int64_t size() const { return n_; }

  /// W (rows, n) = X A.
  void times(const double* x, std::int64_t rows, double* w) const {
    // Each group of rows has sums of its own, in number and extent whatever the threads.
    const std::int64_t groups = std::clamp<std::int64_t>(n_ / 256, 1, 32);
    const auto begin_of = [&](std::int64_t g) {
      return std::int64_t(double(n_) * std::sqrt(double(g) / double(groups))) / 8 * 8;
    };
    Matrix<double> in(n_, pass_width), out(groups * n_, pass_width);
    for (std::int64_t first = 0; first < rows; first += pass_width) {
      const std::int64_t count = std::min(pass_width, rows - first);
      for (std::int64_t j = 0; j < n_; ++j)
        for (std::int64_t p = 0; p < pass_width; ++p)
          in(j, p) = p < count ? factor_ * x[(first + p) * n_ + j] : 0;
      parallel_for(threads_, groups, [&](std::int64_t back) {
        const std::int64_t g = groups - 1 - back, end = g + 1 == groups ? n_ : begin_of(g + 1);
        std::vector<double> space(std::size_t(std::is_same_v<T, float> ? pass_width * lda_ : 0));
        double* const sums = out.row(g * n_);
        std::fill_n(sums, end * pass_width, 0.0);
        lower_product<T>()(lower_, lda_, begin_of(g), end, in.data(), sums, space.data());
      });
      parallel_for(threads_, (n_ + 255) / 256, [&](std::int64_t c) {
        for (std::int64_t j = 256 * c; j < std::min(n_, 256 * (c + 1)); ++j) {
          double sum[pass_width] = {};
          for (std::int64_t g = 0; g < groups; ++g)
            if (j < (g + 1 == groups ? n_ : begin_of(g + 1)))
              for (std::int64_t p = 0; p < pass_width; ++p) sum[p] += out(g * n_ + j, p);
          for (std::int64_t p = 0; p < count; ++p) w[(first + p) * n_ + j] = sum[p];
        }
      });
    }
  }

 private:
  ArrayView a_;
  int exponent_;
  std::int64_t n_, lda_ = 0;
  int threads_;
  double factor_ = 1;
  const T* lower_ = nullptr;
  Matrix<T> copy_;
};

/// An orthonormal basis that grows by blocks X, with the projected matrix V A V^T and the part of
/// the last A X outside of the basis.
template <class T>
class Krylov {
 public:
  Krylov(const Operand<T>& a, double floor, std::int64_t capacity, int threads)
      : a_(a),
        n_(a.size()),
        threads_(threads),
        floor_(floor),
        basis_(capacity, n_),
        projected_(capacity, capacity) {}

  std::int64_t size() const { return size_; }
  bool has_room(std::int64_t rows) const { return size_ + rows <= basis_.rows(); }
  std::int64_t pending() const { return pending_.rows(); }

  /// Appends random directions to those that the next step takes.
  void widen(std::int64_t rows) {
    Matrix<double> wider(pending_.rows() + rows, n_);
    std::copy_n(pending_.data(), pending_.rows() * n_, wider.data());
    for (std::int64_t i = pending_.rows(); i < wider.rows(); ++i) randomise(wider.row(i));
    pending_ = std::move(wider);
  }

  /// Takes the pending directions into the basis; what A makes of them is pending next.
  void step() {
    // What a pass leaves of a direction is clean if it is most of it.
    while (!orthonormalise()) {
    }
    const std::int64_t rows = pending_.rows();
    std::copy_n(pending_.data(), rows * n_, basis_.row(size_));
    a_.times(basis_.row(size_), rows, pending_.data());
    const Matrix<double> inside = leave_basis(size_ + rows);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < size_ + rows; ++j)
        projected_(size_ + i, j) = projected_(j, size_ + i) = double(inside(i, j));
    size_ += rows;
  }

  struct Ritz {
    Matrix<double> values, vectors;  // (1, size), (size, size) by rows; ascending
    double residual;                 // Frobenius norm over the k largest
  };

  Ritz ritz(std::int64_t k) const {
    Ritz out{Matrix<double>(1, size_), Matrix<double>(size_, size_), 0};
    for (std::int64_t i = 0; i < size_; ++i)
      std::copy_n(projected_.row(i), size_, out.vectors.row(i));
    if (Lapack<double>::syevd(size_, out.vectors.data(), out.values.data()) != 0) {
      out.residual = std::numeric_limits<double>::infinity();
      return out;
    }
    const std::int64_t rows = pending_.rows();
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < rows; ++j) {
        const double gram = dot(pending_.row(i), pending_.row(j), n_);
        for (std::int64_t r = size_ - k; r < size_; ++r) {
          const double* last = out.vectors.row(r) + size_ - rows;
          out.residual += last[i] * gram * last[j];
        }
      }
    out.residual = std::sqrt(std::max(out.residual, 0.0));
    return out;
  }

  /// The Ritz vectors of the k largest.
  void vectors(const Ritz& ritz, std::int64_t k, T* v) const {
    by_columns([&](std::int64_t begin, std::int64_t count) {
      Matrix<double> part(k, count);
      gemm('N', 'N', k, count, size_, 1.0, ritz.vectors.row(size_ - k), size_,
           basis_.data() + begin, n_, 0.0, part.data(), count);
      for (std::int64_t i = 0; i < k; ++i)
        std::transform(part.row(i), part.row(i) + count, v + i * n_ + begin,
                       [](double x) { return T(x); });
    });
  }

  /// An upper bound of what A is outside of the basis, by the Frobenius norm left of |A|_F.
  double rest(double frobenius) const {
    double inside = 0;
    for (std::int64_t i = 0; i < size_; ++i)
      inside += dot(projected_.row(i), projected_.row(i), size_);
    const double across = dot(pending_.data(), pending_.data(), pending_.rows() * n_);
    const double all = frobenius * frobenius;
    const double rounding = double(n_) * std::numeric_limits<double>::epsilon() * all;
    return std::sqrt(std::max(all - inside - 2 * across, 0.0) + rounding);
  }

  /// Whether at most k eigenvalues exceed `bound` > rest, a bound of A outside of the basis, by the
  /// inertia of its Schur complement. False says nothing.
  bool at_most_above(double bound, double rest, std::int64_t k) const {
    const std::int64_t rows = pending_.rows(), last = size_ - rows;
    Matrix<double> complement(size_, size_), values(1, size_);
    for (std::int64_t i = 0; i < size_; ++i)
      std::copy_n(projected_.row(i), size_, complement.row(i));
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < rows; ++j)
        complement(last + i, last + j) +=
            dot(pending_.row(i), pending_.row(j), n_) / (bound - rest);
    return Lapack<double>::syevd(size_, complement.data(), values.data()) == 0 &&
           values(0, size_ - k - 1) < bound;
  }

 private:
  template <class Callable>
  void by_columns(const Callable& body) const {
    constexpr std::int64_t width = 512;
    parallel_for(threads_, (n_ + width - 1) / width,
                 [&](std::int64_t c) { body(c * width, std::min(width, n_ - c * width)); });
  }

  void randomise(double* row) {
    for (std::int64_t j = 0; j < n_; ++j) row[j] = 2 * random_.uniform() - 1;
  }

  // Subtracts from the pending directions their components along the first `size` of the basis,
  // which it returns.
  Matrix<double> leave_basis(std::int64_t size) {
    const std::int64_t rows = pending_.rows();
    Matrix<double> inside(rows, size);
    parallel_for(threads_, (size + 31) / 32, [&](std::int64_t c) {
      const std::int64_t begin = 32 * c, count = std::min<std::int64_t>(32, size - begin);
      gemm('N', 'T', rows, count, n_, 1.0, pending_.data(), n_, basis_.row(begin), n_, 0.0,
           inside.data() + begin, size);
    });
    by_columns([&](std::int64_t begin, std::int64_t count) {
      gemm('N', 'N', rows, count, size, -1.0, inside.data(), size, basis_.data() + begin, n_, 1.0,
           pending_.data() + begin, n_);
    });
    return inside;
  }

  // One pass over the pending directions; false where it took more than half of one. A random
  // direction takes the place of one that lay in the span of the others and the basis.
  bool orthonormalise() {
    const std::int64_t rows = pending_.rows();
    std::vector<double> before(static_cast<std::size_t>(rows));
    for (std::int64_t i = 0; i < rows; ++i) before[std::size_t(i)] = length_of(i);
    leave_basis(size_);
    bool clean = true;
    for (std::int64_t i = 0; i < rows; ++i) {
      double* row = pending_.row(i);
      for (std::int64_t j = 0; j < i; ++j) {
        const double* other = pending_.row(j);
        const double along = dot(row, other, n_);
        for (std::int64_t c = 0; c < n_; ++c) row[c] -= along * other[c];
      }
      double length = length_of(i);
      clean = clean && length > 0.5 * before[std::size_t(i)];
      if (!(length > std::max(floor_, floor_ * before[std::size_t(i)]))) {
        randomise(row);
        length = length_of(i);
        clean = false;
      }
      const double factor = 1 / length;
      for (std::int64_t c = 0; c < n_; ++c) row[c] *= factor;
    }
    return clean;
  }

  double length_of(std::int64_t i) const {
    return std::sqrt(dot(pending_.row(i), pending_.row(i), n_));
  }

  const Operand<T>& a_;
  std::int64_t n_;
  int threads_;
  double floor_;
  Random random_{20230718};
  Matrix<double> basis_;
  Matrix<double> projected_;
  Matrix<double> pending_;
  std::int64_t size_ = 0;
};

// Whether a few more directions are likely to show that nothing is left above a bound, which is
// cheaper than a factorisation.
class Patience {
 public:
  explicit Patience(std::int64_t n) : left_(double(n) / 12) {}

  void note(std::int64_t size, double rest) {
    size_ = double(size);
    rest_ = rest;
  }

  bool allows(std::int64_t size, double rest, double bound) {
    const double spent = double(size) - size_;
    const double fall = (rest_ * rest_ - rest * rest) / spent;
    note(size, rest);
    const double above = rest * rest - bound * bound;
    if (!(bound > 0 && left_ > 0 && 3 * above < left_ * fall)) return false;
    left_ -= above > 0 ? spent : 2 * spent;
    return true;
  }

 private:
  double left_, size_ = 0, rest_ = std::numeric_limits<double>::infinity();
};

// Cholesky of the lower triangle, by tiles; destroys it. The same bits for every thread count.
template <class T>
bool positive_definite(Matrix<T>& m, int threads, const std::function<void()>& poll) {
  constexpr std::int64_t tile = 256;
  const std::int64_t n = m.rows();
  for (std::int64_t begin = 0; begin < n; begin += tile) {
    if (poll) poll();
    const std::int64_t width = std::min(tile, n - begin), next = begin + width;
    T* const corner = m.row(begin) + begin;
    if (!cholesky(width, corner, n)) return false;
    constexpr std::int64_t height = 128;
    const std::int64_t strips = (n - next + height - 1) / height;
    // From the last, longest strip on.
    const auto first_of = [&](std::int64_t s) { return next + (strips - 1 - s) * height; };
    parallel_for(threads, strips, [&](std::int64_t s) {
      const std::int64_t row = first_of(s);
      solve_lower_transposed(std::min(height, n - row), width, corner, n, m.row(row) + begin, n);
    });
    parallel_for(threads, strips, [&](std::int64_t s) {
      const std::int64_t row = first_of(s), count = std::min(height, n - row);
      gemm('N', 'T', count, row + count - next, width, T(-1), m.row(row) + begin, n,
           m.row(next) + begin, n, T(1), m.row(row) + next, n);
    });
  }
  return true;
}

// Whether A has at most k eigenvalues above w[0] + margin. By Weyl's inequality a rank
// k correction of A with all eigenvalues below that says so, whatever its vectors.
template <class T>
bool no_other_above(const ArrayView& view, int exponent, double margin, double norm, std::int64_t k,
                    const T* w, const T* v, int threads, const std::function<void()>& poll) {
  const std::int64_t n = view.columns();
  Matrix<T> a(n, n), lifted(k, n);
  load_lower(view, exponent, a.data(), threads);
  for (std::int64_t i = 0; i < k; ++i) {
    const T lift = T(double(w[i]) - double(w[0]) + norm);
    std::transform(v + i * n, v + (i + 1) * n, lifted.row(i), [=](T x) { return lift * x; });
  }
  const T shift = T(double(w[0]) + margin);
  constexpr std::int64_t height = 128;
  parallel_for(threads, (n + height - 1) / height, [&](std::int64_t s) {
    const std::int64_t row = s * height, count = std::min(height, n - row);
    gemm('T', 'N', count, row + count, k, T(1), v + row, n, lifted.data(), n, T(-1), a.row(row), n);
    for (std::int64_t i = row; i < row + count; ++i) a(i, i) += shift;
  });
  return positive_definite(a, threads, poll);
}

}  // namespace

bool leading_may_pay(std::int64_t n, std::int64_t k) { return n >= 1024 && k <= n / 32; }

template <class T>
std::string leading_eigenpairs(const ArrayView& a, int exponent, double frobenius, std::int64_t k,
                               int threads, const std::function<void()>& poll, T* w, T* v) {
  const std::int64_t n = a.columns(), block = block_size(k), capacity = capacity_of(n, k);
  const double eps = double(std::numeric_limits<T>::epsilon()), root = std::sqrt(double(n));
  Operand<T> operand(a, exponent, threads);
  Krylov<T> krylov(operand, std::numeric_limits<double>::epsilon() * frobenius / root, capacity,
                   threads);
  krylov.widen(block);
  bool widened = false;
  Patience patience(n);
  for (std::int64_t next_look = k + block; krylov.has_room(krylov.pending());) {
    if (poll) poll();
    krylov.step();
    if (krylov.size() < next_look && krylov.has_room(krylov.pending())) continue;
    next_look = krylov.size() + krylov.size() / 8;
    const auto ritz = krylov.ritz(k);
    const double* top = ritz.values.data() + krylov.size() - k;
    double scale = std::max({frobenius / root, std::abs(top[0]), std::abs(top[k - 1])});
    if (scale == 0) scale = 1;
    const double limit = 4 * root * eps * scale, margin = 5 * double(n) * eps * scale;
    const double rest = krylov.rest(frobenius);
    if (ritz.residual <= limit) {
      const double bound = top[0] + margin;
      const bool certain = rest < bound && krylov.at_most_above(bound, rest, k);
      if (!certain && patience.allows(krylov.size(), rest, bound)) {
        next_look = krylov.size() + 1;
        continue;
      }
      krylov.vectors(ritz, k, v);
      std::transform(top, top + k, w, [](double x) { return T(x); });
      if (certain) return {};
      operand.drop();
      if (no_other_above(a, exponent, margin, scale, k, w, v, threads, poll)) return {};
      if (widened || !krylov.has_room(2 * block))
        return message("eigenvalues above the ", k, " found in ", krylov.size(), " directions");
      // Copies of an eigenvalue beyond the block's size: random directions bring as many again.
      operand.load();
      krylov.widen(block);
      widened = true;
    } else if (krylov.size() >= 3 * k &&
               !keeps_pace(std::log(ritz.residual / scale) / std::log(limit / scale),
                           double(krylov.size()) / double(capacity))) {
      return message("too slow to pay, residual ", ritz.residual, " in ", krylov.size(),
                     " directions");
    }
    patience.note(krylov.size(), rest);
  }
  return message("not converged in ", krylov.size(), " directions");
}

template std::string leading_eigenpairs(const ArrayView&, int, double, std::int64_t, int,
                                        const std::function<void()>&, float*, float*);
template std::string leading_eigenpairs(const ArrayView&, int, double, std::int64_t, int,
                                        const std::function<void()>&, double*, double*);

}  // namespace descramble_fast::cpu
