#include "descramble_fast/view.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "check.hpp"
#include "descramble_fast/error.hpp"
#include "message.hpp"

namespace descramble_fast {

const char* name(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return "bool";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
  }
  return "unknown";
}

std::string name(Device device) {
  return device.kind == DeviceKind::cpu ? "cpu" : message("cuda:", device.index);
}

std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return 1;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
  }
  return 0;
}

ArrayView::ArrayView(const void* data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::int64_t> strides, Device device)
    : data_(data), dtype_(dtype), device_(device), rank_(int(shape.size())) {
  if (shape.size() > std::size_t(max_rank))
    throw InvalidArgument(
        message("array: got ", shape.size(), " axes, expected at most ", max_rank));
  if (strides.size() != shape.size())
    throw InvalidArgument(
        message("strides: got ", strides.size(), " entries, expected ", shape.size()));
  std::int64_t size = 1;
  for (int i = 0; i < rank_; ++i) {
    const std::int64_t length = shape[std::size_t(i)];
    if (length < 0)
      throw InvalidArgument(
          message("shape: got ", length, " on axis ", i, ", expected at least 0"));
    if (length > 0 && size > std::numeric_limits<std::int64_t>::max() / 8 / length)
      throw InvalidArgument("shape: the number of bytes does not fit 63 bits");
    size *= std::max<std::int64_t>(length, 1);  // of an empty array, too, strides are products
    shape_[std::size_t(i)] = length;
    strides_[std::size_t(i)] = strides[std::size_t(i)];
  }
  if (this->size() == 0) strides_ = {};  // they may be any, and nobody steps along them
}

// The strides are filled in once the lengths are known to be possible.
ArrayView::ArrayView(const void* data, DType dtype, std::span<const std::int64_t> shape,
                     Device device)
    : ArrayView(data, dtype, shape, shape, device) {
  std::int64_t step = 1;
  for (int i = rank_; i-- > 0;) {
    strides_[std::size_t(i)] = step;
    step *= shape_[std::size_t(i)];
  }
}

std::int64_t ArrayView::rows() const {
  std::int64_t rows = 1;
  for (int i = 0; i + 1 < rank_; ++i) rows *= shape_[std::size_t(i)];
  return rows;
}

const std::byte* ArrayView::row(std::int64_t index) const {
  std::int64_t offset = 0;
  for (int i = rank_ - 2; i > 0; --i) {
    const std::int64_t length = shape_[std::size_t(i)];
    offset += (index % length) * strides_[std::size_t(i)];
    index /= length;
  }
  if (rank_ > 1) offset += index * strides_[0];
  return static_cast<const std::byte*>(data_) + offset * size_of(dtype_);
}

ArrayView ArrayView::item(std::int64_t index, int keep) const {
  const int leading = rank_ - keep;
  std::int64_t offset = 0;
  for (int i = leading - 1; i >= 0; --i) {
    const std::int64_t length = shape_[std::size_t(i)];
    offset += (index % length) * strides_[std::size_t(i)];
    index /= length;
  }
  return ArrayView(static_cast<const std::byte*>(data_) + offset * size_of(dtype_), dtype_,
                   shape().subspan(std::size_t(leading)), strides().subspan(std::size_t(leading)),
                   device_);
}

Matrix<double> to_float64(const ArrayView& a) {
  check_floating("array", a);
  return fetch(a, {});
}

}  // namespace descramble_fast
