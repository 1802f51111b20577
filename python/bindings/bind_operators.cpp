#include "descramble_fast/operators.hpp"

#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "array.hpp"
#include "descramble_fast/error.hpp"

namespace descramble_fast::python {

namespace {

template <auto Method>
py::object mapped(const Operator& self, const py::object& x) {
  const Array array = view_of(x, "x");
  Matrix<double> out;
  {
    const Released released;
    out = (self.*Method)(array.view, interruptible(array));
  }
  return to_python(std::move(out), shape_of(array.view));
}

Boundary boundary_of(const std::string& name) {
  if (name == "periodic") return Boundary::periodic;
  if (name == "path") return Boundary::path;
  throw InvalidArgument("boundary: got \"" + name + "\", expected \"periodic\" or \"path\"");
}

}  // namespace

void bind_operators(py::module_& module) {
  py::class_<Operator>(module, "Operator")
      .def_static("fourier", &Operator::fourier, py::arg("n"), py::arg("order"))
      .def_static(
          "difference",
          [](std::int64_t n, int order, const std::string& boundary) {
            return Operator::difference(n, order, boundary_of(boundary));
          },
          py::arg("n"), py::arg("order"), py::arg("boundary"))
      .def_static("central_difference", &Operator::central_difference, py::arg("n"))
      .def_static("grid", &Operator::grid, py::arg("axes"))
      .def_static(
          "from_matrix",
          [](const py::object& matrix) {
            const Array array = view_of(matrix, "matrix");
            const Released released;
            return Operator::from_matrix(array.view, interruptible(array));
          },
          py::arg("matrix"))
      .def_property_readonly("size", &Operator::size)
      .def_property_readonly("name", &Operator::name)
      .def("eigenvalues", [](const Operator& self) { return vector_to_numpy(self.eigenvalues()); })
      .def("blocks",
           [](const Operator& self) {
             std::vector<std::pair<std::int64_t, std::int64_t>> out;
             for (const Block& block : self.blocks()) out.emplace_back(block.begin, block.end);
             return out;
           })
      .def(
          "modes", [](const Operator& self) { return to_numpy(self.modes()); }, "Modes as rows.")
      .def("apply", &mapped<&Operator::applied>, py::arg("x"))
      .def("analyze", &mapped<&Operator::analyzed>, py::arg("x"))
      .def("synthesize", &mapped<&Operator::synthesized>, py::arg("x"));
}

}  // namespace descramble_fast::python
