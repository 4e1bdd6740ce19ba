/* blas.c: the only file that touches what OpenBLAS keeps in a process: its number of threads, its buffers, its lock.
 *
 * Every product takes a buffer that OpenBLAS maps when none is free, and OpenBLAS ends the process if it cannot.  It
 * keeps what it has mapped, so as many products at once as there ever were need nothing new.  For those that a call
 * may run beyond that, address space is held from the beginning of the call, and given up just before the product
 * that makes OpenBLAS map as much.
 * A fork waits until no product is under way: in the child nobody would release the lock over OpenBLAS's buffers. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/blas.h"
#include "base/base.h"

/* OpenBLAS maps 32 MiB on x86-64 and aarch64; the rest is for what other threads map in the same moment. */
enum { BUFFER_BYTES = 40 << 20, MOST_AT_ONCE = ASP_MOST_THREADS, FORKING = 1, ENDING = 2 };
enum { MOMENT_NANOSECONDS = 50000, END_MOMENTS = 15000 }; /* with what a sleep adds, 1.5 s */

struct asp_blas_state {
    pthread_mutex_t lock; /* guards all but the atomics */
    int users, widest;    /* calls under way, and the most threads that one of them may use */
    int threads_before;   /* OpenBLAS's number of threads, put back when no call is under way */
    int n_held;
    void *held[MOST_AT_ONCE];     /* space for buffers that OpenBLAS has yet to map */
    atomic_int n_mapped;          /* products at once that need no new buffer */
    atomic_int under_way, closed; /* products; FORKING or ENDING while none may begin */
};

static asp_blas_state own = {.lock = PTHREAD_MUTEX_INITIALIZER};
static asp_blas_state *state = &own; /* of the other precision, when both are loaded: they share one OpenBLAS */
static _Thread_local int calls;      /* of this thread that are under way */

asp_blas_state *asp_blas_get_state(void) { return state; }
void asp_blas_share_state(asp_blas_state *shared) { state = shared; }

/* ---- products --------------------------------------------------------------------- */

static void pause_a_moment(void) {
    const struct timespec moment = {0, MOMENT_NANOSECONDS};
    nanosleep(&moment, NULL);
}

static void make_room(int at_once) {
    pthread_mutex_lock(&state->lock);
    while (atomic_load(&state->n_mapped) < at_once) {
        if (state->n_held) asp_memory_give_space(state->held[--state->n_held], BUFFER_BYTES);
        atomic_fetch_add(&state->n_mapped, 1);
    }
    pthread_mutex_unlock(&state->lock);
}

void asp_blas_call_begin(void) {
    for (;;) {
        while (atomic_load(&state->closed)) pause_a_moment();
        const int at_once = atomic_fetch_add(&state->under_way, 1) + 1;
        if (!atomic_load(&state->closed) && at_once <= MOST_AT_ONCE) {
            if (at_once > atomic_load(&state->n_mapped)) make_room(at_once);
            return;
        }
        atomic_fetch_sub(&state->under_way, 1);
        pause_a_moment();
    }
}

void asp_blas_call_end(void) { atomic_fetch_sub(&state->under_way, 1); }

/* ---- calls -------------------------------------------------------------------------- */

/* Space for the buffers of one more call; 0 if there is not enough. */
static int hold_buffers(int n_threads) {
    const int widest = state->users ? (int)asp_max(state->widest, n_threads) : n_threads;
    const int wanted = (int)asp_min(MOST_AT_ONCE, widest + state->users);
    while (atomic_load(&state->n_mapped) + state->n_held < wanted) {
        void *space = asp_memory_hold_space(BUFFER_BYTES);
        if (!space) return 0;
        state->held[state->n_held++] = space;
    }
    state->widest = widest;
    return 1;
}

asp_status asp_blas_enter(const asp_context *context, asp_error *err) {
#ifndef ASP_ACCELERATE
    const int n_threads = (int)asp_min(context->n_threads, ASP_MOST_THREADS);
    pthread_mutex_lock(&state->lock);
    const int room = hold_buffers(n_threads);
    if (room && state->users++ == 0) {
        state->threads_before = ASP_BLAS(openblas_get_num_threads)();
        if (state->threads_before != 1) ASP_BLAS(openblas_set_num_threads)(1);
    }
    pthread_mutex_unlock(&state->lock);
    if (!room)
        return asp_fail(
            err, ASP_NO_MEMORY,
            "no memory for the buffers of matrix products: %d MB for each of %d threads; fewer threads need less",
            BUFFER_BYTES >> 20, n_threads);
    calls++;
#else
    (void)context, (void)err;
#endif
    return ASP_OK;
}

void asp_blas_leave(void) {
#ifndef ASP_ACCELERATE
    calls--;
    pthread_mutex_lock(&state->lock);
    if (--state->users == 0 && state->threads_before != 1) ASP_BLAS(openblas_set_num_threads)(state->threads_before);
    pthread_mutex_unlock(&state->lock);
#endif
}

const char *asp_blas_config(void) {
#ifdef ASP_ACCELERATE
    return "Accelerate";
#else
    return ASP_BLAS(openblas_get_config)();
#endif
}

const char *asp_blas_core(void) {
#ifdef ASP_ACCELERATE
    return "Accelerate";
#else
    return ASP_BLAS(openblas_get_corename)();
#endif
}

/* ---- forks and the end --------------------------------------------------------------- */

static void blas_before_fork(void) {
    if (state != &own) return;
    atomic_fetch_or(&own.closed, FORKING);
    while (atomic_load(&own.under_way)) pause_a_moment();
    pthread_mutex_lock(&own.lock);
}

static void blas_after_fork(void) {
    if (state != &own) return;
    pthread_mutex_unlock(&own.lock);
    atomic_fetch_and(&own.closed, ~FORKING);
}

/* The calls of all other threads are gone. */
static void after_fork_in_child(void) {
    if (state == &own) {
        pthread_mutex_init(&own.lock, NULL);
        own.users = 0;
        atomic_store(&own.under_way, 0);
        atomic_fetch_and(&own.closed, ~FORKING);
    }
    state->users += calls;
}

/* When the process ends, OpenBLAS gives back its buffers, also those in which a daemon thread still computes.
 * This runs before: it waits for the products under way, and no thread begins another. */
static void before_end(void) {
    atomic_fetch_or(&state->closed, ENDING);
    for (int i = 0; atomic_load(&state->under_way) && i < END_MOMENTS; i++) pause_a_moment();
}

/* When the library is loaded, so that no call can come before. */
__attribute__((constructor)) static void watch_forks_and_end(void) {
    pthread_atfork(blas_before_fork, blas_after_fork, after_fork_in_child);
    atexit(before_end);
}
