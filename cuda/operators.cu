#include "operators.hpp"

#include "reduce.hpp"

namespace descramble_fast::cuda {

namespace {

constexpr int threads = 256;

// scale * cos(2 pi (start + step j)/(4 n)) at place j: all closed forms are of this kind.
struct Wave {
  double scale;
  std::uint64_t start, step;
};

__device__ Wave wave(const ModeAxis& axis, std::int64_t mode) {
  const std::int64_t base = axis.base == nullptr ? mode : axis.base[mode], n = axis.n;
  const bool cosine = axis.kind == ModeAxis::cosine;
  const std::int64_t k = cosine ? base : (base + 1) / 2;
  const bool alone = k == 0 || (!cosine && 2 * k == n);
  const bool sine = !cosine && k > 0 && base % 2 == 0;
  return {sqrt((alone ? 1 : 2) / double(n)),
          std::uint64_t(cosine ? k
                        : sine ? 3 * n
                               : 0),
          std::uint64_t(cosine ? 2 * k : 4 * k)};
}

// Its cosine at places first, first + stride, ...; the argument is reduced in integers, which hold
// it for n below 2^31, so that the last place is as exact as the first.
class Walk {
 public:
  __device__ Walk(const Wave& wave, std::int64_t n, std::uint64_t first, std::uint64_t stride)
      : period_(4 * std::uint64_t(n)),
        at_((wave.start + wave.step * first) % period_),
        stride_(wave.step * stride % period_) {}

  __device__ double next() {
    const std::uint64_t folded = 2 * at_ > period_ ? period_ - at_ : at_;
    at_ += stride_;
    if (at_ >= period_) at_ -= period_;
    return cospi(double(folded) / double(period_ / 2));
  }

