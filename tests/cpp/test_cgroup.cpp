#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "cpu/cgroup.hpp"

namespace descramble_fast {
namespace {

using cpu::cgroup_cpus;
using cpu::cgroup_memory;

constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

// A folder that stands for the root of the file system.
class Cgroup : public testing::Test {
 protected:
  Cgroup()
      : root_(testing::TempDir() + "cgroup_" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
    write("/proc/meminfo", "MemTotal: 100 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n");
  }
  ~Cgroup() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void version_2(const std::string& own, const std::string& top = "/") {
    write("/proc/self/cgroup", "0::" + own + "\n");
    write("/proc/self/mountinfo", "24 1 8:1 / / rw - ext4 /dev/sda rw\n31 24 0:28 " + top +
                                      " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
  }
  void version_1(const std::string& own, const std::string& top = "/") {
    write("/proc/self/cgroup", "5:memory:" + own + "\n4:cpu,cpuacct:" + own + "\n1:name=x:/\n");
    write("/proc/self/mountinfo",
          "31 24 0:28 " + top + " /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n" +
              "32 24 0:29 " + top + " /sys/fs/cgroup/memory rw shared:9 - cgroup none rw,memory\n");
  }

  std::string root_;
};

TEST_F(Cgroup, NothingIsLimitedWhereNothingIsSaid) {
  EXPECT_EQ(cgroup_cpus(root_), 0);
  EXPECT_EQ(cgroup_memory(root_), unlimited);
  version_2("/");
  EXPECT_EQ(cgroup_cpus(root_), 0);
  EXPECT_EQ(cgroup_memory(root_), unlimited);
  write("/sys/fs/cgroup/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(cgroup_cpus(root_), 0);
  EXPECT_EQ(cgroup_memory(root_), unlimited);
  version_1("/a");
  write("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  write("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(cgroup_cpus(root_), 0);
  EXPECT_EQ(cgroup_memory(root_), unlimited);
}

TEST_F(Cgroup, QuotasAreRoundedUp) {
  version_2("/");
  for (const auto& [text, cpus] :
       {std::pair{"100000 100000", 1}, std::pair{"1000 100000", 1}, std::pair{"150000 100000", 2},
        std::pair{"6400000 100000", 64}, std::pair{"200000 50000", 4}}) {
    write("/sys/fs/cgroup/cpu.max", text);
    EXPECT_EQ(cgroup_cpus(root_), cpus) << text;
  }
  version_1("/");
  write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000\n");
  write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpus(root_), 3);
}

TEST_F(Cgroup, TheTightestOfTheGroupsAboveCounts) {
  version_2("/system.slice/job.service/step");
  write("/sys/fs/cgroup/cpu.max", "800000 100000");
  write("/sys/fs/cgroup/system.slice/cpu.max", "300000 100000");
  write("/sys/fs/cgroup/system.slice/job.service/cpu.max", "max 100000");
  write("/sys/fs/cgroup/system.slice/job.service/step/cpu.max", "500000 100000");
  write("/sys/fs/cgroup/other/cpu.max", "100000 100000");
  EXPECT_EQ(cgroup_cpus(root_), 3);
  write("/sys/fs/cgroup/system.slice/memory.max", "5000");
  write("/sys/fs/cgroup/system.slice/memory.stat", "anon 1500\nfile 3000\n");
  write("/sys/fs/cgroup/system.slice/job.service/memory.max", "4000");
  write("/sys/fs/cgroup/system.slice/job.service/memory.stat", "anon_thp 7\nanon 1000\n");
  EXPECT_EQ(cgroup_memory(root_), 3000);
  version_1("/slurm/job_7");
  write("/sys/fs/cgroup/cpu/slurm/cpu.cfs_quota_us", "400000");
  write("/sys/fs/cgroup/cpu/slurm/cpu.cfs_period_us", "100000");
  EXPECT_EQ(cgroup_cpus(root_), 4);
  write("/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", "9000");
  write("/sys/fs/cgroup/memory/slurm/job_7/memory.stat", "rss 1\ntotal_rss 2000\ntotal_swap 3\n");
  EXPECT_EQ(cgroup_memory(root_), 7000);
}

TEST_F(Cgroup, AContainerSeesItsPartOfAHierarchy) {
  for (const char* own : {"/docker/0a1b", "/docker/0a1b/inner", "/docker/0a1bcd", "/../other"}) {
    version_2(own, "/docker/0a1b");
    write("/sys/fs/cgroup/cpu.max", "200000 100000");
    write("/sys/fs/cgroup/cd/cpu.max", "100000 100000");
    EXPECT_EQ(cgroup_cpus(root_), 2) << own;
    version_1(own, "/docker/0a1b");
    write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1234");
    EXPECT_EQ(cgroup_memory(root_), 1234) << own;
  }
  version_2("/../../other");  // a namespace of its own, entered from outside
  EXPECT_EQ(cgroup_cpus(root_), 2);
}

TEST_F(Cgroup, NoMoreIsGrantedThanTheMachineHas) {
  write("/proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 3 kB\nSwapFree: 2 kB\n");
  EXPECT_EQ(cgroup_memory(root_), 5 * 1024);
  version_2("/");
  write("/sys/fs/cgroup/memory.max", "1000000");
  EXPECT_EQ(cgroup_memory(root_), 5 * 1024);
  write("/sys/fs/cgroup/memory.max", "1000");
  EXPECT_EQ(cgroup_memory(root_), 1000 + 2 * 1024);
}

TEST_F(Cgroup, SwapCountsAsFarAsItMayBeTaken) {
  write("/proc/meminfo", "SwapFree: 2 kB\n");
  version_2("/");
  write("/sys/fs/cgroup/memory.max", "1000");
  EXPECT_EQ(cgroup_memory(root_), 3048);
  write("/sys/fs/cgroup/memory.swap.max", "500");
  write("/sys/fs/cgroup/memory.swap.current", "100");
  EXPECT_EQ(cgroup_memory(root_), 1400);
  version_1("/");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000");
  write("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "1600");
  write("/sys/fs/cgroup/memory/memory.stat", "total_rss 300\ntotal_swap 200\n");
  EXPECT_EQ(cgroup_memory(root_), 1100);
  write("/sys/fs/cgroup/memory/memory.stat", "total_rss 3000\n");
  EXPECT_EQ(cgroup_memory(root_), 0);
}

TEST_F(Cgroup, BrokenFilesLimitNothing) {
  version_2("/");
  for (const char* text : {"", "\n", "nonsense", "100000", "100000 0", "-5 100000", "1e400 x"}) {
    write("/sys/fs/cgroup/cpu.max", text);
    EXPECT_EQ(cgroup_cpus(root_), 0) << text;
  }
  write("/proc/self/mountinfo", "31\n\n- -\n31 24 0:28 / /sys/fs/cgroup rw\n");
  write("/proc/self/cgroup", "::\n0\n:\n");
  EXPECT_EQ(cgroup_cpus(root_), 0);
  EXPECT_EQ(cgroup_memory(root_), unlimited);
}

}  // namespace
}  // namespace descramble_fast
