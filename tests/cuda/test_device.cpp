#include <gtest/gtest.h>

#include "device.hpp"
#include "device_memory.hpp"

namespace descramble_fast::cuda {
namespace {

using testing::queue;

__global__ void nothing() {}

TEST(CudaDevice, SharedMemoryThatWasGrantedIsNotTakenBack) {
  launch(queue, 1, 1, 100 << 10, nothing);
  launch(queue, 1, 1, 60 << 10, nothing);
  // As another thread would that was granted it before.
  cudaLaunchConfig_t config{};
  config.gridDim = 1;
  config.blockDim = 1;
  config.dynamicSmemBytes = 100 << 10;
  EXPECT_EQ(cudaLaunchKernelEx(&config, nothing), cudaSuccess);
}

TEST(CudaDevice, TheCallersDeviceIsPutBackWhateverHappens) {
  Failure failure;
  EXPECT_FALSE(guarded(0, &failure, [] { throw Error(Fault::invalid_argument, "x"); }));
  EXPECT_EQ(failure.fault, Fault::invalid_argument);
  int device = -1;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 0);
  EXPECT_FALSE(guarded(77, &failure, [] {}));  // there is none
  EXPECT_EQ(failure.fault, Fault::backend);
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(device, 0);
}

TEST(CudaDevice, HandlesAreKeptForTheirStream) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const auto taken_on = [](cudaStream_t on) { return Blas(Queue{0, on}).get(); };
  const cublasHandle_t first = taken_on(nullptr), other = taken_on(stream);
  EXPECT_NE(first, other);
  EXPECT_EQ(taken_on(nullptr), first);
  EXPECT_EQ(taken_on(stream), other);
  {
    const Blas one(queue), two(queue);
    EXPECT_NE(one.get(), two.get());
  }
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace descramble_fast::cuda
