#pragma once

// What the shared library exports. DESCRAMBLE_FAST_STATIC is for programs that link the static one.
#if defined(DESCRAMBLE_FAST_STATIC)
#define DESCRAMBLE_FAST_EXPORT
#elif defined(_WIN32)
#if defined(DESCRAMBLE_FAST_BUILDING)
#define DESCRAMBLE_FAST_EXPORT __declspec(dllexport)
#else
#define DESCRAMBLE_FAST_EXPORT __declspec(dllimport)
#endif
#else
#define DESCRAMBLE_FAST_EXPORT __attribute__((visibility("default")))
#endif
