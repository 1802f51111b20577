#include "cpu/convolution.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/divide.hpp"
#include "cpu/eigh.hpp"
#include "cpu/fft.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tridiagonal.hpp"
#include "descramble_fast/eigh.hpp"
#include "ladder.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr double epsilon = std::numeric_limits<double>::epsilon();
constexpr std::int64_t probes = 4;
// Numbers of W that one thread forms at once, for as many frequencies as make them.
constexpr std::int64_t formed_at_once = std::int64_t(1) << 20;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

SharedImpl flat_fourier(std::int64_t n) {
  return make_fourier("fourier", n, std::vector<double>(std::size_t(n / 2 + 1), 0));
}

// Frequencies of W whose numbers, twice as many as its own, are formed at once.
std::int64_t batch_of(std::int64_t rows, std::int64_t columns) {
  // (As doubles, for a weight that is asked about and need not exist.)
  return std::int64_t(
      std::clamp(double(formed_at_once) / (2.0 * double(rows) * double(columns)), 1.0, 64.0));
}

// The factor of product `sines` in a frequency of the group: (-i)^(number of sines) times the signs
// of the wave numbers at the sines; the first paired one is positive.
Complex factor(const HalfSpectrum::Group& group, std::int64_t frequency, std::int64_t sines) {
  constexpr Complex powers[] = {{1, 0}, {0, -1}, {-1, 0}, {0, 1}};
  const auto turned = std::popcount(std::uint64_t(sines & (frequency << 1)));
  const double scale = group.real() ? 1 : std::sqrt(2 / double(group.modes()));
  return powers[std::popcount(std::uint64_t(sines)) % 4] * (turned % 2 == 1 ? -scale : scale);
}

}  // namespace

std::int64_t HalfSpectrum::Group::mode(std::int64_t sines) const {
  std::int64_t out = cosines;
  for (int i = 0; i < pairs; ++i)
    if (sines >> i & 1) out += step[std::size_t(i)];
  return out;
}

std::array<std::int64_t, 3> HalfSpectrum::Group::signed_wave(std::int64_t frequency) const {
  auto out = wave;
  for (int i = 1; i < pairs; ++i)
    if (frequency >> (i - 1) & 1) {
      auto& k = out[std::size_t(axis[std::size_t(i)])];
      k = -k;
    }
  return out;
}

HalfSpectrum::HalfSpectrum(std::span<const std::int64_t> shape)
    : shape_(shape.begin(), shape.end()) {
  std::vector<SharedImpl> axes;
  std::int64_t groups = 1;
  for (const std::int64_t n : shape) {
    axes.push_back(flat_fourier(n));
    groups *= n / 2 + 1;
  }
  basis_ = axes.size() == 1 ? axes.front() : make_grid("fourier", std::move(axes));
  groups_.reserve(std::size_t(groups));
  std::int64_t offset = 0;
  for (std::int64_t g = 0; g < groups; ++g) {
    Group group;
    std::int64_t rest = g, stride = 1;
    for (std::size_t a = shape.size(); a-- > 0;) {
      const std::int64_t n = shape[a], k = rest % (n / 2 + 1);
      rest /= n / 2 + 1;
      group.wave[a] = k;
      group.cosines += stride * (k == 0 ? 0 : 2 * k - 1);
      if (k > 0 && 2 * k < n) {
        // (From the last axis on: turned about below.)
        group.axis[std::size_t(group.pairs)] = int(a);
        group.step[std::size_t(group.pairs++)] = stride;
      }
      stride *= n;
    }
    std::reverse(group.axis.begin(), group.axis.begin() + group.pairs);
    std::reverse(group.step.begin(), group.step.begin() + group.pairs);
    group.first = frequencies_;
    group.offset = offset;
    frequencies_ += group.frequencies();
    offset += group.modes();
    groups_.push_back(group);
  }
}

std::int64_t HalfSpectrum::count(std::span<const std::int64_t> shape) {
  std::int64_t places = 1, real = 1;
  for (const std::int64_t n : shape) {
    places *= n;
    real *= n % 2 == 0 ? 2 : 1;
  }
  return (places + real) / 2;
}

