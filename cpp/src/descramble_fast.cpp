#include "descramble_fast.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <memory_resource>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/convolution.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/permutation.hpp"
#include "descramble_fast/version.hpp"
#include "descramble_fast/view.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace {

static_assert(int(DType::boolean) == DESCRAMBLE_BOOLEAN &&
              int(DType::float16) == DESCRAMBLE_FLOAT16 &&
              int(DType::bfloat16) == DESCRAMBLE_BFLOAT16 &&
              int(DType::float32) == DESCRAMBLE_FLOAT32 &&
              int(DType::float64) == DESCRAMBLE_FLOAT64);
static_assert(int(DeviceKind::cpu) == DESCRAMBLE_CPU && int(DeviceKind::cuda) == DESCRAMBLE_CUDA);
static_assert(int(Boundary::periodic) == DESCRAMBLE_PERIODIC &&
              int(Boundary::path) == DESCRAMBLE_PATH);
static_assert(int(Gauge::canonical) == DESCRAMBLE_GAUGE_CANONICAL &&
              int(Gauge::identity) == DESCRAMBLE_GAUGE_IDENTITY &&
              int(Gauge::reference) == DESCRAMBLE_GAUGE_REFERENCE);
static_assert(int(Severity::info) == DESCRAMBLE_INFO &&
              int(Severity::warning) == DESCRAMBLE_WARNING);
static_assert(int(Stopped::finished) == DESCRAMBLE_FINISHED &&
              int(Stopped::time_limit) == DESCRAMBLE_TIME_LIMIT);
static_assert(ArrayView::max_rank == DESCRAMBLE_MAX_RANK);

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

/// Text of bounded length that ends in zero: no memory is needed to say that there is none.
class Text {
 public:
  void assign(std::string_view text) {
    constexpr std::string_view cut = "...";
    const std::size_t room = characters_.size() - 1;
    const std::size_t kept = text.size() <= room ? text.size() : room - cut.size();
    std::memcpy(characters_.data(), text.data(), kept);
    std::size_t end = kept;
    if (kept < text.size()) {
      std::memcpy(characters_.data() + kept, cut.data(), cut.size());
      end += cut.size();
    }
    characters_[end] = 0;
  }
  const char* c_str() const { return characters_.data(); }

 private:
  std::array<char, 1024> characters_{};
};

constinit thread_local Text last_error;

/// What the context's poll cancels a call with.
struct Cancelled {};

