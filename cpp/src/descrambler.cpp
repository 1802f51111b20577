#include "descramble_fast/descrambler.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <new>
#include <numeric>
#include <utility>

#include "call.hpp"
#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/gauge.hpp"
#include "cpu/leading.hpp"
#include "cpu/linalg.hpp"
#include "cpu/operators.hpp"
#include "cpu/parallel.hpp"
#include "cpu/polar.hpp"
#include "cuda.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"
#include "modes.hpp"
#include "weights.hpp"

namespace descramble_fast {

namespace {

// What is read off a moment before it is solved.
struct Facts {
  double initial_cost = 0;
  double lowest_variance = 0;  // negative eigenvalues beyond the k leading ones show here
};

Facts facts_of(const Operator& op, const Matrix<double>& c, const Context& context) {
  Facts facts;
  if (c.device().kind == DeviceKind::cuda) {
    const ModesDescription description = op.impl().describe();
    const cuda::Modes modes = description.view();
    cuda::Caller(c.device(), context)(cuda::backend().roughness, &modes, c.data(),
                                      &facts.initial_cost, &facts.lowest_variance);
    facts.lowest_variance = std::min(0.0, facts.lowest_variance);
    return facts;
  }
  facts.initial_cost = op.impl().trace_with(c.data(), cpu::threads_of(context));
  for (std::int64_t j = 0; j < c.rows(); ++j)
    facts.lowest_variance = std::min(facts.lowest_variance, c(j, j));
  return facts;
}

}  // namespace

double roughness(const Operator& op, const Matrix<double>& c, const Context& context) {
  return facts_of(op, c, context).initial_cost;
}

namespace {

constexpr double epsilon = std::numeric_limits<double>::epsilon();
// A second moment kept in float32 has eigenvalues this far below zero, relative to the largest.
constexpr double rounding_of_moments = 1e-6;
// Of what a solution takes beside its matrices: vectors of n, and the buffers of BLAS.
constexpr std::int64_t vectors_beside = 64;
constexpr std::int64_t fixed_memory = std::int64_t(1) << 24;
// Numbers below which threads cost more than they bring.
constexpr std::int64_t threaded_work = 1 << 14;

std::vector<Block> close_runs(const std::vector<double>& values, double gap) {
  std::vector<Block> runs;
  const std::int64_t n = std::int64_t(values.size());
  for (std::int64_t begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    while (end < n && values[std::size_t(begin)] - values[std::size_t(end)] <= gap) ++end;
    if (end - begin > 1) runs.push_back({begin, end});
  }
  return runs;
}

// The rule of the gauge; `reference` for Gauge::reference alone.
struct Choice {
  Gauge gauge;
  std::optional<Matrix<double>> reference;
};

// Problems of one size on one device, solved as one batch; the answers' places.
struct Batch {
  std::vector<const Covariance*> covariances;
  std::vector<const Operator*> ops;
  std::vector<std::size_t> places;
  std::int64_t n = 0;
  Device device;
  std::int64_t k = 0;

