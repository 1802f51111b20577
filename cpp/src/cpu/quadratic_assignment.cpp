#include "cpu/quadratic_assignment.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <utility>

#include "cpu/assignment.hpp"
#include "cpu/lapack.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "cpu/restarts.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t threaded_size = 512;

using Columns = std::vector<std::int64_t>;

int threads_for(std::int64_t size, int threads) { return size < threaded_size ? 1 : threads; }

struct Panel {
  std::int64_t first, count;
};

// visit(panel) over rows of a product; fewer panels read the other factor less often.
template <class Visit>
void each_panel(std::int64_t rows, int threads, const Visit& visit) {
  const std::int64_t size = rows < 2048 ? 128 : 256;
  const SingleBlasThread guard;
  parallel_for(threads_for(rows, threads), (rows + size - 1) / size,
               [&](std::int64_t i) { visit(Panel{i * size, std::min(size, rows - i * size)}); });
}

double largest(const Matrix<double>& a) {
  double out = 0;
  for (const double x : a.values()) out = std::max(out, std::abs(x));
  return out;
}

// out (m, m) = alpha A P B + beta out, of the first m rows of A and columns of B; P_{k, p_k} = 1,
// k < inner.
void permuted_product(const Matrix<double>& a, const Columns& p, const Matrix<double>& b,
                      std::int64_t inner, double alpha, double beta, Matrix<double>& out,
                      int threads) {
  const std::int64_t m = out.rows();
  each_panel(m, threads, [&](const Panel& panel) {
    const auto [first, count] = panel;
    Matrix<double> rows(count, inner);
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t k = 0; k < inner; ++k) rows(r, p[std::size_t(k)]) = a(first + r, k);
    gemm('N', 'N', count, m, inner, alpha, rows.data(), inner, b.data(), b.columns(), beta,
         out.row(first), m);
  });
}

// out -= sum_k factor_k row_k, the factors `stride` apart.
void subtract_rows(const Matrix<double>& rows, std::int64_t count, const double* factors,
                   std::int64_t stride, double* out) {
  const std::int64_t n = rows.columns();
  std::int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const double f0 = factors[k * stride], f1 = factors[(k + 1) * stride],
                 f2 = factors[(k + 2) * stride], f3 = factors[(k + 3) * stride];
    const double *const x0 = rows.row(k), *const x1 = rows.row(k + 1), *const x2 = rows.row(k + 2),
                        *const x3 = rows.row(k + 3);
    for (std::int64_t j = 0; j < n; ++j)
      out[j] -= (f0 * x0[j] + f1 * x1[j]) + (f2 * x2[j] + f3 * x3[j]);
  }
  for (; k < count; ++k) {
    const double f = factors[k * stride];
    const double* const x = rows.row(k);
    for (std::int64_t j = 0; j < n; ++j) out[j] -= f * x[j];
  }
}

std::vector<double> diagonal_of(const Matrix<double>& a) {
  std::vector<double> out(std::size_t(a.rows()));
  for (std::int64_t i = 0; i < a.rows(); ++i) out[std::size_t(i)] = a(i, i);
  return out;
}

}  // namespace

bool is_symmetric(const Matrix<double>& a) {
  constexpr std::int64_t tile = 32;
  const std::int64_t n = a.rows();
  for (std::int64_t i0 = 0; i0 < n; i0 += tile)
    for (std::int64_t j0 = 0; j0 <= i0; j0 += tile)
      for (std::int64_t i = i0; i < std::min(n, i0 + tile); ++i)
        for (std::int64_t j = j0; j < std::min(i, j0 + tile); ++j)
          if (a(i, j) != a(j, i)) return false;
  return true;
}

double quadratic_cost(const Matrix<double>& a, const Matrix<double>& b, const Columns& columns) {
  const std::int64_t n = a.rows();
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double *const x = a.row(i), *const y = b.row(columns[std::size_t(i)]);
    double row = 0;
    for (std::int64_t j = 0; j < n; ++j) row += x[j] * y[columns[std::size_t(j)]];
    sum += row;
  }
  return sum;
}

SwapGains::SwapGains(const Matrix<double>& a, const Matrix<double>& b, Columns columns,
                     std::int64_t free, int threads)
    : a_(a),
      b_(b),
      columns_(std::move(columns)),
      free_(free),
      threads_(threads),
      symmetric_(is_symmetric(a) && is_symmetric(b)),
      at_(symmetric_ ? Matrix<double>() : transposed(a)),
      bt_(symmetric_ ? Matrix<double>() : transposed(b)),
      diagonal_a_(diagonal_of(a)),
      diagonal_b_(diagonal_of(b)),
      m_(free, free),
      diagonal_(std::size_t(free)) {
  const std::int64_t most = std::clamp<std::int64_t>(free / 4, 8, 64);
  x_ = Matrix<double>(most, free);
  y_ = Matrix<double>(most, free);
  tolerance_ =
      8 * std::numeric_limits<double>::epsilon() * double(a.rows()) * largest(a) * largest(b);
  refresh();
}

