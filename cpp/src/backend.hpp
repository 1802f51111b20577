#pragma once

#include <cstdint>

#include "descramble_fast/view.hpp"

/// What the core and the CUDA library say to each other: one table of C functions, so that the
/// core loads without a driver and no exception crosses the boundary.
namespace descramble_fast::cuda {

/// Of this table. Both sides are built from one tree; a library of another version is refused.
inline constexpr std::int32_t backend_version = 1;
/// The library's one exported symbol: `const Backend* descramble_fast_cuda_backend()`.
inline constexpr const char* entry_point = "descramble_fast_cuda_backend";

enum class Fault : std::int32_t { none, invalid_argument, type_error, backend, out_of_memory };

struct Failure {
  Fault fault = Fault::none;
  char text[512] = {};
};

/// Where a call runs, and after what. Calls make `device` current and put the caller's back.
struct Queue {
  int device = 0;
  void* stream = nullptr;  // cudaStream_t
  /// Asked between steps that can be abandoned; true gives up with Fault::backend. May be null.
  bool (*cancelled)(void* with) = nullptr;
  void* with = nullptr;
};

/// Takes remarks for the route: `item` of the batch (-1: none in particular).
struct Notes {
  void* to = nullptr;
  void (*add)(void* to, std::int64_t item, const char* text) = nullptr;
};

struct DeviceFacts {
  char name[256];
  int major, minor, multiprocessors;
  std::int64_t total_memory, free_memory;
  int driver, runtime, cublas, cusolver;
};

/// Moments on one device; opaque.
struct Moments;

struct MomentsShape {
  int device;
  std::int64_t n_x, n_y;  // n_y 0: one set of columns with itself
  bool offload;           // the scatter lies in the host's memory
};

enum class Refused : std::int32_t { nothing, not_finite, bad_weight, overflow };

/// Of all updates so far, and of the first one refused since the last report.
struct MomentsReport {
  std::int64_t count;
  double weight;
  Refused refused;
  std::int64_t update;  // its number, from 0, among all updates
  std::int32_t side;    // 0: x, 1: y
  std::int64_t row, column;
  double value;  // the weight, or the magnitude that overflows
};

/// The modes of one axis. Fourier and cosine have a closed form; place j of base mode b is, with
/// periods of n, fourier: 1, cos 1, sin 1, cos 2, ..., normalised; cosine: DCT-II.
struct ModeAxis {
  enum Kind : std::int32_t { fourier, cosine, dense } kind;
  std::int64_t n;
  const double* eigenvalues;  // (n), ascending
  const std::int64_t* base;   // (n): the base mode of each of the axis's own modes; null: itself
  const double* rows;         // (n, n), of a dense axis alone: row i is mode i
};

/// The modes T of an operator, on the host: products over axes, the last fastest; without axes the
/// identity.
struct Modes {
  std::int64_t n;
  const double* eigenvalues = nullptr;  // (n), ascending: sums over axes
  const ModeAxis* axes = nullptr;
  std::int32_t axis_count = 0;
  const std::int64_t* order = nullptr;  // (n): mode i is product order[i]; null: itself
};

/// Columns [begin, end) of the coefficients are multiplied by a (size, size) matrix.
struct BlockRotation {
  std::int64_t begin, end;
  const double* matrix;  // row-major, on the host
};

/// P = T A U^T with U's k columns as rows of `components` on the device.
struct Rotated {
  Modes modes;
  std::int64_t k;
  const double* components;  // (k, n), on the device
  const BlockRotation* rotations;
  std::int64_t rotation_count;
};

struct EighOutput {
  void* eigenvalues;   // (batch, k) on the device, of the working type, ascending
  void* eigenvectors;  // (batch, k, n) on the device: rows
  // On the host, per matrix.
  double* residual;
  double* orthogonality_error;
  bool* solved;  // false: no driver's answer passed the check; left to the caller
  char driver[128];
};

enum class Assigned : std::int32_t {
  optimal,
  not_finite,
  infeasible,
  open,  ///< Left to the CPU: there may be other optima, or rounding hides which it is.
};

struct AssignmentProblem {
  const ArrayView* cost;  // (..., n, m), float32 or float64 or narrower, any strides
  bool maximize;
};

/// On the device: columns (batch, n), -1 where a row is left out; duals (batch, n), (batch, m) as
/// LinearAssignment has them. On the host, per problem: all else.
struct AssignmentOutput {
  std::int64_t* columns;
  double* row_duals;
  double* column_duals;
  double* cost;
  double* gap;
  double* violation;
  Assigned* status;
  /// The place that is not finite, the first by lines of the shorter side; of an infeasible problem
  /// a line of that side. Else -1.
  std::int64_t* row;
  std::int64_t* column;
};

/// Functions return false after filling the failure; those that return at all leave no work behind
/// that reads the host's memory. Unless told otherwise they have finished when they return.
struct Backend {
  std::int32_t version;

