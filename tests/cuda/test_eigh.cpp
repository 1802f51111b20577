#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../cpp/random.hpp"
#include "device_memory.hpp"
#include "eigh.hpp"
#include "jacobi.hpp"

namespace descramble_fast::cuda {
namespace {

using descramble_fast::testing::gaussian;
using descramble_fast::testing::identity;
using testing::DeviceArray;
using testing::queue;

constexpr Device on_device{DeviceKind::cuda, 0};

template <class T>
constexpr double epsilon = std::numeric_limits<T>::epsilon();

using Batch = std::vector<Matrix<double>>;

struct Remark {
  std::int64_t item;
  std::string text;
};

template <class T>
struct Solved {
  std::int64_t n, k;
  std::vector<T> w, v;
  std::vector<double> residual, orthogonality_error;
  std::vector<char> solved;
  std::string driver;
  std::vector<Remark> remarks;
  Failure failure;
};

// Of a view on the device; by the plan, or by the one that the entry makes.
template <class T>
Solved<T> solve(const ArrayView& a, std::optional<std::int64_t> wanted = {},
                std::optional<EighPlan> plan = {}) {
  const std::int64_t n = a.columns(), k = wanted.value_or(n), batch = strided(a).rows / n;
  const DeviceArray<T> w(batch * k), v(batch * k * n);
  Solved<T> out{n, k, {}, {}, {}, {}, {}, {}, {}, {}};
  out.residual.resize(std::size_t(batch));
  out.orthogonality_error.resize(std::size_t(batch));
  const auto solved = std::make_unique<bool[]>(std::size_t(batch));
  EighOutput output{w.data(),     v.data(), out.residual.data(), out.orthogonality_error.data(),
                    solved.get(), {}};
  const Notes notes{&out.remarks, [](void* to, std::int64_t item, const char* text) {
                      static_cast<std::vector<Remark>*>(to)->push_back({item, text});
                    }};
  const bool good =
      plan ? guarded(0, &out.failure,
                     [&] { solve_eigenproblems<T>(queue, a, k, *plan, output, notes); })
           : eigh(&queue, &a, dtype_of<T>, k, &output, &notes, &out.failure);
  EXPECT_EQ(good, out.failure.fault == Fault::none);
  out.driver = output.driver;
  out.w = w.host();
  out.v = v.host();
  out.solved.assign(solved.get(), solved.get() + batch);
  return out;
}

// On the device, with NaN above the diagonal: that must not be read.
template <class T>
DeviceArray<T> upload(const Batch& matrices) {
  std::vector<T> all;
  for (const Matrix<double>& a : matrices)
    for (std::int64_t i = 0; i < a.rows(); ++i)
      for (std::int64_t j = 0; j < a.rows(); ++j)
        all.push_back(j <= i ? T(a(i, j)) : std::numeric_limits<T>::quiet_NaN());
  return DeviceArray<T>(all);
}

template <class T>
ArrayView view_of(const DeviceArray<T>& array, std::vector<std::int64_t> shape) {
  return ArrayView(array.data(), dtype_of<T>, shape, on_device);
}

template <class T>
Solved<T> solve(const Batch& matrices, std::optional<std::int64_t> wanted = {},
                std::optional<EighPlan> plan = {}) {
  const DeviceArray<T> a = upload<T>(matrices);
  const std::int64_t n = matrices[0].rows();
  return solve<T>(view_of(a, {std::int64_t(matrices.size()), n, n}), wanted, plan);
}

// Entry by entry, in double precision: |A v - w v| and |V V^T - I| in Frobenius' norm, by units of
// n epsilon (and |A|).
template <class T>
std::pair<double, double> errors(const Matrix<double>& a, const Solved<T>& solved,
                                 std::int64_t item) {
  const std::int64_t n = solved.n, k = solved.k;
  const T* const w = solved.w.data() + item * k;
  const T* const v = solved.v.data() + item * k * n;
  double norm = 0, residual = 0, orthogonality = 0;
  int exponent = 0;
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) largest = std::max(largest, std::abs(double(T(a(i, j)))));
  if (largest > 0) exponent = std::ilogb(largest);
  const auto scaled = [&](double x) { return std::ldexp(x, -exponent); };
  for (std::int64_t i = 0; i < k; ++i) {
    norm = std::max(norm, std::abs(scaled(double(w[i]))));
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = -scaled(double(w[i])) * double(v[i * n + j]);
      for (std::int64_t l = 0; l < n; ++l)
        sum += scaled(double(T(a(std::max(j, l), std::min(j, l))))) * double(v[i * n + l]);
      residual += sum * sum;
    }
    for (std::int64_t j = 0; j < k; ++j) {
      double sum = -double(i == j);
      for (std::int64_t l = 0; l < n; ++l) sum += double(v[i * n + l]) * double(v[j * n + l]);
      orthogonality += sum * sum;
    }
  }
  const double unit = double(n) * epsilon<T>;
  return {norm == 0 ? std::sqrt(residual) : std::sqrt(residual) / (unit * norm),
          std::sqrt(orthogonality) / unit};
}

