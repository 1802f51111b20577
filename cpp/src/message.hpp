#pragma once

#include <sstream>
#include <string>

namespace descramble_fast {

/// One string from many printable parts.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  out.exceptions(std::ios_base::badbit);  // rather out of memory than half a message
  out.precision(10);
  (out << ... << parts);
  return out.str();
}

}  // namespace descramble_fast
