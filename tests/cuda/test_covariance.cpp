// Streaming moments on the device against two passes in long double.

#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "../../cuda/covariance.hpp"
#include "device.hpp"
#include "device_memory.hpp"
#include "tiles.hpp"

namespace descramble_fast::cuda {
namespace {

using testing::DeviceArray;
using testing::queue;
using Values = std::vector<double>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr DType dtypes[] = {DType::float16, DType::bfloat16, DType::float32, DType::float64};

// ---- samples

std::uint16_t bfloat16_bits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (!std::isfinite(x)) return std::uint16_t(bits >> 16 | (std::isnan(x) ? 1 : 0));
  return std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t bits16(DType dtype, double x) {
  return dtype == DType::float16 ? __half_as_ushort(__float2half_rn(float(x)))
                                 : bfloat16_bits(float(x));
}

// As the type holds it.
double rounded(DType dtype, double x) {
  switch (dtype) {
    case DType::float16:
      return __half2float(__ushort_as_half(bits16(dtype, x)));
    case DType::bfloat16:
      return std::bit_cast<float>(std::uint32_t(bits16(dtype, x)) << 16);
    case DType::float32:
      return float(x);
    default:
      return x;
  }
}

struct Samples {
  DType dtype;
  std::int64_t rows, n;
  Values x;

  double& at(std::int64_t row, std::int64_t column) { return x[std::size_t(row * n + column)]; }
  Samples part(std::int64_t begin, std::int64_t end) const {
    return {dtype, end - begin, n, Values(x.begin() + begin * n, x.begin() + end * n)};
  }
};

// Correlated columns of different deviations about 1.
Samples samples(DType dtype, std::int64_t rows, std::int64_t n, double mean = 0, double scale = 1,
                unsigned seed = 1) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  Samples out{dtype, rows, n, Values(std::size_t(rows * n))};
  for (std::int64_t r = 0; r < rows; ++r) {
    const double common = normal(engine);
    for (std::int64_t c = 0; c < n; ++c)
      out.at(r, c) = rounded(
          dtype, scale * (mean + (0.5 + double(c % 7) / 8) * (0.6 * common + normal(engine))));
  }
  return out;
}

std::vector<std::byte> encoded(DType dtype, const Values& x) {
  std::vector<std::byte> out(x.size() * std::size_t(bytes_of(dtype)));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float narrow = float(x[i]);
    const std::uint16_t half = bytes_of(dtype) == 2 ? bits16(dtype, x[i]) : 0;
    const bool truth = x[i] != 0;
    const void* const from = dtype == DType::float64   ? static_cast<const void*>(&x[i])
                             : dtype == DType::float32 ? static_cast<const void*>(&narrow)
                             : dtype == DType::boolean ? static_cast<const void*>(&truth)
                                                       : &half;
    std::memcpy(out.data() + i * std::size_t(bytes_of(dtype)), from, std::size_t(bytes_of(dtype)));
  }
  return out;
}

// An array on the device and a view of it.
class OnDeviceArray {
 public:
  OnDeviceArray(DType dtype, const Values& x, std::initializer_list<std::int64_t> shape,
                std::optional<std::vector<std::int64_t>> strides = {}, std::int64_t offset = 0)
      : memory_(encoded(dtype, x)), view_(make(dtype, shape, strides, offset)) {}
  explicit OnDeviceArray(const Samples& s) : OnDeviceArray(s.dtype, s.x, {s.rows, s.n}) {}

  const ArrayView& view() const { return view_; }

 private:
  ArrayView make(DType dtype, std::span<const std::int64_t> shape,
                 const std::optional<std::vector<std::int64_t>>& strides, std::int64_t offset) {
    const std::byte* const data = memory_.data() + offset * bytes_of(dtype);
    const Device device{DeviceKind::cuda, 0};
    return strides ? ArrayView(data, dtype, shape, *strides, device)
                   : ArrayView(data, dtype, shape, device);
  }

  DeviceArray<std::byte> memory_;
  ArrayView view_;
};

// ---- the accumulator

class Accumulator {
 public:
  explicit Accumulator(std::int64_t n_x, std::int64_t n_y = 0, bool offload = false)
      : n_x_(n_x), n_y_(n_y == 0 ? n_x : n_y) {
    const MomentsShape shape{0, n_x, n_y, offload};
    Moments* moments = nullptr;
    call(moments_create(&shape, &moments, &failure_));
    moments_.reset(moments);
  }

  Moments* get() const { return moments_.get(); }
  std::int64_t size() const { return n_x_ * n_y_; }

  Accumulator& add(const ArrayView* batches, const ArrayView* mask = nullptr,
                   const ArrayView* weights = nullptr, const Queue& on = queue) {
    call(moments_add(get(), &on, batches, mask, weights, &failure_));
    return *this;
  }
  Accumulator& add(const Samples& s) { return add(&OnDeviceArray(s).view()); }
  Accumulator& add(const Samples& x, const Samples& y) {
    const OnDeviceArray on_x(x), on_y(y);
    const ArrayView views[] = {on_x.view(), on_y.view()};
    return add(views);
  }
  Accumulator& add(const Samples& s, const std::optional<Values>& mask,
                   const std::optional<Values>& weights, DType weight_type = DType::float64) {
    std::optional<OnDeviceArray> on_mask, on_weights;
    if (mask) on_mask.emplace(DType::boolean, *mask, std::initializer_list{s.rows});
    if (weights) on_weights.emplace(weight_type, *weights, std::initializer_list{s.rows});
    const OnDeviceArray batch(s);
    return add(&batch.view(), on_mask ? &on_mask->view() : nullptr,
               on_weights ? &on_weights->view() : nullptr);
  }
  Accumulator& merge(const Accumulator& other) {
    call(moments_merge(get(), other.get(), &failure_));
    return *this;
  }
  Accumulator& assume(std::int64_t count, double weight, const Values& reference,
                      const Values& offset, const Values& scatter) {
    const DeviceArray<double> on_device(scatter);
    call(moments_assume(get(), count, weight, reference.data(), offset.data(), on_device.data(),
                        &failure_));
    return *this;
  }

