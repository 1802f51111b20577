#include "cpu/fft.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <tuple>
#include <utility>

namespace descramble_fast::cpu {

namespace {

// Larger prime factors cost less as a convolution than as a direct sum.
constexpr std::int64_t largest_radix = 127;

// Two neighbouring numbers in one register, which every 64-bit target has.
#if defined(__GNUC__)
using Pair [[gnu::vector_size(2 * sizeof(double))]] = double;
#else
using Pair = double;
#endif

template <class P>
constexpr std::int64_t width = sizeof(P) / sizeof(double);

template <class P>
P load(const double* p) {
  P x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

template <class P>
void store(double* p, const P& x) {
  std::memcpy(p, &x, sizeof x);
}

template <class P>
struct Complex {
  P re;
  P im;

  friend Complex operator+(const Complex& a, const Complex& b) {
    return {a.re + b.re, a.im + b.im};
  }
  friend Complex operator-(const Complex& a, const Complex& b) {
    return {a.re - b.re, a.im - b.im};
  }
  friend Complex operator*(const Complex& a, double b) { return {a.re * b, a.im * b}; }
};

// z (cos - i sin)
template <class P>
Complex<P> turned_back(const Complex<P>& z, Turn w) {
  return {z.re * w.cos + z.im * w.sin, z.im * w.cos - z.re * w.sin};
}

// a - i b and a + i b
template <class P>
std::pair<Complex<P>, Complex<P>> minus_plus_i(const Complex<P>& a, const Complex<P>& b) {
  return {{a.re + b.im, a.im - b.re}, {a.re - b.im, a.im + b.re}};
}

// Local storage of a butterfly: R values, or as many as the run-time radix may have.
template <int R>
constexpr int capacity = R > 0 ? R : int(largest_radix);

// z <- its discrete Fourier transform; R = 0 takes any odd radix.
template <int R, class P>
void butterfly(Complex<P>* z, int radix, const Turn* roots) {
  if constexpr (R == 2) {
    z[1] = std::exchange(z[0], z[0] + z[1]) - z[1];
  } else if constexpr (R == 4) {
    const Complex<P> a = z[0] + z[2], b = z[0] - z[2], c = z[1] + z[3], d = z[1] - z[3];
    z[0] = a + c;
    z[2] = a - c;
    std::tie(z[1], z[3]) = minus_plus_i(b, d);
  } else {
    const int half = (radix - 1) / 2;
    Complex<P> sums[capacity<R> / 2], differences[capacity<R> / 2];
    const Complex<P> first = z[0];
    for (int s = 1; s <= half; ++s) {
      sums[s - 1] = z[s] + z[radix - s];
      differences[s - 1] = z[s] - z[radix - s];
      z[0] = z[0] + sums[s - 1];
    }
    for (int q = 1; q <= half; ++q) {
      Complex<P> even = first + sums[0] * roots[q].cos, odd = differences[0] * roots[q].sin;
      for (int s = 2, t = q; s <= half; ++s) {
        t += t + q >= radix ? q - radix : q;
        even = even + sums[s - 1] * roots[t].cos;
        odd = odd + differences[s - 1] * roots[t].sin;
      }
      std::tie(z[q], z[radix - q]) = minus_plus_i(even, odd);
    }
  }
}

// One stage's shape: `inner` numbers lie side by side for each index of the stage.
struct Shape {
  int radix;
  std::int64_t length;
  std::int64_t inner;
  const Turn* roots;
  const Turn* twiddles;
};

struct Planes {
  double* re;
  double* im;
};

// Output k + q length of the joined transform; those beyond its half are conjugates of one within.
struct Place {
  std::int64_t offset;
  double sign;
};

template <int R>
void find_places(const Shape& shape, std::int64_t k, Place (&places)[capacity<R>]) {
  const int radix = R > 0 ? R : shape.radix;
  const std::int64_t joined = radix * shape.length;
  for (int q = 0; q < radix; ++q) {
    const std::int64_t index = k + q * shape.length;
    const bool within = 2 * index <= joined;
    places[q] = {(within ? index : joined - index) * shape.inner, within ? 1.0 : -1.0};
  }
}

template <int R, class P>
void join(const Shape& shape, Planes in, Planes out) {
  const int radix = R > 0 ? R : shape.radix;
  for (std::int64_t k = 0; k <= shape.length / 2; ++k) {
    const Turn* const twiddles = shape.twiddles + std::max<std::int64_t>(k - 1, 0) * (radix - 1);
    Place places[capacity<R>];
    find_places<R>(shape, k, places);
    for (std::int64_t i = 0; i < shape.inner; i += width<P>) {
      Complex<P> z[capacity<R>];
      for (int s = 0; s < radix; ++s) {
        const std::int64_t from = (k * radix + s) * shape.inner + i;
        z[s] = {load<P>(in.re + from), load<P>(in.im + from)};
        if (k > 0 && s > 0) z[s] = turned_back(z[s], twiddles[s - 1]);
      }
      butterfly<R>(z, radix, shape.roots);
      for (int q = 0; q < radix; ++q) {
        store(out.re + places[q].offset + i, z[q].re);
        store(out.im + places[q].offset + i, z[q].im * places[q].sign);
      }
    }
  }
}

// The inverse of join, times radix: with real and imaginary parts exchanged, the forward butterfly
// and the forward twiddles do it.
template <int R, class P>
void split(const Shape& shape, Planes in, Planes out) {
  const int radix = R > 0 ? R : shape.radix;
  for (std::int64_t k = 0; k <= shape.length / 2; ++k) {
    const Turn* const twiddles = shape.twiddles + std::max<std::int64_t>(k - 1, 0) * (radix - 1);
    Place places[capacity<R>];
    find_places<R>(shape, k, places);
    for (std::int64_t i = 0; i < shape.inner; i += width<P>) {
      Complex<P> z[capacity<R>];
      for (int q = 0; q < radix; ++q)
        z[q] = {load<P>(in.im + places[q].offset + i) * places[q].sign,
                load<P>(in.re + places[q].offset + i)};
      butterfly<R>(z, radix, shape.roots);
      for (int s = 0; s < radix; ++s) {
        if (k > 0 && s > 0) z[s] = turned_back(z[s], twiddles[s - 1]);
        const std::int64_t to = (k * radix + s) * shape.inner + i;
        store(out.im + to, z[s].re);
        store(out.re + to, z[s].im);
      }
    }
  }
}

// join for length 1: the inputs are real.
template <int R, class P>
void join_reals(const Shape& shape, const double* in, Planes out) {
  const int radix = R > 0 ? R : shape.radix, half = (radix - 1) / 2;
  for (std::int64_t i = 0; i < shape.inner; i += width<P>) {
    const auto entry = [&](int s) { return load<P>(in + s * shape.inner + i); };
    for (int q = 0; q <= radix / 2; ++q) {
      P re = entry(0), im{};
      for (int s = 1, t = 0; s <= half; ++s) {
        t += t + q >= radix ? q - radix : q;
        re = re + (entry(s) + entry(radix - s)) * shape.roots[t].cos;
        im = im + (entry(radix - s) - entry(s)) * shape.roots[t].sin;
      }
      if (radix % 2 == 0) re = q % 2 == 0 ? re + entry(radix / 2) : re - entry(radix / 2);
      store(out.re + q * shape.inner + i, re);
      store(out.im + q * shape.inner + i, im);
    }
  }
}

template <int R, class P>
void split_reals(const Shape& shape, Planes in, double* out) {
  const int radix = R > 0 ? R : shape.radix, half = (radix - 1) / 2;
  for (std::int64_t i = 0; i < shape.inner; i += width<P>) {
    const auto re = [&](int q) { return load<P>(in.re + q * shape.inner + i); };
    const auto im = [&](int q) { return load<P>(in.im + q * shape.inner + i); };
    for (int s = 0; s <= radix / 2; ++s) {
      P even = re(0), odd{};
      for (int q = 1, t = 0; q <= half; ++q) {
        t += t + s >= radix ? s - radix : s;
        even = even + re(q) * (2 * shape.roots[t].cos);
        odd = odd + im(q) * (2 * shape.roots[t].sin);
      }
      if (radix % 2 == 0) even = s % 2 == 0 ? even + re(radix / 2) : even - re(radix / 2);
      if (s > 0) store(out + (radix - s) * shape.inner + i, even + odd);
      store(out + s * shape.inner + i, even - odd);
    }
  }
}

// Calls run<R, P>() with the radix and the width that fit the shape.
template <class Run>
void dispatch(const Shape& shape, const Run& run) {
  const auto with_width = [&]<int R>() {
    if (shape.inner % width<Pair> == 0) {
      run.template operator()<R, Pair>();
    } else {
      run.template operator()<R, double>();
    }
  };
  switch (shape.radix) {
    case 2:
      return with_width.template operator()<2>();
    case 3:
      return with_width.template operator()<3>();
    case 4:
      return with_width.template operator()<4>();
    case 5:
      return with_width.template operator()<5>();
    default:
      return with_width.template operator()<0>();
  }
}

// From one plane to the next. Not the power of two that `numbers` often is: what a butterfly reads
// and writes at once would share too few places of the cache.
std::int64_t plane_stride(std::int64_t numbers) { return numbers + 72; }

template <class Stage, class Visit>
void visit_stage(const std::vector<Stage>& stages, std::size_t index, std::int64_t numbers,
                 double* work, const Visit& visit) {
  const Stage& stage = stages[index];
  const Shape shape{int(stage.radix), stage.length, numbers / (stage.length * stage.radix),
                    stage.roots.data(), stage.twiddles.data()};
  const std::int64_t plane = plane_stride(numbers);
  double* const before = work + (index % 2 == 0 ? 0 : 2 * plane);
  double* const after = work + (index % 2 == 0 ? 2 * plane : 0);
  visit(shape, Planes{before, before + plane}, Planes{after, after + plane});
}

// Radices in the order of the stages; empty where a prime factor is too large.
std::vector<std::int64_t> factorise(std::int64_t n) {
  std::vector<std::int64_t> radices;
  const auto take = [&](std::int64_t radix) {
    for (; n % radix == 0; n /= radix) radices.push_back(radix);
  };
  for (const std::int64_t radix : {4, 2, 3, 5}) take(radix);
  for (std::int64_t radix = 7; radix <= largest_radix; radix += 2) take(radix);
  if (n > 1) radices.clear();
  return radices;
}

// The smallest 2^a 3^b 5^c that is at least n.
std::int64_t smooth_length(std::int64_t n) {
  std::int64_t best = 1;
  while (best < n) best *= 2;
  for (std::int64_t fives = 1; fives < best; fives *= 5)
    for (std::int64_t threes = fives; threes < best; threes *= 3) {
      std::int64_t length = threes;
      while (length < n) length *= 2;
      best = std::min(best, length);
    }
  return best;
}

}  // namespace

Turn turn(std::int64_t a, std::int64_t b) {
  a %= b;
  if (a < 0) a += b;
  // 2 pi a/b = eighth pi/4 + rest; odd eighths are taken backwards from their end.
  const std::int64_t eighth = 8 * a / b, rest = 8 * a % b;
  const std::int64_t numerator = eighth % 2 == 0 ? rest : b - rest;
  const long double angle = std::numbers::pi_v<long double> / 4 *
                            static_cast<long double>(numerator) / static_cast<long double>(b);
  double x = double(std::cos(angle)), y = double(std::sin(angle));
  if (numerator == b) x = y = std::numbers::sqrt2 / 2;  // also where long double is no longer
  if ((eighth + 1) / 2 % 2 == 1) std::swap(x, y);
  return {eighth >= 2 && eighth < 6 ? -x : x, eighth >= 4 ? -y : y};
}

struct RealFft::Convolution {
  RealFft fft;
  std::vector<Turn> chirp;  // pi j^2/n
  // Transforms of the chirp's cosine and sine, real because the chirp is even; over the length.
  std::vector<double> cosine, sine;

