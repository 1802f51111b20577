// Whatever allocation fails, a call says so, leaves everything as it was, and succeeds when it is
// tried again.

#include "check.h"
#include "failing_memory.h"

static descramble_context* context = NULL;

// A call whose n-th allocation fails, for every n until it allocates no more.
typedef struct {
  const char* name;
  void (*begin)(void);
  descramble_status (*call)(void);
  void (*end)(void);
  // The state and the results, copied out; returns the bytes.
  size_t (*state)(char* out);
  // Of long calls: only every such failure is followed by others, and by another try.
  int64_t step;
} experiment;

static char expected_before[1 << 21], expected_after[1 << 21], expected_at_once[1 << 21],
    got[1 << 21];

static int is_state(const experiment* e, const char* expected, size_t bytes) {
  return e->state(got) == bytes && memcmp(got, expected, bytes) == 0;
}

static void fail_everywhere(const experiment* e, int32_t kind, int32_t all) {
  // Reading moments rounds them, so that what comes of a call depends on whether they were read
  // before it.
  e->begin();
  CHECK_OK(e->call());
  const size_t at_once = e->state(expected_at_once);
  e->end();
  e->begin();
  const size_t before = e->state(expected_before);
  CHECK_OK(e->call());
  const size_t after = e->state(expected_after);
  e->end();

  const int failures_before = failures;
  int64_t failed = 0, survived = 0;
  for (int64_t n = 0, more = 1; more; n += all ? e->step : 1) {
    const int64_t live = allocator_bytes();
    e->begin();
    start_failing(kind, n, all);
    const descramble_status status = e->call();
    more = stop_failing() > 0;
    failed += more;
    if (status == DESCRAMBLE_OK) {
      survived += more;
      CHECK(is_state(e, expected_at_once, at_once));
    } else {
      CHECK_FAILS(status, DESCRAMBLE_OUT_OF_MEMORY,
                  strstr(descramble_last_error(), "bytes") == NULL ? "out of memory" : "bytes");
      CHECK(is_state(e, expected_before, before));
      if (n % e->step == 0) {
        CHECK_OK(e->call());
        CHECK(is_state(e, expected_after, after));
      }
    }
    e->end();
    CHECK(allocator_bytes() == live);
    if (failures > failures_before) {
      fprintf(stderr, "%s: allocation %d of kind %d, all %d\n", e->name, (int)n, (int)kind,
              (int)all);
      return;
    }
  }
  printf("%s, %s: %d allocations failed, %d of them did not matter\n", e->name,
         kind == FAIL_NEW ? "operator new" : "the caller's allocator", (int)failed, (int)survived);
  CHECK(failed > 0);
  // One that is short of its own may do without it; matrices can be had from one place only.
  CHECK(survived == 0 || (kind == FAIL_NEW && !all));
}

enum { FEATURES = 70, ROWS = 3000, SINGLE = 260, LARGE = 1024 };
static double *numbers, *symmetric, *decaying;
static double laplacian[20 * 20];
static descramble_operator* op;
static descramble_covariance *moments, *others;
static descramble_cross_covariance* cross;

static size_t moments_state(char* out) {
  double values[2 + 2 * FEATURES + FEATURES * (FEATURES + 1) / 2] = {0};
  int64_t count = 0;
  int32_t has_mean = 0;
  CHECK_OK(descramble_covariance_export(moments, &count, values, &has_mean, values + 2,
                                        values + 2 + FEATURES, FEATURES, values + 2 + 2 * FEATURES,
                                        FEATURES * (FEATURES + 1) / 2));
  values[1] = (double)count;
  memcpy(out, values, sizeof values);
  return sizeof values;
}

// Some rows wait, others have been multiplied.
static void begin_moments(void) {
  CHECK_OK(descramble_covariance_create(FEATURES, context, &moments));
  CHECK_OK(
      descramble_covariance_update(moments, MATRIX(numbers, 500, FEATURES), NULL, NULL, context));
  CHECK_OK(
      descramble_covariance_update(moments, MATRIX(numbers, 3, FEATURES), NULL, NULL, context));
}

static void begin_empty(void) {
  CHECK_OK(descramble_covariance_create(FEATURES, context, &moments));
}

static void end_moments(void) { descramble_covariance_destroy(moments); }

static descramble_status update(void) {
  return descramble_covariance_update(moments, MATRIX(numbers, ROWS, FEATURES), NULL, NULL,
                                      context);
}

static descramble_status update_weighted(void) {
  static uint8_t mask[ROWS];
  static float weights[ROWS];
  for (int i = 0; i < ROWS; ++i) {
    mask[i] = i % 3 != 0;
    weights[i] = (float)(i % 5);
  }
  return descramble_covariance_update(moments, MATRIX(numbers, ROWS, FEATURES),
                                      ARRAY(mask, DESCRAMBLE_BOOLEAN, 1, ROWS),
                                      ARRAY(weights, DESCRAMBLE_FLOAT32, 1, ROWS), context);
}

