// Every function of the C interface that takes an array, with every kind of bad or hard numbers,
// in every type and layout: an answer that plain arithmetic confirms, or a clear error.

#include <string>

#include "inputs.hpp"

namespace drill {

namespace {

Index trials = 0, faults = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  if (++faults < 20)
    std::fprintf(stderr, "%s (last error: %s)\n", what.c_str(), descramble_last_error());
}

struct Kind {
  const char* name;
  double (*entry)(Index i, Index j, Index n, double u);
};

// What the project was asked to bear; u is between -1 and 1.
const Kind kinds[] = {
    {"plain", [](Index, Index, Index, double u) { return u; }},
    {"NaN in the last row",
     [](Index i, Index, Index n, double u) { return i == n - 1 ? not_a_number : u; }},
    {"infinity in the last row",
     [](Index i, Index j, Index n, double u) { return i == n - 1 && j == 0 ? infinity : u; }},
    {"a row of infinity", [](Index i, Index, Index, double u) { return i == 0 ? infinity : u; }},
    {"all infinite", [](Index, Index, Index, double) { return infinity; }},
    {"minus infinity", [](Index i, Index j, Index, double u) { return i == j ? -infinity : u; }},
    {"3.4e38", [](Index, Index, Index, double u) { return u < 0 ? -3.4e38 : 3.4e38; }},
    {"subnormal", [](Index, Index, Index, double u) { return 1e-40 * u; }},
    {"tiny", [](Index, Index, Index, double u) { return 1e-310 * u; }},
    {"1e300", [](Index, Index, Index, double u) { return 1e300 * u; }},
    {"rank 1", [](Index i, Index j, Index, double) { return double((1 + i % 5) * (1 + j % 5)); }},
    {"identity", [](Index i, Index j, Index, double) { return double(i == j); }},
    {"circulant",
     [](Index i, Index j, Index n, double) {
       const Index apart = (i - j + 4 * n) % n;  // its alternating vector is in the null space
       return apart == 0 ? 2.0 : apart == 1 || apart == n - 1 ? 1.0 : 0.0;
     }},
    {"far mean", [](Index, Index, Index, double u) { return 1e6 + u; }},
    {"constant", [](Index, Index, Index, double) { return 0.1; }},
    {"zero", [](Index, Index, Index, double) { return 0.0; }},
    {"negative", [](Index, Index, Index, double u) { return -1 - std::abs(u); }},
    {"graded",
     [](Index i, Index j, Index, double u) { return std::ldexp(u, -int(4 * (i + j) % 60)); }},
};

struct Case {
  const Kind& kind;
  descramble_dtype dtype;
  Layout layout;
  std::string text;
};

Array matrix(const Case& c, std::vector<Index> shape, bool symmetric = false) {
  Index count = 1;
  for (const Index length : shape) count *= length;
  const Index columns = shape.back(), rows = shape.size() > 1 ? shape[shape.size() - 2] : 1;
  Random random(7);
  Numbers out(std::size_t(std::max<Index>(count, 1)));
  Numbers noise(out.size());
  for (double& u : noise) u = random.uniform();
  for (Index at = 0; at < count; ++at) {
    Index i = at / std::max<Index>(columns, 1) % std::max<Index>(rows, 1), j = at % columns;
    if (symmetric && j > i) std::swap(i, j);
    out[std::size_t(at)] =
        c.kind.entry(i, j, std::max(rows, columns), noise[std::size_t(i * columns + j)]);
  }
  return {out, std::move(shape), c.dtype, c.layout};
}

bool finite(const Numbers& a) {
  return std::all_of(a.begin(), a.end(), [](double x) { return std::isfinite(x); });
}

// Success only with numbers of a floating type that are finite.
bool plausible(descramble_status status, const Array& a, bool may_be_infinite = false) {
  if (status == DESCRAMBLE_OK)
    return a.view.dtype != DESCRAMBLE_BOOLEAN && (may_be_infinite || finite(a.values));
  const bool type = a.view.dtype == DESCRAMBLE_BOOLEAN;
  return status == (type ? DESCRAMBLE_TYPE_ERROR : DESCRAMBLE_INVALID_ARGUMENT) &&
         descramble_last_error()[0] != 0;
}

Numbers exported(const descramble_covariance* c, Index n) {
  Numbers out(std::size_t(2 + 2 * n + n * (n + 1) / 2));
  Index count = 0;
  std::int32_t has_mean = 0;
  const descramble_status status =
      descramble_covariance_export(c, &count, out.data() + 1, &has_mean, out.data() + 2,
                                   out.data() + 2 + n, n, out.data() + 2 + 2 * n, n * (n + 1) / 2);
  check(status == DESCRAMBLE_OK, "export");
  out[0] = double(count);
  return out;
}

// The bad batch is the last one: it is taken whole or leaves the bits.
void moments(const Case& c, Index rows, Index n) {
  ++trials;
  const Case plain{kinds[0], DESCRAMBLE_FLOAT64, Layout::plain, ""};
  const Array first = matrix(plain, {7, n}), last = matrix(c, {rows, n});
  descramble_covariance* cov = nullptr;
  check(descramble_covariance_create(n, nullptr, &cov) == DESCRAMBLE_OK, "create");
  descramble_covariance_update(cov, &first.view, nullptr, nullptr, nullptr);
  const Numbers before = exported(cov, n);
  const descramble_status status =
      descramble_covariance_update(cov, &last.view, nullptr, nullptr, nullptr);
  const std::string where = "update: " + c.text + ", " + std::to_string(rows) + " rows";
  check(plausible(status, last), where + ": status " + std::to_string(status));
  const Numbers after = exported(cov, n);
  if (status != DESCRAMBLE_OK)
    check(std::memcmp(before.data(), after.data(), before.size() * sizeof(double)) == 0,
          where + ": the state has changed");
  else
    check(after[0] == double(7 + rows), where + ": its count");
  if (status == DESCRAMBLE_OK && n <= 40 && rows <= 100) {
    Numbers got(std::size_t(n * n), 0);
    check(descramble_covariance_second_moment(cov, got.data(), n * n) == DESCRAMBLE_OK, where);
    const double scale = std::max(largest(last.values), largest(first.values));
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) {
        long double sum = 0;
        for (const Array* a : {&first, &last})
          for (Index r = 0; r < Index(a->values.size()) / n; ++r)
            sum += static_cast<long double>(a->values[std::size_t(r * n + i)]) *
                   a->values[std::size_t(r * n + j)];
        const double tolerance = (c.dtype == DESCRAMBLE_FLOAT64 ? 1e-13 : 1e-5) * scale * scale;
        check(
            std::abs(double(sum / (7 + rows)) - got[std::size_t(i * n + j)]) <= tolerance + 1e-320,
            where + ": the second moment");
      }
  }
  descramble_covariance_destroy(cov);
}