void gather(const HalfSpectrum::Group& group, std::int64_t frequency, const double* x,
            std::int64_t places, std::int64_t rows, std::int64_t width, Complex* z) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t sines = 0; sines < group.modes(); ++sines) {
      const Complex c = factor(group, frequency, sines);
      const double* const from = x + (r * places + group.mode(sines)) * width;
      Complex* const to = z + r * width;
      if (sines == 0)
        for (std::int64_t v = 0; v < width; ++v) to[v] = c * from[v];
      else
        for (std::int64_t v = 0; v < width; ++v) to[v] += c * from[v];
    }
}

void scatter(const HalfSpectrum::Group& group, std::int64_t frequency, const Complex* z,
             std::int64_t places, std::int64_t rows, std::int64_t width, double* x) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t sines = 0; sines < group.modes(); ++sines) {
      const Complex c = factor(group, frequency, sines);
      const Complex* const from = z + r * width;
      double* const to = x + (r * places + group.mode(sines)) * width;
      if (frequency == 0) std::fill_n(to, width, 0);
      for (std::int64_t v = 0; v < width; ++v)
        to[v] += c.real() * from[v].real() + c.imag() * from[v].imag();
    }
}

void fix_phase(Complex* vector, std::int64_t n) {
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::norm(vector[i]));
  Complex* const first = std::find_if(
      vector, vector + n, [largest](Complex x) { return std::norm(x) >= largest * (1 - 2e-6); });
  if (first == vector + n || largest == 0) return;
  const double modulus = std::abs(*first);
  const Complex back = std::conj(*first) / modulus;
  // By components: products of std::complex look for infinities.
  for (std::int64_t i = 0; i < n; ++i)
    vector[i] = {vector[i].real() * back.real() - vector[i].imag() * back.imag(),
                 vector[i].real() * back.imag() + vector[i].imag() * back.real()};
  *first = modulus;
}

std::string solve_embedded(std::int64_t n, const Complex* a, double* w, Complex* v) {
  Matrix<double> real(2 * n, 2 * n, 0);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      const Complex x = a[i * n + j];
      real(i, j) = real(n + i, n + j) = x.real();
      real(n + i, j) = x.imag();
      real(n + j, i) = -x.imag();
    }
  const Eigh<double> twice = eigh<double>(real.view(), {}, {1, {}});
  // Every eigenvector u comes as two real ones, (Re u, Im u) and (-Im u, Re u) or any mixture: of
  // each eigenspace those are taken that the ones before do not span. So many are left of it that
  // one of them has a rest of 1/n or more.
  std::int64_t found = 0;
  std::vector<Complex> rest(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < 2 * n && found < n; ++i) {
    const double* const pair = twice.eigenvectors.row(i);
    for (std::int64_t j = 0; j < n; ++j) rest[std::size_t(j)] = {pair[j], -pair[n + j]};
    double norm = 1;
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t f = 0; f < found; ++f) {
        const Complex* const known = v + f * n;
        Complex overlap = 0;
        for (std::int64_t j = 0; j < n; ++j) overlap += std::conj(known[j]) * rest[std::size_t(j)];
        for (std::int64_t j = 0; j < n; ++j) rest[std::size_t(j)] -= overlap * known[j];
      }
      norm = std::accumulate(rest.begin(), rest.end(), 0.0,
                             [](double sum, Complex x) { return sum + std::norm(x); });
      if (norm < 0.5 / double(n)) break;
      for (Complex& x : rest) x /= std::sqrt(norm);
      norm = 1;
    }
    if (norm < 0.5 / double(n)) continue;
    std::ranges::copy(rest, v + found * n);
    w[found++] = twice.eigenvalues(0, i);
  }
  return found == n ? std::string() : message("found ", found, " of ", n, " eigenvectors");
}

