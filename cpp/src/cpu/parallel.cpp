#include "cpu/parallel.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
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
  const std::function<void(std::int64_t)>* body;
  std::int64_t count;
  int helpers_wanted;
  int helpers = 0;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
};

thread_local bool inside_parallel = false;

class Pool {
 public:
  void run(Job& job) {
    {
      std::lock_guard lock(mutex_);
      start_workers(job.helpers_wanted);
      jobs_.push_back(&job);
    }
    work_ready_.notify_all();
    work(job);
    std::unique_lock lock(mutex_);
    std::erase(jobs_, &job);
    work_done_.wait(lock, [&] { return job.helpers == 0; });
  }

 private:
  void start_workers(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
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
    for (Job* job : jobs_)
      if (job->helpers_wanted > 0 && job->next.load(std::memory_order_relaxed) < job->count)
        return job;
    return nullptr;
  }

  void work(Job& job) {
    const bool outer = std::exchange(inside_parallel, true);
    for (;;) {
      const std::int64_t index = job.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= job.count) break;
      try {
        (*job.body)(index);
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
  std::deque<Job*> jobs_;
  int workers_ = 0;
};

// Never destroyed: workers may outlive static destruction.
alignas(Pool) std::byte pool_storage[sizeof(Pool)];
std::array<void (*)(), 4> fork_resets{};
std::atomic<int> fork_reset_count{0};

void reset_in_child() {
  new (pool_storage) Pool;
  inside_parallel = false;
  for (int i = 0; i < fork_reset_count.load(); ++i) fork_resets[std::size_t(i)]();
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

void parallel_for(int threads, std::int64_t count, const std::function<void(std::int64_t)>& body) {
  if (threads <= 1 || count <= 1 || inside_parallel) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  Job job;
  job.body = &body;
  job.count = count;
  job.helpers_wanted = int(std::min<std::int64_t>(threads, count)) - 1;
  pool().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

void on_fork_in_child(void (*reset)()) {
  pool();
  const int index = fork_reset_count.fetch_add(1);
  fork_resets.at(std::size_t(index)) = reset;
}

}  // namespace descramble_fast::cpu
