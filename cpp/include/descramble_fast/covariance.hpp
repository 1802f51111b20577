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
/// Few rows at a time wait until there are enough for the kernels, which no result shows; whatever
/// reads moments adds them first. Not synchronised, const members included: one object, one thread
/// at a time.
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
  /// What was moved from may be destroyed or assigned to, and no more.
  Covariance(Covariance&&) noexcept;
  /// As the constructor.
  Covariance& operator=(Covariance&&) noexcept;

  /// Moments known from elsewhere: C, (n, n) and symmetric to 1e-6 of its largest element, and the
  /// mean, (n,), of any floating type. Without a mean only the uncentred second moment is defined,
  /// and nothing can be added. O(n^2).
  ///
  /// Throws InvalidArgument (shapes, NaN or infinity, a diagonal that no samples have, a weight
  /// that is not positive, or sums beyond an eighth of the largest double) and TypeError (dtype).
  static Covariance from_moments(const ArrayView& second_moment,
                                 const std::optional<ArrayView>& mean, double weight,
                                 MomentsPlace place = {}, const Context& context = {});
  /// sum_i weights[i] C_i of the normalised, uncentred second moments, of one size and on one
  /// device; without a mean. O(n^2) each.
  ///
  /// Throws InvalidArgument (lengths, sizes, devices, a negative weight, one without samples).
  static Covariance combine(std::span<const Covariance* const> covariances,
                            std::span<const double> weights);

  /// Adds the rows of a batch, shape (..., n), any floating type. Rows masked out or of zero weight
  /// are not looked at. On any error the state is left bit for bit as it was.
  ///
  /// O(n^2) a row. The batch is not needed afterwards; on a CUDA device it is read in the order of
  /// the context's stream, and must live until then.
  ///
  /// Throws InvalidArgument (shapes, device, a negative weight, NaN, infinity or an overflow, with
  /// its row; no mean) and TypeError (dtype).
  void update(const ArrayView& batch, const RowSelection& selection = {},
              const Context& context = {});
  /// Adds another accumulator's samples, which it keeps. O(n^2). Throws InvalidArgument where sizes
  /// or devices differ, or either has no mean.
  void merge(const Covariance& other);

  /// n.
  std::int64_t size() const { return n_; }
  /// The CPU while nothing has decided it.
  Device device() const;
  /// As its place was asked for.
  bool offload() const;
  /// Number of rows that count. On a CUDA device it waits, as weight() does.
  std::int64_t count() const;
  /// Sum of their weights.
  double weight() const;
  /// Whether the mean is known, so that centring is defined.
  bool has_mean() const { return has_mean_; }
  /// (n,). O(n). Throws InvalidArgument without samples, or where it is not known.
  std::vector<double> mean() const;
  /// C = (sum of w x x^T) / weight, (n, n), on device(). O(n^2). Throws InvalidArgument without
  /// samples.
  Matrix<double> second_moment() const;
  /// K = scatter about the mean / (weight - ddof), (n, n), on device(). O(n^2). Throws
  /// InvalidArgument where weight - ddof is not positive, or the mean is not known.
  Matrix<double> covariance(double ddof = 0) const;

  /// The whole state, for saving and copying.
  struct State {
    /// As count().
    std::int64_t count = 0;
    /// As weight().
    double weight = 0;
    /// As has_mean().
    bool has_mean = true;
    /// (n,). The mean is the sum of this and the offset.
    std::vector<double> reference;
    /// (n,).
    std::vector<double> offset;
    /// Row-major upper triangle of the scatter about the mean, n (n + 1)/2.
    std::vector<double> packed_scatter;
  };
  /// A copy, 4 n^2 bytes, in the host's memory. O(n^2).
  State state() const;
  /// O(n^2). Throws InvalidArgument where the lengths disagree, or an entry is negative, NaN,
  /// infinite or so large that more rows could overflow.
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
  /// Bytes for the state.
  std::int64_t state;
  /// Bytes while an update runs.
  std::int64_t update;
};
/// For updates of `rows` rows of this type. Throws BackendError without a CUDA backend.
DESCRAMBLE_FAST_EXPORT MomentsMemory moments_memory(std::int64_t n, std::int64_t rows, DType dtype,
                                                    bool offload = false);

/// Streaming cross moments between two sets of features of the same samples: as Covariance, in what
/// it takes, its accuracy, its errors, its waiting and its threads.
class DESCRAMBLE_FAST_EXPORT CrossCovariance {
 public:
  /// 8 n_x n_y bytes, and as much again after an update of more rows than are packed at once.
  CrossCovariance(std::int64_t n_x, std::int64_t n_y, MomentsPlace place = {});
  ~CrossCovariance();
  /// What was moved from may be destroyed or assigned to, and no more.
  CrossCovariance(CrossCovariance&&) noexcept;
  /// As the constructor.
  CrossCovariance& operator=(CrossCovariance&&) noexcept;

  /// Adds paired rows, shapes (..., n_x) and (..., n_y). O(n_x n_y) a row.
  void update(const ArrayView& x, const ArrayView& y, const RowSelection& selection = {},
              const Context& context = {});
  /// As Covariance::merge. O(n_x n_y).
  void merge(const CrossCovariance& other);

  /// n_x.
  std::int64_t size_x() const { return n_x_; }
  /// n_y.
  std::int64_t size_y() const { return n_y_; }
  /// As Covariance::device.
  Device device() const;
  /// Number of pairs that count.
  std::int64_t count() const;
  /// Sum of their weights.
  double weight() const;
  /// (sum of w x y^T) / weight, (n_x, n_y), on device(). This and the two below: O(n_x n_y), and
  /// InvalidArgument where it is not defined.
  Matrix<double> cross_moment() const;
  /// Scatter about the means / (weight - ddof), (n_x, n_y).
  Matrix<double> cross_covariance(double ddof = 0) const;
  /// Pearson's, (n_x, n_y); 0 where a feature is constant.
  Matrix<double> correlation() const;

 private:
  std::int64_t n_x_, n_y_;
  std::unique_ptr<Accumulator> accumulator_;
};

}  // namespace descramble_fast
