/// @file
/// The C interface of descramble_fast: for C, and for whatever can call C. What a function
/// computes, takes and refuses is said in full in the C++ header of its concept:
/// descramble_fast/covariance.hpp, operators.hpp, eigh.hpp, descrambler.hpp, convolution.hpp,
/// assignment.hpp, permutation.hpp.
///
/// Every function that can fail returns a status, and gives its results through pointers to the
/// caller's memory. No exception comes out of any of them. On a status other than DESCRAMBLE_OK
/// descramble_last_error() says why: which argument, what came and what was expected. Handles that
/// were to be changed are then as they were, handles that were to be made are NULL, and what out
/// arrays hold is not defined.
///
/// Handles are made by functions whose last argument points to them, and belong to the caller, who
/// gives them back to the `_destroy` of their kind; NULL is harmless there. Any other NULL is
/// DESCRAMBLE_INVALID_ARGUMENT unless its function says what it means; a NULL context takes the
/// defaults.
///
/// An out array comes with the number of its elements, which must be exactly that of the result. It
/// is contiguous and row-major, and overlaps nothing that the call reads. It lies on the device of
/// the descramble_array arguments of the same call, and in the host's memory where there are none.
/// Scalars and reports are written to the host's memory. (Results are copied to out arrays when
/// they are complete: while a call runs it takes their memory once more.)
///
/// Structs of options and reports begin with `struct_size`, which the caller sets to their sizeof:
/// they may grow, and a library goes on taking the sizes of former versions. Zero in any other
/// member of options is the default. The other structs do not change within an ABI version.
///
/// Threads. Operators and descramblers are immutable, and a context is while nobody calls its
/// setters: any number of threads may use one at the same time. Covariances and cross covariances
/// are not synchronised, not for reading either: one object, one thread at a time. Different
/// objects need no lock. Any thread may destroy a handle that no call is using.
///
/// Costs. Time, memory and accuracy are those that the C++ headers state of the same functions.
#ifndef DESCRAMBLE_FAST_H
#define DESCRAMBLE_FAST_H

#include <stddef.h>
#include <stdint.h>

#if defined(DESCRAMBLE_FAST_STATIC)
#define DESCRAMBLE_API
#elif defined(_WIN32)
#if defined(DESCRAMBLE_FAST_BUILDING)
#define DESCRAMBLE_API __declspec(dllexport)
#else
#define DESCRAMBLE_API __declspec(dllimport)
#endif
#else
#define DESCRAMBLE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// Rises when a program built against an older header would no longer work.
#define DESCRAMBLE_ABI_VERSION 1

/// The DESCRAMBLE_ABI_VERSION that the library was built with; a program compares it with its own.
DESCRAMBLE_API int32_t descramble_abi_version(void);

/// The library's version, e.g. "0.1.0".
DESCRAMBLE_API const char* descramble_version(void);

/// What came of a call: one of the values below.
typedef int32_t descramble_status;
enum {
  DESCRAMBLE_OK = 0,
  /// A value, shape or combination of arguments that cannot be used.
  DESCRAMBLE_INVALID_ARGUMENT = 1,
  /// An element type that the operation does not take.
  DESCRAMBLE_TYPE_ERROR = 2,
  /// Memory that the system, or the caller's allocator, would not grant.
  DESCRAMBLE_OUT_OF_MEMORY = 3,
  /// A backend (LAPACK, CUDA) that is absent or that failed after every fallback.
  DESCRAMBLE_BACKEND_ERROR = 4,
  /// The context's poll asked for it.
  DESCRAMBLE_CANCELLED = 5,
  /// A fault of the library.
  DESCRAMBLE_INTERNAL_ERROR = 6
};

/// Why the calling thread's last call that failed did so, in at most 1023 bytes; "" where none has.
/// Valid until the thread's next call. It allocates nothing.
DESCRAMBLE_API const char* descramble_last_error(void);

/// The type of an array's elements.
typedef int32_t descramble_dtype;
enum {
  /// One byte, 0 or 1.
  DESCRAMBLE_BOOLEAN = 0,
  DESCRAMBLE_FLOAT16 = 1,
  DESCRAMBLE_BFLOAT16 = 2,
  DESCRAMBLE_FLOAT32 = 3,
  DESCRAMBLE_FLOAT64 = 4
};

