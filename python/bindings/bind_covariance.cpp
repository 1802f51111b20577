#include <pybind11/stl.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <string>
#include <string_view>

#include "array.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/error.hpp"
#include "shared.hpp"

namespace descramble_fast::python {

namespace {

using SharedCovariance = Shared<Covariance>;
using SharedCross = Shared<CrossCovariance>;

// Reads something from a locked accumulator with the GIL released.
template <class T, class Use>
auto read(const Shared<T>& shared, Use use) {
  const Released released;
  return shared.locked(use);
}

template <class T>
void merge(Shared<T>& self, const Shared<T>& other) {
  const Released released;
  if (&self == &other) {
    self.locked([](T& value) { value.merge(value); });
  } else {
    self.locked_with(other, [](T& mine, const T& theirs) { mine.merge(theirs); });
  }
}

struct Selection {
  std::optional<Array> mask, weights;
  Selection(const Array& batch, const std::optional<py::object>& mask_object,
            const std::optional<py::object>& weights_object)
      : mask(optional_view_of(mask_object, "mask", "bool; True for rows that count", &batch)),
        weights(optional_view_of(weights_object, "weights", floating_types, &batch)) {}
  RowSelection rows() const { return {view_in(mask), view_in(weights)}; }
};

// After an update, which does not wait: memory that its library may give to others in another order
// than that of the stream must have been read before it is let go.
void keep_until_read(std::initializer_list<const Array*> arrays) {
  for (const Array* array : arrays)
    if (array != nullptr && !array->in_order)
      synchronize(array->view.device(), {.stream = array->stream});
}

const Array* pointer_to(const std::optional<Array>& array) { return array ? &*array : nullptr; }

MomentsPlace place_of(const std::optional<std::string>& device, bool offload) {
  MomentsPlace place{{}, offload};
  if (!device) return place;
  const std::string_view name = *device;
  int index = 0;
  if (name.starts_with("cuda:")) {
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), index);
    if (error != std::errc() || end != name.data() + name.size() || index < 0) index = -1;
  } else if (name != "cpu" && name != "cuda") {
    index = -1;
  }
  if (index < 0)
    throw InvalidArgument("device: got \"" + *device +
                          "\", expected None, \"cpu\", \"cuda\" or \"cuda:<number>\"");
  if (name != "cpu" && !cuda_available(index))
    throw BackendError("device: got \"" + *device + "\", but " + cuda_config());
  place.device = name == "cpu" ? Device{} : Device{DeviceKind::cuda, index};
  return place;
}

template <class T>
std::string device_name(const Shared<T>& self) {
  return read(self, [](const T& c) { return name(c.device()); });
}

py::array_t<double> vector_array(const std::vector<double>& values) {
  return vector_to_numpy(std::span<const double>(values));
}

std::vector<double> vector_of(const py::array_t<double, py::array::c_style>& array) {
  return {array.data(), array.data() + array.size()};
}

}  // namespace