  explicit Convolution(std::int64_t n) : fft(smooth_length(2 * n - 1)) {
    const std::int64_t length = fft.size();
    std::vector<double> work(std::size_t(fft.work_size(2)));
    for (std::int64_t j = 0, square = 0; j < n; ++j) {
      chirp.push_back(turn(square, 2 * n));
      square = (square + 2 * j + 1) % (2 * n);
      for (const std::int64_t place : {j, (length - j) % length}) {
        work[std::size_t(2 * place)] = chirp.back().cos / double(length);
        work[std::size_t(2 * place + 1)] = chirp.back().sin / double(length);
      }
    }
    fft.forward(2, work.data());
    const double* const re = fft.spectrum(2, work.data()).re;
    for (std::int64_t k = 0; k <= length / 2; ++k) {
      cosine.push_back(re[2 * k]);
      sine.push_back(re[2 * k + 1]);
    }
  }

  // Convolves `count` complex numbers per lane with the chirp (sign 1) or its conjugate (-1).
  void apply(std::int64_t count, double sign, std::int64_t lanes, double* work) const {
    std::fill(work + 2 * count * lanes, work + 2 * fft.size() * lanes, 0.0);
    fft.forward(2 * lanes, work);
    const auto [re, im] = fft.spectrum(2 * lanes, work);
    for (double* const plane : {re, im})
      for (std::int64_t k = 0; k <= fft.size() / 2; ++k) {
        const double c = cosine[std::size_t(k)], s = sign * sine[std::size_t(k)];
        double* const first = plane + 2 * k * lanes;
        for (std::int64_t v = 0; v < lanes; ++v) {
          const double a = first[v], b = first[lanes + v];
          first[v] = a * c - b * s;
          first[lanes + v] = b * c + a * s;
        }
      }
    fft.backward(2 * lanes, work);
  }
};

RealFft::RealFft(std::int64_t n) : n_(n) {
  const std::vector<std::int64_t> radices = factorise(n);
  if (radices.empty() && n > 1) convolution_ = std::make_shared<const Convolution>(n);
  std::int64_t length = 1;
  for (const std::int64_t radix : radices) {
    Stage stage{radix, length, {}, {}};
    for (std::int64_t s = 0; s < radix; ++s) stage.roots.push_back(turn(s, radix));
    for (std::int64_t k = 1; k <= length / 2; ++k)
      for (std::int64_t s = 1; s < radix; ++s)
        stage.twiddles.push_back(turn(k * s, length * radix));
    stages_.push_back(std::move(stage));
    length *= radix;
  }
}

// Each stage reads one of two pairs of planes and writes the other; the rows lie in the first plane
// of the first pair. A convolution has its rows, its spectrum and then the inner transform's own.
std::int64_t RealFft::work_size(std::int64_t lanes) const {
  return convolution_ ? (2 * n_ + 2) * lanes + convolution_->fft.work_size(2 * lanes)
                      : 4 * plane_stride(n_ * lanes);
}

RealFft::Spectrum RealFft::spectrum(std::int64_t lanes, double* work) const {
  if (convolution_) return {work + n_ * lanes, work + (n_ + n_ / 2 + 1) * lanes};
  const std::int64_t plane = plane_stride(n_ * lanes);
  double* const planes = work + (stages_.size() % 2) * std::size_t(2 * plane);
  return {planes, planes + plane};
}

void RealFft::forward(std::int64_t lanes, double* work) const {
  if (convolution_) return convolve_forward(lanes, work);
  for (std::size_t index = 0; index < stages_.size(); ++index)
    visit_stage(stages_, index, n_ * lanes, work, [](const Shape& shape, Planes in, Planes out) {
      dispatch(shape, [&]<int R, class P>() {
        if (shape.length == 1) {
          join_reals<R, P>(shape, in.re, out);
        } else {
          join<R, P>(shape, in, out);
        }
      });
    });
  const Spectrum out = spectrum(lanes, work);
  std::fill_n(out.im, lanes, 0.0);
  if (n_ % 2 == 0) std::fill_n(out.im + n_ / 2 * lanes, lanes, 0.0);
}

void RealFft::backward(std::int64_t lanes, double* work) const {
  if (convolution_) return convolve_backward(lanes, work);
  for (std::size_t index = stages_.size(); index-- > 0;)
    visit_stage(stages_, index, n_ * lanes, work, [](const Shape& shape, Planes out, Planes in) {
      dispatch(shape, [&]<int R, class P>() {
        if (shape.length == 1) {
          split_reals<R, P>(shape, in, out.re);
        } else {
          split<R, P>(shape, in, out);
        }
      });
    });
}

// jk = (j^2 + k^2 - (k - j)^2)/2: chirp, convolve with the conjugate chirp, chirp. A complex row is
// two lanes of the inner transform.
void RealFft::convolve_forward(std::int64_t lanes, double* work) const {
  const std::vector<Turn>& chirp = convolution_->chirp;
  const auto [re, im] = spectrum(lanes, work);
  double* const inner = im + (n_ / 2 + 1) * lanes;
  for (std::int64_t j = 0; j < n_; ++j)
    for (std::int64_t v = 0; v < lanes; ++v) {
      const double x = work[j * lanes + v];
      inner[2 * j * lanes + v] = x * chirp[std::size_t(j)].cos;
      inner[(2 * j + 1) * lanes + v] = -x * chirp[std::size_t(j)].sin;
    }
  convolution_->apply(n_, 1, lanes, inner);
  for (std::int64_t k = 0; k <= n_ / 2; ++k)
    for (std::int64_t v = 0; v < lanes; ++v) {
      const auto [c, s] = chirp[std::size_t(k)];
      const double a = inner[2 * k * lanes + v], b = inner[(2 * k + 1) * lanes + v];
      re[k * lanes + v] = a * c + b * s;
      im[k * lanes + v] = k == 0 || 2 * k == n_ ? 0 : b * c - a * s;
    }
}

void RealFft::convolve_backward(std::int64_t lanes, double* work) const {
  const std::vector<Turn>& chirp = convolution_->chirp;
  const auto [re, im] = spectrum(lanes, work);
  double* const inner = im + (n_ / 2 + 1) * lanes;
  for (std::int64_t k = 0; k <= n_ / 2; ++k)
    for (std::int64_t v = 0; v < lanes; ++v) {
      const auto [c, s] = chirp[std::size_t(k)];
      const double twice = k == 0 || 2 * k == n_ ? 1 : 2;
      const double a = twice * re[k * lanes + v], b = twice * im[k * lanes + v];
      inner[2 * k * lanes + v] = a * c - b * s;
      inner[(2 * k + 1) * lanes + v] = b * c + a * s;
    }
  convolution_->apply(n_ / 2 + 1, -1, lanes, inner);
  for (std::int64_t j = 0; j < n_; ++j)
    for (std::int64_t v = 0; v < lanes; ++v)
      work[j * lanes + v] = inner[2 * j * lanes + v] * chirp[std::size_t(j)].cos -
                            inner[(2 * j + 1) * lanes + v] * chirp[std::size_t(j)].sin;
}

}  // namespace descramble_fast::cpu
