// The C interface as a C program sees it.

#include <math.h>

#include "check.h"

static int near(double a, double b, double tolerance) { return fabs(a - b) <= tolerance; }

static int all_near(const double* a, const double* b, int64_t count, double tolerance) {
  for (int64_t i = 0; i < count; ++i)
    if (!near(a[i], b[i], tolerance)) return 0;
  return 1;
}

static int same(const int64_t* a, const int64_t* b, int64_t count) {
  return memcmp(a, b, (size_t)count * sizeof *a) == 0;
}

// a (rows, inner) times b (inner, columns), or its transpose (columns, inner).
static void multiply(const double* a, const double* b, int64_t rows, int64_t inner, int64_t columns,
                     int b_transposed, double* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < inner; ++k)
        sum += a[i * inner + k] * (b_transposed ? b[j * inner + k] : b[k * columns + j]);
      out[i * columns + j] = sum;
    }
}

static void test_version(void) {
  CHECK(descramble_abi_version() == DESCRAMBLE_ABI_VERSION);
  CHECK(strchr(descramble_version(), '.') != NULL);
}

// What programs of this ABI version were built with. Whoever changes it raises the version, or, of
// a struct with a size, goes on taking the former one.
static void test_layout(void) {
  CHECK(DESCRAMBLE_ABI_VERSION == 1);
  if (sizeof(void*) == 8) {
    CHECK(sizeof(descramble_device) == 8 && sizeof(descramble_array) == 40);
    CHECK(sizeof(descramble_smoothness_options) == 32);
    CHECK(sizeof(descramble_descrambler_report) == 96);
    CHECK(sizeof(descramble_linear_assignment_options) == 24);
    CHECK(sizeof(descramble_linear_assignment_report) == 88);
    CHECK(sizeof(descramble_search_options) == 32);
    CHECK(sizeof(descramble_quadratic_assignment_options) == 64);
    CHECK(sizeof(descramble_permutation_report) == 56);
  }
  CHECK(DESCRAMBLE_BACKEND_ERROR == 4 && DESCRAMBLE_INTERNAL_ERROR == 6);
  CHECK(DESCRAMBLE_BOOLEAN == 0 && DESCRAMBLE_FLOAT64 == 4 && DESCRAMBLE_CUDA == 1);
  CHECK(DESCRAMBLE_PATH == 1 && DESCRAMBLE_GAUGE_REFERENCE == 2 && DESCRAMBLE_TIME_LIMIT == 1 &&
        DESCRAMBLE_WARNING == 1);
}

static void test_arrays_are_checked(void) {
  descramble_covariance* c = NULL;
  CHECK_OK(descramble_covariance_create(2, NULL, &c));
  double data[8] = {0};
  const int64_t shape[2] = {4, 2};
  const descramble_array good = {data, DESCRAMBLE_FLOAT64, {DESCRAMBLE_CPU, 0}, 2, shape, NULL};
  CHECK_OK(descramble_covariance_update(c, &good, NULL, NULL, NULL));

  descramble_array bad = good;
  CHECK_REFUSED(descramble_covariance_update(c, NULL, NULL, NULL, NULL), "batch: got NULL");
  bad.dtype = 5;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.dtype: got 5");
  bad.dtype = -1;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.dtype: got -1");
  bad = good;
  bad.device.kind = 2;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL),
                "batch.device.kind: got 2");
  bad = good;
  bad.device.index = 1;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL),
                "batch.device.index: got 1");
  bad = good;
  bad.rank = DESCRAMBLE_MAX_RANK + 1;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.rank: got 9");
  bad.rank = -1;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.rank: got -1");
  bad = good;
  bad.shape = NULL;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.shape: got NULL");
  bad = good;
  bad.data = NULL;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.data: got NULL");
  bad.data = (const char*)data + 1;
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL),
                "expected a multiple of 8");
  bad = good;
  bad.shape = (const int64_t[]){-1, 2};
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL),
                "batch.shape: got -1 on axis 0");
  bad.shape = (const int64_t[]){INT64_MAX / 2, 2};
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "does not fit 63 bits");
  bad.rank = 3;
  bad.shape = (const int64_t[]){0, INT64_MAX / 2, 8};
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "does not fit 63 bits");
  bad = good;
  bad.strides = (const int64_t[]){INT64_MAX / 8, INT64_MAX / 8};
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.strides: got");
  bad.strides = (const int64_t[]){INT64_MIN, 1};
  CHECK_REFUSED(descramble_covariance_update(c, &bad, NULL, NULL, NULL), "batch.strides: got");
  // Of one byte an element, too, where no length but these leads out.
  descramble_array mask = *ARRAY(data, DESCRAMBLE_BOOLEAN, 1, 4);
  mask.strides = (const int64_t[]){INT64_MAX};
  CHECK_REFUSED(descramble_covariance_update(c, &good, &mask, NULL, NULL), "mask.strides: got");
  CHECK_REFUSED(descramble_covariance_update(c, MATRIX(data, 2, 4), NULL, NULL, NULL),
                "got shape (2, 4), expected (..., 2)");
  CHECK_FAILS(
      descramble_covariance_update(c, ARRAY(data, DESCRAMBLE_BOOLEAN, 2, 4, 2), NULL, NULL, NULL),
      DESCRAMBLE_TYPE_ERROR, "dtype bool");

  // Nothing, and no rows, are fine; so is any order of the elements.
  CHECK_OK(descramble_covariance_update(c, MATRIX(NULL, 0, 2), NULL, NULL, NULL));
  int64_t count = 0;
  CHECK_OK(descramble_covariance_count(c, &count));
  CHECK(count == 4);
  const double rising[4] = {1, 2, 3, 4};
  bad = *MATRIX(rising + 3, 2, 2);
  bad.strides = (const int64_t[]){-2, -1};  // 4 3; 2 1
  descramble_covariance* reversed = NULL;
  CHECK_OK(descramble_covariance_create(2, NULL, &reversed));
  CHECK_OK(descramble_covariance_update(reversed, &bad, NULL, NULL, NULL));
  double mean[2];
  CHECK_OK(descramble_covariance_mean(reversed, mean, 2));
  CHECK(mean[0] == 3 && mean[1] == 2);
  descramble_covariance_destroy(reversed);
  descramble_covariance_destroy(c);
}

