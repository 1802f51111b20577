#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

/// A tensor of a safetensors file: shape, and float32 values in row-major order.
struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

/// Every tensor of a file. Throws std::runtime_error, in one line that begins with the path, where
/// it cannot be read, is not a safetensors file, or holds anything but float32.
Tensors read_safetensors(const std::string& path);

/// Replaces the file. Throws std::runtime_error.
void write_safetensors(const std::string& path, const Tensors& tensors);
