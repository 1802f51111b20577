#include "cpu/order.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "cpu/parallel.hpp"
#include "cpu/random.hpp"

namespace descramble_fast::cpu {

class OrderSearch::Impl {
 public:
  virtual ~Impl() = default;
  virtual void advance(std::int64_t kicks) = 0;
  virtual double cost() const = 0;
  virtual std::vector<int> order() const = 0;
};

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Distances of the nodes and, for paths, of the gap, with the nodes' prices.
class Lengths {
 public:
  explicit Lengths(const OrderProblem& problem)
      : d_(problem.distance), n_(int(problem.distance.rows())), price_(problem.potentials) {
    price_.resize(std::size_t(n_) + 1, 0.0);
    price_[std::size_t(n_)] = 0;
    for (const double p : price_) largest_price_ = std::max(largest_price_, std::abs(p));
  }
  double operator()(int a, int b) const {
    return raw(a, b) + (price_[std::size_t(a)] + price_[std::size_t(b)]);
  }
  double raw(int a, int b) const { return a < n_ && b < n_ ? d_(a, b) : 0; }
  double largest_price() const { return largest_price_; }

 private:
  const Matrix<double>& d_;
  int n_;
  std::vector<double> price_;
  double largest_price_ = 0;
};

// A closed tour as an array of nodes and their places. Every change is a rewriting of consecutive
// places, kept in a journal so that it can be taken back.
class Tour {
 public:
  explicit Tour(std::vector<int> nodes) : node_(std::move(nodes)), place_(node_.size()) {
    for (std::size_t i = 0; i < node_.size(); ++i) place_[std::size_t(node_[i])] = int(i);
  }

  int size() const { return int(node_.size()); }
  int at(int place) const { return node_[std::size_t(place)]; }
  int place(int node) const { return place_[std::size_t(node)]; }
  int wrap(int place) const { return place >= size() ? place - size() : place; }
  int next(int node) const { return at(wrap(place(node) + 1)); }
  int previous(int node) const {
    const int p = place(node);
    return at(p == 0 ? size() - 1 : p - 1);
  }
  const std::vector<int>& nodes() const { return node_; }

  struct Piece {
    int begin, end;  // places, cyclic, both included
    bool reversed;
  };
  /// Puts the pieces, which together are the consecutive places from `begin` on, in their order.
  void rewrite(int begin, std::span<const Piece> pieces) {
    buffer_.clear();
    for (const Piece& piece : pieces) {
      int p = piece.reversed ? piece.end : piece.begin;
      const int last = piece.reversed ? piece.begin : piece.end;
      for (;; p = piece.reversed ? (p == 0 ? size() - 1 : p - 1) : wrap(p + 1)) {
        buffer_.push_back(at(p));
        if (p == last) break;
      }
    }
    int p = begin;
    for (const int node : buffer_) {
      journal_.push_back(at(p));
      set(p, node);
      p = wrap(p + 1);
    }
    journal_.push_back(begin);
    journal_.push_back(int(buffer_.size()));
  }

  void commit() { journal_.clear(); }
  void roll_back() {
    while (!journal_.empty()) {
      const int count = journal_.back();
      const int begin = journal_[journal_.size() - 2];
      journal_.resize(journal_.size() - 2);
      int p = wrap(begin + count - 1);
      for (int k = 0; k < count; ++k) {
        set(p, journal_.back());
        journal_.pop_back();
        p = p == 0 ? size() - 1 : p - 1;
      }
    }
  }

 private:
  void set(int place, int node) {
    node_[std::size_t(place)] = node;
    place_[std::size_t(node)] = place;
  }

  std::vector<int> node_, place_, buffer_, journal_;
};

// Nodes to look at, first in, first out, each at most once.
class WorkList {
 public:
  explicit WorkList(int nodes) : waiting_(std::size_t(nodes), false) {}
  void push(int node) {
    if (waiting_[std::size_t(node)]) return;
    waiting_[std::size_t(node)] = true;
    queue_.push_back(node);
  }
  bool empty() const { return head_ == queue_.size(); }
  int pop() {
    const int node = queue_[head_++];
    waiting_[std::size_t(node)] = false;
    if (empty()) {
      queue_.clear();
      head_ = 0;
    }
    return node;
  }

