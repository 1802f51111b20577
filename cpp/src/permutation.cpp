#include "descramble_fast/permutation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "call.hpp"
#include "check.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "cpu/random.hpp"
#include "cpu/smooth_order.hpp"
#include "weights.hpp"

namespace descramble_fast {

namespace {

double diagonal_sum(const Matrix<double>& a) {
  double sum = 0;
  for (std::int64_t i = 0; i < std::min(a.rows(), a.columns()); ++i) sum += a(i, i);
  return sum;
}

// max sum_i gain(i, q_i) over places i and neurons q_i.
Permutation assigned(const Matrix<double>& gain, const Context& context) {
  const LinearAssignment r =
      linear_assignment(gain.view(), {.maximize = true, .initial_duals = {}}, context);
  Permutation out;
  out.permutation.assign(r.columns.data(), r.columns.data() + r.columns.columns());
  out.cost = r.cost[0];
  out.initial_cost = diagonal_sum(gain);
  out.bound = r.cost[0] + r.gap[0];  // the sum of the duals
  out.route = r.route;
  return out;
}

void rescale(Permutation& r, int exponent) {
  for (double* value : {&r.cost, &r.initial_cost, &r.bound}) *value = rescaled(*value, exponent);
}

// The same on |gain|, with the signs that were dropped.
Permutation assigned_signed(const Matrix<double>& gain, const Context& context) {
  Matrix<double> magnitude = gain.copy();
  for (double& x : magnitude.values()) x = std::abs(x);
  Permutation out = assigned(magnitude, context);
  out.initial_cost = diagonal_sum(gain);
  for (std::size_t i = 0; i < out.permutation.size(); ++i) {
    const std::int64_t q = out.permutation[i];
    out.signs.push_back(q >= 0 && std::signbit(gain(std::int64_t(i), q)) ? -1 : 1);
  }
  return out;
}

// tr(L P C P^T) does not change with a common shift of all neurons where L 1 = 0. Taken about the
// mean of the means, moments keep their digits next to a large common mean.
Matrix<double> shifted_moment(const Covariance& covariance, const Context& context) {
  if (!covariance.has_mean()) return covariance.second_moment().on_cpu(context);
  Matrix<double> c = covariance.covariance().on_cpu(context);
  const std::vector<double> mean = covariance.mean();
  const double centre = std::accumulate(mean.begin(), mean.end(), 0.0) / double(mean.size());
  for (std::int64_t i = 0; i < c.rows(); ++i)
    for (std::int64_t j = 0; j < c.rows(); ++j)
      c(i, j) += (mean[std::size_t(i)] - centre) * (mean[std::size_t(j)] - centre);
  return c;
}

// Whether L 1 = 0, to rounding.
bool ignores_shift(const Operator& op, const Context& context) {
  std::vector<double> ones(std::size_t(op.size()), 1);
  op.apply(ones, context);
  const double scale = op.eigenvalues().back();
  return std::ranges::all_of(ones, [&](double x) { return std::abs(x) <= 1e-12 * scale; });
}

}  // namespace

SmoothOrder descramble_permutation(const Covariance& covariance, const Operator& op,
                                   const SearchOptions& search, const Context& context) {
  const Call call(context);
  check_search(search);
  // Also checks the operator's size and the moments.
  SmoothnessDescrambler unrestricted = descramble(covariance, op, {}, context);
  unrestricted.components = std::move(unrestricted.components).on_cpu(context);
  const Matrix<double> c = ignores_shift(op, context) ? shifted_moment(covariance, context)
                                                      : covariance.second_moment().on_cpu(context);
  cpu::OrderSolution found = cpu::smooth_order(unrestricted, c, search, context);

  SmoothOrder out;
  out.permutation = std::move(found.order);
  const auto cost_of = [&](const std::vector<std::int64_t>& p) {
    Matrix<double> ordered(c.rows(), c.rows());
    for (std::int64_t i = 0; i < c.rows(); ++i)
      for (std::int64_t j = 0; j < c.rows(); ++j)
        ordered(i, j) = c(p[std::size_t(i)], p[std::size_t(j)]);
    // Both are semidefinite; rounding must not make a cost of 0 negative, and the bounds with it.
    return std::max(0.0, roughness(op, ordered, context));
  };
  out.cost = cost_of(out.permutation);
  out.initial_cost = std::max(0.0, roughness(op, c, context));
  // Next to a large mean the rounding of the moments can be larger than the bound.
  const auto bound_of = [&](const SmoothnessDescrambler& d) {
    return std::clamp(d.bound - d.cost_error, 0.0, out.cost);
  };
  if (unrestricted.cost_error <= 1e-6 * unrestricted.bound)
    out.bound = std::min(unrestricted.bound, out.cost);
  else
    out.bound = std::max(
        bound_of(unrestricted),
        bound_of(descramble(Covariance::from_moments(c.view(), {}, 1, {.memory = context.memory}),
                            op, {}, context)));
  if (found.tree_bound) out.tree_bound = std::min(*found.tree_bound, out.cost);
  out.steps = found.steps;
  out.stopped = found.stopped;
  out.route.driver = std::move(found.driver);
  if (covariance.device().kind != DeviceKind::cpu)
    out.route.fallbacks.push_back(message(name(covariance.device()),
                                          ": the moments were copied, as orders are searched on "
                                          "the CPU"));
  call.log("descramble_permutation", out.route);
  return out;
}

Permutation permute_trace(const ArrayView& weight, const Context& context) {
  const Call call(context);
  const auto [w, exponent] = square_part(weight, context);
  Permutation out = assigned(cpu::transposed(w), context);
  rescale(out, exponent);
  record_fetch("W", weight, out.route);
  call.log("permute_trace", out.route);
  return out;
}

Permutation permute_diagonal(const ArrayView& weight, const Context& context) {
  const Call call(context);
  const auto [w, exponent] = square_part(weight, context);
  Matrix<double> squares = cpu::transposed(w);
  for (double& x : squares.values()) x *= x;
  Permutation out = assigned(squares, context);
  rescale(out, 2 * exponent);
  record_fetch("W", weight, out.route);
  call.log("permute_diagonal", out.route);
  return out;
}

Permutation nearest_permutation(const ArrayView& p, bool is_signed, const Context& context) {
  const Call call(context);
  const Matrix<double> matrix = finite_matrix("P", p, -1, p.rank() == 2 ? p.rows() : -1, context);
  Permutation out = is_signed ? assigned_signed(matrix, context) : assigned(matrix, context);
  record_fetch("P", p, out.route);
  call.log("nearest_permutation", out.route);
  return out;
}

Permutation match_neurons(const ArrayView& similarity, bool is_signed, const Context& context) {
  const Call call(context);
  const Matrix<double> matrix = finite_matrix("similarity", similarity, -1, -1, context);
  Permutation out = is_signed ? assigned_signed(matrix, context) : assigned(matrix, context);
  record_fetch("similarity", similarity, out.route);
  call.log("match_neurons", out.route);
  return out;
}

ModeMatch match_modes(const SmoothnessDescrambler& d, const Context& context) {
  const Call call(context);
  const std::int64_t k = d.components.rows(), n = d.size();
  Matrix<double> energy = d.components.to({}, context);
  d.op.analyze(energy.values(), context);
  for (double& x : energy.values()) x *= x;
  for (const Block& block : d.op.blocks())
    for (std::int64_t i = 0; i < k; ++i) {
      double* const first = energy.row(i) + block.begin;
      std::fill_n(first, block.size(), std::accumulate(first, first + block.size(), 0.0));
    }
  const Permutation found = assigned(energy, context);
  ModeMatch out;
  out.modes = found.permutation;
  for (std::int64_t i = 0; i < k; ++i)
    out.correlation.push_back(std::sqrt(std::min(1.0, energy(i, out.modes[std::size_t(i)]))));
  out.score = k > 0 && n > 0 ? found.cost / double(k) : 0;
  out.route = found.route;
  record_fetch("components", d.components.view(), out.route);
  call.log("match_modes", out.route);
  return out;
}

namespace {

// W_next max(0, W x + b) for rows x.
Matrix<double> outputs(const Layer& layer, const Matrix<double>& inputs, const Context& context) {
  const int threads = cpu::threads_of(context);
  const Matrix<double> w = finite_matrix("W", layer.weight, -1, inputs.columns(), context);
  Matrix<double> hidden = cpu::times_transposed(inputs, w, threads);
  std::vector<double> bias(std::size_t(w.rows()), 0);
  if (layer.bias) {
    check_vector("bias", *layer.bias, w.rows());
    std::ranges::copy(fetch(*layer.bias, context).values(), bias.begin());
  }
  for (std::int64_t i = 0; i < hidden.rows(); ++i)
    for (std::int64_t j = 0; j < hidden.columns(); ++j)
      hidden(i, j) = std::max(0.0, hidden(i, j) + bias[std::size_t(j)]);
  const Matrix<double> next = finite_matrix("W_next", layer.next_weight, -1, w.rows(), context);
  return cpu::times_transposed(hidden, next, threads);
}

}  // namespace

double output_difference(const Layer& a, const Layer& b, const Context& context) {
  const Call call(context);
  constexpr std::int64_t probes = 16;
  check_matrix("W", a.weight, -1, -1);
  Matrix<double> inputs(probes, a.weight.columns());
  cpu::Random random(1);
  for (double& x : inputs.values()) x = 2 * random.uniform() - 1;
  const Matrix<double> before = outputs(a, inputs, context), after = outputs(b, inputs, context);
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < before.values().size(); ++i) {
    if (!std::isfinite(before.values()[i]) || !std::isfinite(after.values()[i]))
      throw InvalidArgument("W_next: outputs overflow float64, so that they cannot be compared");
    largest = std::max(largest, std::abs(before.values()[i]));
    difference = std::max(difference, std::abs(after.values()[i] - before.values()[i]));
  }
  return largest > 0 ? difference / largest : difference;
}

}  // namespace descramble_fast
