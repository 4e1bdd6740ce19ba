/* sizes_probe.c: the index arithmetic of the core, reachable from test_sizes.py and without any memory behind it.
 * BLAS and the thread pool are replaced: the one writes down its sizes, the other runs the first, the last and some
 * items between. */
#include "kernels/gemm.c"
#include "model/model.h"

#define EXPORT __attribute__((visibility("default")))

enum { MOST = 400 };
typedef struct {
    int64_t row, column, rows, columns, k, lda, ldb, ldc;
} probe_call;
static probe_call calls[MOST];
static int64_t n_calls, n_items;
static const asp_gemm *now;

void asp_cblas_gemm(int order, int trans_a, int trans_b, int m, int n, int k, asp_real alpha, const asp_real *a,
                    int lda, const asp_real *b, int ldb, asp_real beta, asp_real *c, int ldc) {
    (void)order, (void)trans_a, (void)trans_b, (void)alpha, (void)a, (void)b, (void)beta;
    const int64_t at = ((int64_t)(intptr_t)c - (int64_t)(intptr_t)now->c) / (int64_t)sizeof *c;
    if (n_calls < MOST) calls[n_calls++] = (probe_call){at / now->ldc, at % now->ldc, m, n, k, lda, ldb, ldc};
}

asp_status asp_parallel_for(const asp_context *context, int64_t n, asp_work work, void *arg) {
    (void)context;
    n_items = n;
    for (int64_t i = 0; i < asp_min(n, 100); i++) work(arg, i, 0);
    for (int64_t i = asp_max(100, n - 100); i < n; i++) work(arg, i, 0);
    return ASP_OK;
}

void asp_blas_call_begin(void) {}
void asp_blas_call_end(void) {}
int asp_skinny_fits(const asp_gemm *g) { return (void)g, 0; }
asp_status asp_skinny_run(const asp_gemm *g, const asp_context *context) { return (void)g, (void)context, ASP_OK; }

const asp_kernels *asp_isa_kernels(void) { return NULL; }

EXPORT int probe_gemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, probe_call *out,
                      int64_t *found, int64_t *items) {
    const asp_gemm g = {
        .m = m, .n = n, .k = k, .lda = lda, .ldb = ldb, .ldc = ldc, .n_rows = m, .c = (asp_real *)(intptr_t)64};
    now = &g;
    n_calls = n_items = 0;
    asp_error err = {0};
    const int status = (int)asp_gemm_run(&g, &(asp_context){.err = &err});
    memcpy(out, calls, sizeof calls);
    *found = n_calls;
    *items = n_items;
    return status;
}

EXPORT int64_t probe_block_start(int64_t n, int64_t blocks, int64_t i) { return gemm_block_start(n, blocks, i); }

EXPORT void probe_shape(const asp_config *config, int record, const int64_t *offsets, int64_t n_sequences,
                        int64_t n_rows, int64_t *out) {
    const asp_record_shape s = asp_shape_of_record(config, (asp_record)record, offsets, n_sequences, n_rows);
    out[0] = s.items;
    out[1] = s.layer_stride;
    out[2] = s.array.n_dims;
    for (int i = 0; i < 5; i++) out[3 + i] = s.array.dims[i], out[8 + i] = s.array.strides[i];
}

EXPORT int probe_check(const asp_config *config, const int32_t *tokens, const int64_t *offsets, int64_t n_sequences,
                       char *text) {
    asp_error err = {0};
    const int status = (int)asp_shape_check_batch(config, tokens, offsets, n_sequences, &err);
    memcpy(text, err.text, sizeof err.text);
    return status;
}

/* Reserves n pieces; offsets written, -1 from the first on that did not fit. */
EXPORT void probe_arena(int64_t n, const int64_t *items, const int64_t *size, int64_t *offsets, int64_t *total) {
    asp_arena arena = {0};
    for (int64_t i = 0; i < n; i++) {
        offsets[i] = asp_arena_reserve(&arena, items[i], size[i]);
        if (arena.overflow) offsets[i] = -1;
    }
    *total = arena.bytes;
}

EXPORT int probe_multiply(int64_t a, int64_t b, int64_t *out) { return asp_multiply(a, b, out); }
EXPORT int64_t probe_squares(const asp_config *c, const int64_t *offsets, int64_t n) {
    return asp_shape_squares_size(c, offsets, n);
}
EXPORT int64_t probe_scratch(const asp_config *c, int64_t longest, int backward) {
    return asp_attention_scratch(c, longest, backward);
}