static void test_covariance(void) {
  // Four points about (1, 2): x = 1 +- 1, y = 2 +- 3.
  const double batch[8] = {2, 5, 2, -1, 0, 5, 0, -1};
  descramble_covariance* c = NULL;
  CHECK_OK(descramble_covariance_create(2, NULL, &c));
  CHECK_OK(descramble_covariance_update(c, MATRIX(batch, 4, 2), NULL, NULL, NULL));
  int64_t size = 0, count = 0;
  double weight = 0, mean[2], moment[4];
  descramble_device device = {DESCRAMBLE_CUDA, 7};
  CHECK_OK(descramble_covariance_size(c, &size));
  CHECK_OK(descramble_covariance_count(c, &count));
  CHECK_OK(descramble_covariance_weight(c, &weight));
  CHECK_OK(descramble_covariance_device(c, &device));
  CHECK_OK(descramble_covariance_mean(c, mean, 2));
  CHECK(size == 2 && count == 4 && weight == 4 && mean[0] == 1 && mean[1] == 2);
  CHECK(device.kind == DESCRAMBLE_CPU && device.index == 0);
  CHECK_OK(descramble_covariance_second_moment(c, moment, 4));
  CHECK(all_near(moment, (const double[]){2, 2, 2, 13}, 4, 1e-14));
  CHECK_OK(descramble_covariance_covariance(c, 1, moment, 4));
  CHECK(all_near(moment, (const double[]){4.0 / 3, 0, 0, 12}, 4, 1e-14));
  CHECK_REFUSED(descramble_covariance_covariance(c, 4, moment, 4), "ddof: got 4");
  CHECK_REFUSED(descramble_covariance_mean(c, mean, 3), "got 3 elements, expected 2");
  CHECK_REFUSED(descramble_covariance_second_moment(c, moment, 2), "got 2 elements, expected 4");
  CHECK_REFUSED(descramble_covariance_second_moment(c, NULL, 4), "out: got NULL");

  // A mask leaves out what it may, NaN among it; a weight counts a row twice.
  const double more[6] = {NAN, 0, 3, 4, 5, 6};
  const uint8_t mask[3] = {0, 1, 1};
  const float weights[3] = {1, 2, 0};
  CHECK_OK(descramble_covariance_update(c, MATRIX(more, 3, 2),
                                        ARRAY(mask, DESCRAMBLE_BOOLEAN, 1, 3),
                                        ARRAY(weights, DESCRAMBLE_FLOAT32, 1, 3), NULL));
  CHECK_OK(descramble_covariance_weight(c, &weight));
  CHECK_OK(descramble_covariance_mean(c, mean, 2));
  CHECK(weight == 6 && near(mean[0], 10.0 / 6, 1e-14) && near(mean[1], 16.0 / 6, 1e-14));
  CHECK_FAILS(descramble_covariance_update(c, MATRIX(more, 3, 2), VECTOR(more, 3), NULL, NULL),
              DESCRAMBLE_TYPE_ERROR, "mask: got dtype float64");
  CHECK_REFUSED(descramble_covariance_update(c, MATRIX(more, 3, 2),
                                             ARRAY(mask, DESCRAMBLE_BOOLEAN, 1, 2), NULL, NULL),
                "mask: got shape (2,)");

  // Saved and read again.
  double reference[2], offset[2], scatter[3], again[7];
  int32_t has_mean = 0;
  CHECK_OK(descramble_covariance_export(c, &count, &weight, &has_mean, reference, offset, 2,
                                        scatter, 3));
  CHECK(count == 5 && weight == 6 && has_mean == 1);
  CHECK(near(reference[0] + offset[0], 10.0 / 6, 1e-14));
  descramble_covariance* copy = NULL;
  CHECK_OK(descramble_covariance_import(count, weight, has_mean, reference, offset, 2, scatter, 3,
                                        NULL, &copy));
  CHECK_OK(descramble_covariance_export(copy, &count, &weight, &has_mean, again, again + 2, 2,
                                        again + 4, 3));
  CHECK(memcmp(again, reference, sizeof reference) == 0 &&
        memcmp(again + 2, offset, sizeof offset) == 0 &&
        memcmp(again + 4, scatter, sizeof scatter) == 0);
  CHECK_REFUSED(
      descramble_covariance_export(c, &count, &weight, NULL, reference, offset, 2, scatter, 3),
      "has_mean: got NULL");
  CHECK_REFUSED(
      descramble_covariance_export(c, &count, &weight, &has_mean, reference, offset, 2, scatter, 4),
      "scatter: got 4 elements, expected 3");

  // NaN changes nothing, and its place is named.
  CHECK_REFUSED(descramble_covariance_update(c, MATRIX(more, 3, 2), NULL, NULL, NULL),
                "row 0, column 0");
  CHECK_OK(descramble_covariance_export(c, &count, &weight, &has_mean, again, again + 2, 2,
                                        again + 4, 3));
  CHECK(count == 5 && weight == 6 && memcmp(again, reference, sizeof reference) == 0 &&
        memcmp(again + 2, offset, sizeof offset) == 0 &&
        memcmp(again + 4, scatter, sizeof scatter) == 0);

  // Merged with its copy, and with itself.
  CHECK_OK(descramble_covariance_second_moment(c, moment, 4));
  double merged[4];
  CHECK_OK(descramble_covariance_merge(c, copy));
  CHECK_OK(descramble_covariance_count(c, &count));
  CHECK_OK(descramble_covariance_second_moment(c, merged, 4));
  CHECK(count == 10 && all_near(moment, merged, 4, 1e-13));
  CHECK_OK(descramble_covariance_merge(c, c));
  CHECK_OK(descramble_covariance_count(c, &count));
  CHECK_OK(descramble_covariance_second_moment(c, merged, 4));
  CHECK(count == 20 && all_near(moment, merged, 4, 1e-13));

  descramble_covariance* other = NULL;
  CHECK_OK(descramble_covariance_create(3, NULL, &other));
  CHECK_REFUSED(descramble_covariance_merge(c, other), "got 3 features, expected 2");
  CHECK_REFUSED(descramble_covariance_merge(c, NULL), "other: got NULL");
  CHECK_REFUSED(descramble_covariance_mean(other, again, 3), "no samples");
  descramble_covariance_destroy(other);
  descramble_covariance_destroy(copy);
  descramble_covariance_destroy(c);

  CHECK_OK(descramble_covariance_from_moments(MATRIX(moment, 2, 2), NULL, 3, NULL, &c));
  CHECK_OK(descramble_covariance_second_moment(c, merged, 4));
  CHECK(all_near(moment, merged, 4, 1e-13));
  CHECK_REFUSED(descramble_covariance_update(c, MATRIX(batch, 4, 2), NULL, NULL, NULL), "no mean");
  descramble_covariance_destroy(c);
  // W x + b with x of mean 0 and moment I: W W^T + b b^T.
  CHECK_OK(descramble_preactivation_moment(MATRIX(((const double[]){1, 2, 0, 3}), 2, 2),
                                           VECTOR(((const double[]){1, -1}), 2), NULL, NULL, NULL,
                                           &c));
  CHECK_OK(descramble_covariance_second_moment(c, merged, 4));
  CHECK(all_near(merged, (const double[]){6, 5, 5, 10}, 4, 1e-13));
  descramble_covariance_destroy(c);

  c = (descramble_covariance*)&size;  // is overwritten even so
  CHECK_REFUSED(descramble_covariance_create(0, NULL, &c), "n_features: got 0");
  CHECK(c == NULL);
  CHECK_REFUSED(descramble_covariance_import(0, 0, 1, reference, offset, 2, scatter, 2, NULL, &c),
                "scatter: got 2 elements, expected 3");
  // What updates would have refused.
  const double vast[2] = {1e200, 0}, none[3] = {0}, one[3] = {1, 0, 1}, tiny = 1e-300;
  CHECK_REFUSED(descramble_covariance_import(1, 1, 1, vast, none, 2, none, 3, NULL, &c),
                "overflows at row 0, column 0");
  CHECK_REFUSED(descramble_covariance_import(1, 1, 1, vast, vast, 2, one, 3, NULL, &c),
                "overflows at row 0, column 0");
  CHECK_REFUSED(descramble_covariance_import(1, tiny * tiny, 1, none, none, 2, one, 3, NULL, &c),
                "expected 0 where the weight is 0");
  CHECK_REFUSED(descramble_covariance_import(1, tiny, 1, none, none, 2,
                                             (const double[]){1e10, 0, 0}, 3, NULL, &c),
                "quotient by the weight");
  CHECK_REFUSED(descramble_covariance_import(0, NAN, 1, reference, offset, 2, scatter, 3, NULL, &c),
                "weight: got nan");
  CHECK(c == NULL);
  int32_t available = 1;
  CHECK_OK(descramble_cuda_available(0, &available));
  if (!available) {
    CHECK_FAILS(
        descramble_covariance_create_on(2, (descramble_device){DESCRAMBLE_CUDA, 0}, 0, NULL, &c),
        DESCRAMBLE_BACKEND_ERROR, "CUDA");
    CHECK(c == NULL);
  }
  CHECK_OK(descramble_covariance_create_on(2, (descramble_device){DESCRAMBLE_CPU, 0}, 0, NULL, &c));
  descramble_covariance_destroy(c);
}

// Rows that wait keep nothing of an update that is refused.
static void test_refused_weights(void) {
  uint16_t rows[64 * 4];
  for (int i = 0; i < 64 * 4; ++i)  // from 1 to 2, of both signs
    rows[i] = (uint16_t)(0x3f80 + 31 * i % 128 + i % 3 / 2 * 0x8000);
  const float weights[1] = {1};
  const descramble_array* const few = ARRAY(rows, DESCRAMBLE_BFLOAT16, 2, 20, 4);
  double states[2][4 + 4 + 10];
  for (int refused = 0; refused < 2; ++refused) {
    descramble_covariance* c = NULL;
    CHECK_OK(descramble_covariance_create(4, NULL, &c));
    CHECK_OK(descramble_covariance_update(c, few, NULL, NULL, NULL));
    const uint16_t nan[4] = {0x7fc0, 0, 0, 0};
    if (refused)
      CHECK_REFUSED(descramble_covariance_update(c, ARRAY(nan, DESCRAMBLE_BFLOAT16, 2, 1, 4), NULL,
                                                 ARRAY(weights, DESCRAMBLE_FLOAT32, 1, 1), NULL),
                    "NaN");
    int64_t count = 0;
    double weight = 0;
    int32_t has_mean = 0;
    CHECK_OK(descramble_covariance_export(c, &count, &weight, &has_mean, states[refused],
                                          states[refused] + 4, 4, states[refused] + 8, 10));
    descramble_covariance_destroy(c);
  }
  CHECK(memcmp(states[0], states[1], sizeof states[0]) == 0);
}

