#include "cpu/covariance.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cpu/convert.hpp"
#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr std::int64_t pack_rows = 32;
constexpr std::int64_t partial_rows = 256;
constexpr std::int64_t small_work = 1 << 16;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows that go into one product: deep enough to be bound by arithmetic, and few enough for the
// cache.
std::int64_t panel_rows(std::int64_t n) {
  return std::clamp<std::int64_t>((1 << 18) / n, 512, 8192);
}

// A function of n alone, so that every thread count does the same arithmetic.
std::int64_t tile_width(std::int64_t n) {
  return std::clamp<std::int64_t>(ceil_div(ceil_div(n, 4), 16) * 16, 48, 512);
}

// Column by column, so that the loops over a row vectorise.
struct SlabStatistics {
  std::vector<double> sum, partial, largest;
  std::int64_t bad_row = -1;

  explicit SlabStatistics(std::size_t n = 0) : sum(n, 0), partial(n, 0), largest(n, 0) {}

  void add_row(const double* x, const double* reference, double weight) {
    double* const to = partial.data();
    double* const top = largest.data();
    for (std::size_t j = 0; j < partial.size(); ++j) {
      const double magnitude = std::abs(x[j]);
      to[j] += weight * (x[j] - reference[j]);
      top[j] = top[j] < magnitude ? magnitude : top[j];
    }
  }

  // Long sums go in two levels: their error grows with the rows of a part, not of the batch. A part
  // that is not finite holds a number that is not, or numbers too large to be used.
  bool flush() {
    bool finite = true;
    for (std::size_t j = 0; j < sum.size(); ++j) {
      finite = finite && std::isfinite(partial[j]);
      sum[j] += std::exchange(partial[j], 0.0);
    }
    return finite;
  }
};

// The first entry of a row that is NaN or infinite; -1: none.
std::int64_t bad_column(const ArrayView& batch, std::int64_t row) {
  std::vector<double> x(std::size_t(batch.columns()));
  widen_row(batch, row, x.data());
  const auto bad = std::ranges::find_if(x, [](double value) { return !std::isfinite(value); });
  return bad == x.end() ? -1 : bad - x.begin();
}

void pack_row(const Side& side, std::int64_t row, double root_weight, double* out) {
  widen_row(side.batch, row, out);
  for (std::size_t j = 0; j < side.offset.size(); ++j)
    out[j] = (out[j] - side.reference[j] - side.offset[j]) * root_weight;
}

// Fills panel rows [0, ...) with batch rows [begin, end), after Chan's row where begin is 0.
std::int64_t pack_panel(const Side& side, const Rows& rows, double shift_weight, std::int64_t begin,
                        std::int64_t end, Matrix<double>& panel, int threads) {
  const std::int64_t n = panel.columns();
  const std::int64_t head = begin == 0 && shift_weight > 0 ? 1 : 0;
  if (head == 1) {
    const double root = std::sqrt(shift_weight);
    for (std::int64_t j = 0; j < n; ++j) panel(0, j) = root * side.shift[std::size_t(j)];
  }
  parallel_for(threads, ceil_div(end - begin, pack_rows), [&](std::int64_t group) {
    const std::int64_t first = begin + group * pack_rows;
    for (std::int64_t i = first; i < std::min(end, first + pack_rows); ++i)
      pack_row(side, rows[i], std::sqrt(rows.weight_of(i)), panel.row(head + i - begin));
  });
  return head + end - begin;
}

int threads_for(std::int64_t work, const Context& context) {
  return work < small_work ? 1 : threads_of(context);
}

}  // namespace

