#pragma once

#include "cublas_v2.h"

enum cusolverStatus_t {
  CUSOLVER_STATUS_SUCCESS = 0,
  CUSOLVER_STATUS_NOT_INITIALIZED = 1,
  CUSOLVER_STATUS_ALLOC_FAILED = 2,
  CUSOLVER_STATUS_INVALID_VALUE = 3,
  CUSOLVER_STATUS_ARCH_MISMATCH = 4,
  CUSOLVER_STATUS_MAPPING_ERROR = 5,
  CUSOLVER_STATUS_EXECUTION_FAILED = 6,
  CUSOLVER_STATUS_INTERNAL_ERROR = 7,
  CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED = 8,
  CUSOLVER_STATUS_NOT_SUPPORTED = 9
};
enum cusolverEigMode_t { CUSOLVER_EIG_MODE_NOVECTOR = 0, CUSOLVER_EIG_MODE_VECTOR = 1 };
enum cusolverEigRange_t {
  CUSOLVER_EIG_RANGE_ALL = 1001,
  CUSOLVER_EIG_RANGE_I = 1002,
  CUSOLVER_EIG_RANGE_V = 1003
};

using cusolverDnHandle_t = struct cusolverDnContext*;
using cusolverDnParams_t = struct cusolverDnParams*;

cusolverStatus_t cusolverGetVersion(int*);
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t*);
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t);
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t, cudaStream_t);
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t*);
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t);

cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t, cusolverDnParams_t,
                                             cusolverEigMode_t, cublasFillMode_t, std::int64_t n,
                                             cudaDataType type_a, const void* a, std::int64_t lda,
                                             cudaDataType type_w, const void* w,
                                             cudaDataType compute, std::size_t* on_device,
                                             std::size_t* on_host);
cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t,
                                  cublasFillMode_t, std::int64_t n, cudaDataType type_a, void* a,
                                  std::int64_t lda, cudaDataType type_w, void* w,
                                  cudaDataType compute, void* device, std::size_t device_bytes,
                                  void* host, std::size_t host_bytes, int* info);
cusolverStatus_t cusolverDnXsyevdx_bufferSize(
    cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cusolverEigRange_t, cublasFillMode_t,
    std::int64_t n, cudaDataType type_a, const void* a, std::int64_t lda, void* vl, void* vu,
    std::int64_t il, std::int64_t iu, std::int64_t* found, cudaDataType type_w, const void* w,
    cudaDataType compute, std::size_t* on_device, std::size_t* on_host);
cusolverStatus_t cusolverDnXsyevdx(cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t,
                                   cusolverEigRange_t, cublasFillMode_t, std::int64_t n,
                                   cudaDataType type_a, void* a, std::int64_t lda, void* vl,
                                   void* vu, std::int64_t il, std::int64_t iu, std::int64_t* found,
                                   cudaDataType type_w, void* w, cudaDataType compute, void* device,
                                   std::size_t device_bytes, void* host, std::size_t host_bytes,
                                   int* info);
cusolverStatus_t cusolverDnXsyevBatched_bufferSize(
    cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t, cublasFillMode_t, std::int64_t n,
    cudaDataType type_a, const void* a, std::int64_t lda, cudaDataType type_w, const void* w,
    cudaDataType compute, std::size_t* on_device, std::size_t* on_host, std::int64_t batch);
cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t, cusolverDnParams_t, cusolverEigMode_t,
                                        cublasFillMode_t, std::int64_t n, cudaDataType type_a,
                                        void* a, std::int64_t lda, cudaDataType type_w, void* w,
                                        cudaDataType compute, void* device,
                                        std::size_t device_bytes, void* host,
                                        std::size_t host_bytes, int* info, std::int64_t batch);
