#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// What is asked of linear_assignment().
struct AssignmentOptions {
  /// The greatest total cost instead of the least.
  bool maximize = false;
  /// Column duals of an earlier, similar problem, (..., m), for square problems: a start, not a
  /// constraint.
  std::optional<ArrayView> initial_duals = {};
  /// Costs on a CUDA device are solved there even where the CPU is expected to be faster.
  bool on_device = false;
};

/// Optimal assignments of a batch, with the duals that prove them.
struct LinearAssignment {
  /// (batch, n): the column of each row; -1 where n > m leaves a row out.
  Matrix<std::int64_t> columns;
  /// Per problem: the total over the assigned pairs.
  std::vector<double> cost;
  /// (batch, n). Minimising: row + column <= cost everywhere, with equality on the assigned pairs
  /// (>= where maximised), to rounding; the side that is longer has duals of one sign, and 0 where
  /// it is left out.
  Matrix<double> row_duals;
  /// (batch, m).
  Matrix<double> column_duals;
  /// Per problem: cost less the sum of the duals (its negative where maximised), 0 to rounding.
  std::vector<double> gap;
  /// Per problem: the largest amount by which a dual constraint is violated, 0 to rounding.
  std::vector<double> violation;
  /// Of the batch as a whole.
  Route route;
};

/// The assignment of rows to columns of least (or greatest) total cost, for costs of shape
/// (..., n, m): min(n, m) pairs, no row or column twice.
///
/// float32 costs (and 16-bit ones, widened) are read as they are; duals and path lengths are
/// float64. Infinity (minus infinity where maximised) forbids a pair. Exact: every answer is
/// checked against its duals. Integers up to 2^53/n in magnitude have a gap of exactly 0; beside
/// forbidden pairs, whose duals may grow with the length of a path, those up to 2^51/n. Among equal
/// optima the answer depends on the costs and the initial duals alone.
///
/// Takes O(n^2 m) in the worst case; beside the costs, some 100 (n + m) bytes and 500 bytes a row,
/// up to 10 kB for rows whose cheapest columns are much in demand; a copy of the costs where their
/// last axis is not contiguous, or where n > m.
///
/// Costs on a CUDA device are solved there where that is expected to be faster, and the answers lie
/// there in any case. The route says where the work was done; problems with several optima go to
/// the CPU, so that the answer is the same everywhere.
///
/// Throws InvalidArgument: shape; NaN or an infinity of the other sign, with its place; no
/// assignment without a forbidden pair, with the row; initial duals that are not finite. Throws
/// TypeError for costs that are not floating, BackendError for a device that cannot be used.
DESCRAMBLE_FAST_EXPORT LinearAssignment linear_assignment(const ArrayView& cost,
                                                          const AssignmentOptions& options = {},
                                                          const Context& context = {});

/// How far a search has come.
struct SearchProgress {
  /// Of search so far.
  double seconds;
  /// Done.
  std::int64_t step;
  /// Planned; 0 where there is no telling.
  std::int64_t steps;
  /// The best so far.
  double cost;
};

/// Why a search ended: by itself, by SearchOptions::time_limit, or by SearchOptions::progress.
enum class Stopped { finished, time_limit, callback };

/// What bounds a search; with no time limit the answer depends on the problem and the seed alone.
struct SearchOptions {
  /// Of all random choices.
  std::uint64_t seed = 0;
  /// Independent starts, run in parallel; 0 leaves the number to the search.
  std::int64_t restarts = 0;
  /// Seconds of search; the step under way is finished.
  std::optional<double> time_limit = {};
  /// Called from the calling thread between steps; true stops the search with the best so far.
  std::function<bool(const SearchProgress&)> progress = {};
};

/// What is asked of quadratic_assignment().
struct QuadraticAssignmentOptions {
  /// A large value instead of a small one.
  bool maximize = false;
  /// Pairs (i, p_i) that are given.
  std::vector<std::pair<std::int64_t, std::int64_t>> partial_match;
  /// The start of the first restart, a permutation.
  std::optional<std::vector<std::int64_t>> initial;
  /// restarts 0: one.
  SearchOptions search;
};

/// The outcome of quadratic_assignment().
struct QuadraticAssignment {
  /// p: place i of A goes with column p_i of B.
  std::vector<std::int64_t> columns;
  /// sum_ij A_ij B_{p_i p_j}.
  double cost = 0;
  /// At the start of the first restart.
  double initial_cost = 0;
  /// Of all restarts together.
  std::int64_t steps = 0;
  /// Why it ended.
  Stopped stopped = Stopped::finished;
  /// The driver names the searches.
  Route route;
};

/// A permutation p with small (or large) sum_ij A_ij B_{p_i p_j}, for square A and B of one size.
///
/// Frank-Wolfe on doubly stochastic matrices with exact line search, O(n^3) a step, then tabu
/// search on swaps with O(1) updates of their gains, O(n^2) a step. Memory: some tables of n^2
/// doubles for each restart under way. A heuristic: the problem is NP-hard. It runs on the CPU;
/// matrices on a CUDA device are copied, which the route says.
///
/// Throws InvalidArgument (shapes, NaN or infinity, an impossible partial match or start) and
/// TypeError (dtype).
DESCRAMBLE_FAST_EXPORT QuadraticAssignment
quadratic_assignment(const ArrayView& a, const ArrayView& b,
                     const QuadraticAssignmentOptions& options = {}, const Context& context = {});

}  // namespace descramble_fast