static void test_cross_covariance(void) {
  const double x[4] = {1, 2, 3, 4}, y[4] = {2, 4, 6, 9};
  descramble_cross_covariance *c = NULL, *other = NULL;
  CHECK_OK(descramble_cross_covariance_create(1, 1, NULL, &c));
  CHECK_OK(descramble_cross_covariance_create_on(1, 1, (descramble_device){DESCRAMBLE_CPU, 0}, 0,
                                                 NULL, &other));
  CHECK_OK(
      descramble_cross_covariance_update(c, MATRIX(x, 2, 1), MATRIX(y, 2, 1), NULL, NULL, NULL));
  CHECK_OK(descramble_cross_covariance_update(other, MATRIX(x + 2, 2, 1), MATRIX(y + 2, 2, 1), NULL,
                                              NULL, NULL));
  CHECK_OK(descramble_cross_covariance_merge(c, other));
  int64_t count = 0;
  double weight = 0, out = 0;
  CHECK_OK(descramble_cross_covariance_count(c, &count));
  CHECK_OK(descramble_cross_covariance_weight(c, &weight));
  CHECK(count == 4 && weight == 4);
  CHECK_OK(descramble_cross_covariance_cross_moment(c, &out, 1));
  CHECK(near(out, 64.0 / 4, 1e-14));
  CHECK_OK(descramble_cross_covariance_cross_covariance(c, 1, &out, 1));
  CHECK(near(out, 11.5 / 3, 1e-14));
  CHECK_OK(descramble_cross_covariance_correlation(c, &out, 1));
  CHECK(near(out, 11.5 / sqrt(5 * 26.75), 1e-14));
  CHECK_REFUSED(descramble_cross_covariance_correlation(c, &out, 2), "got 2 elements, expected 1");
  CHECK_REFUSED(
      descramble_cross_covariance_update(c, MATRIX(x, 4, 1), MATRIX(y, 2, 1), NULL, NULL, NULL),
      "same leading axes");
  descramble_cross_covariance_destroy(other);
  descramble_cross_covariance_destroy(c);
}

static void test_operators(void) {
  descramble_operator *fourier = NULL, *path = NULL, *grid = NULL, *dense = NULL, *central = NULL;
  double l[6], modes[36];
  int64_t size = 0;
  CHECK_OK(descramble_operator_fourier(6, 2, &fourier));
  CHECK_OK(descramble_operator_size(fourier, &size));
  CHECK_OK(descramble_operator_eigenvalues(fourier, l, 6));
  CHECK(size == 6 && all_near(l, (const double[]){0, 1, 1, 16, 16, 81}, 6, 1e-12));
  CHECK_OK(descramble_operator_central_difference(6, &central));
  CHECK_OK(descramble_operator_eigenvalues(central, l, 6));
  CHECK(all_near(l, (const double[]){0, 0, 0.75, 0.75, 0.75, 0.75}, 6, 1e-12));

  // The reflecting Laplacian of a path of three, as it stands and as a matrix.
  const double laplacian[9] = {1, -1, 0, -1, 2, -1, 0, -1, 1}, x[6] = {1, 0, 0, 1, 2, 4};
  double out[6];
  CHECK_OK(descramble_operator_difference(3, 1, DESCRAMBLE_PATH, &path));
  CHECK_OK(descramble_operator_apply(path, MATRIX(x, 2, 3), NULL, out, 6));
  CHECK(all_near(out, (const double[]){1, -1, 0, -1, -1, 2}, 6, 1e-12));
  CHECK_OK(descramble_operator_from_matrix(MATRIX(laplacian, 3, 3), NULL, &dense));
  CHECK_OK(descramble_operator_eigenvalues(dense, l, 3));
  CHECK(all_near(l, (const double[]){0, 1, 3}, 3, 1e-12));

  CHECK_OK(descramble_operator_modes(path, modes, 9));
  CHECK_OK(descramble_operator_analyze(path, MATRIX(x, 2, 3), NULL, out, 6));
  double expected[6];
  multiply(x, modes, 2, 3, 3, 1, expected);
  CHECK(all_near(out, expected, 6, 1e-12));
  CHECK_OK(descramble_operator_synthesize(path, MATRIX(expected, 2, 3), NULL, out, 6));
  CHECK(all_near(out, x, 6, 1e-12));

  CHECK_OK(descramble_operator_grid((const descramble_operator* const[]){path, dense}, 2, &grid));
  descramble_operator_destroy(path);
  descramble_operator_destroy(dense);
  double sums[9];
  CHECK_OK(descramble_operator_eigenvalues(grid, sums, 9));
  CHECK(all_near(sums, (const double[]){0, 1, 1, 2, 3, 3, 4, 4, 6}, 9, 1e-12));

  descramble_operator* none = grid;
  CHECK_REFUSED(descramble_operator_fourier(0, 2, &none), "n: got 0");
  CHECK(none == NULL);
  CHECK_REFUSED(descramble_operator_fourier(4, 0, &none), "order: got 0");
  CHECK_REFUSED(descramble_operator_difference(4, 1, 2, &none), "boundary: got 2, expected 0 to 1");
  CHECK_REFUSED(descramble_operator_difference(4, 1, -1, &none), "boundary: got -1");
  CHECK_REFUSED(descramble_operator_grid(NULL, 2, &none), "axes: got NULL");
  CHECK_REFUSED(
      descramble_operator_grid((const descramble_operator* const[]){grid, NULL}, 2, &none),
      "axes[1]: got NULL");
  CHECK_REFUSED(descramble_operator_grid((const descramble_operator* const[]){grid}, -1, &none),
                "count: got -1");
  CHECK_REFUSED(descramble_operator_from_matrix(MATRIX(x, 2, 3), NULL, &none), "expected (n, n)");
  CHECK_REFUSED(descramble_operator_modes(fourier, modes, 6), "got 6 elements, expected 36");
  CHECK_REFUSED(descramble_operator_apply(fourier, MATRIX(x, 2, 3), NULL, out, 6),
                "the operator acts on 6");
  CHECK_REFUSED(descramble_operator_apply(grid, MATRIX(sums, 1, 9), NULL, out, 6),
                "got 6 elements, expected 9");
  descramble_operator_destroy(fourier);
  descramble_operator_destroy(central);
  descramble_operator_destroy(grid);
}

static void test_eigh(void) {
  // Eigenvalues 1 and 3, 4 and 6.
  const double a[8] = {2, 1, 1, 2, 5, -1, -1, 5};
  double w[4], v[8], residual[2], orthogonality_error[2];
  CHECK_OK(descramble_eigh_float64(ARRAY(a, DESCRAMBLE_FLOAT64, 3, 2, 2, 2), 0, NULL, w, 4, v, 8,
                                   residual, orthogonality_error, 2));
  CHECK(all_near(w, (const double[]){1, 3, 4, 6}, 4, 1e-14));
  CHECK(near(fabs(v[2]), sqrt(0.5), 1e-14) && near(v[2], v[3], 1e-14) && near(v[4], v[5], 1e-14));
  CHECK(residual[1] <= 1e-13 && orthogonality_error[1] <= 1e-13);
  CHECK_OK(descramble_eigh_float64(ARRAY(a, DESCRAMBLE_FLOAT64, 3, 2, 2, 2), 1, NULL, w, 2, v, 4,
                                   NULL, NULL, 2));
  CHECK(all_near(w, (const double[]){3, 6}, 2, 1e-14));
  const float narrow[4] = {2, 1, 1, 2};
  float w_narrow[2], v_narrow[4];
  CHECK_OK(descramble_eigh_float32(ARRAY(narrow, DESCRAMBLE_FLOAT32, 2, 2, 2), 0, NULL, w_narrow, 2,
                                   v_narrow, 4, NULL, NULL, 1));
  CHECK(near(w_narrow[0], 1, 1e-6) && near(w_narrow[1], 3, 1e-6));
  CHECK_FAILS(
      descramble_eigh_float32(MATRIX(a, 2, 2), 0, NULL, w_narrow, 2, v_narrow, 4, NULL, NULL, 1),
      DESCRAMBLE_TYPE_ERROR, "float64");
  CHECK_REFUSED(descramble_eigh_float64(MATRIX(a, 2, 2), -1, NULL, w, 2, v, 4, NULL, NULL, 1),
                "k: got -1");
  CHECK_REFUSED(descramble_eigh_float64(MATRIX(a, 2, 2), 3, NULL, w, 3, v, 6, NULL, NULL, 1),
                "k: got 3");
  CHECK_REFUSED(descramble_eigh_float64(MATRIX(a, 2, 2), 0, NULL, w, 4, v, 4, NULL, NULL, 1),
                "eigenvalues: got 4 elements, expected 2");
  CHECK_REFUSED(descramble_eigh_float64(MATRIX(a, 2, 2), 0, NULL, w, 2, v, 2, NULL, NULL, 1),
                "eigenvectors: got 2 elements, expected 4");
  CHECK_REFUSED(descramble_eigh_float64(MATRIX(a, 2, 2), 0, NULL, w, 2, v, 4, NULL, NULL, 2),
                "batch: got 2, expected 1");
  CHECK_REFUSED(descramble_eigh_float64(VECTOR(a, 8), 0, NULL, w, 8, v, 8, NULL, NULL, 1), "a:");
  CHECK_REFUSED(descramble_eigh_float64(MATRIX(((const double[]){1, 0, NAN, 1}), 2, 2), 0, NULL, w,
                                        2, v, 4, NULL, NULL, 1),
                "row 1, column 0");
}

