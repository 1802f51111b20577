#include "assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace descramble_fast::cuda {

namespace {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int warp = 32;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double epsilon = std::numeric_limits<double>::epsilon();
constexpr std::uint64_t no_key = ~std::uint64_t(0);

// Twice this is still finite, so that reduced costs are.
constexpr double comfortable = 0x1p1000;
// Of the duals: the core takes no more for rounding.
constexpr double tolerance = 0x1p-30;

// Bidding ends after so many rounds in which no row has found a place, and one more for every
// `rows_a_round` rows: a search for a path takes about as long.
constexpr int fruitless_rounds = 4;
constexpr int rows_a_round = 8;

// Columns a thread looks at together.
constexpr int together = 2;

// Problems of so many bytes are read into shared memory once: 64 x 64 of float64.
constexpr std::int64_t staged_bytes = 32 << 10;

// ---- reductions

/// Orders numbers as the unsigned integers that they become.
__device__ inline std::uint64_t key_of(double x) {
  const auto bits = std::uint64_t(__double_as_longlong(x));
  return (bits >> 63) != 0 ? ~bits : bits | (std::uint64_t(1) << 63);
}
__device__ inline double value_of(std::uint64_t key) {
  const std::uint64_t bits = (key >> 63) != 0 ? key & ~(std::uint64_t(1) << 63) : ~key;
  return __longlong_as_double(static_cast<long long>(bits));
}

__device__ inline int thread() { return int(threadIdx.x); }
__device__ inline int threads() { return int(blockDim.x); }
__device__ inline int lane() { return thread() % warp; }
__device__ inline int warp_index() { return thread() / warp; }
__device__ inline int warps() { return threads() / warp; }

struct Least {
  std::uint64_t key;
  unsigned place;
};

__device__ inline std::uint64_t warp_least(std::uint64_t key) {
  const auto high = unsigned(key >> 32);
  const unsigned least = __reduce_min_sync(all_lanes, high);
  const unsigned low = __reduce_min_sync(all_lanes, high == least ? unsigned(key) : all_lanes);
  return (std::uint64_t(least) << 32) | low;
}

/// Of equal keys the one of the first place.
__device__ inline Least warp_least(Least mine) {
  const std::uint64_t key = warp_least(mine.key);
  return {key, __reduce_min_sync(all_lanes, mine.key == key ? mine.place : all_lanes)};
}

/// The same for all threads of the block, at one barrier a call: calls take turns with the halves
/// of the shared array.
class BlockLeast {
 public:
  __device__ Least operator()(Least mine) {
    __shared__ Least partial[2][warp];
    mine = warp_least(mine);
    if (warps() == 1) return mine;
    Least* const half = partial[turn_];
    turn_ ^= 1;
    if (lane() == 0) half[warp_index()] = mine;
    __syncthreads();
    return warp_least(lane() < warps() ? half[lane()] : Least{no_key, all_lanes});
  }
  __device__ double largest(double x) { return value_of(~(*this)({~key_of(x), 0}).key); }

 private:
  int turn_ = 0;
};

/// Compensated as on the CPU, so that sums of exact numbers stay exact.
struct Sum {
  double total, rest;

  __device__ void add(const double* x, int count) {
    for (int i = 0; i < count; ++i) {
      const double sum = total + x[i];
      if (isfinite(sum))
        rest += fabs(total) >= fabs(x[i]) ? (total - sum) + x[i] : (x[i] - sum) + total;
      total = sum;
    }
  }
};

// ---- one problem, solved by one block

/// Costs s c_ij to be minimised, rows <= columns.
template <class T>
struct Costs {
  const T* data;
  std::int64_t stride;
  int rows, columns;
  double sign;

  __device__ double operator()(int i, int j) const { return sign * double(data[i * stride + j]); }
};

/// Duals of columns; owners of columns and columns of rows, and their costs; of a search distances
/// and parents, which other steps use otherwise.
struct State {
  double *v, *distance, *matched_cost;
  int *parent, *owner, *column, *free;

