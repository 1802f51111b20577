#pragma once

#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "descramble_fast/view.hpp"
#include "message.hpp"

namespace descramble_fast::cuda {

/// Carries a failure to the boundary.
class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& text) : std::runtime_error(text), fault(fault) {}
  Fault fault;
};

void check(cudaError_t status, const char* call);
void check(cublasStatus_t status, const char* call);
void check(cusolverStatus_t status, const char* call);

/// Runs `body`, on the device where there is one, and turns what it throws into a failure.
template <class Body>
bool guarded(Failure* failure, const Body& body) noexcept;
template <class Body>
bool guarded(int device, Failure* failure, const Body& body) noexcept;

/// Makes a device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

inline cudaStream_t stream_of(const Queue& queue) {
  return static_cast<cudaStream_t>(queue.stream);
}

/// Throws where the caller wants to give up.
void poll(const Queue& queue);

/// In the order of the stream; Error(out_of_memory) names the bytes.
void* allocate_in_order(std::int64_t bytes, cudaStream_t stream);

/// For longer than a call, and for any stream: whoever used it last, giving it back waits for all.
void* allocate_to_keep(std::int64_t bytes);
void give_back(void* memory);

/// Device memory for the time of a call, in the order of its stream: given back while the work that
/// reads it may still be under way.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::int64_t size, const Queue& queue) : size_(size), stream_(stream_of(queue)) {
    if (size > 0)
      data_ = static_cast<T*>(allocate_in_order(size * std::int64_t(sizeof(T)), stream_));
  }
  ~Buffer() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  T* data() const { return data_; }
  std::int64_t size() const { return size_; }

  void fill_bytes(int value) {
    if (size_ > 0)
      check(cudaMemsetAsync(data_, value, std::size_t(size_) * sizeof(T), stream_),
            "cudaMemsetAsync");
  }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(stream_, other.stream_);
  }

  T* data_ = nullptr;
  std::int64_t size_ = 0;
  cudaStream_t stream_ = nullptr;
};

/// In stream order; pageable host memory may be reused at once.
template <class T>
void copy_to_device(const Queue& queue, T* to, const T* from, std::int64_t count) {
  if (count > 0)
    check(cudaMemcpyAsync(to, from, std::size_t(count) * sizeof(T), cudaMemcpyHostToDevice,
                          stream_of(queue)),
          "cudaMemcpyAsync");
}

/// Waits.
template <class T>
void copy_to_host(const Queue& queue, T* to, const T* from, std::int64_t count) {
  if (count > 0)
    check(cudaMemcpyAsync(to, from, std::size_t(count) * sizeof(T), cudaMemcpyDeviceToHost,
                          stream_of(queue)),
          "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream_of(queue)), "cudaStreamSynchronize");
}

template <class T>
std::vector<T> to_host(const Queue& queue, const T* from, std::int64_t count) {
  std::vector<T> out(static_cast<std::size_t>(count));
  copy_to_host(queue, out.data(), from, count);
  return out;
}

template <class T>
Buffer<T> to_device(const Queue& queue, const T* from, std::int64_t count) {
  Buffer<T> out(count, queue);
  copy_to_device(queue, out.data(), from, count);
  return out;
}

/// Lets a kernel have so much dynamic shared memory on the current device. This is never taken
/// back: another thread may be about to start the kernel with more.
void grant_shared(const void* kernel, std::size_t bytes);

/// Starts a kernel; a grid of no blocks starts nothing.
template <class... Parameters, class... Arguments>
void launch(const Queue& queue, dim3 grid, dim3 block, std::size_t shared_bytes,
            void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024) grant_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream_of(queue);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...),
        "cudaLaunchKernelEx");
}

/// Blocks of `per_block` that cover `count`; kernels stride over the rest where that is too many.
inline unsigned blocks_for(std::int64_t count, std::int64_t per_block) {
  constexpr std::int64_t most = (std::int64_t(1) << 31) - 1;
  const std::int64_t blocks = (count + per_block - 1) / per_block;
  return unsigned(blocks < most ? blocks : most);
}

/// The block's dynamic shared memory.
#ifdef __CUDACC__
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}
#else
inline unsigned char* dynamic_shared() { return descramble_fast_dynamic_shared(); }
#endif

/// A cuBLAS or cuSOLVER handle bound to the queue's stream, used by one call at a time and kept for
/// the next on that stream, as making one takes milliseconds.
template <class Handle>
class Lease {
 public:
  explicit Lease(const Queue& queue);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Handle get() const { return handle_; }

 private:
  Queue queue_;
  Handle handle_;
};
using Blas = Lease<cublasHandle_t>;
using Solver = Lease<cusolverDnHandle_t>;

/// C (m, n) = alpha A op(B) + beta C, row-major, float64; the letters say which is transposed.
/// Rows are contiguous; the strides count elements from row to row.
struct Operand {
  const double* data;
  std::int64_t stride;
  bool transposed = false;
};
void multiply(const Queue& queue, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
              const Operand& a, const Operand& b, double beta, double* c, std::int64_t c_stride);

