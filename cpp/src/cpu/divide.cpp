#include "cpu/divide.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"
#include "cpu/secular_kernels.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

extern const SecularKernels secular_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const SecularKernels secular_avx2;
extern const SecularKernels secular_avx512;
#endif

std::span<const Variant<SecularKernels>> secular_variants(Simd level) {
  static constexpr auto all = std::to_array<Variant<SecularKernels>>({
      {Simd::baseline, &secular_baseline},
#if defined(DESCRAMBLE_FAST_X86)
      {Simd::avx2, &secular_avx2},
      {Simd::avx512, &secular_avx512},
#endif
  });
  return up_to<SecularKernels>(level, all);
}

namespace {

// Problems up to this size are left to LAPACK.
constexpr std::int64_t leaf = 64;

using Indices = std::vector<std::int64_t>;
using Doubles = std::vector<double>;

std::size_t at(std::int64_t i) { return std::size_t(i); }

/// 1 + sum z2_j / (d_j - x) for ascending poles d and positive z2: one root above each pole.
class Secular {
 public:
  Secular(Doubles d, Doubles z2)
      : kernels_(*secular_variants(simd_level()).back().kernels),
        d_(std::move(d)),
        z2_(std::move(z2)),
        total_(std::accumulate(z2_.begin(), z2_.end(), 0.0)) {}

  std::int64_t size() const { return std::int64_t(d_.size()); }
  double pole(std::int64_t i) const { return d_[at(i)]; }
  const double* poles() const { return d_.data(); }

  /// The distance of root i from the nearer one of the poles beside it, which is `origin`. The root
  /// stays in a bracket that shrinks; within it, each step solves the rational function with the
  /// two nearest poles that has this value and these slopes (Li's middle way).
  double root(std::int64_t i, std::int64_t& origin) const {
    const bool last = i + 1 == size();
    const double gap = last ? total_ : d_[at(i + 1)] - d_[at(i)];
    // Left of the middle the nearer pole is the one below; the last root has no other.
    origin = last || value(i, gap / 2) >= 0 ? i : i + 1;
    double low = origin == i ? 0 : -gap / 2, high = origin == i ? (last ? gap : gap / 2) : 0;
    if (last && size() == 1) return total_;
    double tau = (low + high) / 2;
    // The poles of the rational function.
    const std::int64_t first = last ? i - 1 : i, second = first + 1;
    const double base = d_[at(origin)];
    for (int step = 0; step < 100; ++step) {
      const SecularSums below = kernels_.sums(d_.data(), z2_.data(), 0, second, base, tau);
      const SecularSums above = kernels_.sums(d_.data(), z2_.data(), second, size(), base, tau);
      const double f = 1 + below.value + above.value;
      const double size_of_terms = 1 + std::abs(below.value) + std::abs(above.value) +
                                   std::abs(tau) * (below.slope + above.slope);
      if (std::abs(f) <= epsilon * size_of_terms) break;
      (f < 0 ? low : high) = tau;
      const double x = (d_[at(first)] - base) - tau, y = (d_[at(second)] - base) - tau;
      const double c = f - x * below.slope - y * above.slope;
      const double a = (x + y) * f - x * y * (below.slope + above.slope), b = x * y * f;
      const double discriminant = std::sqrt(std::max(a * a - 4 * b * c, 0.0));
      double change;
      if (last)
        change = a >= 0 ? (a + discriminant) / (2 * c) : 2 * b / (a - discriminant);
      else
        change = a <= 0 ? (a - discriminant) / (2 * c) : 2 * b / (a + discriminant);
      if (!(f * change < 0)) change = -f / (below.slope + above.slope);
      double next = tau + change;
      if (!(next > low && next < high)) next = low + (high - low) / 2;
      if (next == tau || next == low || next == high) break;
      tau = next;
    }
    return tau;
  }

