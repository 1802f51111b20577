#include "descramble_fast/eigh.hpp"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "array.hpp"

namespace descramble_fast::python {

namespace {

// Eigenvalues, eigenvectors as rows, residual, orthogonality error, route.
using Solved =
    py::typing::Tuple<py::array, py::array, py::array_t<double>, py::array_t<double>, Route>;

template <class T>
Solved solve(const Array& array, std::optional<std::int64_t> k) {
  const ArrayView& a = array.view;
  Eigh<T> result;
  {
    const Released released;
    result = eigh<T>(a, k, interruptible(array));
  }
  const std::int64_t kept = result.eigenvalues.columns();
  std::vector<py::ssize_t> values(a.shape().begin(), a.shape().end() - 2);
  std::vector<py::ssize_t> vectors = values;
  values.push_back(kept);
  vectors.insert(vectors.end(), {py::ssize_t(kept), py::ssize_t(result.n)});
  const std::vector<py::ssize_t> batch(values.begin(), values.end() - 1);
  const auto per_matrix = [&](const std::vector<double>& numbers) {
    return vector_to_numpy(std::span<const double>(numbers)).reshape(batch);
  };
  return py::make_tuple(to_python(std::move(result.eigenvalues), values),
                        to_python(std::move(result.eigenvectors), vectors),
                        per_matrix(result.residual), per_matrix(result.orthogonality_error),
                        result.route);
}

}  // namespace

void bind_eigh(py::module_& module) {
  module.def(
      "eigh",
      [](const py::object& a, std::optional<std::int64_t> k) {
        const Array array = view_of(a, "a");
        // Half types are widened: their range holds neither the eigenvalues nor the accuracy.
        return array.view.dtype() == DType::float64 ? solve<double>(array, k)
                                                    : solve<float>(array, k);
      },
      py::arg("a"), py::arg("k") = py::none(),
      "Eigenvalues, eigenvectors as rows, residual, orthogonality error, route.");
}

}  // namespace descramble_fast::python
