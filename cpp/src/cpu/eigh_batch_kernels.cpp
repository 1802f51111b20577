// Built once for each instruction set, with DESCRAMBLE_FAST_KERNELS naming the table. Nothing here
// may come from a header as an inline function: the linker could keep the copy of another build.
#include <utility>

#include "cpu/eigh_batch.hpp"

#if defined(__SSE2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own immintrin.h
#endif
#include <immintrin.h>
#endif

namespace descramble_fast::cpu {

extern const EighBatchKernels DESCRAMBLE_FAST_KERNELS;

namespace {

template <class T>
struct Traits;
template <>
struct Traits<float> {
  using Int = std::int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float eps = 0x1p-23f;
  // Squares below this are lost in a matrix of norm 1: their roots are far below eps, and far
  // enough above the smallest number for full precision.
  static constexpr float tiny_square = 0x1p-100f, small_scale = 0x1p-80f;
};
template <>
struct Traits<double> {
  using Int = std::int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double eps = 0x1p-52;
  static constexpr double tiny_square = 0x1p-900, small_scale = 0x1p-800;
};

template <class T, int bytes>
struct Pack {
  typedef T V __attribute__((vector_size(bytes)));
  typedef typename Traits<T>::Int I __attribute__((vector_size(bytes)));
  // As V, at any address.
  typedef T Unaligned __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = bytes / int(sizeof(T));
};

template <class V, class T>
V broadcast(T x) {
  return x - V{};
}

template <class V>
V square_root(V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    if constexpr (sizeof(x[0]) == 4)
      return V(_mm512_sqrt_ps(__m512(x)));
    else
      return V(_mm512_sqrt_pd(__m512d(x)));
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    if constexpr (sizeof(x[0]) == 4)
      return V(_mm256_sqrt_ps(__m256(x)));
    else
      return V(_mm256_sqrt_pd(__m256d(x)));
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) {
    if constexpr (sizeof(x[0]) == 4)
      return V(_mm_sqrt_ps(__m128(x)));
    else
      return V(_mm_sqrt_pd(__m128d(x)));
  }
#endif
  V out = x;
  for (int l = 0; l < int(sizeof(V) / sizeof(x[0])); ++l) out[l] = __builtin_sqrt(x[l]);
  return out;
}

// a b + c, rounded once where the processor can: written out, since what a compiler contracts by
// itself may differ between widths, and with it the bits.
template <class V>
V fused(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    if constexpr (sizeof(a[0]) == 4)
      return V(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
    else
      return V(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
  }
#endif
#if defined(__FMA__)
  if constexpr (sizeof(V) == 32) {
    if constexpr (sizeof(a[0]) == 4)
      return V(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
    else
      return V(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
  }
  if constexpr (sizeof(V) == 16) {
    if constexpr (sizeof(a[0]) == 4)
      return V(_mm_fmadd_ps(__m128(a), __m128(b), __m128(c)));
    else
      return V(_mm_fmadd_pd(__m128d(a), __m128d(b), __m128d(c)));
  }
#endif
  return a * b + c;
}

// 1 / sqrt(x) to a few units in the last place.
template <class T, class V>
V inverse_root(V x) {
#if defined(__AVX512F__)
  V y;
  if constexpr (sizeof(V) == 64 && sizeof(x[0]) == 4)
    y = V(_mm512_rsqrt14_ps(__m512(x)));
  else if constexpr (sizeof(V) == 64)
    y = V(_mm512_rsqrt14_pd(__m512d(x)));
  else if constexpr (sizeof(V) == 32 && sizeof(x[0]) == 4)
    y = V(_mm256_rsqrt14_ps(__m256(x)));
  else if constexpr (sizeof(V) == 32)
    y = V(_mm256_rsqrt14_pd(__m256d(x)));
  else if constexpr (sizeof(x[0]) == 4)
    y = V(_mm_rsqrt14_ps(__m128(x)));
  else
    y = V(_mm_rsqrt14_pd(__m128d(x)));
  // y (1 - e)^(-1/2), e below 2^-13.
  const V product = x * y, e = 1 - product * y;
  if constexpr (sizeof(x[0]) == 4)
    y += (y / 2) * e;
  else
    y += (y * e) * (T(0.5) + e * (T(0.375) + T(0.3125) * e));
  return y;
#else
  return 1 / square_root(x);
#endif
}

template <class M>
bool any(M mask) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(M) == 64) {
    if constexpr (sizeof(mask[0]) == 4)
      return _mm512_movepi32_mask(__m512i(mask)) != 0;
    else
      return _mm512_movepi64_mask(__m512i(mask)) != 0;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(M) == 32) return _mm256_movemask_epi8(__m256i(mask)) != 0;
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(M) == 16) return _mm_movemask_epi8(__m128i(mask)) != 0;
#endif
  bool out = false;
  for (int l = 0; l < int(sizeof(M) / sizeof(mask[0])); ++l) out |= mask[l] != 0;
  return out;
}

// x[l] = lane l's elements 0, 1, ... becomes x[i] = element i of every lane: at each stage a bit of
// the lane's number changes places with one of the element's.
template <int h, bool upper, class V, int... e>
V exchange(V a, V b, std::integer_sequence<int, e...>) {
  constexpr int width = int(sizeof...(e));
  if constexpr (upper)
    return __builtin_shufflevector(a, b, ((e & h) == 0 ? e + h : width + e)...);
  else
    return __builtin_shufflevector(a, b, ((e & h) == 0 ? e : width + e - h)...);
}

template <int h, int i, class V, int width>
[[gnu::always_inline]] inline void exchange_pair(V (&x)[width]) {
  if constexpr ((i & h) == 0) {
    constexpr std::make_integer_sequence<int, width> places;
    const V a = x[i], b = x[i + h];
    x[i] = exchange<h, false>(a, b, places);
    x[i + h] = exchange<h, true>(a, b, places);
  }
}

template <int h, class V, int width, int... i>
[[gnu::always_inline]] inline void transpose_stages(V (&x)[width],
                                                    std::integer_sequence<int, i...> all) {
  if constexpr (h > 0) {
    (exchange_pair<h, i>(x), ...);
    transpose_stages<h / 2>(x, all);
  }
}

template <class V, int width>
[[gnu::always_inline]] inline void transpose(V (&x)[width]) {
  transpose_stages<width / 2>(x, std::make_integer_sequence<int, width>());
}

// Calls use(0) ... use(count - 1), each a place known to the compiler.
template <class Use, int... i>
[[gnu::always_inline]] inline void unrolled(std::integer_sequence<int, i...>, const Use& use) {
  (use(std::integral_constant<int, i>()), ...);
}

std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }
constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// Rows are an odd number of vectors apart, so that columns spread over the sets of a cache.
std::int64_t row_length(std::int64_t n) { return round_up(n, 4) + 1; }

