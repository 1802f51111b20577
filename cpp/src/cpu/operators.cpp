#include "cpu/operators.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "cpu/fft.hpp"
#include "cpu/lapack.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

// Numbers below which threads cost more than they bring, and which one thread takes at a time.
constexpr std::int64_t threaded_work = 1 << 14;
constexpr std::int64_t group_work = 1 << 14;

// Runs of two or more for which `together(first of the run, this)` holds.
template <class Together>
std::vector<Block> find_blocks(std::int64_t n, const Together& together) {
  std::vector<Block> blocks;
  for (std::int64_t begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    while (end < n && together(begin, end)) ++end;
    if (end - begin > 1) blocks.push_back({begin, end});
  }
  return blocks;
}

std::vector<Block> equal_runs(const std::vector<double>& l) {
  return find_blocks(std::int64_t(l.size()), [&](std::int64_t i, std::int64_t j) {
    return l[std::size_t(i)] == l[std::size_t(j)];
  });
}

// The indices of l in ascending order, ties in their own order.
std::vector<std::int64_t> sorted_order(const std::vector<double>& l) {
  std::vector<std::int64_t> order(l.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](std::int64_t i) { return l[std::size_t(i)]; });
  return order;
}

// Each row of C beyond the diagonal, added to the run of `length` sums that begins at first(row):
// so sums along or across the diagonals come about. In blocks of fixed size, so that the thread
// count cannot matter.
template <class First>
std::vector<double> gathered_runs(const double* c, std::int64_t n, std::int64_t length, int threads,
                                  const First& first) {
  constexpr std::int64_t block = 64;
  const std::int64_t blocks = (n + block - 1) / block;
  Matrix<double> parts(blocks, length, 0);
  parallel_for(n * n < threaded_work ? 1 : threads, blocks, [&](std::int64_t b) {
    for (std::int64_t i = b * block; i < std::min(n, (b + 1) * block); ++i) {
      const double* const from = c + i * n + i + 1;
      double* const to = parts.row(b) + first(i);
      for (std::int64_t j = 0; j < n - i - 1; ++j) to[j] += from[j];
    }
  });
  std::vector<double> sum(std::size_t(length), 0);
  for (std::int64_t b = 0; b < blocks; ++b)
    for (std::int64_t j = 0; j < length; ++j) sum[std::size_t(j)] += parts(b, j);
  return sum;
}

double diagonal_sum(const double* c, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += c[i * n + i];
  return sum;
}

// Re X_k for k = 0 ... n/2, of X_k = sum_j x_j exp(-2 pi i jk/n).
std::vector<double> cosine_sums(const RealFft& fft, const std::vector<double>& x) {
  std::vector<double> work(std::size_t(fft.work_size(1)));
  std::ranges::copy(x, work.begin());
  fft.forward(1, work.data());
  const double* const re = fft.spectrum(1, work.data()).re;
  return {re, re + fft.size() / 2 + 1};
}

// Operators whose transform is one real FFT of the row, a few rows at once.
class Spectral : public Operator::Impl {
 public:
  explicit Spectral(std::int64_t n) : fft_(n) {}

  void analyze(double* rows, std::int64_t count) const final {
    each_bundle(rows, count, [this](double* bundle, std::int64_t lanes, double* work) {
      fill(bundle, lanes, work);
      fft_.forward(lanes, work);
      read_spectrum(bundle, lanes, fft_.spectrum(lanes, work));
    });
  }

  void synthesize(double* rows, std::int64_t count) const final {
    each_bundle(rows, count, [this](double* bundle, std::int64_t lanes, double* work) {
      fill_spectrum(bundle, lanes, fft_.spectrum(lanes, work));
      fft_.backward(lanes, work);
      read(bundle, lanes, work);
    });
  }

 protected:
  // Between rows and the transform's input or output, and between coefficients and its spectrum.
  virtual void fill(const double* rows, std::int64_t lanes, double* x) const = 0;
  virtual void read(double* rows, std::int64_t lanes, const double* x) const = 0;
  virtual void fill_spectrum(const double* rows, std::int64_t lanes, RealFft::Spectrum x) const = 0;
  virtual void read_spectrum(double* rows, std::int64_t lanes, RealFft::Spectrum x) const = 0;