  __host__ __device__ static std::int64_t bytes(std::int64_t rows, std::int64_t columns) {
    return (8 * (2 * columns + rows) + 4 * (2 * columns + 2 * rows + 2) + 15) / 16 * 16;
  }
  __device__ State(unsigned char* memory, int rows, int columns)
      : v(reinterpret_cast<double*>(memory)),
        distance(v + columns),
        matched_cost(distance + columns),
        parent(reinterpret_cast<int*>(matched_cost + rows)),
        owner(parent + columns + 1),
        column(owner + columns),
        free(column + rows) {}
};

struct Outcome {
  double cost = 0, gap = 0, violation = 0;
  std::int64_t row = -1, column = -1;
  Assigned status = Assigned::open;
};

/// The shortest augmenting path method of Jonker and Volgenant. Column duals only fall after the
/// start, and of columns that have an owner alone. All threads call everything together, and know
/// the same of what is returned.
template <class T>
class BlockSolver {
 public:
  __device__ BlockSolver(const Costs<T>& costs, const State& state)
      : costs_(costs), state_(state), n_(costs.rows), m_(costs.columns) {}

  __device__ Outcome solve() {
    Outcome out;
    if (const std::uint64_t bad = survey(); bad != no_key) {
      out.row = std::int64_t(bad / unsigned(m_));
      out.column = std::int64_t(bad % unsigned(m_));
      out.status = Assigned::not_finite;
      return out;
    }
    // A lone row has nobody to bid against, and its duals no rounding without.
    free_ = n_;
    const int forbidden = n_ == 1 ? n_ : bid();
    if (forbidden < n_) {
      out.row = forbidden;
      out.status = Assigned::infeasible;
      return out;
    }
    for (int k = 0; k < free_; ++k)
      if (const int row = state_.free[k]; !augment(row)) {
        out.row = row;
        if (!may_overflow()) out.status = Assigned::infeasible;
        return out;
      }
    certify(out);
    return out;
  }

  /// After an optimal answer: the duals of rows.
  __device__ const double* row_duals() const { return state_.distance; }

 private:
  __device__ double reduced(int i, int j) const { return costs_(i, j) - state_.v[j]; }

  // Column minima where the problem is square; else 0, as of columns left out. Returns the first
  // place that is not finite.
  __device__ std::uint64_t survey() {
    std::uint64_t bad = no_key;
    for (int j = thread(); j < m_; j += threads()) {
      double least = infinity;
#pragma unroll 8
      for (int i = 0; i < n_; ++i) {
        const double x = costs_(i, j);
        if (!(x > -infinity)) bad = min(bad, std::uint64_t(i) * unsigned(m_) + unsigned(j));
        least = x < least ? x : least;
      }
      const double v = n_ == m_ && least < infinity ? least : 0;
      state_.v[j] = v;
      state_.owner[j] = -1;
      claims()[j] = no_key;
      largest_ = fmax(largest_, fabs(v));
    }
    for (int i = thread(); i < n_; i += threads()) state_.free[i] = i;
    bad = least_({bad, 0}).key;
    __syncthreads();
    return bad;
  }

  __device__ unsigned long long* claims() const {
    return reinterpret_cast<unsigned long long*>(state_.distance);
  }

  // What a row offers for its cheapest column: to lower its dual until the second choice is as
  // good. In `column` and `matched_cost`, and as a claim: the largest reduction, of the first row.
  __device__ void offer(int row, int* forbidden) {
    double least = infinity, second = infinity;
    unsigned place = all_lanes;
#pragma unroll 4
    for (int j = lane(); j < m_; j += warp) {
      const double r = reduced(row, j);
      if (r < least) {
        second = least;
        least = r;
        place = unsigned(j);
      } else if (r < second) {
        second = r;
      }
    }
    const Least best = warp_least(Least{key_of(least), place});
    second = value_of(warp_least(key_of(best.place == place ? second : least)));
    if (best.place == all_lanes) {  // all forbidden, unless differences overflow
      bool allowed = false;
      for (int j = lane(); j < m_; j += warp) allowed = allowed || costs_(row, j) < infinity;
      const bool none = __ballot_sync(all_lanes, allowed) == 0;
      if (lane() == 0) {
        state_.column[row] = -1;
        if (none) atomicMin(forbidden, row);
      }
      return;
    }
    if (lane() != 0) return;
    const int j = int(best.place);
    const double v = state_.v[j];
    const double price = second < infinity ? v - (second - value_of(best.key)) : v;
    state_.column[row] = j;
    state_.matched_cost[row] = price;
    const unsigned reduction = __float_as_uint(float(fmax(v - price, 0.0)));
    atomicMin(&claims()[j], (static_cast<unsigned long long>(~reduction) << 32) | unsigned(row));
  }

