#include "covariance.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "device.hpp"
#include "mma.hpp"
#include "tiles.hpp"

namespace descramble_fast::cuda {

namespace {

// ---- what lies on the device

struct Totals {
  MomentsReport report;
  std::int64_t updates;
};

/// Sums of y = x - reference - remainder over all rows, weighted. Columns of all sets are numbered
/// one after another.
struct State {
  std::int64_t left, right;
  bool triangular;
  double *reference, *remainder, *sum, *square;
  double* scatter;  // (left, right), of which the upper triangle where triangular
  Totals* totals;

  __host__ __device__ std::int64_t first_right() const { return triangular ? 0 : left; }
  __host__ __device__ std::int64_t columns() const { return triangular ? left : left + right; }
};

enum class Route : std::int32_t {
  none,   // refused, or no row counts
  plain,  // products of the elements as they are, about 0
  split,  // of three bfloat16 numbers for each y in float32
  wide,   // float64
};

constexpr unsigned long long nowhere = ~0ull;

/// What comes of an update.
struct Decision {
  unsigned long long bad_weight, bad_entry;   // the first one: its row, its row-major number
  unsigned long long largest[2];              // by set: bits of the largest |y|
  unsigned long long about_zero, about_mean;  // bits of the columns' largest square
  int far, off_zero, leaves_range;
  unsigned blocks_done;
  Route route;
  bool moved;            // the reference
  double weight_before;  // of all earlier rows
};

/// Of one update; see Plan.
struct Workspace {
  Decision* decision;
  double *slab_sum, *slab_square, *slab_largest;  // (slabs, columns)
  double* slab_weight;
  std::int64_t* slab_count;
  double *sum, *square;        // of the batch
  double *shift, *sum_before;  // of a reference that moves: by how much, and the sum about it
  double *scale, *inverse;     // powers of two
  unsigned char* panel;
  float* partial;
};

/// Which rows count, and how much.
struct Selection {
  Strided mask, weights;
  bool masked, weighted;
};

struct Batch {
  Strided sides[2];
  int side_count;
  Selection selection;
  std::int64_t rows;
  bool wide;       // float64 on one side or the other
  bool may_plain;  // products need no more than the elements' 16 bits
};

__device__ double weight_of(const Selection& selection, std::int64_t row) {
  const Strided &mask = selection.mask, &weights = selection.weights;
  if (selection.masked && load(mask.data, mask.dtype, row_offset(mask, row)) == 0) return 0;
  if (!selection.weighted) return 1;
  return load(weights.data, weights.dtype, row_offset(weights, row));
}

__device__ bool is_weight(double w) { return w == 0 || (w >= DBL_MIN && w <= DBL_MAX); }

__device__ unsigned long long bits_of(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x));
}

/// Over the block, in one order; `room` holds one value per thread.
template <class T, class Combine>
__device__ T block_reduce(T value, T* room, const Combine& combine) {
  room[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half)
      room[threadIdx.x] = combine(room[threadIdx.x], room[threadIdx.x + half]);
    __syncthreads();
  }
  const T result = room[0];
  __syncthreads();
  return result;
}

__device__ double add(double a, double b) { return a + b; }

// ---- statistics of a batch

// Blocks of 64 columns, whose rows go to 4 lanes in turn.
constexpr int block_columns = 64, block_lanes = 4, block_threads = block_columns * block_lanes;

__global__ void begin_update(State state, Workspace work, Batch batch) {
  Decision& decision = *work.decision;
  __shared__ unsigned long long first;
  if (threadIdx.x == 0) {
    decision = {nowhere, nowhere, {}, 0, 0, 0, 0, 0, 0, Route::none, false, 0};
    first = nowhere;
  }
  if (state.totals->report.weight > 0) return;
  // In float64 the first row is a reference that is exact for constant columns; numbers of fewer
  // bits have exact sums about 0.
  for (std::int64_t begin = 0; batch.wide && begin < batch.rows; begin += blockDim.x) {
    __syncthreads();
    const std::int64_t row = begin + threadIdx.x;
    if (row < batch.rows && weight_of(batch.selection, row) > 0)
      atomicMin(&first, static_cast<unsigned long long>(row));
    __syncthreads();
    if (first != nowhere) break;
  }
  __syncthreads();
  for (std::int64_t c = threadIdx.x; c < state.columns(); c += blockDim.x) {
    double x = 0;
    if (first != nowhere) {
      const bool second = c >= state.left;
      const Strided& side = batch.sides[second ? 1 : 0];
      const std::int64_t column = second ? c - state.left : c;
      x = load(side.data, side.dtype,
               row_offset(side, std::int64_t(first)) + column * side.strides[side.rank - 1]);
    }
    state.reference[c] = isfinite(x) ? x : 0;
    state.remainder[c] = 0;
  }
}

/// Sums over slabs of rows of one side, whose columns begin at `base`. The second time only where
/// the reference has moved.
template <class T>
__global__ void __launch_bounds__(block_threads)
    statistics(State state, Workspace work, Batch batch, int side_index, std::int64_t slab_rows,
               bool again) {
  if (again && !work.decision->moved) return;
  __shared__ double weights[block_threads];
  __shared__ std::int64_t offsets[block_threads];
  __shared__ double room[3][block_threads];
  const Strided& side = batch.sides[side_index];
  const int lane = int(threadIdx.x) / block_columns;
  const std::int64_t column =
      std::int64_t(blockIdx.x) * block_columns + threadIdx.x % block_columns;
  const std::int64_t joined = (side_index == 0 ? 0 : state.left) + column;
  const bool inside = column < side.columns;
  const double reference = inside ? state.reference[joined] : 0;
  const double remainder = inside ? state.remainder[joined] : 0;
  const T* const data =
      static_cast<const T*>(side.data) + (inside ? column * side.strides[side.rank - 1] : 0);
  const bool weighs = side_index == 0 && blockIdx.x == 0 && !again;

  double sum = 0, square = 0, largest = 0, slab_weight = 0;
  std::int64_t slab_count = 0;
  unsigned long long bad = nowhere;
  const std::int64_t begin = std::int64_t(blockIdx.y) * slab_rows;
  const std::int64_t end = min(batch.rows, begin + slab_rows);
  const auto take = [&](double w, T element, std::int64_t row) {
    const double x = widen(element), y = w > 0 ? (x - reference) - remainder : 0;
    if (!isfinite(x)) bad = min(bad, static_cast<unsigned long long>(row));
    sum += w * y;
    square += (w * y) * y;
    largest = max(largest, fabs(y));
  };
  constexpr int at_once = 8;  // loads under way
  if (!batch.selection.masked && !batch.selection.weighted && side.rank <= 2) {
    if (threadIdx.x == 0) slab_weight = double(slab_count = end - begin);
    const std::int64_t stride = side.rank == 2 ? side.strides[0] : 0, step = block_lanes * stride;
    std::int64_t row = begin + lane;
    const T* at = data + row * stride;
    for (; inside && row + (at_once - 1) * block_lanes < end; row += at_once * block_lanes) {
      T elements[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k, at += step) elements[k] = *at;
#pragma unroll
      for (int k = 0; k < at_once; ++k) take(1, elements[k], row + k * block_lanes);
    }
    for (; inside && row < end; row += block_lanes, at += step) take(1, *at, row);
  } else {
    for (std::int64_t first = begin; first < end; first += block_threads) {
      __syncthreads();
      weights[threadIdx.x] = 0;
      if (const std::int64_t row = first + threadIdx.x; row < end) {
        double w = weight_of(batch.selection, row);
        if (!is_weight(w)) {
          if (weighs) atomicMin(&work.decision->bad_weight, static_cast<unsigned long long>(row));
          w = 0;
        }
        weights[threadIdx.x] = w;
        offsets[threadIdx.x] = row_offset(side, row);
        slab_weight += w;
        slab_count += w > 0;
      }
      __syncthreads();
      const int rows = int(min(std::int64_t(block_threads), end - first));
      if (!inside) continue;
      // Rows beyond the last weigh nothing.
      for (int next = lane; next < rows; next += at_once * block_lanes) {
        T elements[at_once];
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
          const int i = next + k * block_lanes;
          elements[k] = weights[i] > 0 ? data[offsets[i]] : T{};
        }
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
          const int i = next + k * block_lanes;
          take(weights[i], elements[k], first + i);
        }
      }
    }
  }
  if (bad != nowhere)
    atomicMin(&work.decision->bad_entry,
              bad * static_cast<unsigned long long>(state.columns()) + joined);

  room[0][threadIdx.x] = sum;
  room[1][threadIdx.x] = square;
  room[2][threadIdx.x] = largest;
  __syncthreads();
  if (inside && lane == 0) {
    for (int other = 1; other < block_lanes; ++other) {
      sum += room[0][threadIdx.x + other * block_columns];
      square += room[1][threadIdx.x + other * block_columns];
      largest = max(largest, room[2][threadIdx.x + other * block_columns]);
    }
    const std::int64_t at = blockIdx.y * state.columns() + joined;
    work.slab_sum[at] = sum;
    work.slab_square[at] = square;
    work.slab_largest[at] = largest;
  }
  if (!weighs) return;
  __syncthreads();
  slab_weight = block_reduce(slab_weight, weights, add);
  slab_count =
      block_reduce(slab_count, offsets, [](std::int64_t a, std::int64_t b) { return a + b; });
  if (threadIdx.x == 0) {
    work.slab_weight[blockIdx.y] = slab_weight;
    work.slab_count[blockIdx.y] = slab_count;
  }
}

