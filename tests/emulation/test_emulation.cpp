#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "cusolverDn.h"
#include "emulated_mma.hpp"

namespace {

namespace cuda = descramble_fast::cuda;

constexpr unsigned all = 0xffffffffu;

/// An environment variable for the time of a test.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

template <class T>
class Device {
 public:
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  explicit Device(std::size_t size) : size_(size) {
    EXPECT_EQ(cudaMalloc(&data_, size * sizeof(T)), cudaSuccess);
  }
  ~Device() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return data_; }
  void zero() { EXPECT_EQ(cudaMemset(data_, 0, size_ * sizeof(T)), cudaSuccess); }
  std::vector<T> host() const {
    std::vector<T> out(size_);
    EXPECT_EQ(cudaMemcpy(out.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return out;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(dim3 grid, dim3 block, std::size_t shared, void (*kernel)(Parameters...),
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  const auto error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  return error == cudaSuccess ? cudaStreamSynchronize(nullptr) : error;
}

/// What a kernel that fails says.
template <class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no failure";
}

std::vector<double> random_values(std::size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<double> out(count);
  for (double& x : out) x = normal(engine);
  return out;
}

class EmulatedKernels : public testing::TestWithParam<const char*> {
  Setting order_{"EMULATED_CUDA_ORDER", GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Orders, EmulatedKernels,
                         testing::Values("forward", "backward", "shuffled"),
                         [](const auto& info) { return info.param; });

__global__ void indices(unsigned* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST_P(EmulatedKernels, EveryThreadOfEveryBlockRunsOnce) {
  Device<unsigned> out(24 * 30);
  ASSERT_EQ(launch({2, 3, 4}, {5, 3, 2}, 0, indices, out.data()), cudaSuccess);
  const auto got = out.host();
  for (unsigned i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], i / 30 * 1000 + i % 30);
}

template <bool barrier>
__global__ void reverse(int* out) {
  auto* dynamic = reinterpret_cast<int*>(descramble_fast_dynamic_shared());
  __shared__ int fixed[128];
  const unsigned i = threadIdx.x, j = blockDim.x - 1 - i;
  dynamic[i] = fixed[i] = int(i + blockIdx.x);
  if constexpr (barrier) __syncthreads();
  out[blockIdx.x * blockDim.x + i] = dynamic[j] + fixed[j];
}

TEST_P(EmulatedKernels, SharedMemoryIsSeenBehindTheBarrier) {
  Device<int> out(3 * 128);
  ASSERT_EQ(launch(3, 128, 128 * sizeof(int), reverse<true>, out.data()), cudaSuccess);
  const auto got = out.host();
  for (int i = 0; i < int(got.size()); ++i) EXPECT_EQ(got[i], 2 * (127 - i % 128 + i / 128));
}

TEST_P(EmulatedKernels, AMissingBarrierShows) {
  Device<int> out(128);
  ASSERT_EQ(launch(1, 128, 128 * sizeof(int), reverse<false>, out.data()), cudaSuccess);
  const auto got = out.host();
  int wrong = 0;
  for (int i = 0; i < 128; ++i) wrong += got[i] != 2 * (127 - i);
  EXPECT_GT(wrong, 32);
}

// Right if each lane runs after the one before it, or all in step: only an order reveals it.
__global__ void hidden_race(int* out) {
  volatile auto* shared = reinterpret_cast<int*>(descramble_fast_dynamic_shared());
  shared[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = shared[threadIdx.x == 0 ? 0 : threadIdx.x - 1];
}

TEST(EmulatedOrder, RevealsARaceThatForwardHides) {
  const auto wrong = [](const char* order) {
    const Setting setting("EMULATED_CUDA_ORDER", order);
    Device<int> out(64);
    EXPECT_EQ(launch(1, 64, 64 * sizeof(int), hidden_race, out.data()), cudaSuccess);
    const auto got = out.host();
    int count = 0;
    for (int i = 0; i < 64; ++i) count += got[i] != std::max(0, i - 1);
    return count;
  };
  EXPECT_EQ(wrong("forward"), 0);
  EXPECT_EQ(wrong("backward"), 63);
  EXPECT_GT(wrong("shuffled"), 10);
  EXPECT_NE(message_of([&] { wrong("sideways"); }).find("EMULATED_CUDA_ORDER"), std::string::npos);
}

__global__ void block_order(unsigned* next, unsigned* place) {
  if (threadIdx.x == 0) place[blockIdx.x] = atomicAdd(next, 1u);
}

TEST(EmulatedOrder, HoldsForBlocksToo) {
  const auto places = [](const char* order) {
    const Setting setting("EMULATED_CUDA_ORDER", order);
    Device<unsigned> next(1), place(50);
    next.zero();
    EXPECT_EQ(launch(50, 32, 0, block_order, next.data(), place.data()), cudaSuccess);
    return place.host();
  };
  std::vector<unsigned> expected(50);
  std::iota(expected.begin(), expected.end(), 0u);
  EXPECT_EQ(places("forward"), expected);
  auto shuffled = places("shuffled");
  EXPECT_NE(shuffled, expected);
  std::sort(shuffled.begin(), shuffled.end());
  EXPECT_EQ(shuffled, expected);
  std::reverse(expected.begin(), expected.end());
  EXPECT_EQ(places("backward"), expected);
}

__global__ void count_votes(int* out) {
  const int i = int(threadIdx.x);
  out[4 * i] = __syncthreads_count(i % 3 == 0);
  out[4 * i + 1] = __syncthreads_or(i == 77);
  out[4 * i + 2] = __syncthreads_and(i != 77);
  if (i >= 90) return;  // those who have ended are not waited for
  out[4 * i + 3] = __syncthreads_count(1);
}

TEST_P(EmulatedKernels, BarriersVote) {
  Device<int> out(4 * 100);
  out.zero();
  ASSERT_EQ(launch(1, 100, 0, count_votes, out.data()), cudaSuccess);
  const auto got = out.host();
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(got[4 * i], 34);
    EXPECT_EQ(got[4 * i + 1], 1);
    EXPECT_EQ(got[4 * i + 2], 0);
    EXPECT_EQ(got[4 * i + 3], i < 90 ? 90 : 0);
  }
}

__global__ void shuffles(int* out, double* wide) {
  const int i = int(threadIdx.x);
  out[8 * i] = __shfl_sync(all, i, 5);
  out[8 * i + 1] = __shfl_sync(all, i, 11, 8);
  out[8 * i + 2] = __shfl_up_sync(all, i, 3, 16);
  out[8 * i + 3] = __shfl_down_sync(all, i, 3, 16);
  out[8 * i + 4] = __shfl_xor_sync(all, i, 9);
  out[8 * i + 5] = __shfl_xor_sync(all, i, 8, 8);
  // Halves of the warp on their own.
  const unsigned half = i < 16 ? 0xffffu : 0xffff0000u;
  int sum = i;
  for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(half, sum, step);
  out[8 * i + 6] = sum;
  if (i < 16) out[8 * i + 7] = int(__reduce_max_sync(half, unsigned(i)));
  wide[i] = __shfl_sync(all, i + 0.5, i + 1);
}

TEST_P(EmulatedKernels, ShufflesFollowTheirDefinition) {
  Device<int> out(8 * 32);
  Device<double> wide(32);
  ASSERT_EQ(launch(1, 32, 0, shuffles, out.data(), wide.data()), cudaSuccess);
  const auto got = out.host();
  const auto doubles = wide.host();
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(got[8 * i], 5);
    EXPECT_EQ(got[8 * i + 1], i / 8 * 8 + 3);
    EXPECT_EQ(got[8 * i + 2], i % 16 < 3 ? i : i - 3);
    EXPECT_EQ(got[8 * i + 3], i % 16 > 12 ? i : i + 3);
    EXPECT_EQ(got[8 * i + 4], i ^ 9);
    EXPECT_EQ(got[8 * i + 5], i % 16 < 8 ? i : i - 8);  // earlier segments can be read, later not
    EXPECT_EQ(got[8 * i + 6], i < 16 ? 120 : 376);
    EXPECT_EQ(got[8 * i + 7], i < 16 ? 15 : -1);
    EXPECT_EQ(doubles[i], (i + 1) % 32 + 0.5);
  }
}

__global__ void votes(unsigned* out, int* sums) {
  const int i = int(threadIdx.x);
  out[i] = __ballot_sync(all, i % 5 == 0);
  sums[3 * i] = __reduce_add_sync(all, i - 40);
  sums[3 * i + 1] = __reduce_min_sync(all, -i);
  sums[3 * i + 2] = 2 * __any_sync(all, i == 33) + __all_sync(all, i < 32);
}

TEST_P(EmulatedKernels, VotesAndReductionsReachEveryLane) {
  Device<unsigned> out(64);
  Device<int> sums(3 * 64);
  ASSERT_EQ(launch(1, 64, 0, votes, out.data(), sums.data()), cudaSuccess);
  const auto ballots = out.host();
  const auto got = sums.host();
  for (int i = 0; i < 64; ++i) {
    const int first = i / 32 * 32;
    unsigned ballot = 0;
    for (int j = 0; j < 32; ++j) ballot |= unsigned((first + j) % 5 == 0) << j;
    EXPECT_EQ(ballots[i], ballot);
    EXPECT_EQ(got[3 * i], 496 + 32 * (first - 40));
    EXPECT_EQ(got[3 * i + 1], -(first + 31));
    EXPECT_EQ(got[3 * i + 2], first == 0 ? 1 : 2);
  }
}

struct Counters {
  unsigned long long sum, least, swapped;
  double real;
  float narrow;
  unsigned bits;
  int most;
};

__global__ void atomics(Counters* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&out->sum, 1ull << 32);
  atomicMin(&out->least, static_cast<unsigned long long>(1000 - i));
  atomicAdd(&out->real, 0.5);
  atomicAdd(&out->narrow, 2.0f);
  atomicOr(&out->bits, 1u << (i % 7));
  atomicMax(&out->most, i - 500);
  atomicCAS(&out->swapped, static_cast<unsigned long long>(i), i + 1ull);
}

TEST_P(EmulatedKernels, AtomicsAddUp) {
  Device<Counters> out(std::vector<Counters>{{0, ~0ull, 0, 0, 0, 0, -1000}});
  ASSERT_EQ(launch(4, 96, 0, atomics, out.data()), cudaSuccess);
  const Counters got = out.host()[0];
  EXPECT_EQ(got.sum, 384ull << 32);
  EXPECT_EQ(got.least, 1000u - 383);
  EXPECT_EQ(got.real, 192.0);
  EXPECT_EQ(got.narrow, 768.0f);
  EXPECT_EQ(got.bits, 127u);
  EXPECT_EQ(got.most, 383 - 500);
  EXPECT_GE(got.swapped, 1u);
}

__global__ void divergent() {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __ballot_sync(all, 1);
}

__global__ void wrong_mask() { __shfl_sync(1u, 1, 0); }

__global__ void different_functions() {
  if (threadIdx.x == 0)
    __syncwarp();
  else
    __ballot_sync(all, 1);
}

TEST_P(EmulatedKernels, DivergentBarriersAreErrorsNotHangs) {
  EXPECT_NE(message_of([] { launch(1, 64, 0, divergent); }).find("divergent barrier"),
            std::string::npos);
  EXPECT_NE(message_of([] { launch(1, 32, 0, different_functions); }).find("divergent barrier"),
            std::string::npos);
  EXPECT_NE(message_of([] { launch(1, 32, 0, wrong_mask); }).find("mask"), std::string::npos);
  EXPECT_NE(message_of([] { __syncthreads(); }).find("on the host"), std::string::npos);
  Device<unsigned> out(30);  // and the next kernel runs as if nothing had happened
  EXPECT_EQ(launch(1, 30, 0, indices, out.data()), cudaSuccess);
  EXPECT_EQ(out.host()[29], 29u);
}

__global__ void fragments(const std::uint16_t* a, const std::uint16_t* b, float* c, bool half) {
  // A is (16, 16) and B (16, 8), both row-major: A's fragments are read as they lie, B's
  // transposed.
  auto* shared = reinterpret_cast<std::uint16_t*>(descramble_fast_dynamic_shared());
  const int lane = int(threadIdx.x), group = lane / 4, pair = 2 * (lane % 4);
  for (int i = lane; i < 256; i += 32) shared[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  __syncwarp();
  unsigned left[4], right[4];
  cuda::ldmatrix_x4(left, shared + 16 * (lane % 16) + 8 * (lane / 16));
  cuda::ldmatrix_x4_trans(right, shared + 256 + 8 * (lane % 16));
  const unsigned two[2] = {right[0], right[1]};
  const auto packed = [](unsigned low, unsigned high) { return low | high << 16; };
  bool as_in_the_manual = true;
  for (int r = 0; r < 4; ++r) {
    const auto* at = a + 16 * (group + 8 * (r % 2)) + pair + 8 * (r / 2);
    as_in_the_manual &= left[r] == packed(at[0], at[1]);
  }
  for (int r = 0; r < 2; ++r) {
    const auto* at = b + 8 * (pair + 8 * r) + group;
    as_in_the_manual &= two[r] == packed(at[0], at[8]);
  }
  if (__any_sync(all, !as_in_the_manual)) return;
  float sum[4];
  for (int r = 0; r < 4; ++r) sum[r] = c[8 * (group + 8 * (r / 2)) + pair + r % 2];
  half ? cuda::mma_f16(sum, left, two) : cuda::mma_bf16(sum, left, two);
  for (int r = 0; r < 4; ++r) c[8 * (group + 8 * (r / 2)) + pair + r % 2] = sum[r];
}

TEST_P(EmulatedKernels, MatrixProductsComeFromTheFragmentsOfTheManual) {
  for (const bool half : {false, true}) {
    const auto narrow = [half](double x) {
      return half ? __half_as_ushort(__float2half_rn(float(x)))
                  : __bfloat16_as_ushort(__float2bfloat16_rn(float(x)));
    };
    const auto widen = [half](std::uint16_t x) {
      return half ? __half2float(__ushort_as_half(x)) : __bfloat162float(__ushort_as_bfloat16(x));
    };
    const auto values = random_values(512, 3);
    std::vector<std::uint16_t> a(256), b(128);
    std::vector<float> c(128);
    for (std::size_t i = 0; i < 256; ++i) a[i] = narrow(values[i]);
    for (std::size_t i = 0; i < 128; ++i)
      b[i] = narrow(values[256 + i]), c[i] = float(values[384 + i]);
    Device<std::uint16_t> left(a), right(b);
    Device<float> sums(c);
    ASSERT_EQ(launch(1, 32, 768, fragments, left.data(), right.data(), sums.data(), half),
              cudaSuccess);
    const auto got = sums.host();
    int exact = 0;
    for (std::size_t i = 0; i < 16; ++i)
      for (std::size_t j = 0; j < 8; ++j) {
        long double sum = c[8 * i + j];
        for (std::size_t k = 0; k < 16; ++k)
          sum += (long double)(widen(a[16 * i + k])) * widen(b[8 * k + j]);
        const float out = got[8 * i + j];
        // Toward zero: no larger than the sum, and the next float is.
        EXPECT_LE(std::abs((long double)(out)), std::abs(sum));
        EXPECT_GT(std::abs((long double)(std::nextafter(out, sum < 0 ? -INFINITY : INFINITY))),
                  std::abs(sum));
        exact += out == float(sum);
      }
    EXPECT_LT(exact, 128);  // rounding to nearest would have done otherwise
  }
}

TEST(EmulatedMma, TruncatesWhatCannotBeHeld) {
  const auto sum = [](float start, std::initializer_list<double> terms) {
    cuda::emulated::TruncatedSum sum(start);
    for (const double term : terms) sum.add(term);
    return sum.value();
  };
  EXPECT_EQ(sum(1.0f, {0x1p-24, 0x1p-25}), 1.0f);  // nearest: 1 + 2^-23
  EXPECT_EQ(sum(-1.0f, {-0x1p-24, -0x1p-25}), -1.0f);
  EXPECT_EQ(sum(1.0f, {-0x1p-80}), 0x1.fffffep-1f);  // beyond a double's digits
  EXPECT_EQ(sum(1.0f, {0x1p-23}), 1.0f + 0x1p-23f);
  EXPECT_EQ(sum(0x1p100f, {1.0, -0x1p100}), 1.0f);
  EXPECT_EQ(sum(INFINITY, {1.0}), INFINITY);
  EXPECT_TRUE(std::isnan(sum(INFINITY, {-INFINITY})));
}

// What `early` threads see before they wait, and all after.
__global__ void copies(const unsigned* from, unsigned* before, unsigned* after, int valid) {
  auto* shared = reinterpret_cast<unsigned*>(descramble_fast_dynamic_shared());
  const unsigned i = threadIdx.x;
  for (unsigned stage = 0; stage < 3; ++stage) {
    cuda::copy_async_16(shared + 4 * (3 * i + stage), from + 4 * (3 * i + stage),
                        stage == 1 ? valid : 16);
    cuda::copy_async_commit();
  }
  cuda::copy_async_wait<1>();
  __syncthreads();
  for (unsigned j = 0; j < 12; ++j) before[12 * i + j] = shared[12 * i + j];
  cuda::copy_async_wait<0>();
  __syncthreads();
  const unsigned other = blockDim.x - 1 - i;
  for (unsigned j = 0; j < 12; ++j) after[12 * i + j] = shared[12 * other + j];
}

TEST_P(EmulatedKernels, AsynchronousCopiesArriveWhenWaitedFor) {
  constexpr unsigned threads = 40;
  std::vector<unsigned> values(12 * threads);
  std::iota(values.begin(), values.end(), 1u);
  Device<unsigned> from(values), before(values.size()), after(values.size());
  for (const int valid : {0, 4, 8, 16}) {
    ASSERT_EQ(launch(1, threads, 4 * 12 * threads, copies, from.data(), before.data(), after.data(),
                     valid),
              cudaSuccess);
    const auto early = before.host(), late = after.host();
    for (unsigned i = 0; i < threads; ++i)
      for (unsigned j = 0; j < 12; ++j) {
        const bool cut = j / 4 == 1 && int(j % 4) * 4 >= valid;
        EXPECT_EQ(early[12 * i + j], j / 4 == 2 ? 0xCDCDCDCDu : cut ? 0 : values[12 * i + j]);
        EXPECT_EQ(late[12 * i + j], cut ? 0 : values[12 * (threads - 1 - i) + j]);
      }
  }
}

__global__ void misaligned(int what) {
  unsigned char* shared = descramble_fast_dynamic_shared();
  unsigned r[4];
  if (what == 0) cuda::ldmatrix_x4(r, shared + 8);
  if (what == 1) cuda::copy_async_16(shared + 8, shared, 16);
  if (what == 2) cuda::copy_async_16(shared, shared, 17);
  if (what == 3) __shfl_sync(all, 1, 0, 12);
}

TEST(EmulatedFaults, AreNamedWithBlockAndThread) {
  for (const auto& [what, text] :
       {std::pair{0, "ldmatrix"}, {1, "aligned"}, {2, "0...16"}, {3, "width"}}) {
    const auto message = message_of([&] { launch({1, 2}, 32, 1024, misaligned, what); });
    EXPECT_NE(message.find(text), std::string::npos) << message;
    EXPECT_NE(message.find("block (0, 0, 0) thread (0, 0, 0)"), std::string::npos) << message;
  }
}

__global__ void poison(unsigned char* out) {
  out[threadIdx.x] = descramble_fast_dynamic_shared()[threadIdx.x];
  descramble_fast_dynamic_shared()[threadIdx.x] = 1;
}

TEST(EmulatedMemory, IsFilledWithWhatHasNoMeaning) {
  Device<unsigned char> out(64);
  EXPECT_EQ(out.host(), std::vector<unsigned char>(64, 0xFF));
  ASSERT_EQ(launch(2, 64, 64, poison, out.data()), cudaSuccess);
  EXPECT_EQ(out.host(), std::vector<unsigned char>(64, 0xCD));
}

__global__ void nothing() {}
__global__ void nothing_else() {}

TEST(EmulatedLaunch, HasTheLimitsOfADevice) {
  EXPECT_EQ(launch(1, 1024, 48 << 10, nothing), cudaSuccess);
  EXPECT_EQ(launch(1, 1025, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, {64, 32}, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, {1, 1, 65}, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 0, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(0, 1, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch({1, 65536}, 1, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(0x80000000u, 1, 0, nothing), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 1, (48 << 10) + 1, nothing), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  EXPECT_EQ(cudaFuncSetAttribute(nothing, attribute, (227 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(nothing, attribute, 227 << 10), cudaSuccess);
  EXPECT_EQ(launch(1, 1, 227 << 10, nothing), cudaSuccess);
  EXPECT_EQ(launch(1, 1, (227 << 10) + 1, nothing), cudaErrorInvalidValue);
  EXPECT_EQ(launch(1, 1, 227 << 10, nothing_else), cudaErrorInvalidValue);
  int blocks = 0;
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 512, 100 << 10),
            cudaSuccess);
  EXPECT_EQ(blocks, 2);
}

TEST(EmulatedMemory, IsLimited) {
  const Setting limit("EMULATED_CUDA_MEMORY", "1000");
  void *a = nullptr, *b = nullptr;
  std::size_t free = 0, total = 0;
  EXPECT_EQ(cudaMalloc(&a, 1001), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&a, 600), cudaSuccess);
  EXPECT_EQ(cudaMallocAsync(&b, 401, nullptr), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMallocAsync(&b, 400, nullptr), cudaSuccess);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 0u);
  EXPECT_EQ(total, 1000u);
  EXPECT_EQ(cudaFree(a), cudaSuccess);
  EXPECT_EQ(cudaFreeAsync(b, nullptr), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 1000u);
}

TEST(EmulatedMemory, IsKnownByItsAddress) {
  char *device = nullptr, *pinned = nullptr;
  std::vector<char> pageable(100);
  ASSERT_EQ(cudaMalloc(&device, 100), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&pinned, 100), cudaSuccess);
  const auto type_of = [](const void* p) {
    cudaPointerAttributes attributes{};
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, p), cudaSuccess);
    return attributes.type;
  };
  EXPECT_EQ(type_of(device + 99), cudaMemoryTypeDevice);
  EXPECT_EQ(type_of(pinned + 50), cudaMemoryTypeHost);
  EXPECT_EQ(type_of(pageable.data()), cudaMemoryTypeUnregistered);

  EXPECT_EQ(cudaMemcpy(device + 50, pageable.data(), 50, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(device + 50, pageable.data(), 51, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device, pageable.data(), 50, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device + 1, 0, 100), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(pageable.data(), 0, 1), cudaErrorInvalidValue);

  EXPECT_EQ(cudaFree(device + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(pinned), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaFree(device), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pageable.data()), cudaErrorInvalidValue);
}

TEST(EmulatedMemory, CopiesRectangles) {
  std::vector<int> values(6 * 5), back(4 * 3, -1);
  std::iota(values.begin(), values.end(), 0);
  Device<int> from(values);
  ASSERT_EQ(cudaMemcpy2DAsync(back.data(), 12, from.data() + 6, 24, 8, 4, cudaMemcpyDeviceToHost),
            cudaSuccess);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 3; ++j) EXPECT_EQ(back[3 * i + j], j < 2 ? 6 * (i + 1) + j : -1);
  EXPECT_EQ(cudaMemcpy2DAsync(back.data(), 4, from.data(), 24, 8, 2, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
}

TEST(EmulatedDevices, CanBeNoneOrMany) {
  int count = -1;
  {
    const Setting none("EMULATED_CUDA_DEVICES", "0");
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    EXPECT_EQ(count, 0);
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, 1), cudaErrorNoDevice);
    EXPECT_EQ(launch(1, 1, 0, nothing), cudaErrorNoDevice);
  }
  const Setting two("EMULATED_CUDA_DEVICES", "2");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  void* memory = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  ASSERT_EQ(cudaMallocAsync(&memory, 8, stream), cudaSuccess);
  int device = -1;
  EXPECT_EQ(cudaStreamGetDevice(stream, &device), cudaSuccess);
  EXPECT_EQ(device, 1);
  std::thread([&] {
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 0);  // each thread has its own
  }).join();
  cudaPointerAttributes attributes{};
  EXPECT_EQ(cudaPointerGetAttributes(&attributes, memory), cudaSuccess);
  EXPECT_EQ(attributes.device, 1);