enum { N = 12 };

// C = sum_i c_i u_i u_i^T, u the modes of another operator in reversed order: eigenvalues and the
// minimum of the criterion are known.
static descramble_covariance* known_covariance(const double* mean) {
  double modes[N * N], moment[N * N];
  descramble_operator* op = NULL;
  CHECK_OK(descramble_operator_difference(N, 2, DESCRAMBLE_PATH, &op));
  CHECK_OK(descramble_operator_modes(op, modes, N * N));
  descramble_operator_destroy(op);
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) {
      moment[i * N + j] = 0;
      for (int k = 0; k < N; ++k)
        moment[i * N + j] += (N - k) * modes[(N - 1 - k) * N + i] * modes[(N - 1 - k) * N + j];
      if (mean != NULL) moment[i * N + j] += mean[i] * mean[j];
    }
  descramble_covariance* c = NULL;
  CHECK_OK(descramble_covariance_from_moments(
      MATRIX(moment, N, N), mean == NULL ? NULL : VECTOR(mean, N), 100, NULL, &c));
  return c;
}

static void test_smoothness(void) {
  descramble_covariance* c = known_covariance(NULL);
  descramble_operator* op = NULL;
  CHECK_OK(descramble_operator_fourier(N, 2, &op));
  descramble_descrambler* d = NULL;
  CHECK_OK(descramble_smoothness(c, op, NULL, NULL, &d));
  double l[N], eigenvalues[N], cost = 0;
  CHECK_OK(descramble_operator_eigenvalues(op, l, N));
  for (int i = 0; i < N; ++i) cost += (N - i) * l[i];
  descramble_descrambler_report report = {.struct_size = sizeof report};
  CHECK_OK(descramble_descrambler_read(d, &report));
  CHECK(report.struct_size == sizeof report && report.size == N && report.rank == N);
  CHECK(near(report.cost, cost, 1e-10 * cost) && near(report.bound, cost, 1e-10 * cost));
  CHECK(report.initial_cost > report.cost && report.cost_error < 1e-9 * cost);
  CHECK(report.orthogonality_error < 1e-12 && report.blocks == 0 && report.has_mean == 0);
  CHECK(isnan(report.gauge_distance) && isnan(report.stationarity) && report.gauge_exact == 0);
  CHECK_OK(descramble_descrambler_eigenvalues(d, eigenvalues, N));
  for (int i = 0; i < N; ++i) CHECK(near(eigenvalues[i], N - i, 1e-12));

  // P = T U^T, in every form in which it can be had.
  double p[N * N], components[N * N], modes[N * N], out[3 * N], expected[3 * N], transposed[N * N];
  CHECK_OK(descramble_descrambler_matrix(d, p, N * N));
  CHECK_OK(descramble_descrambler_components(d, components, N * N));
  CHECK_OK(descramble_descrambler_modes(d, modes, N * N));
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) transposed[i * N + j] = modes[j * N + i];
  double product[N * N];
  multiply(transposed, components, N, N, N, 0, product);
  CHECK(all_near(product, p, N * N, 1e-12));
  double* const x = random_numbers(3 * N, 1);
  CHECK_OK(descramble_descrambler_transform(d, MATRIX(x, 3, N), NULL, out, 3 * N));
  multiply(x, p, 3, N, N, 1, expected);
  CHECK(all_near(out, expected, 3 * N, 1e-12));
  CHECK_OK(descramble_descrambler_inverse_transform(d, MATRIX(expected, 3, N), NULL, out, 3 * N));
  CHECK(all_near(out, x, 3 * N, 1e-12));
  CHECK_OK(descramble_descrambler_transform_next_weight(d, MATRIX(x, 3, N), NULL, out, 3 * N));
  CHECK(all_near(out, expected, 3 * N, 1e-12));
  CHECK_OK(descramble_descrambler_transform_weight(d, MATRIX(x, N, 3), NULL, out, 3 * N));
  multiply(p, x, N, N, 3, 0, expected);
  CHECK(all_near(out, expected, 3 * N, 1e-12));
  CHECK_OK(descramble_descrambler_transform_bias(d, VECTOR(x, N), NULL, out, N));
  multiply(p, x, N, N, 1, 0, expected);
  CHECK(all_near(out, expected, N, 1e-12));
  CHECK_REFUSED(descramble_descrambler_transform(d, MATRIX(x, 3, N), NULL, out, N),
                "got 12 elements, expected 36");
  CHECK_REFUSED(descramble_descrambler_transform(d, MATRIX(x, N, 3), NULL, out, 3 * N),
                "samples: got shape (12, 3)");
  CHECK_REFUSED(descramble_descrambler_mean(d, out, N), "no mean");
  CHECK_OK(descramble_descrambler_blocks(d, NULL, 0));
  CHECK_REFUSED(descramble_descrambler_blocks(d, (int64_t[]){0, 0}, 2),
                "got 2 elements, expected 0");
  descramble_device device = {DESCRAMBLE_CUDA, 7};
  CHECK_OK(descramble_descrambler_device(d, &device));
  CHECK(device.kind == DESCRAMBLE_CPU && device.index == 0);

  // Modes of the path are no modes of the circle, but of each other.
  int64_t matched[N], reversed[N];
  double correlation[N], score = 0;
  descramble_operator* path = NULL;
  descramble_descrambler* on_path = NULL;
  CHECK_OK(descramble_operator_difference(N, 1, DESCRAMBLE_PATH, &path));
  CHECK_OK(descramble_smoothness(c, path, NULL, NULL, &on_path));
  CHECK_OK(descramble_match_modes(on_path, NULL, matched, correlation, N, &score));
  for (int i = 0; i < N; ++i) reversed[i] = N - 1 - i;
  CHECK(same(matched, reversed, N) && near(correlation[0], 1, 1e-12) && near(score, 1, 1e-12));
  CHECK_REFUSED(descramble_match_modes(on_path, NULL, matched, correlation, N - 1, &score),
                "got 11 elements, expected 12");
  descramble_descrambler_destroy(on_path);
  descramble_operator_destroy(path);

  // Options. The reference nearest to which P is chosen is a P itself, with other signs.
  descramble_smoothness_options options = {.struct_size = sizeof options, .k = 3};
  descramble_descrambler* other = NULL;
  CHECK_OK(descramble_smoothness(c, op, &options, NULL, &other));
  CHECK_OK(descramble_descrambler_read(other, &report));
  CHECK(report.rank == 3);
  CHECK_OK(descramble_descrambler_components(other, out, 3 * N));
  CHECK(all_near(out, components, 3 * N, 1e-11));
  descramble_descrambler_destroy(other);
  for (int i = 0; i < N * N; ++i) p[i] = -p[i];
  options = (descramble_smoothness_options){.struct_size = sizeof options,
                                            .gauge = DESCRAMBLE_GAUGE_REFERENCE,
                                            .reference = MATRIX(p, N, N)};
  CHECK_OK(descramble_smoothness(c, op, &options, NULL, &other));
  CHECK_OK(descramble_descrambler_matrix(other, product, N * N));
  CHECK(all_near(product, p, N * N, 1e-11));
  CHECK_OK(descramble_descrambler_read(other, &report));
  CHECK(report.gauge_exact == 1 && report.gauge_distance < 1e-10);
  descramble_descrambler_destroy(other);
  options.reference = NULL;
  CHECK_REFUSED(descramble_smoothness(c, op, &options, NULL, &other), "gauge");
  CHECK(other == NULL);
  options.gauge = 3;
  CHECK_REFUSED(descramble_smoothness(c, op, &options, NULL, &other), "options.gauge: got 3");
  options = (descramble_smoothness_options){.struct_size = sizeof options, .k = -2};
  CHECK_REFUSED(descramble_smoothness(c, op, &options, NULL, &other), "k: got -2");
  options.k = 0;
  options.struct_size = sizeof options + 8;
  CHECK_REFUSED(descramble_smoothness(c, op, &options, NULL, &other), "options.struct_size: got");
  options = (descramble_smoothness_options){.struct_size = sizeof options, .center = 1};
  CHECK_REFUSED(descramble_smoothness(c, op, &options, NULL, &other), "without a mean");
  report.struct_size = 0;
  CHECK_REFUSED(descramble_descrambler_read(d, &report), "out.struct_size: got 0");

  // Centred: the mean is subtracted, and added again.
  double mean[N], got[N];
  for (int i = 0; i < N; ++i) mean[i] = i % 3;
  descramble_covariance* centred = known_covariance(mean);
  CHECK_OK(descramble_smoothness(centred, op, &options, NULL, &other));
  report.struct_size = sizeof report;
  CHECK_OK(descramble_descrambler_read(other, &report));
  CHECK(report.has_mean == 1 && near(report.cost, cost, 1e-10 * cost));
  CHECK_OK(descramble_descrambler_mean(other, got, N));
  CHECK(all_near(got, mean, N, 1e-14));
  CHECK_OK(descramble_descrambler_transform(other, MATRIX(mean, 1, N), NULL, got, N));
  for (int i = 0; i < N; ++i) CHECK(near(got[i], 0, 1e-12));
  descramble_descrambler_destroy(other);

  // Many at once.
  descramble_descrambler* many[2] = {NULL, NULL};
  const descramble_covariance* const covariances[2] = {c, centred};
  const descramble_operator* const ops[2] = {op, op};
  CHECK_OK(descramble_smoothness_many(covariances, ops, 2, NULL, NULL, many));
  CHECK_OK(descramble_descrambler_read(many[0], &report));
  CHECK(near(report.cost, cost, 1e-10 * cost));
  descramble_descrambler_destroy(many[0]);
  descramble_descrambler_destroy(many[1]);
  many[0] = many[1] = d;
  CHECK_REFUSED(descramble_smoothness_many((const descramble_covariance* const[]){c, NULL}, ops, 2,
                                           NULL, NULL, many),
                "covariances[1]: got NULL");
  CHECK(many[0] == NULL && many[1] == NULL);
  CHECK_REFUSED(descramble_smoothness_many(covariances, ops, -1, NULL, NULL, many),
                "count: got -1");

  free(x);
  descramble_covariance_destroy(centred);
  descramble_covariance_destroy(c);
  descramble_operator_destroy(op);
  descramble_descrambler_destroy(d);
}

