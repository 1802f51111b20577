#include "descrambler.hpp"

#include <cmath>
#include <numeric>
#include <random>
#include <span>

#include "reduce.hpp"

namespace descramble_fast::cuda {

namespace {

constexpr int threads = 256;

// A block for each row; the rule is that of the CPU's fix_sign.
__global__ void leading_rows_kernel(const double* rows, std::int64_t known, std::int64_t n,
                                    double* out) {
  const double* const from = rows + (known - 1 - blockIdx.x) * n;
  double* const to = out + blockIdx.x * n;
  double largest = 0;
  for (std::int64_t j = threadIdx.x; j < n; j += threads) largest = fmax(largest, fabs(from[j]));
  largest = reduced<threads>(largest, [](double a, double b) { return fmax(a, b); });
  std::int64_t first = threadIdx.x;
  while (first < n && !(fabs(from[first]) >= largest * (1 - 1e-6))) first += threads;
  first = reduced<threads>(first, [](std::int64_t a, std::int64_t b) { return a < b ? a : b; });
  const bool negate = first < n && from[first] < 0;
  for (std::int64_t j = threadIdx.x; j < n; j += threads) to[j] = negate ? -from[j] : from[j];
}

__global__ void repeat_kernel(const double* row, std::int64_t n, std::int64_t size, double* out) {
  const std::int64_t step = std::int64_t(gridDim.x) * threads;
  for (std::int64_t i = blockIdx.x * std::int64_t(threads) + threadIdx.x; i < size; i += step)
    out[i] = row[i % n];
}

// Rows of the identity from `first` on, columns from `left` on.
__global__ void identity_kernel(std::int64_t first, std::int64_t left, std::int64_t rows,
                                std::int64_t width, double* out) {
  const std::int64_t step = std::int64_t(gridDim.x) * threads;
  for (std::int64_t i = blockIdx.x * std::int64_t(threads) + threadIdx.x; i < rows * width;
       i += step)
    out[i] = first + i / width == left + i % width;
}

// Which rotation a column belongs to: it begins at column `begin`, its matrix at `matrix`.
struct Membership {
  std::int64_t begin, size, matrix;  // size 0: none
};

constexpr std::int64_t multiplied = 32;  // rotations from this size on are left to cuBLAS

__global__ void rotate_kernel(const Membership* columns, const double* matrices, bool back,
                              std::int64_t rows, std::int64_t left, std::int64_t width,
                              const double* from, double* to) {
  const std::int64_t step = std::int64_t(gridDim.x) * threads;
  for (std::int64_t i = blockIdx.x * std::int64_t(threads) + threadIdx.x; i < rows * width;
       i += step) {
    const std::int64_t column = left + i % width;
    const Membership in = columns[column];
    if (in.size >= multiplied) continue;
    const double* const x = from + i - column + in.begin;
    const double* const a = matrices + in.matrix + (column - in.begin) * (back ? 1 : in.size);
    double sum = in.size == 0 ? from[i] : 0;
    for (std::int64_t j = 0; j < in.size; ++j) sum += a[j * (back ? in.size : 1)] * x[j];
    to[i] = sum;
  }
}

// The block-orthogonal A between a descrambler's components and the modes.
class Rotations {
 public:
  Rotations(const Queue& queue, const Rotated& p)
      : queue_(&queue), all_(p.rotations, std::size_t(p.rotation_count)) {
    if (all_.empty()) return;
    std::vector<Membership> columns(std::size_t(p.k), Membership{});
    std::vector<double> matrices;
    for (const auto& [begin, end, matrix] : all_) {
      const std::int64_t size = end - begin;
      for (std::int64_t c = begin; c < end; ++c)
        columns[std::size_t(c)] = {begin, size, std::int64_t(matrices.size())};
      matrices.insert(matrices.end(), matrix, matrix + size * size);
    }
    columns_ = to_device(queue, columns.data(), p.k);
    matrices_ = to_device(queue, matrices.data(), std::int64_t(matrices.size()));
    first_ = std::move(columns);
  }

  bool none() const { return all_.empty(); }

