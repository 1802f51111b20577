#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "descramble_fast/view.hpp"
#include "dlpack.hpp"

namespace descramble_fast::python {

namespace py = pybind11;

/// An array in device memory, as any library can take it over: by DLPack or the CUDA array
/// interface. Whoever does shares its memory, which is contiguous but for the order of its axes.
class DeviceArray {
 public:
  template <class T>
  DeviceArray(std::shared_ptr<Matrix<T>> memory, dlpack::DataType type,
              std::vector<std::int64_t> shape)
      : data_(memory->data()),
        device_(memory->device()),
        type_(type),
        shape_(std::move(shape)),
        strides_(shape_.size()),
        memory_(std::move(memory)) {
    std::int64_t step = 1;
    for (std::size_t i = shape_.size(); i-- > 0; step *= shape_[i]) strides_[i] = step;
  }

  void* data() const { return data_; }
  Device device() const { return device_; }
  const dlpack::DataType& type() const { return type_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  /// In elements.
  const std::vector<std::int64_t>& strides() const { return strides_; }
  const std::shared_ptr<void>& memory() const { return memory_; }
  std::int64_t bytes() const;
  DeviceArray swapaxes(std::int64_t a, std::int64_t b) const;

 private:
  void* data_;
  Device device_;
  dlpack::DataType type_;
  std::vector<std::int64_t> shape_, strides_;
  std::shared_ptr<void> memory_;
};

template <class T>
py::object device_array(std::shared_ptr<Matrix<T>> memory, dlpack::DataType type,
                        std::vector<std::int64_t> shape) {
  // (As owned() of array.hpp.)
  return py::cast(new DeviceArray(std::move(memory), type, std::move(shape)),
                  py::return_value_policy::take_ownership);
}

}  // namespace descramble_fast::python