static descramble_status update_few(void) {
  return descramble_covariance_update(moments, MATRIX(numbers, 2, FEATURES), NULL, NULL, context);
}

static void begin_two(void) {
  begin_moments();
  CHECK_OK(descramble_covariance_create(FEATURES, context, &others));
  CHECK_OK(descramble_covariance_update(others, MATRIX(numbers + 7, 400, FEATURES), NULL, NULL,
                                        context));
  CHECK_OK(
      descramble_covariance_update(others, MATRIX(numbers + 7, 5, FEATURES), NULL, NULL, context));
}

static void begin_empty_and_other(void) {
  begin_two();
  descramble_covariance_destroy(moments);
  begin_empty();
}

static void end_two(void) {
  descramble_covariance_destroy(moments);
  descramble_covariance_destroy(others);
}

static descramble_status merge(void) { return descramble_covariance_merge(moments, others); }

enum { X = 30, Y = 20 };

static void begin_cross(void) {
  CHECK_OK(descramble_cross_covariance_create(X, Y, context, &cross));
  CHECK_OK(descramble_cross_covariance_update(cross, MATRIX(numbers, 50, X),
                                              MATRIX(numbers + 9, 50, Y), NULL, NULL, context));
}

static void end_cross(void) { descramble_cross_covariance_destroy(cross); }

static size_t cross_state(char* out) {
  double values[X * Y + 1] = {0};
  CHECK_OK(descramble_cross_covariance_cross_moment(cross, values, X * Y));
  CHECK_OK(descramble_cross_covariance_weight(cross, values + X * Y));
  memcpy(out, values, sizeof values);
  return sizeof values;
}

static descramble_status update_cross(void) {
  return descramble_cross_covariance_update(cross, MATRIX(numbers, ROWS, X),
                                            MATRIX(numbers + 9, ROWS, Y), NULL, NULL, context);
}

// Calls that have results and no state.
static struct {
  double numbers[1 << 17];
  int64_t columns[512];
} results;

static void begin_results(void) { memset(&results, 0, sizeof results); }

static void end_results(void) {}

static size_t results_state(char* out) {
  memcpy(out, &results, sizeof results);
  return sizeof results;
}

static descramble_status eigh(const descramble_array* a, int64_t batch, int64_t n, int64_t k) {
  return descramble_eigh_float64(a, k, context, results.numbers, batch * k,
                                 results.numbers + batch * k, batch * k * n, NULL, NULL, batch);
}

static descramble_status eigh_in_lanes(void) {
  return eigh(ARRAY(symmetric, DESCRAMBLE_FLOAT64, 3, 60, 8, 8), 60, 8, 8);
}

static descramble_status eigh_one(void) {
  return eigh(MATRIX(symmetric, SINGLE, SINGLE), 1, SINGLE, SINGLE);
}

static descramble_status eigh_few(void) {
  return eigh(ARRAY(symmetric, DESCRAMBLE_FLOAT64, 3, 3, 100, 100), 3, 100, 100);
}

static descramble_status eigh_leading(void) {
  return eigh(MATRIX(decaying, LARGE, LARGE), 1, LARGE, 8);
}

static descramble_status assign(int64_t batch, int64_t n, int64_t m) {
  descramble_linear_assignment_report out = {.struct_size = sizeof out,
                                             .columns = results.columns,
                                             .columns_size = batch * n,
                                             .row_duals = results.numbers,
                                             .row_duals_size = batch * n,
                                             .cost = results.numbers + batch * n,
                                             .batch = batch};
  return descramble_linear_assignment(ARRAY(numbers, DESCRAMBLE_FLOAT64, 3, batch, n, m), NULL,
                                      context, &out);
}

static descramble_status assign_wide(void) { return assign(1, 40, 60); }
static descramble_status assign_tall(void) { return assign(1, 60, 40); }
static descramble_status assign_many(void) { return assign(20, 12, 12); }

static descramble_status smoothness(void) {
  descramble_descrambler* d = NULL;
  const descramble_status status = descramble_smoothness(moments, op, NULL, context, &d);
  CHECK((d == NULL) == (status != DESCRAMBLE_OK));
  descramble_descrambler_destroy(d);
  return status;
}

// A descrambler made, used and destroyed.
static descramble_status use(descramble_status made, descramble_descrambler* d, int64_t n) {
  CHECK((d == NULL) == (made != DESCRAMBLE_OK));
  descramble_status status = made;
  if (status == DESCRAMBLE_OK)
    status = descramble_descrambler_transform(d, MATRIX(numbers, 20, n), context, results.numbers,
                                              20 * n);
  descramble_descrambler_destroy(d);
  return status;
}

static descramble_status trace(void) {
  descramble_descrambler* d = NULL;
  const descramble_status made = descramble_trace(MATRIX(numbers, 30, 40), context, &d);
  return use(made, d, 30);
}

