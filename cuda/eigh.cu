#include "eigh.hpp"

#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "jacobi.hpp"

namespace descramble_fast::cuda {

namespace {

// All blocks are (warp, warps).
constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int probes = 4;
constexpr std::int64_t strip = 32;
// One block checks a matrix of up to this size; of larger ones each strip has its own.
constexpr std::int64_t largest_check_in_block = 256;

__host__ __device__ std::int64_t strips_of(std::int64_t n) { return (n + strip - 1) / strip; }

// What the lower triangle is found to hold; zeros before the scan.
struct Scan {
  unsigned long long largest;  // the bits of the largest modulus
  unsigned long long bad;      // ~(row * n + column) of the first NaN or infinity; 0: none
};

__device__ int exponent_of(const Scan& scan) {
  return scan.largest == 0 ? 0 : ilogb(__longlong_as_double((long long)(scan.largest)));
}

// One matrix of the batch, times 2^-exponent: in two steps, because one factor may not be
// representable.
struct ScaledMatrix {
  const void* data;
  DType dtype;
  std::int64_t offset, row, column;
  double first = 1, second = 1;

  __device__ ScaledMatrix(const Strided& a, std::int64_t b)
      : data(a.data),
        dtype(a.dtype),
        offset(row_offset(a, b * a.columns)),
        row(a.strides[a.rank - 2]),
        column(a.strides[a.rank - 1]) {}
  __device__ ScaledMatrix(const Strided& a, std::int64_t b, const Scan& scan) : ScaledMatrix(a, b) {
    const int exponent = exponent_of(scan);
    first = ldexp(1.0, -exponent / 2);
    second = ldexp(1.0, -exponent + exponent / 2);
  }
  __device__ double raw(std::int64_t i, std::int64_t j) const {
    return load(data, dtype, offset + i * row + j * column);
  }
  __device__ double operator()(std::int64_t i, std::int64_t j) const {
    return raw(i, j) * first * second;
  }
};

template <class T>
__device__ T warp_sum(T x) {
  for (int step = warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

// Of the whole block, known to all threads; `scratch` holds a number for each warp.
template <class T>
__device__ T block_sum(T x, T* scratch) {
  x = warp_sum(x);
  if (threadIdx.x == 0) scratch[threadIdx.y] = x;
  __syncthreads();
  T sum = 0;
  for (unsigned i = 0; i < blockDim.y; ++i) sum += scratch[i];
  __syncthreads();
  return sum;
}

// Rows of a matrix that a warp scans.
__host__ __device__ std::int64_t scanned_rows(std::int64_t n) { return n <= 256 ? strip : 1; }

// A warp for some rows, or for a matrix; the results of several are put together where they were
// zeros before. (Maxima and minima come out the same in every order.)
__global__ void scan_kernel(Strided a, std::int64_t begin, std::int64_t count, Scan* scans) {
  const std::int64_t n = a.columns, rows = scanned_rows(n), units = (n + rows - 1) / rows;
  const std::int64_t unit = std::int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (unit >= count * units) return;
  const std::int64_t item = unit / units, top = unit % units * rows;
  const ScaledMatrix matrix(a, begin + item);
  unsigned long long largest = 0, bad = 0;
  for (std::int64_t i = top; i < min(n, top + rows); ++i)
#pragma unroll 4
    for (std::int64_t j = threadIdx.x; j <= i; j += warp) {
      const double x = fabs(matrix.raw(i, j));
      if (isfinite(x))
        largest = max(largest, (unsigned long long)(__double_as_longlong(x)));
      else
        bad = max(bad, ~(unsigned long long)(i * n + j));
    }
  for (int step = warp / 2; step > 0; step /= 2) {
    largest = max(largest, __shfl_xor_sync(all_lanes, largest, step));
    bad = max(bad, __shfl_xor_sync(all_lanes, bad, step));
  }
  if (threadIdx.x != 0) return;
  if (units == 1) {
    scans[item] = {largest, bad};
    return;
  }
  atomicMax(&scans[item].largest, largest);
  if (bad != 0) atomicMax(&scans[item].bad, bad);
}

// Both triangles of the scaled matrices, so that no driver meets what was never written: a block
// for each tile of the lower triangle.
template <class T>
__global__ void load_kernel(Strided a, std::int64_t begin, const Scan* scans, T* out) {
  __shared__ T tile[strip][strip + 1];
  const std::int64_t n = a.columns, strips = strips_of(n);
  const std::int64_t item = blockIdx.x / (strips * strips), place = blockIdx.x % (strips * strips);
  const std::int64_t top = place / strips * strip, left = place % strips * strip;
  if (left > top) return;
  const ScaledMatrix matrix(a, begin + item, scans[item]);
  T* const to = out + item * n * n;
  const int x = threadIdx.x;
  for (int y = threadIdx.y; y < strip; y += blockDim.y) {
    const std::int64_t i = top + y, j = left + x;
    if (i < n && j <= i) tile[y][x] = T(matrix(i, j));
  }
  __syncthreads();
  for (int y = threadIdx.y; y < strip; y += blockDim.y) {
    const bool below = top > left || x <= y;
    if (top + y < n && left + x < n) to[(top + y) * n + left + x] = below ? tile[y][x] : tile[x][y];
    if (top > left && left + y < n && top + x < n) to[(left + y) * n + top + x] = tile[x][y];
  }
}

// The last k of the `found` pairs of each matrix, which has room for n.
template <class From, class To>
__global__ void keep_kernel(const From* from_w, const From* from_v, std::int64_t found,
                            std::int64_t n, std::int64_t k, std::int64_t count, To* w, To* v) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t at = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count * k * n;
       at += step) {
    const std::int64_t pair = at / n, j = at % n;
    const std::int64_t source = pair / k * n + found - k + pair % k;
    v[at] = To(from_v[source * n + j]);
    if (j == 0) w[pair] = To(from_w[source]);
  }
}

// The threads that solve one matrix together: a warp, or a whole block.
template <bool in_block>
struct Group {
  int lane = threadIdx.x;
  int warp_index = in_block ? threadIdx.y : 0;
  int warps = in_block ? blockDim.y : 1;
  int thread = warp_index * warp + lane;
  int threads = warps * warp;

