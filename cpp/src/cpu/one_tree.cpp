#include "cpu/one_tree.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int price_sweeps = 6;
// The step lengths fall geometrically to this share.
constexpr double last_relaxation = 0.03;

// A spanning tree of all nodes but the special one, which hangs on two edges. For paths the special
// node is the gap, number n, at distance 0 from all.
struct Tree {
  double cost = 0;          // under the prices, less twice their sum
  std::vector<int> parent;  // -1 at the root and at the special node
  std::vector<int> order;   // parents before children
  int special = -1;
  int first = -1, second = -1;  // neighbours of the special node
  std::vector<int> degree;      // of all nodes, without the gap
};

struct TwoNearest {
  int first = -1, second = -1;
  double first_cost = infinity, second_cost = infinity;

  void take(int node, double cost) {
    if (cost < first_cost) {
      second = std::exchange(first, node);
      second_cost = std::exchange(first_cost, cost);
    } else if (cost < second_cost) {
      second = node;
      second_cost = cost;
    }
  }
};

class DenseGraph {
 public:
  DenseGraph(const Matrix<double>& d, bool periodic)
      : d_(d), n_(int(d.rows())), special_(periodic ? -1 : n_) {}

  void set_special(int node) { special_ = node; }
  int special() const { return special_; }

  // Prim's algorithm in O(n^2).
  void minimum_tree(std::span<const double> price, Tree& tree) {
    const auto n = std::size_t(n_);
    tree.parent.assign(n, -1);
    tree.order.clear();
    tree.degree.assign(n, 0);
    tree.special = special_;
    tree.cost = 0;
    outside_.clear();
    offset_.clear();
    for (int v = 0; v < n_; ++v)
      if (v != special_) {
        outside_.push_back(v);
        offset_.push_back(price[std::size_t(v)]);
      }
    reach_.assign(outside_.size(), infinity);
    from_.assign(outside_.size(), -1);
    std::size_t next = 0;
    for (std::size_t left = outside_.size(); left > 0; --left) {
      const int u = outside_[next];
      attach(u, from_[next], tree);
      if (from_[next] >= 0) tree.cost += reach_[next];
      offset_[next] = reach_[next] = infinity;  // never near again
      if (8 * (outside_.size() - left) > outside_.size()) drop_attached();
      next = relax(u, price[std::size_t(u)]);
    }
    hang_special(price, tree);
    tree.cost -= 2 * std::accumulate(price.begin(), price.end(), 0.0);
  }

 private:
  static void attach(int node, int parent, Tree& tree) {
    tree.order.push_back(node);
    tree.parent[std::size_t(node)] = parent;
    if (parent < 0) return;
    ++tree.degree[std::size_t(node)];
    ++tree.degree[std::size_t(parent)];
  }

  // The nodes stay in their order, in which rows are read fastest.
  void drop_attached() {
    std::size_t kept = 0;
    for (std::size_t k = 0; k < outside_.size(); ++k) {
      if (offset_[k] == infinity) continue;
      outside_[kept] = outside_[k];
      offset_[kept] = offset_[k];
      reach_[kept] = reach_[k];
      from_[kept++] = from_[k];
    }
    outside_.resize(kept);
    offset_.resize(kept);
    reach_.resize(kept);
    from_.resize(kept);
  }

  // Takes u's edges into account; the index of the outside node that is now nearest.
  std::size_t relax(int u, double own) {
    const double* const row = d_.row(u);
    std::size_t best = 0;
    double least = infinity;
    for (std::size_t k = 0; k < outside_.size(); ++k) {
      const double cost = row[outside_[k]] + (own + offset_[k]);
      const bool nearer = cost < reach_[k];
      const double reach = nearer ? cost : reach_[k];
      reach_[k] = reach;
      from_[k] = nearer ? u : from_[k];
      best = reach < least ? k : best;
      least = reach < least ? reach : least;
    }
    return best;
  }