  const RealFft& fft() const { return fft_; }

 private:
  template <class Visit>
  void each_bundle(double* rows, std::int64_t count, const Visit& visit) const {
    std::vector<double> work(std::size_t(fft_.work_size(std::min(bundle, count))));
    for (std::int64_t first = 0; first < count; first += bundle)
      visit(rows + first * size(), std::min(bundle, count - first), work.data());
  }

  RealFft fft_;
};

class Fourier final : public Spectral {
 public:
  Fourier(std::int64_t n, const std::vector<double>& frequencies)
      : Spectral(n), place_(std::size_t(n)) {
    std::vector<double> base;
    for (std::int64_t i = 0; i < n; ++i) base.push_back(frequencies[std::size_t((i + 1) / 2)]);
    order_ = sorted_order(base);
    for (std::int64_t i = 0; i < n; ++i) {
      place_[std::size_t(order_[std::size_t(i)])] = i;
      eigenvalues.push_back(base[std::size_t(order_[std::size_t(i)])]);
    }
    blocks = equal_runs(eigenvalues);
  }

  Matrix<double> modes() const override {
    const std::int64_t n = size();
    const double scale = std::sqrt(2 / double(n));
    std::vector<Turn> turns;
    for (std::int64_t t = 0; t < n; ++t) turns.push_back(turn(t, n));
    Matrix<double> out(n, n);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t mode = order_[std::size_t(i)], k = (mode + 1) / 2;
      double* const row = out.row(i);
      if (real_only(k)) {
        for (std::int64_t j = 0; j < n; ++j)
          row[j] = (k > 0 && j % 2 == 1 ? -1 : 1) / std::sqrt(double(n));
      } else {
        for (std::int64_t j = 0, t = 0; j < n; ++j) {
          const auto [c, s] = turns[std::size_t(t)];
          row[j] = scale * (mode % 2 == 1 ? c : s);
          t += t + k >= n ? k - n : k;
        }
      }
    }
    return out;
  }

  // The energy of a frequency is the cosine sum of C's cyclic diagonals.
  double trace_with(const double* c, int threads) const override {
    const std::int64_t n = size();
    const std::vector<double> upper =
        gathered_runs(c, n, n, threads, [](std::int64_t) { return std::int64_t(1); });
    std::vector<double> cyclic(upper);
    cyclic[0] = diagonal_sum(c, n);
    for (std::int64_t r = 1; r < n; ++r) cyclic[std::size_t(r)] += upper[std::size_t(n - r)];
    const std::vector<double> energies = cosine_sums(fft(), cyclic);
    double sum = 0;
    for (std::int64_t k = 0; k <= n / 2; ++k)
      sum += eigenvalues[std::size_t(places(k).cosine)] * energies[std::size_t(k)] *
             (real_only(k) ? 1 : 2);
    return sum / double(n);
  }

  ModesDescription describe() const override {
    const double* const l = eigenvalues.data();
    return {size(), l, {{cuda::ModeAxis::fourier, size(), l, order_.data(), nullptr}}, {}};
  }

 protected:
  void fill(const double* rows, std::int64_t lanes, double* x) const override {
    const std::int64_t n = size();
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t v = 0; v < lanes; ++v) x[j * lanes + v] = rows[v * n + j];
  }

  void read(double* rows, std::int64_t lanes, const double* x) const override {
    const std::int64_t n = size();
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t v = 0; v < lanes; ++v) rows[v * n + j] = x[j * lanes + v];
  }

  void fill_spectrum(const double* rows, std::int64_t lanes, RealFft::Spectrum x) const override {
    const std::int64_t n = size();
    const double scale_alone = std::sqrt(1 / double(n)), scale_paired = std::sqrt(0.5 / double(n));
    for (std::int64_t k = 0; k <= n / 2; ++k) {
      const auto [cosine, sine] = places(k);
      const double scale = real_only(k) ? scale_alone : scale_paired;
      for (std::int64_t v = 0; v < lanes; ++v) {
        x.re[k * lanes + v] = scale * rows[v * n + cosine];
        x.im[k * lanes + v] = real_only(k) ? 0 : -scale * rows[v * n + sine];
      }
    }
  }

  void read_spectrum(double* rows, std::int64_t lanes, RealFft::Spectrum x) const override {
    const std::int64_t n = size();
    const double scale_alone = std::sqrt(1 / double(n)), scale_paired = std::sqrt(2 / double(n));
    for (std::int64_t k = 0; k <= n / 2; ++k) {
      const auto [cosine, sine] = places(k);
      const double scale = real_only(k) ? scale_alone : scale_paired;
      for (std::int64_t v = 0; v < lanes; ++v) {
        rows[v * n + cosine] = scale * x.re[k * lanes + v];
        if (!real_only(k)) rows[v * n + sine] = -scale * x.im[k * lanes + v];
      }
    }
  }

 private:
  struct Places {
    std::int64_t cosine;
    std::int64_t sine;
  };

  // The constant and the alternating mode have no sine.
  bool real_only(std::int64_t k) const { return k == 0 || 2 * k == size(); }
  Places places(std::int64_t k) const {
    const std::int64_t cosine = k == 0 ? 0 : 2 * k - 1;
    return {place_[std::size_t(cosine)], place_[std::size_t(real_only(k) ? cosine : cosine + 1)]};
  }

  // Sorted mode -> mode in the order constant, cos 1, sin 1, cos 2, ...; and back.
  std::vector<std::int64_t> order_;
  std::vector<std::int64_t> place_;
};