void SwapGains::refresh() {
  const std::int64_t n = a_.rows();
  permuted_product(transposed_a(), columns_, b_, n, symmetric_ ? 2 : 1, 0, m_, threads_);
  if (!symmetric_) permuted_product(a_, columns_, bt_, n, 1, 1, m_, threads_);
  pending_ = 0;
  for (std::int64_t r = 0; r < free_; ++r)
    diagonal_[std::size_t(r)] = m_(r, columns_[std::size_t(r)]);
}

void SwapGains::flush() {
  const std::int64_t m = free_;
  each_panel(m, threads_, [&](const Panel& panel) {
    const auto [first, count] = panel;
    gemm('T', 'N', count, m, pending_, -1, x_.data() + first, m, y_.data(), m, 1, m_.row(first), m);
  });
  pending_ = 0;
}

double SwapGains::entry(std::int64_t r, std::int64_t column) const {
  double out = m_(r, column);
  for (std::int64_t k = 0; k < pending_; ++k) out -= x_(k, r) * y_(k, column);
  return out;
}

double SwapGains::gain(std::int64_t r, std::int64_t s) const {
  const std::int64_t p = columns_[std::size_t(r)], q = columns_[std::size_t(s)];
  const double alpha = a_(r, r) + a_(s, s) - a_(r, s) - a_(s, r);
  const double beta = b_(p, p) + b_(q, q) - b_(p, q) - b_(q, p);
  return entry(r, q) + entry(s, p) - diagonal_[std::size_t(r)] - diagonal_[std::size_t(s)] +
         alpha * beta;
}

void SwapGains::row(std::int64_t r, double* gains, double* scratch) const {
  const std::int64_t m = free_, p = columns_[std::size_t(r)];
  std::copy_n(m_.row(r), m, scratch);
  subtract_rows(y_, pending_, x_.data() + r, m, scratch);
  for (std::int64_t s = 0; s < m; ++s) gains[s] = m_(s, p);
  subtract_rows(x_, pending_, y_.data() + p, m, gains);
  const double *const ar = a_.row(r), *const atr = transposed_a().row(r);
  const double *const bp = b_.row(p), *const btp = transposed_b().row(p);
  const double arr = diagonal_a_[std::size_t(r)], bpp = diagonal_b_[std::size_t(p)],
               mrr = diagonal_[std::size_t(r)];
  for (std::int64_t s = 0; s < m; ++s) {
    const std::size_t q = std::size_t(columns_[std::size_t(s)]);
    const double alpha = (arr + diagonal_a_[std::size_t(s)]) - (ar[s] + atr[s]);
    const double beta = (bpp + diagonal_b_[q]) - (bp[q] + btp[q]);
    gains[s] = (gains[s] + scratch[q]) - (mrr + diagonal_[std::size_t(s)]) + alpha * beta;
  }
  gains[r] = 0;
}

void SwapGains::swap(std::int64_t u, std::int64_t v) {
  if (pending_ + terms() > x_.rows()) flush();
  const std::int64_t m = free_;
  std::int64_t &p = columns_[std::size_t(u)], &q = columns_[std::size_t(v)];
  const auto add_term = [&](const Matrix<double>& a, const Matrix<double>& b, double factor) {
    double *const x = x_.row(pending_), *const y = y_.row(pending_);
    const double *const au = a.row(u), *const av = a.row(v);
    const double *const bp = b.row(p), *const bq = b.row(q);
    for (std::int64_t i = 0; i < m; ++i) x[i] = factor * (au[i] - av[i]);
    for (std::int64_t i = 0; i < m; ++i) y[i] = bp[i] - bq[i];
    for (std::int64_t i = 0; i < m; ++i)
      diagonal_[std::size_t(i)] -= x[i] * y[std::size_t(columns_[std::size_t(i)])];
    ++pending_;
  };
  add_term(a_, b_, symmetric_ ? 2 : 1);
  if (!symmetric_) add_term(at_, bt_, 1);
  std::swap(p, q);
  diagonal_[std::size_t(u)] = entry(u, p);
  diagonal_[std::size_t(v)] = entry(v, q);
}

