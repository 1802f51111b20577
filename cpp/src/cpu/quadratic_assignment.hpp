#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cpu/random.hpp"
#include "descramble_fast/assignment.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Exactly.
bool is_symmetric(const Matrix<double>& a);

/// sum_ij A_ij B_{p_i p_j}.
double quadratic_cost(const Matrix<double>& a, const Matrix<double>& b,
                      const std::vector<std::int64_t>& columns);

/// What every swap of two of the first `free` places would add to sum_ij A_ij B_{p_i p_j}.
///
/// With M = A^T P B + A P B^T, column p_s of row r written M_rs, swapping r and s adds
///   M_rs + M_sr - M_rr - M_ss + (A_rr + A_ss - A_rs - A_sr)(B_rr + B_ss - B_rs - B_sr),
/// B permuted. A swap changes M by a matrix of rank 1 (2, if A and B are not symmetric), and M is
/// brought up to date with many of them at once, by a matrix product: a swap costs O(n), and a row
/// of gains O(n) per swap that is pending.
///
/// Holds one (free, free) table of doubles, and copies of A and B unless both are symmetric. Both
/// must outlive the object.
class SwapGains {
 public:
  /// The places from `free` on keep their columns, which must be those from `free` on.
  SwapGains(const Matrix<double>& a, const Matrix<double>& b, std::vector<std::int64_t> columns,
            std::int64_t free, int threads);

  std::int64_t free() const { return free_; }
  const std::vector<std::int64_t>& columns() const { return columns_; }

  /// The gain of swapping two different places.
  double gain(std::int64_t r, std::int64_t s) const;

  /// The gains of swapping r with every place, 0 with itself; `scratch` holds free() numbers.
  void row(std::int64_t r, double* gains, double* scratch) const;

  void swap(std::int64_t u, std::int64_t v);

  /// One term x y^T of the last swap's change of M, by places: gains of pairs without u and v have
  /// grown by the sum over terms of (x_r - x_s)(y_{p_r} - y_{p_s}).
  struct Term {
    const double* x;
    const double* y;
  };
  int terms() const { return symmetric_ ? 1 : 2; }
  Term last_term(int t) const;

  /// Computes M afresh.
  void refresh();

  /// Gains nearer to 0 than this may be rounding.
  double tolerance() const { return tolerance_; }

 private:
  const Matrix<double>& transposed_a() const { return symmetric_ ? a_ : at_; }
  const Matrix<double>& transposed_b() const { return symmetric_ ? b_ : bt_; }
  double entry(std::int64_t r, std::int64_t column) const;
  void flush();

  const Matrix<double>& a_;
  const Matrix<double>& b_;
  std::vector<std::int64_t> columns_;
  std::int64_t free_;
  int threads_;
  bool symmetric_;
  Matrix<double> at_, bt_;
  std::vector<double> diagonal_a_, diagonal_b_;
  Matrix<double> m_;
  /// M_rr.
  std::vector<double> diagonal_;
  /// Rows x and y of the terms that M lacks.
  Matrix<double> x_, y_;
  std::int64_t pending_ = 0;
  double tolerance_ = 0;
};

/// Descent to a local optimum of swaps: goes round the places, and swaps each with its best
/// partner, until no place has one.
class SwapDescent {
 public:
  SwapDescent(const Matrix<double>& a, const Matrix<double>& b, std::vector<std::int64_t> start,
              std::int64_t free, int threads);

  /// Visits at least `rows` places; true at a local optimum.
  bool advance(std::int64_t rows);

  const std::vector<std::int64_t>& columns() const { return gains_.columns(); }
  std::int64_t swaps() const { return swaps_; }
  /// What the swaps have added to the cost.
  double change() const { return change_; }

 private:
  std::int64_t visit(std::int64_t first, std::int64_t count);

  SwapGains gains_;
  int threads_;
  std::int64_t at_ = 0, idle_ = 0, swaps_ = 0;
  double change_ = 0;
  Matrix<double> scratch_;
};