  std::int64_t count() const { return std::int64_t(ops.size()); }
};

Matrix<double> moment_of(const Covariance& covariance, bool center) {
  if (!center) return covariance.second_moment();
  if (!covariance.has_mean())
    throw InvalidArgument("center: got true, but this second moment came without a mean");
  return covariance.covariance();
}

// The moments one below the other, and what is read off them.
Matrix<double> stacked_moments(const Batch& batch, bool center, std::vector<Facts>& facts,
                               const Context& context) {
  const std::int64_t n = batch.n, count = batch.count();
  Matrix<double> stack;
  if (count > 1) stack = Matrix<double>(count * n, n, batch.device);
  for (std::int64_t i = 0; i < count; ++i) {
    Matrix<double> c = moment_of(*batch.covariances[std::size_t(i)], center);
    facts.push_back(facts_of(*batch.ops[std::size_t(i)], c, context));
    if (count > 1)
      copy_between(batch.device, stack.row(i * n), batch.device, c.data(),
                   n * n * std::int64_t(sizeof(double)), context);
    else
      stack = std::move(c);
  }
  return stack;
}

// The k leading eigenvectors of one item, descending, with canonical signs. Those of a batch of one
// stay where they are.
Matrix<double> leading_components(Eigh<double>& pairs, std::int64_t batch, std::int64_t item,
                                  std::int64_t k, const Context& context) {
  const std::int64_t n = pairs.n, known = pairs.eigenvectors.rows() / batch;
  const Device device = pairs.eigenvectors.device();
  if (device.kind == DeviceKind::cuda) {
    Matrix<double> out(k, n, device);
    cuda::Caller(device, context)(cuda::backend().leading_rows,
                                  pairs.eigenvectors.row(item * known), known, k, n, out.data());
    return out;
  }
  int threads = cpu::threads_of(context);
  if (k * n < threaded_work) threads = 1;
  if (batch > 1 || known > k) {
    Matrix<double> out(k, n);
    cpu::parallel_for(threads, k, [&](std::int64_t i) {
      std::copy_n(pairs.eigenvectors.row((item + 1) * known - 1 - i), n, out.row(i));
      cpu::fix_sign(out.row(i), n);
    });
    return out;
  }
  Matrix<double> out = std::move(pairs.eigenvectors);
  cpu::parallel_for(threads, (k + 1) / 2, [&](std::int64_t i) {
    const std::int64_t mirrored = k - 1 - i;
    cpu::fix_sign(out.row(i), n);
    if (i == mirrored) return;
    cpu::fix_sign(out.row(mirrored), n);
    std::swap_ranges(out.row(i), out.row(i) + n, out.row(mirrored));
  });
  return out;
}

// Sets the eigenvalues, the blocks and the costs.
void set_spectrum(SmoothnessDescrambler& d, const Matrix<double>& values, double residual,
                  std::int64_t item, std::int64_t k, std::int64_t samples, const Facts& facts) {
  const std::int64_t n = d.size();
  const double* const ascending = values.row(item);
  d.eigenvalues.assign(std::reverse_iterator(ascending + values.columns()),
                       std::reverse_iterator(ascending));
  const double largest = std::max(0.0, d.eigenvalues.front());
  const double lowest = d.eigenvalues.back();
  const double rounding =
      rounding_of_moments * largest + double(n) * std::numeric_limits<double>::min();
  if (std::min(lowest, facts.lowest_variance) < -rounding)
    throw InvalidArgument(
        message("covariance: not positive semidefinite: smallest eigenvalue or variance ",
                std::min(lowest, facts.lowest_variance), " beside the largest ", largest));
  for (double& x : d.eigenvalues) x = std::max(0.0, x);

  // One more than k is known only to see whether a block is cut.
  d.blocks = close_runs(d.eigenvalues, double(n) * epsilon * largest);
  for (Block& block : d.blocks) block.end = std::min(block.end, k);
  if (!d.blocks.empty() && d.blocks.back().begin == k) d.blocks.pop_back();
  d.eigenvalues.resize(std::size_t(k));

  // The eigensolver's residual, the rounding of its input, which grows like a random walk with the
  // number of samples, what was clipped, and the width of a block within which a gauge may rotate.
  const double rounding_of_input = (2 * double(n) + std::sqrt(double(samples))) * epsilon * largest;
  const double error = residual + rounding_of_input + std::max(0.0, -lowest);
  const auto l = d.op.eigenvalues().first(std::size_t(k));
  d.cost = std::inner_product(l.begin(), l.end(), d.eigenvalues.begin(), 0.0);
  d.cost_error = error * std::accumulate(l.begin(), l.end(), 0.0);
  d.bound = d.cost;
  d.initial_cost = facts.initial_cost;
  if (!std::isfinite(d.cost + d.cost_error) || !std::isfinite(d.initial_cost))
    throw InvalidArgument(message("covariance: the roughness of signals with a variance of ",
                                  largest, " overflows float64; rescale the samples"));
}

void choose_gauge(SmoothnessDescrambler& d, const Eigh<double>& pairs, std::int64_t item,
                  const Choice& choice, const Context& context) {
  d.gauge = {std::numeric_limits<double>::quiet_NaN(), true, 0};
  d.orthogonality_error = pairs.orthogonality_error[std::size_t(item)];
  if (choice.gauge == Gauge::canonical) return;
  const Device device = d.device();
  if (device.kind == DeviceKind::cuda) {
    d.components = d.components.to({}, context);
    d.route.fallbacks.push_back(message(name(device), ": the gauge was chosen on the CPU"));
  }
  cpu::choose_nearest(choice.reference ? &*choice.reference : nullptr, d, context);
  d.orthogonality_error = cpu::orthogonality_error(d.components, cpu::threads_of(context));
  if (device.kind == DeviceKind::cuda) d.components = d.components.to(device, context);
}

using Answers = std::vector<std::optional<SmoothnessDescrambler>>;

void solve(const Batch& batch, bool center, const Choice& choice, Answers& answers,
           const Context& context) {
  const std::int64_t n = batch.n, k = batch.k, count = batch.count();
  std::vector<Facts> facts;
  Matrix<double> stack = stacked_moments(batch, center, facts, context);
  const std::optional<std::int64_t> asked = k < n ? std::optional(k + 1) : std::nullopt;
  const std::int64_t shape[] = {count, n, n};
  Eigh<double> pairs =
      eigh<double>(ArrayView(stack.data(), DType::float64, shape, batch.device), asked, context);
  stack = {};
  const Matrix<double> values = std::move(pairs.eigenvalues).on_cpu(context);
  for (std::int64_t i = 0; i < count; ++i) {
    const Covariance& covariance = *batch.covariances[std::size_t(i)];
    SmoothnessDescrambler d(*batch.ops[std::size_t(i)]);
    set_spectrum(d, values, pairs.residual[std::size_t(i)], i, k, covariance.count(),
                 facts[std::size_t(i)]);
    d.components = leading_components(pairs, count, i, k, context);
    d.route = pairs.route;
    if (center) d.mean = covariance.mean();
    choose_gauge(d, pairs, i, choice, context);
    answers[batch.places[std::size_t(i)]] = std::move(d);
  }
}

// How many problems of one size are solved as one batch. Small ones share the vector registers and
// fit the cache; large ones gain nothing by company.
std::int64_t batch_size(std::int64_t n, Device device) {
  constexpr std::int64_t alone = 128, cached = 1 << 15, registers = 8, on_device = 1 << 26;
  if (device.kind == DeviceKind::cuda) return std::max<std::int64_t>(1, on_device / (n * n));
  return n > alone ? 1 : std::max<std::int64_t>(1, cached / (n * n * registers)) * registers;
}

// Side by side where that uses the threads better than LAPACK would within one after another. Few
// enough at once that many large moments do not stand in memory together.
void solve_all(const std::vector<Batch>& batches, bool center, const Choice& choice,
               Answers& answers, const Context& context) {
  constexpr std::int64_t at_once = std::int64_t(1) << 25, worth_a_thread = 256;
  const std::int64_t n = batches.front().n, count = std::int64_t(batches.size());
  const std::int64_t threads = cpu::threads_of(context);
  const std::int64_t room = std::max<std::int64_t>(1, at_once / (n * n));
  const std::int64_t side_by_side = std::min({threads, count, room});
  const bool on_device = batches.front().device.kind == DeviceKind::cuda;
  if (on_device || side_by_side < std::min(threads, 1 + n / worth_a_thread)) {
    for (const Batch& batch : batches) solve(batch, center, choice, answers, context);
    return;
  }
  const std::function<void()> poll = cpu::now_and_then(context.poll);
  const auto one = [&](std::int64_t i) {
    solve(batches[std::size_t(i)], center, choice, answers, {1, poll, context.stream});
  };
  cpu::parallel_for(int(side_by_side), count, one, poll);
}

void check_components(std::int64_t n, std::optional<std::int64_t> k) {
  if (k && (*k < 1 || *k > n))
    throw InvalidArgument(message("k: got ", *k, ", expected between 1 and ", n));
}

void check_problem(const Covariance& covariance, const Operator& op,
                   const DescrambleOptions& options) {
  const std::int64_t n = covariance.size();
  if (op.size() != n)
    throw InvalidArgument(
        message("operator: acts on ", op.size(), " neurons, the moments have ", n));
  check_components(n, options.k);
  if (options.gauge != Gauge::canonical && options.k && *options.k < n)
    throw InvalidArgument(message("gauge: a nearest matrix needs all components, but k = ",
                                  *options.k, " of ", n, " are asked for"));
}

// What a solution takes: the moment, which it is checked against; the eigenvectors, which become
// the components; and the eigensolver's own, half of all for those that keep to k pairs.
std::int64_t memory_taken(std::int64_t n, std::optional<std::int64_t> k, bool by_leading) {
  const std::int64_t kept = k && *k < n ? *k + 1 : 0;
  const std::int64_t numbers = (by_leading ? 2 : 4) * n * n + kept * n;
  return std::int64_t(sizeof(double)) * (numbers + vectors_beside * n) + fixed_memory;
}

// Throws OutOfMemory where the system would not grant the least that a solution takes.
void check_memory(std::int64_t n, std::optional<std::int64_t> k) {
  constexpr std::int64_t small = 1 << 20;
  const std::int64_t bytes = memory_taken(n, k, k && *k < n && cpu::leading_may_pay(n, *k + 1));
  if (bytes - fixed_memory < small) return;
  if (!can_have(bytes))
    throw OutOfMemory(message("descramble: cannot have the ", bytes, " bytes that n = ", n,
                              k ? message(", k = ", *k) : std::string(), " takes"));
}

// body(first, count) for groups of rows whose size depends on their length alone.
template <class Callable>
void each_group(const Matrix<double>& rows, const Context& context, const Callable& body) {
  const std::int64_t group = std::max<std::int64_t>(1, threaded_work / rows.columns());
  const int threads =
      std::int64_t(rows.values().size()) < threaded_work ? 1 : cpu::threads_of(context);
  const auto one = [&](std::int64_t g) {
    body(g * group, std::min(group, rows.rows() - g * group));
  };
  cpu::parallel_for(threads, (rows.rows() + group - 1) / group, one, context.poll);
}

void add_to_rows(double sign, std::span<const double> vector, Matrix<double>& rows,
                 const Context& context) {
  each_group(rows, context, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t i = first; i < first + count; ++i) {
      double* const row = rows.row(i);
      for (std::size_t j = 0; j < vector.size(); ++j) row[j] += sign * vector[j];
    }
  });
}