SwapGains::Term SwapGains::last_term(int t) const {
  return {x_.row(pending_ - terms() + t), y_.row(pending_ - terms() + t)};
}

namespace {

constexpr std::int64_t rows_at_once = 8;

}  // namespace

SwapDescent::SwapDescent(const Matrix<double>& a, const Matrix<double>& b, Columns start,
                         std::int64_t free, int threads)
    : gains_(a, b, std::move(start), free, threads),
      threads_(threads_for(free, threads)),
      scratch_(rows_at_once, 2 * free) {}

// Swaps the best partners found for a few places, as far as the swap before them has left them
// good; the number of places after the last that was swapped.
std::int64_t SwapDescent::visit(std::int64_t first, std::int64_t count) {
  const std::int64_t m = gains_.free();
  std::array<std::int64_t, rows_at_once> partner;
  parallel_for(threads_, count, [&](std::int64_t i) {
    double* const gains = scratch_.row(i);
    gains_.row((first + i) % m, gains, gains + m);
    partner[std::size_t(i)] = std::min_element(gains, gains + m) - gains;
  });
  std::int64_t idle = idle_;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t r = (first + i) % m, s = partner[std::size_t(i)];
    ++idle;
    if (s == r) continue;
    const double gain = gains_.gain(r, s);
    if (!(gain < -gains_.tolerance())) continue;
    gains_.swap(r, s);
    change_ += gain;
    ++swaps_;
    idle = 0;
  }
  return idle;
}

bool SwapDescent::advance(std::int64_t rows) {
  const std::int64_t m = gains_.free();
  for (std::int64_t done = 0; done < rows && idle_ < m; done += rows_at_once) {
    const std::int64_t count = std::min(rows_at_once, m), before = swaps_;
    idle_ = visit(at_, count);
    at_ = (at_ + count) % m;
    // Rounding adds up in the table.
    if (before / (16 * m) != swaps_ / (16 * m)) gains_.refresh();
  }
  return idle_ >= m;
}

namespace {

constexpr std::int64_t chunk_rows = 64;

// table[s] += (x_r - x_s)(y_r - y_s)
void add_term(const double* x, const double* y, double xr, double yr, std::int64_t begin,
              std::int64_t end, double* table) {
  for (std::int64_t s = begin; s < end; ++s) table[s] += (xr - x[s]) * (yr - y[s]);
}

struct Minima {
  double allowed = infinity;
  double any = infinity;
};

// Lanes, so that the compiler vectorises without reordering.
Minima minima(const double* gains, const double* until, double now, std::int64_t begin,
              std::int64_t end) {
  constexpr std::int64_t lanes = 4;
  std::array<double, lanes> allowed, any;
  allowed.fill(infinity);
  any.fill(infinity);
  std::int64_t s = begin;
  for (; s + lanes <= end; s += lanes)
    for (std::int64_t l = 0; l < lanes; ++l) {
      const double g = gains[s + l];
      const double masked = until[s + l] <= now ? g : infinity;
      any[std::size_t(l)] = g < any[std::size_t(l)] ? g : any[std::size_t(l)];
      allowed[std::size_t(l)] = masked < allowed[std::size_t(l)] ? masked : allowed[std::size_t(l)];
    }
  Minima out{*std::min_element(allowed.begin(), allowed.end()),
             *std::min_element(any.begin(), any.end())};
  for (; s < end; ++s) {
    out.any = std::min(out.any, gains[s]);
    if (until[s] <= now) out.allowed = std::min(out.allowed, gains[s]);
  }
  return out;
}

}  // namespace

TabuSearch::TabuSearch(const Matrix<double>& a, const Matrix<double>& b, Columns start,
                       std::int64_t free, std::uint64_t seed, int threads)
    : gains_(a, b, std::move(start), free, threads),
      threads_(threads_for(free, threads)),
      random_(seed),
      cost_(quadratic_cost(a, b, gains_.columns())),
      best_cost_(cost_),
      best_(gains_.columns()),
      table_(free, free),
      until_(free, free, 0),
      pair_until_(free, free, 0),
      scratch_(std::size_t(free)),
      row_u_(std::size_t(free)),
      row_v_(std::size_t(free)),
      terms_(gains_.terms(), free) {
  const std::size_t chunks =
      threads_ == 1 && free < threaded_size ? 1 : std::size_t((free + chunk_rows - 1) / chunk_rows);
  allowed_.resize(chunks);
  any_.resize(chunks);
  rebuild();
}

