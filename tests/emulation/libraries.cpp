// cuBLAS and cuSOLVER, slow and plain: loops, and a cyclic Jacobi eigensolver in float64. Operands
// that a device could not reach, and workspaces that are too small, are refused.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "cublas_v2.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cusolverDn.h"

struct cublasContext {
  int device;
  cudaStream_t stream = nullptr;
  cublasPointerMode_t mode = CUBLAS_POINTER_MODE_HOST;
};

struct cusolverDnContext {
  int device;
  cudaStream_t stream = nullptr;
};

struct cusolverDnParams {};

namespace {

using std::int64_t;

std::size_t size_of(cudaDataType type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

template <class T>
constexpr cudaDataType type_of = sizeof(T) == 8 ? CUDA_R_64F : CUDA_R_32F;

// Columns of a column-major matrix.
struct Matrix {
  const void* data;
  cudaDataType type;
  int64_t rows, columns, stride;

  double operator()(int64_t i, int64_t j) const {
    const int64_t at = i + j * stride;
    switch (type) {
      case CUDA_R_64F:
        return static_cast<const double*>(data)[at];
      case CUDA_R_32F:
        return static_cast<const float*>(data)[at];
      case CUDA_R_16F:
        return __half2float(static_cast<const __half*>(data)[at]);
      case CUDA_R_16BF:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
    }
    return 0;
  }
  bool valid() const { return rows >= 0 && columns >= 0 && stride >= std::max<int64_t>(1, rows); }
  std::size_t bytes() const {
    return rows == 0 || columns == 0 ? 0
                                     : std::size_t((columns - 1) * stride + rows) * size_of(type);
  }
};

void require_on_device(int device, const void* p, std::size_t bytes) {
  if (bytes > 0 && !emulated_cuda::on_device(device, p, bytes))
    emulated_cuda::fault("an operand of a library call is not, or not wholly, on its device");
}

cublasStatus_t started(cudaError_t status) {
  return status == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

int current() { return emulated_cuda::device_of(nullptr); }

// A factor, read at the call or, where it lies on the device, when the work is done.
template <class T>
struct Factor {
  Factor(cublasHandle_t handle, const void* p)
      : on_device(handle->mode == CUBLAS_POINTER_MODE_DEVICE ? static_cast<const T*>(p) : nullptr),
        value(on_device == nullptr ? *static_cast<const T*>(p) : T(0)) {}
  T get() const { return on_device == nullptr ? value : *on_device; }
  const T* on_device;
  T value;
};

Matrix operand(cublasOperation_t op, const void* data, cudaDataType type, int64_t rows,
               int64_t columns, int64_t stride) {
  return op == CUBLAS_OP_N ? Matrix{data, type, rows, columns, stride}
                           : Matrix{data, type, columns, rows, stride};
}

template <class T>
std::vector<T> loaded(const Matrix& a, bool transposed) {
  const int64_t rows = transposed ? a.columns : a.rows, columns = transposed ? a.rows : a.columns;
  std::vector<T> out(std::size_t(rows * columns));
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i)
      out[std::size_t(i + j * rows)] = T(transposed ? a(j, i) : a(i, j));
  return out;
}

// C = alpha op(A) op(B) + beta C in T, where `wanted(i, j)`; C is not read where beta is 0.
template <class T, class Wanted>
void multiply(const Matrix& a, bool a_transposed, const Matrix& b, bool b_transposed, T alpha,
              T beta, T* c, int64_t ldc, const Wanted& wanted) {
  const std::vector<T> left = loaded<T>(a, a_transposed), right = loaded<T>(b, b_transposed);
  const int64_t m = a_transposed ? a.columns : a.rows, k = a_transposed ? a.rows : a.columns;
  const int64_t n = b_transposed ? b.rows : b.columns;
  std::vector<T> column(static_cast<std::size_t>(m));
  for (int64_t j = 0; j < n; ++j) {
    std::fill(column.begin(), column.end(), T(0));
    for (int64_t l = 0; l < k; ++l) {
      const T factor = right[std::size_t(l + j * k)];
      for (int64_t i = 0; i < m; ++i)
        column[std::size_t(i)] += left[std::size_t(i + l * m)] * factor;
    }
    for (int64_t i = 0; i < m; ++i) {
      if (!wanted(i, j)) continue;
      T& out = c[i + j * ldc];
      out = alpha * column[std::size_t(i)] + (beta == 0 ? T(0) : beta * out);
    }
  }
}

constexpr auto everywhere = [](int64_t, int64_t) { return true; };

template <class T>
cublasStatus_t gemm(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                    int64_t m, int64_t n, int64_t k, const void* alpha, const void* a_data,
                    cudaDataType a_type, int64_t lda, int64_t a_step, const void* b_data,
                    cudaDataType b_type, int64_t ldb, int64_t b_step, const void* beta, void* c,
                    int64_t ldc, int64_t c_step, int64_t batch) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const Matrix a = operand(op_a, a_data, a_type, m, k, lda);
  const Matrix b = operand(op_b, b_data, b_type, k, n, ldb);
  const Matrix whole{c, type_of<T>, m, n, ldc};
  if (!a.valid() || !b.valid() || !whole.valid() || batch < 0) return CUBLAS_STATUS_INVALID_VALUE;
  if (handle->device != current()) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (m == 0 || n == 0 || batch == 0) return CUBLAS_STATUS_SUCCESS;
  const auto require = [&](const Matrix& x, int64_t step) {
    if (x.bytes() > 0)
      require_on_device(handle->device, x.data,
                        std::size_t((batch - 1) * step) * size_of(x.type) + x.bytes());
  };
  require(a, a_step);
  require(b, b_step);
  require(whole, c_step);
  const Factor<T> outer(handle, alpha), inner(handle, beta);
  const auto at = [](const Matrix& x, int64_t elements) {
    Matrix out = x;
    out.data = static_cast<const char*>(x.data) + elements * int64_t(size_of(x.type));
    return out;
  };
  return started(emulated_cuda::enqueue(handle->stream, [=] {
    for (int64_t i = 0; i < batch; ++i)
      multiply(at(a, i * a_step), op_a != CUBLAS_OP_N, at(b, i * b_step), op_b != CUBLAS_OP_N,
               outer.get(), inner.get(), static_cast<T*>(c) + i * c_step, ldc, everywhere);
  }));
}

template <class T>
cublasStatus_t gemm(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                    int64_t m, int64_t n, int64_t k, const T* alpha, const T* a, int64_t lda,
                    const T* b, int64_t ldb, const T* beta, T* c, int64_t ldc) {
  return gemm<T>(handle, op_a, op_b, m, n, k, alpha, a, type_of<T>, lda, 0, b, type_of<T>, ldb, 0,
                 beta, c, ldc, 0, 1);
}

// To where the handle's mode wants it; cuBLAS waits where that is the host.
template <class Value>
cublasStatus_t deliver(cublasHandle_t handle, double* result, const Value& value) {
  const bool wait = handle->mode == CUBLAS_POINTER_MODE_HOST;
  const auto status = emulated_cuda::enqueue(handle->stream, [=] { *result = value(); });
  return started(wait && status == cudaSuccess ? cudaStreamSynchronize(handle->stream) : status);
}

// Eigenvalues, ascending, and in the rows of `vectors` their eigenvectors. As from cuSOLVER, those
// that agree to `rounding` of a largest entry below 2 come in any order. False where the matrix is
// not finite.
bool jacobi(int64_t n, std::vector<double> a, double rounding, std::vector<double>& values,
            std::vector<double>& vectors) {
  double largest = 0;
  for (const double x : a) {
    if (!std::isfinite(x)) return false;
    largest = std::max(largest, std::abs(x));
  }
  const int exponent = largest > 0 ? std::ilogb(largest) : 0;
  for (double& x : a) x = std::ldexp(x, -exponent);

  const auto row = [n](std::vector<double>& x, int64_t i) { return x.data() + i * n; };
  std::vector<double> v(std::size_t(n * n), 0.0);
  for (int64_t i = 0; i < n; ++i) row(v, i)[i] = 1;
  const auto rotate = [](double c, double s, double& x, double& y) {
    x = std::exchange(y, s * x + c * y) * -s + c * x;
  };
  const double negligible = std::numeric_limits<double>::epsilon() / 16;
  for (bool again = true; again;) {
    again = false;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        const double off = row(a, p)[q];
        if (std::abs(off) <= negligible) continue;
        again = true;
        const double half = (row(a, q)[q] - row(a, p)[p]) / (2 * off);
        const double t = std::copysign(1.0, half) / (std::abs(half) + std::hypot(1.0, half));
        const double c = 1 / std::hypot(1.0, t), s = t * c;
        for (int64_t i = 0; i < n; ++i) rotate(c, s, row(a, p)[i], row(a, q)[i]);
        for (int64_t i = 0; i < n; ++i) rotate(c, s, row(a, i)[p], row(a, i)[q]);
        for (int64_t i = 0; i < n; ++i) rotate(c, s, row(v, p)[i], row(v, q)[i]);
        row(a, p)[q] = row(a, q)[p] = 0;
      }
    }
  }

  std::vector<int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), int64_t(0));
  const auto rounded = [&](int64_t i) { return std::round(row(a, i)[i] / rounding); };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return rounded(i) < rounded(j); });
  values.clear();
  vectors.clear();
  for (const int64_t i : order) {
    values.push_back(std::ldexp(row(a, i)[i], exponent));
    vectors.insert(vectors.end(), row(v, i), row(v, i) + n);
  }
  return true;
}