  void hang_special(std::span<const double> price, Tree& tree) const {
    TwoNearest two;
    const bool gap = special_ == n_;
    for (int v = 0; v < n_; ++v) {
      if (v == special_) continue;
      const double edge = gap ? 0 : d_(special_, v) + price[std::size_t(special_)];
      two.take(v, edge + price[std::size_t(v)]);
    }
    tree.first = two.first;
    tree.second = two.second;
    tree.cost += two.first_cost + two.second_cost;
    for (const int v : {two.first, two.second}) ++tree.degree[std::size_t(v)];
    if (!gap) tree.degree[std::size_t(special_)] = 2;
  }

  const Matrix<double>& d_;
  int n_;
  int special_;
  // Of the nodes outside the tree, in parallel: which, their price, what they are away, from where.
  std::vector<int> outside_, from_;
  std::vector<double> offset_, reach_;
};

// Volgenant and Jonker's direction (the last two subgradients mixed) with Polyak's step lengths.
class Ascent {
 public:
  Ascent(double upper, std::vector<double> price)
      : upper_(upper), price_(std::move(price)), best_price_(price_), last_(price_.size(), 0) {}

  std::span<const double> price() const { return price_; }
  const std::vector<double>& best_price() const { return best_price_; }
  double best() const { return best_; }

  // Whether the tree at the present prices is not a tour, so that there is a direction to go.
  bool step(const Tree& tree, double relaxation) {
    if (tree.cost > best_) {
      best_ = tree.cost;
      best_price_ = price_;
    }
    double norm = 0;
    for (std::size_t i = 0; i < price_.size(); ++i) {
      const int excess = tree.degree[i] - 2;
      norm += excess * excess;
    }
    const double gap = upper_ - tree.cost;
    if (norm == 0 || !(gap > 0)) return false;
    const double length = relaxation * gap / norm;
    for (std::size_t i = 0; i < price_.size(); ++i) {
      const int excess = tree.degree[i] - 2;
      price_[i] += length * (0.7 * excess + 0.3 * last_[i]);
      last_[i] = excess;
    }
    return true;
  }

 private:
  double upper_;
  double best_ = -infinity;
  std::vector<double> price_, best_price_;
  std::vector<int> last_;
};

// The leaf of the tree that is worst connected: as special node it gains most.
int outlying_leaf(const Matrix<double>& d, const Tree& tree) {
  int outlying = 0;
  double greatest = -infinity;
  for (int v = 0; v < int(d.rows()); ++v) {
    if (tree.degree[std::size_t(v)] != 1 && v != tree.special) continue;
    TwoNearest two;
    for (int w = 0; w < int(d.rows()); ++w)
      if (w != v) two.take(w, d(v, w));
    if (two.second_cost > greatest) {
      greatest = two.second_cost;
      outlying = v;
    }
  }
  return outlying;
}

// Prices at which the two nearest of every node come to about 0 together, so that nodes far from
// all are as near to the others as those in their midst: most of the way to the best prices.
std::vector<double> first_prices(const Matrix<double>& d, int threads) {
  std::vector<double> price(std::size_t(d.rows()), 0.0), next(price.size());
  for (int sweep = 0; sweep < price_sweeps; ++sweep) {
    parallel_for(threads, d.rows(), [&](std::int64_t i) {
      TwoNearest two;
      for (std::int64_t j = 0; j < d.rows(); ++j)
        if (j != i) two.take(int(j), d(i, j) + price[std::size_t(j)]);
      next[std::size_t(i)] =
          0.5 * price[std::size_t(i)] - 0.25 * (two.first_cost + two.second_cost);
    });
    price.swap(next);
  }
  return price;
}

double trivial_bound(const Matrix<double>& d, bool periodic) {
  double sum = 0;
  for (std::int64_t i = 0; i < d.rows(); ++i)
    for (std::int64_t j = 0; j < i; ++j) sum += d(i, j);
  return periodic && d.rows() == 2 ? 2 * sum : sum;
}

}  // namespace