  cudaLaunchConfig_t config{};
  config.stream = stream;
  EXPECT_EQ(cudaLaunchKernelEx(&config, nothing), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaLaunchKernelEx(&config, nothing), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, nullptr), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, event), cudaSuccess);
  EXPECT_EQ(cudaMemset(memory, 0, 8), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeAsync(memory, stream), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
}

__global__ void add_one(int* values, int count) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) values[i] += 1;
}

class EmulatedStreams : public testing::Test {
 protected:
  EmulatedStreams() {
    for (auto* stream : {&a, &b})
      EXPECT_EQ(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaMallocHost(&pinned, sizeof(int)), cudaSuccess);
    EXPECT_EQ(cudaEventCreate(&event), cudaSuccess);
    *pinned = 1;
  }
  ~EmulatedStreams() override {
    EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
    for (const auto stream : {a, b}) EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  }
  static void add(cudaStream_t stream, const Device<int>& to) {
    cudaLaunchConfig_t config{};
    config.stream = stream;
    EXPECT_EQ(cudaLaunchKernelEx(&config, add_one, to.data(), 1), cudaSuccess);
  }
  static void copy(cudaStream_t stream, int* to, const int* from) {
    EXPECT_EQ(cudaMemcpyAsync(to, from, sizeof(int), cudaMemcpyDefault, stream), cudaSuccess);
  }