// Whether a variable of the environment, names with commas between, has the routine's.
bool named(const char* variable, std::string_view routine) {
  const char* const value = std::getenv(variable);
  for (std::string_view names = value == nullptr ? "" : value; !names.empty();) {
    const std::size_t end = std::min(names.find(','), names.size());
    if (names.substr(0, end) == routine) return true;
    names.remove_prefix(std::min(end + 1, names.size()));
  }
  return false;
}

// Eigenvalues `first` ... `last` (from 0, exclusive) of a column-major matrix, and its eigenvectors
// in its place. What the real routines leave undefined becomes NaN.
template <class T>
int solve(bool vectors_wanted, bool upper, int64_t n, T* a, int64_t lda, T* w, int64_t first,
          int64_t last, bool fail) {
  std::vector<double> full(std::size_t(n * n)), values, vectors;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j)
      full[std::size_t(i * n + j)] = full[std::size_t(j * n + i)] =
          upper ? a[j + i * lda] : a[i + j * lda];
  const bool solved = !fail && jacobi(n, std::move(full), double(std::numeric_limits<T>::epsilon()),
                                      values, vectors);
  constexpr T undefined = std::numeric_limits<T>::quiet_NaN();
  for (int64_t j = 0; j < n; ++j) {
    const bool known = solved && j < last - first;
    w[j] = known ? T(values[std::size_t(first + j)]) : undefined;
    for (int64_t i = 0; i < n; ++i)
      a[i + j * lda] =
          known && vectors_wanted ? T(vectors[std::size_t((first + j) * n + i)]) : undefined;
  }
  return solved ? 0 : 1;
}

