// The format: the length of a JSON header (8 bytes, little-endian), the header, the tensors' bytes.
// The header is JSON of one form only, so fifty lines read it; they trust no number in it.
#include "safetensors.hpp"

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::uint64_t longest_header = 100'000'000;  // the format's own limit

struct Entry {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0, end = 0;  // bytes after the header
};

class Header {
 public:
  explicit Header(std::string_view text) : text_(text) {}

  std::map<std::string, Entry> entries() {
    std::map<std::string, Entry> out;
    members([&](std::string name) {
      if (name == "__metadata__")
        members([&](const std::string&) { string(); });
      else if (!out.emplace(name, entry()).second)
        fail("a name occurs twice");
    });
    while (peek() == ' ') ++at_;  // padding
    if (at_ != text_.size()) fail("something follows the header's object");
    return out;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error("header, byte " + std::to_string(at_) + ": " + what);
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') ++at_;
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail((std::string("expected ") + c).c_str());
  }

  /// Escapes are kept as they are written.
  std::string string() {
    expect('"');
    std::string out;
    while (peek() != '"') {
      if (static_cast<unsigned char>(peek()) < ' ') fail("a string does not end");
      if (peek() == '\\') out += text_[at_++];
      if (at_ < text_.size()) out += text_[at_++];
    }
    ++at_;
    return out;
  }
  std::int64_t number() {
    take(' ');
    std::int64_t out = 0;
    const std::size_t start = at_;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      if (at_ - start >= 18) fail("a number is too large");
      out = 10 * out + (peek() - '0');
    }
    if (at_ == start) fail("expected a number without sign");
    return out;
  }
  std::vector<std::int64_t> numbers() {
    std::vector<std::int64_t> out;
    expect('[');
    if (take(']')) return out;
    do out.push_back(number());
    while (take(','));
    expect(']');
    return out;
  }
  template <class Member>
  void members(Member member) {
    expect('{');
    if (take('}')) return;
    do {
      std::string name = string();
      expect(':');
      member(std::move(name));
    } while (take(','));
    expect('}');
  }
  Entry entry() {
    Entry out;
    std::vector<std::int64_t> offsets;
    bool shaped = false;
    members([&](const std::string& name) {
      if (name == "dtype")
        out.dtype = string();
      else if (name == "shape")
        out.shape = numbers(), shaped = true;
      else if (name == "data_offsets")
        offsets = numbers();
      else
        fail("expected dtype, shape or data_offsets");
    });
    if (out.dtype.empty() || !shaped || offsets.size() != 2)
      fail("expected dtype, shape and two data_offsets before this");
    out.begin = offsets[0], out.end = offsets[1];
    return out;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// Throws unless the entry is float32 and its shape, offsets and the file's size agree.
std::int64_t checked_size(const Entry& entry, std::int64_t bytes) {
  if (entry.dtype != "F32") throw std::runtime_error(entry.dtype + ", expected F32");
  if (entry.begin > entry.end || entry.end > bytes)
    throw std::runtime_error("its bytes lie outside the file");
  std::int64_t size = 1;
  for (const std::int64_t length : entry.shape) {
    if (length != 0 && size > std::numeric_limits<std::int64_t>::max() / 4 / length)
      throw std::runtime_error("its shape has too many elements");
    size *= length;
  }
  if (4 * size != entry.end - entry.begin)
    throw std::runtime_error("shape and data_offsets disagree");
  return size;
}

Tensors read(std::ifstream& file) {
  file.seekg(0, std::ios::end);
  const auto size = std::uint64_t(file.tellg());
  file.seekg(0);
  std::uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof length);
  if (!file || length > longest_header || length > size - sizeof length)
    throw std::runtime_error("not a safetensors file");
  std::string text(length, '\0');
  file.read(text.data(), std::streamsize(length));
  if (!file) throw std::runtime_error("cannot be read");
  const std::uint64_t data = sizeof length + length;

  Tensors out;
  for (const auto& [name, entry] : Header(text).entries()) try {
      Tensor tensor{entry.shape, {}};
      tensor.values.resize(std::size_t(checked_size(entry, std::int64_t(size - data))));
      file.seekg(std::streamoff(data) + entry.begin);
      file.read(reinterpret_cast<char*>(tensor.values.data()), entry.end - entry.begin);
      if (!file) throw std::runtime_error("cannot be read");
      out.emplace(name, std::move(tensor));
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(name + ": " + error.what());
    }
  return out;
}

}  // namespace

Tensors read_safetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": " + std::strerror(errno));
  try {
    return read(file);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
}

void write_safetensors(const std::string& path, const Tensors& tensors) {
  std::ostringstream text;
  std::int64_t at = 0;
  const char* separator = "{";
  for (const auto& [name, tensor] : tensors) {
    text << separator << '"' << name << R"(":{"dtype":"F32","shape":[)";
    separator = ",";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i)
      text << (i == 0 ? "" : ",") << tensor.shape[i];
    const auto end = at + std::int64_t(4 * tensor.values.size());
    text << R"(],"data_offsets":[)" << at << ',' << end << "]}";
    at = end;
  }
  text << (tensors.empty() ? "{}" : "}");
  std::string header = text.str();
  header.append(-header.size() % 8, ' ');  // the data is to be aligned

  std::ofstream file(path, std::ios::binary);
  const std::uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file.write(header.data(), std::streamsize(length));
  for (const auto& [name, tensor] : tensors)
    file.write(reinterpret_cast<const char*>(tensor.values.data()),
               std::streamsize(4 * tensor.values.size()));
  file.close();
  if (!file) throw std::runtime_error(path + ": " + std::strerror(errno));
}