 private:
  std::vector<int> queue_;
  std::size_t head_ = 0;
  std::vector<bool> waiting_;
};

// Exchange of up to `depth` edges of a tour (Lin and Kernighan's sequential moves), searched to the
// full depth before anything is moved: the edges t0 t1, t2 t3, ... go, t1 t2, t3 t4, ... come, and
// every partial sum of what goes less what comes is positive.
class Exchange {
 public:
  Exchange(const Lengths& length, const Neighbours& neighbours, Tour& tour, WorkList& work)
      : length_(length), neighbours_(neighbours), tour_(tour), work_(work) {
    near_length_.reserve(neighbours.list.size());
    for (int i = 0; i < neighbours.nodes; ++i)
      for (const int j : neighbours.of(i)) near_length_.push_back(length(i, j));
  }

  /// Makes moves from the listed nodes until none is left; what they gain.
  double run() {
    double total = 0;
    while (!work_.empty()) {
      const int node = work_.pop();
      for (double gain; (gain = improve(node)) > 0;) total += gain;
    }
    return total;
  }

 private:
  static constexpr int depth = 5;
  // Neighbours tried for the edge that comes after so many have gone.
  static constexpr std::array<int, depth> breadth{0, 5, 3, 2, 1};

  double improve(int node) {
    for (const bool forward : {true, false}) {
      t_[0] = node;
      t_[1] = forward ? tour_.next(node) : tour_.previous(node);
      cut_[0] = tour_.place(forward ? node : t_[1]);
      const double removed = length_(t_[0], t_[1]);
      if (const double gain = extend<1>(removed, std::abs(removed)); gain > 0) return gain;
    }
    return 0;
  }

  // With `count` edges removed and count - 1 added.
  template <int count>
  double extend(double sum, double removed) {
    const int last = t_[2 * count - 1];
    const std::span<const int> near = neighbours_.of(last);
    const double* const near_length =
        near_length_.data() + std::size_t(last) * std::size_t(neighbours_.degree);
    const int tried = std::min(breadth[count], neighbours_.degree);
    const int after = tour_.next(last), before = tour_.previous(last);
    for (int k = 0; k < tried; ++k) {
      const int c = near[std::size_t(k)];
      const double left = sum - near_length[k];
      if (!(left > 0) || c == after || c == before || is_added(count, last, c)) continue;
      for (const bool forward : {true, false}) {
        const int e = forward ? tour_.next(c) : tour_.previous(c);
        const int cut = tour_.place(forward ? c : e);
        if (e == t_[0] || is_removed(count, cut)) continue;
        t_[2 * count] = c;
        t_[2 * count + 1] = e;
        cut_[count] = cut;
        const double gone = length_(c, e);
        const double gain = left + gone - length_(e, t_[0]);
        // Beyond what rounding can feign, so that no cycle of moves looks like progress.
        const double size = removed + std::abs(gone);
        if (gain > 1e-13 * (size + length_.largest_price()) && rejoin(count + 1)) return gain;
        if constexpr (count + 1 < depth)
          if (const double deeper = extend<count + 1>(left + gone, size); deeper > 0) return deeper;
      }
    }
    return 0;
  }

  bool is_added(int count, int a, int b) const {
    for (int i = 1; i + 1 < count; ++i) {
      const int u = t_[std::size_t(2 * i - 1)], v = t_[std::size_t(2 * i)];
      if ((u == a && v == b) || (u == b && v == a)) return true;
    }
    return false;
  }

  bool is_removed(int count, int cut) const {
    for (int i = 0; i < count; ++i)
      if (cut_[std::size_t(i)] == cut) return true;
    return false;
  }

