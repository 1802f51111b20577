#include "cpu/gauge.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"
#include "cpu/polar.hpp"

namespace descramble_fast::cpu {

namespace {

// A block-diagonal orthogonal matrix: every index lies in exactly one block.
struct BlockOrthogonal {
  std::vector<Block> blocks;
  std::vector<Matrix<double>> factors;
};

std::vector<Block> partition(std::span<const Block> runs, std::int64_t n) {
  std::vector<Block> out;
  std::int64_t next = 0;
  const auto singles_until = [&](std::int64_t end) {
    for (; next < end; ++next) out.push_back({next, next + 1});
  };
  for (const Block& run : runs) {
    singles_until(run.begin);
    out.push_back(run);
    next = run.end;
  }
  singles_until(n);
  return out;
}

// Sets each factor to the polar factor of g's diagonal block, or of its transpose; returns the sum
// of the nuclear norms, the inner product of g with the result.
double fit(const Matrix<double>& g, bool transpose, BlockOrthogonal& q, const Context& context) {
  double gain = 0;
  q.factors.clear();
  for (const Block& block : q.blocks) {
    Matrix<double> part(block.size(), block.size());
    for (std::int64_t i = 0; i < block.size(); ++i)
      std::copy_n(g.row(block.begin + i) + block.begin, block.size(), part.row(i));
    if (transpose) part = transposed(part);
    Polar best = polar(part, context);
    gain += best.nuclear_norm;
    q.factors.push_back(std::move(best.factor));
  }
  return gain;
}

// out <- Q in
void multiply_small(const Matrix<double>& q, const Matrix<double>& in, double* out) {
  const std::int64_t n = in.columns();
  std::fill_n(out, q.rows() * n, 0.0);
  for (std::int64_t i = 0; i < q.rows(); ++i)
    for (std::int64_t j = 0; j < q.columns(); ++j)
      for (std::int64_t c = 0; c < n; ++c) out[i * n + c] += q(i, j) * in(j, c);
}

// G <- Q^T G (rows mixed within blocks), or Q G.
void mix_rows(const BlockOrthogonal& q, bool transpose, Matrix<double>& g, const Context& context) {
  constexpr std::int64_t small = 8;
  const std::int64_t n = g.columns();
  for (std::size_t b = 0; b < q.blocks.size(); ++b) {
    const Block block = q.blocks[b];
    if (block.size() == 1 && q.factors[b](0, 0) == 1) continue;
    Matrix<double> old(block.size(), n);
    std::copy_n(g.row(block.begin), block.size() * n, old.data());
    const Matrix<double> factor = transpose ? transposed(q.factors[b]) : q.factors[b].copy();
    if (block.size() <= small) {
      multiply_small(factor, old, g.row(block.begin));
    } else {
      const Matrix<double> mixed = times(factor, old, threads_of(context), context.poll);
      std::copy_n(mixed.data(), block.size() * n, g.row(block.begin));
    }
  }
}

// A random rotation in every block.
void randomise(BlockOrthogonal& q, std::mt19937_64& random, const Context& context) {
  std::normal_distribution<double> normal;
  q.factors.clear();
  for (const Block& block : q.blocks) {
    Matrix<double> x(block.size(), block.size());
    for (double& entry : x.values()) entry = normal(random);
    q.factors.push_back(polar(x, context).factor);
  }
}

struct Pair {
  BlockOrthogonal a, b;
  double gain = -std::numeric_limits<double>::infinity();
  std::int64_t iterations = 0;
};

// Ascends <A B, G> from the B given.
void alternate(const Matrix<double>& g, Pair& pair, const Context& context) {
  constexpr std::int64_t limit = 1000;
  const int threads = threads_of(context);
  while (pair.iterations < limit) {
    if (context.poll) context.poll();
    ++pair.iterations;
    // (G B^T) = (B G^T)^T; its diagonal blocks fit A.
    Matrix<double> turned = transposed(g, threads);
    mix_rows(pair.b, false, turned, context);
    fit(turned, true, pair.a, context);
    turned = g.copy();
    mix_rows(pair.a, true, turned, context);
    const double gain = fit(turned, false, pair.b, context);
    const bool settled = gain - pair.gain <= 1e-14 * std::abs(gain);
    pair.gain = std::max(gain, pair.gain);
    if (settled) break;
  }
}

// |H - A^T|_F, for A with the diagonal blocks given and ones elsewhere on its diagonal.
double distance_from_transpose(const Matrix<double>& h,
                               std::span<const SmoothnessDescrambler::Rotation> rotations) {
  double sum = 0;
  auto next = rotations.begin();
  for (std::int64_t i = 0; i < h.rows(); ++i) {
    while (next != rotations.end() && next->block.end <= i) ++next;
    const bool within = next != rotations.end() && next->block.begin <= i;
    const Block block = within ? next->block : Block{i, i + 1};
    double row = 0;
    for (std::int64_t j = 0; j < h.columns(); ++j) {
      const bool inside = block.begin <= j && j < block.end;
      const double target = !inside  ? 0.0
                            : within ? next->matrix(j - block.begin, i - block.begin)
                                     : 1.0;
      row += (h(i, j) - target) * (h(i, j) - target);
    }
    sum += row;
  }
  return std::sqrt(sum);
}

}  // namespace

void choose_nearest(const Matrix<double>* reference, SmoothnessDescrambler& d,
                    const Context& context) {
  const std::int64_t n = d.size();
  const int threads = threads_of(context);
  // G = T^T R U: the rows of U^T R^T, analysed, are the rows of G^T.
  Matrix<double> gt = reference ? times_transposed(d.components, *reference, threads, context.poll)
                                : d.components.copy();
  d.op.analyze(gt.values(), context);

  Pair best;
  best.a.blocks = partition(d.op.blocks(), n);
  best.b.blocks = partition(d.blocks, n);
  for (const Block& block : best.b.blocks) best.b.factors.push_back(identity(block.size()));
  const bool simple = d.blocks.empty();
  if (simple) {
    best.gain = fit(gt, true, best.a, context);
    best.iterations = 1;
  } else {
    const Matrix<double> g = transposed(gt, threads);
    alternate(g, best, context);
    constexpr int restarts = 16;
    constexpr std::int64_t restart_size = 256;
    std::mt19937_64 random(1);
    for (int start = 0; n <= restart_size && start < restarts; ++start) {
      Pair other;
      other.a.blocks = best.a.blocks;
      other.b.blocks = best.b.blocks;
      randomise(other.b, random, context);
      alternate(g, other, context);
      other.iterations += best.iterations;
      if (other.gain > best.gain * (1 + 1e-12))
        best = std::move(other);
      else
        best.iterations = other.iterations;
    }
  }

  for (Matrix<double>* const rows : {&d.components, &gt}) mix_rows(best.b, false, *rows, context);
  for (std::size_t i = 0; i < best.a.blocks.size(); ++i) {
    const Block block = best.a.blocks[i];
    if (block.size() > 1) {
      d.rotations.push_back({block, std::move(best.a.factors[i])});
    } else if (best.a.factors[i](0, 0) < 0) {
      for (Matrix<double>* const rows : {&d.components, &gt})
        for (std::int64_t j = 0; j < n; ++j) (*rows)(block.begin, j) *= -1;
    }
  }
  // T and U are orthogonal, so |P - R| = |T^T R U - A B| = |(T^T R U B^T)^T - A^T|, free of
  // cancellation.
  d.gauge = {distance_from_transpose(gt, d.rotations), simple, best.iterations};
}

}  // namespace descramble_fast::cpu
