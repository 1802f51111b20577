#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "device.hpp"

namespace descramble_fast::cuda {

/// How many doubles of each kind a call holds on the device at a time; yet never fewer than 64
/// modes or rows, so that products stay worth their while.
struct Room {
  std::int64_t closed = std::int64_t(1) << 24;   // modes made from their closed form
  std::int64_t dense = std::int64_t(1) << 28;    // modes brought from the host: kept if they fit
  std::int64_t samples = std::int64_t(1) << 25;  // each of a few copies

  static std::int64_t rows(std::int64_t room, std::int64_t n) {
    return std::max<std::int64_t>(64, room / n);
  }
};

/// The modes of one axis as rows, a panel at a time.
class AxisModes {
 public:
  AxisModes(const Queue& queue, const ModeAxis& axis, const Room& room);

  std::int64_t size() const { return axis_.n; }

  /// body(first, count, rows): modes [first, first + count) as a (count, n) matrix on the device.
  template <class Body>
  void each_panel(std::int64_t begin, std::int64_t end, const Body& body) {
    for (std::int64_t first = begin; first < end; first += most_) {
      const std::int64_t count = std::min(most_, end - first);
      hold(first, count);
      body(first, count, static_cast<const double*>(panel_.data()));
    }
  }

 private:
  void hold(std::int64_t first, std::int64_t count);

  const Queue* queue_;
  ModeAxis axis_;
  std::int64_t most_;
  Buffer<std::int64_t> base_;
  Buffer<double> panel_;
  std::int64_t first_ = 0, count_ = 0;  // in the panel
};

/// Between rows and their coefficients, by one product for each axis; without axes, both are one.
class Transform {
 public:
  Transform(const Queue& queue, const Modes& modes, const Room& room);

  /// The leading `count` coefficients, (rows, count), of x (rows, n).
  void analyze(std::int64_t rows, const double* x, std::int64_t count, double* z);
  /// out (rows, n) = the sum of modes [first, first + count) times z (rows, count).
  void synthesize(std::int64_t rows, std::int64_t first, std::int64_t count, const double* z,
                  double* out);

 private:
  void rearrange(bool scatter, std::int64_t rows, std::int64_t first, std::int64_t count,
                 const double* from, double* to);

  const Queue* queue_;
  std::int64_t n_;
  std::vector<AxisModes> axes_;
  Buffer<std::int64_t> order_;
  bool direct_;  // one axis in its own order
  Buffer<double> work_[2];
};

/// Rows [first, first + count) as float64, less a row of numbers on the device where there is one.
void load_rows(const Queue& queue, const Strided& from, std::int64_t first, std::int64_t count,
               const double* minus, double* out);

enum class Mapping { analyze, synthesize, apply };
void map_rows(const Queue& queue, const Modes& modes, Mapping mapping, const Strided& rows,
              double* out, const Room& room = {});

struct Roughness {
  double trace, least;
};
Roughness roughness(const Queue& queue, const Modes& modes, const double* c, const Room& room = {});

}  // namespace descramble_fast::cuda
