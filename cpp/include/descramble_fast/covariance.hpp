#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <vector>

#include "descramble_fast/context.hpp"
#include "descramble_fast/export.hpp"
#include "descramble_fast/view.hpp"

namespace descramble_fast {

class Accumulator;

/// Where moments are accumulated.
struct MomentsPlace {
  /// Absent: where the first batch lies.
  std::optional<Device> device = {};
  /// On a CUDA device: the scatter, 8 n^2 bytes, is kept in the host's memory, which every update
  /// then reads and writes over the bus.
  bool offload = false;
  /// Where arrays of the size of the scatter come from on the CPU, work space and results included;
  /// null: operator new. It must be synchronised, and outlive them.
  std::pmr::memory_resource* memory = nullptr;
};

/// Which rows of a batch count, and how often. Both have one entry per row.
struct RowSelection {
  /// boolean: true for rows that count.
  std::optional<ArrayView> mask;
  /// Any floating type, non-negative: how often a row counts.
  std::optional<ArrayView> weights;
};

/// Streaming first and second moments of n features: count, weight, mean and centred scatter,
/// float64.
///
/// A batch of any floating type is read in place. Products of narrow types are summed in float for
/// a few dozen rows, then in double, about a reference near the mean, so that covariances are off
/// by less than 1e-5 of the largest variance for means up to 1e6 deviations (float64: by rounding).
/// Few rows at a time wait until there are enough for the kernels, which no result shows. Not
/// synchronised, const members included: one object, one thread at a time.
///
/// All batches must lie on one device. On a CUDA device, updates are queued on the context's stream
/// and return at once. A batch that cannot be taken (NaN, say) changes nothing there either, but
/// the error is thrown by the next call that waits: count, weight, merge, or any that reads
/// moments.
class DESCRAMBLE_FAST_EXPORT Covariance {
 public:
  /// 4 n^2 bytes, and as much again after an update of more rows than are packed at once; on a CUDA
  /// device 8 n^2, and what moments_memory says while an update runs. Throws InvalidArgument for
  /// n < 1, BackendError for a device that cannot be used.
  explicit Covariance(std::int64_t n, MomentsPlace place = {});
  ~Covariance();
  Covariance(Covariance&&) noexcept;
  Covariance& operator=(Covariance&&) noexcept;

  /// Moments known from elsewhere. Without a mean only the uncentred second moment is defined.
  static Covariance from_moments(const ArrayView& second_moment,
                                 const std::optional<ArrayView>& mean, double weight,
                                 MomentsPlace place = {}, const Context& context = {});
  /// sum_i weights[i] C_i of the normalised, uncentred second moments.
  static Covariance combine(std::span<const Covariance* const> covariances,
                            std::span<const double> weights);

  /// Adds the rows of a batch, shape (..., n). Rows masked out or of zero weight are not looked at.
  /// On any error the state is left bit for bit as it was.
  void update(const ArrayView& batch, const RowSelection& selection = {},
              const Context& context = {});
  /// Adds another accumulator's samples.
  void merge(const Covariance& other);

  std::int64_t size() const { return n_; }
  /// The CPU while nothing has decided it.
  Device device() const;
  /// As its place was asked for.
  bool offload() const;
  std::int64_t count() const;
  double weight() const;
  /// Whether the mean is known, so that centring is defined.
  bool has_mean() const { return has_mean_; }
  std::vector<double> mean() const;
  /// C = (sum of w x x^T) / weight, (n, n).
  Matrix<double> second_moment() const;
  /// K = scatter about the mean / (weight - ddof), (n, n).
  Matrix<double> covariance(double ddof = 0) const;

  /// The whole state, for saving and copying.
  struct State {
    std::int64_t count = 0;
    double weight = 0;
    bool has_mean = true;
    /// The mean is their sum.
    std::vector<double> reference, offset;
    /// Row-major upper triangle of the scatter about the mean, n (n + 1)/2.
    std::vector<double> packed_scatter;
  };
  State state() const;
  /// Throws InvalidArgument where the lengths disagree or an entry is negative, NaN or infinite.
  static Covariance from_state(const State& state, MomentsPlace place = {});

 private:
  void move_to(MomentsPlace place);

  std::int64_t n_;
  bool has_mean_ = true;
  std::unique_ptr<Accumulator> accumulator_;
};

/// The most bytes that an accumulator of n features takes on a CUDA device: for its state, and
/// beside it while an update of so many rows runs, which all accumulators on a stream share.
struct MomentsMemory {
  std::int64_t state, update;
};
DESCRAMBLE_FAST_EXPORT MomentsMemory moments_memory(std::int64_t n, std::int64_t rows, DType dtype,
                                                    bool offload = false);

/// Streaming cross moments between two sets of features of the same samples.
class DESCRAMBLE_FAST_EXPORT CrossCovariance {
 public:
  CrossCovariance(std::int64_t n_x, std::int64_t n_y, MomentsPlace place = {});
  ~CrossCovariance();
  CrossCovariance(CrossCovariance&&) noexcept;
  CrossCovariance& operator=(CrossCovariance&&) noexcept;

  /// Adds paired rows, shapes (..., n_x) and (..., n_y).
  void update(const ArrayView& x, const ArrayView& y, const RowSelection& selection = {},
              const Context& context = {});
  void merge(const CrossCovariance& other);

  std::int64_t size_x() const { return n_x_; }
  std::int64_t size_y() const { return n_y_; }
  Device device() const;
  std::int64_t count() const;
  double weight() const;
  /// (sum of w x y^T) / weight, (n_x, n_y).
  Matrix<double> cross_moment() const;
  Matrix<double> cross_covariance(double ddof = 0) const;
  /// Pearson's; 0 where a feature is constant.
  Matrix<double> correlation() const;

 private:
  std::int64_t n_x_, n_y_;
  std::unique_ptr<Accumulator> accumulator_;
};

}  // namespace descramble_fast
