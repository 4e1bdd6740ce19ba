/* parallel.c: the one thread pool, and the only file that touches BLAS threads.
 *
 * Workers are started on first use, run one job at a time and otherwise sleep on a condition variable
 * (after a spin of some microseconds, because the regions of one forward pass follow each other closely).
 * A second caller while the pool is busy runs its items itself.  A forked child starts with no workers.
 * Items are claimed in order from a counter; which thread runs an item never changes what is written. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

#include "blas.h"
#include "internal.h"

enum { MAX_THREADS = 64, SPINS = 1000 };
static const double POLL_SECONDS = 0.03, END_SECONDS = 1.5;

typedef struct {
    asp_task task;
    void *arg;
    int64_t n;
    atomic_llong next;      /* first item that nobody has claimed */
    atomic_int stop;
} job;

/* A worker sleeps on its own condition, so that a job wakes only those that take part. */
typedef struct {
    pthread_cond_t wake;
    _Atomic(uint64_t) jobs; /* given to this worker so far */
} seat;

static struct {
    pthread_mutex_t owner;  /* held by the caller whose job runs */
    pthread_mutex_t lock;   /* guards the conditions */
    pthread_cond_t done;
    int n_started;
    atomic_int running;     /* workers that have not finished the job */
    job job;
    int fork_handler;
    seat seats[MAX_THREADS];
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_items(job *j, int thread) {
    int64_t item;
    while (!atomic_load_explicit(&j->stop, memory_order_relaxed) && (item = atomic_fetch_add(&j->next, 1)) < j->n)
        j->task(j->arg, item, thread);
}

static void *worker(void *arg) {
    const int thread = (int)(intptr_t)arg;
    seat *mine = &pool.seats[thread];
    for (uint64_t done = 0;; done++) {
        for (int i = 0; i < SPINS && atomic_load(&mine->jobs) == done; i++) relax();
        if (atomic_load(&mine->jobs) == done) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load(&mine->jobs) == done) pthread_cond_wait(&mine->wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        run_items(&pool.job, thread);
        if (atomic_fetch_sub(&pool.running, 1) == 1) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

static pthread_mutex_t blas_lock = PTHREAD_MUTEX_INITIALIZER;

static void forget_workers(void) {
    pthread_mutex_init(&blas_lock, NULL);
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.n_started = 0;
    atomic_store(&pool.running, 0);
}

/* Makes sure that n workers exist, as far as the system lets us; called by the owner. */
static void start_workers(int n) {
    if (!pool.fork_handler) {
        pthread_atfork(NULL, NULL, forget_workers);
        pool.fork_handler = 1;
    }
    while (pool.n_started < n) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        seat *next = &pool.seats[pool.n_started + 1];
        pthread_cond_init(&next->wake, NULL);
        atomic_store(&next->jobs, 0);
        const int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)(pool.n_started + 1));
        pthread_attr_destroy(&attributes);
        if (failed) return;
        pool.n_started++;
    }
}

static int poll_now(const asp_context *context, double *last) {
    if (!context->poll) return 0;
    const double now = seconds();
    if (now - *last < POLL_SECONDS) return 0;
    *last = now;
    return context->poll(context->poll_state);
}

/* The caller's share of a job; it alone polls. */
static int run_and_poll(job *j, const asp_context *context) {
    static _Thread_local double last_poll;
    int64_t item;
    while (!atomic_load_explicit(&j->stop, memory_order_relaxed) && (item = atomic_fetch_add(&j->next, 1)) < j->n) {
        j->task(j->arg, item, 0);
        if (poll_now(context, &last_poll)) atomic_store(&j->stop, 1);
    }
    return atomic_load(&j->stop);
}

static void wait_for_workers(void) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool.running) == 0) return;
        relax();
    }
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.running) != 0) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

