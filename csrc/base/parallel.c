/* parallel.c: the one thread pool.
 *
 * Workers are started on first use, run one job at a time and otherwise sleep on a condition variable
 * (after a spin of some microseconds, because the regions of one forward pass follow each other closely).
 * A second caller while the pool is busy runs its items itself.  A forked child starts with no workers; if it was
 * forked by the caller's poll, the call ends there, because the items of the workers are lost.
 * Items are claimed in order from a counter; which thread runs an item never changes what is written. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

#include "base/base.h"

enum { MAX_THREADS = ASP_MOST_THREADS, SPINS = 1000, STACK_BYTES = 1 << 20 };
static const double POLL_SECONDS = 0.03;

typedef struct {
    asp_task task;
    void *arg;
    int64_t n;
    atomic_llong next; /* first item that nobody has claimed */
    atomic_int stop;
} job;

/* A worker sleeps on its own condition, so that a job wakes only those that take part. */
typedef struct {
    pthread_cond_t wake;
    _Atomic(uint64_t) jobs; /* given to this worker so far */
} seat;

static struct {
    pthread_mutex_t owner; /* held by the caller whose job runs */
    pthread_mutex_t lock;  /* guards the conditions */
    pthread_cond_t done;
    int n_started;
    atomic_int running; /* workers that have not finished the job */
    job job;
    unsigned generation; /* + 1 in every forked child */
    seat seats[MAX_THREADS];
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

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
    asp_environment_of_worker();
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

static void forget_workers(void) {
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.n_started = 0;
    pool.generation++;
    atomic_store(&pool.running, 0);
}

/* When the library is loaded, so that no call can come before. */
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* Makes sure that n workers exist, as far as the system lets us; called by the owner.  Their stacks are small, so
 * that many threads fit where address space is short; setup.py bounds what the core puts on a stack. */
static void start_workers(int n) {
    while (pool.n_started < n) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, STACK_BYTES);
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

int asp_parallel_stopped(const asp_context *context) {
    static _Thread_local double last_poll;
    return poll_now(context, &last_poll);
}

/* The caller's share of a job; it alone polls.  1 if the job ended early. */
static int run_and_poll(job *j, const asp_context *context) {
    static _Thread_local double last_poll;
    const unsigned generation = pool.generation;
    int64_t item;
    while (!atomic_load_explicit(&j->stop, memory_order_relaxed) && (item = atomic_fetch_add(&j->next, 1)) < j->n) {
        j->task(j->arg, item, 0);
        const int stop = poll_now(context, &last_poll);
        if (j == &pool.job && pool.generation != generation) return 1; /* the job is another one's by now */
        if (stop) atomic_store(&j->stop, 1);
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
    const unsigned generation = pool.generation;
    const int stopped = run_and_poll(j, context);
    if (pool.generation != generation) return ASP_STOPPED;
    wait_for_workers();
    pthread_mutex_unlock(&pool.owner);
    return stopped ? ASP_STOPPED : ASP_OK;
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
    char *rest;
    const long quota = strtol(text, &rest, 10), period = strtol(rest, NULL, 10); /* "max" gives 0 */
    if (quota <= 0 || period <= 0 || quota == LONG_MAX) return MAX_THREADS;
    const long cpus = (quota + period - 1) / period;
    return cpus < MAX_THREADS ? (int)cpus : MAX_THREADS;
#else
    return MAX_THREADS;
#endif
}

int asp_parallel_default_threads(void) {
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