  /// Rows of columns [left, left + width) times A^T or, back, times A: in `to`, or `from` itself
  /// where nothing is rotated. Rotations lie within these columns or outside.
  const double* apply(bool back, std::int64_t rows, std::int64_t left, std::int64_t width,
                      const double* from, double* to) const {
    if (none()) return from;
    launch(*queue_, blocks_for(rows * width, 4 * threads), threads, 0, rotate_kernel,
           columns_.data(), matrices_.data(), back, rows, left, width, from, to);
    for (const BlockRotation& r : all_) {
      const std::int64_t size = r.end - r.begin;
      if (size < multiplied || r.begin < left || r.end > left + width) continue;
      const double* const a = matrices_.data() + first_[std::size_t(r.begin)].matrix;
      multiply(*queue_, rows, size, size, 1, {from + r.begin - left, width}, {a, size, !back}, 0,
               to + r.begin - left, width);
    }
    return to;
  }

  /// Columns [begin, end), and all that are rotated with them.
  Block hull(std::int64_t begin, std::int64_t end) const {
    if (none()) return {begin, end};
    const Membership &low = first_[std::size_t(begin)], &high = first_[std::size_t(end - 1)];
    return {low.size > 0 ? low.begin : begin, high.size > 0 ? high.begin + high.size : end};
  }

 private:
  const Queue* queue_;
  std::span<const BlockRotation> all_;
  std::vector<Membership> first_;
  Buffer<Membership> columns_;
  Buffer<double> matrices_;
};

}  // namespace

bool leading_rows(const Queue* queue, const double* rows, std::int64_t known, std::int64_t k,
                  std::int64_t n, double* out, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    launch(*queue, unsigned(k), threads, 0, leading_rows_kernel, rows, known, n, out);
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

// E|E s|^2 = |E|_F^2 for random signs s: the CPU's own.
bool orthogonality_error(const Queue* queue, const double* rows, std::int64_t k, std::int64_t n,
                         double* error, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    constexpr std::int64_t probes = 4;
    std::vector<double> signs(std::size_t(probes * k));
    std::minstd_rand random(20230718u);
    for (double& s : signs) s = (random() >> 8) & 1 ? 1 : -1;
    const Buffer<double> left = to_device(*queue, signs.data(), probes * k);
    const Buffer<double> mixed(probes * n, *queue);
    multiply(*queue, probes, n, k, 1, {left.data(), k}, {rows, n}, 0, mixed.data(), n);
    multiply(*queue, probes, k, n, -1, {mixed.data(), n}, {rows, n, true}, 1, left.data(), k);
    copy_to_host(*queue, signs.data(), left.data(), probes * k);
    *error = std::sqrt(std::inner_product(signs.begin(), signs.end(), signs.begin(), 0.0) /
                       double(probes));
  });
}

void rotate(const Queue& queue, const Rotated& p, const Strided& samples, const double* mean,
            bool back, double* out, const Room& room) {
  const std::int64_t n = p.modes.n, k = p.k;
  const std::int64_t group = std::min(samples.rows, Room::rows(room.samples, n));
  Transform transform(queue, p.modes, room);
  const Rotations rotations(queue, p);
  const Buffer<double> x(group * n, queue), z(group * k, queue);
  const Buffer<double> turned(rotations.none() ? 0 : group * k, queue);
  Buffer<double> offset;
  if (mean != nullptr) offset = to_device(queue, mean, n);
  for (std::int64_t first = 0; first < samples.rows; first += group) {
    poll(queue);
    const std::int64_t rows = std::min(group, samples.rows - first);
    double* const to = out + first * n;
    load_rows(queue, samples, first, rows, back ? nullptr : offset.data(), x.data());
    if (back)
      transform.analyze(rows, x.data(), k, z.data());
    else
      multiply(queue, rows, k, n, 1, {x.data(), n}, {p.components, n, true}, 0, z.data(), k);
    const double* const y = rotations.apply(back, rows, 0, k, z.data(), turned.data());
    if (!back) {
      transform.synthesize(rows, 0, k, y, to);
      continue;
    }
    if (mean != nullptr)
      launch(queue, blocks_for(rows * n, 4 * threads), threads, 0, repeat_kernel, offset.data(), n,
             rows * n, to);
    multiply(queue, rows, n, k, 1, {y, k}, {p.components, n}, mean != nullptr ? 1 : 0, to, n);
  }
}