  Setting deferred_{"EMULATED_CUDA_STREAMS", "deferred"};
  cudaStream_t a = nullptr, b = nullptr;
  cudaEvent_t event = nullptr;
  int* pinned = nullptr;
};

TEST_F(EmulatedStreams, DoTheirWorkNoSoonerThanAsked) {
  Device<int> x(std::vector{10});
  add(a, x);
  copy(a, pinned, x.data());
  EXPECT_EQ(*pinned, 1);  // a program that reads here forgot to wait
  EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
  EXPECT_EQ(*pinned, 1);
  EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess);
  EXPECT_EQ(*pinned, 11);
  add(a, x);
  copy(a, pinned, x.data());
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(*pinned, 12);
}

TEST_F(EmulatedStreams, ReadPageableMemoryAtTheCallAndPinnedMemoryLater) {
  Device<int> x(std::vector{0}), y(std::vector{0});
  int pageable = 5;
  copy(a, x.data(), &pageable);
  copy(a, y.data(), pinned);
  pageable = *pinned = 6;
  EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess);
  EXPECT_EQ(x.host()[0], 5);
  EXPECT_EQ(y.host()[0], 6);
  add(a, x);
  copy(a, &pageable, x.data());
  EXPECT_EQ(pageable, 6);
}

TEST_F(EmulatedStreams, WaitForEventsOnly) {
  Device<int> x(std::vector{10});
  for (const bool waits : {false, true}) {
    add(a, x);
    EXPECT_EQ(cudaEventRecord(event, a), cudaSuccess);
    add(a, x);
    EXPECT_EQ(waits ? cudaStreamWaitEvent(b, event) : cudaSuccess, cudaSuccess);
    copy(b, pinned, x.data());
    EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
    EXPECT_EQ(*pinned, waits ? 13 : 10);  // not 14: what came after the event may come later
    EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess);
  }
  add(a, x);
  EXPECT_EQ(cudaEventRecord(event, a), cudaSuccess);
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, event, event), cudaErrorNotReady);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, event, event), cudaSuccess);
  EXPECT_EQ(milliseconds, 0);
  EXPECT_EQ(x.host()[0], 15);
}

