#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/descrambler.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

/// P = T U^T of all outputs of a convolution, of which neither T nor U is formed: U is a Fourier
/// transform followed by a unitary matrix among the channels at each frequency. Neurons are ordered
/// (channels, spatial_shape...), row-major. Lies on the CPU.
class DESCRAMBLE_FAST_EXPORT ConvolutionDescrambler final : public Descrambler {
 public:
  struct Components;
  /// For the library itself: descramble_conv() makes them.
  ConvolutionDescrambler(std::vector<std::int64_t> spatial_shape, Operator op,
                         std::shared_ptr<const Components> components);

  std::int64_t size() const override;
  Device device() const override { return {}; }
  /// C_out.
  std::int64_t channels() const { return size() / op.size(); }
  /// P, (n, n), formed at every call: O(n^2 (C_out + log n)). Throws OutOfMemory where the system
  /// would not grant the 8 n^2 bytes.
  Matrix<double> matrix() const override;

  /// Places along each axis.
  std::vector<std::int64_t> spatial_shape;
  /// Of one channel's places; L is block diagonal, this for every channel.
  Operator op;
  /// c, descending; those of a cosine and its sine stand side by side.
  std::vector<double> eigenvalues;
  /// Estimate of |cost - exact|: |dC|_2 (eigensolver's residual, rounding of C, clipped part) times
  /// the sum of l.
  double cost_error = 0;
  /// Components whose eigenvalues agree to within n eps c_1; every cosine and sine are among them.
  std::vector<Block> blocks;

 protected:
  Matrix<double> forward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> backward(Matrix<double> rows, const Context& context) const override;
  Matrix<double> rotated(const ArrayView& rows, const double* mean, bool back,
                         const Context& context) const override;

 private:
  std::shared_ptr<const Components> components_;
};

/// The exact minimiser of tr(L P C P^T) for the outputs of a stride-1 convolution without bias and
/// with periodic padding, whose inputs have the identity as second moment: C = W W^T, with W block
/// circulant. `weight` is (C_out, C_in, kernel...) with 1 to 3 spatial axes, longer or shorter than
/// `spatial_shape`. `op` acts on the places of one channel; absent: the grid of fourier(axis), its
/// order 2.
///
/// Takes O(places C_out^2 (C_out + C_in)) and little beside the result, see
/// descramble_conv_memory(). At each spatial frequency C is a Hermitian matrix of the size of
/// C_out. One of each pair of conjugate frequencies is solved, each solution checked (residual <=
/// 50 C_out eps |A|), and each complex eigenvector u gives a cosine and a sine of one eigenvalue;
/// the first of u's largest entries is real and positive. Within a degenerate block of L pairs go
/// to modes that are a cosine and a sine along the last axis that tells them apart, as far as there
/// are any. The same bits for every number of threads. A weight on a CUDA device is copied to the
/// CPU.
///
/// initial_cost is exact, too: O(n log n), where the operator is a sum over the axes of
/// spatial_shape, with O(places^2 log places) for axes of its own matrix or operators of another
/// layout.
///
/// Throws InvalidArgument (shapes, NaN or infinity with its position, overflow), TypeError (dtype),
/// BackendError (every eigensolver failed), and OutOfMemory before any work where the system would
/// not grant descramble_conv_memory.
DESCRAMBLE_FAST_EXPORT ConvolutionDescrambler
descramble_conv(const ArrayView& weight, std::span<const std::int64_t> spatial_shape,
                std::optional<Operator> op = {}, const Context& context = {});

/// The most memory in bytes, result included, that descramble_conv takes beside the weight and the
/// operator, where no eigensolver fails: 16 C_out^2 for each stored frequency, of which there are
/// little more than half as many as places; 64 a neuron and 100 a place; 24 for every number of the
/// weight; and what each thread solves one frequency with. (With an operator of another layout,
/// initial_cost takes a few hundred a place and thread.)
DESCRAMBLE_FAST_EXPORT std::int64_t descramble_conv_memory(
    std::span<const std::int64_t> weight_shape, std::span<const std::int64_t> spatial_shape,
    int threads = 0);

}  // namespace descramble_fast