void eigenpairs(const Case& c, Index batch, Index n) {
  ++trials;
  const Array a = matrix(c, {batch, n, n}, true);
  Numbers values(std::size_t(batch * n), 0), vectors(std::size_t(batch * n * n), 0);
  const descramble_status status =
      descramble_eigh_float64(&a.view, 0, nullptr, values.data(), batch * n, vectors.data(),
                              batch * n * n, nullptr, nullptr, batch);
  const std::string where = "eigh: " + c.text + ", n " + std::to_string(n);
  // (Values whose norm overflows may be refused.)
  if (status == DESCRAMBLE_OK || largest(a.values) < 1e140 || !finite(a.values))
    check(plausible(status, a), where + ": status " + std::to_string(status));
  if (status != DESCRAMBLE_OK || largest(a.values) > 1e140) return;
  for (Index b = 0; b < batch; b += std::max<Index>(1, batch / 5)) {
    const double* const m = a.values.data() + b * n * n;
    const double* const v = vectors.data() + b * n * n;
    double norm = 0, residual = 0, orthogonality = 0;
    for (Index p = 0; p < n; ++p)
      for (Index i = 0; i < n; ++i) {
        double sum = -values[std::size_t(b * n + p)] * v[p * n + i], dot = p == i ? -1 : 0;
        for (Index k = 0; k < n; ++k) {
          sum += m[std::max(i, k) * n + std::min(i, k)] * v[p * n + k];
          dot += v[p * n + k] * v[i * n + k];
        }
        norm = std::hypot(norm, m[std::max(i, p) * n + std::min(i, p)]);
        residual = std::hypot(residual, sum);
        orthogonality = std::hypot(orthogonality, dot);
      }
    const double bound = 100 * double(n) * epsilon;  // the contract, estimated by probes
    check(orthogonality <= bound, where + ": orthogonality");
    check(residual <= bound * norm + double(n * n) * 1e-322, where + ": residual");
  }
}

