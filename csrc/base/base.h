/* base.h: memory, arenas, the thread pool, random numbers: on which every folder of the core is built. */
#ifndef ASP_BASE_H
#define ASP_BASE_H

#include "asp.h"

/* ---- environment.c ------------------------------------------------------------- */

#if defined(__x86_64__)
typedef struct {
    unsigned mxcsr;
} asp_control;
#elif defined(__aarch64__)
typedef struct {
    uint64_t fpcr, fpsr;
} asp_control;
#else
#include <fenv.h>
typedef struct {
    fenv_t environment;
} asp_control;
#endif
/* What a calling thread had, on the stack of the public function that it called. */
struct asp_environment {
    asp_control control;
    int outermost; /* not of a call within a call */
};
void asp_environment_enter(asp_environment *environment);
void asp_environment_leave(asp_environment *environment);
void asp_environment_of_worker(void);
/* First in every public function that computes (tests/rules/test_source.py checks it). */
#define ASP_ENVIRONMENT                                                                                                \
    asp_environment environment_ __attribute__((cleanup(asp_environment_leave)));                                      \
    asp_environment_enter(&environment_)

/* ---- memory.c ------------------------------------------------------------------ */

enum { ASP_ALIGNMENT = 64 };

/* n * size zeroed bytes, 64-byte aligned; NULL on overflow or when out of memory. */
void *asp_allocate(int64_t n, size_t size);
void asp_release(void *block);
/* The same, zeroed or not. */
void *asp_memory_take(int64_t n, size_t size, int zeroed);
/* Address space that is held and never used; NULL if there is none. */
void *asp_memory_hold_space(size_t bytes);
void asp_memory_give_space(void *start, size_t bytes);
#if defined(__linux__)
/* The whole pages inside a large block, which may be replaced by other memory that holds the same; NULL if there are
 * none: a small block is on the heap. */
char *asp_memory_pages(void *block, int64_t *bytes);
#endif
/* Multiplies; returns 0 and leaves *out alone when it would pass INT64_MAX or a factor is negative. */
int asp_multiply(int64_t a, int64_t b, int64_t *out);

/* ---- shared.c ------------------------------------------------------------------ */

/* Moves the pages of a block into memory that other processes can map; nobody writes the block meanwhile, and others
 * may read it.  *descriptor: of that memory, owned by the caller; -1 if the block cannot be shared.  Or ASP_STOPPED. */
asp_status asp_shared_offer(void *block, int *descriptor, const asp_context *context);
/* Puts the memory of this descriptor, that asp_shared_offer gave, in place of the pages of a block that holds the same
 * numbers.  *taken: 0 if it is other memory, holds others or cannot be mapped.  Or ASP_STOPPED. */
asp_status asp_shared_take(void *block, int descriptor, int *taken, const asp_context *context);
void asp_shared_close(int descriptor); /* -1: nothing */

/* A block laid out first (reserve), then allocated once (commit), then read by offset. */
typedef struct {
    char *base;
    int64_t bytes;
    int overflow;
} asp_arena;
int64_t asp_arena_reserve(asp_arena *arena, int64_t n, int64_t item_bytes); /* offset, 64-byte aligned */
/* 0: out of memory.  Not zeroed, a large block may hold what an earlier run left there. */
int asp_arena_commit(asp_arena *arena, int zeroed);

/* One array of an arena: n m items of `size` bytes, whose start is written to the pointer at `at`. */
typedef struct {
    void *at;
    int64_t n, m;
    size_t size;
    int64_t offset;
} asp_arena_part;
#define ASP_PART(pointer, n, m) {(void *)&(pointer), n, m, sizeof *(pointer), 0}
/* Reserves all parts; returns the bytes of the arena, INT64_MAX if they do not fit in 64 bits. */
int64_t asp_arena_lay_out(asp_arena *arena, asp_arena_part *parts, int n_parts);
/* Sets the parts' pointers, after the commit. */
void asp_arena_wire(const asp_arena *arena, const asp_arena_part *parts, int n_parts);
void asp_arena_free(asp_arena *arena);

static inline int64_t asp_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t asp_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t asp_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- fail.c --------------------------------------------------------------------- */

