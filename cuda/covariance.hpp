#pragma once

#include <cstdint>

#include "backend.hpp"

namespace descramble_fast::cuda {

/// moments_add with at most so many rows in one launch of the products. Throws.
void add_rows(Moments& moments, const Queue& queue, const ArrayView* batches, const ArrayView* mask,
              const ArrayView* weights, std::int64_t most_rows);

}  // namespace descramble_fast::cuda