  MomentsReport report() {
    MomentsReport report{};
    call(moments_report(get(), &report, &failure_));
    return report;
  }
  Values read(double divisor, bool centred = true) {
    const DeviceArray<double> out(size());
    call(moments_read(get(), divisor, centred, out.data(), &failure_));
    return out.host();
  }
  Values covariance() { return read(report().weight); }
  Values correlation() {
    const DeviceArray<double> out(size());
    call(moments_correlation(get(), out.data(), &failure_));
    return out.host();
  }
  std::pair<Values, Values> reference_and_offset(std::int32_t set = 0) {
    const std::size_t n(set == 0 ? n_x_ : n_y_);
    std::pair<Values, Values> out{Values(n), Values(n)};
    call(moments_mean(get(), set, out.first.data(), out.second.data(), &failure_));
    return out;
  }
  Values mean(std::int32_t set = 0) {
    auto [mean, offset] = reference_and_offset(set);
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += offset[i];
    return mean;
  }

  const Failure& failure() const { return failure_; }

 private:
  void call(bool done) { EXPECT_TRUE(done) << failure_.text; }

  struct Destroy {
    void operator()(Moments* moments) const { moments_destroy(moments); }
  };
  std::int64_t n_x_, n_y_;
  std::unique_ptr<Moments, Destroy> moments_;
  Failure failure_;
};

// ---- the oracle

struct TwoPass {
  Values mean_x, mean_y, covariance;
  double weight = 0, largest = 0;  // of the variances
};

TwoPass two_pass(const Samples& x, const Samples& y, const Values& weights = {}) {
  TwoPass out{Values(std::size_t(x.n)), Values(std::size_t(y.n)), Values(std::size_t(x.n * y.n))};
  const auto weight = [&](std::int64_t r) {
    return weights.empty() ? 1.0L : static_cast<long double>(weights[std::size_t(r)]);
  };
  long double total = 0;
  for (std::int64_t r = 0; r < x.rows; ++r) total += weight(r);
  // About their means: one row after the other, those without weight may be NaN.
  const auto centred = [&](const Samples& s, Values& mean) {
    std::vector<long double> sum(std::size_t(s.n)), y(s.x.size());
    for (std::int64_t r = 0; r < s.rows; ++r)
      for (std::int64_t c = 0; c < s.n && weight(r) > 0; ++c)
        sum[std::size_t(c)] += weight(r) * s.x[std::size_t(r * s.n + c)];
    for (std::int64_t c = 0; c < s.n; ++c)
      mean[std::size_t(c)] = double(sum[std::size_t(c)] / total);
    for (std::int64_t r = 0; r < s.rows; ++r)
      for (std::int64_t c = 0; c < s.n && weight(r) > 0; ++c)
        y[std::size_t(r * s.n + c)] = s.x[std::size_t(r * s.n + c)] - sum[std::size_t(c)] / total;
    return y;
  };
  const std::vector<long double> cx = centred(x, out.mean_x), cy = centred(y, out.mean_y);
  std::vector<long double> sums(out.covariance.size());
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t i = 0; i < x.n && weight(r) > 0; ++i) {
      const long double left = weight(r) * cx[std::size_t(r * x.n + i)];
      for (std::int64_t j = 0; j < y.n; ++j)
        sums[std::size_t(i * y.n + j)] += left * cy[std::size_t(r * y.n + j)];
    }
  for (std::size_t i = 0; i < sums.size(); ++i) out.covariance[i] = double(sums[i] / total);
  // Largest products of deviations, which for one set are the diagonal's.
  const auto largest_square = [&](const std::vector<long double>& c, std::int64_t n) {
    long double largest = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      long double sum = 0;
      for (std::int64_t r = 0; r < x.rows; ++r)
        if (weight(r) > 0) sum += weight(r) * c[std::size_t(r * n + j)] * c[std::size_t(r * n + j)];
      largest = std::max(largest, sum / total);
    }
    return largest;
  };
  out.largest = double(std::sqrt(largest_square(cx, x.n) * largest_square(cy, y.n)));
  out.weight = double(total);
  return out;
}
TwoPass two_pass(const Samples& x, const Values& weights = {}) { return two_pass(x, x, weights); }

double largest_difference(const Values& a, const Values& b) {
  EXPECT_EQ(a.size(), b.size());
  double out = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    out = difference <= out ? out : difference;  // NaN stays
  }
  return out;
}

double accuracy(DType dtype) { return dtype == DType::float64 ? 1e-12 : 1e-6; }

// At the accuracy that any two chunkings must agree to.
void expect_moments(Accumulator& found, const Samples& x, const Values& weights = {}) {
  const TwoPass expected = two_pass(x, weights);
  const double bound = accuracy(x.dtype);
  EXPECT_LE(largest_difference(found.covariance(), expected.covariance), bound * expected.largest);
  const Values mean = found.mean();
  double largest_mean = 0;
  for (std::size_t i = 0; i < mean.size(); ++i) {
    largest_mean = std::max(largest_mean, std::abs(mean[i]));
    EXPECT_LE(std::abs(mean[i] - expected.mean_x[i]),
              1e-12 * std::abs(mean[i]) + bound * std::sqrt(expected.largest));
  }
  Values second = expected.covariance;
  for (std::size_t i = 0; i < mean.size(); ++i)
    for (std::size_t j = 0; j < mean.size(); ++j)
      second[i * mean.size() + j] += expected.mean_x[i] * expected.mean_x[j];
  EXPECT_LE(largest_difference(found.read(found.report().weight, false), second),
            bound * (expected.largest + largest_mean * largest_mean));
}

Samples joined(const Samples& a, const Samples& b) {
  Samples out = a;
  out.rows += b.rows;
  out.x.insert(out.x.end(), b.x.begin(), b.x.end());
  return out;
}

// ---- schedules