/* The context of a public function, for what it calls: failures inside say in err what they are. */
static inline asp_context asp_context_of(const asp_context *context, asp_error *err) {
    asp_context own = *context;
    own.err = err;
    return own;
}
/* Tells the caller that `done` of `total` of a stage are done; ASP_STOPPED if that asks to stop. */
static inline asp_status asp_context_progress(const asp_context *context, const char *stage, int64_t done,
                                              int64_t total) {
    const int stop = context->progress && context->progress(context->progress_state, stage, done, total);
    return stop ? ASP_STOPPED : ASP_OK;
}
/* The context of a call that takes a stage from `done` to `next` of `total`. */
static inline asp_context asp_context_stage(const asp_context *context, const char *stage, int64_t done, int64_t next,
                                            int64_t total) {
    asp_context own = *context;
    own.stage = stage;
    own.stage_done = (double)done;
    own.stage_next = (double)next;
    own.stage_total = total;
    return own;
}
/* The context of the part of such a call from one share of it (0..1) to another. */
static inline asp_context asp_context_part(const asp_context *context, double begin, double end) {
    asp_context own = *context;
    const double whole = context->stage_next - context->stage_done;
    own.stage_done = context->stage_done + begin * whole;
    own.stage_next = context->stage_done + end * whole;
    return own;
}
/* Tells that a share of such a call (0..1) is done; nothing where it is no part of a stage. */
static inline asp_status asp_context_share(const asp_context *context, double share) {
    if (!context->stage) return ASP_OK;
    const double done = context->stage_done + share * (context->stage_next - context->stage_done);
    return asp_context_progress(context, context->stage, (int64_t)done, context->stage_total);
}
/* Writes "12.3 MB" into text and returns it. */
const char *asp_fail_size(char text[32], double bytes);

/* ---- sum.c ---------------------------------------------------------------------- */

/* The i-th number to be added. */
typedef double (*asp_term)(const void *arg, int64_t i);
/* The sum of terms 0 .. n-1. */
double asp_sum(asp_term term, const void *arg, int64_t n);
double asp_sum_numbers(const double *x, int64_t n); /* x (n) read */
double asp_sum_squares(const double *x, int64_t n); /* x (n) read */

/* ---- parallel.c ---------------------------------------------------------------- */

/* One item of work; thread is in [0, n_threads). */
typedef void (*asp_work)(void *arg, int64_t item, int thread);
/* Runs work for items [0, n), in any order, on at most context->n_threads threads.
 * Which thread runs an item must not change what it writes.  Returns ASP_OK or ASP_STOPPED. */
asp_status asp_parallel_for(const asp_context *context, int64_t n, asp_work work, void *arg);
/* 1 if the call should stop: for loops that no asp_parallel_for runs. */
int asp_parallel_stopped(const asp_context *context);
enum { ASP_MOST_THREADS = 64 };

/* ---- random.c ------------------------------------------------------------------ */

/* Uses of random numbers, which are part of their counter, so that two uses never share a stream; those of Python are
 * in attnsparse/_random.py.  CIRCUITS has as its first counter what is drawn, GENERATION a digest of the prompt, MASKS
 * the step of the training. */
enum { ASP_RANDOM_CIRCUITS = 7, ASP_RANDOM_GENERATION = 9, ASP_RANDOM_MASKS = 10 };
enum { ASP_RANDOM_RESAMPLES = 0, ASP_RANDOM_ORDERS = 1 };

/* Numbers start .. start + n - 1 of the stream of a seed, a use and two further counters, as np.random.Philox and
 * attnsparse/_random.py have them.
 *   out (n) written */
void asp_random_raw(uint64_t *out, int64_t start, int64_t n, uint64_t seed, uint64_t use, uint64_t first,
                    uint64_t second);
/* Random order of 0..n-1: that of the first n numbers of the stream, equal ones as they come.
 *   out (n) written     Errors: NO_MEMORY. */
asp_status asp_random_permutation(int64_t *out, int64_t n, uint64_t seed, uint64_t use, uint64_t first, uint64_t second,
                                  asp_error *err);

/* ---- blas.c -------------------------------------------------------------------- */

/* BLAS uses one thread from enter to leave, and there is room for its buffers; leave restores what was set.
 * NO_MEMORY: there is no room, and leave must not be called. */
asp_status asp_blas_enter(const asp_context *context, asp_error *err);
void asp_blas_leave(void);
/* Around every call of BLAS, so that a fork and the end of the process can wait for it. */
void asp_blas_call_begin(void);
void asp_blas_call_end(void);

#endif