  // Makes the exchange of `count` edges if what comes out is one tour.
  bool rejoin(int count) {
    // Segment s runs from behind cut s - 1 to cut s, in the order of places; its ends are numbered
    // 2 s and 2 s + 1.
    std::array<int, depth> sorted, rank;
    for (int i = 0; i < count; ++i) {
      int k = i;
      for (; k > 0 && cut_[std::size_t(sorted[std::size_t(k - 1)])] > cut_[std::size_t(i)]; --k)
        sorted[std::size_t(k)] = sorted[std::size_t(k - 1)];
      sorted[std::size_t(k)] = i;
    }
    for (int k = 0; k < count; ++k) rank[std::size_t(sorted[std::size_t(k)])] = k;
    std::array<int, 2 * depth> end_of, joined;
    for (int i = 0; i < count; ++i) {
      const int r = rank[std::size_t(i)];
      const int right = 2 * r + 1, left = r + 1 == count ? 0 : 2 * (r + 1);
      const bool forward = tour_.place(t_[std::size_t(2 * i)]) == cut_[std::size_t(i)];
      end_of[std::size_t(2 * i)] = forward ? right : left;
      end_of[std::size_t(2 * i + 1)] = forward ? left : right;
    }
    for (int i = 0; i < count; ++i) {
      const int a = end_of[std::size_t(2 * i + 1)];
      const int b = end_of[std::size_t(i + 1 == count ? 0 : 2 * (i + 1))];
      joined[std::size_t(a)] = b;
      joined[std::size_t(b)] = a;
    }
    const auto cut_at = [&](int r) { return cut_[std::size_t(sorted[std::size_t(r)])]; };
    int longest = 0, longest_size = -1;
    for (int s = 0; s < count; ++s) {
      const int size =
          s == 0 ? cut_at(0) + tour_.size() - cut_at(count - 1) : cut_at(s) - cut_at(s - 1);
      if (size > longest_size) {
        longest_size = size;
        longest = s;
      }
    }
    // The longest stays where it is; the walk through the others starts at its right end.
    std::array<Tour::Piece, depth> pieces;
    int walked = 0;
    for (int end = joined[std::size_t(2 * longest + 1)]; end / 2 != longest;
         end = joined[std::size_t(end ^ 1)]) {
      const int s = end / 2;
      const int begin = tour_.wrap(cut_at(s == 0 ? count - 1 : s - 1) + 1);
      pieces[std::size_t(walked++)] = {begin, cut_at(s), end % 2 == 1};
    }
    if (walked + 1 < count) return false;
    tour_.rewrite(tour_.wrap(cut_at(longest) + 1), {pieces.data(), std::size_t(walked)});
    for (int i = 0; i < 2 * count; ++i) work_.push(t_[std::size_t(i)]);
    return true;
  }

  const Lengths& length_;
  const Neighbours& neighbours_;
  Tour& tour_;
  WorkList& work_;
  std::vector<double> near_length_;
  std::array<int, 2 * depth> t_{};
  std::array<int, depth> cut_{};
};

// Joins short edges, shortest first, wherever both ends are free and no ring closes; the pieces are
// strung together, always going to the nearest free end.
std::vector<int> join_short_edges(const Lengths& length, const Neighbours& neighbours,
                                  Random& random) {
  const int nodes = neighbours.nodes;
  std::vector<std::pair<double, std::pair<int, int>>> edges;
  for (int i = 0; i < nodes; ++i)
    for (const int j : neighbours.of(i))
      edges.push_back({length(i, j), {std::min(i, j), std::max(i, j)}});
  std::sort(edges.begin(), edges.end());
  std::vector<std::array<int, 2>> link(std::size_t(nodes), {-1, -1});
  std::vector<int> other_end(std::size_t(nodes), 0);
  std::iota(other_end.begin(), other_end.end(), 0);
  for (const auto& [cost, edge] : edges) {
    const auto a = std::size_t(edge.first), b = std::size_t(edge.second);
    if (link[a][1] >= 0 || link[b][1] >= 0 || other_end[a] == edge.second) continue;
    link[a][link[a][0] < 0 ? 0 : 1] = edge.second;
    link[b][link[b][0] < 0 ? 0 : 1] = edge.first;
    const int end_a = other_end[a], end_b = other_end[b];
    other_end[std::size_t(end_a)] = end_b;
    other_end[std::size_t(end_b)] = end_a;
  }
  std::vector<int> ends;
  for (int v = 0; v < nodes; ++v)
    if (link[std::size_t(v)][1] < 0) ends.push_back(v);
  std::vector<int> tour;
  std::vector<bool> done(std::size_t(nodes), false);
  int entry = ends.empty() ? 0 : ends[std::size_t(random.below(int(ends.size())))];
  while (entry >= 0) {
    for (int v = entry, from = -1; v >= 0;) {
      tour.push_back(v);
      done[std::size_t(v)] = true;
      const auto& l = link[std::size_t(v)];
      const int onward = l[0] >= 0 && l[0] != from ? l[0] : l[1] != from ? l[1] : -1;
      from = std::exchange(v, onward);
    }
    entry = -1;
    double nearest = infinity;
    std::erase_if(ends, [&](int v) { return done[std::size_t(v)]; });
    for (const int v : ends)
      if (const double d = length(tour.back(), v); entry < 0 || d < nearest) {
        nearest = d;
        entry = v;
      }
  }
  return tour;
}

// An order of the n nodes proper: without the gap, which the ends adjoin.
std::vector<int> without_gap(const std::vector<int>& tour, int n) {
  std::vector<int> order;
  order.reserve(std::size_t(n));
  const auto gap = std::find(tour.begin(), tour.end(), n);
  if (gap != tour.end()) order.assign(gap + 1, tour.end());
  order.insert(order.end(), tour.begin(), gap);
  return order;
}

// Kicks and repairs. What comes out is kept as long as it is not much worse than the best so far
// (Dueck's record-to-record travel), else taken back.
class IteratedSearch : public OrderSearch::Impl {
 public:
  /// `tolerated` is a share of the mean cost of a place.
  IteratedSearch(int n, std::vector<int> start, std::uint64_t seed, double tolerated)
      : random_(seed), tour_(std::move(start)), work_(tour_.size()), n_(n), tolerated_(tolerated) {
    for (const int node : tour_.nodes()) work_.push(node);
  }

