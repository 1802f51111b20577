#include "descramble_fast/descrambler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/gauge.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/eigh.hpp"
#include "message.hpp"
#include "weights.hpp"

namespace descramble_fast {

// Row r of C L, entry r.
double roughness(const Operator& op, const Matrix<double>& c, const Context& context) {
  constexpr std::int64_t group = 64;
  const std::int64_t n = c.rows();
  double sum = 0;
  for (std::int64_t first = 0; first < n; first += group) {
    const std::int64_t count = std::min(group, n - first);
    Matrix<double> rows(count, n);
    std::copy_n(c.row(first), count * n, rows.data());
    op.apply(rows.values(), context);
    for (std::int64_t i = 0; i < count; ++i) sum += rows(i, first + i);
  }
  return sum;
}

namespace {

constexpr double epsilon = std::numeric_limits<double>::epsilon();
// A second moment kept in float32 has eigenvalues this far below zero, relative to the largest.
constexpr double rounding_of_moments = 1e-6;

std::vector<Block> close_runs(const std::vector<double>& values, double gap) {
  std::vector<Block> runs;
  const std::int64_t n = std::int64_t(values.size());
  for (std::int64_t begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    while (end < n && values[std::size_t(begin)] - values[std::size_t(end)] <= gap) ++end;
    if (end - begin > 1) runs.push_back({begin, end});
  }
  return runs;
}

// One solved problem of a batch: `row` is its first row in the eigenvectors, ascending.
struct Solved {
  const Eigh<double>& pairs;
  std::int64_t item;
};

// The rule of the gauge; `reference` for Gauge::reference alone.
struct Choice {
  Gauge gauge;
  std::optional<Matrix<double>> reference;
};

SmoothnessDescrambler assemble(const Operator& op, const Matrix<double>& c, std::int64_t k,
                               std::int64_t samples, const Solved& solved, const Choice& choice,
                               const Context& context) {
  const std::int64_t n = c.rows(), known = solved.pairs.eigenvalues.columns();
  SmoothnessDescrambler d(op);
  d.components = Matrix<double>(k, n);
  for (std::int64_t i = 0; i < known; ++i) {
    const std::int64_t from = known - 1 - i;
    d.eigenvalues.push_back(solved.pairs.eigenvalues(solved.item, from));
    if (i == k) continue;  // one more is known only to see whether a block is cut
    std::copy_n(solved.pairs.eigenvectors.row(solved.item * known + from), n, d.components.row(i));
    cpu::fix_sign(d.components.row(i), n);
  }
  const double largest = std::max(0.0, d.eigenvalues.front());
  const double lowest = d.eigenvalues.back();
  double lowest_variance = 0;  // negative eigenvalues beyond the k leading ones show here
  for (std::int64_t i = 0; i < n; ++i) lowest_variance = std::min(lowest_variance, c(i, i));
  const double rounding =
      rounding_of_moments * largest + double(n) * std::numeric_limits<double>::min();
  if (std::min(lowest, lowest_variance) < -rounding)
    throw InvalidArgument(
        message("covariance: not positive semidefinite: smallest eigenvalue or variance ",
                std::min(lowest, lowest_variance), " beside the largest ", largest));
  for (double& x : d.eigenvalues) x = std::max(0.0, x);

  d.blocks = close_runs(d.eigenvalues, double(n) * epsilon * largest);
  for (Block& block : d.blocks) block.end = std::min(block.end, k);
  if (!d.blocks.empty() && d.blocks.back().begin == k) d.blocks.pop_back();
  d.eigenvalues.resize(std::size_t(k));

  // The eigensolver's residual, the rounding of its input, which grows like a random walk with the
  // number of samples, what was clipped, and the width of a block within which a gauge may rotate.
  const double rounding_of_input = (2 * double(n) + std::sqrt(double(samples))) * epsilon * largest;
  const double error =
      solved.pairs.residual[std::size_t(solved.item)] + rounding_of_input + std::max(0.0, -lowest);
  const auto l = op.eigenvalues().first(std::size_t(k));
  d.cost = std::inner_product(l.begin(), l.end(), d.eigenvalues.begin(), 0.0);
  d.cost_error = error * std::accumulate(l.begin(), l.end(), 0.0);
  d.bound = d.cost;
  d.initial_cost = roughness(op, c, context);
  if (!std::isfinite(d.cost + d.cost_error) || !std::isfinite(d.initial_cost))
    throw InvalidArgument(message("covariance: the roughness of signals with a variance of ",
                                  largest, " overflows float64; rescale the samples"));
  d.gauge = {std::numeric_limits<double>::quiet_NaN(), true, 0};
  d.route = solved.pairs.route;
  if (choice.gauge != Gauge::canonical)
    cpu::choose_nearest(choice.reference ? &*choice.reference : nullptr, d, context);
  d.orthogonality_error = cpu::orthogonality_error(d.components, cpu::threads_of(context));
  return d;
}

Matrix<double> moment_of(const Covariance& covariance, bool center) {
  if (!center) return covariance.second_moment();
  if (!covariance.has_mean())
    throw InvalidArgument("center: got true, but this second moment came without a mean");
  return covariance.covariance();
}

void check_problem(const Covariance& covariance, const Operator& op,
                   const DescrambleOptions& options) {
  const std::int64_t n = covariance.size();
  if (op.size() != n)
    throw InvalidArgument(
        message("operator: acts on ", op.size(), " neurons, the moments have ", n));
  if (options.k && (*options.k < 1 || *options.k > n))
    throw InvalidArgument(message("k: got ", *options.k, ", expected between 1 and ", n));
  if (options.gauge != Gauge::canonical && options.k && *options.k < n)
    throw InvalidArgument(message("gauge: a nearest matrix needs all components, but k = ",
                                  *options.k, " of ", n, " are asked for"));
}

}  // namespace

Matrix<double> Descrambler::transform(const ArrayView& samples, const Context& context) const {
  check_rows("samples", samples, size());
  Matrix<double> rows = cpu::widen_rows(samples, context);
  if (!mean.empty())
    for (std::int64_t i = 0; i < rows.rows(); ++i)
      for (std::int64_t j = 0; j < size(); ++j) rows(i, j) -= mean[std::size_t(j)];
  return forward(std::move(rows), context);
}

Matrix<double> Descrambler::inverse_transform(const ArrayView& samples,
                                              const Context& context) const {
  check_rows("samples", samples, size());
  Matrix<double> rows = backward(cpu::widen_rows(samples, context), context);
  if (!mean.empty())
    for (std::int64_t i = 0; i < rows.rows(); ++i)
      for (std::int64_t j = 0; j < size(); ++j) rows(i, j) += mean[std::size_t(j)];
  return rows;
}

Matrix<double> Descrambler::transform_weight(const ArrayView& weight,
                                             const Context& context) const {
  check_matrix("W", weight, size(), -1);
  return cpu::transposed(forward(cpu::transposed(cpu::widen_rows(weight, context)), context));
}

Matrix<double> Descrambler::transform_bias(const ArrayView& bias, const Context& context) const {
  check_vector("bias", bias, size());
  return forward(cpu::widen_rows(bias, context), context);
}

Matrix<double> Descrambler::transform_next_weight(const ArrayView& weight,
                                                  const Context& context) const {
  check_matrix("W_next", weight, -1, size());
  return forward(cpu::widen_rows(weight, context), context);
}

namespace {

// The leading columns of `from`, or `from` between zeros, in rows of the other length.
Matrix<double> resized(const Matrix<double>& from, std::int64_t columns) {
  Matrix<double> out(from.rows(), columns, 0);
  const std::int64_t kept = std::min(columns, from.columns());
  for (std::int64_t i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), kept, out.row(i));
  return out;
}

// Each row's entries of a block times A (forward) or A^T (back).
void rotate(std::span<const SmoothnessDescrambler::Rotation> rotations, bool back,
            Matrix<double>& rows) {
  std::vector<double> old;
  for (const auto& [block, a] : rotations) {
    old.resize(std::size_t(block.size()));
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
      double* const x = rows.row(r) + block.begin;
      std::copy_n(x, block.size(), old.begin());
      for (std::int64_t i = 0; i < block.size(); ++i) {
        x[i] = 0;
        for (std::int64_t j = 0; j < block.size(); ++j)
          x[i] += (back ? a(j, i) : a(i, j)) * old[std::size_t(j)];
      }
    }
  }
}