  // Who is free after the offer of a row: it, the former owner of the column, or nobody (-1).
  __device__ int take(int row) {
    const int j = state_.column[row];
    if (j < 0 || unsigned(claims()[j]) != unsigned(row)) return row;
    const int before = state_.owner[j];
    const double price = state_.matched_cost[row];
    if (before >= 0 && !(price < state_.v[j])) return row;
    state_.owner[j] = row;
    state_.v[j] = price;
    state_.matched_cost[row] = costs_(row, j);
    return before;
  }

  // Rounds of bids, all free rows at once; one row gets each column. Leaves the free rows in
  // `free`. Returns the first row without allowed pairs, or n.
  __device__ int bid() {
    __shared__ int left, forbidden;
    int* const next = state_.parent;
    if (thread() == 0) forbidden = n_;
    __syncthreads();
    const int patience = fruitless_rounds + n_ / rows_a_round;
    for (int fruitless = 0; free_ > 0 && fruitless < patience;) {
      for (int k = warp_index(); k < free_; k += warps()) offer(state_.free[k], &forbidden);
      __syncthreads();
      for (int k = thread(); k < free_; k += threads()) next[k] = take(state_.free[k]);
      __syncthreads();
      if (warp_index() == 0) {
        int count = 0;
        for (int begin = 0; begin < free_; begin += warp) {
          const int k = begin + lane();
          if (k < free_)
            if (const int j = state_.column[state_.free[k]]; j >= 0) claims()[j] = no_key;
          const int row = k < free_ ? next[k] : -1;
          const unsigned stays = __ballot_sync(all_lanes, row >= 0);
          if (row >= 0) state_.free[count + __popc(stays & ((1u << lane()) - 1))] = row;
          count += __popc(stays);
          __syncwarp();
        }
        if (lane() == 0) left = count;
      }
      __syncthreads();
      fruitless = left < free_ ? 0 : fruitless + 1;
      free_ = left;
      if (forbidden < n_) break;
    }
    return forbidden;
  }

  // One shortest path from a free row to a free column, and the duals that go with it.
  __device__ bool augment(int row) {
    for (int j = thread(); j < m_; j += threads()) {
      state_.distance[j] = infinity;
      state_.parent[j] = 0;
    }
    int end = -1;
    double nearest = 0, offset = 0;
    for (int i = row, step = 0; end < 0 && step <= n_; ++step) {
      double least = infinity;
      unsigned place = all_lanes;
      for (int first = thread(); first < m_; first += together * threads()) {
        double through[together];  // all read before any is written
#pragma unroll
        for (int q = 0; q < together; ++q) {
          const int j = first + q * threads();
          through[q] = j < m_ ? reduced(i, j) + offset : infinity;
        }
#pragma unroll
        for (int q = 0; q < together; ++q) {
          const int j = first + q * threads();
          if (j >= m_ || state_.parent[j] < 0) continue;  // closed
          double d = state_.distance[j];
          if (through[q] < d) {
            state_.distance[j] = d = through[q];
            state_.parent[j] = i;
          }
          if (d < least) {
            least = d;
            place = unsigned(j);
          }
        }
      }
      const Least best = least_({key_of(least), place});
      if (best.place == all_lanes) return false;
      const int j = int(best.place);
      nearest = value_of(best.key);
      i = state_.owner[j];
      if (i < 0) {
        end = j;
      } else {
        if ((j & (threads() - 1)) == thread()) state_.parent[j] = ~state_.parent[j];
        offset = nearest - (state_.matched_cost[i] - state_.v[j]);
      }
    }
    if (end < 0) return false;
    for (int j = thread(); j < m_; j += threads())
      if (state_.parent[j] < 0) state_.v[j] += state_.distance[j] - nearest;
    __syncthreads();
    if (thread() == 0) {
      for (int step = 0, j = end; step < n_; ++step) {
        const int i = state_.parent[j] < 0 ? ~state_.parent[j] : state_.parent[j];
        const int before = state_.column[i];
        state_.column[i] = j;
        state_.owner[j] = i;
        state_.matched_cost[i] = costs_(i, j);
        if (i == row) break;
        j = before;
      }
    }
    __syncthreads();
    return true;
  }