/// The kind of a device.
typedef int32_t descramble_device_kind;
enum { DESCRAMBLE_CPU = 0, DESCRAMBLE_CUDA = 1 };

/// Where memory lies.
typedef struct descramble_device {
  /// DESCRAMBLE_CPU or DESCRAMBLE_CUDA.
  descramble_device_kind kind;
  /// 0 on the CPU.
  int32_t index;
} descramble_device;

/// The most axes of an array.
enum { DESCRAMBLE_MAX_RANK = 8 };

/// A borrowed, read-only array, read in place. The last axis runs over neurons, all axes before it
/// together over rows, where a function says (..., n). The memory must outlive the call, and with a
/// CUDA device what the call queues on the stream.
typedef struct descramble_array {
  /// Aligned to the size of an element; may be NULL where there are no elements.
  const void* data;
  /// The type of the elements.
  descramble_dtype dtype;
  /// Where they lie.
  descramble_device device;
  /// At most DESCRAMBLE_MAX_RANK.
  int32_t rank;
  /// `rank` lengths.
  const int64_t* shape;
  /// `rank` strides, which count elements and may be zero or negative; NULL: contiguous, row-major.
  const int64_t* strides;
} descramble_array;

/// How calls are to run: threads, stream, and the caller's callbacks.
///
/// Callbacks return normally: they throw nothing and do not jump. They, and what their `user`
/// points to, must outlive every call with the context, and those of the allocator every handle
/// made with it. The context itself may be destroyed before those handles. Setters replace what was
/// set, and NULL for a callback returns to the default. (Setters, so that contexts may grow.)
typedef struct descramble_context descramble_context;

/// With the defaults.
DESCRAMBLE_API descramble_status descramble_context_create(descramble_context** out);
/// NULL is harmless.
DESCRAMBLE_API void descramble_context_destroy(descramble_context* context);

/// At most so many threads; 0: as many as descramble_num_threads says.
DESCRAMBLE_API descramble_status descramble_context_set_threads(descramble_context* context,
                                                                int32_t threads);

/// The cudaStream_t that work on a CUDA device is queued on; NULL: the default stream. Calls return
/// when their results are there, updates of moments when their work is queued.
DESCRAMBLE_API descramble_status descramble_context_set_stream(descramble_context* context,
                                                               void* stream);

/// Called now and then, from the calling thread, in long work; anything but 0 cancels the call,
/// which then returns DESCRAMBLE_CANCELLED. It may make calls of its own, on other handles.
typedef int32_t (*descramble_poll)(void* user);
/// NULL: nothing is asked.
DESCRAMBLE_API descramble_status descramble_context_set_poll(descramble_context* context,
                                                             descramble_poll poll, void* user);

/// Calls task(argument, 0) ... task(argument, count - 1), each at most once, on any threads, and
/// returns when none of them is running any more, or still to be called. Tasks share out the work
/// among themselves: any of them does what the others, that are not called, leave. They wait for
/// nothing. Anything but 0 says that no task could be called; the calling thread then does the
/// work. Several calls may come at once, from different threads.
///
/// NULL: the library's own threads. With an executor it starts none. (Functions that take no
/// context may use its own.)
typedef int32_t (*descramble_run)(void* user, int32_t count,
                                  void (*task)(void* argument, int32_t index), void* argument);
/// Where loops run; NULL: on the library's own threads.
DESCRAMBLE_API descramble_status descramble_context_set_executor(descramble_context* context,
                                                                 descramble_run run, void* user);

/// `bytes` bytes at a multiple of `alignment`, a power of two; NULL where they cannot be had.
typedef void* (*descramble_allocate)(void* user, size_t bytes, size_t alignment);
/// Takes back what `allocate` gave for the same bytes and alignment.
typedef void (*descramble_release)(void* user, void* memory, size_t bytes, size_t alignment);
/// Where arrays of the size of matrices come from, on the CPU. Both are called from several threads
/// at once. Both or neither are NULL: the system's.
DESCRAMBLE_API descramble_status descramble_context_set_allocator(descramble_context* context,
                                                                  descramble_allocate allocate,
                                                                  descramble_release release,
                                                                  void* user);

/// Of what descramble_log is told.
typedef int32_t descramble_severity;
enum { DESCRAMBLE_INFO = 0, DESCRAMBLE_WARNING = 1 };
/// Called from the calling thread with the driver that solved a problem (info), and with every
/// fallback (warning). The text, at most 1023 bytes, is valid during the call. The library itself
/// writes nothing anywhere.
typedef void (*descramble_log)(void* user, descramble_severity severity, const char* text);
/// NULL: nobody is told.
DESCRAMBLE_API descramble_status descramble_context_set_log(descramble_context* context,
                                                            descramble_log log, void* user);