  void advance(std::int64_t kicks) final {
    if (!work_.empty()) {
      cost_ -= descend();
      tour_.commit();
      best_cost_ = cost_;
      best_ = tour_.nodes();
      tolerance_ = tolerated_ * std::abs(cost_) / tour_.size();
    }
    for (std::int64_t k = 0; k < kicks; ++k) {
      const double change = kick() - descend();
      if (cost_ + change > best_cost_ + tolerance_) {
        tour_.roll_back();
        continue;
      }
      cost_ += change;
      tour_.commit();
      if (cost_ < best_cost_) {
        best_cost_ = cost_;
        best_ = tour_.nodes();
      }
    }
  }

  double cost() const final { return best_cost_; }
  std::vector<int> order() const final { return without_gap(best_, n_); }

 protected:
  /// Disturbs the tour and lists the nodes to look at; what that costs.
  virtual double kick() = 0;
  /// Improves the tour from the listed nodes until none is left; what that gains.
  virtual double descend() = 0;
  void set_cost(double cost) { cost_ = best_cost_ = cost; }

  Random random_;
  Tour tour_;
  WorkList work_;

 private:
  int n_;
  double tolerated_;
  double cost_ = 0, best_cost_ = 0, tolerance_ = 0;
  std::vector<int> best_;
};

// First differences: travelling salesman's tours.
class TourSearch : public IteratedSearch {
 public:
  TourSearch(const OrderProblem& problem, const Neighbours& neighbours, const Lengths& length,
             std::vector<int> start, std::uint64_t seed)
      : IteratedSearch(int(problem.distance.rows()), std::move(start), seed, 0.03),
        length_(length),
        exchange_(length_, neighbours, tour_, work_) {
    double cost = 0;
    for (int p = 0; p < tour_.size(); ++p)
      cost += length_.raw(tour_.at(p), tour_.at(tour_.wrap(p + 1)));
    set_cost(cost);
  }

 private:
  double descend() override { return exchange_.run(); }

  // A double bridge within a short stretch: three neighbouring pieces in reverse order.
  double kick() override {
    const int longest = std::min(reach, (tour_.size() - 2) / 3);
    const int begin = random_.below(tour_.size());
    std::array<Tour::Piece, 3> pieces;
    int p = begin;
    for (std::size_t k = 3; k-- > 0;) {
      const int end = tour_.wrap(p + random_.below(longest));
      pieces[k] = {p, end, false};
      p = tour_.wrap(end + 1);
    }
    const int before = tour_.at(begin == 0 ? tour_.size() - 1 : begin - 1);
    const int after = tour_.at(p);
    double change = 0;
    const auto count = [&](double sign) {
      int last = before;
      for (const Tour::Piece& piece : pieces) {
        change += sign * length_(last, tour_.at(piece.begin));
        last = tour_.at(piece.end);
      }
      change += sign * length_(last, after);
    };
    count(1);
    work_.push(before);
    work_.push(after);
    for (const Tour::Piece& piece : pieces) {
      work_.push(tour_.at(piece.begin));
      work_.push(tour_.at(piece.end));
    }
    const std::array<Tour::Piece, 3> moved = pieces;
    std::reverse(pieces.begin(), pieces.end());
    count(-1);
    tour_.rewrite(begin, moved);
    return change;
  }

