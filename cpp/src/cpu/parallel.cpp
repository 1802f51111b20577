#include "cpu/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "descramble_fast/error.hpp"
#include "message.hpp"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace descramble_fast::cpu {

namespace {

struct Job {
  Body body;
  std::int64_t count;
  int helpers_wanted;
  int helpers = 0;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  Job* following = nullptr;  // in the pool's list
};

thread_local bool inside_parallel = false;

class Pool {
 public:
  void run(Job& job, const std::function<void()>& idle) {
    {
      std::lock_guard lock(mutex_);
      start_workers(job.helpers_wanted);
      job.following = std::exchange(jobs_, &job);
    }
    work_ready_.notify_all();
    work(job);
    std::unique_lock lock(mutex_);
    remove(job);
    const auto finished = [&] { return job.helpers == 0; };
    while (idle && !work_done_.wait_for(lock, std::chrono::milliseconds(20), finished)) {
      lock.unlock();
      std::exception_ptr error;
      try {
        idle();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !job.error) job.error = error;
    }
    work_done_.wait(lock, finished);
  }

 private:
  void start_workers(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (...) {
        return;  // The caller does the work of the threads that could not be had.
      }
      ++workers_;
    }
  }

  void serve() {
    inside_parallel = true;
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      work_ready_.wait(lock, [&] { return (job = open_job()) != nullptr; });
      ++job->helpers;
      --job->helpers_wanted;
      lock.unlock();
      work(*job);
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

  void work(Job& job) {
    const bool outer = std::exchange(inside_parallel, true);
    for (;;) {
      const std::int64_t index = job.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= job.count) break;
      try {
        job.body.invoke(job.body.object, index);
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!job.error) job.error = std::current_exception();
        job.next.store(job.count, std::memory_order_relaxed);
      }
    }
    inside_parallel = outer;
  }

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable work_done_;
  Job* jobs_ = nullptr;
  int workers_ = 0;
};

// Never destroyed: workers may outlive static destruction.
alignas(Pool) std::byte pool_storage[sizeof(Pool)];

// A forked child has no copies of the workers.
void reset_in_child() {
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

#if defined(__linux__)
// CPUs' worth of time that a cgroup grants, rounded up; 0 where there is no quota.
int cgroup_quota() {
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2) {
    std::string quota;
    double period = 0;
    if (v2 >> quota >> period && quota != "max" && period > 0)
      return std::max(1, int((std::stod(quota) + period - 1) / period));
    return 0;
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0)
    return std::max(1, int((quota + period - 1) / period));
  return 0;
}
#endif

int allowed_cpus() {
  int allowed = int(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) allowed = std::max(1, CPU_COUNT(&set));
  if (const int quota = cgroup_quota(); quota > 0) allowed = std::min(allowed, quota);
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

void run_parallel(int threads, std::int64_t count, Body body, const std::function<void()>& idle) {
  if (threads <= 1 || count <= 1 || inside_parallel) {
    for (std::int64_t i = 0; i < count; ++i) body.invoke(body.object, i);
    return;
  }
  Job job;
  job.body = body;
  job.count = count;
  // More threads than this only wait for each other.
  static const int most = 4 * allowed_cpus();
  job.helpers_wanted = int(std::min<std::int64_t>({threads, count, most})) - 1;
  pool().run(job, idle);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace descramble_fast::cpu