/// The default number of threads: the last descramble_set_num_threads, else
/// DESCRAMBLE_FAST_NUM_THREADS, else OMP_NUM_THREADS, else what the CPU affinity and the cgroup
/// quota allow.
DESCRAMBLE_API descramble_status descramble_num_threads(int32_t* out);
/// For the process; 0 returns to the environment's.
DESCRAMBLE_API descramble_status descramble_set_num_threads(int32_t threads);

/// 1 where the CUDA backend and this device are there, else 0. Loads the backend on the first call.
DESCRAMBLE_API descramble_status descramble_cuda_available(int32_t device, int32_t* out);

/// Streaming first and second moments of n features, float64. They take 4 n^2 bytes, and as much
/// again after large updates; on a CUDA device 8 n^2.
///
/// With a CUDA device, updates are queued on the context's stream and return at once. A batch that
/// cannot be taken changes nothing there either, but the error is that of the next call that waits:
/// count, weight, merge, or any that reads moments.
typedef struct descramble_covariance descramble_covariance;

/// Lives where its first batch lies. Of the context it takes the allocator alone.
DESCRAMBLE_API descramble_status descramble_covariance_create(int64_t n,
                                                              const descramble_context* context,
                                                              descramble_covariance** out);
/// Lives on `device`. Where `offload` is not 0 and that is a CUDA device, the n^2 numbers are kept
/// in the host's memory, which every update then reads and writes over the bus.
DESCRAMBLE_API descramble_status descramble_covariance_create_on(int64_t n,
                                                                 descramble_device device,
                                                                 int32_t offload,
                                                                 const descramble_context* context,
                                                                 descramble_covariance** out);
/// Moments known from elsewhere: (n, n), and the mean (n,) or NULL, without which neither centring
/// nor updates are defined. Lives where they lie.
DESCRAMBLE_API descramble_status descramble_covariance_from_moments(
    const descramble_array* second_moment, const descramble_array* mean, double weight,
    const descramble_context* context, descramble_covariance** out);
/// The moments of W x + b from those of x. W is (n, m), `bias` (n,) or NULL (0),
/// `input_second_moment` (m, m) or NULL (the identity), `input_mean` (m,) or NULL (0).
DESCRAMBLE_API descramble_status descramble_preactivation_moment(
    const descramble_array* weight, const descramble_array* bias,
    const descramble_array* input_second_moment, const descramble_array* input_mean,
    const descramble_context* context, descramble_covariance** out);
/// NULL is harmless.
DESCRAMBLE_API void descramble_covariance_destroy(descramble_covariance* covariance);

/// Adds the rows of a batch (..., n) of any floating type. `mask` (boolean, true for rows that
/// count) and `weights` (floating, not negative: how often a row counts) have one entry for each
/// row, or are NULL. Rows masked out or of zero weight are not looked at.
///
/// On any error the state is left bit for bit as it was.
DESCRAMBLE_API descramble_status descramble_covariance_update(descramble_covariance* covariance,
                                                              const descramble_array* batch,
                                                              const descramble_array* mask,
                                                              const descramble_array* weights,
                                                              const descramble_context* context);
/// Adds another's samples. On any error the state is left bit for bit as it was.
DESCRAMBLE_API descramble_status descramble_covariance_merge(descramble_covariance* covariance,
                                                             const descramble_covariance* other);

/// n.
DESCRAMBLE_API descramble_status descramble_covariance_size(const descramble_covariance* covariance,
                                                            int64_t* out);
/// Where it lives; the CPU while nothing has decided it.
DESCRAMBLE_API descramble_status
descramble_covariance_device(const descramble_covariance* covariance, descramble_device* out);
/// The number of rows that counted.
DESCRAMBLE_API descramble_status
descramble_covariance_count(const descramble_covariance* covariance, int64_t* out);
/// The sum of their weights.
DESCRAMBLE_API descramble_status
descramble_covariance_weight(const descramble_covariance* covariance, double* out);
/// (n,).
DESCRAMBLE_API descramble_status descramble_covariance_mean(const descramble_covariance* covariance,
                                                            double* out, int64_t out_size);