// ---- what to do with it

// Mean squares in which float loses no digits to the ends of its range.
constexpr double least_square = 0x1p-90, largest_square = 0x1p100, largest_sum = 0x1p126;
// The square about the reference may exceed that about the mean by such a factor; about 0, where
// all columns' largest are compared, so as not to go to and fro.
constexpr double far_factor = 4, leave_zero_factor = 4, return_to_zero_factor = 2;
// Sums of squares of scaled numbers in float: far from its largest, further from its least.
constexpr int scaled_square_exponent = 96;

/// The largest magnitude whose squares, and those of differences, stay finite in every sum.
__device__ double largest_allowed(double total_weight) {
  return sqrt(DBL_MAX / max(1.0, total_weight)) / 8;
}

// Read what other blocks have written.
__device__ double loaded(const double& x) { return __ldcg(&x); }
__device__ unsigned long long loaded(const unsigned long long& x) { return __ldcg(&x); }
__device__ int loaded(const int& x) { return __ldcg(&x); }

__device__ void refuse(State& state, Refused why, int side, std::int64_t row, std::int64_t column,
                       double value) {
  MomentsReport& report = state.totals->report;
  if (report.refused != Refused::nothing) return;
  report.refused = why;
  report.update = state.totals->updates;
  report.side = side;
  report.row = row;
  report.column = column;
  report.value = value;
}

__device__ void decide(State& state, Decision& decision, const Batch& batch, double weight) {
  const double before = state.totals->report.weight, total = before + weight;
  decision.weight_before = before;
  if (const auto row = std::int64_t(loaded(decision.bad_weight)); row != std::int64_t(nowhere))
    return refuse(state, Refused::bad_weight, 0, row, -1, weight_of(batch.selection, row));
  if (!isfinite(total)) return refuse(state, Refused::bad_weight, 0, -1, -1, total);
  if (const auto bad = loaded(decision.bad_entry); bad != nowhere) {
    const auto columns = static_cast<unsigned long long>(state.columns());
    const std::int64_t row = std::int64_t(bad / columns), column = std::int64_t(bad % columns);
    const int side = column >= state.left;
    const Strided& a = batch.sides[side];
    const std::int64_t own = side == 0 ? column : column - state.left;
    return refuse(state, Refused::not_finite, side, row, own,
                  load(a.data, a.dtype, row_offset(a, row) + own * a.strides[a.rank - 1]));
  }
  if (!(weight > 0)) return;
  for (int side = 0; side < batch.side_count; ++side) {
    const double largest = __longlong_as_double(std::int64_t(loaded(decision.largest[side])));
    if (largest > largest_allowed(total))
      return refuse(state, Refused::overflow, side, -1, -1, largest);
  }
  const double about_zero = __longlong_as_double(std::int64_t(loaded(decision.about_zero)));
  const double about_mean = __longlong_as_double(std::int64_t(loaded(decision.about_mean)));
  const bool off_zero = loaded(decision.off_zero) != 0;
  if (batch.may_plain && loaded(decision.leaves_range) == 0 &&
      about_zero <= (off_zero ? return_to_zero_factor : leave_zero_factor) * about_mean) {
    decision.route = Route::plain;
    decision.moved = off_zero;
  } else {
    decision.route = batch.wide ? Route::wide : Route::split;
    decision.moved = loaded(decision.far) != 0;
  }
}

/// Sums about another reference; what the scatter needs to follow is kept.
__device__ void move_reference(State& state, Workspace& work, const Batch& batch, double total,
                               std::int64_t c) {
  const double before = work.decision->weight_before, sum = state.sum[c];
  const double offset = state.remainder[c] + (sum + loaded(work.sum[c])) / total;
  double reference = work.decision->route == Route::plain ? 0 : state.reference[c] + offset;
  if (!batch.wide && fabs(reference) <= FLT_MAX)
    reference = double(float(reference));  // constant columns shall give zeros
  const double shift = (state.reference[c] - reference) + state.remainder[c];
  const double moved = sum + before * shift;
  work.shift[c] = shift;
  work.sum_before[c] = sum;
  state.reference[c] = reference;
  state.remainder[c] = 0;
  state.sum[c] = moved;
  state.square[c] += sum * shift + shift * moved;
}

__device__ void take_batch(State& state, Workspace& work, std::int64_t c) {
  const double square = loaded(work.square[c]);
  state.sum[c] += loaded(work.sum[c]);
  state.square[c] += square;
  const bool scaled = work.decision->route == Route::split && square > 0;
  const int exponent = scaled ? (scaled_square_exponent - ilogb(square)) / 2 : 0;
  work.scale[c] = ldexp(1.0, exponent);
  work.inverse[c] = ldexp(1.0, -exponent);
}

constexpr int conclude_threads = 512, conclude_lanes = conclude_threads / block_columns;