// Rows in chunks that do not depend on the number of threads; visit(row) brings a row of the table
// up to date before its minima are taken.
template <class Visit>
void TabuSearch::each_chunk(const Visit& visit) {
  const std::int64_t m = gains_.free(), chunks = std::int64_t(allowed_.size());
  const std::int64_t size = chunks == 1 ? m : chunk_rows;
  const double now = double(step_);
  parallel_for(threads_, chunks, [&](std::int64_t c) {
    Swap allowed{infinity}, any{infinity};
    for (std::int64_t r = c * size; r < std::min(m - 1, (c + 1) * size); ++r) {
      visit(r);
      const Minima found = minima(table_.row(r), pair_until_.row(r), now, r + 1, m);
      if (found.allowed < allowed.gain) allowed = {found.allowed, r};
      if (found.any < any.gain) any = {found.any, r};
    }
    allowed_[std::size_t(c)] = allowed;
    any_[std::size_t(c)] = any;
  });
}

void TabuSearch::rebuild() {
  const std::int64_t m = gains_.free();
  const std::int64_t chunks = (m + chunk_rows - 1) / chunk_rows;
  parallel_for(threads_, chunks, [&](std::int64_t c) {
    std::vector<double> scratch(static_cast<std::size_t>(m));
    for (std::int64_t r = c * chunk_rows; r < std::min(m, (c + 1) * chunk_rows); ++r)
      gains_.row(r, table_.row(r), scratch.data());
  });
  each_chunk([](std::int64_t) {});
}

// A swap that nothing has moved for long comes first, whatever it costs.
TabuSearch::Swap TabuSearch::overdue() const {
  const std::int64_t m = gains_.free();
  const double since = double(step_ - 5 * m * m);
  Swap out{infinity};
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t s = r + 1; s < m; ++s)
      if (pair_until_(r, s) < since && table_(r, s) < out.gain) out = {table_(r, s), r, s};
  return out;
}

TabuSearch::Swap TabuSearch::choose() {
  const std::int64_t m = gains_.free();
  if (step_ > 5 * m * m && step_ % m == 0)
    if (const Swap swap = overdue(); swap.s >= 0) return swap;
  const auto better = [](const Swap& x, const Swap& y) { return x.gain < y.gain; };
  Swap swap = *std::min_element(any_.begin(), any_.end(), better);
  const bool aspired = cost_ + swap.gain < best_cost_ - gains_.tolerance();
  if (!aspired) swap = *std::min_element(allowed_.begin(), allowed_.end(), better);
  if (swap.r < 0) return swap;
  const double *const gains = table_.row(swap.r), *const until = pair_until_.row(swap.r);
  for (swap.s = swap.r + 1; swap.s < m - 1; ++swap.s)
    if (gains[swap.s] == swap.gain && (aspired || until[swap.s] <= double(step_))) break;
  return swap;
}

// Places and columns that part; taken before the swap.
void TabuSearch::forbid(std::int64_t u, std::int64_t v) {
  const auto tenure = [&] {
    const double x = random_.uniform();
    return std::floor(x * x * x * 8 * double(gains_.free()));
  };
  for (const std::int64_t place : {u, v})
    until_(place, gains_.columns()[std::size_t(place)]) = double(step_) + tenure();
}

// The swap of a place with any other is forbidden while both columns are.
void TabuSearch::release(std::int64_t place) {
  const std::int64_t m = gains_.free();
  const Columns& columns = gains_.columns();
  const std::int64_t p = columns[std::size_t(place)];
  for (std::int64_t s = 0; s < m; ++s) {
    const double until = std::min(until_(place, columns[std::size_t(s)]), until_(s, p));
    pair_until_(std::min(place, s), std::max(place, s)) = until;
  }
}

void TabuSearch::apply(const Swap& swap) {
  const std::int64_t m = gains_.free(), u = swap.r, v = swap.s;
  forbid(u, v);
  gains_.swap(u, v);
  release(u);
  release(v);
  gains_.row(u, row_u_.data(), scratch_.data());
  gains_.row(v, row_v_.data(), scratch_.data());
  const Columns& columns = gains_.columns();
  std::array<SwapGains::Term, 2> terms;
  for (int t = 0; t < gains_.terms(); ++t) {
    terms[std::size_t(t)] = gains_.last_term(t);
    double* const y = terms_.row(t);
    for (std::int64_t s = 0; s < m; ++s)
      y[s] = terms[std::size_t(t)].y[std::size_t(columns[std::size_t(s)])];
  }
  each_chunk([&](std::int64_t r) {
    double* const gains = table_.row(r);
    if (r == u || r == v) {
      std::copy_n((r == u ? row_u_ : row_v_).data() + r, m - r, gains + r);
      return;
    }
    for (int t = 0; t < gains_.terms(); ++t) {
      const double *const x = terms[std::size_t(t)].x, *const y = terms_.row(t);
      add_term(x, y, x[r], y[r], r + 1, m, gains);
    }
    if (u > r) gains[u] = row_u_[std::size_t(r)];
    if (v > r) gains[v] = row_v_[std::size_t(r)];
  });
}

