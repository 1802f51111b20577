// A runtime in C that looks after everything itself, as those for language models do: its memory is
// an arena, its threads are its own, its log is a function. While it infers, it shows every N-th
// batch's activations to descramble_fast through the C interface, and then puts its neurons in a
// smooth order:
//
//   observer WIDTH BATCH BATCHES EVERY [PAIRS]
//
// With PAIRS it prints what observing costs instead, as JSON.
#define _POSIX_C_SOURCE 200112L
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "descramble_fast.h"
#include "timing.h"

// The BLAS beside the library, which comes without headers, and with 64-bit integers.
void scipy_cblas_sgemm64_(int order, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k,
                          float alpha, const float* a, int64_t lda, const float* b, int64_t ldb,
                          float beta, float* c, int64_t ldc);
void scipy_openblas_set_num_threads64_(int threads);

// Memory: one block for good, handed out from the bottom up. What is released is free again when
// everything above it is released.

typedef struct {
  size_t start, below;  // where the arena ended before this, and the header below; offsets
  int released;
} Header;

typedef struct {
  char* base;
  size_t size, end, last, most;
  pthread_mutex_t lock;
} Arena;

static void* arena_allocate(void* user, size_t bytes, size_t alignment) {
  Arena* arena = user;
  if (alignment < sizeof(size_t)) alignment = sizeof(size_t);
  pthread_mutex_lock(&arena->lock);
  const uintptr_t first = (uintptr_t)arena->base + arena->end + sizeof(Header);
  char* memory = arena->base + arena->end + sizeof(Header) + (-first & (alignment - 1));
  const size_t at = (size_t)(memory - arena->base);
  if (at > arena->size || bytes > arena->size - at) {
    memory = NULL;
  } else {
    const Header header = {arena->end, arena->last, 0};
    arena->last = at - sizeof(Header);
    memcpy(arena->base + arena->last, &header, sizeof header);
    arena->end = at + (bytes + sizeof(size_t) - 1) / sizeof(size_t) * sizeof(size_t);
    if (arena->end > arena->most) arena->most = arena->end;
  }
  pthread_mutex_unlock(&arena->lock);
  return memory;
}

static void arena_release(void* user, void* memory, size_t bytes, size_t alignment) {
  Arena* arena = user;
  (void)bytes, (void)alignment;
  pthread_mutex_lock(&arena->lock);
  ((Header*)memory - 1)->released = 1;
  while (arena->end > 0) {
    const Header* top = (const Header*)(arena->base + arena->last);
    if (!top->released) break;
    arena->end = top->start;
    arena->last = top->below;
  }
  pthread_mutex_unlock(&arena->lock);
}

// Threads: the same for the runtime's products and for the library's loops.

typedef void Task(void* argument, int32_t index);

typedef struct {
  int count;
  pthread_mutex_t caller, lock;
  pthread_cond_t start, done;
  Task* task;
  void* argument;
  int wanted, round, working, started;
} Pool;

static void* pool_work(void* user) {
  Pool* pool = user;
  pthread_mutex_lock(&pool->lock);
  const int index = ++pool->started;
  for (int round = 1;; ++round) {
    while (pool->round < round) pthread_cond_wait(&pool->start, &pool->lock);
    const int wanted = index < pool->wanted;
    pthread_mutex_unlock(&pool->lock);
    if (wanted) pool->task(pool->argument, index);
    pthread_mutex_lock(&pool->lock);
    if (--pool->working == 0) pthread_cond_signal(&pool->done);
  }
  return NULL;
}

