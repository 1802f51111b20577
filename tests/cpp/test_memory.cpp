#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/error.hpp"
#include "random.hpp"

namespace {

// Allocations that succeed before one fails; negative: all do.
std::atomic<long> allocations_left{-1};
// Larger allocations fail.
std::atomic<std::size_t> largest_allocation{~std::size_t(0)};

}  // namespace

void* operator new(std::size_t size) {
  if (size > largest_allocation.load()) throw std::bad_alloc();
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (size > largest_allocation.load()) return nullptr;
  return std::malloc(size > 0 ? size : 1);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  if (size > largest_allocation.load()) throw std::bad_alloc();
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
  const std::size_t step = std::size_t(alignment);
  if (void* const memory = std::aligned_alloc(step, (size + step) / step * step)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace descramble_fast {
namespace {

// Lets the n-th allocation of `change` fail, for every n, until it succeeds; returns the failures.
template <class Change>
int expect_all_or_nothing(Change change) {
  for (int n = 0;; ++n) {
    Covariance c(70);
    c.update(testing::gaussian(10, 70, 1).view());
    const Covariance::State before = c.state();
    allocations_left = n;
    bool failed = false;
    try {
      change(c);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (!failed) return n;
    const Covariance::State after = c.state();
    EXPECT_EQ(after.count, before.count);
    EXPECT_EQ(after.reference, before.reference);
    EXPECT_EQ(after.offset, before.offset);
    EXPECT_EQ(after.packed_scatter, before.packed_scatter);
  }
}

TEST(Memory, AnUpdateThatRunsOutOfItChangesNothing) {
  const Matrix<double> x = testing::gaussian(20000, 70, 2);
  EXPECT_GT(expect_all_or_nothing([&](Covariance& c) { c.update(x.view()); }), 0);
}

TEST(Memory, AMergeThatRunsOutOfItChangesNothing) {
  Covariance other(70);
  other.update(testing::gaussian(10, 70, 3, 5).view());
  EXPECT_GT(expect_all_or_nothing([&](Covariance& c) { c.merge(other); }), 0);
}

TEST(Memory, AnAssignmentThatRunsOutOfItSaysSo) {
  const Matrix<double> wide = testing::gaussian(20, 30, 4), tall = testing::gaussian(30, 20, 4);
  for (const Matrix<double>* cost : {&wide, &tall}) {
    const LinearAssignment expected = linear_assignment(cost->view());
    int failures = 0;
    for (bool failed = true; failed; ++failures) {
      allocations_left = failures;
      try {
        const LinearAssignment r = linear_assignment(cost->view());
        allocations_left = -1;
        failed = false;
        EXPECT_TRUE(std::ranges::equal(r.columns.values(), expected.columns.values()));
        EXPECT_EQ(r.cost, expected.cost);
      } catch (const std::bad_alloc&) {
        allocations_left = -1;
      }
    }
    EXPECT_GT(failures, 10);
  }
}

TEST(Memory, ADescramblerThatCannotBeHadIsRefusedWithItsBytes) {
  constexpr std::int64_t n = 200;
  Covariance c(n);
  c.update(testing::gaussian(300, n, 5).view());
  const Operator op = Operator::fourier(n);
  const std::int64_t stated = descramble_memory(n);
  EXPECT_GT(stated, 4 * 8 * n * n);
  largest_allocation = std::size_t(stated - 1);
  std::string refusal;
  try {
    descramble(c, op);
  } catch (const OutOfMemory& error) {
    refusal = error.what();
  }
  largest_allocation = std::size_t(stated);
  EXPECT_EQ(descramble(c, op).size(), n);
  largest_allocation = ~std::size_t(0);
  EXPECT_NE(refusal.find(std::to_string(stated) + " bytes"), std::string::npos) << refusal;
}

}  // namespace
}  // namespace descramble_fast
