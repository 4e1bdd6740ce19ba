/* skinny.c: products of few rows with a weight matrix, without BLAS's repacking of the weights.
 *
 * They serve up to 16 rows, and all products that BLAS would send down its small-matrix path, and are used only where they give the bits that BLAS gives for the same rows in a larger batch: for each
 * inner size k of a model that is tried once, when the model is made, on random numbers. */
#include <stdatomic.h>
#include <string.h>

#include "blas.h"
#include "kernels.h"
#include "skinny.h"

enum { TILE = 64, ROWS = 16, DOT_ROWS = 8, PROBE_ROWS = 12, PROBE_COLUMNS = 400 };

typedef struct {
    const asp_gemm *gemm;
    const asp_real *transposed; /* (groups of 16 rows,k,16) of A, for products with a transposed B */
    int64_t tiles;
} skinny_job;

/* 16 rows of A (fewer in the last group) by 64 columns of C. */
typedef struct { int64_t row, rows, column, columns; } skinny_block;

/* out (16,TILE) += A B of one block. */
static void rows_tile(const skinny_job *job, const skinny_block *at, asp_real *out) {
    const asp_gemm *g = job->gemm;
    for (int64_t row = 0; row < at->rows; row += 4)
        asp_kernels_active()->skinny_rows(out + row * TILE, TILE, g->a + (at->row + row) * g->lda, g->lda, g->k,
                                          g->k_block, g->b + at->column, g->ldb, row == 0);
}

/* The same for fewer than 64 columns, which are copied and padded. */
static void rows_edge(const skinny_job *job, const skinny_block *at, asp_real *out) {
    const asp_gemm *g = job->gemm;
    asp_real padded[TILE], sums[ROWS * TILE];
    for (int64_t first = 0, n; first < g->k; first += n) {
        n = asp_k_block(g->k - first, g->k_block);
        memset(sums, 0, sizeof sums);
        memset(padded, 0, sizeof padded);
        for (int64_t t = first; t < first + n; t++) {
            memcpy(padded, g->b + t * g->ldb + at->column, (size_t)at->columns * sizeof *padded);
            for (int64_t row = 0; row < at->rows; row++)
                asp_kernels_active()->multiply_add(sums + row * TILE, g->a[(at->row + row) * g->lda + t], padded, TILE);
        }
        for (int64_t i = 0; i < ROWS * TILE; i++) out[i] += sums[i];
    }
}

/* out (16,TILE) += A B^T of one block, eight rows of B at a time; lanes are rows of A. */
static void dots_tile(const skinny_job *job, const skinny_block *at, asp_real *out) {
    const asp_gemm *g = job->gemm;
    const asp_real *a = job->transposed + at->row * g->k;
    asp_real sums[DOT_ROWS * ROWS];
    for (int64_t j = 0; j < at->columns; j += DOT_ROWS) {
        /* Fewer than eight rows of B left: take the last eight, and skip those done before. */
        const int64_t first = asp_min(at->column + j, g->n - DOT_ROWS), skip = at->column + j - first;
        const int64_t n = asp_min(DOT_ROWS - skip, at->columns - j);
        memset(sums, 0, sizeof sums);
        for (int64_t s = 0; s < n; s++)
            for (int64_t r = 0; r < at->rows; r++) sums[(s + skip) * ROWS + r] = out[r * TILE + j + s];
        asp_kernels_active()->skinny_dots(sums, a, g->k, g->k_block, g->b + first * g->ldb, g->ldb);
        for (int64_t s = 0; s < n; s++)
            for (int64_t r = 0; r < at->rows; r++) out[r * TILE + j + s] = sums[(s + skip) * ROWS + r];
    }
}

static void skinny_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const skinny_job *job = arg;
    const asp_gemm *g = job->gemm;
    skinny_block at = {.row = item / job->tiles * ROWS, .column = item % job->tiles * TILE};
    at.rows = asp_min(ROWS, g->n_rows - at.row);
    at.columns = asp_min(TILE, g->n - at.column);
    asp_real out[ROWS * TILE] = {0};
    const asp_real *start = g->epilogue == ASP_EPILOGUE_RESIDUAL ? g->residual : g->accumulate ? g->c : NULL;
    for (int64_t r = 0; start && r < at.rows; r++)
        memcpy(out + r * TILE, start + (at.row + r) * g->ldc + at.column, (size_t)at.columns * sizeof *out);
    if (g->trans_b) dots_tile(job, &at, out);
    else if (at.columns == TILE) rows_tile(job, &at, out);
    else rows_edge(job, &at, out);
    for (int64_t r = 0; r < at.rows; r++)
        memcpy(g->c + (at.row + r) * g->ldc + at.column, out + r * TILE, (size_t)at.columns * sizeof *out);
    if (g->epilogue != ASP_EPILOGUE_NONE) asp_gemm_finish(g, at.row, at.rows, at.column, at.columns);
}