  // Whether a reduced cost that overflows can look like a forbidden pair.
  __device__ bool may_overflow() const {
    bool huge = false;
    for (int i = 0; i < n_; ++i)
      for (int j = thread(); j < m_; j += threads()) {
        const double x = fabs(costs_(i, j));
        huge = huge || (x > comfortable && x < infinity);
      }
    return __syncthreads_or(huge) != 0;
  }

  // Duals of rows, cost, gap and violation; and whether no other answer can be optimal.
  __device__ void certify(Outcome& out) {
    double* const u = state_.distance;
    double most = 0;
    for (int j = thread(); j < m_; j += threads()) most = fmax(most, fabs(state_.v[j]));
    for (int i = thread(); i < n_; i += threads()) {
      u[i] = state_.matched_cost[i] - state_.v[state_.column[i]];
      most = fmax(most, fabs(u[i]));
    }
    const double scale = least_.largest(fmax(most, largest_));
    most = least_.largest(most);
    __syncthreads();

    double worst = 0;
    for (int i = warp_index(); i < n_; i += warps()) {
      const double dual = u[i];
#pragma unroll 4
      for (int j = lane(); j < m_; j += warp) worst = fmax(worst, dual - reduced(i, j));
    }
    out.violation = least_.largest(worst);
    sum(out, u);

    // In exact arithmetic another answer costs as much more as the reduced costs of its pairs add
    // up to; each, here and on the CPU, is off by some roundings of the largest numbers.
    const double rounding = 16 * double(n_) * epsilon * scale;
    const bool sure = scale <= comfortable && out.violation <= rounding &&
                      out.violation <= tolerance * most && fabs(out.gap) <= rounding;
    if (sure && unique(u, rounding + 4 * double(n_) * out.violation))
      out.status = Assigned::optimal;
  }

  // Thread 0 adds up the costs, thread 1 the duals, in the CPU's order.
  __device__ void sum(Outcome& out, const double* u) {
    __shared__ Sum sums[2];
    if (thread() < 2) {
      Sum mine{0, 0};
      mine.add(thread() == 0 ? state_.matched_cost : u, n_);
      if (thread() == 1) mine.add(state_.v, m_);
      sums[thread()] = mine;
    }
    __syncthreads();
    out.cost = sums[0].total + sums[0].rest;
    out.gap = (sums[0].total - sums[1].total) + (sums[0].rest - sums[1].rest);
  }

  // Where a row could move at no cost: to the row that holds a tight column, or to node n where
  // nobody does. From there a column may be given up whose dual is 0. Another optimum moves rows
  // around a cycle, so nodes without a way on are struck off until none is left, or a cycle. A node
  // holds on to its first way until that is struck off: nothing is read twice.
  __device__ bool unique(const double* u, double tight) {
    auto* now = reinterpret_cast<unsigned char*>(state_.free);
    unsigned char* next = now + n_ + 1;
    int* const way = state_.parent;
    for (int i = thread(); i <= n_; i += threads()) {
      now[i] = i < n_ || n_ < m_;
      way[i] = -1;
    }
    const auto target = [&](int i, int place) {
      const int to = i < n_ ? state_.owner[place] : place;
      return to < 0 ? n_ : to;
    };
    const auto open = [&](int i, int place) {
      const int to = target(i, place);
      if (to == i || now[to] == 0) return false;
      return i < n_ ? reduced(i, place) - u[i] <= tight : state_.v[state_.column[place]] >= -tight;
    };
    for (int round = 0; round <= n_; ++round) {
      __syncthreads();
      bool struck = false;
      for (int i = warp_index(); i <= n_; i += warps()) {
        bool lives = now[i] != 0;
        int place = way[i];
        __syncwarp();
        if (lives && (place < 0 || now[target(i, place)] == 0)) {
          const int places = i < n_ ? m_ : n_;
          lives = false;
          for (int begin = (place + 1) / warp * warp; begin < places && !lives; begin += warp) {
            const int j = begin + lane();
            const unsigned found = __ballot_sync(all_lanes, j > place && j < places && open(i, j));
            lives = found != 0;
            if (lives) place = begin + __ffs(int(found)) - 1;
          }
          struck = struck || !lives;
        }
        if (lane() == 0) {
          way[i] = place;
          next[i] = lives;
        }
      }
      const bool any = __syncthreads_or(struck);
      unsigned char* const before = now;
      now = next;
      next = before;
      if (!any) break;
    }
    bool cycle = false;
    for (int i = thread(); i <= n_; i += threads()) cycle = cycle || now[i] != 0;
    return __syncthreads_or(cycle) == 0;
  }