TEST(Tiles, EveryTileIsVisitedOnce) {
  for (std::int64_t rows = 1; rows <= 40; ++rows)
    for (const std::int64_t columns : {rows, std::int64_t(1), std::int64_t(19)})
      for (const bool triangular : {false, true}) {
        if (triangular && columns != rows) continue;
        const TileGrid grid{rows, columns, triangular};
        std::vector<int> visits(std::size_t(rows * columns));
        for (std::int64_t i = 0; i < grid.size(); ++i) {
          const TilePlace place = tile_at(grid, i);
          ASSERT_TRUE(place.row >= 0 && place.row < rows);
          ASSERT_TRUE(place.column >= (triangular ? place.row : 0) && place.column < columns);
          ++visits[std::size_t(place.row * columns + place.column)];
        }
        for (std::int64_t i = 0; i < rows; ++i)
          for (std::int64_t j = 0; j < columns; ++j)
            ASSERT_EQ(visits[std::size_t(i * columns + j)], !triangular || i <= j);
      }
}

TEST(Tiles, BlocksThatRunTogetherReadFewColumns) {
  const TileGrid grid{32, 32, true};  // 4096 columns
  for (std::int64_t first = 0; first + 132 <= grid.size(); first += 132) {
    std::vector<bool> read(32);
    for (std::int64_t i = first; i < first + 132; ++i) {
      const TilePlace place = tile_at(grid, i);
      read[std::size_t(place.row)] = read[std::size_t(place.column)] = true;
    }
    EXPECT_LE(std::ranges::count(read, true), 28);
  }
}

TEST(Tiles, PartsCoverAllRowsInShortRuns) {
  for (const std::int64_t tiles : {1, 3, 36, 136, 528, 25200})
    for (const std::int64_t processors : {1, 4, 108, 132})
      for (const std::int64_t rows : {1, 63, 64, 65, 1000, 8192, 8193, 30000}) {
        if (rows > longest_run * most_parts(tiles, processors)) continue;
        const Parts parts = divide_rows(tiles, rows, processors);
        EXPECT_LE(parts.count, most_parts(tiles, processors));
        EXPECT_LE(parts.rows, longest_run);
        EXPECT_EQ(parts.rows % 64, 0);
        EXPECT_GE(parts.count * parts.rows, rows);
        EXPECT_LT((parts.count - 1) * parts.rows, rows);
      }
  EXPECT_EQ(divide_rows(528, 8192, 132).count, 1);  // as many as four turns
  EXPECT_GT(divide_rows(136, 8192, 132).count, 1);  // else half of them would wait for four
  EXPECT_GT(divide_rows(1, 8192, 132).count, 8);
}

TEST(Tiles, SumsOfAllLaunchesHaveTheirPlace) {
  for (const std::int64_t tiles : {1, 2, 3, 6})
    for (const std::int64_t processors : {4, 108, 132})
      for (const std::int64_t at_once : {5952, 6048, 87360, 174720}) {
        if (at_once > longest_run * most_parts(tiles, processors)) continue;
        for (std::int64_t rows = at_once; rows < 2 * at_once; rows += 577) {
          std::int64_t most = 0;
          for (std::int64_t begin = 0; begin < rows; begin += at_once)
            most = std::max(most,
                            divide_rows(tiles, std::min(at_once, rows - begin), processors).count);
          EXPECT_EQ(parts_needed(tiles, rows, at_once, processors), most);
        }
      }
  // Fewer rows, more parts.
  EXPECT_GT(parts_needed(1, 174720 + 8448, 174720, 132), divide_rows(1, 174720, 132).count);
}

// ---- one set of columns

TEST(DeviceMoments, AnyTypeSizeAndMean) {
  for (const DType dtype : dtypes)
    for (const std::int64_t n : {1, 3, 130})
      for (const double mean : {0.0, 3.0, 1e6}) {
        if (mean == 1e6 && bytes_of(dtype) == 2) continue;  // they hold no such data
        SCOPED_TRACE(message(name(dtype), ", ", n, " columns about ", mean));
        const Samples x = samples(dtype, n == 130 ? 77 : 300, n, mean);
        Accumulator all(n);
        expect_moments(all.add(x), x);
        EXPECT_EQ(all.report().count, x.rows);
      }
}

TEST(DeviceMoments, ChunkingsAndMergeOrdersAgree) {
  for (const DType dtype : dtypes)
    for (const double mean : {0.3, 100.0, 1e6}) {
      if (mean > 200 && bytes_of(dtype) == 2) continue;
      SCOPED_TRACE(message(name(dtype), " about ", mean));
      const Samples x = samples(dtype, 400, 5, mean);
      const std::int64_t cuts[] = {0, 1, 3, 130, 131, 390, 400};
      Accumulator whole(5), streamed(5);
      whole.add(x);
      std::vector<Accumulator> parts;
      for (int i = 0; i < 6; ++i) {
        const Samples part = x.part(cuts[i], cuts[i + 1]);
        streamed.add(part);
        parts.emplace_back(5).add(part);
      }
      expect_moments(whole, x);
      expect_moments(streamed, x);
      parts[0].merge(parts[3].merge(parts[1])).merge(parts[5].merge(parts[2]).merge(parts[4]));
      expect_moments(parts[0], x);
      EXPECT_EQ(parts[0].report().count, 400);
    }
}

TEST(DeviceMoments, SeveralTilesAndParts) {
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    const Samples x = samples(dtype, 150, 300, 0.5);
    Accumulator moments(300);
    expect_moments(moments.add(x), x);
  }
  const Samples x = samples(DType::float16, 2500, 9, 0.5);
  Accumulator moments(9);
  expect_moments(moments.add(x), x);
}

TEST(DeviceMoments, VariancesOfNarrowNumbersAreThoseOfTheirExactSquares) {
  for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32}) {
    const Samples x = samples(dtype, 200, 4, 0.5);
    Accumulator moments(4);
    const Values found = moments.add(x).covariance(), expected = two_pass(x).covariance;
    for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(found[5 * i], expected[5 * i], 1e-13);
  }
}