// Of the rows x and y of z: x + first y and y - second x, in some lanes after x and y have changed
// places. A rotation by an angle of cosine c is that times c, which goes into factors of the rows.
template <class V>
struct Rotation {
  V first, second;
};

template <int n>
struct Count {};

struct Sweep {
  std::int64_t begin, end, first;  // rows [begin, end), the place of the first rotation
};

// Rotations that wait for the columns behind the first strip.
std::int64_t rotation_capacity(std::int64_t n) { return most(96, least(n * n / 4, 8 * n)); }
constexpr int most_sweeps = 64;

/// All of the algorithm for one group, in vectors of one width.
///
/// The lower triangle is kept for the check; its mirror image in the upper one is reduced by
/// Householder reflections I - v v^T, each v in place of the row that it clears. Rows of z are the
/// eigenvectors to be.
template <class T, int bytes>
class Lanes {
  using P = Pack<T, bytes>;
  using V = typename P::V;
  using I = typename P::I;
  using Int = typename Traits<T>::Int;
  static constexpr int lanes = P::lanes;
  // Rows that are worked on at a time, as registers allow.
#if defined(__AVX512F__)
  static constexpr int block = 4;
#else
  static constexpr int block = 2;
#endif

 public:
  static std::int64_t workspace(std::int64_t n) {
    return std::int64_t(sizeof(V)) * (2 * n * row_length(n) + 9 * row_length(n)) +
           std::int64_t(sizeof(Rotation<V>) + sizeof(I) + 1) * rotation_capacity(n);
  }

  static void solve(const LaneGroup<T>& group) {
    Lanes solver(group);
    solver.run();
  }

 private:
  explicit Lanes(const LaneGroup<T>& group)
      : group_(group),
        n_(group.n),
        ld_(row_length(group.n)),
        a_(static_cast<V*>(group.work)),
        z_(a_ + n_ * ld_),
        diagonal_(z_ + n_ * ld_),
        d_(diagonal_ + ld_),
        e_(d_ + ld_),
        rank_(e_ + ld_),
        scale_(rank_ + ld_),
        p_(scale_ + ld_),
        rotations_(reinterpret_cast<Rotation<V>*>(p_ + 4 * ld_)),
        swaps_(reinterpret_cast<I*>(rotations_ + rotation_capacity(n_))),
        swapped_(reinterpret_cast<bool*>(swaps_ + rotation_capacity(n_))) {}

  static V select(I mask, V a, V b) { return mask ? a : b; }
  static V all(T x) { return broadcast<V>(x); }
  static V sign_of(V x) {
    constexpr Int bit = Int(1) << (8 * sizeof(T) - 1);
    return V(I(x) & bit);
  }
  static V magnitude(V x) { return V(I(x) ^ I(sign_of(x))); }
  static V with_sign(V positive, V sign) { return V(I(positive) | I(sign_of(sign))); }
  static V larger(V a, V b) { return a > b ? a : b; }
  static V smaller(V a, V b) { return a < b ? a : b; }

  void run() {
    load();
    const I bad = scale();
    tridiagonalise();
    form_reflections();
    const I open = iterate();
    rank();
    check(bad, open);
    write(bad);
  }

  // ---- reading

  static constexpr int half = int(least(32 / int(sizeof(T)), lanes));
  using Half = Pack<T, half* int(sizeof(T))>;
  using Places = std::make_integer_sequence<int, half>;

