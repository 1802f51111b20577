#pragma once

namespace descramble_fast {

/// Of these headers: major.minor.patch.
inline constexpr const char* version = "0.1.0";

}  // namespace descramble_fast