namespace {

struct Frequency {
  const HalfSpectrum::Group* group;
  std::array<std::int64_t, 3> wave;
};

// |A U - U Lambda|_F and |U^H U - I|_F for the Hermitian A (n, n), both triangles, by probes.
EighCheck check_hermitian(std::int64_t n, const Complex* a, const double* w, const Complex* v) {
  std::vector<Complex> signs(std::size_t(2 * probes * n)), mixed(signs.size());
  std::minstd_rand random(20230718u);
  for (std::int64_t i = 0; i < probes * n; ++i) {
    const double sign = (random() >> 8) & 1 ? 1 : -1;
    signs[std::size_t(i)] = sign;
    signs[std::size_t(probes * n + i)] = sign * w[i % n];
  }
  Complex *const rest = mixed.data() + probes * n, *const overlap = signs.data();
  gemm('N', 'N', 2 * probes, n, n, Complex(1), signs.data(), n, v, n, Complex(0), mixed.data(), n);
  gemm('N', 'N', probes, n, n, Complex(1), mixed.data(), n, a, n, Complex(-1), rest, n);
  gemm('N', 'C', probes, n, n, Complex(1), mixed.data(), n, v, n, Complex(-1), overlap, n);
  const auto norm = [=](const Complex* x) {
    double sum = 0;
    for (std::int64_t i = 0; i < probes * n; ++i) sum += std::norm(x[i]);
    return std::sqrt(sum / double(probes));
  };
  return {norm(rest), norm(overlap)};
}

// From here on a Hermitian matrix is solved in steps of our own.
constexpr std::int64_t stepwise_size = 128;

// W at a few frequencies, and what is made of it.
class FrequencySolver {
 public:
  FrequencySolver(const HalfSpectrum& spectrum, const Kernel& kernel,
                  const std::function<void()>& poll)
      : kernel_(kernel), spectrum_(spectrum), poll_(poll), n_(kernel.rows) {}

  // Real parts, then imaginary parts, of W at each of them.
  void form(std::span<const Frequency> frequencies) {
    const std::int64_t count = std::int64_t(frequencies.size());
    const std::int64_t taps = kernel_.taps.rows(), size = kernel_.taps.columns();
    count_ = count;
    Matrix<double> turns(2 * count, taps);
    for (std::int64_t f = 0; f < count; ++f)
      for (std::int64_t t = 0; t < taps; ++t) {
        Turn all{1, 0};
        for (std::size_t a = 0; a < spectrum_.shape().size(); ++a) {
          const std::int64_t n = spectrum_.shape()[a], k = frequencies[std::size_t(f)].wave[a];
          const auto [c, s] = turn(k * kernel_.places[std::size_t(t)][a] % n, n);
          all = {all.cos * c - all.sin * s, all.cos * s + all.sin * c};
        }
        turns(f, t) = all.cos;
        turns(count + f, t) = all.sin;
      }
    parts_ = Matrix<double>(2 * count, size);
    const SingleBlasThread guard;
    gemm('N', 'N', 2 * count, size, taps, 1, turns.data(), taps, kernel_.taps.data(), size, 0,
         parts_.data(), size);
  }

  struct Report {
    double trace = 0;
    EighCheck check;
    std::string driver;
    std::vector<std::string> fallbacks;
  };

  Report solve(std::int64_t item, bool real, double* w, Complex* v) {
    Report report;
    form_moment(item, report.trace);
    if (real)
      solve_real(w, v, report);
    else
      solve_complex(w, v, report);
    return report;
  }

 private:
  // M = W W^H, both triangles.
  void form_moment(std::int64_t item, double& trace) {
    const std::int64_t columns = kernel_.columns, size = n_ * columns;
    const double *const re = parts_.row(item), *const im = parts_.row(count_ + item);
    if (w_.rows() == 0) {
      w_ = Matrix<double>(n_, 2 * columns);
      m_ = Matrix<double>(n_, 2 * n_);
    }
    for (std::int64_t i = 0; i < size; ++i) {
      w_.data()[2 * i] = re[i];
      w_.data()[2 * i + 1] = im[i];
    }
    Complex* const m = moment();
    {
      const SingleBlasThread guard;
      herk(n_, columns, reinterpret_cast<const Complex*>(w_.data()), m);
    }
    for (std::int64_t i = 0; i < n_; ++i) {
      m[i * n_ + i] = m[i * n_ + i].real();
      trace += m[i * n_ + i].real();
      for (std::int64_t j = 0; j < i; ++j) m[j * n_ + i] = std::conj(m[i * n_ + j]);
    }
  }

