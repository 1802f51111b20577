// Memory that fails on demand.
#ifndef FAILING_MEMORY_H
#define FAILING_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FAIL_NEW = 0, FAIL_CALLERS = 1 };

// From now on the n-th allocation (from 0) of a kind fails: of operator new, or of the allocator
// below; and where `all` is not 0 every one after it.
void start_failing(int32_t kind, int64_t n, int32_t all);
// No more; returns how many have failed.
int64_t stop_failing(void);

// For descramble_context_set_allocator.
void* failing_allocate(void* user, size_t bytes, size_t alignment);
void failing_release(void* user, void* memory, size_t bytes, size_t alignment);
// Bytes that have not been given back.
int64_t live_bytes(void);

#ifdef __cplusplus
}
#endif

#endif