 private:
  std::uint64_t period_, at_, stride_;
};

__global__ void modes_kernel(ModeAxis axis, std::int64_t first, double* out) {
  const Wave mode = wave(axis, first + blockIdx.x);
  const std::int64_t begin = blockIdx.y * std::int64_t(threads) + threadIdx.x;
  const std::int64_t stride = std::int64_t(gridDim.y) * threads;
  Walk walk(mode, axis.n, std::uint64_t(begin), std::uint64_t(stride));
  for (std::int64_t j = begin; j < axis.n; j += stride)
    out[blockIdx.x * axis.n + j] = mode.scale * walk.next();
}

// Between z (rows, count) and products (n, rows): coefficient c belongs to product order[c].
// Through a tile, so that both sides are reached along their rows.
constexpr int tile = 32, tile_height = 8;
template <bool scatter>
__global__ void rearrange_kernel(const std::int64_t* order, std::int64_t rows, std::int64_t count,
                                 const double* from, double* to) {
  __shared__ double kept[tile][tile + 1];
  const std::int64_t tiles = (count + tile - 1) / tile;
  const std::int64_t c0 = blockIdx.x % tiles * tile, r0 = blockIdx.x / tiles * tile;
  const int x = int(threadIdx.x);
  // body(row, column, index) for the elements of the tile, along rows of z or along products.
  const auto along_rows = [&](const auto& body) {
    for (int y = int(threadIdx.y); y < tile; y += tile_height)
      if (r0 + y < rows && c0 + x < count) body(y, x, (r0 + y) * count + c0 + x);
  };
  const auto along_products = [&](const auto& body) {
    for (int y = int(threadIdx.y); y < tile; y += tile_height)
      if (r0 + x < rows && c0 + y < count)
        body(x, y, (order == nullptr ? c0 + y : order[c0 + y]) * rows + r0 + x);
  };
  const auto take = [&](int r, int c, std::int64_t index) { kept[r][c] = from[index]; };
  const auto put = [&](int r, int c, std::int64_t index) { to[index] = kept[r][c]; };
  scatter ? along_rows(take) : along_products(take);
  __syncthreads();
  scatter ? along_products(put) : along_rows(put);
}

__global__ void load_rows_kernel(Strided from, std::int64_t first, std::int64_t count,
                                 const double* minus, double* out) {
  const std::int64_t step = std::int64_t(gridDim.x) * threads, n = from.columns;
  for (std::int64_t i = blockIdx.x * std::int64_t(threads) + threadIdx.x; i < count * n;
       i += step) {
    const std::int64_t column = i % n;
    const std::int64_t at = row_offset(from, first + i / n) + column * from.strides[from.rank - 1];
    out[i] = load(from.data, from.dtype, at) - (minus == nullptr ? 0 : minus[column]);
  }
}

__global__ void scale_kernel(const double* scale, std::int64_t n, std::int64_t size, double* z) {
  const std::int64_t step = std::int64_t(gridDim.x) * threads;
  for (std::int64_t i = blockIdx.x * std::int64_t(threads) + threadIdx.x; i < size; i += step)
    z[i] *= scale[i % n];
}

// Buffers grow, and are used again.
double* held(Buffer<double>& buffer, std::int64_t size, const Queue& queue) {
  if (buffer.size() < size) {
    buffer = {};
    buffer = Buffer<double>(size, queue);
  }
  return buffer.data();
}

}  // namespace

namespace {

void copy_columns(const Queue& queue, std::int64_t rows, std::int64_t columns, const double* from,
                  std::int64_t from_stride, double* to, std::int64_t to_stride) {
  const auto bytes = [](std::int64_t count) { return std::size_t(count) * sizeof(double); };
  check(cudaMemcpy2DAsync(to, bytes(to_stride), from, bytes(from_stride), bytes(columns),
                          std::size_t(rows), cudaMemcpyDeviceToDevice, stream_of(queue)),
        "cudaMemcpy2DAsync");
}

}  // namespace

AxisModes::AxisModes(const Queue& queue, const ModeAxis& axis, const Room& room)
    : queue_(&queue),
      axis_(axis),
      most_(Room::rows(axis.kind == ModeAxis::dense ? room.dense : room.closed, axis.n)) {
  if (axis.base == nullptr) return;
  base_ = to_device(queue, axis.base, axis.n);
  axis_.base = base_.data();
}

void AxisModes::hold(std::int64_t first, std::int64_t count) {
  if (first == first_ && count <= count_) return;
  const std::int64_t n = axis_.n;
  double* const panel = held(panel_, count * n, *queue_);
  if (axis_.kind == ModeAxis::dense) {
    copy_to_device(*queue_, panel, axis_.rows + first * n, count * n);
  } else {
    constexpr std::int64_t each = 8 * threads;  // places a block takes, as starting a walk costs
    const auto across = unsigned(std::min<std::int64_t>((n + each - 1) / each, 65535));
    launch(*queue_, dim3(unsigned(count), across), threads, 0, modes_kernel, axis_, first, panel);
  }
  first_ = first;
  count_ = count;
}

Transform::Transform(const Queue& queue, const Modes& modes, const Room& room)
    : queue_(&queue), n_(modes.n), direct_(modes.axis_count == 1 && modes.order == nullptr) {
  for (std::int32_t a = 0; a < modes.axis_count; ++a)
    axes_.emplace_back(queue, modes.axes[a], room);
  if (modes.order != nullptr) order_ = to_device(queue, modes.order, modes.n);
}

void Transform::rearrange(bool scatter, std::int64_t rows, std::int64_t first, std::int64_t count,
                          const double* from, double* to) {
  const std::int64_t tiles = ((count + tile - 1) / tile) * ((rows + tile - 1) / tile);
  const std::int64_t* const order = order_.data() == nullptr ? nullptr : order_.data() + first;
  launch(*queue_, unsigned(tiles), dim3(tile, tile_height), 0,
         scatter ? rearrange_kernel<true> : rearrange_kernel<false>, order, rows, count, from, to);
}

// Each product puts its axis first: (rows, d1, d2) -> (d2, rows, d1) -> (d1, d2, rows).
void Transform::analyze(std::int64_t rows, const double* x, std::int64_t count, double* z) {
  if (direct_) {
    axes_[0].each_panel(0, count, [&](std::int64_t first, std::int64_t modes, const double* t) {
      multiply(*queue_, rows, modes, n_, 1, {x, n_}, {t, n_, true}, 0, z + first, count);
    });
    return;
  }
  if (axes_.empty()) return copy_columns(*queue_, rows, count, x, n_, z, count);
  double* products = nullptr;
  for (std::size_t a = axes_.size(); a-- > 0;) {
    const std::int64_t d = axes_[a].size(), rest = rows * (n_ / d);
    products = held(work_[a % 2], rows * n_, *queue_);
    axes_[a].each_panel(0, d, [&](std::int64_t first, std::int64_t modes, const double* t) {
      multiply(*queue_, modes, rest, d, 1, {t, d}, {x, d, true}, 0, products + first * rest, rest);
    });
    x = products;
  }
  rearrange(false, rows, 0, count, products, z);
}

// Each product puts its axis last: (d1, d2, rows) -> (d2, rows, d1) -> (rows, d1, d2).
void Transform::synthesize(std::int64_t rows, std::int64_t first, std::int64_t count,
                           const double* z, double* out) {
  if (direct_) {
    axes_[0].each_panel(first, first + count,
                        [&](std::int64_t begin, std::int64_t modes, const double* t) {
                          multiply(*queue_, rows, n_, modes, 1, {z + begin - first, count}, {t, n_},
                                   begin == first ? 0 : 1, out, n_);
                        });
    return;
  }
  if (axes_.empty()) {
    check(cudaMemsetAsync(out, 0, std::size_t(rows * n_) * sizeof(double), stream_of(*queue_)),
          "cudaMemsetAsync");
    return copy_columns(*queue_, rows, count, z, count, out + first, n_);
  }
  const double* products = held(work_[1], rows * n_, *queue_);
  if (count < n_) work_[1].fill_bytes(0);
  rearrange(true, rows, first, count, z, work_[1].data());
  for (std::size_t a = 0; a < axes_.size(); ++a) {
    const std::int64_t d = axes_[a].size(), rest = rows * (n_ / d);
    double* const next = a + 1 == axes_.size() ? out : held(work_[a % 2], rows * n_, *queue_);
    axes_[a].each_panel(0, d, [&](std::int64_t begin, std::int64_t modes, const double* t) {
      multiply(*queue_, rest, d, modes, 1, {products + begin * rest, rest, true}, {t, d},
               begin == 0 ? 0 : 1, next, d);
    });
    products = next;
  }
}

void load_rows(const Queue& queue, const Strided& from, std::int64_t first, std::int64_t count,
               const double* minus, double* out) {
  launch(queue, blocks_for(count * from.columns, 4 * threads), threads, 0, load_rows_kernel, from,
         first, count, minus, out);
}

void map_rows(const Queue& queue, const Modes& modes, Mapping mapping, const Strided& rows,
              double* out, const Room& room) {
  const std::int64_t n = modes.n, group = std::min(rows.rows, Room::rows(room.samples, n));
  Transform transform(queue, modes, room);
  const Buffer<double> x(group * n, queue), z(mapping == Mapping::apply ? group * n : 0, queue);
  Buffer<double> scale;
  if (mapping == Mapping::apply) scale = to_device(queue, modes.eigenvalues, n);
  for (std::int64_t first = 0; first < rows.rows; first += group) {
    poll(queue);
    const std::int64_t count = std::min(group, rows.rows - first);
    double* const to = out + first * n;
    load_rows(queue, rows, first, count, nullptr, x.data());
    if (mapping == Mapping::synthesize) {
      transform.synthesize(count, 0, n, x.data(), to);
    } else if (mapping == Mapping::analyze) {
      transform.analyze(count, x.data(), n, to);
    } else {
      transform.analyze(count, x.data(), n, z.data());
      launch(queue, blocks_for(count * n, 4 * threads), threads, 0, scale_kernel, scale.data(), n,
             count * n, z.data());
      transform.synthesize(count, 0, n, z.data(), to);
    }
  }
}

namespace {

constexpr std::int64_t chunk = 256;

// Element q of a chunk of rows' sums: over C's q-th diagonal or, across, over the places (i, j)
// with i + j = q; both from the upper triangle, what is off the main diagonal twice.
__global__ void line_sums_kernel(const double* c, std::int64_t n, bool across, std::int64_t lines,
                                 double* parts) {
  const std::int64_t q = blockIdx.x * std::int64_t(threads) + threadIdx.x;
  if (q >= lines) return;
  const std::int64_t begin = blockIdx.y * chunk, end = begin + chunk < n ? begin + chunk : n;
  double sum = 0;
#pragma unroll 8
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t j = across ? q - i : q + i;
    if (i <= j && j < n) sum += (i == j ? 1 : 2) * c[i * n + j];
  }
  parts[blockIdx.y * lines + q] = sum;
}

__global__ void add_parts_kernel(const double* parts, std::int64_t count, std::int64_t lines,
                                 double* sums) {
  const std::int64_t q = blockIdx.x * std::int64_t(threads) + threadIdx.x;
  if (q >= lines) return;
  double sum = 0;
  for (std::int64_t p = 0; p < count; ++p) sum += parts[p * lines + q];
  sums[q] += sum;
}

// l t^T C t of a mode: a cosine sum of C's diagonals and, for the cosine basis, of those across,
// where cos(a) cos(b) = (cos(a - b) + cos(a + b))/2. A sine has as much as its cosine.
__global__ void energies_kernel(ModeAxis axis, const double* eigenvalues, const double* sums,
                                std::int64_t lines, double* energies) {
  Wave mode = wave(axis, blockIdx.x);
  const bool cosine = axis.kind == ModeAxis::cosine;
  double weight = mode.scale * mode.scale;
  if (cosine) weight /= 2;
  if (!cosine && mode.start > 0) weight = 0;
  mode.start = 0;
  double sum = 0;
  if (weight > 0) {
    Walk walk(mode, axis.n, threadIdx.x, threads);
    for (std::int64_t q = threadIdx.x; q < lines; q += threads) sum += sums[q] * walk.next();
  }
  sum = block_sum<threads>(sum);
  if (threadIdx.x == 0) energies[blockIdx.x] = weight * eigenvalues[blockIdx.x] * sum;
}

// l t . g for rows t of modes and g = t C.
__global__ void dot_kernel(const double* t, const double* g, std::int64_t n,
                           const double* eigenvalues, double* energies) {
  const std::int64_t row = blockIdx.x * n;
  double sum = 0;
  for (std::int64_t j = threadIdx.x; j < n; j += threads) sum += t[row + j] * g[row + j];
  sum = block_sum<threads>(sum);
  if (threadIdx.x == 0) energies[blockIdx.x] = eigenvalues[blockIdx.x] * sum;
}

// The trace of C over all axes but one of length d; a warp for each element.
__global__ void partial_trace_kernel(const double* c, std::int64_t n, std::int64_t d,
                                     std::int64_t inner, double* out) {
  const std::int64_t element = (blockIdx.x * std::int64_t(threads) + threadIdx.x) / 32;
  if (element >= d * d) return;
  const std::int64_t p = element / d, q = element % d;
  const unsigned lane = threadIdx.x % 32;
  double sum = 0;
  for (std::int64_t u = lane; u < n / d; u += 32) {
    const std::int64_t at = u / inner * d * inner + u % inner;
    sum += c[(at + p * inner) * n + at + q * inner];
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) out[element] = sum;
}

__global__ void total_kernel(const double* x, std::int64_t n, double* out) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += threads) sum += x[i];
  sum = block_sum<threads>(sum);
  if (threadIdx.x == 0) *out = sum;
}

