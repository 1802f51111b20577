#include "cpu/assignment.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "cpu/parallel.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double largest = std::numeric_limits<double>::max();

// A list of level l holds what is cheaper than the second largest of the minima of 8 * 2^l groups
// of columns: at least that many less one, and half of its capacity on average.
constexpr int levels = 4;
constexpr std::array<std::int32_t, levels> capacities{32, 96, 224, 512};

constexpr std::int64_t padded(std::int64_t size) {
  return (size + list_slack - 1) / list_slack * list_slack;
}

constexpr std::int64_t places(int level) { return capacities[std::size_t(level)] + list_slack; }

// Rows of so many columns are read whole.
constexpr std::int64_t short_row = 128;

// Bidding settles most rows at a few readings each, but fights for a column can be long; paths then
// come cheaper. After so many bids a row, bidding goes on only where it has settled as many rows,
// as a path takes some n/3 readings of lists, each about as long as four bids; and eight rows where
// rows are read whole, as a path's readings are then no longer than bids.
std::int64_t bids_between_looks(std::int64_t n) { return std::clamp<std::int64_t>(n / 128, 1, 16); }
constexpr std::int64_t settled_in_whole_rows = 8;

constexpr int bidding_rounds = 8;

// A search whose heap outgrows this many times the columns, by ways that shorter ones replace, is
// one of those that whole rows settle faster; so are those after it.
constexpr std::int64_t crowded = 2;

// Elements below which threads cost more than they bring.
constexpr std::int64_t threaded_work = 1 << 17;

double second_largest(std::span<const double> values) {
  double first = -infinity, second = -infinity;
  for (const double x : values) {
    second = std::max(second, std::min(first, x));
    first = std::max(first, x);
  }
  return second;
}

// Compensated, so that the sums of exact numbers stay exact.
class Sum {
 public:
  void add(double x) {
    const double total = total_ + x;
    if (std::isfinite(total))
      rest_ += std::abs(total_) >= std::abs(x) ? (total_ - total) + x : (x - total) + total_;
    total_ = total;
  }
  double total() const { return total_ + rest_; }
  double less(const Sum& other) const { return (total_ - other.total_) + (rest_ - other.rest_); }

 private:
  double total_ = 0, rest_ = 0;
};

}  // namespace

template <class T>
AssignmentSolver<T>::AssignmentSolver(const Context& context)
    : threads_(threads_of(context)),
      poll_(context.poll),
      scan_(row_scan<T>()),
      list_scan_(scan_kernels().list) {}

template <class T>
void AssignmentSolver<T>::poll() {
  if (!poll_ || (++steps_ & 255) != 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_poll_ < std::chrono::milliseconds(20)) return;
  last_poll_ = now;
  poll_();
}

template <class T>
std::int64_t AssignmentSolver<T>::blocks() const {
  const std::int64_t by_work = costs_.rows * costs_.columns / threaded_work;
  return std::clamp<std::int64_t>(by_work, 1, std::min<std::int64_t>(threads_, costs_.rows));
}