  /// The weights z, up to sign, for which the roots found are exact.
  double weight(const Doubles& origins, const Doubles& taus, std::int64_t j) const {
    return std::sqrt(
        std::max(kernels_.weight(d_.data(), origins.data(), taus.data(), size(), j), 0.0));
  }

  /// The eigenvector of a root, of length one.
  void vector(const Doubles& z, double origin, double tau, double* out) const {
    const double scale =
        1 / std::sqrt(kernels_.vector(d_.data(), z.data(), size(), origin, tau, out));
    for (std::int64_t j = 0; j < size(); ++j) out[j] *= scale;
  }

 private:
  static constexpr double epsilon = std::numeric_limits<double>::epsilon();

  double value(std::int64_t origin, double tau) const {
    return 1 + kernels_.sums(d_.data(), z2_.data(), 0, size(), d_[at(origin)], tau).value;
  }

  const SecularKernels& kernels_;
  Doubles d_, z2_;
  double total_;
};

// Which columns of its block an eigenvector fills.
enum class Part : std::uint8_t { left, both, right, deflated };

/// Two solved neighbours on the diagonal, rows and columns [begin, middle) and [middle, end), and
/// the off-diagonal element that ties them.
template <class T>
class Merge {
 public:
  Merge(std::int64_t n, std::int64_t begin, std::int64_t middle, std::int64_t end, double tie,
        double* d, T* z, T* spare)
      : n_(n),
        size_(end - begin),
        left_(middle - begin),
        rho_(2 * std::abs(tie)),
        d_(d + begin),
        z_(z + begin * n + begin),
        spare_(spare + begin * n + begin),
        ties_(at(size_)),
        parts_(at(size_), Part::right) {
    std::fill_n(parts_.begin(), left_, Part::left);
    const double sign = tie < 0 ? -1 : 1;
    for (std::int64_t i = 0; i < size_; ++i)
      ties_[at(i)] = std::sqrt(0.5) *
                     (i < left_ ? double(z_[i * n + left_ - 1]) : sign * double(z_[i * n + left_]));
  }

  /// The eigenvectors of the `wanted` largest eigenvalues; all eigenvalues.
  void run(std::int64_t wanted, int threads, const std::function<void()>& poll) {
    deflate();
    const std::int64_t k = std::int64_t(kept_.size());
    Doubles poles(at(k)), squares(at(k));
    for (std::int64_t i = 0; i < k; ++i) {
      const double tie = ties_[at(kept_[at(i)])];
      poles[at(i)] = d_[kept_[at(i)]];
      squares[at(i)] = rho_ * tie * tie;
    }
    const Secular secular(std::move(poles), std::move(squares));
    Doubles origins(at(k)), taus(at(k)), weights(at(k));
    by_strips(threads, poll, k, [&](std::int64_t i) {
      std::int64_t origin = 0;
      taus[at(i)] = secular.root(i, origin);
      origins[at(i)] = secular.pole(origin);
    });
    by_strips(threads, poll, k, [&](std::int64_t j) {
      weights[at(j)] = std::copysign(secular.weight(origins, taus, j), ties_[at(kept_[at(j)])]);
    });
    gather(threads, poll);
    place(origins, taus);
    combine(secular, origins, taus, weights, wanted, threads, poll);
    std::vector<double> sorted(at(size_));
    for (std::int64_t p = 0; p < size_; ++p) sorted[at(p)] = values_[at(order_[at(p)])];
    std::copy(sorted.begin(), sorted.end(), d_);
  }

 private:
  template <class Callable>
  static void by_strips(int threads, const std::function<void()>& poll, std::int64_t count,
                        const Callable& body) {
    constexpr std::int64_t strip = 16;
    const auto each = [&](std::int64_t s) {
      for (std::int64_t i = s * strip; i < std::min(count, (s + 1) * strip); ++i) body(i);
    };
    parallel_for(threads, (count + strip - 1) / strip, each, poll);
  }