  void solve_real(double* w, Complex* v, Report& report) {
    Matrix<double> real(n_, n_);
    for (std::int64_t i = 0; i < n_ * n_; ++i) real.data()[i] = moment()[i].real();
    Eigh<double> solved = eigh<double>(real.view(), {}, {1, poll_});
    std::ranges::copy(solved.eigenvalues.values(), w);
    for (std::int64_t i = 0; i < n_; ++i) fix_sign(solved.eigenvectors.row(i), n_);
    std::ranges::copy(solved.eigenvectors.values(), v);
    report.check = {solved.residual.front(), solved.orthogonality_error.front()};
    report.driver = solved.route.driver;
    report.fallbacks = solved.route.fallbacks;
  }

  void solve_complex(double* w, Complex* v, Report& report) {
    const auto judged = [&]() -> std::string {
      const SingleBlasThread guard;
      report.check = check_hermitian(n_, moment(), w, v);
      const double limit = 50 * double(n_) * epsilon;
      // (M has no negative eigenvalues.)
      const double norm = std::max({report.trace / double(n_), std::abs(w[0]), w[n_ - 1]});
      // (Where all taps cancel, M may be too small for a relative error.)
      if (!(report.check.residual <= limit * norm + std::numeric_limits<double>::min()))
        return message("residual ", report.check.residual, " above ", limit * norm);
      if (!(report.check.orthogonality_error <= limit))
        return message("orthogonality error ", report.check.orthogonality_error, " above ", limit);
      return {};
    };
    const auto direct = [&]() -> std::string {
      if (!fits_lapack(heevd_workspace(n_)))
        return message("its workspace for n = ", n_, " exceeds this LAPACK's 32-bit lengths");
      std::copy_n(moment(), n_ * n_, v);
      std::int64_t info = 0;
      {
        const SingleBlasThread guard;
        info = heevd(n_, v, w);
      }
      return info != 0 ? message("info = ", info) : judged();
    };
    const auto embedded = [&]() -> std::string {
      const std::string failure = solve_embedded(n_, moment(), w, v);
      return failure.empty() ? judged() : failure;
    };
    // What zheevd does, in steps of our own, which can be interrupted.
    const auto in_steps = [&]() -> std::string {
      Matrix<double> work(n_, 2 * n_), tau(n_, 2), e(1, n_), vectors(n_, n_);
      auto* const a = reinterpret_cast<Complex*>(work.data());
      auto* const taus = reinterpret_cast<Complex*>(tau.data());
      std::copy_n(moment(), n_ * n_, a);
      std::int64_t info = 0;
      {
        const SingleBlasThread guard;
        tridiagonalise(n_, a, w, e.data(), taus, poll_);
        info = divide_and_conquer(n_, n_, w, e.data(), vectors.data(), 1, poll_);
        std::ranges::copy(vectors.values(), v);
        if (info == 0) transform_back(n_, n_, a, taus, v, 1, poll_);
      }
      return info != 0 ? message("info = ", info) : judged();
    };
    std::vector<Rung> rungs;
    if (n_ >= stepwise_size) rungs.push_back({"zhetrd", in_steps});
    rungs.push_back({"zheevd", direct});
    rungs.push_back({"real symmetric form", embedded});
    report.driver = climb(rungs, report.fallbacks);
    for (std::int64_t i = 0; i < n_; ++i) fix_phase(v + i * n_, n_);
  }

  Complex* moment() { return reinterpret_cast<Complex*>(m_.data()); }

