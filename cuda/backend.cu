#include "backend.hpp"

#include "device.hpp"

namespace descramble_fast::cuda {

namespace {

bool count_devices(int* count, Failure* failure) {
  return guarded(failure, [&] {
    const cudaError_t status = cudaGetDeviceCount(count);
    if (status == cudaErrorInsufficientDriver) {
      int wanted = 0;
      check(cudaRuntimeGetVersion(&wanted), "cudaRuntimeGetVersion");
      throw Error(Fault::backend, message("no driver, or one older than CUDA ", wanted / 1000, ".",
                                          wanted % 1000 / 10, " wants"));
    }
    check(status, "cudaGetDeviceCount");
  });
}

bool describe(int device, DeviceFacts* facts, Failure* failure) {
  return guarded(device, failure, [&] {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    *facts = {};
    for (std::size_t i = 0; i + 1 < sizeof facts->name && properties.name[i] != '\0'; ++i)
      facts->name[i] = properties.name[i];
    facts->major = properties.major;
    facts->minor = properties.minor;
    facts->multiprocessors = properties.multiProcessorCount;
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    facts->free_memory = std::int64_t(free);
    facts->total_memory = std::int64_t(total);
    check(cudaDriverGetVersion(&facts->driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&facts->runtime), "cudaRuntimeGetVersion");
    const Queue queue{device};
    const Blas blas(queue);
    check(cublasGetVersion(blas.get(), &facts->cublas), "cublasGetVersion");
    check(cusolverGetVersion(&facts->cusolver), "cusolverGetVersion");
  });
}

bool locate(const void* memory, int* device, Failure* failure) {
  return guarded(failure, [&] {
    cudaPointerAttributes attributes;
    check(cudaPointerGetAttributes(&attributes, memory), "cudaPointerGetAttributes");
    const bool there =
        attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    *device = there ? attributes.device : -1;
  });
}

bool allocate(int device, std::int64_t bytes, void** out, Failure* failure) {
  return guarded(device, failure, [&] { *out = allocate_to_keep(bytes); });
}

void release(int device, void* memory) {
  Failure ignored;  // at exit the driver may be gone, and the memory with it
  guarded(device, &ignored, [&] { give_back(memory); });
}

bool copy(const Queue* queue, void* to, const void* from, std::int64_t bytes, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, std::size_t(bytes), cudaMemcpyDefault, stream_of(*queue)),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

bool convert(const Queue* queue, const ArrayView* from, DType to_type, void* to, Failure* failure) {
  return guarded(queue->device, failure, [&] {
    if (to_type == DType::float64)
      convert_rows(*queue, strided(*from), static_cast<double*>(to));
    else if (to_type == DType::float32)
      convert_rows(*queue, strided(*from), static_cast<float*>(to));
    else
      throw Error(Fault::backend, "convert: to float32 or float64 only");
    check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize");
  });
}

bool synchronize(const Queue* queue, Failure* failure) {
  return guarded(queue->device, failure,
                 [&] { check(cudaStreamSynchronize(stream_of(*queue)), "cudaStreamSynchronize"); });
}

bool order(const Queue* before, const Queue* after, Failure* failure) {
  if (before->stream == after->stream && before->device == after->device) return true;
  return guarded(before->device, failure, [&] {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    const cudaError_t recorded = cudaEventRecord(event, stream_of(*before));
    cudaError_t waits = recorded;
    if (recorded == cudaSuccess) {
      const OnDevice current(after->device);
      waits = cudaStreamWaitEvent(stream_of(*after), event, 0);
    }
    cudaEventDestroy(event);  // takes effect once it was reached
    check(waits, "cudaStreamWaitEvent");
  });
}

constexpr Backend table{backend_version,
                        count_devices,
                        describe,
                        locate,
                        allocate,
                        release,
                        copy,
                        convert,
                        synchronize,
                        order,
                        moments_create,
                        moments_destroy,
                        moments_memory,
                        moments_add,
                        moments_report,
                        moments_merge,
                        moments_mean,
                        moments_read,
                        moments_correlation,
                        moments_assume,
                        eigh,
                        assignment_pays,
                        assign,
                        roughness,
                        leading_rows,
                        orthogonality_error,
                        rotate,
                        rotated_modes,
                        analyze,
                        synthesize,
                        apply,
                        preactivation_moment};

}  // namespace

}  // namespace descramble_fast::cuda

extern "C" __attribute__((visibility("default"))) const descramble_fast::cuda::Backend*
descramble_fast_cuda_backend() {
  return &descramble_fast::cuda::table;
}
