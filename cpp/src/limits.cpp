#include "descramble_fast/limits.hpp"

#include "call.hpp"
#include "cpu/limits.hpp"
#include "cpu/parallel.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

MachineLimits machine_limits(double seconds, const Context& context) {
  const Call call(context);
  if (!(seconds > 0 && seconds <= 60))
    throw InvalidArgument(
        message("seconds: got ", seconds, ", expected more than 0 and at most 60"));
  const int threads = cpu::threads_of(context);
  const cpu::LimitsKernels& kernels = cpu::limits_kernels();
  const auto peak = [&](const cpu::PeakLoop& loop) {
    if (context.poll) context.poll();
    return cpu::peak_rate(loop, seconds, threads);
  };
  MachineLimits out;
  out.fma_float32 = peak(kernels.fma_single);
  out.fma_float64 = peak(kernels.fma_wide);
  if (kernels.dot_bfloat16.run != nullptr) out.dot_bfloat16 = peak(kernels.dot_bfloat16);
  if (context.poll) context.poll();
  out.bandwidth = cpu::read_rate(kernels, seconds, threads);
  return out;
}

}  // namespace descramble_fast
