#include "cpu/lapack.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <new>
#include <vector>

#include "call.hpp"
#include "descramble_fast/context.hpp"
#include "descramble_fast/view.hpp"
#include "message.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#if defined(DESCRAMBLE_FAST_SCIPY_OPENBLAS)
#define FORTRAN(name) scipy_##name##_64_
#else
#define FORTRAN(name) name##_
#endif

using descramble_fast::cpu::Complex;
using descramble_fast::cpu::lapack_int;
using length = std::size_t;  // Fortran's hidden string lengths

extern "C" {
void FORTRAN(dgemm)(const char*, const char*, const lapack_int*, const lapack_int*,
                    const lapack_int*, const double*, const double*, const lapack_int*,
                    const double*, const lapack_int*, const double*, double*, const lapack_int*,
                    length, length);
void FORTRAN(sgemm)(const char*, const char*, const lapack_int*, const lapack_int*,
                    const lapack_int*, const float*, const float*, const lapack_int*, const float*,
                    const lapack_int*, const float*, float*, const lapack_int*, length, length);
void FORTRAN(zgemm)(const char*, const char*, const lapack_int*, const lapack_int*,
                    const lapack_int*, const Complex*, const Complex*, const lapack_int*,
                    const Complex*, const lapack_int*, const Complex*, Complex*, const lapack_int*,
                    length, length);
void FORTRAN(zherk)(const char*, const char*, const lapack_int*, const lapack_int*, const double*,
                    const Complex*, const lapack_int*, const double*, Complex*, const lapack_int*,
                    length, length);
void FORTRAN(dtrsm)(const char*, const char*, const char*, const char*, const lapack_int*,
                    const lapack_int*, const double*, const double*, const lapack_int*, double*,
                    const lapack_int*, length, length, length, length);
void FORTRAN(strsm)(const char*, const char*, const char*, const char*, const lapack_int*,
                    const lapack_int*, const float*, const float*, const lapack_int*, float*,
                    const lapack_int*, length, length, length, length);
void FORTRAN(ztrsm)(const char*, const char*, const char*, const char*, const lapack_int*,
                    const lapack_int*, const Complex*, const Complex*, const lapack_int*, Complex*,
                    const lapack_int*, length, length, length, length);
void FORTRAN(dpotrf)(const char*, const lapack_int*, double*, const lapack_int*, lapack_int*,
                     length);
void FORTRAN(spotrf)(const char*, const lapack_int*, float*, const lapack_int*, lapack_int*,
                     length);
void FORTRAN(dsyevd)(const char*, const char*, const lapack_int*, double*, const lapack_int*,
                     double*, double*, const lapack_int*, lapack_int*, const lapack_int*,
                     lapack_int*, length, length);
void FORTRAN(ssyevd)(const char*, const char*, const lapack_int*, float*, const lapack_int*, float*,
                     float*, const lapack_int*, lapack_int*, const lapack_int*, lapack_int*, length,
                     length);
void FORTRAN(zheevd)(const char*, const char*, const lapack_int*, Complex*, const lapack_int*,
                     double*, Complex*, const lapack_int*, double*, const lapack_int*, lapack_int*,
                     const lapack_int*, lapack_int*, length, length);
void FORTRAN(dgemv)(const char*, const lapack_int*, const lapack_int*, const double*, const double*,
                    const lapack_int*, const double*, const lapack_int*, const double*, double*,
                    const lapack_int*, length);
void FORTRAN(sgemv)(const char*, const lapack_int*, const lapack_int*, const float*, const float*,
                    const lapack_int*, const float*, const lapack_int*, const float*, float*,
                    const lapack_int*, length);
void FORTRAN(zgemv)(const char*, const lapack_int*, const lapack_int*, const Complex*,
                    const Complex*, const lapack_int*, const Complex*, const lapack_int*,
                    const Complex*, Complex*, const lapack_int*, length);
void FORTRAN(dsymv)(const char*, const lapack_int*, const double*, const double*, const lapack_int*,
                    const double*, const lapack_int*, const double*, double*, const lapack_int*,
                    length);
void FORTRAN(ssymv)(const char*, const lapack_int*, const float*, const float*, const lapack_int*,
                    const float*, const lapack_int*, const float*, float*, const lapack_int*,
                    length);
void FORTRAN(zhemv)(const char*, const lapack_int*, const Complex*, const Complex*,
                    const lapack_int*, const Complex*, const lapack_int*, const Complex*, Complex*,
                    const lapack_int*, length);
void FORTRAN(dsyr2k)(const char*, const char*, const lapack_int*, const lapack_int*, const double*,
                     const double*, const lapack_int*, const double*, const lapack_int*,
                     const double*, double*, const lapack_int*, length, length);
void FORTRAN(ssyr2k)(const char*, const char*, const lapack_int*, const lapack_int*, const float*,
                     const float*, const lapack_int*, const float*, const lapack_int*, const float*,
                     float*, const lapack_int*, length, length);
void FORTRAN(zher2k)(const char*, const char*, const lapack_int*, const lapack_int*, const Complex*,
                     const Complex*, const lapack_int*, const Complex*, const lapack_int*,
                     const double*, Complex*, const lapack_int*, length, length);
void FORTRAN(dlarfg)(const lapack_int*, double*, double*, const lapack_int*, double*);
void FORTRAN(slarfg)(const lapack_int*, float*, float*, const lapack_int*, float*);
void FORTRAN(zlarfg)(const lapack_int*, Complex*, Complex*, const lapack_int*, Complex*);
void FORTRAN(dstedc)(const char*, const lapack_int*, double*, double*, double*, const lapack_int*,
                     double*, const lapack_int*, lapack_int*, const lapack_int*, lapack_int*,
                     length);
void FORTRAN(sstedc)(const char*, const lapack_int*, float*, float*, float*, const lapack_int*,
                     float*, const lapack_int*, lapack_int*, const lapack_int*, lapack_int*,
                     length);
void FORTRAN(dgesdd)(const char*, const lapack_int*, const lapack_int*, double*, const lapack_int*,
                     double*, double*, const lapack_int*, double*, const lapack_int*, double*,
                     const lapack_int*, lapack_int*, lapack_int*, length);
void FORTRAN(dgesvd)(const char*, const char*, const lapack_int*, const lapack_int*, double*,
                     const lapack_int*, double*, double*, const lapack_int*, double*,
                     const lapack_int*, double*, const lapack_int*, lapack_int*, length, length);
#if defined(DESCRAMBLE_FAST_SCIPY_OPENBLAS)
void scipy_openblas_set_num_threads64_(int);
const char* scipy_openblas_get_config64_();
const char* scipy_openblas_get_corename64_();
#endif
}

