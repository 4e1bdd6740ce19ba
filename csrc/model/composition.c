/* composition.c: how much the heads of later layers read of what the heads of earlier ones write, by their weights.
 * Nothing of the size E x E is formed: with OV = V O and R = A B, |V O A B|^2 is the sum over entries of (V^T V M) and
 * (M B B^T), where M = O A is D x D; M of all pairs of heads of two layers is one product. */
#include <limits.h>
#include <math.h>

#include "model/model.h"
#include "base/blas.h"

enum { GRAM_Q, GRAM_K, GRAM_V, GRAM_O, GRAMS };
enum { WAYS = 3, PRODUCTS = 3 };

typedef struct {
    double *scores;
    const asp_model *model;
    asp_arena arena;
    asp_real *grams;    /* (GRAMS,L,H,D,D): W_Q^T W_Q, W_K^T W_K, W_V^T W_V, W_O W_O^T of each head */
    double *norms;      /* (WAYS,L,H): |QK|, |QK| again for its transpose, |OV| */
    asp_real *products; /* (n_threads,PRODUCTS,C,C) */
} composition_job;

/* C (m,n) = op(A) op(B), row-major. */
typedef struct {
    int trans_a, trans_b;
    int64_t m, n, k;
    const asp_real *a, *b;
    int64_t lda, ldb, ldc;
} small_gemm;

static void run_small_gemm(asp_real *c, const small_gemm *g) {
    asp_blas_call_begin();
    asp_cblas_gemm(ASP_ROW_MAJOR, g->trans_a ? ASP_TRANS : ASP_NO_TRANS, g->trans_b ? ASP_TRANS : ASP_NO_TRANS,
                   (int)g->m, (int)g->n, (int)g->k, 1, g->a, (int)g->lda, g->b, (int)g->ldb, 0, c, (int)g->ldc);
    asp_blas_call_end();
}

static asp_real *gram_at(const composition_job *job, int which, int64_t layer, int64_t head) {
    const asp_config *c = &job->model->config;
    return job->grams + ((which * c->n_layer + layer) * c->n_head + head) * c->d_head * c->d_head;
}

/* One of the four Gram matrices of a head, which is rows of W_O and columns of the others. */
static void head_gram(void *arg, int64_t item, int thread) {
    (void)thread;
    const composition_job *job = arg;
    const asp_config *c = &job->model->config;
    const int64_t e = c->d_model, d = c->d_head, width = c->n_head * d, units = c->n_layer * c->n_head;
    const int which = (int)(item / units), rows = which == GRAM_O;
    const int64_t layer = item % units / c->n_head, head = item % c->n_head;
    const asp_layer_offsets *o = &job->model->layers[layer];
    const asp_real *w = job->model->data + (rows ? o->proj_w + head * d * e : o->qkv_w + which * width + head * d);
    const int64_t ld = rows ? e : 3 * width;
    const small_gemm g = {
        .trans_a = !rows, .trans_b = rows, .m = d, .n = d, .k = e, .a = w, .b = w, .lda = ld, .ldb = ld, .ldc = d};
    run_small_gemm(gram_at(job, which, layer, head), &g);
}

/* Sum of the products of the entries of two (d,d) blocks whose rows are lda and ldb apart. */
static double entry_products(const asp_real *a, int64_t lda, const asp_real *b, int64_t ldb, int64_t d) {
    double sum = 0;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) sum += (double)a[i * lda + j] * (double)b[i * ldb + j];
    return sum;
}

static void set_composition_norms(const composition_job *job) {
    const asp_config *c = &job->model->config;
    const int64_t units = c->n_layer * c->n_head, d = c->d_head;
    for (int64_t u = 0; u < units; u++) {
        const asp_real *g[GRAMS];
        for (int which = 0; which < GRAMS; which++) g[which] = gram_at(job, which, u / c->n_head, u % c->n_head);
        job->norms[u] = job->norms[units + u] = sqrt(fmax(entry_products(g[GRAM_Q], d, g[GRAM_K], d, d), 0));
        job->norms[2 * units + u] = sqrt(fmax(entry_products(g[GRAM_V], d, g[GRAM_O], d, d), 0));
    }
}