static void test_other_criteria(void) {
  // W = 2 swapped columns: P swaps them back.
  const double w[4] = {0, 2, 3, 0};
  descramble_descrambler* d = NULL;
  descramble_descrambler_report report = {.struct_size = sizeof report};
  double p[4];
  CHECK_OK(descramble_trace(MATRIX(w, 2, 2), NULL, &d));
  CHECK_OK(descramble_descrambler_read(d, &report));
  CHECK(near(report.cost, 5, 1e-13) && near(report.bound, 5, 1e-13) && report.initial_cost == 0 &&
        report.rank == 2);
  CHECK(near(report.stationarity, 0, 1e-13) && isnan(report.cost_error));
  CHECK_OK(descramble_descrambler_matrix(d, p, 4));
  CHECK(all_near(p, (const double[]){0, 1, 1, 0}, 4, 1e-13));
  CHECK_REFUSED(descramble_descrambler_components(d, p, 4), "no components");
  CHECK_REFUSED(descramble_match_modes(d, NULL, (int64_t[]){0, 0}, NULL, 2, NULL), "no components");
  descramble_descrambler_destroy(d);
  CHECK_OK(descramble_diagonal(MATRIX(w, 2, 2), NULL, &d));
  CHECK_OK(descramble_descrambler_read(d, &report));
  CHECK(near(report.cost, 13, 1e-12) && near(report.bound, 13, 1e-12));
  descramble_descrambler_destroy(d);
  CHECK_REFUSED(descramble_trace(VECTOR(w, 4), NULL, &d), "W: got shape (4,)");
  CHECK(d == NULL);

  // A kernel of one 3: C = 9 I, whatever P is.
  const double kernel[1] = {3};
  const int64_t spatial_shape[1] = {5};
  CHECK_OK(descramble_convolution(ARRAY(kernel, DESCRAMBLE_FLOAT64, 3, 1, 1, 1), spatial_shape, 1,
                                  NULL, NULL, &d));
  CHECK_OK(descramble_descrambler_read(d, &report));
  CHECK(report.size == 5 && report.rank == 5 && near(report.cost, 9 * 34, 1e-10) &&
        report.blocks == 1);
  double c[5], matrix[25];
  int64_t block[2];
  CHECK_OK(descramble_descrambler_eigenvalues(d, c, 5));
  CHECK(all_near(c, (const double[]){9, 9, 9, 9, 9}, 5, 1e-12));
  CHECK_OK(descramble_descrambler_blocks(d, block, 2));
  CHECK(block[0] == 0 && block[1] == 5);
  CHECK_OK(descramble_descrambler_matrix(d, matrix, 25));
  CHECK_REFUSED(descramble_descrambler_components(d, matrix, 25), "no components");
  descramble_descrambler_destroy(d);
  CHECK_REFUSED(descramble_convolution(ARRAY(kernel, DESCRAMBLE_FLOAT64, 3, 1, 1, 1), spatial_shape,
                                       4, NULL, NULL, &d),
                "spatial_rank: got 4");
  CHECK_REFUSED(descramble_convolution(ARRAY(kernel, DESCRAMBLE_FLOAT64, 3, 1, 1, 1), NULL, 1, NULL,
                                       NULL, &d),
                "spatial_shape: got NULL");
}