template <class T>
void expect_eigenpairs(const Batch& matrices, const Solved<T>& solved, double limit = 4) {
  ASSERT_EQ(solved.failure.text, std::string());
  for (std::size_t b = 0; b < matrices.size(); ++b) {
    SCOPED_TRACE(b);
    EXPECT_TRUE(solved.solved[b]);
    const auto [residual, orthogonality] = errors(matrices[b], solved, std::int64_t(b));
    EXPECT_LE(residual, limit);
    EXPECT_LE(orthogonality, limit);
    for (std::int64_t i = 1; i < solved.k; ++i)
      EXPECT_LE(solved.w[b * std::size_t(solved.k) + std::size_t(i - 1)],
                solved.w[b * std::size_t(solved.k) + std::size_t(i)]);
  }
}

Matrix<double> symmetric(std::int64_t n, unsigned seed) {
  Matrix<double> out = gaussian(n, n, seed);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < i; ++j) out(j, i) = out(i, j);
  return out;
}

template <class... Matrices>
Batch batch_of(Matrices... matrices) {
  Batch out;
  (out.push_back(std::move(matrices)), ...);
  return out;
}

Batch symmetric_batch(std::int64_t n, unsigned size) {
  Batch out;
  for (unsigned b = 0; b < size; ++b) out.push_back(symmetric(n, b + 1));
  return out;
}

Matrix<double> times(double factor, Matrix<double> a) {
  for (double& x : a.values()) x *= factor;
  return a;
}

// H diag(values) H for a Householder reflection H = I - 2 u u^T, whose rows are its eigenvectors.
struct Reflected {
  Matrix<double> a, vectors;
};
Reflected reflected(const std::vector<double>& values, unsigned seed) {
  const auto n = std::int64_t(values.size());
  const Matrix<double> g = gaussian(1, n, seed);
  double square = 0;
  for (std::int64_t i = 0; i < n; ++i) square += g(0, i) * g(0, i);
  Matrix<double> h = identity(n), a(n, n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) h(i, j) -= 2 * g(0, i) * g(0, j) / square;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t l = 0; l < n; ++l) sum += h(i, l) * values[std::size_t(l)] * h(l, j);
      a(i, j) = a(j, i) = sum;
    }
  return {std::move(a), std::move(h)};
}

std::vector<double> spectrum(std::int64_t n, const std::function<double(std::int64_t)>& value) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < n; ++i) out.push_back(value(i));
  return out;
}

// Sets a variable of the emulated device while it lives.
class Emulated {
 public:
  Emulated(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Emulated() { unsetenv(name_); }

 private:
  const char* name_;
};

// Makes routines of cuSOLVER fail, or refuse to be asked for the workspace they take.
class Failing : Emulated {
 public:
  explicit Failing(const char* routines) : Emulated("EMULATED_CUSOLVER_FAIL", routines) {}
};
class Refusing : Emulated {
 public:
  explicit Refusing(const char* routines) : Emulated("EMULATED_CUSOLVER_REFUSE", routines) {}
};

// Leaves so many bytes of the device's memory to be had.
class Left : Emulated {
 public:
  explicit Left(std::int64_t bytes)
      : Emulated("EMULATED_CUDA_MEMORY", std::to_string(used() + bytes)) {}

