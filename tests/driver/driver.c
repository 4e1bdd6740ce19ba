/* driver.c: the C core used without Python, for checkers that watch every access to memory; see run_driver.sh.
 *
 *   driver once       every operation with every instruction set and 1..3 threads: the same bits for any number
 *                     of threads
 *   driver serial     the same, and then with its allocation 1, 2, ... failing: refused, nothing kept, the next
 *                     call as if nothing had happened
 *   driver threads    eight threads, each with every operation, on models that they share: the bits of one alone
 *   driver leak       keeps a block, and driver uninitialized decides by memory that nobody wrote: faults that a
 *   driver race       checker must report
 *
 * Ends with 0 and one line of numbers if all is well. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { N_THREADS = 8 };

static int n_calls, n_failures;

static int fail(const char *name, const char *what, const asp_error *err) {
    fprintf(stderr, "%s: %s (%s)\n", name, what, err->text);
    return 1;
}

/* ---- one thread ------------------------------------------------------------------------------------ */

static int same_for_any_number_of_threads(const fixture *f, const operation *o, uint64_t *expected) {
    for (int threads = 1; threads <= 3; threads++) {
        const asp_context context = {.n_threads = threads};
        asp_error err = {0};
        uint64_t digest = 1;
        const asp_memory_stats before = asp_memory_get_stats();
        n_calls++;
        if (o->use(f, &context, &digest, &err)) return fail(o->name, "failed", &err);
        if (asp_memory_get_stats().live_bytes != before.live_bytes) return fail(o->name, "kept memory", &err);
        if (threads == 1) *expected = digest;
        if (digest != *expected) return fail(o->name, "has other bits with more threads", &err);
    }
    return 0;
}

static int every_allocation_fails(const fixture *f, const operation *o, uint64_t expected) {
    const asp_context context = {.n_threads = 1};
    for (int64_t n = 1;; n++) {
        asp_error err = {0};
        uint64_t digest = 1;
        const asp_memory_stats before = asp_memory_get_stats();
        asp_memory_fail_at(n);
        const asp_status status = o->use(f, &context, &digest, &err);
        asp_memory_fail_at(0);
        n_calls++;
        const asp_memory_stats after = asp_memory_get_stats();
        if (after.live_bytes != before.live_bytes || after.live_blocks != before.live_blocks)
            return fail(o->name, "kept memory of a failed call", &err);
        if (after.n_allocations - before.n_allocations < n) {
            if (status || digest != expected) return fail(o->name, "has other bits after failures", &err);
            return 0;
        }
        if (status == ASP_OK && strcmp(o->name, "wrong arguments") == 0) continue; /* refused for this reason, too */
        if (status != ASP_NO_MEMORY) return fail(o->name, "did not say that memory ran out", &err);
        n_failures++;
    }
}

static int serial(const fixture *f, int with_failures) {
    const char *sets[] = {"baseline", "avx2", "avx512"};
    int n_sets = 0;
    for (int i = 0; i < 3; i++) {
        asp_error err;
        if (asp_isa_select(sets[i], &err)) continue;
        n_sets++;
        for (int k = 0; k < n_operations; k++) {
            uint64_t expected = 0;
            if (same_for_any_number_of_threads(f, &operations[k], &expected)) return 1;
            if (with_failures && every_allocation_fails(f, &operations[k], expected)) return 1;
        }
    }
    printf("%d operations, %d instruction sets, %d calls, %d failed allocations\n", n_operations, n_sets, n_calls,
           n_failures);
    return 0;
}

/* ---- eight threads ----------------------------------------------------------------------------------- */

typedef struct {
    const fixture *f;
    const uint64_t *expected;
    int number, wrong;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    const asp_context context = {.n_threads = 1 + w->number % 3};
    for (int i = 0; i < 3 * n_operations; i++) {
        const int k = (i + w->number) % n_operations;
        asp_error err = {0};
        uint64_t digest = 1;
        if (operations[k].use(w->f, &context, &digest, &err))
            w->wrong += fail(operations[k].name, "failed in a thread", &err);
        else if (digest != w->expected[k]) w->wrong += fail(operations[k].name, "has other bits in a thread", &err);
    }
    return NULL;
}

static int threads(const fixture *f) {
    uint64_t *expected = malloc((size_t)n_operations * sizeof *expected);
    if (!expected) return 1;
    for (int k = 0; k < n_operations; k++)
        if (same_for_any_number_of_threads(f, &operations[k], &expected[k])) return 1;
    pthread_t started[N_THREADS];
    worker workers[N_THREADS];
    int wrong = 0;
    for (int i = 0; i < N_THREADS; i++) {
        workers[i] = (worker){f, expected, i, 0};
        if (pthread_create(&started[i], NULL, work, &workers[i])) return 1;
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(started[i], NULL);
        wrong += workers[i].wrong;
    }
    free(expected);
    printf("%d threads, %d calls, %d with other bits\n", N_THREADS, N_THREADS * 3 * n_operations, wrong);
    return wrong != 0;
}

/* ---- faults ------------------------------------------------------------------------------------------ */

static int shared_number;

static void *change(void *arg) {
    (void)arg;
    for (int i = 0; i < 1000; i++) shared_number++;
    return NULL;
}

static int fault(const char *kind) {
    pthread_t other;
    if (strcmp(kind, "leak") == 0) {
        void *volatile lost = malloc(1000);
        lost = NULL;
        return lost != NULL;
    }
    if (strcmp(kind, "race") == 0 && pthread_create(&other, NULL, change, NULL) == 0) {
        change(NULL);
        pthread_join(other, NULL);
    } else if (strcmp(kind, "uninitialized") == 0) {
        volatile int *unset = malloc(sizeof *unset);
        if (unset && *unset == 3) puts("three");
        free((void *)unset);
    }
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "serial";
    const int is_once = strcmp(what, "once") == 0, is_serial = strcmp(what, "serial") == 0;
    if (!is_once && !is_serial && strcmp(what, "threads") != 0) return fault(what);
    const asp_context context = {.n_threads = 2};
    fixture f = {0};
    asp_error err = {0};
    if (asp_isa_select("", &err) && asp_isa_select("baseline", &err)) return fail("main", "no kernels", &err);
    int wrong = fixture_open(&f, &context, &err) ? fail("main", "no fixture", &err)
                : is_once || is_serial           ? serial(&f, is_serial)
                                                 : threads(&f);
    fixture_close(&f);
    const asp_memory_stats stats = asp_memory_get_stats();
    if (stats.live_bytes || stats.live_blocks) wrong = fail("main", "memory is left over", &err);
    return wrong;
}