  // Sets aside eigenvectors that the tie does not reach, and rotates one of two that share an
  // eigenvalue out of its reach.
  void deflate() {
    Indices order(at(size_));
    std::iota(order.begin(), order.end(), 0);
    std::inplace_merge(order.begin(), order.begin() + left_, order.end(),
                       [&](std::int64_t i, std::int64_t j) { return d_[i] < d_[j]; });
    double largest = 0, strongest = 0;
    for (std::int64_t i = 0; i < size_; ++i) {
      largest = std::max(largest, std::abs(d_[i]));
      strongest = std::max(strongest, std::abs(ties_[at(i)]));
    }
    const double limit =
        4 * double(std::numeric_limits<T>::epsilon()) * std::max(largest, strongest);
    std::int64_t waiting = -1;
    const auto set_aside = [&](std::int64_t i) {
      parts_[at(i)] = Part::deflated;
      deflated_.push_back(i);
    };
    for (const std::int64_t i : order) {
      if (rho_ * std::abs(ties_[at(i)]) <= limit) {
        set_aside(i);
        continue;
      }
      if (waiting >= 0) {
        const double length = std::hypot(ties_[at(i)], ties_[at(waiting)]);
        const double c = ties_[at(i)] / length, s = -ties_[at(waiting)] / length;
        if (std::abs((d_[i] - d_[waiting]) * c * s) <= limit) {
          ties_[at(i)] = length;
          if (parts_[at(i)] != parts_[at(waiting)]) parts_[at(i)] = Part::both;
          rotate(waiting, i, T(c), T(s));
          const double low = d_[waiting], high = d_[i];
          d_[waiting] = low * c * c + high * s * s;
          d_[i] = low * s * s + high * c * c;
          set_aside(waiting);
        } else {
          kept_.push_back(waiting);
        }
      }
      waiting = i;
    }
    if (waiting >= 0) kept_.push_back(waiting);
  }

  void rotate(std::int64_t i, std::int64_t j, T c, T s) {
    T *const x = z_ + i * n_, *const y = z_ + j * n_;
    for (std::int64_t q = 0; q < size_; ++q) {
      const T old = x[q];
      x[q] = c * old + s * y[q];
      y[q] = c * y[q] - s * old;
    }
  }

  // Copies the eigenvectors aside, those of one part together.
  void gather(int threads, const std::function<void()>& poll) {
    Indices rows;
    group_.resize(kept_.size());
    for (const Part part : {Part::left, Part::both, Part::right}) {
      for (std::size_t i = 0; i < kept_.size(); ++i)
        if (parts_[at(kept_[i])] == part) {
          group_[i] = std::int64_t(rows.size());
          rows.push_back(kept_[i]);
        }
      if (part == Part::left) both_ = std::int64_t(rows.size());
      if (part == Part::both) right_ = std::int64_t(rows.size());
    }
    rows.insert(rows.end(), deflated_.begin(), deflated_.end());
    by_strips(threads, poll, size_,
              [&](std::int64_t i) { std::copy_n(z_ + rows[at(i)] * n_, size_, spare_ + i * n_); });
  }

