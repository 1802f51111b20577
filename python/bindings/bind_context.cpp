#include <pybind11/stl.h>

#include "array.hpp"
#include "descramble_fast/error.hpp"

namespace descramble_fast::python {

namespace {

PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> backend_error;

}  // namespace

void bind_context(py::module_& module) {
  backend_error.call_once_and_store_result([&] {
    return py::object(py::exception<BackendError>(module, "BackendError", PyExc_RuntimeError));
  });
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const BackendError& e) {
      py::set_error(backend_error.get_stored(), e.what());
    } catch (const TypeError& e) {
      py::set_error(PyExc_TypeError, e.what());
    } catch (const py::cast_error&) {
      // Where Python has no memory for a number in a result, that is said already.
      if (!PyErr_Occurred() || !PyErr_ExceptionMatches(PyExc_MemoryError)) throw;
    }
  });

  py::class_<Route>(module, "Route")
      .def_readonly("device", &Route::device)
      .def_readonly("dtype", &Route::dtype)
      .def_readonly("driver", &Route::driver)
      .def_readonly("fallbacks", &Route::fallbacks);

  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads, py::arg("threads"));
  module.def("instruction_sets", &instruction_sets);
  module.def("instruction_set", &instruction_set);
  module.def("lapack_config", &lapack_config);
  module.def("cuda_available", [] { return cuda_available(); });
  module.def("cuda_config", &cuda_config);
}

}  // namespace descramble_fast::python
