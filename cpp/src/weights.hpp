#pragma once

#include "descramble_fast/context.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// tr(L C).
double roughness(const Operator& op, const Matrix<double>& c, const Context& context);

/// Throws InvalidArgument for W without rows or columns.
void check_not_empty(const Matrix<double>& w);

/// The columns of W that the diagonal of P W meets, as a square matrix; times 2^-exponent, so that
/// its largest entry lies in [1, 2) and squares neither overflow nor vanish.
struct SquarePart {
  Matrix<double> matrix;
  int exponent = 0;
};
SquarePart square_part(const ArrayView& weight, const Context& context);

/// Undoes the scaling of a criterion of degree 1 or 2. Throws InvalidArgument on overflow.
double rescaled(double value, int exponent);

}  // namespace descramble_fast
