#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// The rows of a batch that count.
struct Rows {
  /// Their numbers; empty: all of them.
  std::vector<std::int64_t> index;
  /// One weight per row that counts; empty: all 1.
  std::vector<double> weights;
  std::int64_t count = 0;
  double weight = 0;

  std::int64_t operator[](std::int64_t i) const {
    return index.empty() ? i : index[std::size_t(i)];
  }
  double weight_of(std::int64_t i) const { return weights.empty() ? 1 : weights[std::size_t(i)]; }
};

struct BatchStatistics {
  /// Mean of x - reference.
  std::vector<double> offset;
  double largest = 0;
  /// First row (in the batch) and column that hold NaN or infinity; -1: none.
  std::int64_t bad_row = -1;
  std::int64_t bad_column = -1;
};

/// Mean and finite check in one reading of the batch.
BatchStatistics statistics(const ArrayView& batch, const Rows& rows,
                           std::span<const double> reference, const Context& context);

/// One side of a product: a batch, its mean as a reference and an offset, and the shift of that
/// mean from the one seen so far, which enters as one more row of weight `shift_weight` (Chan's
/// correction).
struct Side {
  const ArrayView& batch;
  std::span<const double> reference;
  std::span<const double> offset;
  std::span<const double> shift;
};

/// Upper triangle of `scatter` += sum_i w_i (x_i - m)(x_i - m)^T + shift_weight s s^T.
void add_scatter(const Side& x, const Rows& rows, double shift_weight, Matrix<double>& scatter,
                 const Context& context);

/// scatter += sum_i w_i (x_i - m)(y_i - m')^T + shift_weight s s'^T, and the same for the diagonals
/// of the two scatters of their own.
void add_cross_scatter(const Side& x, const Side& y, const Rows& rows, double shift_weight,
                       Matrix<double>& scatter, std::span<double> squares_x,
                       std::span<double> squares_y, const Context& context);

}  // namespace descramble_fast::cpu