/// (sum of w x x^T) / weight, (n, n).
DESCRAMBLE_API descramble_status descramble_covariance_second_moment(
    const descramble_covariance* covariance, double* out, int64_t out_size);
/// The scatter about the mean / (weight - ddof), (n, n).
DESCRAMBLE_API descramble_status descramble_covariance_covariance(
    const descramble_covariance* covariance, double ddof, double* out, int64_t out_size);

/// The whole state, for saving. `reference` and `offset`, whose sum is the mean, have n entries
/// each, `scatter`, the row-major upper triangle about the mean, n (n + 1)/2. (The tensors of these
/// names make up the file that Python's Covariance.load reads.)
DESCRAMBLE_API descramble_status descramble_covariance_export(
    const descramble_covariance* covariance, int64_t* count, double* weight, int32_t* has_mean,
    double* reference, double* offset, int64_t n, double* scatter, int64_t scatter_size);
/// The way back, on the CPU.
DESCRAMBLE_API descramble_status descramble_covariance_import(
    int64_t count, double weight, int32_t has_mean, const double* reference, const double* offset,
    int64_t n, const double* scatter, int64_t scatter_size, const descramble_context* context,
    descramble_covariance** out);

/// Streaming cross moments between two sets of features of the same samples.
typedef struct descramble_cross_covariance descramble_cross_covariance;

/// Lives where its first batch lies.
DESCRAMBLE_API descramble_status descramble_cross_covariance_create(
    int64_t n_x, int64_t n_y, const descramble_context* context, descramble_cross_covariance** out);
/// As descramble_covariance_create_on().
DESCRAMBLE_API descramble_status descramble_cross_covariance_create_on(
    int64_t n_x, int64_t n_y, descramble_device device, int32_t offload,
    const descramble_context* context, descramble_cross_covariance** out);
/// NULL is harmless.
DESCRAMBLE_API void descramble_cross_covariance_destroy(descramble_cross_covariance* cross);

/// Adds paired rows, (..., n_x) and (..., n_y); `mask` and `weights` as for a covariance.
DESCRAMBLE_API descramble_status descramble_cross_covariance_update(
    descramble_cross_covariance* cross, const descramble_array* x, const descramble_array* y,
    const descramble_array* mask, const descramble_array* weights,
    const descramble_context* context);
/// As descramble_covariance_merge().
DESCRAMBLE_API descramble_status descramble_cross_covariance_merge(
    descramble_cross_covariance* cross, const descramble_cross_covariance* other);
/// The number of pairs that counted.
DESCRAMBLE_API descramble_status
descramble_cross_covariance_count(const descramble_cross_covariance* cross, int64_t* out);
/// The sum of their weights.
DESCRAMBLE_API descramble_status
descramble_cross_covariance_weight(const descramble_cross_covariance* cross, double* out);
/// (sum of w x y^T) / weight, (n_x, n_y).
DESCRAMBLE_API descramble_status descramble_cross_covariance_cross_moment(
    const descramble_cross_covariance* cross, double* out, int64_t out_size);
/// The scatter about the means / (weight - ddof), (n_x, n_y).
DESCRAMBLE_API descramble_status descramble_cross_covariance_cross_covariance(
    const descramble_cross_covariance* cross, double ddof, double* out, int64_t out_size);
/// Pearson's, (n_x, n_y); 0 where a feature is constant.
DESCRAMBLE_API descramble_status descramble_cross_covariance_correlation(
    const descramble_cross_covariance* cross, double* out, int64_t out_size);

/// A roughness operator L = T diag(l) T^T on n places: symmetric, positive semidefinite, l
/// ascending.
typedef struct descramble_operator descramble_operator;

/// A ring, or a path with reflecting ends.
typedef int32_t descramble_boundary;
enum { DESCRAMBLE_PERIODIC = 0, DESCRAMBLE_PATH = 1 };

/// The spectral derivative of an order of at least 1 on a periodic grid: l = k^(2 order).
DESCRAMBLE_API descramble_status descramble_operator_fourier(int64_t n, int32_t order,
                                                             descramble_operator** out);
/// The first or second difference, by `order`.
DESCRAMBLE_API descramble_status descramble_operator_difference(int64_t n, int32_t order,
                                                                descramble_boundary boundary,
                                                                descramble_operator** out);
