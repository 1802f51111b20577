#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// For each node the others it is likely to stand beside, likeliest first.
struct Neighbours {
  int nodes = 0;
  int degree = 0;
  std::vector<int> list;  // (nodes, degree)

  Neighbours() = default;
  Neighbours(int node_count, int list_length)
      : nodes(node_count),
        degree(list_length),
        list(std::size_t(node_count) * std::size_t(list_length)) {}
  std::span<int> of(int node) {
    return {list.data() + std::size_t(node) * std::size_t(degree), std::size_t(degree)};
  }
  std::span<const int> of(int node) const {
    return {list.data() + std::size_t(node) * std::size_t(degree), std::size_t(degree)};
  }
};

/// An order p of n nodes with small sum_i sum_r weights[r - 1] d(p_i, p_{i+r}) over the cyclic
/// places (periodic), or with ends:
/// - weights (1): sum_i d(p_i, p_{i+1});
/// - weights (4, -1): the second difference with reflecting ends, the same sum with the terms
///   beyond the ends left out, less d(p_0, p_1) and d(p_{n-2}, p_{n-1}).
/// Up to three weights.
struct OrderProblem {
  const Matrix<double>& distance;
  std::vector<double> weights;
  bool periodic = true;
  /// Prices that bring out the good edges (see one_tree), one a node; empty: none.
  std::vector<double> potentials = {};
};

double order_cost(const OrderProblem& problem, std::span<const int> order);

/// The nearest by distance. With ends, node n is the gap between them: near to all, first in their
/// lists, and itself near to those that are far from the rest.
Neighbours nearest_neighbours(const Matrix<double>& d, bool periodic, int degree,
                              const Context& context);

/// One restart of an iterated local search: it goes on in slices of any length, and depends on the
/// problem and the seed alone. What it is given must outlive it.
class OrderSearch {
 public:
  /// From an order put together of short edges.
  OrderSearch(const OrderProblem& problem, const Neighbours& neighbours, std::uint64_t seed);
  ~OrderSearch();
  OrderSearch(OrderSearch&&) noexcept;
  OrderSearch& operator=(OrderSearch&&) noexcept;

  /// Disturbs and repairs the order that many times, keeping what is no worse. The first call also
  /// takes the start to its local optimum, which advance(0) does alone.
  void advance(std::int64_t kicks);
  /// As kept up to date move by move; order_cost() has it from scratch.
  double cost() const;
  std::vector<int> order() const;

  class Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

/// Kicks for each restart that make a good order in about the time of a reader's patience.
std::int64_t default_kicks(const OrderProblem& problem);

}  // namespace descramble_fast::cpu
