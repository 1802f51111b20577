#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace descramble_fast::cpu {

struct Turn {
  double cos;
  double sin;
};

/// Cosine and sine of 2 pi a/b, exact at quarter turns and within an ulp elsewhere; |a| and b below
/// 2^59.
Turn turn(std::int64_t a, std::int64_t b);

/// The discrete Fourier transform of real rows of one length n >= 1, O(n log n) for every n.
///
/// Works on `lanes` rows at once, interleaved: entry j of lane v lies at [j * lanes + v]. Lanes do
/// not touch each other's values. All storage is the caller's, so that a plan can be shared by
/// threads.
class RealFft {
 public:
  /// X_k = re + i im for k = 0 ... n/2, interleaved like the rows.
  struct Spectrum {
    double* re;
    double* im;
  };

  explicit RealFft(std::int64_t n);

  std::int64_t size() const { return n_; }
  /// Doubles needed as `work`.
  std::int64_t work_size(std::int64_t lanes) const;
  /// Where within `work` the spectrum lies.
  Spectrum spectrum(std::int64_t lanes, double* work) const;

  /// From x at the start of `work` to X_k = sum_j x_j exp(-2 pi i jk/n), at spectrum().
  void forward(std::int64_t lanes, double* work) const;
  /// From X at spectrum() to n times its inverse transform, at the start of `work`. The imaginary
  /// parts at k = 0 and, for even n, at k = n/2 must be 0.
  void backward(std::int64_t lanes, double* work) const;

 private:
  // Joins `radix` transforms of `length` points into one.
  struct Stage {
    std::int64_t radix;
    std::int64_t length;
    std::vector<Turn> roots;     // of unity, `radix` of them
    std::vector<Turn> twiddles;  // (k, s) for k = 1 ... length/2, s = 1 ... radix - 1
  };
  // Bluestein's way: a transform of any length as a convolution of a smooth length.
  struct Convolution;

  void convolve_forward(std::int64_t lanes, double* work) const;
  void convolve_backward(std::int64_t lanes, double* work) const;

  std::int64_t n_;
  std::vector<Stage> stages_;
  std::shared_ptr<const Convolution> convolution_;
};

}  // namespace descramble_fast::cpu
