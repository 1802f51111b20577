#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// An order of the neurons: neuron permutation[i] moves to place i, so that P_{i, permutation[i]}
/// is signs[i] (1 where there are no signs).
struct Permutation {
  /// (n,).
  std::vector<std::int64_t> permutation;
  /// +1 or -1; empty where signs were not asked for.
  std::vector<std::int64_t> signs;
  /// The criterion at P.
  double cost = 0;
  /// The criterion at P = I.
  double initial_cost = 0;
  /// Of every orthogonal P for smoothness, of every permutation (by duality) for assignments: lower
  /// where the criterion is minimised, upper where it is maximised.
  double bound = 0;
  /// How P was found.
  Route route;
};

/// The outcome of a search for a smooth order.
struct SmoothOrder : Permutation {
  /// Held and Karp's 1-tree bound of the first difference over all permutations.
  std::optional<double> tree_bound;
  /// Of all restarts together.
  std::int64_t steps = 0;
  /// Why the search ended.
  Stopped stopped = Stopped::finished;
};

/// An order with small tr(L P C P^T), C the uncentred second moment.
///
/// First differences are travelling-salesman tours or paths, second differences the same with a
/// window of three, Fourier operators tours improved by swaps; other operators are quadratic
/// assignments. A heuristic with bounds: the problem is NP-hard. The bound takes a descramble(),
/// whose memory and errors apply; the search ends by itself, and holds some tables of n^2 numbers.
/// It runs on the CPU; moments on a CUDA device are copied, which the route says.
DESCRAMBLE_FAST_EXPORT SmoothOrder descramble_permutation(const Covariance& covariance,
                                                          const Operator& op,
                                                          const SearchOptions& search = {},
                                                          const Context& context = {});

/// max sum_i (P W)_ii over permutations, for W (n, m); an exact assignment, on the CPU. Columns
/// beyond n do not count, missing ones count as 0.
///
/// Takes what linear_assignment() takes for n by n. Throws InvalidArgument (shape, NaN or infinity,
/// overflow) and TypeError (dtype).
DESCRAMBLE_FAST_EXPORT Permutation permute_trace(const ArrayView& weight,
                                                 const Context& context = {});

/// max sum_i (P W)_ii^2 over permutations, as permute_trace().
DESCRAMBLE_FAST_EXPORT Permutation permute_diagonal(const ArrayView& weight,
                                                    const Context& context = {});

/// The permutation Q nearest to P (n, n): max sum_i P_{i, q_i}, of |P| where signed. Cost and
/// errors as permute_trace().
DESCRAMBLE_FAST_EXPORT Permutation nearest_permutation(const ArrayView& p, bool is_signed = false,
                                                       const Context& context = {});

/// Which neuron of b is which of a, by the similarity (n_a, n_b) of their activations: neuron
/// permutation[i] of b goes with neuron i of a (-1: none). max sum_i S_{i, q_i}, of |S| where
/// signed. Cost and errors as permute_trace().
DESCRAMBLE_FAST_EXPORT Permutation match_neurons(const ArrayView& similarity,
                                                 bool is_signed = false,
                                                 const Context& context = {});

/// Which principal component is which mode.
struct ModeMatch {
  /// Mode of each component, (k,).
  std::vector<std::int64_t> modes;
  /// Norm of each component's projection on the modes that share its mode's eigenvalue, 0 to 1.
  std::vector<double> correlation;
  /// Mean of the squared correlations, which the matching maximises.
  double score = 0;
  /// Of the assignment.
  Route route;
};

/// Matches components with modes by their energy in each degenerate block of L, so that a shifted
/// cosine still finds its frequency. An assignment of k by n, after k rows through the operator.
DESCRAMBLE_FAST_EXPORT ModeMatch match_modes(const SmoothnessDescrambler& d,
                                             const Context& context = {});

/// Two weight matrices, (n, m) and (p, n), with the neurons between them.
struct Layer {
  /// W, (n, m).
  ArrayView weight;
  /// b, (n,).
  std::optional<ArrayView> bias;
  /// W_next, (p, n).
  ArrayView next_weight;
};

/// The largest difference between W_next max(0, W x + b) of the two on a few random inputs,
/// relative to the largest output: rounding, if one is a reordering of the other. O(n (m + p)).
///
/// Throws InvalidArgument (shapes, NaN or infinity, overflow) and TypeError (dtype).
DESCRAMBLE_FAST_EXPORT double output_difference(const Layer& a, const Layer& b,
                                                const Context& context = {});

}  // namespace descramble_fast
