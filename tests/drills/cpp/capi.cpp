// The C interface driven by bytes: any calls in any order, with arrays of any kind in memory of
// exactly their size, polls that cancel, and memory that fails. What comes out is checked against
// what plain sums say, and against twins: objects that got the successful calls alone.
//
// A fuzzer's target; replay.cpp runs files through it.

#include <string>
#include <utility>

#include "inputs.hpp"
#include "memory.hpp"

namespace drill {

namespace {

// Seconds of a search that would take as long as a thousand other calls.
constexpr double a_moment = 1e-9;

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}
  bool done() const { return at_ == end_; }
  Index byte() { return done() ? 0 : *at_++; }
  Index below(Index n) { return byte() % n; }
  bool one_in(Index n) { return byte() % n == n - 1; }

 private:
  const std::uint8_t *at_, *end_;
};

[[noreturn]] void broken(const char* call, const std::string& what) {
  std::fprintf(stderr, "%s: %s (last error: %s)\n", call, what.c_str(), descramble_last_error());
  std::abort();
}

void expect(bool holds, const char* call, const std::string& what) {
  if (!holds) broken(call, what);
}

std::string text(double x) {
  char out[32];
  std::snprintf(out, sizeof out, "%.17g", x);
  return out;
}

void expect_near(double got, double wanted, double tolerance, const char* call, const char* what) {
  expect(std::abs(got - wanted) <= tolerance || got == wanted, call,
         std::string(what) + ": got " + text(got) + ", expected " + text(wanted) + " within " +
             text(tolerance));
}

Numbers numbers(Bytes& in, Index count, Index columns) {
  const Index kind = in.below(16), seed = in.byte();
  Random random{std::uint64_t(seed)};
  Numbers out(std::size_t(std::max<Index>(count, 1)));
  const double constant = double(seed) - 100;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const Index row = Index(i) / columns, column = Index(i) % columns;
    const double u = random.uniform();
    switch (kind) {
      case 1:
        out[i] = std::floor(4 * u);
        break;
      case 2:
        out[i] = constant;
        break;
      case 3:
        out[i] = 0;
        break;
      case 4:
        out[i] = row % columns == column;
        break;
      case 5:
        out[i] = u * 1e300;
        break;
      case 6:
        out[i] = u < 0 ? -3.4e38 : 3.4e38;
        break;
      case 7:
        out[i] = u * 1e-310;
        break;
      case 8:
        out[i] = u * 1e-44;
        break;
      case 9:
        out[i] = 1e6 + u;
        break;
      case 10:
        out[i] = -1e6 + u;
        break;
      case 11:
        out[i] = (1.0 + double(row % 7)) * (1.0 + double(column % 5));
        break;
      case 12:
        out[i] = std::ldexp(u, int(random.below(120)) - 60);
        break;
      case 13: {  // a ring's Laplacian
        const Index apart = (row - column + 2 * columns) % columns;
        out[i] = apart == 0 ? 2 : apart == 1 || apart == columns - 1 ? -1 : 0;
        break;
      }
      default:
        out[i] = u;
    }
  }
  for (Index places = in.one_in(4) ? in.below(8) : 0; places-- > 0;) {
    constexpr double odd[] = {not_a_number, infinity, -infinity, 1e308, 3.5e38, 65520, -0.0, 1};
    out[std::size_t(in.byte()) % out.size()] = odd[in.below(8)];
  }
  return out;
}

// Made symmetric, so that it may be a moment: a a^T for (n, n).
Numbers squared(const Numbers& a, Index n) { return product(a, a, n, n, n, true); }

Index a_size(Bytes& in) {
  constexpr Index sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 9, 16, 17, 33};
  return sizes[in.below(16)];
}

// The same of an array, but for what no caller should give.
struct Given {
  Array array;
  bool odd = false;
  std::vector<Index> lengths = {}, steps = {};
  const descramble_array* view() const { return &array.view; }

  void spoil(Bytes& in) {
    descramble_array& a = array.view;
    odd = true;
    const auto rank = std::size_t(std::max(a.rank, 1));
    lengths.assign(rank, 1);
    for (std::size_t i = 0; i < rank && a.rank > 0; ++i) lengths[i] = a.shape[i];
    steps.assign(rank, 1);
    constexpr Index lengths_to_try[] = {-1, std::numeric_limits<Index>::min(),
                                        std::numeric_limits<Index>::max(), Index(1) << 61};
    switch (in.below(10)) {
      case 0:
        a.data = nullptr;
        break;
      case 1:
        if (a.dtype != DESCRAMBLE_BOOLEAN) a.data = static_cast<const char*>(a.data) + 1;
        break;
      case 2:
        a.dtype = in.one_in(2) ? -1 : 5;
        break;
      case 3:
        a.rank = in.one_in(2) ? -1 : 9;
        break;
      case 4:
        a.shape = nullptr;
        break;
      case 5:
        a.device = {DESCRAMBLE_CUDA, std::int32_t(in.byte()) - 8};
        break;
      case 6:
        a.device = {std::int32_t(in.byte()) - 128, 1};
        break;
      case 7:
        lengths[std::size_t(in.byte()) % rank] = lengths_to_try[in.below(4)];
        a.shape = lengths.data();
        break;
      case 8:
        steps.assign(rank, lengths_to_try[1 + in.below(2)]);
        a.strides = steps.data();
        break;
      default:
        a.rank = 0;
    }
  }
};

class World {
 public:
  explicit World(Bytes in) : in_(in) {}

  void run() {
    make_context();
    for (int calls = 0; !in_.done() && calls < 40; ++calls) step();
    for (auto& c : covariances_) c.reset();
    for (auto& c : crosses_) c.reset();
    for (auto& op : operators_) op.reset();
    for (auto& d : descramblers_) d.reset();
    expect(allocator_bytes() == 0, "destroy", "memory of the allocator is kept");
    context_.reset();
    clean_.reset();
  }

 private:
  template <class T, void (*destroy)(T*)>
  struct Destroy {
    void operator()(T* object) const { destroy(object); }
  };
  template <class T, void (*destroy)(T*)>
  using Owned = std::unique_ptr<T, Destroy<T, destroy>>;
  using Context = Owned<descramble_context, descramble_context_destroy>;
  using Covariance = Owned<descramble_covariance, descramble_covariance_destroy>;
  using Cross = Owned<descramble_cross_covariance, descramble_cross_covariance_destroy>;
  using Operator = Owned<descramble_operator, descramble_operator_destroy>;
  using Descrambler = Owned<descramble_descrambler, descramble_descrambler_destroy>;

  // Plain sums of what a covariance was given.
  struct Sums {
    Index n = 0, count = 0;
    long double weight = 0;
    std::vector<long double> first, second;
    double largest = 0, heaviest = 1, lightest = 1;
    bool narrow = false, known = true;

    explicit Sums(Index size = 0)
        : n(size), first(std::size_t(size)), second(std::size_t(size * size)) {}
    void add(const double* row, double w, descramble_dtype dtype) {
      ++count;
      weight += w;
      heaviest = std::max(heaviest, w);
      lightest = std::min(lightest, w);
      narrow = narrow || dtype != DESCRAMBLE_FLOAT64;
      for (Index i = 0; i < n; ++i) {
        largest = std::max(largest, std::abs(row[i]));
        first[std::size_t(i)] += static_cast<long double>(w) * row[i];
        for (Index j = 0; j < n; ++j)
          second[std::size_t(i * n + j)] += static_cast<long double>(w) * row[i] * row[j];
      }
    }
    void add(const Sums& other) {
      count += other.count;
      weight += other.weight;
      largest = std::max(largest, other.largest);
      heaviest = std::max(heaviest, other.heaviest);
      lightest = std::min(lightest, other.lightest);
      narrow = narrow || other.narrow;
      known = known && other.known;
      for (std::size_t i = 0; i < first.size(); ++i) first[i] += other.first[i];
      for (std::size_t i = 0; i < second.size(); ++i) second[i] += other.second[i];
    }
    bool checkable() const {
      return known && count > 0 && largest < 1e140 && heaviest / lightest < 1e9;
    }
  };
  struct Moments {
    Covariance object, twin;
    Sums sums;
    bool has_mean = true;
    void reset() {
      object.reset();
      twin.reset();
    }
  };
  struct CrossMoments {
    Cross object, twin;
    Index x = 0, y = 0, count = 0;
    void reset() {
      object.reset();
      twin.reset();
    }
  };
  struct Places {
    Operator object;
    Index n = 0;
    void reset() { object.reset(); }
  };
  struct Rotation {
    Descrambler object;
    Index n = 0, rank = 0;
    void reset() { object.reset(); }
  };

