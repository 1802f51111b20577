/// What observing costs: pairs of runs, with and without, one after the other. C, so that all three
/// examples can include it.
#ifndef TIMING_H
#define TIMING_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_PAIRS = 99 };

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/// Of sorted values.
static double quantile(const double* values, int count, double q) {
  const double at = q * (count - 1);
  const int below = (int)at;
  const int above = below + 1 < count ? below + 1 : below;
  return values[below] + (at - below) * (values[above] - values[below]);
}

/// Calls run(self, 0) and run(self, 1), an inference without and with observing, in pairs whose
/// order alternates, after one of each that is not counted; prints medians, and the quartiles of
/// the pairs' ratios less 1, as one line of JSON that begins with the members in `head`.
static void print_overhead(const char* head, void (*run)(void*, int), void* self, int pairs) {
  double plain[MOST_PAIRS], observed[MOST_PAIRS], overhead[MOST_PAIRS];
  if (pairs > MOST_PAIRS) pairs = MOST_PAIRS;
  run(self, 0);
  run(self, 1);
  for (int i = 0; i < pairs; ++i) {
    for (int j = 0; j < 2; ++j) {
      const int observe = (i + j) % 2;
      const double start = seconds();
      run(self, observe);
      (observe ? observed : plain)[i] = seconds() - start;
    }
    overhead[i] = observed[i] / plain[i] - 1;
  }
  qsort(plain, (size_t)pairs, sizeof(double), ascending);
  qsort(observed, (size_t)pairs, sizeof(double), ascending);
  qsort(overhead, (size_t)pairs, sizeof(double), ascending);
  printf("{%s, \"pairs\": %d, \"plain_seconds\": %.4f, \"observed_seconds\": %.4f, ", head, pairs,
         quantile(plain, pairs, 0.5), quantile(observed, pairs, 0.5));
  printf("\"overhead\": %.4f, \"overhead_quartiles\": [%.4f, %.4f]}\n",
         quantile(overhead, pairs, 0.5), quantile(overhead, pairs, 0.25),
         quantile(overhead, pairs, 0.75));
}

#endif