TEST(DeviceMoments, ManyColumns) {
  const Samples x = samples(DType::bfloat16, 40, 1, 0.5),
                y = samples(DType::bfloat16, 40, 700, 3.0);
  const TwoPass expected = two_pass(x, y);
  Accumulator moments(1, 700);
  const Values found = moments.add(x, y).covariance();
  EXPECT_LE(largest_difference(found, expected.covariance), 1e-6 * expected.largest);
  EXPECT_LE(largest_difference(moments.mean(1), expected.mean_y), 1e-12);
}

TEST(DeviceMoments, ProductsAboutZeroAsFarAsTheyMayGo) {
  // Columns with a mean square nearly 4 times their variance: the worst for sums that are cut off.
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    Samples x = samples(dtype, 1024, 3, 0);
    for (std::int64_t r = 0; r < x.rows; ++r)
      for (std::int64_t c = 0; c < 3; ++c)
        x.at(r, c) = rounded(dtype, 1.7 + std::sin(double(r * (c + 1))) * std::sqrt(2.0));
    Accumulator moments(3);
    expect_moments(moments.add(x), x);
    EXPECT_EQ(moments.reference_and_offset().first, Values(3, 0.0));
  }
}

TEST(DeviceMoments, ReferencesComeBackToZeroWhereThatServes) {
  const Samples first = samples(DType::bfloat16, 1, 4, 2.0),
                rest = samples(DType::bfloat16, 200, 4);
  Accumulator moments(4);
  moments.add(first);  // one row: about itself
  EXPECT_EQ(moments.reference_and_offset().first, first.x);
  moments.add(rest);
  EXPECT_EQ(moments.reference_and_offset().first, Values(4, 0.0));
  expect_moments(moments, joined(first, rest));
}

TEST(DeviceMoments, ConstantColumnsHaveNoVariance) {
  for (const DType dtype : dtypes) {
    Samples x = samples(dtype, 90, 3);
    Values weights(90);
    for (std::int64_t r = 0; r < 90; ++r) {
      x.at(r, 1) = rounded(dtype, 0.1);
      weights[std::size_t(r)] = 0.1 + double(r) / 7;
    }
    for (const bool weighted : {false, true}) {
      SCOPED_TRACE(message(name(dtype), weighted ? " weighted" : ""));
      Accumulator moments(3);
      for (const auto& [begin, end] : {std::pair{0, 50}, {50, 90}})
        moments.add(x.part(begin, end), {},
                    weighted ? std::optional(Values(weights.begin() + begin, weights.begin() + end))
                             : std::nullopt);
      const Values found = moments.covariance();
      EXPECT_LE(std::abs(found[4]), 1e-18);
      expect_moments(moments, x, weighted ? weights : Values{});
    }
    Accumulator one(3);
    const Samples row = x.part(7, 8);
    one.add(row);
    EXPECT_EQ(one.covariance(), Values(9, 0.0));
    EXPECT_EQ(one.mean(), row.x);
  }
}

TEST(DeviceMoments, MasksAndWeights) {
  std::mt19937_64 engine(3);
  std::uniform_real_distribution<double> uniform;
  for (const DType dtype : dtypes)
    for (const bool masked : {false, true})
      for (const DType weight_type :
           {DType::boolean, DType::float16, DType::float32, DType::float64}) {
        const bool weighted = weight_type != DType::boolean;
        SCOPED_TRACE(message(name(dtype), masked ? " masked" : "", " ", name(weight_type)));
        Samples x = samples(dtype, 140, 4, 3.0);
        Values mask(140), weights(140), both(140);
        for (std::size_t r = 0; r < 140; ++r) {
          mask[r] = uniform(engine) < 0.6;
          weights[r] = uniform(engine) < 0.3 ? 0 : rounded(weight_type, 5 * uniform(engine));
          both[r] = (masked ? mask[r] : 1) * (weighted ? weights[r] : 1);
          for (std::int64_t c = 0; c < 4 && both[r] == 0; ++c)
            x.at(std::int64_t(r), c) = c % 2 == 0 ? nan : infinity;  // not looked at
          if (mask[r] == 0 && masked) weights[r] = -1;               // nor this
        }
        Accumulator moments(4);
        moments.add(x, masked ? std::optional(mask) : std::nullopt,
                    weighted ? std::optional(weights) : std::nullopt, weight_type);
        const MomentsReport report = moments.report();
        EXPECT_EQ(report.refused, Refused::nothing);
        EXPECT_EQ(report.count, std::ranges::count_if(both, [](double w) { return w > 0; }));
        double total = 0;
        for (const double w : both) total += w;
        EXPECT_NEAR(report.weight, total, 1e-13 * total);
        expect_moments(moments, x, both);
      }
}

TEST(DeviceMoments, ExtremeWeights) {
  const Samples x = samples(DType::float32, 60, 3, 1.0);
  for (const double unit : {1e-280, 1e280}) {
    Values weights(60);
    for (std::size_t r = 0; r < 60; ++r) weights[r] = unit * std::pow(10, double(r % 8));
    Accumulator moments(3);
    expect_moments(moments.add(x, {}, weights), x, weights);
  }
}

TEST(DeviceMoments, EndsOfTheRange) {
  const struct {
    DType dtype;
    double value;
  } cases[] = {{DType::float16, 65504}, {DType::float16, 6e-8},   {DType::float32, 3e38},
               {DType::float32, 1e-45}, {DType::float32, 1e30},   {DType::float32, 1e-30},
               {DType::bfloat16, 3e38}, {DType::bfloat16, 1e-30}, {DType::bfloat16, 1e30},
               {DType::float64, 1e150}, {DType::float64, 1e-150}};
  for (const auto& [dtype, value] : cases) {
    SCOPED_TRACE(message(name(dtype), " ", value));
    Samples x = samples(dtype, 64, 5);
    for (double& v : x.x) v = rounded(dtype, v < 0 ? -value : value);
    Accumulator moments(5);
    expect_moments(moments.add(x.part(0, 30)).add(x.part(30, 64)), x);
  }
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const double scale : {1e-30, 1e30}) {
      const Samples x = samples(dtype, 100, 5, 4.0, scale);
      Accumulator moments(5);
      expect_moments(moments.add(x), x);
    }
}

