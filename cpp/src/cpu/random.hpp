#pragma once

#include <cstdint>

namespace descramble_fast::cpu {

/// SplitMix64 (Steele, Lea and Flood): the same numbers everywhere, unlike the distributions of the
/// standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t x = (state_ += 0x9e3779b97f4a7c15u);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  /// In [0, 1).
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  /// In [0, bound) for bounds below 2^31.
  int below(std::int64_t bound) { return int(((next() >> 32) * std::uint64_t(bound)) >> 32); }

 private:
  std::uint64_t state_;
};

}  // namespace descramble_fast::cpu