namespace descramble_fast {

std::string lapack_config() {
#if defined(DESCRAMBLE_FAST_SCIPY_OPENBLAS)
  return message(scipy_openblas_get_config64_(), " core=", scipy_openblas_get_corename64_());
#else
  return message("LAPACK found by CMake, ", 8 * sizeof(lapack_int), "-bit integers");
#endif
}

namespace cpu {

namespace {

void set_blas_threads([[maybe_unused]] int threads) {
#if defined(DESCRAMBLE_FAST_SCIPY_OPENBLAS)
  scipy_openblas_set_num_threads64_(threads);
#endif
}

// Whoever wants the lock passes the turnstile first, so that a stream of shared holders cannot keep
// an exclusive one waiting for ever.
struct Gate {
  std::timed_mutex turnstile;
  std::shared_timed_mutex lock;
};

// Made anew in a forked child, where other holders do not exist; hence the storage, never
// destroyed.
alignas(Gate) std::byte gate_storage[sizeof(Gate)];
bool held_for_fork = false;

Gate& stored_gate() { return *std::launder(reinterpret_cast<Gate*>(gate_storage)); }

[[maybe_unused]] void before_fork() {
  // Not for ever: a fork beside a long solve goes on, as safe as the solver's library makes it.
  constexpr auto patience = std::chrono::seconds(2);
  Gate& gate = stored_gate();
  if (!gate.turnstile.try_lock_for(patience)) return;
  held_for_fork = gate.lock.try_lock_for(patience);
  if (!held_for_fork) gate.turnstile.unlock();
}

[[maybe_unused]] void after_fork_in_parent() {
  if (!held_for_fork) return;
  held_for_fork = false;
  stored_gate().lock.unlock();
  stored_gate().turnstile.unlock();
}

[[maybe_unused]] void after_fork_in_child() {
  new (gate_storage) Gate;
  if (held_for_fork) set_blas_threads(1);
  held_for_fork = false;
}

Gate& gate() {
  static Gate* const instance = [] {
    Gate* const made = new (gate_storage) Gate;
#if !defined(_WIN32)
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
#endif
    set_blas_threads(1);
    return made;
  }();
  return *instance;
}

// Of this thread, which would wait for itself where it comes again: from a caller's poll, or while
// a caller's executor lends it to another call.
thread_local int guards = 0;

template <class Lock>
Lock pass() {
  if (guards > 0) return {};
  const std::lock_guard turn(gate().turnstile);
  return Lock(gate().lock);
}

// Routines differ between precisions in their first letter alone.
const auto mm = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dgemm)(arguments...); })
    FORTRAN(dgemm)(arguments...);
  else if constexpr (requires { FORTRAN(zgemm)(arguments...); })
    FORTRAN(zgemm)(arguments...);
  else
    FORTRAN(sgemm)(arguments...);
};