void TabuSearch::advance(std::int64_t steps) {
  const std::int64_t m = gains_.free();
  if (m < 2) {
    step_ += steps;
    return;
  }
  const std::int64_t interval = std::max<std::int64_t>(1024, m);
  for (std::int64_t i = 0; i < steps; ++i) {
    const Swap swap = choose();
    ++step_;
    if (swap.r < 0) {
      each_chunk([](std::int64_t) {});
      continue;
    }
    cost_ += swap.gain;
    apply(swap);
    if (cost_ < best_cost_ - gains_.tolerance()) {
      best_cost_ = cost_;
      best_ = gains_.columns();
    }
    if (step_ % interval == 0) {  // rounding adds up
      gains_.refresh();
      rebuild();
    }
  }
}

namespace {

// Rows and columns that all sum to nothing, as those of a graph Laplacian do.
bool is_centred(const Matrix<double>& a) {
  const std::int64_t n = a.rows();
  std::vector<double> rows(std::size_t(n), 0), columns(std::size_t(n), 0);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      rows[std::size_t(i)] += a(i, j);
      columns[std::size_t(j)] += a(i, j);
    }
  const double limit = 1e-9 * double(n) * largest(a);
  const auto small = [limit](double x) { return std::abs(x) <= limit; };
  return std::ranges::all_of(rows, small) && std::ranges::all_of(columns, small);
}

void centre(std::span<double> x) {
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / double(x.size());
  for (double& value : x) value -= mean;
}

// The trace on vectors whose entries sum to 0.
double centred_trace(const Matrix<double>& a) {
  double trace = 0, sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i) trace += a(i, i);
  for (const double x : a.values()) sum += x;
  return trace - sum / double(a.rows());
}

// Roughly the largest absolute eigenvalue of the symmetric part on vectors whose entries sum to 0.
double centred_radius(const Matrix<double>& a) {
  const std::int64_t n = a.rows();
  Random random(0);
  std::vector<double> x(static_cast<std::size_t>(n)), y(x.size());
  for (double& value : x) value = random.uniform() - 0.5;
  double radius = 0;
  for (int k = 0; k < 20; ++k) {
    centre(x);
    const double norm = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
    if (norm == 0) return 0;
    for (double& value : x) value /= norm;
    std::fill(y.begin(), y.end(), 0);
    for (std::int64_t i = 0; i < n; ++i) {
      const double* const row = a.row(i);
      double sum = 0;
      for (std::int64_t j = 0; j < n; ++j) {
        sum += row[j] * x[std::size_t(j)];
        y[std::size_t(j)] += row[j] * x[std::size_t(i)] / 2;
      }
      y[std::size_t(i)] += sum / 2;
    }
    radius = std::sqrt(std::inner_product(y.begin(), y.end(), y.begin(), 0.0));
    x.swap(y);
  }
  return radius;
}

// The sum over i of X_{i, q_i}.
double trace_at(const Matrix<double>& x, const Columns& q) {
  double sum = 0;
  for (std::size_t i = 0; i < q.size(); ++i) sum += x(std::int64_t(i), q[i]);
  return sum;
}

double dot(const Matrix<double>& x, const Matrix<double>& y) {
  return std::inner_product(x.values().begin(), x.values().end(), y.values().begin(), 0.0);
}

// x = (1 - t) x + t y
void mix(Matrix<double>& x, double t, const Matrix<double>& y) {
  for (std::size_t i = 0; i < x.values().size(); ++i)
    x.values()[i] += t * (y.values()[i] - x.values()[i]);
}

void mix(Matrix<double>& x, double t, const Columns& q) {
  for (double& value : x.values()) value *= 1 - t;
  for (std::size_t i = 0; i < q.size(); ++i) x(std::int64_t(i), q[i]) += t;
}

struct Sums {
  std::vector<double> rows, columns;
};

// Of the leading (m, m) part.
Sums sums_of(const Matrix<double>& a, std::int64_t m) {
  Sums out{std::vector<double>(std::size_t(m), 0), std::vector<double>(std::size_t(m), 0)};
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < m; ++j) {
      out.rows[std::size_t(i)] += a(i, j);
      out.columns[std::size_t(j)] += a(i, j);
    }
  return out;
}