  // --- how calls run ---

  static std::int32_t poll(void* user) {
    World& world = *static_cast<World*>(user);
    return world.polls_left_ >= 0 && world.polls_left_-- == 0;
  }
  static void log(void*, descramble_severity severity, const char* line) {
    expect(severity == DESCRAMBLE_INFO || severity == DESCRAMBLE_WARNING, "log", "its severity");
    expect(std::strlen(line) < 1024, "log", "its length");
  }
  // As executors may: some of the tasks, in any order, or none.
  static std::int32_t run_tasks(void* user, std::int32_t count, void (*task)(void*, std::int32_t),
                                void* argument) {
    const World& world = *static_cast<World*>(user);
    if (world.executor_ == 2) return 1;
    for (std::int32_t i = count; i-- > 0;)
      if (world.executor_ != 3 || i == 0) task(argument, i);
    return 0;
  }

  void make_context() {
    descramble_context *context = nullptr, *clean = nullptr;
    check_ok(descramble_context_create(&context), "context_create");
    check_ok(descramble_context_create(&clean), "context_create");
    context_.reset(context);
    clean_.reset(clean);
    const auto threads = std::int32_t(1 + in_.below(3));
    executor_ = in_.below(4);
    for (descramble_context* each : {context, clean}) {
      check_ok(descramble_context_set_threads(each, threads), "set_threads");
      // All but a few run where they were called: waking threads takes longer than these calls.
      if (executor_ > 0 || threads > 1)
        check_ok(descramble_context_set_executor(each, run_tasks, this), "set_executor");
    }
    check_ok(descramble_context_set_poll(context, poll, this), "set_poll");
    check_ok(descramble_context_set_log(context, log, nullptr), "set_log");
    if (in_.one_in(2))
      check_ok(descramble_context_set_allocator(context, allocate, release, nullptr),
               "set_allocator");
  }

  void set_up(const char* call) {
    descramble_context* const c = context_.get();
    switch (in_.below(6)) {
      case 0:
        expect(descramble_context_set_threads(c, -1) == DESCRAMBLE_INVALID_ARGUMENT, call, "-1");
        break;
      case 1:
        expect(descramble_context_set_allocator(c, allocate, nullptr, nullptr) ==
                   DESCRAMBLE_INVALID_ARGUMENT,
               call, "half an allocator");
        break;
      case 2:
        check_ok(descramble_context_set_allocator(c, nullptr, nullptr, nullptr), call);
        break;
      case 3:
        check_ok(descramble_context_set_allocator(c, allocate, release, nullptr), call);
        break;
      case 4: {
        std::int32_t threads = 0;
        check_ok(descramble_num_threads(&threads), call);
        expect(threads >= 1, call, "threads");
        break;
      }
      default:
        expect(descramble_context_set_stream(nullptr, nullptr) == DESCRAMBLE_INVALID_ARGUMENT, call,
               "no context");
    }
  }

  void check_ok(descramble_status status, const char* call) {
    expect(status == DESCRAMBLE_OK, call, "got status " + std::to_string(status));
  }

  // Calls it with whatever is to go wrong; where that did, once more without. The status of that.
  template <class Call>
  descramble_status call(const char* name, const Call& make, bool odd = false) {
    const Index plan = in_.byte();
    polls_left_ = plan >= 240 ? in_.below(4) : -1;
    const bool short_of_memory = plan >= 192 && plan < 240;
    if (short_of_memory)
      start_failing(plan & 1 ? Source::operator_new : Source::caller, in_.byte() % 64,
                    (plan & 2) != 0);
    descramble_status status = make(context_.get());
    const bool failed = stop_failing() > 0, cancelled = polls_left_ < 0 && plan >= 240;
    polls_left_ = -1;
    check_status(status, name, failed, cancelled, odd);
    if (status == DESCRAMBLE_OUT_OF_MEMORY || status == DESCRAMBLE_CANCELLED)
      if (failed || cancelled) {
        status = make(context_.get());
        check_status(status, name, false, false, odd);
      }
    return status;
  }

  static void check_status(descramble_status status, const char* name, bool failed, bool cancelled,
                           bool odd) {
    if (status == DESCRAMBLE_OK) return;
    const std::size_t length = std::strlen(descramble_last_error());
    expect(length > 0 && length < 1024, name, "an error without a reason");
    switch (status) {
      case DESCRAMBLE_INVALID_ARGUMENT:
      case DESCRAMBLE_TYPE_ERROR:
        return;
      case DESCRAMBLE_OUT_OF_MEMORY:
        return expect(failed || odd, name, "out of memory");
      case DESCRAMBLE_CANCELLED:
        return expect(cancelled, name, "cancelled by nobody");
      case DESCRAMBLE_BACKEND_ERROR:
        return expect(odd, name, "a backend fails");
      default:
        broken(name, "got status " + std::to_string(status));
    }
  }

  // --- what calls are given ---

  descramble_dtype a_dtype() {
    constexpr descramble_dtype types[] = {4, 4, 3, 3, 1, 2, 4, 0};
    return types[in_.below(8)];
  }
  Given array(std::vector<Index> shape, bool symmetric = false) {
    Index count = 1;
    for (const Index length : shape) count *= length;
    const Index columns = shape.empty() ? 1 : std::max<Index>(shape.back(), 1);
    Numbers values = numbers(in_, count, columns);
    if (symmetric && shape.size() == 2 && shape[0] == shape[1] && in_.one_in(2))
      values = squared(values, columns);
    const descramble_dtype dtype = a_dtype();
    const auto layout = Layout(in_.below(Index(Layout::count)));
    Given out{Array(values, std::move(shape), dtype, layout)};
    if (in_.one_in(24)) out.spoil(in_);
    return out;
  }
  // Mostly those; else one of another length, or of other ranks.
  std::vector<Index> about(std::vector<Index> shape) {
    if (!in_.one_in(12)) return shape;
    switch (in_.below(4)) {
      case 0:
        if (!shape.empty()) shape[std::size_t(in_.byte()) % shape.size()] = in_.below(4);
        break;
      case 1:
        shape.push_back(1 + in_.below(2));
        break;
      case 2:
        shape.clear();
        break;
      default:
        shape.insert(shape.begin(), in_.below(3));
    }
    return shape;
  }
  Index rows() {
    constexpr Index counts[] = {0, 1, 2, 3, 5, 8, 31, 40};
    return counts[in_.below(8)];
  }
  static bool has_shape(const Given& a, const std::vector<Index>& shape) {
    const descramble_array& view = a.array.view;
    return !a.odd && std::equal(view.shape, view.shape + view.rank, shape.begin(), shape.end());
  }
  // Mostly that; else one more or less.
  Index near(Index size) {
    return in_.one_in(16) ? std::max<Index>(0, size + in_.below(3) - 1) : size;
  }

