#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <memory_resource>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "descramble_fast/export.hpp"

namespace descramble_fast {

/// Types of elements; masks are boolean.
enum class DType : std::uint8_t { boolean, float16, bfloat16, float32, float64 };

/// Name as NumPy spells it, e.g. "float32".
DESCRAMBLE_FAST_EXPORT const char* name(DType dtype);

/// Bytes per element.
DESCRAMBLE_FAST_EXPORT std::int64_t size_of(DType dtype);

/// Kinds of devices.
enum class DeviceKind : std::uint8_t { cpu, cuda };

/// Where memory lies; the CPU unless told otherwise.
struct Device {
  /// The CPU, or a CUDA device.
  DeviceKind kind = DeviceKind::cpu;
  /// CUDA's number of it; 0 for the CPU.
  int index = 0;
  /// The same device.
  friend bool operator==(const Device&, const Device&) = default;
};

/// "cpu", "cuda:0", ...
DESCRAMBLE_FAST_EXPORT std::string name(Device device);

/// An IEEE binary16 number: storage, no arithmetic.
struct Float16 {
  /// Its raw bits.
  std::uint16_t bits;
};
/// A bfloat16 number: storage, no arithmetic.
struct BFloat16 {
  /// Its raw bits.
  std::uint16_t bits;
};

/// The DType of double, float, Float16, BFloat16 or bool; defined for these alone.
template <class T>
extern const DType dtype_of;
/// @cond
template <>
inline constexpr DType dtype_of<double> = DType::float64;
template <>
inline constexpr DType dtype_of<bool> = DType::boolean;
template <>
inline constexpr DType dtype_of<Float16> = DType::float16;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<float> = DType::float32;
/// @endcond

/// A borrowed, read-only, strided array of run-time element type on a named device.
///
/// Strides count elements, and may be zero or negative. The view owns nothing: the memory must
/// outlive it. The last axis runs over neurons; all axes before it together run over rows. A cheap
/// value; all members take constant time.
class DESCRAMBLE_FAST_EXPORT ArrayView {
 public:
  /// The most axes.
  static constexpr int max_rank = 8;

  /// The address of element (0, 0, ...), which must be a multiple of the element's size. Throws
  /// InvalidArgument where rank exceeds max_rank, a length is negative, or the number of bytes does
  /// not fit 63 bits.
  ArrayView(const void* data, DType dtype, std::span<const std::int64_t> shape,
            std::span<const std::int64_t> strides, Device device = {});

  /// Contiguous, row-major.
  ArrayView(const void* data, DType dtype, std::span<const std::int64_t> shape, Device device = {});

  /// Contiguous, row-major, on the CPU, of a type that dtype_of knows.
  template <class T>
  ArrayView(const T* data, std::initializer_list<std::int64_t> shape)
      : ArrayView(data, dtype_of<T>, std::span(shape.begin(), shape.size())) {}

  /// The address of element (0, 0, ...).
  const void* data() const { return data_; }
  /// The type of the elements.
  DType dtype() const { return dtype_; }
  /// Where they lie.
  Device device() const { return device_; }
  /// Number of axes.
  int rank() const { return rank_; }
  /// Lengths of the axes; lives as long as the view.
  std::span<const std::int64_t> shape() const { return {shape_.data(), std::size_t(rank_)}; }
  /// In elements; lives as long as the view.
  std::span<const std::int64_t> strides() const { return {strides_.data(), std::size_t(rank_)}; }

  /// Length of the last axis (1 for a scalar).
  std::int64_t columns() const { return rank_ == 0 ? 1 : shape_[std::size_t(rank_ - 1)]; }
  /// Product of all axes but the last.
  std::int64_t rows() const;
  /// Number of elements.
  std::int64_t size() const { return rows() * columns(); }

  /// The address of the first element of a row, rows counted in row-major order.
  const std::byte* row(std::int64_t index) const;
  /// In elements; 1 for a scalar.
  std::int64_t column_stride() const { return rank_ == 0 ? 1 : strides_[std::size_t(rank_ - 1)]; }

  /// The view at `index` along the product of all axes but the last `keep`.
  ArrayView item(std::int64_t index, int keep) const;