TEST_F(EmulatedStreams, OrderThemselvesAroundTheDefaultStream) {
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  Device<int> x(std::vector{10}), y(std::vector{10});
  add(blocking, x);
  add(a, y);
  add(nullptr, x);  // waits for `blocking`, not for `a`
  EXPECT_EQ(cudaMemcpyAsync(pinned, y.data(), sizeof(int), cudaMemcpyDefault, nullptr),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(*pinned, 10);
  add(nullptr, x);
  copy(blocking, pinned, x.data());
  EXPECT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
  EXPECT_EQ(*pinned, 13);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
}

TEST_F(EmulatedStreams, FreeMemoryInOrder) {
  const Setting limit("EMULATED_CUDA_MEMORY", "1000");
  int *x = nullptr, *y = nullptr;
  ASSERT_EQ(cudaMallocAsync(&x, 800, a), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(x, 0, 800, a), cudaSuccess);
  copy(a, pinned, x);
  EXPECT_EQ(cudaFreeAsync(x, a), cudaSuccess);
  EXPECT_EQ(cudaFreeAsync(x, a), cudaErrorInvalidValue);
  EXPECT_EQ(*pinned, 1);
  EXPECT_EQ(cudaMallocAsync(&y, 800, b), cudaSuccess);  // waits for the memory
  EXPECT_EQ(*pinned, 0);
  EXPECT_EQ(cudaFreeAsync(y, b), cudaSuccess);
}

TEST_F(EmulatedStreams, CanBeDrainedByTwoThreadsThoughTheyWaitForEachOther) {
  Device<int> x(std::vector{0});
  constexpr int rounds = 200;
  for (int i = 0; i < rounds; ++i)
    for (const auto& [from, to] : {std::pair{a, b}, {b, a}}) {
      add(from, x);
      EXPECT_EQ(cudaEventRecord(event, from), cudaSuccess);
      EXPECT_EQ(cudaStreamWaitEvent(to, event), cudaSuccess);
    }
  std::thread other([this] { EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess); });
  EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
  other.join();
  EXPECT_EQ(x.host()[0], 2 * rounds);
}