  Moments& some_moments() { return covariances_[in_.below(3)]; }
  Rotation& some_rotation() { return descramblers_[in_.below(3)]; }
  Places& some_places() { return operators_[in_.below(4)]; }

  // --- moments ---

  void create_covariance() {
    Moments& m = some_moments();
    m = Moments();
    const Index n = in_.one_in(16) ? Index(1) << (20 + in_.below(44)) : a_size(in_);
    const bool absurd = n > 1 << 19, on = in_.one_in(4);
    const descramble_device device{std::int32_t(in_.one_in(8)), std::int32_t(in_.one_in(16))};
    // (Where nothing has decided where it lives a covariance takes nothing.)
    if (absurd && n <= 1 << 30) return;
    descramble_covariance* out = nullptr;
    const auto make = [&](const descramble_context* c) {
      return on ? descramble_covariance_create_on(n, device, in_.one_in(2), c, &out)
                : descramble_covariance_create(n, c, &out);
    };
    const descramble_status status = call("covariance_create", make, absurd || on);
    expect((out != nullptr) == (status == DESCRAMBLE_OK), "covariance_create", "its handle");
    if (out == nullptr) return;
    m.object.reset(out);
    m.sums = Sums(n);
    descramble_covariance* twin = nullptr;
    check_ok(descramble_covariance_create(n, clean_.get(), &twin), "covariance_create");
    m.twin.reset(twin);
  }

  void covariance_of_moments() {
    Moments& m = some_moments();
    m = Moments();
    const Index n = a_size(in_);
    const Given second = array(about({n, n}), true), mean = array(about({n}));
    const bool with_mean = in_.one_in(2);
    constexpr double weights[] = {1, 2, 0, -1, 1e300, 1e-300, not_a_number, infinity};
    const double weight = weights[in_.one_in(3) ? in_.below(8) : 0];
    const auto make = [&](const descramble_context* c, descramble_covariance** out) {
      return descramble_covariance_from_moments(second.view(), with_mean ? mean.view() : nullptr,
                                                weight, c, out);
    };
    keep(m, "from_moments", make, second.odd || mean.odd, n);
    m.has_mean = with_mean;
  }

  void preactivation() {
    Moments& m = some_moments();
    m = Moments();
    const Index n = a_size(in_), inputs = a_size(in_);
    const Given weight = array(about({n, inputs})), bias = array(about({n})),
                second = array(about({inputs, inputs}), true), mean = array(about({inputs}));
    const Index given = in_.byte();
    const auto make = [&](const descramble_context* c, descramble_covariance** out) {
      return descramble_preactivation_moment(weight.view(), given & 1 ? bias.view() : nullptr,
                                             given & 2 ? second.view() : nullptr,
                                             given & 4 ? mean.view() : nullptr, c, out);
    };
    keep(m, "preactivation_moment", make, weight.odd || bias.odd || second.odd || mean.odd, n);
  }

  template <class Make>
  void keep(Moments& m, const char* name, const Make& make, bool odd, Index n) {
    descramble_covariance* out = nullptr;
    const auto once = [&](const descramble_context* c) { return make(c, &out); };
    const descramble_status status = call(name, once, odd);
    expect((out != nullptr) == (status == DESCRAMBLE_OK), name, "its handle");
    if (out == nullptr) return;
    m.object.reset(out);
    descramble_covariance* twin = nullptr;
    check_ok(make(clean_.get(), &twin), name);
    m.twin.reset(twin);
    check_ok(descramble_covariance_size(out, &n), name);
    m.sums = Sums(n);
    m.sums.known = false;
    check_ok(descramble_covariance_count(out, &m.sums.count), name);
  }

  void update() {
    Moments& m = some_moments();
    if (!m.object) return;
    const Index n = m.sums.n, count = rows();
    const Given batch = array(
        about(in_.one_in(4) ? std::vector<Index>{2, count, n} : std::vector<Index>{count, n}));
    std::vector<Index> leading{count};
    if (!batch.odd && batch.array.view.rank > 0)
      leading.assign(batch.array.view.shape, batch.array.view.shape + batch.array.view.rank - 1);
    const Index selection = in_.byte();
    const Given mask = one_per_row(leading, true), weights = one_per_row(leading, false);
    const bool masked = selection & 1, weighted = selection & 2;
    const auto make = [&](descramble_covariance* object, const descramble_context* c) {
      return descramble_covariance_update(object, batch.view(), masked ? mask.view() : nullptr,
                                          weighted ? weights.view() : nullptr, c);
    };
    const bool odd = batch.odd || (masked && mask.odd) || (weighted && weights.odd);
    const auto once = [&](const descramble_context* c) { return make(m.object.get(), c); };
    if (call("covariance_update", once, odd) != DESCRAMBLE_OK) return;
    check_ok(make(m.twin.get(), clean_.get()), "covariance_update");
    for (Index r = 0; r < Index(batch.array.values.size()) / n; ++r) {
      const double w = weighted ? weights.array.values[std::size_t(r)] : 1;
      if (w != 0 && (!masked || mask.array.values[std::size_t(r)] != 0)) {
        const double* const row = &batch.array.values[std::size_t(r * n)];
        for (Index i = 0; i < n; ++i)
          expect(std::isfinite(row[i]), "covariance_update", "took what is not finite");
        m.sums.add(row, w, batch.array.view.dtype);
      }
    }
    compare_counts(m);
  }
  Given one_per_row(const std::vector<Index>& leading, bool mask) {
    Index count = 1;
    for (const Index length : leading) count *= length;
    Numbers values = numbers(in_, count, 3);
    const bool bare = in_.one_in(8);
    if (!bare && !mask)
      for (double& x : values) x = std::abs(std::isfinite(x) ? x : 1);
    const descramble_dtype dtype = mask && !bare ? DESCRAMBLE_BOOLEAN : a_dtype();
    Given out{Array(values, about(leading), dtype)};
    if (in_.one_in(32)) out.spoil(in_);
    return out;
  }

  void compare_counts(const Moments& m) {
    Index count = -1;
    double weight = -1;
    check_ok(descramble_covariance_count(m.object.get(), &count), "covariance_count");
    check_ok(descramble_covariance_weight(m.object.get(), &weight), "covariance_weight");
    expect(count == m.sums.count, "covariance_count", "got " + std::to_string(count));
    if (m.sums.known)
      expect_near(weight, double(m.sums.weight), 1e-12 * double(m.sums.weight), "weight", "sum");
  }

  void merge() {
    Moments &m = some_moments(), &other = some_moments();
    if (!m.object) return;
    const auto once = [&](const descramble_context*) {
      return descramble_covariance_merge(m.object.get(), other.object.get());
    };
    // One that is refused may have read the moments, which adds rows that waited.
    const descramble_status status = call("covariance_merge", once);
    expect(descramble_covariance_merge(m.twin.get(), other.twin.get()) == status,
           "covariance_merge", "its twin's status");
    if (status != DESCRAMBLE_OK) return;
    const Sums added = other.sums;
    m.sums.add(added);
    compare_counts(m);
  }

  void import() {
    Moments& m = some_moments();
    m = Moments();
    const Index n = a_size(in_), packed = n * (n + 1) / 2;
    const Numbers reference = numbers(in_, n, n), offset = numbers(in_, n, n),
                  scatter = numbers(in_, packed, n);
    const Index count = in_.one_in(4) ? std::numeric_limits<Index>::max() : in_.byte() - 2;
    const double weight = in_.one_in(4) ? numbers(in_, 1, 1)[0] : double(count);
    const Index size = near(n), scatter_size = near(packed);
    const auto has_mean = std::int32_t(in_.below(2));
    // Lengths are said too small at most, so that none is read beyond its end.
    const auto make = [&](const descramble_context* c, descramble_covariance** out) {
      return descramble_covariance_import(count, weight, has_mean, reference.data(), offset.data(),
                                          std::min(size, n), scatter.data(),
                                          std::min(scatter_size, packed), c, out);
    };
    keep(m, "covariance_import", make, false, n);
    m.has_mean = has_mean != 0;
  }