// Row minima into u; column minima into v where v is empty of duals and the problem square. Each
// row's first cheapest column into x. Returns the first row with a cost that is not finite, or -1.
template <class T>
std::int64_t AssignmentSolver<T>::survey(AssignmentOutcome& outcome, bool& distinct) {
  const std::int64_t n = costs_.rows, m = costs_.columns, parts = blocks();
  Matrix<double> least(parts, m, infinity);
  std::vector<std::int64_t> bad_row(std::size_t(parts), -1);
  const std::vector<double> zeros(std::size_t(m), 0);
  parallel_for(threads_, parts, [&](std::int64_t part) {
    for (std::int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
      bool bad = false;
      u_[std::size_t(i)] = scan_.survey(costs_.row(i), m, costs_.sign, least.row(part), &bad);
      if (bad) {
        bad_row[std::size_t(part)] = i;
        return;
      }
      std::array<double, 1 + list_slack> cost;
      std::array<std::int32_t, 1 + list_slack> column{};
      scan_.collect(costs_.row(i), zeros.data(), m, costs_.sign, u_[std::size_t(i)], cost.data(),
                    column.data(), 1);
      x_[std::size_t(i)] = column[0];
    }
  });
  for (const std::int64_t i : bad_row)
    if (i >= 0) return i;

  for (std::int64_t part = 1; part < parts; ++part)
    for (std::int64_t j = 0; j < m; ++j) least(0, j) = std::min(least(0, j), least(part, j));
  for (std::int64_t i = 0; i < n && outcome.row < 0; ++i)
    if (u_[std::size_t(i)] == infinity) outcome = {AssignmentOutcome::Status::infeasible, i};
  std::ranges::fill(y_, -1);
  distinct = true;
  for (std::int64_t i = 0; i < n; ++i) {
    std::int32_t& owner = y_[std::size_t(x_[std::size_t(i)])];
    distinct = distinct && owner < 0;
    owner = std::int32_t(i);
  }
  // A column without allowed pairs stays out of every list; some row will find no other.
  std::ranges::transform(std::span(least.row(0), std::size_t(m)), v_.begin(),
                         [](double x) { return x == infinity ? 0 : x; });
  return -1;
}

// The cheapest columns of a row under the present duals. A list that many equal costs overflow is
// cut off, with a bound at those costs.
template <class T>
void AssignmentSolver<T>::fill(std::int64_t row) {
  List& list = lists_[std::size_t(row)];
  const std::int64_t m = costs_.columns, capacity = capacities[std::size_t(list.level)];
  double* const costs = list_costs_.data() + list.begin;
  std::int32_t* const columns = list_columns_.data() + list.begin;
  std::array<double, scan_lanes> lanes;
  scan_.lane_minima(costs_.row(row), v_.data(), m, costs_.sign, lanes.data());
  for (int width = scan_lanes / 2; width >= 8 << list.level; width /= 2)
    for (int l = 0; l < width; ++l)
      lanes[std::size_t(l)] = std::min(lanes[std::size_t(l)], lanes[std::size_t(l + width)]);
  const std::span<const double> groups(lanes.data(), std::size_t(8 << list.level));
  const double lowest = std::ranges::min(groups);
  double limit = m <= capacity ? largest : std::min(second_largest(groups), largest);
  const auto collect = [&] {
    return scan_.collect(costs_.row(row), v_.data(), m, costs_.sign, limit, costs, columns,
                         capacity);
  };
  std::int64_t count = collect();
  while (count > capacity && limit > lowest) {
    std::array<double, capacities.back()> reduced;
    for (std::int64_t q = 0; q < capacity; ++q)
      reduced[std::size_t(q)] = costs[q] - v_[std::size_t(columns[q])];
    const auto middle = reduced.begin() + capacity / 4;
    std::nth_element(reduced.begin(), middle, reduced.begin() + capacity);
    limit = *middle < limit ? *middle : lowest;
    count = collect();
  }
  list.size = std::int32_t(std::min(count, capacity));
  std::fill(costs + list.size, costs + padded(list.size), infinity);
  std::fill(columns + list.size, columns + padded(list.size), 0);
  list.bound = limit == largest && count <= capacity ? infinity : limit;
}

template <class T>
void AssignmentSolver<T>::fill_all() {
  const std::int64_t n = costs_.rows, parts = blocks();
  lists_.assign(std::size_t(n), {});
  list_costs_.resize(std::size_t(n * places(0)));
  list_columns_.resize(std::size_t(n * places(0)));
  parallel_for(threads_, parts, [&](std::int64_t part) {
    for (std::int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
      lists_[std::size_t(i)].begin = i * places(0);
      fill(i);
    }
  });
}

// A longer list.
template <class T>
void AssignmentSolver<T>::deepen(std::int64_t row) {
  List& list = lists_[std::size_t(row)];
  ++list.level;
  list.begin = std::int64_t(list_costs_.size());
  const std::size_t size = list_costs_.size() + std::size_t(places(list.level));
  list_costs_.resize(size);
  list_columns_.resize(size);
  fill(row);
}