TEST(DeviceMoments, ColumnsOfVeryDifferentSizeKeepTheirOwnDigits) {
  Samples x = samples(DType::float32, 200, 3, 0.2);
  const double scale[] = {1e-35, 1, 1e35};
  for (std::int64_t r = 0; r < 200; ++r)
    for (std::int64_t c = 0; c < 3; ++c) x.at(r, c) = float(x.at(r, c) * scale[c]);
  Accumulator moments(3);
  const Values found = moments.add(x).covariance(), expected = two_pass(x).covariance;
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j)
      EXPECT_NEAR(found[3 * i + j] / (scale[i] * scale[j]),
                  expected[3 * i + j] / (scale[i] * scale[j]), 1e-6);
}

TEST(DeviceMoments, AnyStrides) {
  for (const DType dtype : dtypes) {
    SCOPED_TRACE(name(dtype));
    const Samples x = samples(dtype, 26, 24, 1.0);  // the memory behind all views
    const auto expect = [&](std::initializer_list<std::int64_t> shape,
                            std::vector<std::int64_t> strides, std::int64_t offset) {
      const OnDeviceArray batch(dtype, x.x, shape, strides, offset);
      const std::int64_t n = batch.view().columns();
      Samples copy{dtype, batch.view().rows(), n, {}};
      for (std::int64_t r = 0; r < copy.rows; ++r)
        for (std::int64_t c = 0; c < n; ++c) {
          std::int64_t at = offset + c * strides.back(), rest = r;
          for (std::size_t axis = strides.size() - 1; axis-- > 0;) {
            at += rest % shape.begin()[axis] * strides[axis];
            rest /= shape.begin()[axis];
          }
          copy.x.push_back(x.x[std::size_t(at)]);
        }
      Accumulator strided(n), contiguous(n);
      EXPECT_EQ(strided.add(&batch.view()).covariance(), contiguous.add(copy).covariance());
      expect_moments(strided, copy);
    };
    expect({26, 24}, {24, 1}, 0);
    expect({26, 16}, {24, 1}, 8);         // aligned part
    expect({26, 13}, {24, 1}, 8);         // of a width that is no multiple of anything
    expect({26, 13}, {24, 1}, 3);         // misaligned
    expect({13, 24}, {48, 1}, 0);         // every other row
    expect({26, 24}, {-24, 1}, 25 * 24);  // upside down
    expect({26, 24}, {24, -1}, 23);       // and back to front
    expect({26, 8}, {24, 3}, 0);          // every third column
    expect({24, 26}, {1, 24}, 0);         // transposed
    expect({20, 24}, {0, 1}, 72);         // one row again and again
    expect({26, 5}, {24, 0}, 7);          // one column
    expect({3, 2, 4, 24}, {96, 24 * 12, 24, 1}, 0);
    expect({2, 13, 24}, {13 * 24, 24, 1}, 0);
    expect({24}, {1}, 24);  // a single row
    expect({1, 1, 24}, {5, 7, 1}, 24);
  }
}

TEST(DeviceMoments, MaskAndWeightsOfAnyStrides) {
  const Samples x = samples(DType::float32, 24, 3, 1.0);
  Values mask(48, 0.0), weights(48, nan), both(24);
  for (std::size_t r = 0; r < 24; ++r) {  // as (4, 6) of which memory has the transpose
    const std::size_t at = r % 6 * 4 + r / 6;
    mask[2 * at] = r % 5 != 0;
    weights[47 - at] = double(r + 1);
    both[r] = mask[2 * at] * weights[47 - at];
  }
  const OnDeviceArray batch(DType::float32, x.x, {4, 6, 3}),
      on_mask(DType::boolean, mask, {4, 6}, std::vector<std::int64_t>{2, 8}),
      on_weights(DType::float32, weights, {4, 6}, std::vector<std::int64_t>{-1, -4}, 47);
  Accumulator moments(3);
  moments.add(&batch.view(), &on_mask.view(), &on_weights.view());
  expect_moments(moments, x, both);
}

TEST(DeviceMoments, AMeanThatDriftsAwayAndBack) {
  for (const DType dtype : dtypes) {
    SCOPED_TRACE(name(dtype));
    const double far = bytes_of(dtype) == 2 ? 100 : 1e6;
    Samples all = samples(dtype, 100, 4, 0);
    Accumulator moments(4);
    moments.add(all);
    unsigned seed = 2;
    for (const double mean : {far, -far, 0.0, far / 10}) {
      const Samples next = samples(dtype, 150, 4, mean, 1, seed++);
      moments.add(next);
      all = joined(all, next);
      expect_moments(moments, all);
    }
  }
}

TEST(DeviceMoments, MixedTypes) {
  const Samples half = samples(DType::bfloat16, 100, 4, 0.5),
                wide = samples(DType::float64, 80, 4, 2.0, 1, 2),
                single = samples(DType::float32, 60, 4, -1.0, 1, 3);
  Samples all = joined(joined(half, wide), single);
  all.dtype = DType::float32;
  Accumulator moments(4);
  expect_moments(moments.add(half).add(wide).add(single), all);
}

TEST(DeviceMoments, AReferenceBeyondFloat32) {
  const Samples wide = samples(DType::float64, 1, 2, 1e60),
                narrow = samples(DType::float32, 60, 2, 1e30);
  Accumulator moments(2);
  Samples all = joined(wide, narrow);
  all.dtype = DType::float32;
  expect_moments(moments.add(wide).add(narrow), all);
}