  // Every reading of an object is made of its twin, too, and gives the same bits.
  template <class Object, class Read>
  bool read_both(const char* name, Object* object, Object* twin, Index size, const Read& read,
                 Numbers& out) {
    const Index said = near(size);
    out.assign(std::size_t(said), 0);
    const auto once = [&](const descramble_context*) { return read(object, out.data(), said); };
    const descramble_status status = call(name, once);
    Numbers again(std::size_t(said), 0);
    expect(read(twin, again.data(), said) == status, name, "its twin's status");
    if (status != DESCRAMBLE_OK) return false;
    expect(said == size, name, "took a wrong size");
    expect(said == 0 || std::memcmp(out.data(), again.data(), sizeof(double) * out.size()) == 0,
           name, "not the bits of its twin");
    return true;
  }

  void read_moments() {
    Moments& m = some_moments();
    if (!m.object) return;
    const Index n = m.sums.n;
    Numbers mean, second, covariance;
    if (n > 64) return;
    constexpr double ddofs[] = {0, 1, -1, 1e9, not_a_number};
    const double ddof = ddofs[in_.one_in(2) ? in_.below(5) : 0];
    const bool has_mean = read_both(
        "covariance_mean", m.object.get(), m.twin.get(), n,
        [](auto* c, double* to, Index size) { return descramble_covariance_mean(c, to, size); },
        mean);
    const bool has_second = read_both(
        "second_moment", m.object.get(), m.twin.get(), n * n,
        [](auto* c, double* to, Index size) {
          return descramble_covariance_second_moment(c, to, size);
        },
        second);
    const bool has_covariance = read_both(
        "covariance", m.object.get(), m.twin.get(), n * n,
        [ddof](auto* c, double* to, Index size) {
          return descramble_covariance_covariance(c, ddof, to, size);
        },
        covariance);
    if (has_second)
      for (Index i = 0; i < n * n; ++i)
        expect(std::isfinite(second[std::size_t(i)]) &&
                   second[std::size_t(i)] == second[std::size_t(i % n * n + i / n)],
               "second_moment",
               "not finite or not symmetric: " + text(second[std::size_t(i)]) + " and " +
                   text(second[std::size_t(i % n * n + i / n)]));
    if (m.sums.checkable())
      check_moments(m, has_mean, mean, has_second, second, has_covariance && ddof == 0, covariance);
  }

  static void check_moments(const Moments& m, bool has_mean, const Numbers& mean, bool has_second,
                            const Numbers& second, bool has_covariance, const Numbers& covariance) {
    const Sums& s = m.sums;
    const Index n = s.n;
    double variance = 0;
    for (Index i = 0; i < n; ++i) {
      const long double mu = s.first[std::size_t(i)] / s.weight;
      variance = std::max(variance, double(s.second[std::size_t(i * n + i)] / s.weight - mu * mu));
    }
    // The plain sums lose as many digits as the mean has deviations, twice over.
    const double square = s.largest * s.largest + std::numeric_limits<double>::min();
    const double tolerance = (s.narrow ? 1e-5 : 1e-12) * variance + 1e-13 * square;
    for (Index i = 0; i < n; ++i) {
      const long double mu = s.first[std::size_t(i)] / s.weight;
      if (has_mean)
        expect_near(mean[std::size_t(i)], double(mu),
                    (s.narrow ? 1e-5 : 1e-12) * std::sqrt(std::max(variance, 0.0)) +
                        1e-13 * s.largest + 1e-322,
                    "mean", "value");
      for (Index j = 0; j < n; ++j) {
        const auto at = std::size_t(i * n + j);
        const long double value = s.second[at] / s.weight;
        if (has_second) expect_near(second[at], double(value), tolerance, "second_moment", "value");
        if (has_covariance)
          expect_near(covariance[at], double(value - mu * s.first[std::size_t(j)] / s.weight),
                      tolerance, "covariance", "value");
      }
    }
  }

  struct State {
    Index count = 0;
    double weight = 0;
    std::int32_t has_mean = 0;
    Numbers rest;
  };
  State exported(const descramble_covariance* c, Index n) {
    State out;
    out.rest.resize(std::size_t(2 * n + n * (n + 1) / 2));
    double* const at = out.rest.data();
    check_ok(descramble_covariance_export(c, &out.count, &out.weight, &out.has_mean, at, at + n, n,
                                          at + 2 * n, n * (n + 1) / 2),
             "covariance_export");
    return out;
  }
  void export_moments() {
    Moments& m = some_moments();
    if (!m.object || m.sums.n > 64) return;
    const State a = exported(m.object.get(), m.sums.n), b = exported(m.twin.get(), m.sums.n);
    expect(a.count == b.count && a.weight == b.weight && a.has_mean == b.has_mean &&
               std::memcmp(a.rest.data(), b.rest.data(), sizeof(double) * a.rest.size()) == 0,
           "covariance_export", "not the state of its twin");
    expect(a.count == m.sums.count, "covariance_export", "its count");
  }

  void create_cross() {
    CrossMoments& c = crosses_[in_.below(2)];
    c = CrossMoments();
    c.x = a_size(in_);
    c.y = a_size(in_);
    descramble_cross_covariance* out = nullptr;
    const bool on = in_.one_in(3);
    const auto make = [&](const descramble_context* context) {
      return on ? descramble_cross_covariance_create_on(c.x, c.y, {}, 0, context, &out)
                : descramble_cross_covariance_create(c.x, c.y, context, &out);
    };
    check_ok(call("cross_create", make), "cross_create");
    c.object.reset(out);
    check_ok(descramble_cross_covariance_create(c.x, c.y, clean_.get(), &out), "cross_create");
    c.twin.reset(out);
  }

  void update_cross() {
    CrossMoments& c = crosses_[in_.below(2)];
    if (!c.object) return;
    const Index count = rows();
    const Given x = array(about({count, c.x})), y = array(about({count, c.y}));
    const Index selection = in_.byte();
    const Given mask = one_per_row({count}, true), weights = one_per_row({count}, false);
    const auto make = [&](descramble_cross_covariance* object, const descramble_context* context) {
      return descramble_cross_covariance_update(object, x.view(), y.view(),
                                                selection & 1 ? mask.view() : nullptr,
                                                selection & 2 ? weights.view() : nullptr, context);
    };
    const auto once = [&](const descramble_context* context) {
      return make(c.object.get(), context);
    };
    if (call("cross_update", once, x.odd || y.odd || mask.odd || weights.odd) != DESCRAMBLE_OK)
      return;
    check_ok(make(c.twin.get(), clean_.get()), "cross_update");
    const auto taken = Index(x.array.values.size()) / c.x;
    for (Index r = 0; r < taken; ++r)
      c.count += (!(selection & 1) || mask.array.values[std::size_t(r)] != 0) &&
                 (!(selection & 2) || weights.array.values[std::size_t(r)] != 0);
  }