  const Costs<T>& costs_;
  const State& state_;
  int n_, m_;
  BlockLeast least_;
  double largest_ = 0;  // of the first duals, by thread
  int free_ = 0;
};

// ---- the batch

/// Problems in the orientation that is solved; `matrices` lacks the last axis, so that its rows are
/// problems.
struct Batch {
  Strided matrices;
  std::int64_t row_stride, column_stride;
  int rows, columns;
};

struct Target {
  std::int64_t* columns;
  double *row_duals, *column_duals;
  bool transposed;  // a row of the problem is a column of the caller's
  double sign;
  Outcome* outcomes;
};

/// To the shared memory, by neighbours in global memory.
template <class T>
__device__ void stage(const Batch& from, std::int64_t offset, T* to) {
  const bool by_rows = llabs(from.column_stride) <= llabs(from.row_stride);
  const int inner = by_rows ? from.columns : from.rows, size = from.rows * from.columns;
  for (int k = thread(); k < size; k += threads()) {
    const int i = by_rows ? k / inner : k % inner, j = by_rows ? k % inner : k / inner;
    to[i * from.columns + j] = T(load(from.matrices.data, from.matrices.dtype,
                                      offset + i * from.row_stride + j * from.column_stride));
  }
}

/// Problems [begin, end); `first` is the number of the batch's first.
template <class T>
__global__ void __launch_bounds__(1024)
    solve_kernel(Batch batch, std::int64_t begin, std::int64_t end, std::int64_t first, bool staged,
                 unsigned char* workspace, Target target) {
  const int n = batch.rows, m = batch.columns;
  unsigned char* const shared = dynamic_shared();
  const State state(workspace == nullptr ? shared : workspace + blockIdx.x * State::bytes(n, m), n,
                    m);
  T* const stage_at =
      reinterpret_cast<T*>(shared + (workspace == nullptr ? State::bytes(n, m) : 0));
  for (std::int64_t b = begin + blockIdx.x; b < end; b += gridDim.x) {
    const std::int64_t offset = row_offset(batch.matrices, b - first);
    Costs<T> costs{stage_at, m, n, m, target.sign};
    if (staged) {
      stage(batch, offset, stage_at);
      __syncthreads();
    } else {
      costs.data = static_cast<const T*>(batch.matrices.data) + offset;
      costs.stride = batch.row_stride;
    }
    BlockSolver<T> solver(costs, state);
    Outcome outcome = solver.solve();
    if (outcome.status == Assigned::optimal) {
      double* const u = target.transposed ? target.column_duals : target.row_duals;
      double* const v = target.transposed ? target.row_duals : target.column_duals;
      for (int i = thread(); i < n; i += threads()) {
        const std::int64_t j = state.column[i];
        target.columns[target.transposed ? b * m + j : b * n + i] = target.transposed ? i : j;
        u[b * n + i] = target.sign * solver.row_duals()[i] + 0.0;
      }
      for (int j = thread(); j < m; j += threads()) v[b * m + j] = target.sign * state.v[j] + 0.0;
      outcome.cost = target.sign * outcome.cost + 0.0;
    }
    if (target.transposed) {
      const std::int64_t row = outcome.row;
      outcome.row = outcome.column;
      outcome.column = row;
    }
    if (thread() == 0) target.outcomes[b] = outcome;
    __syncthreads();
  }
}

/// Problems [begin, begin + count) as contiguous T, in tiles that go through shared memory so that
/// both sides are read and written by neighbours.
template <class T>
__global__ void copy_kernel(Batch from, std::int64_t begin, std::int64_t count, T* out) {
  constexpr int tile = 32;
  __shared__ T kept[tile][tile + 1];
  const bool by_rows = llabs(from.column_stride) <= llabs(from.row_stride);
  const std::int64_t down = (from.rows + tile - 1) / tile,
                     across = (from.columns + tile - 1) / tile;
  const int x = int(threadIdx.x), y = int(threadIdx.y);
  for (std::int64_t t = blockIdx.x; t < count * down * across; t += gridDim.x) {
    const std::int64_t b = t / (down * across), i0 = t / across % down * tile,
                       j0 = t % across * tile;
    const std::int64_t offset = row_offset(from.matrices, begin + b);
    for (int s = y; s < tile; s += int(blockDim.y)) {
      const int i = by_rows ? s : x, j = by_rows ? x : s;
      if (i0 + i < from.rows && j0 + j < from.columns)
        kept[i][j] = T(load(from.matrices.data, from.matrices.dtype,
                            offset + (i0 + i) * from.row_stride + (j0 + j) * from.column_stride));
    }
    __syncthreads();
    for (int s = y; s < tile; s += int(blockDim.y))
      if (i0 + s < from.rows && j0 + x < from.columns)
        out[(b * from.rows + i0 + s) * from.columns + j0 + x] = kept[s][x];
    __syncthreads();
  }
}

// ---- the plan

int attribute(cudaDeviceAttr what, const Queue& queue) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, what, queue.device), "cudaDeviceGetAttribute");
  return value;
}