  __device__ void sync() const {
    if constexpr (in_block)
      __syncthreads();
    else
      __syncwarp();
  }
  /// Synchronises as well.
  __device__ bool any(bool x) const {
    if constexpr (in_block) return __syncthreads_or(x) != 0;
    __syncwarp();
    return __any_sync(all_lanes, x) != 0;
  }
  template <class T>
  __device__ T sum(T x, T* scratch) const {
    if constexpr (in_block) return block_sum(x, scratch);
    return warp_sum(x);
  }
};

// Of 2 x 2: the pairs of its rows and columns.
struct Block {
  std::uint8_t row, column;
};

template <class T>
constexpr T unit_roundoff = std::numeric_limits<T>::epsilon() / 2;

// The two-sided Jacobi method in shared memory: the lower triangle and the vectors, as rows.
template <class T, bool in_block>
__global__ void __launch_bounds__(256, 2)
    jacobi_kernel(Strided a, std::int64_t begin, std::int64_t count, const Scan* scans, int k,
                  int sweeps, T* w, T* v, int* info) {
  const int n = int(a.columns);
  const JacobiLayout layout{n};
  const int ld = layout.stride(), pairs = layout.pairs();
  const int matrices = in_block ? 1 : blockDim.y;
  const Group<in_block> group;

  // The pairs of pairs, of which each makes a 2 x 2 block below the diagonal.
  T* const memory = reinterpret_cast<T*>(dynamic_shared());
  auto* const table = reinterpret_cast<Block*>(memory + layout.elements() * matrices);
  for (int row = threadIdx.y * warp + threadIdx.x; row < pairs; row += blockDim.y * warp)
    for (int column = 0; column < row; ++column)
      table[row * (row - 1) / 2 + column] = {std::uint8_t(row), std::uint8_t(column)};
  __syncthreads();

  const std::int64_t item =
      in_block ? std::int64_t(blockIdx.x) : std::int64_t(blockIdx.x) * matrices + threadIdx.y;
  if (item >= count) return;
  if (scans[item].bad != 0) {
    if (group.thread == 0) info[item] = 0;  // it is not asked for
    return;
  }
  T* const s = memory + (in_block ? 0 : int(threadIdx.y) * layout.elements());
  T* const q = s + layout.matrix();
  T* const rotations = q + layout.matrix();
  T* const scratch = rotations + 2 * pairs;

  const ScaledMatrix matrix(a, begin + item, scans[item]);
  for (int i = group.warp_index; i < layout.even(); i += group.warps)
    for (int j = group.lane; j < layout.even(); j += warp) {
      if (j <= i) s[i * ld + j] = i < n ? T(matrix(i, j)) : T(0);
      q[i * ld + j] = T(i == j);
    }
  group.sync();

  const auto below_diagonal = [&] {
    T squares = 0;
    for (int i = group.warp_index; i < n; i += group.warps)
      for (int j = group.lane; j < i; j += warp) squares += s[i * ld + j] * s[i * ld + j];
    return 2 * group.sum(squares, scratch);
  };
  const auto entry = [&](int i, int j) -> T& { return i > j ? s[i * ld + j] : s[j * ld + i]; };

  T off = below_diagonal(), diagonal = 0;
  for (int i = group.thread; i < n; i += group.threads) diagonal += s[i * ld + i] * s[i * ld + i];
  const T norm = sqrt(group.sum(diagonal, scratch) + off);
  // What is left below the diagonal moves eigenvalues and residuals by less than they are rounded.
  const T enough = unit_roundoff<T> * norm;
  const T negligible = enough / T(n);

  int sweep = 0;
  for (; sqrt(off) > enough && sweep < sweeps; ++sweep, off = below_diagonal())
    for (int round = 0; round < layout.even() - 1; ++round) {
      bool turns = false;
      for (int i = group.thread; i < pairs; i += group.threads) {
        const Pair pair = pair_of(layout.even(), round, i);
        T& b = entry(pair.p, pair.q);
        Rotation<T> rotation{0, 0};
        if (fabs(b) > negligible) {
          rotation = annihilate(s[pair.p * ld + pair.p], b, s[pair.q * ld + pair.q]);
          turns = true;
        }
        rotations[2 * i] = rotation.s;
        rotations[2 * i + 1] = rotation.tau;
      }
      if (!group.any(turns)) continue;
      const auto rotation = [&](int i) {
        return Rotation<T>{rotations[2 * i], rotations[2 * i + 1]};
      };
      for (int at = group.thread; at < layout.blocks(); at += group.threads) {
        const Pair rows = pair_of(layout.even(), round, table[at].row);
        const Pair columns = pair_of(layout.even(), round, table[at].column);
        T &pp = entry(rows.p, columns.p), &pq = entry(rows.p, columns.q);
        T &qp = entry(rows.q, columns.p), &qq = entry(rows.q, columns.q);
        T x[] = {pp, pq, qp, qq};
        const Rotation<T> right = rotation(table[at].column), left = rotation(table[at].row);
        right.apply(x[0], x[1]);
        right.apply(x[2], x[3]);
        left.apply(x[0], x[2]);
        left.apply(x[1], x[3]);
        pp = x[0], pq = x[1], qp = x[2], qq = x[3];
      }
      for (int i = group.warp_index; i < pairs; i += group.warps) {
        const Rotation<T> turn = rotation(i);
        if (turn.s == 0) continue;
        const Pair pair = pair_of(layout.even(), round, i);
        for (int j = group.lane; j < n; j += warp)
          turn.apply(q[pair.p * ld + j], q[pair.q * ld + j]);
      }
      group.sync();
    }
  if (group.thread == 0) info[item] = sqrt(off) <= enough ? 0 : 1;

  // In ascending order, equals as they lie.
  for (int i = group.warp_index; i < n; i += group.warps) {
    const T value = s[i * ld + i];
    int rank = 0;
    for (int j = group.lane; j < n; j += warp) {
      const T other = s[j * ld + j];
      rank += other < value || (other == value && j < i);
    }
    const std::int64_t place = warp_sum(rank) - (n - k);
    if (place < 0) continue;
    if (group.lane == 0) w[item * k + place] = value;
    for (int j = group.lane; j < n; j += warp) v[(item * k + place) * n + j] = q[i * ld + j];
  }
}

// The check: A V s - V Lambda s and s - V^T V s for a few vectors s of random signs, in float64.

// Of row i, probe by probe in the lowest bits.
__device__ unsigned signs_of(std::int64_t i) {
  unsigned long long x = (unsigned long long)(i + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
  return unsigned(x >> 40);
}
__device__ double sign_of(unsigned signs, int probe) { return (signs >> probe & 1) != 0 ? 1 : -1; }

// One matrix's k pairs; mixed = V s, and then -V Lambda s: (2 probes, n).
template <class T>
struct Pairs {
  std::int64_t n, k;
  const T* w;
  const T* v;
  double* mixed;
};

// What a block's threads add up among themselves: (warps, 2 probes, lanes).
__host__ __device__ std::int64_t check_scratch(int warps) { return warps * 2 * probes * warp; }

// Columns [left, left + strip) of mixed.
template <class T>
__device__ void mix(const Pairs<T>& pairs, std::int64_t left, double* scratch) {
  const std::int64_t j = left + threadIdx.x, n = pairs.n;
  double sums[2 * probes] = {};
  if (j < n)
    for (std::int64_t i = threadIdx.y; i < pairs.k; i += blockDim.y) {
      const double x = double(pairs.v[i * n + j]), pulled = -x * double(pairs.w[i]);
      const unsigned signs = signs_of(i);
      for (int p = 0; p < probes; ++p) {
        sums[p] += sign_of(signs, p) * x;
        sums[probes + p] += sign_of(signs, p) * pulled;
      }
    }
  for (int p = 0; p < 2 * probes; ++p)
    scratch[(threadIdx.y * 2 * probes + p) * warp + threadIdx.x] = sums[p];
  __syncthreads();
  for (int p = threadIdx.y; p < 2 * probes; p += blockDim.y) {
    double sum = 0;
    for (unsigned y = 0; y < blockDim.y; ++y)
      sum += scratch[(y * 2 * probes + p) * warp + threadIdx.x];
    if (j < n) pairs.mixed[p * n + j] = sum;
  }
  __syncthreads();
}

// What rows [top, top + strip) add to the squares of the residual and of the matrix. Each entry of
// the lower triangle is read along its row and along its column: both times a warp reads
// neighbours, where columns are contiguous.
template <class T>
__device__ double2 residual_of(const ScaledMatrix& matrix, const Pairs<T>& pairs, std::int64_t top,
                               double* scratch) {
  const std::int64_t n = pairs.n, end = min(n, top + strip);
  double squares = 0, sums[probes] = {};
  for (std::int64_t j = top + threadIdx.y, i = top + threadIdx.x; j < n; j += blockDim.y) {
    if (j <= i || i >= n) continue;
    const double x = matrix(j, i);
    for (int p = 0; p < probes; ++p) sums[p] += x * pairs.mixed[p * n + j];
  }
  for (int p = 0; p < probes; ++p)
    scratch[(threadIdx.y * probes + p) * warp + threadIdx.x] = sums[p];
  double* const along = scratch + blockDim.y * probes * warp;
  for (std::int64_t i = top + threadIdx.y; i < end; i += blockDim.y) {
    double dots[probes] = {};
    for (std::int64_t j = threadIdx.x; j <= i; j += warp) {
      const double x = matrix(i, j);
      squares += (j < i ? 2 : 1) * x * x;
      for (int p = 0; p < probes; ++p) dots[p] += x * pairs.mixed[p * n + j];
    }
    for (int p = 0; p < probes; ++p) {
      const double dot = warp_sum(dots[p]);
      if (threadIdx.x == 0) along[p * strip + i - top] = dot;
    }
  }
  __syncthreads();
  double residual = 0;
  for (int p = threadIdx.y; p < probes; p += blockDim.y)
    if (const std::int64_t i = top + threadIdx.x; i < n) {
      double sum = pairs.mixed[(probes + p) * n + i] + along[p * strip + threadIdx.x];
      for (unsigned y = 0; y < blockDim.y; ++y)
        sum += scratch[(y * probes + p) * warp + threadIdx.x];
      residual += sum * sum;
    }
  __syncthreads();
  return {block_sum(residual, scratch), block_sum(squares, scratch)};
}

// What vectors [top, top + strip) add to the square of the error of orthogonality.
template <class T>
__device__ double orthogonality_of(const Pairs<T>& pairs, std::int64_t top, double* scratch) {
  const std::int64_t n = pairs.n;
  double squares = 0;
  for (std::int64_t i = top + threadIdx.y; i < min(pairs.k, top + strip); i += blockDim.y) {
    double dots[probes] = {};
    for (std::int64_t j = threadIdx.x; j < n; j += warp) {
      const double x = double(pairs.v[i * n + j]);
      for (int p = 0; p < probes; ++p) dots[p] += x * pairs.mixed[p * n + j];
    }
    for (int p = 0; p < probes; ++p) {
      const double error = sign_of(signs_of(i), p) - warp_sum(dots[p]);
      if (threadIdx.x == 0) squares += error * error;
    }
  }
  return block_sum(squares, scratch);
}

// Squares of the norms of what a strip, or a matrix, contributes.
struct Parts {
  double residual, orthogonality, norm;
};

template <class T>
struct Checked {
  Strided a;
  std::int64_t begin, k;
  const Scan* scans;
  const T* w;
  const T* v;
  double* mixed;  // (count, 2 probes, n), where it does not fit shared memory
  Parts* parts;   // (count, strips), or (count) where a block checks a matrix

  __device__ Pairs<T> pairs(std::int64_t item, double* mix) const {
    const std::int64_t n = a.columns;
    return {n, k, w + item * k, v + item * k * n, mix};
  }
  __device__ Pairs<T> pairs(std::int64_t item) const {
    return pairs(item, mixed + item * 2 * probes * a.columns);
  }
};

template <class T>
__global__ void check_matrix_kernel(Checked<T> checked) {
  const std::int64_t n = checked.a.columns, item = blockIdx.x;
  double* const scratch = reinterpret_cast<double*>(dynamic_shared());
  const Pairs<T> pairs = checked.pairs(item, scratch + check_scratch(blockDim.y));
  const ScaledMatrix matrix(checked.a, checked.begin + item, checked.scans[item]);
  for (std::int64_t left = 0; left < n; left += strip) mix(pairs, left, scratch);
  Parts parts{0, 0, 0};
  for (std::int64_t top = 0; top < n; top += strip) {
    const double2 squares = residual_of(matrix, pairs, top, scratch);
    parts.residual += squares.x;
    parts.norm += squares.y;
  }
  for (std::int64_t top = 0; top < checked.k; top += strip)
    parts.orthogonality += orthogonality_of(pairs, top, scratch);
  if (threadIdx.x == 0 && threadIdx.y == 0) checked.parts[item] = parts;
}

template <class T>
__global__ void mix_kernel(Checked<T> checked) {
  const std::int64_t strips = strips_of(checked.a.columns);
  mix(checked.pairs(blockIdx.x / strips), blockIdx.x % strips * strip,
      reinterpret_cast<double*>(dynamic_shared()));
}

template <class T>
__global__ void check_strip_kernel(Checked<T> checked) {
  const std::int64_t strips = strips_of(checked.a.columns);
  const std::int64_t item = blockIdx.x / strips, top = blockIdx.x % strips * strip;
  double* const scratch = reinterpret_cast<double*>(dynamic_shared());
  const Pairs<T> pairs = checked.pairs(item);
  const ScaledMatrix matrix(checked.a, checked.begin + item, checked.scans[item]);
  const double2 squares = residual_of(matrix, pairs, top, scratch);
  const double orthogonality = orthogonality_of(pairs, top, scratch);
  if (threadIdx.x == 0 && threadIdx.y == 0)
    checked.parts[blockIdx.x] = {squares.x, orthogonality, squares.y};
}

// A warp for each matrix gathers its parts and undoes the scaling of its eigenvalues.
template <class T>
__global__ void conclude_kernel(std::int64_t count, std::int64_t k, std::int64_t per_matrix,
                                const Scan* scans, const Parts* parts, const int* info, T* w,
                                Verdict* verdicts) {
  const std::int64_t item = std::int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (item >= count) return;
  Verdict verdict{};
  for (std::int64_t i = threadIdx.x; i < per_matrix; i += warp) {
    const Parts& part = parts[item * per_matrix + i];
    verdict.residual += part.residual;
    verdict.orthogonality += part.orthogonality;
    verdict.norm += part.norm;
  }
  verdict.residual = sqrt(warp_sum(verdict.residual) / probes);
  verdict.orthogonality = sqrt(warp_sum(verdict.orthogonality) / probes);
  verdict.norm = sqrt(warp_sum(verdict.norm));
  const Scan scan = scans[item];
  verdict.exponent = exponent_of(scan);
  verdict.bad = scan.bad == 0 ? -1 : std::int64_t(~scan.bad);
  bool finite = true;
  for (std::int64_t i = threadIdx.x; i < k; i += warp) {
    T& value = w[item * k + i];
    verdict.largest = max(verdict.largest, double(fabs(value)));
    value = ldexp(value, verdict.exponent);
    finite = finite && isfinite(value);
  }
  for (int step = warp / 2; step > 0; step /= 2)
    verdict.largest = max(verdict.largest, __shfl_xor_sync(all_lanes, verdict.largest, step));
  verdict.range = __all_sync(all_lanes, finite);
  verdict.info = info[item];
  if (threadIdx.x == 0) verdicts[item] = verdict;
}

// A block for each matrix. cuSOLVER's eigenvalues are in order but for their rounding. Values alone
// change places: the check that follows sees where that is more than rounding.
template <class T>
__global__ void order_kernel(std::int64_t k, T* w) {
  T* const values = w + std::int64_t(blockIdx.x) * k;
  for (int swapped = 1; swapped != 0;) {
    swapped = 0;
    for (int odd = 0; odd < 2; ++odd) {
      for (std::int64_t i = 2 * std::int64_t(threadIdx.x) + odd; i + 1 < k; i += 2 * blockDim.x)
        if (const T low = values[i + 1]; low < values[i]) {
          values[i + 1] = values[i];
          values[i] = low;
          swapped = 1;
        }
      __syncthreads();
    }
    swapped = __syncthreads_or(swapped);
  }
}

template <class T>
constexpr cudaDataType type_of = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_64F;

class SolverParameters {
 public:
  SolverParameters() { check(cusolverDnCreateParams(&parameters_), "cusolverDnCreateParams"); }
  ~SolverParameters() { cusolverDnDestroyParams(parameters_); }
  SolverParameters(const SolverParameters&) = delete;
  SolverParameters& operator=(const SolverParameters&) = delete;
  cusolverDnParams_t get() const { return parameters_; }

 private:
  cusolverDnParams_t parameters_ = nullptr;
};

// Solves a batch part by part; the memory that one part takes is kept for the next.
template <class T>
class Solving {
 public:
  Solving(const Queue& queue, const ArrayView& a, std::int64_t k, const EighPlan& plan)
      : queue_(queue),
        a_(strided(a)),
        n_(a_.columns),
        k_(k),
        batch_(a_.rows / n_),
        plan_(plan),
        solver_(queue) {}

  void solve(EighOutput& out, const Notes& notes);

  /// Of the matrices from `begin` on: their scales, for all that follows.
  void scan(std::int64_t begin, std::int64_t count);
  /// The driver's info for so many matrices, from 0 (success).
  int* fresh_info(std::int64_t count);
  /// What came of these pairs.
  std::vector<Verdict> conclude(std::int64_t begin, std::int64_t count, T* w, const T* v);

 private:
  /// A driver, and the function that solves some matrices with it. It returns why the driver would
  /// not do so, or an empty string.
  struct Rung {
    const char* driver;
    std::string (Solving::*solve)(std::int64_t begin, std::int64_t count);
  };
  std::vector<Rung> ladder() const;
  void climb(std::size_t rung, std::int64_t begin, std::int64_t count, bool short_of_memory);
  void check_finite(std::int64_t begin, std::int64_t count);
  [[noreturn]] void raise_not_finite(std::int64_t item, std::int64_t place) const;

  std::string jacobi(std::int64_t begin, std::int64_t count);
  std::string syev_batched(std::int64_t begin, std::int64_t count);
  template <class Working>
  std::string syevd(std::int64_t begin, std::int64_t count);
  std::string syevdx(std::int64_t begin, std::int64_t count);

  cusolverStatus_t ask_syev_batched(std::int64_t count, std::size_t* device, std::size_t* host);
  std::int64_t fitting_part();
  /// `ask` says how much workspace `run` takes.
  template <class Ask, class Run>
  std::string with_workspace(const Ask& ask, const Run& run);
  std::string refusal(cusolverStatus_t status) const;

  /// Scaled matrices and all their pairs: in the output where they fit there.
  template <class Working>
  struct Place {
    Working* v;
    Working* w;
    bool in_output;
  };
  template <class Working>
  Place<Working> place(std::int64_t begin, std::int64_t count, bool in_output);
  template <class Working>
  void load(std::int64_t begin, std::int64_t count, Working* to);
  /// The last k of `found` pairs, to the output, their values in order.
  template <class Working>
  void keep(const Place<Working>& from, std::int64_t found, std::int64_t begin, std::int64_t count);

  template <class X>
  X* room(Buffer<X>& buffer, std::int64_t size) const {
    if (buffer.size() < size) {
      buffer = Buffer<X>();  // what there is goes back before more is asked for
      buffer = Buffer<X>(size, queue_);
    }
    return buffer.data();
  }
  const Scan* scans(std::int64_t begin) const { return scans_.data() + (begin - scanned_); }
  T* values(std::int64_t begin) const { return static_cast<T*>(out_->eigenvalues) + begin * k_; }
  T* vectors(std::int64_t begin) const {
    return static_cast<T*>(out_->eigenvectors) + begin * k_ * n_;
  }

  const Queue& queue_;
  const Strided a_;
  const std::int64_t n_, k_, batch_;
  const EighPlan plan_;
  const Solver solver_;
  const SolverParameters parameters_;
  EighOutput* out_ = nullptr;
  const Notes* notes_ = nullptr;

  std::int64_t scanned_ = 0;  // the matrix of the first scan
  std::int64_t found_ = 0;    // written by cuSOLVER while it runs
  Buffer<Scan> scans_;
  Buffer<int> info_;
  Buffer<double> mixed_;
  Buffer<Parts> parts_;
  Buffer<Verdict> verdicts_;
  Buffer<std::byte> copies_, workspace_;
  std::vector<std::byte> host_workspace_;
};

template <class T>
void Solving<T>::solve(EighOutput& out, const Notes& notes) {
  out_ = &out;
  notes_ = &notes;
  out.driver[0] = '\0';
  const std::int64_t part = plan_.route == Route::batched ? fitting_part() : plan_.part;
  for (std::int64_t begin = 0; begin < batch_; begin += part) {
    const std::int64_t count = std::min(part, batch_ - begin);
    scan(begin, count);
    climb(0, begin, count, true);
  }
}

template <class T>
std::vector<typename Solving<T>::Rung> Solving<T>::ladder() const {
  std::vector<Rung> out;
  if (plan_.route == Route::jacobi) out.push_back({"Jacobi", &Solving::jacobi});
  if (plan_.route == Route::batched)
    out.push_back({"cusolverDnXsyevBatched", &Solving::syev_batched});
  if (k_ < n_ && plan_.route == Route::single)
    out.push_back({"cusolverDnXsyevdx", &Solving::syevdx});
  out.push_back({"cusolverDnXsyevd", &Solving::template syevd<T>});
  // For what is too large for Xsyevd, which had sizes of 31 bits before CUDA 13.
  if (plan_.route == Route::single)
    out.push_back({"cusolverDnXsyevBatched", &Solving::syev_batched});
  if constexpr (std::is_same_v<T, float>)
    out.push_back({"cusolverDnXsyevd (float64)", &Solving::template syevd<double>});
  return out;
}

template <class T>
void Solving<T>::climb(std::size_t rung, std::int64_t begin, std::int64_t count,
                       bool short_of_memory) {
  poll(queue_);
  const std::vector<Rung> rungs = ladder();
  const std::string driver = rungs[rung].driver;
  const bool by_jacobi = rungs[rung].solve == &Solving::jacobi, last = rung + 1 == rungs.size();
  const auto note = [&](std::int64_t item, const std::string& failure) {
    if (notes_->add != nullptr)
      notes_->add(notes_->to, a_.rank > 2 ? item : -1, message(driver, ": ", failure).c_str());
  };

  std::string refused;
  std::vector<Verdict> verdicts;
  try {
    if (!by_jacobi) check_finite(begin, count);  // cuSOLVER may hang on what is not
    refused = (this->*rungs[rung].solve)(begin, count);
    if (refused.empty()) verdicts = conclude(begin, count, values(begin), vectors(begin));
    short_of_memory = false;
  } catch (const Error& e) {
    cudaStreamSynchronize(stream_of(queue_));  // cuSOLVER may still use our memory on the host
    if (e.fault != Fault::out_of_memory || (last && short_of_memory)) throw;
    refused = e.what();
  }
  if (!refused.empty()) note(count == 1 ? begin : -1, refused);

  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t item = begin + i;
    if (refused.empty()) {
      const Verdict& verdict = verdicts[std::size_t(i)];
      if (verdict.bad >= 0) raise_not_finite(item, verdict.bad);
      const std::string failure = by_jacobi && verdict.info != 0
                                      ? message("no convergence in ", plan_.sweeps, " sweeps")
                                      : judge<T>(verdict, n_);
      if (failure.empty()) {
        if (verdict.range == 0)
          throw Error(Fault::invalid_argument,
                      message("a: its eigenvalues exceed the range of ",
                              std::is_same_v<T, float> ? "float32; pass float64" : "float64"));
        out_->residual[item] = std::ldexp(verdict.residual, verdict.exponent);
        out_->orthogonality_error[item] = verdict.orthogonality;
        out_->solved[item] = true;
        if (item == 0) out_->driver[driver.copy(out_->driver, sizeof out_->driver - 1)] = '\0';
        continue;
      }
      note(item, failure);
    }
    if (last)
      out_->solved[item] = false;
    else
      climb(rung + 1, item, 1, short_of_memory);
  }
}

template <class T>
void Solving<T>::check_finite(std::int64_t begin, std::int64_t count) {
  const std::vector<Scan> scans = to_host(queue_, this->scans(begin), count);
  for (std::int64_t i = 0; i < count; ++i)
    if (const auto bad = scans[std::size_t(i)].bad; bad != 0)
      raise_not_finite(begin + i, std::int64_t(~bad));
}

template <class T>
void Solving<T>::raise_not_finite(std::int64_t item, std::int64_t place) const {
  throw Error(Fault::invalid_argument,
              message("a: NaN or infinity at row ", place / n_, ", column ", place % n_,
                      a_.rank > 2 ? message(" of matrix ", item) : std::string()));
}

template <class T>
void Solving<T>::scan(std::int64_t begin, std::int64_t count) {
  constexpr int warps = 8;
  Scan* const scans = room(scans_, count);
  scanned_ = begin;
  const std::int64_t rows = scanned_rows(n_), units = (n_ + rows - 1) / rows;
  if (units > 1) scans_.fill_bytes(0);
  launch(queue_, blocks_for(count * units, warps), dim3(warp, warps), 0, scan_kernel, a_, begin,
         count, scans);
}

template <class T>
int* Solving<T>::fresh_info(std::int64_t count) {
  room(info_, count);
  info_.fill_bytes(0);
  return info_.data();
}

template <class T>
std::vector<Verdict> Solving<T>::conclude(std::int64_t begin, std::int64_t count, T* w,
                                          const T* v) {
  const bool in_block = n_ <= largest_check_in_block;
  const std::int64_t strips = strips_of(n_), per_matrix = in_block ? 1 : strips;
  const dim3 block(warp, n_ <= 16 ? 2 : 8);
  const std::int64_t scratch = check_scratch(int(block.y)) * std::int64_t(sizeof(double));
  const std::int64_t mixed = 2 * probes * n_;
  const Checked<T> checked{a_,
                           begin,
                           k_,
                           scans(begin),
                           w,
                           v,
                           in_block ? nullptr : room(mixed_, count * mixed),
                           room(parts_, count * per_matrix)};
  if (in_block) {
    launch(queue_, blocks_for(count, 1), block,
           std::size_t(scratch + mixed * std::int64_t(sizeof(double))), check_matrix_kernel<T>,
           checked);
  } else {
    const unsigned blocks = blocks_for(count * strips, 1);
    launch(queue_, blocks, block, std::size_t(scratch), mix_kernel<T>, checked);
    launch(queue_, blocks, block, std::size_t(scratch), check_strip_kernel<T>, checked);
  }
  Verdict* const verdicts = room(verdicts_, count);
  launch(queue_, blocks_for(count, block.y), block, 0, conclude_kernel<T>, count, k_, per_matrix,
         scans(begin), parts_.data(), info_.data(), w, verdicts);
  return to_host(queue_, verdicts, count);
}

template <class T>
std::string Solving<T>::jacobi(std::int64_t begin, std::int64_t count) {
  const bool in_block = n_ > largest_jacobi_warp;
  const int matrices = in_block ? 1 : 4;
  const auto bytes = std::size_t(JacobiLayout{int(n_)}.bytes(sizeof(T), matrices));
  launch(queue_, blocks_for(count, matrices), dim3(warp, in_block ? 8 : unsigned(matrices)), bytes,
         in_block ? jacobi_kernel<T, true> : jacobi_kernel<T, false>, a_, begin, count,
         scans(begin), int(k_), plan_.sweeps, values(begin), vectors(begin), room(info_, count));
  return {};
}

template <class T>
template <class Working>
typename Solving<T>::template Place<Working> Solving<T>::place(std::int64_t begin,
                                                               std::int64_t count, bool in_output) {
  if constexpr (std::is_same_v<Working, T>)
    if (in_output) return {vectors(begin), values(begin), true};
  std::byte* const memory = room(copies_, count * (n_ * n_ + n_) * std::int64_t(sizeof(Working)));
  auto* const v = reinterpret_cast<Working*>(memory);
  return {v, v + count * n_ * n_, false};
}

template <class T>
template <class Working>
void Solving<T>::load(std::int64_t begin, std::int64_t count, Working* to) {
  const std::int64_t strips = strips_of(n_);
  launch(queue_, blocks_for(count * strips * strips, 1), dim3(warp, 8), 0, load_kernel<Working>, a_,
         begin, scans(begin), to);
}

template <class T>
template <class Working>
void Solving<T>::keep(const Place<Working>& from, std::int64_t found, std::int64_t begin,
                      std::int64_t count) {
  if (!from.in_output)
    launch(queue_, blocks_for(count * k_ * n_, 1024), 256, 0, keep_kernel<Working, T>, from.w,
           from.v, found, n_, k_, count, values(begin), vectors(begin));
  launch(queue_, blocks_for(count, 1), 256, 0, order_kernel<T>, k_, values(begin));
}

template <class T>
std::string Solving<T>::refusal(cusolverStatus_t status) const {
  if (status == CUSOLVER_STATUS_SUCCESS) return {};
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) check(status, "cuSOLVER");
  // Where the device itself has failed, no other driver can help.
  check(cudaStreamSynchronize(stream_of(queue_)), "cudaStreamSynchronize");
  return message("cuSOLVER status ", int(status));
}

template <class T>
template <class Ask, class Run>
std::string Solving<T>::with_workspace(const Ask& ask, const Run& run) {
  std::size_t device = 0, host = 0;
  if (std::string refused = refusal(ask(&device, &host)); !refused.empty()) return refused;
  std::byte* const memory = room(workspace_, std::int64_t(device));
  workspace_.fill_bytes(0);  // some versions return wrong answers from what an earlier call left
  if (host_workspace_.size() < host) host_workspace_.resize(host);
  return refusal(run(memory, device, host_workspace_.data(), host));
}

template <class T>
template <class Working>
std::string Solving<T>::syevd(std::int64_t begin, std::int64_t count) {
  const Place<Working> to = place<Working>(begin, count, k_ == n_);
  load(begin, count, to.v);
  int* const info = fresh_info(count);
  constexpr cudaDataType type = type_of<Working>;
  const auto ask = [&](std::size_t* device, std::size_t* host) {
    return cusolverDnXsyevd_bufferSize(solver_.get(), parameters_.get(), CUSOLVER_EIG_MODE_VECTOR,
                                       CUBLAS_FILL_MODE_LOWER, n_, type, to.v, n_, type, to.w, type,
                                       device, host);
  };
  const auto run = [&](void* device, std::size_t device_bytes, void* host, std::size_t host_bytes) {
    return cusolverDnXsyevd(solver_.get(), parameters_.get(), CUSOLVER_EIG_MODE_VECTOR,
                            CUBLAS_FILL_MODE_LOWER, n_, type, to.v, n_, type, to.w, type, device,
                            device_bytes, host, host_bytes, info);
  };
  std::string refused = with_workspace(ask, run);
  if (refused.empty()) keep(to, n_, begin, count);
  return refused;
}

template <class T>
std::string Solving<T>::syevdx(std::int64_t begin, std::int64_t count) {
  const Place<T> to = place<T>(begin, count, false);
  load(begin, count, to.v);
  int* const info = fresh_info(count);
  constexpr cudaDataType type = type_of<T>;
  T low = 0, high = 0;  // not asked for
  const auto ask = [&](std::size_t* device, std::size_t* host) {
    return cusolverDnXsyevdx_bufferSize(solver_.get(), parameters_.get(), CUSOLVER_EIG_MODE_VECTOR,
                                        CUSOLVER_EIG_RANGE_I, CUBLAS_FILL_MODE_LOWER, n_, type,
                                        to.v, n_, &low, &high, n_ - k_ + 1, n_, &found_, type, to.w,
                                        type, device, host);
  };
  const auto run = [&](void* device, std::size_t device_bytes, void* host, std::size_t host_bytes) {
    return cusolverDnXsyevdx(solver_.get(), parameters_.get(), CUSOLVER_EIG_MODE_VECTOR,
                             CUSOLVER_EIG_RANGE_I, CUBLAS_FILL_MODE_LOWER, n_, type, to.v, n_, &low,
                             &high, n_ - k_ + 1, n_, &found_, type, to.w, type, device,
                             device_bytes, host, host_bytes, info);
  };
  std::string refused = with_workspace(ask, run);
  // Where fewer were found, the check will tell.
  if (refused.empty()) keep(to, k_, begin, count);
  return refused;
}

template <class T>
cusolverStatus_t Solving<T>::ask_syev_batched(std::int64_t count, std::size_t* device,
                                              std::size_t* host) {
  constexpr cudaDataType type = type_of<T>;
  return cusolverDnXsyevBatched_bufferSize(
      solver_.get(), parameters_.get(), CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n_, type,
      vectors(0), n_, type, values(0), type, device, host, count);
}

template <class T>
std::string Solving<T>::syev_batched(std::int64_t begin, std::int64_t count) {
  const Place<T> to = place<T>(begin, count, k_ == n_);
  load(begin, count, to.v);
  int* const info = fresh_info(count);
  constexpr cudaDataType type = type_of<T>;
  const auto ask = [&](std::size_t* device, std::size_t* host) {
    return ask_syev_batched(count, device, host);
  };
  const auto run = [&](void* device, std::size_t device_bytes, void* host, std::size_t host_bytes) {
    return cusolverDnXsyevBatched(solver_.get(), parameters_.get(), CUSOLVER_EIG_MODE_VECTOR,
                                  CUBLAS_FILL_MODE_LOWER, n_, type, to.v, n_, type, to.w, type,
                                  device, device_bytes, host, host_bytes, info, count);
  };
  std::string refused = with_workspace(ask, run);
  if (refused.empty()) keep(to, n_, begin, count);
  return refused;
}

// The largest part that cuSOLVER takes and that leaves others some memory.
template <class T>
std::int64_t Solving<T>::fitting_part() {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  const auto fits = [&](std::int64_t count) {
    std::size_t device = 0, host = 0;
    if (ask_syev_batched(count, &device, &host) != CUSOLVER_STATUS_SUCCESS) return false;
    const double copies = k_ == n_ ? 0 : double(count) * double(n_ * n_ + n_) * sizeof(T);
    return double(device) + copies <= plan_.memory_share * double(free);
  };
  std::int64_t part = std::min(plan_.part, batch_);
  while (part > 1 && !fits(part)) part = (part + 1) / 2;
  return part;
}

}  // namespace