/// Adds up the slabs; the block that is done last decides on the update. The second time, about a
/// reference that has moved, there is nothing left to decide.
__global__ void __launch_bounds__(conclude_threads)
    conclude(State state, Workspace work, Batch batch, std::int64_t slabs, bool again) {
  Decision& decision = *work.decision;
  if (again && !decision.moved) return;
  __shared__ double room[3 * conclude_threads];
  __shared__ bool last;
  double weight = 0;
  for (std::int64_t slab = threadIdx.x; slab < slabs; slab += blockDim.x)
    weight += work.slab_weight[slab];
  weight = block_reduce(weight, room, add);

  // The slabs go to the lanes of a column in turn.
  const std::int64_t columns = state.columns();
  const std::int64_t c = std::int64_t(blockIdx.x) * block_columns + threadIdx.x % block_columns;
  const int lane = int(threadIdx.x) / block_columns;
  double sum = 0, square = 0, largest = 0;
  if (c < columns)
#pragma unroll 4
    for (std::int64_t slab = lane; slab < slabs; slab += conclude_lanes) {
      sum += work.slab_sum[slab * columns + c];
      square += work.slab_square[slab * columns + c];
      largest = max(largest, work.slab_largest[slab * columns + c]);
    }
  double* const own = room + 3 * threadIdx.x;
  own[0] = sum, own[1] = square, own[2] = largest;
  __syncthreads();
  const bool leads = lane == 0 && c < columns;
  if (leads) {
    for (int other = 1; other < conclude_lanes; ++other) {
      const double* const from = own + 3 * other * block_columns;
      sum += from[0];
      square += from[1];
      largest = max(largest, from[2]);
    }
    work.sum[c] = sum;
    work.square[c] = square;
  } else {
    largest = 0;
  }
  __syncthreads();

  if (!again) {
    double about_mean = 0, about_zero = 0;
    bool far = false, off_zero = false, leaves_range = false;
    const double total = state.totals->report.weight + weight;
    if (leads && weight > 0) {
      const double epsilon = batch.wide ? DBL_EPSILON : FLT_EPSILON;
      const double reference = state.reference[c], origin = reference + state.remainder[c];
      const double total_sum = state.sum[c] + sum, total_square = state.square[c] + square;
      const double offset = total_sum / total, mean = origin + offset;
      about_mean = total_square - total_sum * offset;
      far = fabs(offset) > epsilon * fabs(reference) && total_square > far_factor * about_mean;
      about_mean = max(about_mean, 0.0);
      about_zero = about_mean + total * (mean * mean);
      off_zero = origin != 0;
      const double about_0 = square + origin * (2 * sum + weight * origin);
      leaves_range = about_0 != 0 && !(about_0 >= weight * least_square &&
                                       about_0 <= min(weight * largest_square, largest_sum));
    }
    const auto larger = [](double a, double b) { return max(a, b); };
    about_mean = block_reduce(about_mean, room, larger);
    about_zero = block_reduce(about_zero, room, larger);
    const bool second = !state.triangular && c >= state.left;
    const double first_largest = block_reduce(second ? 0 : largest, room, larger);
    const double second_largest = block_reduce(second ? largest : 0, room, larger);
    far = __syncthreads_or(far);
    off_zero = __syncthreads_or(off_zero);
    leaves_range = __syncthreads_or(leaves_range);
    if (threadIdx.x == 0) {
      atomicMax(&decision.about_mean, bits_of(about_mean));
      atomicMax(&decision.about_zero, bits_of(about_zero));
      atomicMax(&decision.largest[0], bits_of(first_largest));
      atomicMax(&decision.largest[1], bits_of(second_largest));
      atomicOr(&decision.far, int(far));
      atomicOr(&decision.off_zero, int(off_zero));
      atomicOr(&decision.leaves_range, int(leaves_range));
    }
  }

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&decision.blocks_done, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) {
    decision.blocks_done = 0;
    if (!again) {
      decide(state, decision, batch, weight);
      ++state.totals->updates;
    }
  }
  __syncthreads();
  if (decision.route == Route::none) return;
  const bool moves = !again && decision.moved;
  if (moves)
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x)
      move_reference(state, work, batch, decision.weight_before + weight, i);
  else
#pragma unroll 4
    for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) take_batch(state, work, i);
  if (moves || threadIdx.x != 0) return;
  std::int64_t count = 0;
  for (std::int64_t slab = 0; slab < slabs; ++slab) count += work.slab_count[slab];
  state.totals->report.count += count;
  state.totals->report.weight += weight;
}

// ---- passes over the scatter

// Blocks of entry_threads pass over squares of this side.
constexpr int square_side = 64, entry_threads = 256;

TileGrid squares_of(const State& state) {
  return {ceil_div(state.left, square_side), ceil_div(state.right, square_side), state.triangular};
}

/// Calls body(place, i, j, row and column within the square) for the block's entries.
template <class Body>
__device__ void for_each_entry(const State& state, const TileGrid& squares, const Body& body) {
  const TilePlace place = tile_at(squares, blockIdx.x);
  const int column = int(threadIdx.x) % square_side;
  const std::int64_t j = place.column * square_side + column;
  for (int row = int(threadIdx.x) / square_side; row < square_side;
       row += entry_threads / square_side) {
    const std::int64_t i = place.row * square_side + row;
    if (i < state.left && j < state.right && (!state.triangular || i <= j)) body(i, j, row, column);
  }
}

__global__ void __launch_bounds__(entry_threads)
    move_scatter(State state, TileGrid squares, Workspace work) {
  const double weight = work.decision->weight_before;
  if (!work.decision->moved || !(weight > 0)) return;
  const double *const shift = work.shift, *const sum = work.sum_before;
  const std::int64_t right = state.first_right();
  for_each_entry(state, squares, [&](std::int64_t i, std::int64_t j, int, int) {
    const double e = shift[right + j], s = sum[right + j];
    state.scatter[i * state.right + j] += sum[i] * e + shift[i] * (s + weight * e);
  });
}

// ---- products

/// The columns of all sets side by side, each set's first at a multiple of 64, in planes of equal
/// rows.
struct Panel {
  unsigned char* data;
  std::int64_t stride, rows;
};

