#include "cpu/panel.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "call.hpp"
#include "cpu/convert.hpp"
#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

extern const CovarianceKernels covariance_baseline;
#if defined(DESCRAMBLE_FAST_X86)
extern const CovarianceKernels covariance_avx2;
extern const CovarianceKernels covariance_avx512;
extern const CovarianceKernels covariance_avx512_bf16;
#endif

std::span<const Variant<CovarianceKernels>> covariance_variants(Simd level) {
  static constexpr auto all = std::to_array<Variant<CovarianceKernels>>({
      {Simd::baseline, &covariance_baseline},
#if defined(DESCRAMBLE_FAST_X86)
      {Simd::avx2, &covariance_avx2},
      {Simd::avx512, &covariance_avx512},
      {Simd::avx512_bf16, &covariance_avx512_bf16},
#endif
  });
  return up_to<CovarianceKernels>(level, all);
}

namespace {

// Rows that one block takes while the strips of a group stay in cache; half of it in double.
constexpr std::int64_t chunk_rows = 512;
// Few blocks are multiplied in parts of so many rows, each by one thread; in two where there are
// fewer than twice as many.
constexpr std::int64_t part_rows = 1024, fewest_rows = 256;
constexpr std::int64_t few_blocks = 128;
// Rows packed by one task.
constexpr std::int64_t group_rows = 8 * pack_rows;
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
void copy_row(const ArrayView& batch, std::int64_t row, T* out) {
  const auto* const from = reinterpret_cast<const T*>(batch.row(row));
  const std::int64_t stride = batch.column_stride();
  for (std::int64_t j = 0; j < batch.columns(); ++j) out[j] = from[j * stride];
}

void (*packer(Arithmetic arithmetic, DType dtype))(const PackTask&) {
  const CovarianceKernels& kernels = covariance_kernels();
  if (arithmetic == Arithmetic::pairs) return kernels.pack_pairs;
  if (arithmetic == Arithmetic::wide) return kernels.pack_float64;
  return dtype == DType::float16    ? kernels.pack_float16
         : dtype == DType::bfloat16 ? kernels.pack_bfloat16
                                    : kernels.pack_float32;
}

}  // namespace

void copy_row(const ArrayView& batch, std::int64_t row, std::byte* out) {
  const auto size = size_of(batch.dtype());
  if (batch.column_stride() == 1)
    std::memcpy(out, batch.row(row), std::size_t(batch.columns() * size));
  else if (size == 2)
    copy_row(batch, row, reinterpret_cast<std::uint16_t*>(out));
  else if (size == 4)
    copy_row(batch, row, reinterpret_cast<std::uint32_t*>(out));
  else
    copy_row(batch, row, reinterpret_cast<std::uint64_t*>(out));
}

void Packed::reset(std::int64_t rows, std::int64_t columns, Arithmetic arithmetic) {
  arithmetic_ = arithmetic;
  // Strips a power of two apart would fall on each other in the caches.
  stride_ = strip * (elements(rows) + 16);
  const std::int64_t bytes = columns / strip * stride_ * element_size(arithmetic);
  if (data_.size() >= bytes) return;
  data_ = {};
  data_ = Aligned<std::byte>(bytes);
}

void Packed::pack(const Source& source, const void* reference, std::int64_t place, Sums& sums) {
  for (std::size_t side = 0; side < source.batches.size(); ++side)
    pack_side(source, side, reference, place, sums);
}

