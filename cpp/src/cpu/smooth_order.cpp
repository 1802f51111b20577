#include "cpu/smooth_order.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "cpu/assignment.hpp"
#include "cpu/one_tree.hpp"
#include "cpu/operators.hpp"
#include "cpu/order.hpp"
#include "cpu/parallel.hpp"
#include "cpu/quadratic_assignment.hpp"
#include "cpu/restarts.hpp"

namespace descramble_fast::cpu {

namespace {

using Order = std::vector<std::int64_t>;
using Pattern = Operator::Impl::Pattern;

// All orders of so many neurons are tried.
constexpr std::int64_t exhaustive_size = 9;
// More starts where they are cheap.
constexpr std::int64_t small_size = 256, small_restarts = 4, large_restarts = 2;
constexpr int tour_degree = 5, window_degree = 6;
constexpr std::int64_t kicks_per_slice = 16;
// Tabu steps after the descent of a circulant problem, and the size up to which they pay.
constexpr std::int64_t tabu_size = 1024;
constexpr std::int64_t descent_rows = 8;

Matrix<double> dense(const Operator& op, const Context& context) {
  const std::int64_t n = op.size();
  Matrix<double> l(n, n, 0);
  for (std::int64_t i = 0; i < n; ++i) l(i, i) = 1;
  op.apply(l.values(), context);
  // Symmetric to the last bit, which the swap search makes use of.
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < i; ++j) l(i, j) = l(j, i) = (l(i, j) + l(j, i)) / 2;
  return l;
}

// d_ij = C_ii + C_jj - 2 C_ij.
Matrix<double> squared_distances(const Matrix<double>& c) {
  const std::int64_t n = c.rows();
  Matrix<double> d(n, n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      d(i, j) = i == j ? 0 : std::max(0.0, (c(i, i) - c(i, j)) + (c(j, j) - c(i, j)));
  return d;
}

// tr(L P C P^T) = sum_i sum_r w_r d(p_i, p_{i+r}) for a circulant L with L 1 = 0.
std::vector<double> couplings(const Operator& op, const Context& context) {
  const std::int64_t n = op.size();
  std::vector<double> row(std::size_t(n), 0), weights;
  row[0] = 1;
  op.apply(row, context);
  const double negligible = 1e-12 * std::abs(row[0]);
  for (std::int64_t r = 1; 2 * r <= n; ++r) {
    const double l = row[std::size_t(r)];
    weights.push_back(std::abs(l) <= negligible ? 0 : 2 * r == n ? -l / 2 : -l);
  }
  while (weights.size() > 1 && weights.back() == 0) weights.pop_back();
  // The differences' weights are multiples of 1/4; the transforms round them.
  if (weights.size() <= 2)
    for (double& w : weights) w = std::round(4 * w) / 4;
  return weights;
}

double path_or_tour(const Matrix<double>& d, bool periodic, const Order& order) {
  return order_cost({d, {1}, periodic}, std::vector<int>(order.begin(), order.end()));
}

Order widened(const std::vector<int>& order) { return {order.begin(), order.end()}; }

OrderSolution by_exhaustion(const Matrix<double>& l, const Matrix<double>& c) {
  OrderSolution out;
  out.driver = "every order";
  Order p(std::size_t(c.rows()));
  std::iota(p.begin(), p.end(), 0);
  double least = std::numeric_limits<double>::infinity();
  do {
    ++out.steps;
    const double cost = quadratic_cost(l, c, p);
    if (cost < least) {
      least = cost;
      out.order = p;
    }
  } while (std::ranges::next_permutation(p).found);
  return out;
}

// Tours and paths of a window of places.
class WindowRestart : public Restart {
 public:
  WindowRestart(const OrderProblem& problem, const Neighbours& neighbours, std::uint64_t seed,
                std::int64_t kicks)
      : search_(problem, neighbours, seed), kicks_(kicks) {}

  bool advance(const Context&) override {
    // The first slice takes the start to its local optimum.
    const std::int64_t slice = started_ ? std::min(kicks_per_slice, kicks_ - made_) : 0;
    started_ = true;
    search_.advance(slice);
    made_ += slice;
    return made_ >= kicks_;
  }
  double cost() const override {
    return started_ ? search_.cost() : std::numeric_limits<double>::infinity();
  }
  std::int64_t steps() const override { return made_; }
  /// Empty before the first slice.
  Order order() const { return started_ ? widened(search_.order()) : Order(); }

 private:
  OrderSearch search_;
  std::int64_t kicks_, made_ = 0;
  bool started_ = false;
};

// A window of places that resembles a circulant, then swaps under the circulant itself.
class CirculantRestart final : public WindowRestart {
 public:
  CirculantRestart(const OrderProblem& window, const Neighbours& neighbours, std::uint64_t seed,
                   std::int64_t kicks, const Matrix<double>& l, const Matrix<double>& c)
      : WindowRestart(window, neighbours, seed, kicks), l_(l), c_(c), seed_(seed) {}

  bool advance(const Context& context) override {
    const std::int64_t n = c_.rows();
    if (tabu_) {
      const std::int64_t slice = std::clamp<std::int64_t>((1 << 20) / (n * n), 1, 4096);
      tabu_->advance(std::min(slice, tabu_steps(n) - tabu_->steps()));
      keep(tabu_->best(), tabu_->best_cost());
      tabu_made_ = tabu_->steps();
      if (tabu_made_ < tabu_steps(n)) return false;
      tabu_.reset();
      return true;
    }
    if (descent_) {
      const bool over = descent_->advance(descent_rows);
      keep(descent_->columns(), start_cost_ + descent_->change());
      if (!over) return false;
      descent_.reset();
      if (n > tabu_size) return true;
      tabu_.emplace(l_, c_, order_, n, seed_, context.threads);
      return false;
    }
    if (!WindowRestart::advance(context)) return false;
    start_cost_ = quadratic_cost(l_, c_, WindowRestart::order());
    keep(WindowRestart::order(), start_cost_);
    descent_.emplace(l_, c_, order_, n, context.threads);
    return false;
  }

  double cost() const override { return cost_; }
  std::int64_t steps() const override { return WindowRestart::steps() + tabu_made_; }
  Order order() const { return order_.empty() ? WindowRestart::order() : order_; }

  static std::int64_t tabu_steps(std::int64_t n) {
    return std::clamp<std::int64_t>((std::int64_t(1) << 28) / (n * n), 200, 200'000);
  }

 private:
  void keep(const Order& order, double cost) {
    order_ = order;
    cost_ = cost;
  }

  const Matrix<double>& l_;
  const Matrix<double>& c_;
  std::uint64_t seed_;
  Order order_;
  double start_cost_ = 0, cost_ = std::numeric_limits<double>::infinity();
  std::int64_t tabu_made_ = 0;
  std::optional<SwapDescent> descent_;
  std::optional<TabuSearch> tabu_;
};

std::int64_t restarts_of(const SearchOptions& search, std::int64_t n) {
  if (search.restarts > 0) return search.restarts;
  return n < small_size ? small_restarts : large_restarts;
}

// A window of places whose smooth orders are good starts for l = k^(2 order): the sixth-order
// formula of the second derivative, or the third difference. The operator's own weights, cut off,
// are no longer those of a positive operator. Chosen by trial on features of digits and on layers.
std::vector<double> window_like(const Operator& op) {
  const auto l = op.eigenvalues();  // 0, 1, 1, 4^order, ...
  if (l[3] < 8 * l[1]) return {1.5, -0.15, 1.0 / 90};
  return {15, -6, 1};
}

// Runs restarts of a kind, and takes the best of their orders and the given one.
template <class One, class Cost, class... More>
void search_orders(OrderSolution& out, const OrderProblem& problem, const Neighbours& neighbours,
                   std::int64_t steps_after_kicks, const Cost& cost_of, const SearchOptions& search,
                   const Context& context, const More&... more) {
  const std::int64_t n = problem.distance.rows(), kicks = default_kicks(problem);
  std::vector<std::unique_ptr<Restart>> restarts;
  Random random(search.seed);
  for (std::int64_t i = 0; i < restarts_of(search, n); ++i)
    restarts.push_back(std::make_unique<One>(problem, neighbours, random.next(), kicks, more...));
  out.order.resize(std::size_t(n));
  std::iota(out.order.begin(), out.order.end(), 0);
  double least = cost_of(out.order);
  const RestartsReport report =
      run_restarts(restarts, (kicks + steps_after_kicks) * std::int64_t(restarts.size()), least,
                   search, context);
  out.steps = report.steps;
  out.stopped = report.stopped;
  for (const auto& restart : restarts) {
    Order order = static_cast<const One&>(*restart).order();
    if (order.empty()) continue;  // not begun
    const double cost = cost_of(order);
    if (cost < least) {
      least = cost;
      out.order = std::move(order);
    }
  }
}

// The 1-tree tells which neurons are likely to stand side by side, better than their distances.
struct Ground {
  Neighbours neighbours;
  OneTree tree;
};

Ground ground_of(const Matrix<double>& d, bool periodic, int degree, const Context& context) {
  const OrderProblem tour{d, {1}, periodic};
  const Neighbours nearest = nearest_neighbours(d, periodic, tour_degree, context);
  OrderSearch start(tour, nearest, 0);
  start.advance(0);
  OneTree tree = one_tree(d, periodic, start.cost(), context);
  return {alpha_neighbours(d, periodic, tree.potentials, degree, context), std::move(tree)};
}

OrderSolution by_window(OrderProblem problem, const SearchOptions& search, const Context& context) {
  const bool first_difference = problem.weights.size() == 1;
  OrderSolution out;
  out.driver = problem.periodic ? "tour" : "path";
  Ground ground = ground_of(problem.distance, problem.periodic,
                            first_difference ? tour_degree : window_degree, context);
  if (first_difference) out.tree_bound = ground.tree.bound;
  problem.potentials = std::move(ground.tree.potentials);
  const auto cost_of = [&](const Order& order) {
    return order_cost(problem, std::vector<int>(order.begin(), order.end()));
  };
  search_orders<WindowRestart>(out, problem, ground.neighbours, 0, cost_of, search, context);
  return out;
}

OrderSolution by_circulant(OrderProblem window, const Matrix<double>& l, const Matrix<double>& c,
                           const SearchOptions& search, const Context& context) {
  const std::int64_t n = c.rows();
  OrderSolution out;
  out.driver = n > tabu_size ? "tour, swap descent" : "tour, swap descent, tabu search";
  Ground ground = ground_of(window.distance, true, window_degree, context);
  window.potentials = std::move(ground.tree.potentials);
  const auto cost_of = [&](const Order& order) { return quadratic_cost(l, c, order); };
  search_orders<CirculantRestart>(out, window, ground.neighbours,
                                  n > tabu_size ? 0 : CirculantRestart::tabu_steps(n), cost_of,
                                  search, context, l, c);
  return out;
}

// Where Frank-Wolfe steps take too long, the permutation nearest to the orthogonal solution is the
// first start.
OrderSolution by_quadratic_assignment(const SmoothnessDescrambler& orthogonal,
                                      const Matrix<double>& c, const SearchOptions& search,
                                      const Context& context) {
  const std::int64_t n = c.rows();
  std::optional<Order> start;
  if (n > tabu_size) {
    std::vector<double> duals;
    start.emplace();
    assign(orthogonal.matrix(), true, duals, *start, context);
  }
  const QuadraticProblem problem{dense(orthogonal.op, context), c.copy(), n};
  QuadraticSolution solution = solve_quadratic(problem, start, search, context);
  OrderSolution out;
  out.driver = std::move(solution.driver);
  out.order = std::move(solution.columns);
  out.steps = solution.steps;
  out.stopped = solution.stopped;
  return out;
}

}  // namespace

OrderSolution smooth_order(const SmoothnessDescrambler& orthogonal, const Matrix<double>& c,
                           const SearchOptions& search, const Context& context) {
  const Operator& op = orthogonal.op;
  const std::int64_t n = op.size();
  const Pattern pattern = op.impl().pattern;
  const bool circulant = pattern == Pattern::circulant;
  std::vector<double> weights;
  if (circulant) weights = couplings(op, context);
  // The largest eigenvalue of the path's first difference is below 4; the second difference has its
  // square.
  if (pattern == Pattern::reflecting)
    weights = op.eigenvalues().back() < 4 ? std::vector<double>{1} : std::vector<double>{4, -1};
  const Matrix<double> d = squared_distances(c);
  if (n <= exhaustive_size) {
    OrderSolution out = by_exhaustion(dense(op, context), c);
    if (n > 2 && weights.size() == 1 && weights[0] == 1)
      out.tree_bound = one_tree_bound(d, circulant, path_or_tour(d, circulant, out.order), context);
    return out;
  }
  const bool alternate = weights.size() == 2 && weights[0] == 0;
  if ((weights.size() == 1 || weights.size() == 2) && !alternate)
    return by_window({d, weights, circulant}, search, context);
  if (circulant)
    return by_circulant({d, alternate ? weights : window_like(op), true}, dense(op, context), c,
                        search, context);
  return by_quadratic_assignment(orthogonal, c, search, context);
}

}  // namespace descramble_fast::cpu