  static constexpr int reach = 30;

  Lengths length_;
  Exchange exchange_;
};

// Sums over a window of places: reversals, moves of short pieces and swaps that bring a node beside
// one of its neighbours, the best of each node, with what changes at the joints alone.
template <int reach>
class WindowSearch : public IteratedSearch {
 public:
  WindowSearch(const OrderProblem& problem, const Neighbours& neighbours, const Lengths& length,
               std::vector<int> start, std::uint64_t seed)
      : IteratedSearch(int(problem.distance.rows()), std::move(start), seed, 0.2),
        n_(int(problem.distance.rows())),
        length_(length),
        neighbours_(neighbours) {
    std::copy_n(problem.weights.begin(), reach, weights_.begin());
    for (std::size_t r = 0; r < weights_.size(); ++r) magnitudes_[r] = std::abs(weights_[r]);
    set_cost(order_cost(problem, without_gap(tour_.nodes(), n_)));
  }

 private:
  using Piece = Tour::Piece;
  static constexpr int most_pieces = 3;
  static constexpr int longest_piece = 3;  // that is moved
  static constexpr int kick_reach = 10;

  struct Move {
    int begin = 0;
    int count = 0;
    std::array<Piece, most_pieces> pieces{};
    double gain = 0;
  };

  int size_of(const Piece& piece) const {
    const int size = piece.end - piece.begin + 1;
    return size > 0 ? size : size + tour_.size();
  }
  int before(int place, int steps) const {
    return place >= steps ? place - steps : place - steps + tour_.size();
  }
  int after(int place, int steps) const { return tour_.wrap(place + steps); }

  // The nodes x and y at a distance of `lag` places, `middle` between them if that is 2.
  double term(double w, int lag, int x, int middle, int y) const {
    if (neighbours_.nodes > n_ && lag == 2) {
      if (middle == n_) return 0;
      if (x == n_) return w * length_.raw(middle, y);
      if (y == n_) return w * length_.raw(x, middle);
    }
    return w * length_.raw(x, y);
  }

  // What runs across the joints before, between and behind the pieces. Of each piece both ends are
  // laid out, as far as joints are felt.
  double across(int first_place, int last_place, std::span<const Piece> pieces,
                const std::array<double, reach>& weights) const {
    std::array<int, 2 * reach*(most_pieces + 1)> line;
    std::array<int, most_pieces + 1> joint, size_before;
    int length = 0, joints = 0;
    for (int k = reach; k > 0; --k) line[std::size_t(length++)] = tour_.at(before(first_place, k));
    int last_size = reach;
    for (const Piece& piece : pieces) {
      joint[std::size_t(joints)] = length;
      size_before[std::size_t(joints++)] = last_size;
      const int size = size_of(piece);
      const auto append = [&](int k) {
        line[std::size_t(length++)] =
            tour_.at(piece.reversed ? before(piece.end, k) : after(piece.begin, k));
      };
      for (int k = 0; k < std::min(size, reach); ++k) append(k);
      for (int k = std::max(reach, size - reach); k < size; ++k) append(k);
      last_size = std::min(size, reach);
    }
    joint[std::size_t(joints)] = length;
    size_before[std::size_t(joints++)] = last_size;
    for (int k = 1; k <= reach; ++k) line[std::size_t(length++)] = tour_.at(after(last_place, k));
    double sum = 0;
    for (int j = 0; j < joints; ++j)
      for (int back = 1; back <= size_before[std::size_t(j)]; ++back) {
        const int* const x = line.data() + (joint[std::size_t(j)] - back);
        for (int lag = back; lag <= reach; ++lag)
          sum += term(weights[std::size_t(lag - 1)], lag, x[0], x[1], x[lag]);
      }
    return sum;
  }