/* All pairs of heads of two layers, in one of the three ways. */
static void layer_pair(void *arg, int64_t item, int thread) {
    static const int other[WAYS] = {GRAM_K, GRAM_Q, GRAM_O}; /* B B^T where A is W_Q, W_K, W_V */
    const composition_job *job = arg;
    const asp_config *c = &job->model->config;
    const int64_t n = c->n_layer, heads = c->n_head, e = c->d_model, d = c->d_head, width = heads * d;
    const int64_t way = item / (n * n), from = item / n % n, to = item % n, units = n * heads;
    if (from >= to) return;
    asp_real *m = job->products + width * width * PRODUCTS * thread, *left = m + width * width;
    asp_real *right = left + width * width; /* V^T V M of each row of blocks, and M B B^T of each column of blocks */
    const small_gemm all = {.m = width,
                            .n = width,
                            .k = e,
                            .lda = e,
                            .ldb = 3 * width,
                            .ldc = width,
                            .a = job->model->data + job->model->layers[from].proj_w,
                            .b = job->model->data + job->model->layers[to].qkv_w + way * width};
    run_small_gemm(m, &all);
    for (int64_t h = 0; h < heads; h++) {
        const small_gemm by_row = {.m = d,
                                   .n = width,
                                   .k = d,
                                   .a = gram_at(job, GRAM_V, from, h),
                                   .lda = d,
                                   .b = m + h * d * width,
                                   .ldb = width,
                                   .ldc = width};
        const small_gemm by_column = {.m = width,
                                      .n = d,
                                      .k = d,
                                      .a = m + h * d,
                                      .lda = width,
                                      .b = gram_at(job, other[way], to, h),
                                      .ldb = d,
                                      .ldc = width};
        run_small_gemm(left + h * d * width, &by_row);
        run_small_gemm(right + h * d, &by_column);
    }
    for (int64_t i = 0; i < heads; i++)
        for (int64_t j = 0; j < heads; j++) {
            const int64_t block = i * d * width + j * d;
            const double square = entry_products(left + block, width, right + block, width, d);
            const double size = job->norms[2 * units + from * heads + i] * job->norms[way * units + to * heads + j];
            job->scores[((way * n + from) * heads + i) * units + to * heads + j] =
                size > 0 ? sqrt(fmax(square, 0)) / size : 0;
        }
}

static asp_status compute_composition(composition_job *job, const asp_context *context, asp_error *err) {
    const asp_config *c = &job->model->config;
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_parallel_for(context, GRAMS * c->n_layer * c->n_head, head_gram, job);
    if (!status) set_composition_norms(job);
    if (!status) status = asp_parallel_for(context, WAYS * c->n_layer * c->n_layer, layer_pair, job);
    asp_blas_leave();
    return status;
}

asp_status asp_composition_scores(double *scores, const asp_model *model, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_config *c = &model->config;
    const int64_t units = c->n_layer * c->n_head, d = c->d_head, width = c->n_head * d;
    composition_job job = {.scores = scores, .model = model};
    if (asp_max(c->d_model, 3 * width) > INT_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "composition scores: BLAS takes sizes up to %d", INT_MAX);
    for (int64_t i = 0; i < WAYS * units * units; i++) scores[i] = 0;
    asp_arena_part parts[] = {ASP_PART(job.grams, GRAMS * units, d * d), ASP_PART(job.norms, WAYS, units),
                              ASP_PART(job.products, width * PRODUCTS * context->n_threads, width)};
    const double bytes = (double)asp_arena_lay_out(&job.arena, parts, 3);
    if (!asp_arena_commit(&job.arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "composition scores of %lld heads need %s, which could not be allocated",
                        (long long)units, asp_fail_size((char[32]){0}, bytes));
    asp_arena_wire(&job.arena, parts, 3);
    const asp_status status = compute_composition(&job, context, err);
    asp_arena_free(&job.arena);
    return status;
}