static void test_assignments(void) {
  const double cost[9] = {4, 1, 3, 2, 0, 5, 3, 2, 2};
  int64_t columns[3];
  double total = 0, gap = 1, violation = 1, row_duals[3], column_duals[3], duals = 0;
  descramble_linear_assignment_report out = {.struct_size = sizeof out,
                                             .columns = columns,
                                             .columns_size = 3,
                                             .row_duals = row_duals,
                                             .row_duals_size = 3,
                                             .column_duals = column_duals,
                                             .column_duals_size = 3,
                                             .cost = &total,
                                             .gap = &gap,
                                             .violation = &violation,
                                             .batch = 1};
  CHECK_OK(descramble_linear_assignment(MATRIX(cost, 3, 3), NULL, NULL, &out));
  CHECK(same(columns, (const int64_t[]){1, 0, 2}, 3) && total == 5 && gap == 0 && violation == 0);
  for (int i = 0; i < 3; ++i) duals += row_duals[i] + column_duals[i];
  CHECK(near(duals, 5, 1e-13));
  descramble_linear_assignment_options options = {.struct_size = sizeof options, .maximize = 1};
  CHECK_OK(descramble_linear_assignment(MATRIX(cost, 3, 3), &options, NULL, &out));
  CHECK(same(columns, (const int64_t[]){0, 2, 1}, 3) && total == 11);
  options = (descramble_linear_assignment_options){.struct_size = sizeof options,
                                                   .initial_duals = VECTOR(column_duals, 3)};
  CHECK_OK(descramble_linear_assignment(MATRIX(cost, 3, 3), &options, NULL, &out));
  CHECK(total == 5);
  // What is not wanted has no size.
  descramble_linear_assignment_report part = {
      .struct_size = sizeof part, .columns = columns, .columns_size = 3};
  CHECK_OK(descramble_linear_assignment(MATRIX(cost, 3, 1), NULL, NULL, &part));
  CHECK(same(columns, (const int64_t[]){-1, 0, -1}, 3) ||
        columns[0] + columns[1] + columns[2] == -2);
  CHECK_REFUSED(descramble_linear_assignment(MATRIX(cost, 2, 3), NULL, NULL, &part),
                "columns: got 3 elements, expected 2");
  part.columns_size = 2;
  CHECK_REFUSED(descramble_linear_assignment(
                    MATRIX(((const double[]){INFINITY, INFINITY, 1, 2}), 2, 2), NULL, NULL, &part),
                "row 0");
  CHECK_REFUSED(descramble_linear_assignment(MATRIX(((const double[]){NAN, 0, 1, 2}), 2, 2), NULL,
                                             NULL, &part),
                "NaN");
  CHECK_REFUSED(descramble_linear_assignment(MATRIX(cost, 2, 2), NULL, NULL, NULL),
                "out: got NULL");
  part.struct_size = 8;
  CHECK_REFUSED(descramble_linear_assignment(MATRIX(cost, 2, 2), NULL, NULL, &part),
                "out.struct_size: got 8");

  // A path of five, and the same with its places in another order.
  double a[25] = {0}, b[25] = {0};
  const int64_t order[5] = {3, 0, 4, 1, 2};
  for (int i = 0; i < 4; ++i) {
    a[i * 5 + i + 1] = i + 1;
    b[order[i] * 5 + order[i + 1]] = i + 1;
  }
  int64_t found[5];
  descramble_permutation_report report = {.struct_size = sizeof report};
  descramble_quadratic_assignment_options quadratic = {
      .struct_size = sizeof quadratic, .maximize = 1, .restarts = 4, .initial = order};
  CHECK_OK(descramble_quadratic_assignment(MATRIX(a, 5, 5), MATRIX(b, 5, 5), &quadratic, NULL,
                                           found, 5, &report));
  CHECK(same(found, order, 5) && report.cost == 30 && report.initial_cost == 30 &&
        isnan(report.bound));
  CHECK(report.stopped == DESCRAMBLE_FINISHED);
  quadratic.initial = NULL;
  quadratic.partial_match = (const int64_t[]){0, 0, 1, 1};
  quadratic.partial_match_count = 2;
  CHECK_OK(descramble_quadratic_assignment(MATRIX(a, 5, 5), MATRIX(b, 5, 5), &quadratic, NULL,
                                           found, 5, NULL));
  CHECK(found[0] == 0 && found[1] == 1);
  quadratic.partial_match = NULL;
  CHECK_REFUSED(descramble_quadratic_assignment(MATRIX(a, 5, 5), MATRIX(b, 5, 5), &quadratic, NULL,
                                                found, 5, NULL),
                "partial_match: got NULL");
  quadratic.partial_match_count = -1;
  CHECK_REFUSED(descramble_quadratic_assignment(MATRIX(a, 5, 5), MATRIX(b, 5, 5), &quadratic, NULL,
                                                found, 5, NULL),
                "partial_match_count: got -1");
  CHECK_REFUSED(
      descramble_quadratic_assignment(MATRIX(a, 5, 5), MATRIX(b, 5, 5), NULL, NULL, found, 4, NULL),
      "columns: got 4 elements, expected 5");
}

static void test_permutations(void) {
  // Neurons on a line: the smoothest order is theirs along it, either way round.
  const double x[6] = {3, 0, 7, 1, 4.5, -2};
  const int64_t along[6] = {5, 1, 3, 0, 4, 2}, back[6] = {2, 4, 0, 3, 1, 5};
  descramble_covariance* c = NULL;
  descramble_operator* op = NULL;
  CHECK_OK(descramble_covariance_create(6, NULL, &c));
  CHECK_OK(descramble_covariance_update(c, MATRIX(x, 1, 6), NULL, NULL, NULL));
  CHECK_OK(descramble_operator_difference(6, 1, DESCRAMBLE_PATH, &op));
  int64_t order[6], signs[6];
  descramble_permutation_report report = {.struct_size = sizeof report};
  descramble_search_options options = {.struct_size = sizeof options, .seed = 3, .restarts = 2};
  CHECK_OK(descramble_permutation(c, op, &options, NULL, order, 6, &report));
  CHECK(same(order, along, 6) || same(order, back, 6));
  CHECK(near(report.cost, 4 + 1 + 4 + 2.25 + 6.25, 1e-12) &&
        near(report.initial_cost, 9 + 49 + 36 + 12.25 + 42.25, 1e-12));
  CHECK(report.bound <= report.cost && report.tree_bound <= report.cost);
  CHECK(report.stopped == DESCRAMBLE_FINISHED);
  CHECK_REFUSED(descramble_permutation(c, op, &options, NULL, order, 5, &report),
                "permutation: got 5 elements, expected 6");
  options.restarts = -1;
  CHECK_REFUSED(descramble_permutation(c, op, &options, NULL, order, 6, &report),
                "restarts: got -1");
  report.struct_size = 1;
  CHECK_REFUSED(descramble_permutation(c, op, NULL, NULL, order, 6, &report),
                "report.struct_size: got 1");
  report.struct_size = sizeof report;
  descramble_operator_destroy(op);
  descramble_covariance_destroy(c);

  const double p[9] = {0, 0, -3, 2, 0, 0, 0, 1, 0};
  const int64_t rows[3] = {1, 2, 0}, columns[3] = {2, 0, 1};
  CHECK_OK(descramble_permute_diagonal(MATRIX(p, 3, 3), NULL, order, 3, &report));
  CHECK(same(order, rows, 3) && report.cost == 14 && report.initial_cost == 0 &&
        report.bound == 14);
  CHECK_OK(descramble_permute_trace(MATRIX(((const double[]){0, 3, 2, 0}), 2, 2), NULL, order, 2,
                                    &report));
  CHECK(order[0] == 1 && order[1] == 0 && report.cost == 5 && isnan(report.tree_bound));
  CHECK_OK(descramble_nearest_permutation(MATRIX(p, 3, 3), NULL, order, signs, 3, &report));
  CHECK(same(order, columns, 3) && same(signs, (const int64_t[]){-1, 1, 1}, 3) && report.cost == 6);
  CHECK_OK(descramble_match_neurons(MATRIX(p, 3, 3), NULL, order, NULL, 3, NULL));
  CHECK(same(order, (const int64_t[]){1, 0, 2}, 3));
  CHECK_REFUSED(descramble_match_neurons(MATRIX(p, 3, 3), NULL, order, NULL, 4, NULL),
                "permutation: got 4 elements, expected 3");
  CHECK_REFUSED(descramble_nearest_permutation(MATRIX(p, 1, 9), NULL, order, NULL, 1, NULL),
                "P: got shape (1, 9)");
}

// A caller's executor, allocator, log and poll, single-threaded.
typedef struct {
  int runs, tasks, limit, refuse;
} executor_state;

static int32_t run(void* user, int32_t count, void (*task)(void*, int32_t), void* argument) {
  executor_state* const state = user;
  ++state->runs;
  if (state->refuse) return 1;
  for (int32_t i = 0; i < count && i < state->limit; ++i, ++state->tasks) task(argument, i);
  return 0;
}

typedef struct {
  int64_t allocations, live_bytes;
  int misaligned;
} allocator_state;

typedef struct {
  void* block;
  size_t bytes, alignment;
} header;

static void* allocate(void* user, size_t bytes, size_t alignment) {
  allocator_state* const state = user;
  char* const block = malloc(bytes + 2 * alignment + sizeof(header));
  if (block == NULL) return NULL;
  const uintptr_t first = (uintptr_t)(block + sizeof(header));
  char* const memory = block + sizeof(header) + (alignment - first % alignment) % alignment +
                       (state->misaligned ? 8 : 0);
  const header h = {block, bytes, alignment};
  memcpy(memory - sizeof h, &h, sizeof h);
  ++state->allocations;
  state->live_bytes += (int64_t)bytes;
  return memory;
}

