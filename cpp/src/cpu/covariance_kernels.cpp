// Built once for each instruction set, with DESCRAMBLE_FAST_KERNELS naming the table. Nothing here
// may come from a header as an inline function: the linker could keep the copy of another build.
#include "cpu/covariance_kernels.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace descramble_fast::cpu {

extern const CovarianceKernels DESCRAMBLE_FAST_KERNELS;

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, tile_rows = 8;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, tile_rows = 4;
#else
constexpr int vector_bytes = 16, tile_rows = 4;
#endif

template <class T>
constexpr int lanes = vector_bytes / int(sizeof(T));

// GCC vectors; `float16lanes` and the like are as many lanes of another type.
using Floats [[gnu::vector_size(vector_bytes)]] = float;
using Doubles [[gnu::vector_size(vector_bytes)]] = double;
using Words [[gnu::vector_size(vector_bytes)]] = std::uint32_t;
using HalfFloats [[gnu::vector_size(vector_bytes / 2)]] = float;
using HalfWords [[gnu::vector_size(vector_bytes / 2)]] = std::uint16_t;  // one for each float

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class V, class T>
V load(const T* from) {
  V out;
  __builtin_memcpy(&out, from, sizeof out);
  return out;
}

template <class T, class V>
void store(T* to, const V& vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

template <class V, class T>
V broadcast(T x) {
  return x - V{};  // not x + 0, which would turn -0 into 0
}

struct DoublePair {
  Doubles low, high;
};

DoublePair widened(Floats x) {
#if defined(__AVX512F__)
  const __m512d bits = __builtin_bit_cast(__m512d, x);
  return {_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_castpd512_pd256(bits))),
          _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(bits, 1)))};
#else
  HalfFloats halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  return {__builtin_convertvector(halves[0], Doubles), __builtin_convertvector(halves[1], Doubles)};
#endif
}

void add_widened(double* to, Floats x) {
  const DoublePair wide = widened(x);
  store(to, load<Doubles>(to) + wide.low);
  store(to + lanes<double>, load<Doubles>(to + lanes<double>) + wide.high);
}

// ---- what rows are read as

struct ReadFloat {
  using Stored = float;
  using Packed = float;
  static Floats read(const float* from) { return load<Floats>(from); }
};

struct ReadDouble {
  using Stored = double;
  using Packed = double;
  static Doubles read(const double* from) { return load<Doubles>(from); }
};

struct ReadBFloat16 {
  using Stored = std::uint16_t;
  using Packed = float;
  static Floats read(const std::uint16_t* from) {
    return __builtin_bit_cast(Floats, __builtin_convertvector(load<HalfWords>(from), Words) << 16);
  }
};

struct ReadFloat16 {
  using Stored = std::uint16_t;
  using Packed = float;
  static Floats read(const std::uint16_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(load<__m128i>(from));
#else
    // The exponent's bias is 15 here and 127 there. Subnormals are read as 2^-14 + x less 2^-14,
    // which passes through no subnormal float: a caller may have told the processor to flush those.
    const Words half = __builtin_convertvector(load<HalfWords>(from), Words);
    const Words magnitude = (half & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
    const Words smallest = Words{} + (113u << 23), bias = Words{} + (112u << 23);
    const Floats subnormal =
        __builtin_bit_cast(Floats, magnitude + smallest) - __builtin_bit_cast(Floats, smallest);
    const Words other = magnitude + bias + (exponent == 0x0f800000u ? bias : Words{});
    const Words sign = (half & 0x8000u) << 16;
    const Words bits = exponent == 0 ? __builtin_bit_cast(Words, subnormal) : other;
    return __builtin_bit_cast(Floats, bits | sign);
#endif
  }
};

// ---- packing

// The rows of a task from `first` on, filled up with zeros to the end of a strip.
template <class Stored>
struct Ends {
  Stored rows[pack_rows][strip];
  const void* starts[pack_rows];

