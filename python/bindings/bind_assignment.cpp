#include "descramble_fast/assignment.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "array.hpp"

namespace descramble_fast::python {

namespace {

// Columns, cost, row duals, column duals, gap, violation, route.
using Assigned =
    py::typing::Tuple<py::array_t<std::int64_t>, py::array_t<double>, py::array_t<double>,
                      py::array_t<double>, py::array_t<double>, py::array_t<double>, Route>;

Assigned assigned(LinearAssignment result, const ArrayView& cost) {
  std::vector<py::ssize_t> batch(cost.shape().begin(), cost.shape().end() - 2);
  const auto with = [&](std::int64_t last) {
    std::vector<py::ssize_t> shape = batch;
    shape.push_back(last);
    return shape;
  };
  const auto per_problem = [&](const std::vector<double>& numbers) {
    return vector_to_numpy(std::span<const double>(numbers)).reshape(batch);
  };
  const std::int64_t n = result.columns.columns(), m = result.column_duals.columns();
  return py::make_tuple(to_numpy(std::move(result.columns), with(n)), per_problem(result.cost),
                        to_numpy(std::move(result.row_duals), with(n)),
                        to_numpy(std::move(result.column_duals), with(m)), per_problem(result.gap),
                        per_problem(result.violation), result.route);
}

}  // namespace

void bind_assignment(py::module_& module) {
  module.def(
      "linear_assignment",
      [](const py::object& cost, bool maximize, const std::optional<py::object>& initial_duals) {
        const Array array = view_of(cost, "cost");
        const auto duals = optional_view_of(initial_duals, "initial_duals");
        LinearAssignment result;
        {
          const py::gil_scoped_release release;
          result = linear_assignment(array.view, {maximize, view_in(duals)}, interruptible());
        }
        return assigned(std::move(result), array.view);
      },
      py::arg("cost"), py::arg("maximize") = false, py::arg("initial_duals") = py::none(),
      "Columns, cost, row duals, column duals, gap, violation, route.");
}

}  // namespace descramble_fast::python