// What a row offers for its cheapest column under the present duals.
template <class T>
typename AssignmentSolver<T>::Offer AssignmentSolver<T>::offer(std::int64_t row) {
  if (whole_rows_) {
    const Bid found = scan_.bid(costs_.row(row), v_.data(), costs_.columns, costs_.sign);
    return {found.least, found.second, found.place,
            costs_.sign * double(costs_.row(row)[found.place])};
  }
  const List& list = lists_[std::size_t(row)];
  const auto bid = [&] {
    return list_scan_.bid(list_costs_.data() + list.begin, list_columns_.data() + list.begin,
                          padded(list.size), v_.data());
  };
  Bid found = bid();
  if (found.second > list.bound) {
    fill(row);
    found = bid();
  }
  const std::size_t place = std::size_t(list.begin + found.place);
  return {found.least, std::min(found.second, list.bound), list_columns_[place],
          list_costs_[place]};
}

// Of a row's columns that are as good as its best, a free one if there is one.
template <class T>
void AssignmentSolver<T>::prefer_free(std::int64_t row, Offer& offer) const {
  const auto take = [&](std::int64_t column, double cost) {
    if (y_[std::size_t(column)] >= 0 || cost - v_[std::size_t(column)] != offer.least) return false;
    offer.column = column;
    offer.cost = cost;
    return true;
  };
  if (whole_rows_) {
    for (std::int64_t j = 0; j < costs_.columns; ++j)
      if (take(j, costs_.sign * double(costs_.row(row)[j]))) return;
    return;
  }
  const List& list = lists_[std::size_t(row)];
  for (std::int64_t q = list.begin; q < list.begin + list.size; ++q)
    if (take(list_columns_[std::size_t(q)], list_costs_[std::size_t(q)])) return;
}

template <class T>
void AssignmentSolver<T>::assign(std::int64_t row, std::int64_t column, double cost) {
  x_[std::size_t(row)] = column;
  y_[std::size_t(column)] = std::int32_t(row);
  matched_cost_[std::size_t(row)] = cost;
}

// Augmenting row reduction: every free row takes its cheapest column, lowers that column's dual to
// where its second choice is as good, and turns out the row that held it. Returns the rows left.
template <class T>
std::vector<std::int32_t> AssignmentSolver<T>::reduce_rows() {
  std::vector<std::int32_t> free(std::size_t(costs_.rows)), later;
  for (std::size_t i = 0; i < free.size(); ++i) free[i] = std::int32_t(i);
  const std::int64_t bids_a_row = bids_between_looks(costs_.rows);
  const std::int64_t between_looks = bids_a_row * costs_.rows;
  const std::int64_t settled = whole_rows_ ? settled_in_whole_rows : bids_a_row;
  std::int64_t bids = 0, left_before = costs_.rows;
  bool worthwhile = true;
  for (int round = 0; round < bidding_rounds && !free.empty() && worthwhile; ++round) {
    later.clear();
    for (std::size_t next = 0; next < free.size(); ++next) {
      std::int64_t row = free[next];
      while (row >= 0) {
        poll();
        if (++bids == between_looks) {
          bids = 0;
          const std::int64_t left = std::int64_t(later.size() + free.size() - next);
          worthwhile = left <= left_before - settled;
          left_before = left;
        }
        if (!worthwhile) {
          later.push_back(std::int32_t(row));
          break;
        }
        Offer best = offer(row);
        if (best.least == infinity) {  // none allowed: the search for a path will say so
          later.push_back(std::int32_t(row));
          break;
        }
        double& dual = v_[std::size_t(best.column)];
        const double lowered = dual - (best.second - best.least);
        const bool lowers = best.second < infinity && lowered < dual;
        if (lowers) {
          dual = lowered;
        } else if (y_[std::size_t(best.column)] >= 0 && best.second == best.least) {
          prefer_free(row, best);
        }
        const std::int64_t ousted = y_[std::size_t(best.column)];
        assign(row, best.column, best.cost);
        if (ousted >= 0) x_[std::size_t(ousted)] = -1;
        if (ousted >= 0 && !lowers) later.push_back(std::int32_t(ousted));
        row = lowers ? ousted : -1;
      }
    }
    std::swap(free, later);
  }
  return free;
}

