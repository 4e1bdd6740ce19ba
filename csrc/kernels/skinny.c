/* skinny.c: products of few rows with a weight matrix, without BLAS's repacking of the weights.
 *
 * They serve up to 128 rows (64 of the LM head), and all products that BLAS would send down its small-matrix
 * path.  They are used only where they give the bits that BLAS gives for the same rows in a larger batch: for
 * each inner size k of a model that is tried once, when the model is made, on random numbers. */
#include <stdatomic.h>
#include <string.h>

#include "kernels/kernels.h"
#include "base/blas.h"
#include "kernels/skinny.h"

enum { TILE = 64, DOT_ROWS = 8, MOST_ROWS = 64, MOST_SUMS = 16384, PROBE_ROWS = 12, PROBE_COLUMNS = 400 };

typedef struct {
    const asp_gemm *gemm;
    const asp_real *transposed;    /* (groups of 16 rows,k,16) of A, for products with a transposed B */
    asp_real *sums;                /* (n_threads,n_sums) scratch: not on the stack, which may be small */
    int64_t n_sums, width, blocks; /* width: columns of an item (of B, or of B^T); blocks: items to a group of rows */
} skinny_job;

/* Up to MOST_ROWS rows of A by some columns of C; all of `padded` columns have sums. */
typedef struct {
    int64_t row, rows, column, columns, padded;
} skinny_part;

/* sums (rows,padded) of one block of k.  Whole tiles are read where they lie, the rest is copied and padded. */
static void sum_rows(const skinny_job *job, const skinny_part *at, int64_t k, int64_t n, asp_real *sums) {
    const asp_gemm *g = job->gemm;
    const asp_real *a = g->a + at->row * g->lda + k, *b = g->b + k * g->ldb + at->column;
    const int64_t rows = asp_round_up(at->rows, 4);
    if (at->columns == at->padded) {
        asp_isa_kernels()->skinny_block(sums, rows, at->padded, a, g->lda, n, b, g->ldb, g->k - k);
        return;
    }
    asp_real strip[TILE * DOT_ROWS];
    for (int64_t c = 0; c < at->padded; c += TILE)
        for (int64_t t = 0; t < n; t += DOT_ROWS) {
            const int64_t m = asp_min(DOT_ROWS, n - t), whole = asp_min(TILE, at->columns - c);
            memset(strip, 0, sizeof strip);
            for (int64_t i = 0; i < m; i++)
                memcpy(strip + i * TILE, b + (t + i) * g->ldb + c, (size_t)whole * sizeof *b);
            for (int64_t r = 0; r < rows; r += 4) {
                asp_real four[4 * TILE];
                for (int64_t i = 0; i < 4; i++)
                    memcpy(four + i * TILE, sums + (r + i) * at->padded + c, TILE * sizeof *four);
                asp_isa_kernels()->skinny_block(four, 4, TILE, a + r * g->lda + t, g->lda, m, strip, TILE, m);
                for (int64_t i = 0; i < 4; i++)
                    memcpy(sums + (r + i) * at->padded + c, four + i * TILE, TILE * sizeof *four);
            }
        }
}

/* The same with B transposed, eight rows of B and 16 rows of A (the lanes) at a time. */
static void sum_dots(const skinny_job *job, const skinny_part *at, int64_t k, int64_t n, asp_real *sums) {
    const asp_gemm *g = job->gemm;
    asp_real eight[DOT_ROWS * ASP_LANES];
    for (int64_t j = 0; j < at->columns; j += DOT_ROWS) {
        /* Fewer than eight rows of B left: take the last eight, and skip those done before.  (If B has fewer in all,
         * asp_skinny_run has put rows of zeros behind it.) */
        const int64_t first = asp_max(0, asp_min(at->column + j, g->n - DOT_ROWS)), skip = at->column + j - first;
        const int more = first + (int64_t)2 * DOT_ROWS <= g->n;
        for (int64_t r = 0; r < at->rows; r += ASP_LANES) {
            const asp_real *a = job->transposed + (at->row + r) * g->k + k * ASP_LANES;
            memset(eight, 0, sizeof eight);
            asp_isa_kernels()->skinny_dots(eight, a, n, g->b + first * g->ldb + k, g->ldb, r == 0 && more);
            const int64_t rows = asp_min(ASP_LANES, at->rows - r);
            for (int64_t s = skip; s < DOT_ROWS && s - skip + j < at->columns; s++)
                for (int64_t i = 0; i < rows; i++) sums[(r + i) * at->padded + j + s - skip] = eight[s * ASP_LANES + i];
        }
    }
}