TEST(DeviceMoments, ProductsInSeveralLaunches) {
  for (const DType dtype : dtypes)
    for (const bool masked : {false, true}) {
      const Samples x = samples(dtype, 250, 16, 0.5), y = samples(dtype, 250, 3, 0.5, 1, 2);
      Values mask(250, 1.0), all(250, 1.0);
      for (std::size_t r = 0; r < 250; r += 3) mask[r] = 0;
      const OnDeviceArray on_mask(DType::boolean, mask, {250}), on_x(x), on_y(y);
      const ArrayView both[] = {on_x.view(), on_y.view()};
      Accumulator one(16), two(16, 3);
      for (const Accumulator* moments : {&one, &two})
        add_rows(*moments->get(), queue, both, masked ? &on_mask.view() : nullptr, nullptr, 96);
      expect_moments(one, x, masked ? mask : all);
      const TwoPass expected = two_pass(x, y, masked ? mask : all);
      EXPECT_LE(largest_difference(two.covariance(), expected.covariance),
                accuracy(dtype) * expected.largest);
    }
}

TEST(DeviceMoments, TheSameBitsAgain) {
  for (const DType dtype : dtypes) {
    const Samples x = samples(dtype, 500, 70, 1.0);
    const auto streamed = [&] {
      Accumulator moments(70);
      moments.add(x.part(0, 300)).add(x.part(300, 500));
      return moments.covariance();
    };
    EXPECT_EQ(streamed(), streamed());
  }
}

TEST(DeviceMoments, InHostMemory) {
  for (const DType dtype : {DType::bfloat16, DType::float64}) {
    const Samples x = samples(dtype, 150, 140, 1.0);
    Accumulator here(140), there(140, 0, true);
    EXPECT_EQ(here.add(x).covariance(), there.add(x).covariance());
    here.merge(there);
    there.merge(there);
    EXPECT_EQ(here.covariance(), there.covariance());
  }
}

// ---- what is refused

void expect_refused(const MomentsReport& report, Refused why, std::int64_t update, std::int64_t row,
                    std::int64_t column, std::int32_t side = 0) {
  EXPECT_EQ(report.refused, why);
  EXPECT_EQ(report.update, update);
  EXPECT_EQ(report.side, side);
  EXPECT_EQ(report.row, row);
  EXPECT_EQ(report.column, column);
}

TEST(DeviceMoments, ABadEntryIsNamedAndNothingCounted) {
  for (const DType dtype : dtypes)
    for (const double bad : {nan, infinity, -infinity}) {
      const Samples good = samples(dtype, 90, 5, 1.0), more = samples(dtype, 40, 5, 1.0, 1, 2);
      Samples spoilt = samples(dtype, 700, 5, 50.0, 1, 3);
      spoilt.at(613, 3) = spoilt.at(613, 4) = spoilt.at(699, 0) = bad;
      Accumulator moments(5), clean(5);
      moments.add(good);
      const Values before = moments.read(1), mean = moments.mean();
      moments.add(spoilt);
      EXPECT_EQ(moments.read(1), before);
      EXPECT_EQ(moments.mean(), mean);
      moments.add(spoilt.part(650, 700)).add(more);
      const MomentsReport report = moments.report();
      expect_refused(report, Refused::not_finite, 1, 613, 3);  // the first of two
      EXPECT_EQ(report.count, 130);
      EXPECT_EQ(std::isnan(report.value), std::isnan(bad));
      EXPECT_EQ(moments.report().refused, Refused::nothing);  // once told
      EXPECT_EQ(moments.read(1), clean.add(good).add(more).read(1));
      moments.add(spoilt.part(699, 700));
      expect_refused(moments.report(), Refused::not_finite, 4, 0, 0);
    }
}

TEST(DeviceMoments, ARowThatDoesNotCountMayBeBadButTheNextIsFound) {
  Samples x = samples(DType::float16, 300, 3);
  x.at(150, 0) = x.at(151, 2) = nan;
  Values mask(300, 1.0);
  mask[150] = 0;
  Accumulator moments(3);
  moments.add(x, mask, {});
  expect_refused(moments.report(), Refused::not_finite, 0, 151, 2);
  mask[151] = 0;
  expect_moments(moments.add(x, mask, {}), x, mask);
}

TEST(DeviceMoments, BadWeights) {
  const Samples x = samples(DType::float32, 100, 3);
  for (const double bad : {-1.0, nan, infinity, 1e-310}) {
    Accumulator moments(3);
    moments.add(x);
    const Values before = moments.read(1);
    Values weights(100, 1.0);
    weights[20] = weights[70] = bad;
    moments.add(x, {}, weights);
    EXPECT_EQ(moments.read(1), before);
    const MomentsReport report = moments.report();
    expect_refused(report, Refused::bad_weight, 1, 20, -1);
    EXPECT_TRUE(report.value == bad || (std::isnan(report.value) && std::isnan(bad)));
    Values mask(100, 1.0);
    mask[20] = mask[70] = 0;
    moments.add(x, mask, weights);
    EXPECT_EQ(moments.report().refused, Refused::nothing);
    EXPECT_EQ(moments.report().count, 198);
  }
  Accumulator moments(3);
  Values weights(100, 1e307);
  moments.add(samples(DType::float32, 1, 3)).add(x, {}, weights);
  expect_refused(moments.report(), Refused::bad_weight, 1, -1, -1);  // their sum
}

TEST(DeviceMoments, SquaresThatOverflow) {
  for (const double value : {1e200, 1e308}) {
    Accumulator moments(2);
    moments.add(samples(DType::float64, 10, 2));
    const Values before = moments.read(1);
    moments.add(Samples{DType::float64, 1, 2, {1.0, value}});
    EXPECT_EQ(moments.read(1), before);
    const MomentsReport report = moments.report();
    expect_refused(report, Refused::overflow, 1, -1, -1);
    EXPECT_NEAR(report.value, value, value / 1e6);
    EXPECT_EQ(report.count, 10);
  }
}

