#include "cpu/polar.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "cpu/lapack.hpp"
#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "ladder.hpp"
#include "message.hpp"

namespace descramble_fast::cpu {

namespace {

constexpr double epsilon = std::numeric_limits<double>::epsilon();
constexpr std::int64_t gram_size = 128;
// Numbers below which threads cost more than they bring.
constexpr std::size_t threaded_work = 1 << 14;
// From here on a singular value decomposition is better off with threads of its own.
constexpr std::int64_t threaded_size = 256;

Matrix<double> rows_of(const Matrix<double>& x, std::int64_t begin, std::int64_t end) {
  Matrix<double> out(end - begin, x.columns());
  std::copy_n(x.row(begin), out.values().size(), out.data());
  return out;
}

void put(const Matrix<double>& rows, Matrix<double>& out, std::int64_t first) {
  std::copy_n(rows.data(), rows.values().size(), out.row(first));
}

/// Orthonormal rows u_i and v_i, and s_i = |A v_i|; sum_i u_i v_i^T is a polar factor of A.
struct Singular {
  Matrix<double> u, v;
  std::vector<double> s;
  /// Of these, from the first on, known to be zero.
  std::int64_t null = 0;
};

class GramSolver {
 public:
  struct Unsolved {
    std::string why;
  };

  explicit GramSolver(const Context& context)
      : context_{context.threads, context.poll},
        threads_(threads_of(context)),
        poll_(now_and_then(context.poll)) {}

  /// The largest entry lies in [1, 2), or A is zero.
  Singular solve(const Matrix<double>& a) {
    Rough found = approximate(a);
    if (!found.accurate) refine(found);
    return {std::move(found.u), std::move(found.v), lengths(found.images), found.null};
  }

 private:
  struct Rough {
    Matrix<double> u, v, images;  // A v for each v
    std::int64_t null;
    bool accurate;
  };

  // Beside the whole matrix.
  static bool is_zero(const Matrix<double>& part) {
    return std::sqrt(sum_of_squares(part.values())) <= double(part.rows()) * epsilon;
  }

  template <class Callable>
  void each_row(const Matrix<double>& x, const Callable& body) {
    parallel_for(x.values().size() < threaded_work ? 1 : threads_, x.rows(), body, poll_);
  }

  void subtract(const Matrix<double>& change, Matrix<double>& x) {
    each_row(x, [&](std::int64_t i) {
      for (std::int64_t j = 0; j < x.columns(); ++j) x(i, j) -= change(i, j);
    });
  }

  std::vector<double> lengths(const Matrix<double>& rows) {
    std::vector<double> out(std::size_t(rows.rows()));
    each_row(rows, [&](std::int64_t i) {
      out[std::size_t(i)] = std::sqrt(sum_of_squares({rows.row(i), std::size_t(rows.columns())}));
    });
    return out;
  }

  Eigh<double> eigenpairs(const Matrix<double>& a) {
    try {
      return eigh<double>(a.view(), {}, context_);
    } catch (const BackendError& error) {
      throw Unsolved{error.what()};
    }
  }

  // Makes rows orthonormal that nearly are. Of lengths d they were once U D, and to first order in
  // E = U^T U - I the polar factor of U D is U (I - F), F_ij = E_ij d_i / (d_i + d_j), by columns:
  // where d is constant, or after that step, the nearest orthonormal basis.
  void orthonormalise(Matrix<double>& u, std::span<const double> d = {}) {
    for (int step = 0; step < 8; ++step) {
      Matrix<double> e = gram(u, threads_, poll_);
      for (std::int64_t i = 0; i < e.rows(); ++i) e(i, i) -= 1;
      const double error = std::sqrt(sum_of_squares(lengths(e)));
      each_row(e, [&](std::int64_t i) {
        for (std::int64_t j = 0; j < e.rows(); ++j)
          e(i, j) *= step > 0 || d.empty()
                         ? 0.5
                         : d[std::size_t(j)] / (d[std::size_t(i)] + d[std::size_t(j)]);
      });
      subtract(times(e, u, threads_, poll_), u);
      if (error <= 1e-9) return;  // and now about its square
    }
  }

  // Orthonormal rows across all those of u.
  Matrix<double> complement(const Matrix<double>& u) {
    Matrix<double> out(u.columns() - u.rows(), u.columns());
    std::normal_distribution<double> normal;
    for (double& x : out.values()) x = normal(random_);
    const auto project = [&] {
      subtract(times(times_transposed(out, u, threads_, poll_), u, threads_, poll_), out);
    };
    project();
    const Eigh<double> pairs = eigenpairs(gram(out, threads_, poll_));
    out = times(pairs.eigenvectors, out, threads_, poll_);
    each_row(out, [&](std::int64_t i) {
      for (std::int64_t j = 0; j < out.columns(); ++j)
        out(i, j) /= std::sqrt(pairs.eigenvalues(0, i));
    });
    project();
    orthonormalise(out);
    return out;
  }