// What the syev routines have in common.
struct Syev {
  std::string_view routine;
  cusolverDnHandle_t handle;
  cusolverEigMode_t job;
  cublasFillMode_t uplo;
  int64_t n;
  cudaDataType type_a;
  void* a;
  int64_t lda;
  cudaDataType type_w;
  void* w;
  cudaDataType compute;
  int64_t batch = 1, first = 0, last = n;

  cusolverStatus_t check() const {
    if (handle == nullptr) return CUSOLVER_STATUS_NOT_INITIALIZED;
    const bool known =
        (type_a == CUDA_R_32F || type_a == CUDA_R_64F) && type_w == type_a && compute == type_a;
    return known && n >= 0 && lda >= std::max<int64_t>(1, n) && batch >= 0 && first >= 0 &&
                   first <= last && last <= n
               ? CUSOLVER_STATUS_SUCCESS
               : CUSOLVER_STATUS_INVALID_VALUE;
  }

  std::size_t device_workspace() const {
    return std::size_t(batch * (n * n + 7 * n)) * size_of(type_a) + 264;
  }
  std::size_t host_workspace() const { return std::size_t(n) * size_of(type_a) + 40; }

  cusolverStatus_t sizes(std::size_t* on_device, std::size_t* on_host) const {
    if (const auto status = check(); status != CUSOLVER_STATUS_SUCCESS) return status;
    if (named("EMULATED_CUSOLVER_REFUSE", routine)) return CUSOLVER_STATUS_INVALID_VALUE;
    *on_device = device_workspace();
    *on_host = host_workspace();
    return CUSOLVER_STATUS_SUCCESS;
  }