  Ends(const PackTask& task, std::int64_t first) {
    __builtin_memset(rows, 0, sizeof rows);
    for (int r = 0; r < task.count; ++r) {
      __builtin_memcpy(rows[r], static_cast<const Stored*>(task.rows[r]) + first,
                       std::size_t(task.n - first) * sizeof(Stored));
      starts[r] = rows[r];
    }
  }
};

void add_sums(double* to, Floats x) { add_widened(to, x); }
void add_sums(double* to, Doubles x) { store(to, load<Doubles>(to) + x); }

// One vector's width of columns. Sums over so few rows lose nothing worth keeping in float.
template <class Stored>
void fetch(const void* row, std::int64_t from) {
  __builtin_prefetch(static_cast<const Stored*>(row) + from, 0, 2);
}

template <class Read, bool weighted>
void pack_column(const PackTask& task, const void* const* rows, const void* const* next_rows,
                 std::int64_t from, std::int64_t column, typename Read::Packed* packed) {
  using T = typename Read::Packed;
  using V = Vector<T>;
  const V reference = load<V>(static_cast<const T*>(task.reference) + column);
  V sum{}, square{};
  [[maybe_unused]] Words bits{};
  [[maybe_unused]] V largest{};
  for (int r = 0; r < task.count; ++r) {
    const V x = Read::read(static_cast<const typename Read::Stored*>(rows[r]) + from);
    fetch<typename Read::Stored>(next_rows[r], from);
    V y = x - reference;
    if constexpr (weighted) {
      const V root = broadcast<V>(static_cast<const T*>(task.roots)[r]);
      y *= root;
      sum += root * y;
    } else {
      sum += y;
    }
    square += y * y;
    store(packed + r * strip, y);
    if constexpr (sizeof(T) == 4) {
      bits |= __builtin_bit_cast(Words, y);
    } else {
      const V magnitude = x < 0 ? -x : x;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  add_sums(task.sum + column, sum);
  add_sums(task.square + column, square);
  if constexpr (sizeof(T) == 4) {
    store(task.bits + column, load<Words>(task.bits + column) | (bits & 0x7fffffffu));
  } else {
    const V seen = load<V>(task.largest + column);
    store(task.largest + column, largest > seen ? largest : seen);
  }
}

template <class Read, bool weighted>
void pack_strips(const PackTask& task) {
  using T = typename Read::Packed;
  T* packed = static_cast<T*>(task.packed);
  const void* const* const next = task.next_rows != nullptr ? task.next_rows : task.rows;
  std::int64_t first = 0;
  for (; first + strip <= task.n; first += strip, packed += task.strip_stride)
    for (int c = 0; c < strip; c += lanes<T>)
      pack_column<Read, weighted>(task, task.rows, next, first + c, first + c, packed + c);
  if (first == task.n) return;
  const Ends<typename Read::Stored> ends(task, first);
  for (int c = 0; c < strip; c += lanes<T>)
    pack_column<Read, weighted>(task, ends.starts, ends.starts, c, first + c, packed + c);
}

template <class Read>
void pack(const PackTask& task) {
  if (task.roots != nullptr)
    pack_strips<Read, true>(task);
  else
    pack_strips<Read, false>(task);
}

// ---- products

// Rows whose products are summed in one register, and that share one flush to C. A sum of equal
// numbers in float may be off by 2^-26 for each number, so few of them go into one.
constexpr std::int64_t register_rows = 64;

struct FloatProduct {
  using Element = float;
  using Sum = Floats;
  static constexpr std::int64_t depth = register_rows;
  static Floats element(float x) { return broadcast<Floats>(x); }
  static Floats elements(const float* x) { return load<Floats>(x); }
  static Floats add(Floats sum, Floats x, Floats y) { return sum + x * y; }
};

struct DoubleProduct {
  using Element = double;
  using Sum = Doubles;
  static constexpr std::int64_t depth = std::int64_t(1) << 62;
  static Doubles element(double x) { return broadcast<Doubles>(x); }
  static Doubles elements(const double* x) { return load<Doubles>(x); }
  static Doubles add(Doubles sum, Doubles x, Doubles y) { return sum + x * y; }
};

// Of a strip that a task fetches: so much in every step, as there are `passes` over its depth.
template <class Product>
constexpr std::int64_t passes =
    (strip / tile_rows) * (strip * int(sizeof(typename Product::Element)) / vector_bytes / 2);

template <class Product, int vectors>
[[gnu::always_inline]] inline void multiply_tile(const typename Product::Element* a,
                                                 const typename Product::Element* b,
                                                 std::int64_t depth, double* c, const char* next) {
  using Sum = typename Product::Sum;
  constexpr int width = vector_bytes / int(sizeof(typename Product::Element));
  constexpr bool two_levels = Product::depth < (std::int64_t(1) << 32);
  constexpr std::int64_t fetched_bytes =
      strip * std::int64_t(sizeof(typename Product::Element)) / passes<Product>;
  constexpr int line = 64 / int(sizeof(double));
  for (int i = 0; i < tile_rows; ++i)
    for (int j = 0; j < vectors * width; j += line) __builtin_prefetch(c + i * strip + j, 1);
  Sum total[tile_rows][vectors]{};
  for (std::int64_t first = 0; first < depth;) {
    const std::int64_t last = depth - first > Product::depth ? first + Product::depth : depth;
    Sum sum[tile_rows][vectors]{};
    for (; first < last; ++first) {
      __builtin_prefetch(next + first * fetched_bytes, 0, 2);
      decltype(Product::elements(b)) right[vectors];
      for (int v = 0; v < vectors; ++v) right[v] = Product::elements(b + first * strip + v * width);
      for (int i = 0; i < tile_rows; ++i) {
        const auto left = Product::element(a[first * strip + i]);
        for (int v = 0; v < vectors; ++v) sum[i][v] = Product::add(sum[i][v], left, right[v]);
      }
    }
    for (int i = 0; i < tile_rows; ++i)
      for (int v = 0; v < vectors; ++v)
        if constexpr (two_levels)
          total[i][v] += sum[i][v];
        else
          total[i][v] = sum[i][v];
  }
  for (int i = 0; i < tile_rows; ++i)
    for (int v = 0; v < vectors; ++v) add_sums(c + i * strip + v * width, total[i][v]);
}

template <class Product>
void multiply(const BlockTask& task) {
  using Element = typename Product::Element;
  constexpr int width = vector_bytes / int(sizeof(Element));
  const auto* const a = static_cast<const Element*>(task.a);
  const auto* const b = static_cast<const Element*>(task.b);
  const auto* next = static_cast<const char*>(task.next);
  const std::int64_t fetched = task.depth * strip * std::int64_t(sizeof(Element)) / passes<Product>;
  for (int i = 0; i < strip; i += tile_rows) {
    if (task.diagonal && i >= task.columns) break;
    int j = task.diagonal ? i / width * width : 0;
    for (; j + width < task.columns; j += 2 * width, next += fetched)
      multiply_tile<Product, 2>(a + i, b + j, task.depth, task.c + i * strip + j, next);
    if (j < task.columns) {
      multiply_tile<Product, 1>(a + i, b + j, task.depth, task.c + i * strip + j, next);
      next += fetched;
    }
  }
}

// ---- pairs of bfloat16

#if defined(__AVX512BF16__)

struct PairProduct {
  using Element = std::uint32_t;
  using Sum = Floats;
  static constexpr std::int64_t depth = register_rows / 2;
  static __m512bh element(std::uint32_t x) { return (__m512bh)_mm512_set1_epi32(int(x)); }
  static __m512bh elements(const std::uint32_t* x) { return (__m512bh)_mm512_loadu_si512(x); }
  static Floats add(Floats sum, __m512bh x, __m512bh y) { return _mm512_dpbf16_ps(sum, x, y); }
};

// A strip's width of columns of all rows, two by two.
void pack_pair_strip(const PackTask& task, const void* const* rows, const void* const* next_rows,
                     std::int64_t from, std::int64_t column, std::uint32_t* packed) {
  alignas(64) static constexpr std::uint16_t low_order[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(low_order);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  Floats sum[2]{}, square[2]{};
  __m512i bits[2]{};
  for (int r = 0; r < task.count; r += 2) {
    const auto row = [&](int i) {
      return i < task.count ? _mm512_loadu_si512(static_cast<const std::uint16_t*>(rows[i]) + from)
                            : _mm512_setzero_si512();
    };
    const __m512i first = row(r), second = row(r + 1);
    fetch<std::uint16_t>(next_rows[r], from);
    fetch<std::uint16_t>(next_rows[r + 1 < task.count ? r + 1 : r], from);
    for (int h = 0; h < 2; ++h) {
      const __m512i pair = _mm512_permutex2var_epi16(first, h == 0 ? low : high, second);
      _mm512_storeu_si512(packed + r / 2 * strip + 16 * h, pair);
      sum[h] = _mm512_dpbf16_ps(sum[h], (__m512bh)pair, ones);
      square[h] = _mm512_dpbf16_ps(square[h], (__m512bh)pair, (__m512bh)pair);
      bits[h] = _mm512_or_si512(bits[h], pair);
    }
  }
  for (int h = 0; h < 2; ++h) {
    std::uint32_t* const seen = task.bits + column + 16 * h;
    add_sums(task.sum + column + 16 * h, sum[h]);
    add_sums(task.square + column + 16 * h, square[h]);
    const __m512i magnitude = _mm512_and_si512(bits[h], _mm512_set1_epi16(0x7fff));
    _mm512_storeu_si512(seen, _mm512_or_si512(_mm512_loadu_si512(seen), magnitude));
  }
}

void pack_pairs(const PackTask& task) {
  auto* packed = static_cast<std::uint32_t*>(task.packed);
  const void* const* const next = task.next_rows != nullptr ? task.next_rows : task.rows;
  std::int64_t first = 0;
  for (; first + strip <= task.n; first += strip, packed += task.strip_stride)
    pack_pair_strip(task, task.rows, next, first, first, packed);
  if (first < task.n) {
    const Ends<std::uint16_t> ends(task, first);
    pack_pair_strip(task, ends.starts, ends.starts, 0, first, packed);
  }
}

#endif

}  // namespace

const CovarianceKernels DESCRAMBLE_FAST_KERNELS{
    pack<ReadFloat16>, pack<ReadBFloat16>,     pack<ReadFloat>,
    pack<ReadDouble>,  multiply<FloatProduct>, multiply<DoubleProduct>,
#if defined(__AVX512BF16__)
    pack_pairs,        multiply<PairProduct>,
#else
    nullptr,                 nullptr,
#endif
};

}  // namespace descramble_fast::cpu