TEST(DeviceMoments, NoRowsChangeNothing) {
  Accumulator moments(3);
  moments.add(samples(DType::float32, 10, 3));
  const Values before = moments.read(1);
  moments.add(samples(DType::float32, 0, 3)).add(samples(DType::float32, 5, 3), Values(5, 0.0), {});
  moments.add(samples(DType::float64, 5, 3), {}, Values(5, 0.0));
  EXPECT_EQ(moments.read(1), before);
  EXPECT_EQ(moments.report().count, 10);
  EXPECT_EQ(moments.report().refused, Refused::nothing);
}

// ---- two sets

TEST(DeviceMoments, TwoSets) {
  for (const DType left : dtypes)
    for (const DType right : {left, DType::bfloat16}) {
      SCOPED_TRACE(message(name(left), ", ", name(right)));
      const double far = bytes_of(left) == 2 ? 2.0 : 1e5;
      const Samples x = samples(left, 200, 3, far), y = samples(right, 200, 140, 0.3);
      Accumulator moments(3, 140), streamed(3, 140), other(3, 140);
      moments.add(x, y);
      streamed.add(x.part(0, 60), y.part(0, 60));
      streamed.merge(other.add(x.part(60, 200), y.part(60, 200)));
      const TwoPass expected = two_pass(x, y);
      const bool narrow = left != DType::float64 && right != DType::float64;
      for (Accumulator* found : {&moments, &streamed}) {
        EXPECT_LE(largest_difference(found->covariance(), expected.covariance),
                  (narrow ? 1e-6 : 1e-12) * expected.largest);
        EXPECT_LE(largest_difference(found->mean(0), expected.mean_x), 1e-12 * far);
        EXPECT_LE(largest_difference(found->mean(1), expected.mean_y), 1e-12);
        const Values correlation = found->correlation();
        const Values variance_x = two_pass(x).covariance, variance_y = two_pass(y).covariance;
        for (std::size_t i = 0; i < 3; ++i)
          for (std::size_t j = 0; j < 140; ++j)
            ASSERT_NEAR(correlation[140 * i + j],
                        expected.covariance[140 * i + j] /
                            std::sqrt(variance_x[4 * i] * variance_y[141 * j]),
                        narrow ? 4e-6 : 1e-11);
      }
    }
}

TEST(DeviceMoments, TwoSetsNameTheSideAndTheFirstRow) {
  Samples x = samples(DType::float32, 80, 3), y = samples(DType::float32, 80, 2);
  x.at(50, 0) = nan;
  y.at(49, 1) = infinity;
  Accumulator moments(3, 2);
  moments.add(x, y);
  expect_refused(moments.report(), Refused::not_finite, 0, 49, 1, 1);
  y.at(49, 1) = 0;
  y.at(50, 0) = nan;
  moments.add(x, y);
  expect_refused(moments.report(), Refused::not_finite, 1, 50, 0, 0);
  Samples huge = samples(DType::float64, 80, 2);
  huge.at(3, 1) = 1e300;
  moments.add(samples(DType::float32, 80, 3), huge);
  expect_refused(moments.report(), Refused::overflow, 2, -1, -1, 1);
  EXPECT_EQ(moments.report().count, 0);
}

TEST(DeviceMoments, AConstantFeatureCorrelatesWithNothing) {
  for (const DType dtype : dtypes)
    for (int phase = 0; phase < 5; ++phase) {  // rounding shall err to either side
      SCOPED_TRACE(message(name(dtype), phase > 0 ? " weighted" : ""));
      Values weights(90);
      for (std::size_t r = 0; r < 90; ++r) weights[r] = 2 + std::sin(double(r) + phase);
      const OnDeviceArray on_weights(DType::float64, weights, {90});
      const ArrayView* const weighted = phase > 0 ? &on_weights.view() : nullptr;
      Samples x = samples(dtype, 90, 8), y = samples(dtype, 90, 2, 0, 1, 2);
      for (std::int64_t r = 0; r < 90; ++r)
        for (std::int64_t c = 1; c < 8; ++c) x.at(r, c) = rounded(dtype, 0.1 * double(c));
      const OnDeviceArray on_x(x), on_y(y);
      const ArrayView both[] = {on_x.view(), on_y.view()}, same[] = {on_y.view(), on_y.view()};
      Accumulator moments(8, 2), twice(2, 2);
      const Values found = moments.add(both, nullptr, weighted).correlation();
      EXPECT_NE(found[0], 0);
      EXPECT_EQ(Values(found.begin() + 2, found.end()), Values(14, 0.0));
      EXPECT_NEAR(twice.add(same, nullptr, weighted).correlation()[0], 1, 1e-6);
    }
}

// ---- merging, and state from elsewhere

TEST(DeviceMoments, MergingShardsOfOppositeMeans) {
  for (const DType dtype : {DType::float32, DType::float64})
    for (const std::int64_t rows : {5, 300}) {
      const Samples up = samples(dtype, 100, 4, 1e6), down = samples(dtype, rows, 4, -1e6, 1, 2);
      Accumulator a(4), b(4), c(4);
      expect_moments(a.add(up).merge(b.add(down)), joined(up, down));
      expect_moments(b.merge(c.add(up)), joined(down, up));
    }
}

TEST(DeviceMoments, AnEmptyAccumulatorIsNeutral) {
  const Samples x = samples(DType::float32, 100, 4, 1e3);
  Accumulator full(4), empty(4), fresh(4);
  const Values before = full.add(x).read(1), mean = full.mean();
  full.merge(empty);
  fresh.merge(full);
  for (Accumulator* found : {&full, &fresh}) {
    EXPECT_EQ(found->read(1), before);
    EXPECT_EQ(found->mean(), mean);
    EXPECT_EQ(found->report().count, 100);
  }
}

TEST(DeviceMoments, MergingWithItselfDoublesTheWeight) {
  const Samples x = samples(DType::float64, 50, 4, 10.0);
  Accumulator moments(4);
  expect_moments(moments.add(x).merge(moments), x);
  EXPECT_EQ(moments.report().count, 100);
  EXPECT_EQ(moments.report().weight, 100);
}