  // Whether the pieces, cut out and put together in another way, are better than the best so far.
  // `old_pieces` are the same in their present order.
  void consider(std::span<const Piece> old_pieces, std::span<const Piece> new_pieces, Move& best) {
    int total = 0;
    for (const Piece& piece : old_pieces) total += size_of(piece);
    if (total + 2 * reach + 1 > tour_.size()) return;
    const int begin = old_pieces.front().begin, end = old_pieces.back().end;
    const double gain =
        across(begin, end, old_pieces, weights_) - across(begin, end, new_pieces, weights_);
    if (!(gain > best.gain)) return;
    // Beyond what rounding can feign, so that no cycle of moves looks like progress.
    const double size = across(begin, end, old_pieces, magnitudes_);
    if (!(gain > 1e-13 * size)) return;
    best.begin = begin;
    best.count = int(new_pieces.size());
    std::copy(new_pieces.begin(), new_pieces.end(), best.pieces.begin());
    best.gain = gain;
  }

  void consider_reversal(int begin, int end, Move& best) {
    Piece piece{begin, end, false};
    if (2 * size_of(piece) > tour_.size()) piece = {after(end, 1), before(begin, 1), false};
    const Piece turned{piece.begin, piece.end, true};
    consider({&piece, 1}, {&turned, 1}, best);
  }

  // The pieces at [a, b] and [c, d], and what lies between, to be exchanged around that.
  void consider_exchange(Piece first, Piece second, Move& best) {
    const Piece between{after(first.end, 1), before(second.begin, 1), false};
    const Piece old_first{first.begin, first.end, false};
    const Piece old_second{second.begin, second.end, false};
    if (after(first.end, 1) == second.begin) {
      const std::array<Piece, 2> old_pieces{old_first, old_second};
      const std::array<Piece, 2> new_pieces{second, first};
      consider(old_pieces, new_pieces, best);
      return;
    }
    const std::array<Piece, 3> old_pieces{old_first, between, old_second};
    const std::array<Piece, 3> new_pieces{second, between, first};
    consider(old_pieces, new_pieces, best);
  }

  // Moves the piece to behind place `to`, which lies outside it.
  void consider_move(const Piece& piece, int to, Move& best) {
    const int ahead = to - piece.end >= 0 ? to - piece.end : to - piece.end + tour_.size();
    if (ahead == 0) return;
    const Piece plain{piece.begin, piece.end, false};
    const int behind = tour_.size() - ahead - size_of(piece);
    if (behind == 0) return;
    if (ahead <= behind) {
      const Piece passed{after(piece.end, 1), to, false};
      const std::array<Piece, 2> old_pieces{plain, passed}, new_pieces{passed, piece};
      consider(old_pieces, new_pieces, best);
    } else {
      const Piece passed{after(to, 1), before(piece.begin, 1), false};
      const std::array<Piece, 2> old_pieces{passed, plain}, new_pieces{piece, passed};
      consider(old_pieces, new_pieces, best);
    }
  }

  bool contains(const Piece& piece, int place) const {
    return (place >= piece.begin ? place : place + tour_.size()) - piece.begin < size_of(piece);
  }

  void consider_pair(int a, int c, Move& best) {
    const int p = tour_.place(a), q = tour_.place(c);
    if (after(p, 1) != q) consider_reversal(after(p, 1), q, best);
    if (after(q, 1) != p) consider_reversal(after(q, 1), p, best);
    if (after(p, 1) != q) consider_reversal(p, before(q, 1), best);
    if (after(q, 1) != p) consider_reversal(q, before(p, 1), best);
    for (int size = 1; size <= longest_piece; ++size)
      for (const bool starts : {true, false}) {
        if (size == 1 && !starts) continue;
        const Piece piece =
            starts ? Piece{p, after(p, size - 1), false} : Piece{before(p, size - 1), p, false};
        if (contains(piece, q)) continue;
        const Piece turned{piece.begin, piece.end, true};
        // Behind c the node itself comes first, before c it comes last.
        consider_move(starts ? piece : turned, q, best);
        if (before(q, 1) != piece.end) consider_move(starts ? turned : piece, before(q, 1), best);
      }
    for (const int other : {before(q, 1), after(q, 1)}) {
      if (other == p) continue;
      const Piece one{p, p, false}, two{other, other, false};
      const int ahead = other > p ? other - p : other - p + tour_.size();
      if (2 * ahead <= tour_.size())
        consider_exchange(one, two, best);
      else
        consider_exchange(two, one, best);
    }
  }