  const Kernel& kernel_;
  const HalfSpectrum& spectrum_;
  const std::function<void()>& poll_;
  std::int64_t n_, count_ = 0;
  Matrix<double> parts_, w_, m_;
};

}  // namespace

BlockEigenpairs solve_frequencies(const HalfSpectrum& spectrum, const Kernel& kernel,
                                  const Context& context) {
  const std::int64_t n = kernel.rows, total = spectrum.frequencies();
  std::vector<Frequency> frequencies;
  frequencies.reserve(std::size_t(total));
  for (const HalfSpectrum::Group& group : spectrum.groups())
    for (std::int64_t f = 0; f < group.frequencies(); ++f)
      frequencies.push_back({&group, group.signed_wave(f)});
  const auto text = [&](const Frequency& frequency) {
    std::string out;
    for (std::size_t a = 0; a < spectrum.shape().size(); ++a)
      out += message(a == 0 ? " at frequency (" : ", ", frequency.wave[a]);
    return out + ")";
  };

  BlockEigenpairs out;
  out.values = Matrix<double>(total, n);
  out.vectors = Matrix<double>(total * n, 2 * n);
  out.traces.assign(std::size_t(total), 0);
  struct BatchReport {
    double residual = 0, squares = 0;
    std::string drivers[2];  // of complex and of real matrices
    std::vector<std::string> fallbacks;
  };
  const std::int64_t batch = batch_of(n, kernel.columns);
  std::vector<BatchReport> reports(static_cast<std::size_t>(ceil_div(total, batch)));
  const std::function<void()> poll = now_and_then(context.poll);
  const auto solve_batch = [&](std::int64_t b) {
    const std::int64_t first = b * batch, count = std::min(batch, total - first);
    BatchReport& report = reports[std::size_t(b)];
    FrequencySolver solver(spectrum, kernel, poll);
    solver.form({frequencies.data() + first, std::size_t(count)});
    for (std::int64_t f = first; f < first + count; ++f) {
      if (poll) poll();
      const Frequency& frequency = frequencies[std::size_t(f)];
      const bool real = frequency.group->real();
      const auto one = solver.solve(f - first, real, out.values.row(f),
                                    reinterpret_cast<Complex*>(out.vectors.row(f * n)));
      out.traces[std::size_t(f)] = one.trace;
      report.residual = std::max(report.residual, one.check.residual);
      report.squares +=
          double(frequency.group->dimensions()) * std::pow(one.check.orthogonality_error, 2);
      if (report.drivers[real].empty()) report.drivers[real] = one.driver;
      for (const std::string& failure : one.fallbacks)
        report.fallbacks.push_back(failure + text(frequency));
    }
  };
  parallel_for(threads_of(context), std::int64_t(reports.size()), solve_batch, poll);

  std::string drivers[2];
  for (const BatchReport& report : reports) {
    out.residual = std::max(out.residual, report.residual);
    out.orthogonality_error += report.squares;
    for (int real = 0; real < 2; ++real)
      if (drivers[real].empty()) drivers[real] = report.drivers[real];
    auto& fallbacks = out.route.fallbacks;
    fallbacks.insert(fallbacks.end(), report.fallbacks.begin(), report.fallbacks.end());
  }
  out.orthogonality_error = std::sqrt(out.orthogonality_error);
  out.route.driver = drivers[0].empty() ? drivers[1] : drivers[0] + ", real: " + drivers[1];
  return out;
}

double frequency_workspace(std::int64_t rows, std::int64_t columns, double taps) {
  const double n = double(rows), batch = double(batch_of(rows, columns));
  // W in parts and complex, M; what a solver takes; turns.
  return sizeof(double) * (2 * (batch + 1) * n * double(columns) + 2 * n * n + 4 * n * n + 256 * n +
                           2 * batch * taps);
}