__device__ std::uint16_t nearest_bfloat16(float x) {
  const unsigned bits = __float_as_uint(x);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr int pack_rows = 128;

/// Rows [begin, begin + panel.rows) of a side as the products want them: zeros where they do not
/// count, else the elements themselves, three bfloat16 numbers, or y sqrt(w) in float64.
template <class T, bool wide>
__global__ void __launch_bounds__(block_threads)
    pack(State state, Workspace work, Batch batch, int side_index, std::int64_t begin, Panel panel,
         std::int64_t panel_column, bool packs_plain) {
  const Route route = work.decision->route;
  if (!wide && (route == Route::none || (route == Route::plain && !packs_plain))) return;
  __shared__ double roots[pack_rows];
  __shared__ std::int64_t offsets[pack_rows];
  const Strided& side = batch.sides[side_index];
  const std::int64_t first = std::int64_t(blockIdx.y) * pack_rows;
  if (threadIdx.x < pack_rows) {
    const std::int64_t row = begin + first + threadIdx.x;
    const bool counts = first + threadIdx.x < panel.rows && route != Route::none;
    roots[threadIdx.x] = counts ? sqrt(weight_of(batch.selection, row)) : 0;
    offsets[threadIdx.x] = counts ? row_offset(side, row) : 0;
  }
  __syncthreads();
  const std::int64_t column =
      std::int64_t(blockIdx.x) * block_columns + threadIdx.x % block_columns;
  const bool inside = column < side.columns;
  const std::int64_t joined = inside ? (side_index == 0 ? 0 : state.left) + column : 0;
  const T* const data =
      static_cast<const T*>(side.data) + (inside ? column * side.strides[side.rank - 1] : 0);
  const double reference = state.reference[joined], remainder = state.remainder[joined];
  const double scale = wide ? 1 : work.scale[joined];
  const int rows = int(min(std::int64_t(pack_rows), panel.rows - first));
#pragma unroll 4
  for (int i = int(threadIdx.x) / block_columns; i < rows; i += block_lanes) {
    const std::int64_t at = (first + i) * panel.stride + panel_column + column;
    const bool counts = inside && roots[i] > 0;
    const T x = counts ? data[offsets[i]] : T{};
    const double z = counts ? roots[i] * ((double(widen(x)) - reference) - remainder) : 0;
    if constexpr (wide) {
      reinterpret_cast<double*>(panel.data)[at] = z;
    } else {
      auto* const plane = reinterpret_cast<std::uint16_t*>(panel.data);
      if (route == Route::plain) {
        if constexpr (sizeof(T) == 2) plane[at] = x.bits;
        continue;
      }
      float rest = float(z * scale);
      for (int k = 0; k < 3; ++k) {
        const std::uint16_t part = nearest_bfloat16(rest);
        plane[k * panel.rows * panel.stride + at] = part;
        rest -= widen(BFloat16{part});
      }
    }
  }
}

/// One factor: rows of contiguous 16-bit elements, 16-byte aligned, in planes that add up.
struct Operand16 {
  const std::uint16_t* data;
  std::int64_t stride, plane, columns;
};

struct Product {
  Operand16 left, right;
  TileGrid tiles;
  std::int64_t rows;
  Parts parts;
  Route route;
};

constexpr int tile = 128, product_threads = 256;
// Shared memory for some stages of both factors: 96 KiB are to be had on every device that has
// these instructions, twice that on those that multiply by warpgroups.
template <int planes>
constexpr int stage_rows = planes == 3              ? 32
                           : has_warpgroup_products ? 128
                                                    : 64;
template <int planes>
constexpr int stages = planes == 1              ? 3
                       : has_warpgroup_products ? 4
                                                : 2;
template <int planes>
constexpr int plane_size = stage_rows<planes> * tile;
template <int planes>
constexpr int factor_size = planes * plane_size<planes>;
constexpr std::size_t product_shared = 96 * 1024, warpgroup_product_shared = 2 * product_shared;
constexpr std::size_t stages_shared =
    has_warpgroup_products ? warpgroup_product_shared : product_shared;
static_assert(sizeof(std::uint16_t) * 2 * factor_size<1> * stages<1> == stages_shared);
static_assert(sizeof(std::uint16_t) * 2 * factor_size<3> * stages<3> == stages_shared);
// Of floats that wait to be added to the scatter: no two lanes of a quarter-warp share a bank.
constexpr int sums_stride = tile + 8;
static_assert(sizeof(float) * tile * sums_stride <= product_shared);

// Where eight elements lie in a plane of a stage: 64 columns after the other, in rows 128 bytes
// apart, in an order that keeps the same chunk of eight rows in different banks.
constexpr int part_columns = 64;
template <int planes>
__device__ int chunk_at(int row, int chunk) {
  constexpr int chunks = part_columns / 8;
  return (chunk / chunks * stage_rows<planes> + row) * part_columns +
         8 * (chunk % chunks ^ row % 8);
}

template <int planes>
__device__ void fetch(std::uint16_t* stage, const Operand16& from, std::int64_t column,
                      std::int64_t row, std::int64_t end) {
  constexpr int chunks = tile / 8, step = product_threads / chunks;
  static_assert(step % 8 == 0);  // the same order of chunks in all of a thread's rows
  const int first = int(threadIdx.x) / chunks, chunk = int(threadIdx.x) % chunks;
  const std::int64_t left = from.columns - (column + 8 * chunk);
  const int rows = int(min(end - row, std::int64_t(stage_rows<planes>))) - first;
  const std::uint16_t* source = from.data + (row + first) * from.stride + column + 8 * chunk;
  std::uint16_t* to = stage + chunk_at<planes>(first, chunk);
  const std::int64_t next = step * from.stride;
#pragma unroll
  for (int plane = 0; plane < planes; ++plane) {
    const std::uint16_t* at = source + plane * from.plane;
    if (left >= 8 && rows > stage_rows<planes> - step) {
#pragma unroll
      for (int r = 0; r < stage_rows<planes>; r += step, at += next)
        copy_async_16(to + plane * plane_size<planes> + r * part_columns, at, 16);
    } else {
      for (int r = 0; r < stage_rows<planes>; r += step, at += next) {
        const int valid = r >= rows || left <= 0 ? 0 : left >= 8 ? 8 : int(left);
        copy_async_16(to + plane * plane_size<planes> + r * part_columns,
                      valid > 0 ? at : from.data, 2 * valid);
      }
    }
  }
}

[[maybe_unused]] __device__ void multiply_add(BFloat16, float (&d)[4], const unsigned (&a)[4],
                                              const unsigned (&b)[2]) {
  mma_bf16(d, a, b);
}
[[maybe_unused]] __device__ void multiply_add(Float16, float (&d)[4], const unsigned (&a)[4],
                                              const unsigned (&b)[2]) {
  mma_f16(d, a, b);
}

// Rows that a warp's tensor cores sum. They cut off what they add, where float rounds, and what is
// cut off of sums of one sign adds up.
[[maybe_unused]] constexpr int cut_rows = 32;

// Which planes are multiplied: two bits for each product, from the lowest on. Of split numbers
// small products come first, so that few of them meet a large sum.
template <int planes>
constexpr unsigned products = planes == 1 ? 1 : 6;
template <int planes>
constexpr unsigned left_planes = planes == 1 ? 0 : 0b00'01'00'01'10'00;
template <int planes>
constexpr unsigned right_planes = planes == 1 ? 0 : 0b00'00'01'01'00'10;
/// sums += left^T right for cut_rows rows of a stage, from row `first` on, and this warp's 64 by 32
/// entries.
template <class Element, int planes>
__device__ void multiply_rows(const std::uint16_t* left, const std::uint16_t* right, int first,
                              float (&sums)[4][4][4]) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int left_chunk = warp % 2 * 8 + lane / 8 % 2, left_row = lane / 16 * 8 + lane % 8;
  const int right_chunk = warp / 2 * 4 + lane / 16, right_row = lane / 8 % 2 * 8 + lane % 8;
  float run[4][4][4] = {};
#pragma unroll 1
  for (unsigned product = 0; product < products<planes>; ++product) {
    const std::uint16_t* const l =
        left + (left_planes<planes> >> (2 * product) & 3) * plane_size<planes>;
    const std::uint16_t* const r =
        right + (right_planes<planes> >> (2 * product) & 3) * plane_size<planes>;
#pragma unroll
    for (int k = first; k < first + cut_rows; k += 16) {
      unsigned a[4][4], b[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m)
        ldmatrix_x4_trans(a[m], l + chunk_at<planes>(k + left_row, left_chunk + 2 * m));
#pragma unroll
      for (int n = 0; n < 2; ++n)
        ldmatrix_x4_trans(b[n], r + chunk_at<planes>(k + right_row, right_chunk + 2 * n));
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const unsigned pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          multiply_add(Element{}, run[m][n], a[m], pair);
        }
    }
  }
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] += run[m][n][i];
}

/// A block's tile of left^T right over its part of the rows, left in shared memory.
template <class Element, int planes, class Start>
__device__ void sum_by_warps(std::uint16_t* shared, bool diagonal, int count, const Start& start) {
  for (int stage = 0; stage < stages<planes> - 1; ++stage) start(stage);
  float sums[4][4][4] = {};
  for (int stage = 0; stage < count; ++stage) {
    copy_async_wait<stages<planes> - 2>();
    __syncthreads();  // all have this stage, and are done with the one before
    start(stage + stages<planes> - 1);
    const std::uint16_t* const left = shared + stage % stages<planes> * 2 * factor_size<planes>;
    const std::uint16_t* const right = diagonal ? left : left + factor_size<planes>;
#pragma unroll 1
    for (int first = 0; first < stage_rows<planes>; first += cut_rows)
      multiply_rows<Element, planes>(left, right, first, sums);
  }
  copy_async_wait<0>();
  __syncthreads();
  auto* const tile_sums = reinterpret_cast<float*>(shared);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp % 2 * 64 + m * 16 + lane / 4 + half * 8;
        const int column = warp / 2 * 32 + n * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(tile_sums + row * sums_stride + column) =
            make_float2(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
      }
}

#ifdef __CUDACC__
/// The same by two warpgroups, 64 rows of the tile each. Tensor cores sum half a stage; meanwhile
/// the other half's sums are added to those of all.
template <class Element, int planes, class Start>
__device__ void sum_by_warpgroups(std::uint16_t* shared, bool diagonal, int count,
                                  const Start& start) {
  constexpr int half = stage_rows<planes> / 2;
  constexpr unsigned next_columns = stage_rows<planes> * part_columns * sizeof(std::uint16_t);
  const int group = int(threadIdx.x) / 128;
  for (int stage = 0; stage < stages<planes> - 1; ++stage) start(stage);
  float sums[64] = {};
  for (int stage = 0; stage < count; ++stage) {
    copy_async_wait<stages<planes> - 2>();
    show_to_warpgroups();
    __syncthreads();  // all have this stage, and are done with the one before
    const std::uint16_t* const left = shared + stage % stages<planes> * 2 * factor_size<planes>;
    const std::uint16_t* const right = diagonal ? left : left + factor_size<planes>;
    const std::uint64_t a = factor_at(left + group * stage_rows<planes> * part_columns, 0);
    const std::uint64_t b = factor_at(right, next_columns);
    const auto multiply = [&](float(&run)[64], int first) {
#pragma unroll
      for (unsigned product = 0; product < products<planes>; ++product)
#pragma unroll
        for (int k = first; k < first + half; k += 16) {
          const int l = int(left_planes<planes> >> (2 * product) & 3) * plane_size<planes>;
          const int r = int(right_planes<planes> >> (2 * product) & 3) * plane_size<planes>;
          constexpr int step = 16 / sizeof(std::uint16_t);  // what an address counts
          warpgroup_mma<Element>(run, a + (l + k * part_columns) / step,
                                 b + (r + k * part_columns) / step, product > 0 || k > first);
        }
      warpgroup_commit();
    };
    float first[64], second[64];
    warpgroup_begin();
    multiply(first, 0);
    multiply(second, half);
    start(stage + stages<planes> - 1);
    warpgroup_wait<1>();
    hold(first);
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[i] += first[i];
    warpgroup_wait<0>();
    hold(second);
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[i] += second[i];
  }
  copy_async_wait<0>();
  __syncthreads();
  auto* const tile_sums = reinterpret_cast<float*>(shared);
  const int warp = int(threadIdx.x) / 32 % 4, lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 64; i += 2) {
    const int row = group * 64 + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    *reinterpret_cast<float2*>(tile_sums + row * sums_stride + i / 4 * 8 + lane % 4 * 2) =
        make_float2(sums[i], sums[i + 1]);
  }
}
#endif

