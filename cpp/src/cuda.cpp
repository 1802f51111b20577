#include "cuda.hpp"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <utility>

#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

namespace cuda {

namespace {

struct Loaded {
  const Backend* backend = nullptr;
  int devices = 0;
  std::string why_not;
};

#if defined(_WIN32)

Loaded load() { return {nullptr, 0, "built without CUDA"}; }

#else

constexpr const char* library_name = "libdescramble_fast_cuda.so";

// Beside the library (or program) that this code is in.
std::filesystem::path neighbour() {
  Dl_info here;
  if (dladdr(reinterpret_cast<const void*>(&backend), &here) == 0 || here.dli_fname == nullptr)
    return library_name;
  std::filesystem::path self = here.dli_fname;
  std::error_code none;
  // (A program goes by the name that was typed, which has no folder where PATH gave that.)
  if (!self.has_parent_path()) self = std::filesystem::read_symlink("/proc/self/exe", none);
  return self.replace_filename(library_name);
}

Loaded load() {
  const char* const named = std::getenv("DESCRAMBLE_FAST_CUDA_LIBRARY");
  const std::filesystem::path path = named != nullptr ? named : neighbour();
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored))
    return {nullptr, 0,
            named != nullptr ? message("DESCRAMBLE_FAST_CUDA_LIBRARY: no file ", path.string())
                             : std::string("built without CUDA")};
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return {nullptr, 0,
            message("the CUDA backend cannot be loaded: ", dlerror(),
                    "; its libraries come with pip install descramble-fast[cuda]")};
  const auto entry = reinterpret_cast<const Backend* (*)()>(dlsym(library, entry_point));
  const Backend* const backend = entry != nullptr ? entry() : nullptr;
  if (backend == nullptr || backend->version != backend_version)
    return {nullptr, 0, message("the CUDA backend at ", path.string(), " is of another version")};
  Loaded loaded{backend, 0, {}};
  Failure failure;
  if (!backend->count_devices(&loaded.devices, &failure))
    loaded.why_not = message("no CUDA device can be used: ", failure.text);
  else if (loaded.devices == 0)
    loaded.why_not = "no CUDA device can be used: none is there";
  return loaded;
}

#endif

const Loaded& loaded() {
  static const Loaded result = load();
  return result;
}

}  // namespace

const Backend& backend() {
  const Loaded& l = loaded();
  if (!l.why_not.empty()) throw BackendError(l.why_not);
  return *l.backend;
}

void raise(const Failure& failure) {
  switch (failure.fault) {
    case Fault::invalid_argument:
      throw InvalidArgument(failure.text);
    case Fault::type_error:
      throw TypeError(failure.text);
    case Fault::out_of_memory:
      throw OutOfMemory(failure.text);
    default:
      throw BackendError(failure.text);
  }
}

Caller::Caller(Device device, const Context& context) : context_(context) {
  queue_.device = device.index;
  queue_.stream = context.stream;
  queue_.with = this;
  if (context.poll)
    queue_.cancelled = [](void* with) {
      Caller& caller = *static_cast<Caller*>(with);
      try {
        caller.context_.poll();
        return false;
      } catch (...) {
        caller.thrown_ = std::current_exception();
        return true;
      }
    };
}

DeviceMoments::DeviceMoments(Device device, std::int64_t n_x, std::int64_t n_y, bool offload)
    : shape_{device.index, n_x, n_y, offload} {
  call(backend().moments_create, &shape_, &moments_);
}

DeviceMoments::~DeviceMoments() { backend().moments_destroy(moments_); }

void DeviceMoments::add(const ArrayView* batches, const RowSelection& selection,
                        const Context& context) {
  const Queue queue{shape_.device, context.stream};
  const auto pointer = [](const std::optional<ArrayView>& view) { return view ? &*view : nullptr; };
  call(backend().moments_add, moments_, &queue, batches, pointer(selection.mask),
       pointer(selection.weights));
}

MomentsReport DeviceMoments::report() {
  MomentsReport report{};
  call(backend().moments_report, moments_, &report);
  const std::string which = message(" of update ", report.update, " (from 0)");
  const char* const argument = shape_.n_y == 0 ? "batch" : report.side == 0 ? "x" : "y";
  switch (report.refused) {
    case Refused::nothing:
      break;
    case Refused::not_finite:
      throw InvalidArgument(message(argument, ": NaN or infinity at row ", report.row, ", column ",
                                    report.column, which, "; that update was not counted"));
    case Refused::bad_weight:
      if (report.row < 0)
        throw InvalidArgument(message("weights: their sum overflows float64 with those", which,
                                      "; that update was not counted"));
      throw InvalidArgument(message("weights: got ", report.value, " at row ", report.row, which,
                                    ", expected 0 or a normal positive number; that update was "
                                    "not counted"));
    case Refused::overflow:
      throw InvalidArgument(message(argument, ": got magnitudes up to ", report.value, which,
                                    ", whose squares overflow float64; that update was not "
                                    "counted"));
  }
  return report;
}