static descramble_status diagonal(void) {
  descramble_descrambler* d = NULL;
  const descramble_status made = descramble_diagonal(MATRIX(numbers, 6, 7), context, &d);
  return use(made, d, 6);
}

static descramble_status convolution(void) {
  const int64_t places[2] = {4, 5};
  descramble_descrambler* d = NULL;
  const descramble_status made = descramble_convolution(
      ARRAY(numbers, DESCRAMBLE_FLOAT64, 4, 3, 2, 3, 3), places, 2, NULL, context, &d);
  return use(made, d, 60);
}

static descramble_status preactivation(void) {
  descramble_covariance* c = NULL;
  descramble_operator* grid = NULL;
  descramble_descrambler* d = NULL;
  descramble_status status = descramble_preactivation_moment(
      MATRIX(numbers, 20, 30), VECTOR(numbers, 20), NULL, NULL, context, &c);
  if (status == DESCRAMBLE_OK)
    status = descramble_operator_from_matrix(MATRIX(laplacian, 20, 20), context, &grid);
  const descramble_smoothness_options options = {.struct_size = sizeof options,
                                                 .gauge = DESCRAMBLE_GAUGE_IDENTITY};
  if (status == DESCRAMBLE_OK) status = descramble_smoothness(c, grid, &options, context, &d);
  if (status == DESCRAMBLE_OK) status = use(status, d, 20);
  descramble_operator_destroy(grid);
  descramble_covariance_destroy(c);
  return status;
}

int main(void) {
  static const experiment experiments[] = {
      {"update", begin_moments, update, end_moments, moments_state, 1},
      {"first update", begin_empty, update, end_moments, moments_state, 1},
      {"update with mask and weights", begin_moments, update_weighted, end_moments, moments_state,
       1},
      {"update of few rows", begin_empty, update_few, end_moments, moments_state, 1},
      {"merge", begin_two, merge, end_two, moments_state, 1},
      {"merge into an empty one", begin_empty_and_other, merge, end_two, moments_state, 1},
      {"update of cross moments", begin_cross, update_cross, end_cross, cross_state, 1},
      {"smoothness", begin_moments, smoothness, end_moments, moments_state, 1},
      {"eigh of many small matrices", begin_results, eigh_in_lanes, end_results, results_state, 1},
      {"eigh of a few matrices", begin_results, eigh_few, end_results, results_state, 10},
      {"eigh of one matrix", begin_results, eigh_one, end_results, results_state, 10},
      {"eigh, leading pairs", begin_results, eigh_leading, end_results, results_state, 10},
      {"linear_assignment of few to many", begin_results, assign_wide, end_results, results_state,
       1},
      {"linear_assignment of many to few", begin_results, assign_tall, end_results, results_state,
       1},
      {"linear_assignments", begin_results, assign_many, end_results, results_state, 1},
      {"trace", begin_results, trace, end_results, results_state, 1},
      {"diagonal", begin_results, diagonal, end_results, results_state, 1},
      {"convolution", begin_results, convolution, end_results, results_state, 1},
      {"preactivation_moment", begin_results, preactivation, end_results, results_state, 1},
  };
  numbers = random_numbers((ROWS + 1) * FEATURES, 1);
  symmetric = random_numbers(SINGLE * SINGLE, 2);
  decaying = random_numbers(LARGE * LARGE, 3);
  for (int64_t i = 0; i < LARGE; ++i)
    for (int64_t j = 0; j < LARGE; ++j) decaying[i * LARGE + j] *= 1e-3 / LARGE;
  for (int64_t i = 0; i < LARGE; ++i) decaying[i * LARGE + i] += i < 20 ? 1.0 / (double)(1 + i) : 0;
  for (int i = 0; i < 20; ++i) {
    laplacian[21 * i] = 2;
    laplacian[20 * i + (i + 1) % 20] = laplacian[20 * ((i + 1) % 20) + i] = -1;
  }
  CHECK_OK(descramble_operator_fourier(FEATURES, 2, &op));
  CHECK_OK(descramble_context_create(&context));
  CHECK_OK(descramble_context_set_threads(context, 2));
  for (size_t i = 0; i < sizeof experiments / sizeof *experiments; ++i)
    for (int32_t all = 0; all < 2; ++all) {
      CHECK_OK(descramble_context_set_allocator(context, NULL, NULL, NULL));
      fail_everywhere(&experiments[i], FAIL_NEW, all);
      CHECK_OK(descramble_context_set_allocator(context, failing_allocate, failing_release, NULL));
      fail_everywhere(&experiments[i], FAIL_CALLERS, all);
    }
  descramble_context_destroy(context);
  descramble_operator_destroy(op);
  free(numbers);
  free(symmetric);
  free(decaying);
  CHECK(allocator_bytes() == 0);
  return failures > 0;
}