/// While another call has the threads, the library is told to do without them.
static int32_t pool_run(void* user, int32_t count, Task* task, void* argument) {
  Pool* pool = user;
  if (pthread_mutex_trylock(&pool->caller) != 0) return 1;
  pthread_mutex_lock(&pool->lock);
  pool->task = task, pool->argument = argument, pool->wanted = count;
  pool->working = pool->count - 1;
  ++pool->round;
  pthread_cond_broadcast(&pool->start);
  pthread_mutex_unlock(&pool->lock);
  task(argument, 0);
  pthread_mutex_lock(&pool->lock);
  while (pool->working > 0) pthread_cond_wait(&pool->done, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
  pthread_mutex_unlock(&pool->caller);
  return 0;
}

// The network: WIDTH inputs, WIDTH hidden neurons with ReLU, WIDTH outputs.

typedef struct {
  int64_t n, batch, batches, every;
  float *w1, *b1, *w2, *inputs, *hidden, *outputs;
  Pool* pool;
  descramble_context* context;
  descramble_covariance* moments;
} Runtime;

typedef struct {
  const Runtime* runtime;
  const float *w, *bias, *x;
  float* y;
} Product;

/// One thread's share of the outputs y = max(0, W x + b), or y = W x where there is no bias.
static void multiply(void* argument, int32_t index) {
  const Product* p = argument;
  const int64_t n = p->runtime->n, rows = p->runtime->batch, count = p->runtime->pool->count;
  const int64_t begin = n * index / count, end = n * (index + 1) / count;
  scipy_cblas_sgemm64_(101, 111, 112, rows, end - begin, n, 1, p->x, n, p->w + begin * n, n, 0,
                       p->y + begin, n);
  for (int64_t row = 0; p->bias != NULL && row < rows; ++row)
    for (int64_t j = begin; j < end; ++j) {
      const float y = p->y[row * n + j] + p->bias[j];
      p->y[row * n + j] = y > 0 ? y : 0;
    }
}

static void check(descramble_status status) {
  if (status == DESCRAMBLE_OK) return;
  fprintf(stderr, "observer: %s\n", descramble_last_error());
  exit(1);
}

static void infer(void* self, int observe) {
  Runtime* r = self;
  const int64_t size = r->batch * r->n;
  for (int64_t i = 0; i < r->batches; ++i) {
    Product first = {r, r->w1, r->b1, r->inputs + i * size, r->hidden};
    pool_run(r->pool, r->pool->count, multiply, &first);
    if (observe && i % r->every == 0) {
      const int64_t shape[] = {r->batch, r->n};
      const descramble_array batch = {r->hidden, DESCRAMBLE_FLOAT32, {DESCRAMBLE_CPU, 0}, 2, shape,
                                      NULL};
      check(descramble_covariance_update(r->moments, &batch, NULL, NULL, r->context));
    }
    Product second = {r, r->w2, NULL, r->hidden, r->outputs + i * size};
    pool_run(r->pool, r->pool->count, multiply, &second);
  }
}

static void print_log(void* user, descramble_severity severity, const char* text) {
  fprintf(user, "  library: %s%s\n", severity == DESCRAMBLE_WARNING ? "warning: " : "", text);
}

static void* allocated(Arena* arena, int64_t floats) {
  void* memory = arena_allocate(arena, (size_t)floats * sizeof(float), 64);
  if (memory != NULL) return memory;
  fprintf(stderr, "observer: the arena is too small\n");
  exit(1);
}

static float uniform(uint64_t* state) {  // in [-1, 1)
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)(*state >> 40) / (float)(1 << 23) - 1;
}

/// Each hidden neuron looks at one place of the inputs, in no order.
static void fill(Runtime* r) {
  uint64_t state = 1;
  const int64_t n = r->n;
  const float width = (float)n / 16;
  for (int64_t i = 0; i < n; ++i) {
    const float middle = (uniform(&state) + 1) / 2 * (float)n;
    r->b1[i] = 0.1f * uniform(&state);
    for (int64_t j = 0; j < n; ++j) {
      const float away = ((float)j - middle) / width;
      r->w1[i * n + j] = (expf(-away * away) + 0.1f * uniform(&state)) / sqrtf(width);
      r->w2[i * n + j] = uniform(&state) / sqrtf((float)n);
    }
  }
  for (int64_t i = 0; i < r->batches * r->batch * n; ++i) r->inputs[i] = uniform(&state);
}

/// Neuron order[i] moves to place i: rows of W1 and b1, columns of W2.
static void reorder(Runtime* r, Arena* arena, const int64_t* order) {
  const int64_t n = r->n;
  float* w1 = allocated(arena, n * n);
  float* w2 = allocated(arena, n * n);
  float* b1 = allocated(arena, n);
  for (int64_t i = 0; i < n; ++i) {
    memcpy(w1 + i * n, r->w1 + order[i] * n, (size_t)n * sizeof(float));
    b1[i] = r->b1[order[i]];
    for (int64_t row = 0; row < n; ++row) w2[row * n + i] = r->w2[row * n + order[i]];
  }
  r->w1 = w1, r->w2 = w2, r->b1 = b1;
}