__host__ __device__ inline std::int64_t bytes_of(DType dtype) {
  return dtype == DType::float64   ? 8
         : dtype == DType::float32 ? 4
         : dtype == DType::boolean ? 1
                                   : 2;
}

/// A view that kernels can hold: any strides, any floating type or bool.
struct Strided {
  const void* data;
  DType dtype;
  int rank;
  std::int64_t shape[ArrayView::max_rank];
  std::int64_t strides[ArrayView::max_rank];
  std::int64_t rows, columns;  // the last axis, and all before it
};
Strided strided(const ArrayView& view);

/// Where row `row` begins, in elements.
__host__ __device__ inline std::int64_t row_offset(const Strided& a, std::int64_t row) {
  std::int64_t offset = 0;
  for (int i = a.rank - 2; i > 0; --i) {
    offset += (row % a.shape[i]) * a.strides[i];
    row /= a.shape[i];
  }
  return a.rank > 1 ? offset + row * a.strides[0] : offset;
}

__device__ inline float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

/// Any element as a double; exact for every type, true is 1.
__device__ inline double load(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::boolean:
      return static_cast<const unsigned char*>(data)[index] != 0;
    case DType::float16:
      return widen(static_cast<const Float16*>(data)[index]);
    case DType::bfloat16:
      return widen(static_cast<const BFloat16*>(data)[index]);
    case DType::float32:
      return static_cast<const float*>(data)[index];
    case DType::float64:
      return static_cast<const double*>(data)[index];
  }
  return 0;
}

/// Rows as contiguous elements of T (float or double), in the order of the queue: (rows, columns).
template <class T>
void convert_rows(const Queue& queue, const Strided& from, T* out);

template <class Body>
bool guarded(Failure* failure, const Body& body) noexcept {
  const auto fail = [&](Fault fault, const char* text) {
    failure->fault = fault;
    std::size_t i = 0;
    for (; text[i] != '\0' && i + 1 < sizeof failure->text; ++i) failure->text[i] = text[i];
    failure->text[i] = '\0';
    return false;
  };
  try {
    body();
    return true;
  } catch (const Error& e) {
    return fail(e.fault, e.what());
  } catch (const std::bad_alloc&) {
    return fail(Fault::out_of_memory, "the host's memory is used up");
  } catch (const std::exception& e) {
    return fail(Fault::backend, e.what());
  } catch (...) {
    return fail(Fault::backend, "unknown failure");
  }
}

template <class Body>
bool guarded(int device, Failure* failure, const Body& body) noexcept {
  return guarded(failure, [&] {
    const OnDevice current(device);
    body();
  });
}

// One function for each entry of the table that is not about devices or memory; see Backend.
bool moments_create(const MomentsShape*, Moments** out, Failure*);
void moments_destroy(Moments*);
std::int64_t moments_memory(const MomentsShape*, std::int64_t rows, DType dtype);
bool moments_add(Moments*, const Queue*, const ArrayView* batches, const ArrayView* mask,
                 const ArrayView* weights, Failure*);
bool moments_report(Moments*, MomentsReport*, Failure*);
bool moments_merge(Moments*, Moments* other, Failure*);
bool moments_mean(Moments*, std::int32_t set, double* reference, double* offset, Failure*);
bool moments_read(Moments*, double divisor, bool centred, double* out, Failure*);
bool moments_correlation(Moments*, double* out, Failure*);
bool moments_assume(Moments*, std::int64_t count, double weight, const double* reference,
                    const double* offset, const double* scatter, Failure*);
bool eigh(const Queue*, const ArrayView* a, DType working, std::int64_t k, EighOutput*,
          const Notes*, Failure*);
bool assignment_pays(std::int64_t batch, std::int64_t n, std::int64_t m, DType dtype, int threads);
bool assign(const Queue*, const AssignmentProblem*, AssignmentOutput*, Failure*);
bool roughness(const Queue*, const Modes*, const double* c, double* trace, double* least, Failure*);
bool leading_rows(const Queue*, const double* rows, std::int64_t known, std::int64_t k,
                  std::int64_t n, double* out, Failure*);
bool orthogonality_error(const Queue*, const double* rows, std::int64_t k, std::int64_t n,
                         double* error, Failure*);
bool rotate(const Queue*, const Rotated*, const ArrayView* samples, const double* mean, bool back,
            double* out, Failure*);
bool rotated_modes(const Queue*, const Rotated*, double* out, Failure*);
bool analyze(const Queue*, const Modes*, const ArrayView* rows, double* out, Failure*);
bool synthesize(const Queue*, const Modes*, const ArrayView* rows, double* out, Failure*);
bool apply(const Queue*, const Modes*, const ArrayView* rows, double* out, Failure*);
bool preactivation_moment(const Queue*, const ArrayView* weight, const ArrayView* bias,
                          const ArrayView* input_second_moment, const ArrayView* input_mean,
                          double* out, Failure*);

}  // namespace descramble_fast::cuda