 private:
  static std::int64_t used() {
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return std::int64_t(total - free);
  }
};

TEST(CudaJacobi, EveryTwoIndicesMeetOnceAndRoundsAreDisjoint) {
  for (int m = 2; m <= 96; m += 2) {
    std::set<std::pair<int, int>> met;
    for (int round = 0; round < m - 1; ++round) {
      std::set<int> busy;
      for (int i = 0; i < m / 2; ++i) {
        const Pair pair = pair_of(m, round, i);
        for (const int index : {pair.p, pair.q}) {
          ASSERT_TRUE(0 <= index && index < m);
          ASSERT_TRUE(busy.insert(index).second);
        }
        ASSERT_TRUE(met.insert(std::minmax(pair.p, pair.q)).second);
      }
    }
    EXPECT_EQ(std::ssize(met), m * (m - 1) / 2);
  }
}

TEST(CudaJacobi, ARotationAnnihilatesAndKeepsTheSpectrum) {
  for (const double a : {0.0, 1.0, -1.9})
    for (const double b : {1e-18, 1.0, -1.5})
      for (const double d : {0.0, 1.0, 1e-9}) {
        double x = a, off = b, y = d;
        const Rotation<double> turn = annihilate(x, off, y);
        double cosine = 1, sine = 0;
        turn.apply(cosine, sine);
        EXPECT_NEAR(cosine * cosine + sine * sine, 1, 4e-16);
        EXPECT_GE(cosine, std::sqrt(0.5) * (1 - 1e-15));
        EXPECT_EQ(off, 0);
        EXPECT_NEAR(x + y, a + d, 1e-15);
        EXPECT_NEAR(x * y, a * d - b * b, 4e-15);
        // The columns of (a, b; b, d), rotated, are those of the rotation, scaled by x and y.
        double p = a, q = b;
        turn.apply(p, q);
        EXPECT_NEAR(p, x * cosine, 4e-15);
        EXPECT_NEAR(q, y * sine, 4e-15);
      }
}

TEST(CudaEighRoutes, GoBySizeAndBatch) {
  constexpr auto f32 = DType::float32, f64 = DType::float64;
  for (const std::int64_t batch : {1, 3, 65537})
    for (std::int64_t n = 1; n <= 64; ++n)
      for (const DType type : {f32, f64}) EXPECT_EQ(route_for(n, 1, batch, type), Route::jacobi);
  EXPECT_EQ(route_for(96, 96, 1, f32), Route::jacobi);
  EXPECT_EQ(route_for(65, 65, 100, f64), Route::batched);
  EXPECT_EQ(route_for(97, 97, 100, f32), Route::batched);
  EXPECT_EQ(route_for(100, 100, 1, f32), Route::single);
  EXPECT_EQ(route_for(512, 512, 500, f64), Route::batched);
  EXPECT_EQ(route_for(513, 513, 500, f64), Route::single);
  EXPECT_EQ(route_for(400, 3, 5, f64), Route::single);
  EXPECT_EQ(route_for(400, 3, 500, f64), Route::batched);
}

TEST(CudaEighRoutes, PartsStayWithinWhatThirtyOneBitsCount) {
  for (std::int64_t n = 1; n <= largest_batched; ++n)
    for (const DType type : {DType::float32, DType::float64}) {
      for (const Route route : {Route::jacobi, Route::batched, Route::single})
        EXPECT_GE(part_for(route, n, type), 1);
      EXPECT_LT(n * n * part_for(Route::batched, n, type) * bytes_of(type), std::int64_t(1) << 31);
    }
  EXPECT_LT(part_for(Route::batched, 65, DType::float64), 1 << 15);
}

TEST(CudaEighRoutes, JacobiFitsASharedMemory) {
  constexpr std::int64_t granted = 99 * 1024;
  for (const int n : {1, 31, 32})
    for (const int element : {4, 8}) EXPECT_LE(JacobiLayout{n}.bytes(element, 4), granted);
  EXPECT_LE(JacobiLayout{int(largest_jacobi_float32)}.bytes(4, 1), granted);
  EXPECT_LE(JacobiLayout{int(largest_jacobi_float64)}.bytes(8, 1), granted);
  EXPECT_EQ(JacobiLayout{33}.stride() % 2, 1);
}

template <class T>
class CudaEigh : public ::testing::Test {};
using Working = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CudaEigh, Working);

TYPED_TEST(CudaEigh, SolvesEverySize) {
  for (const std::int64_t n : {1, 2, 3, 5, 16, 17, 31, 32, 33, 48, 64, 65, 80, 100}) {
    SCOPED_TRACE(n);
    const Batch batch = symmetric_batch(n, n > 50 ? 1 : 5);
    const Solved<TypeParam> solved = solve<TypeParam>(batch);
    expect_eigenpairs(batch, solved);
    EXPECT_TRUE(solved.remarks.empty());
    EXPECT_EQ(solved.driver,
              n <= (sizeof(TypeParam) == 4 ? 96 : 64) ? "Jacobi" : "cusolverDnXsyevd");
  }
}

