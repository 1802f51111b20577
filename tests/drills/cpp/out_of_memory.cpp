// Every function of the C interface, and those of C++ that it lacks, with every allocation failing
// in turn: each failure gives the error of its own and leaves everything as it was, nothing leaks,
// and the next try gives the bits that come without failures.
//
//   out_of_memory LIST [--every | NAME]
//
// LIST names the exported functions, one a line; one that is not tried here is a failure. Of calls
// that allocate very often only some allocations fail, unless --every. NAME: only what begins so.

#include <sys/wait.h>
#include <unistd.h>
#include <descramble_fast/convolution.hpp>
#include <descramble_fast/covariance.hpp>
#include <descramble_fast/error.hpp>
#include <descramble_fast/permutation.hpp>

#include <fstream>
#include <set>
#include <span>
#include <string>

#include "inputs.hpp"
#include "memory.hpp"

namespace drill {

namespace {

constexpr Index features = 10, x_features = 5, y_features = 4, places = 12, many = 70,
                many_rows = 8000, large = 260, decaying_size = 1024;

// What calls read, and what they write.
struct Buffers {
  Numbers random = Numbers(std::size_t(many_rows * many));
  Numbers symmetric = Numbers(std::size_t(large * large));
  Numbers laplacian = Numbers(std::size_t(places * places));
  Numbers decaying = Numbers(std::size_t(decaying_size * decaying_size));
  Numbers out = Numbers(120'000);
  std::vector<Index> order = std::vector<Index>(1024);

  Buffers() {
    Random source(1);
    for (double& x : random) x = source.uniform();
    for (Index i = 0; i < large; ++i)
      for (Index j = 0; j < large; ++j)
        symmetric[std::size_t(i * large + j)] =
            random[std::size_t(std::max(i, j) * large + std::min(i, j))];
    for (Index i = 0; i < 20; ++i)
      decaying[std::size_t(i * (decaying_size + 1))] = 1 / double(1 + i);
    for (Index i = 0; i < places; ++i) {
      laplacian[std::size_t(i * places + i)] = 2;
      laplacian[std::size_t(i * places + (i + 1) % places)] = -1;
      laplacian[std::size_t((i + 1) % places * places + i)] = -1;
    }
  }
};

// An array that allocates nothing.
template <std::size_t rank>
struct View {
  Index shape[rank];
  descramble_array array;
  View(const void* data, const Index (&lengths)[rank], descramble_dtype dtype = DESCRAMBLE_FLOAT64)
      : array{data, dtype, {DESCRAMBLE_CPU, 0}, std::int32_t(rank), shape, nullptr} {
    std::copy(lengths, lengths + rank, shape);
  }
  View(const View&) = delete;
  operator const descramble_array*() const { return &array; }
};

struct World {
  Buffers buffers;
  descramble_context* context = nullptr;
  // Immutable ones are made once.
  descramble_operator *fourier = nullptr, *path = nullptr, *ring = nullptr, *wide = nullptr;
  descramble_descrambler *smooth = nullptr, *centred = nullptr, *convolution = nullptr,
                         *trace = nullptr;
  // The others anew for every trial.
  descramble_covariance *moments = nullptr, *others = nullptr, *empty = nullptr, *of_many = nullptr;
  descramble_cross_covariance *cross = nullptr, *crosses = nullptr;
  // What a call makes.
  descramble_context* made_context = nullptr;
  descramble_covariance* made = nullptr;
  descramble_cross_covariance* made_cross = nullptr;
  descramble_operator* made_operator = nullptr;
  descramble_descrambler* made_rotations[3] = {};
  double number = 0;
  Index integer = 0;
  std::int32_t small_integer = 0;
  descramble_device device{};

