#include "array.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <iterator>
#include <sstream>
#include <string>

#include "descramble_fast/error.hpp"
#include "dlpack.hpp"

namespace descramble_fast::python {

namespace {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

// What was raised, without the traceback that `what` adds.
std::string reason(const py::error_already_set& error) {
  return text(std::string(py::str(error.type().attr("__name__"))), ": ",
              std::string(py::str(error.value())));
}

// What a producer's own methods raise is told of the argument, but for signals and memory.
template <class View>
Array viewed(const char* argument, const View& view) {
  try {
    return view();
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
    throw TypeError(text(argument, ": its memory cannot be viewed: ", reason(error)));
  }
}

// What a producer says of itself, `what`, as the type that its protocol prescribes.
template <class T>
T said(const py::object& value, const char* argument, const char* what) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw TypeError(text(argument, ": its ", what, " is ", std::string(py::repr(value))));
  }
}

DType numpy_dtype(const py::array& array, const char* argument, const char* expected) {
  const py::dtype dtype = array.dtype();
  if (dtype.byteorder() == '=') {
    // NumPy's own numbers for these types: names cost more than a small problem.
    if (dtype.num() == 12) return DType::float64;
    if (dtype.num() == 11) return DType::float32;
  }
  const std::string dtype_name = py::str(dtype.attr("name"));
  if (!dtype.attr("isnative").cast<bool>())
    throw TypeError(text(argument, ": got non-native byte order ", std::string(py::str(dtype)),
                         "; convert with .astype(", argument, ".dtype.newbyteorder(\"=\"))"));
  for (const DType known :
       {DType::boolean, DType::float16, DType::bfloat16, DType::float32, DType::float64})
    if (dtype_name == name(known)) return known;
  throw TypeError(text(argument, ": got dtype ", dtype_name, ", expected ", expected));
}

Array from_numpy(const py::array& array, const char* argument, const char* expected) {
  if (py::hasattr(array, "mask") &&
      py::isinstance(array, py::module_::import("numpy").attr("ma").attr("MaskedArray")))
    throw TypeError(text(argument, ": got a masked array; pass its data, and its mask as mask="));
  const DType dtype = numpy_dtype(array, argument, expected);
  const auto size = size_of(dtype);
  if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0)
    throw InvalidArgument(
        text(argument, ": its memory is not aligned for ", name(dtype), "; pass a copy"));
  std::vector<std::int64_t> shape, strides;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    shape.push_back(array.shape(i));
    // Of an axis that is never stepped along, NumPy leaves the stride undefined.
    const bool stepped = array.size() > 0 && array.shape(i) > 1;
    if (stepped && array.strides(i) % size != 0)
      throw InvalidArgument(text(argument, ": stride of ", array.strides(i),
                                 " bytes is no multiple of its ", size, "-byte elements"));
    strides.push_back(stepped ? array.strides(i) / size : 0);
  }
  // A contiguous last axis keeps its unit stride, for the sake of the fast paths.
  if (!strides.empty() && strides.back() == 0 && shape.back() == 1) strides.back() = 1;
  return {ArrayView(array.data(), dtype, shape, strides), array};
}

DType dlpack_dtype(const dlpack::DataType& type, const char* argument, const char* expected) {
  if (type.lanes == 1) {
    if (type.code == dlpack::kBool && type.bits == 8) return DType::boolean;
    if (type.code == dlpack::kBfloat && type.bits == 16) return DType::bfloat16;
    if (type.code == dlpack::kFloat && type.bits == 16) return DType::float16;
    if (type.code == dlpack::kFloat && type.bits == 32) return DType::float32;
    if (type.code == dlpack::kFloat && type.bits == 64) return DType::float64;
  }
  const char* const names[] = {"int", "uint", "float", nullptr, "bfloat", "complex", "bool"};
  const char* const known = type.code < std::size(names) ? names[type.code] : nullptr;
  throw TypeError(
      known != nullptr && type.lanes == 1
          ? text(argument, ": got dtype ", known, int(type.bits), ", expected ", expected)
          : text(argument, ": got DLPack type code ", int(type.code), " of ", int(type.bits),
                 " bits, expected ", expected));
}

[[noreturn]] void refuse_device(const char* argument, const std::string& where,
                                const std::string& why) {
  throw BackendError(text(argument, ": lies on ", where, ", but ", why));
}

Device cuda_device(int index, const char* argument) {
  if (!cuda_available(index))
    refuse_device(argument, text("cuda:", index),
                  cuda_config() + "; move the array to the CPU first");
  return {DeviceKind::cuda, index};
}

struct Stream {
  void* handle = nullptr;
  bool known = false;
};