__device__ bool is_entry(const State& state, std::int64_t i, std::int64_t j) {
  return i < state.left && j < state.right && (!state.triangular || i <= j);
}

/// A block's tile of left^T right over its part of the rows, added to the scatter, or kept where
/// there are several parts.
template <class Element, int planes>
__global__ void __launch_bounds__(product_threads, 1)
    multiply_tiles(State state, Workspace work, Product product) {
  if (work.decision->route != product.route) return;
  auto* const shared = reinterpret_cast<std::uint16_t*>(dynamic_shared());
  const TilePlace place = tile_at(product.tiles, blockIdx.x);
  const std::int64_t left_column = place.row * tile, right_column = place.column * tile;
  const bool diagonal = product.tiles.triangular && place.row == place.column;
  const std::int64_t begin = blockIdx.y * product.parts.rows;
  const std::int64_t end = min(product.rows, begin + product.parts.rows);
  const int count = int(ceil_div(end - begin, stage_rows<planes>));

  const auto start = [&](int stage) {
    if (stage < count) {
      std::uint16_t* const to = shared + stage % stages<planes> * 2 * factor_size<planes>;
      const std::int64_t row = begin + std::int64_t(stage) * stage_rows<planes>;
      fetch<planes>(to, product.left, left_column, row, end);
      if (!diagonal) fetch<planes>(to + factor_size<planes>, product.right, right_column, row, end);
    }
    copy_async_commit();
  };
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  sum_by_warpgroups<Element, planes>(shared, diagonal, count, start);
#else
  sum_by_warps<Element, planes>(shared, diagonal, count, start);
#endif
  __syncthreads();
  const auto* const tile_sums = reinterpret_cast<const float*>(shared);
  constexpr int lines = product_threads / tile;
  const int line = int(threadIdx.x) / tile, column = int(threadIdx.x) % tile;
  if (product.parts.count > 1) {
    float* const kept =
        work.partial + (blockIdx.y * product.tiles.size() + blockIdx.x) * (tile * tile);
#pragma unroll 8
    for (int row = line; row < tile; row += lines)
      kept[row * tile + column] = tile_sums[row * sums_stride + column];
    return;
  }
  // Several loads before the stores, which hold back what is loaded after them.
  constexpr int at_once = 16;
  const std::int64_t j = right_column + column;
  const double inverse = j < state.right ? work.inverse[state.first_right() + j] : 0;
  for (int first = line; first < tile; first += at_once * lines) {
    double entries[at_once] = {};
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int row = first + k * lines;
      const std::int64_t i = left_column + row;
      const double sum = tile_sums[row * sums_stride + column];
      if (is_entry(state, i, j))
        entries[k] = state.scatter[i * state.right + j] + (sum * work.inverse[i]) * inverse;
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const std::int64_t i = left_column + first + k * lines;
      if (is_entry(state, i, j)) state.scatter[i * state.right + j] = entries[k];
    }
  }
}

/// The parts' sums, in their order.
__global__ void __launch_bounds__(entry_threads)
    add_parts(State state, Workspace work, Product product) {
  if (work.decision->route != product.route) return;
  const TilePlace place = tile_at(product.tiles, blockIdx.x);
  const int at = int(blockIdx.y * entry_threads + threadIdx.x);
  const std::int64_t i = place.row * tile + at / tile, j = place.column * tile + at % tile;
  if (!is_entry(state, i, j)) return;
  const float* const kept = work.partial + std::int64_t(blockIdx.x) * (tile * tile) + at;
  double sum = 0;
  for (std::int64_t part = 0; part < product.parts.count; ++part)
    sum += kept[part * product.tiles.size() * (tile * tile)];
  state.scatter[i * state.right + j] +=
      (sum * work.inverse[i]) * work.inverse[state.first_right() + j];
}

// ---- an update, on the host

/// How an update is carried out, and the device memory that it takes meanwhile.
struct Plan {
  TileGrid tiles;
  std::int64_t multiprocessors;
  std::size_t product_shared = descramble_fast::cuda::product_shared;
  std::int64_t slab_rows, slabs;
  std::int64_t second_column, stride;  // of the panel, in elements
  std::int64_t rows, panel_rows, direct_rows;
  std::int64_t bytes = 0;
  Workspace work{};
};

constexpr int planes_of_split = 3;
constexpr std::int64_t panel_bytes = std::int64_t(1) << 28;

// The workspace's arrays one after another, at 256-byte boundaries, from `base` on.
void lay_out(Plan& plan, const State& state, bool wide, unsigned char* base) {
  plan.bytes = 0;
  const auto take = [&]<class T>(T*& array, std::int64_t count) {
    array = reinterpret_cast<T*>(base + plan.bytes);
    plan.bytes += round_up(count * std::int64_t(sizeof(T)), 256);
  };
  Workspace& work = plan.work;
  const std::int64_t columns = state.columns();
  take(work.decision, 1);
  for (double** array : {&work.slab_sum, &work.slab_square, &work.slab_largest})
    take(*array, plan.slabs * columns);
  take(work.slab_weight, plan.slabs);
  take(work.slab_count, plan.slabs);
  for (double** array :
       {&work.sum, &work.square, &work.shift, &work.sum_before, &work.scale, &work.inverse})
    take(*array, columns);
  const std::int64_t element = wide ? sizeof(double) : planes_of_split * sizeof(std::uint16_t);
  take(work.panel, plan.panel_rows * plan.stride * element);
  std::int64_t parts = 1;
  for (const std::int64_t at_once : {plan.panel_rows, plan.direct_rows})
    parts =
        std::max(parts, parts_needed(plan.tiles.size(), plan.rows, at_once, plan.multiprocessors));
  take(work.partial, wide || parts == 1 ? 0 : parts * plan.tiles.size() * tile * tile);
}

Plan plan_update(const State& state, std::int64_t rows, bool wide, int multiprocessors,
                 std::int64_t most_rows = std::numeric_limits<std::int64_t>::max()) {
  Plan plan{};
  plan.tiles = {ceil_div(state.left, tile), ceil_div(state.right, tile), state.triangular};
  plan.multiprocessors = multiprocessors;
  const std::int64_t groups = ceil_div(state.columns(), block_columns);
  const std::int64_t slabs = std::clamp<std::int64_t>(1024 / groups, 1, 512);
  plan.slab_rows = round_up(ceil_div(rows, slabs), block_columns);
  plan.slabs = ceil_div(rows, plan.slab_rows);
  plan.second_column = round_up(state.left, block_columns);
  plan.stride = plan.second_column + (state.triangular ? 0 : round_up(state.right, block_columns));
  plan.rows = rows;
  plan.direct_rows = std::min(
      {rows, most_rows, longest_run * most_parts(plan.tiles.size(), plan.multiprocessors)});
  const std::int64_t row_bytes = plan.stride * (wide ? 8 : 6);
  plan.panel_rows =
      std::min(plan.direct_rows, std::max<std::int64_t>(panel_bytes / row_bytes / 64 * 64, 1024));
  lay_out(plan, state, wide, nullptr);
  return plan;
}

template <class Body>
void with_element(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float16:
      return body(Float16{});
    case DType::bfloat16:
      return body(BFloat16{});
    case DType::float32:
      return body(float{});
    default:
      return body(double{});
  }
}