TYPED_TEST(CudaEigh, SolvesSpectraThatAreHardOrDegenerate) {
  for (const std::int64_t n : {5, 32, 33, 65}) {
    SCOPED_TRACE(n);
    Batch batch;
    batch.push_back(Matrix<double>(n, n, 0));
    batch.push_back(identity(n));
    batch.push_back(Matrix<double>(n, n, 1));  // of rank 1
    batch.push_back(reflected(spectrum(n, [](auto i) { return i < 2 ? 1.0 : 0.0; }), 1).a);
    batch.push_back(reflected(spectrum(n, [](auto i) { return double(i / 3); }), 2).a);
    batch.push_back(reflected(spectrum(n, [](auto i) { return std::pow(0.5, i); }), 3).a);
    batch.push_back(reflected(spectrum(n, [](auto i) { return i % 2 == 0 ? 1.0 : -1.0; }), 4).a);
    Matrix<double> wilkinson(n, n, 0), graded(n, n), circulant(n, n);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        const std::int64_t apart = std::abs(i - j), around = std::min(apart, n - apart);
        wilkinson(i, j) = apart == 1 ? 1 : apart == 0 ? std::abs(double(n - 1) / 2 - double(i)) : 0;
        graded(i, j) = std::pow(10.0, -double(i + j) * 6 / double(n));
        circulant(i, j) = around == 0 ? 2 : around == 1 ? -1 : 0;
      }
    batch.push_back(wilkinson.copy());
    batch.push_back(graded.copy());
    batch.push_back(circulant.copy());
    const Solved<TypeParam> solved = solve<TypeParam>(batch);
    expect_eigenpairs(batch, solved);
    EXPECT_TRUE(solved.remarks.empty());
    const auto unit = [&](std::size_t b, std::int64_t i) {
      return double(solved.w[b * std::size_t(n) + std::size_t(i)]) /
             (double(n) * epsilon<TypeParam>);
    };
    EXPECT_EQ(unit(0, 0), 0);
    EXPECT_EQ(unit(0, n - 1), 0);
    EXPECT_EQ(solved.w[std::size_t(n)], TypeParam(1));
    EXPECT_NEAR(unit(2, 0), 0, double(n));
    EXPECT_NEAR(unit(2, n - 2), 0, double(n));
    EXPECT_NEAR(solved.w[std::size_t(3 * n - 1)], double(n),
                4 * double(n * n) * epsilon<TypeParam>);
  }
}

TYPED_TEST(CudaEigh, ScaleDoesNotMatter) {
  constexpr bool narrow = sizeof(TypeParam) == 4;
  using Limits = std::numeric_limits<TypeParam>;
  for (const std::int64_t n : {4, 33, 100}) {
    Batch batch;
    batch.push_back(symmetric(n, 3));
    for (const int exponent : narrow ? std::vector{-100, 100} : std::vector{-1000, 1000})
      batch.push_back(times(std::ldexp(1.0, exponent), batch[0].copy()));
    const Solved<TypeParam> solved = solve<TypeParam>(batch);
    expect_eigenpairs(batch, solved);
    // Powers of two change nothing else.
    for (std::size_t i = 0; i < std::size_t(n * n); ++i) {
      EXPECT_EQ(solved.v[i], solved.v[std::size_t(n * n) + i]);
      EXPECT_EQ(solved.v[i], solved.v[std::size_t(2 * n * n) + i]);
    }
    EXPECT_EQ(std::ldexp(solved.residual[0], narrow ? 100 : 1000), solved.residual[2]);
  }
  // Subnormal numbers: eigenvalues are as exact as those are.
  Matrix<double> tiny(2, 2, 0);
  tiny(0, 0) = 3 * double(Limits::denorm_min());
  tiny(1, 0) = 4 * double(Limits::denorm_min());
  tiny(1, 1) = -3 * double(Limits::denorm_min());
  const Solved<TypeParam> solved = solve<TypeParam>(batch_of(std::move(tiny)));
  EXPECT_EQ(solved.w[0], -5 * Limits::denorm_min());
  EXPECT_EQ(solved.w[1], 5 * Limits::denorm_min());
}

TYPED_TEST(CudaEigh, EigenvaluesBeyondTheRangeAreRefused) {
  for (const std::int64_t n : {4, 100}) {
    const double large = double(std::numeric_limits<TypeParam>::max()) / 2;
    const Solved<TypeParam> solved = solve<TypeParam>(batch_of(Matrix<double>(n, n, large)));
    EXPECT_EQ(solved.failure.fault, Fault::invalid_argument);
    EXPECT_STREQ(solved.failure.text,
                 sizeof(TypeParam) == 4
                     ? "a: its eigenvalues exceed the range of float32; pass float64"
                     : "a: its eigenvalues exceed the range of float64");
  }
}

