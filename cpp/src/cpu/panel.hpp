#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/scatter.hpp"
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

/// What rows are packed as: pairs of bfloat16 about 0, or float or double about any reference.
enum class Arithmetic { pairs, single, wide };

inline std::int64_t element_size(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::wide ? 8 : 4;
}

/// By column, over rows packed as y: sums of y and y^2, each row as often as it counts; the largest
/// |x|, in double only; and bits set in any y, otherwise.
struct Sums {
  std::vector<double> sum, square, largest;
  std::vector<std::uint32_t> bits;

  explicit Sums(std::size_t columns)
      : sum(columns, 0), square(columns, 0), largest(columns, 0), bits(columns, 0) {}

  void add(const Sums& other) {
    for (std::size_t j = 0; j < sum.size(); ++j) {
      sum[j] += other.sum[j];
      square[j] += other.square[j];
      largest[j] = std::max(largest[j], other.largest[j]);
      bits[j] |= other.bits[j];
    }
  }
};

/// Rows [begin, end) of one batch for each set of columns.
struct Source {
  std::span<const ArrayView> batches;
  const Rows& rows;
  std::span<const std::int64_t> firsts;  // padded column where a batch begins
  std::int64_t begin, end;

  std::int64_t count() const { return end - begin; }
  Source part(std::int64_t from, std::int64_t to) const {
    return {batches, rows, firsts, begin + from, std::min(end, begin + to)};
  }
};

/// Which products there are.
struct Shape {
  const Scatter& scatter;
  std::int64_t columns;            // padded, of all sets together
  std::int64_t first_right_strip;  // of the right-hand set
  std::int64_t right_columns;      // its columns

  std::int64_t blocks() const {
    std::int64_t out = 0;
    for (std::int64_t s = 0; s < scatter.column_strips(); ++s) out += scatter.row_strips(s);
    return out;
  }
};

/// Packed rows: strip after strip, and in a strip row after row.
class Packed {
 public:
  /// Makes room; what was packed is lost.
  void reset(std::int64_t rows, std::int64_t columns, Arithmetic arithmetic);

  /// The rows of the source, to `place` on, which is even. The reference is as wide as what is
  /// packed.
  void pack(const Source& source, const void* reference, std::int64_t place, Sums& sums);

  std::int64_t room() const { return data_.size(); }

  struct Block {
    std::int64_t left_strip, right_strip;
    std::int64_t begin, end;  // rows
    std::int64_t columns;
    bool diagonal;
    /// Fetched meanwhile: as many rows of a strip that will be read soon.
    std::int64_t fetched_strip, fetched_row;
  };
  /// Adds the products of two strips.
  void multiply(const Block& block, double* to) const;

 private:
  std::int64_t elements(std::int64_t rows) const {
    return arithmetic_ == Arithmetic::pairs ? (rows + 1) / 2 : rows;
  }
  std::int64_t offset(std::int64_t strip_of_columns, std::int64_t row) const {
    return element_size(arithmetic_) * (strip_of_columns * stride_ + strip * elements(row));
  }
  void pack_side(const Source& source, std::size_t side, const void* reference, std::int64_t place,
                 Sums& sums);

  std::int64_t stride_ = 0;
  Arithmetic arithmetic_ = Arithmetic::single;
  Aligned<std::byte> data_;
};

/// The rows of one step, packed, with their sums and products. Few blocks are multiplied at once,
/// in parts of the rows, while these are in cache; many, block by block, when the sums are
/// approved.
class Panel {
 public:
  Panel(const Shape& shape, std::int64_t rows);
  ~Panel();
  Panel(const Panel&) = delete;
  Panel& operator=(const Panel&) = delete;

  void pack(const Source& source, Arithmetic arithmetic, std::span<const double> reference,
            int threads);
  const Sums& sums() const { return sums_; }
  /// Fails only where a poll does, with some products added.
  void add_products(Scatter& scatter, int threads, const std::function<void()>& poll = {}) const;

 private:
  struct Group {
    std::int64_t i, j, size;
  };

  std::int64_t strips() const { return shape_.columns / strip; }
  bool in_parts() const { return parts_.size() > 0; }
  std::int64_t size() const { return std::int64_t(shape_.scatter.values().size()); }
  std::int64_t chunk() const;

  void pack_and_multiply(const Source& rows, const void* reference, double* products,
                         Sums& sums) const;
  void multiply(const Packed& packed, const Group& group, std::int64_t begin, std::int64_t end,
                std::int64_t next, double* products) const;

  Shape shape_;
  std::int64_t part_rows_ = 0, depth_ = 0;
  Arithmetic arithmetic_ = Arithmetic::single;
  Packed packed_;
  Sums sums_;
  Aligned<double> parts_;  // products of every part of the rows; empty: from what is packed
};

/// Copies a row of any strides, as it is.
void copy_row(const ArrayView& batch, std::int64_t row, std::byte* out);

}  // namespace descramble_fast::cpu
