// Built once for each instruction set, with DESCRAMBLE_FAST_KERNELS naming the table. Nothing here
// may come from a header as an inline function: the linker could keep the copy of another build.
#include "cpu/secular_kernels.hpp"

namespace descramble_fast::cpu {

extern const SecularKernels DESCRAMBLE_FAST_KERNELS;

namespace {

constexpr std::int64_t lanes = 8;
typedef double Lanes __attribute__((vector_size(64), aligned(8)));

// By reference: vectors wider than a register are not passed by value.
const Lanes& lanes_at(const double* p) { return *reinterpret_cast<const Lanes*>(p); }
Lanes& lanes_at(double* p) { return *reinterpret_cast<Lanes*>(p); }

double sum_of(const Lanes& x) {
  return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

SecularSums sums(const double* d, const double* z2, std::int64_t begin, std::int64_t end,
                 double origin, double tau) {
  Lanes value{}, slope{};
  std::int64_t j = begin;
  for (; j + lanes <= end; j += lanes) {
    const Lanes inverse = 1 / ((lanes_at(d + j) - origin) - tau);
    const Lanes term = lanes_at(z2 + j) * inverse;
    value += term;
    slope += term * inverse;
  }
  SecularSums out{sum_of(value), sum_of(slope)};
  for (; j < end; ++j) {
    const double inverse = 1 / ((d[j] - origin) - tau), term = z2[j] * inverse;
    out.value += term;
    out.slope += term * inverse;
  }
  return out;
}

double weight(const double* d, const double* origins, const double* taus, std::int64_t k,
              std::int64_t j) {
  const double pole = d[j];
  Lanes product = Lanes{} + 1;
  double rest = (origins[j] - pole) + taus[j];
  const auto factor = [&](std::int64_t i) {
    if (i != j) rest *= ((origins[i] - pole) + taus[i]) / (d[i] - pole);
  };
  const std::int64_t skipped = j / lanes * lanes;
  std::int64_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    if (i == skipped) {
      for (std::int64_t l = 0; l < lanes; ++l) factor(i + l);
      continue;
    }
    product *= ((lanes_at(origins + i) - pole) + lanes_at(taus + i)) / (lanes_at(d + i) - pole);
  }
  for (; i < k; ++i) factor(i);
  for (std::int64_t l = 0; l < lanes; ++l) rest *= product[l];
  return rest;
}

double vector(const double* d, const double* z, std::int64_t k, double origin, double tau,
              double* out) {
  Lanes squares{};
  std::int64_t j = 0;
  for (; j + lanes <= k; j += lanes) {
    const Lanes entry = lanes_at(z + j) / ((lanes_at(d + j) - origin) - tau);
    lanes_at(out + j) = entry;
    squares += entry * entry;
  }
  double sum = sum_of(squares);
  for (; j < k; ++j) {
    out[j] = z[j] / ((d[j] - origin) - tau);
    sum += out[j] * out[j];
  }
  return sum;
}

}  // namespace

const SecularKernels DESCRAMBLE_FAST_KERNELS = {sums, weight, vector};

}  // namespace descramble_fast::cpu
