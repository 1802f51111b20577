#include "descramble_fast/limits.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <optional>

#include "array.hpp"

namespace descramble_fast::python {

void bind_limits(py::module_& module) {
  module.def(
      "machine_limits",
      [](int threads, double seconds) -> py::typing::Dict<py::str, std::optional<double>> {
        MachineLimits limits;
        {
          const Released released;
          Context context = interruptible();
          context.threads = threads;
          limits = machine_limits(seconds, context);
        }
        py::dict out;
        out["fma_float32"] = limits.fma_float32;
        out["fma_float64"] = limits.fma_float64;
        out["dot_bfloat16"] = limits.dot_bfloat16;
        out["bandwidth"] = limits.bandwidth;
        return out;
      },
      py::arg("threads") = 0, py::arg("seconds") = 0.2,
      "Flop/s of multiply-adds and of bfloat16 dot products (None where there is no instruction\n"
      "for them), and bytes/s read from memory, each measured for about that time.");
}

}  // namespace descramble_fast::python