// Two rows that want one column: the one that loses less by it takes the other. Bids would take the
// duals to three times the costs, which is too far for integers of 2^53 / 2.
template <class T>
bool AssignmentSolver<T>::settle_two() {
  const std::int64_t wanted = x_[0], other = 1 - wanted;
  const auto cost = [&](std::int64_t row, std::int64_t column) {
    return costs_.sign * double(costs_.row(row)[column]);
  };
  const double first = cost(0, other) - cost(0, wanted), second = cost(1, other) - cost(1, wanted);
  const std::int64_t yields = first < second ? 0 : 1;
  const double loss = std::min(first, second);
  if (loss == infinity) return false;
  v_[std::size_t(wanted)] = -loss;
  v_[std::size_t(other)] = 0;
  assign(yields, other, cost(yields, other));
  assign(1 - yields, wanted, cost(1 - yields, wanted));
  return true;
}

template <class T>
void AssignmentSolver<T>::push(Node node) {
  std::size_t place = heap_.size();
  heap_.push_back(node);
  while (place > 0) {
    const std::size_t above = (place - 1) / 4;
    if (!(node < heap_[above])) break;
    heap_[place] = heap_[above];
    place = above;
  }
  heap_[place] = node;
}

template <class T>
typename AssignmentSolver<T>::Node AssignmentSolver<T>::pop() {
  const Node top = heap_.front(), last = heap_.back();
  heap_.pop_back();
  const std::size_t size = heap_.size();
  std::size_t place = 0;
  while (4 * place + 1 < size) {
    std::size_t least = 4 * place + 1;
    for (std::size_t other = least + 1; other < std::min(4 * place + 5, size); ++other)
      if (heap_[other] < heap_[least]) least = other;
    if (!(heap_[least] < last)) break;
    heap_[place] = heap_[least];
    place = least;
  }
  if (size > 0) heap_[place] = last;
  return top;
}

// What lies beyond the nearest free column known so far cannot matter.
template <class T>
void AssignmentSolver<T>::relax(std::int64_t row, double distance, double cost,
                                std::int64_t column) {
  const std::size_t j = std::size_t(column);
  if (!(distance < std::min(nearest_, distance_[j]))) return;
  if (distance_[j] == infinity) reached_.push_back(column);
  distance_[j] = distance;
  parent_[j] = std::int32_t(row);
  path_cost_[j] = cost;
  if (y_[j] < 0) {
    nearest_ = distance;
    nearest_column_ = column;
  } else {
    push({distance, column});
  }
}

template <class T>
void AssignmentSolver<T>::relax_list(std::int64_t row) {
  const List& list = lists_[std::size_t(row)];
  const double offset = offset_[std::size_t(row)];
  const double* const costs = list_costs_.data() + list.begin;
  const std::int32_t* const columns = list_columns_.data() + list.begin;
  std::array<std::int32_t, capacities.back() + list_slack> place;
  std::array<double, capacities.back() + list_slack> distance;
  const std::int64_t count =
      list_scan_.reach(costs, columns, padded(list.size), v_.data(), offset, nearest_,
                       distance_.data(), place.data(), distance.data());
  for (std::size_t q = 0; q < std::size_t(count); ++q)
    relax(row, distance[q], costs[place[q]], columns[place[q]]);
  if (list.bound + offset < nearest_) push({list.bound + offset, costs_.columns + row});
}

// Every column of a row that can matter.
template <class T>
void AssignmentSolver<T>::relax_all(std::int64_t row) {
  const double offset = offset_[std::size_t(row)];
  // A little wider than needed, since the sum is rounded elsewhere.
  const double slack =
      4 * std::numeric_limits<double>::epsilon() * (std::abs(nearest_) + std::abs(offset));
  const double limit = std::min(nearest_ - offset + slack, largest);
  wide_costs_.resize(std::size_t(costs_.columns + list_slack));
  wide_columns_.resize(std::size_t(costs_.columns + list_slack));
  const std::int64_t count =
      scan_.collect(costs_.row(row), v_.data(), costs_.columns, costs_.sign, limit,
                    wide_costs_.data(), wide_columns_.data(), costs_.columns);
  for (std::int64_t q = 0; q < count; ++q) {
    const std::int32_t j = wide_columns_[std::size_t(q)];
    const double cost = wide_costs_[std::size_t(q)];
    relax(row, (cost - v_[std::size_t(j)]) + offset, cost, j);
  }
}

