#include "descramble_fast/descrambler.hpp"

#include "cpu/linalg.hpp"
#include "cpu/polar.hpp"
#include "descrambler.hpp"
#include "operators_under_test.hpp"

namespace descramble_fast::cuda {
namespace {

using namespace testing;

Matrix<double> random_orthogonal(std::int64_t n, unsigned seed) {
  return cpu::polar(gaussian(n, n, seed), {}).factor;
}

std::vector<double> leading(const Matrix<double>& rows, std::int64_t k) {
  const DeviceArray<double> there = upload(rows), out(k * rows.columns());
  Failure failure;
  EXPECT_TRUE(
      leading_rows(&queue, there.data(), rows.rows(), k, rows.columns(), out.data(), &failure));
  return out.host();
}

TEST(CudaDescrambler, LeadingRowsAreReversedWithTheSignsOfTheHost) {
  for (const std::int64_t n : {1, 2, 31, 256, 700}) {
    const std::int64_t known = 5, k = 4;
    const Matrix<double> rows = gaussian(known, n, 2);
    const std::vector<double> found = leading(rows, k);
    for (std::int64_t i = 0; i < k; ++i) {
      std::vector<double> expected(rows.row(known - 1 - i), rows.row(known - 1 - i) + n);
      cpu::fix_sign(expected.data(), n);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), found.begin() + i * n));
    }
  }
}

TEST(CudaDescrambler, TheFirstOfNearlyLargestEntriesGivesTheSign) {
  const std::int64_t n = 600;
  Matrix<double> rows(4, n, 0.5);
  const auto set = [&](std::int64_t row, double earlier) {
    rows(row, 300) = earlier;  // met by one thread, the other entry by one before it
    rows(row, 515) = 1;
  };
  set(0, -(1 - 0.9e-6));
  set(1, -(1 - 1.1e-6));
  for (double& x : std::span(rows.row(2), std::size_t(n))) x = 0;
  rows(3, 0) = -2;
  const std::vector<double> found = leading(rows, 4);
  EXPECT_EQ(found[std::size_t(3 * n + 515)], -1);
  EXPECT_EQ(found[std::size_t(2 * n + 515)], 1);
  EXPECT_EQ(found[std::size_t(n)], 0);
  EXPECT_EQ(found[0], 2);
  EXPECT_EQ(found[1], -0.5);
}

TEST(CudaDescrambler, OrthogonalityErrorAsksTheProbesOfTheHost) {
  const auto error_of = [](const Matrix<double>& rows) {
    double error = -1;
    Failure failure;
    EXPECT_TRUE(orthogonality_error(&queue, upload(rows).data(), rows.rows(), rows.columns(),
                                    &error, &failure));
    return error;
  };
  for (const auto& [k, n] : {std::pair(1, 1), std::pair(3, 8), std::pair(40, 40)}) {
    const Matrix<double> rows = gaussian(k, n, 9);
    const double expected = cpu::orthogonality_error(rows, 1);
    EXPECT_NEAR(error_of(rows), expected, 1e-13 * expected);
  }
  Matrix<double> orthogonal = random_orthogonal(40, 4);
  EXPECT_NEAR(error_of(orthogonal), cpu::orthogonality_error(orthogonal, 1), 40 * epsilon);
  orthogonal(3, 5) += 1e-9;
  EXPECT_GE(error_of(orthogonal), 1e-10);
}

// Rotations of blocks of these sizes, some with gaps between them.
SmoothnessDescrambler descrambler(const Operator& op, std::int64_t k,
                                  std::initializer_list<std::int64_t> sizes, bool centred) {
  SmoothnessDescrambler d(op);
  const std::int64_t n = op.size();
  d.components = Matrix<double>(k, n);
  const Matrix<double> u = random_orthogonal(n, 8);
  std::copy_n(u.data(), k * n, d.components.data());
  std::int64_t begin = 1;
  for (const std::int64_t size : sizes) {
    if (begin + size > k) break;
    d.rotations.push_back({{begin, begin + size}, random_orthogonal(size, unsigned(size))});
    begin += size + (size == 2 ? 0 : 1);
  }
  if (centred)
    for (std::int64_t j = 0; j < n; ++j) d.mean.push_back(3 + std::sin(double(j)));
  return d;
}