__global__ void least_kernel(const double* c, std::int64_t n, double* out) {
  double least = c[0];
  for (std::int64_t i = threadIdx.x; i < n; i += threads) least = fmin(least, c[i * n + i]);
  least = reduced<threads>(least, [](double a, double b) { return fmin(a, b); });
  if (threadIdx.x == 0) *out = least;
}

void add_lines(const Queue& queue, const double* c, std::int64_t n, bool across, double* sums) {
  const std::int64_t lines = across ? 2 * n - 1 : n, chunks = (n + chunk - 1) / chunk;
  const Buffer<double> parts(chunks * lines, queue);
  const unsigned blocks = blocks_for(lines, threads);
  launch(queue, dim3(blocks, unsigned(chunks)), threads, 0, line_sums_kernel, c, n, across, lines,
         parts.data());
  launch(queue, blocks, threads, 0, add_parts_kernel, parts.data(), chunks, lines, sums);
}

// tr(L C) of one axis to `out` on the device.
void axis_roughness(const Queue& queue, const ModeAxis& axis, const double* c, const Room& room,
                    double* out) {
  const std::int64_t n = axis.n;
  const Buffer<double> eigenvalues = to_device(queue, axis.eigenvalues, n), energies(n, queue);
  if (axis.kind == ModeAxis::dense) {
    AxisModes modes(queue, axis, room);
    Buffer<double> product;
    modes.each_panel(0, n, [&](std::int64_t first, std::int64_t count, const double* t) {
      double* const g = held(product, count * n, queue);
      multiply(queue, count, n, n, 1, {t, n}, {c, n}, 0, g, n);
      launch(queue, unsigned(count), threads, 0, dot_kernel, t, g, n, eigenvalues.data() + first,
             energies.data() + first);
    });
  } else {
    const bool cosine = axis.kind == ModeAxis::cosine;
    Buffer<double> sums(cosine ? 2 * n : n, queue);
    sums.fill_bytes(0);
    add_lines(queue, c, n, false, sums.data());
    if (cosine) add_lines(queue, c, n, true, sums.data() + 1);  // cos(i + j + 1)
    Buffer<std::int64_t> base;
    ModeAxis there = axis;
    if (axis.base != nullptr) {
      base = to_device(queue, axis.base, n);
      there.base = base.data();
    }
    launch(queue, unsigned(n), threads, 0, energies_kernel, there, eigenvalues.data(), sums.data(),
           sums.size(), energies.data());
  }
  launch(queue, 1, threads, 0, total_kernel, energies.data(), n, out);
}

}  // namespace