Matrix<double> synthesized(const SmoothnessDescrambler& d, Matrix<double> coefficients,
                           const Context& context) {
  rotate(d.rotations, false, coefficients);
  if (coefficients.columns() != d.size()) coefficients = resized(coefficients, d.size());
  d.op.synthesize(coefficients.values(), context);
  return coefficients;
}

}  // namespace

Matrix<double> SmoothnessDescrambler::forward(Matrix<double> rows, const Context& context) const {
  return synthesized(*this, cpu::times_transposed(rows, components, cpu::threads_of(context)),
                     context);
}

Matrix<double> SmoothnessDescrambler::backward(Matrix<double> rows, const Context& context) const {
  op.analyze(rows.values(), context);
  if (components.rows() != size()) rows = resized(rows, components.rows());
  rotate(rotations, true, rows);
  return cpu::times(rows, components, cpu::threads_of(context));
}

Matrix<double> SmoothnessDescrambler::matrix() const {
  return cpu::transposed(synthesized(*this, cpu::transposed(components), {}));
}

Matrix<double> SmoothnessDescrambler::modes() const {
  const std::int64_t n = size(), k = components.rows();
  const Matrix<double> closed = op.modes();
  Matrix<double> out(k, n);
  std::copy_n(closed.data(), k * n, out.data());
  for (const auto& [block, a] : rotations)
    for (std::int64_t i = 0; i < block.size(); ++i)
      for (std::int64_t x = 0; x < n; ++x) {
        double sum = 0;
        for (std::int64_t j = 0; j < block.size(); ++j) sum += closed(block.begin + j, x) * a(j, i);
        out(block.begin + i, x) = sum;
      }
  return out;
}

