// Memory and threads that fail on demand.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drill {

// What can fail: operator new; the caller's allocator below; and with interpose.cpp what the C++
// library asks of malloc, and of pthread_create.
enum class Source { operator_new, caller, malloc, thread, count };

// From now on the n-th request (from 0) fails, and where `all` every one after it.
void start_failing(Source source, std::int64_t n, bool all);
// No more; how many have failed.
std::int64_t stop_failing();

// For whoever stands before such a source: whether any request is to fail, and whether this one.
bool is_failing(Source source);
bool fails(Source source);

// Bytes of operator new and of the allocator that have not been given back.
std::int64_t live_bytes();

// For descramble_context_set_allocator; it checks that what comes back is what it gave.
void* allocate(void* user, std::size_t bytes, std::size_t alignment);
void release(void* user, void* memory, std::size_t bytes, std::size_t alignment);
// Bytes that release() has not had back.
std::int64_t allocator_bytes();

}  // namespace drill
