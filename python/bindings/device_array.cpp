#include "device_array.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <string>
#include <utility>

#include "array.hpp"
#include "descramble_fast/error.hpp"

namespace descramble_fast::python {

namespace {

using Bytes = Matrix<unsigned char>;
using Shape = py::typing::Tuple<int, py::ellipsis>;

// What a consumer of DLPack holds: it keeps the memory, and the numbers that describe it, alive.
template <class Managed>
struct Export {
  Managed managed{};
  std::shared_ptr<void> memory;
  std::vector<std::int64_t> shape, strides;

  static void destroy(Managed* managed) { delete static_cast<Export*>(managed->manager); }
};

template <class Managed>
py::object capsule_of(const DeviceArray& array, const char* name) {
  auto out = std::make_unique<Export<Managed>>();
  out->memory = array.memory();
  out->shape = array.shape();
  out->strides = array.strides();
  dlpack::Tensor& tensor = out->managed.tensor;
  tensor.data = array.data();
  tensor.device = {dlpack::kCuda, array.device().index};
  tensor.ndim = std::int32_t(out->shape.size());
  tensor.dtype = array.type();
  tensor.shape = out->shape.data();
  tensor.strides = out->strides.data();
  out->managed.manager = out.get();
  out->managed.deleter = &Export<Managed>::destroy;
  if constexpr (requires { out->managed.major; }) out->managed.major = 1;
  PyObject* const capsule = PyCapsule_New(&out->managed, name, [](PyObject* self) {
    // A consumer renames the capsule, and calls the deleter itself.
    for (const char* unused : {"dltensor", "dltensor_versioned"})
      if (PyCapsule_IsValid(self, unused)) {
        auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(self, unused));
        managed->deleter(managed);
      }
  });
  if (capsule == nullptr) throw py::error_already_set();
  out.release();
  return py::reinterpret_steal<py::object>(capsule);
}

// Of an element, as NumPy's array interface spells it; none spells bfloat16.
std::string typestr(const dlpack::DataType& type) {
  const char kind = type.code == dlpack::kBool    ? 'b'
                    : type.code == dlpack::kInt   ? 'i'
                    : type.code == dlpack::kFloat ? 'f'
                                                  : 'V';
  return std::string(type.bits == 8 ? "|" : "<") + kind + std::to_string(type.bits / 8);
}

std::string dtype_name(const dlpack::DataType& type) {
  if (type.code == dlpack::kBool) return "bool";
  const char* const kind = type.code == dlpack::kBfloat  ? "bfloat"
                           : type.code == dlpack::kFloat ? "float"
                                                         : "int";
  return kind + std::to_string(type.bits);
}

dlpack::DataType type_of(const py::array& array) {
  if (!array.dtype().attr("isnative").cast<bool>())
    throw TypeError("array: got non-native byte order " + std::string(py::str(array.dtype())));
  const std::string name = py::str(array.dtype().attr("name"));
  const auto bits = std::uint8_t(8 * array.itemsize());
  if (name == "bool") return {dlpack::kBool, bits, 1};
  if (name == "bfloat16") return {dlpack::kBfloat, bits, 1};
  if (name == "float16" || name == "float32" || name == "float64") return {dlpack::kFloat, bits, 1};
  if (name == "int64") return {dlpack::kInt, bits, 1};
  throw TypeError("array: got dtype " + name + ", expected bool, int64 or " + floating_types);
}

std::int64_t itemsize(const DeviceArray& array) { return array.type().bits / 8; }

py::tuple byte_strides(const DeviceArray& array) {
  std::vector<std::int64_t> strides = array.strides();
  for (std::int64_t& stride : strides) stride *= itemsize(array);
  return py::tuple(py::cast(strides));
}

DeviceArray from_numpy(const py::array& array, int device) {
  const dlpack::DataType type = type_of(array);
  if (!cuda_available(device))
    throw BackendError("device: got " + std::to_string(device) + ", but " + cuda_config());
  const py::array contiguous =
      py::module_::import("numpy").attr("ascontiguousarray")(array).cast<py::array>();
  const auto bytes = std::int64_t(contiguous.nbytes());
  const void* const from = contiguous.data();
  const auto memory = [&] {
    const Released released;
    const auto there = std::make_shared<Bytes>(1, bytes, Device{DeviceKind::cuda, device});
    copy_between(there->device(), there->data(), {}, from, bytes, {});
    return there;
  }();
  return {memory, type, {array.shape(), array.shape() + array.ndim()}};
}

py::object to_host(const DeviceArray& self) {
  const std::string name = dtype_name(self.type());
  const py::object dtype = name == "bfloat16" ? py::module_::import("ml_dtypes").attr(name.c_str())
                                              : py::object(py::str(name));
  const py::module_ numpy = py::module_::import("numpy");
  py::array memory = numpy.attr("empty")(self.bytes() / itemsize(self), py::arg("dtype") = dtype)
                         .cast<py::array>();
  void* const to = memory.mutable_data();
  {
    const Released released;
    copy_between({}, to, self.device(), self.data(), self.bytes(), {});
  }
  return numpy.attr("ndarray")(self.shape(), dtype, memory, 0, byte_strides(self));
}

}  // namespace