  double descend() override {
    double total = 0;
    while (!work_.empty()) {
      const int node = work_.pop();
      for (;;) {
        Move best;
        // Nearer than what it stands beside: the others are hardly ever worth a look.
        const double near_enough =
            std::max(length_.raw(node, tour_.next(node)), length_.raw(node, tour_.previous(node)));
        for (const int near : neighbours_.of(node))
          if (length_.raw(node, near) < near_enough) consider_pair(node, near, best);
        if (best.count == 0) break;
        total += best.gain;
        make(best);
      }
    }
    return total;
  }

  void make(const Move& move) {
    const std::span<const Piece> pieces{move.pieces.data(), std::size_t(move.count)};
    int p = move.begin;
    tour_.rewrite(move.begin, pieces);
    push_around(p);
    for (const Piece& piece : pieces) push_around(p = after(p, size_of(piece)));
  }

  // The nodes on both sides of the joint before a place.
  void push_around(int place) {
    for (int k = 1; k <= reach; ++k) {
      work_.push(tour_.at(before(place, k)));
      work_.push(tour_.at(after(place, k - 1)));
    }
  }

  // A double bridge within a short stretch, as for tours.
  double kick() override {
    const int longest = std::min(kick_reach, (tour_.size() - 2 * reach - 1) / 3);
    std::array<Piece, 3> pieces;
    Move move;
    move.begin = random_.below(tour_.size());
    move.count = 3;
    int p = move.begin;
    for (Piece& piece : pieces) {
      piece = {p, after(p, random_.below(longest)), false};
      p = after(piece.end, 1);
    }
    move.pieces = {pieces[2], pieces[1], pieces[0]};
    const int end = pieces[2].end;
    const double change =
        across(move.begin, end, move.pieces, weights_) - across(move.begin, end, pieces, weights_);
    make(move);
    return change;
  }

  int n_;
  std::array<double, reach> weights_{}, magnitudes_{};
  Lengths length_;
  const Neighbours& neighbours_;
};

// Every second place: a tour laid along the even places and on along the odd ones. Where n is even
// these are two rings, and the tour is cut where that costs least.
class InterleavedSearch : public OrderSearch::Impl {
 public:
  InterleavedSearch(const OrderProblem& problem, const Neighbours& neighbours,
                    const Lengths& length, std::vector<int> start, std::uint64_t seed)
      : problem_(problem),
        length_(length),
        tour_(problem, neighbours, length, std::move(start), seed) {}

  void advance(std::int64_t kicks) override { tour_.advance(kicks); }
  double cost() const override { return order_cost(problem_, order()); }
  std::vector<int> order() const override {
    const std::vector<int> tour = tour_.order();
    const std::size_t n = tour.size(), half = n / 2;
    std::size_t cut = 0;
    double least = infinity;
    for (std::size_t k = 0; n % 2 == 0 && k < half; ++k) {
      const int a = tour[k], b = tour[k + half - 1], c = tour[k + half], d = tour[(k + n - 1) % n];
      const double cost =
          (length_.raw(a, b) - length_.raw(d, a)) + (length_.raw(c, d) - length_.raw(b, c));
      if (cost < least) {
        least = cost;
        cut = k;
      }
    }
    std::vector<int> order(n);
    for (std::size_t k = 0; k < n; ++k)
      order[(2 * k + (n % 2 == 0 && k >= half ? 1 : 0)) % n] = tour[(cut + k) % n];
    return order;
  }

 private:
  OrderProblem problem_;
  Lengths length_;
  TourSearch tour_;
};

// All orders of a few nodes.
class Exhaustion : public OrderSearch::Impl {
 public:
  explicit Exhaustion(const OrderProblem& problem) : best_(std::size_t(problem.distance.rows())) {
    std::iota(best_.begin(), best_.end(), 0);
    cost_ = order_cost(problem, best_);
    std::vector<int> order = best_;
    while (std::next_permutation(order.begin() + (problem.periodic && !order.empty() ? 1 : 0),
                                 order.end()))
      if (const double cost = order_cost(problem, order); cost < cost_) {
        cost_ = cost;
        best_ = order;
      }
  }
  void advance(std::int64_t) override {}
  double cost() const override { return cost_; }
  std::vector<int> order() const override { return best_; }