// The search has come to where columns beyond a row's list may be next.
template <class T>
void AssignmentSolver<T>::expand(std::int64_t row, double distance) {
  const List& list = lists_[std::size_t(row)];
  const double offset = offset_[std::size_t(row)];
  fill(row);
  if (list.bound + offset <= distance && list.level + 1 < levels) deepen(row);
  if (list.bound + offset <= distance)
    relax_all(row);
  else
    relax_list(row);
}

// A search among few columns at a time, on the lists; nothing where so many ways are tried that
// whole rows are cheaper.
template <class T>
bool AssignmentSolver<T>::search_lists(std::int64_t row) {
  heap_.clear();
  reached_.clear();
  scanned_.clear();
  nearest_ = infinity;
  nearest_column_ = -1;
  offset_[std::size_t(row)] = 0;
  relax_list(row);
  const std::size_t most = std::size_t(crowded * costs_.columns);
  while (!heap_.empty() && heap_.size() <= most) {
    const Node top = pop();
    if (!(top.distance < nearest_)) break;
    poll();
    if (top.id >= costs_.columns) {
      expand(top.id - costs_.columns, top.distance);
      continue;
    }
    const std::size_t j = std::size_t(top.id);
    if (top.distance > distance_[j]) continue;  // an older, longer way
    // Closed: no way is shorter, not even by an ulp of rounding.
    distance_[j] = -infinity;
    scanned_.push_back(top);
    const std::size_t i = std::size_t(y_[j]);
    offset_[i] = top.distance - (matched_cost_[i] - v_[j]);
    relax_list(std::int64_t(i));
  }
  for (const std::int64_t j : reached_) distance_[std::size_t(j)] = infinity;
  return heap_.size() <= most;
}

// The same search on whole rows.
template <class T>
void AssignmentSolver<T>::search_rows(std::int64_t row) {
  const std::int64_t m = costs_.columns;
  scanned_.clear();
  nearest_column_ = -1;
  row_parent_.resize(std::size_t(m));
  double offset = 0;
  for (std::int64_t i = row;;) {
    poll();
    const double lowest = scan_.relax(costs_.row(i), v_.data(), m, costs_.sign, offset, double(i),
                                      distance_.data(), row_parent_.data());
    if (lowest == infinity) break;
    const auto first = std::ranges::find(distance_, lowest);
    const std::int64_t column = first - distance_.begin();
    const std::size_t j = std::size_t(column);
    if (y_[j] < 0) {
      nearest_ = lowest;
      nearest_column_ = column;
      break;
    }
    distance_[j] = -infinity;
    scanned_.push_back({lowest, column});
    i = y_[j];
    offset = lowest - (matched_cost_[std::size_t(i)] - v_[j]);
  }
  std::ranges::fill(distance_, infinity);
  if (nearest_column_ < 0) return;
  for (std::int64_t j = nearest_column_;;) {
    const std::int64_t i = std::int64_t(row_parent_[std::size_t(j)]);
    parent_[std::size_t(j)] = std::int32_t(i);
    path_cost_[std::size_t(j)] = costs_.sign * double(costs_.row(i)[j]);
    if (i == row) return;
    j = x_[std::size_t(i)];
  }
}

// One shortest path from a free row to a free column, and the duals that go with it.
template <class T>
bool AssignmentSolver<T>::augment(std::int64_t row) {
  by_rows_ = by_rows_ || !search_lists(row);
  if (by_rows_) search_rows(row);
  if (nearest_column_ < 0) return false;
  for (const Node& column : scanned_) v_[std::size_t(column.id)] += column.distance - nearest_;
  for (std::int64_t j = nearest_column_;;) {
    const std::int64_t i = parent_[std::size_t(j)], next = x_[std::size_t(i)];
    assign(i, j, path_cost_[std::size_t(j)]);
    if (i == row) return true;
    j = next;
  }
}