// Axes of rows that follow each other in memory become one, which spares divisions.
Strided with_few_axes(Strided a) {
  int kept = 0;
  for (int axis = 0; axis + 1 < a.rank; ++axis) {
    if (a.shape[axis] == 1) continue;
    if (kept > 0 && a.strides[kept - 1] == a.shape[axis] * a.strides[axis]) {
      a.shape[kept - 1] *= a.shape[axis];
      a.strides[kept - 1] = a.strides[axis];
    } else {
      a.shape[kept] = a.shape[axis];
      a.strides[kept++] = a.strides[axis];
    }
  }
  a.shape[kept] = a.shape[a.rank - 1];
  a.strides[kept] = a.strides[a.rank - 1];
  a.rank = kept + 1;
  return a;
}

// One entry per row.
Strided selector(const ArrayView& view) {
  Strided a = strided(view);
  a.rows *= a.columns;
  a.columns = 1;
  a.shape[a.rank] = 1;
  a.strides[a.rank++] = 1;
  return with_few_axes(a);
}

bool is_narrowest(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// Whether rows can be copied to shared memory as they are.
bool is_aligned(const Strided& a) {
  return a.rank <= 2 && a.strides[a.rank - 1] == 1 && (a.rank == 1 || a.strides[0] % 8 == 0) &&
         reinterpret_cast<std::uintptr_t>(a.data) % 16 == 0;
}

Operand16 rows_from(const Strided& a, std::int64_t begin) {
  const std::int64_t stride = a.rank == 2 ? a.strides[0] : 0;
  return {static_cast<const std::uint16_t*>(a.data) + begin * stride, stride, 0, a.columns};
}

void launch_product(const Queue& queue, const State& state, const Plan& plan, Route route,
                    const Operand16& left, const Operand16& right, std::int64_t rows,
                    DType element) {
  const Parts parts = divide_rows(plan.tiles.size(), rows, plan.multiprocessors);
  const Product product{left, right, plan.tiles, rows, parts, route};
  const unsigned tiles = unsigned(product.tiles.size());
  const auto kernel = route == Route::split       ? multiply_tiles<BFloat16, planes_of_split>
                      : element == DType::float16 ? multiply_tiles<Float16, 1>
                                                  : multiply_tiles<BFloat16, 1>;
  launch(queue, dim3(tiles, unsigned(parts.count)), product_threads, plan.product_shared, kernel,
         state, plan.work, product);
  if (parts.count > 1)
    launch(queue, dim3(tiles, tile * tile / entry_threads), entry_threads, 0, add_parts, state,
           plan.work, product);
}

void multiply_wide(const Queue& queue, const State& state, const Plan& plan, std::int64_t rows) {
  // cuBLAS divides rows among processors in a general product, but not in one triangle. (What is
  // written to the other is not read.)
  constexpr std::int64_t narrow = 1024;
  const auto* const panel = reinterpret_cast<const double*>(plan.work.panel);
  if (!state.triangular || state.left < narrow)
    return multiply(queue, state.left, state.right, rows, 1, {panel, plan.stride, true},
                    {panel + (state.triangular ? 0 : plan.second_column), plan.stride}, 1,
                    state.scatter, state.right);
  const Blas blas(queue);
  const double one = 1;  // the upper triangle is the lower one in columns
  check(cublasDsyrk_64(blas.get(), CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, state.left, rows, &one,
                       panel, plan.stride, &one, state.scatter, state.right),
        "cublasDsyrk");
}

/// `whole` is false while only a part of it is queued.
void update(const Queue& queue, const State& state, Plan plan, const Batch& batch, bool& whole) {
  const Buffer<unsigned char> memory(plan.bytes, queue);
  lay_out(plan, state, batch.wide, memory.data());
  const Workspace& work = plan.work;
  // The handle of multiply_wide may not be granted: asked for before anything changes.
  if (batch.wide) Blas{queue};
  whole = false;

  launch(queue, 1, 256, 0, begin_update, state, work, batch);
  for (const bool again : {false, true}) {
    for (int side = 0; side < batch.side_count; ++side)
      with_element(batch.sides[side].dtype, [&](auto element) {
        launch(queue,
               dim3(blocks_for(batch.sides[side].columns, block_columns), unsigned(plan.slabs)),
               block_threads, 0, statistics<decltype(element)>, state, work, batch, side,
               plan.slab_rows, again);
      });
    launch(queue, blocks_for(state.columns(), block_columns), conclude_threads, 0, conclude, state,
           work, batch, plan.slabs, again);
  }
  const TileGrid squares = squares_of(state);
  launch(queue, unsigned(squares.size()), entry_threads, 0, move_scatter, state, squares, work);

  const Strided &left = batch.sides[0], &right = batch.sides[batch.side_count - 1];
  const bool direct =
      batch.may_plain && !batch.selection.masked && is_aligned(left) && is_aligned(right);
  if (direct)
    for (std::int64_t begin = 0; begin < batch.rows; begin += plan.direct_rows) {
      launch_product(queue, state, plan, Route::plain, rows_from(left, begin),
                     rows_from(right, begin), std::min(plan.direct_rows, batch.rows - begin),
                     left.dtype);
    }
  for (std::int64_t begin = 0; begin < batch.rows; begin += plan.panel_rows) {
    const Panel panel{work.panel, plan.stride, std::min(plan.panel_rows, batch.rows - begin)};
    for (int side = 0; side < batch.side_count; ++side)
      with_element(batch.sides[side].dtype, [&](auto element) {
        using T = decltype(element);
        const dim3 grid(blocks_for(batch.sides[side].columns, block_columns),
                        blocks_for(panel.rows, pack_rows));
        launch(queue, grid, block_threads, 0, batch.wide ? pack<T, true> : pack<T, false>, state,
               work, batch, side, begin, panel, side == 0 ? 0 : plan.second_column, !direct);
      });
    if (batch.wide) {
      multiply_wide(queue, state, plan, panel.rows);
      continue;
    }
    const auto* const packed = reinterpret_cast<const std::uint16_t*>(work.panel);
    const std::int64_t plane = panel.rows * panel.stride;
    const std::int64_t second = state.triangular ? 0 : plan.second_column;
    const Operand16 x{packed, panel.stride, plane, plan.second_column};
    const Operand16 y{packed + second, panel.stride, plane, panel.stride - second};
    if (batch.may_plain && !direct)
      launch_product(queue, state, plan, Route::plain, x, y, panel.rows, left.dtype);
    launch_product(queue, state, plan, Route::split, x, y, panel.rows, left.dtype);
  }
  whole = true;
}

// ---- reading and merging

__device__ double about_mean(const State& state, double weight, std::int64_t i, std::int64_t j) {
  if (state.triangular && i == j)  // the sums of squares are the more exact
    return state.square[i] - state.sum[i] * (state.sum[i] / weight);
  const std::int64_t right = state.first_right() + j;
  return state.scatter[i * state.right + j] - state.sum[i] * (state.sum[right] / weight);
}

__device__ double mean_at(const State& state, double weight, std::int64_t c) {
  return state.reference[c] + (state.remainder[c] + state.sum[c] / weight);
}

__global__ void __launch_bounds__(entry_threads)
    read_scatter(State state, TileGrid squares, double divisor, bool centred, double* out) {
  __shared__ double square[square_side][square_side + 1];
  const double weight = state.totals->report.weight;
  for_each_entry(state, squares, [&](std::int64_t i, std::int64_t j, int row, int column) {
    double x = about_mean(state, weight, i, j) / divisor;
    if (!centred) x += mean_at(state, weight, i) * mean_at(state, weight, state.first_right() + j);
    out[i * state.right + j] = x;
    square[column][row] = x;
  });
  if (!state.triangular) return;
  __syncthreads();
  const TilePlace place = tile_at(squares, blockIdx.x);
  const int column = int(threadIdx.x) % square_side;
  const std::int64_t j = place.row * square_side + column;
  for (int row = int(threadIdx.x) / square_side; row < square_side;
       row += entry_threads / square_side) {
    const std::int64_t i = place.column * square_side + row;
    if (i < state.left && j < i) out[i * state.right + j] = square[row][column];
  }
}

__global__ void __launch_bounds__(entry_threads)
    read_correlation(State state, TileGrid squares, double* out) {
  const double weight = state.totals->report.weight;
  const auto deviation = [&](std::int64_t c) {
    // Rounding may leave a constant feature a square below zero.
    return sqrt(max(0.0, state.square[c] - state.sum[c] * (state.sum[c] / weight)));
  };
  for_each_entry(state, squares, [&](std::int64_t i, std::int64_t j, int, int) {
    const double scale = deviation(i) * deviation(state.first_right() + j);
    const double x = about_mean(state, weight, i, j) / scale;
    out[i * state.right + j] = scale > 0 ? max(-1.0, min(1.0, x)) : 0;
  });
}

// As on the CPU: rows that come later still have room.
constexpr double most_made = std::numeric_limits<double>::max() / 8;

/// Sums of two accumulators about the reference of the heavier one.
struct Merged {
  double *reference, *remainder, *sum, *square;
  double *shift, *other_shift;  // of their references
  int* overflows;
};

__global__ void merge_columns(State state, State other, Merged merged) {
  const std::int64_t c = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= state.columns()) return;
  const double weight = state.totals->report.weight, other_weight = other.totals->report.weight;
  const State& heavier = other_weight > weight ? other : state;
  const double reference = heavier.reference[c], remainder = heavier.remainder[c];
  double total_sum = 0, total_square = 0;
  const auto move = [&](const State& from, double from_weight, double& shift) {
    shift = (from.reference[c] - reference) + (from.remainder[c] - remainder);
    const double sum = from.sum[c], moved = sum + from_weight * shift;
    total_sum += moved;
    total_square += from.square[c] + (sum * shift + shift * moved);
  };
  move(state, weight, merged.shift[c]);
  move(other, other_weight, merged.other_shift[c]);
  merged.reference[c] = reference;
  merged.remainder[c] = remainder;
  merged.sum[c] = total_sum;
  merged.square[c] = total_square;
  const double total = weight + other_weight, mean = reference + (remainder + total_sum / total);
  if (!(total_square <= most_made && total * mean * mean <= most_made))
    atomicOr(merged.overflows, 1);
}

