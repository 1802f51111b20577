#pragma once

#include <complex>
#include <cstdint>
#include <limits>
#include <mutex>
#include <shared_mutex>

namespace descramble_fast::cpu {

#if defined(DESCRAMBLE_FAST_LAPACK_ILP64)
using lapack_int = std::int64_t;
#else
using lapack_int = std::int32_t;
#endif

/// Whether a size or workspace length can be passed to this LAPACK.
constexpr bool fits_lapack(std::int64_t value) {
  return value <= std::numeric_limits<lapack_int>::max();
}

/// While it lives, BLAS runs on the calling thread alone; any number may live at once.
///
/// The thread count of OpenBLAS belongs to the process, so one lock guards it: shared by callers
/// that bring their own threads, exclusive for a call that wants threads inside BLAS. Do not nest:
/// calls within a caller's poll or executor do, whose guards then change nothing.
class SingleBlasThread {
 public:
  SingleBlasThread();
  ~SingleBlasThread();
  SingleBlasThread(const SingleBlasThread&) = delete;
  SingleBlasThread& operator=(const SingleBlasThread&) = delete;

 private:
  std::shared_lock<std::shared_timed_mutex> lock_;
};

/// While it lives, BLAS calls of this thread use up to `threads` threads; nobody else is in BLAS.
class ManyBlasThreads {
 public:
  explicit ManyBlasThreads(int threads);
  ~ManyBlasThreads();
  ManyBlasThreads(const ManyBlasThreads&) = delete;
  ManyBlasThreads& operator=(const ManyBlasThreads&) = delete;

 private:
  std::unique_lock<std::shared_timed_mutex> lock_;
};

// Row-major operands throughout; under one of the two guards above.

/// C (m, n) = alpha op(A) op(B) + beta C.
void gemm(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
          const double* a, std::int64_t lda, const double* b, std::int64_t ldb, double beta,
          double* c, std::int64_t ldc);
void gemm(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
          const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
          std::int64_t ldc);

using Complex = std::complex<double>;
/// Of the parts of a number.
template <class T>
using Real = decltype(std::real(T()));

/// y = alpha op(A) x + beta y, A (m, n); x in steps of `step`. 'C': the complex conjugate of A.
void gemv(char trans, std::int64_t m, std::int64_t n, double alpha, const double* a,
          std::int64_t lda, const double* x, std::int64_t step, double beta, double* y);
void gemv(char trans, std::int64_t m, std::int64_t n, float alpha, const float* a, std::int64_t lda,
          const float* x, std::int64_t step, float beta, float* y);
void gemv(char trans, std::int64_t m, std::int64_t n, Complex alpha, const Complex* a,
          std::int64_t lda, const Complex* x, std::int64_t step, Complex beta, Complex* y);

/// y = A x for the lower triangle of A (n, n); y = conj(A) x where A is Hermitian.
void symv(std::int64_t n, const double* a, std::int64_t lda, const double* x, double* y);
void symv(std::int64_t n, const float* a, std::int64_t lda, const float* x, float* y);
void symv(std::int64_t n, const Complex* a, std::int64_t lda, const Complex* x, Complex* y);

/// The lower triangle of C (n, n) += alpha (A^T B + B^T A), A and B (k, n); where C is
/// Hermitian, conj(C) += alpha A^T conj(B) + its conjugate transpose.
void syr2k(std::int64_t n, std::int64_t k, double alpha, const double* a, const double* b,
           std::int64_t ld, double* c, std::int64_t ldc);
void syr2k(std::int64_t n, std::int64_t k, float alpha, const float* a, const float* b,
           std::int64_t ld, float* c, std::int64_t ldc);
void syr2k(std::int64_t n, std::int64_t k, Complex alpha, const Complex* a, const Complex* b,
           std::int64_t ld, Complex* c, std::int64_t ldc);

/// Makes of x (n) the v of H = I - tau v v^T, but for its last entry, a 1, in whose place it leaves
/// that of H x (of H^H x, where complex), whose others are 0. Returns tau.
double reflector(std::int64_t n, double* x);
float reflector(std::int64_t n, float* x);
Complex reflector(std::int64_t n, Complex* x);

void gemm(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, Complex alpha,
          const Complex* a, std::int64_t lda, const Complex* b, std::int64_t ldb, Complex beta,
          Complex* c, std::int64_t ldc);

/// The lower triangle of C (n, n) = A A^H for A (n, k).
void herk(std::int64_t n, std::int64_t k, const Complex* a, Complex* c);

/// A (n, n) = L L^T in its lower triangle; false where A is not positive definite.
bool cholesky(std::int64_t n, float* a, std::int64_t lda);
bool cholesky(std::int64_t n, double* a, std::int64_t lda);

/// B (m, n) = B L^-T, L (n, n) lower triangular.
void solve_lower_transposed(std::int64_t m, std::int64_t n, const float* l, std::int64_t ldl,
                            float* b, std::int64_t ldb);
void solve_lower_transposed(std::int64_t m, std::int64_t n, const double* l, std::int64_t ldl,
                            double* b, std::int64_t ldb);
void solve_lower_transposed(std::int64_t m, std::int64_t n, const Complex* l, std::int64_t ldl,
                            Complex* b, std::int64_t ldb);

/// LAPACK's `info`; each takes the lower triangle of a row-major (n, n), and 64-bit lengths that
/// the caller has found to fit. Eigenvectors come as rows.
template <class T>
struct Lapack {
  static std::int64_t syevd_workspace(std::int64_t n);
  /// Overwrites `a` with the eigenvectors.
  static std::int64_t syevd(std::int64_t n, T* a, T* w);
  static std::int64_t stedc_workspace(std::int64_t n);
  /// The eigenpairs of a tridiagonal T, diagonal d (n), off-diagonal e (n - 1), by divide and
  /// conquer: d becomes the eigenvalues, e is lost.
  static std::int64_t stedc(std::int64_t n, T* d, T* e, T* z);
};

/// The longest of its workspaces.
std::int64_t heevd_workspace(std::int64_t n);
/// A = V^H diag(w) V for a Hermitian (n, n), of which it takes the lower triangle and which V
/// overwrites; w ascending. LAPACK's `info`.
std::int64_t heevd(std::int64_t n, Complex* a, double* w);

/// A = U diag(s) V^T, all (n, n), s descending; destroys `a`. LAPACK's `info`. By divide and
/// conquer.
std::int64_t gesdd(std::int64_t n, double* a, double* s, double* u, double* vt);
/// The same by QR steps.
std::int64_t gesvd(std::int64_t n, double* a, double* s, double* u, double* vt);

}  // namespace descramble_fast::cpu