bool on_device(const Descrambler& d) { return d.device().kind == DeviceKind::cuda; }

const double* mean_of(const Descrambler& d) { return d.mean.empty() ? nullptr : d.mean.data(); }

ArrayView transposed_view(const ArrayView& a) {
  const std::int64_t shape[] = {a.shape()[1], a.shape()[0]};
  const std::int64_t strides[] = {a.strides()[1], a.strides()[0]};
  return ArrayView(a.data(), a.dtype(), shape, strides, a.device());
}

Matrix<double> transposed_on_device(const Matrix<double>& a, const Context& context) {
  return cuda::widened(transposed_view(a.view()), context);
}

Matrix<double> rotated_by(const cuda::Rotated& p, const ArrayView& rows, const double* mean,
                          bool back, const Context& context) {
  Matrix<double> out(rows.rows(), rows.columns(), rows.device());
  cuda::Caller(rows.device(), context)(cuda::backend().rotate, &p, &rows, mean, back, out.data());
  return out;
}

}  // namespace

Matrix<double> Descrambler::transform(const ArrayView& samples, const Context& context) const {
  const Call call(context);
  check_rows("samples", samples, size());
  check_device("samples", samples, device());
  if (on_device(*this)) return rotated(samples, mean_of(*this), false, context);
  Matrix<double> rows = cpu::widen_rows(samples, context);
  if (!mean.empty()) add_to_rows(-1, mean, rows, context);
  return forward(std::move(rows), context);
}