void Packed::pack_side(const Source& source, std::size_t side, const void* reference,
                       std::int64_t place, Sums& sums) {
  const ArrayView& batch = source.batches[side];
  const std::int64_t n = batch.columns(), first = source.firsts[side], count = source.count();
  const bool wide = arithmetic_ == Arithmetic::wide, weighted = !source.rows.weights.empty();
  // Rows that the kernels cannot read as they are, are copied.
  const bool widen = wide && batch.dtype() != DType::float64;
  const bool as_is = !widen && batch.column_stride() == 1;
  const std::int64_t size = widen ? 8 : size_of(batch.dtype());
  std::vector<std::byte> copies(as_is ? 0 : std::size_t(pack_rows * n * size));
  std::vector<const void*> rows(std::size_t(count), nullptr);
  if (as_is)
    for (std::int64_t i = 0; i < count; ++i)
      rows[std::size_t(i)] = batch.row(source.rows[source.begin + i]);
  std::array<double, pack_rows> roots{};
  std::array<float, pack_rows> narrow_roots{};
  for (std::int64_t k = 0; k < count; k += pack_rows) {
    const std::int64_t some = std::min<std::int64_t>(pack_rows, count - k);
    for (std::int64_t i = 0; i < some; ++i) {
      if (!as_is) {
        const std::int64_t row = source.rows[source.begin + k + i];
        std::byte* const to = copies.data() + i * n * size;
        if (widen)
          widen_row(batch, row, reinterpret_cast<double*>(to));
        else
          copy_row(batch, row, to);
        rows[std::size_t(k + i)] = to;
      }
      if (weighted) {
        roots[std::size_t(i)] = std::sqrt(source.rows.weight_of(source.begin + k + i));
        narrow_roots[std::size_t(i)] = float(roots[std::size_t(i)]);
      }
    }
    const void* const root = wide ? static_cast<const void*>(roots.data())
                                  : static_cast<const void*>(narrow_roots.data());
    const PackTask task{
        rows.data() + k,
        as_is && k + 2 * pack_rows <= count ? rows.data() + k + pack_rows : nullptr,
        int(some),
        n,
        static_cast<const std::byte*>(reference) + element_size(arithmetic_) * first,
        weighted ? root : nullptr,
        data_.data() + offset(first / strip, place + k),
        stride_,
        sums.sum.data() + first,
        sums.square.data() + first,
        sums.bits.data() + first,
        sums.largest.data() + first};
    packer(arithmetic_, batch.dtype())(task);
  }
}

void Packed::multiply(const Block& block, double* to) const {
  const CovarianceKernels& kernels = covariance_kernels();
  const BlockTask task{data_.data() + offset(block.left_strip, block.begin),
                       data_.data() + offset(block.right_strip, block.begin),
                       elements(block.end - block.begin),
                       block.columns,
                       block.diagonal,
                       to,
                       data_.data() + offset(block.fetched_strip, block.fetched_row)};
  if (arithmetic_ == Arithmetic::pairs)
    kernels.multiply_pairs(task);
  else if (arithmetic_ == Arithmetic::single)
    kernels.multiply_float(task);
  else
    kernels.multiply_double(task);
}

// What the last panel of this thread was packed in: fresh memory costs more than packing it.
thread_local Packed spare_room;

Panel::Panel(const Shape& shape, std::int64_t rows) : shape_(shape), sums_(0) {
  if (surroundings().memory == nullptr) packed_ = std::move(spare_room);
  if (shape.blocks() >= few_blocks || rows < fewest_rows) return;
  part_rows_ = rows >= 2 * part_rows ? part_rows : ceil_div(rows, 2 * pack_rows) * pack_rows;
  parts_ = Aligned<double>(ceil_div(rows, part_rows_) * size());
}

Panel::~Panel() {
  constexpr std::int64_t most = 1 << 25;
  if (surroundings().memory == nullptr && packed_.room() <= most) spare_room = std::move(packed_);
}

std::int64_t Panel::chunk() const {
  return arithmetic_ == Arithmetic::wide ? chunk_rows / 2 : chunk_rows;
}

