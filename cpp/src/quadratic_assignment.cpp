#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "call.hpp"
#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "cpu/quadratic_assignment.hpp"
#include "descramble_fast/assignment.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

using Columns = std::vector<std::int64_t>;

// Times 2^-exponent, so that the largest entry lies in [1, 2) and products neither overflow nor
// vanish.
struct Scaled {
  Matrix<double> matrix;
  int exponent = 0;
};

Scaled square_matrix(const char* argument, const ArrayView& a, std::int64_t n,
                     const Context& context) {
  check_matrix(argument, a, n, n);
  if (a.rows() != a.columns())
    throw InvalidArgument(message(argument, ": got shape ", shape_text(a), ", expected (n, n)"));
  Scaled out{fetch(a, context)};
  double largest = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.rows(); ++j) {
      const double x = out.matrix(i, j);
      if (!std::isfinite(x))
        throw InvalidArgument(message(argument, ": NaN or infinity at row ", i, ", column ", j));
      largest = std::max(largest, std::abs(x));
    }
  if (largest > 0) out.exponent = std::ilogb(largest);
  if (out.exponent != 0)
    for (double& x : out.matrix.values()) x = std::ldexp(x, -out.exponent);
  return out;
}

void check_index(const char* argument, std::size_t at, std::int64_t index, std::int64_t n) {
  if (index < 0 || index >= n)
    throw InvalidArgument(
        message(argument, ": got ", index, " at index ", at, ", expected 0 to n - 1 = ", n - 1));
}

// p_i where it is given, else -1.
Columns given_columns(const QuadraticAssignmentOptions& options, std::int64_t n) {
  constexpr const char* argument = "partial_match";
  Columns columns(std::size_t(n), -1);
  std::vector<char> taken(std::size_t(n), 0);
  for (std::size_t k = 0; k < options.partial_match.size(); ++k) {
    const auto [i, p] = options.partial_match[k];
    check_index(argument, k, i, n);
    check_index(argument, k, p, n);
    if (columns[std::size_t(i)] >= 0)
      throw InvalidArgument(message(argument, ": got row ", i, " twice, expected each once"));
    if (taken[std::size_t(p)])
      throw InvalidArgument(message(argument, ": got column ", p, " twice, expected each once"));
    columns[std::size_t(i)] = p;
    taken[std::size_t(p)] = 1;
  }
  return columns;
}

void check_initial(const Columns& initial, const Columns& given) {
  const std::int64_t n = std::int64_t(given.size());
  if (initial.size() != given.size())
    throw InvalidArgument(message("initial: got ", initial.size(), " columns, expected n = ", n));
  std::vector<char> taken(given.size(), 0);
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::int64_t p = initial[i];
    check_index("initial", i, p, n);
    if (taken[std::size_t(p)])
      throw InvalidArgument(message("initial: got column ", p, " twice, expected a permutation"));
    taken[std::size_t(p)] = 1;
    if (given[i] >= 0 && given[i] != p)
      throw InvalidArgument(message("initial: got column ", p, " at index ", i, ", expected ",
                                    given[i], ", as partial_match has it"));
  }
}

// Rows of A and columns of B, the free ones first, the given ones after them in pairs.
struct Order {
  Columns rows, columns;
  std::int64_t free = 0;
};

Order free_first(const Columns& given) {
  const std::int64_t n = std::int64_t(given.size());
  Order out;
  std::vector<char> taken(given.size(), 0);
  for (std::int64_t i = 0; i < n; ++i)
    if (given[std::size_t(i)] < 0)
      out.rows.push_back(i);
    else
      taken[std::size_t(given[std::size_t(i)])] = 1;
  for (std::int64_t j = 0; j < n; ++j)
    if (!taken[std::size_t(j)]) out.columns.push_back(j);
  out.free = std::int64_t(out.rows.size());
  for (std::int64_t i = 0; i < n; ++i)
    if (given[std::size_t(i)] >= 0) {
      out.rows.push_back(i);
      out.columns.push_back(given[std::size_t(i)]);
    }
  return out;
}