const auto trsm = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dtrsm)(arguments...); })
    FORTRAN(dtrsm)(arguments...);
  else if constexpr (requires { FORTRAN(ztrsm)(arguments...); })
    FORTRAN(ztrsm)(arguments...);
  else
    FORTRAN(strsm)(arguments...);
};

const auto potrf = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dpotrf)(arguments...); })
    FORTRAN(dpotrf)(arguments...);
  else
    FORTRAN(spotrf)(arguments...);
};

const auto evd = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dsyevd)(arguments...); })
    FORTRAN(dsyevd)(arguments...);
  else
    FORTRAN(ssyevd)(arguments...);
};

const auto mv = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dgemv)(arguments...); })
    FORTRAN(dgemv)(arguments...);
  else if constexpr (requires { FORTRAN(zgemv)(arguments...); })
    FORTRAN(zgemv)(arguments...);
  else
    FORTRAN(sgemv)(arguments...);
};

const auto symmetric_mv = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dsymv)(arguments...); })
    FORTRAN(dsymv)(arguments...);
  else if constexpr (requires { FORTRAN(zhemv)(arguments...); })
    FORTRAN(zhemv)(arguments...);
  else
    FORTRAN(ssymv)(arguments...);
};

const auto r2k = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dsyr2k)(arguments...); })
    FORTRAN(dsyr2k)(arguments...);
  else if constexpr (requires { FORTRAN(zher2k)(arguments...); })
    FORTRAN(zher2k)(arguments...);
  else
    FORTRAN(ssyr2k)(arguments...);
};

const auto larfg = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dlarfg)(arguments...); })
    FORTRAN(dlarfg)(arguments...);
  else if constexpr (requires { FORTRAN(zlarfg)(arguments...); })
    FORTRAN(zlarfg)(arguments...);
  else
    FORTRAN(slarfg)(arguments...);
};

const auto edc = [](auto... arguments) {
  if constexpr (requires { FORTRAN(dstedc)(arguments...); })
    FORTRAN(dstedc)(arguments...);
  else
    FORTRAN(sstedc)(arguments...);
};

template <class T>
void multiply(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
              const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c,
              std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  // A row-major product is the column-major product of the operands in reverse.
  const lapack_int rows = lapack_int(n), columns = lapack_int(m), inner = lapack_int(k);
  const lapack_int ld_a = lapack_int(lda), ld_b = lapack_int(ldb), ld_c = lapack_int(ldc);
  mm(&trans_b, &trans_a, &rows, &columns, &inner, &alpha, b, &ld_b, a, &ld_a, &beta, c, &ld_c,
     length(1), length(1));
}

