#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half h) {
  const float sign = (h.bits & 0x8000) != 0 ? -1.0f : 1.0f;
  const int exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
  if (exponent < 31) return sign * std::ldexp(float(fraction + 1024), exponent - 25);
  return std::bit_cast<float>((std::uint32_t(h.bits & 0x8000) << 16) | 0x7f800000u |
                              (std::uint32_t(fraction) << 13));
}

inline __half __float2half_rn(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = std::uint16_t(bits >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (std::isnan(x)) return {0x7fff};
  if (size >= 65520.0f) return {std::uint16_t(sign | 0x7c00)};
  // The spacing of halves at this size; scaled by it, rounding to nearest even is nearbyint's.
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const auto steps = std::uint32_t(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {std::uint16_t(sign | (steps + (std::uint32_t(exponent + 14) << 10)))};
}

inline __half __float2half(float x) { return __float2half_rn(x); }
inline __half __ushort_as_half(unsigned short x) { return {x}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