void assignments(const Case& c, Index n, Index m) {
  ++trials;
  const Array cost = matrix(c, {n, m});
  std::vector<Index> columns(std::size_t(n), -7);
  double total = 0;
  descramble_linear_assignment_report out{};
  out.struct_size = sizeof out;
  out.columns = columns.data();
  out.columns_size = n;
  out.cost = &total;
  out.batch = 1;
  const descramble_status status = descramble_linear_assignment(&cost.view, nullptr, nullptr, &out);
  const std::string where =
      "assignment: " + c.text + ", " + std::to_string(n) + " x " + std::to_string(m);
  check(plausible(status, cost, true), where + ": status " + std::to_string(status));
  bool bad = false;
  for (const double x : cost.values) bad = bad || std::isnan(x) || x == -infinity;
  if (bad) check(status != DESCRAMBLE_OK, where + ": took NaN or minus infinity");
  if (status != DESCRAMBLE_OK) return;
  double sum = 0;
  std::vector<bool> taken(std::size_t(m), false);
  Index assigned = 0;
  for (Index i = 0; i < n; ++i) {
    const Index j = columns[std::size_t(i)];
    if (j < 0) continue;
    check(j < m && !taken[std::size_t(j)], where + ": a column twice");
    taken[std::size_t(j)] = true;
    sum += cost.values[std::size_t(i * m + j)];
    ++assigned;
  }
  check(assigned == std::min(n, m), where + ": not all assigned");
  check(std::isfinite(sum), where + ": a forbidden pair");
  check(std::abs(sum - total) <= 1e-12 * double(n + m) * std::abs(total) + 1e-300 ||
            std::abs(sum) > 1e300,
        where + ": its cost");
}

void rotations(const Case& c, Index n, Index m) {
  const Array w = matrix(c, {n, m});
  for (const bool trace : {true, false}) {
    ++trials;
    descramble_descrambler* d = nullptr;
    const descramble_status status =
        trace ? descramble_trace(&w.view, nullptr, &d) : descramble_diagonal(&w.view, nullptr, &d);
    const std::string where = std::string(trace ? "trace: " : "diagonal: ") + c.text;
    const bool vast = largest(w.values) > 1e100;  // may overflow
    check(plausible(status, w) || (vast && status == DESCRAMBLE_INVALID_ARGUMENT),
          where + ": status " + std::to_string(status));
    check((d != nullptr) == (status == DESCRAMBLE_OK), where + ": its handle");
    if (d == nullptr) continue;
    Numbers p(std::size_t(n * n), 0), one = p;
    for (Index i = 0; i < n; ++i) one[std::size_t(i * n + i)] = 1;
    check(descramble_descrambler_matrix(d, p.data(), n * n) == DESCRAMBLE_OK, where);
    check(difference(product(p, p, n, n, n, true), one) <= 1e-12 * double(n), where + ": P P^T");
    descramble_descrambler_destroy(d);
  }
}

void orders(const Case& c, Index n, Index m) {
  const Array a = matrix(c, {n, m});
  for (int function = 0; function < 4; ++function) {
    ++trials;
    std::vector<Index> order(std::size_t(n), -7), signs(std::size_t(n), 0);
    const auto call = [&] {
      switch (function) {
        case 0:
          return descramble_permute_trace(&a.view, nullptr, order.data(), n, nullptr);
        case 1:
          return descramble_permute_diagonal(&a.view, nullptr, order.data(), n, nullptr);
        case 2:
          return descramble_nearest_permutation(&a.view, nullptr, order.data(), signs.data(), n,
                                                nullptr);
        default:
          return descramble_match_neurons(&a.view, nullptr, order.data(), nullptr, n, nullptr);
      }
    };
    const descramble_status status = call();
    const std::string where = "order " + std::to_string(function) + ": " + c.text;
    const bool vast = largest(a.values) > 1e100 || n != m;
    check(plausible(status, a) || (vast && status == DESCRAMBLE_INVALID_ARGUMENT),
          where + ": status " + std::to_string(status));
    if (status != DESCRAMBLE_OK) continue;
    std::vector<Index> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    check(std::adjacent_find(sorted.begin(), sorted.end(),
                             [](Index x, Index y) { return x == y && x >= 0; }) == sorted.end(),
          where + ": not a permutation");
  }
}

