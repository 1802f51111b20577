#include "descramble_fast/assignment.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "array.hpp"
#include "search.hpp"

namespace descramble_fast::python {

namespace {

// Columns, cost, row duals, column duals, gap, violation, route.
using Assigned = py::typing::Tuple<py::object, py::array_t<double>, py::object, py::object,
                                   py::array_t<double>, py::array_t<double>, Route>;

Assigned assigned(LinearAssignment result, const ArrayView& cost) {
  std::vector<py::ssize_t> batch(cost.shape().begin(), cost.shape().end() - 2);
  const auto with = [&](std::int64_t last) {
    std::vector<py::ssize_t> shape = batch;
    shape.push_back(last);
    return shape;
  };
  const auto per_problem = [&](const std::vector<double>& numbers) {
    return vector_to_numpy(std::span<const double>(numbers), batch);
  };
  const std::int64_t n = result.columns.columns(), m = result.column_duals.columns();
  return py::make_tuple(to_python(std::move(result.columns), with(n)), per_problem(result.cost),
                        to_python(std::move(result.row_duals), with(n)),
                        to_python(std::move(result.column_duals), with(m)), per_problem(result.gap),
                        per_problem(result.violation), result.route);
}

// Columns, cost, initial cost, steps, why it stopped, route.
using Quadratic =
    py::typing::Tuple<py::array_t<std::int64_t>, double, double, std::int64_t, py::str, Route>;

}  // namespace

void bind_assignment(py::module_& module) {
  py::class_<SearchProgress>(module, "SearchProgress")
      .def_readonly("seconds", &SearchProgress::seconds)
      .def_readonly("step", &SearchProgress::step)
      .def_readonly("steps", &SearchProgress::steps)
      .def_readonly("cost", &SearchProgress::cost);

  module.def(
      "linear_assignment",
      [](const py::object& cost, bool maximize, const std::optional<py::object>& initial_duals,
         bool on_device) {
        const Array array = view_of(cost, "cost");
        const auto duals = optional_view_of(initial_duals, "initial_duals", floating_types, &array);
        LinearAssignment result;
        {
          const Released released;
          result = linear_assignment(array.view, {maximize, view_in(duals), on_device},
                                     interruptible(array));
        }
        return assigned(std::move(result), array.view);
      },
      py::arg("cost"), py::arg("maximize") = false, py::arg("initial_duals") = py::none(),
      py::arg("on_device") = false,
      "Columns, cost, row duals, column duals, gap, violation, route.");

  module.def(
      "quadratic_assignment",
      [](const py::object& a, const py::object& b, bool maximize,
         std::vector<std::pair<std::int64_t, std::int64_t>> partial_match,
         std::optional<std::vector<std::int64_t>> initial, std::uint64_t seed,
         std::int64_t restarts, std::optional<double> time_limit,
         const py::object& callback) -> Quadratic {
        const Array array_a = view_of(a, "A");
        const Array array_b = view_of(b, "B", floating_types, &array_a);
        Search search(seed, restarts, time_limit, callback);
        QuadraticAssignment r;
        {
          const Released released;
          r = quadratic_assignment(
              array_a.view, array_b.view,
              {maximize, std::move(partial_match), std::move(initial), search.options},
              search.context(array_a.stream));
        }
        return py::make_tuple(vector_to_numpy(std::span<const std::int64_t>(r.columns)), r.cost,
                              r.initial_cost, r.steps, search.stopped(r.stopped), r.route);
      },
      py::arg("a"), py::arg("b"), py::arg("maximize"), py::arg("partial_match"), py::arg("initial"),
      py::arg("seed"), py::arg("restarts"), py::arg("time_limit"), py::arg("callback"),
      "Columns, cost, initial cost, steps, why it stopped, route.");
}

}  // namespace descramble_fast::python
