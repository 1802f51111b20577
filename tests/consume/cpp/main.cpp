// The library from outside: moments, an operator, a descrambler, eigenpairs, an assignment, and an
// exception that has to be known on both sides of the boundary.
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/operators.hpp"

namespace {

int failures = 0;

void check(bool held, const char* what) {
  if (!held) {
    std::fprintf(stderr, "failed: %s\n", what);
    ++failures;
  }
}

bool near(double a, double b) { return std::abs(a - b) < 1e-12; }

}  // namespace

int main() {
  namespace df = descramble_fast;

  const float samples[] = {4, 0, 0, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1};
  df::Covariance moments(4);
  moments.update(df::ArrayView(samples, {4, 4}));
  // c = 4, 9/4, 1, 1/4 and l = 0, 1, 1, 16.
  const df::SmoothnessDescrambler d = df::descramble(moments, df::Operator::fourier(4));
  check(near(d.cost, 7.25), "the cost is sum l c");
  check(near(d.initial_cost, 33.75), "the initial cost is tr L C");

  const double symmetric[] = {2, 1, 1, 2};
  const df::Eigh<double> pairs = df::eigh<double>(df::ArrayView(symmetric, {2, 2}));
  check(near(pairs.eigenvalues(0, 0), 1) && near(pairs.eigenvalues(0, 1), 3), "eigenvalues");

  const double costs[] = {4, 1, 3, 2, 0, 5, 3, 2, 2};
  const df::LinearAssignment assignment = df::linear_assignment(df::ArrayView(costs, {3, 3}));
  check(near(assignment.cost.at(0), 5), "the least cost of an assignment");

  try {
    moments.update(df::ArrayView(samples, {2, 8}));
    check(false, "a batch of the wrong width is refused");
  } catch (const df::InvalidArgument& error) {
    check(std::string_view(error.what()).find("batch") != std::string_view::npos,
          "the message names the argument");
  }
  try {
    df::Operator::fourier(0);
    check(false, "an empty operator is refused");
  } catch (const std::invalid_argument&) {
  }
  check(moments.count() == 4, "a refused batch is not counted");

#if defined(WITH_CUDA)
  check(df::cuda_config() != "built without CUDA", "the CUDA backend beside the program is found");
#else
  check(df::cuda_config() == "built without CUDA" && !df::cuda_available(), "there is no CUDA");
#endif
  return failures == 0 ? 0 : 1;
}