asp_status asp_parallel_for(const asp_context *context, int64_t n, asp_task task, void *arg) {
    int wanted = context->n_threads < MAX_THREADS ? context->n_threads : MAX_THREADS;
    if (n < wanted) wanted = (int)n;
    if (wanted <= 1 || pthread_mutex_trylock(&pool.owner) != 0) {
        job alone = {.task = task, .arg = arg, .n = n};
        return run_and_poll(&alone, context) ? ASP_STOPPED : ASP_OK;
    }
    start_workers(wanted - 1);
    job *j = &pool.job;
    j->task = task;
    j->arg = arg;
    j->n = n;
    atomic_store(&j->next, 0);
    atomic_store(&j->stop, 0);
    const int n_workers = wanted - 1 < pool.n_started ? wanted - 1 : pool.n_started;
    atomic_store(&pool.running, n_workers);
    pthread_mutex_lock(&pool.lock);
    for (int i = 1; i <= n_workers; i++) {
        atomic_fetch_add(&pool.seats[i].jobs, 1);
        pthread_cond_signal(&pool.seats[i].wake);
    }
    pthread_mutex_unlock(&pool.lock);
    const int stopped = run_and_poll(j, context);
    wait_for_workers();
    pthread_mutex_unlock(&pool.owner);
    return stopped ? ASP_STOPPED : ASP_OK;
}

/* ---- BLAS threads -------------------------------------------------------------- */

static int blas_users, blas_threads, end_is_guarded;
static atomic_int in_blas, ending;

void asp_blas_call_begin(void) {
    atomic_fetch_add(&in_blas, 1);
    if (!atomic_load(&ending)) return;
    atomic_fetch_sub(&in_blas, 1);
    for (;;) pause();
}

void asp_blas_call_end(void) { atomic_fetch_sub(&in_blas, 1); }

/* When the process ends, OpenBLAS gives back its buffers, also those in which a daemon thread still computes.
 * This runs before: it waits for the products under way, and no thread begins another. */
static void wait_for_blas(void) {
    const struct timespec millisecond = {0, 1000000};
    const double limit = seconds() + END_SECONDS;
    atomic_store(&ending, 1);
    while (atomic_load(&in_blas) && seconds() < limit) nanosleep(&millisecond, NULL);
}

static void forget_blas_calls(void) { atomic_store(&in_blas, 0); }

void asp_blas_enter(void) {
#ifndef ASP_ACCELERATE
    pthread_mutex_lock(&blas_lock);
    if (!end_is_guarded) {
        pthread_atfork(NULL, NULL, forget_blas_calls);
        end_is_guarded = atexit(wait_for_blas) == 0;
    }
    if (blas_users++ == 0) {
        blas_threads = ASP_BLAS(openblas_get_num_threads)();
        if (blas_threads != 1) ASP_BLAS(openblas_set_num_threads)(1);
    }
    pthread_mutex_unlock(&blas_lock);
#endif
}

void asp_blas_leave(void) {
#ifndef ASP_ACCELERATE
    pthread_mutex_lock(&blas_lock);
    if (--blas_users == 0 && blas_threads != 1) ASP_BLAS(openblas_set_num_threads)(blas_threads);
    pthread_mutex_unlock(&blas_lock);
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

/* ---- default number of threads ---------------------------------------------------- */

/* CPUs that the cgroup lets us use at once, rounded up; a large number when there is no quota. */
static int cgroup_limit(void) {
#if defined(__linux__)
    char text[64] = "";
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return MAX_THREADS;
    const size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    long quota, period;
    if (sscanf(text, "%ld %ld", &quota, &period) != 2 || quota <= 0 || period <= 0) return MAX_THREADS;
    const long cpus = (quota + period - 1) / period;
    return cpus < MAX_THREADS ? (int)cpus : MAX_THREADS;
#else
    return MAX_THREADS;
#endif
}

int asp_default_threads(void) {
    int n;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    n = (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
    const int limit = cgroup_limit();
    if (n > limit) n = limit;
    if (n > MAX_THREADS) n = MAX_THREADS;
    return n < 1 ? 1 : n;
}