  // From A^T A = V diag(s^2) V^T: where s >= 1e-5 s_1, U = A V / s is orthonormal but for what a
  // step or two mend. Below that A^T A tells too little. What A maps there, from the space that is
  // left to the space that is left, is a smaller problem of the same kind, cut off with an error of
  // eps |A| s_1 / s, for which `accurate` is false where it is large.
  Rough approximate(const Matrix<double>& a) {
    const std::int64_t n = a.rows();
    if (is_zero(a)) return {identity(n), identity(n), transposed(a, threads_), n, true};
    Matrix<double> v;
    std::int64_t lost = 0;
    {
      const Matrix<double> at = transposed(a, threads_);
      Eigh<double> pairs = eigenpairs(gram(at, threads_, poll_));
      const double* const w = pairs.eigenvalues.data();
      while (lost + 1 < n && !(w[lost] >= parted * parted * w[n - 1])) ++lost;
      v = std::move(pairs.eigenvectors);
    }
    Matrix<double> images = times_transposed(v, a, threads_, poll_);
    Matrix<double> u = rows_of(images, lost, n);
    const std::vector<double> s = lengths(u);
    each_row(u, [&](std::int64_t i) {
      for (std::int64_t j = 0; j < n; ++j) u(i, j) /= s[std::size_t(i)];
    });
    orthonormalise(u, s);
    if (lost == 0) return {std::move(u), std::move(v), std::move(images), 0, true};

    Matrix<double> all(n, n), left = complement(u);
    put(u, all, lost);
    u = {};
    const Matrix<double> rest = rows_of(images, 0, lost);
    const Matrix<double> inner = times_transposed(left, rest, threads_, poll_);
    if (is_zero(inner)) {
      put(left, all, 0);
      const bool accurate = s.back() <= 0.1 * double(n) * s.front();
      return {std::move(all), std::move(v), std::move(images), lost, accurate};
    }
    const Rough turned = approximate(inner);
    put(times(turned.u, left, threads_, poll_), all, 0);
    put(times(turned.v, rows_of(v, 0, lost), threads_, poll_), v, 0);
    put(times(turned.v, rest, threads_, poll_), images, 0);
    return {std::move(all), std::move(v), std::move(images), 0, false};
  }

  // X = U^T A V is nearly diagonal, diag(t). To first order, the rotation K_ij = (X_ij - X_ji) /
  // (t_i + t_j) of U makes it symmetric, and J_ij = X_ij / (t_j - t_i) of both U and V then makes
  // it diagonal. Between t that are alike, or both small, there is nothing to part.
  void refine(Rough& rough) {
    auto& [u, v, images, null, accurate] = rough;
    const std::int64_t n = u.rows();
    Matrix<double> k = times_transposed(u, images, threads_, poll_), j(n, n, 0);
    std::vector<double> t;
    for (std::int64_t i = 0; i < n; ++i) t.push_back(std::abs(k(i, i)));
    const double largest = *std::max_element(t.begin(), t.end());
    const double zero = 2 * double(n) * epsilon * largest;
    each_row(k, [&](std::int64_t r) {
      for (std::int64_t c = 0; c <= r; ++c) {
        const double a = t[std::size_t(r)], b = t[std::size_t(c)];
        const double turn = a + b > zero ? (k(r, c) - k(c, r)) / (a + b) : 0;
        const bool apart = std::max(a, b) > std::max(2 * std::min(a, b), parted / 2 * largest);
        const double part = apart ? (k(r, c) - turn * b) / (b - a) : 0;
        j(r, c) = part;
        j(c, r) = -part;
        k(r, c) = turn + part;
        k(c, r) = -k(r, c);
      }
    });
    subtract(times(k, u, threads_, poll_), u);  // rows: U + K^T U
    subtract(times(j, v, threads_, poll_), v);
    subtract(times(j, images, threads_, poll_), images);
    k = {};
    j = {};
    orthonormalise(u);
    orthonormalise(v);
  }