TYPED_TEST(CudaEigh, KeepsTheLargestPairs) {
  for (const std::int64_t n : {7, 32, 40, 100, 130})
    for (const std::int64_t batch : {1, 5}) {
      if (n * batch > 500) continue;
      SCOPED_TRACE(n);
      Batch matrices = symmetric_batch(n, unsigned(batch));
      const Solved<TypeParam> all = solve<TypeParam>(matrices);
      for (const std::int64_t k : {std::int64_t(1), std::int64_t(3), n - 1}) {
        const Solved<TypeParam> some = solve<TypeParam>(matrices, k);
        expect_eigenpairs(matrices, some);
        for (std::int64_t i = 0; i < batch * k; ++i)
          EXPECT_NEAR(some.w[std::size_t(i)], all.w[std::size_t(i / k * n + n - k + i % k)],
                      4 * double(n) * epsilon<TypeParam> * std::sqrt(double(n)));
        EXPECT_EQ(some.driver, n <= 64                             ? "Jacobi"
                               : batch > 1                         ? "cusolverDnXsyevBatched"
                               : sizeof(TypeParam) == 4 && n <= 96 ? "Jacobi"
                                                                   : "cusolverDnXsyevdx");
        EXPECT_TRUE(some.remarks.empty());
      }
    }
}

TYPED_TEST(CudaEigh, ReadsAnyStridesAndNarrowTypes) {
  for (const std::int64_t n : {6, 40, 100}) {
    // (2, 2, n, n): turned about, within larger arrays, repeated.
    const std::int64_t width = 2 * n + 3;
    const Matrix<double> g = gaussian(2 * n, width, 8);
    std::vector<TypeParam> all;
    for (const double x : g.values()) all.push_back(TypeParam(x));
    const DeviceArray<TypeParam> data(all);
    const std::int64_t shape[] = {2, 2, n, n};
    const std::int64_t strides[] = {0, n * width, -width, 2};
    const ArrayView view(data.data() + (n - 1) * width, dtype_of<TypeParam>, shape, strides,
                         on_device);
    Batch matrices;
    for (std::int64_t b = 0; b < 4; ++b) {
      Matrix<double> a(n, n);
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j <= i; ++j) a(i, j) = a(j, i) = g(b % 2 * n + n - 1 - i, 2 * j);
      matrices.push_back(a.copy());
    }
    expect_eigenpairs(matrices, solve<TypeParam>(view));
  }

  // Half types hold these exactly.
  for (const std::int64_t n : {9, 100}) {
    std::vector<Float16> half;
    std::vector<BFloat16> brain;
    Matrix<double> a(n, n);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        const auto hash = unsigned(i * 7 + j * j * 3);
        a(i, j) = hash % 2 == 0 ? 1.5 : -0.5;
        half.push_back({std::uint16_t(hash % 2 == 0 ? 0x3e00 : 0xb800)});
        brain.push_back({std::uint16_t(hash % 2 == 0 ? 0x3fc0 : 0xbf00)});
      }
    const std::int64_t shape[] = {n, n};
    const DeviceArray<Float16> first(half);
    const DeviceArray<BFloat16> second(brain);
    Batch matrices;
    matrices.push_back(std::move(a));
    expect_eigenpairs(matrices, solve<TypeParam>(ArrayView(first.data(), DType::float16, shape)));
    expect_eigenpairs(matrices, solve<TypeParam>(ArrayView(second.data(), DType::bfloat16, shape)));
  }
}

TYPED_TEST(CudaEigh, NamesThePlaceOfWhatIsNotFinite) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const std::int64_t n : {8, 50, 100}) {
    Batch matrices = symmetric_batch(n, 5);
    matrices[4](0, 0) = nan;
    matrices[3](n - 1, 1) = nan;
    matrices[3](n - 2, n - 3) = -infinity;
    matrices[3](n - 2, n - 2) = nan;
    const Solved<TypeParam> solved = solve<TypeParam>(matrices);
    EXPECT_EQ(solved.failure.fault, Fault::invalid_argument);
    EXPECT_EQ(solved.failure.text,
              message("a: NaN or infinity at row ", n - 2, ", column ", n - 3, " of matrix 3"));
    const DeviceArray<TypeParam> alone = upload<TypeParam>(batch_of(matrices[4].copy()));
    EXPECT_STREQ(solve<TypeParam>(view_of(alone, {n, n})).failure.text,
                 "a: NaN or infinity at row 0, column 0");
  }
}

