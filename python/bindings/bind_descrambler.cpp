#include "descramble_fast/descrambler.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <string>

#include "array.hpp"
#include "descramble_fast/error.hpp"
#include "shared.hpp"

namespace descramble_fast::python {

namespace {

using SharedCovariance = Shared<Covariance>;

using Map = Matrix<double> (Descrambler::*)(const ArrayView&, const Context&) const;

template <Map method>
py::object mapped(const Descrambler& self, const py::object& object, const char* argument) {
  const Array array = view_of(object, argument);
  Matrix<double> out;
  {
    const Released released;
    out = (self.*method)(array.view, interruptible(array));
  }
  return to_python(std::move(out), shape_of(array.view));
}

Gauge gauge_of(const std::string& name) {
  if (name == "canonical") return Gauge::canonical;
  if (name == "identity") return Gauge::identity;
  throw InvalidArgument("gauge: got \"" + name +
                        "\", expected \"canonical\", \"identity\" or an (n, n) array");
}

template <class Call>
auto without_gil(Call call) {
  const Released released;
  return call();
}

}  // namespace

void bind_descrambler(py::module_& module) {
  py::class_<Descrambler>(module, "Descrambler")
      .def_property_readonly("size", &Descrambler::size)
      .def_property_readonly("device", [](const Descrambler& self) { return name(self.device()); })
      .def_readonly("cost", &Descrambler::cost)
      .def_readonly("initial_cost", &Descrambler::initial_cost)
      .def_readonly("bound", &Descrambler::bound)
      .def_readonly("orthogonality_error", &Descrambler::orthogonality_error)
      // Copies: where pybind11 has no memory to note whom a part keeps alive, it ends the process.
      .def_property_readonly("route", [](const Descrambler& self) { return self.route; })
      .def("matrix",
           [](const Descrambler& self) {
             return to_python(without_gil([&] { return self.matrix(); }));
           })
      .def(
          "transform",
          [](const Descrambler& self, const py::object& x) {
            return mapped<&Descrambler::transform>(self, x, "samples");
          },
          py::arg("samples"))
      .def(
          "inverse_transform",
          [](const Descrambler& self, const py::object& x) {
            return mapped<&Descrambler::inverse_transform>(self, x, "samples");
          },
          py::arg("samples"))
      .def(
          "transform_weight",
          [](const Descrambler& self, const py::object& x) {
            return mapped<&Descrambler::transform_weight>(self, x, "W");
          },
          py::arg("weight"))
      .def(
          "transform_bias",
          [](const Descrambler& self, const py::object& x) {
            return mapped<&Descrambler::transform_bias>(self, x, "bias");
          },
          py::arg("bias"))
      .def(
          "transform_next_weight",
          [](const Descrambler& self, const py::object& x) {
            return mapped<&Descrambler::transform_next_weight>(self, x, "W_next");
          },
          py::arg("weight"));

  py::class_<GaugeReport>(module, "GaugeReport")
      .def_readonly("distance", &GaugeReport::distance)
      .def_readonly("exact", &GaugeReport::exact)
      .def_readonly("iterations", &GaugeReport::iterations);

  py::class_<SmoothnessDescrambler, Descrambler>(module, "SmoothnessDescrambler")
      .def_readonly("cost_error", &SmoothnessDescrambler::cost_error)
      .def_property_readonly("gauge", [](const SmoothnessDescrambler& self) { return self.gauge; })
      .def("eigenvalues",
           [](const SmoothnessDescrambler& self) {
             return vector_to_numpy(std::span<const double>(self.eigenvalues));
           })
      .def(
          "components",
          [](const SmoothnessDescrambler& self) {
            return to_python(without_gil([&] { return self.components.to(self.device(), {}); }));
          },
          "Principal components as rows.")
      .def(
          "modes",
          [](const SmoothnessDescrambler& self) {
            return to_python(without_gil([&] { return self.modes(); }));
          },
          "Modes as rows.")
      .def("blocks", [](const SmoothnessDescrambler& self) {
        std::vector<std::pair<std::int64_t, std::int64_t>> out;
        for (const Block& block : self.blocks) out.emplace_back(block.begin, block.end);
        return out;
      });

  py::class_<MatrixDescrambler, Descrambler>(module, "MatrixDescrambler")
      .def_readonly("stationarity", &MatrixDescrambler::stationarity)
      .def_readonly("iterations", &MatrixDescrambler::iterations);

  module.def(
      "descramble_many",
      [](const std::vector<const SharedCovariance*>& covariances, const std::vector<Operator>& ops,
         bool center, const py::object& gauge, std::optional<std::int64_t> k) {
        std::optional<Array> reference;
        DescrambleOptions options{center, Gauge::reference, {}, k};
        if (py::isinstance<py::str>(gauge)) {
          options.gauge = gauge_of(gauge.cast<std::string>());
        } else {
          reference = view_of(gauge, "gauge");
          to_default_stream(*reference);  // the moments may lie on several devices
          options.reference = reference->view;
        }
        std::vector<SmoothnessDescrambler> found = without_gil([&] {
          return SharedCovariance::locked_all(
              covariances, [&](const std::vector<const Covariance*>& parts) {
                return descramble_many(parts, ops, options, interruptible());
              });
        });
        py::typing::List<SmoothnessDescrambler> out;
        for (SmoothnessDescrambler& d : found)
          out.append(py::cast(owned<SmoothnessDescrambler>(std::move(d)),
                              py::return_value_policy::take_ownership));
        return out;
      },
      py::arg("covariances"), py::arg("operators"), py::arg("center"), py::arg("gauge"),
      py::arg("k"));

  module.def("descramble_memory", &descramble_memory, py::arg("n"), py::arg("k"));

  module.def(
      "preactivation_moment",
      [](const py::object& weight, const std::optional<py::object>& bias,
         const std::optional<py::object>& input_second_moment,
         const std::optional<py::object>& input_mean) {
        const Array w = view_of(weight, "W");
        const auto b = optional_view_of(bias, "bias", floating_types, &w);
        const auto s =
            optional_view_of(input_second_moment, "input_second_moment", floating_types, &w);
        const auto m = optional_view_of(input_mean, "input_mean", floating_types, &w);
        return without_gil([&] {
          return owned<SharedCovariance>(
              preactivation_moment(w.view, view_in(b), view_in(s), view_in(m), interruptible(w)));
        });
      },
      py::arg("weight"), py::arg("bias"), py::arg("input_second_moment"), py::arg("input_mean"));

  module.def(
      "descramble_trace",
      [](const py::object& weight) {
        const Array w = view_of(weight, "W");
        return without_gil(
            [&] { return owned<MatrixDescrambler>(descramble_trace(w.view, interruptible(w))); });
      },
      py::arg("weight"));
  module.def(
      "descramble_diagonal",
      [](const py::object& weight) {
        const Array w = view_of(weight, "W");
        return without_gil([&] {
          return owned<MatrixDescrambler>(descramble_diagonal(w.view, interruptible(w)));
        });
      },
      py::arg("weight"));
}

}  // namespace descramble_fast::python