// The stream that an array's library works on now, and gives memory away in the order of; the
// default stream where that is unknown.
Stream stream_of(const py::object& object, int device) {
  // (An array of ours is given back once the whole device has come so far.)
  if (py::isinstance<DeviceArray>(object)) return {nullptr, true};
  for (const py::handle type : py::type::of(object).attr("__mro__")) {  // of a subclass, too
    const std::string module = py::str(type.attr("__module__"));
    const std::string library = module.substr(0, module.find('.'));
    if (library != "torch" && library != "cupy") continue;
    const py::object cuda = py::module_::import(library.c_str()).attr("cuda");
    const py::object handle = library == "torch"
                                  ? cuda.attr("current_stream")(device).attr("cuda_stream")
                                  : cuda.attr("get_current_stream")(device).attr("ptr");
    return {reinterpret_cast<void*>(handle.cast<std::uintptr_t>()), true};
  }
  return {};
}

// Throws for memory that no kernel can read; a device would not survive the attempt.
Array checked(Array array, const char* argument) {
  const ArrayView& view = array.view;
  if (view.size() > 0 && view.data() == nullptr)
    throw InvalidArgument(text(argument, ": has ", view.size(), " elements, but no memory"));
  if (reinterpret_cast<std::uintptr_t>(view.data()) % std::uintptr_t(size_of(view.dtype())) != 0)
    throw InvalidArgument(
        text(argument, ": its memory is not aligned for ", name(view.dtype()), "; pass a copy"));
  return array;
}

// As DLPack and the array interface number it: 0 is ambiguous, 1 the legacy default stream.
std::uintptr_t stream_number(void* stream) {
  return stream == nullptr ? 1 : reinterpret_cast<std::uintptr_t>(stream);
}

py::object dlpack_capsule(const py::object& object, const py::dict& options) {
  try {
    return object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0), **options);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    return object.attr("__dlpack__")(**options);  // a producer older than DLPack 1.0
  }
}

Array from_dlpack(py::object object, const char* argument, const char* expected,
                  const Array* first) {
  const auto [type, index] = said<std::pair<std::int32_t, std::int32_t>>(
      object.attr("__dlpack_device__")(), argument, "__dlpack_device__()");
  Device device;
  void* stream = nullptr;
  bool in_order = true;
  py::dict options;
  if (type == dlpack::kCuda || type == dlpack::kCudaManaged) {
    device = cuda_device(index, argument);
    const Stream own = stream_of(object, index);
    stream = first != nullptr ? first->stream : own.handle;
    in_order = own.known && stream == own.handle;
    options["stream"] = stream_number(stream);
  } else if (type != dlpack::kCpu && type != dlpack::kCudaHost) {
    refuse_device(argument, text("a device of DLPack type ", type),
                  "only the CPU and CUDA are known here; move the array to the CPU first");
  }
  if (py::hasattr(object, "fake_mode"))
    throw TypeError(text(argument, ": got a ", type_name(object), ", which has no memory"));
  // torch exports only tensors without history; reading needs none.
  if (py::hasattr(object, "requires_grad") && py::hasattr(object, "detach") &&
      said<bool>(object.attr("requires_grad"), argument, "requires_grad"))
    object = object.attr("detach")();
  // torch exports the memory of a lazily negated tensor without its sign.
  if (py::hasattr(object, "resolve_neg")) object = object.attr("resolve_neg")();

  // The capsule is left unconsumed: while it lives the memory does, and its destructor frees it.
  py::object capsule = dlpack_capsule(object, options);
  const dlpack::Tensor* tensor = nullptr;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* managed = static_cast<const dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->major > 1)
      throw TypeError(text(argument, ": got DLPack ", managed->major, ".", managed->minor,
                           ", expected at most major version 1"));
    tensor = &managed->tensor;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    tensor =
        &static_cast<const dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))
             ->tensor;
  } else {
    throw TypeError(text(argument, ": its __dlpack__ gave no DLPack capsule"));
  }
  const DType dtype = dlpack_dtype(tensor->dtype, argument, expected);
  if (tensor->ndim < 0 || (tensor->ndim > 0 && tensor->shape == nullptr))
    throw TypeError(text(argument, ": its DLPack capsule has ", tensor->ndim, " axes and ",
                         tensor->shape == nullptr ? "no" : "a", " shape"));
  const std::span<const std::int64_t> shape(tensor->shape, std::size_t(tensor->ndim));
  // (Without memory there is none at an offset either.)
  const void* const data = tensor->data == nullptr
                               ? nullptr
                               : static_cast<const std::byte*>(tensor->data) + tensor->byte_offset;
  const ArrayView view =
      tensor->strides == nullptr
          ? ArrayView(data, dtype, shape, device)
          : ArrayView(data, dtype, shape, {tensor->strides, std::size_t(tensor->ndim)}, device);
  return checked({view, std::move(capsule), stream, in_order}, argument);
}

