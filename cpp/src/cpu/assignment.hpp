#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <span>
#include <vector>

#include "cpu/scan.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// Costs s c_ij to be minimised, s = 1 or -1; each row contiguous, rows <= columns < 2^31.
template <class T>
struct Costs {
  const T* data;
  std::int64_t rows, columns;
  std::int64_t stride;
  double sign;

  const T* row(std::int64_t i) const { return data + i * stride; }
};

struct AssignmentOutcome {
  enum class Status { optimal, not_finite, infeasible };
  Status status = Status::optimal;
  /// Where a cost is not finite, or which row has no allowed partner left.
  std::int64_t row = -1, column = -1;
  double cost = 0;
  /// Cost less the sum of the duals.
  double gap = 0;
  /// The largest u_i + v_j - s c_ij.
  double violation = 0;
};

/// Where the answer goes: x (rows), u (rows), v (columns).
struct AssignmentTarget {
  std::span<std::int64_t> columns;
  std::span<double> row_duals, column_duals;
};

/// The shortest augmenting path method of Jonker and Volgenant on short lists of each row's
/// cheapest columns. Column duals only fall after the start, so reduced costs only rise: what a
/// list leaves out stays above the bound known when the list was made, and the list alone decides
/// wherever its bound is not undercut. Holds its work space for further problems.
template <class T>
class AssignmentSolver {
 public:
  explicit AssignmentSolver(const Context& context);

  /// `initial_duals` (columns, or empty) must be finite; only for square problems.
  AssignmentOutcome solve(const Costs<T>& costs, std::span<const double> initial_duals,
                          const AssignmentTarget& out);

 private:
  struct List {
    std::int64_t begin = 0;
    std::int32_t size = 0;
    std::int32_t level = 0;
    double bound = 0;
  };
  struct Node {
    double distance;
    std::int64_t id;  // a column, or `columns` + a row whose list may fall short

    bool operator<(const Node& other) const {
      return distance < other.distance || (distance == other.distance && id < other.id);
    }
  };
  struct Offer {
    double least, second;  // the least reduced cost, and a bound on all others
    std::int64_t column;
    double cost;
  };

  std::int64_t survey(AssignmentOutcome& outcome, bool& distinct);
  void fill(std::int64_t row);
  void deepen(std::int64_t row);
  void fill_all();
  Offer offer(std::int64_t row);
  void prefer_free(std::int64_t row, Offer& offer) const;
  std::vector<std::int32_t> reduce_rows();
  bool augment(std::int64_t row);
  bool settle_two();
  bool search_lists(std::int64_t row);
  void search_rows(std::int64_t row);
  void relax(std::int64_t row, double distance, double cost, std::int64_t column);
  void relax_list(std::int64_t row);
  void relax_all(std::int64_t row);
  void expand(std::int64_t row, double distance);
  void push(Node node);
  Node pop();
  void assign(std::int64_t row, std::int64_t column, double cost);
  void finish(AssignmentOutcome& outcome, bool proven);
  void poll();
  std::int64_t blocks() const;

  int threads_;
  std::function<void()> poll_;
  std::chrono::steady_clock::time_point last_poll_;
  std::int64_t steps_ = 0;
  const RowScan<T>& scan_;
  const ListScan& list_scan_;

  Costs<T> costs_{};
  std::span<std::int64_t> x_;
  std::span<double> u_, v_;
  std::vector<std::int32_t> y_;
  std::vector<double> matched_cost_;
  /// Whether bids and paths read whole rows, not lists.
  bool whole_rows_ = false, by_rows_ = false;
  std::vector<List> lists_;
  std::pmr::vector<double> list_costs_{memory_of_call()};
  std::pmr::vector<std::int32_t> list_columns_{memory_of_call()};

  // Of one search for a shortest path; distances are infinite between searches.
  std::vector<double> distance_, path_cost_, offset_, row_parent_;
  std::vector<std::int32_t> parent_;
  std::vector<std::int64_t> reached_;
  std::vector<Node> scanned_, heap_;
  double nearest_ = 0;
  std::int64_t nearest_column_ = -1;
  std::vector<double> wide_costs_;
  std::vector<std::int32_t> wide_columns_;
};

/// The least (or greatest) assignment of a square matrix without forbidden pairs, n >= 1. The
/// column duals of a similar problem are the start, and are replaced; empty: none.
void assign(const Matrix<double>& cost, bool maximize, std::vector<double>& column_duals,
            std::vector<std::int64_t>& columns, const Context& context);

}  // namespace descramble_fast::cpu
