#pragma once

namespace descramble_fast {

inline constexpr const char* version = "0.1.0";

}  // namespace descramble_fast