namespace {

// t of each real mode's group, which is the diagonal of S in these modes.
std::vector<double> mode_diagonal(const HalfSpectrum& spectrum, std::span<const double> t) {
  std::vector<double> out(std::size_t(spectrum.places()));
  for (const HalfSpectrum::Group& group : spectrum.groups()) {
    double mean = 0;
    for (std::int64_t f = 0; f < group.frequencies(); ++f) mean += t[std::size_t(group.first + f)];
    mean /= double(group.frequencies());
    for (std::int64_t m = 0; m < group.modes(); ++m) out[std::size_t(group.mode(m))] = mean;
  }
  return out;
}

// The sums of a mode diagonal over all axes but one.
std::vector<double> marginal(const HalfSpectrum& spectrum, const std::vector<double>& diagonal,
                             std::size_t axis) {
  const std::int64_t n = spectrum.shape()[axis];
  std::int64_t inner = 1;
  for (std::size_t a = axis + 1; a < spectrum.shape().size(); ++a) inner *= spectrum.shape()[a];
  std::vector<double> out(std::size_t(n), 0);
  for (std::int64_t i = 0; i < spectrum.places(); ++i)
    out[std::size_t(i / inner % n)] += diagonal[std::size_t(i)];
  return out;
}

// The energies of the path's cosine modes under the circulant with eigenvalue t[2k] at frequency k:
// sums over its diagonals and over those across them, as in the operator's own trace.
double cosine_trace(const double* l, std::int64_t n, const std::vector<double>& t) {
  const RealFft fft(n), doubled(2 * n);
  std::vector<double> work(std::size_t(std::max(fft.work_size(1), doubled.work_size(1))));
  const auto [re, im] = fft.spectrum(1, work.data());
  for (std::int64_t k = 0; k <= n / 2; ++k) {
    re[k] = t[std::size_t(k == 0 ? 0 : 2 * k - 1)] / double(n);
    im[k] = 0;
  }
  fft.backward(1, work.data());
  const std::vector<double> s(work.begin(), work.begin() + n);
  // across[d]: s(d) + s(d - 2) + ... down to s(1) or s(2).
  std::vector<double> across(s), sums(std::size_t(2 * n), 0);
  across[0] = 0;
  for (std::int64_t d = 3; d < n; ++d) across[std::size_t(d)] += across[std::size_t(d - 2)];
  for (std::int64_t m = 1; m < 2 * n - 2; ++m)
    sums[std::size_t(m + 1)] = 2 * across[std::size_t(std::min(m, 2 * n - 2 - m))];
  for (std::int64_t d = 1; d < n; ++d)
    sums[std::size_t(d)] += 2 * double(n - d) * s[std::size_t(d)];
  sums[0] += double(n) * s[0];
  for (std::int64_t i = 0; i < n; ++i) sums[std::size_t(2 * i + 1)] += s[0];
  std::ranges::copy(sums, work.begin());
  doubled.forward(1, work.data());
  const double* const energies = doubled.spectrum(1, work.data()).re;
  double sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += l[k] * energies[k] * (k == 0 ? 0.5 : 1);
  return sum / double(n);
}

double axis_trace(const cuda::ModeAxis& axis, const std::vector<double>& t) {
  const std::int64_t n = axis.n;
  double sum = 0;
  if (axis.kind == cuda::ModeAxis::fourier) {
    for (std::int64_t i = 0; i < n; ++i) sum += axis.eigenvalues[i] * t[std::size_t(axis.base[i])];
    return sum;
  }
  if (axis.kind == cuda::ModeAxis::cosine) return cosine_trace(axis.eigenvalues, n, t);
  const SharedImpl fourier = flat_fourier(n);
  constexpr std::int64_t together = 64;
  Matrix<double> modes(std::min(n, together), n);
  for (std::int64_t first = 0; first < n; first += together) {
    const std::int64_t count = std::min(together, n - first);
    std::copy_n(axis.rows + first * n, count * n, modes.data());
    fourier->analyze(modes.data(), count);
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        sum += axis.eigenvalues[first + i] * t[std::size_t(j)] * modes(i, j) * modes(i, j);
  }
  return sum;
}

}  // namespace