/// The circular central first difference (x[i+1] - x[i-1])/2.
DESCRAMBLE_API descramble_status descramble_operator_central_difference(int64_t n,
                                                                        descramble_operator** out);
/// The sum over the axes of an image-like arrangement, the last axis fastest. The axes may be
/// destroyed before it.
DESCRAMBLE_API descramble_status descramble_operator_grid(const descramble_operator* const* axes,
                                                          int64_t count, descramble_operator** out);
/// Any symmetric positive-semidefinite matrix (n, n), by eigensolve.
DESCRAMBLE_API descramble_status descramble_operator_from_matrix(const descramble_array* matrix,
                                                                 const descramble_context* context,
                                                                 descramble_operator** out);
/// NULL is harmless.
DESCRAMBLE_API void descramble_operator_destroy(descramble_operator* op);

/// n.
DESCRAMBLE_API descramble_status descramble_operator_size(const descramble_operator* op,
                                                          int64_t* out);
/// l, (n,).
DESCRAMBLE_API descramble_status descramble_operator_eigenvalues(const descramble_operator* op,
                                                                 double* out, int64_t out_size);
/// T^T, (n, n): row i is the i-th mode.
DESCRAMBLE_API descramble_status descramble_operator_modes(const descramble_operator* op,
                                                           double* out, int64_t out_size);
/// Each row x of (..., n) becomes L x.
DESCRAMBLE_API descramble_status descramble_operator_apply(const descramble_operator* op,
                                                           const descramble_array* x,
                                                           const descramble_context* context,
                                                           double* out, int64_t out_size);
/// Each row x of (..., n) becomes T^T x.
DESCRAMBLE_API descramble_status descramble_operator_analyze(const descramble_operator* op,
                                                             const descramble_array* x,
                                                             const descramble_context* context,
                                                             double* out, int64_t out_size);
/// Each row z of (..., n) becomes T z.
DESCRAMBLE_API descramble_status descramble_operator_synthesize(const descramble_operator* op,
                                                                const descramble_array* x,
                                                                const descramble_context* context,
                                                                double* out, int64_t out_size);

/// The k largest eigenvalues, ascending, and the eigenvectors of symmetric matrices (..., n, n), of
/// which the lower triangles are read; k 0: all. Checked: the residual is at most 50 n eps |A|, the
/// orthogonality error at most 50 n eps.
///
/// `eigenvalues` is (batch, k). `eigenvectors` is (batch, k, n), one in each row. `residual` and
/// `orthogonality_error`, in the host's memory, have `batch` entries, one for each matrix, or are
/// NULL.
///
/// DESCRAMBLE_TYPE_ERROR where float64 matrices are to be solved in float32.
DESCRAMBLE_API descramble_status descramble_eigh_float32(
    const descramble_array* a, int64_t k, const descramble_context* context, float* eigenvalues,
    int64_t eigenvalues_size, float* eigenvectors, int64_t eigenvectors_size, double* residual,
    double* orthogonality_error, int64_t batch);
/// The same in float64.
DESCRAMBLE_API descramble_status descramble_eigh_float64(
    const descramble_array* a, int64_t k, const descramble_context* context, double* eigenvalues,
    int64_t eigenvalues_size, double* eigenvectors, int64_t eigenvectors_size, double* residual,
    double* orthogonality_error, int64_t batch);

/// An orthogonal matrix P, with the criterion it optimises. Rows of samples are mapped by x -> x
/// P^T.
typedef struct descramble_descrambler descramble_descrambler;

/// Which of the optimal matrices is taken.
typedef int32_t descramble_gauge;
enum {
  /// In every component the first of its largest entries is positive; T in closed form.
  DESCRAMBLE_GAUGE_CANONICAL = 0,
  /// The one nearest to the identity.
  DESCRAMBLE_GAUGE_IDENTITY = 1,
  /// The one nearest to `reference`.
  DESCRAMBLE_GAUGE_REFERENCE = 2
};

/// What is asked of a smoothness descrambler beside its operator.
typedef struct descramble_smoothness_options {
  /// sizeof of this struct.
  size_t struct_size;
  /// Only the k leading components; 0: all.
  int64_t k;
  /// Not 0: use the covariance instead of the uncentred second moment.
  int32_t center;
  /// The gauges but the canonical one need all components.
  descramble_gauge gauge;
  /// (n, n), for DESCRAMBLE_GAUGE_REFERENCE and only for it.
  const descramble_array* reference;
} descramble_smoothness_options;