// The cosine transform is the Fourier transform of the even places followed by the odd ones
// backwards, each frequency turned by a quarter of its step.
class Cosine final : public Spectral {
 public:
  explicit Cosine(std::vector<double> l)
      : Spectral(std::int64_t(l.size())), doubled_(2 * std::int64_t(l.size())) {
    eigenvalues = std::move(l);
    blocks = equal_runs(eigenvalues);
    for (std::int64_t k = 0; k <= size() / 2; ++k) turns_.push_back(turn(k, 4 * size()));
  }

  Matrix<double> modes() const override {
    const std::int64_t n = size();
    std::vector<double> cosines;
    for (std::int64_t t = 0; t < 4 * n; ++t) cosines.push_back(turn(t, 4 * n).cos);
    Matrix<double> out(n, n);
    for (std::int64_t k = 0; k < n; ++k)
      for (std::int64_t j = 0, t = k; j < n; ++j) {
        out(k, j) = scale(k) * cosines[std::size_t(t)];
        t += t + 2 * k >= 4 * n ? 2 * k - 4 * n : 2 * k;
      }
    return out;
  }

  // cos(a) cos(b) = (cos(a - b) + cos(a + b))/2: the energy of a mode is a cosine sum, at twice the
  // length, of C's diagonals and of those across them.
  double trace_with(const double* c, int threads) const override {
    const std::int64_t n = size();
    const std::vector<double> along =
        gathered_runs(c, n, 2 * n, threads, [](std::int64_t) { return std::int64_t(1); });
    std::vector<double> sums =
        gathered_runs(c, n, 2 * n, threads, [](std::int64_t i) { return 2 * i + 2; });
    for (std::int64_t j = 0; j < 2 * n; ++j)
      sums[std::size_t(j)] = 2 * (sums[std::size_t(j)] + along[std::size_t(j)]);
    sums[0] += diagonal_sum(c, n);
    for (std::int64_t i = 0; i < n; ++i) sums[std::size_t(2 * i + 1)] += c[i * n + i];
    const std::vector<double> energies = cosine_sums(doubled_, sums);
    double sum = 0;
    for (std::int64_t k = 0; k < n; ++k)
      sum += eigenvalues[std::size_t(k)] * energies[std::size_t(k)] * (k == 0 ? 0.5 : 1);
    return sum / double(n);
  }

  ModesDescription describe() const override {
    const double* const l = eigenvalues.data();
    return {size(), l, {{cuda::ModeAxis::cosine, size(), l, nullptr, nullptr}}, {}};
  }

