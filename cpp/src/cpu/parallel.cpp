#include "cpu/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "call.hpp"
#include "cpu/cgroup.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace descramble_fast::cpu {

namespace {

thread_local bool inside_parallel = false;

// Says now and then that it is time again.
class Interval {
 public:
  static constexpr auto length = std::chrono::milliseconds(20);

  bool over() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < length) return false;
    last_ = now;
    return true;
  }

 private:
  std::chrono::steady_clock::time_point last_{};
};

// What a parallel_for is given, called no more often than that; allocates nothing.
class Poll {
 public:
  explicit Poll(const std::function<void()>& poll) : poll_(poll) {}

  explicit operator bool() const { return bool(poll_); }
  void operator()() {
    if (poll_ && interval_.over()) poll_();
  }

 private:
  const std::function<void()>& poll_;
  Interval interval_;
};

// Ends an index whose job has failed elsewhere.
struct Abandoned {};

struct Job;
thread_local const Job* current_job = nullptr;

struct Job {
  Body body;
  std::int64_t count;
  std::pmr::memory_resource* memory;
  int helpers_wanted = 0;
  std::atomic<int> helpers{0};  // changed under the pool's lock
  std::atomic<std::int64_t> next{0};
  std::mutex error_mutex = {};
  std::exception_ptr error = {};
  std::atomic<bool> failed{false};  // of which those hear that poll, wherever they are
  Job* following = nullptr;         // in the pool's list

  void fail(std::exception_ptr with) {
    const std::lock_guard lock(error_mutex);
    if (!error) error = std::move(with);
    failed.store(true, std::memory_order_relaxed);
  }

  // Does what nobody else does.
  void work(Poll* poll = nullptr) {
    const bool outer = std::exchange(inside_parallel, true);
    const Job* const outer_job = std::exchange(current_job, this);
    const Surroundings around =
        std::exchange(surroundings(), Surroundings{nullptr, memory, nullptr, 1});
    for (;;) {
      const std::int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) break;
      try {
        if (poll != nullptr) (*poll)();
        body.invoke(body.object, index);
      } catch (...) {
        fail(std::current_exception());
        next.store(count, std::memory_order_relaxed);
      }
    }
    surroundings() = around;
    current_job = outer_job;
    inside_parallel = outer;
  }
};

// So many may be moved at every call; where there are more, the kernel has processors to choose
// from.
constexpr std::size_t few_workers = 7;

// Where a worker sleeps. Some kernels, of small virtual machines above all, wake it on the
// processor where the caller computes; it then waits there for milliseconds.
class Berth {
 public:
  // By the worker, before it sleeps and after.
  void lie_down() {
#if defined(__linux__)
    thread_ = pid_t(::syscall(SYS_gettid));
    asleep_ = true;
#endif
  }
  void get_up() {
#if defined(__linux__)
    asleep_ = false;
    if (std::exchange(moved_, false)) ::sched_setaffinity(0, sizeof allowed_, &allowed_);
#endif
  }
  // By whoever is about to wake it: off the caller's processor, if it may run elsewhere.
  void make_way([[maybe_unused]] int cpu) {
#if defined(__linux__)
    if (!asleep_ || cpu < 0) return;
    if (!moved_ && ::sched_getaffinity(thread_, sizeof allowed_, &allowed_) != 0) return;
    cpu_set_t elsewhere = allowed_;
    CPU_CLR(std::size_t(cpu), &elsewhere);
    if (CPU_COUNT(&elsewhere) > 0 &&
        ::sched_setaffinity(thread_, sizeof elsewhere, &elsewhere) == 0)
      moved_ = true;
#endif
  }

 private:
#if defined(__linux__)
  pid_t thread_ = 0;
  bool asleep_ = false, moved_ = false;
  cpu_set_t allowed_{};
#endif
};

