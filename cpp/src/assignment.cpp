#include "descramble_fast/assignment.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <type_traits>

#include "call.hpp"
#include "check.hpp"
#include "cpu/assignment.hpp"
#include "cpu/convert.hpp"
#include "cpu/parallel.hpp"
#include "cpu/scan.hpp"
#include "cuda.hpp"

namespace descramble_fast {

namespace {

using Status = cpu::AssignmentOutcome::Status;

// Twice this is still finite, so that reduced costs are.
constexpr double comfortable = 0x1p1000;
constexpr double shrink = 0x1p-100;
// Of the duals: far above rounding, far below any wrong answer.
constexpr double tolerance = 1e-9;

// The rows of the smaller side first.
struct Oriented {
  ArrayView costs;
  bool transposed;
};

Oriented oriented(const ArrayView& matrix) {
  const std::int64_t n = matrix.rows(), m = matrix.columns();
  if (n <= m) return {matrix, false};
  const std::int64_t shape[] = {m, n};
  const std::int64_t strides[] = {matrix.strides()[1], matrix.strides()[0]};
  return {ArrayView(matrix.data(), matrix.dtype(), shape, strides, matrix.device()), true};
}

template <class T>
bool readable_in_place(const ArrayView& costs) {
  return costs.dtype() == dtype_of<T> && (costs.column_stride() == 1 || costs.columns() <= 1);
}

template <class T>
Matrix<T> copied(const ArrayView& costs, double scale) {
  constexpr std::int64_t tile = 32;
  const std::int64_t n = costs.rows(), m = costs.columns();
  Matrix<T> out(n, m);
  cpu::visit_dtype(costs.dtype(), [&]<class S>(S) {
    for (std::int64_t i0 = 0; i0 < n; i0 += tile)
      for (std::int64_t j0 = 0; j0 < m; j0 += tile)
        for (std::int64_t i = i0; i < std::min(n, i0 + tile); ++i) {
          const S* const row = reinterpret_cast<const S*>(costs.row(i));
          for (std::int64_t j = j0; j < std::min(m, j0 + tile); ++j)
            out(i, j) = T(double(cpu::widen(row[j * costs.column_stride()])) * scale);
        }
  });
  return out;
}

// One problem of a batch, in the orientation that is solved.
struct Item {
  ArrayView costs;
  std::span<const double> initial_duals;
  cpu::AssignmentTarget target;
  double sign;
};

bool all_finite(std::span<const double> values) {
  return std::ranges::all_of(values, [](double x) { return std::isfinite(x); });
}

template <class T>
cpu::AssignmentOutcome solve_scaled(cpu::AssignmentSolver<T>& solver, const Item& item,
                                    double scale) {
  const std::int64_t n = item.costs.rows(), m = item.costs.columns();
  if (scale == 1 && readable_in_place<T>(item.costs)) {
    const std::int64_t stride = n > 1 ? item.costs.strides()[0] : m;
    return solver.solve({static_cast<const T*>(item.costs.data()), n, m, stride, item.sign},
                        item.initial_duals, item.target);
  }
  const Matrix<T> copy = copied<T>(item.costs, scale);
  return solver.solve({copy.data(), n, m, m, item.sign}, item.initial_duals, item.target);
}

Item without_duals(Item item) {
  item.initial_duals = {};
  return item;
}

bool any_finite_above(const ArrayView& costs, double magnitude) {
  std::vector<double> row(static_cast<std::size_t>(costs.columns()));
  for (std::int64_t i = 0; i < costs.rows(); ++i) {
    cpu::widen_row(costs, i, row.data());
    if (std::ranges::any_of(row,
                            [&](double x) { return std::isfinite(x) && std::abs(x) > magnitude; }))
      return true;
  }
  return false;
}

// Duals beyond what the longest path of such costs leads to: of no use, and the costs would lose
// digits beside them.
bool far_off(std::span<const double> duals, const ArrayView& costs) {
  double largest = 0;
  for (const double v : duals) largest = std::max(largest, std::abs(v));
  return largest > 0 && !any_finite_above(costs, largest / (4 * double(costs.rows())));
}

double largest_of(const cpu::AssignmentTarget& target) {
  double largest = 0;
  for (const double u : target.row_duals) largest = std::max(largest, std::abs(u));
  for (const double v : target.column_duals) largest = std::max(largest, std::abs(v));
  return largest;
}

bool proven(const cpu::AssignmentOutcome& outcome, const cpu::AssignmentTarget& duals) {
  return outcome.violation <= tolerance * largest_of(duals);
}

template <class T>
cpu::AssignmentOutcome solve(cpu::AssignmentSolver<T>& solver, const Item& item,
                             std::vector<std::string>& fallbacks) {
  const bool cold = item.initial_duals.empty() || far_off(item.initial_duals, item.costs);
  cpu::AssignmentOutcome outcome = solve_scaled(solver, cold ? without_duals(item) : item, 1);
  if (outcome.status == Status::not_finite) return outcome;
  // Beside a dual as large as one of the costs the others can lose all their digits, too.
  const bool lost = !cold && outcome.status == Status::optimal && !proven(outcome, item.target);
  if (lost) outcome = solve_scaled(solver, without_duals(item), 1);
  if (lost || (cold && !item.initial_duals.empty()))
    fallbacks.push_back("initial_duals: too far from the costs; solved without them");
  // Reduced costs that overflow can look like forbidden pairs, too.
  const bool overflowed = outcome.status != Status::optimal || !all_finite(item.target.row_duals) ||
                          !all_finite(item.target.column_duals) || !std::isfinite(outcome.gap) ||
                          largest_of(item.target) > comfortable;
  if (overflowed && std::is_same_v<T, double> && any_finite_above(item.costs, comfortable)) {
    fallbacks.push_back("costs near the end of float64's range: solved after scaling");
    outcome = solve_scaled(solver, without_duals(item), shrink);
    for (double& u : item.target.row_duals) u /= shrink;
    for (double& v : item.target.column_duals) v /= shrink;
    outcome.cost /= shrink;
    outcome.gap /= shrink;
    outcome.violation /= shrink;
  }
  return outcome;
}

void report(const cpu::AssignmentOutcome& outcome, const ArrayView& matrix, bool transposed,
            const std::string& where) {
  std::int64_t row = outcome.row, column = outcome.column;
  if (transposed) std::swap(row, column);
  if (outcome.status == Status::not_finite) {
    const double value = to_float64(matrix.item(row * matrix.columns() + column, 0))(0, 0);
    throw InvalidArgument(
        message("cost: ", std::isnan(value) ? "NaN" : "infinity of the wrong sign", " (", value,
                ") at row ", row, ", column ", column, where));
  }
  // The longer side may have lines left out; all of the shorter one must be assigned.
  throw InvalidArgument(message("cost: infeasible", where, ": ", transposed ? "column " : "row ",
                                outcome.row, " cannot be assigned without a forbidden pair"));
}

template <class T>
void solve_batch(const ArrayView& cost, const AssignmentOptions& options,
                 const Matrix<double>& initial, LinearAssignment& out, const Context& context) {
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  const std::int64_t batch = out.columns.rows(), small = std::min(n, m);
  const int threads = cpu::threads_of(context);
  std::vector<cpu::AssignmentOutcome> outcomes(static_cast<std::size_t>(batch));
  std::vector<std::vector<std::string>> fallbacks(static_cast<std::size_t>(batch));

  const auto solve_one = [&](cpu::AssignmentSolver<T>& solver, std::int64_t b) {
    const auto [costs, transposed] = oriented(cost.item(b, 2));
    std::span<double> u(out.row_duals.row(b), std::size_t(n));
    std::span<double> v(out.column_duals.row(b), std::size_t(m));
    if (transposed) std::swap(u, v);
    std::vector<std::int64_t> partners(transposed ? std::size_t(small) : 0);
    const std::span<std::int64_t> x =
        transposed ? std::span(partners) : std::span(out.columns.row(b), std::size_t(n));
    const Item item{costs,
                    {initial.row(initial.rows() == 0 ? 0 : b), std::size_t(initial.columns())},
                    {x, u, v},
                    options.maximize ? -1.0 : 1.0};
    outcomes[std::size_t(b)] = solve(solver, item, fallbacks[std::size_t(b)]);
    for (std::size_t j = 0; j < partners.size(); ++j)
      if (partners[j] >= 0) out.columns(b, partners[j]) = std::int64_t(j);  // none where infeasible
  };

  if (batch < threads) {
    cpu::AssignmentSolver<T> solver(context);
    for (std::int64_t b = 0; b < batch; ++b) solve_one(solver, b);
  } else {
    const Context inner{1, cpu::now_and_then(context.poll)};
    // In groups, between which the caller may cancel; a few problems share a work space.
    const std::int64_t group =
        std::max<std::int64_t>(threads, (1 << 22) / std::max<std::int64_t>(n * m, 1));
    for (std::int64_t begin = 0; begin < batch; begin += group) {
      if (context.poll) context.poll();
      const std::int64_t count = std::min(group, batch - begin);
      const std::int64_t parts = std::min<std::int64_t>(count, 4 * threads);
      const auto solve_part = [&](std::int64_t part) {
        cpu::AssignmentSolver<T> solver(inner);
        for (std::int64_t b = count * part / parts; b < count * (part + 1) / parts; ++b)
          solve_one(solver, begin + b);
      };
      cpu::parallel_for(threads, parts, solve_part, inner.poll);
    }
  }

  for (std::int64_t b = 0; b < batch; ++b) {
    const cpu::AssignmentOutcome& outcome = outcomes[std::size_t(b)];
    const std::string where = cost.rank() > 2 ? message(" of problem ", b) : std::string();
    if (outcome.status != Status::optimal) report(outcome, cost.item(b, 2), n > m, where);
    const cpu::AssignmentTarget duals{
        {}, {out.row_duals.row(b), std::size_t(n)}, {out.column_duals.row(b), std::size_t(m)}};
    if (!proven(outcome, duals))
      throw BackendError(message("cost: the duals found", where, " are violated by ",
                                 outcome.violation, "; please report this"));
    const double sign = options.maximize ? -1 : 1;
    out.cost[std::size_t(b)] = sign * outcome.cost + 0.0;
    out.gap[std::size_t(b)] = outcome.gap;
    out.violation[std::size_t(b)] = outcome.violation;
    for (double& u : duals.row_duals) u = sign * u + 0.0;
    for (double& v : duals.column_duals) v = sign * v + 0.0;
    for (const std::string& fallback : fallbacks[std::size_t(b)])
      out.route.fallbacks.push_back(fallback + where);
  }
}

Matrix<double> initial_duals_of(const AssignmentOptions& options, const ArrayView& cost,
                                const Context& context) {
  if (!options.initial_duals) return Matrix<double>(0, 0);
  const ArrayView& duals = *options.initial_duals;
  check_floating("initial_duals", duals);
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  if (n != m)
    throw InvalidArgument(message("initial_duals: got costs of shape ", shape_text(cost),
                                  ", expected square ones: the duals of columns left out are 0"));
  std::vector<std::int64_t> wanted(cost.shape().begin(), cost.shape().end());
  wanted.erase(wanted.end() - 2);
  if (!std::ranges::equal(duals.shape(), wanted))
    throw InvalidArgument(message("initial_duals: got shape ", shape_text(duals),
                                  " for costs of shape ", shape_text(cost),
                                  ", expected one number for each column"));
  Matrix<double> out = fetch(duals, context);
  for (std::int64_t i = 0; i < out.rows(); ++i)
    for (std::int64_t j = 0; j < m; ++j) {
      if (!std::isfinite(out(i, j)))
        throw InvalidArgument(message("initial_duals: NaN or infinity at row ", i, ", column ", j));
      if (options.maximize) out(i, j) = -out(i, j);
    }
  return out;
}

// Room for the answers, on a device.
LinearAssignment unsolved(const ArrayView& cost, Device device) {
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  std::int64_t batch = 1;
  for (int i = 0; i + 2 < cost.rank(); ++i) batch *= cost.shape()[std::size_t(i)];
  LinearAssignment out;
  out.columns = Matrix<std::int64_t>(batch, n, device);
  out.row_duals = Matrix<double>(batch, n, device);
  out.column_duals = Matrix<double>(batch, m, device);
  for (auto* values : {&out.cost, &out.gap, &out.violation}) values->assign(std::size_t(batch), 0);
  out.route.device = name(device);
  out.route.dtype = cost.dtype() == DType::float64 ? "float64" : "float32";
  return out;
}

// Answers and costs on the CPU.
LinearAssignment solve_on_cpu(const ArrayView& cost, const AssignmentOptions& options,
                              const Context& context) {
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  const Matrix<double> initial = initial_duals_of(options, cost, context);
  LinearAssignment out = unsolved(cost, {});
  // In parts: the system gives the memory at its first use, which takes seconds of gigabytes.
  for (std::int64_t b = 0; b < out.columns.rows(); ++b) {
    if (context.poll && b % 4096 == 0) context.poll();
    std::fill_n(out.columns.row(b), n, -1);
    std::fill_n(out.row_duals.row(b), n, 0.0);
    std::fill_n(out.column_duals.row(b), m, 0.0);
  }
  out.route.driver =
      std::string("shortest augmenting paths (") + cpu::name(cpu::simd_level()) + ")";
  if (out.columns.rows() == 0 || n == 0 || m == 0) return out;
  if (cost.dtype() == DType::float64)
    solve_batch<double>(cost, options, initial, out, context);
  else
    solve_batch<float>(cost, options, initial, out, context);
  return out;
}

// The answers of the CPU, with the matrices where the costs were.
LinearAssignment solve_away(const ArrayView& cost, const AssignmentOptions& options,
                            const std::string& why, const Context& context) {
  LinearAssignment out = solve_on_cpu(cuda::OnHost(cost, context).view(), options, context);
  out.columns = out.columns.to(cost.device(), context);
  out.row_duals = out.row_duals.to(cost.device(), context);
  out.column_duals = out.column_duals.to(cost.device(), context);
  out.route.fallbacks.push_back(message(name(cost.device()), ": ", why));
  return out;
}

// Problems of the batch one after another on the CPU.
template <class T>
Matrix<T> gathered(const ArrayView& cost, const std::vector<std::int64_t>& problems,
                   const Context& context) {
  constexpr std::size_t few = 8;  // to be fetched one by one
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  Matrix<T> out(std::int64_t(problems.size()) * n, m);
  std::optional<cuda::OnHost> all;
  if (problems.size() > few) all.emplace(cost, context);
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const auto copy = [&](const ArrayView& problem) {
      std::copy_n(static_cast<const T*>(problem.data()), n * m, out.row(std::int64_t(i) * n));
    };
    if (all)
      copy(all->view().item(problems[i], 2));
    else
      copy(cuda::OnHost(cost.item(problems[i], 2), context).view());
  }
  return out;
}

// What the device left open, solved by the CPU and put among the other answers.
template <class T>
void solve_open(const ArrayView& cost, const std::vector<std::int64_t>& open, bool maximize,
                LinearAssignment& out, const Context& context) {
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  const Matrix<T> costs = gathered<T>(cost, open, context);
  const LinearAssignment found = solve_on_cpu(
      ArrayView(costs.data(), {std::int64_t(open.size()), n, m}), {maximize, {}}, context);
  const auto put = [&](const auto& from, auto& to) {
    auto all = to.to({}, context);
    for (std::size_t i = 0; i < open.size(); ++i)
      std::copy_n(from.row(std::int64_t(i)), from.columns(), all.row(open[i]));
    to = all.to(cost.device(), context);
  };
  put(found.columns, out.columns);
  put(found.row_duals, out.row_duals);
  put(found.column_duals, out.column_duals);
  for (std::size_t i = 0; i < open.size(); ++i) {
    out.cost[std::size_t(open[i])] = found.cost[i];
    out.gap[std::size_t(open[i])] = found.gap[i];
    out.violation[std::size_t(open[i])] = found.violation[i];
  }
}

LinearAssignment solve_on_device(const ArrayView& cost, const AssignmentOptions& options,
                                 const Context& context) {
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  LinearAssignment out = unsolved(cost, cost.device());
  const std::int64_t batch = out.columns.rows();
  if (batch == 0 || n == 0 || m == 0) return solve_away(cost, options, "nothing to solve", context);
  if (options.initial_duals)
    return solve_away(cost, options, "solved on the CPU, which alone takes initial duals", context);
  const int threads = cpu::threads_of(context);
  if (!options.on_device && !cuda::backend().assignment_pays(batch, n, m, cost.dtype(), threads))
    return solve_away(cost, options, "solved on the CPU, as it is faster at this size", context);

  std::vector<cuda::Assigned> status(static_cast<std::size_t>(batch));
  std::vector<std::int64_t> row(status.size()), column(status.size()), open;
  cuda::Caller call(cost.device(), context);
  const cuda::AssignmentProblem problem{&cost, options.maximize};
  cuda::AssignmentOutput output{out.columns.data(), out.row_duals.data(), out.column_duals.data(),
                                out.cost.data(),    out.gap.data(),       out.violation.data(),
                                status.data(),      row.data(),           column.data()};
  call(cuda::backend().assign, &problem, &output);
  for (std::int64_t b = 0; b < batch; ++b) {
    const cuda::Assigned found = status[std::size_t(b)];
    if (found == cuda::Assigned::open) open.push_back(b);
    if (found == cuda::Assigned::not_finite || found == cuda::Assigned::infeasible)
      return solve_away(cost, options, "no answer", context);  // the CPU says where
  }
  out.route.driver = "shortest augmenting paths (a warp or a block to each problem)";
  if (open.empty()) return out;
  if (cost.dtype() == DType::float64)
    solve_open<double>(cost, open, options.maximize, out, context);
  else
    solve_open<float>(cost, open, options.maximize, out, context);
  out.route.fallbacks.push_back(message(name(cost.device()), ": ", open.size(), " of ", batch,
                                        " problems may have several optima; solved on the CPU"));
  return out;
}

}  // namespace

LinearAssignment linear_assignment(const ArrayView& cost, const AssignmentOptions& options,
                                   const Context& context) {
  const Call call(context);
  check_floating("cost", cost);
  if (cost.rank() < 2)
    throw InvalidArgument(message("cost: got shape ", shape_text(cost), ", expected (..., n, m)"));
  const std::int64_t n = cost.shape()[std::size_t(cost.rank() - 2)], m = cost.columns();
  if (std::max(n, m) > std::numeric_limits<std::int32_t>::max() / 2)
    throw InvalidArgument(
        message("cost: got shape ", shape_text(cost), ", expected sides below 2^30"));
  if (options.initial_duals) check_device("initial_duals", *options.initial_duals, cost.device());
  LinearAssignment out = cost.device().kind == DeviceKind::cpu
                             ? solve_on_cpu(cost, options, context)
                             : solve_on_device(cost, options, context);
  call.log("linear_assignment", out.route);
  return out;
}

}  // namespace descramble_fast
