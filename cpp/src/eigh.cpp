#include "descramble_fast/eigh.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <type_traits>

#include "check.hpp"
#include "cpu/eigh.hpp"
#include "cpu/lapack.hpp"
#include "cpu/parallel.hpp"
#include "ladder.hpp"

namespace descramble_fast {

namespace {

// Below this size LAPACK's own threads cost more than they bring.
constexpr std::int64_t threaded_size = 256;

template <class T>
struct Item {
  const ArrayView& a;
  std::int64_t k;
  T* w;
  T* v;
};

struct ItemReport {
  std::string driver;
  std::vector<std::string> fallbacks;
  cpu::EighCheck check;
};

template <class T>
std::string judge(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns();
  check = cpu::check_eigenpairs(item.a, exponent, item.k, item.w, item.v);
  const double limit = 50 * double(n) * double(std::numeric_limits<T>::epsilon());
  // |A|_2 >= |A|_F / sqrt(n), and it is the largest |eigenvalue|, where all are known.
  double norm2 = norm / std::sqrt(double(n));
  for (std::int64_t i = 0; i < item.k; ++i) norm2 = std::max(norm2, std::abs(double(item.w[i])));
  if (!(check.residual <= limit * norm2))
    return message("residual ", check.residual, " above ", limit * norm2);
  if (!(check.orthogonality_error <= limit))
    return message("orthogonality error ", check.orthogonality_error, " above ", limit);
  return {};
}

std::string info_text(std::int64_t info) { return message("info = ", info); }

template <class T>
std::string solve_syevd(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns();
  if (!cpu::fits_lapack(cpu::Lapack<T>::syevd_workspace(n)))
    return message("its workspace for n = ", n, " exceeds this LAPACK's 32-bit lengths");
  cpu::load_lower(item.a, exponent, item.v);
  if (const auto info = cpu::Lapack<T>::syevd(n, item.v, item.w); info != 0) return info_text(info);
  return judge(item, exponent, norm, check);
}

template <class T>
std::string solve_syevr(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns();
  if (!cpu::fits_lapack(26 * n)) return message("n = ", n, " exceeds this LAPACK's 32-bit lengths");
  Matrix<T> work(n, n);
  cpu::load_lower(item.a, exponent, work.data());
  const auto [info, found] = cpu::Lapack<T>::syevr(n, item.k, work.data(), item.w, item.v);
  if (info != 0) return info_text(info);
  if (found != item.k) return message("found ", found, " of ", item.k, " eigenvectors");
  return judge(item, exponent, norm, check);
}

// All pairs, in T's or in double precision, of which the k largest are kept.
template <class Working, class T>
std::string solve_all(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns();
  Matrix<Working> w(1, n), v(n, n);
  cpu::EighCheck all_check;
  const Item<Working> all{item.a, n, w.data(), v.data()};
  if (std::string failure = solve_syevd(all, exponent, norm, all_check); !failure.empty())
    return failure;
  const auto narrow = [](Working x) { return T(x); };
  std::transform(w.data() + n - item.k, w.data() + n, item.w, narrow);
  std::transform(v.row(n - item.k), v.data() + n * n, item.v, narrow);
  return judge(item, exponent, norm, check);
}

template <class T>
ItemReport solve(const Item<T>& item, int exponent) {
  ItemReport report;
  const double norm = cpu::frobenius_norm(item.a, exponent);
  const std::string letter = std::is_same_v<T, float> ? "s" : "d";
  std::vector<Rung> rungs;
  if (item.k == item.a.columns())
    rungs.push_back(
        {letter + "syevd", [&] { return solve_syevd(item, exponent, norm, report.check); }});
  rungs.push_back(
      {letter + "syevr", [&] { return solve_syevr(item, exponent, norm, report.check); }});
  if (item.k != item.a.columns())
    rungs.push_back(
        {letter + "syevd", [&] { return solve_all<T>(item, exponent, norm, report.check); }});
  if constexpr (std::is_same_v<T, float>)
    rungs.push_back(
        {"dsyevd", [&] { return solve_all<double>(item, exponent, norm, report.check); }});
  report.driver = climb(rungs, report.fallbacks);
  for (std::int64_t i = 0; i < item.k; ++i) {
    item.w[i] = std::ldexp(item.w[i], exponent);
    if (!std::isfinite(item.w[i]))
      throw InvalidArgument(message("a: its eigenvalues exceed the range of ", name(dtype_of<T>),
                                    std::is_same_v<T, float> ? "; pass float64" : ""));
  }
  report.check.residual = std::ldexp(report.check.residual, exponent);
  return report;
}

std::string batch_text(const ArrayView& a, std::int64_t item) {
  return a.rank() > 2 ? message(" of matrix ", item) : std::string();
}

}  // namespace

template <class T>
Eigh<T> eigh(const ArrayView& a, std::optional<std::int64_t> k, const Context& context) {
  check_floating("a", a);
  if (a.rank() < 2 || a.shape()[std::size_t(a.rank() - 2)] != a.columns())
    throw InvalidArgument(message("a: got shape ", shape_text(a), ", expected (..., n, n)"));
  if (std::is_same_v<T, float> && a.dtype() == DType::float64)
    throw TypeError("a: got dtype float64 for a float32 solve");
  const std::int64_t n = a.columns();
  const std::int64_t kept = k.value_or(n);
  if (kept < (k ? 1 : 0) || kept > n)
    throw InvalidArgument(message("k: got ", kept, ", expected between 1 and ", n));
  std::int64_t batch = 1;
  for (int i = 0; i + 2 < a.rank(); ++i) batch *= a.shape()[std::size_t(i)];

  Eigh<T> out;
  out.n = n;
  out.eigenvalues = Matrix<T>(batch, kept);
  out.eigenvectors = Matrix<T>(batch * kept, n);
  out.residual.assign(std::size_t(batch), 0);
  out.orthogonality_error.assign(std::size_t(batch), 0);
  out.route.dtype = name(dtype_of<T>);
  if (batch == 0 || n == 0) return out;

  std::vector<ItemReport> reports(static_cast<std::size_t>(batch));
  const auto solve_item = [&](std::int64_t b) {
    const ArrayView matrix = a.item(b, 2);
    const cpu::Scaled scaled = cpu::scale_of(matrix);
    if (scaled.bad_row >= 0)
      throw InvalidArgument(message("a: NaN or infinity at row ", scaled.bad_row, ", column ",
                                    scaled.bad_column, batch_text(a, b)));
    const Item<T> item{matrix, kept, out.eigenvalues.row(b), out.eigenvectors.row(b * kept)};
    reports[std::size_t(b)] = solve(item, scaled.exponent);
  };

  const int threads = cpu::threads_of(context);
  if (threads > 1 && n >= threaded_size && batch < threads) {
    for (std::int64_t b = 0; b < batch; ++b) {
      if (context.poll) context.poll();
      const cpu::ManyBlasThreads guard(threads);
      solve_item(b);
    }
  } else {
    // In groups, between which the caller may cancel.
    const std::int64_t group = std::max<std::int64_t>(threads, 1 + (1 << 24) / (n * n * n));
    for (std::int64_t begin = 0; begin < batch; begin += group) {
      if (context.poll) context.poll();
      const cpu::SingleBlasThread guard;
      cpu::parallel_for(threads, std::min(group, batch - begin),
                        [&](std::int64_t i) { solve_item(begin + i); });
    }
  }

  for (std::int64_t b = 0; b < batch; ++b) {
    const ItemReport& report = reports[std::size_t(b)];
    out.residual[std::size_t(b)] = report.check.residual;
    out.orthogonality_error[std::size_t(b)] = report.check.orthogonality_error;
    if (b == 0) out.route.driver = report.driver;
    for (const std::string& failure : report.fallbacks)
      out.route.fallbacks.push_back(message(failure, batch_text(a, b)));
  }
  return out;
}

template DESCRAMBLE_FAST_EXPORT Eigh<float> eigh(const ArrayView&, std::optional<std::int64_t>,
                                                 const Context&);
template DESCRAMBLE_FAST_EXPORT Eigh<double> eigh(const ArrayView&, std::optional<std::int64_t>,
                                                  const Context&);

}  // namespace descramble_fast