// Waking a thread takes as long as a small piece of work: whoever waits stays awake for a moment,
// as calls often come one upon the other. In vain it costs a core a fifth of a millisecond.
template <class Done>
void wait_a_little(const Done& done) {
  constexpr auto moment = std::chrono::microseconds(200);
  const auto begin = std::chrono::steady_clock::now();
  while (!done() && std::chrono::steady_clock::now() - begin < moment)
    for (int i = 0; i < 16 && !done(); ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
}

int this_cpu() {
#if defined(__linux__)
  return ::sched_getcpu();
#else
  return -1;
#endif
}

class Pool {
 public:
  void run(Job& job, Poll& poll) {
    {
      std::lock_guard lock(mutex_);
      start_workers(job.helpers_wanted);
      job.following = std::exchange(jobs_, &job);
      posted_.fetch_add(1, std::memory_order_relaxed);
      if (berths_.size() <= few_workers) {
        const int cpu = this_cpu();
        for (const auto& berth : berths_) berth->make_way(cpu);
      }
    }
    work_ready_.notify_all();
    job.work(&poll);
    const auto finished = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
    {
      std::lock_guard lock(mutex_);
      remove(job);
    }
    wait_a_little(finished);
    std::unique_lock lock(mutex_);
    while (poll && !work_done_.wait_for(lock, Interval::length, finished)) {
      lock.unlock();
      try {
        poll();
      } catch (...) {
        job.fail(std::current_exception());
      }
      lock.lock();
    }
    work_done_.wait(lock, finished);
  }

 private:
  void start_workers(int wanted) {
    while (int(berths_.size()) < wanted) {
      try {
        berths_.push_back(std::make_unique<Berth>());
      } catch (...) {
        return;  // The caller does the work of the threads that could not be had.
      }
      try {
        std::thread([this, berth = berths_.back().get()] { serve(*berth); }).detach();
      } catch (...) {
        berths_.pop_back();
        return;
      }
    }
  }

  void serve(Berth& berth) {
    inside_parallel = true;
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = open_job();
      if (job == nullptr) {
        const std::uint64_t seen = posted_.load(std::memory_order_relaxed);
        lock.unlock();
        wait_a_little([&] { return posted_.load(std::memory_order_relaxed) != seen; });
        lock.lock();
        job = open_job();
      }
      while (job == nullptr) {
        berth.lie_down();
        work_ready_.wait(lock);
        berth.get_up();
        job = open_job();
      }
      ++job->helpers;
      --job->helpers_wanted;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->helpers == 0) work_done_.notify_all();
    }
  }

  Job* open_job() {
    for (Job* job = jobs_; job != nullptr; job = job->following)
      if (job->helpers_wanted > 0 && job->next.load(std::memory_order_relaxed) < job->count)
        return job;
    return nullptr;
  }

  void remove(Job& job) {
    Job** link = &jobs_;
    while (*link != &job) link = &(*link)->following;
    *link = job.following;
  }

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable work_done_;
  Job* jobs_ = nullptr;
  std::atomic<std::uint64_t> posted_{0};
  std::vector<std::unique_ptr<Berth>> berths_;  // of every worker
};

// Never destroyed: workers may outlive static destruction.
alignas(Pool) std::byte pool_storage[sizeof(Pool)];

// A forked child has no copies of the workers.
[[maybe_unused]] void reset_in_child() {
  new (pool_storage) Pool;
  inside_parallel = false;
}

Pool& pool() {
  static Pool* const instance = [] {
    Pool* const made = new (pool_storage) Pool;
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, reset_in_child);
#endif
    return made;
  }();
  return *instance;
}

int positive_from_environment(const char* variable) {
  const char* const text = std::getenv(variable);
  if (text == nullptr) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  return end != text && value > 0 && value < 65536 ? int(value) : 0;
}

int allowed_cpus() {
  int allowed = int(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) allowed = std::max(1, CPU_COUNT(&set));
  if (const int quota = cgroup_cpus(); quota > 0) allowed = std::min(allowed, quota);
#endif
  return allowed;
}

}  // namespace

int default_threads() {
  for (const char* variable : {"DESCRAMBLE_FAST_NUM_THREADS", "OMP_NUM_THREADS"})
    if (const int threads = positive_from_environment(variable); threads > 0) return threads;
  static const int allowed = allowed_cpus();
  return allowed;
}

int threads_of(const Context& context) {
  if (context.threads < 0)
    throw InvalidArgument(message("threads: got ", context.threads, ", expected at least 0"));
  return context.threads > 0 ? context.threads : num_threads();
}

std::function<void()> now_and_then(std::function<void()> poll) {
  if (!poll) return {};
  return [poll = std::move(poll), caller = std::this_thread::get_id(),
          interval = std::make_shared<Interval>()] {
    if (std::this_thread::get_id() != caller) {
      if (current_job != nullptr && current_job->failed.load(std::memory_order_relaxed))
        throw Abandoned{};
    } else if (interval->over()) {
      poll();
    }
  };
}

void run_parallel(int threads, std::int64_t count, Body body, const std::function<void()>& poll) {
  Poll now_and_then(poll);
  if (threads <= 1 || count <= 1 || inside_parallel) {
    for (std::int64_t i = 0; i < count; ++i) {
      now_and_then();
      body.invoke(body.object, i);
    }
    return;
  }
  Job job{body, count, surroundings().memory};
  // More threads than this only wait for each other.
  static const int most = 4 * allowed_cpus();
  const int wanted = int(std::min<std::int64_t>({threads, count, most}));
  if (Executor* const executor = surroundings().executor) {
    // Meanwhile this thread may be lent to calls that are none of this one.
    const Surroundings around = std::exchange(surroundings(), {});
    try {
      executor->run(wanted, [&job](int) { job.work(); });
    } catch (...) {  // as where a thread of our own cannot be had
    }
    surroundings() = around;
    job.work(&now_and_then);
  } else {
    job.helpers_wanted = wanted - 1;
    pool().run(job, now_and_then);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace descramble_fast::cpu