Matrix<double> Descrambler::inverse_transform(const ArrayView& samples,
                                              const Context& context) const {
  const Call call(context);
  check_rows("samples", samples, size());
  check_device("samples", samples, device());
  if (on_device(*this)) return rotated(samples, mean_of(*this), true, context);
  Matrix<double> rows = backward(cpu::widen_rows(samples, context), context);
  if (!mean.empty()) add_to_rows(1, mean, rows, context);
  return rows;
}

Matrix<double> Descrambler::transform_weight(const ArrayView& weight,
                                             const Context& context) const {
  const Call call(context);
  check_matrix("W", weight, size(), -1);
  check_device("W", weight, device());
  if (on_device(*this))
    return transposed_on_device(rotated(transposed_view(weight), nullptr, false, context), context);
  const int threads = cpu::threads_of(context);
  return cpu::transposed(
      forward(cpu::transposed(cpu::widen_rows(weight, context), threads), context), threads);
}

Matrix<double> Descrambler::transform_bias(const ArrayView& bias, const Context& context) const {
  const Call call(context);
  check_vector("bias", bias, size());
  check_device("bias", bias, device());
  if (on_device(*this)) return rotated(bias, nullptr, false, context);
  return forward(cpu::widen_rows(bias, context), context);
}

Matrix<double> Descrambler::transform_next_weight(const ArrayView& weight,
                                                  const Context& context) const {
  const Call call(context);
  check_matrix("W_next", weight, -1, size());
  check_device("W_next", weight, device());
  if (on_device(*this)) return rotated(weight, nullptr, false, context);
  return forward(cpu::widen_rows(weight, context), context);
}

