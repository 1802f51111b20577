#pragma once

#include <functional>
#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

#include "descramble_fast/export.hpp"
#include "descramble_fast/view.hpp"

/// What holds for every function that does not say otherwise.
///
/// **Arrays.** An ArrayView may have any strides, and any alignment that its type needs. A shape
/// (..., n) has any number of leading axes, or none, which run over rows together. A floating type
/// is float16, bfloat16, float32 or float64. Results are float64.
///
/// **Units.** Moments and costs are in the samples' unit squared, operators in powers of the
/// distance between places. Time is in seconds, memory in bytes.
///
/// **Ownership.** Arguments are borrowed for the call alone. Results own their memory. Where a
/// Context brings memory, it must outlive what was made with it.
///
/// **Devices.** All arrays of a call lie on one device, and so do its results.
///
/// **Errors.** InvalidArgument, TypeError, BackendError, std::bad_alloc (OutOfMemory, with a
/// message, where that could be foreseen), and whatever the caller's own functions throw.
/// Everything is then as it was before the call.
///
/// **Threads.** Functions may be called from any number of threads at once. Objects may be shared
/// as long as nobody changes them; Covariance and CrossCovariance may not be shared at all without
/// a lock, reading included.
///
/// **Cost.** O(...) counts operations, shared out among the threads of the Context. Functions
/// without it take constant time. Memory is beside arguments and results, and left out where it is
/// no more than these.
///
/// **Reproducibility.** The same call with the same number of threads gives the same bits.
namespace descramble_fast {

/// Where a caller wants loops to run, instead of on the library's own threads.
class DESCRAMBLE_FAST_EXPORT Executor {
 public:
  virtual ~Executor() = default;
  /// Calls task(0) ... task(count - 1), each at most once, on any threads, that of the caller among
  /// them, and comes back when none of them is running any more, or still to be called. `count` is
  /// the number of threads that the context asks for, or less: tasks share out the work among
  /// themselves, so that all of it is done even where only some of them are called, with the same
  /// results. Tasks throw nothing and wait for nothing. What run throws is ignored, the work then
  /// done by the calling thread, which may do other work meanwhile, and call the library in it.
  /// Several calls may come at once, from different threads.
  virtual void run(int count, const std::function<void(int)>& task) = 0;
};

/// Of what Context::log is told: the driver that solved a problem, or a fallback.
enum class Severity { info, warning };

/// How a call is to run. What it points to must outlive the call; `memory` must outlive what the
/// call returns, too.
struct Context {
  /// Threads to use; 0 takes num_threads().
  int threads = 0;
  /// Called now and then from the calling thread in long work, between steps that can be abandoned.
  /// It cancels the call by throwing; the call then leaves all state as it was. Where it calls the
  /// library itself, on other objects, that call has what its own context leaves open from this.
  std::function<void()> poll = {};
  /// The cudaStream_t that work on a CUDA device is queued on; null: the default stream. Calls
  /// return when their results are there, Covariance::update when its work is queued.
  void* stream = nullptr;
  /// Null: the library's own pool of threads, and LAPACK's where one matrix is large. With an
  /// executor LAPACK keeps to one thread, and no thread is started. (Functions that take no context
  /// may use the pool.)
  Executor* executor = nullptr;
  /// Where arrays of the size of matrices come from, on the CPU; null: operator new. Asked from
  /// several threads at once, so it has to be synchronised. Accumulators take theirs from
  /// MomentsPlace::memory instead. (LAPACK keeps some megabytes a thread of its own.)
  std::pmr::memory_resource* memory = nullptr;
  /// Called from the calling thread with the driver that solved a problem (info) and with every
  /// fallback (warning). The library itself writes nothing anywhere.
  std::function<void(Severity, std::string_view)> log = {};
};

/// The default thread count: the last set_num_threads(), else DESCRAMBLE_FAST_NUM_THREADS, else
/// OMP_NUM_THREADS, else what the CPU affinity and the cgroup quota allow.
DESCRAMBLE_FAST_EXPORT int num_threads();

/// Sets the default for the process, for calls from then on; 0 returns to the environment's. Throws
/// InvalidArgument below 0.
DESCRAMBLE_FAST_EXPORT void set_num_threads(int threads);

/// The way a result came about: device, working precision, driver, and every fallback taken.
struct Route {
  /// Where the work was done, as name(Device) has it.
  std::string device = "cpu";
  /// What it was done in, as name(DType) has it.
  std::string dtype = "float64";
  /// The routine or method that gave the result.
  std::string driver;
  /// What failed before that one, or was done elsewhere, and why.
  std::vector<std::string> fallbacks;
};

/// The instruction sets that this processor can run kernels of, the lowest first, e.g. "baseline".
DESCRAMBLE_FAST_EXPORT std::vector<std::string> instruction_sets();

/// The one in use: the highest, or what DESCRAMBLE_FAST_SIMD names. Throws InvalidArgument where it
/// names none of those.
DESCRAMBLE_FAST_EXPORT std::string instruction_set();

/// Whether the CUDA backend is there, and the device of this number. Loads it on the first call.
DESCRAMBLE_FAST_EXPORT bool cuda_available(int device = 0);

/// Waits for what is on the context's stream of this device. Throws BackendError.
DESCRAMBLE_FAST_EXPORT void synchronize(Device device, const Context& context);

/// What comes on the context's stream from now on waits for what is on `stream`, a cudaStream_t of
/// this device, now. Throws BackendError.
DESCRAMBLE_FAST_EXPORT void wait_for(Device device, void* stream, const Context& context);

/// The device that memory lies on, from its address; the CPU where CUDA does not know it.
DESCRAMBLE_FAST_EXPORT Device device_of(const void* memory);

/// The devices, the driver and the libraries in use, or why there are none.
DESCRAMBLE_FAST_EXPORT std::string cuda_config();

/// What the BLAS/LAPACK in use says of itself, e.g. its version and the core it chose.
DESCRAMBLE_FAST_EXPORT std::string lapack_config();

}  // namespace descramble_fast
