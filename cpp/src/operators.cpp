#include "descramble_fast/operators.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "call.hpp"
#include "check.hpp"
#include "cpu/convert.hpp"
#include "cpu/fft.hpp"
#include "cpu/operators.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/eigh.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

constexpr std::int64_t largest_size = std::int64_t(1) << 48;

void check_size(std::int64_t n) {
  if (n < 1) throw InvalidArgument(message("n: got ", n, ", expected at least 1"));
  if (n > largest_size)
    throw InvalidArgument(message("n: got ", n, ", expected at most ", largest_size));
  constexpr std::int64_t many = 1 << 23;  // below, allocating them will tell
  if (n > many && !can_have(n * std::int64_t(sizeof(double))))
    throw OutOfMemory(message("n: got ", n, " places, more than memory holds"));
}

// sin^2(pi a/b)
double squared_sine(std::int64_t a, std::int64_t b) {
  const double sine = cpu::turn(a, 2 * b).sin;
  return sine * sine;
}

// The spacing of a dtype's numbers next to 1.
double spacing(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return 0x1p-10;
    case DType::bfloat16:
      return 0x1p-7;
    case DType::float32:
      return 0x1p-23;
    default:
      return 0x1p-52;
  }
}

void check_symmetric(const Matrix<double>& a, double tolerance) {
  constexpr std::int64_t tile = 64;
  const std::int64_t n = a.rows();
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      if (!std::isfinite(a(i, j)))
        throw InvalidArgument(message("matrix: NaN or infinity at row ", i, ", column ", j));
      largest = std::max(largest, std::abs(a(i, j)));
    }
  for (std::int64_t i0 = 0; i0 < n; i0 += tile)
    for (std::int64_t j0 = 0; j0 <= i0; j0 += tile)
      for (std::int64_t i = i0; i < std::min(n, i0 + tile); ++i)
        for (std::int64_t j = j0; j < std::min(i, j0 + tile); ++j)
          if (std::abs(a(i, j) - a(j, i)) > tolerance * largest)
            throw InvalidArgument(message("matrix: not symmetric: got ", a(i, j), " at row ", i,
                                          ", column ", j, " and ", a(j, i), " at row ", j,
                                          ", column ", i));
}

}  // namespace

