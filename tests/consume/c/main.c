/* The same through the C interface. */
#include <descramble_fast.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void check(int held, const char* what) {
  if (!held) {
    fprintf(stderr, "failed: %s (%s)\n", what, descramble_last_error());
    ++failures;
  }
}

static descramble_array matrix(const double* data, const int64_t* shape) {
  descramble_array array = {0};
  array.data = data;
  array.dtype = DESCRAMBLE_FLOAT64;
  array.rank = 2;
  array.shape = shape;
  return array;
}

int main(void) {
  const double samples[16] = {4, 0, 0, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1};
  const int64_t square[2] = {4, 4}, wide[2] = {2, 8};
  const descramble_array batch = matrix(samples, square), wrong = matrix(samples, wide);
  descramble_covariance* moments = NULL;
  descramble_operator* op = NULL;
  descramble_descrambler* d = NULL;
  descramble_descrambler_report report = {0};
  int64_t count = 0;

  check(descramble_abi_version() == DESCRAMBLE_ABI_VERSION, "header and library agree");
  check(descramble_covariance_create(4, NULL, &moments) == DESCRAMBLE_OK, "covariance");
  check(descramble_covariance_update(moments, &batch, NULL, NULL, NULL) == DESCRAMBLE_OK, "update");
  check(descramble_covariance_update(moments, &wrong, NULL, NULL, NULL) ==
            DESCRAMBLE_INVALID_ARGUMENT,
        "a batch of the wrong width is refused");
  check(strstr(descramble_last_error(), "batch") != NULL, "the message names the argument");
  check(descramble_covariance_count(moments, &count) == DESCRAMBLE_OK && count == 4, "count");
  check(descramble_operator_fourier(4, 2, &op) == DESCRAMBLE_OK, "operator");
  check(descramble_smoothness(moments, op, NULL, NULL, &d) == DESCRAMBLE_OK, "descrambler");
  report.struct_size = sizeof report;
  check(descramble_descrambler_read(d, &report) == DESCRAMBLE_OK, "report");
  check(fabs(report.cost - 7.25) < 1e-12, "the cost is sum l c");
  descramble_descrambler_destroy(d);
  descramble_operator_destroy(op);
  descramble_covariance_destroy(moments);
  return failures == 0 ? 0 : 1;
}
