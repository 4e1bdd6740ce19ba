/* isa.c: chooses the kernels of one instruction set, once, by what the CPU has. */
#include <stdatomic.h>
#include <string.h>

#include "kernels/kernels.h"

static _Atomic(const asp_kernels *) active; /* written once at start; a second choice is for tests */

static int runs_here(const char *name) {
    if (strcmp(name, "baseline") == 0) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (strcmp(name, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
    return 0;
}

static const asp_kernels *table(const char *name) {
#if defined(__x86_64__)
    if (strcmp(name, "avx512") == 0) return &asp_kernels_avx512;
    if (strcmp(name, "avx2") == 0) return &asp_kernels_avx2;
#endif
    return strcmp(name, "baseline") == 0 ? &asp_kernels_base : NULL;
}

asp_status asp_isa_select(const char *name, asp_error *err) {
    static const char *const best_first[] = {"avx512", "avx2", "baseline"};
    if (!name || !*name) {
        int i = 0;
        while (!runs_here(best_first[i])) i++;
        name = best_first[i];
    }
    if (!table(name))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "instruction set (ATTNSPARSE_ISA): expected avx512, avx2 or baseline, got '%.40s'", name);
    if (!runs_here(name))
        return asp_fail(err, ASP_BAD_ARGUMENT, "instruction set (ATTNSPARSE_ISA): this CPU does not run %s", name);
    atomic_store(&active, table(name));
    return ASP_OK;
}

const asp_kernels *asp_isa_kernels(void) {
    const asp_kernels *kernels = atomic_load_explicit(&active, memory_order_relaxed);
    return kernels ? kernels : &asp_kernels_base;
}

const char *asp_isa_name(void) { return asp_isa_kernels()->name; }

void asp_isa_exp_array(asp_real *out, const asp_real *x, int64_t n) {
    ASP_ENVIRONMENT;
    asp_isa_kernels()->exp_array(out, x, n);
}

/* The key of one gate row: every word is mixed in, in this order. */
void asp_isa_noise_row(asp_real *u, int64_t n, uint64_t seed, uint64_t step, uint64_t sequence, uint64_t layer,
                       uint64_t head, uint64_t query) {
    ASP_ENVIRONMENT;
    uint64_t key = asp_splitmix64(seed);
    const uint64_t words[] = {step, sequence, layer, head, query};
    for (int i = 0; i < 5; i++) key = asp_splitmix64(key ^ words[i]);
    asp_isa_kernels()->noise_row(u, n, key);
}
