#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace descramble_fast::bench {

/// Names of the limits as the reports spell them.
enum class Limit { fma_float32, fma_float64, dot_bfloat16, bandwidth };

/// Inputs and a way to work on them.
struct Problem {
  std::function<void()> run;
  /// The error of the last run's result; throws where that is wrong.
  std::function<double()> check;
};

using Sizes = std::vector<std::pair<std::string, std::int64_t>>;

/// A result is named op/impl/dtype/shape, like that of the same work in the Python suite.
struct Benchmark {
  std::string op, impl, dtype, shape;
  Sizes size;
  /// Operations (or bytes) that a run stands for, whoever does it, and what they are held against.
  double work;
  Limit limit;
  /// Part of --quick.
  bool quick;
  std::function<Problem()> make;

  std::string name() const { return op + "/" + impl + "/" + dtype + "/" + shape; }
};

/// Throws with the message unless the condition holds.
void require(bool condition, const std::string& what);

/// Checks, times and prints the benchmarks that the command line chooses; the exit status.
int run(int argc, char** argv, const std::vector<Benchmark>& benchmarks);

}  // namespace descramble_fast::bench