TYPED_TEST(CudaEigh, AnEmptyBatchIsNothing) {
  const DeviceArray<TypeParam> nothing(0);
  const Solved<TypeParam> solved = solve<TypeParam>(view_of(nothing, {0, 5, 5}));
  EXPECT_EQ(solved.failure.fault, Fault::none);
  EXPECT_EQ(solved.driver, "");
}

TYPED_TEST(CudaEigh, TheSameCallGivesTheSameBits) {
  for (const std::int64_t n : {20, 40, 100}) {
    const Batch matrices = symmetric_batch(n, 3);
    const Solved<TypeParam> first = solve<TypeParam>(matrices), again = solve<TypeParam>(matrices);
    EXPECT_EQ(first.w, again.w);
    EXPECT_EQ(first.v, again.v);
    EXPECT_EQ(first.residual, again.residual);
  }
}

// A part, or a memory, that is too small for the batch.
TYPED_TEST(CudaEigh, ABatchInPartsIsTheSameBatch) {
  for (const std::int64_t n : {6, 66})
    for (const std::int64_t k : {n, std::int64_t(2)}) {
      Batch matrices = symmetric_batch(n, 7);
      for (const Route route : {Route::jacobi, Route::batched}) {
        const EighPlan whole{route, 100};
        EighPlan parts = whole, poor = whole;
        parts.part = 3;
        poor.memory_share = 1e-9;
        const Solved<TypeParam> once = solve<TypeParam>(matrices, k, whole);
        expect_eigenpairs(matrices, once);
        EXPECT_EQ(once.driver, route == Route::jacobi ? "Jacobi" : "cusolverDnXsyevBatched");
        for (const EighPlan& plan : {parts, poor}) {
          const Solved<TypeParam> solved = solve<TypeParam>(matrices, k, plan);
          EXPECT_EQ(solved.w, once.w);
          EXPECT_EQ(solved.v, once.v);
          EXPECT_EQ(solved.residual, once.residual);
          EXPECT_EQ(solved.orthogonality_error, once.orthogonality_error);
        }
      }
    }
}

TYPED_TEST(CudaEigh, WhatJacobiDoesNotSolveGoesOn) {
  Batch matrices;
  matrices.push_back(symmetric(12, 1));
  matrices.push_back(identity(12));  // is solved in no sweep
  matrices.push_back(symmetric(12, 2));
  EighPlan plan{Route::jacobi, 100};
  plan.sweeps = 1;
  const Solved<TypeParam> solved = solve<TypeParam>(matrices, 5, plan);
  expect_eigenpairs(matrices, solved);
  EXPECT_EQ(solved.driver, "cusolverDnXsyevd");
  ASSERT_EQ(solved.remarks.size(), 2u);
  EXPECT_EQ(solved.remarks[0].item, 0);
  EXPECT_EQ(solved.remarks[0].text, "Jacobi: no convergence in 1 sweeps");
  EXPECT_EQ(solved.remarks[1].item, 2);
}

TYPED_TEST(CudaEigh, WhatABatchDoesNotSolveGoesOn) {
  const Failing failing("XsyevBatched");
  Batch matrices = symmetric_batch(100, 4);
  const Solved<TypeParam> solved = solve<TypeParam>(matrices);
  expect_eigenpairs(matrices, solved);
  EXPECT_EQ(solved.driver, "cusolverDnXsyevd");
  ASSERT_EQ(solved.remarks.size(), 4u);
  for (std::int64_t b = 0; b < 4; ++b) {
    EXPECT_EQ(solved.remarks[std::size_t(b)].item, b);
    EXPECT_EQ(solved.remarks[std::size_t(b)].text, "cusolverDnXsyevBatched: info = 1");
  }
}

TYPED_TEST(CudaEigh, WhatXsyevdxDoesNotSolveGoesOn) {
  const Failing failing("Xsyevdx");
  Batch matrices;
  matrices.push_back(symmetric(100, 1));
  const DeviceArray<TypeParam> a = upload<TypeParam>(matrices);
  const Solved<TypeParam> solved = solve<TypeParam>(view_of(a, {100, 100}), 4);
  expect_eigenpairs(matrices, solved);
  EXPECT_EQ(solved.driver, "cusolverDnXsyevd");
  ASSERT_EQ(solved.remarks.size(), 1u);
  EXPECT_EQ(solved.remarks[0].item, -1);  // the only matrix
  EXPECT_EQ(solved.remarks[0].text, "cusolverDnXsyevdx: info = 1");
}