  void read_cross() {
    CrossMoments &c = crosses_[in_.below(2)], &other = crosses_[in_.below(2)];
    if (!c.object) return;
    if (in_.one_in(3)) {
      const auto once = [&](const descramble_context*) {
        return descramble_cross_covariance_merge(c.object.get(), other.object.get());
      };
      const descramble_status status = call("cross_merge", once);
      expect(descramble_cross_covariance_merge(c.twin.get(), other.twin.get()) == status,
             "cross_merge", "its twin's status");
      if (status == DESCRAMBLE_OK) c.count += other.count;
    }
    Index count = -1;
    check_ok(descramble_cross_covariance_count(c.object.get(), &count), "cross_count");
    expect(count == c.count, "cross_count", std::to_string(count));
    Numbers out;
    const auto both = [&](const char* name, const auto& read) {
      return read_both(name, c.object.get(), c.twin.get(), c.x * c.y, read, out);
    };
    both("cross_moment", [](auto* object, double* to, Index size) {
      return descramble_cross_covariance_cross_moment(object, to, size);
    });
    both("cross_covariance", [](auto* object, double* to, Index size) {
      return descramble_cross_covariance_cross_covariance(object, 0, to, size);
    });
    if (both("correlation", [](auto* object, double* to, Index size) {
          return descramble_cross_covariance_correlation(object, to, size);
        }))
      expect(largest(out) <= 1 + 1e-12, "correlation", "got " + text(largest(out)));
  }

  // --- operators ---

  void create_operator() {
    Places& p = some_places();
    const Index kind = in_.below(6), n = a_size(in_), order = in_.byte() % 5;
    descramble_operator* out = nullptr;
    const Given matrix = array(about({n, n}), true);
    const descramble_operator* axes[3] = {};
    for (auto& axis : axes) axis = some_places().object.get();
    Index product = 1;
    for (const Places& each : operators_)
      for (const auto* axis : axes)
        if (axis != nullptr && axis == each.object.get()) product *= std::max<Index>(each.n, 1);
    const Index count = in_.below(4);
    if (kind == 4 && product > 64) return;
    const auto make = [&](const descramble_context* c) {
      switch (kind) {
        case 0:
          return descramble_operator_fourier(n, std::int32_t(order), &out);
        case 1:
          return descramble_operator_difference(n, std::int32_t(order), std::int32_t(count) - 1,
                                                &out);
        case 2:
          return descramble_operator_central_difference(order == 0 ? 0 : n, &out);
        case 3:
          return descramble_operator_fourier(
              order == 0 ? std::numeric_limits<Index>::max() : Index(1) << (45 + order), 2, &out);
        case 4:
          return descramble_operator_grid(axes, count, &out);
        default:
          return descramble_operator_from_matrix(matrix.view(), c, &out);
      }
    };
    const descramble_status status = call("operator", make, kind == 3 || matrix.odd);
    expect((out != nullptr) == (status == DESCRAMBLE_OK), "operator", "its handle");
    if (out == nullptr) return;
    p.object.reset(out);
    check_ok(descramble_operator_size(out, &p.n), "operator_size");
    check_operator(p);
  }

  // T is orthogonal, and T diag(l) T^T x is L x.
  void check_operator(const Places& p) {
    const Index n = p.n;
    Numbers l(std::size_t(n), 0), modes(std::size_t(n * n), 0), applied = modes, one = modes;
    for (Index i = 0; i < n; ++i) one[std::size_t(i * n + i)] = 1;
    check_ok(descramble_operator_eigenvalues(p.object.get(), l.data(), n), "eigenvalues");
    check_ok(descramble_operator_modes(p.object.get(), modes.data(), n * n), "modes");
    const Array x(one, {n, n});
    check_ok(descramble_operator_apply(p.object.get(), &x.view, nullptr, applied.data(), n * n),
             "apply");
    expect(std::is_sorted(l.begin(), l.end()), "eigenvalues", "not ascending");
    const double error = 50 * double(n) * epsilon;
    expect(difference(product(modes, modes, n, n, n, true), one) <= error, "modes",
           "not orthogonal");
    if (largest(l) > 1e290) return;
    Numbers scaled = modes, transposed = modes;
    for (Index i = 0; i < n * n; ++i) {
      scaled[std::size_t(i)] *= l[std::size_t(i / n)];
      transposed[std::size_t(i)] = modes[std::size_t(i % n * n + i / n)];
    }
    expect(difference(product(transposed, scaled, n, n, n), applied) <=
               20 * error * largest(l) + 1e-300,
           "apply", "not T diag(l) T^T");
  }

  void use_operator() {
    const Places& p = some_places();
    const Index kind = in_.below(3), count = rows();
    const Given x = array(about({count, std::max<Index>(p.n, 1)}));
    const Index size = near(Index(x.array.values.size()));
    Numbers out(std::size_t(size), 0);
    constexpr decltype(&descramble_operator_apply) uses[] = {
        descramble_operator_apply, descramble_operator_analyze, descramble_operator_synthesize};
    const auto make = [&](const descramble_context* c) {
      return uses[kind](p.object.get(), x.view(), c, out.data(), size);
    };
    if (call("operator_apply", make, x.odd) != DESCRAMBLE_OK || x.odd || kind == 0) return;
    // Analysis and synthesis undo each other.
    const double most = largest(x.array.values);
    if (!(most < 1e300)) return;
    if (Index(x.array.values.size()) != count * p.n || out.empty()) return;
    const Array back(out, {count, p.n});
    Numbers again(out.size());
    check_ok(uses[3 - kind](p.object.get(), &back.view, nullptr, again.data(), size), "analyze");
    expect(difference(again, x.array.values) <= 200 * double(p.n) * epsilon * most + 1e-320,
           "analyze", "synthesis does not undo it");
  }

  // --- eigenproblems and descramblers ---