 private:
  std::vector<int> best_;
  double cost_;
};

std::unique_ptr<OrderSearch::Impl> make_search(const OrderProblem& problem,
                                               const Neighbours& neighbours, std::uint64_t seed) {
  const std::int64_t n = problem.distance.rows();
  const auto reach = std::int64_t(problem.weights.size());
  if (n < std::max<std::int64_t>(8, 2 * reach + 4)) return std::make_unique<Exhaustion>(problem);
  Random random(seed);
  const Lengths length(problem);
  std::vector<int> first = join_short_edges(length, neighbours, random);
  const auto make = [&]<class Search>(std::type_identity<Search>) {
    return std::make_unique<Search>(problem, neighbours, length, std::move(first), seed);
  };
  if (reach == 1) return make(std::type_identity<TourSearch>());
  if (reach == 2 && problem.weights[0] == 0) return make(std::type_identity<InterleavedSearch>());
  if (reach == 2) return make(std::type_identity<WindowSearch<2>>());
  return make(std::type_identity<WindowSearch<3>>());
}

}  // namespace

double order_cost(const OrderProblem& problem, std::span<const int> order) {
  const auto n = std::int64_t(order.size());
  const auto at = [&](std::int64_t i) { return order[std::size_t(i % n)]; };
  double total = 0;
  for (std::size_t r = 1; r <= problem.weights.size(); ++r) {
    const std::int64_t lag = std::int64_t(r);
    double sum = 0;
    for (std::int64_t i = 0; i < (problem.periodic ? n : n - lag); ++i)
      sum += problem.distance(at(i), at(i + lag));
    total += problem.weights[r - 1] * sum;
  }
  if (!problem.periodic && problem.weights.size() == 2 && n > 1)
    total += problem.weights[1] *
             (problem.distance(at(0), at(1)) + problem.distance(at(n - 2), at(n - 1)));
  return total;
}

Neighbours nearest_neighbours(const Matrix<double>& d, bool periodic, int degree,
                              const Context& context) {
  const int n = int(d.rows());
  const int gap = periodic ? 0 : 1;
  Neighbours result(n + gap, std::max(0, std::min(degree, n - 1 + gap)));
  std::vector<double> isolation(std::size_t(n), 0.0);
  parallel_for(threads_of(context), n, [&](std::int64_t index) {
    const int i = int(index);
    std::vector<std::pair<double, int>> row;
    row.reserve(std::size_t(n));
    for (int j = 0; j < n; ++j)
      if (j != i) row.emplace_back(d(i, j), j);
    const int take = std::min(result.degree, n - 1);
    std::partial_sort(row.begin(), row.begin() + take, row.end());
    const std::span<int> list = result.of(i);
    if (gap == 1 && !list.empty()) list[0] = n;
    for (int k = gap; k < result.degree; ++k)
      list[std::size_t(k)] = row[std::size_t(k - gap)].second;
    if (take > 0) isolation[std::size_t(i)] = row[std::size_t(std::min(1, take - 1))].first;
  });
  if (gap == 1) {
    std::vector<int> nodes(std::size_t(n), 0);
    std::iota(nodes.begin(), nodes.end(), 0);
    std::stable_sort(nodes.begin(), nodes.end(), [&](int a, int b) {
      return isolation[std::size_t(a)] > isolation[std::size_t(b)];
    });
    std::copy_n(nodes.begin(), result.degree, result.of(n).begin());
  }
  return result;
}

OrderSearch::OrderSearch(const OrderProblem& problem, const Neighbours& neighbours,
                         std::uint64_t seed)
    : impl_(make_search(problem, neighbours, seed)) {}
OrderSearch::~OrderSearch() = default;
OrderSearch::OrderSearch(OrderSearch&&) noexcept = default;
OrderSearch& OrderSearch::operator=(OrderSearch&&) noexcept = default;

void OrderSearch::advance(std::int64_t kicks) { impl_->advance(kicks); }
double OrderSearch::cost() const { return impl_->cost(); }
std::vector<int> OrderSearch::order() const { return impl_->order(); }

std::int64_t default_kicks(const OrderProblem& problem) {
  constexpr std::int64_t fewest = 1000;  // a matter of milliseconds
  const std::int64_t n = problem.distance.rows();
  const std::int64_t each = std::clamp<std::int64_t>(20'000 / std::max<std::int64_t>(n, 1), 5, 40);
  const bool tour = problem.weights.size() == 1 || problem.weights[0] == 0;
  // A kick in a window costs many times as much.
  return std::max(fewest, n * (tour ? each : each / 4));
}

}  // namespace descramble_fast::cpu
