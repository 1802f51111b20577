// Numbers, arrays and oracles that the native drills share.
#pragma once

#include <descramble_fast.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace drill {

using Index = std::int64_t;
using Numbers = std::vector<double>;

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
inline constexpr double epsilon = std::numeric_limits<double>::epsilon();

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
  std::uint64_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 11;
  }
  Index below(Index n) { return Index(bits() % std::uint64_t(n)); }
  double uniform() { return double(bits()) / 4503599627370496.0 - 1; }  // between -1 and 1

 private:
  std::uint64_t state_;
};

inline Index element_size(descramble_dtype dtype) {
  constexpr Index sizes[] = {1, 2, 2, 4, 8};
  return sizes[dtype];
}

// The nearest number with so many bits of mantissa, none below the quantum of subnormals.
inline double rounded(double x, int bits, int least_exponent, double largest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), least_exponent) - (bits - 1);
  const double out = std::ldexp(std::nearbyint(std::ldexp(x, -exponent)), exponent);
  return std::abs(out) > largest ? std::copysign(infinity, x) : out;
}

// What an array of this type keeps of a number.
inline double kept(double x, descramble_dtype dtype) {
  switch (dtype) {
    case DESCRAMBLE_BOOLEAN:
      return x != 0;
    case DESCRAMBLE_FLOAT16:
      return rounded(x, 11, -14, 65504);
    case DESCRAMBLE_BFLOAT16:
      return rounded(x, 8, -126, 0x1.fep127);
    case DESCRAMBLE_FLOAT32:
      return rounded(x, 24, -126, std::numeric_limits<float>::max());
    default:
      return x;
  }
}

inline std::uint16_t half_bits(double x) {
  const auto sign = std::uint16_t(std::signbit(x) ? 0x8000 : 0);
  if (std::isnan(x)) return 0x7e00;
  if (std::isinf(x)) return std::uint16_t(sign | 0x7c00);
  x = std::abs(x);
  if (x < 0x1p-14) return std::uint16_t(sign | std::uint16_t(std::ldexp(x, 24)));
  const int exponent = std::ilogb(x);
  const auto mantissa = std::uint16_t(std::ldexp(x, 10 - exponent));
  return std::uint16_t(sign | ((exponent + 15) << 10) | (mantissa & 0x3ff));
}

// Of a number that kept() gave.
inline void store(double x, descramble_dtype dtype, std::byte* to) {
  const auto put = [to](auto value) { std::memcpy(to, &value, sizeof value); };
  const auto narrow = float(x);
  switch (dtype) {
    case DESCRAMBLE_BOOLEAN:
      return put(std::uint8_t(x != 0));
    case DESCRAMBLE_FLOAT16:
      return put(half_bits(x));
    case DESCRAMBLE_BFLOAT16: {
      std::uint32_t bits;
      std::memcpy(&bits, &narrow, sizeof bits);
      return put(std::uint16_t(std::isnan(x) ? 0x7fc0 : bits >> 16));
    }
    case DESCRAMBLE_FLOAT32:
      return put(narrow);
    default:
      return put(x);
  }
}

// The ways in which elements lie in memory.
enum class Layout { plain, with_strides, reversed, transposed, padded, repeated_rows, count };

// An array in memory of exactly its size, so that sanitizers see what reads beyond it.
class Array {
 public:
  Array(const Numbers& numbers, std::vector<Index> shape, descramble_dtype dtype = 4,
        Layout layout = Layout::plain)
      : shape_(std::move(shape)), strides_(shape_.size()) {
    lay_out(layout);
    const Index element = element_size(dtype);
    Index low = 0, high = 0, total = 1;
    for (std::size_t i = 0; i < shape_.size(); ++i) {
      total *= shape_[i];
      (strides_[i] < 0 ? low : high) += strides_[i] * (shape_[i] - 1);
    }
    const Index bytes = total == 0 ? 0 : (high - low + 1) * element;
    memory_.reset(static_cast<std::byte*>(std::calloc(std::size_t(std::max<Index>(bytes, 16)), 1)));
    std::byte* const first = memory_.get() - (total == 0 ? 0 : low * element);
    values.resize(std::size_t(total));
    for (Index i = 0; i < total; ++i)
      store(kept(numbers[std::size_t(i) % numbers.size()], dtype), dtype,
            first + offset(i) * element);
    for (Index i = 0; i < total; ++i)  // of elements that lie upon each other the last one stays
      values[std::size_t(i)] = kept(numbers[last_at(i, layout) % numbers.size()], dtype);
    view = {first,
            dtype,
            {DESCRAMBLE_CPU, 0},
            std::int32_t(shape_.size()),
            shape_.data(),
            layout == Layout::plain ? nullptr : strides_.data()};
  }
  Array(Array&&) = default;

  descramble_array view{};
  Numbers values;  // row by row, as the library is to read them

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  void lay_out(Layout layout) {
    Index step = layout == Layout::padded ? 3 : 1;
    for (std::size_t i = shape_.size(); i-- > 0;) {
      strides_[i] = layout == Layout::reversed ? -step : step;
      step *= std::max<Index>(shape_[i], 1);
    }
    const std::size_t rank = shape_.size();
    if (layout == Layout::transposed && rank >= 2) {
      strides_[rank - 2] = 1;
      strides_[rank - 1] = std::max<Index>(shape_[rank - 2], 1);
    }
    if (layout == Layout::repeated_rows && rank >= 2) strides_[0] = 0;
  }
  Index offset(Index i) const {
    Index out = 0;
    for (std::size_t axis = shape_.size(); axis-- > 0; i /= shape_[axis])
      out += i % shape_[axis] * strides_[axis];
    return out;
  }
  std::size_t last_at(Index i, Layout layout) const {
    if (layout != Layout::repeated_rows || shape_.size() < 2) return std::size_t(i);
    const auto total = Index(values.size()), slab = total / shape_[0];
    return std::size_t(total - slab + i % slab);
  }

  std::vector<Index> shape_, strides_;
  std::unique_ptr<std::byte, Free> memory_;
};

// out = a b for (n, inner) and (inner, m), or a b^T for b of (m, inner).
inline Numbers product(const Numbers& a, const Numbers& b, Index n, Index inner, Index m,
                       bool transposed = false) {
  Numbers out(std::size_t(n * m));
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < m; ++j)
      for (Index k = 0; k < inner; ++k)
        out[std::size_t(i * m + j)] +=
            a[std::size_t(i * inner + k)] * b[std::size_t(transposed ? j * inner + k : k * m + j)];
  return out;
}

inline double largest(const Numbers& a) {
  double out = 0;
  for (const double x : a) out = std::max(out, std::isnan(x) ? infinity : std::abs(x));
  return out;
}

// The largest difference; infinity where either has NaN.
inline double difference(const Numbers& a, const Numbers& b) {
  double out = a.size() == b.size() ? 0 : infinity;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    out = std::max(out, std::isnan(a[i] - b[i]) ? infinity : std::abs(a[i] - b[i]));
  return out;
}

}  // namespace drill
