// What the tests in C share.
#ifndef CHECK_H
#define CHECK_H

#include <descramble_fast.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                                     \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      ++failures;                                                                            \
      fprintf(stderr, "%s:%d: false: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
              descramble_last_error());                                                      \
    }                                                                                        \
  } while (0)

#define CHECK_OK(call) CHECK((call) == DESCRAMBLE_OK)

// The call fails with this status, for a reason in which these words occur.
#define CHECK_FAILS(call, status, words)                   \
  do {                                                     \
    CHECK((call) == (status));                             \
    CHECK(strstr(descramble_last_error(), words) != NULL); \
  } while (0)

#define CHECK_REFUSED(call, words) CHECK_FAILS(call, DESCRAMBLE_INVALID_ARGUMENT, words)

// Contiguous arrays on the CPU; they live as long as the block around them.
#define ARRAY(data, dtype, rank, ...) \
  (&(descramble_array){               \
      (data), (dtype), {DESCRAMBLE_CPU, 0}, (rank), (const int64_t[]){__VA_ARGS__}, NULL})
#define VECTOR(data, n) ARRAY(data, DESCRAMBLE_FLOAT64, 1, n)
#define MATRIX(data, rows, columns) ARRAY(data, DESCRAMBLE_FLOAT64, 2, rows, columns)

// Uniform between -1 and 1.
static inline double next_random(uint64_t* state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (double)(*state >> 11) / 4503599627370496.0 - 1;
}

static inline double* random_numbers(int64_t count, uint64_t seed) {
  double* const out = malloc((size_t)count * sizeof *out);
  for (int64_t i = 0; i < count; ++i) out[i] = next_random(&seed);
  return out;
}

// Random, symmetric.
static inline double* random_symmetric(int64_t n, uint64_t seed) {
  double* const out = random_numbers(n * n, seed);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) out[j * n + i] = out[i * n + j];
  return out;
}

#endif
