// The emulated runtime: devices, their memory, streams, events and launches. Work is done by
// whoever waits for it: at once, or, with EMULATED_CUDA_STREAMS=deferred, no sooner than the
// program asks.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

// All of it but what never changes under the runtime's lock.
struct CUstream_st {
  static inline std::atomic<unsigned long long> made = 0;

  int device;
  bool blocking;
  unsigned long long id = ++made;
  std::deque<std::function<void()>> work{};
  bool busy = false;  // some thread does its work
  std::uint64_t queued = 0, done = 0;
};

namespace {

using Clock = std::chrono::steady_clock;
using Stream = std::shared_ptr<CUstream_st>;

// What a stream had been given when an event was recorded.
struct Mark {
  Stream stream;
  std::uint64_t queued;
  Clock::time_point reached;
};

constexpr int multiprocessors = 4;
constexpr unsigned max_threads = 1024, threads_per_multiprocessor = 2048;
constexpr std::size_t default_shared = 48 << 10, most_shared = 227 << 10;
constexpr std::size_t shared_per_multiprocessor = 228 << 10;

struct Allocation {
  std::size_t bytes;
  cudaMemoryType type;
  int device;
  bool in_order = false;  // given by cudaMallocAsync
};

}  // namespace

struct CUevent_st {
  int device;
  bool timed;
  std::shared_ptr<Mark> mark;
};