namespace {

// The leading columns of `from`, or `from` between zeros, in rows of the other length.
Matrix<double> resized(const Matrix<double>& from, std::int64_t columns) {
  Matrix<double> out(from.rows(), columns, 0);
  const std::int64_t kept = std::min(columns, from.columns());
  for (std::int64_t i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), kept, out.row(i));
  return out;
}

// Each row's entries of a block times A (forward) or A^T (back).
void rotate(std::span<const SmoothnessDescrambler::Rotation> rotations, bool back,
            Matrix<double>& rows, const Context& context) {
  each_group(rows, context, [&](std::int64_t first, std::int64_t count) {
    std::vector<double> old;
    for (const auto& [block, a] : rotations) {
      old.resize(std::size_t(block.size()));
      for (std::int64_t r = first; r < first + count; ++r) {
        double* const x = rows.row(r) + block.begin;
        std::copy_n(x, block.size(), old.begin());
        for (std::int64_t i = 0; i < block.size(); ++i) {
          x[i] = 0;
          for (std::int64_t j = 0; j < block.size(); ++j)
            x[i] += (back ? a(j, i) : a(i, j)) * old[std::size_t(j)];
        }
      }
    }
  });
}

Matrix<double> synthesized(const SmoothnessDescrambler& d, Matrix<double> coefficients,
                           const Context& context) {
  rotate(d.rotations, false, coefficients, context);
  if (coefficients.columns() != d.size()) coefficients = resized(coefficients, d.size());
  d.op.synthesize(coefficients.values(), context);
  return coefficients;
}

}  // namespace

Matrix<double> SmoothnessDescrambler::forward(Matrix<double> rows, const Context& context) const {
  return synthesized(
      *this, cpu::times_transposed(rows, components, cpu::threads_of(context), context.poll),
      context);
}

Matrix<double> SmoothnessDescrambler::backward(Matrix<double> rows, const Context& context) const {
  op.analyze(rows.values(), context);
  if (components.rows() != size()) rows = resized(rows, components.rows());
  rotate(rotations, true, rows, context);
  return cpu::times(rows, components, cpu::threads_of(context), context.poll);
}