int asp_skinny_fits(const asp_gemm *g) {
    if (g->k_block <= 0 || g->trans_a || (g->trans_b && g->n < DOT_ROWS)) return 0;
    return g->n_rows <= ROWS || g->n_rows < asp_gemm_min_rows(g->n, g->k);
}

asp_status asp_skinny_run(const asp_gemm *g, const asp_context *context) {
    const int64_t groups = (g->n_rows + ROWS - 1) / ROWS, tiles = (g->n + TILE - 1) / TILE;
    asp_real *transposed = NULL;
    if (g->trans_b) {
        transposed = asp_allocate(groups * ROWS * g->k, sizeof *transposed);
        if (!transposed) return ASP_NO_MEMORY;
        for (int64_t r = 0; r < g->n_rows; r++)
            for (int64_t t = 0; t < g->k; t++)
                transposed[(r / ROWS * g->k + t) * ROWS + r % ROWS] = g->a[r * g->lda + t];
    }
    skinny_job job = {g, transposed, tiles};
    const asp_status status = asp_parallel_for(context, groups * tiles, skinny_item, &job);
    asp_release(transposed);
    return status;
}

/* ---- does it give BLAS's bits here? ------------------------------------------------------- */

static void fill(asp_real *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) x[i] = (asp_real)((double)(asp_splitmix64(seed + (uint64_t)i) >> 40) * 0x1p-24 - 0.5);
}

/* All of: transposed or not, added to c or not. */
static int same_bits(int64_t k, int64_t k_block, int64_t rows, const asp_real *a, const asp_real *b, asp_real *blas,
                     asp_real *ours) {
    const asp_context alone = {1, NULL, NULL};
    for (int variant = 0; variant < 4; variant++) {
        const int trans = variant & 1, add = variant >> 1;
        fill(blas, rows * PROBE_COLUMNS, 7);
        memcpy(ours, blas, (size_t)(PROBE_ROWS * PROBE_COLUMNS) * sizeof *ours);
        asp_cblas_gemm(ASP_ROW_MAJOR, ASP_NO_TRANS, trans ? ASP_TRANS : ASP_NO_TRANS, (int)rows, PROBE_COLUMNS, (int)k, 1,
                       a, (int)k, b, trans ? (int)k : PROBE_COLUMNS, (asp_real)add, blas, PROBE_COLUMNS);
        const asp_gemm g = {.trans_b = trans, .m = rows, .n = PROBE_COLUMNS, .k = k, .a = a, .lda = k, .b = b,
                            .ldb = trans ? k : PROBE_COLUMNS, .c = ours, .ldc = PROBE_COLUMNS, .accumulate = add,
                            .n_rows = PROBE_ROWS, .k_block = k_block};
        asp_skinny_run(&g, &alone);
        if (memcmp(blas, ours, (size_t)(PROBE_ROWS * PROBE_COLUMNS) * sizeof *ours) != 0) return 0;
    }
    return 1;
}

static int64_t try_blocks(int64_t k) {
    static const int64_t blocks[] = {448, 384, 320, 512, 640, 768, 256};
    const int64_t rows = asp_max(PROBE_ROWS, asp_gemm_min_rows(PROBE_COLUMNS, k));
    int64_t found = 0;
    asp_real *memory = asp_allocate(rows * k + k * PROBE_COLUMNS + (rows + PROBE_ROWS) * PROBE_COLUMNS, sizeof *memory);
    if (!memory) return 0;
    asp_real *a = memory, *b = a + rows * k, *blas = b + k * PROBE_COLUMNS, *ours = blas + rows * PROBE_COLUMNS;
    fill(a, rows * k, 1);
    fill(b, k * PROBE_COLUMNS, 2);
    asp_blas_enter();
    for (size_t i = 0; !found && i < sizeof blocks / sizeof blocks[0]; i++)
        if (same_bits(k, blocks[i], rows, a, b, blas, ours)) found = blocks[i];
    asp_blas_leave();
    asp_release(memory);
    return found;
}

/* What was found for kernels and inner size, so that it is tried once in a process: key * 1024 + block + 1. */
static _Atomic(int64_t) known[256];

int64_t asp_skinny_probe(int64_t k) {
    const int64_t key = 4 * k + asp_kernels_active()->level;
    _Atomic(int64_t) *slot = &known[asp_splitmix64((uint64_t)key) % 256];
    const int64_t seen = atomic_load(slot);
    if (seen / 1024 == key) return seen % 1024 - 1;
    const int64_t found = try_blocks(k);
    atomic_store(slot, key * 1024 + found + 1);
    return found;
}