/// Smoothness: the exact minimiser P = T U^T of tr(L P C P^T), C the moment; n numbers the features
/// and the places of `op`. It lies where the covariance does. `options` may be NULL.
DESCRAMBLE_API descramble_status descramble_smoothness(const descramble_covariance* covariance,
                                                       const descramble_operator* op,
                                                       const descramble_smoothness_options* options,
                                                       const descramble_context* context,
                                                       descramble_descrambler** out);
/// The same for `count` covariances, each with its operator; equal sizes are solved as one batch.
/// `out` has `count` entries.
DESCRAMBLE_API descramble_status descramble_smoothness_many(
    const descramble_covariance* const* covariances, const descramble_operator* const* ops,
    int64_t count, const descramble_smoothness_options* options, const descramble_context* context,
    descramble_descrambler** out);
/// Smoothness of all outputs of a stride-1 convolution with periodic padding on white inputs. The
/// weight is (C_out, C_in, kernel...), with the 1 to 3 axes of `spatial_shape`; n is C_out times
/// the places. `op` acts on the places of one channel; NULL: the grid of fourier(axis), order 2. P
/// is applied without being formed. Lies on the CPU.
DESCRAMBLE_API descramble_status descramble_convolution(
    const descramble_array* weight, const int64_t* spatial_shape, int32_t spatial_rank,
    const descramble_operator* op, const descramble_context* context, descramble_descrambler** out);
/// max tr(P W) for W (n, m), exact. Lies where W does.
DESCRAMBLE_API descramble_status descramble_trace(const descramble_array* weight,
                                                  const descramble_context* context,
                                                  descramble_descrambler** out);
/// max sum_i (P W)_ii^2, a stationary point. Lies where W does.
DESCRAMBLE_API descramble_status descramble_diagonal(const descramble_array* weight,
                                                     const descramble_context* context,
                                                     descramble_descrambler** out);
/// NULL is harmless.
DESCRAMBLE_API void descramble_descrambler_destroy(descramble_descrambler* d);

/// NaN stands for what a criterion does not have.
typedef struct descramble_descrambler_report {
  /// sizeof of this struct.
  size_t struct_size;
  /// n.
  int64_t size;
  /// Of the components: k, or n.
  int64_t rank;
  /// The criterion at P.
  double cost;
  /// The criterion at P = I.
  double initial_cost;
  /// Lower bound of a minimised criterion, upper bound of a maximised one.
  double bound;
  /// Smoothness: an estimate of |cost - exact|.
  double cost_error;
  /// |P P^T - I|_F (on the retained part), estimated by random probes.
  double orthogonality_error;
  /// Smoothness of a covariance, in the other gauges than the canonical: |P - R|_F.
  double gauge_distance;
  /// Trace and diagonal: 0 at a stationary point.
  double stationarity;
  /// Runs of components whose eigenvalues agree to rounding, so that they are not determined one by
  /// one.
  int64_t blocks;
  /// Not 0 where a mean is subtracted from samples before P is applied.
  int32_t has_mean;
  /// 0, or smoothness in the other gauges than the canonical: 1 where P is known to be the nearest,
  /// 0 where it is a stationary point.
  int32_t gauge_exact;
} descramble_descrambler_report;

/// Fills in the report.
DESCRAMBLE_API descramble_status descramble_descrambler_read(const descramble_descrambler* d,
                                                             descramble_descrambler_report* out);
/// Where P lies, and what it is applied to must lie.
DESCRAMBLE_API descramble_status descramble_descrambler_device(const descramble_descrambler* d,
                                                               descramble_device* out);
/// Smoothness: c, descending, (rank,).
DESCRAMBLE_API descramble_status descramble_descrambler_eigenvalues(const descramble_descrambler* d,
                                                                    double* out, int64_t out_size);
/// Smoothness of a covariance: U^T, (rank, n): row i is the i-th principal component.
DESCRAMBLE_API descramble_status descramble_descrambler_components(const descramble_descrambler* d,
                                                                   double* out, int64_t out_size);
/// Smoothness of a covariance: (rank, n): row i is the i-th mode, rotated as the gauge asks.
DESCRAMBLE_API descramble_status descramble_descrambler_modes(const descramble_descrambler* d,
                                                              double* out, int64_t out_size);