namespace {

// What the CUDA library is told of a descrambler; lives as long as it.
class OnDevice {
 public:
  explicit OnDevice(const SmoothnessDescrambler& d) : modes_(d.op.impl().describe()) {
    for (const auto& [block, matrix] : d.rotations)
      rotations_.push_back({block.begin, block.end, matrix.data()});
    rotated_ = {modes_.view(), d.components.rows(), d.components.data(), rotations_.data(),
                std::int64_t(rotations_.size())};
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const cuda::Rotated& rotated() const { return rotated_; }

 private:
  ModesDescription modes_;
  std::vector<cuda::BlockRotation> rotations_;
  cuda::Rotated rotated_;
};

}  // namespace

Matrix<double> SmoothnessDescrambler::rotated(const ArrayView& rows, const double* mean, bool back,
                                              const Context& context) const {
  return rotated_by(OnDevice(*this).rotated(), rows, mean, back, context);
}

Matrix<double> MatrixDescrambler::rotated(const ArrayView& rows, const double* mean, bool back,
                                          const Context& context) const {
  const cuda::Rotated p{{.n = size()}, size(), p_.data(), nullptr, 0};
  return rotated_by(p, rows, mean, back, context);
}

Matrix<double> SmoothnessDescrambler::matrix() const {
  if (on_device(*this)) {
    // The identity, as a view of one 1 between zeros.
    const std::int64_t n = size(), shape[] = {n, n}, strides[] = {-1, 1};
    Matrix<double> line(1, 2 * n - 1, 0);
    line(0, n - 1) = 1;
    const Matrix<double> there = line.to(device(), {});
    return rotated(ArrayView(there.data() + n - 1, DType::float64, shape, strides, device()),
                   nullptr, true, {});
  }
  const int threads = num_threads();
  return cpu::transposed(synthesized(*this, cpu::transposed(components, threads), {}), threads);
}

Matrix<double> SmoothnessDescrambler::modes() const {
  const std::int64_t n = size(), k = components.rows();
  if (on_device(*this)) {
    Matrix<double> out(k, n, device());
    const OnDevice p(*this);
    cuda::Caller(device(), {})(cuda::backend().rotated_modes, &p.rotated(), out.data());
    return out;
  }
  const Matrix<double> closed = op.modes();
  Matrix<double> out(k, n);
  std::copy_n(closed.data(), k * n, out.data());
  for (const auto& [block, a] : rotations)
    for (std::int64_t i = 0; i < block.size(); ++i)
      for (std::int64_t x = 0; x < n; ++x) {
        double sum = 0;
        for (std::int64_t j = 0; j < block.size(); ++j) sum += closed(block.begin + j, x) * a(j, i);
        out(block.begin + i, x) = sum;
      }
  return out;
}

Matrix<double> MatrixDescrambler::forward(Matrix<double> rows, const Context& context) const {
  return cpu::times_transposed(rows, p_, cpu::threads_of(context), context.poll);
}

Matrix<double> MatrixDescrambler::backward(Matrix<double> rows, const Context& context) const {
  return cpu::times(rows, p_, cpu::threads_of(context), context.poll);
}

SmoothnessDescrambler descramble(const Covariance& covariance, const Operator& op,
                                 const DescrambleOptions& options, const Context& context) {
  const Covariance* const one[] = {&covariance};
  return std::move(descramble_many(one, {&op, 1}, options, context).front());
}

std::vector<SmoothnessDescrambler> descramble_many(std::span<const Covariance* const> covariances,
                                                   std::span<const Operator> ops,
                                                   const DescrambleOptions& options,
                                                   const Context& context) {
  const Call call(context);
  if (ops.size() != covariances.size())
    throw InvalidArgument(message("operator: got ", ops.size(), ", expected ", covariances.size(),
                                  ", one per covariance"));
  // By size and device (-1: the CPU).
  std::map<std::pair<std::int64_t, int>, std::vector<std::size_t>> groups;
  for (std::size_t i = 0; i < covariances.size(); ++i) {
    check_problem(*covariances[i], ops[i], options);
    if (covariances.size() > 1)
      naming(message("covariances: entry ", i), [&] { return covariances[i]->count(); });
    const Device device = covariances[i]->device();
    groups[{covariances[i]->size(), device.kind == DeviceKind::cpu ? -1 : device.index}].push_back(
        i);
  }
  if (options.reference.has_value() != (options.gauge == Gauge::reference))
    throw InvalidArgument("gauge: a reference matrix goes with Gauge::reference, and only with it");
  Choice choice{options.gauge, {}};
  if (options.reference) {
    const std::int64_t n = options.reference->columns();
    choice.reference = finite_matrix("gauge", *options.reference, n, n, context);
    for (const auto& [group, members] : groups)
      if (const std::int64_t size = group.first; size != n)
        throw InvalidArgument(message("gauge: got a reference of shape (", n, ", ", n,
                                      "), expected (", size, ", ", size, ")"));
  }
  for (const auto& [group, members] : groups)
    if (group.second < 0) check_memory(group.first, options.k);

  Answers answers(covariances.size());
  for (const auto& [group, members] : groups) {
    const std::int64_t n = group.first;
    const Device device = covariances[members.front()]->device();
    std::vector<Batch> batches;
    for (const std::size_t member : members) {
      if (batches.empty() || batches.back().count() == batch_size(n, device))
        batches.push_back({{}, {}, {}, n, device, options.k.value_or(n)});
      batches.back().covariances.push_back(covariances[member]);
      batches.back().ops.push_back(&ops[member]);
      batches.back().places.push_back(member);
    }
    solve_all(batches, options.center, choice, answers, context);
  }
  std::vector<SmoothnessDescrambler> out;
  out.reserve(answers.size());
  for (auto& d : answers) {
    call.log("descramble", d->route);
    out.push_back(std::move(*d));
  }
  return out;
}

std::int64_t descramble_memory(std::int64_t n, std::optional<std::int64_t> k) {
  constexpr std::int64_t largest = std::int64_t(1) << 28;
  if (n < 1 || n > largest)
    throw InvalidArgument(message("n: got ", n, ", expected between 1 and ", largest));
  check_components(n, k);
  return memory_taken(n, k, false);
}

Covariance preactivation_moment(const ArrayView& weight, const std::optional<ArrayView>& bias,
                                const std::optional<ArrayView>& input_second_moment,
                                const std::optional<ArrayView>& input_mean,
                                const Context& context) {
  const Call call(context);
  const int threads = cpu::threads_of(context);
  const Matrix<double> w = finite_matrix("W", weight, -1, -1, context);
  const std::int64_t n = w.rows(), m = w.columns();
  check_not_empty(w);
  const auto vector = [&](const char* argument, const std::optional<ArrayView>& a,
                          std::int64_t length) {
    Matrix<double> out(1, length, 0);
    if (!a) return out;
    check_vector(argument, *a, length);
    check_device(argument, *a, weight.device());
    out = fetch(*a, context);
    check_finite(argument, out);
    return out;
  };
  const Matrix<double> b = vector("bias", bias, n);
  const Matrix<double> mu = vector("input_mean", input_mean, m);
  Matrix<double> s;
  if (input_second_moment) {
    check_device("input_second_moment", *input_second_moment, weight.device());
    s = finite_matrix("input_second_moment", *input_second_moment, m, m, context);
    check_symmetric_moment("input_second_moment", s);
  }
  Matrix<double> mean = cpu::times_transposed(mu, w, threads);
  Matrix<double> c;
  if (weight.device().kind == DeviceKind::cuda) {
    const auto pointer = [](const std::optional<ArrayView>& a) { return a ? &*a : nullptr; };
    c = Matrix<double>(n, n, weight.device());
    cuda::Caller(weight.device(), context)(cuda::backend().preactivation_moment, &weight,
                                           pointer(bias), pointer(input_second_moment),
                                           pointer(input_mean), c.data());
    c = std::move(c).on_cpu(context);
  } else {
    c = cpu::times_transposed(
        input_second_moment ? cpu::times(w, s, threads, context.poll) : w.copy(), w, threads,
        context.poll);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        c(i, j) += mean(0, i) * b(0, j) + b(0, i) * mean(0, j) + b(0, i) * b(0, j);
  }
  for (std::int64_t i = 0; i < n; ++i) mean(0, i) += b(0, i);
  return Covariance::from_moments(c.view(), ArrayView(mean.data(), {n}), 1,
                                  {.device = weight.device(), .memory = context.memory}, context);
}

void check_not_empty(const Matrix<double>& w) {
  if (w.rows() == 0 || w.columns() == 0)
    throw InvalidArgument(message("W: got shape (", w.rows(), ", ", w.columns(),
                                  "), expected at least one row and one column"));
}

SquarePart square_part(const ArrayView& weight, const Context& context) {
  const Matrix<double> w = finite_matrix("W", weight, -1, -1, context);
  check_not_empty(w);
  SquarePart out{resized(w, w.rows())};
  double largest = 0;
  for (const double x : out.matrix.values()) largest = std::max(largest, std::abs(x));
  if (largest > 0) out.exponent = std::ilogb(largest);
  for (double& x : out.matrix.values()) x = std::ldexp(x, -out.exponent);
  return out;
}

double rescaled(double value, int exponent) {
  const double out = std::ldexp(value, exponent);
  if (!std::isfinite(out)) throw InvalidArgument("W: the criterion overflows float64");
  return out;
}

namespace {

double trace(const Matrix<double>& a) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.rows(); ++i) sum += a(i, i);
  return sum;
}

