#include "cpu/cgroup.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace descramble_fast::cpu {

namespace {

constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

bool lists(const std::string& names, std::string_view wanted) {
  std::istringstream parts(names);
  for (std::string part; std::getline(parts, part, ',');)
    if (part == wanted) return true;
  return false;
}

// The path of this process in the hierarchy with the controller, or in that of version 2 if the
// controller is empty.
std::optional<std::string> own_path(const std::string& root, std::string_view controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // number:controllers:path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? names.empty() : lists(names, controller))
      return line.substr(second + 1);
  }
  return {};
}

// The folders of the process's group and of those above it, from the innermost on. Of a hierarchy
// that a container sees in part, they begin where it begins.
std::vector<std::string> folders(const std::string& root, std::string_view controller) {
  const std::optional<std::string> own = own_path(root, controller);
  if (!own) return {};
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // id parent device root mount-point options ... - type source options
    std::istringstream words(line);
    std::string skipped, top, mount, type, options;
    words >> skipped >> skipped >> skipped >> top >> mount;
    while (words >> skipped && skipped != "-") {
    }
    words >> type >> skipped >> options;
    if (type != (controller.empty() ? "cgroup2" : "cgroup")) continue;
    if (!controller.empty() && !lists(options, controller)) continue;
    std::string below = *own;
    if (top != "/") {
      const bool inside =
          below.starts_with(top) && (below.size() == top.size() || below[top.size()] == '/');
      below = inside ? below.substr(top.size()) : std::string();
    }
    if (below.starts_with("/..")) below.clear();  // above what the container sees
    while (below.ends_with('/')) below.pop_back();
    std::vector<std::string> found;
    for (;; below.resize(below.rfind('/'))) {
      found.push_back(root + mount + below);
      if (below.empty()) return found;
    }
  }
  return {};
}

// A file that is a single number; nothing for "max", and where there is no such file.
std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;
  return {};
}

// The number behind a name in a file of pairs; 0 where it is not there.
double number_of(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  std::string key;
  for (double value = 0; file >> key >> value; file.ignore(unlimited, '\n'))
    if (key == name) return value;
  return 0;
}

int cpus_for(double quota, double period) {
  return quota > 0 && period > 0 ? int(std::clamp(std::ceil(quota / period), 1.0, 65535.0)) : 0;
}

}  // namespace

int cgroup_cpus(const std::string& root) {
  int least = 0;
  const auto keep = [&](int cpus) {
    if (cpus > 0) least = least > 0 ? std::min(least, cpus) : cpus;
  };
  for (const std::string& folder : folders(root, "")) {
    std::ifstream file(folder + "/cpu.max");
    double quota = 0, period = 0;
    if (file >> quota >> period) keep(cpus_for(quota, period));
  }
  for (const std::string& folder : folders(root, "cpu"))
    keep(cpus_for(number_in(folder + "/cpu.cfs_quota_us").value_or(0),
                  number_in(folder + "/cpu.cfs_period_us").value_or(0)));
  return least;
}

std::int64_t cgroup_memory(const std::string& root) {
  const std::string machine = root + "/proc/meminfo";
  const double swap = 1024 * number_of(machine, "SwapFree:");
  double least = double(unlimited);
  if (const double available = 1024 * number_of(machine, "MemAvailable:"); available > 0)
    least = available + swap;
  for (const std::string& folder : folders(root, "")) {
    const std::optional<double> limit = number_in(folder + "/memory.max");
    if (!limit) continue;
    double more = swap;
    if (const auto most = number_in(folder + "/memory.swap.max"))
      more = std::min(more, *most - number_in(folder + "/memory.swap.current").value_or(0));
    const double taken = number_of(folder + "/memory.stat", "anon");
    least = std::min(least, *limit - taken + std::max(more, 0.0));
  }
  for (const std::string& folder : folders(root, "memory")) {
    const std::string counts = folder + "/memory.stat";
    const double taken = number_of(counts, "total_rss");
    if (const auto limit = number_in(folder + "/memory.limit_in_bytes"))
      least = std::min(least, *limit - taken + swap);
    if (const auto both = number_in(folder + "/memory.memsw.limit_in_bytes"))
      least = std::min(least, *both - taken - number_of(counts, "total_swap"));
  }
  if (least >= double(std::int64_t(1) << 62)) return unlimited;  // as version 1 says it
  return std::int64_t(std::max(least, 0.0));
}

}  // namespace descramble_fast::cpu