static void skinny_item(void *arg, int64_t item, int thread) {
    const skinny_job *job = arg;
    const asp_gemm *g = job->gemm;
    skinny_part at = {.row = item / job->blocks * MOST_ROWS, .column = item % job->blocks * job->width};
    at.rows = asp_min(MOST_ROWS, g->n_rows - at.row);
    at.columns = asp_min(job->width, g->n - at.column);
    at.padded = asp_round_up(at.columns, TILE);
    asp_real *sums = job->sums + thread * job->n_sums;
    const asp_real *start = g->epilogue == ASP_EPILOGUE_RESIDUAL ? g->residual : g->accumulate ? g->c : NULL;
    for (int64_t r = 0; r < at.rows; r++) {
        asp_real *c = g->c + (at.row + r) * g->ldc + at.column;
        if (!start) memset(c, 0, (size_t)at.columns * sizeof *c);
        else if (start != g->c) memcpy(c, start + (at.row + r) * g->ldc + at.column, (size_t)at.columns * sizeof *c);
    }
    for (int64_t k = 0, n; k < g->k; k += n) {
        n = asp_k_block(g->k - k, g->k_block);
        memset(sums, 0, (size_t)(asp_round_up(at.rows, 4) * at.padded) * sizeof *sums);
        if (g->trans_b) sum_dots(job, &at, k, n, sums);
        else sum_rows(job, &at, k, n, sums);
        for (int64_t r = 0; r < at.rows; r++)
            asp_isa_kernels()->add(g->c + (at.row + r) * g->ldc + at.column, sums + r * at.padded, at.columns);
    }
    if (g->epilogue != ASP_EPILOGUE_NONE) asp_gemm_finish(g, at.row, at.rows, at.column, at.columns);
}

/* Columns of an item: enough items for several threads, wide enough to read memory in long pieces. */
static int64_t item_width(const asp_gemm *g) {
    const int64_t most = MOST_SUMS / asp_round_up(asp_min(g->n_rows, MOST_ROWS), 4) / TILE * TILE;
    return asp_max(TILE, asp_min(asp_min(most, 512), asp_round_up(g->n / 8, TILE)));
}

int asp_skinny_fits(const asp_gemm *g) {
    if (g->k_block <= 0 || g->trans_a) return 0;
    return g->by_row || g->n_rows <= (g->trans_b ? MOST_ROWS : 2 * MOST_ROWS) ||
           g->n_rows < asp_gemm_min_rows(g->n, g->k);
}

/* A in groups of 16 rows, for products with a transposed B. */
static void transpose(asp_real *transposed, const asp_gemm *g) {
    for (int64_t r = 0; r < g->n_rows; r++)
        for (int64_t t = 0; t < g->k; t++)
            transposed[(r / ASP_LANES * g->k + t) * ASP_LANES + r % ASP_LANES] = g->a[r * g->lda + t];
}

asp_status asp_skinny_run(const asp_gemm *g, const asp_context *context) {
    const int64_t groups = (g->n_rows + ASP_LANES - 1) / ASP_LANES, width = item_width(g);
    const int64_t parts = (g->n_rows + MOST_ROWS - 1) / MOST_ROWS, blocks = (g->n + width - 1) / width;
    const int64_t n_transposed = g->trans_b ? groups * ASP_LANES * g->k : 0;
    const int64_t n_sums = asp_round_up(asp_min(g->n_rows, MOST_ROWS), 4) * asp_round_up(asp_min(width, g->n), TILE);
    const int64_t n_threads = asp_min(context->n_threads, parts * blocks);
    const int64_t n_padded = g->trans_b && g->n < DOT_ROWS ? DOT_ROWS * g->k : 0;
    asp_real *memory = asp_allocate(n_transposed + n_threads * n_sums + n_padded, sizeof *memory);
    if (!memory)
        return asp_fail(context->err, ASP_NO_MEMORY,
                        "no memory for the scratch of a product of %lld rows with a matrix of %lld x %lld",
                        (long long)g->n_rows, (long long)g->k, (long long)g->n);
    asp_gemm product = *g;
    if (g->trans_b) transpose(memory, g);
    if (n_padded) {
        asp_real *padded = memory + n_transposed + n_threads * n_sums; /* zeroed by the allocator */
        for (int64_t r = 0; r < g->n; r++) memcpy(padded + r * g->k, g->b + r * g->ldb, (size_t)g->k * sizeof *padded);
        product.b = padded;
        product.ldb = g->k;
    }
    skinny_job job = {&product, memory, memory + n_transposed, n_sums, width, blocks};
    const asp_status status = asp_parallel_for(context, parts * blocks, skinny_item, &job);
    asp_release(memory);
    return status;
}