DType interface_dtype(const std::string& typestr, const char* argument, const char* expected) {
  if (typestr == "|b1") return DType::boolean;
  if (typestr == "<f2") return DType::float16;
  if (typestr == "<f4") return DType::float32;
  if (typestr == "<f8") return DType::float64;
  throw TypeError(text(argument, ": got element type ", typestr, ", expected ", expected));
}

Array from_cuda_interface(const py::object& object, const char* argument, const char* expected,
                          const Array* first) {
  const py::object given = object.attr("__cuda_array_interface__");
  if (!py::isinstance<py::dict>(given))
    throw TypeError(text(argument, ": its __cuda_array_interface__ is ",
                         std::string(py::repr(given)), ", expected a dictionary"));
  const auto interface = py::reinterpret_borrow<py::dict>(given);
  if (!cuda_available())
    refuse_device(argument, "a CUDA device", cuda_config() + "; move the array to the CPU first");
  const auto entry = [&]<class T>(const char* key, T) {
    if (!interface.contains(key))
      throw TypeError(text(argument, ": its __cuda_array_interface__ lacks ", key));
    return said<T>(interface[key], argument, key);
  };
  const DType dtype = interface_dtype(entry("typestr", std::string()), argument, expected);
  const auto shape = entry("shape", std::vector<std::int64_t>());
  const auto data =
      reinterpret_cast<const void*>(entry("data", std::pair<std::uintptr_t, bool>()).first);
  // (An empty array may have no address.)
  const Device device = data == nullptr ? Device{DeviceKind::cuda, 0} : device_of(data);
  if (device.kind != DeviceKind::cuda)
    throw InvalidArgument(
        text(argument, ": its __cuda_array_interface__ points at no CUDA memory"));
  if (interface.contains("mask") && !interface["mask"].is_none())
    throw TypeError(text(argument, ": got a masked array; pass its data, and its mask as mask="));

  void* stream = first != nullptr ? first->stream : stream_of(object, device.index).handle;
  if (interface.contains("stream") && !interface["stream"].is_none()) {
    const auto number = entry("stream", std::uintptr_t());
    void* const producer = number == 1 ? nullptr : reinterpret_cast<void*>(number);
    if (first == nullptr)
      stream = producer;
    else if (producer != stream)
      wait_for(device, producer, {.stream = stream});
  }
  if (!interface.contains("strides") || interface["strides"].is_none())
    return checked({ArrayView(data, dtype, shape, device), object, stream, false}, argument);
  auto strides = entry("strides", std::vector<std::int64_t>());
  for (std::int64_t& stride : strides) {
    if (stride % size_of(dtype) != 0)
      throw InvalidArgument(text(argument, ": stride of ", stride, " bytes is no multiple of its ",
                                 size_of(dtype), "-byte elements"));
    stride /= size_of(dtype);
  }
  return checked({ArrayView(data, dtype, shape, strides, device), object, stream, false}, argument);
}

}  // namespace

Array view_of(const py::object& object, const char* argument, const char* expected,
              const Array* first) {
  if (py::isinstance<py::array>(object))
    return from_numpy(py::reinterpret_borrow<py::array>(object), argument, expected);
  if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__"))
    return viewed(argument, [&] { return from_dlpack(object, argument, expected, first); });
  if (py::hasattr(object, "__cuda_array_interface__"))
    return viewed(argument, [&] { return from_cuda_interface(object, argument, expected, first); });
  if (py::hasattr(object, "__array_interface__"))
    return viewed(argument, [&] {
      const py::array array = py::module_::import("numpy").attr("asarray")(object);
      return from_numpy(array, argument, expected);
    });
  throw TypeError(text(argument, ": got ", type_name(object),
                       ", expected a NumPy array, a torch tensor or another DLPack or "
                       "array-interface producer"));
}

std::optional<Array> optional_view_of(const std::optional<py::object>& object, const char* argument,
                                      const char* expected, const Array* first) {
  if (!object || object->is_none()) return std::nullopt;
  return view_of(*object, argument, expected, first);
}

Context interruptible() {
  Context context;
  context.poll = [] {
    with_python([] {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    });
  };
  return context;
}

Context interruptible(const Array& array) {
  Context context = interruptible();
  context.stream = array.stream;
  return context;
}

void to_default_stream(const Array& array) {
  if (array.view.device().kind == DeviceKind::cuda) wait_for(array.view.device(), array.stream, {});
}

std::vector<py::ssize_t> shape_of(const ArrayView& view) {
  return {view.shape().begin(), view.shape().end()};
}

}  // namespace descramble_fast::python
