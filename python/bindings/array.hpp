#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"
#include "device_array.hpp"
#include "gil.hpp"

namespace descramble_fast::python {

namespace py = pybind11;

/// A view on a Python object's memory, with the object that keeps that memory alive, and the CUDA
/// stream on which its contents are there. Memory that is let go before that stream has read it is
/// safe from its next user where `in_order`: its library gives it away in the order of the stream.
struct Array {
  ArrayView view;
  py::object owner;
  void* stream = nullptr;
  bool in_order = true;
};

inline constexpr const char* floating_types = "float16, bfloat16, float32 or float64";

/// Views any NumPy array, DLPack producer or (CUDA) array-interface producer, without a copy.
/// Device memory is ready on the stream that its library (torch or CuPy) works on now, or on that
/// of `first`, an array of the same call. Throws TypeError (not an array, an element type that
/// cannot be viewed; `expected` says which can), InvalidArgument (misaligned memory) and
/// BackendError (memory on a device that cannot be used); messages begin with `argument`.
Array view_of(const py::object& object, const char* argument, const char* expected = floating_types,
              const Array* first = nullptr);

std::optional<Array> optional_view_of(const std::optional<py::object>& object, const char* argument,
                                      const char* expected = floating_types,
                                      const Array* first = nullptr);

inline std::optional<ArrayView> view_in(const std::optional<Array>& array) {
  return array ? std::optional(array->view) : std::nullopt;
}

/// A context whose poll raises what Ctrl-C or another signal handler raised, on the array's stream.
Context interruptible();
Context interruptible(const Array& array);

/// Makes the default stream wait until the array's contents are there.
void to_default_stream(const Array& array);

/// A new object for pybind11 to own. A plain pointer: where there is no memory to register an
/// object pybind11 frees it, and then a unique_ptr would do so once more.
template <class T, class... Arguments>
T* owned(Arguments&&... arguments) {
  return new T(std::forward<Arguments>(arguments)...);
}

/// A NumPy array that owns the matrix, of the shape given; no copy.
template <class T>
py::array_t<T> to_numpy(Matrix<T> matrix, std::vector<py::ssize_t> shape) {
  auto kept = std::make_unique<Matrix<T>>(std::move(matrix));
  T* const data = kept->data();
  py::capsule owner(kept.get(), [](void* p) { delete static_cast<Matrix<T>*>(p); });
  kept.release();
  return py::array_t<T>(std::move(shape), data, owner);
}

template <class T>
py::array_t<T> to_numpy(Matrix<T> matrix) {
  const py::ssize_t rows = matrix.rows(), columns = matrix.columns();
  return to_numpy(std::move(matrix), {rows, columns});
}

/// A NumPy array, or a DeviceArray where the matrix lies on a device.
template <class T>
py::object to_python(Matrix<T> matrix, std::vector<py::ssize_t> shape) {
  if (matrix.device().kind == DeviceKind::cpu) return to_numpy(std::move(matrix), std::move(shape));
  const dlpack::DataType type{std::is_floating_point_v<T> ? dlpack::kFloat : dlpack::kInt,
                              8 * sizeof(T), 1};
  return device_array(std::make_shared<Matrix<T>>(std::move(matrix)), type,
                      {shape.begin(), shape.end()});
}

template <class T>
py::object to_python(Matrix<T> matrix) {
  const py::ssize_t rows = matrix.rows(), columns = matrix.columns();
  return to_python(std::move(matrix), {rows, columns});
}

/// The shape of a view, as NumPy wants it.
std::vector<py::ssize_t> shape_of(const ArrayView& view);

/// A copy, of the shape given. Not by a constructor of array_t: those that copy do not notice where
/// there is no memory.
template <class T>
py::array_t<T> vector_to_numpy(std::span<const T> values, std::vector<py::ssize_t> shape) {
  py::array_t<T> out(std::move(shape));
  std::ranges::copy(values, out.mutable_data());
  return out;
}

template <class T>
py::array_t<T> vector_to_numpy(std::span<const T> values) {
  return vector_to_numpy(values, {py::ssize_t(values.size())});
}

void bind_assignment(py::module_& module);
void bind_context(py::module_& module);
void bind_convolution(py::module_& module);
void bind_covariance(py::module_& module);
void bind_device_array(py::module_& module);
void bind_operators(py::module_& module);
void bind_eigh(py::module_& module);
void bind_limits(py::module_& module);
void bind_descrambler(py::module_& module);
void bind_permutation(py::module_& module);

}  // namespace descramble_fast::python