TYPED_TEST(CudaEigh, WhatIsTooLargeForXsyevdGoesOn) {
  const Refusing refusing("Xsyevdx,Xsyevd");
  const Batch matrices = symmetric_batch(100, 1);
  const DeviceArray<TypeParam> a = upload<TypeParam>(matrices);
  for (const std::int64_t k : {std::int64_t(100), std::int64_t(4)}) {
    const Solved<TypeParam> solved = solve<TypeParam>(view_of(a, {100, 100}), k);
    expect_eigenpairs(matrices, solved);
    EXPECT_EQ(solved.driver, "cusolverDnXsyevBatched");
    std::vector<std::string> texts{"cusolverDnXsyevd: cuSOLVER status 3"};
    if (k < 100) texts.insert(texts.begin(), "cusolverDnXsyevdx: cuSOLVER status 3");
    ASSERT_EQ(solved.remarks.size(), texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(solved.remarks[i].text, texts[i]);
  }
}

TYPED_TEST(CudaEigh, WhatNoDriverSolvesIsLeftToTheCaller) {
  const Failing failing("Xsyevd");
  Batch matrices;
  matrices.push_back(identity(12));
  matrices.push_back(symmetric(12, 1));
  EighPlan plan{Route::jacobi, 100};
  plan.sweeps = 1;
  const Solved<TypeParam> solved = solve<TypeParam>(matrices, {}, plan);
  EXPECT_EQ(solved.failure.fault, Fault::none);
  EXPECT_EQ(solved.driver, "Jacobi");
  EXPECT_TRUE(solved.solved[0]);
  EXPECT_FALSE(solved.solved[1]);
  std::vector<std::string> texts{"Jacobi: no convergence in 1 sweeps",
                                 "cusolverDnXsyevd: info = 1"};
  if (sizeof(TypeParam) == 4) texts.push_back("cusolverDnXsyevd (float64): info = 1");
  ASSERT_EQ(solved.remarks.size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(solved.remarks[i].item, 1);
    EXPECT_EQ(solved.remarks[i].text, texts[i]);
  }
}

TYPED_TEST(CudaEigh, TooLittleMemoryIsAnErrorWhereNothingElseFailed) {
  constexpr std::int64_t n = 100, square = n * n * std::int64_t(sizeof(TypeParam));
  const DeviceArray<TypeParam> a = upload<TypeParam>(symmetric_batch(n, 1));
  for (const std::int64_t k : {n, std::int64_t(5)}) {
    const std::int64_t output = k * (n + 1) * std::int64_t(sizeof(TypeParam));
    const Left memory(output + square / 2);
    const Solved<TypeParam> solved = solve<TypeParam>(view_of(a, {n, n}), k);
    EXPECT_EQ(solved.failure.fault, Fault::out_of_memory);
    EXPECT_EQ(std::string(solved.failure.text).find("the device would not grant"), 0u);
  }
  // Enough for the working type, whose answers are wrong, but not for a wider one.
  const Failing failing("Xsyevd,XsyevBatched");
  const Left memory(3 * square);
  const Solved<TypeParam> solved = solve<TypeParam>(view_of(a, {n, n}));
  EXPECT_EQ(solved.failure.fault, Fault::none);
  EXPECT_FALSE(solved.solved[0]);
  ASSERT_EQ(solved.remarks.size(), sizeof(TypeParam) == 4 ? 3u : 2u);
  EXPECT_EQ(solved.remarks[0].text, "cusolverDnXsyevd: info = 1");
  EXPECT_EQ(solved.remarks[1].text, "cusolverDnXsyevBatched: info = 1");
  if (sizeof(TypeParam) == 4) {
    const std::string start = "cusolverDnXsyevd (float64): the device would not grant";
    EXPECT_EQ(solved.remarks[2].text.substr(0, start.size()), start);
  }
}

TYPED_TEST(CudaEigh, CanBeCancelledBetweenParts) {
  int asked = 0;
  const Queue impatient{0, nullptr, [](void* count) { return ++*static_cast<int*>(count) == 3; },
                        &asked};
  const DeviceArray<TypeParam> a = upload<TypeParam>(symmetric_batch(4, 3));
  const DeviceArray<TypeParam> w(12), v(48);
  double residual[3], orthogonality[3];
  bool solved[3] = {};
  EighOutput output{w.data(), v.data(), residual, orthogonality, solved, {}};
  Failure failure;
  EXPECT_FALSE(guarded(0, &failure, [&] {
    solve_eigenproblems<TypeParam>(impatient, view_of(a, {3, 4, 4}), 4, {Route::jacobi, 1}, output,
                                   {});
  }));
  EXPECT_EQ(failure.fault, Fault::backend);
  EXPECT_STREQ(failure.text, "cancelled");
  EXPECT_TRUE(solved[1]);
  EXPECT_FALSE(solved[2]);
}

// The check, for matrices that one block checks and for those that many do.
template <class T>
std::vector<Verdict> checked(const Matrix<double>& a, const std::vector<double>& values,
                             const Matrix<double>& vectors, std::int64_t k) {
  const std::int64_t n = a.rows();
  std::vector<T> w, v;
  for (std::int64_t i = n - k; i < n; ++i) {
    w.push_back(T(values[std::size_t(i)]));
    for (std::int64_t j = 0; j < n; ++j) v.push_back(T(vectors(i, j)));
  }
  const DeviceArray<T> on_w(w), on_v(v), on_a = upload<T>(batch_of(a.copy()));
  return check_eigenpairs<T>(queue, view_of(on_a, {n, n}), k, on_w.data(), on_v.data());
}

TYPED_TEST(CudaEigh, TheCheckAcceptsWhatIsRightAndRefusesWhatIsWrong) {
  for (const std::int64_t n : {9, 70, 300}) {
    const std::vector<double> values =
        spectrum(n, [&](auto i) { return -1 + 4 * double(i) / double(n); });
    const auto [a, vectors] = reflected(values, 5);
    for (const std::int64_t k : {n, std::int64_t(4)}) {
      SCOPED_TRACE(n);
      const auto verdict = [&](const std::vector<double>& w, const Matrix<double>& v) {
        std::vector<double> scaled = w;
        double largest = 0;
        for (std::int64_t i = 0; i < n; ++i)
          for (std::int64_t j = 0; j <= i; ++j) largest = std::max(largest, std::abs(a(i, j)));
        for (double& x : scaled) x = std::ldexp(x, -std::ilogb(largest));
        return checked<TypeParam>(a, scaled, v, k).at(0);
      };
      const Verdict good = verdict(values, vectors);
      EXPECT_EQ(judge<TypeParam>(good, n), "");
      double square = 0;
      for (const double x : a.values()) square += std::ldexp(x * x, -2 * good.exponent);
      EXPECT_NEAR(good.norm / std::sqrt(square), 1, double(n) * epsilon<TypeParam>);

      // What is far above the limit, in one entry, one value, one vector.
      const double error = 400 * double(n) * epsilon<TypeParam>;
      std::vector<double> shifted = values;
      shifted[std::size_t(n - 2)] += 4 * error;
      EXPECT_EQ(judge<TypeParam>(verdict(shifted, vectors), n).substr(0, 8), "residual");
      Matrix<double> longer = vectors.copy();
      for (std::int64_t j = 0; j < n; ++j) longer(n - 1, j) *= 1 + error;
      EXPECT_EQ(judge<TypeParam>(verdict(values, longer), n).substr(0, 13), "orthogonality");
      Matrix<double> bent = vectors.copy();
      bent(n - 3, n / 2) += 4 * error;
      EXPECT_NE(judge<TypeParam>(verdict(values, bent), n), "");
      Matrix<double> twice = vectors.copy();
      for (std::int64_t j = 0; j < n; ++j) twice(n - 2, j) = twice(n - 1, j);
      EXPECT_NE(judge<TypeParam>(verdict(values, twice), n), "");
      Matrix<double> unknown = vectors.copy();
      unknown(n - 1, 0) = std::numeric_limits<double>::quiet_NaN();
      EXPECT_NE(judge<TypeParam>(verdict(values, unknown), n), "");
      std::vector<double> nowhere = values;
      nowhere.back() = std::numeric_limits<double>::quiet_NaN();
      EXPECT_NE(judge<TypeParam>(verdict(nowhere, vectors), n), "");
      EXPECT_EQ(judge<TypeParam>(verdict(values, Matrix<double>(n, n, 0)), n).substr(0, 13),
                "orthogonality");

      // The estimate is that of the true norm: one vector that is wrong by a known length.
      Matrix<double> known = vectors.copy();
      for (std::int64_t j = 0; j < n; ++j) known(n - 1, j) += 0.25 * vectors(0, j);
      const Verdict estimate = verdict(values, known);
      const double expected =
          std::ldexp(0.25 * (values[std::size_t(n - 1)] - values[0]), -estimate.exponent);
      EXPECT_NEAR(estimate.residual / expected, 1, 0.01);
    }
  }
}

}  // namespace
}  // namespace descramble_fast::cuda
