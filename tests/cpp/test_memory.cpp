#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/convolution.hpp"
#include "descramble_fast/covariance.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/eigh.hpp"
#include "descramble_fast/error.hpp"
#include "descramble_fast/permutation.hpp"
#include "random.hpp"

namespace {

// Allocations that succeed before one fails; negative: all do.
std::atomic<long> allocations_left{-1};
// Larger allocations fail.
std::atomic<std::size_t> largest_allocation{~std::size_t(0)};
// The largest that was made.
std::atomic<std::size_t> largest_seen{0};

void take(std::size_t size) {
  if (size > largest_allocation.load()) throw std::bad_alloc();
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) throw std::bad_alloc();
  for (std::size_t seen = largest_seen;
       size > seen && !largest_seen.compare_exchange_weak(seen, size);) {
  }
}

}  // namespace

void* operator new(std::size_t size) {
  take(size);
  if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (size > largest_allocation.load()) return nullptr;
  return std::malloc(size > 0 ? size : 1);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  take(size);
  const std::size_t step = std::size_t(alignment);
  if (void* const memory = std::aligned_alloc(step, (size + step) / step * step)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
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

// Which no reading shows: it adds the rows that wait.
TEST(Memory, AnUpdateThatRunsOutOfItLeavesWaitingRowsToThoseThatFollow) {
  float few[7], many[256];
  for (int i = 0; i < 256; ++i) many[i] = few[i % 7] = float(i) / 7;
  const ArrayView x(few, {7, 1}), y(many, {256, 1});
  const auto begin = [&] {
    Covariance c(1);
    c.update(x);
    c.update(y);
    return c;
  };
  const auto end = [&](Covariance& c) {
    c.update(x);
    return c.state();
  };
  Covariance untouched = begin();
  const Covariance::State expected = end(untouched);
  bool mask[256];
  std::fill_n(mask, 256, true);
  const Matrix<double> wide = testing::gaussian(256, 1, 5);
  // Of a larger type, and with weights: either wants more room for what waits.
  const RowSelection masked{.mask = ArrayView(mask, {256}), .weights = {}},
      weighted{.mask = {}, .weights = ArrayView(many, {256})};
  for (const auto& [batch, rows] : {std::pair{wide.view(), masked}, std::pair{y, weighted}})
    for (int n = 0;; ++n) {
      Covariance c = begin();
      allocations_left = n;
      bool failed = false;
      try {
        c.update(batch, rows);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      allocations_left = -1;
      if (!failed) {
        EXPECT_GT(n, 5);
        break;
      }
      const Covariance::State after = end(c);
      EXPECT_EQ(after.reference, expected.reference) << n;
      EXPECT_EQ(after.offset, expected.offset) << n;
      EXPECT_EQ(after.packed_scatter, expected.packed_scatter) << n;
    }
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

// Memory of the caller's, which counts what is out.
class Counted final : public std::pmr::memory_resource {
 public:
  std::atomic<std::int64_t> out = 0, most = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    const std::size_t step = std::max(alignment, sizeof(void*));
    void* const memory = std::aligned_alloc(step, (bytes + step) / step * step);
    if (memory == nullptr) throw std::bad_alloc();
    const std::int64_t now = out += std::int64_t(bytes);
    for (std::int64_t seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t) override {
    out -= std::int64_t(bytes);
    std::free(memory);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

constexpr std::int64_t matrix_side = 400;

// Everything as large as a matrix (here 1.28 MB, 320 kB as bfloat16 or one of four parts) comes
// from the caller's memory, and goes back there. Vectors (3 kB) need not.
template <class Body>
void expect_memory_of_caller(const char* what, const Body& body) {
  Counted memory;
  largest_seen = 0;
  body(Context{.threads = 2, .memory = &memory});
  EXPECT_LT(largest_seen, std::size_t(2 * matrix_side * matrix_side)) << what;
  EXPECT_GT(memory.most, 0) << what;
  EXPECT_EQ(memory.out, 0) << what;
}

TEST(Memory, LargeArraysComeFromTheCaller) {
  constexpr std::int64_t n = matrix_side;
  const Matrix<double> x = testing::gaussian(5000, n, 6), w = testing::gaussian(n, n, 7);
  const Matrix<double> large = testing::gaussian(1100, 1100, 8);
  const std::int64_t many[] = {1600, 10, 10}, kernel[] = {40, 40, 10, 10}, shape[] = {12, 10};
  const Operator op = Operator::fourier(n);
  Covariance c(n);
  c.update(x.view());
  const Matrix<double> second = c.second_moment();
  const auto expect = [&](const char* what, const auto& body) {
    expect_memory_of_caller(what, body);
  };

  expect("moments", [&](const Context& context) {
    Covariance a(n, {.memory = context.memory}), b(n, {.memory = context.memory});
    CrossCovariance cross(n, n, {.memory = context.memory});
    for (int i = 0; i < 3; ++i) {
      a.update(x.view(), {}, {.threads = 2});
      b.update(ArrayView(x.data(), {7, n}), {}, {.threads = 2});
      cross.update(x.view(), x.view(), {}, {.threads = 2});
    }
    a.merge(b);
    a.second_moment();
    b.covariance();
    cross.correlation();
    Covariance::from_moments(second.view(), {}, 1, {.memory = context.memory}, context);
  });
  expect("reading moments", [&](const Context& context) {
    // Of an accumulator without memory of its own.
    descramble(c, op, {.k = 3}, context);
  });
  expect("descramble", [&](const Context& context) {
    const SmoothnessDescrambler d = descramble(c, op, {}, context);
    d.transform(x.view(), context);
    d.transform_next_weight(w.view(), context);
    match_modes(d, context);
    descramble(c, op, {.gauge = Gauge::identity}, context);
  });
  expect("eigh", [&](const Context& context) {
    eigh<double>(second.view(), {}, context);
    eigh<double>(second.view(), 7, context);
    eigh<double>(ArrayView(w.data(), DType::float64, many), {}, context);
    eigh<double>(large.view(), 20, context);
  });
  expect("operators", [&](const Context& context) {
    const Operator dense = Operator::from_matrix(second.view(), context);
    dense.applied(x.view(), context);
    op.analyzed(x.view(), context);
  });
  expect("assignment", [&](const Context& context) {
    linear_assignment(w.view(), {}, context);
    linear_assignment(ArrayView(x.data(), {1000, 700}), {}, context);
  });
  expect("weights", [&](const Context& context) {
    descramble_trace(w.view(), context);
    descramble_diagonal(ArrayView(w.data(), {200, 200}), context);
    preactivation_moment(w.view(), {}, {}, {}, context);
  });
  expect("convolution", [&](const Context& context) {
    descramble_conv(ArrayView(w.data(), DType::float64, kernel), shape, {}, context);
  });
  expect("permutations", [&](const Context& context) {
    permute_trace(w.view(), context);
    match_neurons(w.view(), true, context);
    SearchOptions search;
    search.restarts = 1;
    search.time_limit = 0.5;
    for (const Operator& roughness : {op, Operator::difference(n, 1, Boundary::path)})
      descramble_permutation(c, roughness, search, context);
    quadratic_assignment(ArrayView(w.data(), {n, n}), ArrayView(x.data(), {n, n}),
                         {.maximize = false, .partial_match = {}, .initial = {}, .search = search},
                         context);
  });
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