TEST_F(EmulatedStreams, NameAFaultWhereItIsWaitedFor) {
  cudaLaunchConfig_t config{};
  config.blockDim = 32;
  config.stream = a;
  EXPECT_EQ(cudaLaunchKernelEx(&config, wrong_mask), cudaSuccess);
  EXPECT_NE(message_of([&] { cudaStreamSynchronize(a); }).find("mask"), std::string::npos);
  EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess);
}

#ifdef __SANITIZE_ADDRESS__
__global__ void beyond(int* out, unsigned index) {
  descramble_fast_dynamic_shared()[index % 1000] = 1;
  out[index / 1000] = 1;
}

TEST(EmulatedMemory, IsWatchedByTheAddressSanitizer) {
  Device<int> out(3);
  const auto run = [&](unsigned index) { launch(1, 1, 100, beyond, out.data(), index); };
  run(2099);
  EXPECT_DEATH(run(2100), "heap-buffer-overflow");
  EXPECT_DEATH(run(3099), "heap-buffer-overflow");
}
#endif

TEST(EmulatedKernel, RunsInSeveralThreadsOfTheHostAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (int repeat = 0; repeat < 5; ++repeat) {
        Device<int> out(2 * 128);
        EXPECT_EQ(launch(2, 128, 128 * sizeof(int), reverse<true>, out.data()), cudaSuccess);
        const auto got = out.host();
        for (int i = 0; i < 256; ++i) EXPECT_EQ(got[i], 2 * (127 - i % 128 + i / 128));
      }
    });
  for (auto& thread : threads) thread.join();
}