  // The ascending order of all eigenvalues, new ones before those set aside.
  void place(const Doubles& origins, const Doubles& taus) {
    for (std::size_t i = 0; i < origins.size(); ++i) values_.push_back(origins[i] + taus[i]);
    for (const std::int64_t i : deflated_) values_.push_back(d_[i]);
    order_.resize(at(size_));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](std::int64_t i, std::int64_t j) {
      return values_[at(i)] < values_[at(j)];
    });
  }

  void combine(const Secular& secular, const Doubles& origins, const Doubles& taus,
               const Doubles& weights, std::int64_t wanted, int threads,
               const std::function<void()>& poll) {
    const std::int64_t k = secular.size(), right = size_ - left_;
    constexpr std::int64_t height = 64;
    const std::int64_t unwanted = std::max<std::int64_t>(0, size_ - wanted) / height;
    const auto rows = [&](std::int64_t s) {
      const std::int64_t first = (unwanted + s) * height, count = std::min(height, size_ - first);
      Matrix<T> mixture(count, k, T(0));
      Doubles vector(at(k));
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int64_t i = order_[at(first + r)];
        if (i >= k) continue;
        secular.vector(weights, origins[at(i)], taus[at(i)], vector.data());
        for (std::int64_t j = 0; j < k; ++j) mixture(r, group_[at(j)]) = T(vector[at(j)]);
      }
      T* const out = z_ + first * n_;
      gemm('N', 'N', count, left_, right_, T(1), mixture.data(), k, spare_, n_, T(0), out, n_);
      gemm('N', 'N', count, right, k - both_, T(1), mixture.data() + both_, k,
           spare_ + both_ * n_ + left_, n_, T(0), out + left_, n_);
      for (std::int64_t r = 0; r < count; ++r)
        if (const std::int64_t i = order_[at(first + r)]; i >= k)
          std::copy_n(spare_ + i * n_, size_, out + r * n_);
    };
    parallel_for(threads, (size_ + height - 1) / height - unwanted, rows, poll);
  }

  std::int64_t n_, size_, left_;
  double rho_;
  double* d_;
  T *z_, *spare_;
  Doubles ties_;
  std::vector<Part> parts_;
  Indices kept_, deflated_, group_, order_;
  Doubles values_;
  // Places of the first eigenvector that fills both parts, and of the first in the right one alone.
  std::int64_t both_ = 0, right_ = 0;
};

}  // namespace

template <class T>
std::int64_t divide_and_conquer(std::int64_t n, std::int64_t k, T* d, T* e, T* z, int threads,
                                const std::function<void()>& poll) {
  std::int64_t parts = 1;
  while (n > parts * leaf) parts *= 2;
  const auto bound = [&](std::int64_t p) { return p * n / parts; };
  Doubles values(d, d + n);
  for (std::int64_t p = 1; p < parts; ++p) {
    const double tie = std::abs(double(e[bound(p) - 1]));
    values[at(bound(p) - 1)] -= tie;
    values[at(bound(p))] -= tie;
  }
  std::fill_n(z, n * n, T(0));
  std::atomic<std::int64_t> info = 0;
  const auto solve_leaf = [&](std::int64_t p) {
    const std::int64_t begin = bound(p), size = bound(p + 1) - begin;
    std::vector<T> diagonal(values.begin() + begin, values.begin() + begin + size);
    std::vector<T> beside(e + begin, e + begin + size - 1);
    beside.push_back(0);
    Matrix<T> vectors(size, size);
    if (const auto failed = Lapack<T>::stedc(size, diagonal.data(), beside.data(), vectors.data()))
      info = failed;
    std::copy(diagonal.begin(), diagonal.end(), values.begin() + begin);
    for (std::int64_t i = 0; i < size; ++i)
      std::copy_n(vectors.row(i), size, z + (begin + i) * n + begin);
  };
  parallel_for(threads, parts, solve_leaf, poll);
  if (info != 0) return info;
  Matrix<T> spare(n, n);
  for (std::int64_t step = 1; step < parts; step *= 2) {
    const std::int64_t merges = parts / (2 * step);
    const auto merge = [&](std::int64_t m) {
      const std::int64_t middle = bound((2 * m + 1) * step);
      Merge<T>(n, bound(2 * m * step), middle, bound((2 * m + 2) * step), double(e[middle - 1]),
               values.data(), z, spare.data())
          .run(merges == 1 ? k : n, threads, poll);
    };
    parallel_for(threads, merges, merge, poll);
  }
  std::transform(values.begin(), values.end(), d, [](double x) { return T(x); });
  return 0;
}

template std::int64_t divide_and_conquer(std::int64_t, std::int64_t, float*, float*, float*, int,
                                         const std::function<void()>&);
template std::int64_t divide_and_conquer(std::int64_t, std::int64_t, double*, double*, double*, int,
                                         const std::function<void()>&);

}  // namespace descramble_fast::cpu
