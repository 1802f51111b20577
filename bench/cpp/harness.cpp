#include "harness.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "descramble_fast/context.hpp"
#include "descramble_fast/limits.hpp"

namespace descramble_fast::bench {

namespace {

using Values = std::vector<double>;

constexpr std::array limit_names{"fma_float32", "fma_float64", "dot_bfloat16", "bandwidth"};
constexpr double brief = 0.02;  // seconds; what takes less is run once more before each timed run
constexpr int fewest = 3, most = 31;  // timed runs

struct Options {
  std::string only;
  bool quick = false, list = false;
  std::string json;
};

Options parsed(int argc, char** argv) {
  Options out;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    const auto value = [&] {
      require(i + 1 < argc, std::string(option) + ": expected a value");
      return std::string(argv[++i]);
    };
    if (option == "--only")
      out.only = value();
    else if (option == "--json")
      out.json = value();
    else if (option == "--quick")
      out.quick = true;
    else if (option == "--list")
      out.list = true;
    else
      require(false,
              std::string(option) + ": expected --only SUBSTRING, --quick, --list or --json FILE");
  }
  return out;
}

// Linear between the sorted values, as NumPy has it.
double quantile(Values values, double q) {
  std::ranges::sort(values);
  const double place = q * double(values.size() - 1);
  const std::size_t below = std::size_t(place), above = std::min(below + 1, values.size() - 1);
  return std::lerp(values[below], values[above], place - double(below));
}

double timed(const std::function<void()>& run) {
  const auto begin = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Every measurement of each limit. Another program can only lower one, so the best so far counts.
class Limits {
 public:
  void measure(double seconds) {
    const MachineLimits found = machine_limits(seconds);
    seen_[0].push_back(found.fma_float32);
    seen_[1].push_back(found.fma_float64);
    if (found.dot_bfloat16) seen_[2].push_back(*found.dot_bfloat16);
    seen_[3].push_back(found.bandwidth);
  }
  const Values& seen(std::size_t limit) const { return seen_[limit]; }
  // Without an instruction of their own, bfloat16 products are float32 ones.
  Limit in_use(Limit limit) const {
    const bool none = limit == Limit::dot_bfloat16 && seen_[2].empty();
    return none ? Limit::fma_float32 : limit;
  }
  double best(Limit limit) const { return std::ranges::max(seen_[std::size_t(limit)]); }

 private:
  std::array<Values, 4> seen_;
};

struct Row {
  const Benchmark* benchmark;
  Values seconds;
  double error;
  Limit limit;
  double limit_per_second;

  double median() const { return quantile(seconds, 0.5); }
  double share() const { return benchmark->work / median() / limit_per_second; }
};

Row measured(const Benchmark& benchmark, double budget, Limits& limits) {
  Row row{&benchmark, {}, 0, Limit::bandwidth, 0};
  {
    const Problem problem = benchmark.make();
    const double first = timed(problem.run);
    row.error = problem.check();
    const bool warm_up = first < brief;
    const int rounds =
        std::clamp(int(budget / std::max(first * (warm_up ? 2 : 1), 1e-6)), fewest, most);
    for (int r = 0; r < rounds; ++r) {
      if (warm_up) problem.run();
      row.seconds.push_back(timed(problem.run));
    }
    problem.check();
  }
  limits.measure(0.05);
  row.limit = limits.in_use(benchmark.limit);
  row.limit_per_second = limits.best(row.limit);
  return row;
}

// ------------------------------------------------------------------------------------- report

std::string duration(double seconds) {
  std::ostringstream out;
  out << std::setprecision(3);
  if (seconds >= 1)
    out << seconds << " s";
  else if (seconds >= 1e-3)
    out << seconds * 1e3 << " ms";
  else
    out << seconds * 1e6 << " us";
  return out.str();
}

void print(const Row& row) {
  const double spread =
      50 * (quantile(row.seconds, 0.75) - quantile(row.seconds, 0.25)) / row.median();
  std::cout << std::left << std::setw(62) << row.benchmark->name() << std::right << std::setw(10)
            << duration(row.median()) << "  +-" << std::lround(spread) << "%  "
            << std::setprecision(3) << 100 * row.share() << "% of "
            << limit_names[std::size_t(row.limit)] << "  error " << std::setprecision(1)
            << std::scientific << row.error << std::defaultfloat << std::endl;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  std::ostringstream out;
  out << std::put_time(&utc, "%Y-%m-%dT%H:%M:%SZ");
  return out.str();
}

void write_row(std::ostream& out, const Row& row) {
  const Benchmark& b = *row.benchmark;
  out << "    {\"name\": " << quoted(b.name()) << ", \"op\": " << quoted(b.op)
      << ", \"impl\": " << quoted(b.impl) << ", \"dtype\": " << quoted(b.dtype)
      << ", \"shape\": " << quoted(b.shape) << ", \"size\": {";
  for (std::size_t i = 0; i < b.size.size(); ++i)
    out << (i > 0 ? ", " : "") << quoted(b.size[i].first) << ": " << b.size[i].second;
  out << "}, \"seconds\": " << row.median() << ", \"seconds_quartiles\": ["
      << quantile(row.seconds, 0.25) << ", " << quantile(row.seconds, 0.75)
      << "], \"runs\": " << row.seconds.size() << ", \"work\": " << b.work
      << ", \"limit\": " << quoted(limit_names[std::size_t(row.limit)])
      << ", \"limit_per_second\": " << row.limit_per_second << ", \"share\": " << row.share()
      << ", \"error\": " << row.error << "}";
}

void write_limits(std::ostream& out, const Limits& limits) {
  const char* separator = "";
  for (std::size_t i = 0; i < limit_names.size(); ++i) {
    const Values& seen = limits.seen(i);
    if (seen.empty()) continue;
    out << separator << "    " << quoted(limit_names[i]) << ": {\"lowest\": " << quantile(seen, 0)
        << ", \"median\": " << quantile(seen, 0.5) << ", \"highest\": " << quantile(seen, 1)
        << ", \"measurements\": " << seen.size() << "}";
    separator = ",\n";
  }
}

void write_json(const std::string& path, const std::vector<Row>& rows, const Limits& limits) {
  std::ofstream out(path);
  out << std::setprecision(17) << "{\n  \"date\": " << quoted(now())
      << ",\n  \"machine\": {\"cpu\": " << quoted(cpu_name())
      << ", \"cores\": " << std::thread::hardware_concurrency()
      << ", \"threads\": " << num_threads() << ", \"lapack\": " << quoted(lapack_config())
      << "},\n  \"limits\": {\n";
  write_limits(out, limits);
  out << "\n  },\n  \"families\": {\"cpp\": {\"rows\": [\n";
  for (std::size_t i = 0; i < rows.size(); ++i) {
    write_row(out, rows[i]);
    out << (i + 1 < rows.size() ? ",\n" : "\n");
  }
  out << "  ]}}\n}\n";
  require(out.flush().good(), path + ": cannot be written");
}

void free_core_detection(char** argv) {
  bool pinned = false;
  for (const char* variable : {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}) {
    pinned = pinned || std::getenv(variable) != nullptr;
    unsetenv(variable);
  }
  // OpenBLAS has read them by now.
  if (pinned) execvp(argv[0], argv);
}

int run_chosen(const Options& options, const std::vector<Benchmark>& benchmarks) {
  Limits limits;
  std::vector<Row> rows;
  if (!options.list) {
    limits.measure(0.2);
    std::cout << cpu_name() << ", " << num_threads() << " threads, " << lapack_config()
              << std::endl;
  }
  for (const Benchmark& benchmark : benchmarks) {
    if (options.quick && !benchmark.quick) continue;
    if (benchmark.name().find(options.only) == std::string::npos) continue;
    if (options.list) {
      std::cout << benchmark.name() << "\n";
      continue;
    }
    rows.push_back(measured(benchmark, options.quick ? 0.1 : 1.5, limits));
    print(rows.back());
  }
  if (options.list) return 0;
  require(!rows.empty(), "--only " + options.only + ": no benchmark has such a name");
  std::cout << rows.size() << (rows.size() == 1 ? " benchmark\n" : " benchmarks\n");
  if (!options.json.empty()) write_json(options.json, rows, limits);
  return 0;
}

}  // namespace

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

int run(int argc, char** argv, const std::vector<Benchmark>& benchmarks) {
  free_core_detection(argv);
  try {
    return run_chosen(parsed(argc, argv), benchmarks);
  } catch (const std::exception& error) {
    std::cerr << "descramble_fast_bench: " << error.what() << "\n";
    return 1;
  }
}

}  // namespace descramble_fast::bench