/// The one place where exceptions become codes.
template <class Body>
descramble_status guarded(const Body& body) noexcept {
  const auto failed = [](descramble_status status, const char* why) {
    last_error.assign(why);
    return status;
  };
  try {
    body();
    return DESCRAMBLE_OK;
  } catch (const Cancelled&) {
    return failed(DESCRAMBLE_CANCELLED, "cancelled by the context's poll");
  } catch (const InvalidArgument& error) {
    return failed(DESCRAMBLE_INVALID_ARGUMENT, error.what());
  } catch (const TypeError& error) {
    return failed(DESCRAMBLE_TYPE_ERROR, error.what());
  } catch (const BackendError& error) {
    return failed(DESCRAMBLE_BACKEND_ERROR, error.what());
  } catch (const OutOfMemory& error) {
    return failed(DESCRAMBLE_OUT_OF_MEMORY, error.what());
  } catch (const std::bad_alloc&) {
    return failed(DESCRAMBLE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {  // more than a container could ever hold
    return failed(DESCRAMBLE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(DESCRAMBLE_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(DESCRAMBLE_INTERNAL_ERROR, "an error of unknown kind");
  }
}

/// The caller's allocator. It lives as long as any memory from it, so that what holds such memory
/// need not hold the context.
class CallerMemory final : public std::pmr::memory_resource {
 public:
  static std::shared_ptr<CallerMemory> make(descramble_allocate allocate,
                                            descramble_release release, void* user) {
    return {new CallerMemory(allocate, release, user),
            [](CallerMemory* memory) { memory->leave(); }};
  }

 private:
  CallerMemory(descramble_allocate allocate, descramble_release release, void* user)
      : allocate_(allocate), release_(release), user_(user) {}

  void leave() {
    if (users_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }
  // Callers need not know what to give for nothing.
  static std::size_t asked(std::size_t bytes) { return std::max<std::size_t>(bytes, 1); }

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* const memory = allocate_(user_, asked(bytes), alignment);
    if (memory == nullptr)
      throw OutOfMemory(message("the context's allocator refused ", bytes, " bytes"));
    if (reinterpret_cast<std::uintptr_t>(memory) % alignment != 0) {
      release_(user_, memory, asked(bytes), alignment);
      throw InvalidArgument(
          message("allocate: gave the address ", memory, ", expected a multiple of ", alignment));
    }
    users_.fetch_add(1, std::memory_order_relaxed);
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    release_(user_, memory, asked(bytes), alignment);
    leave();
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }

  descramble_allocate allocate_;
  descramble_release release_;
  void* user_;
  std::atomic<std::int64_t> users_{1};  // allocations, and those who may ask for more
};

extern "C" {
static void call_task(void* task, std::int32_t index) {
  (*static_cast<const std::function<void(int)>*>(task))(index);
}
}

class CallerExecutor final : public Executor {
 public:
  CallerExecutor(descramble_run run, void* user) : run_(run), user_(user) {}

  void run(int count, const std::function<void(int)>& task) override {
    void* const argument = const_cast<std::function<void(int)>*>(&task);
    if (run_(user_, count, call_task, argument) != 0) throw std::runtime_error("run: refused");
  }

 private:
  descramble_run run_;
  void* user_;
};

}  // namespace

}  // namespace descramble_fast

struct descramble_context {
  descramble_fast::Context context;
  std::shared_ptr<descramble_fast::CallerMemory> memory;
  std::unique_ptr<descramble_fast::CallerExecutor> executor;
};

// The memory stands first: it goes last.
struct descramble_covariance {
  std::shared_ptr<descramble_fast::CallerMemory> memory;
  descramble_fast::Covariance value;
};

struct descramble_cross_covariance {
  std::shared_ptr<descramble_fast::CallerMemory> memory;
  descramble_fast::CrossCovariance value;
};

struct descramble_operator {
  descramble_fast::Operator value;
};

struct descramble_descrambler {
  std::unique_ptr<const descramble_fast::Descrambler> value;
};

namespace descramble_fast {

namespace {

void check_given(const std::string& argument, const void* pointer) {
  if (pointer == nullptr) throw InvalidArgument(argument + ": got NULL");
}

template <class T>
T& given(const std::string& argument, T* pointer) {
  check_given(argument, pointer);
  return *pointer;
}

/// Of lengths; more than there can be of anything where it does not fit.
std::int64_t product(std::int64_t a, std::int64_t b) {
  return a > 0 && b > most / a ? most : a * b;
}

const Covariance& value_of(const descramble_covariance* c) { return given("covariance", c).value; }
const CrossCovariance& value_of(const descramble_cross_covariance* c) {
  return given("cross", c).value;
}
const Operator& value_of(const descramble_operator* op) { return given("op", op).value; }
const Descrambler& value_of(const descramble_descrambler* d) { return *given("d", d).value; }

const Context& value_of(const descramble_context* context) {
  static const Context defaults;
  return context == nullptr ? defaults : context->context;
}

// The parts of an argument's name are joined only where there is something to say about it.
void check_choice(std::int32_t got, std::int32_t last, const auto&... argument) {
  if (got < 0 || got > last)
    throw InvalidArgument(message(argument..., ": got ", got, ", expected 0 to ", last));
}

Device device_from(descramble_device device, const auto&... argument) {
  check_choice(device.kind, DESCRAMBLE_CUDA, argument..., ".kind");
  if (device.index < 0 || (device.kind == DESCRAMBLE_CPU && device.index > 0))
    throw InvalidArgument(
        message(argument..., ".index: got ", device.index, ", expected ",
                device.kind == DESCRAMBLE_CPU ? "0, as there is one CPU" : "at least 0"));
  return {DeviceKind(device.kind), device.index};
}

descramble_device device_to(Device device) { return {std::int32_t(device.kind), device.index}; }

ArrayView view_of(const char* argument, const descramble_array* array) {
  const descramble_array& a = given(argument, array);
  const auto refuse = [&](const auto&... parts) {
    throw InvalidArgument(message(argument, ".", parts...));
  };
  check_choice(a.dtype, DESCRAMBLE_FLOAT64, argument, ".dtype");
  const Device device = device_from(a.device, argument, ".device");
  check_choice(a.rank, DESCRAMBLE_MAX_RANK, argument, ".rank");
  if (a.rank > 0 && a.shape == nullptr) refuse("shape: got NULL");
  const auto dtype = DType(a.dtype);
  const auto rank = std::size_t(a.rank);
  const std::int64_t element = size_of(dtype);
  bool empty = false;
  std::int64_t extent = 1;  // empty axes not counted
  for (std::size_t i = 0; i < rank; ++i) {
    const std::int64_t length = a.shape[i];
    if (length < 0) refuse("shape: got ", length, " on axis ", i, ", expected at least 0");
    empty = empty || length == 0;
    extent = product(extent, std::max<std::int64_t>(length, 1));
    if (extent > most / 8) refuse("shape: the number of bytes does not fit 63 bits");
  }
  if (a.strides != nullptr && !empty) {
    std::int64_t left = most / element - 1;  // beside the last element itself
    for (std::size_t i = 0; i < rank; ++i) {
      const std::int64_t steps = a.shape[i] - 1, stride = a.strides[i];
      if (stride < -left || (steps > 0 && std::abs(stride) > left / steps))
        refuse("strides: got ", stride, " on axis ", i, ", which leads out of 63 bits");
      left -= std::abs(stride) * steps;
    }
  }
  if (a.data == nullptr && !empty) refuse("data: got NULL");
  if (reinterpret_cast<std::uintptr_t>(a.data) % std::uintptr_t(element) != 0)
    refuse("data: got the address ", a.data, ", expected a multiple of ", element);
  if (a.strides == nullptr) return ArrayView(a.data, dtype, {a.shape, rank}, device);
  return ArrayView(a.data, dtype, {a.shape, rank}, {a.strides, rank}, device);
}

std::optional<ArrayView> optional_view(const char* argument, const descramble_array* array) {
  if (array == nullptr) return {};
  return view_of(argument, array);
}

RowSelection selection_of(const descramble_array* mask, const descramble_array* weights) {
  return {optional_view("mask", mask), optional_view("weights", weights)};
}

std::vector<Operator> operators(const char* argument, const descramble_operator* const* ops,
                                std::int64_t count) {
  if (count < 0) throw InvalidArgument(message("count: got ", count, ", expected at least 0"));
  if (count > 0) check_given(argument, ops);
  std::vector<Operator> out;
  for (std::int64_t i = 0; i < count; ++i)
    out.push_back(given(message(argument, "[", i, "]"), ops[i]).value);
  return out;
}

/// Of an array's first axis; 0 for a scalar.
std::int64_t length_of(const ArrayView& a) { return a.rank() == 0 ? 0 : a.shape().front(); }

/// k as options have it.
std::optional<std::int64_t> some_of(std::int64_t k) {
  if (k < 0) throw InvalidArgument(message("k: got ", k, ", expected at least 0, which is all"));
  if (k == 0) return {};
  return k;
}

/// Of options that bound a search.
template <class Options>
SearchOptions search_of(const Options& options) {
  SearchOptions out{.seed = options.seed, .restarts = options.restarts};
  if (options.time_limit != 0) out.time_limit = options.time_limit;
  return out;
}

/// Structs that may grow; they have not yet.
template <class Struct>
void check_struct(const char* argument, const Struct& got) {
  if (got.struct_size != sizeof(Struct))
    throw InvalidArgument(
        message(argument, ".struct_size: got ", got.struct_size, ", expected ", sizeof(Struct)));
}

template <class Options>
Options options_of(const Options* options) {
  if (options == nullptr) return {};
  check_struct("options", *options);
  return *options;
}

void check_out(const char* argument, const void* out, std::int64_t size, std::int64_t expected) {
  if (size != expected)
    throw InvalidArgument(message(argument, ": got ", size, " elements, expected ", expected));
  if (size > 0) check_given(argument, out);
}

template <class T>
void put(const Matrix<T>& from, T* to, Device device, const Context& context) {
  const std::int64_t bytes = from.rows() * from.columns() * std::int64_t(sizeof(T));
  if (bytes > 0) copy_between(device, to, from.device(), from.data(), bytes, context);
}

/// A new handle in *out, or none.
template <class Handle, class Make>
descramble_status create(Handle** out, const Make& make) noexcept {
  if (out != nullptr) *out = nullptr;
  return guarded([&] {
    given("out", out);
    *out = new Handle(make());
  });
}

/// The same with the context's memory, which make(memory) takes for good.
template <class Handle, class Make>
descramble_status create_in(const descramble_context* context, Handle** out,
                            const Make& make) noexcept {
  return create(out, [&] {
    const auto memory = context == nullptr ? nullptr : context->memory;
    return Handle{memory, make(memory.get())};
  });
}

template <class T, class Read>
descramble_status read(T* out, const Read& value) noexcept {
  return guarded([&] { given("out", out) = value(); });
}

/// A matrix of (rows, columns), to the host's memory.
template <class Read>
void read_matrix(std::int64_t rows, std::int64_t columns, double* out, std::int64_t out_size,
                 const Read& matrix) {
  check_out("out", out, out_size, product(rows, columns));
  put(matrix(), out, {}, {});
}

template <class Range, class T>
void read_range(const Range& from, T* out, std::int64_t out_size) {
  check_out("out", out, out_size, std::int64_t(from.size()));
  std::ranges::copy(from, out);
}

/// What becomes of an array, where the array lies.
template <class Map>
descramble_status map(const char* argument, const descramble_array* array,
                      const descramble_context* context, double* out, std::int64_t out_size,
                      const Map& mapped) noexcept {
  return guarded([&] {
    const ArrayView view = view_of(argument, array);
    const Matrix<double> result = mapped(view, value_of(context));
    check_out("out", out, out_size, result.rows() * result.columns());
    put(result, out, view.device(), value_of(context));
  });
}

template <class T>
descramble_status eigh_of(const descramble_array* array, std::int64_t k,
                          const descramble_context* context, T* eigenvalues,
                          std::int64_t eigenvalues_size, T* eigenvectors,
                          std::int64_t eigenvectors_size, double* residual,
                          double* orthogonality_error, std::int64_t batch) noexcept {
  return guarded([&] {
    const ArrayView a = view_of("a", array);
    if (a.rank() >= 2) {
      std::int64_t matrices = 1;
      for (int i = 0; i + 2 < a.rank(); ++i) matrices *= a.shape()[std::size_t(i)];
      const std::int64_t kept = product(matrices, some_of(k).value_or(a.columns()));
      check_out("eigenvalues", eigenvalues, eigenvalues_size, kept);
      check_out("eigenvectors", eigenvectors, eigenvectors_size, product(kept, a.columns()));
      if (batch != matrices)
        throw InvalidArgument(message("batch: got ", batch, ", expected ", matrices));
    }
    const Eigh<T> found = eigh<T>(a, some_of(k), value_of(context));
    put(found.eigenvalues, eigenvalues, a.device(), value_of(context));
    put(found.eigenvectors, eigenvectors, a.device(), value_of(context));
    if (residual != nullptr) std::ranges::copy(found.residual, residual);
    if (orthogonality_error != nullptr)
      std::ranges::copy(found.orthogonality_error, orthogonality_error);
  });
}

/// A descrambler of any kind.
template <class Kind>
descramble_descrambler handle_of(Kind d) {
  return {std::make_unique<const Kind>(std::move(d))};
}

const SmoothnessDescrambler& smoothness_of(const descramble_descrambler* d) {
  const auto* const kind = dynamic_cast<const SmoothnessDescrambler*>(&value_of(d));
  if (kind == nullptr)
    throw InvalidArgument("d: has no components, expected the descrambler of a covariance");
  return *kind;
}

/// Calls visit with the descrambler of a covariance or a convolution.
template <class Visit>
void visit_smoothness(const descramble_descrambler* d, const Visit& visit) {
  if (const auto* const c = dynamic_cast<const ConvolutionDescrambler*>(&value_of(d)))
    return visit(*c);
  visit(smoothness_of(d));
}

DescrambleOptions options_from(const descramble_smoothness_options* given_options) {
  const descramble_smoothness_options o = options_of(given_options);
  check_choice(o.gauge, DESCRAMBLE_GAUGE_REFERENCE, "options.gauge");
  return {o.center != 0, Gauge(o.gauge), optional_view("reference", o.reference), some_of(o.k)};
}

void check_report(const descramble_permutation_report* report) {
  if (report != nullptr) check_struct("report", *report);
}

descramble_permutation_report report_of(const Permutation& p) {
  return {sizeof(descramble_permutation_report),
          p.cost,
          p.initial_cost,
          p.bound,
          unknown,
          0,
          DESCRAMBLE_FINISHED};
}

descramble_permutation_report report_of(const SmoothOrder& p) {
  descramble_permutation_report out = report_of(static_cast<const Permutation&>(p));
  out.tree_bound = p.tree_bound.value_or(unknown);
  out.steps = p.steps;
  out.stopped = descramble_stopped(p.stopped);
  return out;
}

/// The order of the rows of a matrix.
template <class Order>
descramble_status order_rows(const char* argument, const descramble_array* array,
                             const descramble_context* context, std::int64_t* permutation,
                             std::int64_t* signs, std::int64_t n,
                             descramble_permutation_report* report, const Order& order) noexcept {
  return guarded([&] {
    const ArrayView view = view_of(argument, array);
    check_out("permutation", permutation, n, length_of(view));
    check_report(report);
    const Permutation found = order(view, value_of(context));
    std::ranges::copy(found.permutation, permutation);
    if (signs != nullptr) std::ranges::copy(found.signs, signs);
    if (report != nullptr) *report = report_of(found);
  });
}

}  // namespace

}  // namespace descramble_fast

using namespace descramble_fast;

std::int32_t descramble_abi_version(void) { return DESCRAMBLE_ABI_VERSION; }

const char* descramble_version(void) { return version; }

const char* descramble_last_error(void) { return last_error.c_str(); }

descramble_status descramble_context_create(descramble_context** out) {
  return create(out, [] { return descramble_context(); });
}

void descramble_context_destroy(descramble_context* context) { delete context; }

descramble_status descramble_context_set_threads(descramble_context* context,
                                                 std::int32_t threads) {
  return guarded([&] {
    if (threads < 0)
      throw InvalidArgument(message("threads: got ", threads, ", expected at least 0"));
    given("context", context).context.threads = threads;
  });
}

descramble_status descramble_context_set_stream(descramble_context* context, void* stream) {
  return guarded([&] { given("context", context).context.stream = stream; });
}

descramble_status descramble_context_set_poll(descramble_context* context, descramble_poll poll,
                                              void* user) {
  return guarded([&] {
    std::function<void()>& place = given("context", context).context.poll;
    if (poll == nullptr)
      place = nullptr;
    else
      place = [poll, user] {
        if (poll(user) != 0) throw Cancelled();
      };
  });
}

descramble_status descramble_context_set_executor(descramble_context* context, descramble_run run,
                                                  void* user) {
  return guarded([&] {
    descramble_context& c = given("context", context);
    c.executor = run == nullptr ? nullptr : std::make_unique<CallerExecutor>(run, user);
    c.context.executor = c.executor.get();
  });
}

descramble_status descramble_context_set_allocator(descramble_context* context,
                                                   descramble_allocate allocate,
                                                   descramble_release release, void* user) {
  return guarded([&] {
    descramble_context& c = given("context", context);
    if ((allocate == nullptr) != (release == nullptr))
      throw InvalidArgument(message(allocate == nullptr ? "allocate" : "release",
                                    ": got NULL, expected both functions or neither"));
    c.memory = allocate == nullptr ? nullptr : CallerMemory::make(allocate, release, user);
    c.context.memory = c.memory.get();
  });
}

descramble_status descramble_context_set_log(descramble_context* context, descramble_log log,
                                             void* user) {
  return guarded([&] {
    auto& place = given("context", context).context.log;
    if (log == nullptr)
      place = nullptr;
    else
      place = [log, user](Severity severity, std::string_view text) {
        Text line;
        line.assign(text);
        log(user, descramble_severity(severity), line.c_str());
      };
  });
}

descramble_status descramble_num_threads(std::int32_t* out) {
  return read(out, [] { return num_threads(); });
}

descramble_status descramble_set_num_threads(std::int32_t threads) {
  return guarded([&] { set_num_threads(threads); });
}

descramble_status descramble_cuda_available(std::int32_t device, std::int32_t* out) {
  return read(out, [&] { return std::int32_t(cuda_available(device)); });
}

descramble_status descramble_covariance_create(std::int64_t n, const descramble_context* context,
                                               descramble_covariance** out) {
  return create_in(context, out,
                   [&](CallerMemory* memory) { return Covariance(n, {.memory = memory}); });
}

descramble_status descramble_covariance_create_on(std::int64_t n, descramble_device device,
                                                  std::int32_t offload,
                                                  const descramble_context* context,
                                                  descramble_covariance** out) {
  return create_in(context, out, [&](CallerMemory* memory) {
    return Covariance(n, {device_from(device, "device"), offload != 0, memory});
  });
}

descramble_status descramble_covariance_from_moments(const descramble_array* second_moment,
                                                     const descramble_array* mean, double weight,
                                                     const descramble_context* context,
                                                     descramble_covariance** out) {
  return create_in(context, out, [&](CallerMemory* memory) {
    return Covariance::from_moments(view_of("second_moment", second_moment),
                                    optional_view("mean", mean), weight, {.memory = memory},
                                    value_of(context));
  });
}

descramble_status descramble_preactivation_moment(const descramble_array* weight,
                                                  const descramble_array* bias,
                                                  const descramble_array* input_second_moment,
                                                  const descramble_array* input_mean,
                                                  const descramble_context* context,
                                                  descramble_covariance** out) {
  return create_in(context, out, [&](CallerMemory*) {
    return preactivation_moment(view_of("weight", weight), optional_view("bias", bias),
                                optional_view("input_second_moment", input_second_moment),
                                optional_view("input_mean", input_mean), value_of(context));
  });
}

void descramble_covariance_destroy(descramble_covariance* covariance) { delete covariance; }

descramble_status descramble_covariance_update(descramble_covariance* covariance,
                                               const descramble_array* batch,
                                               const descramble_array* mask,
                                               const descramble_array* weights,
                                               const descramble_context* context) {
  return guarded([&] {
    given("covariance", covariance)
        .value.update(view_of("batch", batch), selection_of(mask, weights), value_of(context));
  });
}

descramble_status descramble_covariance_merge(descramble_covariance* covariance,
                                              const descramble_covariance* other) {
  return guarded([&] { given("covariance", covariance).value.merge(given("other", other).value); });
}

descramble_status descramble_covariance_size(const descramble_covariance* covariance,
                                             std::int64_t* out) {
  return read(out, [&] { return value_of(covariance).size(); });
}

descramble_status descramble_covariance_device(const descramble_covariance* covariance,
                                               descramble_device* out) {
  return read(out, [&] { return device_to(value_of(covariance).device()); });
}

descramble_status descramble_covariance_count(const descramble_covariance* covariance,
                                              std::int64_t* out) {
  return read(out, [&] { return value_of(covariance).count(); });
}

descramble_status descramble_covariance_weight(const descramble_covariance* covariance,
                                               double* out) {
  return read(out, [&] { return value_of(covariance).weight(); });
}

descramble_status descramble_covariance_mean(const descramble_covariance* covariance, double* out,
                                             std::int64_t out_size) {
  return guarded([&] { read_range(value_of(covariance).mean(), out, out_size); });
}

descramble_status descramble_covariance_second_moment(const descramble_covariance* covariance,
                                                      double* out, std::int64_t out_size) {
  return guarded([&] {
    const Covariance& c = value_of(covariance);
    read_matrix(c.size(), c.size(), out, out_size, [&] { return c.second_moment(); });
  });
}

descramble_status descramble_covariance_covariance(const descramble_covariance* covariance,
                                                   double ddof, double* out,
                                                   std::int64_t out_size) {
  return guarded([&] {
    const Covariance& c = value_of(covariance);
    read_matrix(c.size(), c.size(), out, out_size, [&] { return c.covariance(ddof); });
  });
}

descramble_status descramble_covariance_export(const descramble_covariance* covariance,
                                               std::int64_t* count, double* weight,
                                               std::int32_t* has_mean, double* reference,
                                               double* offset, std::int64_t n, double* scatter,
                                               std::int64_t scatter_size) {
  return guarded([&] {
    const Covariance& c = value_of(covariance);
    check_given("count", count);
    check_given("weight", weight);
    check_given("has_mean", has_mean);
    check_out("reference", reference, n, c.size());
    check_out("offset", offset, n, c.size());
    check_out("scatter", scatter, scatter_size, c.size() * (c.size() + 1) / 2);
    const Covariance::State state = c.state();
    *count = state.count;
    *weight = state.weight;
    *has_mean = state.has_mean;
    std::ranges::copy(state.reference, reference);
    std::ranges::copy(state.offset, offset);
    std::ranges::copy(state.packed_scatter, scatter);
  });
}

descramble_status descramble_covariance_import(std::int64_t count, double weight,
                                               std::int32_t has_mean, const double* reference,
                                               const double* offset, std::int64_t n,
                                               const double* scatter, std::int64_t scatter_size,
                                               const descramble_context* context,
                                               descramble_covariance** out) {
  return create_in(context, out, [&](CallerMemory* memory) {
    if (n < 1 || n > std::int64_t(1) << 30)
      throw InvalidArgument(message("n: got ", n, ", expected 1 to 2^30"));
    check_out("reference", reference, n, n);
    check_out("offset", offset, n, n);
    check_out("scatter", scatter, scatter_size, n * (n + 1) / 2);
    return Covariance::from_state({count,
                                   weight,
                                   has_mean != 0,
                                   {reference, reference + n},
                                   {offset, offset + n},
                                   {scatter, scatter + scatter_size}},
                                  {Device{}, false, memory});
  });
}

descramble_status descramble_cross_covariance_create(std::int64_t n_x, std::int64_t n_y,
                                                     const descramble_context* context,
                                                     descramble_cross_covariance** out) {
  return create_in(context, out, [&](CallerMemory* memory) {
    return CrossCovariance(n_x, n_y, {.memory = memory});
  });
}

descramble_status descramble_cross_covariance_create_on(std::int64_t n_x, std::int64_t n_y,
                                                        descramble_device device,
                                                        std::int32_t offload,
                                                        const descramble_context* context,
                                                        descramble_cross_covariance** out) {
  return create_in(context, out, [&](CallerMemory* memory) {
    return CrossCovariance(n_x, n_y, {device_from(device, "device"), offload != 0, memory});
  });
}

void descramble_cross_covariance_destroy(descramble_cross_covariance* cross) { delete cross; }

descramble_status descramble_cross_covariance_update(descramble_cross_covariance* cross,
                                                     const descramble_array* x,
                                                     const descramble_array* y,
                                                     const descramble_array* mask,
                                                     const descramble_array* weights,
                                                     const descramble_context* context) {
  return guarded([&] {
    given("cross", cross)
        .value.update(view_of("x", x), view_of("y", y), selection_of(mask, weights),
                      value_of(context));
  });
}

descramble_status descramble_cross_covariance_merge(descramble_cross_covariance* cross,
                                                    const descramble_cross_covariance* other) {
  return guarded([&] { given("cross", cross).value.merge(given("other", other).value); });
}

descramble_status descramble_cross_covariance_count(const descramble_cross_covariance* cross,
                                                    std::int64_t* out) {
  return read(out, [&] { return value_of(cross).count(); });
}

descramble_status descramble_cross_covariance_weight(const descramble_cross_covariance* cross,
                                                     double* out) {
  return read(out, [&] { return value_of(cross).weight(); });
}

descramble_status descramble_cross_covariance_cross_moment(const descramble_cross_covariance* cross,
                                                           double* out, std::int64_t out_size) {
  return guarded([&] {
    const CrossCovariance& c = value_of(cross);
    read_matrix(c.size_x(), c.size_y(), out, out_size, [&] { return c.cross_moment(); });
  });
}

descramble_status descramble_cross_covariance_cross_covariance(
    const descramble_cross_covariance* cross, double ddof, double* out, std::int64_t out_size) {
  return guarded([&] {
    const CrossCovariance& c = value_of(cross);
    read_matrix(c.size_x(), c.size_y(), out, out_size, [&] { return c.cross_covariance(ddof); });
  });
}

descramble_status descramble_cross_covariance_correlation(const descramble_cross_covariance* cross,
                                                          double* out, std::int64_t out_size) {
  return guarded([&] {
    const CrossCovariance& c = value_of(cross);
    read_matrix(c.size_x(), c.size_y(), out, out_size, [&] { return c.correlation(); });
  });
}

descramble_status descramble_operator_fourier(std::int64_t n, std::int32_t order,
                                              descramble_operator** out) {
  return create(out, [&] { return descramble_operator{Operator::fourier(n, order)}; });
}

descramble_status descramble_operator_difference(std::int64_t n, std::int32_t order,
                                                 descramble_boundary boundary,
                                                 descramble_operator** out) {
  return create(out, [&] {
    check_choice(boundary, DESCRAMBLE_PATH, "boundary");
    return descramble_operator{Operator::difference(n, order, Boundary(boundary))};
  });
}

descramble_status descramble_operator_central_difference(std::int64_t n,
                                                         descramble_operator** out) {
  return create(out, [&] { return descramble_operator{Operator::central_difference(n)}; });
}

descramble_status descramble_operator_grid(const descramble_operator* const* axes,
                                           std::int64_t count, descramble_operator** out) {
  return create(
      out, [&] { return descramble_operator{Operator::grid(operators("axes", axes, count))}; });
}

descramble_status descramble_operator_from_matrix(const descramble_array* matrix,
                                                  const descramble_context* context,
                                                  descramble_operator** out) {
  return create(out, [&] {
    return descramble_operator{Operator::from_matrix(view_of("matrix", matrix), value_of(context))};
  });
}

void descramble_operator_destroy(descramble_operator* op) { delete op; }

descramble_status descramble_operator_size(const descramble_operator* op, std::int64_t* out) {
  return read(out, [&] { return value_of(op).size(); });
}

descramble_status descramble_operator_eigenvalues(const descramble_operator* op, double* out,
                                                  std::int64_t out_size) {
  return guarded([&] { read_range(value_of(op).eigenvalues(), out, out_size); });
}

descramble_status descramble_operator_modes(const descramble_operator* op, double* out,
                                            std::int64_t out_size) {
  return guarded([&] {
    const Operator& o = value_of(op);
    read_matrix(o.size(), o.size(), out, out_size, [&] { return o.modes(); });
  });
}

descramble_status descramble_operator_apply(const descramble_operator* op,
                                            const descramble_array* x,
                                            const descramble_context* context, double* out,
                                            std::int64_t out_size) {
  return map("x", x, context, out, out_size, [&](const ArrayView& view, const Context& how) {
    return value_of(op).applied(view, how);
  });
}

descramble_status descramble_operator_analyze(const descramble_operator* op,
                                              const descramble_array* x,
                                              const descramble_context* context, double* out,
                                              std::int64_t out_size) {
  return map("x", x, context, out, out_size, [&](const ArrayView& view, const Context& how) {
    return value_of(op).analyzed(view, how);
  });
}

descramble_status descramble_operator_synthesize(const descramble_operator* op,
                                                 const descramble_array* x,
                                                 const descramble_context* context, double* out,
                                                 std::int64_t out_size) {
  return map("x", x, context, out, out_size, [&](const ArrayView& view, const Context& how) {
    return value_of(op).synthesized(view, how);
  });
}

descramble_status descramble_eigh_float32(const descramble_array* a, std::int64_t k,
                                          const descramble_context* context, float* eigenvalues,
                                          std::int64_t eigenvalues_size, float* eigenvectors,
                                          std::int64_t eigenvectors_size, double* residual,
                                          double* orthogonality_error, std::int64_t batch) {
  return eigh_of(a, k, context, eigenvalues, eigenvalues_size, eigenvectors, eigenvectors_size,
                 residual, orthogonality_error, batch);
}

descramble_status descramble_eigh_float64(const descramble_array* a, std::int64_t k,
                                          const descramble_context* context, double* eigenvalues,
                                          std::int64_t eigenvalues_size, double* eigenvectors,
                                          std::int64_t eigenvectors_size, double* residual,
                                          double* orthogonality_error, std::int64_t batch) {
  return eigh_of(a, k, context, eigenvalues, eigenvalues_size, eigenvectors, eigenvectors_size,
                 residual, orthogonality_error, batch);
}

descramble_status descramble_smoothness(const descramble_covariance* covariance,
                                        const descramble_operator* op,
                                        const descramble_smoothness_options* options,
                                        const descramble_context* context,
                                        descramble_descrambler** out) {
  return create(out, [&] {
    return handle_of(
        descramble(value_of(covariance), value_of(op), options_from(options), value_of(context)));
  });
}

descramble_status descramble_smoothness_many(const descramble_covariance* const* covariances,
                                             const descramble_operator* const* ops,
                                             std::int64_t count,
                                             const descramble_smoothness_options* options,
                                             const descramble_context* context,
                                             descramble_descrambler** out) {
  if (out != nullptr) std::fill_n(out, std::max<std::int64_t>(count, 0), nullptr);
  return guarded([&] {
    const std::vector<Operator> all_ops = operators("ops", ops, count);
    check_out("out", out, count, count);
    check_out("covariances", covariances, count, count);
    std::vector<const Covariance*> all;
    for (std::int64_t i = 0; i < count; ++i)
      all.push_back(&given(message("covariances[", i, "]"), covariances[i]).value);
    std::vector<SmoothnessDescrambler> found =
        descramble_many(all, all_ops, options_from(options), value_of(context));
    std::vector<std::unique_ptr<descramble_descrambler>> handles;
    for (SmoothnessDescrambler& d : found)
      handles.push_back(std::make_unique<descramble_descrambler>(handle_of(std::move(d))));
    for (std::size_t i = 0; i < handles.size(); ++i) out[i] = handles[i].release();
  });
}

descramble_status descramble_convolution(const descramble_array* weight,
                                         const std::int64_t* spatial_shape,
                                         std::int32_t spatial_rank, const descramble_operator* op,
                                         const descramble_context* context,
                                         descramble_descrambler** out) {
  return create(out, [&] {
    if (spatial_rank < 1 || spatial_rank > 3)
      throw InvalidArgument(message("spatial_rank: got ", spatial_rank, ", expected 1 to 3"));
    check_given("spatial_shape", spatial_shape);
    return handle_of(
        descramble_conv(view_of("weight", weight), {spatial_shape, std::size_t(spatial_rank)},
                        op == nullptr ? std::optional<Operator>() : op->value, value_of(context)));
  });
}

descramble_status descramble_trace(const descramble_array* weight,
                                   const descramble_context* context,
                                   descramble_descrambler** out) {
  return create(out, [&] {
    return handle_of(descramble_trace(view_of("weight", weight), value_of(context)));
  });
}

descramble_status descramble_diagonal(const descramble_array* weight,
                                      const descramble_context* context,
                                      descramble_descrambler** out) {
  return create(out, [&] {
    return handle_of(descramble_diagonal(view_of("weight", weight), value_of(context)));
  });
}

void descramble_descrambler_destroy(descramble_descrambler* d) { delete d; }

descramble_status descramble_descrambler_read(const descramble_descrambler* descrambler,
                                              descramble_descrambler_report* out) {
  return guarded([&] {
    check_struct("out", given("out", out));
    const Descrambler& d = value_of(descrambler);
    *out = {.struct_size = sizeof *out,
            .size = d.size(),
            .rank = d.size(),
            .cost = d.cost,
            .initial_cost = d.initial_cost,
            .bound = d.bound,
            .cost_error = unknown,
            .orthogonality_error = d.orthogonality_error,
            .gauge_distance = unknown,
            .stationarity = unknown,
            .blocks = 0,
            .has_mean = !d.mean.empty(),
            .gauge_exact = 0};
    if (const auto* const m = dynamic_cast<const MatrixDescrambler*>(&d)) {
      out->stationarity = m->stationarity;
      return;
    }
    visit_smoothness(descrambler, [&](const auto& smooth) {
      out->rank = std::int64_t(smooth.eigenvalues.size());
      out->cost_error = smooth.cost_error;
      out->blocks = std::int64_t(smooth.blocks.size());
    });
    if (const auto* const smooth = dynamic_cast<const SmoothnessDescrambler*>(&d)) {
      out->gauge_distance = smooth->gauge.distance;
      out->gauge_exact = !std::isnan(smooth->gauge.distance) && smooth->gauge.exact;
    }
  });
}

descramble_status descramble_descrambler_device(const descramble_descrambler* d,
                                                descramble_device* out) {
  return read(out, [&] { return device_to(value_of(d).device()); });
}

descramble_status descramble_descrambler_eigenvalues(const descramble_descrambler* d, double* out,
                                                     std::int64_t out_size) {
  return guarded([&] {
    visit_smoothness(d, [&](const auto& s) { read_range(s.eigenvalues, out, out_size); });
  });
}

descramble_status descramble_descrambler_components(const descramble_descrambler* d, double* out,
                                                    std::int64_t out_size) {
  return guarded([&] {
    const Matrix<double>& components = smoothness_of(d).components;
    check_out("out", out, out_size, components.rows() * components.columns());
    put(components, out, {}, {});
  });
}

descramble_status descramble_descrambler_modes(const descramble_descrambler* d, double* out,
                                               std::int64_t out_size) {
  return guarded([&] {
    const SmoothnessDescrambler& s = smoothness_of(d);
    read_matrix(s.components.rows(), s.size(), out, out_size, [&] { return s.modes(); });
  });
}

descramble_status descramble_descrambler_blocks(const descramble_descrambler* d, std::int64_t* out,
                                                std::int64_t out_size) {
  return guarded([&] {
    visit_smoothness(d, [&](const auto& s) {
      check_out("out", out, out_size, 2 * std::int64_t(s.blocks.size()));
      for (std::size_t i = 0; i < s.blocks.size(); ++i) {
        out[2 * i] = s.blocks[i].begin;
        out[2 * i + 1] = s.blocks[i].end;
      }
    });
  });
}

descramble_status descramble_descrambler_mean(const descramble_descrambler* d, double* out,
                                              std::int64_t out_size) {
  return guarded([&] {
    const Descrambler& value = value_of(d);
    if (value.mean.empty()) throw InvalidArgument("d: has no mean, as its moment is not centred");
    read_range(value.mean, out, out_size);
  });
}

descramble_status descramble_descrambler_matrix(const descramble_descrambler* d, double* out,
                                                std::int64_t out_size) {
  return guarded([&] {
    const Descrambler& value = value_of(d);
    read_matrix(value.size(), value.size(), out, out_size, [&] { return value.matrix(); });
  });
}

descramble_status descramble_descrambler_transform(const descramble_descrambler* d,
                                                   const descramble_array* samples,
                                                   const descramble_context* context, double* out,
                                                   std::int64_t out_size) {
  return map(
      "samples", samples, context, out, out_size,
      [&](const ArrayView& view, const Context& how) { return value_of(d).transform(view, how); });
}

descramble_status descramble_descrambler_inverse_transform(const descramble_descrambler* d,
                                                           const descramble_array* samples,
                                                           const descramble_context* context,
                                                           double* out, std::int64_t out_size) {
  return map("samples", samples, context, out, out_size,
             [&](const ArrayView& view, const Context& how) {
               return value_of(d).inverse_transform(view, how);
             });
}

descramble_status descramble_descrambler_transform_weight(const descramble_descrambler* d,
                                                          const descramble_array* weight,
                                                          const descramble_context* context,
                                                          double* out, std::int64_t out_size) {
  return map("weight", weight, context, out, out_size,
             [&](const ArrayView& view, const Context& how) {
               return value_of(d).transform_weight(view, how);
             });
}

descramble_status descramble_descrambler_transform_bias(const descramble_descrambler* d,
                                                        const descramble_array* bias,
                                                        const descramble_context* context,
                                                        double* out, std::int64_t out_size) {
  return map("bias", bias, context, out, out_size, [&](const ArrayView& view, const Context& how) {
    return value_of(d).transform_bias(view, how);
  });
}

descramble_status descramble_descrambler_transform_next_weight(const descramble_descrambler* d,
                                                               const descramble_array* weight,
                                                               const descramble_context* context,
                                                               double* out, std::int64_t out_size) {
  return map("weight", weight, context, out, out_size,
             [&](const ArrayView& view, const Context& how) {
               return value_of(d).transform_next_weight(view, how);
             });
}

descramble_status descramble_linear_assignment(const descramble_array* cost,
                                               const descramble_linear_assignment_options* options,
                                               const descramble_context* context,
                                               descramble_linear_assignment_report* out) {
  return guarded([&] {
    check_struct("out", given("out", out));
    const descramble_linear_assignment_report& o = *out;
    const descramble_linear_assignment_options chosen = options_of(options);
    const ArrayView view = view_of("cost", cost);
    std::int64_t batch = 1;
    for (int i = 0; i + 2 < view.rank(); ++i) batch *= view.shape()[std::size_t(i)];
    const std::int64_t rows = view.rows(), columns = product(batch, view.columns());
    const auto check = [](const char* argument, const void* place, std::int64_t size,
                          std::int64_t expected) {
      if (place != nullptr) check_out(argument, place, size, expected);
    };
    check("columns", o.columns, o.columns_size, rows);
    check("row_duals", o.row_duals, o.row_duals_size, rows);
    check("column_duals", o.column_duals, o.column_duals_size, columns);
    check("cost", o.cost, o.batch, batch);
    check("gap", o.gap, o.batch, batch);
    check("violation", o.violation, o.batch, batch);
    const LinearAssignment found = linear_assignment(
        view,
        {chosen.maximize != 0, optional_view("initial_duals", chosen.initial_duals),
         chosen.on_device != 0},
        value_of(context));
    const auto put_matrix = [&](const auto& from, auto* to) {
      if (to != nullptr) put(from, to, view.device(), value_of(context));
    };
    const auto put_numbers = [](const std::vector<double>& from, double* to) {
      if (to != nullptr) std::ranges::copy(from, to);
    };
    put_matrix(found.columns, o.columns);
    put_matrix(found.row_duals, o.row_duals);
    put_matrix(found.column_duals, o.column_duals);
    put_numbers(found.cost, o.cost);
    put_numbers(found.gap, o.gap);
    put_numbers(found.violation, o.violation);
  });
}

descramble_status descramble_quadratic_assignment(
    const descramble_array* a, const descramble_array* b,
    const descramble_quadratic_assignment_options* options, const descramble_context* context,
    std::int64_t* columns, std::int64_t n, descramble_permutation_report* report) {
  return guarded([&] {
    const descramble_quadratic_assignment_options o = options_of(options);
    const ArrayView view_a = view_of("a", a), view_b = view_of("b", b);
    check_out("columns", columns, n, length_of(view_a));
    check_report(report);
    QuadraticAssignmentOptions chosen;
    chosen.maximize = o.maximize != 0;
    chosen.search = search_of(o);
    if (o.initial != nullptr) chosen.initial.emplace(o.initial, o.initial + n);
    if (o.partial_match_count < 0)
      throw InvalidArgument(
          message("partial_match_count: got ", o.partial_match_count, ", expected at least 0"));
    if (o.partial_match_count > 0) check_given("partial_match", o.partial_match);
    for (std::int64_t i = 0; i < o.partial_match_count; ++i)
      chosen.partial_match.emplace_back(o.partial_match[2 * i], o.partial_match[2 * i + 1]);
    const QuadraticAssignment found =
        quadratic_assignment(view_a, view_b, chosen, value_of(context));
    std::ranges::copy(found.columns, columns);
    if (report != nullptr)
      *report = {sizeof *report,
                 found.cost,
                 found.initial_cost,
                 unknown,
                 unknown,
                 found.steps,
                 descramble_stopped(found.stopped)};
  });
}

descramble_status descramble_permutation(const descramble_covariance* covariance,
                                         const descramble_operator* op,
                                         const descramble_search_options* options,
                                         const descramble_context* context,
                                         std::int64_t* permutation, std::int64_t n,
                                         descramble_permutation_report* report) {
  return guarded([&] {
    const descramble_search_options o = options_of(options);
    check_out("permutation", permutation, n, value_of(covariance).size());
    check_report(report);
    const SmoothOrder found =
        descramble_permutation(value_of(covariance), value_of(op), search_of(o), value_of(context));
    std::ranges::copy(found.permutation, permutation);
    if (report != nullptr) *report = report_of(found);
  });
}

descramble_status descramble_permute_trace(const descramble_array* weight,
                                           const descramble_context* context,
                                           std::int64_t* permutation, std::int64_t n,
                                           descramble_permutation_report* report) {
  return order_rows("weight", weight, context, permutation, nullptr, n, report,
                    [](const ArrayView& w, const Context& how) { return permute_trace(w, how); });
}

descramble_status descramble_permute_diagonal(const descramble_array* weight,
                                              const descramble_context* context,
                                              std::int64_t* permutation, std::int64_t n,
                                              descramble_permutation_report* report) {
  return order_rows(
      "weight", weight, context, permutation, nullptr, n, report,
      [](const ArrayView& w, const Context& how) { return permute_diagonal(w, how); });
}

descramble_status descramble_nearest_permutation(const descramble_array* p,
                                                 const descramble_context* context,
                                                 std::int64_t* permutation, std::int64_t* signs,
                                                 std::int64_t n,
                                                 descramble_permutation_report* report) {
  return order_rows("p", p, context, permutation, signs, n, report,
                    [&](const ArrayView& matrix, const Context& how) {
                      return nearest_permutation(matrix, signs != nullptr, how);
                    });
}

descramble_status descramble_match_neurons(const descramble_array* similarity,
                                           const descramble_context* context,
                                           std::int64_t* permutation, std::int64_t* signs,
                                           std::int64_t n, descramble_permutation_report* report) {
  return order_rows("similarity", similarity, context, permutation, signs, n, report,
                    [&](const ArrayView& matrix, const Context& how) {
                      return match_neurons(matrix, signs != nullptr, how);
                    });
}

descramble_status descramble_match_modes(const descramble_descrambler* d,
                                         const descramble_context* context, std::int64_t* modes,
                                         double* correlation, std::int64_t rank, double* score) {
  return guarded([&] {
    const SmoothnessDescrambler& s = smoothness_of(d);
    check_out("modes", modes, rank, s.components.rows());
    const ModeMatch found = match_modes(s, value_of(context));
    std::ranges::copy(found.modes, modes);
    if (correlation != nullptr) std::ranges::copy(found.correlation, correlation);
    if (score != nullptr) *score = found.score;
  });
}
