#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

/// Which blocks work on which parts of a product. Host and device alike, so that it is tested
/// without a device.
namespace descramble_fast::cuda {

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
__host__ __device__ constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) {
  return ceil_div(a, b) * b;
}

/// Tiles of a matrix, or of its upper triangle with the diagonal.
struct TileGrid {
  std::int64_t rows, columns;
  bool triangular;

  __host__ __device__ std::int64_t size() const {
    return triangular ? rows * (rows + 1) / 2 : rows * columns;
  }
};

struct TilePlace {
  std::int64_t row, column;
};

/// The place of tile `index`. Bands of a few rows are gone through column by column, so that blocks
/// that run at the same time read few different columns.
__host__ __device__ inline TilePlace tile_at(const TileGrid& grid, std::int64_t index) {
  constexpr std::int64_t band = 8;
  for (std::int64_t first = 0;; first += band) {
    const std::int64_t height = grid.rows - first < band ? grid.rows - first : band;
    const std::int64_t corner = grid.triangular ? height * (height + 1) / 2 : 0;
    const std::int64_t begin = grid.triangular ? first + height : 0;
    const std::int64_t tiles = corner + height * (grid.columns - begin);
    if (index >= tiles) {
      index -= tiles;
    } else if (index >= corner) {
      index -= corner;
      return {first + index % height, begin + index / height};
    } else {
      std::int64_t column = 0;
      for (; index > column; ++column) index -= column + 1;
      return {first + index, first + column};
    }
  }
}

/// Rows of a product, divided over blocks.
struct Parts {
  std::int64_t count, rows;  // the last may have fewer
};

/// Rows that are summed in float before they are added to the scatter.
inline constexpr std::int64_t longest_run = 8192;

/// The most parts that a product may be divided into.
constexpr std::int64_t most_parts(std::int64_t tiles, std::int64_t multiprocessors) {
  return tiles >= 2 * multiprocessors ? 1 : ceil_div(4 * multiprocessors, tiles);
}

/// As many parts as keep all multiprocessors at work for the shortest time. `rows` is at most
/// longest_run * most_parts(...), and so are parts at most longest_run.
inline Parts divide_rows(std::int64_t tiles, std::int64_t rows, std::int64_t multiprocessors) {
  // What it costs to add a tile to the scatter, or to keep it for the sum of parts: a model, in
  // rows of a tile's product that take as long as that traffic.
  constexpr std::int64_t step = 64, added = 1500, kept = 750;
  Parts best{1, round_up(rows, step)};
  std::int64_t least = -1;
  for (std::int64_t parts = ceil_div(rows, longest_run);
       parts <= most_parts(tiles, multiprocessors) && (parts - 1) * step < rows; ++parts) {
    const std::int64_t part = round_up(ceil_div(rows, parts), step);
    const std::int64_t turns = ceil_div(tiles * parts, multiprocessors);
    const std::int64_t cost =
        parts == 1 ? turns * (part + added)
                   : turns * (part + kept) + ceil_div(tiles * added, multiprocessors) + added;
    if (least >= 0 && cost >= least) continue;
    least = cost;
    best = {ceil_div(rows, part), part};
  }
  return best;
}

/// The most parts of any launch, where `rows` are multiplied `at_once` at a time: what is left for
/// the last may be divided into more than the others.
inline std::int64_t parts_needed(std::int64_t tiles, std::int64_t rows, std::int64_t at_once,
                                 std::int64_t multiprocessors) {
  const std::int64_t rest = rows % at_once;
  const std::int64_t parts = divide_rows(tiles, at_once, multiprocessors).count;
  return rest == 0 ? parts : std::max(parts, divide_rows(tiles, rest, multiprocessors).count);
}

}  // namespace descramble_fast::cuda