/// Taillard's robust tabu search: the best swap that does not put both places back to columns they
/// left a short, random while ago, unless it leads to a new best.
///
/// Holds four (free, free) tables of doubles beside the matrices. A step costs O(free^2).
class TabuSearch {
 public:
  TabuSearch(const Matrix<double>& a, const Matrix<double>& b, std::vector<std::int64_t> start,
             std::int64_t free, std::uint64_t seed, int threads);

  void advance(std::int64_t steps);

  std::int64_t steps() const { return step_; }
  const std::vector<std::int64_t>& best() const { return best_; }
  /// As tracked, exact for integers.
  double best_cost() const { return best_cost_; }

 private:
  struct Swap {
    double gain;
    std::int64_t r = -1, s = -1;
  };
  Swap choose();
  Swap overdue() const;
  void apply(const Swap& swap);
  void forbid(std::int64_t u, std::int64_t v);
  void release(std::int64_t place);
  void rebuild();
  template <class Visit>
  void each_chunk(const Visit& visit);

  SwapGains gains_;
  int threads_;
  Random random_;
  double cost_, best_cost_;
  std::vector<std::int64_t> best_;
  /// Gains of pairs r < s.
  Matrix<double> table_;
  /// The step until which a place is not to take a column; of pairs r < s, the step from which the
  /// swap is allowed.
  Matrix<double> until_, pair_until_;
  std::vector<Swap> allowed_, any_;
  std::vector<double> scratch_, row_u_, row_v_;
  Matrix<double> terms_;
  std::int64_t step_ = 0;
};

/// The problem with the free places first.
struct QuadraticProblem {
  /// Minimise sum_ij A_ij B_{p_i p_j} where p_i = i from `free` on.
  Matrix<double> a, b;
  std::int64_t free;
};

/// Frank and Wolfe's method on doubly stochastic matrices, with exact line search ("FAQ").
///
/// Where the rows and columns of A or B sum to 0, the barycentre is stationary, and may well be the
/// minimum over all doubly stochastic matrices. The start is then off the barycentre, along a
/// random direction of low curvature, and A - shift I, no different on permutations, takes the
/// place of A; the shift grows in phases, so that the minimum moves from the inside to a vertex.
class FrankWolfe {
 public:
  /// The barycentre as start, unless it is stationary.
  explicit FrankWolfe(const QuadraticProblem& problem, int threads);
  void start_at_random(Random& random, const Context& context);

  /// True where it has converged.
  bool step(const Context& context);

  /// The permutation nearest to the present matrix, all places.
  std::vector<std::int64_t> rounded(const Context& context) const;

  bool barycentre_is_stationary() const { return flat_; }

 private:
  /// Of a matrix P: A P B^T + A^T P B, and P B^T + P B for the shift (empty where there is none).
  struct Products {
    Matrix<double> w, v;
  };
  Products of_permutation(const std::vector<std::int64_t>& q) const;
  Products of_barycentre() const;
  std::vector<std::int64_t> smooth_permutation(Random& random, const Context& context) const;
  Matrix<double> gradient() const;
  std::int64_t steps_per_phase() const;
  bool end_phase();

  const QuadraticProblem& problem_;
  int threads_;
  bool symmetric_, flat_;
  Matrix<double> at_, bt_;
  /// At which the objective is concave, to a fair approximation.
  double full_shift_ = 0;
  /// What the given part adds to the gradient, empty where there is none.
  Matrix<double> linear_;
  Matrix<double> p_;
  Products products_;
  std::vector<double> duals_;
  std::int64_t steps_ = 0, phase_ = 0;
};

struct QuadraticSolution {
  std::vector<std::int64_t> columns;
  std::int64_t steps = 0;
  Stopped stopped = Stopped::finished;
  std::string driver;
};

/// `initial` is the start of the first restart, all places.
QuadraticSolution solve_quadratic(const QuadraticProblem& problem,
                                  const std::optional<std::vector<std::int64_t>>& initial,
                                  const SearchOptions& search, const Context& context);

}  // namespace descramble_fast::cpu
