/* gemm.c: matrix products in blocks, one single-threaded BLAS call per block, with what follows the
 * product (bias, residual, activation) applied while the block is in cache; few rows go to skinny.c.
 *
 * Blocks depend on the shape only, never on the number of threads, and every block has enough rows and
 * columns to stay out of BLAS's small-matrix path, so that a row's bits do not depend on the other rows. */
#include <limits.h>
#include <string.h>

#include "kernels/kernels.h"
#include "base/blas.h"
#include "kernels/skinny.h"

enum { COLUMN_BLOCK = 576, ROW_BLOCK = 1024, BLOCKS_WANTED = 4, LEAST_ROWS = 64 };
/* OpenBLAS takes its small-matrix path up to m n k = 10^6. */
static const int64_t SMALL_PRODUCT = 1000000;

typedef struct {
    const asp_gemm *gemm;
    int64_t row_blocks, column_blocks;
} gemm_job;

int64_t asp_gemm_min_rows(int64_t n, int64_t k) {
    const int64_t columns = n / asp_max(1, n / COLUMN_BLOCK);
    return SMALL_PRODUCT / asp_max(1, (columns - 16) * k > 0 ? (columns - 16) * k : columns * k) + 1;
}

/* First index of block i of n split in `blocks`, on a multiple of 16: n i / blocks without a product that overflows. */
static int64_t gemm_block_start(int64_t n, int64_t blocks, int64_t i) {
    return i == blocks ? n : (n / blocks * i + n % blocks * i / blocks) / 16 * 16;
}

static void plan_blocks(gemm_job *job) {
    const asp_gemm *g = job->gemm;
    job->column_blocks = asp_max(1, g->n / COLUMN_BLOCK);
    const int64_t least = asp_max(LEAST_ROWS, asp_gemm_min_rows(g->n, g->k) + 16);
    const int64_t wanted = asp_max((BLOCKS_WANTED + job->column_blocks - 1) / job->column_blocks, g->m / ROW_BLOCK);
    job->row_blocks = asp_max(1, asp_min(wanted, g->m / least));
}

void asp_gemm_finish(const asp_gemm *g, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const asp_kernels *kernels = asp_isa_kernels();
    for (int64_t r = row; r < row + rows && r < g->n_rows; r++) {
        asp_real *c = g->c + r * g->ldc + column;
        if (g->bias) kernels->add(c, g->bias + column, columns);
        if (g->epilogue == ASP_EPILOGUE_BIAS_ACT)
            kernels->activate(g->out2 + r * g->ldc + column, c, columns, g->activation);
        else if (g->epilogue == ASP_EPILOGUE_ACT_BACKWARD)
            kernels->activate_backward(c, g->out2 + r * g->ldc + column, columns, g->activation);
    }
}

static void gemm_block(void *arg, int64_t item, int thread) {
    (void)thread;
    const gemm_job *job = arg;
    const asp_gemm *g = job->gemm;
    const int64_t i = item / job->column_blocks, j = item % job->column_blocks;
    const int64_t row = gemm_block_start(g->m, job->row_blocks, i);
    const int64_t rows = gemm_block_start(g->m, job->row_blocks, i + 1) - row;
    const int64_t column = gemm_block_start(g->n, job->column_blocks, j);
    const int64_t columns = gemm_block_start(g->n, job->column_blocks, j + 1) - column;
    const asp_real *a = g->a + (g->trans_a ? row : row * g->lda);
    const asp_real *b = g->b + (g->trans_b ? column * g->ldb : column);
    asp_real *c = g->c + row * g->ldc + column;
    const int residual = g->epilogue == ASP_EPILOGUE_RESIDUAL;
    if (residual && g->residual != g->c)
        for (int64_t r = 0; r < rows; r++)
            memcpy(c + r * g->ldc, g->residual + (row + r) * g->ldc + column, (size_t)columns * sizeof *c);
    asp_blas_call_begin();
    asp_cblas_gemm(ASP_ROW_MAJOR, g->trans_a ? ASP_TRANS : ASP_NO_TRANS, g->trans_b ? ASP_TRANS : ASP_NO_TRANS,
                   (int)rows, (int)columns, (int)g->k, 1, a, (int)g->lda, b, (int)g->ldb,
                   residual || g->accumulate ? 1 : 0, c, (int)g->ldc);
    asp_blas_call_end();
    if (g->epilogue != ASP_EPILOGUE_NONE) asp_gemm_finish(g, row, rows, column, columns);
}

/* Rows and columns of a block are few; the other sizes go to BLAS as they are, which takes them as int. */
static int fits_int(const asp_gemm *g) { return asp_max(asp_max(g->k, g->lda), asp_max(g->ldb, g->ldc)) <= INT_MAX; }

asp_status asp_gemm_run(const asp_gemm *gemm, const asp_context *context) {
    if (asp_skinny_fits(gemm)) return asp_skinny_run(gemm, context);
    if (!fits_int(gemm))
        return asp_fail(context->err, ASP_BAD_ARGUMENT,
                        "a product of %lld x %lld with %lld x %lld is too large: BLAS takes sizes up to %d",
                        (long long)gemm->m, (long long)gemm->k, (long long)gemm->k, (long long)gemm->n, INT_MAX);
    gemm_job job = {.gemm = gemm};
    plan_blocks(&job);
    return asp_parallel_for(context, job.row_blocks * job.column_blocks, gemm_block, &job);
}

enum { COLUMNS_PER_ITEM = 4 * ASP_LANES };

/* ---- sums over rows ------------------------------------------------------------------ */

typedef struct {
    asp_real *sums;
    const asp_real *x;
    int64_t n, columns;
} column_job;

static void column_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const column_job *job = arg;
    const int64_t end = asp_min((item + 1) * COLUMNS_PER_ITEM, job->columns);
    for (int64_t at = item * COLUMNS_PER_ITEM; at < end; at += ASP_LANES)
        asp_isa_kernels()->column_sums(job->sums + at, job->x + at, job->n, job->columns, asp_min(ASP_LANES, end - at));
}

asp_status asp_gemm_column_sums(asp_real *sums, const asp_real *x, int64_t n, int64_t columns,
                                const asp_context *context) {
    column_job job = {sums, x, n, columns};
    return asp_parallel_for(context, (columns + COLUMNS_PER_ITEM - 1) / COLUMNS_PER_ITEM, column_item, &job);
}
