// Runs a grid on the calling thread: the threads of a block are fibers.

#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emulated_device.hpp"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#ifdef __x86_64__
// Saves what a call keeps, and the stack pointer in *from; goes on where `to` was saved.
extern "C" void emulated_cuda_switch(void** from, void* to);
asm(R"(
  .text
  .hidden emulated_cuda_switch
  .globl emulated_cuda_switch
  .type emulated_cuda_switch, @function
emulated_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulated_cuda_switch, . - emulated_cuda_switch
)");
#else
#include <ucontext.h>
#endif

namespace emulated_cuda {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t stack_bytes = 256 << 10;
#else
constexpr std::size_t stack_bytes = 64 << 10;
#endif
constexpr std::size_t guard_bytes = 4096;

// A stack, and a place to go on from. One without memory of its own stands for its caller.
class Fiber {
 public:
  Fiber() = default;
  ~Fiber() {
    if (memory_ == nullptr) return;
#ifdef __SANITIZE_THREAD__
    __tsan_destroy_fiber(sanitizer_);
#endif
    munmap(memory_, guard_bytes + stack_bytes);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*body)()) {
    if (memory_ == nullptr) {
      void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      memory_ = static_cast<char*>(memory);
      bottom_ = memory_ + guard_bytes;
      bytes_ = stack_bytes;
      mprotect(memory_, guard_bytes, PROT_NONE);
#ifdef __SANITIZE_THREAD__
      sanitizer_ = __tsan_create_fiber(0);
#endif
    }
#ifdef __SANITIZE_ADDRESS__
    // Calls that ended have cleaned up behind them, except for the body, which never returns.
    const std::size_t used = std::exchange(ended_, false) ? 4096 : stack_bytes;
    __asan_unpoison_memory_region(memory_ + guard_bytes + stack_bytes - used, used);
#endif
#ifdef __x86_64__
    // Six registers, the address to return to, and none for the body to return to: at its entry the
    // stack is 8 bytes off a multiple of 16, as after a call.
    auto** top = reinterpret_cast<void**>(memory_ + guard_bytes + stack_bytes) - 8;
    std::fill(top, top + 8, nullptr);
    top[6] = reinterpret_cast<void*>(body);
    context_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_ + guard_bytes;
    context_.uc_stack.ss_size = stack_bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, body, 0);
#endif
  }

  /// To be called on this fiber, which goes on when somebody switches to it.
  void switch_to(Fiber& next, bool for_good = false) {
    ended_ = for_good;
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, next.bottom_, next.bytes_);
#endif
#ifdef __SANITIZE_THREAD__
    if (memory_ == nullptr) sanitizer_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(next.sanitizer_, 0);
#endif
#ifdef __x86_64__
    emulated_cuda_switch(&context_, next.context_);
#else
    swapcontext(&context_, &next.context_);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  /// To be called first on a new fiber.
  static void entered(Fiber& from) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom_, &from.bytes_);
#else
    static_cast<void>(from);
#endif
  }

 private:
#ifdef __x86_64__
  void* context_ = nullptr;
#else
  ucontext_t context_{};
#endif
  char* memory_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
  bool ended_ = false;
#ifdef __SANITIZE_THREAD__
  void* sanitizer_ = nullptr;
#endif
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Warp {
  unsigned live = 0, ready = 0, arrived = 0;
  unsigned masks[32];
  Collective operations[32];
  void* arguments[32];
};

struct Thread {
  Fiber fiber;
  uint3 index;
  unsigned lane;
  Warp* warp;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> committed;
};

enum class Order { forward, backward, shuffled };

Order chosen_order() {
  const char* name = std::getenv("EMULATED_CUDA_ORDER");
  const std::string_view order = name == nullptr ? "forward" : name;
  if (order == "forward") return Order::forward;
  if (order == "backward") return Order::backward;
  if (order == "shuffled") return Order::shuffled;
  throw std::invalid_argument("EMULATED_CUDA_ORDER: expected forward, backward or shuffled");
}

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

// The i-th element of a box, x running fastest.
uint3 element(std::uint64_t i, dim3 box) {
  return {unsigned(i % box.x), unsigned(i / box.x % box.y), unsigned(i / box.x / box.y)};
}