template <class T>
void multiply_vector(char trans, std::int64_t m, std::int64_t n, T alpha, const T* a,
                     std::int64_t lda, const T* x, std::int64_t step, T beta, T* y) {
  const char other = trans == 'N' ? 'T' : trans == 'T' ? 'N' : 'C';
  const lapack_int rows = lapack_int(n), columns = lapack_int(m), ld = lapack_int(lda);
  const lapack_int every = lapack_int(step), one = 1;
  mv(&other, &rows, &columns, &alpha, a, &ld, x, &every, &beta, y, &one, length(1));
}

// Row-major lower is column-major upper.
template <class T>
void multiply_symmetric(std::int64_t n, const T* a, std::int64_t lda, const T* x, T* y) {
  const char uplo = 'U';
  const lapack_int size = lapack_int(n), ld = lapack_int(lda), every = 1;
  const T one = 1, zero = 0;
  symmetric_mv(&uplo, &size, &one, a, &ld, x, &every, &zero, y, &every, length(1));
}

template <class T>
void update_symmetric(std::int64_t n, std::int64_t k, T alpha, const T* a, const T* b,
                      std::int64_t ld, T* c, std::int64_t ldc) {
  const char uplo = 'U', trans = 'N';
  const lapack_int size = lapack_int(n), inner = lapack_int(k), ld_ab = lapack_int(ld);
  const lapack_int ld_c = lapack_int(ldc);
  const Real<T> one = 1;
  r2k(&uplo, &trans, &size, &inner, &alpha, a, &ld_ab, b, &ld_ab, &one, c, &ld_c, length(1),
      length(1));
}

template <class T>
T reflect(std::int64_t n, T* x) {
  const lapack_int size = lapack_int(n), every = 1;
  T tau = 0;
  larfg(&size, x + n - 1, x, &every, &tau);
  return tau;
}

template <class T>
bool factor(std::int64_t n, T* a, std::int64_t lda) {
  const char uplo = 'U';
  const lapack_int size = lapack_int(n), ld = lapack_int(lda);
  lapack_int info = 0;
  potrf(&uplo, &size, a, &ld, &info, length(1));
  return info == 0;
}

template <class T>
void solve_triangular(std::int64_t m, std::int64_t n, const T* l, std::int64_t ldl, T* b,
                      std::int64_t ldb) {
  if (m == 0 || n == 0) return;
  const char side = 'L', uplo = 'U', trans = 'T', diag = 'N';
  const lapack_int rows = lapack_int(n), columns = lapack_int(m);
  const lapack_int ld_l = lapack_int(ldl), ld_b = lapack_int(ldb);
  const T one = 1;
  trsm(&side, &uplo, &trans, &diag, &rows, &columns, &one, l, &ld_l, b, &ld_b, length(1), length(1),
       length(1), length(1));
}

}  // namespace

SingleBlasThread::SingleBlasThread() : lock_(pass<decltype(lock_)>()) { ++guards; }

SingleBlasThread::~SingleBlasThread() { --guards; }

// LAPACK's threads are not the executor's.
ManyBlasThreads::ManyBlasThreads(int threads) : lock_(pass<decltype(lock_)>()) {
  ++guards;
  if (lock_.owns_lock()) set_blas_threads(surroundings().executor != nullptr ? 1 : threads);
}

ManyBlasThreads::~ManyBlasThreads() {
  --guards;
  if (lock_.owns_lock()) set_blas_threads(1);
}

