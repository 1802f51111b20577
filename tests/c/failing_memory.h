// Memory and threads that fail on demand.
#ifndef FAILING_MEMORY_H
#define FAILING_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What can fail: operator new; the caller's allocator below; and for whoever asks fails() first,
// memory and threads of the system.
enum failing_source { FAIL_NEW, FAIL_CALLERS, FAIL_MALLOC, FAIL_THREADS, FAILING_SOURCES };

// From now on the n-th request (from 0) of a source fails, and where `all` every one after it.
void start_failing(enum failing_source source, int64_t n, bool all);
// No more; how many have failed.
int64_t stop_failing(void);

// For whoever stands before such a source: whether any request is to fail, and whether this one.
bool is_failing(enum failing_source source);
bool fails(enum failing_source source);

// Bytes of operator new and of the allocator that have not been given back.
int64_t live_bytes(void);

// For descramble_context_set_allocator; it checks that what comes back is what it gave.
void* failing_allocate(void* user, size_t bytes, size_t alignment);
void failing_release(void* user, void* memory, size_t bytes, size_t alignment);
// Bytes that failing_release() has not had back.
int64_t allocator_bytes(void);

#ifdef __cplusplus
}
#endif

#endif
