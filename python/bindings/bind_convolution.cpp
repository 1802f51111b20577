#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "array.hpp"
#include "descramble_fast/convolution.hpp"

namespace descramble_fast::python {

void bind_convolution(py::module_& module) {
  py::class_<ConvolutionDescrambler, Descrambler>(module, "ConvolutionDescrambler")
      .def_property_readonly("operator", [](const ConvolutionDescrambler& self) { return self.op; })
      .def_readonly("cost_error", &ConvolutionDescrambler::cost_error)
      .def("eigenvalues",
           [](const ConvolutionDescrambler& self) {
             return vector_to_numpy(std::span<const double>(self.eigenvalues));
           })
      .def("blocks", [](const ConvolutionDescrambler& self) {
        std::vector<std::pair<std::int64_t, std::int64_t>> out;
        for (const Block& block : self.blocks) out.emplace_back(block.begin, block.end);
        return out;
      });

  module.def(
      "descramble_conv",
      [](const py::object& weight, const std::vector<std::int64_t>& spatial_shape,
         const std::optional<Operator>& op) {
        const Array w = view_of(weight, "weight");
        const Released released;
        return owned<ConvolutionDescrambler>(
            descramble_conv(w.view, spatial_shape, op, interruptible(w)));
      },
      py::arg("weight"), py::arg("spatial_shape"), py::arg("operator"));
}

}  // namespace descramble_fast::python