// L is a sum over the axes, each of which sees C's trace over all the others.
Roughness roughness(const Queue& queue, const Modes& modes, const double* c, const Room& room) {
  const std::int64_t n = modes.n;
  const Buffer<double> results(modes.axis_count + 1, queue);
  std::int64_t inner = n;
  for (std::int32_t a = 0; a < modes.axis_count; ++a) {
    poll(queue);
    const std::int64_t d = modes.axes[a].n;
    inner /= d;
    const Buffer<double> traced(d < n ? d * d : 0, queue);
    if (d < n)
      launch(queue, blocks_for(d * d, threads / 32), threads, 0, partial_trace_kernel, c, n, d,
             inner, traced.data());
    axis_roughness(queue, modes.axes[a], d < n ? traced.data() : c, room, results.data() + a);
  }
  launch(queue, 1, threads, 0, least_kernel, c, n, results.data() + modes.axis_count);
  const std::vector<double> found = to_host(queue, results.data(), results.size());
  Roughness out{0, found.back()};
  for (std::int32_t a = 0; a < modes.axis_count; ++a) out.trace += found[std::size_t(a)];
  return out;
}

bool roughness(const Queue* queue, const Modes* modes, const double* c, double* trace,
               double* least, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    const Roughness found = roughness(*queue, *modes, c);
    *trace = found.trace;
    *least = found.least;
  });
}

namespace {

bool mapped(const Queue* queue, const Modes* modes, Mapping mapping, const ArrayView* rows,
            double* out, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    map_rows(*queue, *modes, mapping, strided(*rows), out);
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

}  // namespace

bool analyze(const Queue* queue, const Modes* modes, const ArrayView* rows, double* out,
             Failure* failure) {
  return mapped(queue, modes, Mapping::analyze, rows, out, failure);
}

bool synthesize(const Queue* queue, const Modes* modes, const ArrayView* rows, double* out,
                Failure* failure) {
  return mapped(queue, modes, Mapping::synthesize, rows, out, failure);
}

bool apply(const Queue* queue, const Modes* modes, const ArrayView* rows, double* out,
           Failure* failure) {
  return mapped(queue, modes, Mapping::apply, rows, out, failure);
}

}  // namespace descramble_fast::cuda