/* ---- does it give BLAS's bits here? ------------------------------------------------------- */

static const asp_context alone = {.n_threads = 1};

static void fill(asp_real *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++)
        x[i] = (asp_real)((double)(asp_splitmix64(seed + (uint64_t)i) >> 40) * 0x1p-24 - 0.5);
}

/* All of: transposed or not, added to c or not.  -1: memory ran out. */
static int same_bits(int64_t k, int64_t k_block, int64_t rows, const asp_real *a, const asp_real *b, asp_real *blas,
                     asp_real *ours) {
    for (int variant = 0; variant < 4; variant++) {
        const int trans = variant & 1, add = variant >> 1;
        fill(blas, rows * PROBE_COLUMNS, 7);
        memcpy(ours, blas, (size_t)(PROBE_ROWS * PROBE_COLUMNS) * sizeof *ours);
        asp_blas_call_begin();
        asp_cblas_gemm(ASP_ROW_MAJOR, ASP_NO_TRANS, trans ? ASP_TRANS : ASP_NO_TRANS, (int)rows, PROBE_COLUMNS, (int)k,
                       1, a, (int)k, b, trans ? (int)k : PROBE_COLUMNS, (asp_real)add, blas, PROBE_COLUMNS);
        asp_blas_call_end();
        const asp_gemm g = {.trans_b = trans,
                            .m = rows,
                            .n = PROBE_COLUMNS,
                            .k = k,
                            .a = a,
                            .lda = k,
                            .b = b,
                            .ldb = trans ? k : PROBE_COLUMNS,
                            .c = ours,
                            .ldc = PROBE_COLUMNS,
                            .accumulate = add,
                            .n_rows = PROBE_ROWS,
                            .k_block = k_block};
        if (asp_skinny_run(&g, &alone)) return -1;
        if (memcmp(blas, ours, (size_t)(PROBE_ROWS * PROBE_COLUMNS) * sizeof *ours) != 0) return 0;
    }
    return 1;
}

/* The block size that gives BLAS's bits, 0 if none does, -1 if memory ran out. */
static int64_t try_blocks(int64_t k) {
    static const int64_t blocks[] = {448, 384, 320, 512, 640, 768, 256};
    const int64_t rows = asp_max(PROBE_ROWS, asp_gemm_min_rows(PROBE_COLUMNS, k));
    int64_t found = 0;
    asp_real *memory = asp_allocate(rows * k + k * PROBE_COLUMNS + (rows + PROBE_ROWS) * PROBE_COLUMNS, sizeof *memory);
    if (!memory) return -1;
    asp_real *a = memory, *b = a + rows * k, *blas = b + k * PROBE_COLUMNS, *ours = blas + rows * PROBE_COLUMNS;
    fill(a, rows * k, 1);
    fill(b, k * PROBE_COLUMNS, 2);
    if (asp_blas_enter(&alone, NULL)) found = -1;
    const int entered = !found;
    for (size_t i = 0; !found && i < sizeof blocks / sizeof blocks[0]; i++) {
        const int same = same_bits(k, blocks[i], rows, a, b, blas, ours);
        if (same) found = same > 0 ? blocks[i] : -1;
    }
    if (entered) asp_blas_leave();
    asp_release(memory);
    return found;
}

/* What was found for kernels and inner size, so that it is tried once in a process: key * 1024 + block + 1. */
static _Atomic(int64_t) known[256];

int64_t asp_skinny_probe(int64_t k) {
    const int64_t key = 4 * k + asp_isa_kernels()->level;
    _Atomic(int64_t) *slot = &known[asp_splitmix64((uint64_t)key) % 256];
    const int64_t seen = atomic_load(slot);
    if (seen / 1024 == key) return seen % 1024 - 1;
    const int64_t found = try_blocks(k);
    if (found < 0) return found;
    atomic_store(slot, key * 1024 + found + 1);
    return found;
}
