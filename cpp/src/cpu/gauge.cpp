#include "cpu/gauge.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "cpu/linalg.hpp"
#include "cpu/parallel.hpp"

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

Matrix<double> identity(std::int64_t n) {
  Matrix<double> out(n, n, 0);
  for (std::int64_t i = 0; i < n; ++i) out(i, i) = 1;
  return out;
}

Matrix<double> diagonal_block(const Matrix<double>& g, Block block) {
  Matrix<double> out(block.size(), block.size());
  for (std::int64_t i = 0; i < block.size(); ++i)
    std::copy_n(g.row(block.begin + i) + block.begin, block.size(), out.row(i));
  return out;
}

// Sets each factor to the polar factor of g's diagonal block; returns the sum of the nuclear norms,
// the inner product of g with the result.
double fit(const Matrix<double>& g, BlockOrthogonal& q, int threads) {
  double gain = 0;
  q.factors.clear();
  for (const Block& block : q.blocks) {
    Polar best = polar(diagonal_block(g, block), threads);
    gain += best.nuclear_norm;
    q.factors.push_back(std::move(best.factor));
  }
  return gain;
}

// Q^T G (rows mixed within blocks), or Q G.
Matrix<double> mixed_rows(const BlockOrthogonal& q, bool transpose, const Matrix<double>& g) {
  Matrix<double> out(g.rows(), g.columns(), 0);
  for (std::size_t b = 0; b < q.blocks.size(); ++b) {
    const auto [begin, end] = q.blocks[b];
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t j = begin; j < end; ++j) {
        const double x =
            transpose ? q.factors[b](j - begin, i - begin) : q.factors[b](i - begin, j - begin);
        for (std::int64_t c = 0; c < g.columns(); ++c) out(i, c) += x * g(j, c);
      }
  }
  return out;
}

// A random rotation in every block.
void randomise(BlockOrthogonal& q, std::mt19937_64& random, int threads) {
  std::normal_distribution<double> normal;
  q.factors.clear();
  for (const Block& block : q.blocks) {
    Matrix<double> x(block.size(), block.size());
    for (double& entry : x.values()) entry = normal(random);
    q.factors.push_back(polar(x, threads).factor);
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
    fit(transposed(mixed_rows(pair.b, false, transposed(g))), pair.a, threads);
    const double gain = fit(mixed_rows(pair.a, true, g), pair.b, threads);
    const bool settled = gain - pair.gain <= 1e-14 * std::abs(gain);
    pair.gain = std::max(gain, pair.gain);
    if (settled) break;
  }
}

double frobenius_distance(const Matrix<double>& a, const Matrix<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values().size(); ++i) {
    const double x = a.values()[i] - b.values()[i];
    sum += x * x;
  }
  return std::sqrt(sum);
}

}  // namespace

void choose_nearest(const Matrix<double>* reference, SmoothnessDescrambler& d,
                    const Context& context) {
  const std::int64_t n = d.size();
  const int threads = threads_of(context);
  // G = T^T R U: the rows of U^T R^T, analysed, are the rows of G^T.
  const auto reference_in_modes = [&] {
    Matrix<double> rows =
        reference ? times_transposed(d.components, *reference, threads) : d.components.copy();
    d.op.analyze(rows.values(), context);
    return transposed(rows);
  };
  const Matrix<double> g = reference_in_modes();

  Pair best;
  best.a.blocks = partition(d.op.blocks(), n);
  best.b.blocks = partition(d.blocks, n);
  for (const Block& block : best.b.blocks) best.b.factors.push_back(identity(block.size()));
  const bool simple = d.blocks.empty();
  if (simple) {
    best.gain = fit(g, best.a, threads);
    best.iterations = 1;
  } else {
    alternate(g, best, context);
    constexpr int restarts = 16;
    constexpr std::int64_t restart_size = 256;
    std::mt19937_64 random(1);
    for (int start = 0; n <= restart_size && start < restarts; ++start) {
      Pair other;
      other.a.blocks = best.a.blocks;
      other.b.blocks = best.b.blocks;
      randomise(other.b, random, threads);
      alternate(g, other, context);
      other.iterations += best.iterations;
      if (other.gain > best.gain * (1 + 1e-12))
        best = std::move(other);
      else
        best.iterations = other.iterations;
    }
  }

  d.components = mixed_rows(best.b, false, d.components);
  for (std::size_t i = 0; i < best.a.blocks.size(); ++i) {
    const Block block = best.a.blocks[i];
    if (block.size() > 1) {
      d.rotations.push_back({block, std::move(best.a.factors[i])});
    } else if (best.a.factors[i](0, 0) < 0) {
      for (std::int64_t j = 0; j < n; ++j) d.components(block.begin, j) *= -1;
    }
  }
  // T and U are orthogonal, so |P - R| = |T^T R U - A B|, free of cancellation.
  const Matrix<double> rotated = reference_in_modes();
  Matrix<double> target = identity(n);
  for (const auto& [block, a] : d.rotations)
    for (std::int64_t i = 0; i < block.size(); ++i)
      for (std::int64_t j = 0; j < block.size(); ++j)
        target(block.begin + i, block.begin + j) = a(i, j);
  d.gauge = {frobenius_distance(rotated, target), simple, best.iterations};
}

}  // namespace descramble_fast::cpu