 protected:
  void fill(const double* rows, std::int64_t lanes, double* x) const override {
    const std::int64_t n = size();
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t v = 0; v < lanes; ++v) x[shuffled(j) * lanes + v] = rows[v * n + j];
  }

  void read(double* rows, std::int64_t lanes, const double* x) const override {
    const std::int64_t n = size();
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t v = 0; v < lanes; ++v) rows[v * n + j] = x[shuffled(j) * lanes + v];
  }

  void fill_spectrum(const double* rows, std::int64_t lanes, RealFft::Spectrum x) const override {
    const std::int64_t n = size();
    for (std::int64_t v = 0; v < lanes; ++v) {
      x.re[v] = rows[v * n] * scale(0);
      x.im[v] = 0;
    }
    const double half = scale(1) / 2;
    for (std::int64_t k = 1; k <= n / 2; ++k) {
      const auto [c, s] = turns_[std::size_t(k)];
      for (std::int64_t v = 0; v < lanes; ++v) {
        const double a = half * rows[v * n + k], b = half * rows[v * n + n - k];
        x.re[k * lanes + v] = a * c + b * s;
        x.im[k * lanes + v] = 2 * k == n ? 0 : a * s - b * c;
      }
    }
  }

  void read_spectrum(double* rows, std::int64_t lanes, RealFft::Spectrum x) const override {
    const std::int64_t n = size();
    for (std::int64_t v = 0; v < lanes; ++v) rows[v * n] = scale(0) * x.re[v];
    const double most = scale(1);
    for (std::int64_t k = 1; k <= n / 2; ++k) {
      const auto [c, s] = turns_[std::size_t(k)];
      for (std::int64_t v = 0; v < lanes; ++v) {
        const double re = x.re[k * lanes + v], im = x.im[k * lanes + v];
        rows[v * n + n - k] = most * (re * s - im * c);
        rows[v * n + k] = most * (re * c + im * s);
      }
    }
  }

 private:
  double scale(std::int64_t k) const { return std::sqrt((k == 0 ? 1 : 2) / double(size())); }
  std::int64_t shuffled(std::int64_t j) const { return j % 2 == 0 ? j / 2 : size() - 1 - j / 2; }

  std::vector<Turn> turns_;
  RealFft doubled_;
};

// out (columns, rows) <- in (rows, columns)
void transpose(const double* in, std::int64_t rows, std::int64_t columns, double* out) {
  constexpr std::int64_t tile = 16;
  for (std::int64_t i0 = 0; i0 < rows; i0 += tile)
    for (std::int64_t j0 = 0; j0 < columns; j0 += tile)
      for (std::int64_t i = i0; i < std::min(rows, i0 + tile); ++i)
        for (std::int64_t j = j0; j < std::min(columns, j0 + tile); ++j)
          out[j * rows + i] = in[i * columns + j];
}

class Grid final : public Operator::Impl {
 public:
  explicit Grid(std::vector<SharedImpl> axes) : axes_(std::move(axes)) {
    std::vector<double> sums{0};
    for (const SharedImpl& axis : axes_) {
      std::vector<double> next;
      for (const double sum : sums)
        for (const double l : axis->eigenvalues) next.push_back(sum + l);
      sums = std::move(next);
    }
    order_ = sorted_order(sums);
    for (const std::int64_t i : order_) eigenvalues.push_back(sums[std::size_t(i)]);
    // Sums that are equal on paper differ by rounding.
    blocks = find_blocks(size(), [this](std::int64_t i, std::int64_t j) {
      const double low = eigenvalues[std::size_t(i)], high = eigenvalues[std::size_t(j)];
      return high - low <= 1e-14 * high;
    });
    for (const Block& block : blocks) {
      std::sort(order_.begin() + block.begin, order_.begin() + block.end);
      std::fill(eigenvalues.begin() + block.begin, eigenvalues.begin() + block.end,
                eigenvalues[std::size_t(block.begin)]);
    }
  }

  Matrix<double> modes() const override {
    const std::int64_t n = size();
    std::vector<Matrix<double>> factors;
    for (const SharedImpl& axis : axes_) factors.push_back(axis->modes());
    Matrix<double> out(n, n);
    for (std::int64_t i = 0; i < n; ++i) {
      double* const row = out.row(i);
      row[0] = 1;
      // From the first axis to the last, in place: from the end, so that nothing is overwritten
      // before it has been read.
      std::int64_t filled = 1, rest = n, index = order_[std::size_t(i)];
      for (const Matrix<double>& factor : factors) {
        const std::int64_t d = factor.columns();
        rest /= d;
        const double* const mode = factor.row(index / rest);
        index %= rest;
        for (std::int64_t p = filled - 1; p >= 0; --p) {
          const double x = row[p];
          for (std::int64_t q = 0; q < d; ++q) row[p * d + q] = x * mode[q];
        }
        filled *= d;
      }
    }
    return out;
  }