void gemm(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, double alpha,
          const double* a, std::int64_t lda, const double* b, std::int64_t ldb, double beta,
          double* c, std::int64_t ldc) {
  multiply(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
          const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
          std::int64_t ldc) {
  multiply(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void gemm(char trans_a, char trans_b, std::int64_t m, std::int64_t n, std::int64_t k, Complex alpha,
          const Complex* a, std::int64_t lda, const Complex* b, std::int64_t ldb, Complex beta,
          Complex* c, std::int64_t ldc) {
  multiply(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// Row-major, C^T = (A^T)^H A^T.
void herk(std::int64_t n, std::int64_t k, const Complex* a, Complex* c) {
  const char uplo = 'U', trans = 'C';
  const lapack_int size = lapack_int(n), inner = lapack_int(k);
  const double one = 1, zero = 0;
  FORTRAN(zherk)
  (&uplo, &trans, &size, &inner, &one, a, &inner, &zero, c, &size, length(1), length(1));
}

void gemv(char trans, std::int64_t m, std::int64_t n, double alpha, const double* a,
          std::int64_t lda, const double* x, std::int64_t step, double beta, double* y) {
  multiply_vector(trans, m, n, alpha, a, lda, x, step, beta, y);
}
void gemv(char trans, std::int64_t m, std::int64_t n, float alpha, const float* a, std::int64_t lda,
          const float* x, std::int64_t step, float beta, float* y) {
  multiply_vector(trans, m, n, alpha, a, lda, x, step, beta, y);
}

void gemv(char trans, std::int64_t m, std::int64_t n, Complex alpha, const Complex* a,
          std::int64_t lda, const Complex* x, std::int64_t step, Complex beta, Complex* y) {
  multiply_vector(trans, m, n, alpha, a, lda, x, step, beta, y);
}

void symv(std::int64_t n, const double* a, std::int64_t lda, const double* x, double* y) {
  multiply_symmetric(n, a, lda, x, y);
}
void symv(std::int64_t n, const float* a, std::int64_t lda, const float* x, float* y) {
  multiply_symmetric(n, a, lda, x, y);
}
void symv(std::int64_t n, const Complex* a, std::int64_t lda, const Complex* x, Complex* y) {
  multiply_symmetric(n, a, lda, x, y);
}

void syr2k(std::int64_t n, std::int64_t k, double alpha, const double* a, const double* b,
           std::int64_t ld, double* c, std::int64_t ldc) {
  update_symmetric(n, k, alpha, a, b, ld, c, ldc);
}
void syr2k(std::int64_t n, std::int64_t k, float alpha, const float* a, const float* b,
           std::int64_t ld, float* c, std::int64_t ldc) {
  update_symmetric(n, k, alpha, a, b, ld, c, ldc);
}
void syr2k(std::int64_t n, std::int64_t k, Complex alpha, const Complex* a, const Complex* b,
           std::int64_t ld, Complex* c, std::int64_t ldc) {
  update_symmetric(n, k, alpha, a, b, ld, c, ldc);
}

double reflector(std::int64_t n, double* x) { return reflect(n, x); }
float reflector(std::int64_t n, float* x) { return reflect(n, x); }
Complex reflector(std::int64_t n, Complex* x) { return reflect(n, x); }

bool cholesky(std::int64_t n, float* a, std::int64_t lda) { return factor(n, a, lda); }
bool cholesky(std::int64_t n, double* a, std::int64_t lda) { return factor(n, a, lda); }

void solve_lower_transposed(std::int64_t m, std::int64_t n, const float* l, std::int64_t ldl,
                            float* b, std::int64_t ldb) {
  solve_triangular(m, n, l, ldl, b, ldb);
}
void solve_lower_transposed(std::int64_t m, std::int64_t n, const double* l, std::int64_t ldl,
                            double* b, std::int64_t ldb) {
  solve_triangular(m, n, l, ldl, b, ldb);
}
void solve_lower_transposed(std::int64_t m, std::int64_t n, const Complex* l, std::int64_t ldl,
                            Complex* b, std::int64_t ldb) {
  solve_triangular(m, n, l, ldl, b, ldb);
}

template <class T>
std::int64_t Lapack<T>::syevd_workspace(std::int64_t n) {
  return 1 + 6 * n + 2 * n * n;
}

template <class T>
std::int64_t Lapack<T>::syevd(std::int64_t n, T* a, T* w) {
  const char jobz = 'V', uplo = 'U';  // row-major lower
  const lapack_int size = lapack_int(n), lwork = lapack_int(syevd_workspace(n));
  const lapack_int liwork = lapack_int(3 + 5 * n);
  Matrix<T> work(1, lwork);
  std::vector<lapack_int> iwork(std::size_t(liwork), 0);
  lapack_int info = 0;
  evd(&jobz, &uplo, &size, a, &size, w, work.data(), &lwork, iwork.data(), &liwork, &info,
      length(1), length(1));
  return info;
}

template <class T>
std::int64_t Lapack<T>::stedc_workspace(std::int64_t n) {
  return 1 + 4 * n + n * n;
}

template <class T>
std::int64_t Lapack<T>::stedc(std::int64_t n, T* d, T* e, T* z) {
  const char compz = 'I';
  const lapack_int size = lapack_int(n), lwork = lapack_int(stedc_workspace(n));
  const lapack_int liwork = lapack_int(3 + 5 * n);
  Matrix<T> work(1, lwork);
  std::vector<lapack_int> iwork(std::size_t(liwork), 0);
  lapack_int info = 0;
  edc(&compz, &size, d, e, z, &size, work.data(), &lwork, iwork.data(), &liwork, &info, length(1));
  return info;
}

template struct Lapack<float>;
template struct Lapack<double>;

namespace {

// What zheevd hands on to zunmtr is beyond its own n^2 + n; with less than this, which it does not
// state, that takes one reflection at a time.
constexpr std::int64_t reflections = 64;

}  // namespace

std::int64_t heevd_workspace(std::int64_t n) {
  return std::max(1 + 5 * n + 2 * n * n, n * n + (reflections + 2) * (n + reflections));
}

std::int64_t heevd(std::int64_t n, Complex* a, double* w) {
  const char jobz = 'V', uplo = 'U';
  const lapack_int size = lapack_int(n), liwork = lapack_int(3 + 5 * n);
  const lapack_int lwork = lapack_int(n * n + (reflections + 2) * (n + reflections));
  const lapack_int lrwork = lapack_int(1 + 5 * n + 2 * n * n);
  Matrix<double> work(2, lwork), rwork(1, lrwork);
  std::vector<lapack_int> iwork(std::size_t(liwork), 0);
  lapack_int info = 0;
  FORTRAN(zheevd)
  (&jobz, &uplo, &size, a, &size, w, reinterpret_cast<Complex*>(work.data()), &lwork, rwork.data(),
   &lrwork, iwork.data(), &liwork, &info, length(1), length(1));
  return info;
}

namespace {

template <class Solve>
std::int64_t with_workspace(const Solve& solve) {
  lapack_int lwork = -1, info = 0;
  double optimal = 0;
  solve(&optimal, &lwork, &info);
  lwork = lapack_int(optimal);
  Matrix<double> work(1, lwork);
  solve(work.data(), &lwork, &info);
  return info;
}

}  // namespace

// Column-major LAPACK sees A^T = V S U^T, so its "U" is our vt and its "VT" our u.
std::int64_t gesdd(std::int64_t n, double* a, double* s, double* u, double* vt) {
  const lapack_int size = lapack_int(n);
  std::vector<lapack_int> iwork(std::size_t(8 * n), 0);
  return with_workspace([&](double* work, lapack_int* lwork, lapack_int* info) {
    FORTRAN(dgesdd)
    ("A", &size, &size, a, &size, s, vt, &size, u, &size, work, lwork, iwork.data(), info, 1);
  });
}

std::int64_t gesvd(std::int64_t n, double* a, double* s, double* u, double* vt) {
  const lapack_int size = lapack_int(n);
  return with_workspace([&](double* work, lapack_int* lwork, lapack_int* info) {
    FORTRAN(dgesvd)
    ("A", "A", &size, &size, a, &size, s, vt, &size, u, &size, work, lwork, info, 1, 1);
  });
}

}  // namespace cpu
}  // namespace descramble_fast