void bind_covariance(py::module_& module) {
  py::class_<SharedCovariance>(module, "Covariance")
      // No constructor: where pybind11 has no memory to register what one makes, it ends the
      // process.
      .def_static(
          "empty",
          [](std::int64_t n, const std::optional<std::string>& device, bool offload) {
            return owned<SharedCovariance>(Covariance(n, place_of(device, offload)));
          },
          py::arg("n_features"), py::arg("device") = py::none(), py::arg("offload") = false)
      .def(
          "update",
          [](SharedCovariance& self, const py::object& batch, const std::optional<py::object>& mask,
             const std::optional<py::object>& weights) {
            const Array array = view_of(batch, "batch");
            const Selection selection(array, mask, weights);
            const Released released;
            self.locked([&](Covariance& c) {
              c.update(array.view, selection.rows(), interruptible(array));
            });
            keep_until_read({&array, pointer_to(selection.mask), pointer_to(selection.weights)});
          },
          py::arg("batch"), py::arg("mask") = py::none(), py::arg("weights") = py::none())
      .def("merge", &merge<Covariance>, py::arg("other"))
      .def_property_readonly("size",
                             [](const SharedCovariance& self) {
                               return read(self, [](const Covariance& c) { return c.size(); });
                             })
      .def_property_readonly("device", &device_name<Covariance>)
      .def_property_readonly("offload",
                             [](const SharedCovariance& self) {
                               return read(self, [](const Covariance& c) { return c.offload(); });
                             })
      .def_property_readonly("count",
                             [](const SharedCovariance& self) {
                               return read(self, [](const Covariance& c) { return c.count(); });
                             })
      .def_property_readonly("weight",
                             [](const SharedCovariance& self) {
                               return read(self, [](const Covariance& c) { return c.weight(); });
                             })
      .def_property_readonly("has_mean",
                             [](const SharedCovariance& self) {
                               return read(self, [](const Covariance& c) { return c.has_mean(); });
                             })
      .def("mean",
           [](const SharedCovariance& self) {
             Matrix<double> mean = read(self, [](const Covariance& c) {
               Matrix<double> mean(1, c.size());
               std::ranges::copy(c.mean(), mean.data());
               return c.device() == Device{} ? std::move(mean) : mean.to(c.device(), {});
             });
             const py::ssize_t n = mean.columns();
             return to_python(std::move(mean), {n});
           })
      .def("second_moment",
           [](const SharedCovariance& self) {
             return to_python(read(self, [](const Covariance& c) { return c.second_moment(); }));
           })
      .def(
          "covariance",
          [](const SharedCovariance& self, double ddof) {
            return to_python(read(self, [&](const Covariance& c) { return c.covariance(ddof); }));
          },
          py::arg("ddof") = 0.0)
      .def(
          "state",
          [](const SharedCovariance& self) {
            const auto state = read(self, [](const Covariance& c) { return c.state(); });
            return py::make_tuple(state.count, state.weight, state.has_mean,
                                  vector_array(state.reference), vector_array(state.offset),
                                  vector_array(state.packed_scatter));
          },
          "Count, weight, whether the mean is known, its reference and offset, packed upper "
          "triangle "
          "of the scatter.")
      .def_static(
          "from_samples",
          [](const py::object& x) {
            const Array array = view_of(x, "x");
            const Released released;
            Covariance c(array.view.columns());
            c.update(array.view, {}, interruptible(array));
            keep_until_read({&array});
            return owned<SharedCovariance>(std::move(c));
          },
          py::arg("x"))
      .def_static(
          "from_state",
          [](std::int64_t count, double weight, bool has_mean,
             const py::array_t<double, py::array::c_style>& reference,
             const py::array_t<double, py::array::c_style>& offset,
             const py::array_t<double, py::array::c_style>& scatter,
             const std::optional<std::string>& device, bool offload) {
            return owned<SharedCovariance>(
                Covariance::from_state({count, weight, has_mean, vector_of(reference),
                                        vector_of(offset), vector_of(scatter)},
                                       place_of(device, offload)));
          },
          py::arg("count"), py::arg("weight"), py::arg("has_mean"), py::arg("reference"),
          py::arg("offset"), py::arg("scatter"), py::arg("device") = py::none(),
          py::arg("offload") = false)
      .def_static(
          "from_moments",
          [](const py::object& second_moment, const std::optional<py::object>& mean,
             double weight) {
            const Array moment = view_of(second_moment, "second_moment");
            const auto mean_array = optional_view_of(mean, "mean", floating_types, &moment);
            const Released released;
            return owned<SharedCovariance>(Covariance::from_moments(
                moment.view, view_in(mean_array), weight, {}, interruptible(moment)));
          },
          py::arg("second_moment"), py::arg("mean"), py::arg("weight"))
      .def_static(
          "combine",
          [](const std::vector<const SharedCovariance*>& covariances,
             const std::vector<double>& weights) {
            const Released released;
            return SharedCovariance::locked_all(
                covariances, [&](const std::vector<const Covariance*>& parts) {
                  return owned<SharedCovariance>(Covariance::combine(parts, weights));
                });
          },
          py::arg("covariances"), py::arg("weights"));

  module.def(
      "moments_memory",
      [](std::int64_t n, std::int64_t rows, const std::string& dtype) {
        for (const DType known : {DType::float16, DType::bfloat16, DType::float32, DType::float64})
          if (dtype == name(known)) {
            const auto [state, update] = moments_memory(n, rows, known);
            return std::pair(state, update);
          }
        throw InvalidArgument("dtype: got \"" + dtype + "\", expected " + floating_types);
      },
      py::arg("n"), py::arg("rows"), py::arg("dtype"),
      "Bytes on a CUDA device: of an accumulator, and beside it while an update runs.");

  py::class_<SharedCross>(module, "CrossCovariance")
      .def_static(
          "empty",
          [](std::int64_t n_x, std::int64_t n_y, const std::optional<std::string>& device,
             bool offload) {
            return owned<SharedCross>(CrossCovariance(n_x, n_y, place_of(device, offload)));
          },
          py::arg("n_x"), py::arg("n_y"), py::arg("device") = py::none(),
          py::arg("offload") = false)
      .def(
          "update",
          [](SharedCross& self, const py::object& x, const py::object& y,
             const std::optional<py::object>& mask, const std::optional<py::object>& weights) {
            const Array array_x = view_of(x, "x");
            const Array array_y = view_of(y, "y", floating_types, &array_x);
            const Selection selection(array_x, mask, weights);
            const Released released;
            self.locked([&](CrossCovariance& c) {
              c.update(array_x.view, array_y.view, selection.rows(), interruptible(array_x));
            });
            keep_until_read(
                {&array_x, &array_y, pointer_to(selection.mask), pointer_to(selection.weights)});
          },
          py::arg("x"), py::arg("y"), py::arg("mask") = py::none(), py::arg("weights") = py::none())
      .def("merge", &merge<CrossCovariance>, py::arg("other"))
      .def_property_readonly("device", &device_name<CrossCovariance>)
      .def_property_readonly("count",
                             [](const SharedCross& self) {
                               return read(self, [](const auto& c) { return c.count(); });
                             })
      .def_property_readonly("weight",
                             [](const SharedCross& self) {
                               return read(self, [](const auto& c) { return c.weight(); });
                             })
      .def("cross_moment",
           [](const SharedCross& self) {
             return to_python(read(self, [](const auto& c) { return c.cross_moment(); }));
           })
      .def(
          "cross_covariance",
          [](const SharedCross& self, double ddof) {
            return to_python(read(self, [&](const auto& c) { return c.cross_covariance(ddof); }));
          },
          py::arg("ddof") = 0.0)
      .def("correlation", [](const SharedCross& self) {
        return to_python(read(self, [](const auto& c) { return c.correlation(); }));
      });
}

}  // namespace descramble_fast::python