class Multiprocessor {
 public:
  void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
    const std::uint64_t count = std::uint64_t(grid.x) * grid.y * grid.z;
    order_ = chosen_order();
    body_ = &body;
    gridDim = grid;
    blockDim = block;
    std::vector<std::uint64_t> shuffled(order_ == Order::shuffled ? count : 0);
    std::iota(shuffled.begin(), shuffled.end(), std::uint64_t(0));
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
    for (std::uint64_t i = 0; i < count; ++i) {
      blockIdx = element(order_ == Order::forward    ? i
                         : order_ == Order::backward ? count - 1 - i
                                                     : shuffled[i],
                         grid);
      run_block(block, shared_bytes);
    }
  }

  Thread& current() { return *current_; }
  unsigned char* shared() { return shared_.get(); }

  int block_barrier(Barrier kind, bool predicate) {
    if (arrived_ == 0) kind_ = kind, counted_ = 0;
    if (kind != kind_) fault("divergent barrier: different kinds of __syncthreads meet");
    ++arrived_;
    counted_ += predicate;
    if (!open_barrier()) suspend();
    switch (kind) {
      case Barrier::all:
        return result_.counted == result_.arrived;
      case Barrier::count:
        return int(result_.counted);
      default:
        return result_.counted > 0;
    }
  }

  void warp_collective(unsigned mask, Collective operation, void* arguments) {
    const unsigned lane = current_->lane;
    Warp& warp = *current_->warp;
    if ((mask >> lane & 1) == 0) fault("a warp-wide function's mask lacks the calling lane");
    warp.masks[lane] = mask;
    warp.operations[lane] = operation;
    warp.arguments[lane] = arguments;
    warp.arrived |= 1u << lane;
    if (!complete_collective(warp, mask)) suspend();
  }

 private:
  void run_block(dim3 block, std::size_t shared_bytes) {
    const unsigned count = block.x * block.y * block.z;
    while (threads_.size() < count) threads_.push_back(std::make_unique<Thread>());
    warps_.assign((count + 31) / 32, Warp{});
    for (unsigned i = 0; i < count; ++i) {
      Thread& thread = *threads_[i];
      thread.index = element(i, block);
      thread.lane = i % 32;
      thread.warp = &warps_[i / 32];
      thread.warp->live |= 1u << thread.lane;
      thread.uncommitted.clear();
      thread.committed.clear();
      thread.fiber.start(enter);
    }
    for (Warp& warp : warps_) warp.ready = warp.live;
    // No more than was asked for, so that a sanitizer sees what goes beyond.
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, shared_bytes) != 0) throw std::bad_alloc();
    shared_.reset(static_cast<unsigned char*>(shared));
    if (shared_bytes > 0) std::memset(shared, 0xCD, shared_bytes);
    live_ = count;
    arrived_ = 0;
    while (live_ > 0)
      if (!run_warps()) throw std::logic_error(deadlock());
  }

  // Lets each warp run until all its threads wait for other warps.
  bool run_warps() {
    std::vector<unsigned> order(warps_.size());
    std::iota(order.begin(), order.end(), 0u);
    arrange(order);
    bool any = false;
    for (const unsigned w : order) {
      while (warps_[w].ready != 0) {
        any = true;
        std::array<unsigned, 32> lanes;
        std::iota(lanes.begin(), lanes.end(), 0u);
        arrange(lanes);
        for (const unsigned lane : lanes)
          if ((warps_[w].ready >> lane & 1) != 0) run_thread(*threads_[32 * w + lane]);
      }
    }
    return any;
  }

  void arrange(auto& order) {
    if (order_ == Order::backward) std::reverse(order.begin(), order.end());
    if (order_ == Order::shuffled) std::shuffle(order.begin(), order.end(), random_);
  }

  void run_thread(Thread& thread) {
    current_ = &thread;
    threadIdx = thread.index;
    scheduler_.switch_to(thread.fiber);
    // Fibers left behind hold no more than their stacks.
    if (failure_ != nullptr) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  void suspend() {
    Thread& thread = *current_;
    thread.warp->ready &= ~(1u << thread.lane);
    thread.fiber.switch_to(scheduler_);
  }

  static void enter();

  void thread_body() {
    Fiber::entered(scheduler_);
    Thread& thread = *current_;
    Warp& warp = *thread.warp;
    try {
      (*body_)();
      --live_;
      warp.live &= ~(1u << thread.lane);
      warp.ready &= warp.live;
      if (arrived_ > 0) open_barrier();
      for (unsigned rest = warp.arrived; rest != 0; rest &= warp.arrived & (rest - 1))
        complete_collective(warp, warp.masks[std::countr_zero(rest)]);
    } catch (...) {
      failure_ = std::current_exception();
    }
    thread.fiber.switch_to(scheduler_, true);
  }

  bool open_barrier() {
    if (arrived_ < live_) return false;
    result_ = {arrived_, counted_};
    arrived_ = 0;
    for (Warp& warp : warps_) warp.ready = warp.live;
    return true;
  }

  static bool complete_collective(Warp& warp, unsigned mask) {
    const unsigned lanes = mask & warp.live;
    if ((warp.arrived & lanes) != lanes) return false;
    const Collective operation = warp.operations[std::countr_zero(lanes)];
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      if (warp.masks[lane] != mask || warp.operations[lane] != operation) return false;
    }
    operation(lanes, warp.arguments);
    warp.arrived &= ~lanes;
    warp.ready |= lanes;
    return true;
  }

  std::string deadlock() const {
    std::string out = "emulated CUDA: divergent barrier: no thread of block " + text(blockIdx) +
                      " can run; " + std::to_string(arrived_) + " of " + std::to_string(live_) +
                      " wait at __syncthreads";
    for (std::size_t w = 0; w < warps_.size(); ++w)
      for (unsigned rest = warps_[w].arrived; rest != 0; rest &= rest - 1) {
        char mask[11];
        const int lane = std::countr_zero(rest);
        std::snprintf(mask, sizeof mask, "0x%08x", warps_[w].masks[lane]);
        out += (rest == warps_[w].arrived ? "; in warp " + std::to_string(w) + " lane " : ", ") +
               std::to_string(lane) + " waits for lanes " + mask;
      }
    return out;
  }

  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  struct Result {
    unsigned arrived, counted;
  };

  Order order_ = Order::forward;
  std::mt19937_64 random_;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::unique_ptr<unsigned char, Free> shared_;
  Fiber scheduler_;
  Thread* current_ = nullptr;
  std::exception_ptr failure_;
  unsigned live_ = 0, arrived_ = 0, counted_ = 0;
  Barrier kind_ = Barrier::plain;
  Result result_{};
};