int main(int argc, char** argv) {
  long long given[5] = {0};
  for (int i = 0; i < 5 && i + 1 < argc; ++i) given[i] = atoll(argv[i + 1]);
  const int64_t n = given[0], batch = given[1], batches = given[2], every = given[3];
  const int pairs = (int)given[4];
  if (argc < 5 || argc > 6 || n < 2 || batch < 1 || batches < 1 || every < 1 || pairs < 0) {
    fprintf(stderr, "observer: expected WIDTH BATCH BATCHES EVERY [PAIRS], all above 0\n");
    return 1;
  }
  if (descramble_abi_version() != DESCRAMBLE_ABI_VERSION) {
    fprintf(stderr, "observer: built for another version of the library\n");
    return 1;
  }

  // For the network before and after, its samples, and up to 64 n^2 bytes of the library's.
  const int64_t samples = batches * batch;
  Arena arena = {NULL, (size_t)(4 * (3 * samples * n + batch * n + 4 * n * n) + 64 * n * n),
                 0,    0,
                 0,    PTHREAD_MUTEX_INITIALIZER};
  arena.size += (size_t)1 << 26;
  arena.base = malloc(arena.size);
  if (arena.base == NULL) {
    fprintf(stderr, "observer: no memory for the arena\n");
    return 1;
  }
  int32_t threads = 0;
  check(descramble_num_threads(&threads));
  Pool pool = {.count = threads,
               .caller = PTHREAD_MUTEX_INITIALIZER,
               .lock = PTHREAD_MUTEX_INITIALIZER,
               .start = PTHREAD_COND_INITIALIZER,
               .done = PTHREAD_COND_INITIALIZER};
  for (int i = 1; i < threads; ++i) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, pool_work, &pool) != 0) {
      fprintf(stderr, "observer: a thread cannot be started\n");
      return 1;
    }
    pthread_detach(thread);
  }
  scipy_openblas_set_num_threads64_(1);  // in each of ours

  Runtime r = {.n = n, .batch = batch, .batches = batches, .every = every, .pool = &pool};
  r.w1 = allocated(&arena, n * n), r.w2 = allocated(&arena, n * n), r.b1 = allocated(&arena, n);
  r.inputs = allocated(&arena, samples * n), r.hidden = allocated(&arena, batch * n);
  r.outputs = allocated(&arena, samples * n);
  fill(&r);
  check(descramble_context_create(&r.context));
  check(descramble_context_set_threads(r.context, threads));
  check(descramble_context_set_executor(r.context, pool_run, &pool));
  check(descramble_context_set_allocator(r.context, arena_allocate, arena_release, &arena));
  check(descramble_context_set_log(r.context, print_log, stdout));
  check(descramble_covariance_create(n, r.context, &r.moments));

  if (pairs > 0) {
    char head[256];
    snprintf(head, sizeof head,
             "\"example\": \"observer\", \"dtype\": \"float32\", \"layers\": 2, \"n\": %lld, "
             "\"batch\": %lld, \"batches\": %lld, \"every\": %lld, \"threads\": %d",
             given[0], given[1], given[2], given[3], threads);
    print_overhead(head, infer, &r, pairs);
    descramble_covariance_destroy(r.moments);
    descramble_context_destroy(r.context);
    return 0;
  }

  infer(&r, 1);
  float* before = allocated(&arena, samples * n);
  memcpy(before, r.outputs, (size_t)(samples * n) * sizeof(float));

  // An arena that is full is an error like another, and harms nothing.
  descramble_operator* differences = NULL;
  check(descramble_operator_difference(n, 1, DESCRAMBLE_PATH, &differences));
  int64_t* order = malloc((size_t)n * sizeof *order);
  descramble_permutation_report report = {.struct_size = sizeof report};
  const size_t size = arena.size;
  arena.size = arena.end;
  if (order == NULL || descramble_permutation(r.moments, differences, NULL, r.context, order, n,
                                              &report) != DESCRAMBLE_OUT_OF_MEMORY) {
    fprintf(stderr, "observer: a full arena went unnoticed\n");
    return 1;
  }
  printf("full arena: %s\n", descramble_last_error());
  arena.size = size;
  check(descramble_permutation(r.moments, differences, NULL, r.context, order, n, &report));
  int64_t count = 0;
  check(descramble_covariance_count(r.moments, &count));
  printf("%lld neurons, %lld samples, roughness %.4g, in order %.4g; %.1f MB of the arena used\n",
         given[0], (long long)count, report.initial_cost, report.cost, (double)arena.most / 1e6);

  // The same sums in another order: they differ by some sqrt(n) roundings, and n are allowed.
  reorder(&r, &arena, order);
  infer(&r, 0);
  float largest = 0, moved = 0;
  for (int64_t i = 0; i < samples * n; ++i) {
    const float away = fabsf(before[i] - r.outputs[i]);
    largest = fmaxf(largest, fabsf(before[i]));
    if (!(away <= moved)) moved = away;
    if (isnan(away)) break;
  }
  const double bound = ldexp((double)n, -24);
  printf("outputs moved by %.1e of the largest, %.1e allowed\n", moved / largest, bound);
  descramble_operator_destroy(differences);
  descramble_covariance_destroy(r.moments);
  descramble_context_destroy(r.context);
  free(order);
  free(arena.base);
  if (!(moved / largest <= bound && report.cost < report.initial_cost)) {
    fprintf(stderr, "observer: the outputs have changed, or the order is no better\n");
    return 1;
  }
  return 0;
}
