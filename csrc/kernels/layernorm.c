/* layernorm.c: LayerNorm of many rows, forward and backward; the row kernels are in kernels_rows.h. */
#include <string.h>

#include "kernels/kernels.h"

enum { ROWS_PER_ITEM = 16 };

static void layernorm_rows(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_layernorm *ln = arg;
    const int64_t end = asp_min((item + 1) * ROWS_PER_ITEM, ln->n);
    for (int64_t r = item * ROWS_PER_ITEM; r < end; r++) asp_isa_kernels()->layernorm_row(ln, r);
}

asp_status asp_layernorm_forward(const asp_layernorm *ln, const asp_context *context) {
    return asp_parallel_for(context, (ln->n + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, layernorm_rows,
                            (void *)(uintptr_t)ln);
}

typedef struct {
    const asp_layernorm_backward_job *job;
    int64_t chunks;
} backward_chunks;

static void backward_chunk(void *arg, int64_t item, int thread) {
    (void)thread;
    const backward_chunks *all = arg;
    const asp_layernorm_backward_job *job = all->job;
    asp_real *dweight = job->partial + item * 2 * job->width, *dbias = dweight + job->width;
    memset(dweight, 0, (size_t)(2 * job->width) * sizeof *dweight);
    const int64_t begin = job->n * item / all->chunks, end = job->n * (item + 1) / all->chunks;
    for (int64_t r = begin; r < end; r++)
        asp_isa_kernels()->layernorm_backward_row(job->dx + r * job->width, dweight, dbias, job->dout + r * job->width,
                                                  job->x + r * job->width, job->weight, job->scale[r], job->width);
}

asp_status asp_layernorm_backward(const asp_layernorm_backward_job *job, const asp_context *context) {
    backward_chunks all = {job, asp_min(ASP_LN_CHUNKS, (job->n + 15) / 16)};
    const asp_status status = asp_parallel_for(context, all.chunks, backward_chunk, &all);
    if (status || !job->dweight) return status;
    for (int64_t i = 0; i < all.chunks; i++) {
        asp_isa_kernels()->add(job->dweight, job->partial + 2 * i * job->width, job->width);
        if (job->dbias) asp_isa_kernels()->add(job->dbias, job->partial + (2 * i + 1) * job->width, job->width);
    }
    return ASP_OK;
}