BatchStatistics statistics(const ArrayView& batch, const Rows& rows,
                           std::span<const double> reference, const Context& context) {
  const std::int64_t n = batch.columns();
  const std::int64_t slab_rows = std::max<std::int64_t>(512, ceil_div(rows.count, 64));
  const std::int64_t slabs = ceil_div(rows.count, slab_rows);
  std::vector<SlabStatistics> parts(static_cast<std::size_t>(slabs));
  parallel_for(threads_for(rows.count * n, context), slabs, [&](std::int64_t s) {
    SlabStatistics part{std::size_t(n)};
    std::vector<double> row(static_cast<std::size_t>(n));
    const std::int64_t end = std::min(rows.count, (s + 1) * slab_rows);
    for (std::int64_t first = s * slab_rows; first < end && part.bad_row < 0;
         first += partial_rows) {
      const std::int64_t last = std::min(end, first + partial_rows);
      for (std::int64_t i = first; i < last; ++i) {
        widen_row(batch, rows[i], row.data());
        part.add_row(row.data(), reference.data(), rows.weight_of(i));
      }
      if (part.flush()) continue;
      for (std::int64_t i = first; i < last && part.bad_row < 0; ++i)
        if (bad_column(batch, rows[i]) >= 0) part.bad_row = rows[i];
    }
    parts[std::size_t(s)] = std::move(part);
  });

  BatchStatistics total;
  total.offset.assign(std::size_t(n), 0);
  for (const SlabStatistics& part : parts) {
    if (part.bad_row >= 0) {
      total.bad_row = part.bad_row;
      total.bad_column = bad_column(batch, part.bad_row);
      return total;
    }
    total.largest = std::max(total.largest, std::ranges::max(part.largest));
    for (std::size_t j = 0; j < total.offset.size(); ++j) total.offset[j] += part.sum[j];
  }
  for (double& x : total.offset) x /= rows.weight;
  return total;
}

void add_scatter(const Side& x, const Rows& rows, double shift_weight, Matrix<double>& scatter,
                 const Context& context) {
  const std::int64_t n = scatter.rows();
  const std::int64_t width = tile_width(n), tiles = ceil_div(n, width);
  std::vector<std::pair<std::int64_t, std::int64_t>> upper;
  for (std::int64_t i = 0; i < tiles; ++i)
    for (std::int64_t j = i; j < tiles; ++j) upper.emplace_back(i * width, j * width);

  const int threads = threads_for(rows.count * n, context);
  const std::int64_t depth_limit = panel_rows(n);
  Matrix<double> panel(std::min(rows.count, depth_limit) + 1, n);
  const SingleBlasThread guard;
  for (std::int64_t begin = 0; begin < rows.count; begin += depth_limit) {
    const std::int64_t end = std::min(rows.count, begin + depth_limit);
    const std::int64_t depth = pack_panel(x, rows, shift_weight, begin, end, panel, threads);
    parallel_for(threads, std::int64_t(upper.size()), [&](std::int64_t t) {
      const auto [i, j] = upper[std::size_t(t)];
      const std::int64_t height = std::min(width, n - i), breadth = std::min(width, n - j);
      double* const tile = scatter.data() + i * n + j;
      if (i == j)
        syrk_upper(height, depth, panel.data() + i, n, tile, n);
      else
        gemm('T', 'N', height, breadth, depth, 1, panel.data() + i, n, panel.data() + j, n, 1, tile,
             n);
    });
  }
}

void add_cross_scatter(const Side& x, const Side& y, const Rows& rows, double shift_weight,
                       Matrix<double>& scatter, std::span<double> squares_x,
                       std::span<double> squares_y, const Context& context) {
  const std::int64_t n_x = scatter.rows(), n_y = scatter.columns();
  const std::int64_t width = tile_width(n_x);
  const int threads = threads_for(rows.count * std::max(n_x, n_y), context);
  const std::int64_t depth_limit = panel_rows(std::max(n_x, n_y));
  const std::int64_t room = std::min(rows.count, depth_limit) + 1;
  Matrix<double> panel_x(room, n_x), panel_y(room, n_y);
  const auto add_squares = [](const Matrix<double>& panel, std::int64_t depth,
                              std::span<double> squares) {
    for (std::int64_t i = 0; i < depth; ++i)
      for (std::size_t j = 0; j < squares.size(); ++j)
        squares[j] += panel(i, std::int64_t(j)) * panel(i, std::int64_t(j));
  };
  const SingleBlasThread guard;
  for (std::int64_t begin = 0; begin < rows.count; begin += depth_limit) {
    const std::int64_t end = std::min(rows.count, begin + depth_limit);
    const std::int64_t depth = pack_panel(x, rows, shift_weight, begin, end, panel_x, threads);
    pack_panel(y, rows, shift_weight, begin, end, panel_y, threads);
    add_squares(panel_x, depth, squares_x);
    add_squares(panel_y, depth, squares_y);
    parallel_for(threads, ceil_div(n_x, width), [&](std::int64_t t) {
      const std::int64_t i = t * width;
      gemm('T', 'N', std::min(width, n_x - i), n_y, depth, 1, panel_x.data() + i, n_x,
           panel_y.data(), n_y, 1, scatter.row(i), n_y);
    });
  }
}

}  // namespace descramble_fast::cpu