Matrix<double> MatrixDescrambler::forward(Matrix<double> rows, const Context& context) const {
  return cpu::times_transposed(rows, p_, cpu::threads_of(context));
}

Matrix<double> MatrixDescrambler::backward(Matrix<double> rows, const Context& context) const {
  return cpu::times(rows, p_, cpu::threads_of(context));
}

SmoothnessDescrambler descramble(const Covariance& covariance, const Operator& op,
                                 const DescrambleOptions& options, const Context& context) {
  const Covariance* const one[] = {&covariance};
  return std::move(descramble_many(one, {&op, 1}, options, context).front());
}

std::vector<SmoothnessDescrambler> descramble_many(std::span<const Covariance* const> covariances,
                                                   std::span<const Operator> ops,
                                                   const DescrambleOptions& options,
                                                   const Context& context) {
  if (ops.size() != covariances.size())
    throw InvalidArgument(message("operator: got ", ops.size(), ", expected ", covariances.size(),
                                  ", one per covariance"));
  std::map<std::int64_t, std::vector<std::size_t>> by_size;
  for (std::size_t i = 0; i < covariances.size(); ++i) {
    check_problem(*covariances[i], ops[i], options);
    by_size[covariances[i]->size()].push_back(i);
  }
  if (options.reference.has_value() != (options.gauge == Gauge::reference))
    throw InvalidArgument("gauge: a reference matrix goes with Gauge::reference, and only with it");
  Choice choice{options.gauge, {}};
  if (options.reference) {
    const std::int64_t n = options.reference->columns();
    choice.reference = finite_matrix("gauge", *options.reference, n, n, context);
    for (const auto& [size, members] : by_size)
      if (size != n)
        throw InvalidArgument(message("gauge: got a reference of shape (", n, ", ", n,
                                      "), expected (", size, ", ", size, ")"));
  }

  std::vector<std::optional<SmoothnessDescrambler>> solved(covariances.size());
  for (const auto& [n, members] : by_size) {
    // A batch is bounded, so that many large moments do not stand in memory together.
    const std::size_t group =
        std::size_t(std::max<std::int64_t>(1, (std::int64_t(1) << 24) / (n * n)));
    for (std::size_t begin = 0; begin < members.size(); begin += group) {
      const std::size_t count = std::min(group, members.size() - begin);
      std::vector<Matrix<double>> moments;
      Matrix<double> stack(count > 1 ? std::int64_t(count) * n : 0, n);
      for (std::size_t i = 0; i < count; ++i) {
        moments.push_back(moment_of(*covariances[members[begin + i]], options.center));
        if (count > 1) std::copy_n(moments.back().data(), n * n, stack.row(std::int64_t(i) * n));
      }
      const ArrayView batch(count > 1 ? stack.data() : moments[0].data(),
                            {std::int64_t(count), n, n});
      const std::int64_t k = options.k.value_or(n);
      const std::optional<std::int64_t> asked = k < n ? std::optional(k + 1) : std::nullopt;
      const Eigh<double> pairs = eigh<double>(batch, asked, context);
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t member = members[begin + i];
        solved[member] = assemble(ops[member], moments[i], k, covariances[member]->count(),
                                  {pairs, std::int64_t(i)}, choice, context);
        if (options.center) solved[member]->mean = covariances[member]->mean();
      }
    }
  }
  std::vector<SmoothnessDescrambler> out;
  for (auto& d : solved) out.push_back(std::move(*d));
  return out;
}