  [[gnu::noinline]] void load() {
    const std::int64_t size = n_ * n_;
    for (int part = 0; part < lanes; part += half) {
      const T* source[half];
      for (int l = 0; l < half; ++l) source[l] = group_.a[part + l < group_.count ? part + l : 0];
      if (size < half)
        load_short(part, source);
      else
        for (std::int64_t at = 0; at < size; at += half)
          load_run(part, source, least(at, size - half));
    }
  }

  void put(std::int64_t i, std::int64_t j, int part, const typename Half::V& x) {
    if (j > i) return;
    *reinterpret_cast<typename Half::Unaligned*>(reinterpret_cast<T*>(a_ + i * ld_ + j) + part) = x;
  }

  void load_run(int part, const T* const (&source)[half], std::int64_t at) {
    std::int64_t i = at / n_, j = at - i * n_;
    if (j > i && j + half <= n_) return;
    typename Half::V x[half];
    unrolled(Places(), [&](auto l) {
      x[l] = *reinterpret_cast<const typename Half::Unaligned*>(source[l] + at);
    });
    transpose(x);
    unrolled(Places(), [&](auto l) {
      put(i, j, part, x[l]);
      if (++j == n_) j = 0, ++i;
    });
  }

  void load_short(int part, const T* const (&source)[half]) {
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t j = 0; j <= i; ++j) {
        typename Half::V x{};
        for (int l = 0; l < half; ++l) x[l] = source[l][i * n_ + j];
        put(i, j, part, x);
      }
  }

  // The power of two that brings the largest entry into [1, 2), and the mirror image. Lanes that
  // are not finite become zero.
  [[gnu::noinline]] I scale() {
    V largest{}, spoiled{};
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t j = 0; j <= i; ++j) {
        const V x = a_[i * ld_ + j];
        largest = larger(magnitude(x), largest);
        spoiled += x * T(0);
      }
    const I bad = spoiled != spoiled;
    constexpr Int digits = Traits<T>::mantissa, bias = Traits<T>::bias;
    const T shift = T(std::int64_t(1) << (digits + 1));
    const V smallest = all(sizeof(T) == 4 ? T(0x1p-126f) : T(0x1p-1022));
    const I small = largest < smallest;
    largest = select(small, largest * shift, largest);
    I exponent = (I(largest) >> digits) - bias;
    exponent -= small & (digits + 1);
    exponent &= ~(bad | (largest == T(0)));
    exponent_ = exponent;
    const I first = exponent >> 1;
    const V down = power(-first), down_too = power(first - exponent);
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t j = 0; j <= i; ++j) {
        V& x = a_[i * ld_ + j];
        x = V(I(x * down * down_too) & ~bad);
        a_[j * ld_ + i] = x;
        if (i == j) diagonal_[i] = x;
      }
    return bad;
  }

  static V power(I exponent) { return V((exponent + Traits<T>::bias) << Traits<T>::mantissa); }

  // ---- tridiagonalisation

  // The row's part behind the diagonal becomes the vector v of a reflection, |v|^2 = 2 or v = 0,
  // which leaves e in its first place.
  V reflect(V* x, std::int64_t m) {
    V s0{}, s1{};
    std::int64_t i = 1;
    for (; i + 2 <= m; i += 2) {
      s0 += x[i] * x[i];
      s1 += x[i + 1] * x[i + 1];
    }
    if (i < m) s0 += x[i] * x[i];
    const V tail = s0 + s1, alpha = x[0];
    const I trivial = tail < Traits<T>::tiny_square;
    const V mu = square_root(alpha * alpha + tail);
    const V first = magnitude(alpha) + mu;
    // |x + sign mu e_1|^2 = 2 mu (mu + |alpha|).
    V factor = T(1) / square_root(mu * first);
    factor = V(I(factor) & ~trivial);
    x[0] = V(I(with_sign(first, alpha) * factor) & ~trivial);
    for (i = 1; i < m; ++i) x[i] *= factor;
    return select(trivial, alpha, -with_sign(mu, alpha));
  }

  // With the reflection v of this step and the pending update v' w'^T + w' v'^T of the one before,
  // rows [begin, n): A -= update, p = A v.
  template <bool pending, int rows>
  void update_rows(std::int64_t j, const V* v, const V* v1, const V* w1, V* p) {
    V* a = a_ + j * ld_;
    V vj[rows], v1j[rows], w1j[rows], sum[rows];
    for (int r = 0; r < rows; ++r) {
      vj[r] = v[j + r];
      if (pending) v1j[r] = v1[j + r], w1j[r] = w1[j + r];
      sum[r] = V{};
    }
    for (int r = 0; r < rows; ++r)
      for (int c = r; c < rows; ++c) {
        V x = a[r * ld_ + j + c];
        if (pending) {
          x -= v1j[r] * w1j[c];
          x -= w1j[r] * v1j[c];
          a[r * ld_ + j + c] = x;
        }
        sum[r] += x * vj[c];
        if (c > r) sum[c] += x * vj[r];
      }
    for (std::int64_t i = j + rows; i < n_; ++i) {
      V pi = p[i];
      const V vi = v[i];
      V v1i{}, w1i{};
      if (pending) v1i = v1[i], w1i = w1[i];
      for (int r = 0; r < rows; ++r) {
        V x = a[r * ld_ + i];
        if (pending) {
          x = fused(-v1j[r], w1i, x);
          x = fused(-w1j[r], v1i, x);
          a[r * ld_ + i] = x;
        }
        pi = fused(x, vj[r], pi);
        sum[r] = fused(x, vi, sum[r]);
      }
      p[i] = pi;
    }
    for (int r = 0; r < rows; ++r) p[j + r] += sum[r];
  }

  template <bool pending>
  void update(std::int64_t begin, const V* v, const V* v1, const V* w1, V* p) {
    std::int64_t j = begin;
    for (; j + block <= n_; j += block) update_rows<pending, block>(j, v, v1, w1, p);
    for (; j < n_; ++j) update_rows<pending, 1>(j, v, v1, w1, p);
  }

  [[gnu::noinline]] void tridiagonalise() {
    const std::int64_t n = n_;
    V *w1 = p_, *p = p_ + ld_;
    for (std::int64_t k = 0; k + 2 < n; ++k) {
      V* const v = a_ + k * ld_;
      d_[k] = v[k];
      e_[k] = reflect(v + k + 1, n - k - 1);
      for (std::int64_t i = k + 1; i < n; ++i) p[i] = V{};
      if (k == 0)
        update<false>(1, v, v, w1, p);
      else
        update<true>(k + 1, v, v - ld_, w1, p);
      V dot{};
      for (std::int64_t i = k + 1; i < n; ++i) dot += p[i] * v[i];
      dot *= T(0.5);
      for (std::int64_t i = k + 1; i < n; ++i) p[i] -= dot * v[i];
      V* const next = a_ + (k + 1) * ld_;
      const V v0 = v[k + 1], w0 = p[k + 1];
      for (std::int64_t i = k + 1; i < n; ++i) {
        next[i] -= v0 * p[i];
        next[i] -= w0 * v[i];
      }
      V* const other = w1;
      w1 = p;
      p = other;
    }
    if (n >= 2) {
      d_[n - 2] = a_[(n - 2) * ld_ + n - 2];
      e_[n - 2] = a_[(n - 2) * ld_ + n - 1];
    }
    V last = a_[(n - 1) * ld_ + n - 1];
    if (n >= 3) last -= T(2) * a_[(n - 3) * ld_ + n - 1] * w1[n - 1];
    d_[n - 1] = last;
    e_[n - 1] = V{};
  }

  // z = (H_0 H_1 ...)^T. A row takes the reflections from the last to the first: z -= u v with
  // u = v z, where the next u is summed up on the way.
  template <int rows>
  void form_rows(std::int64_t i) {
    V* const z = z_ + i * ld_;
    for (int r = 0; r < rows; ++r)
      for (std::int64_t p = 0; p < ld_; ++p) z[r * ld_ + p] = V{};
    for (int r = 0; r < rows; ++r) z[r * ld_ + i + r] = all(1);
    std::int64_t k = least(i + rows - 2, n_ - 3);
    if (k < 0) return;
    V u[rows];
    const V* v = a_ + k * ld_;
    for (int r = 0; r < rows; ++r) u[r] = V{};
    for (std::int64_t p = k + 1; p < n_; ++p)
      for (int r = 0; r < rows; ++r) u[r] += v[p] * z[r * ld_ + p];
    for (; k > 0; --k) {
      const V* const next = v - ld_;
      V sum[rows];
      for (int r = 0; r < rows; ++r) sum[r] = next[k] * z[r * ld_ + k];
      for (std::int64_t p = k + 1; p < n_; ++p) {
        const V x = v[p], y = next[p];
        for (int r = 0; r < rows; ++r) {
          V q = z[r * ld_ + p];
          q = fused(-u[r], x, q);
          sum[r] = fused(y, q, sum[r]);
          z[r * ld_ + p] = q;
        }
      }
      for (int r = 0; r < rows; ++r) u[r] = sum[r];
      v = next;
    }
    for (std::int64_t p = 1; p < n_; ++p)
      for (int r = 0; r < rows; ++r) z[r * ld_ + p] -= u[r] * v[p];
  }

  [[gnu::noinline]] void form_reflections() {
    std::int64_t i = 0;
    for (; i + block <= n_; i += block) form_rows<block>(i);
    for (; i < n_; ++i) form_rows<1>(i);
  }

  // ---- implicit QL

  static I negligible(V e, V d0, V d1) {
    const V bound = Traits<T>::eps * (magnitude(d0) + magnitude(d1));
    return (magnitude(e) <= bound) | (e * e < Traits<T>::tiny_square);
  }

  // Each lane is at work on the unreduced block of rows [low, high] that is the first of those not
  // done, and knows the numbers that its shift is made of. Places are held as numbers of type T.
  // Lanes that are done have low = n - 1.
  V low_, high_, low_d_, next_d_, low_e_, high_d_;
  V least_scale_;  // the smallest factor of a row that the last sweep left

  // The first blocks at or after low, in the lanes `wanted`.
  [[gnu::noinline]] void find_blocks(I wanted) {
    const V end = all(T(n_ - 1));
    while (any(wanted)) {
      V high = end, high_d = d_[n_ - 1], low_d{}, next_d{}, low_e{};
      for (std::int64_t i = n_ - 2; i >= 0; --i) {
        const V place = all(T(i));
        const V e = e_[i], d = d_[i], above = d_[i + 1];
        const I found = negligible(e, d, above) & (place >= low_), here = place == low_;
        high = select(found, place, high);
        high_d = select(found, d, high_d);
        low_d = select(here, d, low_d);
        next_d = select(here, above, next_d);
        low_e = select(here, e, low_e);
      }
      high_ = select(wanted, high, high_);
      high_d_ = select(wanted, high_d, high_d_);
      low_d_ = select(wanted, low_d, low_d_);
      next_d_ = select(wanted, next_d, next_d_);
      low_e_ = select(wanted, low_e, low_e_);
      wanted &= (high_ == low_) & (low_ < end);
      low_ = select(wanted, low_ + T(1), low_);
    }
  }

  // After a sweep that left `high_` right: the state at low, a row further where e has converged.
  [[gnu::noinline]] void advance(std::int64_t begin) {
    const V end = all(T(n_ - 1));
    const I open = low_ < end;
    V e0{}, e1{}, d0{}, d1{}, d2{};
    for (std::int64_t i = begin; any(open & (low_ >= T(i))); ++i) {
      const I here = low_ == T(i);
      e0 = select(here, e_[i], e0);
      e1 = select(here, e_[i + 1], e1);
      d0 = select(here, d_[i], d0);
      d1 = select(here, d_[i + 1], d1);
      d2 = select(here, d_[i + 2], d2);
    }
    const I converged = negligible(e0, d0, d1) & open;
    low_ = select(converged, low_ + T(1), low_);
    low_e_ = select(converged, e1, e0);
    low_d_ = select(converged, d1, d0);
    next_d_ = select(converged, d2, d1);
    find_blocks(open & (low_ < end) & (low_ == high_));
  }

  // Returns the lanes that did not converge.
  [[gnu::noinline]] I iterate() {
    low_ = V{};
    const V end = all(T(n_ - 1));
    find_blocks(low_ < end);
    for (std::int64_t r = 0; r < n_; ++r) scale_[r] = all(1);
    std::int64_t begin = 0, used = 0;
    int sweeps = 0;
    bool wide = false;  // a sweep leaves columns for later
    with_width([&]<int width>(Count<width>) { wide = n_ > width; });
    for (std::int64_t left = group_.sweeps * n_; left > 0 && any(low_ < end); --left) {
      while (!any(low_ <= T(begin))) ++begin;
      std::int64_t last = n_ - 1;
      while (!any((high_ >= T(last)) & (low_ < end))) --last;
      if (sweeps == most_sweeps || used + (last - begin) > rotation_capacity(n_)) {
        apply(sweeps);
        sweeps = 0;
        used = 0;
      }
      sweeps_[sweeps] = {begin, last, used};
      run_sweep(sweeps_[sweeps]);
      if (wide) {
        used += last - begin;
        ++sweeps;
      }
      if (any(least_scale_ < Traits<T>::small_scale)) {
        apply(sweeps);
        sweeps = 0;
        used = 0;
        rescale(least_scale_ < Traits<T>::small_scale);
      }
      advance(begin);
    }
    apply(sweeps);
    rescale(low_ == low_);
    return low_ < end;
  }

  // Calls use(integral constant) with the number of columns that a sweep rotates itself: as many as
  // registers hold and stay in the first-level cache from sweep to sweep.
  template <class Use>
  void with_width(const Use& use) const {
    const std::int64_t fit = least(20480 / (std::int64_t(sizeof(V)) * n_), round_up(n_, 4));
    if (fit >= 8) return use(Count<8>());
    if (fit >= 4) return use(Count<4>());
    use(Count<2>());
  }

  void run_sweep(const Sweep& range) {
    with_width([&]<int width>(Count<width>) { sweep<width>(range); });
  }

  // With Wilkinson's shift at the low end: the first element of the column that starts the chase.
  V start() const {
    const V half = (next_d_ - low_d_) * T(0.5), square = low_e_ * low_e_;
    const V r = square_root(half * half + square);
    return high_d_ - low_d_ + square / (half + with_sign(r, half));
  }

  // Multiplies the rows by their factors, in the lanes `wanted`.
  [[gnu::noinline]] void rescale(I wanted) {
    for (std::int64_t r = 0; r < n_; ++r) {
      const V factor = select(wanted, scale_[r], all(1));
      scale_[r] = select(wanted, all(1), scale_[r]);
      for (std::int64_t p = 0; p < n_; ++p) z_[r * ld_ + p] *= factor;
    }
  }

  // The rotation at place `by` of rows x = z + ld, which is carried in registers, and y = z; the
  // latter is carried on.
  template <int width>
  [[gnu::always_inline]] inline void rotate(std::int64_t by, V* z, V (&carried)[width]) const {
    V* const above = z + ld_;
    if (__builtin_expect(swapped_[by], false)) {
      const I swap = swaps_[by];
      for (int c = 0; c < width; ++c) {
        const V x = carried[c], y = z[c];
        carried[c] = select(swap, y, x);
        z[c] = select(swap, x, y);
      }
    }
    const V first = rotations_[by].first, second = rotations_[by].second;
    for (int c = 0; c < width; ++c) {
      const V x = carried[c], y = z[c];
      above[c] = fused(first, y, x);
      carried[c] = fused(-second, x, y);
    }
  }

  // One sweep from high to low in every lane that is not done. Where a rotation's cosine is small
  // the rows change places, so that factors do not shrink fast.
  template <int width>
  [[gnu::noinline]] void sweep(const Sweep& range) {
    V* z = z_ + range.end * ld_;
    V carried[width];
    for (int column = 0; column < width; ++column) carried[column] = z[column];
    const V g0 = start(), low = low_, high = high_;
    V g{}, s{}, c = all(1), p{}, d1 = d_[range.end], above{}, split{}, split_d{};
    V factor = scale_[range.end];
    V smallest = all(1);
    std::int64_t at = range.first;
    for (std::int64_t i = range.end - 1; i >= range.begin; --i) {
      const V place = all(T(i));
      const I first = place == high - T(1), end = place == low;
      const I active = (place >= low) & (place < high);
      g = select(first, g0, g);
      s = select(first, all(1), s);
      c = select(first, all(1), c);
      p = select(first, V{}, p);
      const V e0 = e_[i], d0 = d_[i];
      const V f = s * e0, b = c * e0, twice = b + b;
      V h = g * g;
      h += f * f;
      const I lost = h < Traits<T>::tiny_square;
      const V inverse = inverse_root<T>(h);
      const V root = select(lost, V{}, with_sign(h * inverse, g));
      s = select(lost, V{}, f * with_sign(inverse, g));
      c = select(lost, all(1), magnitude(g) * inverse);
      const V shifted = d1 - p;
      V q = c * twice;
      q += (d0 - shifted) * s;
      p = s * q;
      g = c * q - b;
      const V new_d = shifted + p, new_e = select(first, V{}, root);
      d_[i + 1] = select(active, new_d, d1);
      e_[i + 1] = select(active, new_e, e_[i + 1]);
      d1 = select(end & active, d0 - p, d0);
      d_[i] = d1;
      e_[i] = select(end & active, g, e0);
      const V bound = Traits<T>::eps * (magnitude(new_d) + magnitude(above));
      const I here = ((magnitude(new_e) <= bound) | first) & active;
      split = select(here, place, split);
      split_d = select(here, new_d, split_d);
      above = new_d;
      V cosine = select(active, c, all(1)), sine = V(I(s) & active);
      V x_factor = factor, y_factor = scale_[i];
      const I swap = cosine < T(0x1p-8);
      swapped_[at] = any(swap);
      if (__builtin_expect(swapped_[at], false)) {
        swaps_[at] = swap;
        const V old_cosine = cosine, old_factor = x_factor;
        cosine = select(swap, sine, cosine);
        sine = select(swap, -old_cosine, sine);
        x_factor = select(swap, y_factor, x_factor);
        y_factor = select(swap, -old_factor, y_factor);
      }
      const V tangent = sine / cosine;
      rotations_[at] = {tangent * (y_factor / x_factor), tangent * (x_factor / y_factor)};
      x_factor *= cosine;
      factor = y_factor * cosine;
      scale_[i + 1] = x_factor;
      smallest = smaller(magnitude(x_factor), smallest);
      // The rotation before, so that this one's latency is filled.
      if (i + 1 < range.end) rotate<width>(at - 1, z -= ld_, carried);
      ++at;
    }
    rotate<width>(at - 1, z -= ld_, carried);
    scale_[range.begin] = factor;
    least_scale_ = smaller(magnitude(factor), smallest);
    for (int column = 0; column < width; ++column) z[column] = carried[column];
    high_ = split + T(1);
    high_d_ = split_d;
  }

  template <int width>
  void apply_to(std::int64_t column, const Sweep& range) {
    V* z = z_ + range.end * ld_ + column;
    std::int64_t at = range.first;
    V carried[width];
    for (int c = 0; c < width; ++c) carried[c] = z[c];
    for (std::int64_t i = range.end; i > range.begin; --i) rotate<width>(at++, z -= ld_, carried);
    for (int c = 0; c < width; ++c) z[c] = carried[c];
  }

  // Two sweeps in one pass, the second a row behind the first.
  template <int width>
  void apply_both(std::int64_t column, const Sweep& a, const Sweep& b) {
    const std::int64_t top = least(a.end, b.end), bottom = most(a.begin, b.begin);
    if (top - bottom < 4) {
      apply_to<width>(column, a);
      apply_to<width>(column, b);
      return;
    }
    // The first alone to a row below the second's top, the second alone down to the first's row.
    V x0[width], x1[width];
    V* z = z_ + a.end * ld_ + column;
    for (int c = 0; c < width; ++c) x0[c] = z[c];
    std::int64_t i = a.end, at = a.first, behind = b.first;
    for (; i >= top; --i) rotate<width>(at++, z -= ld_, x0);
    V* y = z_ + b.end * ld_ + column;
    for (int c = 0; c < width; ++c) x1[c] = y[c];
    for (std::int64_t j = b.end; j > i + 1; --j) rotate<width>(behind++, y -= ld_, x1);
    for (; i > bottom; --i) {
      z -= ld_;
      if (__builtin_expect(swapped_[at] || swapped_[behind], false)) {
        rotate<width>(at, z, x0);
        rotate<width>(behind, z + ld_, x1);
      } else {
        const V first0 = rotations_[at].first, second0 = rotations_[at].second;
        const V first1 = rotations_[behind].first, second1 = rotations_[behind].second;
        V* const out = z + 2 * ld_;
        for (int c = 0; c < width; ++c) {
          const V low = z[c];
          const V middle = fused(first0, low, x0[c]);
          x0[c] = fused(-second0, x0[c], low);
          out[c] = fused(first1, middle, x1[c]);
          x1[c] = fused(-second1, x1[c], middle);
        }
      }
      ++at;
      ++behind;
    }
    for (; i > a.begin; --i) rotate<width>(at++, z -= ld_, x0);
    for (int c = 0; c < width; ++c) z[c] = x0[c];
    y = z_ + (b.end - (behind - b.first)) * ld_ + column;
    for (std::int64_t j = b.end - (behind - b.first); j > b.begin; --j)
      rotate<width>(behind++, y -= ld_, x1);
    for (int c = 0; c < width; ++c) y[c] = x1[c];
  }

  // The sweeps' rotations, to the columns that were not swept.
  [[gnu::noinline]] void apply(int sweeps) {
    with_width([&]<int width>(Count<width>) {
      std::int64_t column = width;
      apply_strips<width>(column, sweeps);
      if (width == 8) apply_strips<4>(column, sweeps);
    });
  }

  template <int width>
  void apply_strips(std::int64_t& column, int sweeps) {
    for (; column + width <= round_up(n_, 4); column += width) {
      int s = 0;
      for (; s + 1 < sweeps; s += 2) apply_both<width>(column, sweeps_[s], sweeps_[s + 1]);
      if (s < sweeps) apply_to<width>(column, sweeps_[s]);
    }
  }

  // ---- order, check, writing

  [[gnu::noinline]] void rank() {
    for (std::int64_t r = 0; r < n_; ++r) {
      I count{};
      const V d = d_[r];
      for (std::int64_t j = 0; j < r; ++j) count -= d_[j] <= d;
      for (std::int64_t j = r + 1; j < n_; ++j) count -= d_[j] < d;
      reinterpret_cast<I*>(rank_)[r] = count;
    }
  }

  V weight(std::int64_t r, int probe) const {
    const I kept = reinterpret_cast<const I*>(rank_)[r] >= Int(n_ - group_.k);
    return V(I(all(group_.probes[2 * r + probe])) & kept);
  }

  // Two probes: mixed = V s, and y = A V s - V Lambda s.
  template <int rows>
  void mix(std::int64_t r, V* m0, V* m1, V* y0, V* y1) {
    V s0[rows], s1[rows], l0[rows], l1[rows];
    for (int q = 0; q < rows; ++q) {
      s0[q] = weight(r + q, 0);
      s1[q] = weight(r + q, 1);
      l0[q] = -s0[q] * d_[r + q];
      l1[q] = -s1[q] * d_[r + q];
    }
    for (std::int64_t p = 0; p < n_; ++p) {
      V a0 = m0[p], a1 = m1[p], b0 = y0[p], b1 = y1[p];
      for (int q = 0; q < rows; ++q) {
        const V x = z_[(r + q) * ld_ + p];
        a0 = fused(x, s0[q], a0);
        a1 = fused(x, s1[q], a1);
        b0 = fused(x, l0[q], b0);
        b1 = fused(x, l1[q], b1);
      }
      m0[p] = a0;
      m1[p] = a1;
      y0[p] = b0;
      y1[p] = b1;
    }
  }

  [[gnu::noinline]] void check(I bad, I open) {
    V *m0 = p_, *m1 = m0 + ld_, *y0 = m1 + ld_, *y1 = y0 + ld_;
    for (std::int64_t p = 0; p < 4 * ld_; ++p) p_[p] = V{};
    std::int64_t r = 0;
    for (; r + block <= n_; r += block) mix<block>(r, m0, m1, y0, y1);
    for (; r < n_; ++r) mix<1>(r, m0, m1, y0, y1);
    V residual{}, orthogonality{}, largest{};
    for (std::int64_t i = 0; i < n_; ++i) {
      const V u0 = m0[i], u1 = m1[i];
      V sum0 = diagonal_[i] * u0, sum1 = diagonal_[i] * u1;
      for (std::int64_t j = 0; j < i; ++j) {
        const V x = a_[i * ld_ + j];
        sum0 += x * m0[j];
        sum1 += x * m1[j];
        y0[j] += x * u0;
        y1[j] += x * u1;
      }
      y0[i] += sum0;
      y1[i] += sum1;
    }
    for (std::int64_t i = 0; i < n_; ++i) {
      residual += y0[i] * y0[i];
      residual += y1[i] * y1[i];
      largest = larger(magnitude(d_[i]), largest);
    }
    for (r = 0; r < n_; ++r) {
      const I kept = reinterpret_cast<const I*>(rank_)[r] >= Int(n_ - group_.k);
      V sum0 = -weight(r, 0), sum1 = -weight(r, 1);
      for (std::int64_t p = 0; p < n_; ++p) {
        const V x = z_[r * ld_ + p];
        sum0 += x * m0[p];
        sum1 += x * m1[p];
      }
      orthogonality += V(I(sum0 * sum0 + sum1 * sum1) & kept);
    }
    residual = square_root(residual * T(0.5));
    orthogonality = square_root(orthogonality * T(0.5));
    const T limit = T(50) * T(n_) * Traits<T>::eps;
    const I accurate = residual <= limit * largest, orthogonal = orthogonality <= limit;
    for (int l = 0; l < group_.count; ++l) {
      group_.residual[l] = residual[l];
      group_.orthogonality_error[l] = orthogonality[l];
      group_.exponent[l] = int(exponent_[l]);
      group_.status[l] = bad[l]           ? LaneStatus::not_finite
                         : open[l]        ? LaneStatus::not_converged
                         : !orthogonal[l] ? LaneStatus::not_orthogonal
                         : !accurate[l]   ? LaneStatus::not_accurate
                                          : LaneStatus::solved;
    }
  }

  [[gnu::noinline]] void write(I bad) {
    const I first = exponent_ >> 1;
    const V up = power(first), up_too = power(exponent_ - first);
    const std::int64_t dropped = n_ - group_.k;
    for (std::int64_t r = 0; r < n_; ++r) {
      const V value = d_[r] * up * up_too + T(0);
      const I beyond = (magnitude(value) - magnitude(value)) != T(0);
      const I rank = reinterpret_cast<const I*>(rank_)[r];
      T* rows[lanes];
      for (int l = 0; l < group_.count; ++l) {
        const std::int64_t place = rank[l] - dropped;
        rows[l] = nullptr;
        if (place < 0 || bad[l]) continue;
        group_.w[l][place] = value[l];
        if (beyond[l] && group_.status[l] == LaneStatus::solved)
          group_.status[l] = LaneStatus::out_of_range;
        rows[l] = group_.v[l] + place * n_;
      }
      for (int l = group_.count; l < lanes; ++l) rows[l] = nullptr;
      write_row(z_ + r * ld_, rows);
    }
  }

  void write_row(const V* z, T* const (&rows)[lanes]) const {
    for (int part = 0; part < lanes; part += half) {
      if (part >= group_.count) break;
      const T* const from = reinterpret_cast<const T*>(z) + part;
      for (std::int64_t at = 0; at < n_; at += half) {
        const std::int64_t j = n_ >= half ? least(at, n_ - half) : 0;
        typename Half::V x[half];
        unrolled(Places(), [&](auto e) {
          x[e] = *reinterpret_cast<const typename Half::Unaligned*>(from +
                                                                    least(j + e, n_ - 1) * lanes) +
                 T(0);
        });
        transpose(x);
        unrolled(Places(), [&](auto l) {
          T* const to = rows[part + l];
          if (to == nullptr) return;
          if (n_ >= half)
            *reinterpret_cast<typename Half::Unaligned*>(to + j) = x[l];
          else
            for (std::int64_t e = 0; e < n_; ++e) to[e] = x[l][e];
        });
      }
    }
  }

  const LaneGroup<T>& group_;
  const std::int64_t n_, ld_;
  V *const a_, *const z_, *const diagonal_, *const d_, *const e_, *const rank_, *const scale_,
                                                                                    *const p_;
  Rotation<V>* const rotations_;
  I* const swaps_;
  bool* const swapped_;
  I exponent_;
  Sweep sweeps_[most_sweeps];
};

template <class T, int bytes>
constexpr LaneSolver<T> solver() {
  using Solver = Lanes<T, bytes>;
  return {bytes / int(sizeof(T)), &Solver::workspace, &Solver::solve};
}

template <class T>
constexpr LaneSolvers<T> solvers() {
#if defined(__AVX512F__)
  return {{solver<T, 16>(), solver<T, 32>(), solver<T, 64>()}};
#elif defined(__AVX2__)
  return {{solver<T, 16>(), solver<T, 32>(), {}}};
#else
  return {{solver<T, 16>(), {}, {}}};
#endif
}

}  // namespace

const EighBatchKernels DESCRAMBLE_FAST_KERNELS = {solvers<float>(), solvers<double>()};

}  // namespace descramble_fast::cpu
