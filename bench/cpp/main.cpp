// The benchmarks of the C++ interface. Results are checked against plain loops before they are
// timed.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/view.hpp"
#include "harness.hpp"

namespace descramble_fast::bench {

namespace {

// ------------------------------------------------------------------------------------ numbers

BFloat16 rounded(double x, BFloat16) {
  const auto bits = std::bit_cast<std::uint32_t>(float(x));
  return {std::uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
// For |x| < 65504; what is below the normal numbers becomes 0.
Float16 rounded(double x, Float16) {
  const auto bits = std::bit_cast<std::uint32_t>(float(x));
  const std::uint32_t magnitude = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
  if (magnitude < 0x38800000) return {std::uint16_t(sign)};
  const std::uint32_t even = magnitude >> 13 & 1;
  return {std::uint16_t(sign | ((magnitude - 0x38000000 + 0xFFF + even) >> 13))};
}
template <class T>
T rounded(double x, T) {
  return T(x);
}

double value(BFloat16 x) { return std::bit_cast<float>(std::uint32_t(x.bits) << 16); }
double value(Float16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double size = exponent == 0 ? 0 : std::ldexp(1024 + fraction, exponent - 25);
  return x.bits & 0x8000 ? -size : size;
}
double value(double x) { return x; }

// Zero mean, unit variance, near to normal.
template <class T>
void fill_random(std::span<T> out, unsigned seed) {
  std::mt19937_64 engine(seed);
  for (T& x : out) {
    double sum = -1.5;
    for (int i = 0; i < 3; ++i) sum += std::ldexp(double(engine() >> 11), -53);
    x = rounded(2 * sum, T());
  }
}

void require_small(double error, double bound, const std::string& op) {
  std::ostringstream text;
  text << op << ": error " << error << ", above " << bound;
  require(error < bound, text.str());
}

const std::string ours = "descramble_fast";

std::string joined(std::initializer_list<std::int64_t> lengths) {
  std::string out;
  for (const std::int64_t length : lengths) {
    if (!out.empty()) out += 'x';
    out += std::to_string(length);
  }
  return out;
}

// --------------------------------------------------------------------------------- covariance

template <class T>
struct CovarianceState {
  CovarianceState(std::int64_t rows, std::int64_t n) : samples(rows, n), covariance(n) {
    fill_random<T>(samples.values(), 1);
  }

  void update(std::int64_t batch) {
    for (std::int64_t r = 0; r < samples.rows(); r += batch)
      covariance.update(ArrayView(samples.row(r), {batch, samples.columns()}));
  }

  // Of some elements, relative to the variances (near 1), against sums in double precision.
  double error() const {
    const std::int64_t n = samples.columns();
    const Matrix<double> moment = covariance.second_moment();
    double largest = 0;
    std::mt19937_64 engine(2);
    for (int k = 0; k < 64; ++k) {
      const auto i = std::int64_t(engine() % std::uint64_t(n));
      const auto j = k < 8 ? i : std::int64_t(engine() % std::uint64_t(n));
      double sum = 0;
      for (std::int64_t r = 0; r < samples.rows(); ++r)
        sum += value(samples(r, i)) * value(samples(r, j));
      largest = std::max({largest, std::abs(moment(i, j) - sum / double(samples.rows())),
                          std::abs(moment(j, i) - moment(i, j))});
    }
    require_small(largest, (std::is_same_v<T, double> ? 1e-12 : 1e-5), "covariance");
    return largest;
  }

  Matrix<T> samples;
  Covariance covariance;
};

constexpr std::int64_t all_rows = 8192;

// All rows in batches of so many.
template <class T>
Benchmark covariance(std::int64_t batch, std::int64_t n, Limit limit) {
  const bool one = batch == all_rows;
  return {one ? "covariance" : "covariance_batches",
          one ? ours : ours + "_" + std::to_string(batch) + "_rows",
          name(dtype_of<T>),
          joined({all_rows, n}),
          {{"rows", all_rows}, {"n", n}},
          double(all_rows) * double(n) * double(n + 1),
          limit,
          n == 256,
          [=] {
            const auto state = std::make_shared<CovarianceState<T>>(all_rows, n);
            return Problem{[=] { state->update(batch); }, [=] { return state->error(); }};
          }};
}

void add_covariance(std::vector<Benchmark>& out) {
  for (const std::int64_t batch : {all_rows, std::int64_t(32)})
    for (const std::int64_t n : {256, 1024, 4096}) {
      out.push_back(covariance<float>(batch, n, Limit::fma_float32));
      out.push_back(covariance<Float16>(batch, n, Limit::fma_float32));
      out.push_back(covariance<BFloat16>(batch, n, Limit::dot_bfloat16));
      out.push_back(covariance<double>(batch, n, Limit::fma_float64));
    }
}

// --------------------------------------------------------------------------------------- eigh

template <class T>
struct EighState {
  EighState(std::int64_t count, std::int64_t order) : batch(count), n(order), a(count * n, n) {
    fill_random<T>(a.values(), 3);
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < i; ++j) a(b * n + j, i) = a(b * n + i, j);
  }

  void solve() { result = eigh<T>(ArrayView(a.data(), {batch, n, n})); }

  double dot(const T* x, const T* y) const {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += double(x[i]) * double(y[i]);
    return sum;
  }

  // Of one pair, in units of the matrix: |A v - lambda v| / |A|, and how far v is from a unit
  // vector at right angles to its successor.
  double pair_error(std::int64_t b, std::int64_t i, double norm) const {
    const T* const v = result.eigenvectors.row(b * n + i);
    const double lambda = double(result.eigenvalues(b, i));
    double squares = 0;
    for (std::int64_t r = 0; r < n; ++r)
      squares += std::pow(dot(a.row(b * n + r), v) - lambda * double(v[r]), 2);
    const double next = i + 1 < n ? std::abs(dot(v, result.eigenvectors.row(b * n + i + 1))) : 0;
    return std::max({std::sqrt(squares) / norm, std::abs(dot(v, v) - 1), next});
  }

  double matrix_error(std::int64_t b) const {
    double squares = 0, trace = 0;
    for (std::int64_t r = 0; r < n; ++r) {
      squares += dot(a.row(b * n + r), a.row(b * n + r));
      trace += double(a(b * n + r, r)) - double(result.eigenvalues(b, r));
    }
    const double norm = std::sqrt(squares);
    double largest = std::abs(trace) / norm / std::sqrt(double(n));
    for (std::int64_t i = 0; i < n; i += std::max<std::int64_t>(1, n / 16))
      largest = std::max(largest, pair_error(b, i, norm));
    return largest;
  }

  double error() const {
    double largest = 0;
    for (std::int64_t b = 0; b < batch; b += std::max<std::int64_t>(1, batch / 16))
      largest = std::max(largest, matrix_error(b));
    require_small(largest, 50 * double(n) * double(std::numeric_limits<T>::epsilon()), "eigh");
    return largest;
  }

  std::int64_t batch, n;
  Matrix<T> a;
  Eigh<T> result;
};

// Work: 9 n^3 operations, for a tridiagonal form, its eigenvectors and the way back, whatever a
// solver really needs.
template <class T>
Benchmark eigenpairs(std::int64_t batch, std::int64_t n, bool quick) {
  const bool one = batch == 1;
  return {one ? "eigh" : "eigh_batch",
          ours,
          name(dtype_of<T>),
          one ? joined({n, n}) : joined({batch, n, n}),
          one ? Sizes{{"n", n}} : Sizes{{"count", batch}, {"n", n}},
          9 * double(batch) * std::pow(double(n), 3),
          std::is_same_v<T, double> ? Limit::fma_float64 : Limit::fma_float32,
          quick,
          [=] {
            const auto state = std::make_shared<EighState<T>>(batch, n);
            return Problem{[=] { state->solve(); }, [=] { return state->error(); }};
          }};
}

void add_eigh(std::vector<Benchmark>& out) {
  const auto add = [&](std::int64_t batch, std::int64_t n, bool quick) {
    out.push_back(eigenpairs<float>(batch, n, quick));
    out.push_back(eigenpairs<double>(batch, n, quick));
  };
  add(100, 8, true);
  for (const std::int64_t n : {4, 8, 16, 31, 32, 33, 48, 63, 64, 65, 96, 100, 128})
    add(std::clamp<std::int64_t>(100'000'000 / (n * n * n), 32, 8192), n, n == 32);
  for (const std::int64_t n : {256, 512, 1024, 2048, 4096}) add(1, n, n == 256);
}

// --------------------------------------------------------------------------------- assignment

template <class T>
struct AssignmentState {
  AssignmentState(std::int64_t batch, std::int64_t n) : costs(batch * n, n), problems(batch) {
    fill_random<T>(costs.values(), 4);
  }

  void solve() {
    const std::int64_t n = costs.columns();
    result = linear_assignment(ArrayView(costs.data(), {problems, n, n}));
  }

  // A permutation whose cost is the sum of duals that no cost lies below is optimal.
  double problem_error(std::int64_t b) const {
    const std::int64_t n = costs.columns();
    std::vector<bool> taken(std::size_t(n), false);
    double cost = 0, duals = 0, violation = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t chosen = result.columns(b, i);
      require(chosen >= 0 && chosen < n && !taken[std::size_t(chosen)],
              "linear_assignment: not a permutation");
      taken[std::size_t(chosen)] = true;
      cost += double(costs(b * n + i, chosen));
      duals += result.row_duals(b, i) + result.column_duals(b, i);
      for (std::int64_t j = 0; j < n; ++j)
        violation = std::max(violation, result.row_duals(b, i) + result.column_duals(b, j) -
                                            double(costs(b * n + i, j)));
    }
    return std::max(std::abs(cost - duals) / double(n), violation);
  }

  double error() const {
    double largest = 0;
    for (std::int64_t b = 0; b < problems; ++b) largest = std::max(largest, problem_error(b));
    require_small(largest, 1e-12, "linear_assignment");
    return largest;
  }

  Matrix<T> costs;
  std::int64_t problems;
  LinearAssignment result;
};

// Work: every cost is read once.
template <class T>
Benchmark assignment(std::int64_t batch, std::int64_t n, bool quick) {
  const bool one = batch == 1;
  return {"linear_assignment",
          ours,
          name(dtype_of<T>),
          one ? joined({n, n}) : joined({batch, n, n}),
          one ? Sizes{{"n", n}} : Sizes{{"count", batch}, {"n", n}},
          double(batch * n * n * std::int64_t(sizeof(T))),
          Limit::bandwidth,
          quick,
          [=] {
            const auto state = std::make_shared<AssignmentState<T>>(batch, n);
            return Problem{[=] { state->solve(); }, [=] { return state->error(); }};
          }};
}

void add_assignment(std::vector<Benchmark>& out) {
  const auto add = [&](std::int64_t batch, std::int64_t n, bool quick) {
    out.push_back(assignment<float>(batch, n, quick));
    out.push_back(assignment<double>(batch, n, quick));
  };
  for (const std::int64_t n : {256, 1024, 4096}) add(1, n, n == 256);
  add(1000, 64, true);
}

}  // namespace

}  // namespace descramble_fast::bench

int main(int argc, char** argv) {
  namespace bench = descramble_fast::bench;
  std::vector<bench::Benchmark> benchmarks;
  bench::add_covariance(benchmarks);
  bench::add_eigh(benchmarks);
  bench::add_assignment(benchmarks);
  return bench::run(argc, argv, benchmarks);
}