// (P W)_ii.
std::vector<double> diagonal_of_product(const Matrix<double>& p, const Matrix<double>& wt) {
  std::vector<double> d(std::size_t(p.rows()), 0);
  for (std::int64_t i = 0; i < p.rows(); ++i)
    d[std::size_t(i)] = std::inner_product(p.row(i), p.row(i) + p.columns(), wt.row(i), 0.0);
  return d;
}

// What gave a polar factor; of each driver that failed before it, the first reason.
void record(const cpu::Polar& polar, Route& route) {
  route.driver = polar.driver;
  const auto driver = [](const std::string& failure) {
    return failure.substr(0, failure.find(':'));
  };
  for (const std::string& failure : polar.fallbacks)
    if (std::ranges::find(route.fallbacks, driver(failure), driver) == route.fallbacks.end())
      route.fallbacks.push_back(failure);
}

// What was found on the CPU, put where the weight lies.
void bring_back(const ArrayView& weight, MatrixDescrambler& d, const Context& context) {
  record_fetch("W", weight, d.route);
  if (weight.device().kind == DeviceKind::cuda) d.move_to(weight.device(), context);
}

}  // namespace

MatrixDescrambler descramble_trace(const ArrayView& weight, const Context& context) {
  const Call call(context);
  const int threads = cpu::threads_of(context);
  const auto [w, exponent] = square_part(weight, context);
  const Matrix<double> wt = cpu::transposed(w);
  cpu::Polar polar = cpu::polar(wt, context);
  MatrixDescrambler out(std::move(polar.factor));
  const Matrix<double> p = out.matrix();
  const auto d = diagonal_of_product(p, wt);
  out.cost = rescaled(std::accumulate(d.begin(), d.end(), 0.0), exponent);
  out.initial_cost = rescaled(trace(w), exponent);
  out.bound = rescaled(polar.nuclear_norm, exponent);
  out.stationarity = polar.skewness ? *polar.skewness : cpu::skewness(wt, p, context);
  out.orthogonality_error = cpu::orthogonality_error(p, threads);
  record(polar, out.route);
  bring_back(weight, out, context);
  call.log("descramble_trace", out.route);
  return out;
}