OneTree one_tree(const Matrix<double>& d, bool periodic, double upper, const Context& context) {
  const std::int64_t n = d.rows();
  OneTree result;
  result.potentials.assign(std::size_t(n), 0);
  if (n < 3 || (periodic && n == 3)) {
    result.bound = trivial_bound(d, periodic);
    return result;
  }
  DenseGraph dense(d, periodic);
  Tree tree;
  if (periodic) {
    dense.set_special(0);
    dense.minimum_tree(result.potentials, tree);
    dense.set_special(outlying_leaf(d, tree));
  }
  Ascent ascent(upper, first_prices(d, threads_of(context)));
  const std::int64_t steps = std::clamp<std::int64_t>(512'000 / n, 100, 1000);
  for (std::int64_t k = 0; k < steps; ++k) {
    if (k % 16 == 0 && context.poll) context.poll();
    dense.minimum_tree(ascent.price(), tree);
    if (!ascent.step(tree, std::pow(last_relaxation, double(k) / double(steps)))) break;
  }
  result.potentials = ascent.best_price();
  // Less what rounding may have added.
  double rounding = std::abs(ascent.best());
  for (const double p : result.potentials) rounding += 4 * std::abs(p);
  rounding *= double(n) * std::numeric_limits<double>::epsilon();
  result.bound = std::max(0.0, ascent.best() - rounding);
  return result;
}

double one_tree_bound(const Matrix<double>& d, bool periodic, double upper,
                      const Context& context) {
  return one_tree(d, periodic, upper, context).bound;
}

Neighbours alpha_neighbours(const Matrix<double>& d, bool periodic,
                            const std::vector<double>& potentials, int degree,
                            const Context& context) {
  const int n = int(d.rows());
  const int nodes = periodic ? n : n + 1;
  Neighbours result(nodes, std::min(degree, nodes - 1));
  if (nodes < 4) {
    for (int i = 0; i < nodes; ++i)
      for (int k = 0; k < result.degree; ++k) result.of(i)[std::size_t(k)] = k < i ? k : k + 1;
    return result;
  }
  DenseGraph graph(d, periodic);
  if (periodic) graph.set_special(0);
  Tree tree;
  graph.minimum_tree(potentials, tree);
  const auto price = [&](int v) { return v < n ? potentials[std::size_t(v)] : 0; };
  const auto cost = [&](int v, int w) {
    return (v < n && w < n ? d(v, w) : 0) + (price(v) + price(w));
  };
  const double replaceable = cost(tree.special, tree.second);
  parallel_for(threads_of(context), nodes, [&](std::int64_t index) {
    const int i = int(index);
    // The dearest edge on the way from i through the tree, which an edge to there would replace.
    std::vector<double> dearest(std::size_t(nodes), -infinity);
    std::vector<std::pair<std::pair<double, double>, int>> row;
    if (i != tree.special) {
      std::vector<bool> above(std::size_t(nodes), false);
      above[std::size_t(i)] = true;
      for (int v = i; tree.parent[std::size_t(v)] >= 0; v = tree.parent[std::size_t(v)]) {
        const int p = tree.parent[std::size_t(v)];
        dearest[std::size_t(p)] = std::max(dearest[std::size_t(v)], cost(v, p));
        above[std::size_t(p)] = true;
      }
      for (const int v : tree.order)
        if (const int p = tree.parent[std::size_t(v)]; p >= 0 && !above[std::size_t(v)])
          dearest[std::size_t(v)] = std::max(dearest[std::size_t(p)], cost(v, p));
    }
    row.reserve(std::size_t(nodes));
    for (int j = 0; j < nodes; ++j) {
      if (j == i) continue;
      const double edge = cost(i, j);
      const bool special = i == tree.special || j == tree.special;
      const double alpha = edge - (special ? replaceable : dearest[std::size_t(j)]);
      row.push_back({{std::max(alpha, 0.0), edge}, j});
    }
    const auto end = row.begin() + result.degree;
    std::partial_sort(row.begin(), end, row.end());
    for (int k = 0; k < result.degree; ++k)
      result.of(i)[std::size_t(k)] = row[std::size_t(k)].second;
  });
  return result;
}

}  // namespace descramble_fast::cpu