double trace_with_spectrum(const Operator::Impl& op, const HalfSpectrum& spectrum,
                           std::span<const double> t, const Context& context) {
  const ModesDescription description = op.describe();
  std::vector<std::int64_t> lengths, wanted;
  for (const cuda::ModeAxis& axis : description.axes)
    if (axis.n > 1) lengths.push_back(axis.n);
  for (const std::int64_t n : spectrum.shape())
    if (n > 1) wanted.push_back(n);
  if (lengths == wanted) {
    // L is a sum over the axes, each of which sees the trace of S over the others.
    const std::vector<double> diagonal = mode_diagonal(spectrum, t);
    double sum = 0;
    std::size_t a = 0;
    for (const cuda::ModeAxis& axis : description.axes) {
      if (axis.n == 1) {
        sum += axis.eigenvalues[0] * std::accumulate(diagonal.begin(), diagonal.end(), 0.0);
        continue;
      }
      while (spectrum.shape()[a] == 1) ++a;
      sum += axis_trace(axis, marginal(spectrum, diagonal, a++));
    }
    return sum;
  }
  // The energy of every mode under S, through its Fourier coefficients.
  const std::int64_t n = op.size();
  const std::int64_t group = std::max(op.bundle, (std::int64_t(1) << 14) / n);
  std::vector<double> sums(std::size_t(ceil_div(n, group)), 0);
  const auto body = [&](std::int64_t g) {
    const std::int64_t first = g * group, count = std::min(group, n - first);
    Matrix<double> modes(count, n, 0);
    for (std::int64_t i = 0; i < count; ++i) modes(i, first + i) = 1;
    op.synthesize(modes.data(), count);
    spectrum.basis().analyze(modes.data(), count);
    for (std::int64_t i = 0; i < count; ++i) {
      double energy = 0;
      for (const HalfSpectrum::Group& one : spectrum.groups())
        for (std::int64_t f = 0; f < one.frequencies(); ++f) {
          Complex z;
          gather(one, f, modes.row(i), n, 1, 1, &z);
          energy += t[std::size_t(one.first + f)] * std::norm(z);
        }
      sums[std::size_t(g)] += op.eigenvalues[std::size_t(first + i)] * energy;
    }
  };
  parallel_for(threads_of(context), std::int64_t(sums.size()), body, context.poll);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

namespace {

// out (columns, rows) <- in (rows, columns)
void transpose(const double* in, std::int64_t rows, std::int64_t columns, double* out,
               int threads) {
  constexpr std::int64_t tile = 32, strip = 4096;
  parallel_for(threads, ceil_div(columns, strip), [&](std::int64_t s) {
    const std::int64_t end = std::min(columns, (s + 1) * strip);
    for (std::int64_t j0 = s * strip; j0 < end; j0 += tile)
      for (std::int64_t i0 = 0; i0 < rows; i0 += tile)
        for (std::int64_t j = j0; j < std::min(end, j0 + tile); ++j)
          for (std::int64_t i = i0; i < std::min(rows, i0 + tile); ++i)
            out[j * rows + i] = in[i * columns + j];
  });
}

// body(rows, count, x, out) for panels of rows, with room for two transposed ones. Their height
// depends on the size of a row alone, and is such that the eigenvectors are not read from memory
// for a few rows each.
template <class Callable>
void each_panel(std::span<double> rows, std::int64_t n, const Context& context,
                const Callable& body) {
  const std::int64_t total = std::int64_t(rows.size()) / n;
  const std::int64_t height = std::clamp<std::int64_t>((std::int64_t(1) << 24) / n, 8, 64);
  Matrix<double> x(n, std::min(height, total)), out(n, x.columns());
  for (std::int64_t first = 0; first < total; first += height) {
    if (context.poll) context.poll();
    const std::int64_t count = std::min(height, total - first);
    body(rows.subspan(std::size_t(first * n), std::size_t(count * n)), count, x.data(), out.data());
  }
}

// body(group, z, y) with room for one frequency's coefficients, channels * width each.
template <class Callable>
void each_group(const Assignment& assignment, std::int64_t width, int threads,
                const Callable& body) {
  const auto& groups = assignment.spectrum.groups();
  const std::int64_t channels = assignment.pairs.values.columns();
  const std::int64_t count = std::int64_t(groups.size());
  const std::int64_t together =
      std::max<std::int64_t>(1, (std::int64_t(1) << 16) / (channels * (channels + 8) * width));
  parallel_for(threads, ceil_div(count, together), [&](std::int64_t task) {
    const SingleBlasThread guard;
    std::vector<Complex> z(std::size_t(channels * width)), y(z.size());
    for (std::int64_t g = task * together; g < std::min(count, (task + 1) * together); ++g)
      body(groups[std::size_t(g)], z.data(), y.data());
  });
}

// op(V) x for V (n, n) and x (n, width), under SingleBlasThread.
void rotate(char trans, std::int64_t n, std::int64_t width, const Complex* v, const Complex* x,
            Complex* out) {
  gemm(trans, 'N', n, width, n, Complex(1), v, n, x, width, Complex(0), out, width);
}

}  // namespace

void to_modes(const Assignment& assignment, std::span<double> rows, const Operator& op,
              const Context& context) {
  const std::int64_t places = assignment.spectrum.places();
  const std::int64_t channels = assignment.pairs.values.columns(), n = channels * places;
  const int threads = threads_of(context);
  const auto body = [&](std::span<double> panel, std::int64_t count, double* x, double* out) {
    analyze(assignment.spectrum.basis(), panel, context);
    transpose(panel.data(), count, n, x, threads);
    each_group(assignment, count, threads, [&](const auto& group, Complex* z, Complex* y) {
      for (std::int64_t f = 0; f < group.frequencies(); ++f) {
        gather(group, f, x, places, channels, count, z);
        rotate('N', channels, count, assignment.pairs.at(group.first + f), z, y);
        const std::int64_t* modes = assignment.modes_of(group, f);
        for (const Complex* from = y; from < y + channels * count; from += count) {
          double* const cosine = out + *modes++ * count;
          for (std::int64_t r = 0; r < count; ++r) cosine[r] = from[r].real();
          if (group.real()) continue;
          double* const sine = out + *modes++ * count;
          for (std::int64_t r = 0; r < count; ++r) sine[r] = -from[r].imag();
        }
      }
    });
    transpose(out, n, count, panel.data(), threads);
    op.synthesize(panel, context);
  };
  each_panel(rows, n, context, body);
}

void from_modes(const Assignment& assignment, std::span<double> rows, const Operator& op,
                const Context& context) {
  const std::int64_t places = assignment.spectrum.places();
  const std::int64_t channels = assignment.pairs.values.columns(), n = channels * places;
  const int threads = threads_of(context);
  const auto body = [&](std::span<double> panel, std::int64_t count, double* x, double* out) {
    op.analyze(panel, context);
    transpose(panel.data(), count, n, x, threads);
    each_group(assignment, count, threads, [&](const auto& group, Complex* z, Complex* y) {
      for (std::int64_t f = 0; f < group.frequencies(); ++f) {
        const std::int64_t* modes = assignment.modes_of(group, f);
        for (Complex* to = y; to < y + channels * count; to += count) {
          const double* const cosine = x + *modes++ * count;
          for (std::int64_t r = 0; r < count; ++r) to[r] = cosine[r];
          if (group.real()) continue;
          const double* const sine = x + *modes++ * count;
          for (std::int64_t r = 0; r < count; ++r) to[r].imag(-sine[r]);
        }
        rotate('C', channels, count, assignment.pairs.at(group.first + f), y, z);
        scatter(group, f, z, places, channels, count, out);
      }
    });
    transpose(out, n, count, panel.data(), threads);
    synthesize(assignment.spectrum.basis(), panel, context);
  };
  each_panel(rows, n, context, body);
}

}  // namespace descramble_fast::cpu