/// A power of two: one warp for short rows, else two columns a thread.
int threads_for(std::int64_t columns) {
  if (columns <= 64) return warp;
  int threads = 128;
  while (threads < 1024 && 2 * threads < columns) threads *= 2;
  return threads;
}

// A problem takes some steps for each row (bids and paths, counted on random costs of several
// kinds; 3 to 9), each a chain of reading a row, reducing over the block and waiting at barriers.
// Measured on an H100 on uniform float32 costs from 16 x 16 to 256 x 256 (of 1024 x 1024 a problem
// takes half as long again).
constexpr double steps_a_row = 4;
constexpr double seconds_a_step = 1e-6, seconds_a_step_and_column = 1.5e-9;
constexpr double seconds_a_call = 1e-4;
// What bounds the problems in flight.
constexpr double multiprocessors = 100;
constexpr std::int64_t resident_bytes = 200 << 10, resident_threads = 2048, resident_blocks = 32;
// The CPU's solver on one thread, no more than measured on uniform costs from 8 x 8 to 4096 x 4096,
// and the ways there and back.
constexpr double cpu_seconds_a_row = 2.5e-7, cpu_seconds_an_entry = 1.7e-9;
constexpr double away_seconds = 2e-4, bytes_a_second = 10e9;
constexpr double clear_win = 1.2;

// What kernels declare, and what the system takes for each block.
constexpr std::int64_t static_bytes = 3 << 10;

/// How one problem is laid out.
struct Plan {
  int threads;
  std::int64_t cost_bytes;   // of costs in shared memory: all, or none
  std::int64_t state_bytes;  // of the state, in shared memory where it fits
  bool state_shared;

  std::int64_t shared_bytes() const { return cost_bytes + (state_shared ? state_bytes : 0); }
};

template <class T>
Plan plan_of(std::int64_t rows, std::int64_t columns, std::int64_t most_shared) {
  const std::int64_t bytes = rows * columns * std::int64_t(sizeof(T));
  Plan out{threads_for(columns), bytes <= staged_bytes ? bytes : 0, State::bytes(rows, columns),
           true};
  out.state_shared = out.shared_bytes() <= most_shared;
  return out;
}

double in_flight(const Plan& plan) {
  const std::int64_t blocks = std::min({resident_blocks, resident_threads / plan.threads,
                                        resident_bytes / (plan.shared_bytes() + static_bytes)});
  return multiprocessors * double(std::max<std::int64_t>(blocks, 1));
}

double seconds_on_device(std::int64_t rows, std::int64_t columns) {
  return steps_a_row * double(rows) *
         (seconds_a_step + seconds_a_step_and_column * double(columns));
}