void Panel::pack(const Source& source, Arithmetic arithmetic, std::span<const double> reference,
                 int threads) {
  const std::vector<float> narrow(reference.begin(), reference.end());
  const void* const about =
      arithmetic == Arithmetic::single ? static_cast<const void*>(narrow.data()) : reference.data();
  arithmetic_ = arithmetic;
  depth_ = source.count();
  const std::int64_t task_rows = in_parts() ? part_rows_ : group_rows;
  std::vector<Sums> sums(std::size_t(ceil_div(depth_, task_rows)), Sums(0));
  if (!in_parts()) packed_.reset(depth_, shape_.columns, arithmetic);
  parallel_for(threads, std::int64_t(sums.size()), [&](std::int64_t t) {
    Sums mine{std::size_t(shape_.columns)};
    const Source rows = source.part(t * task_rows, (t + 1) * task_rows);
    if (in_parts())
      pack_and_multiply(rows, about, parts_.data() + t * size(), mine);
    else
      packed_.pack(rows, about, t * task_rows, mine);
    sums[std::size_t(t)] = std::move(mine);
  });
  sums_ = Sums(std::size_t(shape_.columns));
  for (const Sums& part : sums) sums_.add(part);
}

void Panel::add_products(Scatter& scatter, int threads, const std::function<void()>& poll) const {
  if (in_parts()) {
    add_all(scatter.values(), {parts_.data(), std::size_t(ceil_div(depth_, part_rows_) * size())},
            threads);
    return;
  }
  std::int64_t group = 4;  // strips a side: they stay in cache for a chunk of rows
  while (group > 1 && shape_.blocks() < 4 * threads * group * group) group /= 2;
  const std::int64_t columns = ceil_div(scatter.column_strips(), group);
  const std::int64_t rows = ceil_div(scatter.row_strips(scatter.column_strips() - 1), group);
  const auto add = [&](std::int64_t t) {
    // The longest tasks first.
    const Group task{t % rows * group, (columns - 1 - t / rows) * group, group};
    for (std::int64_t begin = 0; begin < depth_; begin += chunk()) {
      const std::int64_t end = std::min(depth_, begin + chunk());
      multiply(packed_, task, begin, end, end < depth_ ? end : begin, scatter.values().data());
    }
  };
  parallel_for(threads, columns * rows, add, poll);
}

void Panel::pack_and_multiply(const Source& rows, const void* reference, double* products,
                              Sums& sums) const {
  std::fill_n(products, size(), 0.0);
  Packed packed;
  packed.reset(std::min(chunk(), rows.count()), shape_.columns, arithmetic_);
  for (std::int64_t begin = 0; begin < rows.count(); begin += chunk()) {
    const Source some = rows.part(begin, begin + chunk());
    packed.pack(some, reference, 0, sums);
    for (std::int64_t j = 0; j < shape_.scatter.column_strips(); j += 4)
      for (std::int64_t i = 0; i < shape_.scatter.row_strips(j + 3); i += 4)
        multiply(packed, {i, j, 4}, 0, some.count(), 0, products);
  }
}

// The products of rows [begin, end) for a group of blocks, which fetches its strips' rows from
// `next` on, one strip with a block.
void Panel::multiply(const Packed& packed, const Group& group, std::int64_t begin, std::int64_t end,
                     std::int64_t next, double* products) const {
  const Scatter& scatter = shape_.scatter;
  std::int64_t fetched = 0;
  for (std::int64_t j = group.j; j < std::min(group.j + group.size, scatter.column_strips()); ++j) {
    const std::int64_t last = std::min(group.i + group.size, scatter.row_strips(j));
    const std::int64_t right = shape_.first_right_strip + j;
    for (std::int64_t i = group.i; i < last; ++i, ++fetched) {
      const std::int64_t left_or_right =
          fetched < group.size ? group.i + fetched
                               : shape_.first_right_strip + group.j + fetched - group.size;
      const std::int64_t soon =
          fetched < 2 * group.size ? std::min(left_or_right, strips() - 1) : right;
      packed.multiply(
          {i, right, begin, end, std::min<std::int64_t>(strip, shape_.right_columns - strip * j),
           scatter.triangular() && i == j, soon, next},
          products + scatter.offset(strip * i, j));
    }
  }
}

}  // namespace descramble_fast::cpu