Covariance preactivation_moment(const ArrayView& weight, const std::optional<ArrayView>& bias,
                                const std::optional<ArrayView>& input_second_moment,
                                const std::optional<ArrayView>& input_mean,
                                const Context& context) {
  const int threads = cpu::threads_of(context);
  const Matrix<double> w = finite_matrix("W", weight, -1, -1, context);
  const std::int64_t n = w.rows(), m = w.columns();
  check_not_empty(w);
  const auto vector = [&](const char* argument, const std::optional<ArrayView>& a,
                          std::int64_t length) {
    Matrix<double> out(1, length, 0);
    if (!a) return out;
    check_vector(argument, *a, length);
    cpu::widen_row(*a, 0, out.data());
    check_finite(argument, out);
    return out;
  };
  const Matrix<double> b = vector("bias", bias, n);
  const Matrix<double> mu = vector("input_mean", input_mean, m);
  Matrix<double> c;
  if (input_second_moment) {
    const Matrix<double> s =
        finite_matrix("input_second_moment", *input_second_moment, m, m, context);
    check_symmetric_moment("input_second_moment", s);
    c = cpu::times_transposed(cpu::times(w, s, threads), w, threads);
  } else {
    c = cpu::times_transposed(w, w, threads);
  }
  Matrix<double> mean = cpu::times_transposed(mu, w, threads);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      c(i, j) += mean(0, i) * b(0, j) + b(0, i) * mean(0, j) + b(0, i) * b(0, j);
  for (std::int64_t i = 0; i < n; ++i) mean(0, i) += b(0, i);
  return Covariance::from_moments(c.view(), ArrayView(mean.data(), {n}), 1);
}

void check_not_empty(const Matrix<double>& w) {
  if (w.rows() == 0 || w.columns() == 0)
    throw InvalidArgument(message("W: got shape (", w.rows(), ", ", w.columns(),
                                  "), expected at least one row and one column"));
}

SquarePart square_part(const ArrayView& weight, const Context& context) {
  const Matrix<double> w = finite_matrix("W", weight, -1, -1, context);
  check_not_empty(w);
  SquarePart out{resized(w, w.rows())};
  double largest = 0;
  for (const double x : out.matrix.values()) largest = std::max(largest, std::abs(x));
  if (largest > 0) out.exponent = std::ilogb(largest);
  for (double& x : out.matrix.values()) x = std::ldexp(x, -out.exponent);
  return out;
}

double rescaled(double value, int exponent) {
  const double out = std::ldexp(value, exponent);
  if (!std::isfinite(out)) throw InvalidArgument("W: the criterion overflows float64");
  return out;
}

namespace {

double trace(const Matrix<double>& a) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i) sum += a(i, i);
  return sum;
}

// (P W)_ii.
std::vector<double> diagonal_of_product(const Matrix<double>& p, const Matrix<double>& wt) {
  std::vector<double> d(std::size_t(p.rows()), 0);
  for (std::int64_t i = 0; i < p.rows(); ++i)
    d[std::size_t(i)] = std::inner_product(p.row(i), p.row(i) + p.columns(), wt.row(i), 0.0);
  return d;
}