/// Or only looks whether an entry overflows.
template <bool look>
__global__ void __launch_bounds__(entry_threads)
    merge_scatter(State state, State other, TileGrid squares, Merged merged) {
  const std::int64_t right = state.first_right();
  const auto moved = [&](const State& from, const double* shift, std::int64_t i, std::int64_t j) {
    const double e = shift[right + j], s = from.sum[right + j];
    return from.scatter[i * state.right + j] +
           (from.sum[i] * e + shift[i] * (s + from.totals->report.weight * e));
  };
  for_each_entry(state, squares, [&](std::int64_t i, std::int64_t j, int, int) {
    const double sum = moved(state, merged.shift, i, j) + moved(other, merged.other_shift, i, j);
    if constexpr (!look)
      state.scatter[i * state.right + j] = sum;
    else if (!(fabs(sum) <= most_made))
      atomicOr(merged.overflows, 1);
  });
}

__global__ void take_merged(State state, Merged merged, std::int64_t count, double weight) {
  const std::int64_t c = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c == 0) {
    state.totals->report.count = count;
    state.totals->report.weight = weight;
  }
  if (c >= state.columns()) return;
  state.reference[c] = merged.reference[c];
  state.remainder[c] = merged.remainder[c];
  state.sum[c] = merged.sum[c];
  state.square[c] = merged.square[c];
}

__global__ void assume_columns(State state, std::int64_t count, double weight) {
  const std::int64_t c = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c == 0) {
    state.totals->report.count = count;
    state.totals->report.weight = weight;
  }
  if (c >= state.columns()) return;
  state.sum[c] = 0;
  state.square[c] = state.scatter[c * state.right + c];
}

constexpr int column_threads = 256;

// ---- owners

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreeHost {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};

std::int64_t scatter_bytes(const MomentsShape& shape) {
  return shape.n_x * (shape.n_y == 0 ? shape.n_x : shape.n_y) * std::int64_t(sizeof(double));
}

// Of reference, remainder, sum and square, and the totals.
std::int64_t column_bytes(const MomentsShape& shape) {
  return 4 * (shape.n_x + shape.n_y) * std::int64_t(sizeof(double)) + std::int64_t(sizeof(Totals));
}

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
int multiprocessors_of(int device) { return attribute_of(device, cudaDevAttrMultiProcessorCount); }
std::size_t product_shared_of(int device) {
  const bool much = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin) >=
                    int(warpgroup_product_shared);
  return much ? warpgroup_product_shared : product_shared;
}

State shape_of(const MomentsShape& shape) {
  State state{};
  state.left = shape.n_x;
  state.triangular = shape.n_y == 0;
  state.right = state.triangular ? shape.n_x : shape.n_y;
  return state;
}

}  // namespace

struct Moments {
  explicit Moments(const MomentsShape& shape);

  /// A stream of its own, on which what follows waits for all that was done to the moments.
  Queue own_queue() const {
    const Queue queue{device, stream.get()};
    wait_on(queue);
    return queue;
  }
  void wait_on(const Queue& queue) const {
    if (!whole)
      throw Error(Fault::backend,
                  "an update of these moments failed halfway, and left them without meaning");
    check(cudaStreamWaitEvent(stream_of(queue), used.get(), 0), "cudaStreamWaitEvent");
  }
  /// Whatever waits from now on waits for what is on the queue. (The caller's stream need not live
  /// on.)
  void used_on(const Queue& queue) const {
    check(cudaEventRecord(used.get(), stream_of(queue)), "cudaEventRecord");
  }

  int device, multiprocessors;
  std::size_t product_shared;
  std::unique_ptr<void, FreeDevice> columns, device_scatter;
  std::unique_ptr<void, FreeHost> host_scatter;
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream> stream;
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent> used;
  State state;
  bool whole = true;
  bool given = false;  // from elsewhere: moments that may be those of no samples
};

Moments::Moments(const MomentsShape& shape)
    : device(shape.device),
      multiprocessors(multiprocessors_of(device)),
      product_shared(product_shared_of(device)),
      state(shape_of(shape)) {
  const auto granted = [&](cudaError_t status, const char* call, const char* whose,
                           std::int64_t bytes) {
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw Error(Fault::out_of_memory, message(whose, " would not grant ", bytes, " bytes"));
    }
    check(status, call);
  };
  const std::string name = message("cuda:", device);
  void* memory = nullptr;
  const std::int64_t bytes = scatter_bytes(shape), rest = column_bytes(shape);
  if (shape.offload) {
    granted(cudaHostAlloc(&memory, std::size_t(bytes), cudaHostAllocMapped | cudaHostAllocPortable),
            "cudaHostAlloc", "the host", bytes);
    host_scatter.reset(memory);
    std::memset(memory, 0, std::size_t(bytes));
    check(cudaHostGetDevicePointer(&memory, host_scatter.get(), 0), "cudaHostGetDevicePointer");
  } else {
    granted(cudaMalloc(&memory, std::size_t(bytes)), "cudaMalloc", name.c_str(), bytes);
    device_scatter.reset(memory);
  }
  state.scatter = static_cast<double*>(memory);
  granted(cudaMalloc(&memory, std::size_t(rest)), "cudaMalloc", name.c_str(), rest);
  columns.reset(memory);
  auto* next = static_cast<double*>(memory);
  for (double** array : {&state.reference, &state.remainder, &state.sum, &state.square}) {
    *array = next;
    next += state.columns();
  }
  state.totals = reinterpret_cast<Totals*>(next);

  cudaStream_t own = nullptr;
  check(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream.reset(own);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  used.reset(event);
  check(cudaMemsetAsync(columns.get(), 0, std::size_t(rest), own), "cudaMemsetAsync");
  if (device_scatter)
    check(cudaMemsetAsync(device_scatter.get(), 0, std::size_t(bytes), own), "cudaMemsetAsync");
  used_on({device, own});
}