void operators(const Case& c, Index n) {
  const Array a = matrix(c, {n, n}, true);
  trials += 4;
  descramble_operator* op = nullptr;
  const descramble_status status = descramble_operator_from_matrix(&a.view, nullptr, &op);
  const std::string where = "from_matrix: " + c.text;
  // (Not all of them are positive semidefinite.)
  check(plausible(status, a) || status == DESCRAMBLE_INVALID_ARGUMENT,
        where + ": status " + std::to_string(status));
  check((op != nullptr) == (status == DESCRAMBLE_OK), where + ": its handle");
  descramble_operator_destroy(op);
  descramble_covariance* cov = nullptr;
  const descramble_status moment =
      descramble_covariance_from_moments(&a.view, nullptr, 1, nullptr, &cov);
  check(plausible(moment, a) || moment == DESCRAMBLE_INVALID_ARGUMENT, "from_moments: " + c.text);
  descramble_operator* ring = nullptr;
  check(descramble_operator_fourier(n, 2, &ring) == DESCRAMBLE_OK, "fourier");
  if (cov != nullptr) {
    descramble_descrambler* d = nullptr;
    const descramble_status made = descramble_smoothness(cov, ring, nullptr, nullptr, &d);
    check(made == DESCRAMBLE_OK || made == DESCRAMBLE_INVALID_ARGUMENT, "smoothness: " + c.text);
    if (d != nullptr) {
      Numbers p(std::size_t(n * n), 0), one = p;
      for (Index i = 0; i < n; ++i) one[std::size_t(i * n + i)] = 1;
      check(descramble_descrambler_matrix(d, p.data(), n * n) == DESCRAMBLE_OK, "matrix");
      check(difference(product(p, p, n, n, n, true), one) <= 1e-12 * double(n),
            "smoothness: " + c.text + ": P P^T");
    }
    descramble_descrambler_destroy(d);
  }
  Numbers out(std::size_t(n * n), 0);
  const descramble_status applied =
      descramble_operator_apply(ring, &a.view, nullptr, out.data(), n * n);
  check(applied == DESCRAMBLE_OK || c.dtype == DESCRAMBLE_BOOLEAN, "apply: " + c.text);
  descramble_operator_destroy(ring);
  descramble_covariance_destroy(cov);
}

void one_case(const Case& c) {
  for (const Index n : {1, 2, 31, 32, 33})
    for (const Index rows : {0, 1, 40}) moments(c, rows, n);
  for (const Index n : {1, 2, 31, 32, 33}) eigenpairs(c, n < 31 ? 3 : 1, n);
  for (const auto& [n, m] : {std::pair<Index, Index>{1, 1}, {2, 3}, {3, 2}, {33, 33}, {0, 3}}) {
    assignments(c, n, m);
    if (n == 0) continue;
    if (n < 33) rotations(c, n, m);
    orders(c, n, m);
  }
  for (const Index n : {1, 5, 32}) operators(c, n);
}

int run(bool all) {
  for (const Kind& kind : kinds)
    for (descramble_dtype dtype = DESCRAMBLE_BOOLEAN; dtype <= DESCRAMBLE_FLOAT64; ++dtype)
      for (Index layout = 0; layout < Index(Layout::count); ++layout) {
        if (!all && layout != (dtype + Index(kind.name[0])) % Index(Layout::count)) continue;
        one_case({kind, dtype, Layout(layout),
                  std::string(kind.name) + ", type " + std::to_string(dtype) + ", layout " +
                      std::to_string(layout)});
      }
  const Case plain{kinds[0], DESCRAMBLE_FLOAT32, Layout::plain, "plain"};
  const Case far{kinds[13], DESCRAMBLE_FLOAT64, Layout::reversed, "far mean"};
  for (const Index batch : {65535, 65536, 65537}) {
    moments(plain, batch, 3);
    moments(far, batch, 3);
    eigenpairs(plain, batch, 2);
  }
  std::printf("%lld trials, %lld failures\n", static_cast<long long>(trials),
              static_cast<long long>(faults));
  return faults > 0;
}

}  // namespace

}  // namespace drill

int main(int count, char** arguments) {
  return drill::run(count > 1 && std::string(arguments[1]) == "--every");
}