double sum_of_squares(std::span<const double> x) {
  return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
}

// |skew(G P^T)|_F / |G|_F: 0 where P is stationary on the orthogonal group.
double skewness(const Matrix<double>& gradient, const Matrix<double>& p, int threads) {
  const double scale = std::sqrt(sum_of_squares(gradient.values()));
  if (scale == 0) return 0;
  const Matrix<double> product = cpu::times_transposed(gradient, p, threads);
  double sum = 0;
  for (std::int64_t i = 0; i < product.rows(); ++i)
    for (std::int64_t j = 0; j < i; ++j) {
      const double skew = (product(i, j) - product(j, i)) / 2;
      sum += 2 * skew * skew;
    }
  return std::sqrt(sum) / scale;
}

}  // namespace

namespace {

void record_svd(bool fell_back, Route& route) {
  route.driver = fell_back ? "dgesvd" : "dgesdd";
  if (fell_back) route.fallbacks.push_back("dgesdd: did not converge");
}

}  // namespace

MatrixDescrambler descramble_trace(const ArrayView& weight, const Context& context) {
  const int threads = cpu::threads_of(context);
  const auto [w, exponent] = square_part(weight, context);
  const Matrix<double> wt = cpu::transposed(w);
  cpu::Polar polar = cpu::polar(wt, threads);
  MatrixDescrambler out(std::move(polar.factor));
  const Matrix<double> p = out.matrix();
  const auto d = diagonal_of_product(p, wt);
  out.cost = rescaled(std::accumulate(d.begin(), d.end(), 0.0), exponent);
  out.initial_cost = rescaled(trace(w), exponent);
  out.bound = rescaled(polar.nuclear_norm, exponent);
  out.stationarity = skewness(wt, p, threads);
  out.orthogonality_error = cpu::orthogonality_error(p, threads);
  record_svd(polar.fell_back, out.route);
  return out;
}

MatrixDescrambler descramble_diagonal(const ArrayView& weight, const Context& context) {
  constexpr std::int64_t iteration_limit = 10000;
  constexpr double stationary = 1e-12;
  const int threads = cpu::threads_of(context);
  const auto [w, exponent] = square_part(weight, context);
  const Matrix<double> wt = cpu::transposed(w);
  cpu::Polar start = cpu::polar(wt, threads);
  bool fell_back = start.fell_back;
  Matrix<double> p = std::move(start.factor);
  std::vector<double> d = diagonal_of_product(p, wt);
  double cost = sum_of_squares(d), skew = 0;
  std::int64_t iterations = 0;
  for (;; ++iterations) {
    if (context.poll) context.poll();
    Matrix<double> gradient = wt.copy();
    for (std::int64_t i = 0; i < w.rows(); ++i)
      for (std::int64_t j = 0; j < w.rows(); ++j) gradient(i, j) *= d[std::size_t(i)];
    skew = skewness(gradient, p, threads);
    if (skew <= stationary || iterations == iteration_limit) break;
    cpu::Polar step = cpu::polar(gradient, threads);
    fell_back = fell_back || step.fell_back;
    Matrix<double> next = std::move(step.factor);
    std::vector<double> next_d = diagonal_of_product(next, wt);
    const double next_cost = sum_of_squares(next_d);
    if (!(next_cost > cost)) break;  // at the limit of rounding
    p = std::move(next);
    d = std::move(next_d);
    cost = next_cost;
  }
  MatrixDescrambler out(std::move(p));
  out.cost = rescaled(cost, 2 * exponent);
  std::vector<double> initial(std::size_t(w.rows()));
  for (std::int64_t i = 0; i < w.rows(); ++i) initial[std::size_t(i)] = w(i, i);
  out.initial_cost = rescaled(sum_of_squares(initial), 2 * exponent);
  out.bound = rescaled(sum_of_squares(w.values()), 2 * exponent);  // |p_i . w_i| <= |w_i|
  out.stationarity = skew;
  out.iterations = iterations;
  out.orthogonality_error = cpu::orthogonality_error(out.matrix(), threads);
  record_svd(fell_back, out.route);
  return out;
}

}  // namespace descramble_fast