// Rows x of X become those of X (A + A^T) / 2 - shift X, centred and of unit length.
Matrix<double> filtered(const Matrix<double>& x, const Matrix<double>& a, double shift,
                        int threads) {
  Matrix<double> out = times(x, a, threads);
  const Matrix<double> other = times_transposed(x, a, threads);
  for (std::int64_t k = 0; k < x.rows(); ++k) {
    const std::span row(out.row(k), std::size_t(out.columns()));
    for (std::size_t j = 0; j < row.size(); ++j)
      row[j] = (row[j] + other.row(k)[j]) / 2 - shift * x.row(k)[j];
    centre(row);
    const double norm = std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
    if (norm > 0)
      for (double& value : row) value /= norm;
  }
  return out;
}

Matrix<double> random_rows(std::int64_t rows, std::int64_t columns, Random& random) {
  Matrix<double> out(rows, columns);
  for (double& x : out.values()) x = random.uniform() - 0.5;
  return out;
}

Columns random_permutation(std::int64_t n, Random& random) {
  Columns out(static_cast<std::size_t>(n));
  std::iota(out.begin(), out.end(), 0);
  for (std::int64_t i = n - 1; i > 0; --i)
    std::swap(out[std::size_t(i)], out[std::size_t(random.below(i + 1))]);
  return out;
}

// Fractions of the full shift, by measurement.
constexpr std::array<double, 6> phases{0.1, 0.15, 0.2, 0.3, 0.4, 0.6};

}  // namespace

FrankWolfe::FrankWolfe(const QuadraticProblem& problem, int threads)
    : problem_(problem),
      threads_(threads),
      symmetric_(is_symmetric(problem.a) && is_symmetric(problem.b)),
      flat_(problem.free == problem.a.rows() && (is_centred(problem.a) || is_centred(problem.b))),
      at_(symmetric_ ? Matrix<double>() : transposed(problem.a)),
      bt_(symmetric_ ? Matrix<double>() : transposed(problem.b)) {
  const std::int64_t n = problem.a.rows(), m = problem.free, fixed = n - m;
  const Matrix<double>&a = problem.a, &b = problem.b;
  if (fixed > 0 && m > 0) {
    linear_ = Matrix<double>(m, m);
    const SingleBlasThread guard;
    gemm('N', 'T', m, m, fixed, 1, a.data() + m, n, b.data() + m, n, 0, linear_.data(), m);
    gemm('T', 'N', m, m, fixed, 1, a.row(m), n, b.row(m), n, 1, linear_.data(), m);
  }
  const double trace = flat_ ? centred_trace(a) : 0;
  if (trace * centred_trace(b) > 0) full_shift_ = std::copysign(centred_radius(a), trace);
  p_ = Matrix<double>(m, m, 1 / double(m));
  products_ = of_barycentre();
}

FrankWolfe::Products FrankWolfe::of_permutation(const Columns& q) const {
  const std::int64_t m = problem_.free;
  const Matrix<double>& bt = symmetric_ ? problem_.b : bt_;
  Products out{Matrix<double>(m, m), {}};
  permuted_product(problem_.a, q, bt, m, symmetric_ ? 2 : 1, 0, out.w, threads_);
  if (!symmetric_) permuted_product(at_, q, problem_.b, m, 1, 1, out.w, threads_);
  if (full_shift_ == 0) return out;
  out.v = Matrix<double>(m, m);
  for (std::int64_t i = 0; i < m; ++i) {
    const std::int64_t row = q[std::size_t(i)];
    for (std::int64_t j = 0; j < m; ++j) out.v(i, j) = problem_.b(row, j) + bt(row, j);
  }
  return out;
}

FrankWolfe::Products FrankWolfe::of_barycentre() const {
  const std::int64_t m = problem_.free;
  const Sums a = sums_of(problem_.a, m), b = sums_of(problem_.b, m);
  Products out{Matrix<double>(m, m), {}};
  if (full_shift_ != 0) out.v = Matrix<double>(m, m);
  for (std::size_t i = 0; i < std::size_t(m); ++i)
    for (std::size_t j = 0; j < std::size_t(m); ++j) {
      out.w.row(std::int64_t(i))[j] =
          (a.rows[i] * b.rows[j] + a.columns[i] * b.columns[j]) / double(m);
      if (full_shift_ != 0) out.v.row(std::int64_t(i))[j] = (b.rows[j] + b.columns[j]) / double(m);
    }
  return out;
}