  template <class T>
  void run(bool fail, int* info) const {
    for (int64_t i = 0; i < batch; ++i)
      info[i] = solve(job == CUSOLVER_EIG_MODE_VECTOR, uplo == CUBLAS_FILL_MODE_UPPER, n,
                      static_cast<T*>(a) + i * lda * n, lda, static_cast<T*>(w) + i * n, first,
                      last, fail);
  }

  cusolverStatus_t start(void* device, std::size_t device_bytes, void* host, std::size_t host_bytes,
                         int* info, bool zeroed_workspace = false) const {
    if (const auto status = check(); status != CUSOLVER_STATUS_SUCCESS) return status;
    if (device_bytes < device_workspace() || host_bytes < host_workspace() || host == nullptr)
      return CUSOLVER_STATUS_INVALID_VALUE;
    if (handle->device != current()) return CUSOLVER_STATUS_EXECUTION_FAILED;
    if (n == 0 || batch == 0) return CUSOLVER_STATUS_SUCCESS;
    const std::size_t size = size_of(type_a);
    require_on_device(handle->device, device, device_bytes);
    require_on_device(handle->device, a, std::size_t((batch * n - 1) * lda + n) * size);
    require_on_device(handle->device, w, std::size_t(batch * n) * size);
    require_on_device(handle->device, info, std::size_t(batch) * sizeof(int));
    const auto status = emulated_cuda::enqueue(
        handle->stream, [=, self = *this, fail = named("EMULATED_CUSOLVER_FAIL", routine)] {
          const auto* bytes = static_cast<const unsigned char*>(device);
          const bool dirty = zeroed_workspace && std::any_of(bytes, bytes + device_bytes,
                                                             [](unsigned char b) { return b; });
          if (self.type_a == CUDA_R_64F)
            self.template run<double>(fail || dirty, info);
          else
            self.template run<float>(fail || dirty, info);
          std::memset(device, 0xFF, device_bytes);
          std::memset(host, 0xFF, host_bytes);
        });
    return status == cudaSuccess ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_EXECUTION_FAILED;
  }
};

}  // namespace

cublasStatus_t cublasCreate(cublasHandle_t* out) {
  *out = new cublasContext{current()};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return handle == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  if (emulated_cuda::device_of(stream) != handle->device) return CUBLAS_STATUS_INVALID_VALUE;
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
  handle->mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 130000;
  return CUBLAS_STATUS_SUCCESS;
}