void DeviceMoments::merge(DeviceMoments& other) {
  call(backend().moments_merge, moments_, other.moments_);
}

void DeviceMoments::assume(std::int64_t count, double weight, const double* reference,
                           const double* offset, const Matrix<double>& scatter) {
  call(backend().moments_assume, moments_, count, weight, reference, offset, scatter.data());
}

DeviceMoments::Mean DeviceMoments::mean(std::int32_t set) const {
  const auto n = std::size_t(set == 0 ? shape_.n_x : shape_.n_y);
  Mean mean{std::vector<double>(n), std::vector<double>(n)};
  call(backend().moments_mean, moments_, set, mean.reference.data(), mean.offset.data());
  return mean;
}

Matrix<double> DeviceMoments::empty() const {
  return {shape_.n_x, shape_.n_y == 0 ? shape_.n_x : shape_.n_y, device()};
}

Matrix<double> DeviceMoments::read(double divisor, bool centred) const {
  Matrix<double> out = empty();
  call(backend().moments_read, moments_, divisor, centred, out.data());
  return out;
}

Matrix<double> DeviceMoments::correlation() const {
  Matrix<double> out = empty();
  call(backend().moments_correlation, moments_, out.data());
  return out;
}

Matrix<double> widened(const ArrayView& view, const Context& context) {
  Matrix<double> out(view.rows(), view.columns(), view.device());
  Caller(view.device(), context)(backend().convert, &view, DType::float64, out.data());
  return out;
}

OnHost::OnHost(const ArrayView& view, const Context& context) : view_(view) {
  const auto fetch = [&]<class T>(Matrix<T>& into) {
    Matrix<T> there(view.rows(), view.columns(), view.device());
    Caller(view.device(), context)(backend().convert, &view, dtype_of<T>, there.data());
    into = there.to({}, context);
    view_ = ArrayView(into.data(), dtype_of<T>, view.shape());
  };
  if (view.dtype() == DType::float64)
    fetch(wide_);
  else
    fetch(narrow_);
}

}  // namespace cuda

void* allocate_on(Device device, std::int64_t bytes) {
  void* memory = nullptr;
  cuda::call(cuda::backend().allocate, device.index, bytes, &memory);
  return memory;
}

void release_on(Device device, void* memory) noexcept {
  cuda::backend().release(device.index, memory);
}

void copy_between(Device to_device, void* to, Device from_device, const void* from,
                  std::int64_t bytes, const Context& context) {
  const Device place = from_device.kind == DeviceKind::cuda ? from_device : to_device;
  if (place.kind == DeviceKind::cpu) {
    std::copy_n(static_cast<const std::byte*>(from), bytes, static_cast<std::byte*>(to));
    return;
  }
  cuda::Caller(place, context)(cuda::backend().copy, to, from, bytes);
}

void wait_for(Device device, void* stream, const Context& context) {
  const cuda::Queue before{device.index, stream}, after{device.index, context.stream};
  cuda::call(cuda::backend().order, &before, &after);
}

void synchronize(Device device, const Context& context) {
  const cuda::Queue queue{device.index, context.stream};
  cuda::call(cuda::backend().synchronize, &queue);
}

Device device_of(const void* memory) {
  Device device;
  if (cuda_available()) {
    int index = -1;
    cuda::call(cuda::backend().locate, memory, &index);
    if (index >= 0) device = {DeviceKind::cuda, index};
  }
  return device;
}

bool cuda_available(int device) {
  const auto& loaded = cuda::loaded();
  return loaded.why_not.empty() && device >= 0 && device < loaded.devices;
}

std::string cuda_config() {
  const auto& loaded = cuda::loaded();
  if (!loaded.why_not.empty()) return loaded.why_not;
  std::string text;
  for (int i = 0; i < loaded.devices; ++i) {
    cuda::DeviceFacts facts;
    cuda::Failure failure;
    const bool known = cuda::backend().describe(i, &facts, &failure);
    text += message(text.empty() ? "" : "; ", "cuda:", i, " ");
    text += known ? message(facts.name, " (sm_", facts.major, facts.minor, ", ",
                            facts.total_memory >> 20, " MiB)")
                  : message("(", failure.text, ")");
    if (known && i + 1 == loaded.devices)
      text += message("; driver ", facts.driver, ", runtime ", facts.runtime, ", cuBLAS ",
                      facts.cublas, ", cuSOLVER ", facts.cusolver);
  }
  return text;
}

}  // namespace descramble_fast