  // After each axis a transposition makes the axis before it the last.
  void analyze(double* rows, std::int64_t count) const override {
    const std::int64_t n = size();
    std::vector<double> other(static_cast<std::size_t>(n));
    for (auto axis = axes_.rbegin(); axis != axes_.rend(); ++axis) {
      const std::int64_t d = (*axis)->size();
      (*axis)->analyze(rows, count * (n / d));
      for (double* row = rows; row < rows + count * n; row += n) {
        transpose(row, n / d, d, other.data());
        std::ranges::copy(other, row);
      }
    }
    for (double* row = rows; row < rows + count * n; row += n) {
      for (std::int64_t i = 0; i < n; ++i) other[std::size_t(i)] = row[order_[std::size_t(i)]];
      std::ranges::copy(other, row);
    }
  }

  void synthesize(double* rows, std::int64_t count) const override {
    const std::int64_t n = size();
    std::vector<double> other(static_cast<std::size_t>(n));
    for (double* row = rows; row < rows + count * n; row += n) {
      for (std::int64_t i = 0; i < n; ++i) other[std::size_t(order_[std::size_t(i)])] = row[i];
      std::ranges::copy(other, row);
    }
    for (const SharedImpl& axis : axes_) {
      const std::int64_t d = axis->size();
      for (double* row = rows; row < rows + count * n; row += n) {
        transpose(row, d, n / d, other.data());
        std::ranges::copy(other, row);
      }
      axis->synthesize(rows, count * (n / d));
    }
  }

  // L is a sum over the axes, each of which sees C's trace over all the others.
  double trace_with(const double* c, int threads) const override {
    const std::int64_t n = size();
    std::int64_t inner = n;
    double sum = 0;
    for (const SharedImpl& axis : axes_) {
      const std::int64_t d = axis->size();
      inner /= d;
      Matrix<double> traced(d, d, 0);
      for (std::int64_t outer = 0; outer < n; outer += inner * d)
        for (std::int64_t p = 0; p < d; ++p)
          for (std::int64_t within = outer; within < outer + inner; ++within)
            for (std::int64_t q = 0; q < d; ++q)
              traced(p, q) += c[(within + p * inner) * n + within + q * inner];
      sum += axis->trace_with(traced.data(), threads);
    }
    return sum;
  }

  // Axes that are grids themselves are laid out flat.
  ModesDescription describe() const override {
    ModesDescription out{size(), eigenvalues.data(), {}, {}};
    std::vector<std::int64_t> products{0};
    for (const SharedImpl& axis : axes_) {
      const ModesDescription inner = axis->describe();
      std::vector<std::int64_t> next;
      for (const std::int64_t product : products)
        for (std::int64_t i = 0; i < inner.n; ++i)
          next.push_back(product * inner.n + inner.product(i));
      products = std::move(next);
      out.axes.insert(out.axes.end(), inner.axes.begin(), inner.axes.end());
    }
    for (const std::int64_t i : order_) out.order.push_back(products[std::size_t(i)]);
    return out;
  }

 private:
  std::vector<SharedImpl> axes_;
  // Sorted mode -> row-major index over the axes' modes.
  std::vector<std::int64_t> order_;
};

class Dense final : public Operator::Impl {
 public:
  Dense(std::vector<double> l, Matrix<double> modes, double gap) : modes_(std::move(modes)) {
    bundle = 64;
    eigenvalues = std::move(l);
    blocks = find_blocks(size(), [&](std::int64_t i, std::int64_t j) {
      return eigenvalues[std::size_t(j)] - eigenvalues[std::size_t(i)] <= gap;
    });
    for (std::int64_t i = 0; i < size(); ++i) fix_sign(modes_.row(i), size());
  }

  Matrix<double> modes() const override { return modes_.copy(); }
  void analyze(double* rows, std::int64_t count) const override { multiply('T', rows, count); }
  void synthesize(double* rows, std::int64_t count) const override { multiply('N', rows, count); }