static void release(void* user, void* memory, size_t bytes, size_t alignment) {
  allocator_state* const state = user;
  header h;
  memcpy(&h, (char*)memory - sizeof h, sizeof h);
  CHECK(h.bytes == bytes && h.alignment == alignment);
  state->live_bytes -= (int64_t)bytes;
  free(h.block);
}

typedef struct {
  int infos, warnings;
  char last[64];
} log_state;

static void log_line(void* user, descramble_severity severity, const char* text) {
  log_state* const state = user;
  ++*(severity == DESCRAMBLE_INFO ? &state->infos : &state->warnings);
  snprintf(state->last, sizeof state->last, "%s", text);
}

typedef struct {
  int calls, cancel_at;
} poll_state;

// It makes calls of its own.
static int32_t poll(void* user) {
  poll_state* const state = user;
  descramble_covariance* c = NULL;
  CHECK_OK(descramble_covariance_create(2, NULL, &c));
  CHECK_OK(
      descramble_covariance_update(c, MATRIX(((const double[]){1, 2}), 1, 2), NULL, NULL, NULL));
  descramble_covariance_destroy(c);
  return ++state->calls == state->cancel_at;
}

static void test_context(void) {
  enum { size = 300 };
  executor_state executor = {0, 0, 1000, 0};
  allocator_state allocator = {0, 0, 0};
  log_state log = {0, 0, ""};
  poll_state polls = {0, 0};
  double* const a = random_symmetric(size, 1);
  double* const expected = malloc(sizeof(double) * size);
  double* const w = malloc(sizeof(double) * size);
  double* const v = malloc(sizeof(double) * size * size);
  const descramble_array* const matrix = MATRIX(a, size, size);
  CHECK_OK(descramble_eigh_float64(matrix, 0, NULL, expected, size, v, size * size, NULL, NULL, 1));

  descramble_context* context = NULL;
  CHECK_OK(descramble_context_create(&context));
  CHECK_OK(descramble_context_set_threads(context, 3));
  CHECK_OK(descramble_context_set_stream(context, NULL));
  CHECK_OK(descramble_context_set_executor(context, run, &executor));
  CHECK_OK(descramble_context_set_allocator(context, allocate, release, &allocator));
  CHECK_OK(descramble_context_set_log(context, log_line, &log));
  CHECK_OK(descramble_context_set_poll(context, poll, &polls));
  // Whichever of its tasks an executor calls, and if it calls none.
  for (int i = 0; i < 3; ++i) {
    executor.limit = i == 1 ? 1 : 1000;
    executor.refuse = i == 2;
    executor.runs = executor.tasks = 0;
    memset(w, 0, sizeof(double) * size);
    CHECK_OK(descramble_eigh_float64(matrix, 0, context, w, size, v, size * size, NULL, NULL, 1));
    CHECK(executor.runs > 0 && (executor.tasks > 0) == (i < 2));
    CHECK(all_near(w, expected, size, 1e-11));
  }
  CHECK(allocator.allocations > 0 && allocator.live_bytes == 0);
  CHECK(log.infos == 3 && log.warnings == 0 && strstr(log.last, "eigh") != NULL);
  CHECK(polls.calls > 0);

  // Cancelled at the first call, and at the last.
  const int calls = polls.calls / 3;
  for (int i = 0; i < 2; ++i) {
    polls = (poll_state){0, i == 0 ? 1 : calls};
    CHECK_FAILS(descramble_eigh_float64(matrix, 0, context, w, size, v, size * size, NULL, NULL, 1),
                DESCRAMBLE_CANCELLED, "poll");
    CHECK(allocator.live_bytes == 0);
  }

  // A handle outlives its context; its memory goes back where it came from.
  CHECK_OK(descramble_context_set_poll(context, NULL, NULL));
  descramble_covariance* c = NULL;
  descramble_operator* op = NULL;
  descramble_descrambler* d = NULL;
  CHECK_OK(descramble_covariance_create(size, context, &c));
  CHECK_OK(descramble_operator_fourier(size, 2, &op));
  CHECK_OK(descramble_covariance_update(c, matrix, NULL, NULL, context));
  CHECK(allocator.live_bytes >= 4 * size * size);
  CHECK_OK(descramble_smoothness(c, op, NULL, context, &d));
  CHECK(allocator.live_bytes >= 12 * size * size);
  descramble_context_destroy(context);
  CHECK_OK(descramble_covariance_update(c, matrix, NULL, NULL, NULL));
  int64_t count = 0;
  CHECK_OK(descramble_covariance_count(c, &count));
  CHECK(count == 2 * size);
  descramble_covariance_destroy(c);
  CHECK(allocator.live_bytes >= 8 * size * size);
  CHECK_OK(descramble_descrambler_transform(d, matrix, NULL, v, size * size));
  descramble_descrambler_destroy(d);
  CHECK(allocator.live_bytes == 0);
  // One that has not allocated yet, too.
  CHECK_OK(descramble_context_create(&context));
  CHECK_OK(descramble_context_set_allocator(context, allocate, release, &allocator));
  CHECK_OK(descramble_covariance_create(size, context, &c));
  CHECK_OK(descramble_context_set_allocator(context, NULL, NULL, NULL));
  descramble_context_destroy(context);
  const int64_t before = allocator.allocations;
  CHECK_OK(descramble_covariance_update(c, matrix, NULL, NULL, NULL));
  CHECK(allocator.allocations > before);
  descramble_covariance_destroy(c);
  CHECK(allocator.live_bytes == 0);

  // malloc would do for small alignments only, and is found out.
  CHECK_OK(descramble_context_create(&context));
  allocator.misaligned = 1;
  CHECK_OK(descramble_context_set_allocator(context, allocate, release, &allocator));
  CHECK_REFUSED(descramble_eigh_float64(matrix, 0, context, w, size, v, size * size, NULL, NULL, 1),
                "allocate: gave the address");
  CHECK(allocator.live_bytes == 0);
  CHECK_REFUSED(descramble_context_set_allocator(context, allocate, NULL, NULL),
                "release: got NULL");
  CHECK_REFUSED(descramble_context_set_threads(context, -1), "threads: got -1");
  descramble_context_destroy(context);
  descramble_operator_destroy(op);

  int32_t threads = 0;
  CHECK_OK(descramble_set_num_threads(3));
  CHECK_OK(descramble_num_threads(&threads));
  CHECK(threads == 3);
  CHECK_REFUSED(descramble_set_num_threads(-1), "threads: got -1");
  CHECK_OK(descramble_set_num_threads(0));
  free(a);
  free(expected);
  free(w);
  free(v);
}

// The message is cut, rather than memory asked for.
static void test_long_message(void) {
  const char* const library = getenv("DESCRAMBLE_FAST_CUDA_LIBRARY");
  if (library == NULL || strlen(library) < 1023) return;
  descramble_covariance* c = NULL;
  CHECK_FAILS(
      descramble_covariance_create_on(2, (descramble_device){DESCRAMBLE_CUDA, 0}, 0, NULL, &c),
      DESCRAMBLE_BACKEND_ERROR, "DESCRAMBLE_FAST_CUDA_LIBRARY: no file ");
  const char* const text = descramble_last_error();
  CHECK(strlen(text) == 1023 && strcmp(text + 1020, "...") == 0);
}

#define CHECK_NULL(call) CHECK_REFUSED(call, "got NULL")

