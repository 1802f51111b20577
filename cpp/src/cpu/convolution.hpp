#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/lapack.hpp"
#include "cpu/operators.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast::cpu {

/// The frequencies of real signals on a periodic grid of up to three axes, one of each conjugate
/// pair, and the real modes that they are made of.
///
/// Real modes are products over the axes of 1, cos 1, sin 1, cos 2, ..., numbered row-major. Those
/// with the same wave numbers |k| make a group, and so do the frequencies that differ in the signs
/// of k alone.
class HalfSpectrum {
 public:
  struct Group {
    std::array<std::int64_t, 3> wave{};
    /// Axes along which there are a cosine and a sine, and for each how far the product's number
    /// steps from the one to the other.
    int pairs = 0;
    std::array<int, 3> axis{};
    std::array<std::int64_t, 3> step{};
    /// The number of the product of cosines.
    std::int64_t cosines = 0;
    /// Its first frequency; the real dimensions of all frequencies before.
    std::int64_t first = 0;
    std::int64_t offset = 0;

    /// Whether its only frequency is its own conjugate.
    bool real() const { return pairs == 0; }
    std::int64_t dimensions() const { return real() ? 1 : 2; }
    std::int64_t frequencies() const { return real() ? 1 : std::int64_t(1) << (pairs - 1); }
    std::int64_t modes() const { return std::int64_t(1) << pairs; }
    /// The number of a product, whose bits say along which of the paired axes it is a sine.
    std::int64_t mode(std::int64_t sines) const;
    /// Signed wave numbers of a frequency of the group.
    std::array<std::int64_t, 3> signed_wave(std::int64_t frequency) const;
  };

  explicit HalfSpectrum(std::span<const std::int64_t> shape);

  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t places() const { return basis_->size(); }
  std::int64_t frequencies() const { return frequencies_; }
  const std::vector<Group>& groups() const { return groups_; }
  /// Between signals and coefficients of the real modes.
  const Operator::Impl& basis() const { return *basis_; }

  /// Frequencies of real signals on such a grid, without the table of them.
  static std::int64_t count(std::span<const std::int64_t> shape);

 private:
  std::vector<std::int64_t> shape_;
  std::vector<Group> groups_;
  std::int64_t frequencies_ = 0;
  SharedImpl basis_;
};

/// z = sqrt(2/N) sum_p x_p exp(-2 pi i k.p) (a real frequency: sqrt(1/N)) for each of `rows` lines
/// of `width` signals, of a frequency of the group. Line r of real mode m is at x + (r * places +
/// m) * width, that of z at z + r * width.
void gather(const HalfSpectrum::Group& group, std::int64_t frequency, const double* x,
            std::int64_t places, std::int64_t rows, std::int64_t width, Complex* z);
/// The way back, for all frequencies of a group in their order: the first one sets the real modes,
/// each of the others adds what it brings.
void scatter(const HalfSpectrum::Group& group, std::int64_t frequency, const Complex* z,
             std::int64_t places, std::int64_t rows, std::int64_t width, double* x);

/// A kernel (taps, rows * columns), and the place of each tap on the grid.
struct Kernel {
  std::int64_t rows = 0, columns = 0;
  std::vector<std::array<std::int64_t, 3>> places;
  Matrix<double> taps;
};

struct BlockEigenpairs {
  /// (frequencies, channels), ascending.
  Matrix<double> values;
  /// (frequencies * channels, 2 * channels): at each frequency the rows of complex V with
  /// M = V^H diag(w) V, V real where the frequency is its own conjugate.
  Matrix<double> vectors;
  /// tr M at each frequency.
  std::vector<double> traces;
  /// The largest of any frequency; that of all together.
  double residual = 0;
  double orthogonality_error = 0;
  Route route;

  const Complex* at(std::int64_t frequency) const {
    return reinterpret_cast<const Complex*>(vectors.row(frequency * values.columns()));
  }
};

/// The eigenpairs of M = W W^H at every frequency. Throws BackendError where every driver fails at
/// one.
BlockEigenpairs solve_frequencies(const HalfSpectrum& spectrum, const Kernel& kernel,
                                  const Context& context);

/// Most bytes that one thread takes beside the result, for W (rows, columns) with so many taps.
double frequency_workspace(std::int64_t rows, std::int64_t columns, double taps);

/// A = V^H diag(w) V through the real symmetric matrix of twice the size; of A the lower triangle.
/// An empty string, or why there is no answer.
std::string solve_embedded(std::int64_t n, const Complex* a, double* w, Complex* v);

/// Makes the first of a vector's largest entries, to 1e-6 relative, real and positive.
void fix_phase(Complex* vector, std::int64_t n);

/// tr(L S) for the circulant S with eigenvalue t at each frequency.
double trace_with_spectrum(const Operator::Impl& op, const HalfSpectrum& spectrum,
                           std::span<const double> t, const Context& context);

/// Components (channels at all frequencies) by the modes they go to, among channels * places.
/// Component j of a frequency is offset * channels + j, or its cosine is at 2 j and its sine at
/// 2 j + 1 from there.
struct Assignment {
  const HalfSpectrum& spectrum;
  const BlockEigenpairs& pairs;
  std::span<const std::int64_t> modes;

  const std::int64_t* modes_of(const HalfSpectrum::Group& group, std::int64_t frequency) const {
    return modes.data() + pairs.values.columns() * (group.offset + frequency * group.dimensions());
  }
};

/// Each row's components, put to their modes; and back. In place on rows of channels * places.
void to_modes(const Assignment& assignment, std::span<double> rows, const Operator& op,
              const Context& context);
void from_modes(const Assignment& assignment, std::span<double> rows, const Operator& op,
                const Context& context);

}  // namespace descramble_fast::cpu