struct OnCard {
  explicit OnCard(const SmoothnessDescrambler& d)
      : modes(d.op.impl().describe()), components(upload(d.components)) {
    for (const auto& [block, matrix] : d.rotations)
      rotations.push_back({block.begin, block.end, matrix.data()});
    p = {modes.view(), d.components.rows(), components.data(), rotations.data(),
         std::int64_t(rotations.size())};
  }
  ModesDescription modes;
  DeviceArray<double> components;
  std::vector<BlockRotation> rotations;
  Rotated p;
};

std::vector<double> rotated(const SmoothnessDescrambler& d, const Matrix<double>& x, bool back,
                            const Room& room) {
  const OnCard there(d);
  const DeviceArray<double> samples = upload(x), out(samples.size());
  const std::int64_t shape[] = {x.rows(), x.columns()};
  rotate(queue, there.p, strided(ArrayView(samples.data(), DType::float64, shape)),
         d.mean.empty() ? nullptr : d.mean.data(), back, out.data(), room);
  return out.host();
}

// Some blocks lie across the 64 rows that are taken at a time.
std::vector<SmoothnessDescrambler> descramblers() {
  std::vector<SmoothnessDescrambler> out;
  out.push_back(descrambler(Operator::fourier(1), 1, {}, true));
  out.push_back(descrambler(Operator::fourier(2), 2, {1}, false));
  out.push_back(descrambler(Operator::fourier(17), 17, {2, 2, 2, 5}, true));
  out.push_back(descrambler(Operator::fourier(17), 6, {2, 2}, true));
  out.push_back(descrambler(Operator::difference(96, 1, Boundary::path), 96, {2, 40, 30}, false));
  out.push_back(descrambler(Operator::central_difference(96), 50, {2, 2, 33}, true));
  out.push_back(descrambler(random_operator(70), 70, {2}, false));
  out.push_back(descrambler(random_operator(70), 1, {}, false));
  const Operator grid =
      Operator::grid({Operator::fourier(7), Operator::difference(4, 1, Boundary::path),
                      Operator::central_difference(3)});
  out.push_back(descrambler(grid, 84, {2, 35, 33}, true));
  out.push_back(descrambler(grid, 9, {2, 2}, false));
  return out;
}

TEST(CudaDescrambler, RotatesAsTheHostDoes) {
  for (const SmoothnessDescrambler& d : descramblers()) {
    SCOPED_TRACE(message(d.op.name(), ", k = ", d.components.rows()));
    const Matrix<double> x = gaussian(70, d.size(), 6, 3);
    const double tolerance = 2 * double(d.size() + 8) * epsilon * largest(x);
    for (const Room& room : {narrow, Room{}}) {
      expect_near(rotated(d, x, false, room), d.transform(x.view()), tolerance);
      expect_near(rotated(d, x, true, room), d.inverse_transform(x.view()), tolerance);
    }
  }
}

TEST(CudaDescrambler, BackUndoesForth) {
  for (const SmoothnessDescrambler& d : descramblers()) {
    if (d.components.rows() < d.size()) continue;
    SCOPED_TRACE(d.op.name());
    const Matrix<double> x = gaussian(5, d.size(), 7, 3);
    Matrix<double> there(5, d.size());
    std::ranges::copy(rotated(d, x, false, {}), there.data());
    expect_near(rotated(d, there, true, {}), x, double(d.size() + 8) * epsilon * largest(x));
  }
}

// A matrix alone comes as components of the identity, from columns that are its rows.
TEST(CudaDescrambler, WithoutAxesTheModesAreTheIdentity) {
  const std::int64_t n = 9;
  const Matrix<double> p = random_orthogonal(n, 21), x = gaussian(70, n, 22);
  const DeviceArray<double> there = upload(p), samples = upload(x), out(70 * n);
  const std::int64_t shape[] = {70, n};
  const ArrayView view(samples.data(), DType::float64, shape);
  for (const std::int64_t k : {n, n - 4}) {
    const Rotated rotated{{.n = n}, k, there.data(), nullptr, 0};
    Matrix<double> leading(n, n, 0);
    std::copy_n(p.data(), k * n, leading.data());
    for (const bool back : {false, true}) {
      rotate(queue, rotated, strided(view), nullptr, back, out.data(), narrow);
      const Matrix<double> expected = back ? product(x, leading) : product(x, transpose(leading));
      expect_near(out.host(), expected, double(n) * epsilon * largest(x));
    }
  }
}