/// Smoothness: the half-open ranges [begin, end) of the report's blocks, (blocks, 2).
DESCRAMBLE_API descramble_status descramble_descrambler_blocks(const descramble_descrambler* d,
                                                               int64_t* out, int64_t out_size);
/// The mean, (n,), where there is one.
DESCRAMBLE_API descramble_status descramble_descrambler_mean(const descramble_descrambler* d,
                                                             double* out, int64_t out_size);
/// P, (n, n).
DESCRAMBLE_API descramble_status descramble_descrambler_matrix(const descramble_descrambler* d,
                                                               double* out, int64_t out_size);

/// Samples (..., n) become (x - mean) P^T; the mean is there only where the moment was centred.
DESCRAMBLE_API descramble_status descramble_descrambler_transform(const descramble_descrambler* d,
                                                                  const descramble_array* samples,
                                                                  const descramble_context* context,
                                                                  double* out, int64_t out_size);
/// The way back: z P + mean.
DESCRAMBLE_API descramble_status descramble_descrambler_inverse_transform(
    const descramble_descrambler* d, const descramble_array* samples,
    const descramble_context* context, double* out, int64_t out_size);
/// P W for W (n, m).
DESCRAMBLE_API descramble_status descramble_descrambler_transform_weight(
    const descramble_descrambler* d, const descramble_array* weight,
    const descramble_context* context, double* out, int64_t out_size);
/// P b for b (n,).
DESCRAMBLE_API descramble_status descramble_descrambler_transform_bias(
    const descramble_descrambler* d, const descramble_array* bias,
    const descramble_context* context, double* out, int64_t out_size);
/// W_next P^T for W_next (m, n).
DESCRAMBLE_API descramble_status descramble_descrambler_transform_next_weight(
    const descramble_descrambler* d, const descramble_array* weight,
    const descramble_context* context, double* out, int64_t out_size);

/// What is asked of descramble_linear_assignment().
typedef struct descramble_linear_assignment_options {
  /// sizeof of this struct.
  size_t struct_size;
  /// Not 0: the greatest total cost.
  int32_t maximize;
  /// Not 0: costs on a CUDA device are solved there even where the CPU is expected to be faster.
  int32_t on_device;
  /// Column duals of an earlier, similar problem, (..., m), for square problems; or NULL.
  const descramble_array* initial_duals;
} descramble_linear_assignment_options;

/// Where the answer is to go: out arrays, with their sizes. NULL: not wanted, whatever the size.
typedef struct descramble_linear_assignment_report {
  /// sizeof of this struct.
  size_t struct_size;
  /// (batch, n): the column of each row; -1 where n > m leaves a row out.
  int64_t* columns;
  /// Elements of `columns`.
  int64_t columns_size;
  /// (batch, n): with the column duals, what proves the answer.
  double* row_duals;
  /// Elements of `row_duals`.
  int64_t row_duals_size;
  /// (batch, m).
  double* column_duals;
  /// Elements of `column_duals`.
  int64_t column_duals_size;
  /// (batch,), in the host's memory, as the two below: the total of the assigned pairs.
  double* cost;
  /// The cost less the sum of the duals (its negative where maximised), 0 to rounding.
  double* gap;
  /// The largest violation of a dual constraint, 0 to rounding.
  double* violation;
  /// Elements of each of these three; the number of problems.
  int64_t batch;
} descramble_linear_assignment_report;

/// The assignments of rows to columns of least total cost, for costs (..., n, m): min(n, m) pairs,
/// no row or column twice. Exact. Infinity (minus infinity where maximised) forbids a pair.
/// `options` may be NULL.
DESCRAMBLE_API descramble_status descramble_linear_assignment(
    const descramble_array* cost, const descramble_linear_assignment_options* options,
    const descramble_context* context, descramble_linear_assignment_report* out);

/// Why a search ended.
typedef int32_t descramble_stopped;
enum { DESCRAMBLE_FINISHED = 0, DESCRAMBLE_TIME_LIMIT = 1 };

/// NaN stands for what a search does not have.
typedef struct descramble_permutation_report {
  /// sizeof of this struct.
  size_t struct_size;
  /// The criterion at the answer.
  double cost;
  /// The criterion at the given order; of a quadratic assignment, at the start of the first
  /// restart.
  double initial_cost;
  /// Lower bound of a minimised criterion, upper bound of a maximised one.
  double bound;
  /// Held and Karp's bound of the first difference over all permutations.
  double tree_bound;
  /// Of the search.
  int64_t steps;
  /// Why it ended.
  descramble_stopped stopped;
} descramble_permutation_report;