Matrix<double> reordered(Matrix<double> a, const Columns& order) {
  if (std::ranges::is_sorted(order)) return a;
  Matrix<double> out(a.rows(), a.rows());
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < a.rows(); ++j)
      out(i, j) = a(order[std::size_t(i)], order[std::size_t(j)]);
  return out;
}

void symmetrise(Matrix<double>& a) {
  for (std::int64_t i = 0; i < a.rows(); ++i)
    for (std::int64_t j = 0; j < i; ++j) a(i, j) = a(j, i) = (a(i, j) + a(j, i)) / 2;
}

// Beside a symmetric matrix only the symmetric part of the other counts.
void symmetrise_if_one_is(Matrix<double>& a, Matrix<double>& b) {
  const bool a_is = cpu::is_symmetric(a), b_is = cpu::is_symmetric(b);
  if (a_is && !b_is) symmetrise(b);
  if (b_is && !a_is) symmetrise(a);
}

Columns inverse(const Columns& p) {
  Columns out(p.size());
  for (std::size_t i = 0; i < p.size(); ++i) out[std::size_t(p[i])] = std::int64_t(i);
  return out;
}

// p in terms of reordered places and columns.
Columns into(const Order& order, const Columns& p) {
  const Columns place = inverse(order.columns);
  Columns out(p.size());
  for (std::size_t i = 0; i < p.size(); ++i)
    out[i] = place[std::size_t(p[std::size_t(order.rows[i])])];
  return out;
}

Columns back_from(const Order& order, const Columns& p) {
  Columns out(p.size());
  for (std::size_t i = 0; i < p.size(); ++i)
    out[std::size_t(order.rows[i])] = order.columns[std::size_t(p[i])];
  return out;
}

}  // namespace

QuadraticAssignment quadratic_assignment(const ArrayView& a, const ArrayView& b,
                                         const QuadraticAssignmentOptions& options,
                                         const Context& context) {
  const Call call(context);
  cpu::threads_of(context);
  check_search(options.search);
  check_device("B", b, a.device());
  Scaled first = square_matrix("A", a, -1, context);
  const std::int64_t n = first.matrix.rows();
  Scaled second = square_matrix("B", b, n, context);
  const Columns given = given_columns(options, n);
  if (options.initial) check_initial(*options.initial, given);

  const Order order = free_first(given);
  cpu::QuadraticProblem problem{reordered(std::move(first.matrix), order.rows),
                                reordered(std::move(second.matrix), order.columns), order.free};
  if (options.maximize)
    for (double& x : problem.a.values()) x = -x;
  symmetrise_if_one_is(problem.a, problem.b);

  const auto cost_of = [&](double scaled) {
    const double cost = std::ldexp(scaled, first.exponent + second.exponent);
    return options.maximize ? 0 - cost : cost;
  };
  SearchOptions search = options.search;
  if (search.progress)
    search.progress = [&](const SearchProgress& progress) {
      return options.search.progress(
          {progress.seconds, progress.step, progress.steps, cost_of(progress.cost)});
    };
  Columns start(static_cast<std::size_t>(n));
  std::iota(start.begin(), start.end(), 0);
  if (options.initial) start = into(order, *options.initial);
  const cpu::QuadraticSolution solution = cpu::solve_quadratic(
      problem, options.initial ? std::optional(start) : std::nullopt, search, context);

  QuadraticAssignment out;
  out.columns = back_from(order, solution.columns);
  out.cost = cost_of(cpu::quadratic_cost(problem.a, problem.b, solution.columns));
  out.initial_cost = cost_of(cpu::quadratic_cost(problem.a, problem.b, start));
  out.steps = solution.steps;
  out.stopped = solution.stopped;
  out.route.driver = solution.driver;
  record_fetch("A", a, out.route);
  record_fetch("B", b, out.route);
  if (!std::isfinite(out.cost) || !std::isfinite(out.initial_cost))
    throw InvalidArgument("A: the cost overflows float64");
  call.log("quadratic_assignment", out.route);
  return out;
}

}  // namespace descramble_fast