std::int64_t DeviceArray::bytes() const {
  std::int64_t bytes = type_.bits / 8;
  for (const std::int64_t length : shape_) bytes *= length;
  return bytes;
}

DeviceArray DeviceArray::swapaxes(std::int64_t a, std::int64_t b) const {
  const auto rank = std::int64_t(shape_.size());
  for (std::int64_t* axis : {&a, &b}) {
    if (*axis < -rank || *axis >= rank)
      throw InvalidArgument("axis: got " + std::to_string(*axis) + " of " + std::to_string(rank));
    if (*axis < 0) *axis += rank;
  }
  DeviceArray out = *this;
  std::swap(out.shape_[std::size_t(a)], out.shape_[std::size_t(b)]);
  std::swap(out.strides_[std::size_t(a)], out.strides_[std::size_t(b)]);
  return out;
}

void bind_device_array(py::module_& module) {
  py::class_<DeviceArray>(module, "DeviceArray",
                          "An array in CUDA memory, for any library that takes DLPack or "
                          "the CUDA array interface.")
      .def_static("from_numpy", &from_numpy, py::arg("array"), py::arg("device") = 0,
                  "A copy of a NumPy array on a device.")
      .def("numpy", &to_host, "A copy as a NumPy array.")
      .def("swapaxes", &DeviceArray::swapaxes, py::arg("axis1"), py::arg("axis2"))
      .def_property_readonly("T", [](const DeviceArray& self) { return self.swapaxes(-2, -1); })
      .def_property_readonly(
          "shape",
          [](const DeviceArray& self) -> Shape { return py::tuple(py::cast(self.shape())); })
      .def_property_readonly("ndim", [](const DeviceArray& self) { return self.shape().size(); })
      .def_property_readonly("dtype",
                             [](const DeviceArray& self) { return dtype_name(self.type()); })
      .def_property_readonly("device", [](const DeviceArray& self) { return name(self.device()); })
      .def("__repr__",
           [](const DeviceArray& self) {
             return "<DeviceArray of shape " +
                    std::string(py::str(py::tuple(py::cast(self.shape())))) + ", " +
                    dtype_name(self.type()) + ", on " + name(self.device()) + ">";
           })
      .def("__dlpack_device__",
           [](const DeviceArray& self) {
             return py::make_tuple(int(dlpack::kCuda), self.device().index);
           })
      .def(
          "__dlpack__",
          // What is in here was finished before anybody got hold of it: no stream has to wait.
          [](const DeviceArray& self, const py::object&, const py::object& max_version,
             const py::object& dl_device, const py::object& copy) {
            if (!dl_device.is_none() &&
                !dl_device.equal(py::make_tuple(int(dlpack::kCuda), self.device().index)))
              throw py::buffer_error("dl_device: only its own device");
            if (!copy.is_none() && py::bool_(copy)) throw py::buffer_error("copy: not made here");
            const bool versioned =
                !max_version.is_none() && max_version.cast<py::tuple>()[0].cast<int>() >= 1;
            return versioned
                       ? capsule_of<dlpack::ManagedTensorVersioned>(self, "dltensor_versioned")
                       : capsule_of<dlpack::ManagedTensor>(self, "dltensor");
          },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
          py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def_property_readonly(
          "__cuda_array_interface__",
          [](const DeviceArray& self) -> py::typing::Dict<py::str, py::object> {
            using namespace py::literals;
            return py::dict(
                "shape"_a = py::tuple(py::cast(self.shape())), "typestr"_a = typestr(self.type()),
                "data"_a = py::make_tuple(std::uintptr_t(self.data()), false),
                "strides"_a = byte_strides(self), "stream"_a = py::none(), "version"_a = 3);
          });
}

}  // namespace descramble_fast::python