constinit thread_local Multiprocessor* running = nullptr;

void Multiprocessor::enter() { running->thread_body(); }

Multiprocessor& device_code() {
  if (running == nullptr) fault("device code called on the host");
  return *running;
}

void perform(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

}  // namespace

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
  if (running != nullptr) fault("a kernel launched from a kernel");
  thread_local Multiprocessor multiprocessor;
  struct Running {
    Running() { running = &multiprocessor; }
    ~Running() { running = nullptr; }
  } scope;
  multiprocessor.run(grid, block, shared_bytes, body);
}

void warp_collective(unsigned mask, Collective operation, void* arguments) {
  device_code().warp_collective(mask, operation, arguments);
}

int block_barrier(Barrier kind, bool predicate) {
  return device_code().block_barrier(kind, predicate);
}

unsigned lane() { return device_code().current().lane; }

void fault(const char* what) {
  std::string message = std::string("emulated CUDA: ") + what;
  if (running != nullptr) message += ", block " + text(blockIdx) + " thread " + text(threadIdx);
  throw std::logic_error(message);
}

void copy_async(void* shared, const void* global, int bytes_valid) {
  if (bytes_valid < 0 || bytes_valid > 16) fault("copy_async: bytes outside of 0...16");
  for (const void* p : {static_cast<const void*>(shared), global})
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) fault("copy_async: not aligned to 16 bytes");
  std::memset(shared, 0xCD, 16);  // it may arrive at any time from now on
  device_code().current().uncommitted.push_back({shared, global, std::size_t(bytes_valid)});
}

void copy_async_commit() {
  Thread& thread = device_code().current();
  thread.committed.push_back(std::move(thread.uncommitted));
  thread.uncommitted.clear();
}

void copy_async_wait(int groups_left) {
  auto& groups = device_code().current().committed;
  for (; groups.size() > std::size_t(groups_left); groups.pop_front()) perform(groups.front());
}

}  // namespace emulated_cuda

unsigned char* descramble_fast_dynamic_shared() { return emulated_cuda::device_code().shared(); }