TEST(DeviceMoments, AMergeThatOverflowsChangesNothing) {
  const double value = 2e152;
  Accumulator heavy(1), light(1);
  heavy.assume(2, 1e10, {value}, {0}, {0});
  light.assume(2, 1e10, {-value}, {0}, {0});
  const Values before = heavy.read(1);
  Failure failure;
  EXPECT_FALSE(moments_merge(heavy.get(), light.get(), &failure));
  EXPECT_EQ(failure.fault, Fault::invalid_argument);
  EXPECT_EQ(heavy.read(1), before);
  EXPECT_EQ(heavy.report().count, 2);
}

TEST(DeviceMoments, ProductsThatNoSamplesHaveOverflowNoMerge) {
  const double eighth = std::numeric_limits<double>::max() / 8;
  const Values scatter{1, 0.6 * eighth, 0.6 * eighth, 1};
  Accumulator moments(2), other(2), small(2);
  for (Accumulator* each : {&moments, &other}) each->assume(2, 2, {0, 0}, {0, 0}, scatter);
  small.assume(2, 2, {0, 0}, {0, 0}, {1, 0.1 * eighth, 0.1 * eighth, 1});
  Failure failure;
  EXPECT_FALSE(moments_merge(moments.get(), other.get(), &failure));
  EXPECT_EQ(std::string_view(failure.text), "other: the combined scatter overflows float64");
  EXPECT_EQ(moments.read(1), scatter);
  EXPECT_EQ(moments.report().count, 2);
  EXPECT_EQ(moments.merge(small).report().count, 4);
  Accumulator fresh(2);  // takes over where they are from
  fresh.merge(other);
  EXPECT_FALSE(moments_merge(fresh.get(), other.get(), &failure));
}

TEST(DeviceMoments, AssumedStateIsReadBackBitForBit) {
  for (const DType dtype : dtypes) {
    const Samples x = samples(dtype, 120, 70, bytes_of(dtype) == 2 ? 3 : 1e4),
                  more = samples(dtype, 60, 70, bytes_of(dtype) == 2 ? 2 : 1e4 + 1, 1, 2);
    Accumulator moments(70), back(70);
    moments.add(x);
    const auto [reference, offset] = moments.reference_and_offset();
    const MomentsReport report = moments.report();
    Values scatter = moments.read(1);
    const Values expected = scatter;
    for (std::size_t i = 0; i < 70; ++i)
      for (std::size_t j = 0; j < i; ++j) scatter[70 * i + j] = nan;  // not read
    back.assume(report.count, report.weight, reference, offset, scatter);
    EXPECT_EQ(back.read(1), expected);
    EXPECT_EQ(back.reference_and_offset(), std::pair(reference, offset));
    EXPECT_EQ(back.report().count, 120);
    EXPECT_EQ(back.report().weight, 120);
    expect_moments(back.add(more), joined(x, more));  // and goes on
    Accumulator second(70);
    expect_moments(second.add(more).merge(moments), joined(more, x));
  }
}

// ---- streams and memory

TEST(DeviceMoments, AnotherStreamWaitsForTheFirst) {
  const Samples x = samples(DType::float32, 128, 20, 1.0);
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams)
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  Accumulator moments(20);
  {
    std::vector<OnDeviceArray> parts;
    parts.reserve(8);
    for (int i = 0; i < 8; ++i) {
      const OnDeviceArray& part = parts.emplace_back(x.part(16 * i, 16 * (i + 1)));
      moments.add(&part.view(), nullptr, nullptr, {0, streams[i % 2]});
    }
    for (cudaStream_t stream : streams) ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    expect_moments(moments, x);
  }
}

// Narrow products are general ones, wide ones a triangle.
TEST(DeviceMoments, WideSamplesInFloat64) {
  const Samples x = samples(DType::float64, 30, 1030, 1.0);
  const OnDeviceArray batch(x);
  Accumulator moments(1030);
  moments.add(&batch.view());
  expect_moments(moments, x);
}

TEST(DeviceMoments, AnUpdateThatFailedHalfwayIsNotHidden) {
  for (const auto& [n, product] : {std::pair(5, "Dgemm"), std::pair(1030, "Dsyrk")}) {
    const Samples x = samples(DType::float64, 20, n, 1.0);
    const OnDeviceArray batch(x);
    Accumulator moments(n);
    moments.add(&batch.view());
    Failure failure;
    setenv("EMULATED_CUBLAS_FAIL", product, 1);
    const bool done = moments_add(moments.get(), &queue, &batch.view(), nullptr, nullptr, &failure);
    unsetenv("EMULATED_CUBLAS_FAIL");
    EXPECT_FALSE(done);
    MomentsReport report{};
    EXPECT_FALSE(moments_report(moments.get(), &report, &failure));
    EXPECT_NE(std::string_view(failure.text).find("halfway"), std::string_view::npos);
  }
}

TEST(DeviceMoments, MemoryIsAsPlanned) {
  const auto in_use = [] {
    std::size_t free = 0, total = 0;
    EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
    return std::int64_t(total - free);
  };
  for (const MomentsShape shape : {MomentsShape{0, 200, 0, false}, MomentsShape{0, 200, 90, false},
                                   MomentsShape{0, 200, 0, true}}) {
    const std::int64_t before = in_use();
    Moments* moments = nullptr;
    Failure failure;
    ASSERT_TRUE(moments_create(&shape, &moments, &failure));
    const std::int64_t kept = moments_memory(&shape, 0, DType::float32);
    EXPECT_NEAR(double(in_use() - before), double(kept), 1024);
    EXPECT_LT(moments_memory(&shape, 100, DType::float32),
              moments_memory(&shape, 10000, DType::float32));
    EXPECT_LT(moments_memory(&shape, 100, DType::float32),
              moments_memory(&shape, 100, DType::float64));
    moments_destroy(moments);
    EXPECT_EQ(in_use(), before);
  }
}

}  // namespace
}  // namespace descramble_fast::cuda
