#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// X B^T for X (r, n), B (k, n).
Matrix<double> times_transposed(const Matrix<double>& x, const Matrix<double>& b, int threads,
                                const std::function<void()>& poll = {});

/// X B for X (r, k), B (k, n).
Matrix<double> times(const Matrix<double>& x, const Matrix<double>& b, int threads,
                     const std::function<void()>& poll = {});

Matrix<double> identity(std::int64_t n);

double sum_of_squares(std::span<const double> x);
double largest_magnitude(std::span<const double> x);

/// X X^T.
Matrix<double> gram(const Matrix<double>& x, int threads, const std::function<void()>& poll = {});

Matrix<double> transposed(const Matrix<double>& x, int threads = 1);

/// |V V^T - I|_F for V (k, n), estimated by a few fixed random probes.
double orthogonality_error(const Matrix<double>& rows, int threads);

/// Negates a vector unless the first of its largest entries, to 1e-6 relative, is positive.
void fix_sign(double* vector, std::int64_t n);

}  // namespace descramble_fast::cpu