TEST(EmulatedArithmetic, ConvertsHalvesToNearestEven) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float x = __half2float(__ushort_as_half(std::uint16_t(bits)));
    if (std::isnan(x)) {
      EXPECT_EQ(__half_as_ushort(__float2half_rn(x)), 0x7fff);
      continue;
    }
    EXPECT_EQ(__half_as_ushort(__float2half_rn(x)), bits);
    const float y = __half2float(__ushort_as_half(std::uint16_t(bits + 1)));
    if ((bits & 0x7fff) < 0x7bff) {
      const float middle = (x + y) / 2;
      EXPECT_EQ(__half_as_ushort(__float2half_rn(middle)), bits + bits % 2);
      EXPECT_EQ(__half_as_ushort(__float2half_rn(std::nextafter(middle, x))), bits);
      EXPECT_EQ(__half_as_ushort(__float2half_rn(std::nextafter(middle, y))), bits + 1);
    }
  }
  EXPECT_EQ(__half_as_ushort(__float2half_rn(65520.0f)), 0x7c00);
  EXPECT_EQ(__half_as_ushort(__float2half_rn(65519.0f)), 0x7bff);
  EXPECT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(1.00390625f)), 0x3f80);  // a tie, to even
  EXPECT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(1.01171875f)), 0x3f82);
  EXPECT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(0x1.fffffep127f)), 0x7f80);
}

TEST(EmulatedArithmetic, TurnsAreExactAtQuarters) {
  const double turn[] = {0, 1, 0, -1};
  for (int i = -9; i <= 9; ++i) {
    double s, c;
    sincospi(i / 2.0, &s, &c);
    EXPECT_EQ(s, turn[i & 3]);
    EXPECT_EQ(c, turn[(i + 1) & 3]);
    EXPECT_NEAR(sinpi(i / 7.0), std::sin(i * M_PI / 7), 4e-16 * (1 + std::abs(i)));
    EXPECT_NEAR(cospi(i / 7.0), std::cos(i * M_PI / 7), 4e-16 * (1 + std::abs(i)));
  }
  EXPECT_EQ(min(3u, 4), 3u);
  EXPECT_EQ(max(NAN, 2.0f), 2.0f);
  EXPECT_EQ(__brev(1u), 0x80000000u);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__clz(1), 31);
}

class EmulatedLibraries : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cublasCreate(&blas), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cusolverDnCreate(&solver), CUSOLVER_STATUS_SUCCESS);
    ASSERT_EQ(cusolverDnCreateParams(&params), CUSOLVER_STATUS_SUCCESS);
  }
  void TearDown() override {
    cublasDestroy(blas);
    cusolverDnDestroyParams(params);
    cusolverDnDestroy(solver);
  }
  cublasHandle_t blas = nullptr;
  cusolverDnHandle_t solver = nullptr;
  cusolverDnParams_t params = nullptr;
};

TEST_F(EmulatedLibraries, MultiplyAllFourWays) {
  constexpr int m = 7, n = 5, k = 9, lda = 11, ldb = 12, ldc = 8;
  const auto a = random_values(lda * 11, 1), b = random_values(ldb * 12, 2),
             c = random_values(ldc * n, 3);
  Device<double> da(a), db(b);
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const double beta : {0.0, 0.5}) {
        Device<double> dc(c);
        const double alpha = 2;
        // With beta 0, C may hold anything.
        if (beta == 0) cudaMemset(dc.data(), 0xFF, sizeof(double) * m);
        ASSERT_EQ(
            cublasDgemm_64(blas, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m,
                           n, k, &alpha, da.data(), lda, db.data(), ldb, &beta, dc.data(), ldc),
            CUBLAS_STATUS_SUCCESS);
        const auto got = dc.host();
        for (int j = 0; j < n; ++j) {
          for (int i = 0; i < m; ++i) {
            double sum = beta == 0 ? 0 : beta * c[i + j * ldc];
            for (int l = 0; l < k; ++l)
              sum += alpha * (ta ? a[l + i * lda] : a[i + l * lda]) *
                     (tb ? b[j + l * ldb] : b[l + j * ldb]);
            EXPECT_NEAR(got[i + j * ldc], sum, 1e-13);
          }
          EXPECT_EQ(got[m + j * ldc], c[m + j * ldc]);
        }
      }
}

