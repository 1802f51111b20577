#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "descramble_fast/assignment.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

struct OrderSolution {
  std::vector<std::int64_t> order;
  std::optional<double> tree_bound;
  std::int64_t steps = 0;
  Stopped stopped = Stopped::finished;
  std::string driver;
};

/// An order of the neurons with small tr(L P C P^T), L the operator of the orthogonal solution.
OrderSolution smooth_order(const SmoothnessDescrambler& orthogonal, const Matrix<double>& c,
                           const SearchOptions& search, const Context& context);

}  // namespace descramble_fast::cpu