MatrixDescrambler descramble_diagonal(const ArrayView& weight, const Context& context) {
  const Call call(context);
  constexpr std::int64_t iteration_limit = 10000;
  constexpr double stationary = 1e-12;
  const int threads = cpu::threads_of(context);
  const auto [w, exponent] = square_part(weight, context);
  const Matrix<double> wt = cpu::transposed(w);
  cpu::Polar step = cpu::polar(wt, context);
  Route route;
  record(step, route);
  Matrix<double> p = std::move(step.factor);
  std::vector<double> d = diagonal_of_product(p, wt);
  double cost = cpu::sum_of_squares(d), skew = 0;
  std::int64_t iterations = 0;
  for (;; ++iterations) {
    if (context.poll) context.poll();
    Matrix<double> gradient = wt.copy();
    for (std::int64_t i = 0; i < w.rows(); ++i)
      for (std::int64_t j = 0; j < w.rows(); ++j) gradient(i, j) *= d[std::size_t(i)];
    skew = cpu::skewness(gradient, p, context);
    if (skew <= stationary || iterations == iteration_limit) break;
    step = cpu::polar(gradient, context);
    record(step, route);
    Matrix<double> next = std::move(step.factor);
    std::vector<double> next_d = diagonal_of_product(next, wt);
    const double next_cost = cpu::sum_of_squares(next_d);
    if (!(next_cost > cost)) break;  // at the limit of rounding
    p = std::move(next);
    d = std::move(next_d);
    cost = next_cost;
  }
  MatrixDescrambler out(std::move(p));
  out.cost = rescaled(cost, 2 * exponent);
  std::vector<double> initial(std::size_t(w.rows()));
  for (std::int64_t i = 0; i < w.rows(); ++i) initial[std::size_t(i)] = w(i, i);
  out.initial_cost = rescaled(cpu::sum_of_squares(initial), 2 * exponent);
  out.bound = rescaled(cpu::sum_of_squares(w.values()), 2 * exponent);  // |p_i . w_i| <= |w_i|
  out.stationarity = skew;
  out.iterations = iterations;
  out.orthogonality_error = cpu::orthogonality_error(out.matrix(), threads);
  out.route = std::move(route);
  bring_back(weight, out, context);
  call.log("descramble_diagonal", out.route);
  return out;
}

}  // namespace descramble_fast
