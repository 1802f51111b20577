#include "operators_under_test.hpp"

#include "cpu/fft.hpp"

namespace descramble_fast::cuda {
namespace {

using namespace testing;

std::vector<double> mapped(const Operator& op, Mapping mapping, const Matrix<double>& rows,
                           const Room& room) {
  const DeviceArray<double> x = upload(rows), out(x.size());
  const ModesDescription modes = op.impl().describe();
  const std::int64_t shape[] = {rows.rows(), rows.columns()};
  map_rows(queue, modes.view(), mapping, strided(ArrayView(x.data(), DType::float64, shape)),
           out.data(), room);
  return out.host();
}

TEST(CudaOperators, ModesAreThoseOfTheHost) {
  for (const Operator& op : operators()) {
    SCOPED_TRACE(op.name());
    const Matrix<double> each = descramble_fast::testing::identity(op.size());
    expect_near(mapped(op, Mapping::synthesize, each, narrow), op.modes(), 2 * epsilon);
  }
}

TEST(CudaOperators, ClosedFormsAreExactAtTheFarEndOfLongAxes) {
  constexpr std::int64_t n = (1 << 20) - 1, first = n - 2, count = 2;
  for (const auto kind : {ModeAxis::fourier, ModeAxis::cosine}) {
    AxisModes modes(queue, {kind, n, nullptr, nullptr, nullptr}, narrow);
    modes.each_panel(first, n, [&](std::int64_t begin, std::int64_t found, const double* rows) {
      ASSERT_EQ(begin, first);
      ASSERT_EQ(found, count);
      double error = 0;
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t j = 0; j < n; j += 97) {
          const std::int64_t mode = first + i, k = (mode + 1) / 2;
          const cpu::Turn turn = kind == ModeAxis::cosine
                                     ? cpu::turn(mode * (2 * j + 1) % (4 * n), 4 * n)
                                     : cpu::turn(k * j % n, n);
          const double exact = kind == ModeAxis::cosine || mode % 2 == 1 ? turn.cos : turn.sin;
          error = std::max(error, std::abs(rows[i * n + j] * std::sqrt(double(n) / 2) - exact));
        }
      EXPECT_LE(error, 2 * epsilon);
    });
  }
}

TEST(CudaOperators, AnalyzeSynthesizeAndApplyAgreeWithTheHost) {
  for (const Operator& op : operators()) {
    SCOPED_TRACE(op.name());
    const std::int64_t n = op.size();
    const Matrix<double> x = gaussian(n > 50 ? 70 : 130, n, 3);
    const double tolerance = 8 * std::sqrt(double(n)) * epsilon * largest(x);
    for (const Room& room : {narrow, Room{}}) {
      Matrix<double> expected = x.copy();
      op.analyze(expected.values());
      expect_near(mapped(op, Mapping::analyze, x, room), expected, tolerance);
      expected = x.copy();
      op.synthesize(expected.values());
      expect_near(mapped(op, Mapping::synthesize, x, room), expected, tolerance);
      if (n == 96 && room.samples > 1) continue;  // as slow as both of the others
      expected = x.copy();
      op.apply(expected.values());
      expect_near(mapped(op, Mapping::apply, x, room), expected,
                  2 * tolerance * op.eigenvalues().back());
    }
  }
}

TEST(CudaOperators, TakesRowsOfAnyTypeAndStrides) {
  const std::int64_t n = 17;
  const std::int64_t shape[] = {2, 3, n}, strides[] = {n, 2 * n, -1};
  const std::vector<Float16> numbers = halves(std::size_t(6 * n));
  const DeviceArray<Float16> there(numbers);
  const ArrayView view(there.data() + n - 1, DType::float16, shape, strides);
  const ArrayView on_host(numbers.data() + n - 1, DType::float16, shape, strides);
  const DeviceArray<double> out(6 * n);
  const Operator op = Operator::fourier(n);
  const ModesDescription description = op.impl().describe();
  const Modes modes = description.view();
  for (const auto& [entry, on_cpu] :
       {std::pair(&analyze, &Operator::analyze), std::pair(&synthesize, &Operator::synthesize),
        std::pair(&apply, &Operator::apply)}) {
    Failure failure;
    ASSERT_TRUE(entry(&queue, &modes, &view, out.data(), &failure)) << failure.text;
    Matrix<double> expected = to_float64(on_host);
    (op.*on_cpu)(expected.values(), {});
    expect_near(out.host(), expected, double(n) * epsilon * std::max(1.0, largest(expected)));
  }
}

TEST(CudaOperators, NoRowsAreMappedToNone) {
  const Operator op = Operator::grid({Operator::fourier(4), Operator::fourier(3)});
  for (const auto mapping : {Mapping::analyze, Mapping::synthesize, Mapping::apply})
    EXPECT_TRUE(mapped(op, mapping, Matrix<double>(0, op.size()), {}).empty());
}

TEST(CudaOperators, RoughnessAgreesWithTheHost) {
  for (const Operator& op : operators()) {
    SCOPED_TRACE(op.name());
    const std::int64_t n = op.size();
    const Matrix<double> g = gaussian(n, n + 3, 11);
    Matrix<double> c = product(g, transpose(g));
    c(n / 2, n / 2) = -0.25;
    const ModesDescription description = op.impl().describe();
    const Modes modes = description.view();
    const DeviceArray<double> there = upload(c);
    double absolute = 0;
    for (const double x : c.values()) absolute += std::abs(x);
    const double expected = op.impl().trace_with(c.data(), 1);
    const double tolerance = 4 * epsilon * op.eigenvalues().back() * absolute;
    const Roughness found = roughness(queue, modes, there.data(), narrow);
    EXPECT_NEAR(found.trace, expected, tolerance);
    EXPECT_EQ(found.least, -0.25);
    double trace = 0, least = 0;
    Failure failure;
    ASSERT_TRUE(cuda::roughness(&queue, &modes, there.data(), &trace, &least, &failure));
    EXPECT_NEAR(trace, expected, tolerance);
    EXPECT_EQ(least, -0.25);
  }
}

// More rows than one chunk of the sums along diagonals.
TEST(CudaOperators, RoughnessOfManyRowsIsThatOfSmoothSignals) {
  const std::int64_t n = 300;
  for (const Operator& op : {Operator::fourier(n, 1), Operator::difference(n, 1, Boundary::path)}) {
    const Matrix<double> all = op.modes();
    const std::int64_t i = 7;
    Matrix<double> c(n, n);
    for (std::int64_t p = 0; p < n; ++p)
      for (std::int64_t q = 0; q < n; ++q) c(p, q) = all(i, p) * all(i, q);
    const ModesDescription modes = op.impl().describe();
    const double l = op.eigenvalues()[std::size_t(i)];
    EXPECT_NEAR(roughness(queue, modes.view(), upload(c).data()).trace, l,
                double(n) * epsilon * op.eigenvalues().back());
  }
}

}  // namespace
}  // namespace descramble_fast::cuda