template <class T>
void assign_batch(const Queue& queue, const AssignmentProblem& problem,
                  const AssignmentOutput& output, const LaunchLimits& limits) {
  const Strided view = strided(*problem.cost);
  const std::int64_t n = view.shape[view.rank - 2], m = view.columns, count = view.rows / n;
  Batch batch{view, view.strides[view.rank - 2], view.strides[view.rank - 1], int(n), int(m)};
  --batch.matrices.rank;
  if (n > m) {
    std::swap(batch.row_stride, batch.column_stride);
    std::swap(batch.rows, batch.columns);
  }
  const Plan plan =
      plan_of<T>(batch.rows, batch.columns,
                 attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, queue) - static_bytes);
  const bool in_place =
      plan.cost_bytes > 0 || (view.dtype == dtype_of<T> && batch.column_stride == 1);

  const double in_time = limits.seconds / seconds_on_device(batch.rows, batch.columns);
  std::int64_t share = std::int64_t(std::min(in_flight(plan) * std::max(in_time, 1.0), 1e9));
  if (!in_place) share = std::min(share, limits.copied / (n * m * std::int64_t(sizeof(T))));
  share = std::clamp<std::int64_t>(share, 1, count);
  const unsigned blocks = plan.state_shared
                              ? blocks_for(share, 1)
                              : unsigned(std::min<std::int64_t>(
                                    share, 2 * attribute(cudaDevAttrMultiProcessorCount, queue)));

  Buffer<Outcome> outcomes(count, queue);
  Buffer<unsigned char> workspace(plan.state_shared ? 0 : blocks * plan.state_bytes, queue);
  Buffer<T> copy(in_place ? 0 : share * n * m, queue);
  const auto clear = [&](void* memory, int value, std::int64_t size) {
    check(cudaMemsetAsync(memory, value, std::size_t(8 * count * size), stream_of(queue)),
          "cudaMemsetAsync");
  };
  clear(output.columns, 0xff, n);
  clear(output.row_duals, 0, n);
  clear(output.column_duals, 0, m);
  const Target target{
      output.columns, output.row_duals, output.column_duals, n > m, problem.maximize ? -1.0 : 1.0,
      outcomes.data()};

  for (std::int64_t begin = 0; begin < count; begin += share) {
    if (begin > 0) check(cudaStreamSynchronize(stream_of(queue)), "cudaStreamSynchronize");
    poll(queue);
    const std::int64_t end = std::min(begin + share, count);
    Batch part = batch;
    if (!in_place) {
      constexpr std::int64_t tile_size = 1024, per_block = 4;
      launch(queue, blocks_for((end - begin) * n * m, tile_size * per_block), dim3(32, 8), 0,
             copy_kernel<T>, batch, begin, end - begin, copy.data());
      part.matrices = {copy.data(), dtype_of<T>, 2, {share, batch.rows}, {n * m, batch.columns},
                       share,       batch.rows};
      part.row_stride = batch.columns;
      part.column_stride = 1;
    }
    launch(queue, std::min<unsigned>(blocks, blocks_for(end - begin, 1)), unsigned(plan.threads),
           std::size_t(plan.shared_bytes()), solve_kernel<T>, part, begin, end,
           in_place ? std::int64_t(0) : begin, plan.cost_bytes > 0, workspace.data(), target);
  }

  const std::vector<Outcome> found = to_host(queue, outcomes.data(), count);
  for (std::size_t b = 0; b < found.size(); ++b) {
    output.cost[b] = found[b].cost;
    output.gap[b] = found[b].gap;
    output.violation[b] = found[b].violation;
    output.status[b] = found[b].status;
    output.row[b] = found[b].row;
    output.column[b] = found[b].column;
  }
}

}  // namespace

void assign(const Queue& queue, const AssignmentProblem& problem, const AssignmentOutput& output,
            const LaunchLimits& limits) {
  if (problem.cost->dtype() == DType::float64)
    assign_batch<double>(queue, problem, output, limits);
  else
    assign_batch<float>(queue, problem, output, limits);
}

bool assignment_pays(std::int64_t batch, std::int64_t n, std::int64_t m, DType dtype, int threads) {
  const std::int64_t rows = std::min(n, m), columns = std::max(n, m);
  const bool wide = dtype == DType::float64;
  const Plan plan = wide ? plan_of<double>(rows, columns, resident_bytes)
                         : plan_of<float>(rows, columns, resident_bytes);
  const double waves = std::ceil(double(batch) / in_flight(plan));
  const double on_device = seconds_a_call + waves * seconds_on_device(rows, columns);
  const double entries = double(rows) * double(columns);
  const double workers = double(std::clamp<std::int64_t>(batch, 1, std::max(threads, 1)));
  const double on_cpu =
      away_seconds +
      double(batch) *
          ((cpu_seconds_a_row * double(rows) + cpu_seconds_an_entry * entries) / workers +
           entries * double(bytes_of(dtype)) / bytes_a_second);
  return clear_win * on_device < on_cpu;
}

bool assign(const Queue* queue, const AssignmentProblem* problem, AssignmentOutput* output,
            Failure* failure) {
  return guarded(queue->device, failure, [&] { assign(*queue, *problem, *output, {}); });
}

}  // namespace descramble_fast::cuda