  // Devices.
  bool (*count_devices)(int* count, Failure*);
  bool (*describe)(int device, DeviceFacts*, Failure*);
  /// The device that memory lies on; -1: none.
  bool (*locate)(const void* memory, int* device, Failure*);

  // Memory. Freshly allocated memory is not initialised.
  bool (*allocate)(int device, std::int64_t bytes, void** out, Failure*);
  void (*release)(int device, void* memory);
  /// Between the host and the device, or on the device.
  bool (*copy)(const Queue*, void* to, const void* from, std::int64_t bytes, Failure*);
  /// Any strided array on the device to contiguous elements of a floating type on the device; rows
  /// and columns keep their order.
  bool (*convert)(const Queue*, const ArrayView* from, DType to_type, void* to, Failure*);
  bool (*synchronize)(const Queue*, Failure*);
  /// What comes on `after` waits for what is on `before` now.
  bool (*order)(const Queue* before, const Queue* after, Failure*);

  // Moments.
  bool (*moments_create)(const MomentsShape*, Moments** out, Failure*);
  void (*moments_destroy)(Moments*);
  /// Bytes on the device of one accumulator, and of what updates of so many rows take meanwhile.
  std::int64_t (*moments_memory)(const MomentsShape*, std::int64_t rows, DType dtype);
  /// Asynchronous; `batches` has one array (..., n) per set. A batch that cannot be taken changes
  /// nothing, which the next report tells.
  bool (*moments_add)(Moments*, const Queue*, const ArrayView* batches, const ArrayView* mask,
                      const ArrayView* weights, Failure*);
  bool (*moments_report)(Moments*, MomentsReport*, Failure*);
  bool (*moments_merge)(Moments*, Moments* other, Failure*);
  /// reference + offset of set 0 or 1, on the host.
  bool (*moments_mean)(Moments*, std::int32_t set, double* reference, double* offset, Failure*);
  /// (scatter about the mean) / divisor, plus the outer product of the means where uncentred:
  /// (n_x, n_y or n_x), on the device, both triangles.
  bool (*moments_read)(Moments*, double divisor, bool centred, double* out, Failure*);
  /// Pearson's, of two sets, on the device; 0 where a feature is constant.
  bool (*moments_correlation)(Moments*, double* out, Failure*);
  /// From the host: count, weight, reference + offset, and the scatter about the mean, (n, n) on
  /// the device, of which the upper triangle is read. One set only.
  bool (*moments_assume)(Moments*, std::int64_t count, double weight, const double* reference,
                         const double* offset, const double* scatter, Failure*);

  // Eigenproblems. `a` (..., n, n) of any floating type; lower triangles are read.
  bool (*eigh)(const Queue*, const ArrayView* a, DType working, std::int64_t k, EighOutput*,
               const Notes*, Failure*);

  // Assignment.
  /// Whether the device is expected to be faster than the CPU with so many threads.
  bool (*assignment_pays)(std::int64_t batch, std::int64_t n, std::int64_t m, DType dtype,
                          int threads);
  bool (*assign)(const Queue*, const AssignmentProblem*, AssignmentOutput*, Failure*);

  // Descramblers. All matrices on the device unless told otherwise, float64.
  /// tr(L C) for C (n, n), and its least diagonal element.
  bool (*roughness)(const Queue*, const Modes*, const double* c, double* trace, double* least,
                    Failure*);
  /// The k last rows of (known, n), in reverse, each with its canonical sign: (k, n).
  bool (*leading_rows)(const Queue*, const double* rows, std::int64_t known, std::int64_t k,
                       std::int64_t n, double* out, Failure*);
  /// |V V^T - I|_F for V (k, n), by random probes.
  bool (*orthogonality_error)(const Queue*, const double* rows, std::int64_t k, std::int64_t n,
                              double* error, Failure*);
  /// x -> (x - mean) P^T, or back: z -> z P + mean, for samples (..., n) of any floating type and
  /// strides; mean (n) on the host or null. out: (rows, n).
  bool (*rotate)(const Queue*, const Rotated*, const ArrayView* samples, const double* mean,
                 bool back, double* out, Failure*);
  /// A^T T^T: row i is the i-th mode, rotated; (k, n).
  bool (*rotated_modes)(const Queue*, const Rotated*, double* out, Failure*);
  /// x -> x T (analyze) or z -> z T^T (synthesize) for rows (..., n).
  bool (*analyze)(const Queue*, const Modes*, const ArrayView* rows, double* out, Failure*);
  bool (*synthesize)(const Queue*, const Modes*, const ArrayView* rows, double* out, Failure*);
  /// x -> x L.
  bool (*apply)(const Queue*, const Modes*, const ArrayView* rows, double* out, Failure*);
  /// W S W^T + W m b^T + b m^T W^T + b b^T for W (n, m); S (m, m), b (n), m (m) null where absent.
  bool (*preactivation_moment)(const Queue*, const ArrayView* weight, const ArrayView* bias,
                               const ArrayView* input_second_moment, const ArrayView* input_mean,
                               double* out, Failure*);
};

}  // namespace descramble_fast::cuda