bool moments_create(const MomentsShape* shape, Moments** out, Failure* failure) {
  return guarded(shape->device, failure, [&] { *out = new Moments(*shape); });
}

void moments_destroy(Moments* moments) {
  Failure ignored;  // at exit the driver may be gone, and the memory with it
  guarded(moments->device, &ignored, [&] {
    check(cudaEventSynchronize(moments->used.get()), "cudaEventSynchronize");
    delete moments;
  });
}

// The state: four numbers per column, the totals, and the scatter (n_x, n_x or n_y) unless it is
// offloaded. An update: 24 bytes per slab and column (at most 512 slabs, and some 65,536 pairs in
// all), 48 per column, a panel of up to 256 MiB or 1024 rows (6 bytes per element, 8 in float64, of
// columns rounded up to 64), and 64 KiB for each part of a tile where rows are divided; and what
// cuBLAS keeps for itself.
std::int64_t moments_memory(const MomentsShape* shape, std::int64_t rows, DType dtype) {
  int multiprocessors = 0;
  Failure ignored;
  guarded(&ignored, [&] { multiprocessors = multiprocessors_of(shape->device); });
  const State state = shape_of(*shape);
  const std::int64_t kept = column_bytes(*shape) + (shape->offload ? 0 : scatter_bytes(*shape));
  return rows == 0 ? kept
                   : kept + plan_update(state, rows, dtype == DType::float64,
                                        std::max(1, multiprocessors))
                                .bytes;
}

void add_rows(Moments& moments, const Queue& queue, const ArrayView* batches, const ArrayView* mask,
              const ArrayView* weights, std::int64_t most_rows) {
  const State& state = moments.state;
  Batch batch{};
  batch.side_count = state.triangular ? 1 : 2;
  batch.may_plain =
      weights == nullptr && batches[0].dtype() == batches[batch.side_count - 1].dtype();
  for (int side = 0; side < batch.side_count; ++side) {
    batch.sides[side] = with_few_axes(strided(batches[side]));
    batch.wide = batch.wide || batches[side].dtype() == DType::float64;
    batch.may_plain = batch.may_plain && is_narrowest(batches[side].dtype());
  }
  batch.rows = batch.sides[0].rows;
  if (batch.rows == 0) return;
  if (mask != nullptr) batch.selection.mask = selector(*mask);
  if (weights != nullptr) batch.selection.weights = selector(*weights);
  batch.selection.masked = mask != nullptr;
  batch.selection.weighted = weights != nullptr;
  Plan plan = plan_update(state, batch.rows, batch.wide, moments.multiprocessors, most_rows);
  plan.product_shared = moments.product_shared;
  moments.wait_on(queue);
  update(queue, state, plan, batch, moments.whole);
  moments.used_on(queue);
}

bool moments_add(Moments* moments, const Queue* queue, const ArrayView* batches,
                 const ArrayView* mask, const ArrayView* weights, Failure* failure) {
  return guarded(moments->device, failure, [&] {
    add_rows(*moments, *queue, batches, mask, weights, std::numeric_limits<std::int64_t>::max());
  });
}

bool moments_report(Moments* moments, MomentsReport* report, Failure* failure) {
  return guarded(moments->device, failure, [&] {
    const Queue queue = moments->own_queue();
    MomentsReport* const at = &moments->state.totals->report;
    copy_to_host(queue, report, at, 1);
    if (report->refused == Refused::nothing) return;
    static_assert(Refused::nothing == Refused(0));
    check(cudaMemsetAsync(&at->refused, 0, sizeof at->refused, stream_of(queue)),
          "cudaMemsetAsync");
    moments->used_on(queue);
  });
}

bool moments_merge(Moments* moments, Moments* other, Failure* failure) {
  return guarded(moments->device, failure, [&] {
    const Queue queue = moments->own_queue();
    other->wait_on(queue);
    const State &state = moments->state, &theirs = other->state;
    const MomentsReport added = to_host(queue, &theirs.totals->report, 1)[0];
    if (!(added.weight > 0)) return;
    const MomentsReport before = to_host(queue, &state.totals->report, 1)[0];
    const std::int64_t columns = state.columns();
    const Buffer<double> memory(6 * columns, queue);
    Buffer<int> overflows(1, queue);
    overflows.fill_bytes(0);
    double* const next = memory.data();
    const Merged merged{next,
                        next + columns,
                        next + 2 * columns,
                        next + 3 * columns,
                        next + 4 * columns,
                        next + 5 * columns,
                        overflows.data()};
    const unsigned blocks = blocks_for(columns, column_threads);
    launch(queue, blocks, column_threads, 0, merge_columns, state, theirs, merged);
    const TileGrid squares = squares_of(state);
    const auto scatter = [&](auto kernel) {
      launch(queue, unsigned(squares.size()), entry_threads, 0, kernel, state, theirs, squares,
             merged);
    };
    // Of samples the largest sums are those of squares; what was given may be anything.
    const bool given = moments->given || other->given;
    if (given) scatter(merge_scatter<true>);
    if (to_host(queue, overflows.data(), 1)[0] != 0)
      throw Error(Fault::invalid_argument, "other: the combined scatter overflows float64");
    moments->given = given;
    scatter(merge_scatter<false>);
    launch(queue, blocks, column_threads, 0, take_merged, state, merged, before.count + added.count,
           before.weight + added.weight);
    moments->used_on(queue);
    check(cudaStreamSynchronize(stream_of(queue)), "cudaStreamSynchronize");
  });
}

bool moments_mean(Moments* moments, std::int32_t set, double* reference, double* offset,
                  Failure* failure) {
  return guarded(moments->device, failure, [&] {
    const State& state = moments->state;
    const std::int64_t first = set == 0 ? 0 : state.first_right();
    const std::int64_t columns = set == 0 ? state.left : state.right;
    const Queue queue = moments->own_queue();
    const double weight = to_host(queue, &state.totals->report, 1)[0].weight;
    copy_to_host(queue, reference, state.reference + first, columns);
    copy_to_host(queue, offset, state.remainder + first, columns);
    const std::vector<double> sum = to_host(queue, state.sum + first, columns);
    for (std::int64_t c = 0; c < columns; ++c) offset[c] += sum[std::size_t(c)] / weight;
  });
}

bool moments_read(Moments* moments, double divisor, bool centred, double* out, Failure* failure) {
  return guarded(moments->device, failure, [&] {
    const Queue queue = moments->own_queue();
    const TileGrid squares = squares_of(moments->state);
    launch(queue, unsigned(squares.size()), entry_threads, 0, read_scatter, moments->state, squares,
           divisor, centred, out);
    check(cudaStreamSynchronize(stream_of(queue)), "cudaStreamSynchronize");
  });
}

bool moments_correlation(Moments* moments, double* out, Failure* failure) {
  return guarded(moments->device, failure, [&] {
    const Queue queue = moments->own_queue();
    const TileGrid squares = squares_of(moments->state);
    launch(queue, unsigned(squares.size()), entry_threads, 0, read_correlation, moments->state,
           squares, out);
    check(cudaStreamSynchronize(stream_of(queue)), "cudaStreamSynchronize");
  });
}

bool moments_assume(Moments* moments, std::int64_t count, double weight, const double* reference,
                    const double* offset, const double* scatter, Failure* failure) {
  return guarded(moments->device, failure, [&] {
    const State& state = moments->state;
    const Queue queue = moments->own_queue();
    moments->given = true;
    copy_to_device(queue, state.reference, reference, state.left);
    copy_to_device(queue, state.remainder, offset, state.left);
    check(cudaMemcpyAsync(state.scatter, scatter,
                          std::size_t(state.left * state.right) * sizeof(double), cudaMemcpyDefault,
                          stream_of(queue)),
          "cudaMemcpyAsync");
    launch(queue, blocks_for(state.left, column_threads), column_threads, 0, assume_columns, state,
           count, weight);
    moments->used_on(queue);
    check(cudaStreamSynchronize(stream_of(queue)), "cudaStreamSynchronize");
  });
}

}  // namespace descramble_fast::cuda