static void test_null_handles(void) {
  double x[4] = {1, 0, 0, 1};
  int64_t i[2];
  int32_t flag;
  descramble_device device;
  descramble_covariance* c = NULL;
  descramble_operator* op = NULL;
  descramble_descrambler* d = NULL;
  const descramble_array* const m = MATRIX(x, 2, 2);
  descramble_context_destroy(NULL);
  descramble_covariance_destroy(NULL);
  descramble_cross_covariance_destroy(NULL);
  descramble_operator_destroy(NULL);
  descramble_descrambler_destroy(NULL);

  CHECK_NULL(descramble_context_create(NULL));
  CHECK_NULL(descramble_context_set_threads(NULL, 1));
  CHECK_NULL(descramble_context_set_stream(NULL, NULL));
  CHECK_NULL(descramble_context_set_poll(NULL, NULL, NULL));
  CHECK_NULL(descramble_context_set_executor(NULL, NULL, NULL));
  CHECK_NULL(descramble_context_set_allocator(NULL, NULL, NULL, NULL));
  CHECK_NULL(descramble_context_set_log(NULL, NULL, NULL));
  CHECK_NULL(descramble_num_threads(NULL));
  CHECK_NULL(descramble_cuda_available(0, NULL));

  CHECK_NULL(descramble_covariance_create(2, NULL, NULL));
  CHECK_NULL(
      descramble_covariance_create_on(2, (descramble_device){DESCRAMBLE_CPU, 0}, 0, NULL, NULL));
  CHECK_NULL(descramble_covariance_from_moments(NULL, NULL, 1, NULL, &c));
  CHECK_NULL(descramble_covariance_from_moments(m, NULL, 1, NULL, NULL));
  CHECK_NULL(descramble_preactivation_moment(NULL, NULL, NULL, NULL, NULL, &c));
  CHECK_NULL(descramble_preactivation_moment(m, NULL, NULL, NULL, NULL, NULL));
  CHECK_NULL(descramble_covariance_update(NULL, m, NULL, NULL, NULL));
  CHECK_NULL(descramble_covariance_merge(NULL, NULL));
  CHECK_NULL(descramble_covariance_size(NULL, i));
  CHECK_NULL(descramble_covariance_device(NULL, &device));
  CHECK_NULL(descramble_covariance_count(NULL, i));
  CHECK_NULL(descramble_covariance_weight(NULL, x));
  CHECK_NULL(descramble_covariance_mean(NULL, x, 2));
  CHECK_NULL(descramble_covariance_second_moment(NULL, x, 4));
  CHECK_NULL(descramble_covariance_covariance(NULL, 0, x, 4));
  CHECK_NULL(descramble_covariance_export(NULL, i, x, &flag, x, x, 2, x, 3));
  CHECK_NULL(descramble_covariance_import(1, 1, 1, NULL, x, 2, x, 3, NULL, &c));
  CHECK_NULL(descramble_covariance_import(1, 1, 1, x, x, 2, x, 3, NULL, NULL));

  CHECK_NULL(descramble_cross_covariance_create(2, 2, NULL, NULL));
  CHECK_NULL(descramble_cross_covariance_create_on(2, 2, (descramble_device){DESCRAMBLE_CPU, 0}, 0,
                                                   NULL, NULL));
  CHECK_NULL(descramble_cross_covariance_update(NULL, m, m, NULL, NULL, NULL));
  CHECK_NULL(descramble_cross_covariance_merge(NULL, NULL));
  CHECK_NULL(descramble_cross_covariance_count(NULL, i));
  CHECK_NULL(descramble_cross_covariance_weight(NULL, x));
  CHECK_NULL(descramble_cross_covariance_cross_moment(NULL, x, 4));
  CHECK_NULL(descramble_cross_covariance_cross_covariance(NULL, 0, x, 4));
  CHECK_NULL(descramble_cross_covariance_correlation(NULL, x, 4));

  CHECK_NULL(descramble_operator_fourier(2, 1, NULL));
  CHECK_NULL(descramble_operator_difference(2, 1, DESCRAMBLE_PATH, NULL));
  CHECK_NULL(descramble_operator_central_difference(2, NULL));
  CHECK_NULL(descramble_operator_grid(NULL, 0, NULL));
  CHECK_NULL(descramble_operator_from_matrix(NULL, NULL, &op));
  CHECK_NULL(descramble_operator_from_matrix(m, NULL, NULL));
  CHECK_NULL(descramble_operator_size(NULL, i));
  CHECK_NULL(descramble_operator_eigenvalues(NULL, x, 2));
  CHECK_NULL(descramble_operator_modes(NULL, x, 4));
  CHECK_NULL(descramble_operator_apply(NULL, m, NULL, x, 4));
  CHECK_NULL(descramble_operator_analyze(NULL, m, NULL, x, 4));
  CHECK_NULL(descramble_operator_synthesize(NULL, m, NULL, x, 4));

  CHECK_NULL(descramble_eigh_float32(NULL, 0, NULL, NULL, 0, NULL, 0, NULL, NULL, 0));
  CHECK_NULL(descramble_eigh_float64(NULL, 0, NULL, NULL, 0, NULL, 0, NULL, NULL, 0));
  CHECK_NULL(descramble_eigh_float64(m, 0, NULL, NULL, 2, NULL, 4, NULL, NULL, 1));

  CHECK_OK(descramble_covariance_create(2, NULL, &c));
  CHECK_OK(descramble_operator_fourier(2, 1, &op));
  CHECK_NULL(descramble_smoothness(NULL, op, NULL, NULL, &d));
  CHECK_NULL(descramble_smoothness(c, NULL, NULL, NULL, &d));
  CHECK_NULL(descramble_smoothness(c, op, NULL, NULL, NULL));
  CHECK_NULL(descramble_smoothness_many(NULL, NULL, 1, NULL, NULL, &d));
  CHECK_NULL(descramble_smoothness_many(NULL, NULL, 1, NULL, NULL, NULL));
  CHECK_NULL(descramble_convolution(NULL, i, 1, NULL, NULL, &d));
  CHECK_NULL(descramble_trace(NULL, NULL, &d));
  CHECK_NULL(descramble_trace(m, NULL, NULL));
  CHECK_NULL(descramble_diagonal(NULL, NULL, &d));
  CHECK_NULL(descramble_diagonal(m, NULL, NULL));
  CHECK_NULL(descramble_descrambler_read(
      NULL,
      &(descramble_descrambler_report){.struct_size = sizeof(descramble_descrambler_report)}));
  CHECK_NULL(descramble_descrambler_device(NULL, &device));
  CHECK_NULL(descramble_descrambler_eigenvalues(NULL, x, 2));
  CHECK_NULL(descramble_descrambler_components(NULL, x, 4));
  CHECK_NULL(descramble_descrambler_modes(NULL, x, 4));
  CHECK_NULL(descramble_descrambler_blocks(NULL, i, 2));
  CHECK_NULL(descramble_descrambler_mean(NULL, x, 2));
  CHECK_NULL(descramble_descrambler_matrix(NULL, x, 4));
  CHECK_NULL(descramble_descrambler_transform(NULL, m, NULL, x, 4));
  CHECK_NULL(descramble_descrambler_inverse_transform(NULL, m, NULL, x, 4));
  CHECK_NULL(descramble_descrambler_transform_weight(NULL, m, NULL, x, 4));
  CHECK_NULL(descramble_descrambler_transform_bias(NULL, VECTOR(x, 2), NULL, x, 2));
  CHECK_NULL(descramble_descrambler_transform_next_weight(NULL, m, NULL, x, 4));

  CHECK_NULL(descramble_linear_assignment(
      NULL, NULL, NULL,
      &(descramble_linear_assignment_report){.struct_size =
                                                 sizeof(descramble_linear_assignment_report)}));
  CHECK_NULL(descramble_quadratic_assignment(NULL, m, NULL, NULL, i, 2, NULL));
  CHECK_NULL(descramble_quadratic_assignment(m, NULL, NULL, NULL, i, 2, NULL));
  CHECK_NULL(descramble_quadratic_assignment(m, m, NULL, NULL, NULL, 2, NULL));
  CHECK_NULL(descramble_permutation(NULL, op, NULL, NULL, i, 2, NULL));
  CHECK_NULL(descramble_permutation(c, NULL, NULL, NULL, i, 2, NULL));
  CHECK_NULL(descramble_permutation(c, op, NULL, NULL, NULL, 2, NULL));
  CHECK_NULL(descramble_permute_trace(NULL, NULL, i, 2, NULL));
  CHECK_NULL(descramble_permute_diagonal(m, NULL, NULL, 2, NULL));
  CHECK_NULL(descramble_nearest_permutation(NULL, NULL, i, NULL, 2, NULL));
  CHECK_NULL(descramble_match_neurons(NULL, NULL, i, NULL, 2, NULL));
  CHECK_NULL(descramble_match_modes(NULL, NULL, i, NULL, 2, NULL));
  descramble_operator_destroy(op);
  descramble_covariance_destroy(c);
}

int main(void) {
  CHECK(strcmp(descramble_last_error(), "") == 0);
  test_version();
  test_layout();
  test_null_handles();
  test_arrays_are_checked();
  test_covariance();
  test_refused_weights();
  test_cross_covariance();
  test_operators();
  test_eigh();
  test_smoothness();
  test_other_criteria();
  test_assignments();
  test_permutations();
  test_context();
  test_long_message();
  return failures > 0;
}
