// What the reader takes and what it refuses; leaves files behind for the tests of the program.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "safetensors.hpp"

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  ++failures;
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string file_of(const std::string& header, const std::string& data, std::uint64_t length) {
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + header + data;
}

std::string file_of(const std::string& header, const std::string& data = std::string(8, '\0')) {
  return file_of(header, data, header.size());
}

void refused(const std::string& bytes, const std::string& why) {
  write("bad.safetensors", bytes);
  std::string message = "nothing";
  try {
    read_safetensors("bad.safetensors");
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect(message == "bad.safetensors: " + why, "expected " + why + ", got " + message);
}

void refused_entry(const std::string& entry, const std::string& why) {
  refused(file_of(R"({"w":)" + entry + "}"), why);
}

}  // namespace

int main() {
  const Tensors tensors{{"a", {{2, 3}, {1, 2, 3, 4, 5, 6}}}, {"b", {{0, 4}, {}}}, {"c", {{}, {7}}}};
  write_safetensors("good.safetensors", tensors);
  const Tensors back = read_safetensors("good.safetensors");
  expect(back.size() == 3, "all tensors come back");
  for (const auto& [name, tensor] : tensors)
    expect(back.at(name).shape == tensor.shape && back.at(name).values == tensor.values, name);

  write("good.safetensors",
        file_of(R"({ "__metadata__": {"by": "\"me\"\n"}, "w": {"shape": [ 1 , 2 ], "dtype": "F32",)"
                R"( "data_offsets": [0, 8]} }  )"));
  expect(read_safetensors("good.safetensors").at("w").values.size() == 2, "spaces and metadata");
  write_safetensors("good.safetensors", {});
  expect(read_safetensors("good.safetensors").empty(), "no tensors");

  const std::string good = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  refused("", "not a safetensors file");
  refused("1234567", "not a safetensors file");
  refused(file_of("{}", "", 3), "not a safetensors file");
  refused(file_of("{}", "", ~std::uint64_t(0)), "not a safetensors file");
  refused(file_of(""), "header, byte 0: expected {");
  refused(file_of("{"), R"(header, byte 1: expected ")");
  refused(file_of(R"({"w)"), "header, byte 3: a string does not end");
  refused(file_of("{\"w\\"), "header, byte 4: a string does not end");
  refused(file_of("{\"\n"), "header, byte 2: a string does not end");
  refused(file_of(R"({"w":)" + good + "} x"),
          "header, byte 55: something follows the header's object");
  refused(file_of(R"({"w":)" + good + R"(,"w":)" + good + "}"),
          "header, byte 106: a name occurs twice");
  refused_entry(R"({"dtype":"F32","shape":[2]})",
                "header, byte 32: expected dtype, shape and two data_offsets before this");
  refused_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})",
                "header, byte 51: expected dtype, shape and two data_offsets before this");
  refused_entry(R"({"dtype":"F32","strides":[2]})",
                "header, byte 30: expected dtype, shape or data_offsets");
  refused_entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
                "header, byte 29: expected a number without sign");
  refused_entry(R"({"dtype":"F32","shape":[9999999999999999999],"data_offsets":[0,8]})",
                "header, byte 47: a number is too large");
  refused_entry(R"({"dtype":"BF16","shape":[4],"data_offsets":[0,8]})", "w: BF16, expected F32");
  refused_entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})",
                "w: its bytes lie outside the file");
  refused_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})",
                "w: its bytes lie outside the file");
  refused_entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})",
                "w: shape and data_offsets disagree");
  refused_entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})",
                "w: its shape has too many elements");

  write_safetensors("wrong.safetensors", {{"fc1.weight", {{2, 1}, {1, 2}}},
                                          {"fc1.bias", {{2}, {0, 0}}},
                                          {"fc2.weight", {{1, 3}, {1, 2, 3}}},
                                          {"fc2.bias", {{1}, {0}}}});
  write_safetensors(
      "nan.safetensors",
      {{"inputs", {{1, 256}, std::vector(256, std::numeric_limits<float>::quiet_NaN())}}});
  return failures == 0 ? 0 : 1;
}
