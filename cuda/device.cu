#include "device.hpp"

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace descramble_fast::cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky shall not meet the next caller
  throw Error(status == cudaErrorMemoryAllocation ? Fault::out_of_memory : Fault::backend,
              message(call, ": ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ")"));
}

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(status == CUBLAS_STATUS_ALLOC_FAILED ? Fault::out_of_memory : Fault::backend,
                message(call, ": ", cublasGetStatusName(status)));
}

void check(cusolverStatus_t status, const char* call) {
  if (status != CUSOLVER_STATUS_SUCCESS)
    throw Error(status == CUSOLVER_STATUS_ALLOC_FAILED ? Fault::out_of_memory : Fault::backend,
                message(call, ": cuSOLVER status ", int(status)));
}

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  check(cudaSetDevice(device), "cudaSetDevice");
}

OnDevice::~OnDevice() { cudaSetDevice(before_); }

void poll(const Queue& queue) {
  if (queue.cancelled != nullptr && queue.cancelled(queue.with))
    throw Error(Fault::backend, "cancelled");
}

namespace {

// A pool of our own: that of the device is for its other users to set up. It keeps what a usual
// call takes, as asking the system at every call costs more than many of them.
struct MemoryPool {
  cudaMemPool_t pool = nullptr;
  cudaStream_t stream = nullptr;  // of what outlives a call; nothing else is queued on it
};

const MemoryPool& memory_pool() {
  constexpr std::uint64_t kept = std::uint64_t(1) << 29;
  static std::mutex mutex;
  static auto& pools = *new std::map<int, MemoryPool>;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  MemoryPool& out = pools[device];
  if (out.stream == nullptr)
    check(cudaStreamCreateWithFlags(&out.stream, cudaStreamNonBlocking),
          "cudaStreamCreateWithFlags");
  if (out.pool == nullptr) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {cudaMemLocationTypeDevice, device};
    check(cudaMemPoolCreate(&out.pool, &properties), "cudaMemPoolCreate");
    std::uint64_t threshold = kept;
    check(cudaMemPoolSetAttribute(out.pool, cudaMemPoolAttrReleaseThreshold, &threshold),
          "cudaMemPoolSetAttribute");
  }
  return out;
}

void* allocate(std::int64_t bytes, cudaStream_t stream, const char* of) {
  void* memory = nullptr;
  const cudaError_t status =
      cudaMallocFromPoolAsync(&memory, std::size_t(bytes), memory_pool().pool, stream);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(Fault::out_of_memory, message("the device would not grant ", bytes, " bytes", of));
  }
  check(status, "cudaMallocFromPoolAsync");
  return memory;
}

}  // namespace

void* allocate_in_order(std::int64_t bytes, cudaStream_t stream) {
  return allocate(bytes, stream, " of work space");
}

void* allocate_to_keep(std::int64_t bytes) {
  if (bytes == 0) return nullptr;
  const cudaStream_t stream = memory_pool().stream;
  void* const memory = allocate(bytes, stream, "");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  return memory;
}

void give_back(void* memory) {
  if (memory == nullptr) return;
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  check(cudaFreeAsync(memory, memory_pool().stream), "cudaFreeAsync");
}

void grant_shared(const void* kernel, std::size_t bytes) {
  static std::mutex mutex;
  static auto& granted = *new std::map<std::pair<int, const void*>, std::size_t>;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  std::size_t& most = granted[{device, kernel}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
        "cudaFuncSetAttribute");
  most = bytes;
}