  static constexpr double parted = 1e-5;
  Context context_;
  int threads_;
  std::function<void()> poll_;
  std::mt19937_64 random_{20230718u};
};

// Turns those u_i whose singular values vanish, so that the map between the two null spaces is the
// one nearest to the identity. Returns the sum of these singular values.
double complete(Singular& x, const Context& context) {
  const std::int64_t n = x.u.rows();
  const double tiny = double(n) * epsilon * *std::max_element(x.s.begin(), x.s.end());
  std::vector<std::int64_t> null;
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (i >= x.null && x.s[std::size_t(i)] > tiny) continue;
    null.push_back(i);
    sum += x.s[std::size_t(i)];
  }
  if (null.empty()) return 0;
  const auto chosen = [&](const Matrix<double>& rows) {
    Matrix<double> out(std::int64_t(null.size()), n);
    for (std::size_t i = 0; i < null.size(); ++i)
      std::copy_n(rows.row(null[i]), n, out.row(std::int64_t(i)));
    return out;
  };
  const int threads = threads_of(context);
  const auto poll = now_and_then(context.poll);
  const Matrix<double> u = chosen(x.u);
  const Matrix<double> overlap = times_transposed(u, chosen(x.v), threads, poll);
  const Matrix<double> turn = transposed(polar(overlap, context).factor);
  const Matrix<double> turned = times(turn, u, threads, poll);
  for (std::size_t i = 0; i < null.size(); ++i)
    std::copy_n(turned.row(std::int64_t(i)), n, x.u.row(null[i]));
  return sum;
}

using SvdOf = std::int64_t (*)(std::int64_t, double*, double*, double*, double*);

// By LAPACK; why not, where it fails.
std::string decompose(SvdOf svd, const Matrix<double>& a, int threads, Singular& out) {
  const std::int64_t n = a.rows();
  if (!fits_lapack(8 * n * n))
    return message("its workspace for n = ", n, " exceeds this LAPACK's 32-bit lengths");
  Matrix<double> work = a.copy(), u(n, n);
  out = {{}, Matrix<double>(n, n), std::vector<double>(std::size_t(n), 0)};
  std::int64_t info = 0;
  const auto solve = [&] { info = svd(n, work.data(), out.s.data(), u.data(), out.v.data()); };
  if (n < threaded_size || threads == 1) {
    const SingleBlasThread guard;
    solve();
  } else {
    const ManyBlasThreads guard(threads);
    solve();
  }
  out.u = transposed(u, threads);
  return info == 0 ? "" : message("info = ", info);
}

}  // namespace

double skewness(const Matrix<double>& gradient, const Matrix<double>& p, const Context& context) {
  const double scale = std::sqrt(sum_of_squares(gradient.values()));
  if (scale == 0) return 0;
  const Matrix<double> product =
      times_transposed(gradient, p, threads_of(context), now_and_then(context.poll));
  double sum = 0;
  for (std::int64_t i = 0; i < product.rows(); ++i)
    for (std::int64_t j = 0; j < i; ++j) {
      const double skew = (product(i, j) - product(j, i)) / 2;
      sum += 2 * skew * skew;
    }
  return std::sqrt(sum) / scale;
}

Polar polar(const Matrix<double>& matrix, const Context& context) {
  const std::int64_t n = matrix.rows();
  const int threads = threads_of(context);
  Polar out;
  if (n == 1) {
    out.factor = Matrix<double>(1, 1, matrix(0, 0) < 0 ? -1.0 : 1.0);
    out.nuclear_norm = std::abs(matrix(0, 0));
    out.driver = "sign";
    return out;
  }
  const double largest = largest_magnitude(matrix.values());
  const int exponent = largest > 0 ? std::ilogb(largest) : 0;
  Matrix<double> a = matrix.copy();
  if (exponent != 0)
    for (double& x : a.values()) x = std::ldexp(x, -exponent);
  Singular found;
  double null = 0;  // the sum of singular values that count as none
  const auto conclude = [&] {
    null = complete(found, context);
    out.nuclear_norm = std::accumulate(found.s.begin(), found.s.end(), 0.0);
    out.factor = times(transposed(found.u, threads), found.v, threads, now_and_then(context.poll));
  };
  const auto by_gram = [&]() -> std::string {
    try {
      found = GramSolver(context).solve(a);
    } catch (const GramSolver::Unsolved& unsolved) {
      return unsolved.why;
    }
    conclude();
    const double limit = 50 * double(n) * epsilon;
    const double error = orthogonality_error(out.factor, threads);
    if (!(error <= limit)) return message("orthogonality error ", error, " above ", limit);
    out.skewness = skewness(a, out.factor, context);
    if (!(*out.skewness <= limit)) return message("skewness ", *out.skewness, " above ", limit);
    const auto x = a.values(), y = out.factor.values();
    const double trace = std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
    const double most = limit * std::sqrt(sum_of_squares(x)) + 2 * null;
    const double missing = out.nuclear_norm - trace;
    if (!(missing <= most)) return message("trace short by ", missing, ", above ", most);
    return {};
  };
  const auto by_svd = [&](SvdOf svd) {
    std::string failure = decompose(svd, a, threads, found);
    if (failure.empty()) conclude();
    return failure;
  };
  std::vector<Rung> rungs;
  if (n >= gram_size) rungs.push_back({"gram", by_gram});
  rungs.push_back({"dgesdd", [&] { return by_svd(gesdd); }});
  rungs.push_back({"dgesvd", [&] { return by_svd(gesvd); }});
  out.driver = climb(rungs, out.fallbacks);
  out.nuclear_norm = std::ldexp(out.nuclear_norm, exponent);
  return out;
}

}  // namespace descramble_fast::cpu