TEST_F(EmulatedLibraries, MultiplyInLowPrecision) {
  constexpr int n = 6, k = 20;
  const auto values = random_values(n * k, 4);
  std::vector<std::uint16_t> a(values.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    a[i] = __bfloat16_as_ushort(__float2bfloat16_rn(float(values[i])));
  Device<std::uint16_t> da(a);
  Device<float> dc(n * n);
  const float one = 1, zero = 0;
  const auto product = [&](cudaDataType out) {
    return cublasGemmEx(blas, CUBLAS_OP_N, CUBLAS_OP_T, n, n, k, &one, da.data(), CUDA_R_16BF, n,
                        da.data(), CUDA_R_16BF, n, &zero, dc.data(), out, n, CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT);
  };
  EXPECT_EQ(product(CUDA_R_64F), CUBLAS_STATUS_NOT_SUPPORTED);
  ASSERT_EQ(product(CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  const auto got = dc.host();
  const auto at = [&](int i, int l) {
    return double(__bfloat162float(__ushort_as_bfloat16(a[i + l * n])));
  };
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int l = 0; l < k; ++l) sum += at(i, l) * at(j, l);
      EXPECT_NEAR(got[i + j * n], sum, 1e-4);
    }
}

TEST_F(EmulatedLibraries, UpdateOneTriangle) {
  constexpr int n = 6, k = 4, lda = 7;
  const auto a = random_values(lda * 7, 5), c = random_values(n * n, 6);
  Device<double> da(a);
  const double alpha = 1.5, beta = -1;
  for (const bool upper : {false, true})
    for (const bool transposed : {false, true}) {
      Device<double> dc(c);
      ASSERT_EQ(cublasDsyrk_64(blas, upper ? CUBLAS_FILL_MODE_UPPER : CUBLAS_FILL_MODE_LOWER,
                               transposed ? CUBLAS_OP_T : CUBLAS_OP_N, n, k, &alpha, da.data(), lda,
                               &beta, dc.data(), n),
                CUBLAS_STATUS_SUCCESS);
      const auto got = dc.host();
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) {
          double sum = -c[i + j * n];
          for (int l = 0; l < k; ++l)
            sum += 1.5 *
                   (transposed ? a[l + i * lda] * a[l + j * lda] : a[i + l * lda] * a[j + l * lda]);
          if (upper ? i <= j : i >= j)
            EXPECT_NEAR(got[i + j * n], sum, 1e-13);
          else
            EXPECT_EQ(got[i + j * n], c[i + j * n]);
        }
    }
}

TEST_F(EmulatedLibraries, RefuseWhatADeviceCouldNotReach) {
  Device<double> on_device(std::vector<double>(16, 1.0));
  std::vector<double> on_host(16);
  const double one = 1;
  const auto product = [&](const double* a, double* c, int n, int ld) {
    return cublasDgemm(blas, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, a, ld, a, ld, &one, c, ld);
  };
  EXPECT_EQ(product(on_device.data(), on_device.data(), 4, 3), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_THROW(product(on_host.data(), on_device.data(), 4, 4), std::logic_error);
  EXPECT_THROW(product(on_device.data(), on_host.data(), 4, 4), std::logic_error);
  EXPECT_THROW(product(on_device.data(), on_device.data(), 4, 5), std::logic_error);
  double norm = 0;
  EXPECT_EQ(cublasDnrm2_64(blas, 16, on_device.data(), 1, &norm), CUBLAS_STATUS_SUCCESS);
  EXPECT_NEAR(norm, 4, 1e-15);
}

// A's eigenvalues below `w`, its vectors in the columns of `v`.
template <class T>
void expect_eigenpairs(const std::vector<double>& a, int n, const T* v, int ldv, const T* w,
                       int k) {
  const double eps = std::numeric_limits<T>::epsilon();
  for (int p = 0; p < k; ++p) {
    EXPECT_LE(w[std::max(0, p - 1)], w[p] + 4 * eps * std::max(std::abs(w[0]), std::abs(w[k - 1])));
    for (int q = 0; q <= p; ++q) {
      double dot = 0;
      for (int i = 0; i < n; ++i) dot += double(v[i + p * ldv]) * v[i + q * ldv];
      EXPECT_NEAR(dot, p == q, 20 * n * eps);
    }
    for (int i = 0; i < n; ++i) {
      double residual = -double(w[p]) * v[i + p * ldv];
      for (int j = 0; j < n; ++j) residual += a[i * n + j] * v[j + p * ldv];
      EXPECT_NEAR(residual, 0, 20 * n * n * eps);
    }
  }
}

std::vector<double> symmetric(int n, unsigned seed) {
  auto a = random_values(std::size_t(n * n), seed);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) a[j * n + i] = a[i * n + j] = float(a[i * n + j]);
  for (int i = 0; i < n; ++i) a[i * n + i] = float(a[i * n + i]);
  return a;
}

// One triangle, NaN elsewhere.
template <class T>
std::vector<T> triangle(const std::vector<double>& a, int n, int lda, bool upper) {
  std::vector<T> out(std::size_t(n * lda), T(NAN));
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < n; ++i)
      if (upper ? i <= j : i >= j) out[i + j * lda] = T(a[i * n + j]);
  return out;
}

template <class T>
constexpr cudaDataType real = std::is_same_v<T, double> ? CUDA_R_64F : CUDA_R_32F;

struct SyevResult {
  cusolverStatus_t status;
  std::vector<int> info;
  std::int64_t found = 0;
};

// Xsyevd, or Xsyevdx for eigenvalues first ... last (from 1).
template <class T>
SyevResult syevd(cusolverDnHandle_t solver, cusolverDnParams_t params, bool upper, int n,
                 Device<T>& a, int lda, Device<T>& w, int first = 0, int last = 0,
                 std::size_t missing = 0) {
  const auto uplo = upper ? CUBLAS_FILL_MODE_UPPER : CUBLAS_FILL_MODE_LOWER;
  const auto job = CUSOLVER_EIG_MODE_VECTOR;
  constexpr auto type = real<T>;
  SyevResult out{};
  std::size_t on_device = 0, on_host = 0;
  if (first == 0)
    cusolverDnXsyevd_bufferSize(solver, params, job, uplo, n, type, a.data(), lda, type, w.data(),
                                type, &on_device, &on_host);
  else
    cusolverDnXsyevdx_bufferSize(solver, params, job, CUSOLVER_EIG_RANGE_I, uplo, n, type, a.data(),
                                 lda, nullptr, nullptr, first, last, &out.found, type, w.data(),
                                 type, &on_device, &on_host);
  on_device -= missing;
  Device<char> device(on_device);
  Device<int> info(1);
  std::vector<char> host(on_host);
  out.status =
      first == 0
          ? cusolverDnXsyevd(solver, params, job, uplo, n, type, a.data(), lda, type, w.data(),
                             type, device.data(), on_device, host.data(), on_host, info.data())
          : cusolverDnXsyevdx(solver, params, job, CUSOLVER_EIG_RANGE_I, uplo, n, type, a.data(),
                              lda, nullptr, nullptr, first, last, &out.found, type, w.data(), type,
                              device.data(), on_device, host.data(), on_host, info.data());
  out.info = info.host();
  return out;
}