TEST(CudaDescrambler, GivesUpWhenAsked) {
  const SmoothnessDescrambler d = descrambler(Operator::fourier(8), 8, {}, false);
  const OnCard there(d);
  const Matrix<double> x = gaussian(3, 8, 1);
  const DeviceArray<double> samples = upload(x), out(24);
  const std::int64_t shape[] = {3, 8};
  const ArrayView view(samples.data(), DType::float64, shape);
  Queue asked = queue;
  asked.cancelled = [](void*) { return true; };
  Failure failure;
  EXPECT_FALSE(rotate(&asked, &there.p, &view, nullptr, false, out.data(), &failure));
  EXPECT_EQ(failure.fault, Fault::backend);
}

TEST(CudaDescrambler, RotatesStridedHalfPrecisionSamples) {
  const SmoothnessDescrambler d = descrambler(Operator::fourier(17), 6, {2, 2}, true);
  const std::int64_t shape[] = {2, 3, 17}, strides[] = {1, 2, 6};
  const std::vector<Float16> numbers = halves(102);
  const DeviceArray<Float16> samples(numbers);
  const DeviceArray<double> out(102);
  const ArrayView view(samples.data(), DType::float16, shape, strides);
  const OnCard there(d);
  for (const bool back : {false, true}) {
    Failure failure;
    ASSERT_TRUE(rotate(&queue, &there.p, &view, d.mean.data(), back, out.data(), &failure));
    const ArrayView on_host(numbers.data(), DType::float16, shape, strides);
    expect_near(out.host(), back ? d.inverse_transform(on_host) : d.transform(on_host),
                60 * epsilon * 4);
  }
}

TEST(CudaDescrambler, RotatedModesAreThoseOfTheHost) {
  for (const SmoothnessDescrambler& d : descramblers()) {
    SCOPED_TRACE(message(d.op.name(), ", k = ", d.components.rows()));
    const OnCard there(d);
    const DeviceArray<double> out(d.components.rows() * d.size());
    rotated_modes(queue, there.p, out.data(), narrow);
    expect_near(out.host(), d.modes(), 16 * epsilon);
    Failure failure;
    ASSERT_TRUE(rotated_modes(&queue, &there.p, out.data(), &failure)) << failure.text;
    expect_near(out.host(), d.modes(), 16 * epsilon);
  }
}

TEST(CudaDescrambler, PreactivationMomentIsExactlySymmetric) {
  for (const auto& [n, m] : {std::pair(1, 1), std::pair(5, 3), std::pair(20, 33)}) {
    const Matrix<double> wt = gaussian(m, n, 12), w = transpose(wt), b = gaussian(1, n, 13),
                         mu = gaussian(1, m, 14), g = gaussian(m, m, 15);
    const Matrix<double> s = product(g, transpose(g));
    const DeviceArray<double> wt_there = upload(wt), b_there = upload(b), mu_there = upload(mu),
                              s_there = upload(s), out(n * n);
    const std::int64_t w_shape[] = {n, m}, w_strides[] = {1, n}, s_shape[] = {m, m};
    const std::int64_t b_shape[] = {n}, mu_shape[] = {m};
    const ArrayView w_view(wt_there.data(), DType::float64, w_shape, w_strides);
    const ArrayView b_view(b_there.data(), DType::float64, b_shape);
    const ArrayView mu_view(mu_there.data(), DType::float64, mu_shape);
    const ArrayView s_view(s_there.data(), DType::float64, s_shape);
    for (int given = 0; given < 8; ++given) {
      const bool with_b = given & 1, with_s = given & 2, with_mu = given & 4;
      Matrix<double> expected = product(with_s ? product(w, s) : w.copy(), wt);
      const Matrix<double> mean = product(mu, wt);
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n && with_b; ++j)
          expected(i, j) +=
              b(0, i) * b(0, j) + (with_mu ? mean(0, i) * b(0, j) + b(0, i) * mean(0, j) : 0);
      Failure failure;
      ASSERT_TRUE(preactivation_moment(&queue, &w_view, with_b ? &b_view : nullptr,
                                       with_s ? &s_view : nullptr, with_mu ? &mu_view : nullptr,
                                       out.data(), &failure));
      const std::vector<double> found = out.host();
      expect_near(found, expected, 4 * double(m) * epsilon * largest(expected));
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < i; ++j)
          ASSERT_EQ(found[std::size_t(i * n + j)], found[std::size_t(j * n + i)]);
    }
  }
}

}  // namespace
}  // namespace descramble_fast::cuda