  double trace_with(const double* c, int threads) const override {
    constexpr std::int64_t panel = 128;
    const std::int64_t n = size(), panels = (n + panel - 1) / panel;
    std::vector<double> sums(std::size_t(panels), 0);
    const SingleBlasThread guard;
    parallel_for(n * n < threaded_work ? 1 : threads, panels, [&](std::int64_t p) {
      const std::int64_t first = p * panel, count = std::min(panel, n - first);
      Matrix<double> product(count, n);
      gemm('N', 'N', count, n, n, 1, modes_.row(first), n, c, n, 0, product.data(), n);
      for (std::int64_t i = 0; i < count; ++i)
        sums[std::size_t(p)] +=
            eigenvalues[std::size_t(first + i)] *
            std::inner_product(product.row(i), product.row(i) + n, modes_.row(first + i), 0.0);
    });
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

  ModesDescription describe() const override {
    const double* const l = eigenvalues.data();
    return {size(), l, {{cuda::ModeAxis::dense, size(), l, nullptr, modes_.data()}}, {}};
  }

 private:
  void multiply(char trans, double* rows, std::int64_t count) const {
    const std::int64_t n = size();
    const Matrix<double> in = [&] {
      Matrix<double> copy(count, n);
      std::copy_n(rows, count * n, copy.data());
      return copy;
    }();
    const SingleBlasThread guard;
    gemm('N', trans, count, n, n, 1, in.data(), n, modes_.data(), n, 0, rows, n);
  }

  Matrix<double> modes_;
};

// Rows in groups whose size depends on n alone, so that the thread count cannot matter.
void each_group(const Operator::Impl& op, std::span<double> rows, const Context& context,
                const std::function<void(double*, std::int64_t)>& body) {
  const std::int64_t n = op.size(), count = std::int64_t(rows.size()) / n;
  const std::int64_t group = std::max(op.bundle, group_work / n / op.bundle * op.bundle);
  const int threads = std::int64_t(rows.size()) < threaded_work ? 1 : threads_of(context);
  const auto one = [&](std::int64_t g) {
    body(rows.data() + g * group * n, std::min(group, count - g * group));
  };
  parallel_for(threads, (count + group - 1) / group, one, context.poll);
}

}  // namespace

SharedImpl make_fourier(std::string name, std::int64_t n, const std::vector<double>& frequencies) {
  const auto impl = std::make_shared<Fourier>(n, frequencies);
  impl->pattern = Operator::Impl::Pattern::circulant;
  impl->name = std::move(name);
  return impl;
}

SharedImpl make_cosine(std::string name, std::vector<double> eigenvalues) {
  const auto impl = std::make_shared<Cosine>(std::move(eigenvalues));
  impl->pattern = Operator::Impl::Pattern::reflecting;
  impl->name = std::move(name);
  return impl;
}

SharedImpl make_grid(std::string name, std::vector<SharedImpl> axes) {
  const auto impl = std::make_shared<Grid>(std::move(axes));
  impl->name = std::move(name);
  return impl;
}

SharedImpl make_dense(std::string name, std::vector<double> eigenvalues, Matrix<double> modes,
                      double gap) {
  const auto impl = std::make_shared<Dense>(std::move(eigenvalues), std::move(modes), gap);
  impl->name = std::move(name);
  return impl;
}

void apply(const Operator::Impl& op, std::span<double> rows, const Context& context) {
  each_group(op, rows, context, [&op](double* first, std::int64_t count) {
    op.analyze(first, count);
    for (double* row = first; row < first + count * op.size(); row += op.size())
      for (std::size_t i = 0; i < op.eigenvalues.size(); ++i) row[i] *= op.eigenvalues[i];
    op.synthesize(first, count);
  });
}

void analyze(const Operator::Impl& op, std::span<double> rows, const Context& context) {
  each_group(op, rows, context,
             [&op](double* first, std::int64_t count) { op.analyze(first, count); });
}

void synthesize(const Operator::Impl& op, std::span<double> rows, const Context& context) {
  each_group(op, rows, context,
             [&op](double* first, std::int64_t count) { op.synthesize(first, count); });
}

}  // namespace descramble_fast::cpu