TEST_F(EmulatedLibraries, SolveSymmetricEigenproblems) {
  for (const int n : {1, 2, 5, 33}) {
    const int lda = n + 2;
    const auto a = symmetric(n, 7);
    for (const bool upper : {false, true}) {
      Device<double> da(triangle<double>(a, n, lda, upper)), dw(static_cast<std::size_t>(n));
      const auto got = syevd(solver, params, upper, n, da, lda, dw);
      ASSERT_EQ(got.status, CUSOLVER_STATUS_SUCCESS);
      ASSERT_EQ(got.info[0], 0);
      expect_eigenpairs(a, n, da.host().data(), lda, dw.host().data(), n);
    }
    Device<float> da(triangle<float>(a, n, lda, false)), dw(static_cast<std::size_t>(n));
    ASSERT_EQ(syevd(solver, params, false, n, da, lda, dw).info[0], 0);
    expect_eigenpairs(a, n, da.host().data(), lda, dw.host().data(), n);
  }
}

TEST_F(EmulatedLibraries, SolveForTheLargestAlone) {
  constexpr int n = 20;
  const auto a = symmetric(n, 8);
  Device<double> da(triangle<double>(a, n, n, false)), dw(n),
      all_a(triangle<double>(a, n, n, false)), all_w(n);
  const auto got = syevd(solver, params, false, n, da, n, dw, n - 2, n);
  ASSERT_EQ(got.status, CUSOLVER_STATUS_SUCCESS);
  EXPECT_EQ(got.found, 3);
  expect_eigenpairs(a, n, da.host().data(), n, dw.host().data(), 3);
  ASSERT_EQ(syevd(solver, params, false, n, all_a, n, all_w).info[0], 0);
  EXPECT_EQ(dw.host()[0], all_w.host()[n - 3]);
  EXPECT_TRUE(std::isnan(dw.host()[3]));
}

TEST_F(EmulatedLibraries, SolveDegenerateAndExtremeMatrices) {
  constexpr int n = 12;
  std::vector<double> ones(n * n, 1.0), identity(n * n, 0.0), huge = symmetric(n, 9);
  for (int i = 0; i < n; ++i) identity[i * n + i] = 1;
  for (double& x : huge) x *= 0x1p1000;
  for (const auto& a : {ones, identity}) {
    Device<double> da(a), dw(n);
    ASSERT_EQ(syevd(solver, params, false, n, da, n, dw).info[0], 0);
    expect_eigenpairs(a, n, da.host().data(), n, dw.host().data(), n);
  }
  Device<double> da(huge), dw(n);
  ASSERT_EQ(syevd(solver, params, false, n, da, n, dw).info[0], 0);
  auto w = dw.host();
  for (double& x : w) x *= 0x1p-1000;
  expect_eigenpairs(symmetric(n, 9), n, da.host().data(), n, w.data(), n);
}

TEST_F(EmulatedLibraries, RefuseSmallWorkspacesAndFailOnDemand) {
  constexpr int n = 4;
  const auto a = symmetric(n, 10);
  Device<double> da(a), dw(n);
  EXPECT_EQ(syevd(solver, params, false, n, da, n, dw, 0, 0, 1).status,
            CUSOLVER_STATUS_INVALID_VALUE);
  const Setting fail("EMULATED_CUSOLVER_FAIL", "XsyevBatched,Xsyevdx");
  EXPECT_EQ(syevd(solver, params, false, n, da, n, dw, 1, n).info[0], 1);
  EXPECT_TRUE(std::isnan(dw.host()[0]));
  Device<double> again(a);
  EXPECT_EQ(syevd(solver, params, false, n, again, n, dw).info[0], 0);
  const Setting refuse("EMULATED_CUSOLVER_REFUSE", "Xsyevd");
  std::size_t on_device = 0, on_host = 0;
  const auto sizes = [&] {
    return cusolverDnXsyevd_bufferSize(solver, params, CUSOLVER_EIG_MODE_VECTOR,
                                       CUBLAS_FILL_MODE_LOWER, n, CUDA_R_64F, da.data(), n,
                                       CUDA_R_64F, dw.data(), CUDA_R_64F, &on_device, &on_host);
  };
  EXPECT_EQ(sizes(), CUSOLVER_STATUS_INVALID_VALUE);
  const Setting another("EMULATED_CUSOLVER_REFUSE", "Xsyevdx");
  EXPECT_EQ(sizes(), CUSOLVER_STATUS_SUCCESS);
}

TEST_F(EmulatedLibraries, SolveBatchesInAZeroedWorkspaceOnly) {
  constexpr int n = 6, batch = 3;
  std::vector<double> values;
  for (unsigned i = 0; i < batch; ++i) {
    const auto a = symmetric(n, 20 + i);
    values.insert(values.end(), a.begin(), a.end());
  }
  Device<double> a(values), w(n * batch);
  Device<int> info(batch);
  std::size_t on_device = 0, on_host = 0;
  const auto job = CUSOLVER_EIG_MODE_VECTOR;
  const auto uplo = CUBLAS_FILL_MODE_LOWER;
  ASSERT_EQ(cusolverDnXsyevBatched_bufferSize(solver, params, job, uplo, n, CUDA_R_64F, a.data(), n,
                                              CUDA_R_64F, w.data(), CUDA_R_64F, &on_device,
                                              &on_host, batch),
            CUSOLVER_STATUS_SUCCESS);
  Device<char> device(on_device);
  std::vector<char> host(on_host);
  const auto solve = [&] {
    EXPECT_EQ(
        cudaMemcpy(a.data(), values.data(), values.size() * sizeof(double), cudaMemcpyHostToDevice),
        cudaSuccess);
    EXPECT_EQ(cusolverDnXsyevBatched(solver, params, job, uplo, n, CUDA_R_64F, a.data(), n,
                                     CUDA_R_64F, w.data(), CUDA_R_64F, device.data(), on_device,
                                     host.data(), on_host, info.data(), batch),
              CUSOLVER_STATUS_SUCCESS);
    return info.host();
  };
  device.zero();
  EXPECT_EQ(solve(), std::vector<int>(batch, 0));
  for (unsigned i = 0; i < batch; ++i)
    expect_eigenpairs(symmetric(n, 20 + i), n, a.host().data() + i * n * n, n,
                      w.host().data() + i * n, n);
  EXPECT_EQ(solve(), std::vector<int>(batch, 1));  // what the first call left in its workspace
}

}  // namespace