  void eigh() {
    const Index n = a_size(in_), batch = in_.one_in(3) ? in_.below(5) : 1;
    const Index k = in_.one_in(3) ? in_.below(10) - 1 : 0;
    const Given a =
        array(about(batch == 1 ? std::vector<Index>{n, n} : std::vector<Index>{batch, n, n}));
    if (in_.one_in(2))
      eigh<double>(descramble_eigh_float64, a, n, batch, k);
    else
      eigh<float>(descramble_eigh_float32, a, n, batch, k);
  }
  template <class T, class Solve>
  void eigh(const Solve& solve, const Given& a, Index n, Index batch, Index k) {
    const Index kept_pairs = k <= 0 ? n : std::min(k, n);
    const Index values_size = near(batch * kept_pairs), vectors_size = near(batch * kept_pairs * n);
    std::vector<T> values(std::size_t(values_size), 0), vectors(std::size_t(vectors_size), 0);
    Numbers residual(std::size_t(batch), 0), orthogonality(std::size_t(batch), 0);
    const bool wanted = in_.one_in(2);
    const auto make = [&](const descramble_context* c) {
      return solve(a.view(), k, c, values.data(), values_size, vectors.data(), vectors_size,
                   wanted ? residual.data() : nullptr, wanted ? orthogonality.data() : nullptr,
                   batch);
    };
    if (call("eigh", make, a.odd) != DESCRAMBLE_OK || a.odd) return;
    for (Index b = 0; b < batch; ++b)
      check_pairs(&a.array.values[std::size_t(b * n * n)], n, kept_pairs,
                  &values[std::size_t(b * kept_pairs)], &vectors[std::size_t(b * kept_pairs * n)]);
  }
  template <class T>
  static void check_pairs(const double* a, Index n, Index k, const T* values, const T* vectors) {
    double norm = 0, residual = 0, orthogonality = 0;
    const auto lower = [&](Index i, Index j) { return a[std::max(i, j) * n + std::min(i, j)]; };
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) norm = std::hypot(norm, lower(i, j));
    for (Index p = 0; p < k; ++p) {
      expect(std::isfinite(values[p]), "eigh", "an eigenvalue that is not finite");
      expect(p == 0 || values[p - 1] <= values[p], "eigh", "eigenvalues not ascending");
      for (Index i = 0; i < n; ++i) {
        double sum = -double(values[p]) * vectors[p * n + i];
        for (Index j = 0; j < n; ++j) sum += lower(i, j) * vectors[p * n + j];
        residual = std::hypot(residual, sum);
      }
      for (Index q = 0; q < k; ++q) {
        double dot = p == q ? -1 : 0;
        for (Index i = 0; i < n; ++i) dot += double(vectors[p * n + i]) * vectors[q * n + i];
        orthogonality = std::hypot(orthogonality, dot);
      }
    }
    // The contract, of which the library estimates the left side by probes; and what T can hold.
    const double bound = 100 * double(n) * std::numeric_limits<T>::epsilon();
    expect(orthogonality <= bound, "eigh", "orthogonality error " + text(orthogonality));
    expect(residual <= bound * norm + double(n * n) * std::numeric_limits<T>::denorm_min() * 4 ||
               norm > 1e300,
           "eigh", "residual " + text(residual) + " of norm " + text(norm));
  }

  void descramble() {
    Moments& m = some_moments();
    const Places& p = some_places();
    Rotation& r = some_rotation();
    const Index n = std::max<Index>(m.sums.n, 1);
    const Given reference = array(about({n, n}));
    descramble_smoothness_options options{};
    options.struct_size = sizeof options - std::size_t(in_.one_in(32));
    options.k = in_.one_in(3) ? in_.below(8) - 1 : 0;
    options.center = std::int32_t(in_.one_in(3));
    options.gauge = std::int32_t(in_.one_in(2) ? in_.below(5) - 1 : 0);
    options.reference = in_.one_in(4) || options.gauge == 2 ? reference.view() : nullptr;
    const bool many = in_.one_in(4), absent = in_.one_in(8);
    const descramble_operator* const ops[] = {p.object.get(), p.object.get()};
    const auto make = [&](const descramble_covariance* c, const descramble_context* context,
                          descramble_descrambler** out) {
      const descramble_covariance* const both[] = {c, c};
      return many ? descramble_smoothness_many(both, ops, 2, absent ? nullptr : &options, context,
                                               out)
                  : descramble_smoothness(c, ops[0], absent ? nullptr : &options, context, out);
    };
    descramble_descrambler *out[2] = {}, *twin[2] = {};
    const auto once = [&](const descramble_context* c) { return make(m.object.get(), c, out); };
    const descramble_status status = call("smoothness", once, reference.odd);
    expect((out[0] != nullptr) == (status == DESCRAMBLE_OK), "smoothness", "its handle");
    const descramble_status twins = make(m.twin.get(), clean_.get(), twin);
    const Descrambler second(out[1]), third(twin[0]), fourth(twin[1]);
    expect(twins == status, "smoothness", "its twin's status " + std::to_string(twins));
    if (status != DESCRAMBLE_OK) return;
    r = {Descrambler(out[0]), n, 0};
    check_rotation(r, "smoothness");
    check_smoothness(r, m, p, third.get(), !absent && options.center != 0);
  }

  // P P^T is the identity, or, with few components, a projection.
  Numbers check_rotation(Rotation& r, const char* name) {
    descramble_descrambler_report report{};
    report.struct_size = sizeof report;
    check_ok(descramble_descrambler_read(r.object.get(), &report), name);
    r.n = report.size;
    r.rank = report.rank;
    const Index n = r.n;
    Numbers p(std::size_t(n * n), 0);
    check_ok(descramble_descrambler_matrix(r.object.get(), p.data(), n * n), name);
    const Numbers square = product(p, p, n, n, n, true);
    const Numbers again = product(square, square, n, n, n);
    expect(difference(square, again) <= 1e-11 * double(n), name, "P P^T is no projection");
    double rank = 0;
    for (Index i = 0; i < n; ++i) rank += square[std::size_t(i * n + i)];
    expect_near(rank, double(r.rank), 1e-10 * double(n), name, "the trace of P P^T");
    expect(std::isfinite(report.cost) && std::isfinite(report.bound), name, "its cost");
    expect(report.orthogonality_error <= 1e-10 * double(n), name, "its orthogonality error");
    return p;
  }

  void check_smoothness(const Rotation& r, const Moments& m, const Places& places,
                        const descramble_descrambler* twin, bool centred) {
    const Index n = r.n;
    Numbers p(std::size_t(n * n), 0), q = p, c = p, l = p;
    check_ok(descramble_descrambler_matrix(r.object.get(), p.data(), n * n), "matrix");
    check_ok(descramble_descrambler_matrix(twin, q.data(), n * n), "matrix");
    expect(std::memcmp(p.data(), q.data(), sizeof(double) * p.size()) == 0, "smoothness",
           "not the bits of its twin");
    check_ok(centred ? descramble_covariance_covariance(m.twin.get(), 0, c.data(), n * n)
                     : descramble_covariance_second_moment(m.twin.get(), c.data(), n * n),
             "second_moment");
    // (What reads one of the two reads the other, too.)
    Numbers unread = c;
    check_ok(descramble_covariance_second_moment(m.object.get(), unread.data(), n * n), "moment");
    Numbers one = p;
    for (Index i = 0; i < n * n; ++i) one[std::size_t(i)] = i / n == i % n;
    const Array x(one, {n, n});
    check_ok(descramble_operator_apply(places.object.get(), &x.view, nullptr, l.data(), n * n),
             "apply");
    descramble_descrambler_report report{};
    report.struct_size = sizeof report;
    check_ok(descramble_descrambler_read(r.object.get(), &report), "read");
    const double scale = largest(c) * largest(l) * double(n * n);
    if (!(scale < 1e290)) return;
    const Numbers lp = product(l, p, n, n, n), cp = product(c, p, n, n, n, true);
    double cost = 0, before = 0;
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) {
        cost += lp[std::size_t(i * n + j)] * cp[std::size_t(j * n + i)];
        before += l[std::size_t(i * n + j)] * c[std::size_t(j * n + i)];
      }
    const double tolerance = 1e-11 * scale + 2 * report.cost_error + 1e-300;
    expect_near(report.cost, cost, tolerance, "smoothness", "cost");
    if (r.rank == n) {
      expect_near(report.initial_cost, before, tolerance, "smoothness", "initial cost");
      expect(cost <= before + tolerance, "smoothness", "worse than the identity");
      expect(report.bound <= cost + tolerance, "smoothness", "its bound is above its cost");
    }
  }

  void other_descrambler() {
    Rotation& r = some_rotation();
    r = Rotation();
    const Index kind = in_.below(3), m = a_size(in_);
    // (The power iteration takes thousands of steps where it is told nothing.)
    const Index n = kind == 1 ? 1 + in_.below(4) : a_size(in_);
    descramble_descrambler* out = nullptr;
    if (kind == 2) return convolution(r);
    const Given weight = array(about({n, m}));
    const auto make = [&](const descramble_context* c) {
      return kind == 0 ? descramble_trace(weight.view(), c, &out)
                       : descramble_diagonal(weight.view(), c, &out);
    };
    const descramble_status status = call("trace", make, weight.odd);
    expect((out != nullptr) == (status == DESCRAMBLE_OK), "trace", "its handle");
    if (out == nullptr) return;
    r.object.reset(out);
    check_rotation(r, "trace");
  }

  void convolution(Rotation& r) {
    const std::int32_t axes = std::int32_t(in_.one_in(6) ? in_.below(6) - 1 : 1 + in_.below(2));
    std::vector<Index> shape{1 + in_.below(4), 1 + in_.below(3)}, places;
    for (std::int32_t i = 0; i < axes; ++i) {
      shape.push_back(1 + in_.below(4));
      places.push_back(in_.one_in(16) ? in_.byte() - 100 : 1 + in_.below(6));
    }
    Index size = shape[0];
    for (const Index length : places) size *= std::max<Index>(length, 1);
    if (size > 256) return;
    const Given weight = array(about(shape));
    const descramble_operator* const op = in_.one_in(4) ? some_places().object.get() : nullptr;
    descramble_descrambler* out = nullptr;
    const auto make = [&](const descramble_context* c) {
      return descramble_convolution(weight.view(), places.data(), axes, op, c, &out);
    };
    const descramble_status status = call("convolution", make, weight.odd);
    expect((out != nullptr) == (status == DESCRAMBLE_OK), "convolution", "its handle");
    if (out == nullptr) return;
    r.object.reset(out);
    check_rotation(r, "convolution");
  }

  void use_descrambler() {
    const Rotation& r = some_rotation();
    const Index n = std::max<Index>(r.n, 1), count = 1 + in_.below(6), kind = in_.below(5);
    constexpr decltype(&descramble_descrambler_transform) uses[] = {
        descramble_descrambler_transform, descramble_descrambler_inverse_transform,
        descramble_descrambler_transform_weight, descramble_descrambler_transform_bias,
        descramble_descrambler_transform_next_weight};
    const std::vector<Index> shapes[] = {{count, n}, {count, n}, {n, count}, {n}, {count, n}};
    const Given x = array(about(shapes[kind]));
    const Index size = near(Index(x.array.values.size()));
    Numbers out(std::size_t(size), 0);
    const auto make = [&](const descramble_context* c) {
      return uses[kind](r.object.get(), x.view(), c, out.data(), size);
    };
    if (call("transform", make, x.odd) != DESCRAMBLE_OK || x.odd || kind > 1 || r.rank < n) return;
    const double most = largest(x.array.values);
    if (Index(x.array.values.size()) != count * n || !(most < 1e140)) return;
    descramble_descrambler_report report{};
    report.struct_size = sizeof report;
    check_ok(descramble_descrambler_read(r.object.get(), &report), "read");
    Numbers mean(std::size_t(n), 0), again(out.size());
    if (report.has_mean)
      check_ok(descramble_descrambler_mean(r.object.get(), mean.data(), n), "mean");
    const Array back(out, {count, n});
    check_ok(uses[1 - kind](r.object.get(), &back.view, nullptr, again.data(), size), "inverse");
    expect(difference(again, x.array.values) <= 1e-11 * double(n) * (most + largest(mean)) + 1e-300,
           "inverse_transform", "does not undo transform");
  }

  void read_descrambler() {
    const Rotation& r = some_rotation();
    const descramble_descrambler* const d = r.object.get();
    const Index n = r.n, rank = r.rank;
    const Index said = near(rank), squared_size = near(rank * n);
    Numbers values(std::size_t(std::max(said, n)), 0), matrix(std::size_t(squared_size), 0);
    std::vector<Index> modes(std::size_t(said), 0), blocks(std::size_t(2 * n), 0);
    double score = 0;
    const auto read = [&](const char* name, const auto& make) {
      return call(name, make) == DESCRAMBLE_OK;
    };
    read("eigenvalues",
         [&](auto*) { return descramble_descrambler_eigenvalues(d, values.data(), said); });
    read("components",
         [&](auto*) { return descramble_descrambler_components(d, matrix.data(), squared_size); });
    read("modes",
         [&](auto*) { return descramble_descrambler_modes(d, matrix.data(), squared_size); });
    const Index count = in_.below(4);
    read("blocks", [&](auto*) {
      return descramble_descrambler_blocks(d, blocks.data(), std::min(2 * count, 2 * n));
    });
    if (read("match_modes", [&](const descramble_context* c) {
          return descramble_match_modes(d, c, modes.data(), values.data(), said, &score);
        })) {
      expect(score >= 0 && score <= 1 + 1e-9, "match_modes", "score " + text(score));
      check_places(modes, n, "match_modes");
    }
  }

  // --- assignments and orders ---

  // Each of the places 0 to m - 1 at most once; -1 is none.
  static Index check_places(const std::vector<Index>& places, Index m, const char* name) {
    std::vector<bool> taken(std::size_t(m), false);
    Index count = 0;
    for (const Index place : places) {
      if (place == -1) continue;
      expect(place >= 0 && place < m && !taken[std::size_t(place)], name, "not a permutation");
      taken[std::size_t(place)] = true;
      ++count;
    }
    return count;
  }

  void assign() {
    const Index n = in_.below(9), m = in_.one_in(2) ? n : in_.below(9);
    const Index batch = in_.one_in(4) ? in_.below(4) : 1;
    const std::vector<Index> shape =
        batch == 1 ? std::vector<Index>{n, m} : std::vector<Index>{batch, n, m};
    const Given cost = array(about(shape));
    const Given duals =
        array(about(batch == 1 ? std::vector<Index>{m} : std::vector<Index>{batch, m}));
    descramble_linear_assignment_options options{};
    options.struct_size = sizeof options;
    options.maximize = std::int32_t(in_.one_in(3));
    options.on_device = std::int32_t(in_.one_in(8));
    options.initial_duals = in_.one_in(6) ? duals.view() : nullptr;
    const Index size = near(batch * n);
    std::vector<Index> columns(std::size_t(size), -7);
    Numbers u(std::size_t(batch * n), 0), v(std::size_t(batch * m), 0),
        totals(std::size_t(batch), 0), gap = totals, violation = totals;
    descramble_linear_assignment_report out{};
    out.struct_size = sizeof out;
    out.columns = columns.data();
    out.columns_size = size;
    out.row_duals = u.data();
    out.row_duals_size = batch * n;
    out.column_duals = v.data();
    out.column_duals_size = batch * m;
    out.cost = totals.data();
    out.gap = gap.data();
    out.violation = violation.data();
    out.batch = batch;
    const auto make = [&](const descramble_context* c) {
      return descramble_linear_assignment(cost.view(), &options, c, &out);
    };
    if (call("linear_assignment", make, cost.odd || duals.odd) != DESCRAMBLE_OK) return;
    if (!has_shape(cost, shape) || size != batch * n) return;  // (NULL is taken with any size)
    for (Index b = 0; b < batch; ++b)
      check_assignment(cost.array.values.data() + b * n * m, n, m, options.maximize ? -1 : 1,
                       std::vector<Index>(columns.begin() + b * n, columns.begin() + (b + 1) * n),
                       u.data() + b * n, v.data() + b * m, totals[std::size_t(b)]);
  }

  // Weak duality proves the answer, whatever found it.
  static void check_assignment(const double* cost, Index n, Index m, double sign,
                               const std::vector<Index>& columns, const double* u, const double* v,
                               double total) {
    expect(check_places(columns, m, "linear_assignment") == std::min(n, m), "linear_assignment",
           "not all are assigned");
    double scale = 0, sum = 0, duals = 0;
    for (Index i = 0; i < n * m; ++i)
      if (std::isfinite(cost[i])) scale = std::max(scale, std::abs(cost[i]));
    if (scale > 1e300) return;
    // Duals may have begun anywhere, and are as exact as what they are added to; the answer is not.
    double furthest = scale;
    for (Index i = 0; i < n; ++i) furthest = std::max(furthest, std::abs(u[i]));
    for (Index j = 0; j < m; ++j) furthest = std::max(furthest, std::abs(v[j]));
    const double rounding = 1e-14 * double(n + m), tolerance = rounding * furthest + 1e-320;
    for (Index i = 0; i < n; ++i) {
      duals += u[i];
      if (columns[std::size_t(i)] >= 0) sum += cost[i * m + columns[std::size_t(i)]];
      for (Index j = 0; j < m; ++j)
        expect(sign * (u[i] + v[j]) <= sign * cost[i * m + j] + tolerance, "linear_assignment",
               "infeasible duals");
      expect(n <= m || sign * u[i] <= tolerance, "linear_assignment", "a row's dual");
    }
    for (Index j = 0; j < m; ++j) {
      duals += v[j];
      expect(n >= m || sign * v[j] <= tolerance, "linear_assignment", "a column's dual");
    }
    expect_near(total, sum, rounding * scale + 1e-320, "linear_assignment", "cost");
    expect_near(duals, sum, double(n + m) * tolerance, "linear_assignment", "sum of the duals");
    if (n == m && n <= 5)
      expect_near(sum, least(cost, n, sign), rounding * scale + 1e-320, "linear_assignment",
                  "the least cost");
  }
  static double least(const double* cost, Index n, double sign) {
    std::vector<Index> order(std::size_t(n), 0);
    for (Index i = 0; i < n; ++i) order[std::size_t(i)] = i;
    double out = infinity;
    do {
      double sum = 0;
      for (Index i = 0; i < n; ++i) sum += cost[i * n + order[std::size_t(i)]];
      out = std::min(out, sign * sum);
    } while (std::next_permutation(order.begin(), order.end()));
    return sign * out;
  }

  void order_rows() {
    const Index kind = in_.below(4), n = 1 + in_.below(8), m = kind == 2 ? n : 1 + in_.below(8);
    const Given a = array(about({n, m}));
    const Index size = near(n);
    std::vector<Index> order(std::size_t(size), -7), signs(std::size_t(size), 0);
    descramble_permutation_report report{};
    report.struct_size = sizeof report;
    Index* const with_signs = in_.one_in(2) ? signs.data() : nullptr;
    const auto make = [&](const descramble_context* c) {
      switch (kind) {
        case 0:
          return descramble_permute_trace(a.view(), c, order.data(), size, &report);
        case 1:
          return descramble_permute_diagonal(a.view(), c, order.data(), size, &report);
        case 2:
          return descramble_nearest_permutation(a.view(), c, order.data(), with_signs, size,
                                                &report);
        default:
          return descramble_match_neurons(a.view(), c, order.data(), with_signs, size, &report);
      }
    };
    if (call("permute", make, a.odd) != DESCRAMBLE_OK || a.odd) return;
    check_places(order, kind == 3 ? a.view()->shape[1] : n, "permute");
    const double scale = largest(a.array.values);
    expect(report.bound >= report.cost - 1e-11 * double(n) * std::max(scale, scale * scale) ||
               scale > 1e140,
           "permute", "its bound is below its cost");
  }

  void order_neurons() {
    Moments& m = some_moments();
    const Places& p = some_places();
    const Index size = near(std::max<Index>(m.sums.n, 0));
    if (size > 9) return;
    std::vector<Index> order(std::size_t(size), -7), again = order;
    descramble_permutation_report report{};
    report.struct_size = sizeof report;
    descramble_search_options options{};
    options.struct_size = sizeof options;
    options.seed = std::uint64_t(in_.byte());
    options.restarts = in_.one_in(3) ? in_.below(4) - 1 : 1;
    options.time_limit = size > 4 ? a_moment : 0;
    if (in_.one_in(16)) options.time_limit = in_.one_in(2) ? not_a_number : -1;
    const auto make = [&](const descramble_covariance* c, std::vector<Index>& to,
                          const descramble_context* context) {
      return descramble_permutation(c, p.object.get(), &options, context, to.data(), size, &report);
    };
    const auto once = [&](const descramble_context* c) { return make(m.object.get(), order, c); };
    const descramble_status status = call("permutation", once);
    const descramble_status twins = make(m.twin.get(), again, clean_.get());
    expect(twins == status, "permutation", "its twin's status");
    if (status != DESCRAMBLE_OK) return;
    expect(order == again || options.time_limit > 0, "permutation", "not its twin's");
    expect(check_places(order, size, "permutation") == size, "permutation", "misses one");
    expect(report.cost <= report.initial_cost + 1e-9 * std::abs(report.initial_cost) + 1e-300,
           "permutation", "worse than the given order");
    expect(report.bound <= report.cost + 1e-9 * std::abs(report.initial_cost) + 1e-300,
           "permutation", "its bound is above its cost");
  }

  void quadratic() {
    const Index n = 1 + in_.below(6);
    const Given a = array(about({n, n})), b = array(about({n, n}));
    const Index size = near(n);
    std::vector<Index> columns(std::size_t(size), -7), initial(std::size_t(n), 0), pairs;
    for (Index i = 0; i < n; ++i) initial[std::size_t(i)] = in_.one_in(32) ? in_.byte() : n - 1 - i;
    for (Index i = in_.one_in(3) ? in_.below(3) : 0; i-- > 0;) {
      pairs.push_back(in_.one_in(16) ? -1 : in_.below(n));
      pairs.push_back(in_.below(n));
    }
    descramble_quadratic_assignment_options options{};
    options.struct_size = sizeof options;
    options.maximize = std::int32_t(in_.one_in(3));
    options.seed = std::uint64_t(in_.byte());
    options.restarts = in_.one_in(3) ? in_.below(4) - 1 : 0;
    options.time_limit = n > 1 ? a_moment : 0;
    options.initial = size <= n && in_.one_in(4) ? initial.data() : nullptr;
    options.partial_match = pairs.empty() ? nullptr : pairs.data();
    options.partial_match_count = in_.one_in(32) ? -1 : Index(pairs.size()) / 2;
    descramble_permutation_report report{};
    report.struct_size = sizeof report;
    const auto make = [&](const descramble_context* c) {
      return descramble_quadratic_assignment(a.view(), b.view(), &options, c, columns.data(), size,
                                             &report);
    };
    if (call("quadratic_assignment", make, a.odd || b.odd) != DESCRAMBLE_OK || a.odd || b.odd)
      return;
    expect(check_places(columns, n, "quadratic_assignment") == n, "quadratic_assignment",
           "misses one");
    for (std::size_t i = 0; i < pairs.size(); i += 2)
      expect(columns[std::size_t(pairs[i])] == pairs[i + 1], "quadratic_assignment",
             "a given pair");
    double cost = 0;
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j)
        cost += a.array.values[std::size_t(i * n + j)] *
                b.array.values[std::size_t(columns[std::size_t(i)] * n + columns[std::size_t(j)])];
    const double scale = largest(a.array.values) * largest(b.array.values) * double(n * n);
    if (scale < 1e290)
      expect_near(report.cost, cost, 1e-11 * scale + 1e-300, "quadratic_assignment", "cost");
  }

  void step() {
    const Index kind = in_.below(28);
    switch (kind) {
      case 0:
      case 1:
        return create_covariance();
      case 2:
        return covariance_of_moments();
      case 3:
        return preactivation();
      case 4:
      case 5:
      case 6:
        return update();
      case 7:
        return merge();
      case 8:
        return import();
      case 9:
      case 10:
        return read_moments();
      case 11:
        return export_moments();
      case 12:
        return create_cross();
      case 13:
        return update_cross();
      case 14:
        return read_cross();
      case 15:
        return create_operator();
      case 16:
        return use_operator();
      case 17:
        return eigh();
      case 18:
      case 19:
        return descramble();
      case 20:
        return other_descrambler();
      case 21:
        return use_descrambler();
      case 22:
        return read_descrambler();
      case 23:
        return assign();
      case 24:
        return order_rows();
      case 25:
        return order_neurons();
      case 26:  // as long as dozens of the others
        if (in_.one_in(8)) quadratic();
        return;
      default:
        return set_up("context");
    }
  }

  Bytes in_;
  Context context_, clean_;
  Index polls_left_ = -1, executor_ = 0;
  Moments covariances_[3];
  CrossMoments crosses_[2];
  Places operators_[4];
  Rotation descramblers_[3];
};

// By all executions together.
std::int64_t kept_bytes = 0;

void run(Bytes in) {
  const std::int64_t before = live_bytes();
  World(in).run();  // and what it took itself is given back
  kept_bytes += live_bytes() - before;
  // (Work space of threads is kept, and grows to what the largest call takes.)
  expect(kept_bytes < 1 << 20, "destroy", "memory is kept");
}

}  // namespace

}  // namespace drill

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  drill::run(drill::Bytes(data, size));
  return 0;
}