  double* out() { return buffers.out.data(); }
  const double* in() const { return buffers.random.data(); }
};

using Bytes = std::vector<std::byte>;

bool complained = false;

void complain(const std::string& what) {
  complained = true;
  std::fprintf(stderr, "%s (last error: %s)\n", what.c_str(), descramble_last_error());
}

void need(descramble_status status, const char* what) {
  if (status == DESCRAMBLE_OK) return;
  complain(std::string(what) + ": got status " + std::to_string(status));
  std::exit(2);
}

void append(Bytes& to, const void* data, std::size_t bytes) {
  const auto* const begin = static_cast<const std::byte*>(data);
  to.insert(to.end(), begin, begin + bytes);
}

void append(Bytes& to, const descramble_covariance* c) {
  if (c == nullptr) return;
  Index n = 0, count = 0;
  double weight = 0;
  std::int32_t has_mean = 0;
  need(descramble_covariance_size(c, &n), "size");
  Numbers state(std::size_t(2 * n + n * (n + 1) / 2));
  need(descramble_covariance_export(c, &count, &weight, &has_mean, state.data(), state.data() + n,
                                    n, state.data() + 2 * n, n * (n + 1) / 2),
       "export");
  append(to, &count, sizeof count);
  append(to, &weight, sizeof weight);
  append(to, state.data(), state.size() * sizeof(double));
}

void append(Bytes& to, const descramble_cross_covariance* c, Index size) {
  Numbers moment(std::size_t(size), 0);
  double weight = 0;
  if (c == nullptr) return;
  need(descramble_cross_covariance_weight(c, &weight), "weight");
  append(to, &weight, sizeof weight);
  if (weight == 0) return;
  need(descramble_cross_covariance_cross_covariance(c, 0, moment.data(), size), "cross");
  append(to, moment.data(), moment.size() * sizeof(double));
}

void append(Bytes& to, const descramble_descrambler* d) {
  if (d == nullptr) return;
  descramble_descrambler_report report{};
  report.struct_size = sizeof report;
  need(descramble_descrambler_read(d, &report), "read");
  Numbers p(std::size_t(report.size * report.size));
  need(descramble_descrambler_matrix(d, p.data(), Index(p.size())), "matrix");
  append(to, p.data(), p.size() * sizeof(double));
  append(to, &report.cost, sizeof report.cost);
}

void append(Bytes& to, const descramble_operator* op) {
  if (op == nullptr) return;
  Index n = 0;
  need(descramble_operator_size(op, &n), "size");
  Numbers l(std::size_t(n), 0);
  need(descramble_operator_eigenvalues(op, l.data(), n), "eigenvalues");
  append(to, l.data(), l.size() * sizeof(double));
}

Bytes state(const World& w) {
  Bytes out;
  for (const auto* c : {w.moments, w.others, w.empty, w.of_many}) append(out, c);
  for (const auto* c : {w.cross, w.crosses}) append(out, c, x_features * y_features);
  return out;
}

Bytes results(const World& w) {
  Bytes out;
  append(out, w.buffers.out.data(), w.buffers.out.size() * sizeof(double));
  append(out, w.buffers.order.data(), w.buffers.order.size() * sizeof(Index));
  append(out, w.made);
  append(out, w.made_cross, x_features * y_features);
  append(out, w.made_operator);
  for (const auto* d : w.made_rotations) append(out, d);
  append(out, &w.number, sizeof w.number);
  append(out, &w.integer, sizeof w.integer);
  append(out, &w.small_integer, sizeof w.small_integer);
  return out;
}

bool nothing_made(const World& w) {
  return w.made == nullptr && w.made_cross == nullptr && w.made_operator == nullptr &&
         w.made_rotations[0] == nullptr && w.made_rotations[1] == nullptr &&
         w.made_context == nullptr;
}

void update(descramble_covariance* c, const double* rows, Index count, Index n) {
  need(descramble_covariance_update(c, View<2>(rows, {count, n}), nullptr, nullptr, nullptr),
       "update");
}

// Some rows have been added up, others wait.
void begin(World& w) {
  const auto create = [&](Index n) {
    descramble_covariance* c = nullptr;
    need(descramble_covariance_create(n, w.context, &c), "create");
    return c;
  };
  w.moments = create(features);
  update(w.moments, w.in(), 80, features);
  update(w.moments, w.in(), 3, features);
  w.others = create(features);
  update(w.others, w.in() + 7, 90, features);
  update(w.others, w.in() + 7, 2, features);
  w.empty = create(features);
  w.of_many = create(many);
  update(w.of_many, w.in(), 5, many);
  for (auto* c : {&w.cross, &w.crosses}) {
    need(descramble_cross_covariance_create(x_features, y_features, w.context, c), "create");
    need(descramble_cross_covariance_update(*c, View<2>(w.in(), {30, x_features}),
                                            View<2>(w.in() + 9, {30, y_features}), nullptr, nullptr,
                                            nullptr),
         "update");
  }
  std::fill(w.buffers.out.begin(), w.buffers.out.end(), 0);
  std::fill(w.buffers.order.begin(), w.buffers.order.end(), 0);
  w.number = 0;
  w.integer = w.small_integer = 0;
}

void discard(World& w) {
  descramble_context_destroy(std::exchange(w.made_context, nullptr));
  descramble_covariance_destroy(std::exchange(w.made, nullptr));
  descramble_cross_covariance_destroy(std::exchange(w.made_cross, nullptr));
  descramble_operator_destroy(std::exchange(w.made_operator, nullptr));
  for (auto& d : w.made_rotations) descramble_descrambler_destroy(std::exchange(d, nullptr));
}

// Giving back needs no memory.
void end(World& w) {
  start_failing(Source::operator_new, 0, true);
  discard(w);
  for (auto** c : {&w.moments, &w.others, &w.empty, &w.of_many})
    descramble_covariance_destroy(std::exchange(*c, nullptr));
  for (auto** c : {&w.cross, &w.crosses})
    descramble_cross_covariance_destroy(std::exchange(*c, nullptr));
  if (stop_failing() > 0) complain("destroy: asks for memory");
}

struct Experiment {
  const char* name;  // the function's, and after a space what is special
  descramble_status (*call)(World& w);
};

// A function of the C++ headers.
template <class Body>
descramble_status in_cpp(const Body& body) {
  try {
    body();
    return DESCRAMBLE_OK;
  } catch (const std::bad_alloc&) {
    return DESCRAMBLE_OUT_OF_MEMORY;
  }
}

descramble_fast::ArrayView view(const double* data, Index rows, Index columns) {
  return descramble_fast::ArrayView(data, {rows, columns});
}

descramble_status assign(World& w, Index batch, Index n, Index m) {
  descramble_linear_assignment_report out{};
  out.struct_size = sizeof out;
  out.columns = w.buffers.order.data();
  out.columns_size = batch * n;
  out.row_duals = w.out();
  out.row_duals_size = batch * n;
  out.column_duals = w.out() + batch * n;
  out.column_duals_size = batch * m;
  out.cost = w.out() + batch * (n + m);
  out.batch = batch;
  return descramble_linear_assignment(View<3>(w.in(), {batch, n, m}), nullptr, w.context, &out);
}

descramble_status eigh(World& w, const double* a, Index batch, Index n, Index k) {
  return descramble_eigh_float64(View<3>(a, {batch, n, n}), k, w.context, w.out(), batch * k,
                                 w.out() + batch * k, batch * k * n, nullptr, nullptr, batch);
}

descramble_status smoothness(World& w, const descramble_covariance* c,
                             const descramble_operator* op, Index k, descramble_gauge gauge,
                             bool center) {
  descramble_smoothness_options options{};
  options.struct_size = sizeof options;
  options.k = k;
  options.gauge = gauge;
  options.center = center;
  return descramble_smoothness(c, op, &options, w.context, w.made_rotations);
}

// What comes of a search that time ends is not compared.
descramble_status order(World& w, const descramble_covariance* c, const descramble_operator* op,
                        Index n, double time_limit) {
  descramble_search_options options{};
  options.struct_size = sizeof options;
  options.restarts = 2;
  options.time_limit = time_limit;
  const descramble_status status =
      descramble_permutation(c, op, &options, w.context, w.buffers.order.data(), n, nullptr);
  if (time_limit > 0) std::fill(w.buffers.order.begin(), w.buffers.order.end(), 0);
  return status;
}

using W = World&;

const Experiment experiments[] = {
    {"descramble_abi_version", [](W) { return descramble_status(descramble_abi_version() != 1); }},
    {"descramble_version", [](W) { return descramble_status(descramble_version()[0] == 0); }},
    {"descramble_last_error",
     [](W) { return descramble_status(descramble_last_error() == nullptr); }},
    {"descramble_context_create", [](W w) { return descramble_context_create(&w.made_context); }},
    {"descramble_context_set_threads",
     [](W w) { return descramble_context_set_threads(w.context, 3); }},
    {"descramble_context_set_stream",
     [](W w) { return descramble_context_set_stream(w.context, nullptr); }},
    {"descramble_context_set_poll",
     [](W w) { return descramble_context_set_poll(w.context, [](void*) { return 0; }, nullptr); }},
    {"descramble_context_set_executor",
     [](W w) {
       const auto run = [](void*, std::int32_t, void (*)(void*, std::int32_t), void*) { return 1; };
       const descramble_status status = descramble_context_set_executor(w.context, run, nullptr);
       return status != DESCRAMBLE_OK
                  ? status
                  : descramble_context_set_executor(w.context, nullptr, nullptr);
     }},
    {"descramble_context_set_allocator",
     [](W w) {
       descramble_status status = descramble_context_create(&w.made_context);
       if (status == DESCRAMBLE_OK)
         status = descramble_context_set_allocator(w.made_context, allocate, release, nullptr);
       if (status != DESCRAMBLE_OK)
         descramble_context_destroy(std::exchange(w.made_context, nullptr));
       return status;
     }},
    {"descramble_context_set_log",
     [](W w) {
       return descramble_context_set_log(
           w.context, [](void*, descramble_severity, const char*) {}, nullptr);
     }},
    {"descramble_num_threads", [](W w) { return descramble_num_threads(&w.small_integer); }},
    {"descramble_set_num_threads", [](W) { return descramble_set_num_threads(0); }},
    {"descramble_cuda_available",
     [](W w) { return descramble_cuda_available(0, &w.small_integer); }},
    {"descramble_covariance_create",
     [](W w) { return descramble_covariance_create(features, w.context, &w.made); }},
    {"descramble_covariance_create_on",
     [](W w) { return descramble_covariance_create_on(features, {}, 0, w.context, &w.made); }},
    {"descramble_covariance_from_moments",
     [](W w) {
       return descramble_covariance_from_moments(
           View<2>(w.buffers.laplacian.data(), {places, places}), View<1>(w.out(), {places}), 2,
           w.context, &w.made);
     }},
    {"descramble_preactivation_moment",
     [](W w) {
       return descramble_preactivation_moment(View<2>(w.in(), {7, places}), View<1>(w.in(), {7}),
                                              View<2>(w.buffers.laplacian.data(), {places, places}),
                                              View<1>(w.out(), {places}), w.context, &w.made);
     }},
    {"descramble_covariance_update",
     [](W w) {
       return descramble_covariance_update(w.moments, View<2>(w.in(), {300, features}), nullptr,
                                           nullptr, w.context);
     }},
    {"descramble_covariance_update of few rows",
     [](W w) {
       return descramble_covariance_update(w.empty, View<2>(w.in(), {2, features}), nullptr,
                                           nullptr, w.context);
     }},
    {"descramble_covariance_update with weights",
     [](W w) {
       static constexpr std::uint8_t mask[4] = {1, 0, 1, 1};
       static constexpr float weights[4] = {1, 2, 0, 3};
       return descramble_covariance_update(w.moments, View<2>(w.in(), {4, features}),
                                           View<1>(mask, {4}, DESCRAMBLE_BOOLEAN),
                                           View<1>(weights, {4}, DESCRAMBLE_FLOAT32), w.context);
     }},
    {"descramble_covariance_update of strided bfloat16",
     [](W w) {
       const Index shape[] = {40, 6, features}, strides[] = {2, 1, 100};
       const descramble_array array{w.in(), DESCRAMBLE_BFLOAT16, {}, 3, shape, strides};
       std::memset(w.out(), 0, 20000);
       descramble_array zeros = array;
       zeros.data = w.out();
       return descramble_covariance_update(w.moments, &zeros, nullptr, nullptr, w.context);
     }},
    {"descramble_covariance_update by threads",
     [](W w) {
       return descramble_covariance_update(w.of_many, View<2>(w.in(), {many_rows, many}), nullptr,
                                           nullptr, w.context);
     }},
    {"descramble_covariance_merge",
     [](W w) { return descramble_covariance_merge(w.moments, w.others); }},
    {"descramble_covariance_merge into an empty one",
     [](W w) { return descramble_covariance_merge(w.empty, w.others); }},
    {"descramble_covariance_size",
     [](W w) { return descramble_covariance_size(w.moments, &w.integer); }},
    {"descramble_covariance_device",
     [](W w) { return descramble_covariance_device(w.moments, &w.device); }},
    {"descramble_covariance_count",
     [](W w) { return descramble_covariance_count(w.moments, &w.integer); }},
    {"descramble_covariance_weight",
     [](W w) { return descramble_covariance_weight(w.moments, &w.number); }},
    {"descramble_covariance_mean",
     [](W w) { return descramble_covariance_mean(w.moments, w.out(), features); }},
    {"descramble_covariance_second_moment",
     [](W w) {
       return descramble_covariance_second_moment(w.moments, w.out(), features * features);
     }},
    {"descramble_covariance_covariance",
     [](W w) {
       return descramble_covariance_covariance(w.moments, 1, w.out(), features * features);
     }},
    {"descramble_covariance_export",
     [](W w) {
       double* const to = w.out();
       return descramble_covariance_export(w.moments, &w.integer, &w.number, &w.small_integer, to,
                                           to + features, features, to + 2 * features,
                                           features * (features + 1) / 2);
     }},
    {"descramble_covariance_import",
     [](W w) {
       return descramble_covariance_import(3, 2.5, 1, w.in(), w.in() + 9, features, w.in() + 20,
                                           features * (features + 1) / 2, w.context, &w.made);
     }},
    {"descramble_cross_covariance_create",
     [](W w) {
       return descramble_cross_covariance_create(x_features, y_features, w.context, &w.made_cross);
     }},
    {"descramble_cross_covariance_create_on",
     [](W w) {
       return descramble_cross_covariance_create_on(x_features, y_features, {}, 0, w.context,
                                                    &w.made_cross);
     }},
    {"descramble_cross_covariance_update",
     [](W w) {
       return descramble_cross_covariance_update(w.cross, View<2>(w.in(), {200, x_features}),
                                                 View<2>(w.in() + 9, {200, y_features}), nullptr,
                                                 nullptr, w.context);
     }},
    {"descramble_cross_covariance_merge",
     [](W w) { return descramble_cross_covariance_merge(w.cross, w.crosses); }},
    {"descramble_cross_covariance_count",
     [](W w) { return descramble_cross_covariance_count(w.cross, &w.integer); }},
    {"descramble_cross_covariance_weight",
     [](W w) { return descramble_cross_covariance_weight(w.cross, &w.number); }},
    {"descramble_cross_covariance_cross_moment",
     [](W w) {
       return descramble_cross_covariance_cross_moment(w.cross, w.out(), x_features * y_features);
     }},
    {"descramble_cross_covariance_cross_covariance",
     [](W w) {
       return descramble_cross_covariance_cross_covariance(w.cross, 0, w.out(),
                                                           x_features * y_features);
     }},
    {"descramble_cross_covariance_correlation",
     [](W w) {
       return descramble_cross_covariance_correlation(w.cross, w.out(), x_features * y_features);
     }},
    {"descramble_operator_fourier",
     [](W w) { return descramble_operator_fourier(places, 2, &w.made_operator); }},
    {"descramble_operator_fourier of 37 places",
     [](W w) { return descramble_operator_fourier(37, 1, &w.made_operator); }},
    {"descramble_operator_difference",
     [](W w) {
       return descramble_operator_difference(places, 2, DESCRAMBLE_PATH, &w.made_operator);
     }},
    {"descramble_operator_central_difference",
     [](W w) { return descramble_operator_central_difference(places, &w.made_operator); }},
    {"descramble_operator_grid",
     [](W w) {
       const descramble_operator* const axes[] = {w.fourier, w.path, w.ring};
       return descramble_operator_grid(axes, 3, &w.made_operator);
     }},
    {"descramble_operator_from_matrix",
     [](W w) {
       return descramble_operator_from_matrix(View<2>(w.buffers.laplacian.data(), {places, places}),
                                              w.context, &w.made_operator);
     }},
    {"descramble_operator_size", [](W w) { return descramble_operator_size(w.path, &w.integer); }},
    {"descramble_operator_eigenvalues",
     [](W w) { return descramble_operator_eigenvalues(w.path, w.out(), features); }},
    {"descramble_operator_modes",
     [](W w) { return descramble_operator_modes(w.ring, w.out(), places * places); }},
    {"descramble_operator_apply",
     [](W w) {
       return descramble_operator_apply(w.fourier, View<2>(w.in(), {9, features}), w.context,
                                        w.out(), 9 * features);
     }},
    {"descramble_operator_analyze",
     [](W w) {
       return descramble_operator_analyze(w.path, View<2>(w.in(), {9, features}), w.context,
                                          w.out(), 9 * features);
     }},
    {"descramble_operator_analyze by threads",
     [](W w) {
       return descramble_operator_analyze(w.wide, View<2>(w.in(), {1200, many}), w.context, w.out(),
                                          1200 * many);
     }},
    {"descramble_operator_synthesize",
     [](W w) {
       return descramble_operator_synthesize(w.ring, View<2>(w.in(), {9, places}), w.context,
                                             w.out(), 9 * places);
     }},
    {"descramble_eigh_float32",
     [](W w) {
       static const std::vector<float> narrow(15 * 15, 0.5F);
       auto* const to = reinterpret_cast<float*>(w.out());
       return descramble_eigh_float32(View<2>(narrow.data(), {15, 15}, DESCRAMBLE_FLOAT32), 0,
                                      w.context, to, 15, to + 15, 15 * 15, nullptr, nullptr, 1);
     }},
    {"descramble_eigh_float64", [](W w) { return eigh(w, w.buffers.symmetric.data(), 1, 40, 40); }},
    {"descramble_eigh_float64 of a few pairs",
     [](W w) { return eigh(w, w.buffers.symmetric.data(), 1, 90, 5); }},
    {"descramble_eigh_float64 of leading pairs",
     [](W w) { return eigh(w, w.buffers.decaying.data(), 1, decaying_size, 8); }},
    {"descramble_eigh_float64 of a batch",
     [](W w) { return eigh(w, w.buffers.symmetric.data(), 40, 16, 16); }},
    {"descramble_eigh_float64 by threads",
     [](W w) { return eigh(w, w.buffers.symmetric.data(), 1, large, large); }},
    {"descramble_eigh_float64 of a batch by threads",
     [](W w) { return eigh(w, w.in(), 100, 33, 33); }},
    {"descramble_smoothness",
     [](W w) { return smoothness(w, w.moments, w.fourier, 0, DESCRAMBLE_GAUGE_CANONICAL, false); }},
    {"descramble_smoothness, centred, of few",
     [](W w) { return smoothness(w, w.moments, w.path, 3, DESCRAMBLE_GAUGE_CANONICAL, true); }},
    {"descramble_smoothness near the identity",
     [](W w) { return smoothness(w, w.moments, w.fourier, 0, DESCRAMBLE_GAUGE_IDENTITY, false); }},
    {"descramble_smoothness_many",
     [](W w) {
       const descramble_covariance* const covariances[] = {w.moments, w.of_many, w.others};
       const descramble_operator* const ops[] = {w.fourier, w.wide, w.path};
       return descramble_smoothness_many(covariances, ops, 3, nullptr, w.context, w.made_rotations);
     }},
    {"descramble_convolution",
     [](W w) {
       const Index shape[] = {4, 3};
       return descramble_convolution(View<4>(w.in(), {2, 2, 3, 3}), shape, 2, nullptr, w.context,
                                     w.made_rotations);
     }},
    {"descramble_convolution of many channels",
     [](W w) {
       const Index shape[] = {3};
       return descramble_convolution(View<3>(w.in(), {128, 128, 1}), shape, 1, nullptr, w.context,
                                     w.made_rotations);
     }},
    {"descramble_convolution by threads",
     [](W w) {
       const Index shape[] = {30};
       return descramble_convolution(View<3>(w.in(), {8, 9, 5}), shape, 1, nullptr, w.context,
                                     w.made_rotations);
     }},
    {"descramble_trace",
     [](W w) { return descramble_trace(View<2>(w.in(), {6, 9}), w.context, w.made_rotations); }},
    {"descramble_trace by eigenvectors",
     [](W w) {
       return descramble_trace(View<2>(w.in(), {130, 130}), w.context, w.made_rotations);
     }},
    {"descramble_trace of low rank",
     [](W w) { return descramble_trace(View<2>(w.in(), {130, 60}), w.context, w.made_rotations); }},
    {"descramble_diagonal",
     [](W w) { return descramble_diagonal(View<2>(w.in(), {6, 5}), w.context, w.made_rotations); }},
    {"descramble_descrambler_read",
     [](W w) {
       descramble_descrambler_report report{};
       report.struct_size = sizeof report;
       const descramble_status status = descramble_descrambler_read(w.convolution, &report);
       w.number = report.cost;
       return status;
     }},
    {"descramble_descrambler_device",
     [](W w) { return descramble_descrambler_device(w.smooth, &w.device); }},
    {"descramble_descrambler_eigenvalues",
     [](W w) { return descramble_descrambler_eigenvalues(w.smooth, w.out(), features); }},
    {"descramble_descrambler_components",
     [](W w) { return descramble_descrambler_components(w.smooth, w.out(), features * features); }},
    {"descramble_descrambler_modes",
     [](W w) { return descramble_descrambler_modes(w.smooth, w.out(), features * features); }},
    {"descramble_descrambler_blocks",
     [](W w) { return descramble_descrambler_blocks(w.smooth, w.buffers.order.data(), 0); }},
    {"descramble_descrambler_mean",
     [](W w) { return descramble_descrambler_mean(w.centred, w.out(), features); }},
    {"descramble_descrambler_matrix",
     [](W w) { return descramble_descrambler_matrix(w.smooth, w.out(), features * features); }},
    {"descramble_descrambler_matrix of a convolution",
     [](W w) { return descramble_descrambler_matrix(w.convolution, w.out(), 24 * 24); }},
    {"descramble_descrambler_transform",
     [](W w) {
       return descramble_descrambler_transform(w.centred, View<2>(w.in(), {20, features}),
                                               w.context, w.out(), 20 * features);
     }},
    {"descramble_descrambler_transform of a convolution",
     [](W w) {
       return descramble_descrambler_transform(w.convolution, View<2>(w.in(), {20, 24}), w.context,
                                               w.out(), 20 * 24);
     }},
    {"descramble_descrambler_inverse_transform",
     [](W w) {
       return descramble_descrambler_inverse_transform(w.trace, View<2>(w.in(), {20, 6}), w.context,
                                                       w.out(), 20 * 6);
     }},
    {"descramble_descrambler_transform_weight",
     [](W w) {
       return descramble_descrambler_transform_weight(w.smooth, View<2>(w.in(), {features, 4}),
                                                      w.context, w.out(), features * 4);
     }},
    {"descramble_descrambler_transform_bias",
     [](W w) {
       return descramble_descrambler_transform_bias(w.smooth, View<1>(w.in(), {features}),
                                                    w.context, w.out(), features);
     }},
    {"descramble_descrambler_transform_next_weight",
     [](W w) {
       return descramble_descrambler_transform_next_weight(w.smooth, View<2>(w.in(), {4, features}),
                                                           w.context, w.out(), 4 * features);
     }},
    {"descramble_linear_assignment", [](W w) { return assign(w, 1, 20, 20); }},
    {"descramble_linear_assignment to many", [](W w) { return assign(w, 1, 12, 30); }},
    {"descramble_linear_assignment to few", [](W w) { return assign(w, 1, 30, 12); }},
    {"descramble_linear_assignment of a batch", [](W w) { return assign(w, 20, 12, 12); }},
    {"descramble_linear_assignment by threads", [](W w) { return assign(w, 4, 110, 110); }},
    {"descramble_quadratic_assignment",
     [](W w) {
       return descramble_quadratic_assignment(View<2>(w.in(), {5, 5}), View<2>(w.in() + 30, {5, 5}),
                                              nullptr, w.context, w.buffers.order.data(), 5,
                                              nullptr);
     }},
    {"descramble_permutation", [](W w) { return order(w, w.moments, w.fourier, features, 1e-9); }},
    {"descramble_permutation on a path",
     [](W w) { return order(w, w.moments, w.path, features, 0); }},
    {"descramble_permutation of many", [](W w) { return order(w, w.of_many, w.wide, many, 1e-9); }},
    {"descramble_permute_trace",
     [](W w) {
       return descramble_permute_trace(View<2>(w.in(), {8, 6}), w.context, w.buffers.order.data(),
                                       8, nullptr);
     }},
    {"descramble_permute_diagonal",
     [](W w) {
       return descramble_permute_diagonal(View<2>(w.in(), {6, 8}), w.context,
                                          w.buffers.order.data(), 6, nullptr);
     }},
    {"descramble_nearest_permutation",
     [](W w) {
       Index* const to = w.buffers.order.data();
       return descramble_nearest_permutation(View<2>(w.in(), {9, 9}), w.context, to, to + 9, 9,
                                             nullptr);
     }},
    {"descramble_match_neurons",
     [](W w) {
       Index* const to = w.buffers.order.data();
       return descramble_match_neurons(View<2>(w.in(), {9, 7}), w.context, to, to + 9, 9, nullptr);
     }},
    {"descramble_match_modes",
     [](W w) {
       return descramble_match_modes(w.smooth, w.context, w.buffers.order.data(), w.out(), features,
                                     &w.number);
     }},
    {"descramble_context_destroy of what was made",
     [](W w) { return descramble_context_create(&w.made_context); }},
    {"descramble_covariance_destroy of what was made",
     [](W w) { return descramble_covariance_create(features, nullptr, &w.made); }},
    {"descramble_cross_covariance_destroy of what was made",
     [](W w) { return descramble_cross_covariance_create(2, 3, nullptr, &w.made_cross); }},
    {"descramble_operator_destroy of what was made",
     [](W w) {
       return descramble_operator_difference(3, 1, DESCRAMBLE_PERIODIC, &w.made_operator);
     }},
    {"descramble_descrambler_destroy of what was made",
     [](W w) { return descramble_trace(View<2>(w.in(), {1, 1}), w.context, w.made_rotations); }},
    {"Covariance::combine",
     [](W w) {
       return in_cpp([&] {
         descramble_fast::Covariance a(4), b(4);
         a.update(view(w.in(), 9, 4));
         b.update(view(w.in() + 50, 9, 4));
         const descramble_fast::Covariance* const parts[] = {&a, &b};
         const double weights[] = {1, 2};
         const auto c = descramble_fast::Covariance::combine(parts, weights).second_moment();
         std::copy(c.values().begin(), c.values().end(), w.out());
       });
     }},
    {"output_difference",
     [](W w) {
       return in_cpp([&] {
         const descramble_fast::Layer layer{view(w.in(), 4, 5), {}, view(w.in() + 30, 3, 4)};
         w.number = descramble_fast::output_difference(layer, layer);
       });
     }},
};

struct Counts {
  Index trials = 0, failed = 0, survived = 0;
};

// The errors that there may be: of memory, in words that say so.
bool is_out_of_memory(descramble_status status) { return status == DESCRAMBLE_OUT_OF_MEMORY; }

Counts fail_everywhere(World& w, const Experiment& e, Source source, bool all, bool every) {
  // Reading moments adds up the rows that wait, so that what comes of a call depends in its last
  // bits on whether they were read before it.
  begin(w);
  need(e.call(w), e.name);  // (which may begin threads, and load libraries)
  end(w);
  begin(w);
  need(e.call(w), e.name);
  const Bytes at_once = results(w), after_at_once = state(w);
  end(w);
  begin(w);
  const Bytes before = state(w);
  need(e.call(w), e.name);
  const Bytes later = results(w), after = state(w);
  end(w);

  Counts counts;
  Index step = 1;
  for (Index n = 0, more = 1; more != 0 && !complained; n += step) {
    const std::int64_t live = live_bytes();
    begin(w);
    // Exceptions then come from what the C++ library has put by.
    if (all) start_failing(Source::malloc, 0, true);
    start_failing(source, n, all);
    const descramble_status status = e.call(w);
    more = stop_failing();
    const auto broken = [&](const std::string& what) {
      complain(std::string(e.name) + ", allocation " + std::to_string(n) + " of source " +
               std::to_string(int(source)) + (all ? " and all later ones: " : ": ") + what);
    };
    ++counts.trials;
    counts.failed += more > 0;
    if (status == DESCRAMBLE_OK) {
      counts.survived += more > 0;
      if (results(w) != at_once) broken("other results");
      if (state(w) != after_at_once) broken("another state");
    } else {
      if (!is_out_of_memory(status) || more == 0) broken("got status " + std::to_string(status));
      const std::string said = descramble_last_error();
      if (said.find("out of memory") == said.npos && said.find("bytes") == said.npos)
        broken("it says " + said);
      if (!nothing_made(w)) broken("a handle is left");
      if (state(w) != before) broken("the state has changed");
      std::fill(w.buffers.out.begin(), w.buffers.out.end(), 0);
      std::fill(w.buffers.order.begin(), w.buffers.order.end(), 0);
      if (e.call(w) != DESCRAMBLE_OK) broken("fails when tried again");
      if (results(w) != later) broken("other results when tried again");
      if (state(w) != after) broken("another state when tried again");
    }
    end(w);
    if (live_bytes() > live) broken("memory is kept");
    if (allocator_bytes() != 0) broken("memory of the allocator is kept");
    if (!every && n >= 30) step = 1 + n / 8;
  }
  return counts;
}

// Threads that cannot be had are done without. In a child, whose pool has none yet.
Index without_threads(World& w, const Experiment& e) {
  Index trials = 0;
  if (std::strstr(e.name, "threads") == nullptr) return trials;
  begin(w);
  need(e.call(w), e.name);
  const Bytes expected = results(w), after = state(w);
  end(w);
  for (Index n = 0; n < 3; ++n, ++trials) {
    const pid_t child = fork();
    if (child == 0) {
      begin(w);
      start_failing(Source::thread, n, n != 1);
      const descramble_status status = e.call(w);
      stop_failing();
      const bool same = status == DESCRAMBLE_OK && results(w) == expected && state(w) == after;
      std::_Exit(same ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    if (status != 0) complain(std::string(e.name) + ": not the same without a thread");
  }
  return trials;
}

void make_immutable(World& w) {
  need(descramble_context_create(&w.context), "context");
  need(descramble_context_set_threads(w.context, 3), "threads");
  need(descramble_operator_fourier(features, 2, &w.fourier), "operator");
  need(descramble_operator_fourier(many, 2, &w.wide), "operator");
  need(descramble_operator_difference(features, 1, DESCRAMBLE_PATH, &w.path), "operator");
  need(descramble_operator_from_matrix(View<2>(w.buffers.laplacian.data(), {places, places}),
                                       nullptr, &w.ring),
       "operator");
  begin(w);
  descramble_smoothness_options options{};
  options.struct_size = sizeof options;
  need(descramble_smoothness(w.moments, w.fourier, &options, nullptr, &w.smooth), "smoothness");
  options.center = 1;
  need(descramble_smoothness(w.moments, w.path, &options, nullptr, &w.centred), "smoothness");
  const Index shape[] = {4, 3};
  need(descramble_convolution(View<4>(w.in(), {2, 2, 3, 3}), shape, 2, nullptr, nullptr,
                              &w.convolution),
       "convolution");
  need(descramble_trace(View<2>(w.in(), {6, 6}), nullptr, &w.trace), "trace");
  end(w);
}

void destroy_immutable(World& w) {
  for (auto* op : {w.fourier, w.wide, w.path, w.ring}) descramble_operator_destroy(op);
  for (auto* d : {w.smooth, w.centred, w.convolution, w.trace}) descramble_descrambler_destroy(d);
  descramble_context_destroy(w.context);
}

void check_complete(const char* list) {
  std::set<std::string> tried;
  for (const Experiment& e : experiments)
    tried.insert(std::string(e.name, std::strcspn(e.name, " ,")));
  std::ifstream lines(list);
  if (!lines) complain(std::string(list) + ": cannot be read");
  for (std::string name; std::getline(lines, name);)
    if (name.rfind("descramble_", 0) == 0 && name.find("::") == std::string::npos &&
        !tried.contains(name))
      complain(name + ": is not tried");
}

int run(int count, char** arguments) {
  if (count < 2) return 2;
  const std::string chosen = count > 2 ? arguments[2] : "";
  const bool every = chosen == "--every";
  check_complete(arguments[1]);
  World w;
  make_immutable(w);
  Counts sum;
  for (const Experiment& e : experiments) {
    const Index before = sum.trials;
    if (!every && std::string(e.name).rfind(chosen, 0) != 0) continue;
    for (const bool with_allocator : {false, true})
      for (const bool all : {false, true}) {
        const Source source = with_allocator ? Source::caller : Source::operator_new;
        need(descramble_context_set_allocator(w.context, with_allocator ? allocate : nullptr,
                                              with_allocator ? release : nullptr, nullptr),
             "allocator");
        const Counts counts = fail_everywhere(w, e, source, all, every);
        sum.trials += counts.trials;
        sum.failed += counts.failed;
        sum.survived += counts.survived;
      }
    sum.trials += without_threads(w, e);
    std::printf("%s: %lld trials\n", e.name, static_cast<long long>(sum.trials - before));
    std::fflush(stdout);
  }
  destroy_immutable(w);
  std::printf("%lld trials, %lld with failures, %lld of these without effect\n",
              static_cast<long long>(sum.trials), static_cast<long long>(sum.failed),
              static_cast<long long>(sum.survived));
  return complained ? 1 : 0;
}

}  // namespace

}  // namespace drill

int main(int count, char** arguments) { return drill::run(count, arguments); }
