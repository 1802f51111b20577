#pragma once

#include <cstdint>
#include <vector>

#include "cpu/order.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Held and Karp's lower bound on the tours (periodic) or paths through n nodes.
struct OneTree {
  double bound = 0;
  /// Node prices at the bound: every tour is as much longer under d_ij + p_i + p_j.
  std::vector<double> potentials;
};

/// Subgradient ascent on exact minimum 1-trees of the dense graph, O(n^2) a step. `upper` is the
/// cost of any tour or path; it sets the step lengths alone. d: symmetric, non-negative, finite.
OneTree one_tree(const Matrix<double>& d, bool periodic, double upper, const Context& context);

/// The bound alone.
double one_tree_bound(const Matrix<double>& d, bool periodic, double upper, const Context& context);

/// Of each node the `degree` others whose edges lengthen the minimum 1-tree least (Helsgaun's
/// alpha-nearness), nearest first. For paths node n is the gap between the two ends.
Neighbours alpha_neighbours(const Matrix<double>& d, bool periodic,
                            const std::vector<double>& potentials, int degree,
                            const Context& context);

}  // namespace descramble_fast::cpu
