#include "descramble_fast/eigh.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>

#include "call.hpp"
#include "check.hpp"
#include "cpu/divide.hpp"
#include "cpu/eigh.hpp"
#include "cpu/eigh_batch.hpp"
#include "cpu/lapack.hpp"
#include "cpu/leading.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tridiagonal.hpp"
#include "cuda.hpp"
#include "ladder.hpp"

namespace descramble_fast {

namespace {

// Below this size LAPACK's own threads cost more than they bring.
constexpr std::int64_t threaded_size = 256;
// The same for its reduction to tridiagonal form alone, which synchronises at every column.
constexpr std::int64_t threaded_reduction = 1024;

template <class T>
struct Item {
  const ArrayView& a;
  std::int64_t k;
  T* w;
  T* v;
  /// 1: the caller holds a SingleBlasThread; more: it holds nothing, and each solver its own guard.
  int threads = 1;
  std::function<void()> poll = {};
};

// Runs a solver that takes its threads from `Guard` where the caller left that to it.
template <class Guard, class T, class Solve>
auto guarded(const Item<T>& item, const Solve& solve) {
  std::optional<Guard> guard;
  if (item.threads > 1) {
    if constexpr (std::is_constructible_v<Guard, int>)
      guard.emplace(item.threads);
    else
      guard.emplace();
  }
  return solve();
}

struct ItemReport {
  std::string driver;
  std::vector<std::string> fallbacks;
  cpu::EighCheck check;
};

template <class T>
std::string judge(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns();
  check = cpu::check_eigenpairs(item.a, exponent, item.k, item.w, item.v, item.threads);
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
  cpu::load_lower(item.a, exponent, item.v, item.threads);
  const auto info =
      guarded<cpu::ManyBlasThreads>(item, [&] { return cpu::Lapack<T>::syevd(n, item.v, item.w); });
  if (info != 0) return info_text(info);
  return judge(item, exponent, norm, check);
}

// What ?syevd does, in steps of our own, which can be interrupted and have our threads.
template <class T>
std::string solve_tridiagonal(const Item<T>& item, int exponent, double norm,
                              cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns(), left_out = n - item.k;
  Matrix<T> work(n, n), e(1, n), tau(1, n), all_values(1, left_out > 0 ? n : 0);
  Matrix<T> all_vectors(all_values.columns(), n);
  T* const w = left_out > 0 ? all_values.data() : item.w;
  T* const v = left_out > 0 ? all_vectors.data() : item.v;
  cpu::load_lower(item.a, exponent, work.data(), item.threads);
  const auto reduce = [&] {
    cpu::tridiagonalise(n, work.data(), w, e.data(), tau.data(), item.poll);
  };
  if (n < threaded_reduction)
    guarded<cpu::SingleBlasThread>(item, reduce);
  else
    guarded<cpu::ManyBlasThreads>(item, reduce);
  const auto info = guarded<cpu::SingleBlasThread>(item, [&] {
    const auto failed = cpu::divide_and_conquer(n, item.k, w, e.data(), v, item.threads, item.poll);
    if (failed == 0)
      cpu::transform_back(n, item.k, work.data(), tau.data(), v + left_out * n, item.threads,
                          item.poll);
    return failed;
  });
  if (left_out > 0) {
    std::copy_n(w + left_out, item.k, item.w);
    std::copy_n(v + left_out * n, item.k * n, item.v);
  }
  return info != 0 ? info_text(info) : judge(item, exponent, norm, check);
}

// All pairs, in T's or in double precision, of which the k largest are kept.
template <class Working, class T>
std::string solve_all(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  const std::int64_t n = item.a.columns();
  Matrix<Working> w(1, n), v(n, n);
  cpu::EighCheck all_check;
  const Item<Working> all{item.a, n, w.data(), v.data(), item.threads, item.poll};
  if (std::string failure = solve_syevd(all, exponent, norm, all_check); !failure.empty())
    return failure;
  const auto narrow = [](Working x) { return T(x); };
  std::transform(w.data() + n - item.k, w.data() + n, item.w, narrow);
  std::transform(v.row(n - item.k), v.data() + n * n, item.v, narrow);
  return judge(item, exponent, norm, check);
}

template <class T>
std::string solve_krylov(const Item<T>& item, int exponent, double norm, cpu::EighCheck& check) {
  std::string failure = guarded<cpu::SingleBlasThread>(item, [&] {
    return cpu::leading_eigenpairs(item.a, exponent, norm, item.k, item.threads, item.poll, item.w,
                                   item.v);
  });
  return failure.empty() ? judge(item, exponent, norm, check) : failure;
}

template <class T>
ItemReport solve(const Item<T>& item, int exponent) {
  ItemReport report;
  const double norm = cpu::frobenius_norm(item.a, exponent, item.threads);
  const std::string letter = std::is_same_v<T, float> ? "s" : "d";
  std::vector<Rung> rungs;
  if (cpu::leading_may_pay(item.a.columns(), item.k))
    rungs.push_back(
        {letter + "krylov", [&] { return solve_krylov(item, exponent, norm, report.check); }});
  rungs.push_back(
      {letter + "sytrd", [&] { return solve_tridiagonal(item, exponent, norm, report.check); }});
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

// Matrix b of the batch by itself, its results in their places.
template <class T>
ItemReport solve_matrix(const ArrayView& a, std::int64_t b, int threads,
                        const std::function<void()>& poll, Eigh<T>& out) {
  const ArrayView matrix = a.item(b, 2);
  const cpu::Scaled scaled = cpu::scale_of(matrix, threads);
  if (scaled.bad_row >= 0)
    throw InvalidArgument(message("a: NaN or infinity at row ", scaled.bad_row, ", column ",
                                  scaled.bad_column, batch_text(a, b)));
  const std::int64_t kept = out.eigenvalues.columns();
  const Item<T> item{matrix,  kept, out.eigenvalues.row(b), out.eigenvectors.row(b * kept),
                     threads, poll};
  return solve(item, scaled.exponent);
}

const char* failure_text(cpu::LaneStatus status) {
  switch (status) {
    case cpu::LaneStatus::not_converged:
      return "no convergence";
    case cpu::LaneStatus::not_orthogonal:
      return "orthogonality error too large";
    case cpu::LaneStatus::not_accurate:
      return "residual too large";
    default:
      return nullptr;
  }
}

// Several matrices at once, one in each lane of a vector. Those that cannot be solved so are solved
// by themselves.
template <class T>
void solve_in_lanes(const ArrayView& a, const Context& context, Eigh<T>& out) {
  const std::int64_t n = a.columns(), batch = out.eigenvalues.rows();
  const auto& [level, kernels] = cpu::eigh_batch_kernels();
  const int threads = cpu::threads_of(context);
  // Narrower vectors where wide ones would leave threads without work.
  const std::int64_t width = cpu::fitting(cpu::lane_solvers<T>(*kernels), n,
                                          n < 12 ? batch : (batch + threads - 1) / threads)
                                 .lanes;
  const std::int64_t groups = (batch + width - 1) / width;
  // A group costs about n^3 + 512 units of a few nanoseconds, a task at least 2^14 of them if that
  // leaves work for every thread; the caller may cancel after about 2^22.
  const std::int64_t cost = n * n * n + 512;
  const std::int64_t task =
      width * std::clamp<std::int64_t>((groups + threads - 1) / threads, 1, 1 + (1 << 14) / cost);
  const std::int64_t tasks = (batch + task - 1) / task;
  const std::int64_t span = threads * std::max<std::int64_t>(2, (1 << 22) * width / (task * cost));

  std::vector<cpu::LaneStatus> status(static_cast<std::size_t>(batch));
  const cpu::LaneResults<T> results{out.eigenvalues.data(), out.eigenvectors.data(),
                                    out.residual.data(), out.orthogonality_error.data(),
                                    status.data()};
  out.route.driver = message("interleaved Householder and QL (", name(level), ")");
  for (std::int64_t first = 0; first < tasks; first += span) {
    if (context.poll) context.poll();
    const std::int64_t last = std::min(tasks, first + span);
    cpu::parallel_for(threads, last - first, [&, kernels = kernels](std::int64_t i) {
      const std::int64_t begin = (first + i) * task;
      cpu::eigh_in_lanes(*kernels, a, begin, std::min(batch, begin + task),
                         out.eigenvalues.columns(), width, results);
    });
    for (std::int64_t b = first * task; b < std::min(batch, last * task); ++b) {
      if (status[std::size_t(b)] == cpu::LaneStatus::solved) continue;
      const cpu::SingleBlasThread guard;
      const ItemReport report = solve_matrix(a, b, 1, {}, out);
      out.residual[std::size_t(b)] = report.check.residual;
      out.orthogonality_error[std::size_t(b)] = report.check.orthogonality_error;
      if (const char* const failure = failure_text(status[std::size_t(b)]))
        out.route.fallbacks.push_back(message(out.route.driver, ": ", failure, batch_text(a, b)));
      for (const std::string& failure : report.fallbacks)
        out.route.fallbacks.push_back(message(failure, batch_text(a, b)));
    }
  }
}

// On the device of `a`; what none of its drivers solves, on the CPU.
template <class T>
void solve_on_device(const ArrayView& a, const Context& context, Eigh<T>& out) {
  const std::int64_t batch = out.eigenvalues.rows(), kept = out.eigenvalues.columns();
  const auto solved = std::make_unique<bool[]>(std::size_t(batch));
  cuda::EighOutput output{out.eigenvalues.data(), out.eigenvectors.data(),
                          out.residual.data(),    out.orthogonality_error.data(),
                          solved.get(),           {}};
  struct Remarks {
    const ArrayView& a;
    std::vector<std::string>& fallbacks;
  } remarks{a, out.route.fallbacks};
  const cuda::Notes notes{&remarks, [](void* to, std::int64_t item, const char* text) {
                            auto& [a, fallbacks] = *static_cast<Remarks*>(to);
                            fallbacks.push_back(message(text, item < 0 ? "" : batch_text(a, item)));
                          }};
  out.route.device = name(a.device());
  cuda::Caller(a.device(), context)(cuda::backend().eigh, &a, dtype_of<T>, kept, &output, &notes);
  out.route.driver = output.driver;
  for (std::int64_t b = 0; b < batch; ++b) {
    if (solved[std::size_t(b)]) continue;
    const cuda::OnHost matrix(a.item(b, 2), context);
    const Eigh<T> found = eigh<T>(matrix.view(), kept, {context.threads, context.poll});
    const auto put = [&](const Matrix<T>& from, T* to) {
      copy_between(a.device(), to, {}, from.data(), from.rows() * from.columns() * sizeof(T),
                   context);
    };
    put(found.eigenvalues, out.eigenvalues.data() + b * kept);
    put(found.eigenvectors, out.eigenvectors.data() + b * kept * out.n);
    out.residual[std::size_t(b)] = found.residual.front();
    out.orthogonality_error[std::size_t(b)] = found.orthogonality_error.front();
    out.route.fallbacks.push_back(message(name(a.device()), ": every driver failed; solved on the ",
                                          "CPU by ", found.route.driver, batch_text(a, b)));
  }
}

// Each by itself.
template <class T>
void solve_one_by_one(const ArrayView& a, const Context& context, Eigh<T>& out) {
  const std::int64_t n = a.columns(), batch = out.eigenvalues.rows();
  std::vector<ItemReport> reports(static_cast<std::size_t>(batch));
  const auto solve_item = [&](std::int64_t b, int inside, const std::function<void()>& poll) {
    reports[std::size_t(b)] = solve_matrix(a, b, inside, poll, out);
  };

  const int threads = cpu::threads_of(context);
  const std::function<void()> poll = cpu::now_and_then(context.poll);
  if (threads > 1 && n >= threaded_size && batch < threads) {
    for (std::int64_t b = 0; b < batch; ++b) {
      if (context.poll) context.poll();
      solve_item(b, threads, poll);
    }
  } else {
    // In groups, between which the caller may cancel.
    const std::int64_t group = std::max<std::int64_t>(threads, 1 + (1 << 24) / (n * n * n));
    for (std::int64_t begin = 0; begin < batch; begin += group) {
      if (context.poll) context.poll();
      const cpu::SingleBlasThread guard;
      const auto solve_one = [&](std::int64_t i) { solve_item(begin + i, 1, poll); };
      cpu::parallel_for(threads, std::min(group, batch - begin), solve_one, poll);
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
}

}  // namespace

template <class T>
Eigh<T> eigh(const ArrayView& a, std::optional<std::int64_t> k, const Context& context) {
  const Call call(context);
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
  out.eigenvalues = Matrix<T>(batch, kept, a.device());
  out.eigenvectors = Matrix<T>(batch * kept, n, a.device());
  out.residual.assign(std::size_t(batch), 0);
  out.orthogonality_error.assign(std::size_t(batch), 0);
  out.route.dtype = name(dtype_of<T>);
  if (batch == 0 || n == 0) return out;
  if (a.device().kind == DeviceKind::cuda) {
    solve_on_device(a, context, out);
  } else if (cpu::solved_in_lanes<T>(n, kept, batch)) {
    solve_in_lanes(a, context, out);
  } else {
    solve_one_by_one(a, context, out);
  }
  call.log("eigh", out.route);
  return out;
}

template DESCRAMBLE_FAST_EXPORT Eigh<float> eigh(const ArrayView&, std::optional<std::int64_t>,
                                                 const Context&);
template DESCRAMBLE_FAST_EXPORT Eigh<double> eigh(const ArrayView&, std::optional<std::int64_t>,
                                                  const Context&);

}  // namespace descramble_fast