/// What bounds a search; with no time limit the answer depends on the problem and the seed alone.
typedef struct descramble_search_options {
  /// sizeof of this struct.
  size_t struct_size;
  /// Of all random choices.
  uint64_t seed;
  /// Independent starts, run in parallel; 0 leaves the number to the search.
  int64_t restarts;
  /// Seconds; 0: none.
  double time_limit;
} descramble_search_options;

/// What is asked of descramble_quadratic_assignment().
typedef struct descramble_quadratic_assignment_options {
  /// sizeof of this struct.
  size_t struct_size;
  /// Not 0: the greatest cost.
  int32_t maximize;
  /// Of all random choices.
  uint64_t seed;
  /// 0: one.
  int64_t restarts;
  /// Seconds; 0: none.
  double time_limit;
  /// The start of the first restart, a permutation of n; or NULL.
  const int64_t* initial;
  /// Pairs (i, p_i) that are given, (partial_match_count, 2).
  const int64_t* partial_match;
  /// Number of these pairs.
  int64_t partial_match_count;
} descramble_quadratic_assignment_options;

/// A permutation p with small sum_ij A_ij B_{p_i p_j} for A and B of (n, n): place i of A goes with
/// column p_i of B. A heuristic. `columns` has n entries and lies in the host's memory; `options`
/// and `report` may be NULL.
DESCRAMBLE_API descramble_status descramble_quadratic_assignment(
    const descramble_array* a, const descramble_array* b,
    const descramble_quadratic_assignment_options* options, const descramble_context* context,
    int64_t* columns, int64_t n, descramble_permutation_report* report);

// Orders of the neurons: neuron permutation[i] moves to place i. They are written to the host's
// memory, wherever the arrays lie; `report` may be NULL.

/// An order with small tr(L P C P^T), C the uncentred second moment; (n,). A heuristic with bounds.
/// `options` may be NULL.
DESCRAMBLE_API descramble_status descramble_permutation(const descramble_covariance* covariance,
                                                        const descramble_operator* op,
                                                        const descramble_search_options* options,
                                                        const descramble_context* context,
                                                        int64_t* permutation, int64_t n,
                                                        descramble_permutation_report* report);
/// max sum_i (P W)_ii over permutations of the n rows of W; exact.
DESCRAMBLE_API descramble_status descramble_permute_trace(const descramble_array* weight,
                                                          const descramble_context* context,
                                                          int64_t* permutation, int64_t n,
                                                          descramble_permutation_report* report);
/// max sum_i (P W)_ii^2 over permutations of the n rows of W; exact.
DESCRAMBLE_API descramble_status descramble_permute_diagonal(const descramble_array* weight,
                                                             const descramble_context* context,
                                                             int64_t* permutation, int64_t n,
                                                             descramble_permutation_report* report);
/// The permutation Q nearest to P (n, n): max sum_i P_{i, q_i}. With `signs`, n entries that become
/// +1 or -1, that of |P|; NULL: without signs.
DESCRAMBLE_API descramble_status descramble_nearest_permutation(
    const descramble_array* p, const descramble_context* context, int64_t* permutation,
    int64_t* signs, int64_t n, descramble_permutation_report* report);
/// Which neuron of b is which of a, by the similarity (n, n_b) of their activations: neuron
/// permutation[i] of b goes with neuron i of a (-1: none). `signs` as for
/// descramble_nearest_permutation.
DESCRAMBLE_API descramble_status descramble_match_neurons(const descramble_array* similarity,
                                                          const descramble_context* context,
                                                          int64_t* permutation, int64_t* signs,
                                                          int64_t n,
                                                          descramble_permutation_report* report);

/// Which principal component of a smoothness descrambler of a covariance is which mode, by its
/// energy in each degenerate block of L. `modes` and `correlation` (each component's projection on
/// the modes that share its mode's eigenvalue, 0 to 1; or NULL) have `rank` entries. `score`, or
/// NULL, is the mean of the squared correlations.
DESCRAMBLE_API descramble_status descramble_match_modes(const descramble_descrambler* d,
                                                        const descramble_context* context,
                                                        int64_t* modes, double* correlation,
                                                        int64_t rank, double* score);

#ifdef __cplusplus
}
#endif

#endif