// Near a random matrix in which the directions of low curvature prevail.
Columns FrankWolfe::smooth_permutation(Random& random, const Context& context) const {
  constexpr std::int64_t rank = 32;
  const std::int64_t m = problem_.free;
  Matrix<double> x = random_rows(rank, m, random), y = random_rows(rank, m, random);
  for (int k = 0; k < 2; ++k) {
    x = filtered(x, problem_.a, full_shift_, threads_);
    y = filtered(y, problem_.b, 0, threads_);
  }
  Columns q;
  std::vector<double> duals;
  assign(times(transposed(x), y, threads_), true, duals, q, context);
  return q;
}

void FrankWolfe::start_at_random(Random& random, const Context& context) {
  const Columns q =
      flat_ ? smooth_permutation(random, context) : random_permutation(problem_.free, random);
  const Products products = of_permutation(q);
  mix(p_, 0.5, q);
  mix(products_.w, 0.5, products.w);
  if (full_shift_ != 0) mix(products_.v, 0.5, products.v);
}

Matrix<double> FrankWolfe::gradient() const {
  Matrix<double> out = products_.w.copy();
  const auto add = [&](double factor, const Matrix<double>& x) {
    for (std::size_t i = 0; i < x.values().size(); ++i) out.values()[i] += factor * x.values()[i];
  };
  add(1, linear_);
  add(-phases[std::size_t(phase_)] * full_shift_, products_.v);
  return out;
}

// As many as a large problem has time for.
std::int64_t FrankWolfe::steps_per_phase() const {
  constexpr double operations = 4e11;
  const double m = double(problem_.free), one = (symmetric_ ? 2 : 4) * m * m * m;
  const bool shifted = full_shift_ != 0;
  const double steps = std::floor(operations / one / (shifted ? double(phases.size()) : 1));
  return std::int64_t(std::clamp(steps, shifted ? 1.0 : 4.0, shifted ? 15.0 : 30.0));
}

// True at the end of the last phase.
bool FrankWolfe::end_phase() {
  steps_ = 0;
  return full_shift_ == 0 || ++phase_ == std::int64_t(phases.size());
}

bool FrankWolfe::step(const Context& context) {
  constexpr double stationary = 1e-9, slow = 0.01;
  const std::int64_t m = problem_.free;
  Columns q;
  const Matrix<double> g = gradient();
  assign(g, false, duals_, q, context);
  const double here = dot(p_, g), slope = trace_at(g, q) - here;
  if (!(slope < -stationary * std::abs(here))) return end_phase();
  const Products vertex = of_permutation(q);
  const double shift = phases[std::size_t(phase_)] * full_shift_;
  // Twice the coefficient of the square along Q - P.
  double curvature =
      trace_at(vertex.w, q) - trace_at(products_.w, q) - dot(p_, vertex.w) + dot(p_, products_.w);
  if (shift != 0)
    curvature -= shift * (trace_at(vertex.v, q) - trace_at(products_.v, q) - dot(p_, vertex.v) +
                          dot(p_, products_.v));
  const double step = curvature > 0 ? std::min(1.0, -slope / curvature) : 1;
  const double moved =
      step * std::sqrt(std::max(0.0, 1 + (dot(p_, p_) - 2 * trace_at(p_, q)) / double(m)));
  mix(p_, step, q);
  mix(products_.w, step, vertex.w);
  if (full_shift_ != 0) mix(products_.v, step, vertex.v);
  return ++steps_ >= steps_per_phase() || moved < slow ? end_phase() : false;
}

Columns FrankWolfe::rounded(const Context& context) const {
  Columns out;
  std::vector<double> duals;
  assign(p_, true, duals, out, context);
  for (std::int64_t i = problem_.free; i < problem_.a.rows(); ++i) out.push_back(i);
  return out;
}

namespace {

constexpr double pairs_per_slice = 1 << 20;
constexpr std::int64_t large = 256;
constexpr std::int64_t descent_rows = 8;

// Several short searches find more than a long one; a large problem has no time for them.
std::int64_t searches_per_restart(std::int64_t m) { return m < large ? 4 : 1; }

// Of one search.
std::int64_t planned_steps(std::int64_t m) {
  constexpr double pairs_in_all = 1e9, steps_per_place = 8000;
  const double pairs = std::max(1.0, double(m) * double(m - 1) / 2);
  const double steps = std::min(steps_per_place * double(m), pairs_in_all / pairs);
  if (steps < double(m)) return 0;  // too few to lead anywhere: descent alone
  return std::int64_t(std::ceil(steps / double(searches_per_restart(m))));
}

// One start, and what is made of it: Frank-Wolfe steps, then descent where the problem is large,
// then tabu search.
class Search final : public Restart {
 public:
  /// The first start is the barycentre, where that is of use.
  Search(const QuadraticProblem& problem, const std::optional<Columns>& initial, bool first,
         std::uint64_t seed, int threads)
      : problem_(problem), random_(seed), threads_(threads), first_(first) {
    if (initial) begin_search(*initial);
  }