const char* cublasGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS            ? "CUBLAS_STATUS_SUCCESS"
         : status == CUBLAS_STATUS_NOT_INITIALIZED  ? "CUBLAS_STATUS_NOT_INITIALIZED"
         : status == CUBLAS_STATUS_INVALID_VALUE    ? "CUBLAS_STATUS_INVALID_VALUE"
         : status == CUBLAS_STATUS_EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED"
                                                    : "CUBLAS_STATUS_NOT_SUPPORTED";
}
const char* cublasGetStatusString(cublasStatus_t status) { return cublasGetStatusName(status); }

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                           int m, int n, int k, const float* alpha, const float* a, int lda,
                           const float* b, int ldb, const float* beta, float* c, int ldc) {
  return gemm(handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
cublasStatus_t cublasDgemm_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                              int64_t m, int64_t n, int64_t k, const double* alpha, const double* a,
                              int64_t lda, const double* b, int64_t ldb, const double* beta,
                              double* c, int64_t ldc) {
  if (named("EMULATED_CUBLAS_FAIL", "Dgemm")) return CUBLAS_STATUS_EXECUTION_FAILED;
  return gemm(handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
cublasStatus_t cublasDgemm(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                           int m, int n, int k, const double* alpha, const double* a, int lda,
                           const double* b, int ldb, const double* beta, double* c, int ldc) {
  return gemm(handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

cublasStatus_t cublasDgemmStridedBatched_64(cublasHandle_t handle, cublasOperation_t op_a,
                                            cublasOperation_t op_b, int64_t m, int64_t n, int64_t k,
                                            const double* alpha, const double* a, int64_t lda,
                                            long long a_step, const double* b, int64_t ldb,
                                            long long b_step, const double* beta, double* c,
                                            int64_t ldc, long long c_step, int64_t batch) {
  return gemm<double>(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_64F, lda, a_step, b, CUDA_R_64F,
                      ldb, b_step, beta, c, ldc, c_step, batch);
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t op_a,
                               cublasOperation_t op_b, int64_t m, int64_t n, int64_t k,
                               const void* alpha, const void* a, cudaDataType a_type, int64_t lda,
                               const void* b, cudaDataType b_type, int64_t ldb, const void* beta,
                               void* c, cudaDataType c_type, int64_t ldc,
                               cublasComputeType_t compute, cublasGemmAlgo_t) {
  const bool wide = compute == CUBLAS_COMPUTE_64F || compute == CUBLAS_COMPUTE_64F_PEDANTIC;
  if (a_type != b_type || (a_type == CUDA_R_64F) != wide ||
      c_type != (wide ? CUDA_R_64F : CUDA_R_32F))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return wide ? gemm<double>(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb,
                             0, beta, c, ldc, 0, 1)
              : gemm<float>(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb,
                            0, beta, c, ldc, 0, 1);
}
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void* alpha, const void* a,
                            cudaDataType a_type, int lda, const void* b, cudaDataType b_type,
                            int ldb, const void* beta, void* c, cudaDataType c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  return cublasGemmEx_64(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta,
                         c, c_type, ldc, compute, algorithm);
}

cublasStatus_t cublasDsyrk_64(cublasHandle_t handle, cublasFillMode_t uplo, cublasOperation_t op,
                              int64_t n, int64_t k, const double* alpha, const double* data,
                              int64_t lda, const double* beta, double* c, int64_t ldc) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const Matrix a = operand(op, data, CUDA_R_64F, n, k, lda), whole{c, CUDA_R_64F, n, n, ldc};
  if (!a.valid() || !whole.valid()) return CUBLAS_STATUS_INVALID_VALUE;
  if (handle->device != current()) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (named("EMULATED_CUBLAS_FAIL", "Dsyrk")) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (n == 0) return CUBLAS_STATUS_SUCCESS;
  require_on_device(handle->device, a.data, a.bytes());
  require_on_device(handle->device, c, whole.bytes());
  const Factor<double> outer(handle, alpha), inner(handle, beta);
  const bool transposed = op != CUBLAS_OP_N, upper = uplo == CUBLAS_FILL_MODE_UPPER;
  return started(emulated_cuda::enqueue(handle->stream, [=] {
    multiply(a, transposed, a, !transposed, outer.get(), inner.get(), c, ldc,
             [=](int64_t i, int64_t j) { return upper ? i <= j : i >= j; });
  }));
}
cublasStatus_t cublasDsyrk(cublasHandle_t handle, cublasFillMode_t uplo, cublasOperation_t op,
                           int n, int k, const double* alpha, const double* a, int lda,
                           const double* beta, double* c, int ldc) {
  return cublasDsyrk_64(handle, uplo, op, n, k, alpha, a, lda, beta, c, ldc);
}

cublasStatus_t cublasDdot_64(cublasHandle_t handle, int64_t n, const double* x, int64_t x_step,
                             const double* y, int64_t y_step, double* out) {
  if (n > 0) {
    require_on_device(handle->device, x, std::size_t((n - 1) * x_step + 1) * sizeof(double));
    require_on_device(handle->device, y, std::size_t((n - 1) * y_step + 1) * sizeof(double));
  }
  return deliver(handle, out, [=] {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i * x_step] * y[i * y_step];
    return sum;
  });
}
cublasStatus_t cublasDnrm2_64(cublasHandle_t handle, int64_t n, const double* x, int64_t step,
                              double* out) {
  if (n > 0) require_on_device(handle->device, x, std::size_t((n - 1) * step + 1) * sizeof(double));
  return deliver(handle, out, [=] {
    double norm = 0;
    for (int64_t i = 0; i < n; ++i) norm = std::hypot(norm, x[i * step]);
    return norm;
  });
}

cusolverStatus_t cusolverGetVersion(int* version) {
  *version = 12000;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* out) {
  *out = new cusolverDnContext{current()};
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete handle;
  return handle == nullptr ? CUSOLVER_STATUS_NOT_INITIALIZED : CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  if (emulated_cuda::device_of(stream) != handle->device) return CUSOLVER_STATUS_INVALID_VALUE;
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* out) {
  *out = new struct cusolverDnParams;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params) {
  delete params;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t,
                                             cusolverEigMode_t job, cublasFillMode_t uplo,
                                             int64_t n, cudaDataType type_a, const void*,
                                             int64_t lda, cudaDataType type_w, const void*,
                                             cudaDataType compute, std::size_t* on_device,
                                             std::size_t* on_host) {
  return Syev{"Xsyevd", handle, job, uplo, n, type_a, nullptr, lda, type_w, nullptr, compute}.sizes(
      on_device, on_host);
}
cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t,
                                  cusolverEigMode_t job, cublasFillMode_t uplo, int64_t n,
                                  cudaDataType type_a, void* a, int64_t lda, cudaDataType type_w,
                                  void* w, cudaDataType compute, void* device,
                                  std::size_t device_bytes, void* host, std::size_t host_bytes,
                                  int* info) {
  return Syev{"Xsyevd", handle, job, uplo, n, type_a, a, lda, type_w, w, compute}.start(
      device, device_bytes, host, host_bytes, info);
}

cusolverStatus_t cusolverDnXsyevdx_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t,
                                              cusolverEigMode_t job, cusolverEigRange_t,
                                              cublasFillMode_t uplo, int64_t n, cudaDataType type_a,
                                              const void*, int64_t lda, void*, void*, int64_t,
                                              int64_t, int64_t*, cudaDataType type_w, const void*,
                                              cudaDataType compute, std::size_t* on_device,
                                              std::size_t* on_host) {
  return Syev{"Xsyevdx", handle, job, uplo, n, type_a, nullptr, lda, type_w, nullptr, compute}
      .sizes(on_device, on_host);
}
cusolverStatus_t cusolverDnXsyevdx(cusolverDnHandle_t handle, cusolverDnParams_t,
                                   cusolverEigMode_t job, cusolverEigRange_t range,
                                   cublasFillMode_t uplo, int64_t n, cudaDataType type_a, void* a,
                                   int64_t lda, void*, void*, int64_t il, int64_t iu,
                                   int64_t* found, cudaDataType type_w, void* w,
                                   cudaDataType compute, void* device, std::size_t device_bytes,
                                   void* host, std::size_t host_bytes, int* info) {
  if (range == CUSOLVER_EIG_RANGE_V) return CUSOLVER_STATUS_NOT_SUPPORTED;
  Syev syev{"Xsyevdx", handle, job, uplo, n, type_a, a, lda, type_w, w, compute};
  if (range == CUSOLVER_EIG_RANGE_I) syev.first = il - 1, syev.last = iu;
  const auto status = syev.start(device, device_bytes, host, host_bytes, info);
  if (status != CUSOLVER_STATUS_SUCCESS) return status;
  *found = syev.last - syev.first;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXsyevBatched_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t,
                                                   cusolverEigMode_t job, cublasFillMode_t uplo,
                                                   int64_t n, cudaDataType type_a, const void*,
                                                   int64_t lda, cudaDataType type_w, const void*,
                                                   cudaDataType compute, std::size_t* on_device,
                                                   std::size_t* on_host, int64_t batch) {
  return Syev{"XsyevBatched", handle, job,    uplo,    n,       type_a,
              nullptr,        lda,    type_w, nullptr, compute, batch}
      .sizes(on_device, on_host);
}
cusolverStatus_t cusolverDnXsyevBatched(cusolverDnHandle_t handle, cusolverDnParams_t,
                                        cusolverEigMode_t job, cublasFillMode_t uplo, int64_t n,
                                        cudaDataType type_a, void* a, int64_t lda,
                                        cudaDataType type_w, void* w, cudaDataType compute,
                                        void* device, std::size_t device_bytes, void* host,
                                        std::size_t host_bytes, int* info, int64_t batch) {
  return Syev{"XsyevBatched", handle, job, uplo, n, type_a, a, lda, type_w, w, compute, batch}
      .start(device, device_bytes, host, host_bytes, info, true);
}
