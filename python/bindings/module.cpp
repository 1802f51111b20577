#include "array.hpp"
#include "descramble_fast/version.hpp"

PYBIND11_MODULE(_core, module) {
  namespace python = descramble_fast::python;
  module.doc() = "Bindings of the descramble_fast C++ library.";
  module.attr("__version__") = descramble_fast::version;
  python::bind_context(module);
  python::bind_device_array(module);
  python::bind_covariance(module);
  python::bind_operators(module);
  python::bind_eigh(module);
  python::bind_limits(module);
  python::bind_descrambler(module);
  python::bind_convolution(module);
  python::bind_assignment(module);
  python::bind_permutation(module);
}