template <class T>
std::string judge(const Verdict& verdict, std::int64_t n) {
  if (verdict.info != 0) return message("info = ", verdict.info);
  const double limit = 50 * double(n) * double(std::numeric_limits<T>::epsilon());
  // |A|_2 >= |A|_F / sqrt(n), and it is the largest |eigenvalue|, where all are known.
  const double norm = std::max(verdict.norm / std::sqrt(double(n)), verdict.largest);
  if (!(verdict.residual <= limit * norm))
    return message("residual ", verdict.residual, " above ", limit * norm);
  if (!(verdict.orthogonality <= limit))
    return message("orthogonality error ", verdict.orthogonality, " above ", limit);
  return {};
}

template <class T>
std::vector<Verdict> check_eigenpairs(const Queue& queue, const ArrayView& a, std::int64_t k, T* w,
                                      const T* v) {
  const std::int64_t batch = strided(a).rows / a.columns();
  Solving<T> solving(queue, a, k, {Route::single, batch});
  solving.scan(0, batch);
  solving.fresh_info(batch);
  return solving.conclude(0, batch, w, v);
}

template <class T>
void solve_eigenproblems(const Queue& queue, const ArrayView& a, std::int64_t k,
                         const EighPlan& plan, EighOutput& out, const Notes& notes) {
  Solving<T>(queue, a, k, plan).solve(out, notes);
}

bool eigh(const Queue* queue, const ArrayView* a, DType working, std::int64_t k, EighOutput* out,
          const Notes* notes, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    const Strided all = strided(*a);
    const EighPlan plan = plan_for(all.columns, k, all.rows / all.columns, working);
    if (working == DType::float32)
      solve_eigenproblems<float>(*queue, *a, k, plan, *out, *notes);
    else
      solve_eigenproblems<double>(*queue, *a, k, plan, *out, *notes);
  });
}

template std::string judge<float>(const Verdict&, std::int64_t);
template std::string judge<double>(const Verdict&, std::int64_t);
template std::vector<Verdict> check_eigenpairs(const Queue&, const ArrayView&, std::int64_t, float*,
                                               const float*);
template std::vector<Verdict> check_eigenpairs(const Queue&, const ArrayView&, std::int64_t,
                                               double*, const double*);
template void solve_eigenproblems<float>(const Queue&, const ArrayView&, std::int64_t,
                                         const EighPlan&, EighOutput&, const Notes&);
template void solve_eigenproblems<double>(const Queue&, const ArrayView&, std::int64_t,
                                          const EighPlan&, EighOutput&, const Notes&);

}  // namespace descramble_fast::cuda