// Rows of the identity, rotated, hold few coefficients; a group of them needs few of the modes.
void rotated_modes(const Queue& queue, const Rotated& p, double* out, const Room& room) {
  constexpr std::int64_t most = 256;
  const std::int64_t n = p.modes.n, group = std::min(most, Room::rows(room.samples, n));
  Transform transform(queue, p.modes, room);
  const Rotations rotations(queue, p);
  for (std::int64_t first = 0; first < p.k; first += group) {
    poll(queue);
    const std::int64_t rows = std::min(group, p.k - first);
    const Block in = rotations.hull(first, first + rows);
    const Buffer<double> z(rows * in.size(), queue);
    const Buffer<double> turned(rotations.none() ? 0 : z.size(), queue);
    launch(queue, blocks_for(z.size(), 4 * threads), threads, 0, identity_kernel, first, in.begin,
           rows, in.size(), z.data());
    const double* const y =
        rotations.apply(false, rows, in.begin, in.size(), z.data(), turned.data());
    transform.synthesize(rows, in.begin, in.size(), y, out + first * n);
  }
}

bool rotate(const Queue* queue, const Rotated* p, const ArrayView* samples, const double* mean,
            bool back, double* out, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    rotate(*queue, *p, strided(*samples), mean, back, out);
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

bool rotated_modes(const Queue* queue, const Rotated* p, double* out, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    rotated_modes(*queue, *p, out);
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

namespace {

// The upper triangle of c, with the terms of the bias where there is one, to both triangles.
__global__ void complete_moment_kernel(std::int64_t n, const double* bias, const double* mean,
                                       double* c) {
  const std::int64_t step = std::int64_t(gridDim.x) * threads;
  for (std::int64_t e = blockIdx.x * std::int64_t(threads) + threadIdx.x; e < n * n; e += step) {
    const std::int64_t i = e / n, j = e % n;
    if (i > j) continue;
    double value = c[e];
    if (bias != nullptr) value += bias[i] * bias[j];
    if (bias != nullptr && mean != nullptr) value += mean[i] * bias[j] + bias[i] * mean[j];
    c[e] = c[j * n + i] = value;
  }
}

Buffer<double> widened(const Queue& queue, const ArrayView* a) {
  if (a == nullptr) return {};
  const Strided from = strided(*a);
  Buffer<double> out(from.rows * from.columns, queue);
  convert_rows(queue, from, out.data());
  return out;
}

}  // namespace

bool preactivation_moment(const Queue* queue, const ArrayView* weight, const ArrayView* bias,
                          const ArrayView* input_second_moment, const ArrayView* input_mean,
                          double* out, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    const Strided shape = strided(*weight);
    const std::int64_t n = shape.rows, m = shape.columns;
    const Buffer<double> w = widened(*queue, weight), b = widened(*queue, bias),
                         s = widened(*queue, input_second_moment), mu = widened(*queue, input_mean);
    const Buffer<double> ws(s.size() > 0 ? n * m : 0, *queue), mean(mu.size() > 0 ? n : 0, *queue);
    if (s.size() > 0) multiply(*queue, n, m, m, 1, {w.data(), m}, {s.data(), m}, 0, ws.data(), m);
    multiply(*queue, n, n, m, 1, {s.size() > 0 ? ws.data() : w.data(), m}, {w.data(), m, true}, 0,
             out, n);
    if (mu.size() > 0)
      multiply(*queue, 1, n, m, 1, {mu.data(), m}, {w.data(), m, true}, 0, mean.data(), n);
    launch(*queue, blocks_for(n * n, 4 * threads), threads, 0, complete_moment_kernel, n, b.data(),
           mean.data(), out);
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

}  // namespace descramble_fast::cuda