Operator::Operator(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Operator Operator::fourier(std::int64_t n, int order) {
  check_size(n);
  if (order < 1) throw InvalidArgument(message("order: got ", order, ", expected at least 1"));
  std::vector<double> l;
  l.reserve(std::size_t(n / 2 + 1));
  for (std::int64_t k = 0; k <= n / 2; ++k)
    l.push_back(order % 2 == 1 && 2 * k == n ? 0 : std::pow(double(k), 2.0 * order));
  if (!std::isfinite(std::ranges::max(l)))
    throw InvalidArgument(message("order: got ", order, ", expected one for which (n/2)^(2 order) ",
                                  "does not overflow at n = ", n));
  return Operator(cpu::make_fourier(message("fourier(n=", n, ", order=", order, ")"), n, l));
}

Operator Operator::difference(std::int64_t n, int order, Boundary boundary) {
  check_size(n);
  if (order != 1 && order != 2)
    throw InvalidArgument(message("order: got ", order, ", expected 1 or 2"));
  const bool periodic = boundary == Boundary::periodic;
  std::vector<double> l;
  l.reserve(std::size_t(periodic ? n / 2 + 1 : n));
  for (std::int64_t k = 0; k < (periodic ? n / 2 + 1 : n); ++k) {
    const double first = 4 * squared_sine(k, periodic ? n : 2 * n);
    l.push_back(order == 1 ? first : first * first);
  }
  const std::string name = message("difference(n=", n, ", order=", order,
                                   ", boundary=", periodic ? "periodic" : "path", ")");
  return Operator(periodic ? cpu::make_fourier(name, n, l) : cpu::make_cosine(name, std::move(l)));
}

Operator Operator::central_difference(std::int64_t n) {
  check_size(n);
  std::vector<double> l;
  l.reserve(std::size_t(n / 2 + 1));
  // sin(2 pi k/n) = sin(pi (n - 2k)/n): one form for both, so that equal values are equal bits.
  for (std::int64_t k = 0; k <= n / 2; ++k)
    l.push_back(squared_sine(std::min(2 * k, n - 2 * k), n));
  return Operator(cpu::make_fourier(message("central_difference(n=", n, ")"), n, l));
}

Operator Operator::grid(std::vector<Operator> axes) {
  if (axes.empty()) throw InvalidArgument("axes: got none, expected at least one operator");
  std::int64_t n = 1;
  std::string name = "grid(";
  std::vector<cpu::SharedImpl> impls;
  for (const Operator& axis : axes) {
    if (axis.size() > largest_size / n)
      throw InvalidArgument(message("axes: got more than ", largest_size, " places in all"));
    n *= axis.size();
    name += message(impls.empty() ? "" : ", ", axis.name());
    impls.push_back(axis.impl_);
  }
  return Operator(cpu::make_grid(name + ")", std::move(impls)));
}

Operator Operator::from_matrix(const ArrayView& matrix, const Context& context) {
  const Call call(context);
  check_floating("matrix", matrix);
  const std::int64_t n = matrix.columns();
  if (matrix.rank() != 2 || matrix.rows() != n || n < 1)
    throw InvalidArgument(
        message("matrix: got shape ", shape_text(matrix), ", expected (n, n) with n at least 1"));
  const double eps = spacing(matrix.dtype());
  check_symmetric(fetch(matrix, context), std::max(1e-12, 8 * eps));

  Eigh<double> pairs = eigh<double>(matrix, {}, context);
  const Matrix<double> values = pairs.eigenvalues.to({}, context);
  std::vector<double> l(values.values().begin(), values.values().end());
  const double largest = std::max(std::abs(l.front()), std::abs(l.back()));
  const double rounding = double(n) * eps * largest;
  if (l.front() < -10 * rounding)
    throw InvalidArgument(message("matrix: not positive semidefinite: smallest eigenvalue ",
                                  l.front(), ", expected at least ", -10 * rounding));
  for (double& x : l)
    if (x < rounding) x = 0;
  call.log("Operator::from_matrix", pairs.route);
  return Operator(cpu::make_dense(message("matrix(n=", n, ")"), std::move(l),
                                  std::move(pairs.eigenvectors).on_cpu(context), 10 * rounding));
}

std::int64_t Operator::size() const { return impl_->size(); }
const std::string& Operator::name() const { return impl_->name; }
std::span<const double> Operator::eigenvalues() const { return impl_->eigenvalues; }
std::span<const Block> Operator::blocks() const { return impl_->blocks; }
Matrix<double> Operator::modes() const { return impl_->modes(); }

namespace {

void check_rows_of(const Operator& op, std::span<const double> rows, const Context& context) {
  cpu::threads_of(context);
  if (std::int64_t(rows.size()) % op.size() != 0)
    throw InvalidArgument(
        message("rows: got ", rows.size(), " numbers, expected a multiple of n = ", op.size()));
}

}  // namespace

void Operator::apply(std::span<double> rows, const Context& context) const {
  const Call call(context);
  check_rows_of(*this, rows, context);
  cpu::apply(*impl_, rows, context);
}

void Operator::analyze(std::span<double> rows, const Context& context) const {
  const Call call(context);
  check_rows_of(*this, rows, context);
  cpu::analyze(*impl_, rows, context);
}

void Operator::synthesize(std::span<double> rows, const Context& context) const {
  const Call call(context);
  check_rows_of(*this, rows, context);
  cpu::synthesize(*impl_, rows, context);
}

namespace {

// A copy of the rows, mapped by a transform of the CPU or by an entry of the CUDA library.
template <class Entry>
Matrix<double> mapped(const Operator& op, const ArrayView& x, const Context& context,
                      void (Operator::*on_cpu)(std::span<double>, const Context&) const,
                      Entry cuda::Backend::*entry) {
  const Call call(context);
  check_floating("x", x);
  if (x.rank() < 1 || x.columns() != op.size())
    throw InvalidArgument(
        message("x: its last axis has ", x.columns(), " places, the operator acts on ", op.size()));
  if (x.device().kind == DeviceKind::cpu) {
    Matrix<double> out = cpu::widen_rows(x, context);
    (op.*on_cpu)(out.values(), context);
    return out;
  }
  Matrix<double> out(x.rows(), x.columns(), x.device());
  const ModesDescription description = op.impl().describe();
  const cuda::Modes modes = description.view();
  cuda::Caller(x.device(), context)(cuda::backend().*entry, &modes, &x, out.data());
  return out;
}

}  // namespace

Matrix<double> Operator::applied(const ArrayView& x, const Context& context) const {
  return mapped(*this, x, context, &Operator::apply, &cuda::Backend::apply);
}

Matrix<double> Operator::analyzed(const ArrayView& x, const Context& context) const {
  return mapped(*this, x, context, &Operator::analyze, &cuda::Backend::analyze);
}

Matrix<double> Operator::synthesized(const ArrayView& x, const Context& context) const {
  return mapped(*this, x, context, &Operator::synthesize, &cuda::Backend::synthesize);
}

}  // namespace descramble_fast