  bool advance(const Context& context) override {
    const std::int64_t m = problem_.free;
    if (best_.empty()) {
      if (!faq_) {
        faq_ = std::make_unique<FrankWolfe>(problem_, threads_);
        if (!first_ || faq_->barycentre_is_stationary()) faq_->start_at_random(random_, context);
      }
      if (!faq_->step(context)) return false;
      begin_search(faq_->rounded(context));
      faq_.reset();
    } else if (descent_) {
      const bool done = descent_->advance(descent_rows);
      best_ = descent_->columns();
      cost_ = start_cost_ + descent_->change();
      if (!done) return false;
      descent_.reset();
      if (planned_steps(m) == 0) return true;
      begin_tabu();
    } else {
      const double pairs = std::max(1.0, double(m) * double(m));
      const std::int64_t slice = std::int64_t(std::ceil(pairs_per_slice / pairs));
      tabu_->advance(std::min(slice, planned_steps(m) - tabu_->steps()));
      best_ = tabu_->best();
      cost_ = tabu_->best_cost();
      made_ = tabu_->steps();
      if (made_ < planned_steps(m)) return false;
      tabu_.reset();
      return true;
    }
    return false;
  }

  const Columns& best() const { return best_; }
  std::int64_t steps() const override { return made_; }
  double cost() const override { return cost_; }

 private:
  void begin_search(Columns start) {
    best_ = std::move(start);
    cost_ = start_cost_ = quadratic_cost(problem_.a, problem_.b, best_);
    if (problem_.free >= large)
      descent_ =
          std::make_unique<SwapDescent>(problem_.a, problem_.b, best_, problem_.free, threads_);
    else
      begin_tabu();
  }
  void begin_tabu() {
    tabu_ = std::make_unique<TabuSearch>(problem_.a, problem_.b, best_, problem_.free,
                                         random_.next(), threads_);
  }

  const QuadraticProblem& problem_;
  Random random_;
  int threads_;
  bool first_;
  std::unique_ptr<FrankWolfe> faq_;
  std::unique_ptr<SwapDescent> descent_;
  std::unique_ptr<TabuSearch> tabu_;
  Columns best_;
  double start_cost_ = 0, cost_ = infinity;
  std::int64_t made_ = 0;
};

}  // namespace

QuadraticSolution solve_quadratic(const QuadraticProblem& problem,
                                  const std::optional<Columns>& initial,
                                  const SearchOptions& search, const Context& context) {
  const std::int64_t m = problem.free, n = problem.a.rows();
  QuadraticSolution out;
  out.columns.resize(std::size_t(n));
  std::iota(out.columns.begin(), out.columns.end(), 0);
  if (initial) out.columns = *initial;
  out.driver = "none needed";
  if (m < 2) return out;
  const int threads = threads_of(context);
  const std::int64_t count = std::max<std::int64_t>(1, search.restarts) * searches_per_restart(m);
  // A given start stands in for the first search's Frank-Wolfe steps.
  out.driver = initial && count == 1 ? "given start" : "Frank-Wolfe";
  if (m >= large) out.driver += ", swap descent";
  if (planned_steps(m) > 0) out.driver += ", tabu search";
  Random random(search.seed);
  std::vector<std::unique_ptr<Restart>> searches;
  for (std::int64_t i = 0; i < count; ++i)
    searches.push_back(std::make_unique<Search>(problem, i == 0 ? initial : std::nullopt, i == 0,
                                                random.next(), threads));
  double least = quadratic_cost(problem.a, problem.b, out.columns);
  const RestartsReport report =
      run_restarts(searches, count * planned_steps(m), least, search, context);
  out.steps = report.steps;
  out.stopped = report.stopped;
  for (const auto& one : searches) {
    const Columns& found = static_cast<const Search&>(*one).best();
    if (found.empty()) continue;
    const double cost = quadratic_cost(problem.a, problem.b, found);
    if (cost < least) {
      least = cost;
      out.columns = found;
    }
  }
  return out;
}

}  // namespace descramble_fast::cpu