 private:
  const void* data_;
  DType dtype_;
  Device device_;
  int rank_;
  std::array<std::int64_t, max_rank> shape_{};
  std::array<std::int64_t, max_rank> strides_{};
};

/// Memory of a CUDA device, to be given back to release_on(). Throws BackendError where there is
/// none, OutOfMemory.
DESCRAMBLE_FAST_EXPORT void* allocate_on(Device device, std::int64_t bytes);
/// Waits for what may still read it.
DESCRAMBLE_FAST_EXPORT void release_on(Device device, void* memory) noexcept;

struct Context;
/// From contiguous memory to contiguous memory of any two devices, after what is on the context's
/// stream; has finished when it returns. Throws BackendError.
DESCRAMBLE_FAST_EXPORT void copy_between(Device to_device, void* to, Device from_device,
                                         const void* from, std::int64_t bytes,
                                         const Context& context);

/// Where the CPU memory of matrices comes from on this thread: that of the call which is running on
/// it, else operator new.
DESCRAMBLE_FAST_EXPORT std::pmr::memory_resource* memory_of_call() noexcept;

/// An owned, contiguous, row-major matrix on a named device; movable, uninitialised unless told
/// otherwise. Elements can be reached by C++ code on the CPU alone. Threads may read it together.
template <class T>
class Matrix {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  /// Without elements.
  Matrix() = default;
  /// Uninitialised. Throws std::bad_alloc; on a CUDA device BackendError and OutOfMemory.
  Matrix(std::int64_t rows, std::int64_t columns, Device device = {})
      : rows_(rows), columns_(columns), data_(allocate(rows, columns, device)) {}
  /// All elements `value`, on the CPU.
  Matrix(std::int64_t rows, std::int64_t columns, T value) : Matrix(rows, columns) {
    for (T& x : values()) x = value;
  }

  /// Number of rows.
  std::int64_t rows() const { return rows_; }
  /// Number of columns.
  std::int64_t columns() const { return columns_; }
  /// Where the elements lie.
  Device device() const { return data_.get_deleter().device; }
  /// The first element, on device(); null without elements. Lives as long as the matrix, moved or
  /// not, as all pointers and views of it do.
  T* data() { return data_.get(); }
  /// The same, to be read.
  const T* data() const { return data_.get(); }
  /// All elements, row by row.
  std::span<T> values() { return {data_.get(), std::size_t(rows_ * columns_)}; }
  /// The same, to be read.
  std::span<const T> values() const { return {data_.get(), std::size_t(rows_ * columns_)}; }
  /// The first element of row i, which is not checked.
  T* row(std::int64_t i) { return data_.get() + i * columns_; }
  /// The same, to be read.
  const T* row(std::int64_t i) const { return data_.get() + i * columns_; }
  /// Element (i, j), which is not checked.
  T& operator()(std::int64_t i, std::int64_t j) { return data_[std::size_t(i * columns_ + j)]; }
  /// The same, to be read.
  const T& operator()(std::int64_t i, std::int64_t j) const {
    return data_[std::size_t(i * columns_ + j)];
  }
  /// All of it, of shape (rows, columns).
  ArrayView view() const {
    const std::int64_t shape[] = {rows_, columns_};
    return ArrayView(data(), dtype_of<T>, shape, device());
  }
  /// A copy of a matrix on the CPU.
  Matrix copy() const {
    Matrix out(rows_, columns_);
    for (std::size_t i = 0; i < values().size(); ++i) out.data_[i] = data_[i];
    return out;
  }
  /// Itself, or a copy on the CPU, as by to().
  Matrix on_cpu(const Context& context) && {
    return device().kind == DeviceKind::cpu ? std::move(*this) : to({}, context);
  }
  /// A copy on any device, of memory_of_call() where that is the CPU. The context says the stream.
  Matrix to(Device device, const Context& context) const {
    Matrix out(rows_, columns_, device);
    copy_between(device, out.data(), this->device(), data(),
                 rows_ * columns_ * std::int64_t(sizeof(T)), context);
    return out;
  }

 private:
  struct Release {
    Device device;
    std::pmr::memory_resource* memory = nullptr;
    std::size_t bytes = 0;
    void operator()(T* data) const {
      if (device.kind == DeviceKind::cpu)
        memory->deallocate(data, bytes, alignment);
      else
        release_on(device, data);
    }
  };
  using Data = std::unique_ptr<T[], Release>;

  static constexpr std::size_t alignment = 64;
  static Data allocate(std::int64_t rows, std::int64_t columns, Device device) {
    constexpr std::int64_t most = PTRDIFF_MAX / std::int64_t(sizeof(T));
    if (columns > 0 && rows > most / columns) throw std::bad_array_new_length();
    const std::int64_t bytes = rows * columns * std::int64_t(sizeof(T));
    if (device.kind != DeviceKind::cpu)
      return {static_cast<T*>(allocate_on(device, bytes)), Release{device}};
    std::pmr::memory_resource* const memory = memory_of_call();
    return {static_cast<T*>(memory->allocate(std::size_t(bytes), alignment)),
            Release{device, memory, std::size_t(bytes)}};
  }

  std::int64_t rows_ = 0;
  std::int64_t columns_ = 0;
  Data data_;
};

/// A contiguous float64 copy on the CPU of any floating array, shape (rows, columns). O(size).
/// Throws TypeError for booleans.
DESCRAMBLE_FAST_EXPORT Matrix<double> to_float64(const ArrayView& a);

/// A half-open range [begin, end) of columns that share one eigenvalue.
struct Block {
  /// The first.
  std::int64_t begin;
  /// One after the last.
  std::int64_t end;
  /// Number of columns.
  std::int64_t size() const { return end - begin; }
  /// The same range.
  friend bool operator==(const Block&, const Block&) = default;
};

}  // namespace descramble_fast