namespace {

struct Runtime {
  std::mutex mutex;
  std::condition_variable done;
  std::map<std::uintptr_t, Allocation> memory;
  std::map<int, std::size_t> used;
  std::map<cudaStream_t, Stream> streams;
  std::map<int, Stream> default_streams;
  std::map<cudaEvent_t, std::unique_ptr<CUevent_st>> events;
  std::map<std::pair<int, const void*>, std::size_t> shared_limits;
};

// Never destroyed: what lives as long as the process may still give memory back.
Runtime& runtime() {
  static auto& runtime = *new Runtime;
  return runtime;
}

constinit thread_local int current_device = 0;
constinit thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

std::size_t number(const char* variable, std::size_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::size_t(std::stoull(text));
}

int device_count() { return int(number("EMULATED_CUDA_DEVICES", 1)); }
std::size_t total_memory() { return number("EMULATED_CUDA_MEMORY", std::size_t(4) << 30); }

bool is_default(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}

// For calls that need a device: none, or one that is no longer there.
cudaError_t usable() { return current_device < device_count() ? cudaSuccess : cudaErrorNoDevice; }

cudaError_t usable(cudaStream_t stream) {
  if (usable() != cudaSuccess) return usable();
  return emulated_cuda::device_of(stream) >= 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

// The allocation that holds this address, under the lock.
auto find(const void* p) {
  auto& memory = runtime().memory;
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  auto it = memory.upper_bound(at);
  if (it == memory.begin()) return memory.end();
  --it;
  return at - it->first < it->second.bytes ? it : memory.end();
}

// Null where there is no such stream; under the lock.
Stream find(cudaStream_t handle) {
  if (!is_default(handle)) {
    const auto it = runtime().streams.find(handle);
    return it == runtime().streams.end() ? nullptr : it->second;
  }
  Stream& stream = runtime().default_streams[current_device];
  if (stream == nullptr) stream.reset(new CUstream_st{current_device, true});
  return stream;
}

// Does the stream's work, or waits for the thread that does, until so much of it is done.
void drain(const Stream& stream, std::uint64_t wanted) {
  std::unique_lock lock(runtime().mutex);
  while (stream->done < wanted) {
    if (stream->busy) {
      runtime().done.wait(lock);
      continue;
    }
    struct Busy {
      explicit Busy(CUstream_st& stream) : stream(stream) { stream.busy = true; }
      ~Busy() {
        const std::lock_guard lock(runtime().mutex);
        stream.busy = false;
        ++stream.done;
        runtime().done.notify_all();
      }
      CUstream_st& stream;
    };
    auto work = std::move(stream->work.front());
    stream->work.pop_front();
    {
      const Busy busy(*stream);
      lock.unlock();
      work();
    }
    lock.lock();
  }
}

void drain(const std::vector<std::pair<Stream, std::uint64_t>>& streams) {
  for (const auto& [stream, wanted] : streams) drain(stream, wanted);
}

// The streams of a device and what they have been given: those that wait for the default stream, or
// all of them. Under the lock.
std::vector<std::pair<Stream, std::uint64_t>> streams_of(int device, bool all) {
  std::vector<std::pair<Stream, std::uint64_t>> out;
  for (const auto& [handle, stream] : runtime().streams)
    if (stream->device == device && (all || stream->blocking))
      out.emplace_back(stream, stream->queued);
  if (const auto it = runtime().default_streams.find(device);
      all && it != runtime().default_streams.end())
    out.emplace_back(it->second, it->second->queued);
  return out;
}

void drain_device(int device) {
  std::unique_lock lock(runtime().mutex);
  const auto streams = streams_of(device, true);
  lock.unlock();
  drain(streams);
}

bool deferred() {
  const char* value = std::getenv("EMULATED_CUDA_STREAMS");
  const std::string_view mode = value == nullptr ? "immediate" : value;
  if (mode != "immediate" && mode != "deferred")
    throw std::invalid_argument("EMULATED_CUDA_STREAMS: expected immediate or deferred");
  return mode == "deferred";
}

cudaError_t allocate(void** out, std::size_t bytes, Allocation wanted) {
  if (out == nullptr) return cudaErrorInvalidValue;
  *out = nullptr;
  if (bytes == 0) return cudaSuccess;
  wanted.bytes = bytes;
  const bool counts = wanted.type == cudaMemoryTypeDevice;
  std::unique_lock lock(runtime().mutex);
  auto& used = runtime().used[wanted.device];
  const auto too_much = [&] {
    return counts && bytes > total_memory() - std::min(used, total_memory());
  };
  if (too_much()) {  // unless some is about to be given back
    lock.unlock();
    drain_device(wanted.device);
    lock.lock();
    if (too_much()) return cudaErrorMemoryAllocation;
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(memory, 0xFF, bytes);
  runtime().memory[reinterpret_cast<std::uintptr_t>(memory)] = wanted;
  if (counts) used += bytes;
  *out = memory;
  return cudaSuccess;
}

// Forgets an allocation. The memory itself is to be freed by what is given back.
std::function<void()> deallocate(void* p, cudaMemoryType type, bool* in_order = nullptr) {
  const std::lock_guard lock(runtime().mutex);
  const auto it = runtime().memory.find(reinterpret_cast<std::uintptr_t>(p));
  if (it == runtime().memory.end() || it->second.type != type) return nullptr;
  const Allocation allocation = it->second;
  if (in_order != nullptr) *in_order = allocation.in_order;
  runtime().memory.erase(it);
  return [p, allocation] {
    std::free(p);
    const std::lock_guard lock(runtime().mutex);
    if (allocation.type == cudaMemoryTypeDevice)
      runtime().used[allocation.device] -= allocation.bytes;
  };
}

struct Rows {
  std::size_t pitch, width, height;
  std::size_t span() const { return height == 0 ? 0 : (height - 1) * pitch + width; }
};

// What these bytes are: pageable memory of the host, or one allocation that holds all of them.
cudaError_t classify(const void* p, std::size_t bytes, Allocation& out) {
  const std::lock_guard lock(runtime().mutex);
  const auto it = find(p);
  out = it == runtime().memory.end() ? Allocation{0, cudaMemoryTypeUnregistered, -2} : it->second;
  if (it == runtime().memory.end()) return cudaSuccess;
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(p) - it->first;
  return bytes <= it->second.bytes - offset ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t copy(void* to, Rows to_rows, const void* from, Rows from_rows, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  if (const auto error = usable(stream); error != cudaSuccess) return error;
  if (to_rows.span() == 0 || to_rows.width == 0) return cudaSuccess;
  if (to_rows.pitch < to_rows.width || from_rows.pitch < from_rows.width || to == nullptr ||
      from == nullptr)
    return cudaErrorInvalidValue;
  Allocation to_memory, from_memory;
  if (const auto error = classify(to, to_rows.span(), to_memory); error != cudaSuccess)
    return error;
  if (const auto error = classify(from, from_rows.span(), from_memory); error != cudaSuccess)
    return error;
  const auto fits = [](cudaMemoryType type, bool device) {
    return device ? type != cudaMemoryTypeUnregistered : type != cudaMemoryTypeDevice;
  };
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
    return cudaErrorInvalidMemcpyDirection;
  if (kind != cudaMemcpyDefault &&
      (!fits(to_memory.type, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
       !fits(from_memory.type, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)))
    return cudaErrorInvalidValue;
  // Pageable memory may be changed as soon as the call returns, and is ready when it does.
  std::shared_ptr<std::vector<char>> staged;
  if (from_memory.type == cudaMemoryTypeUnregistered) {
    const auto* bytes = static_cast<const char*>(from);
    staged = std::make_shared<std::vector<char>>(bytes, bytes + from_rows.span());
  }
  const auto error = emulated_cuda::enqueue(stream, [=] {
    const auto* bytes = staged != nullptr ? staged->data() : static_cast<const char*>(from);
    for (std::size_t i = 0; i < to_rows.height; ++i)
      std::memmove(static_cast<char*>(to) + i * to_rows.pitch, bytes + i * from_rows.pitch,
                   to_rows.width);
  });
  return error == cudaSuccess && to_memory.type == cudaMemoryTypeUnregistered
             ? cudaStreamSynchronize(stream)
             : error;
}

// Whether there is such an event, and what it marks: nothing before it is recorded.
bool known(cudaEvent_t event, std::shared_ptr<Mark>* mark = nullptr) {
  const std::lock_guard lock(runtime().mutex);
  if (!runtime().events.contains(event)) return false;
  if (mark != nullptr) *mark = event->mark;
  return true;
}

}  // namespace

namespace emulated_cuda {

int device_of(cudaStream_t handle) {
  const std::lock_guard lock(runtime().mutex);
  const Stream stream = find(handle);
  return stream == nullptr ? -1 : stream->device;
}

bool on_device(int device, const void* p, std::size_t bytes) {
  Allocation memory;
  return classify(p, bytes, memory) == cudaSuccess &&
         (memory.type == cudaMemoryTypeHost ||
          (memory.type == cudaMemoryTypeDevice && memory.device == device));
}

cudaError_t enqueue(cudaStream_t handle, std::function<void()> work) {
  if (const auto error = usable(handle); error != cudaSuccess) return error;
  std::unique_lock lock(runtime().mutex);
  const Stream stream = find(handle);
  // The default stream waits for the streams that are not non-blocking, and they for it.
  std::vector<std::pair<Stream, std::uint64_t>> before;
  if (is_default(handle)) {
    before = streams_of(stream->device, false);
  } else if (const auto it = runtime().default_streams.find(stream->device);
             stream->blocking && it != runtime().default_streams.end()) {
    before.emplace_back(it->second, it->second->queued);
  }
  stream->work.push_back([before = std::move(before), work = std::move(work)] {
    drain(before);
    work();
  });
  const std::uint64_t queued = ++stream->queued;
  lock.unlock();
  if (!deferred()) drain(stream, queued);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const auto check = [&] {
    if (const auto error = usable(config.stream); error != cudaSuccess) return error;
    if (device_of(config.stream) != current_device) return cudaErrorInvalidResourceHandle;
    if (config.numAttrs != 0) return cudaErrorNotSupported;
    const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || block.x > max_threads || block.y > max_threads || block.z > 64 ||
        threads > max_threads || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
      return cudaErrorInvalidConfiguration;
    const std::lock_guard lock(runtime().mutex);
    const auto it = runtime().shared_limits.find({current_device, kernel});
    const std::size_t limit =
        it == runtime().shared_limits.end() ? default_shared : std::max(default_shared, it->second);
    return config.dynamicSmemBytes > limit ? cudaErrorInvalidValue : cudaSuccess;
  };
  if (const auto error = check(); error != cudaSuccess) return result(error);
  return result(
      enqueue(config.stream, [=, bytes = config.dynamicSmemBytes, thread = std::move(thread)] {
        run_grid(grid, block, bytes, thread);
      }));
}

}  // namespace emulated_cuda

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define NAME(e) \
  case e:       \
    return #e;
    NAME(cudaSuccess)
    NAME(cudaErrorInvalidValue)
    NAME(cudaErrorMemoryAllocation)
    NAME(cudaErrorInvalidConfiguration)
    NAME(cudaErrorInvalidMemcpyDirection)
    NAME(cudaErrorInsufficientDriver)
    NAME(cudaErrorNoDevice)
    NAME(cudaErrorInvalidDevice)
    NAME(cudaErrorInvalidResourceHandle)
    NAME(cudaErrorNotReady)
    NAME(cudaErrorNotSupported)
    NAME(cudaErrorUnknown)
#undef NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice           ? "no CUDA-capable device is detected"
         : error == cudaErrorMemoryAllocation ? "out of memory"
                                              : cudaGetErrorName(error);
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return result(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  if (device_count() == 0) return result(cudaErrorNoDevice);
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return result(usable());
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  *out = {};
  std::strcpy(out->name, "emulated CUDA device");
  out->totalGlobalMem = total_memory();
  out->sharedMemPerBlock = default_shared;
  out->sharedMemPerBlockOptin = most_shared;
  out->sharedMemPerMultiprocessor = shared_per_multiprocessor;
  out->regsPerBlock = 65536;
  out->warpSize = 32;
  out->maxThreadsPerBlock = max_threads;
  out->maxThreadsPerMultiProcessor = threads_per_multiprocessor;
  out->maxBlocksPerMultiProcessor = 32;
  const int threads[] = {1024, 1024, 64}, blocks[] = {0x7fffffff, 65535, 65535};
  std::copy_n(threads, 3, out->maxThreadsDim);
  std::copy_n(blocks, 3, out->maxGridSize);
  out->major = 9;
  out->minor = 0;
  out->multiProcessorCount = multiprocessors;
  out->l2CacheSize = 50 << 20;
  out->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (const auto error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess)
    return error;
  const auto give = [&](std::size_t value) { return *out = int(value), cudaSuccess; };
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return give(std::size_t(properties.maxThreadsPerBlock));
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return give(properties.sharedMemPerBlock);
    case cudaDevAttrMultiProcessorCount:
      return give(std::size_t(properties.multiProcessorCount));
    case cudaDevAttrComputeCapabilityMajor:
      return give(std::size_t(properties.major));
    case cudaDevAttrComputeCapabilityMinor:
      return give(std::size_t(properties.minor));
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return give(properties.sharedMemPerMultiprocessor);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return give(properties.sharedMemPerBlockOptin);
  }
  return result(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() {
  if (usable() != cudaSuccess) return result(usable());
  drain_device(current_device);
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  if (usable() != cudaSuccess) return result(usable());
  const std::lock_guard lock(runtime().mutex);
  *total = total_memory();
  *free = *total - std::min(*total, runtime().used[current_device]);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, std::size_t bytes) {
  if (usable() != cudaSuccess) return result(usable());
  return result(allocate(out, bytes, {0, cudaMemoryTypeDevice, current_device}));
}

cudaError_t cudaFree(void* p) {
  if (usable() != cudaSuccess) return result(usable());
  if (p == nullptr) return cudaSuccess;
  bool in_order = false;
  const auto free = deallocate(p, cudaMemoryTypeDevice, &in_order);
  if (free == nullptr) return result(cudaErrorInvalidValue);
  if (!in_order) drain_device(current_device);  // what is given out in order is not waited for
  free();
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** out, std::size_t bytes, cudaStream_t stream) {
  if (const auto error = usable(stream); error != cudaSuccess) return result(error);
  if (bytes == 0) return result(cudaErrorInvalidValue);  // what it would do is not documented
  return result(
      allocate(out, bytes, {0, cudaMemoryTypeDevice, emulated_cuda::device_of(stream), true}));
}

// Pools keep nothing here; they know their device.
struct CUmemPoolHandle_st {
  int device;
};

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  if (properties->location.type != cudaMemLocationTypeDevice) return result(cudaErrorInvalidValue);
  *pool = new CUmemPoolHandle_st{properties->location.id};
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

cudaError_t cudaMallocFromPoolAsync(void** out, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream) {
  if (pool->device != emulated_cuda::device_of(stream)) return result(cudaErrorInvalidValue);
  return cudaMallocAsync(out, bytes, stream);
}

cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  if (const auto error = usable(stream); error != cudaSuccess) return result(error);
  const auto free = deallocate(p, cudaMemoryTypeDevice);
  return result(free == nullptr ? cudaErrorInvalidValue : emulated_cuda::enqueue(stream, free));
}

cudaError_t cudaHostAlloc(void** out, std::size_t bytes, unsigned) {
  if (usable() != cudaSuccess) return result(usable());
  return result(allocate(out, bytes, {0, cudaMemoryTypeHost, current_device}));
}

cudaError_t cudaMallocHost(void** out, std::size_t bytes) {
  return cudaHostAlloc(out, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* p) {
  if (p == nullptr) return cudaSuccess;
  const auto free = deallocate(p, cudaMemoryTypeHost);
  if (free == nullptr) return result(cudaErrorInvalidValue);
  drain_device(current_device);
  free();
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  Allocation memory;
  if (flags != 0 || classify(host, 0, memory) != cudaSuccess || memory.type != cudaMemoryTypeHost)
    return result(cudaErrorInvalidValue);
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* p) {
  if (usable() != cudaSuccess) return result(usable());
  const std::lock_guard lock(runtime().mutex);
  const auto it = find(p);
  void* address = const_cast<void*>(p);
  if (it == runtime().memory.end())
    *out = {cudaMemoryTypeUnregistered, -2, nullptr, address};
  else
    *out = {it->second.type, it->second.device, address,
            it->second.type == cudaMemoryTypeHost ? address : nullptr};
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return result(
      copy(to, {to_pitch, width, height}, from, {from_pitch, width, height}, kind, stream));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const auto error = cudaMemcpyAsync(to, from, bytes, kind);
  return error != cudaSuccess ? error : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t stream) {
  if (const auto error = usable(stream); error != cudaSuccess) return result(error);
  if (!emulated_cuda::on_device(emulated_cuda::device_of(stream), p, bytes))
    return result(bytes == 0 ? cudaSuccess : cudaErrorInvalidValue);
  return result(emulated_cuda::enqueue(stream, [=] { std::memset(p, value, bytes); }));
}

cudaError_t cudaMemset(void* p, int value, std::size_t bytes) {
  return cudaMemsetAsync(p, value, bytes);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  if (usable() != cudaSuccess) return result(usable());
  if (flags > cudaStreamNonBlocking) return result(cudaErrorInvalidValue);
  const Stream stream(new CUstream_st{current_device, flags == cudaStreamDefault});
  const std::lock_guard lock(runtime().mutex);
  runtime().streams[*out = stream.get()] = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* out) {
  return cudaStreamCreateWithFlags(out, cudaStreamDefault);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  if (const auto error = usable(handle); error != cudaSuccess) return result(error);
  std::unique_lock lock(runtime().mutex);
  const Stream stream = find(handle);
  const std::uint64_t queued = stream->queued;
  lock.unlock();
  drain(stream, queued);
  return cudaSuccess;
}

cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  if (const auto error = usable(handle); error != cudaSuccess) return result(error);
  const std::lock_guard lock(runtime().mutex);
  *id = find(handle)->id;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (is_default(stream)) return result(cudaErrorInvalidResourceHandle);
  if (const auto error = cudaStreamSynchronize(stream); error != cudaSuccess) return error;
  const std::lock_guard lock(runtime().mutex);
  runtime().streams.erase(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  std::shared_ptr<Mark> mark;
  if (!known(event, &mark)) return result(cudaErrorInvalidResourceHandle);
  return result(emulated_cuda::enqueue(stream, [mark] {
    if (mark != nullptr) drain(mark->stream, mark->queued);
  }));
}

cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  *device = emulated_cuda::device_of(stream);
  return result(usable(stream));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  if (usable() != cudaSuccess) return result(usable());
  auto event = std::make_unique<CUevent_st>(current_device, (flags & cudaEventDisableTiming) == 0);
  const std::lock_guard lock(runtime().mutex);
  *out = event.get();
  runtime().events[*out] = std::move(event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* out) {
  return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(runtime().mutex);
  return result(runtime().events.erase(event) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const auto error = usable(stream); error != cudaSuccess) return result(error);
  if (!known(event) || event->device != emulated_cuda::device_of(stream))
    return result(cudaErrorInvalidResourceHandle);
  const auto mark = std::make_shared<Mark>();
  const auto error = emulated_cuda::enqueue(stream, [mark] { mark->reached = Clock::now(); });
  const std::lock_guard lock(runtime().mutex);
  mark->stream = find(stream);
  mark->queued = mark->stream->queued;
  event->mark = mark;
  return result(error);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::shared_ptr<Mark> mark;
  if (!known(event, &mark)) return result(cudaErrorInvalidResourceHandle);
  if (mark != nullptr) drain(mark->stream, mark->queued);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  std::shared_ptr<Mark> first, last;
  if (!known(start, &first) || !known(end, &last) || !start->timed || !end->timed ||
      first == nullptr || last == nullptr)
    return result(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(runtime().mutex);
  for (const auto& mark : {first, last})
    if (mark->stream->done < mark->queued) return result(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(last->reached - first->reached).count();
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (usable() != cudaSuccess) return result(usable());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      std::size_t(value) > most_shared)
    return result(cudaErrorInvalidValue);
  const std::lock_guard lock(runtime().mutex);
  runtime().shared_limits[{current_device, kernel}] = std::size_t(value);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int block_size,
                                                          std::size_t dynamic_bytes) {
  if (usable() != cudaSuccess) return result(usable());
  if (block_size <= 0) return result(cudaErrorInvalidValue);
  constexpr std::size_t reserved = 1 << 10;  // of each block's shared memory
  *blocks =
      unsigned(block_size) > max_threads || dynamic_bytes > most_shared
          ? 0
          : int(std::min({std::size_t(32), threads_per_multiprocessor / std::size_t(block_size),
                          shared_per_multiprocessor / (dynamic_bytes + reserved)}));
  return cudaSuccess;
}
