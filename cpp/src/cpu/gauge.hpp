#pragma once

#include "descramble_fast/descrambler.hpp"

namespace descramble_fast::cpu {

/// Among all optimal P = T A B U^T, A orthogonal within the blocks of l and B within those of c,
/// takes the one nearest to R (null: the identity): rotates the components and sets the rotations
/// and the gauge report of `d`.
///
/// With a simple spectrum of C the answer is one polar factor per block. With repeated eigenvalues
/// A and B are improved in turn, each by polar factors, from several starts: a stationary point.
void choose_nearest(const Matrix<double>* reference, SmoothnessDescrambler& d,
                    const Context& context);

}  // namespace descramble_fast::cpu
