#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/operators.hpp"
#include "descramble_fast/view.hpp"
#include "modes.hpp"

namespace descramble_fast {

struct [[gnu::visibility("hidden")]] Operator::Impl {
  std::string name;
  std::vector<double> eigenvalues;
  std::vector<Block> blocks;
  /// circulant: L_ij depends on the cyclic distance of i and j alone. reflecting: a power of the
  /// path's Laplacian.
  enum class Pattern { general, circulant, reflecting };
  Pattern pattern = Pattern::general;
  /// Rows that are best transformed together.
  std::int64_t bundle = 4;

  virtual ~Impl() = default;
  virtual Matrix<double> modes() const = 0;
  /// In place on `count` consecutive rows, on the calling thread.
  virtual void analyze(double* rows, std::int64_t count) const = 0;
  virtual void synthesize(double* rows, std::int64_t count) const = 0;
  /// tr(L C) for a symmetric (n, n) matrix C.
  virtual double trace_with(const double* c, int threads) const = 0;
  virtual ModesDescription describe() const = 0;

  std::int64_t size() const { return std::int64_t(eigenvalues.size()); }
};

namespace cpu {

using SharedImpl = std::shared_ptr<const Operator::Impl>;

/// Real Fourier basis of n places; l(k) for the frequencies k = 0 ... n/2, in any order.
SharedImpl make_fourier(std::string name, std::int64_t n, const std::vector<double>& frequencies);

/// DCT-II basis; l ascending, one for each place.
SharedImpl make_cosine(std::string name, std::vector<double> eigenvalues);

/// Sums of the axes' eigenvalues, the last axis fastest.
SharedImpl make_grid(std::string name, std::vector<SharedImpl> axes);

/// Modes as rows, with any signs; l ascending, those within `gap` of each other in one block.
SharedImpl make_dense(std::string name, std::vector<double> eigenvalues, Matrix<double> modes,
                      double gap);

void apply(const Operator::Impl& op, std::span<double> rows, const Context& context);
void analyze(const Operator::Impl& op, std::span<double> rows, const Context& context);
void synthesize(const Operator::Impl& op, std::span<double> rows, const Context& context);

}  // namespace cpu

}  // namespace descramble_fast