// Row duals, cost, gap, and the certificate: reduced costs over the whole matrix.
template <class T>
void AssignmentSolver<T>::finish(AssignmentOutcome& outcome, bool proven) {
  const std::int64_t n = costs_.rows, m = costs_.columns;
  Sum cost, duals;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::size_t j = std::size_t(x_[std::size_t(i)]);
    u_[std::size_t(i)] = matched_cost_[std::size_t(i)] - v_[j];
    cost.add(matched_cost_[std::size_t(i)]);
    duals.add(u_[std::size_t(i)]);
  }
  for (const double v : v_) duals.add(v);
  outcome.cost = cost.total();
  outcome.gap = cost.less(duals);
  if (proven) return;
  const std::int64_t parts = blocks();
  std::vector<double> worst(std::size_t(parts), 0);
  parallel_for(threads_, parts, [&](std::int64_t part) {
    for (std::int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
      const double least = scan_.bid(costs_.row(i), v_.data(), m, costs_.sign).least;
      worst[std::size_t(part)] = std::max(worst[std::size_t(part)], u_[std::size_t(i)] - least);
    }
  });
  outcome.violation = std::ranges::max(worst);
}

template <class T>
AssignmentOutcome AssignmentSolver<T>::solve(const Costs<T>& costs,
                                             std::span<const double> initial_duals,
                                             const AssignmentTarget& out) {
  costs_ = costs;
  x_ = out.columns;
  u_ = out.row_duals;
  v_ = out.column_duals;
  const std::size_t n = std::size_t(costs.rows), m = std::size_t(costs.columns);
  AssignmentOutcome outcome;
  if (n == 0) {
    std::ranges::fill(v_, 0);
    return outcome;
  }
  y_.assign(m, -1);
  matched_cost_.assign(n, 0);
  bool distinct = false;
  if (const std::int64_t row = survey(outcome, distinct); row >= 0) {
    outcome.status = AssignmentOutcome::Status::not_finite;
    outcome.row = row;
    while (costs.sign * double(costs.row(row)[++outcome.column]) > -infinity) {
    }
    return outcome;
  }
  if (outcome.status != AssignmentOutcome::Status::optimal) return outcome;

  if (initial_duals.empty() && distinct) {
    // Every row has its cheapest column for itself: row minima and zeros are optimal duals.
    std::ranges::copy(u_, matched_cost_.begin());
    std::ranges::fill(v_, 0);
    finish(outcome, true);
    return outcome;
  }
  if (n == 2 && m == 2 && !distinct && settle_two()) {
    finish(outcome, false);
    return outcome;
  }
  if (!initial_duals.empty()) std::ranges::copy(initial_duals, v_.begin());
  if (n != m) std::ranges::fill(v_, 0);  // a column left out must keep the dual 0, the largest
  std::ranges::fill(x_, -1);
  std::ranges::fill(y_, -1);

  whole_rows_ = costs.columns <= short_row;
  if (!whole_rows_) fill_all();

  by_rows_ = whole_rows_;
  distance_.assign(m, infinity);
  path_cost_.resize(m);
  parent_.resize(m);
  offset_.resize(n);
  for (const std::int32_t row : reduce_rows())
    if (!augment(row)) {
      outcome.status = AssignmentOutcome::Status::infeasible;
      outcome.row = row;
      return outcome;
    }
  finish(outcome, false);
  return outcome;
}

template class AssignmentSolver<float>;
template class AssignmentSolver<double>;

void assign(const Matrix<double>& cost, bool maximize, std::vector<double>& column_duals,
            std::vector<std::int64_t>& columns, const Context& context) {
  const std::int64_t n = cost.rows();
  columns.resize(std::size_t(n));
  std::vector<double> u(static_cast<std::size_t>(n)), v(static_cast<std::size_t>(n));
  AssignmentSolver<double>(context).solve({cost.data(), n, n, n, maximize ? -1.0 : 1.0},
                                          column_duals, {columns, u, v});
  column_duals = std::move(v);
}

}  // namespace descramble_fast::cpu
