#pragma once

#include "operators.hpp"

namespace descramble_fast::cuda {

void rotate(const Queue& queue, const Rotated& p, const Strided& samples, const double* mean,
            bool back, double* out, const Room& room = {});
void rotated_modes(const Queue& queue, const Rotated& p, double* out, const Room& room = {});

}  // namespace descramble_fast::cuda