namespace {

void create(cublasHandle_t& handle) { check(cublasCreate(&handle), "cublasCreate"); }
void create(cusolverDnHandle_t& handle) { check(cusolverDnCreate(&handle), "cusolverDnCreate"); }

void bind(cublasHandle_t handle, cudaStream_t stream) {
  check(cublasSetStream(handle, stream), "cublasSetStream");
}
void bind(cusolverDnHandle_t handle, cudaStream_t stream) {
  check(cusolverDnSetStream(handle, stream), "cusolverDnSetStream");
}

void destroy(cublasHandle_t handle) { cublasDestroy(handle); }
void destroy(cusolverDnHandle_t handle) { cusolverDnDestroy(handle); }

// Idle handles by device and stream: the work space of one may still be in use by what is queued
// there. They live as long as the process: at its end the driver may be gone.
template <class Handle>
class Pool {
 public:
  Handle take(const Queue& queue) {
    {
      const std::lock_guard lock(mutex_);
      std::vector<Handle>& idle = idle_[key_of(queue)];
      if (!idle.empty()) {
        const Handle handle = idle.back();
        idle.pop_back();
        return handle;
      }
    }
    Handle handle = nullptr;
    create(handle);
    return handle;
  }

  // False where it cannot be kept.
  bool give_back(const Queue& queue, Handle handle) noexcept {
    try {
      const std::lock_guard lock(mutex_);
      idle_[key_of(queue)].push_back(handle);
      return true;
    } catch (...) {
      return false;
    }
  }

 private:
  using Key = std::pair<int, unsigned long long>;
  // A stream's number: one handle may stand for a stream to each thread, or for one made later.
  static Key key_of(const Queue& queue) {
    unsigned long long id = 0;
    check(cudaStreamGetId(stream_of(queue), &id), "cudaStreamGetId");
    return {queue.device, id};
  }

  std::mutex mutex_;
  std::map<Key, std::vector<Handle>> idle_;
};

template <class Handle>
Pool<Handle>& pool() {
  static auto& pool = *new Pool<Handle>;
  return pool;
}

template <class T>
__global__ void convert_kernel(Strided from, T* out) {
  const std::int64_t size = from.rows * from.columns;
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < size; i += step) {
    const std::int64_t row = i / from.columns, column = i % from.columns;
    const std::int64_t stride = from.rank == 0 ? 1 : from.strides[from.rank - 1];
    out[i] = T(load(from.data, from.dtype, row_offset(from, row) + column * stride));
  }
}

}  // namespace

template <class Handle>
Lease<Handle>::Lease(const Queue& queue) : queue_(queue), handle_(pool<Handle>().take(queue)) {
  bind(handle_, stream_of(queue));
}

template <class Handle>
Lease<Handle>::~Lease() {
  if (!pool<Handle>().give_back(queue_, handle_)) destroy(handle_);
}

template class Lease<cublasHandle_t>;
template class Lease<cusolverDnHandle_t>;

void multiply(const Queue& queue, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
              const Operand& a, const Operand& b, double beta, double* c, std::int64_t c_stride) {
  if (m == 0 || n == 0) return;
  const Blas blas(queue);
  // Column-major, everything is transposed: C^T = op(B)^T A^T.
  const auto letter = [](const Operand& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  check(cublasDgemm_64(blas.get(), letter(b), letter(a), n, m, k, &alpha, b.data, b.stride, a.data,
                       a.stride, &beta, c, c_stride),
        "cublasDgemm");
}

Strided strided(const ArrayView& view) {
  Strided out{view.data(), view.dtype(), view.rank(), {}, {}, 1, 1};
  for (int i = 0; i < out.rank; ++i) {
    out.shape[i] = view.shape()[std::size_t(i)];
    out.strides[i] = view.strides()[std::size_t(i)];
    (i + 1 < out.rank ? out.rows : out.columns) *= out.shape[i];
  }
  return out;
}

template <class T>
void convert_rows(const Queue& queue, const Strided& from, T* out) {
  constexpr int threads = 256;
  const std::int64_t size = from.rows * from.columns;
  launch(queue, blocks_for(size, threads * 4), threads, 0, convert_kernel<T>, from, out);
}

template void convert_rows(const Queue&, const Strided&, float*);
template void convert_rows(const Queue&, const Strided&, double*);

}  // namespace descramble_fast::cuda
